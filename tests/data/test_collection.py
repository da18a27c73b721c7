import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from lib import paths
from lib.data import collection, phantom

HE = "hard_exudate"


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "phantom"
    collection.write_collection(folder, 15, 4, workers=1)
    return folder


def test_a_collection_is_laid_out_as_kaggle_ships_it(written):
    table = pd.read_csv(written / "trainLabels.csv")
    assert list(table.columns) == ["image", "level"] and len(table) == 30
    assert {p.stem for p in (written / "train").glob("*.jpeg")} == set(table.image)
    assert {p.stem for p in (written / "masks").glob("*.png")} == set(table.image)
    patient, eye = table.image.str.split("_").str[0].astype(int), table.image.str.split("_").str[1]
    assert patient.is_monotonic_increasing and patient.nunique() == 15 and np.ptp(patient) > 14
    assert (eye[::2] == "left").all() and (eye[1::2] == "right").all()
    for side in ("left", "right"):
        assert table[eye == side].level.value_counts().to_dict() == dict.fromkeys(range(5), 3)
    assert (table.level[::2].values != table.level[1::2].values).any()
    about = json.loads((written / "collection.json").read_text())
    assert about == {"n": 15, "seed": 4, "share": [0.2] * 5, "version": phantom.VERSION}


def test_masks_lie_on_the_photograph_and_belong_to_its_grade(written):
    shapes, extents = set(), []
    for name, level in pd.read_csv(written / "trainLabels.csv").values:
        image = np.asarray(Image.open(written / "train" / f"{name}.jpeg")).astype(int)
        masks = collection.read_masks(written / "masks" / f"{name}.png")
        lit = image.max(axis=2) > 25
        any_lesion = np.any([masks[lesion] for lesion in phantom.LESIONS], axis=0)
        assert any_lesion.shape == image.shape[:2] and any_lesion.any() == (level > 0)
        assert (any_lesion & lit).sum() >= 0.98 * any_lesion.sum()
        if masks[HE].sum() > 20:  # yellow beside the orange round about
            ring = binary_dilation(masks[HE], iterations=6) & ~binary_dilation(
                any_lesion, iterations=2
            )
            assert np.median(image[masks[HE], 1]) > np.median(image[ring, 1]) + 15
        shapes.add(image.shape)
        extents.append(lit.any(axis=0).sum())
        assert lit.mean() < 0.9 and image[:2, :2].max() < 25
    assert len(shapes) > 15 and 140 < min(extents) and max(extents) <= 232


@pytest.mark.parametrize(
    "share, counts",
    [
        (collection.KAGGLE, [73, 7, 15, 3, 2]),
        ((0, 0, 1, 0, 0), [0, 0, 100, 0, 0]),
        ((0.335, 0.335, 0.33, 0, 0), None),
    ],
)
def test_grades_are_allotted_by_largest_remainder(share, counts):
    grades = collection._allot(np.random.default_rng(0), 100, share)
    got = np.bincount(grades, minlength=5)
    assert len(grades) == 100 and np.abs(got - 100 * np.array(share)).max() < 1
    if counts:
        assert got.tolist() == counts
    if max(share) < 1:
        assert grades != sorted(grades)


def test_kaggle_shares_are_those_of_the_35126_training_photographs():
    assert np.round(np.array(collection.KAGGLE) * 35126).tolist() == [25810, 2443, 5292, 873, 708]


def test_files_depend_on_seed_and_share_and_not_on_the_number_of_workers(tmp_path):
    for name, seed, workers in (("one", 1, 1), ("two", 1, 2), ("other", 2, 1)):
        collection.write_collection(tmp_path / name, 3, seed, collection.KAGGLE, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_an_interrupted_write_is_not_taken_for_whole_and_can_be_repeated(tmp_path, monkeypatch):
    folder, write = tmp_path / "phantom", collection._write_photograph

    def interrupted(partial, seed, patient, eye, grade):
        if len(list((partial / "train").iterdir())) == 3:
            raise KeyboardInterrupt
        write(partial, seed, patient, eye, grade)

    monkeypatch.setattr(collection, "_write_photograph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collection.write_collection(folder, 3, 1, workers=1)
    assert not folder.exists() and not list(tmp_path.rglob("collection.json"))
    monkeypatch.setattr(collection, "_write_photograph", write)
    collection.write_collection(folder, 3, 1, workers=1)
    whole = contents(folder)

    monkeypatch.setattr(collection, "_write_photograph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collection.write_collection(folder, 3, 2, workers=1)
    assert contents(folder) == whole
    monkeypatch.setattr(collection, "_write_photograph", write)
    collection.write_collection(folder, 2, 2, workers=1)
    assert len(list((folder / "train").iterdir())) == 4 and [
        p.name for p in tmp_path.iterdir()
    ] == ["phantom"]


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="no phantom collection"):
        collection.write_collection(tmp_path, 1, 0, workers=1)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_collection_can_be_written_by_processes_from_code_without_a_file(tmp_path):
    code = f"from lib import collection; collection.write_collection({str(tmp_path / 'raw')!r}, 2, 0, workers=2)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=paths.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0 and done.stdout == b"" and done.stderr == b""
    assert (tmp_path / "raw" / "collection.json").exists()


@pytest.mark.parametrize(
    "n, seed, share, said",
    [
        (0, 0, collection.BALANCED, "n is 0; give"),
        (2.5, 0, collection.BALANCED, "n is 2.5"),
        (3, -1, collection.BALANCED, "seed is -1"),
        (3, 0, (0.5, 0.5), "five shares"),
        (3, 0, (0.5, 0.5, 0.5, 0, 0), "add up to 1"),
        (3, 0, (1.5, -0.5, 0, 0, 0), "-0.5"),
        (3, 0, (float("nan"), 1, 0, 0, 0), "nan"),
    ],
)
def test_a_collection_out_of_range_says_what_and_writes_nothing(tmp_path, n, seed, share, said):
    with pytest.raises(ValueError, match=said):
        collection.write_collection(tmp_path / "raw", n, seed, share)
    assert not list(tmp_path.iterdir())
