"""The response as a detector of lesions, on maps small enough to count, and its place in the retina."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from lib.evaluation import grading as scores
from lib.evaluation import localisation as lesions
from lib.methods import cam


def mask(*points, shape=(12, 12)):
    """True in the pixels (row, column) given."""
    result = np.zeros(shape, bool)
    for point in points:
        result[point] = True
    return result


def everywhere(*shape):
    return np.ones(shape, bool)


def disc(size, x, y, radius):
    rows, columns = np.mgrid[:size, :size] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


# --- widened


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, 3])
def test_widened_holds_what_is_within_the_tolerance(tolerance):
    points = [(2, 3), (2, 4), (9, 9)]
    by_hand = [
        [
            any(math.dist((row, column), point) <= tolerance for point in points)
            for column in range(12)
        ]
        for row in range(12)
    ]
    assert (lesions.widened(mask(*points), tolerance) == np.array(by_hand)).all()


def test_nothing_widened_is_nothing_and_a_tolerance_is_not_negative():
    assert not lesions.widened(mask(), 3).any()
    for tolerance in (-1, math.nan):
        with pytest.raises(ValueError, match="tolerance is"):
            lesions.widened(mask((1, 1)), tolerance)


# --- scored


def test_six_pixels_by_hand():
    # response    9 5 7 | lesion x . x     ranked 9x 7x 5. 4. 3x -1.  precision at each lesion: 1/1, 2/2, 3/5
    #             4 3 -1|        . x .
    response = np.array([[9.0, 5, 7], [4, 3, -1]])
    found = np.array([[1, 0, 1], [0, 1, 0]], bool)
    (row,) = (
        lesions.scored(response, {"haemorrhage": found}, everywhere(2, 3))
        .query("lesion == 'haemorrhage'")
        .itertuples()
    )
    assert row.pointing == 1
    assert row.inside == pytest.approx((9 + 7 + 3) / (9 + 5 + 7 + 4 + 3))
    assert row.precision == pytest.approx((1 + 1 + 3 / 5) / 3)
    assert row.chance == 0.5


@pytest.mark.parametrize("seed", range(8))
def test_scores_agree_with_a_walk_down_the_ranked_pixels_of_the_retina(seed):
    rng = np.random.default_rng(seed)
    response, retina = rng.permutation(144).reshape(12, 12) - 30.0, disc(12, 6, 6, 5.5)
    masks = {"a": rng.random((12, 12)) < 0.1, "b": rng.random((12, 12)) < 0.05, "c": mask()}
    table = lesions.scored(torch.tensor(response), masks, retina, tolerance=1).set_index("lesion")
    kinds = {
        "any lesion": masks["a"] | masks["b"],
        **{name: m for name, m in masks.items() if m.any()},
    }
    assert [*table.index] == [*kinds]
    for lesion, kind in kinds.items():
        found = lesions.widened(kind, 1) & retina
        hits, precisions = 0, []
        ranked = sorted(zip(response[retina], found[retina], strict=True), reverse=True)
        for rank, (_, hit) in enumerate(ranked, 1):
            hits += hit
            precisions += [hits / rank] * bool(hit)
        assert table.precision[lesion] == pytest.approx(np.mean(precisions))
        assert table.chance[lesion] == pytest.approx(found.sum() / retina.sum())
        assert table.inside[lesion] == pytest.approx(
            response[found & (response > 0)].sum() / response[response > 0].sum()
        )
        assert table.pointing[lesion] == found[np.unravel_index(response.argmax(), response.shape)]


def test_the_optic_disc_is_a_trap_not_a_lesion():
    masks = {"hard_exudate": mask((2, 2)), lesions.DISC: mask((8, 8), (8, 9))}
    on_disc = np.where(masks[lesions.DISC], 5.0, 0)
    table = lesions.scored(on_disc, masks, everywhere(12, 12)).set_index("lesion")
    assert table.pointing.to_dict() == {
        "any lesion": False,
        "hard_exudate": False,
        "optic_disc": True,
    }
    assert table.inside.to_dict() == {"any lesion": 0, "hard_exudate": 0, "optic_disc": 1}
    assert table.precision["optic_disc"] == 1 and table.precision["any lesion"] < 0.05
    assert table.chance.to_dict() == {
        "any lesion": 1 / 144,
        "hard_exudate": 1 / 144,
        "optic_disc": 2 / 144,
    }


def test_chance_is_what_noise_scores():
    rng, retina = np.random.default_rng(0), disc(40, 20, 20, 19)
    masks = {"haemorrhage": disc(40, 14, 20, 5)}
    rows = [
        lesions.scored(rng.random((40, 40)) * retina, masks, retina).iloc[0] for _ in range(120)
    ]
    chance = rows[0].chance
    for name in ("pointing", "inside", "precision"):
        assert np.mean([row[name] for row in rows]) == pytest.approx(chance, abs=0.06)


def test_a_response_without_structure_is_worth_chance_and_none_points_nowhere():
    masks, retina = {"haemorrhage": mask((3, 3), (3, 4))}, everywhere(12, 12)
    row = lesions.scored(np.zeros((12, 12)), masks, retina).iloc[0]
    assert (row.pointing, row.inside) == (False, 0)
    assert row.precision == pytest.approx(row.chance)


def test_a_healthy_retina_has_no_row_and_lesions_beside_the_retina_do_not_count():
    table = lesions.scored(np.ones((12, 12)), {"haemorrhage": mask()}, everywhere(12, 12))
    assert table.empty and [*table.columns] == [
        "lesion",
        "pointing",
        "inside",
        "precision",
        "chance",
    ]
    outside = {"haemorrhage": mask((0, 0))}
    assert lesions.scored(np.ones((12, 12)), outside, disc(12, 6, 6, 5)).empty


@pytest.mark.parametrize(
    ("response", "masks", "retina", "message"),
    [
        (np.ones((12, 12)), {}, everywhere(12, 12), r"masks of \[\] hold no lesion"),
        (
            np.ones((12, 12)),
            {"optic_disc": mask((1, 1))},
            everywhere(12, 12),
            "whose lesions are known",
        ),
        (np.ones((12, 12)), {"a": mask((1, 1))}, ~everywhere(12, 12), "of 0 pixels"),
        (np.ones((12, 11)), {"a": mask((1, 1))}, everywhere(12, 12), r"response \(12, 11\)"),
        (np.ones((12, 12)), {"a": mask((1, 1), shape=(12, 9))}, everywhere(12, 12), r"\(12, 9\)"),
        (np.ones((2, 12, 12)), {"a": mask((1, 1))}, everywhere(12, 12), r"\(2, 12, 12\)"),
        (np.full((12, 12), np.nan), {"a": mask((1, 1))}, everywhere(12, 12), "NaN"),
    ],
)
def test_scored_refuses_what_does_not_fit(response, masks, retina, message):
    with pytest.raises(ValueError, match=message):
        lesions.scored(response, masks, retina)


# --- grades


GRADES = np.array([[[0, 1, 1], [3, 3, 4]], [[2, 2, 2], [2, 0, 4]]])
RESPONSES = np.array([[[1.0, 2, 3], [0, 5, -2]], [[4.0, 0, 1], [2, -1, 3]]])


def test_the_grade_matrix_by_hand():
    first = {"haemorrhage": np.array([[0, 1, 1], [1, 1, 1]], bool), "soft": np.zeros((2, 3), bool)}
    second = {
        "haemorrhage": np.array([[1, 1, 0], [0, 1, 0]], bool),
        "hard": np.array([[0, 0, 0], [0, 0, 1]], bool),
    }
    responses, pixels = lesions.grade_matrix(
        torch.tensor(GRADES), torch.tensor(RESPONSES), [first, second]
    )
    # haemorrhage: grade 1 responds 2 + 3, grade 2 responds 4 (and 0), grade 3 responds 5 (and 0); the rest is below 0
    assert responses.loc["haemorrhage"].tolist() == pytest.approx([0, 5 / 14, 4 / 14, 5 / 14, 0])
    assert pixels.loc["haemorrhage"].tolist() == pytest.approx([0, 2 / 4, 1 / 4, 1 / 4, 0])
    assert responses.loc["hard"].tolist() == pixels.loc["hard"].tolist() == [0, 0, 0, 0, 1]
    assert responses.loc["soft"].isna().all() and pixels.loc["soft"].isna().all()
    assert responses.loc["everywhere"].tolist() == pytest.approx(
        [1 / 21, 5 / 21, 7 / 21, 5 / 21, 3 / 21]
    )
    assert pixels.loc["everywhere"].tolist() == pytest.approx([1 / 8, 2 / 8, 3 / 8, 1 / 8, 1 / 8])
    assert responses.index[-1] == pixels.index[-1] == "everywhere"


def test_grade_shares_by_hand():
    assert lesions.grade_shares(GRADES[0], RESPONSES[0]).tolist() == pytest.approx(
        [1 / 11, 5 / 11, 0, 5 / 11, 0]
    )
    assert np.isnan(lesions.grade_shares(GRADES[0], -np.abs(RESPONSES[0]))).all()


def test_agreement_by_hand():
    # most responding grades 4, 2, 2 and, without any response, none; predicted 4, 2, 0, 1
    grade_maps = np.array([[[4, 1]], [[2, 2]], [[2, 0]], [[1, 1]]])
    responses = np.array([[[3.0, 2]], [[1, 0]], [[5, 4]], [[0, -1]]])
    share, chance = lesions.agreement(
        torch.tensor(grade_maps), torch.tensor(responses), torch.tensor([4, 2, 0, 1])
    )
    assert share == 2 / 4
    assert chance == pytest.approx(1 / 4 * 1 / 4 + 2 / 4 * 1 / 4)


def test_the_summed_response_counts_not_the_most_pixels():
    assert lesions.agreement(np.array([[[1, 1, 3]]]), np.array([[[1.0, 1, 5]]]), [3]) == (1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lesions.grade_shares(GRADES[0], RESPONSES[0], 4),
            r"from 0 to 4, but grades 0\.\.3",
        ),
        (lambda: lesions.grade_shares(GRADES[0], RESPONSES[0] * np.nan), "finite"),
        (lambda: lesions.grade_shares(GRADES[0], RESPONSES[0, :1]), "6 pixels for 3 responses"),
        (
            lambda: lesions.grade_matrix(GRADES, RESPONSES, [{"a": mask((1, 1))}] * 2),
            r"\(12, 12\) of a does not fit",
        ),
        (lambda: lesions.grade_matrix(GRADES, RESPONSES, [{}]), "zip"),
        (lambda: lesions.agreement(GRADES, RESPONSES, [1]), r"2 maps for \(1,\)"),
    ],
)
def test_grades_refuse_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the most attentive regions


def spots(size, *places):
    """A map of square spots (row, column, half side, height)."""
    R = np.zeros((size, size), np.float32)
    for row, column, half, height in places:
        R[row - half : row + half + 1, column - half : column + half + 1] = height
    return R


def test_regions_are_found_where_they_are_the_strongest_first():
    R = spots(100, (20, 70, 3, 1.0), (60, 30, 4, 1.0), (80, 80, 2, 1.2))
    regions = lesions.attentive_regions(torch.tensor(R))
    assert [region.centre for region in regions] == [
        pytest.approx(at, abs=0.01) for at in ((30.5, 60.5), (70.5, 20.5), (80.5, 80.5))
    ]
    total = 49 + 81 + 25 * 1.2
    for region, response in zip(
        regions, (81, 49, 30), strict=True
    ):  # of a square, smoothing rounds off the corners
        assert 0.3 * response / total < region.share <= response / total + 1e-6
    for region, (row, column, half) in zip(
        regions, [(60, 30, 4), (20, 70, 3), (80, 80, 2)], strict=True
    ):
        x0, y0, x1, y1 = region.box
        assert (x0 + x1, y0 + y1) == (2 * column + 1, 2 * row + 1)
        assert abs((x1 - x0) - (2 * half + 1)) <= 4
    assert lesions.attentive_regions(R, 2) == regions[:2]


def test_what_is_below_half_the_maximum_is_no_region():
    R = spots(100, (20, 70, 6, 1.0), (60, 30, 6, 0.4), (80, 80, 6, 0.7))
    assert [region.centre[1] for region in lesions.attentive_regions(R)] == pytest.approx(
        [20.5, 80.5], abs=0.01
    )


def test_the_red_box_by_its_definition():
    rng = np.random.default_rng(0)
    R = torch.tensor(gaussian_filter(rng.normal(size=(64, 64)), 4))
    smooth = gaussian_filter(R.clamp(min=0).numpy(), 0.03 * 64)
    alone = np.zeros((64, 64))
    x0, y0, x1, y1 = lesions.attentive_regions(R)[0].box
    alone[y0:y1, x0:x1] = smooth[y0:y1, x0:x1]
    assert cam.box(alone, 0.5 * smooth.max() / alone.max()) == (x0, y0, x1, y1)
    assert scores.share_inside(R, alone > 0) >= lesions.attentive_regions(R)[0].share > 0


def test_the_red_box_is_round_the_region_with_most_response():
    # a pin-prick has the highest peak by far, but smoothed it is little beside a broad response
    R = spots(100, (20, 20, 0, 5.0), (70, 60, 5, 1.0))
    x0, y0, x1, y1 = lesions.attentive_regions(R)[0].box
    assert x0 <= 55 and x1 >= 66 and y0 <= 65 and y1 >= 76 and x0 > 40
    assert all(isinstance(value, int) for value in (x0, y0, x1, y1))


def test_negative_responses_attract_no_attention():
    R = spots(50, (10, 10, 3, -9.0), (30, 30, 2, 1.0))
    (region,) = lesions.attentive_regions(R)
    assert region.centre == pytest.approx((30.5, 30.5), abs=0.01)
    assert region.share <= 1


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_without_a_positive_response_there_is_no_region_and_no_box(value):
    assert lesions.attentive_regions(np.full((9, 9), value)) == []
    assert lesions.attentive_regions(torch.full((9, 9), value)) == []


@pytest.mark.parametrize("R", [np.ones((2, 9, 9)), np.full((9, 9), np.nan)])
def test_regions_refuse_what_is_no_map(R):
    with pytest.raises(ValueError, match="finite map"):
        lesions.attentive_regions(R)


# --- the clock


@pytest.mark.parametrize("hour", range(1, 13))
def test_the_twelve_hours(hour):
    angle = hour / 12 * 2 * math.pi
    point = 64 + 32 * math.sin(angle), 64 - 32 * math.cos(angle)
    for slip in (-0.24, 0, 0.24):  # half an hour is 15 degrees, 8.4 pixels here
        slipped = point[0] + 32 * slip * math.cos(angle), point[1] + 32 * slip * math.sin(angle)
        assert lesions.clock_hour(slipped, (64, 64), 128)[0] == hour
    assert lesions.clock_hour(point, (64, 64), 128)[1] == pytest.approx(0.25)


def test_hours_as_one_reads_them_off_a_photograph():
    assert lesions.clock_hour((64, 10), (64, 64), 128)[0] == 12  # the top row has a small y
    assert lesions.clock_hour((120, 64), (64, 64), 128)[0] == 3
    assert lesions.clock_hour((20, 70), (100, 70), 20) == (
        9,
        4.0,
    )  # four disc diameters to the left of the disc
    assert lesions.clock_hour((5, 5), (5, 5), 10) == (12, 0)


def test_a_diameter_is_positive():
    with pytest.raises(ValueError, match="diameter is 0"):
        lesions.clock_hour((1, 1), (0, 0), 0)
