"""The prepare step on tiny collections of discs drawn in known places, the Dataset on its files."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_retina import frame

from lib.data import fundus
from lib.data import manifest as labels
from lib.data.phantom import LESIONS


def write(folder, grades, size=(96, 80), eyes=("left", "right")):
    """A raw collection as Kaggle ships it, `grades` by patient; every photograph its own disc, a lesion on each."""
    for part in ("train", "masks"):
        (folder / part).mkdir(parents=True)
    rows = []
    for patient, grade in enumerate(grades, 10):
        for side, eye in enumerate(eyes):
            rng = np.random.default_rng([patient, side])
            width, height = size
            image, _ = frame(
                height,
                width,
                width // 2,
                height // 2,
                35,
                rng.integers(90, 220),
                0.7,
                1,
                3,
                patient,
            )
            mask = np.zeros((height, width), np.uint8)
            left, top = rng.integers(30, 50, 2)
            mask[top : top + 6, left : left + 6] = 1 << rng.integers(len(LESIONS))
            Image.fromarray(image).save(folder / "train" / f"{patient}_{eye}.jpeg", quality=95)
            Image.fromarray(mask).save(folder / "masks" / f"{patient}_{eye}.png")
            rows.append((f"{patient}_{eye}", grade))
    pd.DataFrame(rows, columns=["image", "level"]).to_csv(folder / "trainLabels.csv", index=False)
    return folder


@pytest.fixture
def raw(tmp_path):
    return write(tmp_path / "raw", [0] * 40 + [1] * 20 + [2] * 20 + [3] * 10 + [4] * 10)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("module")
    write(folder / "raw", [0] * 40 + [1] * 20 + [2] * 20 + [3] * 10 + [4] * 10)
    return fundus.prepare(folder / "raw", folder / "prepared", 32)


def table_of(raw):
    return pd.read_csv(raw / "trainLabels.csv", dtype=str)


def rejects(out):
    return pd.read_csv(out / "rejects.csv").set_index("image")["reason"]


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_masks_lie_where_the_photograph_shows_the_lesion(tmp_path):
    raw = write(tmp_path / "raw", [0] * 20 + [1] * 20, size=(320, 240))
    for path in sorted((raw / "train").glob("*_right.jpeg")):
        image = np.zeros((240, 320, 3), np.uint8)
        rows, columns = np.mgrid[:240, :320]
        image[np.hypot(columns - 170, rows - 115) <= 130] = (60, 30, 15)
        mask = np.zeros((240, 320), np.uint8)
        mask[90:130, 200:260] = 4
        image[mask > 0] = 255
        image[0, 0] = int(path.stem.split("_")[0])  # no two photographs are the same
        Image.fromarray(image).save(path, quality=100)
        Image.fromarray(mask).save(raw / "masks" / f"{path.stem}.png")
    part = fundus.Prepared(fundus.prepare(raw, tmp_path / "out", 64, test_share=0.2), "test")
    masks = part.masks(0)
    white = part.photograph(0).min(axis=2) > 0.5
    assert not any(mask.any() for lesion, mask in masks.items() if lesion != LESIONS[2])
    assert white.sum() > 100 and (white & ~masks[LESIONS[2]]).sum() == 0
    assert (white & masks[LESIONS[2]]).sum() / masks[LESIONS[2]].sum() > 0.8


def test_the_parts_are_stratified_and_as_large_as_asked(prepared):
    manifest = pd.read_csv(prepared / "manifest.csv")
    counts = pd.crosstab(manifest["grade"], manifest["part"])
    assert counts.sum().to_dict() == {"test": 10, "train": 81, "val": 9}
    assert counts["test"].tolist() == [4, 2, 2, 1, 1]
    assert (np.abs(counts["val"] - np.array([4, 2, 2, 1, 1]) * 0.9) < 1).all()
    assert set(manifest["eye"]) == {"right"} and manifest["image"].is_unique
    made = json.loads((prepared / "dataset.json").read_text())
    assert (
        made["counts"]["test"] == {"0": 4, "1": 2, "2": 2, "3": 1, "4": 1} and made["rejected"] == 0
    )


def test_both_eyes_of_a_patient_are_on_one_side(raw, tmp_path):
    table = table_of(raw)
    table.loc[table["image"].str.endswith("left"), "level"] = "0"
    table.to_csv(raw / "trainLabels.csv", index=False)
    manifest = pd.read_csv(
        fundus.prepare(raw, tmp_path / "out", 32, eye="both", seed=3) / "manifest.csv"
    )
    assert len(manifest) == 200 and (manifest.groupby("patient")["part"].nunique() == 1).all()
    worst = manifest[manifest["part"] == "test"].groupby("patient")["grade"].max()
    assert worst.value_counts().sort_index().tolist() == [4, 2, 2, 1, 1]


def test_patients_with_a_rare_worse_eye_can_be_split_when_every_part_holds_every_grade(
    raw, tmp_path
):
    """Three patients have grade 0 in both eyes, too few for a tenth of a tenth; left eyes of grade 0 are plenty."""
    table = table_of(raw)
    right = [0 if patient < 3 else 1 + patient % 4 for patient in range(100)]
    table["level"] = [grade for worse in right for grade in (0, worse)]
    table.to_csv(raw / "trainLabels.csv", index=False)
    manifest = pd.read_csv(fundus.prepare(raw, tmp_path / "out", 32, eye="both") / "manifest.csv")
    assert (pd.crosstab(manifest["part"], manifest["grade"]) > 0).all(axis=None)


def test_the_left_eye_is_another_data_set(raw, tmp_path):
    manifest = pd.read_csv(fundus.prepare(raw, tmp_path / "out", 32, eye="left") / "manifest.csv")
    assert manifest["image"].str.endswith("_left").all() and len(manifest) == 100


def test_another_seed_is_another_split(raw, tmp_path):
    first, second = (
        pd.read_csv(fundus.prepare(raw, tmp_path / str(seed), 32, seed=seed) / "manifest.csv")
        for seed in (0, 1)
    )
    assert (first["image"] == second["image"]).all() and (first["part"] != second["part"]).any()


def test_means_and_deviations_are_those_of_the_training_files(prepared):
    manifest = pd.read_csv(prepared / "manifest.csv")
    names = manifest["image"][manifest["part"] == "train"]
    pixels = (
        np.stack([np.asarray(Image.open(prepared / "images" / f"{name}.webp")) for name in names])
        / 255
    )
    made = json.loads((prepared / "dataset.json").read_text())
    np.testing.assert_allclose(made["mean"], pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(made["std"], pixels.std(axis=(0, 1, 2)), rtol=1e-9)


def test_every_bad_photograph_and_label_is_listed_with_its_reason(raw, tmp_path):
    train = raw / "train"
    Image.new("RGB", (96, 80)).save(train / "10_right.jpeg")
    (train / "11_right.jpeg").write_bytes(b"not a photograph")
    whole = (train / "12_right.jpeg").read_bytes()
    (train / "12_right.jpeg").write_bytes(whole[: len(whole) // 2])
    (train / "13_right.jpeg").unlink()
    (train / "9_right.jpeg").write_bytes(whole)
    (train / "portrait.jpeg").write_bytes(whole)
    tiny, _ = frame(24, 24, 12, 12, 5)
    Image.fromarray(tiny).save(train / "14_right.jpeg", quality=95)
    Image.new("I;16", (96, 80)).save(train / "15_right.jpeg", format="PNG")
    Image.new("L", (95, 80)).save(raw / "masks" / "16_right.png")
    table = table_of(raw).set_index("image")
    table.loc["17_right", "level"] = "5"
    table.loc["18_right", "level"] = ""
    table = table.reset_index()
    pd.concat([table, table[table["image"] == "19_right"]]).to_csv(
        raw / "trainLabels.csv", index=False
    )

    out = fundus.prepare(raw, tmp_path / "out", 32)
    reasons = rejects(out)
    expected = {
        "10_right": "no retina found: the frame varies by 0.0 of 255 levels",
        "11_right": "unreadable: cannot identify image file: 11_right.jpeg",
        "12_right": "truncated: image file is truncated",
        "13_right": "no photograph",
        "14_right": "too small: a retina of",
        "15_right": "unreadable: mode I;16 has more than 8 bits",
        "16_right": "mask of shape (80, 95) for a photograph of shape (80, 96)",
        "17_right": "level is not 0 to 4",
        "18_right": "level is not 0 to 4",
        "19_right": "labelled, or there, more than once",
        "9_right": "no label",
        "portrait": "name does not end in _left or _right",
    }
    assert set(reasons.index) == set(expected)
    assert {name for name in expected if not reasons[name].startswith(expected[name])} == set()
    manifest = pd.read_csv(out / "manifest.csv")
    assert len(manifest) == 90 and not set(manifest["image"]) & set(expected)
    assert json.loads((out / "dataset.json").read_text())["rejected"] == 12
    files = {path.stem for path in (out / "images").iterdir()}
    assert files == {path.stem for path in (out / "masks").iterdir()} == set(manifest["image"])


def test_preparing_twice_gives_the_same_bytes(raw, tmp_path):
    first, second = (contents(fundus.prepare(raw, tmp_path / name, 32)) for name in ("a", "b"))
    assert first == second and len(first) == 203


def test_the_same_request_is_answered_from_disk_and_another_one_remade(raw, tmp_path):
    out = fundus.prepare(raw, tmp_path / "out", 32)
    before = (out / "dataset.json").stat().st_mtime_ns
    assert (
        fundus.prepare(raw, out, 32) == out and (out / "dataset.json").stat().st_mtime_ns == before
    )
    fundus.prepare(raw, out, 32, seed=1)
    assert json.loads((out / "dataset.json").read_text())["seed"] == 1
    fundus.prepare(raw, out, 24, seed=1)
    assert Image.open(out / "images" / "10_right.webp").size == (24, 24)
    table_of(raw).iloc[:-1].to_csv(raw / "trainLabels.csv", index=False)
    fundus.prepare(raw, out, 24, seed=1)
    assert rejects(out)["109_right"] == "no label"
    Image.new("RGB", (96, 80)).save(raw / "train" / "10_right.jpeg")
    fundus.prepare(raw, out, 24, seed=1)
    assert set(rejects(out).index) == {"10_right", "109_right"}


def test_a_folder_of_something_else_is_left_alone(raw, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no prepared data set"):
        fundus.prepare(raw, tmp_path / "out", 32)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": 8}, "size is 8; choose"),
        ({"size": 4096}, "size is 4096; choose"),
        ({"test_share": 0.0}, "test_share is 0.0; choose"),
        ({"test_share": 0.9}, "test_share is 0.9; choose"),
        ({"eye": "middle"}, "eye is 'middle'; choose one of right, left, both"),
        ({"test_share": 0.01}, "40 of grade 0, .* are too few patients"),
    ],
)
def test_a_bad_request_is_answered_with_what_to_do(raw, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        fundus.prepare(raw, tmp_path / "out", **{"size": 32} | wrong)
    assert not (tmp_path / "out").exists()


def test_a_bad_collection_is_answered_with_what_to_do(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"has no trainLabels.csv.*notebooks/03_dr_dataset.ipynb"
    ):
        fundus.prepare(raw, tmp_path / "out", 32)
    (raw / "trainLabels.csv").write_text("id,diagnosis\n1_right,0\n")
    with pytest.raises(ValueError, match="has the columns id, diagnosis; it needs image and level"):
        fundus.prepare(raw, tmp_path / "out", 32)
    (raw / "trainLabels.csv").write_text("image,level\n1_right,0\n")
    with pytest.raises(FileNotFoundError, match=r"holds no photograph \(.jpeg"):
        fundus.prepare(raw, tmp_path / "out", 32)
    (raw / "train").mkdir()
    Image.new("RGB", (96, 80)).save(raw / "train" / "1_right.jpeg")
    with pytest.raises(ValueError, match="can be prepared: 1_right no retina found"):
        fundus.prepare(raw, tmp_path / "out", 32)
    with pytest.raises(ValueError, match="none of the left eye"):
        fundus.prepare(raw, tmp_path / "out", 32, eye="left")


def test_a_grade_too_rare_to_be_in_every_part_is_an_error(tmp_path):
    raw = write(tmp_path / "raw", [0] * 60 + [1] * 2)
    with pytest.raises(ValueError, match="60 of grade 0, 2 of grade 1 are too few patients"):
        fundus.prepare(raw, tmp_path / "out", 32)


def test_the_training_part_is_normalised_to_mean_0_and_deviation_1(prepared):
    part = fundus.Prepared(prepared, "train")
    images = torch.stack([image for image, _ in part])
    assert images.dtype == torch.float32 and images.shape == (81, 3, 32, 32)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_a_part_holds_its_own_photographs_with_their_grades(prepared):
    manifest = pd.read_csv(prepared / "manifest.csv").set_index("image")
    names = {part: fundus.Prepared(prepared, part).names for part in labels.PARTS}
    assert sorted(name for part in names.values() for name in part) == sorted(manifest.index)
    part = fundus.Prepared(prepared, "test")
    assert (
        part.grades.tolist() == manifest.loc[part.names, "grade"].tolist()
        and part.grades.dtype == torch.int64
    )
    file = np.asarray(Image.open(prepared / "images" / f"{part.names[3]}.webp"))
    np.testing.assert_allclose(part.photograph(3), file / 255, atol=1e-6)
    image, grade = part[3]
    np.testing.assert_allclose(
        image * part.std + part.mean, file.transpose(2, 0, 1) / 255, atol=1e-6
    )
    assert grade == part.grades[3] and isinstance(grade, int)
    bits = np.asarray(Image.open(prepared / "masks" / f"{part.names[3]}.png"))
    assert sum(mask.sum() << bit for bit, mask in enumerate(part.masks(3).values())) == bits.sum()


def test_flips_are_the_four_mirror_images_and_follow_the_seed(prepared):
    plain, flipped = (
        fundus.Prepared(prepared, "val", flips=flips)[0][0] for flips in (False, True)
    )
    part = fundus.Prepared(prepared, "val", flips=True)

    def draw():
        torch.manual_seed(5)
        return [part[0][0] for _ in range(60)]

    first, second = draw(), draw()
    variants = [plain, plain.flip(1), plain.flip(2), plain.flip(1, 2)]
    seen = [next(k for k, v in enumerate(variants) if torch.equal(v, image)) for image in first]
    assert set(seen) == {0, 1, 2, 3} and flipped.shape == plain.shape
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_missing_is_named(raw, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"notebooks/03_dr_dataset.ipynb makes it"):
        fundus.Prepared(tmp_path / "nowhere", "train")
    out = fundus.prepare(raw, tmp_path / "out", 32)
    with pytest.raises(ValueError, match="part is 'dev'; out has test, train, val"):
        fundus.Prepared(out, "dev")
    name = fundus.Prepared(out, "test").names[0]
    (out / "images" / f"{name}.webp").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{name}.webp is missing. Delete .*03_dr_dataset.ipynb again"
    ):
        fundus.Prepared(out, "test")
