"""Intervals against SciPy's, tests against binomial sums written out, calibration and operating points by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from lib.evaluation import certainty
from lib.evaluation import grading as scores


def random_answers(n, classes, seed=0):
    """Scores (n, classes) that know something of the labels (n,); every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(classes, size=n - classes)]
    return rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels], labels


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


# --- interval


def test_the_interval_is_scipys_percentile_bootstrap():
    x = np.random.default_rng(1).exponential(size=80)
    ours = certainty.interval(np.mean, x, samples=20_000, seed=3)
    theirs = stats.bootstrap(
        (x,), np.mean, method="percentile", n_resamples=20_000, rng=4
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.012)
    narrow = certainty.interval(np.mean, x, samples=20_000, level=0.5)
    assert ours[0] < narrow[0] < x.mean() < narrow[1] < ours[1]


def test_arrays_are_resampled_together():
    scores_, labels = random_answers(60, 5)
    same = certainty.interval(lambda a, b: np.abs(a - b).max(), labels, labels.copy(), samples=50)
    assert same == (0, 0)
    x, y = scores_[:, 0], scores_[:, 0] + scores_[:, 1]

    def correlation(x, y):
        return np.corrcoef(x, y)[0, 1]

    theirs = stats.bootstrap(
        (x, y),
        correlation,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=5,
    ).confidence_interval
    assert certainty.interval(correlation, x, y, samples=4000) == pytest.approx(
        tuple(theirs), abs=0.02
    )


def test_of_four_answers_one_right_the_interval_is_the_binomials():
    # the share of right answers in a resample is Binomial(4, 1/4) / 4: 0 in 31.6 %, at most 1/4 in 73.8, 1/2 in 94.9
    right = np.array([True, False, False, False])
    assert certainty.interval(np.mean, right, level=0.8, samples=5000) == (0.0, 0.5)
    assert certainty.interval(np.mean, right, level=0.2, samples=5000) == (0.25, 0.25)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    bounds = [
        certainty.interval(np.mean, rng.random(60) < 0.3, samples=300, seed=i) for i in range(200)
    ]
    assert 0.89 < np.mean([low <= 0.3 <= high for low, high in bounds]) < 0.98


def test_the_same_seed_gives_the_same_interval_and_tensors_are_taken():
    x = torch.rand(40, generator=torch.Generator().manual_seed(0))
    assert certainty.interval(np.mean, x) == certainty.interval(np.mean, x.numpy())
    assert certainty.interval(np.mean, x) != certainty.interval(np.mean, x, seed=1)


def test_resamples_without_a_value_are_left_out():
    # two positives in ten: a tenth of the resamples hold no positive, and AUC is then undefined
    grades, probabilities = np.array([2, 2, *[0] * 8]), np.full((10, 5), 0.2)
    probabilities[:, 4] += np.linspace(0.1, 0, 10)
    kinds = []

    def auc(p, g):
        kinds.append(scores.grading(p, g)["auc_referable"])
        return kinds[-1]

    assert certainty.interval(auc, probabilities, grades, samples=80) == (1, 1)
    assert 2 < sum(kind is None for kind in kinds) < 25


@pytest.mark.filterwarnings("error")
def test_a_statistic_without_a_value_has_no_interval_and_a_vector_has_one_for_each():
    assert all(
        math.isnan(bound) for bound in certainty.interval(lambda x: None, np.ones(3), samples=9)
    )
    answers, grades = np.eye(5)[[0, 0, 1, 2, 2, 0]], np.array([0, 0, 1, 2, 2, 2])
    low, high = certainty.interval(
        lambda p, g: scores.grading(p, g)["recall"], answers, grades, samples=60
    )
    assert low.shape == high.shape == (5,)
    assert np.isnan(low[3:]).all() and np.isnan(high[3:]).all()
    assert low[0] == high[0] == 1 and low[2] < 2 / 3 < high[2]


@pytest.mark.parametrize("arrays", [(np.ones(3), np.ones(2)), (np.ones(0),), ()])
def test_an_interval_needs_a_row_for_each_photograph(arrays):
    with pytest.raises(ValueError, match="one row for each photograph"):
        certainty.interval(np.mean, *arrays)


def test_a_level_is_a_share():
    with pytest.raises(ValueError, match="level is 95"):
        certainty.interval(np.mean, np.ones(3), level=95)


# --- McNemar


def right(both, only_a, only_b, neither):
    counts = both, only_a, only_b, neither
    return np.repeat([True, True, False, False], counts), np.repeat(
        [True, False, True, False], counts
    )


@pytest.mark.parametrize(("only_a", "only_b"), [(12, 3), (3, 12), (5, 5), (1, 0), (40, 21)])
def test_mcnemar_is_the_binomial_sum(only_a, only_b):
    n, tail = only_a + only_b, range(min(only_a, only_b) + 1)
    by_hand = min(1, 2 * sum(math.comb(n, k) for k in tail) / 2**n)
    p, *counts = certainty.mcnemar(*right(30, only_a, only_b, 7))
    assert counts == [only_a, only_b]
    assert p == pytest.approx(by_hand)


def test_answers_that_never_differ_are_not_told_apart():
    assert certainty.mcnemar(*right(5, 0, 0, 5)) == (1.0, 0, 0)


def test_a_network_against_the_majority_answer():
    # of 100 photographs 33 have the majority's grade; the network is right in 20 of those and in 35 of the others
    grades = torch.tensor([2] * 33 + [0] * 67)
    predicted = torch.tensor([2] * 20 + [1] * 13 + [0] * 35 + [3] * 32)
    p, only_network, only_majority = certainty.mcnemar(predicted == grades, grades == 2)
    assert (only_network, only_majority) == (35, 13)
    assert p == pytest.approx(2 * sum(math.comb(48, k) for k in range(14)) / 2**48)


@pytest.mark.parametrize("other", [np.array([True]), np.array([1, 0]), np.array([[True, False]])])
def test_mcnemar_wants_right_or_wrong_for_each_photograph(other):
    with pytest.raises(ValueError, match=r"give bool \(n,\) twice"):
        certainty.mcnemar(np.array([True, False]), other)


# --- operating points


def test_operating_points_on_ten_photographs_by_hand():
    # P(grade >= 2), seven without and three with referable disease; at 0.6 one of seven is referred falsely
    referable = [0.9, 0.6, 0.3]
    others = [0.7, 0.5, 0.4, 0.35, 0.2, 0.1, 0.05]
    p = np.array(referable + others)
    probabilities = np.stack([1 - p, 0 * p, p / 2, p / 4, p / 4], 1)
    points = certainty.operating_points(
        probabilities, [4, 3, 2] + [0, 1] * 3 + [0], (1, 6 / 7, 0.8, 3 / 7, 0)
    )
    assert points.threshold.tolist() == pytest.approx([0.9, 0.6, 0.6, 0.3, 0.05])
    assert points.sensitivity.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert points.specificity.tolist() == pytest.approx([1, 6 / 7, 6 / 7, 3 / 7, 0])


def test_a_specificity_is_reached_by_counting_not_by_rounding():
    # one of ten referred falsely is a specificity of 0.9, though 1 - 0.9 < 1 / 10 in floating point
    p = np.r_[0.5, 0.6, np.linspace(0.4, 0.1, 9)]
    point = certainty.operating_points(np.stack([1 - p, 0 * p, p], 1), [2] + [0] * 10, (0.9,)).iloc[
        0
    ]
    assert (point.sensitivity, point.specificity) == (1, 0.9)


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_with_that_specificity_is_more_sensitive(seed):
    scores_, grades = random_answers(150, 5, seed)
    probabilities = softmax(scores_).round(2)  # with ties
    probability = probabilities[:, 2:].sum(1)
    for point in certainty.operating_points(probabilities, grades).itertuples():
        best = 0.0
        for threshold in probability:
            referred = probability >= threshold
            if (~referred[grades < 2]).mean() >= point.wanted:
                best = max(best, referred[grades >= 2].mean())
        assert point.sensitivity == pytest.approx(best)
        assert point.specificity >= point.wanted
        assert (probability >= point.threshold)[grades >= 2].mean() == pytest.approx(
            point.sensitivity
        )


@pytest.mark.filterwarnings("error")
def test_an_operating_point_may_refer_nobody_and_one_side_has_none():
    worst = certainty.operating_points(np.eye(5)[[4, 0]], [0, 4])
    assert worst.threshold.tolist() == [np.inf] * 2 and worst.sensitivity.tolist() == [0, 0]
    assert certainty.operating_points(np.eye(5)[[4, 0]], [3, 4]).sensitivity.isna().all()


# --- temperature


def likelihood(scores_, labels, t):
    return -np.log(softmax(scores_ / t)[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("sharper", [0.3, 1, 4])
def test_no_temperature_on_a_grid_is_likelier_and_sharpness_is_undone(sharper):
    scores_, labels = random_answers(400, 5)
    t = certainty.temperature(sharper * scores_, labels)
    grid = np.geomspace(0.06, 18, 2000)
    best = min(likelihood(sharper * scores_, labels, value) for value in grid)
    assert likelihood(sharper * scores_, labels, t) <= best + 1e-9
    assert t == pytest.approx(sharper * certainty.temperature(scores_, labels), rel=1e-3)


def test_two_answers_by_hand():
    # two classes, scores (s, 0), three right of four: 1 / (1 + exp(-s / T)) = 3/4, so T = s / ln 3
    scores_ = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    assert certainty.temperature(scores_, torch.tensor([0, 0, 0, 1])) == pytest.approx(
        2 / math.log(3), rel=1e-4
    )


def test_temperature_makes_overconfident_answers_calibrated():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20_000, 5))
    labels = (softmax(true).cumsum(1) > rng.random((20_000, 1))).argmax(1)
    assert certainty.temperature(3 * true, labels) == pytest.approx(3, rel=0.05)
    assert certainty.calibration_error(softmax(3 * true), labels)[0] > 0.1
    assert certainty.calibration_error(softmax(true), labels)[0] < 0.02


def test_the_ends_of_the_search_are_where_the_docstring_says():
    low, high = certainty.TEMPERATURES
    assert certainty.temperature(np.eye(3), [0, 1, 2]) == pytest.approx(low, rel=1e-3)
    assert certainty.temperature(np.eye(3), [1, 2, 0]) == pytest.approx(high, rel=1e-3)


# --- calibration


def test_calibration_of_four_answers_by_hand():
    # two bins (0.5, 0.75] and (0.75, 1]: confidences 0.6, 0.7, one right; 0.8, 1.0, both right
    probabilities = [[0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [1.0, 0.0]]
    error, table = certainty.calibration_error(probabilities, [0, 0, 1, 0], bins=4)
    assert error == pytest.approx(0.5 * abs(0.5 - 0.65) + 0.5 * abs(1 - 0.9))
    assert table["count"].tolist() == [0, 0, 2, 2]
    assert table.confidence.tolist()[2:] == pytest.approx([0.65, 0.9])
    assert table.accuracy.tolist()[2:] == [0.5, 1.0]
    assert table.accuracy.isna().tolist() == [True, True, False, False]
    assert table.low.tolist() == [0, 0.25, 0.5, 0.75] and table.high.tolist() == [
        0.25,
        0.5,
        0.75,
        1,
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_is_guos_sum(seed):
    scores_, labels = random_answers(300, 5, seed)
    probabilities = softmax(2 * scores_)
    confidence, right_ = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for m in range(1, 16):
        inside = ((m - 1) / 15 < confidence) & (confidence <= m / 15)
        if inside.any():
            total += inside.sum() / 300 * abs(right_[inside].mean() - confidence[inside].mean())
    error, table = certainty.calibration_error(torch.tensor(probabilities), torch.tensor(labels))
    assert error == pytest.approx(total)
    assert table["count"].sum() == 300


def test_an_edge_belongs_to_the_bin_below_and_rounding_beyond_one_to_the_last():
    _, table = certainty.calibration_error([[0.5, 0.5], [1.00001, -0.0]], [0, 0], bins=2)
    assert table["count"].tolist() == [1, 1]


# --- MedMNIST's AUC


@pytest.mark.parametrize("seed", range(5))
def test_medmnists_auc_is_the_mean_of_five_pair_counts_and_sklearns_macro_average(seed):
    scores_, labels = random_answers(80, 5, seed)
    probabilities = softmax(scores_).round(2)
    by_pairs = []
    for c in range(5):
        own, rest = probabilities[labels == c, c], probabilities[labels != c, c]
        by_pairs.append(np.mean([(a > b) + (a == b) / 2 for a in own for b in rest]))
    ours = certainty.medmnist_auc(torch.tensor(probabilities), torch.tensor(labels))
    assert ours == pytest.approx(np.mean(by_pairs))
    exact = softmax(scores_)
    assert certainty.medmnist_auc(exact, labels) == pytest.approx(
        metrics.roc_auc_score(labels, exact, multi_class="ovr", average="macro")
    )


@pytest.mark.filterwarnings("error")
def test_a_class_that_does_not_occur_leaves_medmnists_auc_without_a_value():
    assert certainty.medmnist_auc(np.eye(3), [0, 1, 1]) is None
    assert certainty.medmnist_auc(np.ones((2, 1)), [0, 0]) is None
    assert certainty.medmnist_auc(np.eye(3), [0, 1, 2]) == 1


# --- bad input


@pytest.mark.parametrize(
    "score",
    [
        certainty.operating_points,
        certainty.temperature,
        certainty.calibration_error,
        certainty.medmnist_auc,
    ],
)
@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (np.eye(3), [0, 1], r"\(3, 3\) for labels \(2,\)"),
        (np.ones(3), [0, 1, 2], r"\(3,\) for labels"),
        (np.ones((0, 3)), [], r"n > 0"),
        (np.eye(3), [[0], [1], [2]], r"\(3, 1\)"),
        (np.eye(3), [0, 1, 3], r"must lie in 0\.\.2"),
        (np.eye(3), [0, -1, 2], r"must lie in 0\.\.2"),
        (np.diag([1, np.nan, 1]), [0, 1, 2], "row 1 of the scores holds NaN"),
    ],
)
def test_what_does_not_fit_is_refused(score, values, labels, message):
    with pytest.raises(ValueError, match=message):
        score(values, labels)


@pytest.mark.parametrize("values", [[[2.0, -1.0]], [[0.5, 0.3]]])
def test_scores_are_not_taken_for_probabilities(values):
    with pytest.raises(ValueError, match="take the softmax"):
        certainty.calibration_error(values, [0])
