"""Boxes and maps small enough to count, lesions found by a walk down the ranked pixels."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from lib.evaluation import localisation


def mask(*points, shape=(12, 12)):
    """True in the pixels (row, column) given."""
    result = np.zeros(shape, bool)
    for point in points:
        result[point] = True
    return result


def disc(size, x, y, radius):
    rows, columns = np.mgrid[:size, :size] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


EVERYWHERE = np.ones((12, 12), bool)


# --- bounding_box


def test_the_box_is_that_of_the_largest_part_not_of_the_highest():
    values = np.zeros((6, 8))
    values[0, 0], values[2:5, 3:7] = 1, 0.5
    assert localisation.bounding_box(values) == (3, 2, 7, 5)
    assert localisation.bounding_box(values, 0.5) == (0, 0, 1, 1), "above, not equal to, threshold"
    assert localisation.bounding_box(torch.tensor(values), 0.4) == (3, 2, 7, 5)


@pytest.mark.parametrize(
    ("values", "threshold", "box"),
    [
        (np.eye(3), 0.2, (0, 0, 1, 1)),  # pixels that meet at a corner are two parts
        ([[0, 0, 1], [1, 0, 0]], 0.2, (2, 0, 3, 1)),  # of equal parts the uppermost
        ([[-9.0, -9.0], [0.0, 1e-6]], 0, (1, 1, 2, 2)),  # negative is below every threshold
    ],
)
def test_boxes_by_hand(values, threshold, box):
    assert localisation.bounding_box(values, threshold) == box


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((3, 3)),
        -np.ones((3, 3)),
        np.full((2, 2), np.nan),
        [[1, np.inf]],
        [1, 2],
        np.ones((3, 3)),
    ],
)
def test_a_map_without_a_positive_finite_maximum_or_equal_everywhere_has_no_box(values):
    with pytest.raises(ValueError, match="no box in a map"):
        localisation.bounding_box(values)


@pytest.mark.parametrize("threshold", [-0.1, 1, 20, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold is"):
        localisation.bounding_box(np.eye(3), threshold)


# --- iou


@pytest.mark.parametrize("seed", range(20))
def test_iou_is_the_share_of_pixels_counted(seed):
    rng = np.random.default_rng(seed)
    painted = np.zeros((2, 12, 12), bool)
    boxes = []
    for canvas in painted:
        x0, x1 = np.sort(rng.choice(13, 2, replace=False))
        y0, y1 = np.sort(rng.choice(13, 2, replace=False))
        canvas[y0:y1, x0:x1] = True
        boxes.append((x0, y0, x1, y1))
    expected = (painted[0] & painted[1]).sum() / (painted[0] | painted[1]).sum()
    assert localisation.iou(*boxes) == pytest.approx(expected)
    assert localisation.iou(*boxes[::-1]) == pytest.approx(expected)


def test_iou_of_the_same_box_is_one_and_of_boxes_that_touch_is_zero():
    assert localisation.iou((1, 2, 5, 9), (1, 2, 5, 9)) == 1
    assert localisation.iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert localisation.iou((0, 0, 2, 2), (5, 5, 6, 6)) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.float16])
def test_corners_of_any_type_neither_wrap_nor_overflow(dtype):
    a, b = np.array([0, 0, 100, 120], dtype), np.array([110, 0, 120, 120], dtype)
    assert localisation.iou(a, b) == 0
    assert localisation.iou(a, a) == 1


@pytest.mark.parametrize(
    "empty",
    [(3, 0, 3, 4), (0, 4, 3, 4), (3, 0, 1, 4), (3, 4, 1, 2), (np.nan, 0, 2, 2), (0, 0, np.inf, 2)],
)
def test_iou_refuses_an_empty_box(empty):
    with pytest.raises(ValueError, match="x1 > x0"):
        localisation.iou((0, 0, 2, 2), empty)


# --- localisation_error, known_class_accuracy, max_box_accuracy

# Boxes of width 100 beside a true box (0, 0, 100, 100): moved by d they share 100 - d of 100 + d
# columns, so 0.4892 and 0.5106.
PERFECT, AT_49, AT_51 = (0, 0, 100, 100), (34.3, 0, 134.3, 100), (32.4, 0, 132.4, 100)
BETWEEN = (50, 0, 150, 100)
TRUE = [(0, 0, 100, 100)]
TWO = [(500, 500, 510, 510), TRUE[0]]
TOUCHING = [TRUE[0], (100, 0, 200, 100)]
LOCALISED = {  # answered classes and boxes, best first; the truth, class 3; top-1 and top-2 error
    "perfect": ([3, 1], [PERFECT, PERFECT], TRUE, 0, 0),
    "wrong class, right place": ([1, 2], [PERFECT, PERFECT], TRUE, 1, 1),
    "right class, IoU 0.49": ([3, 1], [AT_49, PERFECT], TRUE, 1, 1),
    "right class, IoU 0.51": ([3, 1], [AT_51, PERFECT], TRUE, 0, 0),
    "right in the second answer": ([1, 3], [PERFECT, AT_51], TRUE, 1, 0),
    "second instance": ([3, 1], [AT_51, PERFECT], TWO, 0, 0),
    "between two instances": ([3, 1], [BETWEEN, PERFECT], TOUCHING, 1, 1),
}


@pytest.mark.parametrize("name", LOCALISED)
def test_localisation_of_one_image_is_right_or_wrong_as_worked_out_by_hand(name):
    classes, boxes, truth, top_1, top_2 = LOCALISED[name]
    assert localisation.localisation_error([classes[:1]], [boxes[:1]], [3], [truth]) == top_1
    assert localisation.localisation_error([classes], [boxes], [3], [truth]) == top_2


def test_the_error_of_many_images_is_the_mean_and_lists_that_do_not_fit_are_refused():
    classes, boxes, truths, _, _ = zip(*LOCALISED.values(), strict=True)
    error = localisation.localisation_error(classes, boxes, torch.tensor([3] * 7), truths)
    assert error == pytest.approx(3 / 7)
    firsts = [of_image[0] for of_image in boxes]
    assert localisation.known_class_accuracy(firsts, truths) == pytest.approx(5 / 7)
    with pytest.raises(ValueError, match="zip"):
        localisation.localisation_error(classes, boxes, [3] * 6, truths)
    with pytest.raises(ValueError, match="zip"):
        localisation.known_class_accuracy(firsts[1:], truths)


def test_the_best_threshold_for_all_maps_is_found():
    """Above t = 0.3 the box of the bright half is the object's; below, the dim half joins it."""
    maps = torch.zeros(2, 8, 16)
    maps[:, 2:6, 2:6], maps[:, 2:6, 6:11] = 1, 0.3
    truth = [[(2, 2, 6, 6)], [(2, 2, 6, 6), (12, 0, 16, 2)]]
    assert localisation.max_box_accuracy(maps, truth, (0.1, 0.2, 0.35, 0.9)) == (1, 0.35)
    assert localisation.max_box_accuracy(maps, truth, (0.1, 0.2)) == (0, 0.1)
    maps[1] = -1
    assert localisation.max_box_accuracy(maps, truth, (0.1, 0.5)) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("value", "box", "message"),
    [
        (np.nan, (0, 0, 2, 2), "the map of image 1 holds NaN or infinite"),
        (np.inf, (0, 0, 2, 2), "the map of image 1 holds NaN or infinite"),
        (1, (0, 0, 5, 2), r"box \(0, 0, 5, 2\) of image 1 reaches beyond its map of 4 x 3 pixels"),
        (1, (-1, 0, 2, 2), "reaches beyond"),
        (1, (0, 0, 2, np.nan), "reaches beyond"),
    ],
)
def test_maps_that_are_not_finite_and_boxes_of_another_photograph_are_refused(value, box, message):
    maps = np.zeros((2, 3, 4))
    maps[:, 0, 0] = 1, value
    for given in (maps, torch.tensor(maps)):
        with pytest.raises(ValueError, match=message):
            localisation.max_box_accuracy(given, [[(0, 0, 2, 2)], [box]], [0.2])


def test_no_images_have_no_score():
    for score, arguments in (("localisation_error", 4), ("known_class_accuracy", 2)):
        with pytest.raises(ValueError, match="no images"):
            getattr(localisation, score)(*[[]] * arguments)
    with pytest.raises(ValueError, match="0 maps for"):
        localisation.agreement([], [], [])


# --- pointing_game, share_inside


@pytest.mark.parametrize("seed", range(10))
def test_pointing_and_share_agree_with_a_walk_over_the_pixels(seed):
    rng = np.random.default_rng(seed)
    response, inside = rng.integers(-3, 4, (4, 5)).astype(float), rng.random((4, 5)) < 0.4
    best, where, within, total = 0, None, 0, 0
    for row in range(4):
        for column in range(5):
            value = response[row, column]
            if value > best:
                best, where = value, (row, column)
            total += max(value, 0)
            within += max(value, 0) * inside[row, column]
    assert localisation.pointing_game(response, inside) is bool(inside[where])
    assert localisation.share_inside(response, inside) == pytest.approx(within / total)
    tensors = torch.tensor(response), torch.tensor(inside)
    assert localisation.pointing_game(*tensors) is bool(inside[where])
    assert localisation.share_inside(*tensors) == pytest.approx(within / total)


def test_of_equal_maxima_the_first_in_reading_order_points():
    response = np.array([[1.0, 7.0], [7.0, 2.0]])
    assert localisation.pointing_game(response, [[0, 1], [0, 0]]) is True
    assert localisation.pointing_game(response, [[0, 0], [1, 0]]) is False


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("inside", [True, False])
def test_a_response_without_a_positive_value_points_nowhere_and_has_no_share(value, inside):
    response, where = np.full((3, 4), value), np.full((3, 4), inside)
    assert localisation.pointing_game(response, where) is False
    assert localisation.share_inside(response, where) == 0


@pytest.mark.parametrize("score", [localisation.pointing_game, localisation.share_inside])
@pytest.mark.parametrize(
    ("response", "inside", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), r"\(2, 3\) and mask \(3, 2\)"),
        (np.ones((1, 2, 3)), np.ones((1, 2, 3)), "must both be"),
        (np.array([[1.0, np.nan]]), np.ones((1, 2)), "NaN or infinite"),
        (np.array([[1.0, np.inf]]), np.ones((1, 2)), "NaN or infinite"),
    ],
)
def test_maps_that_do_not_fit_or_are_not_finite_are_refused(score, response, inside, message):
    with pytest.raises(ValueError, match=message):
        score(response, inside)


# --- widen


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, 3])
def test_a_widened_mask_holds_what_is_within_the_tolerance(tolerance):
    points = [(2, 3), (2, 4), (9, 9)]
    by_hand = np.zeros((12, 12), bool)
    for place in np.ndindex(12, 12):
        by_hand[place] = any(math.dist(place, point) <= tolerance for point in points)
    assert (localisation.widen(mask(*points), tolerance) == by_hand).all()


def test_nothing_widened_is_nothing_and_a_tolerance_is_not_negative():
    assert not localisation.widen(mask(), 3).any()
    for tolerance in (-1, math.nan):
        with pytest.raises(ValueError, match="tolerance is"):
            localisation.widen(mask((1, 1)), tolerance)


# --- lesion_scores


def test_six_pixels_by_hand():
    # response    9 5 7 | lesion x . x     ranked 9x 7x 5. 4. 3x -1.  precision at each lesion:
    #             4 3 -1|        . x .                                1/1, 2/2, 3/5
    response = np.array([[9.0, 5, 7], [4, 3, -1]])
    found = np.array([[1, 0, 1], [0, 1, 0]], bool)
    table = localisation.lesion_scores(response, {"haemorrhage": found}, np.ones((2, 3), bool))
    assert table.lesion.tolist() == ["any lesion", "haemorrhage"]
    for row in table.itertuples():
        assert row.pointing == 1
        assert row.inside == pytest.approx((9 + 7 + 3) / (9 + 5 + 7 + 4 + 3))
        assert row.precision == pytest.approx((1 + 1 + 3 / 5) / 3)
        assert row.chance == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_scores_agree_with_a_walk_down_the_ranked_pixels_of_the_retina(seed):
    rng = np.random.default_rng(seed)
    response, retina = rng.permutation(144).reshape(12, 12) - 30.0, disc(12, 6, 6, 5.5)
    kinds = {"a": rng.random((12, 12)) < 0.1, "b": rng.random((12, 12)) < 0.05, "c": mask()}
    table = localisation.lesion_scores(torch.tensor(response), kinds, retina, tolerance=1)
    assert [*table.lesion] == ["any lesion", "a", "b"]
    kinds["any lesion"] = kinds["a"] | kinds["b"]
    for row in table.itertuples():
        points = np.argwhere(kinds[row.lesion])
        found = np.zeros((12, 12), bool)
        for place in np.argwhere(retina):
            found[tuple(place)] = np.abs(points - place).sum(1).min() <= 1
        hits, precisions = 0, []
        ranked = sorted(zip(response[retina], found[retina], strict=True), reverse=True)
        for rank, (_, hit) in enumerate(ranked, 1):
            hits += hit
            precisions += [hits / rank] * bool(hit)
        assert row.precision == pytest.approx(np.mean(precisions))
        assert row.chance == pytest.approx(found.sum() / retina.sum())
        inside = response[found & (response > 0)].sum() / response[response > 0].sum()
        assert row.inside == pytest.approx(inside)
        assert row.pointing == found[np.unravel_index(response.argmax(), response.shape)]


def test_a_trap_is_scored_but_is_no_lesion():
    kinds = {"hard_exudate": mask((2, 2)), "optic_disc": mask((8, 8), (8, 9))}
    on_disc = np.where(kinds["optic_disc"], 5.0, 0)
    table = localisation.lesion_scores(on_disc, kinds, EVERYWHERE, traps=("optic_disc",))
    assert table.lesion.tolist() == ["any lesion", "hard_exudate", "optic_disc"]
    assert table.pointing.tolist() == [False, False, True]
    assert table.inside.tolist() == [0, 0, 1]
    assert table.precision[2] == 1 and table.precision[0] < 0.05
    assert table.chance.tolist() == [1 / 144, 1 / 144, 2 / 144]


def test_chance_is_what_noise_scores():
    rng, retina = np.random.default_rng(0), disc(40, 20, 20, 19)
    kinds, rows = {"haemorrhage": disc(40, 14, 20, 5)}, []
    for _ in range(100):
        noise = rng.random((40, 40)) * retina
        rows.append(localisation.lesion_scores(noise, kinds, retina).iloc[0])
    for name in ("pointing", "inside", "precision"):
        assert np.mean([row[name] for row in rows]) == pytest.approx(rows[0].chance, abs=0.06)


def test_a_response_without_structure_is_worth_chance_and_none_points_nowhere():
    kinds = {"haemorrhage": mask((3, 3), (3, 4))}
    row = localisation.lesion_scores(np.zeros((12, 12)), kinds, EVERYWHERE).iloc[0]
    assert (row.pointing, row.inside) == (False, 0)
    assert row.precision == pytest.approx(row.chance)


@pytest.mark.parametrize(
    ("lesion", "retina"), [(mask(), EVERYWHERE), (mask((0, 0)), disc(12, 6, 6, 5))]
)
def test_a_healthy_retina_has_no_row_and_lesions_beside_the_retina_do_not_count(lesion, retina):
    table = localisation.lesion_scores(np.ones((12, 12)), {"haemorrhage": lesion}, retina)
    assert table.empty
    assert [*table.columns] == ["lesion", "pointing", "inside", "precision", "chance"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"masks": {}}, r"masks of \[\] hold no lesion"),
        ({"masks": {"optic_disc": mask((1, 1))}}, "whose lesions are known"),
        ({"retina": ~EVERYWHERE}, "of 0 pixels"),
        ({"retina": EVERYWHERE[:9]}, r"retina \(9, 12\)"),
        ({"response": np.ones((12, 11))}, r"response \(12, 11\)"),
        ({"response": np.ones((2, 12, 12))}, r"\(2, 12, 12\)"),
        ({"response": np.full((12, 12), np.nan)}, "NaN"),
        ({"masks": {"a": mask((1, 1), shape=(12, 9))}}, r"\(12, 9\)"),
    ],
)
def test_lesion_scores_refuse_what_does_not_fit(changed, message):
    good = {"response": np.ones((12, 12)), "masks": {"a": mask((1, 1))}, "retina": EVERYWHERE}
    with pytest.raises(ValueError, match=message):
        localisation.lesion_scores(**(good | changed), traps=("optic_disc",))


# --- grade_shares, grade_matrix, agreement


GRADES = np.array([[[0, 1, 1], [3, 3, 4]], [[2, 2, 2], [2, 0, 4]]])
RESPONSES = np.array([[[1.0, 2, 3], [0, 5, -2]], [[4.0, 0, 1], [2, -1, 3]]])


def test_the_grade_matrix_by_hand():
    first = {"haemorrhage": np.array([[0, 1, 1], [1, 1, 1]]) > 0, "soft": mask(shape=(2, 3))}
    second = {
        "haemorrhage": np.array([[1, 1, 0], [0, 1, 0]]) > 0,
        "hard": mask((1, 2), shape=(2, 3)),
    }
    tensors = torch.tensor(GRADES), torch.tensor(RESPONSES)
    responses, pixels = localisation.grade_matrix(*tensors, [first, second])
    # Of haemorrhages grade 1 responds 2 + 3, grade 2 responds 4 (and 0), grade 3 responds 5 (and
    # 0); the rest is below 0.
    by_response = {
        "haemorrhage": [0, 5 / 14, 4 / 14, 5 / 14, 0],
        "soft": [math.nan] * 5,
        "hard": [0, 0, 0, 0, 1],
        "everywhere": [1 / 21, 5 / 21, 7 / 21, 5 / 21, 3 / 21],
    }
    by_pixels = {
        "haemorrhage": [0, 2 / 4, 1 / 4, 1 / 4, 0],
        "soft": [math.nan] * 5,
        "hard": [0, 0, 0, 0, 1],
        "everywhere": [1 / 8, 2 / 8, 3 / 8, 1 / 8, 1 / 8],
    }
    for table, expected in ((responses, by_response), (pixels, by_pixels)):
        assert [*table.index] == [*expected]
        np.testing.assert_allclose(table.to_numpy(), [*expected.values()])


def test_grade_shares_by_hand():
    shares = localisation.grade_shares(GRADES[0], RESPONSES[0])
    assert shares.tolist() == pytest.approx([1 / 11, 5 / 11, 0, 5 / 11, 0])
    assert np.isnan(localisation.grade_shares(GRADES[0], -np.abs(RESPONSES[0]))).all()


def test_agreement_by_hand():
    # Most responding grades 4, 2, 2 and, without any response, none; predicted 4, 2, 0, 1.
    grade_maps = torch.tensor([[[4, 1]], [[2, 2]], [[2, 0]], [[1, 1]]])
    responses = torch.tensor([[[3.0, 2]], [[1, 0]], [[5, 4]], [[0, -1]]])
    share, chance = localisation.agreement(grade_maps, responses, torch.tensor([4, 2, 0, 1]))
    assert share == 2 / 4
    assert chance == pytest.approx(1 / 4 * 1 / 4 + 2 / 4 * 1 / 4)
    # the summed response counts, not the most pixels
    assert localisation.agreement([[[1, 1, 3]]], [[[1.0, 1, 5]]], [3]) == (1, 1)


@pytest.mark.parametrize(
    ("score", "arguments", "message"),
    [
        ("grade_shares", (GRADES[0], RESPONSES[0], 4), r"from 0 to 4, but grades 0\.\.3"),
        ("grade_shares", (GRADES[0], RESPONSES[0] * np.nan), "finite"),
        ("grade_shares", (GRADES[0], RESPONSES[0, :1]), "6 pixels for 3 responses"),
        ("grade_matrix", (GRADES, RESPONSES, [{"a": mask()}] * 2), r"\(12, 12\) of a does not fit"),
        ("grade_matrix", (GRADES, RESPONSES, [{}]), "zip"),
        ("agreement", (GRADES, RESPONSES, [1]), r"2 maps for \(1,\)"),
    ],
)
def test_grades_refuse_what_does_not_fit(score, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(localisation, score)(*arguments)


# --- attentive_regions


def spots(size, *places):
    """A map of square spots (row, column, half side, height)."""
    R = np.zeros((size, size), np.float32)
    for row, column, half, height in places:
        R[row - half : row + half + 1, column - half : column + half + 1] = height
    return R


def test_regions_are_found_where_they_are_the_strongest_first():
    R = spots(100, (20, 70, 3, 1.0), (60, 30, 4, 1.0), (80, 80, 2, 1.2))
    regions = localisation.attentive_regions(torch.tensor(R))
    expected = [(60, 30, 4, 81), (20, 70, 3, 49), (80, 80, 2, 30)]
    for region, (row, column, half, response) in zip(regions, expected, strict=True):
        assert region.centre == pytest.approx((column + 0.5, row + 0.5), abs=0.01)
        share = response / (81 + 49 + 30)
        assert 0.3 * share < region.share <= share + 1e-6  # smoothing rounds off the corners
        x0, y0, x1, y1 = region.box
        assert (x0 + x1, y0 + y1) == (2 * column + 1, 2 * row + 1)
        assert abs((x1 - x0) - (2 * half + 1)) <= 4
        assert all(isinstance(value, int) for value in region.box)
    assert localisation.attentive_regions(R, 2) == regions[:2]


def test_what_is_below_half_the_maximum_is_no_region():
    R = spots(100, (20, 70, 6, 1.0), (60, 30, 6, 0.4), (80, 80, 6, 0.7))
    rows = [region.centre[1] for region in localisation.attentive_regions(R)]
    assert rows == pytest.approx([20.5, 80.5], abs=0.01)


def test_the_red_box_by_its_definition():
    rng = np.random.default_rng(0)
    R = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 4)
    positive = R.clip(min=0)
    smooth = ndimage.gaussian_filter(positive, 0.03 * 64)
    parts, count = ndimage.label(smooth > smooth.max() / 2)
    assert count > 2
    most = max(range(1, count + 1), key=lambda part: positive[parts == part].sum())
    rows, columns = np.nonzero(parts == most)
    weights = smooth[rows, columns]
    box, centre, share = localisation.attentive_regions(torch.tensor(R))[0]
    assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert centre == pytest.approx(
        (np.average(columns + 0.5, weights=weights), np.average(rows + 0.5, weights=weights))
    )
    assert share == pytest.approx(positive[rows, columns].sum() / positive.sum())


def test_the_red_box_is_round_the_region_with_most_response():
    # A pin-prick has the highest peak by far, but smoothed it is little beside a broad response.
    R = spots(100, (20, 20, 0, 5.0), (70, 60, 5, 1.0))
    x0, y0, x1, y1 = localisation.attentive_regions(R)[0].box
    assert 40 < x0 <= 55 and x1 >= 66 and y0 <= 65 and y1 >= 76


def test_negative_responses_attract_no_attention():
    R = spots(50, (10, 10, 3, -9.0), (30, 30, 2, 1.0))
    (region,) = localisation.attentive_regions(R)
    assert region.centre == pytest.approx((30.5, 30.5), abs=0.01)
    assert region.share <= 1
    for value in (0.0, -1.0):
        assert localisation.attentive_regions(np.full((9, 9), value)) == []


@pytest.mark.parametrize("R", [np.ones((2, 9, 9)), np.full((9, 9), np.nan)])
def test_regions_refuse_what_is_no_map(R):
    with pytest.raises(ValueError, match="finite map"):
        localisation.attentive_regions(R)


# --- clock_hour


@pytest.mark.parametrize("hour", range(1, 13))
def test_the_twelve_hours(hour):
    angle = hour / 12 * 2 * math.pi
    point = 64 + 32 * math.sin(angle), 64 - 32 * math.cos(angle)
    for slip in (-0.24, 0, 0.24):  # half an hour is 15 degrees, 8.4 pixels here
        slipped = point[0] + 32 * slip * math.cos(angle), point[1] + 32 * slip * math.sin(angle)
        assert localisation.clock_hour(slipped, (64, 64), 128)[0] == hour
    assert localisation.clock_hour(point, (64, 64), 128)[1] == pytest.approx(0.25)


def test_hours_as_one_reads_them_off_a_photograph():
    assert localisation.clock_hour((64, 10), (64, 64), 128)[0] == 12  # the top row has a small y
    assert localisation.clock_hour((120, 64), (64, 64), 128)[0] == 3
    # four disc diameters to the left of the disc
    assert localisation.clock_hour((20, 70), (100, 70), 20) == (9, 4.0)
    assert localisation.clock_hour((5, 5), (5, 5), 10) == (12, 0)


def test_a_diameter_is_positive():
    with pytest.raises(ValueError, match="diameter is 0"):
        localisation.clock_hour((1, 1), (0, 0), 0)


# --- FROC


def bumps(size, *peaks):
    """A map that is 0 but for single pixels (row, column, height)."""
    response = np.zeros((size, size))
    for row, column, height in peaks:
        response[row, column] = height
    return response


def test_detections_are_the_peaks_by_hand():
    response = bumps(20, (3, 4, 5.0), (3, 6, 4.0), (10, 10, 2.0), (15, 2, -9.0), (18, 18, 7.0))
    retina = np.ones((20, 20), bool)
    retina[16:] = False
    found = localisation.detections(response, retina, smoothing=0, apart=0.1)
    assert found.tolist() == [[3, 4, 5.0], [10, 10, 2.0]], "two pixels off is too near"
    found = localisation.detections(response, retina, smoothing=0, apart=0.05)
    assert found.tolist() == [[3, 4, 5.0], [3, 6, 4.0], [10, 10, 2.0]]
    assert localisation.detections(-response * retina, retina, 0, 0.05).tolist() == [[15, 2, 9.0]]


def test_a_plateau_is_one_detection_and_a_map_without_a_positive_value_has_none():
    response = np.zeros((12, 12))
    response[2:4, 2:5], response[8, 8:10] = 1, 1
    found = localisation.detections(response, EVERYWHERE, smoothing=0)
    assert found.tolist() == [[2, 2, 1], [8, 8, 1]]
    assert localisation.detections(-response, EVERYWHERE).shape == (0, 3)


def test_smoothing_makes_a_ring_one_detection_within_it():
    ring = bumps(100, (47, 50, 1.0), (53, 50, 1.0), (50, 47, 1.0), (50, 53, 1.0))
    retina = np.ones((100, 100), bool)
    assert len(localisation.detections(ring, retina, smoothing=0)) == 4
    found = localisation.detections(ring, retina, smoothing=0.03)
    assert found[:, :2].tolist() == [[50, 50]]


def test_hits_and_false_positives_by_hand():
    dark = mask((2, 2), (3, 3), (8, 2))  # two spots: pixels that share a corner are one
    bright = mask((2, 5), (11, 11))
    kinds = {"dark": dark, "bright": bright, "disc": mask((5, 9))}
    found = [(3, 3, 0.9), (2, 4, 0.8), (5, 9, 0.7), (8, 4, 0.6), (9, 2, 0.5), (2, 2, 0.4)]
    retina = EVERYWHERE.copy()
    retina[11] = False
    arguments = (kinds, retina)
    hits, false = localisation.lesion_hits(found, *arguments, 0, traps=("disc",))
    assert {kind: best.tolist() for kind, best in hits.items()} == {
        "dark": [0.9, -np.inf],
        "bright": [-np.inf],  # of two, one is not on the retina
    }
    assert false.tolist() == [0.8, 0.7, 0.6, 0.5]
    hits, false = localisation.lesion_hits(found, *arguments, 1, traps=("disc",))
    assert hits["dark"].tolist() == [0.9, 0.5] and hits["bright"].tolist() == [0.8]
    assert false.tolist() == [0.7, 0.6]
    hits, false = localisation.lesion_hits(found, *arguments, 2, traps=("disc",))
    assert hits["dark"].tolist() == [0.9, 0.6] and false.tolist() == [0.7]
    hits, false = localisation.lesion_hits(found, *arguments, 2)
    assert hits["disc"].tolist() == [0.7] and not false.size


def test_one_detection_finds_both_of_two_lesions_that_touch_when_widened():
    kinds = {"dark": mask((4, 4), (4, 6))}
    hits, false = localisation.lesion_hits([(4, 5, 1.0)], kinds, EVERYWHERE, 1)
    assert hits["dark"].tolist() == [1, 1] and not false.size


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 3])
def test_hits_agree_with_each_widened_lesion_looked_up(tolerance):
    rng = np.random.default_rng(3)
    kinds = {name: rng.random((30, 30)) < 0.03 for name in ("a", "b")}
    retina = disc(30, 15, 15, 14)
    found = localisation.detections(rng.random((30, 30)), retina, apart=0.05)
    hits, false = localisation.lesion_hits(found, kinds, retina, tolerance)
    anywhere = np.zeros((30, 30), bool)
    for name, kind in kinds.items():
        parts, count = ndimage.label(kind & retina, np.ones((3, 3)))
        for part in range(count):
            widened = localisation.widen(parts == part + 1, tolerance)
            anywhere |= widened
            scores = [score for row, column, score in found if widened[int(row), int(column)]]
            assert hits[name][part] == max(scores, default=-np.inf)
        assert len(hits[name]) == count
    expected = [score for row, column, score in found if not anywhere[int(row), int(column)]]
    assert false.tolist() == expected


def test_no_detection_finds_nothing():
    hits, false = localisation.lesion_hits(np.zeros((0, 3)), {"a": mask((1, 1))}, EVERYWHERE, 2)
    assert hits["a"].tolist() == [-np.inf] and false.shape == (0,)


def test_froc_by_hand():
    """Four lesions, three false positives, two photographs."""
    curve = localisation.froc([0.9, 0.5, -np.inf, 0.2], [0.7, 0.5, 0.1], 2)
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.7, 0.5, 0.2, 0.1]
    assert curve.false_positives.tolist() == [0, 0, 0.5, 1, 1, 1.5]
    assert curve.sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.75, 0.75]
    assert localisation.froc_sensitivity(curve, at=(0, 0.9, 1, 4)) == [0.25, 0.25, 0.75, 0.75]
    nothing = localisation.froc([-np.inf], [], 1)
    assert localisation.froc_sensitivity(nothing) == [0, 0, 0]


@pytest.mark.parametrize(
    ("score", "arguments", "message"),
    [
        ("froc", ([], [1.0], 1), "0 lesions in 1 photographs"),
        ("froc", ([1.0], [], 0), "1 lesions in 0 photographs"),
        ("froc", ([math.nan], [], 1), "no NaN"),
        ("lesion_hits", ([], {"a": mask()}, np.ones((3, 3), bool)), r"masks \[\(12, 12\)\]"),
        ("lesion_hits", ([], {"a": mask()}, EVERYWHERE, -1), "tolerance -1"),
        ("detections", (np.zeros((3, 4)), np.ones((4, 3), bool)), r"must both be \(H, W\)"),
        ("detections", (np.full((3, 3), math.nan), np.ones((3, 3), bool)), "NaN"),
    ],
)
def test_froc_refuses_what_does_not_fit(score, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(localisation, score)(*arguments)
