"""The prepare step on a tiny collection of discs drawn in known places, the Dataset on its files.

Workers differ, are killed, find the disk full or another run: always the same bytes.
"""

import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from unittest import mock

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from test_retina import frame

from lib import paths
from lib.data import fundus, retina
from lib.data.manifest import SPLITS
from lib.data.retina import LESIONS

SIZE = 24
BAD = {
    "10_right": r"duplicate of 11_right of grade 0; its own grade is 1",
    "11_right": r"duplicate of 10_right of grade 1; its own grade is 0",
    "13_right": r"duplicate of 12_right of grade 0; its own grade is 0",
    "14_left": r"truncated: image file is truncated",
    "15_left": r"unreadable: cannot identify image file: 15_left.jpeg",
    "16_left": r"no retina found: the frame varies by 0\.0",
    "17_left": r"mask unreadable: cannot identify",
    "18_left": r"no photograph",
    "99_left": r"no label",
}


def write(folder, grades, size=(96, 80)):
    """A raw collection as Kaggle ships it, `grades` by patient; its own disc and lesion on each."""
    for below in ("train", "masks"):
        (folder / below).mkdir(parents=True)
    rows = []
    width, height = size
    for patient, grade in enumerate(grades, 10):
        for side, eye in enumerate(("left", "right")):
            rng = np.random.default_rng([patient, side])
            level = rng.integers(90, 220)
            image, _ = frame(height, width, width // 2, height // 2, 35, level, 0.7, 1, 3, patient)
            mask = np.zeros((height, width), np.uint8)
            left, top = rng.integers(30, 50, 2)
            mask[top : top + 6, left : left + 6] = 1 << rng.integers(len(LESIONS))
            Image.fromarray(image).save(folder / "train" / f"{patient}_{eye}.jpeg", quality=95)
            Image.fromarray(mask).save(folder / "masks" / f"{patient}_{eye}.png")
            rows.append((f"{patient}_{eye}", grade))
    pd.DataFrame(rows, columns=["image", "level"]).to_csv(folder / "trainLabels.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Both eyes of 30 patients with what goes wrong in reality, `BAD`."""
    raw = write(tmp_path_factory.mktemp("raw") / "raw", [0] * 16 + [1] * 14)
    train = raw / "train"
    for name, twin in (("10_right", "11_right"), ("13_right", "12_right")):
        (train / f"{name}.jpeg").write_bytes((train / f"{twin}.jpeg").read_bytes())
    (train / "14_left.jpeg").write_bytes((train / "14_left.jpeg").read_bytes()[:900])
    (train / "15_left.jpeg").write_text("<html>403</html>")
    Image.new("RGB", (96, 80)).save(train / "16_left.jpeg")
    (raw / "masks" / "17_left.png").write_text("no mask")
    (train / "18_left.jpeg").rename(train / "99_left.jpeg")
    labels = pd.read_csv(raw / "trainLabels.csv")
    labels.loc[labels["image"] == "10_right", "level"] = 1
    labels.to_csv(raw / "trainLabels.csv", index=False)
    return raw


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory):
    """The data set as one run without haste makes it. Tests only read it."""
    return fundus.prepare(raw, tmp_path_factory.mktemp("whole") / "undisturbed", SIZE, eye="both")


def rejects(out):
    return pd.read_csv(out / "rejects.csv").set_index("image")["reason"]


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def opened(folder, name):
    return np.asarray(Image.open(folder / "images" / f"{name}.webp"))


class Counting(ThreadPoolExecutor):
    """Two threads that write down which photographs they were given."""

    def __init__(self):
        super().__init__(2)
        self.names = []

    def submit(self, function, /, *arguments):
        self.names.append(arguments[0])
        return super().submit(function, *arguments)


def unfinished(out):
    """The folders of interrupted runs of `out`."""
    return sorted(out.parent.glob(f"{out.name}.*.partial"))


def journal(partial):
    """The whole lines of an interrupted run's journal."""
    path = partial / "journal.jsonl"
    text = path.read_text() if path.exists() else ""
    return [line for line in text.split("\n") if line.endswith("}")]


def kept(partial):
    """What need not be prepared again: whole in the journal and, where not rejected, on disk."""
    names = set()
    for record in map(json.loads, journal(partial)):
        file = partial / "images" / f"{record['image']}.webp"
        if "reason" in record or file.exists():
            names.add(record["image"])
    return names


def lines(out):
    return sum(len(journal(partial)) for partial in unfinished(out))


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)
    return answer


@pytest.fixture
def full_disk(monkeypatch):
    """Prepare until so many photographs are in the journal; then the disk is full."""

    def prepare(raw, out, photographs, **settings):
        real = paths.write

        def writes(path, save):
            written = len([*path.parent.glob("*.webp")])
            if path.parent.name == "images" and written == photographs:
                until(lambda: lines(out) >= photographs)
                path.with_name(f"{path.name}.part").write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            real(path, save)

        with monkeypatch.context() as patch, ThreadPoolExecutor(1) as thread:
            patch.setattr(paths, "write", writes)
            with pytest.raises(
                OSError, match=r"disk of .*out.*partial is full. Free some space and run again"
            ) as raised:
                fundus.prepare(raw, out, SIZE, eye="both", **settings, executor=thread)
        assert raised.value.errno == errno.ENOSPC and not out.exists()

    return prepare


# What is written


def test_every_photograph_is_in_the_manifest_or_among_the_rejects_with_a_reason(raw, undisturbed):
    manifest, reasons = pd.read_csv(undisturbed / "manifest.csv"), rejects(undisturbed)
    assert set(reasons.index) == set(BAD)
    for name, reason in BAD.items():
        assert pd.Series([reasons[name]]).str.match(reason).all(), reasons[name]
    photographs = {path.stem for path in (raw / "train").iterdir()}
    labelled = set(pd.read_csv(raw / "trainLabels.csv")["image"])
    assert set(manifest["image"]) == (photographs | labelled) - set(BAD)
    assert manifest["image"].is_unique
    for folder, ending in (("images", "webp"), ("masks", "png")):
        files = {path.name for path in (undisturbed / folder).iterdir()}
        assert files == {f"{name}.{ending}" for name in manifest["image"]}


def test_the_manifest_says_what_was_taken_from_where(raw, undisturbed):
    manifest = pd.read_csv(undisturbed / "manifest.csv", dtype={"patient": str})
    columns = "image patient eye grade split left top right bottom width height sha256 source"
    assert manifest.columns.tolist() == columns.split()
    labels = pd.read_csv(raw / "trainLabels.csv").set_index("image")["level"]
    for row in manifest.itertuples():
        assert f"{row.patient}_{row.eye}" == row.image and row.source == "raw"
        assert row.grade == labels[row.image] and (row.width, row.height) == (96, 80)
        file = raw / "train" / f"{row.image}.jpeg"
        assert row.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        box = row.left, row.top, row.right, row.bottom
        assert np.abs(np.subtract(box, (13, 5, 84, 76))).max() <= 2  # a disc of radius 35, centred
    assert (manifest.groupby("patient")["split"].nunique() == 1).all()
    assert (pd.crosstab(manifest["split"], manifest["grade"]) > 0).all(axis=None)


def test_the_data_set_says_how_it_was_made(undisturbed):
    made = json.loads((undisturbed / "dataset.json").read_text())
    manifest = pd.read_csv(undisturbed / "manifest.csv")
    asked = {"source": "raw", "size": SIZE, "eye": "both", "test_share": 0.1, "seed": 0}
    assert (asked | {"crop": True, "contrast": "none", "format": "webp"}).items() <= made.items()
    assert made["rejected"] == len(BAD) and made["duplicates"] == 3
    assert made["versions"] == {name: version(name) for name in ("pillow", "numpy", "scipy")}
    counts = {split: {int(k): n for k, n in by.items()} for split, by in made["counts"].items()}
    assert counts == {
        split: rows["grade"].value_counts().to_dict() for split, rows in manifest.groupby("split")
    }
    names = manifest["image"][manifest["split"] == "train"]
    pixels = np.stack([opened(undisturbed, name) for name in names]) / 255
    np.testing.assert_allclose(made["mean"], pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(made["std"], pixels.std(axis=(0, 1, 2)), rtol=1e-9)


@pytest.mark.parametrize("eye", ["left", "right"])
def test_one_eye_is_a_data_set_of_its_own(raw, undisturbed, tmp_path, eye):
    manifest = pd.read_csv(fundus.prepare(raw, tmp_path / "out", SIZE, eye=eye) / "manifest.csv")
    both = pd.read_csv(undisturbed / "manifest.csv")
    assert set(manifest["image"]) == set(both["image"][both["eye"] == eye])


def test_masks_lie_where_the_photograph_shows_the_lesion(tmp_path):
    raw = write(tmp_path / "raw", [0] * 12, size=(320, 240))
    rows, columns = np.mgrid[:240, :320]
    for number, path in enumerate((raw / "train").glob("*_right.jpeg")):
        image = np.zeros((240, 320, 3), np.uint8)
        image[np.hypot(columns - 170, rows - 115) <= 130] = (60, 30, 15)
        mask = np.zeros((240, 320), np.uint8)
        mask[90:130, 200:260] = 4
        image[mask > 0] = 255
        image[0, 0] = number  # no two photographs are the same
        Image.fromarray(image).save(path, quality=100)
        Image.fromarray(mask).save(raw / "masks" / f"{path.stem}.png")
    data = fundus.FundusDataset(fundus.prepare(raw, tmp_path / "out", 64, test_share=0.2), "test")
    masks = data.masks(0)
    exudates = masks.pop(LESIONS[2])
    white = data.photograph(0).min(axis=2) > 0.5
    assert not any(mask.any() for mask in masks.values())
    assert white.sum() > 100 and not (white & ~exudates).any()
    assert (white & exudates).sum() / exudates.sum() > 0.8


def test_a_jpeg_data_set_is_read_back(raw, undisturbed, tmp_path):
    out = fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", file_format="jpeg")
    data, reference = fundus.FundusDataset(out, "train"), fundus.FundusDataset(undisturbed, "train")
    assert data.names == reference.names and torch.equal(data.mean, reference.mean)
    assert (data.images.float() - reference.images.float()).abs().mean() / 255 <= 0.06
    assert {path.suffix for path in (out / "images").iterdir()} == {".jpeg"}


def test_the_same_request_is_answered_from_disk_and_another_one_remade(tmp_path):
    raw, out = write(tmp_path / "raw", [0] * 12), tmp_path / "out"
    fundus.prepare(raw, out, 32)
    before = (out / "dataset.json").stat().st_mtime_ns
    assert fundus.prepare(raw, out, 32) == out
    assert (out / "dataset.json").stat().st_mtime_ns == before
    fundus.prepare(raw, out, 24, seed=1)
    assert json.loads((out / "dataset.json").read_text())["seed"] == 1
    assert opened(out, "10_right").shape == (24, 24, 3)
    labels = pd.read_csv(raw / "trainLabels.csv", dtype=str)
    labels.iloc[:-1].to_csv(raw / "trainLabels.csv", index=False)
    fundus.prepare(raw, out, 24, seed=1)
    assert rejects(out).to_dict() == {"21_right": "no label"}
    Image.new("RGB", (96, 80)).save(raw / "train" / "10_right.jpeg")
    fundus.prepare(raw, out, 24, seed=1)
    assert set(rejects(out).index) == {"10_right", "21_right"}


# Several collections


def with_split(folder, grades, splits):
    """`write`, each patient in the split that is named for it."""
    raw = write(folder, grades)
    labels = pd.read_csv(raw / "trainLabels.csv")
    labels["split"] = [split for split in splits for _ in ("left", "right")]
    labels.to_csv(raw / "trainLabels.csv", index=False)
    return raw


@pytest.fixture
def two(tmp_path):
    """One collection with a validation split, without masks; one with neither, but held-out ones.

    Their photographs have the same names. One of each is the other's, for testing in `be_ta`.
    """
    alpha = with_split(tmp_path / "alpha", [0, 1, 2, 3] * 3, ["train"] * 8 + ["val", "test"] * 2)
    splits = ["train"] * 20 + ["test"] * 3 + ["lesions"]
    beta = with_split(tmp_path / "be_ta", [0, 1] * 12, splits)
    shutil.rmtree(alpha / "masks")
    for eye in ("left", "right"):
        for i in range(10, 22):  # else both would be drawn the same
            path = alpha / "train" / f"{i}_{eye}.jpeg"
            path.write_bytes(path.read_bytes() + b" ")
    twin = (beta / "train" / "31_left.jpeg").read_bytes()
    (alpha / "train" / "11_left.jpeg").write_bytes(twin)
    (beta / "train" / "12_left.jpeg").write_text("<html>")
    return alpha, beta


def test_several_collections_are_one_data_set_in_which_each_keeps_its_names_and_split(
    two, tmp_path
):
    out = fundus.prepare(two[::-1], tmp_path / "out", SIZE, eye="both")
    manifest = pd.read_csv(out / "manifest.csv", dtype=str).set_index("image")
    split = {}
    for raw, prefix in zip(two, ("alpha", "be-ta"), strict=True):
        labels = pd.read_csv(raw / "trainLabels.csv")
        for image, grade, said in labels.to_numpy():
            name = f"{prefix}_{image}"
            if name in ("alpha_11_left", "be-ta_12_left"):
                continue
            row = manifest.loc[name]
            assert (row["source"], row["patient"]) == (raw.name, f"{prefix}_{image[:2]}")
            assert row["grade"] == str(grade) and row["eye"] == image[3:]
            assert (out / "images" / f"{name}.webp").exists()
            assert (out / "masks" / f"{name}.png").exists() == (prefix == "be-ta")
            content = (raw / "train" / f"{image}.jpeg").read_bytes()
            assert row["sha256"] == hashlib.sha256(content).hexdigest()
            split[name] = said
    assert len(manifest) == len(split) == 2 * (12 + 24) - 2
    moved = {name for name in split if manifest.loc[name, "split"] != split[name]}
    patients = {name.rpartition("_")[0] for name in moved}
    assert len(moved) == 4 and len(patients) == 2  # a tenth of 20, for validation
    assert {name[:6] for name in moved} == {"be-ta_"}
    assert {split[name] for name in moved} == {"train"}
    assert set(manifest.loc[list(moved), "split"]) == {"val"}
    assert rejects(out).to_dict() == {
        "alpha_11_left": "duplicate of be-ta_31_left of grade 1; its own grade is 1",
        "be-ta_12_left": "unreadable: cannot identify image file: 12_left.jpeg",
    }


def test_a_data_set_of_several_collections_says_what_is_of_each(two, tmp_path):
    out = fundus.prepare(two, tmp_path / "out", SIZE, eye="both")
    made = json.loads((out / "dataset.json").read_text())
    assert made["source"] == "alpha+be_ta" and made["rejected"] == 2 and made["duplicates"] == 1
    assert set(made["counts_by_source"]) == {"alpha", "be_ta"}
    alpha = made["counts_by_source"]["alpha"]
    assert alpha["train"] == {"0": 4, "1": 3, "2": 4, "3": 4}
    assert alpha["val"] == {"0": 2, "1": 0, "2": 2, "3": 0}
    assert alpha["test"] == {"0": 0, "1": 2, "2": 0, "3": 2}
    beta = made["counts_by_source"]["be_ta"]
    assert sum(beta["train"].values()) == 35 and sum(beta["val"].values()) == 4
    assert beta["test"] == {"0": 4, "1": 2} and beta["lesions"] == {"0": 0, "1": 2}
    total = made["counts"]["train"]
    assert {grade: total[grade] for grade in "23"} == {"2": 4, "3": 4}
    assert total["0"] == 4 + beta["train"]["0"] and total["1"] == 3 + beta["train"]["1"]
    data = fundus.FundusDataset(out, "lesions")
    assert data.names == ["be-ta_33_left", "be-ta_33_right"]
    assert sum(mask.sum() for mask in data.masks(0).values()) > 0


def test_several_collections_are_known_by_the_content_of_each_in_any_order(two, tmp_path):
    out = fundus.prepare(two, tmp_path / "out", SIZE, eye="both")
    first = contents(out)
    with Counting() as executor:
        fundus.prepare(two[::-1], tmp_path / "out", SIZE, eye="both", executor=executor)
    assert executor.names == [] and contents(out) == first
    seen = {json.loads((out / "dataset.json").read_text())["fingerprint"]}
    for raw in two:
        path = raw / "train" / "10_left.jpeg"
        path.write_bytes(path.read_bytes() + b"  ")
        fundus.prepare(two, out, SIZE, eye="both")
        seen.add(json.loads((out / "dataset.json").read_text())["fingerprint"])
    assert len(seen) == 3


def test_a_list_of_one_collection_is_that_collection(raw, undisturbed, tmp_path):
    out = fundus.prepare([str(raw)], tmp_path / "out", SIZE, eye="both")
    assert contents(out) == contents(undisturbed)


def test_collections_that_cannot_be_joined_are_named_with_what_to_do(two, tmp_path):
    alpha, beta = two
    out = tmp_path / "out"

    def refused(message, *collections, **settings):
        with pytest.raises(ValueError, match=message):
            fundus.prepare(collections, out, SIZE, **{"eye": "both"} | settings)
        assert not out.exists()

    refused("raw names no collection")
    plain = write(tmp_path / "plain", [0, 1])
    message = r"plain has no split of its own.*: add a column split .*, or prepare plain alone"
    refused(message, alpha, plain)
    namesake = shutil.copytree(alpha, tmp_path / "other" / "alpha")
    refused(r"alpha, .*other/alpha two have one name: name their folders apart", alpha, namesake)
    refused(r"two have one name", beta, shutil.copytree(beta, tmp_path / "BE-ta"))
    table = alpha / "trainLabels.csv"
    text = table.read_text()
    for level in ("5", "PDR", "-1"):
        table.write_text(text.replace("10_left,0", f"10_left,{level}"))
        message = rf"alpha has other grades .* of 10_left, level is not 0 to 4: '{level}'\. Bring"
        refused(message, alpha, beta)
    table.write_text(text.replace("10_left,0", "10_left,"))
    for path in (beta / "train").glob("*_right.jpeg"):
        path.write_text("no photograph")
    refused("Nothing of be_ta can be prepared: be-ta_10_right unreadable", *two, eye="right")
    fundus.prepare(two, out, SIZE, eye="left")
    assert rejects(out)["alpha_10_left"] == "level is not 0 to 4: ''"


# Content decides


def small(tmp_path):
    return write(tmp_path / "raw", [0] * 12), tmp_path / "out"


def touched_not(path, change):
    """Change a file and leave its size and time of modification as they are."""
    before = path.stat()
    change(path)
    os.truncate(path, before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_photograph_of_the_same_size_and_time_is_another_by_its_content(tmp_path):
    raw, out = small(tmp_path)
    fundus.prepare(raw, out, SIZE)
    path = raw / "train" / "12_right.jpeg"
    was = opened(out, "12_right")

    def darken(path):
        image = np.asarray(Image.open(path)) // 3
        Image.fromarray(image).save(path, quality=60)

    touched_not(path, darken)
    fundus.prepare(raw, out, SIZE)
    assert opened(out, "12_right").mean() < 0.5 * was.mean()
    assert (tmp_path / "out.1" / "dataset.json").exists()


def test_a_repaired_photograph_is_tried_again_and_a_deleted_one_leaves(tmp_path):
    raw, out = small(tmp_path)
    path = raw / "train" / "12_right.jpeg"
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    fundus.prepare(raw, out, SIZE)
    assert rejects(out).index.tolist() == ["12_right"]
    path.write_bytes(whole)
    fundus.prepare(raw, out, SIZE)
    assert rejects(out).empty
    path.unlink()
    fundus.prepare(raw, out, SIZE)
    assert rejects(out).to_dict() == {"12_right": "no photograph"}
    assert not (out / "images" / "12_right.webp").exists()


def test_other_masks_are_prepared_anew(tmp_path):
    raw, out = small(tmp_path)
    mask = raw / "masks" / "12_right.png"
    was = contents(fundus.prepare(raw, out, SIZE))
    touched_not(mask, lambda path: Image.new("L", (96, 80), 64).save(path))
    changed = contents(fundus.prepare(raw, out, SIZE))
    differing = {name for name in was if was[name] != changed[name]}
    assert differing == {"masks/12_right.png", "dataset.json"}
    mask.unlink()
    fundus.prepare(raw, out, SIZE)
    assert not (out / "masks" / "12_right.png").exists()


def test_an_interrupted_run_takes_over_only_what_has_not_changed_since(tmp_path, full_disk):
    """Of those done, one is changed, one repaired, one spoilt, one deleted, one loses its mask."""
    raw, out = small(tmp_path)
    train = raw / "train"
    whole = (train / "11_left.jpeg").read_bytes()
    (train / "11_left.jpeg").write_bytes(whole[:700])
    full_disk(raw, out, 15)
    (partial,) = unfinished(out)
    assert {"10_left", "11_left", "12_left", "13_left", "14_left", "15_left"} <= kept(partial)
    touched_not(train / "10_left.jpeg", lambda path: path.write_bytes(whole))
    (train / "11_left.jpeg").write_bytes(whole + b" ")
    (train / "12_left.jpeg").write_text("spoilt")
    (train / "13_left.jpeg").unlink()
    (raw / "masks" / "14_left.png").unlink()
    done = kept(partial)
    with Counting() as executor:
        fundus.prepare(raw, out, SIZE, eye="both", executor=executor)
    changed = {f"{number}_left" for number in (10, 11, 12, 13, 14)}
    assert set(executor.names) & done == changed - {"13_left"}
    reference = fundus.prepare(raw, tmp_path / "reference", SIZE, eye="both")
    assert contents(out) == contents(reference)
    assert set(rejects(out).index) >= {"12_left", "13_left"}


def test_a_collection_that_changes_meanwhile_is_not_taken(tmp_path):
    """As when a run of another profile draws its phantoms there."""
    raw, out = small(tmp_path)
    other = write(tmp_path / "other", [1] * 12)

    class Swapping(ThreadPoolExecutor):
        def submit(self, function, /, *arguments):
            future = super().submit(function, *arguments)
            future.result()
            if arguments[0] == "15_right":
                for path in (raw / "train").iterdir():
                    path.write_bytes((other / "train" / path.name).read_bytes() + b" ")
            return future

    with Swapping(1) as executor, pytest.raises(RuntimeError, match="raw changed while it was"):
        fundus.prepare(raw, out, SIZE, executor=executor)
    assert not out.exists()
    fundus.prepare(raw, out, SIZE)
    assert contents(out) == contents(fundus.prepare(raw, tmp_path / "reference", SIZE))


# Faults that are not the photographs'


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOENT])
def test_a_read_error_rejects_nothing_and_the_next_run_goes_on(
    raw, undisturbed, tmp_path, monkeypatch, number
):
    out, read = tmp_path / "out", retina.read_file

    def failing(path):
        if path.name in ("20_left.jpeg", "21_right.jpeg", "22_left.png"):
            raise OSError(number, "for a moment", str(path))
        return read(path)

    with (
        monkeypatch.context() as patch,
        pytest.raises(
            OSError, match=r"20_left.jpeg.*No photograph is rejected for that\. Run again"
        ) as raised,
    ):
        patch.setattr(retina, "read_file", failing)
        fundus.prepare(raw, out, SIZE, eye="both")
    assert raised.value.errno == number and not out.exists()
    with Counting() as executor:
        fundus.prepare(raw, out, SIZE, eye="both", executor=executor)
    assert 0 < len(executor.names) < 59
    assert contents(out) == contents(undisturbed)


def test_a_worker_that_dies_is_told_with_what_to_do(raw, undisturbed, tmp_path):
    class Dying(ThreadPoolExecutor):
        def submit(self, function, /, *arguments):
            if arguments[0] == "20_left":
                raise BrokenProcessPool
            return super().submit(function, *arguments)

    out = tmp_path / "out"
    with (
        Dying(1) as executor,
        pytest.raises(
            RuntimeError,
            match=r"memory was full.*Run again: it goes on .* executor of fewer processes",
        ),
    ):
        fundus.prepare(raw, out, SIZE, eye="both", executor=executor)
    assert contents(fundus.prepare(raw, out, SIZE, eye="both")) == contents(undisturbed)


def test_names_that_lead_elsewhere_are_rejected_and_others_go_on(tmp_path):
    raw, out = small(tmp_path)
    train, labels = raw / "train", raw / "trainLabels.csv"
    table = pd.read_csv(labels)
    table["file"] = [f"train/{image}.jpeg" for image in table["image"]]
    evil = ["../../../x_right", "/tmp/x_right", "day1/x_right", "..\\x_right"]
    table.loc[[1, 3, 5, 7], "image"] = evil
    table.to_csv(labels, index=False)
    before = {path for path in tmp_path.rglob("*") if path.is_relative_to(raw)}
    fundus.prepare(raw, out, SIZE, test_share=0.3)
    assert set(rejects(out).index) >= set(evil) and len(opened(out, "14_right")) == SIZE
    made = set(tmp_path.rglob("*")) - before
    assert {path.relative_to(tmp_path).parts[0] for path in made} == {"out", "out.lock"}
    assert train.exists()


@pytest.mark.parametrize("kind", ["a pipe", "a folder"])
def test_a_mask_that_is_no_file_rejects_its_photograph_alone(tmp_path, kind):
    raw, out = small(tmp_path)
    mask = raw / "masks" / "12_right.png"
    mask.unlink()
    os.mkfifo(mask) if kind == "a pipe" else mask.mkdir()
    fundus.prepare(raw, out, SIZE)
    said = "unreadable: not a regular file: 12_right.png"
    assert rejects(out).to_dict() == {"12_right": said}


def test_photographs_named_like_missing_values_are_read_back(tmp_path):
    raw, out = small(tmp_path)
    labels = pd.read_csv(raw / "trainLabels.csv", dtype=str)
    names = ["NA", "null", "nan", "None", "1e5", "007"]
    for new, old in zip(names, labels["image"][::2], strict=False):
        (raw / "train" / f"{old}.jpeg").rename(raw / "train" / f"{new}.jpeg")
        (raw / "masks" / f"{old}.png").rename(raw / "masks" / f"{new}.png")
        labels["image"] = labels["image"].replace(old, new)
    labels["patient"] = labels["image"].str.split("_").str[0]
    labels.to_csv(raw / "trainLabels.csv", index=False)
    fundus.prepare(raw, out, SIZE, eye="both")
    read = [fundus.FundusDataset(out, split) for split in SPLITS]
    assert set(names) <= {name for data in read for name in data.names}


# Requests that cannot be met


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 8}, "size is 8; choose a side of 16 to 2048"),
        ({"size": 4096}, "size is 4096; choose"),
        ({"test_share": 0.0}, r"test_share is 0.0; choose a share of 0.01 to 0.5"),
        ({"test_share": 0.9}, "test_share is 0.9; choose"),
        ({"seed": -1}, r"seed is -1; it must lie in \[0, 2\*\*32\)"),
        ({"eye": "middle"}, "eye is 'middle'; choose one of right, left, both"),
        ({"contrast": "high"}, "contrast is 'high'; choose one of none, graham"),
        ({"file_format": "png"}, "file_format is 'png'; choose one of webp, jpeg"),
    ],
)
def test_a_bad_request_is_answered_with_what_to_do(raw, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        fundus.prepare(raw, tmp_path / "out", **{"size": SIZE} | wrong)
    assert not [*tmp_path.iterdir()]


def test_a_bad_collection_is_answered_with_what_to_do(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no trainLabels\.csv"):
        fundus.prepare(raw, tmp_path / "out", 32)
    (raw / "trainLabels.csv").write_text("image,level\n1_right,0\n")
    (raw / "train").mkdir()
    Image.new("RGB", (96, 80)).save(raw / "train" / "1_right.jpeg")
    with pytest.raises(ValueError, match="Nothing of raw can be prepared: 1_right no retina found"):
        fundus.prepare(raw, tmp_path / "out", 32)
    with pytest.raises(ValueError, match="there is none of the left eye"):
        fundus.prepare(raw, tmp_path / "out", 32, eye="left")


def test_a_folder_of_something_else_is_left_alone(raw, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"no prepared data set\. Move it away"):
        fundus.prepare(raw, tmp_path / "out", 32)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_failed_run_does_not_keep_the_next_one_out(raw, tmp_path):
    with pytest.raises(ValueError, match=r"grade 0, \d+ of grade 1 are too few patients"):
        fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", test_share=0.01)
    assert not (tmp_path / "out").exists()
    assert fundus.prepare(raw, tmp_path / "out", SIZE, eye="both").exists()


# Workers


@pytest.mark.parametrize("workers", ["four threads", "two processes"])
def test_the_result_does_not_depend_on_the_workers(raw, undisturbed, tmp_path, workers):
    pool = ThreadPoolExecutor(4) if workers == "four threads" else retina.worker_pool(2)
    with pool as executor:
        out = fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", executor=executor)
        # It is its owner's to shut down. A process that prepares stays small.
        loaded = executor.submit(eval, "'torch' in __import__('sys').modules").result()
        assert loaded == (workers == "four threads")
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
@mock.patch.dict(os.environ)  # Dask leaves OMP_NUM_THREADS=1 behind, which others would inherit
def test_the_result_of_a_dask_cluster_is_the_same(raw, undisturbed, tmp_path):
    from distributed import Client

    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        Client(**settings, processes=True, local_directory=tmp_path / "dask") as client,
        client.get_executor() as executor,
    ):
        out = fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", executor=executor)
        workers = set(client.run(os.getpid).values())
    assert len(workers) == 2 and os.getpid() not in workers
    assert contents(out) == contents(undisturbed)


# Interruptions

# A process runs this at its start: no write is done before it can be killed before, in or after it.
SLOWLY = """
import random, time
from lib import paths

real = paths.write

def write(path, save):
    time.sleep(random.uniform(0, 0.02))
    real(path, lambda beside: (save(beside), time.sleep(random.uniform(0, 0.02))))

paths.write = write
"""


def prepare_slowly(raw, out):
    """In a process to be killed: prepare by two workers that are slow to write."""
    (out.parent / "sitecustomize.py").write_text(SLOWLY)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(out.parent), str(paths.ROOT)])
    fundus.prepare(raw, out, SIZE, eye="both", executor=retina.worker_pool(2))


def killed(raw, out, photographs, seconds):
    """Kill -9 a process that prepares, so many seconds after it has that many more.

    Returns its workers, once they have ended.
    """
    before = lines(out)
    process = multiprocessing.get_context("fork").Process(target=prepare_slowly, args=(raw, out))
    process.start()
    try:
        until(lambda: not process.is_alive() or lines(out) >= before + photographs)
        until(lambda: not process.is_alive() or unfinished(out))
        time.sleep(seconds)
        assert process.is_alive(), "it had ended before it was killed"
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()

    def ended(worker):
        return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE

    until(lambda: all(map(ended, workers)))
    return workers


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_any_moment_it_leaves_no_worker_and_goes_on_to_the_same_bytes(
    raw, undisturbed, tmp_path
):
    """Kill -9 five times; only what is missing is prepared, and nothing of it differs."""
    out, moments, workers = tmp_path / "out", random.Random(), []
    for photographs in (0, 1, *moments.sample(range(2, 8), 3)):
        workers.append(killed(raw, out, photographs, moments.uniform(0, 0.06)))
        assert not out.exists() and len(unfinished(out)) == 1
    assert max(map(len, workers)) >= 2  # that there were workers to end
    (partial,) = unfinished(out)
    done = kept(partial)
    times = {
        path.name: path.stat().st_mtime_ns
        for path in (partial / "images").glob("*.webp")
        if path.stem in done
    }
    everything = {path.stem for path in (raw / "train").iterdir()} - {"99_left"}
    assert 0 < len(done) < len(everything)
    with Counting() as executor:
        assert fundus.prepare(raw, out, SIZE, eye="both", executor=executor) == out
    assert sorted(executor.names) == sorted(everything - done)
    assert contents(out) == contents(undisturbed) and not unfinished(out)
    for name in times.keys() & {path.name for path in (out / "images").iterdir()}:
        assert (out / "images" / name).stat().st_mtime_ns == times[name]


@pytest.mark.parametrize("damage", ["none", "the journal's last line cut off", "a file missing"])
def test_after_a_full_disk_only_what_is_missing_is_prepared(
    raw, undisturbed, tmp_path, full_disk, damage
):
    out = tmp_path / "out"
    full_disk(raw, out, 12)
    (partial,) = unfinished(out)
    assert len(kept(partial)) >= 12
    lost = set()
    if damage == "the journal's last line cut off":
        file = partial / "journal.jsonl"
        lost = {json.loads(journal(partial)[-1])["image"]}
        file.write_text(file.read_text().rstrip("\n")[:-7])
    elif damage == "a file missing":
        file = sorted((partial / "images").glob("*.webp"))[5]
        lost = {file.stem}
        file.unlink()
    done = kept(partial)
    with Counting() as executor:
        fundus.prepare(raw, out, SIZE, eye="both", executor=executor)
    assert lost <= set(executor.names) and not done & set(executor.names)
    assert len(executor.names) + len(done) == 59
    assert contents(out) == contents(undisturbed)


def test_an_error_in_the_last_step_costs_no_photograph(raw, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(fundus, "draw_split", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fundus.prepare(raw, out, SIZE, eye="both")
    with Counting() as executor:
        fundus.prepare(raw, out, SIZE, eye="both", executor=executor)
    assert executor.names == [] and contents(out) == contents(undisturbed)


def test_other_settings_are_another_folder_and_never_a_mixture(
    raw, undisturbed, tmp_path, full_disk, capsys
):
    """Two interrupted runs of two settings are finished in turn; the older data set is kept."""
    out = tmp_path / "out"
    for contrast in ("none", "graham"):
        full_disk(raw, out, 12, contrast=contrast)
    assert len(unfinished(out)) == 2
    fundus.prepare(raw, out, SIZE, eye="both", contrast="graham")
    assert len(unfinished(out)) == 1
    graham = contents(out)
    assert contents(fundus.prepare(raw, out, SIZE, eye="both")) == contents(undisturbed)
    assert "out held a data set of another request, kept as out.1" in capsys.readouterr().out
    assert contents(tmp_path / "out.1") == graham
    fundus.prepare(raw, out, SIZE, eye="both", contrast="graham")
    assert contents(out) == graham and contents(tmp_path / "out.2") == contents(undisturbed)
    assert {path.name for path in tmp_path.iterdir()} - {"out.lock"} == {"out", "out.1", "out.2"}


def test_what_another_run_made_in_the_meantime_is_used(raw, tmp_path, monkeypatch, capsys):
    out, alone = tmp_path / "out", paths.alone

    def late(folder, doing):
        if not out.exists():
            monkeypatch.setattr(paths, "alone", alone)
            fundus.prepare(raw, out, SIZE, eye="both")
        return alone(folder, doing)

    monkeypatch.setattr(paths, "alone", late)
    fundus.prepare(raw, out, SIZE, eye="both")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.lock"}


def test_a_second_run_at_once_is_told_and_the_first_one_is_not_disturbed(
    raw, undisturbed, tmp_path
):
    out, go = tmp_path / "out", threading.Event()
    with ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        busy.submit(go.wait)
        try:
            first = other.submit(fundus.prepare, raw, out, SIZE, eye="both", executor=busy)
            until(lambda: unfinished(out))
            for seed in (0, 1):
                with pytest.raises(
                    RuntimeError, match=r"Another run is preparing .*out \(process \d+ on .*: wait"
                ):
                    fundus.prepare(raw, out, SIZE, eye="both", seed=seed)
        finally:
            go.set()
        assert first.result() == out
    assert contents(out) == contents(undisturbed)
    assert {path.name for path in tmp_path.iterdir()} - {"out.lock"} == {"out"}
    assert fundus.prepare(raw, out, SIZE, eye="both") == out


# The Dataset


def test_a_split_holds_its_own_photographs_with_their_grades(undisturbed):
    manifest = pd.read_csv(undisturbed / "manifest.csv").set_index("image")
    names = [fundus.FundusDataset(undisturbed, split).names for split in SPLITS]
    assert sorted(itertools.chain(*names)) == sorted(manifest.index)
    data = fundus.FundusDataset(undisturbed, "test")
    assert data.grades.tolist() == manifest.loc[data.names, "grade"].tolist()
    assert data.grades.dtype == torch.int64
    file = opened(undisturbed, data.names[3])
    np.testing.assert_allclose(data.photograph(3), file / 255, atol=1e-6)
    image, grade = data[3]
    np.testing.assert_allclose(
        image * data.std + data.mean, file.transpose(2, 0, 1) / 255, atol=1e-6
    )
    assert grade == data.grades[3] and isinstance(grade, int)
    bits = np.asarray(Image.open(undisturbed / "masks" / f"{data.names[3]}.png"))
    masks = data.masks(3)
    assert sum(mask.sum() << bit for bit, mask in enumerate(masks.values())) == bits.sum()


def test_the_training_split_is_normalised_to_mean_0_and_deviation_1(undisturbed):
    data = fundus.FundusDataset(undisturbed, "train")
    images = torch.stack([image for image, _ in data])
    assert images.dtype == torch.float32 and images.shape == (len(data), 3, SIZE, SIZE)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert torch.equal(fundus.normalise(data.images, data.mean, data.std), images)


def test_a_split_too_large_for_memory_gives_the_same_items(undisturbed, monkeypatch):
    held = fundus.FundusDataset(undisturbed, "train")
    monkeypatch.setattr(fundus, "IN_MEMORY", 0)
    read = fundus.FundusDataset(undisturbed, "train")
    assert held.images is not None and read.images is None and len(held) == len(read) > 30
    for i in range(len(held)):
        assert torch.equal(held[i][0], read[i][0]) and held[i][1] == read[i][1]


def test_flips_and_turns_are_the_eight_symmetries_of_a_square_and_follow_the_seed(undisturbed):
    image = fundus.FundusDataset(undisturbed, "val")[0][0]
    mirrored = [image, image.flip(1), image.flip(2), image.flip(1, 2)]
    for turns, variants in ((False, mirrored), (True, [*mirrored, *(v.mT for v in mirrored)])):
        data = fundus.FundusDataset(undisturbed, "val", flips=True, turns=turns)

        def draw(data=data):
            torch.manual_seed(5)
            return [data[0][0] for _ in range(60)]

        drawn = draw()
        seen = [[torch.equal(variant, item) for variant in variants].index(True) for item in drawn]
        assert set(seen) == set(range(len(variants)))
        assert all(torch.equal(a, b) for a, b in zip(drawn, draw(), strict=True))


def test_a_shift_moves_by_whole_pixels_and_repeats_the_rim(undisturbed):
    image = fundus.FundusDataset(undisturbed, "val")[0][0]
    data = fundus.FundusDataset(undisturbed, "val", shift=1)
    variants = {}
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            rows = (torch.arange(SIZE) - down).clamp(0, SIZE - 1)
            columns = (torch.arange(SIZE) - right).clamp(0, SIZE - 1)
            variants[down, right] = image[:, rows][:, :, columns]
    torch.manual_seed(0)
    seen = set()
    for _ in range(80):
        item = data[0][0]
        seen |= {shift for shift, variant in variants.items() if torch.equal(variant, item)}
    assert seen == set(variants)


def test_the_rim_is_the_mean_whatever_is_done_to_the_photograph(undisturbed):
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    beyond = torch.from_numpy(np.hypot(rows, columns) / (SIZE / 2) > 0.8)
    plain = fundus.FundusDataset(undisturbed, "val")[0][0]
    data = fundus.FundusDataset(undisturbed, "val", rim=0.8)
    assert plain[:, beyond].abs().min() > 0
    assert torch.equal(data[0][0], torch.where(beyond, 0, plain))
    assert not data.retina(0)[beyond].any() and data.retina(0)[~beyond].mean() > 0.9
    moved = fundus.FundusDataset(undisturbed, "val", rim=0.8, rotations=True, flips=True)
    far = torch.from_numpy(np.hypot(rows, columns) / (SIZE / 2) > 0.8 * 1.12 + 2 / SIZE)
    for _ in range(20):
        assert (moved[0][0][:, far] == 0).all()  # no gain, no level reaches what was taken away


def test_rotations_turn_by_any_angle_scale_and_colour_and_follow_the_seed(undisturbed):
    """Of a dot beside the middle: where it goes, how large it gets, what its colour becomes."""
    data = fundus.FundusDataset(undisturbed, "val", rotations=True)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    dot = np.exp(-((rows - 12) ** 2 + (columns - 19) ** 2) / 4)  # 7 pixels right of the middle
    held = torch.from_numpy(np.stack([255 * dot] * 3)).round().to(torch.uint8)
    data.images, data.mean, data.std = held[None], torch.zeros(3, 1, 1), torch.ones(3, 1, 1)

    def draw():
        torch.manual_seed(3)
        return torch.stack([data[0][0] for _ in range(200)])

    drawn = draw()
    assert torch.equal(drawn, draw())
    weights = (drawn[:, 0] - drawn[:, 0].flatten(1).median(1).values[:, None, None]).clamp(min=0)
    weights = weights.double() * (weights > 0.3)
    total = weights.sum((1, 2))
    y = (weights * torch.from_numpy(rows)).sum((1, 2)) / total - 12
    x = (weights * torch.from_numpy(columns)).sum((1, 2)) / total - 12
    angles, distances = torch.atan2(y, x), torch.hypot(x, y) / 7
    assert torch.histc(angles, 8, -np.pi, np.pi).min() > 8
    assert 0.85 < distances.min() < 0.95 and 1.07 < distances.max() < 1.17
    middle = drawn[:, :, 12, 12]  # the level alone, where the dot never is
    assert middle.abs().max() < 0.21 and middle.std() > 0.08
    assert drawn.amax((2, 3)).std(1).median() > 0.05  # each channel has a gain of its own


def test_at_most_so_many_photographs_are_drawn_once_and_for_all(undisturbed):
    whole = fundus.FundusDataset(undisturbed, "train")
    few = fundus.FundusDataset(undisturbed, "train", at_most=10)
    fewer = fundus.FundusDataset(undisturbed, "train", at_most=5)
    assert len(few) == 10 and set(fewer.names) < set(few.names) < set(whole.names)
    for i, name in enumerate(few.names):
        j = whole.names.index(name)
        assert torch.equal(few[i][0], whole[j][0]) and few.grades[i] == whole.grades[j]
        assert (few.eyes[i], few.sources[i]) == (whole.eyes[j], whole.sources[j])
    assert fundus.FundusDataset(undisturbed, "train", at_most=10**6).names == whole.names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rim": 0.0}, "rim is 0.0"),
        ({"rim": 1.1}, "rim is 1.1"),
        ({"at_most": -1}, "at_most is -1"),
    ],
)
def test_a_share_or_a_number_that_cannot_be_is_refused(undisturbed, options, message):
    with pytest.raises(ValueError, match=message):
        fundus.FundusDataset(undisturbed, "train", **options)


def test_a_response_counts_on_the_retina(raw, undisturbed, tmp_path):
    """All of the disc; of one without contrast, Graham's nine tenths, grey outside."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    distance = np.hypot(rows, columns) / (SIZE / 2)
    plain = fundus.FundusDataset(undisturbed, "test").retina(0)
    assert plain.dtype == bool
    assert plain[distance < 0.85].all() and not plain[distance > 1.1].any()

    out = fundus.prepare(raw, tmp_path / "out", SIZE, eye="both", contrast="graham")
    data = fundus.FundusDataset(out, "test")
    manifest = pd.read_csv(out / "manifest.csv").set_index("image")
    for i, name in enumerate(data.names):
        box = manifest.loc[name, ["left", "top", "right", "bottom"]].tolist()
        x, y, width, height = retina.placement(box, SIZE)
        kept = (rows + 12 > y) & (rows + 12 < y + height)
        kept &= (columns + 12 > x) & (columns + 12 < x + width)
        assert np.array_equal(data.retina(i), (distance <= 0.9) & kept)
        grey = opened(undisturbed, name)
        assert (opened(out, name) == retina.graham(grey, box)).all()
        assert (data.photograph(i)[distance > 0.9] == np.float32(128 / 255)).all()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"notebooks/03_dr_dataset.ipynb makes it"):
        fundus.FundusDataset(tmp_path / "nowhere", "train")
    out = fundus.prepare(write(tmp_path / "raw", [0] * 12), tmp_path / "out", 16)
    with pytest.raises(ValueError, match="split is 'dev'; out has test, train, val"):
        fundus.FundusDataset(out, "dev")
    data = fundus.FundusDataset(out, "test")
    (out / "masks" / f"{data.names[0]}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{data.names[0]}.png is missing"):
        data.masks(0)
    (out / "images" / f"{data.names[0]}.webp").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"webp is missing. Delete .*03_dr_dataset.ipynb ag"
    ):
        fundus.FundusDataset(out, "test")
    text = (out / "manifest.csv").read_text()
    (out / "manifest.csv").write_text(text.replace(",split,", ",part,"))
    with pytest.raises(ValueError, match=r"earlier version.* no column split. Delete it and run"):
        fundus.FundusDataset(out, "test")


EDITS = {
    "dataset.json": {
        "emptied": lambda text: "",
        "cut off": lambda text: text[:90],
        "a list": lambda text: "[]",
        "null": lambda text: "null",
        "no mean": lambda text: text.replace('"mean"', '"meen"'),
        "a mean of words": lambda text: re.sub(r'"mean": \[[^]]*', '"mean": ["a", "b", "c"', text),
        "two means": lambda text: re.sub(r'"mean": \[[^]]*', '"mean": [0.1, 0.2', text),
        "no deviation": lambda text: re.sub(r'"std": \[[^]]*', '"std": [0, 0, 0', text),
        "NaN": lambda text: re.sub(r'"mean": \[[^]]*', '"mean": [NaN, 0.2, 0.1', text),
        "a format": lambda text: text.replace('"webp"', '"../x"'),
        "a size": lambda text: text.replace('"size": 24', '"size": "24"'),
        "counts": lambda text: text.replace('"counts": {', '"counts": 3, "more": {'),
    },
    "manifest.csv": {
        "emptied": lambda text: "",
        "its columns alone": lambda text: text.split("\n")[0] + "\n",
        "cut off": lambda text: text[:-40],
        "a grade": lambda text: re.sub(r"_left,(\d+),left,0", r"_left,\1,left,1", text, count=1),
        "a name": lambda text: re.sub(r"\n\d+_left", r"\n../../x", text, count=1),
        "binary": lambda text: "\0" * len(text),
        "semicolons": lambda text: text.replace(",", ";"),
    },
}


@pytest.mark.parametrize(("name", "edit"), [(name, edit) for name in EDITS for edit in EDITS[name]])
def test_a_file_that_was_emptied_or_edited_is_named_with_what_to_do(
    undisturbed, tmp_path, name, edit
):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    text = (out / name).read_text()
    (out / name).write_text(EDITS[name][edit](text))
    assert (out / name).read_text() != text
    with pytest.raises(
        ValueError, match=rf"{name} is damaged or was edited|no column split"
    ) as told:
        fundus.FundusDataset(out, "test")
    assert "03_dr_dataset.ipynb again" in str(told.value)


@pytest.mark.parametrize("edit", [*EDITS["dataset.json"]])
def test_prepare_leaves_a_damaged_data_set_where_it_is_and_says_so(
    raw, undisturbed, tmp_path, edit
):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    about = out / "dataset.json"
    about.write_text(EDITS["dataset.json"][edit](about.read_text()))
    before = contents(out)
    with pytest.raises(ValueError, match=r"dataset.json is damaged or was edited .* Move .* away"):
        fundus.prepare(raw, out, SIZE, eye="both")
    assert contents(out) == before


@pytest.mark.parametrize("kind", ["text", "emptied", "cut off", "another size", "grey"])
def test_a_prepared_photograph_that_was_damaged_is_named(undisturbed, tmp_path, kind):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    name = fundus.FundusDataset(out, "test").names[0]
    path = out / "images" / f"{name}.webp"
    if kind == "another size":
        Image.new("RGB", (SIZE + 1, SIZE)).save(path)
    elif kind == "grey":
        Image.new("L", (SIZE, SIZE)).save(path, "jpeg")
    else:
        path.write_bytes({"text": b"%!PS", "emptied": b"", "cut off": path.read_bytes()[:60]}[kind])
    with pytest.raises(ValueError, match=rf"{name}.webp is damaged or was edited .* Move .* again"):
        fundus.FundusDataset(out, "test")


@pytest.mark.parametrize("name", fundus.PREPARATION)
def test_a_sequencer_of_other_photographs_is_refused_with_what_differs(undisturbed, name):
    data = fundus.FundusDataset(undisturbed, "test")
    config = data.preparation | {"prepared": "phantom-24", "body": "plain"}
    fundus.require_same_preparation(config, data)
    for other in (config | {name: "other"}, {k: v for k, v in config.items() if k != name}):
        with pytest.raises(
            ValueError, match="learnt from 'phantom-24', prepared otherwise"
        ) as told:
            fundus.require_same_preparation(other, data)
        said = f": {name} {other.get(name)!r} there, {data.about[name]!r} here. Run notebook 04_"
        assert said in str(told.value)


def test_a_sequencer_whose_photographs_had_another_rim_is_refused(undisturbed):
    whole = fundus.FundusDataset(undisturbed, "test")
    cut = fundus.FundusDataset(undisturbed, "test", rim=0.9)
    config = whole.preparation | {"prepared": "phantom-24"}
    fundus.require_same_preparation(config, whole)
    fundus.require_same_preparation(config | {"rim": 0.9}, cut)
    with pytest.raises(ValueError, match=r"rim 1\.0 there, 0\.9 here"):
        fundus.require_same_preparation(config, cut)
    with pytest.raises(ValueError, match=r"rim 0\.9 there, 1\.0 here"):
        fundus.require_same_preparation(config | {"rim": 0.9}, whole)


def test_to_go_on_from_a_sequencer_it_must_not_know_what_is_held_back(undisturbed, raw, tmp_path):
    config = fundus.FundusDataset(undisturbed, "train").preparation
    larger = fundus.prepare(raw, tmp_path / "larger", SIZE + 8, eye="both")
    fundus.require_held_back(config, undisturbed, larger)
    other_split = fundus.prepare(raw, tmp_path / "other", SIZE, eye="both", seed=1)

    tables = [pd.read_csv(folder / "manifest.csv") for folder in (undisturbed, other_split)]
    learnt = set(tables[0]["image"][tables[0]["split"] == "train"])
    held = set(tables[1]["image"][tables[1]["split"] != "train"])
    with pytest.raises(ValueError, match=f"has learnt from {len(learnt & held)} photographs that"):
        fundus.require_held_back(config, undisturbed, other_split)
    with pytest.raises(ValueError, match=r"mean .* there, .* that sequencer's parameters"):
        fundus.require_held_back(config, other_split, undisturbed)
    with pytest.raises(FileNotFoundError, match="nowhere is no prepared data set"):
        fundus.require_held_back(config, tmp_path / "nowhere", larger)
