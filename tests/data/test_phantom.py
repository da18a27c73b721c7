"""Phantoms show the signs of their grade and nothing else; a collection is laid out as Kaggle's."""

import json
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter

from lib import paths
from lib.data import phantom
from lib.data.retina import LESIONS, MASKS, read_masks

MA, H, HE, CWS, NV, PRH = LESIONS
SEEDS = range(12)


@cache
def drawn(grade, seed):
    image, masks = phantom.draw_photograph(grade, seed, 128)
    return image, {name: masks[name] for name in LESIONS}


def lesions(grade, seed):
    return {name for name, mask in drawn(grade, seed)[1].items() if mask.any()}


# The photograph


def test_equal_arguments_give_equal_pixels_and_every_argument_matters():
    image, masks = phantom.draw_photograph(3, 5, 96, "left")
    again, masks_again = phantom.draw_photograph(3, 5, 96, "left")
    assert image.dtype == np.uint8 and image.shape == (96, 96, 3) and np.array_equal(image, again)
    assert tuple(masks) == MASKS
    assert all(mask.dtype == bool and mask.shape == (96, 96) for mask in masks.values())
    assert all(np.array_equal(masks[name], masks_again[name]) for name in masks)
    for other in ((2, 5, 96, "left"), (3, 6, 96, "left"), (3, 5, 96, "right")):
        changed = phantom.draw_photograph(*other)[0]
        assert not np.array_equal(changed, image) and not np.array_equal(changed, image[:, ::-1])


def test_the_same_eye_has_the_same_lesions_at_every_size():
    small, large = (phantom.draw_photograph(4, 2, size)[1] for size in (128, 256))
    for name in LESIONS:
        again = large[name].reshape(128, 2, 128, 2).any((1, 3))
        assert small[name].any() == again.any()
        assert not (again & ~binary_dilation(small[name], iterations=2)).any()


def test_each_grade_has_the_lesions_that_the_scale_gives_it():
    seen = {grade: [lesions(grade, seed) for seed in SEEDS] for grade in range(5)}
    assert all(found == set() for found in seen[0])
    assert all(found == {MA} for found in seen[1])
    assert all(found == {MA, H, HE} for found in seen[2])
    assert all({MA, H, CWS} <= found <= {MA, H, HE, CWS} for found in seen[3])
    assert all({MA, H} <= found and found & {NV, PRH} for found in seen[4])
    forms = {frozenset(found & {NV, PRH}) for found in seen[4]}
    assert forms == {frozenset({NV}), frozenset({PRH}), frozenset({NV, PRH})}


def test_severe_disease_has_many_haemorrhages_and_in_all_four_quadrants():
    for seed in SEEDS:
        severe = drawn(3, seed)[1][H]
        quarters = [severe[i : i + 64, j : j + 64].sum() for i in (0, 64) for j in (0, 64)]
        assert min(quarters) >= 20
        assert severe.sum() > 2 * drawn(2, seed)[1][H].sum()


@pytest.mark.parametrize("grade", [1, 2, 3, 4])
def test_grades_of_one_eye_differ_in_the_lesions_and_nowhere_else(grade):
    for seed in SEEDS:
        healthy = drawn(0, seed)[0].astype(int)
        image, masks = drawn(grade, seed)
        change = np.abs(image - healthy).max(axis=2)
        away = ~binary_dilation(np.any(list(masks.values()), axis=0), iterations=4)
        if grade == 3:  # beads widen and darken the great veins only
            assert (change[away] > 0).any() and (change[away] > 0).mean() < 0.1
            assert (image.astype(int) - healthy)[away].max() <= 0
        else:
            assert change[away].max() == 0


@pytest.mark.parametrize(("grade", "eye"), [(2, "right"), (4, "right"), (4, "left")])
def test_an_eye_is_drawn_without_the_lesions_in_a_mask_and_is_else_the_same(grade, eye):
    whole, masks = phantom.draw_photograph(grade, 7, 128, eye)
    left_out = np.zeros((128, 128), bool)
    left_out[:, :64] = True
    image, others = phantom.draw_photograph(grade, 7, 128, eye, left_out)
    healthy, _ = phantom.draw_photograph(0, 7, 128, eye)
    assert np.any([masks[name][left_out] for name in LESIONS])
    for name in LESIONS:
        assert np.array_equal(others[name], masks[name] & ~left_out)
    assert np.array_equal(others["optic_disc"], masks["optic_disc"])
    far = np.s_[:, :58], np.s_[:, 70:]  # from the mask's edge, over which the camera blurs
    assert np.array_equal(image[far[0]], healthy[far[0]])
    assert np.array_equal(image[far[1]], whole[far[1]])


def test_lesions_have_the_colour_of_their_kind():
    darker = {MA: True, H: True, HE: False, CWS: False, NV: True, PRH: True}
    for grade in (1, 2, 3, 4):
        for seed in SEEDS:
            healthy = drawn(0, seed)[0].astype(int)
            image, masks = drawn(grade, seed)
            covered = np.sum(list(masks.values()), axis=0)
            for name, mask in masks.items():
                alone = mask & (covered == 1)
                if alone.sum() > 5:
                    change = (image - healthy)[alone].mean(axis=0)
                    assert np.all(change < 0) if darker[name] else change[1] > 0
                    assert abs(change[1]) > 10, (name, grade, seed)


@pytest.mark.parametrize(("eye", "nasal"), [("right", 1), ("left", -1)])
def test_the_disc_lies_nasally_and_is_brighter_than_its_surroundings(eye, nasal):
    for seed in SEEDS:
        image, masks = phantom.draw_photograph(0, seed, 128, eye)
        brightest = gaussian_filter(image.sum(axis=2).astype(float), 3).argmax()
        row, column = np.unravel_index(brightest, (128, 128))
        assert nasal * (column - 64) > 20 and abs(row - 64) < 16
        disc = masks["optic_disc"]
        assert 0.01 < disc.mean() < 0.06 and disc[:, ::nasal][:, :70].sum() == 0
        ring = binary_dilation(disc, iterations=8) & ~binary_dilation(disc, iterations=3)
        assert image[disc].mean() > image[ring].mean() + 20
        _, ill = phantom.draw_photograph(4, seed, 128, eye)
        assert np.array_equal(disc, ill["optic_disc"])


def test_the_retina_fills_the_frame_on_black_and_darkens_to_the_rim():
    radius = np.hypot(*(np.mgrid[:128, :128] - 63.5))
    for seed in SEEDS:
        red = drawn(0, seed)[0][..., 0].astype(float)
        assert not np.any([mask[radius > 64] for mask in drawn(4, seed)[1].values()])
        assert red[radius > 64].max() == 0 and red[radius < 60].min() > 0
        assert np.median(red[radius < 30]) > np.median(red[(radius > 55) & (radius < 61)])


def test_eyes_differ_in_colour_and_exposure():
    mean = np.array(
        [phantom.draw_photograph(0, seed, 64)[0].mean(axis=(0, 1)) for seed in range(30)]
    )
    assert mean[:, 0].std() > 8
    assert np.ptp(mean[:, 1] / mean[:, 0]) > 0.08


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((5, 0, 128), "grade is 5; give an integer from 0 to 4"),
        ((-1, 0, 128), "grade is -1"),
        ((1.5, 0, 128), r"grade is 1\.5"),
        ((0, -3, 128), "seed is -3"),
        ((0, 0, 16), "size is 16"),
        ((0, 0, 10_000), "size is 10000"),
        ((0, 0, 128, "both"), "eye is 'both'; give 'left' or 'right'"),
    ],
)
def test_a_photograph_out_of_range_says_what_and_what_to_do(arguments, said):
    with pytest.raises(ValueError, match=said):
        phantom.draw_photograph(*arguments)


def test_a_mask_of_another_size_says_so():
    with pytest.raises(ValueError, match=r"without is \(64, 64\); give a mask \(128, 128\)"):
        phantom.draw_photograph(2, 0, 128, without=np.ones((64, 64), bool))


# The collection


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "phantom"
    phantom.write_collection(folder, 15, 4, workers=1)
    return folder


def test_a_collection_is_laid_out_as_kaggle_ships_it(written):
    table = pd.read_csv(written / "trainLabels.csv")
    assert list(table.columns) == ["image", "level"] and len(table) == 30
    assert {path.stem for path in (written / "train").glob("*.jpeg")} == set(table.image)
    assert {path.stem for path in (written / "masks").glob("*.png")} == set(table.image)
    names = table.image.str.split("_")
    patient, eye = names.str[0].astype(int), names.str[1]
    assert patient.is_monotonic_increasing and patient.nunique() == 15 and np.ptp(patient) > 14
    assert (eye[::2] == "left").all() and (eye[1::2] == "right").all()
    for side in ("left", "right"):
        levels = table[eye == side].level
        assert levels.value_counts().to_dict() == dict.fromkeys(range(5), 3)
        assert not levels.is_monotonic_increasing
    assert (table.level[::2].values != table.level[1::2].values).any()
    about = json.loads((written / "collection.json").read_text())
    assert about == {"n": 15, "seed": 4, "share": [0.2] * 5, "version": phantom.VERSION}


def test_masks_lie_on_the_photograph_and_belong_to_its_grade(written):
    shapes, extents = set(), []
    for name, level in pd.read_csv(written / "trainLabels.csv").values:
        image = np.asarray(Image.open(written / "train" / f"{name}.jpeg")).astype(int)
        masks = read_masks(written / "masks" / f"{name}.png")
        lit = image.max(axis=2) > 25
        any_lesion = np.any([masks[lesion] for lesion in LESIONS], axis=0)
        assert any_lesion.shape == image.shape[:2] and any_lesion.any() == (level > 0)
        assert (any_lesion & lit).sum() >= 0.98 * any_lesion.sum()
        if masks[HE].sum() > 20:  # yellow beside the orange round about
            around = binary_dilation(masks[HE], iterations=6)
            ring = around & ~binary_dilation(any_lesion, iterations=2)
            assert np.median(image[masks[HE], 1]) > np.median(image[ring, 1]) + 15
        shapes.add(image.shape)
        extents.append(lit.any(axis=0).sum())
        assert lit.mean() < 0.9 and image[:2, :2].max() < 25
    assert len(shapes) > 15 and 140 < min(extents) and max(extents) <= 232


def test_files_depend_on_the_seed_and_not_on_the_number_of_workers(tmp_path):
    """Processes also start from code without a file, as a notebook's is."""
    for name, seed in (("one", 1), ("other", 2)):
        phantom.write_collection(tmp_path / name, 3, seed, phantom.EYEPACS_SHARES, workers=1)
    code = (
        "from lib.data import phantom; "
        f"phantom.write_collection({str(tmp_path / 'two')!r}, 3, 1, phantom.EYEPACS_SHARES, 2)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True)
    assert done.returncode == 0 and done.stdout == b"" and done.stderr == b""
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


@pytest.mark.parametrize(
    ("share", "counts"),
    [
        (phantom.EYEPACS_SHARES, [15, 1, 3, 1, 0]),  # of 14.70, 1.39, 3.01, 0.50, 0.40
        ((0, 0, 1, 0, 0), [0, 0, 20, 0, 0]),
        ((0.37, 0.33, 0.3, 0, 0), [7, 7, 6, 0, 0]),  # of 7.4, 6.6, 6
    ],
)
def test_grades_are_allotted_by_largest_remainder(tmp_path, monkeypatch, share, counts):
    monkeypatch.setattr(phantom, "_write_photograph", lambda *arguments: None)
    phantom.write_collection(tmp_path / "raw", 20, 0, share, workers=1)
    table = pd.read_csv(tmp_path / "raw" / "trainLabels.csv")
    for rows in (table[::2], table[1::2]):
        assert np.bincount(rows.level, minlength=5).tolist() == counts


def test_the_shares_of_eyepacs_are_those_of_its_35126_training_photographs():
    counts = np.array(phantom.EYEPACS_SHARES) * 35126
    assert np.round(counts).tolist() == [25810, 2443, 5292, 873, 708]


def test_an_interrupted_write_is_not_taken_for_whole_and_can_be_repeated(tmp_path, monkeypatch):
    folder, write = tmp_path / "phantom", phantom._write_photograph

    def interrupted(unfinished, *photograph):
        if len(list((unfinished / "train").iterdir())) == 3:
            raise KeyboardInterrupt
        write(unfinished, *photograph)

    def interrupt(seed):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(phantom, "_write_photograph", interrupted)
            phantom.write_collection(folder, 3, seed, workers=1)

    interrupt(1)
    assert not folder.exists() and not list(tmp_path.rglob("collection.json"))
    phantom.write_collection(folder, 3, 1, workers=1)
    whole = contents(folder)
    interrupt(2)
    assert contents(folder) == whole
    (folder / "notes.txt").write_text("mine")
    phantom.write_collection(folder, 2, 2, workers=1)
    assert len(list((folder / "train").iterdir())) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"phantom", "phantom.1", "phantom.lock"}
    assert contents(tmp_path / "phantom.1").keys() == {*whole, "notes.txt"}


def test_a_second_run_that_draws_there_is_told_who_does(tmp_path):
    with paths.alone(tmp_path / "phantom", "drawing"):
        with pytest.raises(
            RuntimeError, match=r"Another run is drawing .*phantom \(process \d+ on"
        ):
            phantom.write_collection(tmp_path / "phantom", 1, 0, workers=1)
    assert not (tmp_path / "phantom").exists() and not (tmp_path / "phantom.partial").exists()


def dies(*arguments):
    os._exit(1)


def test_a_worker_that_dies_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "_write_photograph", dies)
    with pytest.raises(RuntimeError, match=r"memory was full.*Run again, with fewer workers"):
        phantom.write_collection(tmp_path / "phantom", 2, 0, workers=2)
    assert not (tmp_path / "phantom").exists()


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="no phantom collection; move them"):
        phantom.write_collection(tmp_path, 1, 0, workers=1)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("n", "seed", "share", "said"),
    [
        (0, 0, phantom.BALANCED, "n is 0; give an integer from 1 to 100000"),
        (2.5, 0, phantom.BALANCED, r"n is 2\.5"),
        (3, -1, phantom.BALANCED, "seed is -1"),
        (3, 0, (0.5, 0.5), "five shares"),
        (3, 0, (0.5, 0.5, 0.5, 0, 0), "add up to 1"),
        (3, 0, (1.5, -0.5, 0, 0, 0), r"-0\.5"),
        (3, 0, (float("nan"), 1, 0, 0, 0), "nan"),
    ],
)
def test_a_collection_out_of_range_says_what_and_writes_nothing(tmp_path, n, seed, share, said):
    with pytest.raises(ValueError, match=said):
        phantom.write_collection(tmp_path / "raw", n, seed, share)
    assert not list(tmp_path.iterdir())
