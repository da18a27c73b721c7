"""Each source leaves a collection that `manifest.read_labels` reads; ILSVRC's boxes are read."""

import csv
import hashlib
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from PIL import Image

from lib import paths
from lib.data import fundus, kaggle, manifest, retina, sources


def tree(folder):
    """{path: content} of all files."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in found}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RAW", tmp_path)
    return tmp_path / "phantom-1"


def photographs(raw):
    """What was drawn, or unpacked."""
    return {path.name: path.read_bytes() for path in (raw / "train").glob("*.jpeg")}


def test_equal_arguments_reuse_the_phantom_collection_and_others_have_their_own(raw, monkeypatch):
    first = photographs(sources.phantom(1, seed=0))
    touched = raw / "train" / "touched.jpeg"
    touched.write_bytes(b"")
    others = {}
    for arguments in ((2, 0), (1, 4), (1, 0, (0, 0, 0, 0, 1))):
        others[arguments] = sources.phantom(*arguments)
        assert len(photographs(others[arguments])) == 2 * arguments[0]
        assert photographs(others[arguments]) != first
    assert len({raw, *others.values()}) == 4
    assert sources.phantom(1, seed=0) == raw and touched.exists()
    monkeypatch.setattr(sources, "VERSION", sources.VERSION + 1)
    assert photographs(sources.phantom(1, seed=0)) == first  # touched.jpeg is gone


@pytest.mark.parametrize("where", ["train/*.jpeg", "masks/*.png", "trainLabels.csv"])
@pytest.mark.parametrize("harm", ["changed", "deleted"])
def test_a_phantom_collection_that_is_not_as_it_was_drawn_is_drawn_again_and_kept(raw, where, harm):
    """Also where size and time are those of the file before."""
    first = tree(sources.phantom(1, seed=0))
    harmed = sorted(raw.glob(where))[0]
    if harm == "changed":
        about = harmed.stat()
        harmed.write_bytes(bytes(about.st_size))
        os.utime(harmed, ns=(about.st_atime_ns, about.st_mtime_ns))
    else:
        harmed.unlink()
    kept = tree(raw)
    sources.phantom(1, seed=0)
    assert tree(raw) == first and tree(raw.with_name("phantom-1.1")) == kept


def test_files_of_the_users_in_a_folder_of_ours_are_kept(raw, monkeypatch):
    def drawn_anew():
        monkeypatch.setattr(sources, "VERSION", sources.VERSION + 1)
        sources.phantom(1, seed=0)

    sources.phantom(1, seed=0)
    (raw / "notes.txt").write_text("mine")
    drawn_anew()
    assert (raw.with_name("phantom-1.1") / "notes.txt").read_text() == "mine"
    shutil.rmtree(raw)
    raw.mkdir()
    (raw / "thesis.txt").write_text("mine")
    drawn_anew()
    assert (raw.with_name("phantom-1.2") / "thesis.txt").read_text() == "mine"
    (raw / "made.json").write_text("[]")
    drawn_anew()
    drawn_anew()  # nothing but ours: replaced
    assert {path.name for path in raw.parent.iterdir() if path.suffix != ".lock"} == {
        "phantom-1", "phantom-1.1", "phantom-1.2", "phantom-1.3"
    }  # fmt: skip


def test_two_runs_do_not_write_one_collection(raw):
    with paths.alone(raw, "writing"), ThreadPoolExecutor(1) as other:
        with pytest.raises(RuntimeError, match=r"Another run is writing .*phantom"):
            other.submit(sources.phantom, 1, 0).result()
    assert sources.phantom(1, seed=0) == raw


def test_a_phantom_collection_left_half_written_is_not_taken_for_whole(raw):
    whole = photographs(sources.phantom(1, seed=0))
    half = raw.with_name("phantom-1.partial")
    shutil.move(raw, half)
    next((half / "train").iterdir()).unlink()
    assert photographs(sources.phantom(1, seed=0)) == whole and not half.exists()


def test_aptos_takes_each_photograph_for_another_patients(raw, monkeypatch):
    """Nobody knows better, and both eyes are asked for: so it is written down."""

    def fetch(collection, folder):
        (folder / "train").mkdir(parents=True, exist_ok=True)
        for name in ("000c1434d8d7", "1e5", "NA"):
            (folder / "train" / f"{name}.png").touch()
        if not (folder / "trainLabels.csv").exists():
            (folder / "trainLabels.csv").write_text("image,level\n000c1434d8d7,2\n1e5,4\nNA,0\n")
        return folder

    monkeypatch.setattr(kaggle, "fetch", fetch)
    for _ in range(2):
        table, rejects = manifest.read_labels(sources.aptos(), "both")
        assert table["patient"].tolist() == table["image"].tolist() == ["000c1434d8d7", "1e5", "NA"]
        assert table["grade"].tolist() == [2, 4, 0] and not rejects


@pytest.mark.parametrize("table", ["", "testLabels.csv", "retinopathy_solution.csv"])
def test_eyepacs_test_split_is_fetched_where_its_labels_lie(raw, monkeypatch, table):
    asked = []
    monkeypatch.setattr(kaggle, "fetch", lambda *arguments: asked.append(arguments))
    eyepacs = paths.RAW / "eyepacs"
    eyepacs.mkdir()
    if table:
        (eyepacs / table).touch()
    sources.eyepacs()
    assert asked == [("eyepacs", eyepacs, ("train", "test") if table else ("train",))]


def test_the_counts_of_eyepacs_add_up():
    counts = {split: sum(grades) for split, grades in sources.EYEPACS_RIGHT_EYES.items()}
    assert counts == {"train": 17563, "test": 26788}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_counts_of_eyepacs_are_those_of_its_label_tables(split):
    path = paths.dataset(f"eyepacs/{split}Labels.csv")
    if not path.exists():
        pytest.skip(f"no eyepacs/{split}Labels.csv in COMPANION_DATASETS or data/raw")
    with open(path) as file:
        rows = list(csv.DictReader(file))
    grades = Counter(row["level"] for row in rows if row["image"].endswith("_right"))
    assert tuple(grades[level] for level in "01234") == sources.EYEPACS_RIGHT_EYES[split]


def annotation(*things):
    """An ILSVRC annotation of a photograph of 500 x 375, as its development kit lays it out."""
    boxes = "".join(
        f"<object><name>{wnid}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for wnid, x0, y0, x1, y1 in things
    )
    return f"<annotation><size><width>500</width><height>375</height></size>{boxes}</annotation>"


@pytest.fixture
def ilsvrc(tmp_path):
    """The same three boxes of two photographs as CSV and as XML; a numbering of five classes."""
    mapping = "n04 d\nn01 a fish, a big one\nn02 b\nn03 c\nn05 e\n"
    (tmp_path / "LOC_synset_mapping.txt").write_text(mapping)
    csv = "ImageId,PredictionString\nval_1,n03 10 20 109 219 n03 0 0 4 9 \nval_2,n01 1 2 3 4\n"
    (tmp_path / "solution.csv").write_text(csv)
    (tmp_path / "xml").mkdir()
    two = annotation(("n03", 10, 20, 109, 219), ("n03", 0, 0, 4, 9))
    (tmp_path / "xml/val_1.xml").write_text(two)
    (tmp_path / "xml/val_2.xml").write_text(annotation(("n01", 1, 2, 3, 4)))
    return tmp_path


@pytest.mark.parametrize("kind", ["solution.csv", "xml"])
def test_ilsvrcs_boxes_are_numbered_by_sorted_wnid_and_include_the_last_pixel(ilsvrc, kind):
    size = (500, 375) if kind == "xml" else None
    assert sources.imagenet_boxes(ilsvrc / kind) == {
        "val_1": (2, [(10, 20, 110, 220), (0, 0, 5, 10)], size),
        "val_2": (0, [(1, 2, 4, 5)], size),
    }


def test_boxes_that_cannot_be_read_or_numbered_are_refused(ilsvrc):
    with pytest.raises(FileNotFoundError, match=r"LOC_val_solution.csv or the folder"):
        sources.imagenet_boxes(ilsvrc / "nowhere")
    (ilsvrc / "two.csv").write_text("ImageId,PredictionString\nval_1,n03 1 2 3 4 n01 1 2 3 4\n")
    with pytest.raises(ValueError, match=r"val_1 .* two classes, n03 and n01"):
        sources.imagenet_boxes(ilsvrc / "two.csv")
    (ilsvrc / "short.csv").write_text("ImageId,PredictionString\nval_1,n03 1 2 3\n")
    with pytest.raises(ValueError, match=r"val_1 .* is not `wnid x0 y0 x1 y1`"):
        sources.imagenet_boxes(ilsvrc / "short.csv")
    no_box = "<annotation><object><name>n01</name></object></annotation>"
    (ilsvrc / "xml/val_3.xml").write_text(no_box)
    with pytest.raises(ValueError, match=r"val_3.xml is not an ILSVRC annotation"):
        sources.imagenet_boxes(ilsvrc / "xml")
    (ilsvrc / "xml/val_3.xml").write_text(annotation())
    with pytest.raises(ValueError, match=r"val_3.xml is not an ILSVRC annotation: it has no obj"):
        sources.imagenet_boxes(ilsvrc / "xml")
    (ilsvrc / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no box"):
        sources.imagenet_boxes(ilsvrc / "empty")
    (ilsvrc / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(ValueError, match=r"holds 2 classes: put LOC_synset_mapping.txt"):
        sources.imagenet_boxes(ilsvrc / "solution.csv")


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ("5 2 3 4", r"val_1 .* has the box \(5, 2, 3, 4\)"),
        ("1 9 3 4", r"val_1 .* has the box"),
        ("-1 2 3 4", r"val_1 .* has the box \(-1,"),
        ("1 2 3 4.5", "val_1 .* is not `wnid x0 y0 x1 y1`"),
        ("1 2 3 x", "val_1 .* is not `wnid"),
        ("1 2 3 4 n01", "val_1 .* is not `wnid"),
    ],
)
def test_a_box_that_is_none_is_refused(ilsvrc, corners, message):
    (ilsvrc / "bad.csv").write_text(f"ImageId,PredictionString\nval_1,n03 {corners}\n")
    with pytest.raises(ValueError, match=message):
        sources.imagenet_boxes(ilsvrc / "bad.csv")


def test_a_class_that_the_numbering_has_not_is_named(ilsvrc):
    (ilsvrc / "bad.csv").write_text("ImageId,PredictionString\nval_1,n99 1 2 3 4\n")
    with pytest.raises(ValueError, match=r"val_1 in .* is of class 'n99', which .*mapping.txt has"):
        sources.imagenet_boxes(ilsvrc / "bad.csv")


def jpegs(folder, *sizes):
    folder.mkdir(exist_ok=True)
    for i, size in enumerate(sizes, 1):
        Image.new("RGB", size).save(folder / f"val_{i}.JPEG", "JPEG")
    return folder


@pytest.mark.parametrize("kind", ["solution.csv", "xml"])
def test_ilsvrcs_photographs_are_those_with_boxes_of_their_size(ilsvrc, kind):
    folder = jpegs(ilsvrc / "val", (500, 375), (500, 375), (9, 9))
    annotations = sources.imagenet_boxes(ilsvrc / kind)
    both = [folder / "val_1.JPEG", folder / "val_2.JPEG"]
    assert sources.imagenet_photographs(folder, annotations) == both
    assert sources.imagenet_photographs(str(folder), annotations, 1) == both[:1]
    jpegs(folder, (109, 375))  # ILSVRC's last pixel may be counted from 1
    if kind == "solution.csv":
        assert sources.imagenet_photographs(folder, annotations) == both


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("solution.csv", (227, 200), r"reach to \(110, 220\)"),
        ("solution.csv", (100, 375), r"reach to \(110, 220\)"),
        ("xml", (227, 227), r"were drawn on \(500, 375\)"),
        ("xml", (1000, 750), r"were drawn on"),  # into which the boxes fit
        ("xml", (375, 500), r"were drawn on"),
    ],
)
def test_boxes_of_photographs_of_another_size_are_refused(ilsvrc, kind, size, said):
    """Among the first, and among the last."""
    annotations = sources.imagenet_boxes(ilsvrc / kind)
    message = rf"boxes and photographs differ in size: .*val_1.JPEG .*{said}"
    with pytest.raises(ValueError, match=message):
        sources.imagenet_photographs(jpegs(ilsvrc / "val", size, (500, 375)), annotations)
    if kind == "xml":
        with pytest.raises(ValueError, match=r"val_2\.JPEG"):
            sources.imagenet_photographs(jpegs(ilsvrc / "val", (500, 375), size), annotations)


def cell(number):
    """The code of a cell of notebook 01."""
    book = nbformat.read(paths.NOTEBOOKS / "01_cam_imagenet.ipynb", 4)
    (found,) = [cell for cell in book.cells if cell.id == f"01-{number}"]
    return found.source


def test_notebook_01_scores_no_boxes_of_photographs_that_were_resized(ilsvrc, capsys):
    known = {"sources": sources, "classifier": True, "limit": 0}
    known |= {"ilsvrc": str(ilsvrc / "val"), "ilsvrc_boxes": str(ilsvrc / "solution.csv")}
    jpegs(ilsvrc / "val", (500, 375), (227, 227))
    exec(cell(126), known)
    assert capsys.readouterr().out == "2 photographs with boxes\n" and len(known["listed"]) == 2
    jpegs(ilsvrc / "val", (100, 227))
    with pytest.raises(ValueError, match="boxes and photographs differ in size"):
        exec(cell(126), known)


@pytest.mark.filterwarnings("error")
def test_notebook_01_finds_the_authors_probabilities_without_a_warning(capsys):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 4))
    activations = rng.normal(size=(3, 3, 6, 10))
    scores = scipy.special.softmax(weights.T @ activations.mean((0, 1)), axis=0)
    known = {"authors": "folder", "torch": torch, "net": {"weights_LR": weights}}
    known["crops"] = {"activation_lastconv": activations, "scores": scores}
    exec(cell(134), known)
    assert "probabilities of 4 classes for 10 crops" in capsys.readouterr().out
    assert known["authors_error"] < 1e-6  # float32
    known["crops"]["scores"] = scores[::-1].copy()
    exec(cell(134), known)
    assert known["authors_error"] > 0.1


def test_a_folder_without_ilsvrcs_photographs_or_with_a_damaged_one_is_named(ilsvrc):
    annotations = sources.imagenet_boxes(ilsvrc / "xml")
    folder = jpegs(ilsvrc / "val", (500, 375))
    (folder / "val_2.JPEG").write_text("<html>")
    with pytest.raises(ValueError, match=r"val_2.JPEG cannot be read .*: fetch it anew"):
        sources.imagenet_photographs(folder, annotations)
    for empty in (ilsvrc / "xml", ilsvrc / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no photograph .*JPEG.*boxes is of val_1"):
            sources.imagenet_photographs(empty, annotations)


def test_a_folder_of_your_own_needs_a_table_of_labels(tmp_path, monkeypatch):
    message = r"is no collection: .* labels.csv with the columns image .* and level"
    with pytest.raises(FileNotFoundError, match=message):
        sources.folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is no collection"):
        sources.folder(tmp_path / "nowhere")
    for name in ("labels.csv", "trainLabels.csv"):
        (tmp_path / name).write_text("image,level\n1_left,0\n")
        assert sources.folder(tmp_path) == tmp_path == sources.folder(str(tmp_path))
        (tmp_path / name).unlink()
    (tmp_path / "labels.csv").touch()
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path.parent)
    assert sources.folder(f"~/{tmp_path.name}") == sources.folder(tmp_path.name) == tmp_path


@pytest.fixture
def medmnist(tmp_path, monkeypatch):
    """A shelf with a RetinaMNIST of 5, 2 and 3 photographs, and its arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 5), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28, 3), np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 5, (n, 1), np.uint8)
    path = tmp_path / "shelf" / "medmnist" / "retinamnist.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **arrays)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(sources.RETINAMNIST, 28, ("retinamnist.npz", md5))
    monkeypatch.setenv("COMPANION_DATASETS", str(tmp_path / "shelf"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(paths, "RAW", tmp_path / "raw")
    return path, arrays


def test_retinamnist_is_a_collection_with_its_own_split(medmnist):
    raw = sources.retinamnist(28)
    assert raw == paths.RAW / "retinamnist-28"
    table, rejects = manifest.read_labels(raw, "both")
    assert Counter(table["split"]) == {"train": 5, "test": 3, "val": 2} and not rejects
    for split in manifest.SPLITS:
        rows = table[table["split"] == split]
        assert rows["grade"].tolist() == medmnist[1][f"{split}_labels"][:, 0].tolist()
        photographs = np.stack([np.asarray(Image.open(path)) for path in rows["path"]])
        assert (photographs == medmnist[1][f"{split}_images"]).all()


def test_retinamnist_is_written_once_and_whole(medmnist):
    half = paths.RAW / "retinamnist-28.partial"
    (half / "train").mkdir(parents=True)
    (half / "train" / "from_an_interrupted_run.png").touch()
    raw = sources.retinamnist(28)
    assert not half.exists() and len([*raw.rglob("*.png")]) == 10
    times = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    assert sources.retinamnist(28) == raw
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == times


def test_retinamnist_is_unpacked_again_where_a_photograph_or_the_file_changed(
    medmnist, monkeypatch
):
    raw = sources.retinamnist(28)
    first = tree(raw)
    for name in ("train/train_0003.png", "labels.csv", "made.json"):
        (raw / name).write_bytes(b"x")
        sources.retinamnist(28)
        assert tree(raw) == first
        (raw / name).unlink()
        assert tree(sources.retinamnist(28)) == first
    path, arrays = medmnist
    np.savez(path, **arrays | {"val_labels": 4 - arrays["val_labels"]})
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(sources.RETINAMNIST, 28, (path.name, md5))
    table = manifest.read_labels(sources.retinamnist(28), "both")[0]
    found = table["grade"][table["split"] == "val"].tolist()
    assert found == (4 - arrays["val_labels"][:, 0]).tolist()


def test_retinamnist_is_found_where_its_package_downloads_it(medmnist, tmp_path):
    (tmp_path / "home").mkdir()
    shutil.move(medmnist[0].parent, tmp_path / "home" / ".medmnist")
    assert len([*sources.retinamnist(28).rglob("*.png")]) == 10


def test_a_missing_or_damaged_retinamnist_is_answered_with_steps(medmnist):
    with pytest.raises(ValueError, match="size is 64; RetinaMNIST is here read in 28 and 224"):
        sources.retinamnist(64)
    with pytest.raises(FileNotFoundError, match=r"retinamnist_224.npz is not on disk") as missing:
        sources.retinamnist(224)
    steps = str(missing.value).splitlines()
    assert [step[:2] for step in steps[1:]] == ["1.", "2.", "3.", "4."]
    assert "retinamnist_224.npz?download=1" in steps[1] and sources.RETINAMNIST[224][1] in steps[2]
    assert str(paths.RAW / "medmnist") in steps[3]
    whole = medmnist[0].read_bytes()
    medmnist[0].write_bytes(whole[:-1])
    message = r"retinamnist.npz is not MedMNIST's file: its md5 is .*download it anew"
    with pytest.raises(ValueError, match=message):
        sources.retinamnist(28)
    assert not (paths.RAW / "retinamnist-28").exists()


def test_the_real_retinamnist_has_its_published_counts(tmp_path, monkeypatch):
    if not paths.dataset("medmnist/retinamnist.npz").exists():
        pytest.skip("no medmnist/retinamnist.npz in COMPANION_DATASETS or data/raw")
    shelf = paths.dataset("medmnist").parent
    monkeypatch.setenv("COMPANION_DATASETS", str(shelf))
    monkeypatch.setattr(paths, "RAW", tmp_path)
    table, rejects = manifest.read_labels(sources.retinamnist(28), "both")
    assert Counter(table["split"]) == {"train": 1080, "val": 120, "test": 400} and not rejects


def scene(seed, size):
    """A photograph unlike those of other seeds, the same at any size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """IDRiD as published, `C. Localization` too: 6 and 3 graded photographs, 3 and 1 with masks.

    IDRiD_01 is IDRiD_002 of training, IDRiD_02 is nowhere else, IDRiD_03 is twice in training with
    two grades (IDRiD_004 and IDRiD_005), IDRiD_55 is IDRiD_003 of testing.
    """
    home = tmp_path / "shelf" / "idrid"
    grading, masks = home / "B. Disease Grading", home / "A. Segmentation"
    for split, seeds in (("a. Training Set", [1, 2, 3, 4, 4, 6]), ("b. Testing Set", [11, 12, 13])):
        for copy in (grading, home / "C. Localization"):
            photographs = copy / "1. Original Images" / split
            photographs.mkdir(parents=True)
            for i, seed in enumerate(seeds, 1):
                scene(seed, (120, 80)).save(photographs / f"IDRiD_{i:03d}.jpg", quality=95)
    tables = grading / "2. Groundtruths"
    tables.mkdir()
    table = "Image name,Retinopathy grade,Risk of macular edema ,,\n" + "".join(
        f"IDRiD_{i:03d},{grade},{grade % 3},,\n" for i, grade in enumerate([0, 3, 1, 2, 4, 0], 1)
    )
    (tables / "a. IDRiD_Disease Grading_Training Labels.csv").write_text(table)
    table = "Image name,Retinopathy grade,Risk\nIDRiD_001,4,0\nIDRiD_002,0,0\nIDRiD_003,3,1\n"
    (tables / "b. IDRiD_Disease Grading_Testing Labels.csv").write_text(table)
    lesions = {
        "1. Microaneurysms": "MA",
        "2. Haemorrhages": "HE",
        "3. Hard Exudates": "EX",
        "4. Soft Exudates": "SE",
        "5. Optic Disc": "OD",
    }
    sets = {1: "a. Training Set", 2: "a. Training Set", 3: "a. Training Set", 55: "b. Testing Set"}
    for (number, split), seed in zip(sets.items(), (2, 22, 4, 13), strict=True):
        photographs = masks / "1. Original Images" / split
        photographs.mkdir(parents=True, exist_ok=True)
        scene(seed, (240, 160)).save(photographs / f"IDRiD_{number:02d}.jpg", quality=95)
        for i, (folder, end) in enumerate(lesions.items()):
            if end == "SE" and number != 2:
                continue  # not in every photograph
            folder = masks / "2. All Segmentation Groundtruths" / split / folder
            folder.mkdir(parents=True, exist_ok=True)
            mask = Image.new("P", (240, 160))
            mask.putpalette([0, 0, 0, 255, 0, 0])
            mask.paste(1, (10 + 30 * i, 20 + number, 25 + 30 * i, 40 + number))
            mask.save(folder / f"IDRiD_{number:02d}_{end}.tif")
    monkeypatch.setenv("COMPANION_DATASETS", str(tmp_path / "shelf"))
    monkeypatch.setattr(paths, "RAW", tmp_path / "raw")
    return home


def graded(raw):
    """{image: (grade, split)} of a collection, of which nothing is rejected."""
    table, rejects = manifest.read_labels(raw, "both")
    assert not rejects
    return {row.image: (row.grade, row.split) for row in table.itertuples()}


LEVELS = {"train": [0, 3, 1, 2, 4, 0], "test": [4, 0, 3]}
TRAINING, TESTING = (
    {f"{split}_IDRiD_{i:03d}": (grade, split) for i, grade in enumerate(grades, 1)}
    for split, grades in LEVELS.items()
)


def test_idrid_is_read_where_it_lies_as_it_is_published(published):
    raw = sources.idrid()
    assert raw == paths.RAW / "idrid-grades" and graded(raw) == TRAINING | TESTING
    assert {path.name for path in raw.rglob("*")} == {"labels.csv", "made.json"}
    files = manifest.read_labels(raw, "both")[0].set_index("image")["path"]
    folder = published / "B. Disease Grading" / "1. Original Images"
    assert files["train_IDRiD_004"] == folder / "a. Training Set" / "IDRiD_004.jpg"
    assert files["test_IDRiD_001"] == folder / "b. Testing Set" / "IDRiD_001.jpg"
    assert graded(sources.idrid(path=str(published / "B. Disease Grading"))) == graded(raw)


def test_idrids_photographs_with_masks_are_held_out_and_their_twins_not_learnt_from(published):
    collection = graded(sources.idrid(lesions=True))
    held_out = {"lesions_IDRiD_01": (3, "lesions"), "lesions_IDRiD_02": (-1, "lesions")}
    held_out |= {"lesions_IDRiD_03": (-1, "lesions"), "lesions_IDRiD_55": (3, "lesions")}
    learnt = {f"train_IDRiD_{i}": TRAINING[f"train_IDRiD_{i}"] for i in ("001", "003", "006")}
    assert collection == learnt | TESTING | held_out


def test_idrids_81_are_taken_whatever_else_is_there_and_their_twins_found(published, capsys):
    """Of its testing part one is the twin of a training photograph. Some names are not IDRiD's."""
    segmentation = published / "A. Segmentation"
    photograph = next(segmentation.rglob("IDRiD_55.jpg"))
    mask = next(segmentation.rglob("IDRiD_55_MA.tif"))
    for number in ("00", "56", "82", "99"):
        shutil.copy(mask, mask.with_name(f"IDRiD_{number}_MA.tif"))
        scene(1, (240, 160)).save(photograph.with_name(f"IDRiD_{number}.jpg"), quality=95)
    scene(9, (240, 160)).save(photograph.with_name("IDRiD_57.jpg"))  # nobody has outlined it
    scene(9, (240, 160)).save(photograph.with_name("IDRiD_55 small.jpg"))
    shutil.copytree(segmentation, published / "0. Copy")
    graded_photograph = next(published.glob("B*/*/a*/IDRiD_006.jpg"))
    shutil.copy(graded_photograph, graded_photograph.with_name("IDRiD_500.jpg"))
    capsys.readouterr()
    collection = graded(sources.idrid(lesions=True))
    account = (
        "IDRiD: 9 of its 516 graded photographs and 5 of its 81 with masks are here; 4 graded ones "
        "of training show an eye that is scored and are left out, 1 of testing are among those "
        "with masks too and stay\n"
    )
    assert capsys.readouterr().out == account
    grades = {"01": 3, "02": -1, "03": -1, "55": 3, "56": 0}
    held_out = {f"lesions_IDRiD_{number}": (grade, "lesions") for number, grade in grades.items()}
    learnt = {f"train_IDRiD_{i}": TRAINING[f"train_IDRiD_{i}"] for i in ("003", "006")}
    assert collection == learnt | TESTING | held_out
    sources.idrid(lesions=True)  # found as it was written
    assert capsys.readouterr().out == account
    sources.idrid()
    assert capsys.readouterr().out == "IDRiD: 9 of its 516 graded photographs are here\n"
    Image.new("L", (240, 160)).save(next((published / "0. Copy").rglob("IDRiD_02_EX.tif")))
    message = r"0\. Copy.*IDRiD_02_EX.tif and .*A\. Seg.*IDRiD_02_EX.tif have the name .* differ"
    with pytest.raises(ValueError, match=message):
        sources.idrid(lesions=True)


def test_idrids_masks_are_one_file_by_the_names_of_the_lesions(published):
    raw = sources.idrid(lesions=True)
    written = {path.name: (path.stat().st_ino, path.read_bytes()) for path in raw.glob("masks/*")}
    assert set(written) == {f"lesions_IDRiD_{number}.png" for number in ("01", "02", "03", "55")}
    names = "microaneurysm haemorrhage hard_exudate cotton_wool_spot optic_disc".split()
    for number in (1, 2, 3, 55):
        masks = retina.read_masks(raw / "masks" / f"lesions_IDRiD_{number:02d}.png")
        for i, name in enumerate(names):
            expected = np.zeros((160, 240), bool)
            if name != "cotton_wool_spot" or number == 2:
                expected[20 + number : 40 + number, 10 + 30 * i : 25 + 30 * i] = True
            assert (masks.pop(name) == expected).all()
        assert not any(mask.any() for mask in masks.values())
    assert sources.idrid(lesions=True) == raw  # the masks, which took long, are used again
    again = {path.name: (path.stat().st_ino, path.read_bytes()) for path in raw.glob("masks/*")}
    assert again == written


def test_idrid_is_known_by_content(published, monkeypatch):
    """A mask that changes at the same size and time, a photograph, a label, and one repaired."""
    raw = sources.idrid(lesions=True)
    first = tree(raw)
    fingerprints = [manifest.fingerprint(raw)]
    mask = next(published.rglob("IDRiD_01_MA.tif"))
    photograph = next(published.glob("B*/*/a*/IDRiD_006.jpg"))
    table = next(published.rglob("*Testing Labels.csv"))
    for path in (mask, photograph, table):
        whole = path.read_bytes()
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        if path is mask:
            image = Image.new("L", (240, 160))
            image.paste(1, (200, 100, 210, 110))
            image.save(path)
        elif path is photograph:
            scene(7, (120, 80)).save(path, quality=95)
        else:
            path.write_bytes(whole.replace(b"IDRiD_001,4", b"IDRiD_001,3"))
        os.utime(path, ns=times)
        sources.idrid(lesions=True)
        fingerprints.append(manifest.fingerprint(raw))
        if path is mask:
            masks = retina.read_masks(raw / "masks" / "lesions_IDRiD_01.png")
            assert np.argwhere(masks["microaneurysm"]).min(axis=0).tolist() == [100, 200]
        path.write_bytes(whole)
        sources.idrid(lesions=True)
        assert manifest.fingerprint(raw) == fingerprints[0]
        assert {name: data for name, data in tree(raw).items() if name.suffix != ".json"} == {
            name: data for name, data in first.items() if name.suffix != ".json"
        }
    assert len(set(fingerprints)) == 4


def test_idrid_where_its_own_folder_would_stand_is_never_written_over(published, monkeypatch):
    """Without COMPANION_DATASETS, IDRiD lies in raw/idrid."""
    monkeypatch.delenv("COMPANION_DATASETS")
    paths.RAW.mkdir()
    home = paths.RAW / "idrid"
    shutil.move(published, home)
    before = tree(home)
    for lesions in (False, True, False):
        assert len(graded(sources.idrid(lesions))) == (10 if lesions else 9)
        assert tree(home) == before


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_file_of_idrid_that_cannot_be_read_is_named(published):
    mask = next(published.rglob("IDRiD_02_SE.tif"))
    whole = mask.read_bytes()
    for damaged in (b"<html>", whole[:60], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        mask.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"IDRiD_02_SE.tif cannot be read .*: fetch it anew"):
            sources.idrid(lesions=True)
    Image.new("L", (24, 16)).save(mask)
    message = r"IDRiD_02_SE.tif is \(24, 16\) pixels, its photograph \(240, 160\)"
    with pytest.raises(ValueError, match=message):
        sources.idrid(lesions=True)
    mask.write_bytes(whole)
    assert len(graded(sources.idrid(lesions=True))) == 10
    table = next(published.rglob("*Testing Labels.csv"))
    table.write_text("Image name;Risk\nIDRiD_001;4\n")
    with pytest.raises(
        ValueError, match=r"Testing Labels.csv has the columns image name, risk; it"
    ):
        sources.idrid()


def test_without_idrid_or_its_masks_it_is_said_what_to_get(published, tmp_path):
    shutil.rmtree(published / "A. Segmentation")
    message = r"no lesion masks in .*idrid: put `A. Segmentation` of IDRiD there"
    with pytest.raises(FileNotFoundError, match=message):
        sources.idrid(lesions=True)
    assert len(graded(sources.idrid())) == 9
    (tmp_path / "empty").mkdir()
    message = r"no IDRiD in .*empty: put `B. Disease Grading`.*https://ieee-dataport"
    with pytest.raises(FileNotFoundError, match=message):
        sources.idrid(path=str(tmp_path / "empty"))


UTEM_CLASSES = {
    "1 - No DR": 0,
    "2 - Mild DR without maculopathy": 1,
    "3 - Mild DR with maculopathy": 1,
    "4 - Moderate DR without maculopathy": 2,
    "5 - Moderate DR with maculopathy": 2,
    "6 - Severe DR without maculopathy": 3,
    "7 - Severe DR with maculopathy": 3,
    "8 - PDR without maculopathy": 4,
    "9 - PDR with maculopathy": 4,
    "10 - ADED": 4,
}


@pytest.fixture
def rahim(tmp_path, monkeypatch):
    """UTeM as published, of 80 patients: eight of each class; a left eye is of grade 0 at times."""
    home = tmp_path / "shelf" / "utem"
    for i in range(80):
        below = home / "DR and maculopathy 10 classes"
        for eye in "LR":
            folder = below / ("1 - No DR" if eye == "L" and i % 4 == 0 else [*UTEM_CLASSES][i % 10])
            folder.mkdir(parents=True, exist_ok=True)
            level = Image.new("RGB", (8, 8), (3 * i, 100 if eye == "L" else 0, 0))
            level.save(folder / f"Patient{i + 1:03d}_{eye}.jpg", quality=100)
    (home / "README.md").write_text("UTeM")
    monkeypatch.setenv("COMPANION_DATASETS", str(tmp_path / "shelf"))
    monkeypatch.setattr(paths, "RAW", tmp_path / "raw")
    return home


def test_utem_is_graded_by_its_classes_and_split_by_patient(rahim, capsys):
    raw = sources.utem()
    assert raw == paths.RAW / "collections" / "utem"
    assert capsys.readouterr().out == (
        "UTeM: 160 of its 600 photographs are here, of 80 patients\n"
    )
    table, rejects = manifest.read_labels(raw, "both")
    assert len(table) == 160 and not rejects
    for row in table.itertuples():
        assert row.image == f"{row.patient}_{row.eye[0].upper()}" == row.path.stem
        assert row.grade == UTEM_CLASSES[row.path.parent.name]
    worse = table.groupby("patient")["grade"].max()
    split = table.groupby("patient")["split"].agg(lambda splits: "/".join(set(splits)))
    assert split.value_counts().to_dict() == {"train": 63, "test": 10, "val": 7}
    grades = pd.Series(list(UTEM_CLASSES.values())).value_counts()
    for name in ("train", "val", "test"):
        count = worse[split == name].value_counts()
        expected = grades / 10 * (split == name).sum()
        assert np.abs(count - expected).max() < 1 and count.min() > 0
    written = tree(raw)
    assert sources.utem(str(rahim)) == raw and tree(raw) == written


def test_utem_is_known_by_content_and_in_any_layout(rahim):
    """Deeper, with other endings and marks, twice, among hidden files; and in raw/utem."""
    before = manifest.read_labels(sources.utem(), "both")[0].drop(columns="path")
    folder = rahim / "DR and maculopathy 10 classes"
    (folder / "1 - No DR" / "Patient001_R.jpg").rename(folder / "1 - No DR" / "patient1-r.JPG")
    deeper = rahim / "DR-image-dataset" / "main"
    deeper.mkdir(parents=True)
    folder.rename(deeper / "10 classes")
    aded = deeper / "10 classes" / "10 - ADED"
    (aded / "right").mkdir()
    for file in aded.glob("*_R.jpg"):
        file.rename(aded / "right" / file.name)
    (aded / "._Patient010_L.jpg").write_bytes(b"Mac OS X")
    shutil.copytree(aded, rahim / "copy" / "10_aded")
    after = manifest.read_labels(sources.utem(), "both")[0].drop(columns="path")
    pd.testing.assert_frame_equal(after, before)
    one = aded / "right" / "Patient010_R.jpg"
    one.rename(deeper / "10 classes" / "9 - PDR with maculopathy" / "Patient010_L.jpg")
    shutil.rmtree(rahim / "copy")
    table, rejects = manifest.read_labels(sources.utem(), "both")
    assert set(before["image"]) - set(table["image"]) == {"Patient010_L", "Patient010_R"}
    assert rejects == {"Patient010_L": "labelled, or there, more than once"}


def test_utem_where_its_own_folder_would_stand_is_never_written_over(rahim, monkeypatch):
    monkeypatch.delenv("COMPANION_DATASETS")
    paths.RAW.mkdir()
    shutil.move(rahim, paths.RAW / "utem")
    before = tree(paths.RAW / "utem")
    for _ in range(2):
        table, _ = manifest.read_labels(sources.utem(), "both")
        assert len(table) == 160 and tree(paths.RAW / "utem") == before


def test_patients_filed_twice_are_never_tested_on_and_rejected_where_grades_differ(rahim):
    """Eight pairs of patients as UTeM's 299 and 300, of grades 2 and 3; and one that agrees."""
    classes = rahim / "DR and maculopathy 10 classes"
    moderate = classes / "4 - Moderate DR without maculopathy"
    severe = classes / "6 - Severe DR without maculopathy"
    for number in range(201, 218, 2):
        twin = moderate if number == 217 else severe
        for eye in "LR":
            file = moderate / f"Patient{number}_{eye}.jpg"
            Image.new("RGB", (8, 8), (number, 250, 9 if eye == "L" else 0)).save(file, quality=100)
            shutil.copy(file, twin / f"Patient{number + 1}_{eye}.jpg")
    table, rejects = manifest.read_labels(sources.utem(), "both")
    twice = table["patient"] > "Patient200"
    assert twice.sum() == 36 and set(table["split"][twice]) == {"train"} and not rejects
    table["sha256"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in table["path"]]
    kept, rejects = manifest.reject_duplicates(table)
    assert set(kept["image"][kept["patient"] > "Patient200"]) == {"Patient217_L", "Patient217_R"}
    assert len(kept) == 162 and len(rejects) == 34
    said = "duplicate of Patient202_R of grade 3; its own grade is 2"
    assert rejects["Patient201_R"] == said


def test_a_file_of_utem_that_cannot_be_used_is_named_with_what_to_do(rahim, tmp_path):
    classes = rahim / "DR and maculopathy 10 classes"
    whole = classes / "10 - ADED" / "Patient010_L.jpg"
    for name in ("Patient010.jpg", "Patient_L.jpg", "IMG_010_L.jpg", "Patient010_L_R.jpg"):
        other = whole.rename(whole.with_name(name))
        with pytest.raises(ValueError, match=rf"{name} is not called PatientNNN_L or PatientNNN_R"):
            sources.utem()
        other.rename(whole)
    for name in ("11 - Unknown", "PDR", "Mild DR"):
        folder = (classes / "10 - ADED").rename(classes / name)
        with pytest.raises(ValueError, match=rf"{name}.*L.jpg is in no folder of a class of UTeM"):
            sources.utem()
        folder.rename(classes / "10 - ADED")
    content = whole.read_bytes()
    whole.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"Patient010_L.jpg cannot be read .*: fetch it anew"):
        sources.utem()
    whole.write_bytes(content)
    assert not paths.RAW.joinpath("collections", "utem").exists() and sources.utem().exists()
    for home in (tmp_path / "nowhere", paths.RAW):
        with pytest.raises(FileNotFoundError, match="no photograph of UTeM in") as told:
            sources.utem(str(home))
        lines = str(told.value).splitlines()
        assert [line[:2] for line in lines[1:]] == ["1.", "2.", "3."]
        assert "S. S. Rahim 2025" in lines[0] and "academic" in lines[0]
        assert "SRahimDR/DR-image-dataset" in lines[1] and str(paths.RAW / "utem") in lines[2]


def test_the_real_utem_has_its_counts_and_no_patient_in_two_splits(tmp_path, monkeypatch):
    """By what its file and folder names say; of 600 or of a part of them."""
    home = paths.dataset("utem")
    if not home.exists():
        pytest.skip("no utem in COMPANION_DATASETS or data/raw")
    files = [path for path in home.rglob("*.jpg") if path.name.startswith("Patient")]
    monkeypatch.setattr(paths, "RAW", tmp_path)
    table, rejects = manifest.read_labels(sources.utem(str(home)), "both")
    assert not rejects and len(table) == len(files)
    counts = Counter(UTEM_CLASSES[path.parent.name] for path in files)
    assert Counter(table["grade"]) == counts
    assert table["patient"].nunique() == len({path.name[:10] for path in files})
    assert (table.groupby("patient")["split"].nunique() == 1).all()
    assert (pd.crosstab(table["split"], table["grade"]) > 0).all(axis=None)


@pytest.fixture
def real_idrid(tmp_path, monkeypatch):
    home = paths.dataset("idrid")
    if not home.exists():
        pytest.skip("no idrid in COMPANION_DATASETS or data/raw")
    monkeypatch.setattr(paths, "RAW", tmp_path)
    return home


@pytest.mark.slow
def test_the_real_idrid_has_its_six_duplicates_reported_and_nothing_else_rejected(
    real_idrid, tmp_path
):
    """21 = 391 and 28 = 327 are graded differently, 45 = 333, 73 = 375 and 79 = 279 alike."""
    raw = sources.idrid(path=str(real_idrid))
    collection = graded(raw)
    assert Counter(split for _, split in collection.values()) == {"train": 413, "test": 103}
    out = fundus.prepare(raw, tmp_path / "prepared", 16, eye="both")
    reasons = pd.read_csv(out / "rejects.csv").set_index("image")["reason"].to_dict()
    pairs = "021 391, 391 021, 028 327, 327 028, 333 045, 375 073, 279 079".split(", ")
    twins = {f"train_IDRiD_{pair[:3]}": f"train_IDRiD_{pair[4:]}" for pair in pairs}
    twins["train_IDRiD_118"] = "test_IDRiD_064"
    grade = {name: grade for name, (grade, _) in collection.items()}
    assert reasons == {
        name: f"duplicate of {twin} of grade {grade[twin]}; its own grade is {grade[name]}"
        for name, twin in twins.items()
    }
    splits = pd.read_csv(out / "manifest.csv")["split"]
    assert len(splits) == 516 - 8 and (splits == "test").sum() == 103


@pytest.mark.slow
def test_the_real_idrids_twins_of_photographs_with_masks_have_left_training(
    real_idrid, monkeypatch
):
    """By another measure than the one that found them: correlation of photographs at 48 x 32."""
    few = {"OD": retina.OPTIC_DISC}  # the others take a minute to read
    monkeypatch.setattr(sources, "IDRID_MASKS", few)
    collection = manifest.read_labels(sources.idrid(lesions=True, path=str(real_idrid)), "both")[0]
    complete = manifest.read_labels(sources.idrid(path=str(real_idrid)), "both")[0]

    def reduced(table):
        rows = []
        for path in table["path"]:
            with Image.open(path) as file:
                sides = file.size
                file.draft("RGB", (192, 128))
                by = round(sides[0] / file.width)
                box = 0, 0, sides[0] / by, sides[1] / by
                small = file.resize((48, 32), Image.Resampling.BOX, box)
                rows.append(np.asarray(small, float).ravel())
        rows = np.array(rows) - np.mean(rows, axis=1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    held_out = collection[collection["split"] == "lesions"]
    alike = reduced(complete) @ reduced(held_out).T > 0.999
    assert len(held_out) == 54 and alike.sum() == 45 and alike.sum(axis=0).max() == 1
    gone = set(complete["image"]) - set(collection["image"])
    twins = {name for name in complete["image"][alike.any(axis=1)] if name.startswith("train")}
    same_eye = {f"train_IDRiD_{number}" for number in ("017", "083", "271", "299", "347")}
    assert gone == twins | same_eye
    expected = [complete["grade"][column].max() if column.any() else -1 for column in alike.T]
    assert held_out["grade"].tolist() == expected
