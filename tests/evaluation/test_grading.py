"""Scores against their definitions written out: confusion matrices made by hand, pairs counted, pixels counted."""

import json

import numpy as np
import pytest
import torch

from lib.evaluation import grading as scores


def answers(confusion, seed=0):
    """Probabilities and grades whose confusion matrix is `confusion`, in random order, never tied at the top."""
    grades, predicted = np.nonzero(np.ones_like(confusion))
    grades, predicted = (np.repeat(values, np.ravel(confusion)) for values in (grades, predicted))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(grades))
    probabilities = rng.dirichlet(np.ones(len(confusion)), len(grades)) * 0.4
    probabilities[np.arange(len(grades)), predicted] += 0.6
    return probabilities[order], grades[order]


def kappa_by_definition(confusion):
    """1 - sum w O / sum w E with w = (i - j)^2 / (N - 1)^2 and E from the margins (Cohen 1968)."""
    observed, n = np.asarray(confusion, float), len(confusion)
    weight = np.array([[(i - j) ** 2 / (n - 1) ** 2 for j in range(n)] for i in range(n)])
    expected = np.outer(observed.sum(1), observed.sum(0)) / observed.sum()
    return 1 - (weight * observed).sum() / (weight * expected).sum()


def auc_by_pairs(value, positive):
    """The share of (positive, negative) pairs in which the positive has the greater value; a tie counts half."""
    pairs = [(p > n) + (p == n) / 2 for p in value[positive] for n in value[~positive]]
    return sum(pairs) / len(pairs)


def test_a_confusion_matrix_worked_by_hand():
    confusion = [
        [50, 10, 0, 0, 0],
        [5, 5, 0, 0, 0],
        [0, 4, 12, 4, 0],
        [0, 0, 2, 3, 0],
        [1, 0, 0, 0, 4],
    ]
    result = scores.grading(*answers(confusion))
    assert result["confusion"] == confusion
    assert result["accuracy"] == pytest.approx(74 / 100)
    assert result["majority_rate"] == pytest.approx(60 / 100)
    assert result["recall"] == pytest.approx([50 / 60, 5 / 10, 12 / 20, 3 / 5, 4 / 5])
    assert result["balanced_accuracy"] == pytest.approx((5 / 6 + 0.5 + 0.6 + 0.6 + 0.8) / 5)
    squared_errors, by_chance = 25 * 1 + 1 * 16, 27420 / 100
    assert result["kappa"] == pytest.approx(1 - squared_errors / by_chance)


@pytest.mark.parametrize("seed", range(10))
def test_random_confusion_matrices_agree_with_the_definitions(seed):
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, rng.integers(2, 9), (5, 5)) + np.eye(5, dtype=int)
    probabilities, grades = answers(confusion, seed)
    result = scores.grading(torch.tensor(probabilities), torch.tensor(grades))
    counts = confusion.sum(1)
    assert result["confusion"] == confusion.tolist()
    assert result["kappa"] == pytest.approx(kappa_by_definition(confusion))
    assert result["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert result["majority_rate"] == pytest.approx(
        max(np.mean(grades == grade) for grade in range(5))
    )
    assert result["balanced_accuracy"] == pytest.approx(np.mean(np.diag(confusion) / counts))
    assert result["auc_referable"] == pytest.approx(
        auc_by_pairs(probabilities[:, 2:].sum(1), grades >= 2)
    )


def test_an_answer_without_skill_scores_what_the_docstring_says():
    grades = np.repeat(np.arange(5), [70, 7, 15, 5, 3])
    always_none = np.tile([0.6, 0.1, 0.1, 0.1, 0.1], (100, 1))
    result = scores.grading(always_none, grades)
    assert result["accuracy"] == result["majority_rate"] == pytest.approx(0.7)
    assert result["balanced_accuracy"] == pytest.approx(0.2)
    assert result["kappa"] == pytest.approx(0)
    assert result["auc_referable"] == pytest.approx(0.5)


def test_a_perfect_answer_and_one_that_is_wrong_by_as_much_as_can_be():
    perfect = scores.grading(np.eye(5)[[0, 1, 2, 3, 4]], [0, 1, 2, 3, 4])
    assert [
        perfect[name] for name in ("accuracy", "balanced_accuracy", "kappa", "auc_referable")
    ] == [1, 1, 1, 1]
    reversed_ = scores.grading(np.eye(5)[[4, 4, 0, 0]], [0, 0, 4, 4])
    assert [reversed_[name] for name in ("accuracy", "kappa", "auc_referable")] == [0, -1, 0]


def test_equal_chances_of_referable_disease_count_half_in_the_auc():
    low, middle, high = [0.75, 0.25, 0, 0, 0], [0.25, 0.25, 0.5, 0, 0], [0, 0.25, 0.25, 0.25, 0.25]
    result = scores.grading([low, middle, middle, high], [0, 1, 2, 3])
    assert result["auc_referable"] == (1 + 0.5 + 1 + 1) / 4


def test_a_grade_that_does_not_occur_has_no_recall_and_is_left_out_of_the_balance():
    result = scores.grading(np.eye(5)[[0, 0, 1, 3, 2]], [0, 0, 0, 2, 2])
    assert result["recall"] == [pytest.approx(2 / 3), None, 0.5, None, None]
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result["kappa"] == pytest.approx(kappa_by_definition(result["confusion"]))
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("grades", [[0, 1, 1], [2, 3, 4]])
def test_one_side_of_referable_has_no_auc(grades):
    result = scores.grading(np.eye(5)[[0, 2, 1]], grades)
    assert result["auc_referable"] is None
    assert result["kappa"] == pytest.approx(kappa_by_definition(result["confusion"]))


@pytest.mark.filterwarnings("error")
def test_kappa_is_undefined_only_where_one_grade_is_all_there_is():
    assert scores.grading(np.eye(5)[[2, 2]], [2, 2])["kappa"] is None
    assert scores.grading(np.eye(5)[[1, 1]], [2, 2])["kappa"] == 0
    assert scores.grading(np.eye(5)[[2, 2]], [2, 0])["kappa"] == 0


@pytest.mark.parametrize(
    ("probabilities", "grades", "message"),
    [
        (np.ones((3, 5)), [0, 1], r"\(3, 5\) for labels \(2,\)"),
        (np.ones(5), [0, 1, 2, 3, 4], r"\(5,\)"),
        (np.ones((0, 5)), [], r"\(0, 5\)"),
        (np.ones((2, 5)), [0, 5], r"labels \[0 5\] must lie in 0\.\.4"),
        (np.ones((2, 5)), [-1, 0], r"labels \[-1 +0\] must lie"),
        (np.full((2, 5), np.nan), [0, 1], "row 0 of the scores holds NaN"),
    ],
)
def test_grading_refuses_what_does_not_fit(probabilities, grades, message):
    with pytest.raises(ValueError, match=message):
        scores.grading(probabilities, grades)


@pytest.mark.parametrize("seed", range(30))
def test_pointing_and_share_agree_with_a_walk_over_the_pixels(seed):
    rng = np.random.default_rng(seed)
    response, mask = rng.integers(-3, 4, (4, 5)).astype(float), rng.random((4, 5)) < 0.4
    best, where, inside, everywhere = 0, None, 0, 0
    for row in range(4):
        for column in range(5):
            value = response[row, column]
            if value > best:
                best, where = value, (row, column)
            everywhere += max(value, 0)
            inside += max(value, 0) * mask[row, column]
    assert scores.pointing_game(response, mask) is bool(mask[where])
    assert scores.share_inside(response, mask) == pytest.approx(inside / everywhere)
    assert scores.share_inside(response, ~mask) == pytest.approx(1 - inside / everywhere)
    assert scores.pointing_game(torch.tensor(response), torch.tensor(mask)) is bool(mask[where])


def test_of_equal_maxima_the_first_in_reading_order_points():
    response = np.array([[1.0, 7.0], [7.0, 2.0]])
    assert scores.pointing_game(response, [[0, 1], [0, 0]]) is True
    assert scores.pointing_game(response, [[0, 0], [1, 0]]) is False


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("inside", [True, False])
def test_a_response_without_a_positive_value_points_nowhere_and_has_no_share(value, inside):
    response, mask = np.full((3, 4), value), np.full((3, 4), inside)
    assert scores.pointing_game(response, mask) is False
    assert scores.share_inside(response, mask) == 0


def test_negative_responses_neither_add_to_a_share_nor_take_from_it():
    response = np.array([[3.0, -100.0], [1.0, -5.0]])
    assert scores.share_inside(response, [[1, 1], [0, 0]]) == 0.75
    assert scores.share_inside(response, [[0, 1], [0, 1]]) == 0


def test_by_chance_the_share_inside_is_the_masks_share_of_the_area():
    mask = np.zeros((50, 50), bool)
    mask[10:20, 5:35] = True
    responses = np.random.default_rng(0).random((40, 50, 50))
    shares = [scores.share_inside(response, mask) for response in responses]
    assert np.mean(shares) == pytest.approx(300 / 2500, abs=0.003)


@pytest.mark.parametrize("score", [scores.pointing_game, scores.share_inside])
@pytest.mark.parametrize(
    ("response", "mask", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), r"\(2, 3\) and mask \(3, 2\)"),
        (np.ones((1, 2, 3)), np.ones((1, 2, 3)), "must both be"),
        (np.array([[1.0, np.nan]]), np.ones((1, 2)), "NaN or infinite"),
        (np.array([[1.0, np.inf]]), np.ones((1, 2)), "NaN or infinite"),
    ],
)
def test_maps_that_do_not_fit_or_are_not_finite_are_refused(score, response, mask, message):
    with pytest.raises(ValueError, match=message):
        score(response, mask)


@pytest.mark.parametrize("seed", range(50))
def test_iou_is_the_share_of_pixels_counted(seed):
    rng = np.random.default_rng(seed)
    painted = np.zeros((2, 12, 12), bool)
    boxes = []
    for canvas in painted:
        (x0, x1), (y0, y1) = (np.sort(rng.choice(13, 2, replace=False)) for _ in range(2))
        canvas[y0:y1, x0:x1] = True
        boxes.append((x0, y0, x1, y1))
    expected = (painted[0] & painted[1]).sum() / (painted[0] | painted[1]).sum()
    assert scores.iou(*boxes) == pytest.approx(expected)
    assert scores.iou(*boxes[::-1]) == pytest.approx(expected)


def test_iou_of_the_same_box_is_one_and_of_boxes_that_touch_is_zero():
    assert scores.iou((1, 2, 5, 9), (1, 2, 5, 9)) == 1
    assert scores.iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert scores.iou((0, 0, 2, 2), (5, 5, 6, 6)) == 0


@pytest.mark.parametrize("empty", [(3, 0, 3, 4), (0, 4, 3, 4), (3, 0, 1, 4)])
def test_iou_refuses_an_empty_box(empty):
    with pytest.raises(ValueError, match="x1 > x0"):
        scores.iou((0, 0, 2, 2), empty)


def test_strong_is_at_least_the_given_share_of_each_images_maximum_and_positive():
    response = torch.tensor(
        [[[4.0, 2.0, 1.9], [0.0, -3.0, 1.0]], [[0.4, 0.2, 0.1], [-1.0, 0.0, 0.3]]]
    )
    assert scores.strong(response, 0.5).int().tolist() == [
        [[1, 1, 0], [0, 0, 0]],
        [[1, 1, 0], [0, 0, 1]],
    ]
    assert scores.strong(response, 0).int().tolist() == [
        [[1, 1, 1], [0, 0, 1]],
        [[1, 1, 1], [0, 0, 1]],
    ]
    assert scores.strong(response, 1).int().tolist() == [
        [[1, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [0, 0, 0]],
    ]
    assert not scores.strong(torch.zeros(2, 3, 3), 0.2).any()
    assert not scores.strong(-torch.ones(1, 3, 3), 0.2).any()
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share of the maximum"):
            scores.strong(response, threshold)
    with pytest.raises(ValueError, match="NaN"):
        scores.strong(response / 0, 0.5)


def test_the_random_control_has_each_images_area_and_is_spread_evenly():
    mask = torch.zeros(4000, 4, 5, dtype=torch.bool)
    mask[:, 0] = True
    mask[0], mask[1] = False, True
    drawn = scores.as_many_at_random(mask, torch.Generator().manual_seed(1))
    assert drawn.shape == mask.shape and drawn.dtype == torch.bool
    assert torch.equal(drawn.sum((1, 2)), mask.sum((1, 2)))
    assert (drawn.float().mean(0) - 0.25).abs().max() < 0.03
    again = scores.as_many_at_random(mask, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)


class LeftOrRight(torch.nn.Module):
    """Answers 0 where the left column's ink prevails, 1 where the right one's does; ties are 0."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        self.dropout = torch.nn.Dropout(1)

    def forward(self, images):
        score = self.dropout(images)[:, 0] @ self.weight
        return torch.stack([score.sum(1), -score.sum(1)], 1)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_table_1_on_a_network_that_is_followed_by_hand(batch_size):
    images = torch.tensor([[[3.0, 1.0]], [[1.0, 2.0]], [[1.0, 2.0]], [[5.0, 0.0]]])[:, None]
    labels = torch.tensor([0, 1, 1, 0])
    mask = torch.tensor([[[1, 0]], [[1, 0]], [[0, 1]], [[1, 0]]]).bool()
    network = LeftOrRight()
    # only:    (3, 0) -> 0 right; (1, 0) -> 0 wrong; (0, 2) -> 1 right; (5, 0) -> 0 right
    # without: (0, 1) -> 1 wrong; (0, 2) -> 1 right; (1, 0) -> 0 wrong; (0, 0) -> 0 right, a tie
    assert scores.accuracy_with_and_without(network, images, labels, mask, 0.0, batch_size) == (
        0.75,
        0.5,
    )
    # a patch of 4:  (3, 4) wrong; (1, 4) right; (4, 2) wrong; (5, 4) right | (4, 1) right; (4, 2) wrong; (1, 4); (4, 0)
    assert scores.accuracy_with_and_without(network, images, labels, mask, 4.0, batch_size) == (
        0.5,
        0.75,
    )
    assert network.training
    with pytest.raises(ValueError, match=r"mask \(4, 2, 1\)"):
        scores.accuracy_with_and_without(network, images, labels, mask.transpose(1, 2), 0.0)


# Boxes of width 100 beside a true box (0, 0, 100, 100): moved by d they share 100 - d of 100 + d columns.
PERFECT, AT_49, AT_51 = (0, 0, 100, 100), (34.3, 0, 134.3, 100), (32.4, 0, 132.4, 100)
TRUE = [(0, 0, 100, 100)]


def test_the_boxes_below_overlap_as_their_names_say():
    assert (
        scores.iou(AT_49, TRUE[0]) == pytest.approx(0.4892, abs=1e-3)
        and scores.iou(AT_49, TRUE[0]) < 0.5
    )
    assert scores.iou(AT_51, TRUE[0]) == pytest.approx(0.5106, abs=1e-3)


LOCALISED = {  # answered classes and boxes, best first; the truth is class 3 at TRUE, or at two places
    "perfect": ([3, 1], [PERFECT, PERFECT], TRUE, 0, 0),
    "wrong class, right place": ([1, 2], [PERFECT, PERFECT], TRUE, 1, 1),
    "right class, IoU 0.49": ([3, 1], [AT_49, PERFECT], TRUE, 1, 1),
    "right class, IoU 0.51": ([3, 1], [AT_51, PERFECT], TRUE, 0, 0),
    "right in the second answer": ([1, 3], [PERFECT, AT_51], TRUE, 1, 0),
    "second instance": ([3, 1], [AT_51, PERFECT], [(500, 500, 510, 510), TRUE[0]], 0, 0),
    "between two instances": (
        [3, 1],
        [(50, 0, 150, 100), PERFECT],
        [TRUE[0], (100, 0, 200, 100)],
        1,
        1,
    ),
}


@pytest.mark.parametrize("name", LOCALISED)
def test_localisation_of_one_image_is_right_or_wrong_as_worked_out_by_hand(name):
    classes, boxes, truth, top_1, top_2 = LOCALISED[name]
    assert scores.localisation_error([classes[:1]], [boxes[:1]], [3], [truth]) == top_1
    assert scores.localisation_error([classes], [boxes], [3], [truth]) == top_2


def test_the_error_of_many_images_is_the_mean_and_lists_that_do_not_fit_are_refused():
    cases = list(LOCALISED.values())
    classes, boxes, truths = ([case[i] for case in cases] for i in range(3))
    assert scores.localisation_error(
        classes, boxes, torch.tensor([3] * 7), truths
    ) == pytest.approx(3 / 7)
    assert scores.known_class_accuracy([box[0] for box in boxes], truths) == pytest.approx(5 / 7)
    with pytest.raises(ValueError):
        scores.localisation_error(classes, boxes, [3] * 6, truths)


def test_the_best_threshold_for_all_maps_is_found():
    """Above t = 0.3 the box of the bright half is the object's; below, the dim half joins it and halves the IoU."""
    maps = torch.zeros(2, 8, 16)
    maps[:, 2:6, 2:6], maps[:, 2:6, 6:11] = 1, 0.3
    truth = [[(2, 2, 6, 6)], [(2, 2, 6, 6), (12, 0, 16, 2)]]
    accuracy, threshold = scores.max_box_accuracy(maps, truth, (0.1, 0.2, 0.35, 0.9))
    assert accuracy == 1 and threshold == 0.35
    assert scores.max_box_accuracy(maps, truth, (0.1, 0.2))[0] == 0
    maps[1] = -1
    assert scores.max_box_accuracy(maps, truth, (0.1, 0.5)) == (0.5, 0.5)


def test_answers_other_than_the_likeliest_grades_are_scored_where_they_are_given():
    probabilities = np.array([[0.6, 0.4, 0, 0, 0], [0.1, 0.2, 0.7, 0, 0]])
    found = scores.grading(probabilities, [1, 2], predicted=[1, 1])
    assert (
        found["accuracy"] == 0.5 and found["confusion"][1][1] == 1 and found["confusion"][2][1] == 1
    )
    assert found["auc_referable"] == scores.grading(probabilities, [1, 2])["auc_referable"] == 1
