from functools import cache

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter

from lib.data import phantom

MA, H, HE, CWS, NV, PRH = phantom.LESIONS
SEEDS = range(12)


@cache
def photograph(grade, seed):
    image, masks = phantom.photograph(grade, seed, 128)
    return image, {name: masks[name] for name in phantom.LESIONS}


def lesions(grade, seed):
    return {name for name, mask in photograph(grade, seed)[1].items() if mask.any()}


def test_equal_arguments_give_equal_pixels_and_every_argument_matters():
    image, masks = phantom.photograph(3, 5, 96, "left")
    again, masks_again = phantom.photograph(3, 5, 96, "left")
    assert image.dtype == np.uint8 and image.shape == (96, 96, 3) and np.array_equal(image, again)
    assert tuple(masks) == phantom.MASKS and all(
        m.dtype == bool and m.shape == (96, 96) for m in masks.values()
    )
    assert all(np.array_equal(masks[name], masks_again[name]) for name in masks)
    assert phantom.photograph(3, 5, 97, "left")[0].shape == (97, 97, 3)
    for other in ((2, 5, 96, "left"), (3, 6, 96, "left"), (3, 5, 96, "right")):
        changed = phantom.photograph(*other)[0]
        assert not np.array_equal(changed, image) and not np.array_equal(changed, image[:, ::-1])


def test_the_same_eye_has_the_same_lesions_at_every_size():
    small, large = (phantom.photograph(4, 2, size)[1] for size in (128, 256))
    for name in phantom.LESIONS:
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
    assert {frozenset(found & {NV, PRH}) for found in seen[4]} == {
        frozenset(f) for f in ({NV}, {PRH}, {NV, PRH})
    }


def test_severe_disease_has_haemorrhages_in_all_four_quadrants_and_beaded_veins():
    for seed in SEEDS:
        severe = photograph(3, seed)[1][H]
        quarters = [severe[i : i + 64, j : j + 64].sum() for i in (0, 64) for j in (0, 64)]
        assert min(quarters) >= 20
        assert severe.sum() > 2 * photograph(2, seed)[1][H].sum()


@pytest.mark.parametrize("grade", [1, 2, 3, 4])
def test_grades_of_one_eye_differ_in_the_lesions_and_nowhere_else(grade):
    for seed in SEEDS:
        healthy = photograph(0, seed)[0].astype(int)
        image, masks = photograph(grade, seed)
        change = np.abs(image - healthy).max(axis=2)
        away = ~binary_dilation(np.any(list(masks.values()), axis=0), iterations=4)
        if grade == 3:  # beads widen and darken the great veins only
            assert (change[away] > 0).any()
            assert (change[away] > 0).mean() < 0.1 and (image.astype(int) - healthy)[
                away
            ].max() <= 0
        else:
            assert change[away].max() == 0


def test_lesions_have_the_colour_of_their_kind():
    darker = {MA: True, H: True, HE: False, CWS: False, NV: True, PRH: True}
    for grade in (1, 2, 3, 4):
        for seed in SEEDS:
            healthy = photograph(0, seed)[0].astype(int)
            image, masks = photograph(grade, seed)
            for name, mask in masks.items():
                alone = mask & ~np.any([masks[other] for other in masks if other != name], axis=0)
                change = (image - healthy)[alone].mean(axis=0) if alone.sum() > 5 else None
                if change is not None:
                    assert np.all(change < 0) if darker[name] else change[1] > 0
                    assert abs(change[1]) > 10, (name, grade, seed)


def test_exposure_and_colour_of_the_eye_do_not_tell_its_grade():
    healthy, *ill = (np.array([photograph(g, s)[0] for s in SEEDS]) for g in range(5))
    for images in ill:
        assert np.abs(np.median(images - healthy.astype(int), axis=(1, 2))).max() == 0


def test_the_disc_lies_nasally_and_the_fovea_temporally():
    for eye, nasal in (("right", 1), ("left", -1)):
        for seed in SEEDS:
            image = phantom.photograph(0, seed, 128, eye)[0].astype(float)
            brightest = np.unravel_index(gaussian_filter(image.sum(axis=2), 3).argmax(), (128, 128))
            assert nasal * (brightest[1] - 64) > 20 and abs(brightest[0] - 64) < 16


def test_the_optic_disc_is_known_the_same_in_every_grade_and_brighter_than_its_surroundings():
    for seed in SEEDS:
        image, masks = phantom.photograph(0, seed, 128)
        disc = masks["optic_disc"]
        assert 0.01 < disc.mean() < 0.06 and disc[:, :70].sum() == 0
        ring = binary_dilation(disc, iterations=8) & ~binary_dilation(disc, iterations=3)
        assert image[disc].mean() > image[ring].mean() + 20
        assert np.array_equal(disc, phantom.photograph(4, seed, 128)[1]["optic_disc"])


def test_the_retina_fills_the_frame_on_black_and_darkens_to_the_rim():
    radius = np.hypot(*(np.mgrid[:128, :128] - 63.5))
    for seed in SEEDS:
        red = photograph(0, seed)[0][..., 0].astype(float)
        assert not np.any([mask[radius > 64] for mask in photograph(4, seed)[1].values()])
        assert red[radius > 64].max() == 0 and red[radius < 60].min() > 0
        assert np.median(red[radius < 30]) > np.median(red[(radius > 55) & (radius < 61)])


def test_eyes_differ_in_colour_and_exposure():
    mean = np.array([phantom.photograph(0, seed, 64)[0].mean(axis=(0, 1)) for seed in range(30)])
    assert mean[:, 0].std() > 8
    assert np.ptp(mean[:, 1] / mean[:, 0]) > 0.08


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((5, 0, 128), "grade is 5; give an integer from 0 to 4"),
        ((-1, 0, 128), "grade is -1"),
        ((1.5, 0, 128), "grade is 1.5"),
        ((0, -3, 128), "seed is -3"),
        ((0, 0, 16), "size is 16"),
        ((0, 0, 10_000), "size is 10000"),
        ((0, 0, 128, "both"), "eye is 'both'; give 'left' or 'right'"),
    ],
)
def test_a_photograph_out_of_range_says_what_and_what_to_do(arguments, said):
    with pytest.raises(ValueError, match=said):
        phantom.photograph(*arguments)
