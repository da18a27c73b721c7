"""The phantom collection is made once; the counts of EyePACS are those of its label tables."""

import csv
import shutil
from collections import Counter

import pytest

from lib import paths, sources


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RAW", tmp_path)
    return tmp_path / "phantom"


def photographs(raw):
    return {path.name: path.read_bytes() for path in (raw / "train").glob("*.jpeg")}


def right_eyes(path):
    with open(path) as file:
        grades = Counter(row["level"] for row in csv.DictReader(file) if row["image"].endswith("_right"))
    return tuple(grades[str(grade)] for grade in range(5))


def test_the_phantom_collection_has_a_label_and_a_mask_for_every_photograph(raw):
    assert sources.phantom(5, seed=3) == raw
    with open(raw / "trainLabels.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and {int(row["level"]) for row in rows} == {0, 1, 2, 3, 4}
    names = sorted(row["image"] for row in rows)
    assert names == sorted(path.stem for path in (raw / "train").glob("*.jpeg"))
    assert names == sorted(path.stem for path in (raw / "masks").glob("*.png"))


def test_equal_arguments_reuse_the_collection_and_others_remake_it(raw):
    first = photographs(sources.phantom(4, seed=3))
    touched = raw / "train" / "touched.jpeg"
    touched.write_bytes(b"")
    sources.phantom(4, seed=3)
    assert touched.exists()
    for arguments in ((3, 3), (4, 4), (4, 3, (0.5, 0.5, 0, 0, 0)), (4, 3)):
        sources.phantom(*arguments)
        assert not touched.exists() and len(photographs(raw)) == 2 * arguments[0]
        assert (photographs(raw) == first) == (arguments == (4, 3))
        touched.write_bytes(b"")


def test_a_collection_left_half_written_is_not_taken_for_whole(raw):
    whole = photographs(sources.phantom(3, seed=0))
    shutil.move(raw, raw.with_name("phantom.partial"))
    next((raw.with_name("phantom.partial") / "train").iterdir()).unlink()
    assert photographs(sources.phantom(3, seed=0)) == whole
    assert not raw.with_name("phantom.partial").exists()


def test_a_bad_number_of_patients_is_an_error_and_leaves_nothing(raw):
    with pytest.raises(ValueError, match="n is 0"):
        sources.phantom(0, seed=0)
    assert not raw.exists()


def test_the_counts_of_eyepacs_add_up():
    assert {part: sum(counts) for part, counts in sources.EYEPACS_RIGHT_EYES.items()} == {
        "train": 17563,
        "test": 26788,
    }


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_counts_of_eyepacs_are_those_of_its_label_tables(part):
    path = paths.dataset(f"eyepacs/{part}Labels.csv")
    if not path.exists():
        pytest.skip(f"no eyepacs/{part}Labels.csv in COMPANION_DATASETS or data/raw")
    assert right_eyes(path) == sources.EYEPACS_RIGHT_EYES[part]


def annotation(*things):
    """An ILSVRC annotation as its development kit lays it out."""
    boxes = "".join(
        f"<object><name>{wnid}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for wnid, x0, y0, x1, y1 in things
    )
    return f"<annotation><size><width>500</width></size>{boxes}</annotation>"


@pytest.fixture
def ilsvrc(tmp_path):
    """The same three boxes of two photographs as CSV and as XML, with a numbering of five classes."""
    (tmp_path / "LOC_synset_mapping.txt").write_text("n04 d\nn01 a fish, a big one\nn02 b\nn03 c\nn05 e\n")
    csv = "ImageId,PredictionString\nval_1,n03 10 20 109 219 n03 0 0 4 9 \nval_2,n01 1 2 3 4\n"
    (tmp_path / "solution.csv").write_text(csv)
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml/val_1.xml").write_text(annotation(("n03", 10, 20, 109, 219), ("n03", 0, 0, 4, 9)))
    (tmp_path / "xml/val_2.xml").write_text(annotation(("n01", 1, 2, 3, 4)))
    return tmp_path


@pytest.mark.parametrize("kind", ["solution.csv", "xml"])
def test_ilsvrcs_boxes_are_numbered_by_sorted_wnid_and_include_the_last_pixel(ilsvrc, kind):
    expected = {"val_1": (2, [(10, 20, 110, 220), (0, 0, 5, 10)]), "val_2": (0, [(1, 2, 4, 5)])}
    assert sources.imagenet_boxes(ilsvrc / kind) == expected


def test_boxes_that_cannot_be_read_or_numbered_are_refused(ilsvrc):
    with pytest.raises(FileNotFoundError, match=r"LOC_val_solution.csv or the folder"):
        sources.imagenet_boxes(ilsvrc / "nowhere")
    (ilsvrc / "two.csv").write_text("ImageId,PredictionString\nval_1,n03 1 2 3 4 n01 1 2 3 4\n")
    with pytest.raises(ValueError, match=r"val_1 .* two classes, n03 and n01"):
        sources.imagenet_boxes(ilsvrc / "two.csv")
    (ilsvrc / "short.csv").write_text("ImageId,PredictionString\nval_1,n03 1 2 3\n")
    with pytest.raises(ValueError, match=r"val_1 .* is not `wnid x0 y0 x1 y1`"):
        sources.imagenet_boxes(ilsvrc / "short.csv")
    (ilsvrc / "xml/val_3.xml").write_text("<annotation><object><name>n01</name></object></annotation>")
    with pytest.raises(ValueError, match=r"val_3.xml is not an ILSVRC annotation"):
        sources.imagenet_boxes(ilsvrc / "xml")
    (ilsvrc / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(ValueError, match=r"holds 2 classes: put LOC_synset_mapping.txt"):
        sources.imagenet_boxes(ilsvrc / "solution.csv")
