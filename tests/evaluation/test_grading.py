"""Scores and tests against their definitions written out, intervals against SciPy's."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from lib.evaluation import grading


def answers(confusion, seed=0):
    """Probabilities and grades with this confusion matrix, shuffled, never tied at the top."""
    cells = itertools.product(range(len(confusion)), repeat=2)
    pairs = np.repeat(list(cells), np.ravel(confusion), axis=0)
    rng = np.random.default_rng(seed)
    grades, predicted = rng.permutation(pairs).T
    probabilities = rng.dirichlet(np.ones(len(confusion)), len(grades)) * 0.4
    probabilities[np.arange(len(grades)), predicted] += 0.6
    return probabilities, grades


def random_scores(n, classes=5, seed=0):
    """Scores (n, classes) that know something of the labels (n,); every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(classes, size=n - classes)]
    return rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels], labels


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def kappa_by_definition(confusion):
    """1 - sum w O / sum w E with w = (i - j)^2 and E from the margins (Cohen 1968)."""
    observed = np.asarray(confusion, float)
    rows, columns = np.indices(observed.shape)
    weight = (rows - columns) ** 2
    expected = np.outer(observed.sum(1), observed.sum(0)) / observed.sum()
    return 1 - (weight * observed).sum() / (weight * expected).sum()


def auc_by_pairs(value, positive):
    """The share of (positive, negative) pairs in which the positive is greater; a tie is half."""
    pairs = itertools.product(value[positive], value[~positive])
    return np.mean([(p > n) + (p == n) / 2 for p, n in pairs])


# --- the scores of grading


def test_a_confusion_matrix_worked_by_hand():
    confusion = [
        [50, 10, 0, 0, 0],
        [5, 5, 0, 0, 0],
        [0, 4, 12, 4, 0],
        [0, 0, 2, 3, 0],
        [1, 0, 0, 0, 4],
    ]
    result = grading.grade_scores(*answers(confusion))
    assert result["confusion"] == confusion
    assert result["accuracy"] == pytest.approx(74 / 100)
    assert result["majority_rate"] == pytest.approx(60 / 100)
    assert result["recall"] == pytest.approx([50 / 60, 5 / 10, 12 / 20, 3 / 5, 4 / 5])
    assert result["balanced_accuracy"] == pytest.approx((5 / 6 + 0.5 + 0.6 + 0.6 + 0.8) / 5)
    squared_errors, by_chance = 25 * 1 + 1 * 16, 27420 / 100
    assert result["kappa"] == pytest.approx(1 - squared_errors / by_chance)


@pytest.mark.parametrize("seed", range(5))
def test_random_confusion_matrices_agree_with_the_definitions(seed):
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, rng.integers(2, 9), (5, 5)) + np.eye(5, dtype=int)
    probabilities, grades = answers(confusion, seed)
    result = grading.grade_scores(torch.tensor(probabilities), torch.tensor(grades))
    counts = confusion.sum(1)
    assert result["confusion"] == confusion.tolist()
    assert result["kappa"] == pytest.approx(kappa_by_definition(confusion))
    assert result["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert result["majority_rate"] == pytest.approx(counts.max() / confusion.sum())
    assert result["balanced_accuracy"] == pytest.approx(np.mean(np.diag(confusion) / counts))
    referable = auc_by_pairs(probabilities[:, 2:].sum(1), grades >= 2)
    assert result["auc_referable"] == pytest.approx(referable)


def test_an_answer_without_skill_scores_what_the_docstring_says():
    grades = np.repeat(np.arange(5), [70, 7, 15, 5, 3])
    always_none = np.tile([0.6, 0.1, 0.1, 0.1, 0.1], (100, 1))
    result = grading.grade_scores(always_none, grades)
    assert result["accuracy"] == result["majority_rate"] == pytest.approx(0.7)
    assert result["balanced_accuracy"] == pytest.approx(0.2)
    assert result["kappa"] == pytest.approx(0)
    assert result["auc_referable"] == pytest.approx(0.5)


def test_equal_chances_of_referable_disease_count_half_in_the_auc():
    low, middle, high = [0.75, 0.25, 0, 0, 0], [0.25, 0.25, 0.5, 0, 0], [0, 0.25, 0.25, 0.25, 0.25]
    result = grading.grade_scores([low, middle, middle, high], [0, 1, 2, 3])
    assert result["auc_referable"] == (1 + 0.5 + 1 + 1) / 4


def test_a_grade_that_does_not_occur_has_no_recall_and_is_left_out_of_the_balance():
    result = grading.grade_scores(np.eye(5)[[0, 0, 1, 4, 2]], [0, 0, 0, 2, 2])
    assert result["recall"] == [pytest.approx(2 / 3), None, 0.5, None, None]
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result["kappa"] == pytest.approx(kappa_by_definition(result["confusion"]))
    json.dumps(result, allow_nan=False)


def test_answers_other_than_the_likeliest_grades_are_scored_where_they_are_given():
    probabilities = np.array([[0.6, 0.4, 0, 0, 0], [0.1, 0.2, 0.7, 0, 0]])
    found = grading.grade_scores(probabilities, [1, 2], predicted=[1, 1])
    assert found["accuracy"] == 0.5 and found["auc_referable"] == 1
    assert found["confusion"][1][1] == found["confusion"][2][1] == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("predicted", "grades", "kappa", "auc"),
    [
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 1, 1),
        ([4, 4, 0, 0], [0, 0, 4, 4], -1, 0),
        ([1, 1], [2, 2], 0, None),  # one side only has no AUC
        ([2, 2], [2, 0], 0, 0.5),
        ([2, 2], [2, 2], None, None),
        # From 1 to 4 are three steps, though no grade between them occurs: 9 beside 24 by chance.
        ([0, 1, 4, 4], [0, 1, 1, 4], 1 - 9 / 24, pytest.approx(5 / 6)),
    ],
)
def test_kappa_is_undefined_only_where_one_grade_is_all_there_is(predicted, grades, kappa, auc):
    result = grading.grade_scores(np.eye(5)[predicted], grades)
    assert result["kappa"] == (kappa if kappa is None else pytest.approx(kappa))
    assert result["auc_referable"] == auc
    plain = grading.quadratic_kappa(torch.tensor(predicted), torch.tensor(grades))
    assert type(plain) is float
    assert plain == pytest.approx(kappa or 0)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [([0, -1, 2], "-1"), ([0, 1.5, 2], "1.5"), ([0, np.nan, 2], "nan"), ([0, 1], r"\(2,\)")],
)
def test_grades_that_are_none_are_refused_and_not_left_out(predicted, message):
    grades = [0, 1, 2]
    with pytest.raises(ValueError, match=message):
        grading.quadratic_kappa(predicted, grades)
    with pytest.raises(ValueError, match=message):
        grading.grade_scores(np.eye(5)[grades], grades, predicted)
    with pytest.raises(ValueError, match=r"labels \[0 2 5\] must lie in 0\.\.4"):
        grading.grade_scores(np.eye(5)[grades], grades, [0, 2, 5])


# --- bootstrap_interval


def test_the_interval_is_scipys_percentile_bootstrap():
    x = np.random.default_rng(1).exponential(size=80)
    ours = grading.bootstrap_interval(np.mean, x, samples=20_000, seed=3)
    theirs = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20_000, rng=4)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.012)


def test_arrays_are_resampled_together():
    scores, _ = random_scores(60)
    x, y = scores[:, 0], scores[:, 0] + scores[:, 1]

    def correlation(x, y):
        return np.corrcoef(x, y)[0, 1]

    options = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": 4000}
    theirs = stats.bootstrap((x, y), correlation, **options, rng=5).confidence_interval
    ours = grading.bootstrap_interval(correlation, x, y, samples=4000)
    assert ours == pytest.approx(tuple(theirs), abs=0.02)


def test_of_four_answers_one_right_the_interval_is_the_binomials():
    # Of a resample's four, Binomial(4, 1/4) are right: none in 31.6 %, <= 1 in 73.8, <= 2 in 94.9.
    right = np.array([True, False, False, False])
    assert grading.bootstrap_interval(np.mean, right, level=0.8, samples=5000) == (0.0, 0.5)
    assert grading.bootstrap_interval(np.mean, right, level=0.2, samples=5000) == (0.25, 0.25)


def test_the_same_seed_gives_the_same_interval_and_tensors_are_taken():
    x = torch.rand(40, generator=torch.Generator().manual_seed(0))
    first = grading.bootstrap_interval(np.mean, x, samples=200)
    assert first == grading.bootstrap_interval(np.mean, x.numpy(), samples=200)
    assert first != grading.bootstrap_interval(np.mean, x, samples=200, seed=1)


def test_resamples_without_a_value_are_left_out():
    # Two positives in ten: a tenth of the resamples hold none, and AUC is then undefined.
    grades, probabilities = np.array([2, 2, *[0] * 8]), np.full((10, 5), 0.2)
    probabilities[:, 4] += np.linspace(0.1, 0, 10)
    areas = []

    def auc(p, g):
        areas.append(grading.grade_scores(p, g)["auc_referable"])
        return areas[-1]

    assert grading.bootstrap_interval(auc, probabilities, grades, samples=40) == (1, 1)
    assert 0 < areas.count(None) < 15


@pytest.mark.filterwarnings("error")
def test_a_statistic_without_a_value_has_no_interval_and_a_vector_has_one_for_each():
    bounds = grading.bootstrap_interval(lambda x: None, np.ones(3), samples=9)
    assert np.isnan(bounds).all()
    predicted, grades = np.eye(5)[[0, 0, 1, 2, 2, 0]], np.array([0, 0, 1, 2, 2, 2])

    def recall(p, g):
        return grading.grade_scores(p, g)["recall"]

    low, high = grading.bootstrap_interval(recall, predicted, grades, samples=30)
    assert low.shape == high.shape == (5,)
    assert np.isnan(low[3:]).all() and np.isnan(high[3:]).all()
    assert low[0] == high[0] == 1 and low[2] < 2 / 3 < high[2]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((np.ones(3), np.ones(2)), {}, r"lengths \[3, 2\]: give one row for each photograph"),
        ((np.ones(0),), {}, r"lengths \[0\]: give one row"),
        ((), {}, r"lengths \[\]: give one row"),
        ((np.ones(3),), {"level": 95}, "level is 95; give the share"),
    ],
)
def test_an_interval_needs_a_row_for_each_photograph_and_a_share(arrays, options, message):
    with pytest.raises(ValueError, match=message):
        grading.bootstrap_interval(np.mean, *arrays, **options)


# --- proportion_interval


@pytest.mark.parametrize(("k", "n"), [(1, 4), (7, 20), (19, 20), (54, 104)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_at_the_ends_of_the_interval_the_tails_of_the_binomial_are_what_is_left(k, n, level):
    def probability(p, counts):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in counts)

    low, high = grading.proportion_interval(torch.arange(n) < k, level)
    assert 0 < low < k / n < high < 1
    assert probability(low, range(k, n + 1)) == pytest.approx((1 - level) / 2, rel=1e-6)
    assert probability(high, range(k + 1)) == pytest.approx((1 - level) / 2, rel=1e-6)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 16), (16, 16), (3, 7), (50, 54)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_of_a_proportion_is_scipys_and_solves_the_binomial_tails(k, n, level):
    low, high = grading.proportion_interval(np.arange(n) < k, level)
    theirs = stats.binomtest(k, n).proportion_ci(level)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    if k:
        assert stats.binom.sf(k - 1, n, low) == pytest.approx((1 - level) / 2)
    if k < n:
        assert stats.binom.cdf(k, n, high) == pytest.approx((1 - level) / 2)


@pytest.mark.parametrize("n", [1, 9, 104])
def test_all_right_or_none_is_no_certainty(n):
    # All n are right with probability p^n, so p^n = 0.025 at the lower end.
    low, high = grading.proportion_interval(np.ones(n, bool))
    assert (low, high) == (pytest.approx(0.025 ** (1 / n)), 1)
    none = grading.proportion_interval(np.zeros(n, bool))
    assert none == (0, pytest.approx(1 - low))
    assert grading.bootstrap_interval(np.mean, np.ones(n), samples=50) == (1, 1)


@pytest.mark.parametrize(
    ("right", "level", "message"),
    [
        ([0.5, 1.0], 0.95, r"float64 \(2,\): give bool \(n,\)"),
        ([[True], [False]], 0.95, r"\(2, 1\): give bool"),
        (np.zeros(0, bool), 0.95, "n > 0"),
        ([True, False], 95, "level is 95; give the share"),
    ],
)
def test_a_share_needs_right_or_wrong_for_each_photograph(right, level, message):
    with pytest.raises(ValueError, match=message):
        grading.proportion_interval(right, level)


# --- mcnemar


@pytest.mark.parametrize(("only_a", "only_b"), [(12, 3), (3, 12), (5, 5), (1, 0), (40, 21), (0, 0)])
def test_mcnemar_is_the_binomial_sum(only_a, only_b):
    counts = 30, only_a, only_b, 7
    right_a = torch.tensor(np.repeat([True, True, False, False], counts))
    right_b = np.repeat([True, False, True, False], counts)
    n, tail = only_a + only_b, range(min(only_a, only_b) + 1)
    by_hand = min(1, 2 * sum(math.comb(n, k) for k in tail) / 2**n)
    assert grading.mcnemar(right_a, right_b) == (pytest.approx(by_hand), only_a, only_b)


@pytest.mark.parametrize("other", [np.array([True]), np.array([1, 0]), np.array([[True, False]])])
def test_mcnemar_wants_right_or_wrong_for_each_photograph(other):
    with pytest.raises(ValueError, match=r"give bool \(n,\) twice"):
        grading.mcnemar(np.array([True, False]), other)


# --- operating_points


def test_operating_points_on_ten_photographs_by_hand():
    # P(grade >= 2) of three with referable disease and seven without.
    p = np.array([0.9, 0.6, 0.3] + [0.7, 0.5, 0.4, 0.35, 0.2, 0.1, 0.05])
    probabilities = np.stack([1 - p, 0 * p, p / 2, p / 4, p / 4], 1)
    grades = [4, 3, 2] + [0, 1] * 3 + [0]
    points = grading.operating_points(probabilities, grades, (1, 6 / 7, 0.8, 3 / 7, 0))
    assert points.threshold.tolist() == pytest.approx([0.9, 0.6, 0.6, 0.3, 0.05])
    assert points.sensitivity.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert points.specificity.tolist() == pytest.approx([1, 6 / 7, 6 / 7, 3 / 7, 0])


def test_a_specificity_is_reached_by_counting_not_by_rounding():
    # One of ten referred falsely is a specificity of 0.9, though 1 - 0.9 < 1 / 10 in floats.
    p = np.r_[0.5, 0.6, np.linspace(0.4, 0.1, 9)]
    table = grading.operating_points(np.stack([1 - p, 0 * p, p], 1), [2] + [0] * 10, (0.9,))
    assert table[["sensitivity", "specificity"]].to_numpy().tolist() == [[1, 0.9]]


@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_with_that_specificity_is_more_sensitive(seed):
    scores, grades = random_scores(150, seed=seed)
    probabilities = softmax(scores).round(2)  # with ties
    probability = probabilities[:, 2:].sum(1)
    for point in grading.operating_points(probabilities, grades).itertuples():
        best = 0.0
        for threshold in probability:
            referred = probability >= threshold
            if (~referred[grades < 2]).mean() >= point.wanted:
                best = max(best, referred[grades >= 2].mean())
        assert point.sensitivity == pytest.approx(best)
        assert point.specificity >= point.wanted
        found = (probability >= point.threshold)[grades >= 2].mean()
        assert point.sensitivity == pytest.approx(found)


@pytest.mark.filterwarnings("error")
def test_an_operating_point_may_refer_nobody_and_one_side_has_none():
    worst = grading.operating_points(np.eye(5)[[4, 0]], [0, 4])
    assert worst.threshold.tolist() == [np.inf] * 2 and worst.sensitivity.tolist() == [0, 0]
    assert grading.operating_points(np.eye(5)[[4, 0]], [3, 4]).sensitivity.isna().all()


# --- fit_temperature


def test_the_temperature_of_two_answers_by_hand():
    # Scores (s, 0), three right of four: 1 / (1 + exp(-s / T)) = 3/4, so T = s / ln 3.
    scores = torch.tensor([[2.0, 0.0]]).repeat(4, 1)
    found = grading.fit_temperature(scores, torch.tensor([0, 0, 0, 1]))
    assert found == pytest.approx(2 / math.log(3), rel=1e-4)


@pytest.mark.parametrize("sharper", [0.3, 1, 4])
def test_no_temperature_on_a_grid_is_likelier(sharper):
    scores, labels = random_scores(200)

    def loss(t):
        return -np.log(softmax(sharper * scores / t)[np.arange(200), labels]).mean()

    found = grading.fit_temperature(sharper * scores, labels)
    assert loss(found) <= min(loss(t) for t in np.geomspace(0.06, 18, 200)) + 1e-9


def test_temperature_makes_overconfident_answers_calibrated():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20_000, 5))
    labels = (softmax(true).cumsum(1) > rng.random((20_000, 1))).argmax(1)
    assert grading.fit_temperature(3 * true, labels) == pytest.approx(3, rel=0.05)
    assert grading.calibration_error(softmax(3 * true), labels)[0] > 0.1
    assert grading.calibration_error(softmax(true), labels)[0] < 0.02


def test_the_ends_of_the_search_are_where_the_docstring_says():
    assert grading.fit_temperature(np.eye(3), [0, 1, 2]) == pytest.approx(1 / 20, rel=1e-3)
    assert grading.fit_temperature(np.eye(3), [1, 2, 0]) == pytest.approx(20, rel=1e-3)


# --- calibration_error


def test_calibration_of_four_answers_by_hand():
    # Two bins (0.5, 0.75] and (0.75, 1]: confidences 0.6, 0.7, one right; 0.8, 1.0, both right.
    probabilities = [[0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [1.0, 0.0]]
    error, table = grading.calibration_error(probabilities, [0, 0, 1, 0], bins=4)
    assert error == pytest.approx(0.5 * abs(0.5 - 0.65) + 0.5 * abs(1 - 0.9))
    assert table.columns.tolist() == ["low", "high", "count", "confidence", "accuracy"]
    nan = math.nan
    by_hand = [
        [0, 0.25, 0, nan, nan],
        [0.25, 0.5, 0, nan, nan],
        [0.5, 0.75, 2, 0.65, 0.5],
        [0.75, 1, 2, 0.9, 1],
    ]
    np.testing.assert_allclose(table.to_numpy(float), by_hand)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_guos_sum(seed):
    scores, labels = random_scores(300, seed=seed)
    probabilities = softmax(2 * scores)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for m in range(1, 16):
        inside = ((m - 1) / 15 < confidence) & (confidence <= m / 15)
        if inside.any():
            total += inside.sum() / 300 * abs(right[inside].mean() - confidence[inside].mean())
    error, table = grading.calibration_error(torch.tensor(probabilities), torch.tensor(labels))
    assert error == pytest.approx(total)
    assert table["count"].sum() == 300


def test_an_edge_belongs_to_the_bin_below_and_rounding_beyond_one_to_the_last():
    _, table = grading.calibration_error([[0.5, 0.5], [1.00001, -0.0]], [0, 0], bins=2)
    assert table["count"].tolist() == [1, 1]


@pytest.mark.parametrize("values", [[[2.0, -1.0]], [[0.5, 0.3]]])
def test_scores_are_not_taken_for_probabilities(values):
    with pytest.raises(ValueError, match="take the softmax"):
        grading.calibration_error(values, [0])


# --- medmnist_auc


@pytest.mark.parametrize("seed", range(3))
def test_medmnists_auc_is_the_mean_of_five_pair_counts_and_sklearns_macro_average(seed):
    scores, labels = random_scores(80, seed=seed)
    tied = softmax(scores).round(2)
    by_pairs = np.mean([auc_by_pairs(tied[:, c], labels == c) for c in range(5)])
    ours = grading.medmnist_auc(torch.tensor(tied), torch.tensor(labels))
    assert ours == pytest.approx(by_pairs)
    exact = softmax(scores)
    macro = metrics.roc_auc_score(labels, exact, multi_class="ovr", average="macro")
    assert grading.medmnist_auc(exact, labels) == pytest.approx(macro)


@pytest.mark.filterwarnings("error")
def test_a_class_that_does_not_occur_leaves_medmnists_auc_without_a_value():
    assert grading.medmnist_auc(np.eye(3), [0, 1, 1]) is None
    assert grading.medmnist_auc(np.ones((2, 1)), [0, 0]) is None
    assert grading.medmnist_auc(np.eye(3), [0, 1, 2]) == 1


# --- bad input


@pytest.mark.parametrize(
    "score",
    [
        grading.grade_scores,
        grading.operating_points,
        grading.fit_temperature,
        grading.calibration_error,
        grading.medmnist_auc,
    ],
)
@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (np.eye(3), [0, 1], r"\(3, 3\) for labels \(2,\) do not fit"),
        (np.ones(3), [0, 1, 2], r"\(3,\) for labels"),
        (np.ones((0, 3)), [], r"n > 0"),
        (np.eye(3), [[0], [1], [2]], r"\(3, 1\)"),
        (np.eye(3), [0, 1, 3], r"labels \[0 1 3\] must lie in 0\.\.2"),
        (np.eye(3), [0, -1, 2], r"labels \[-1 +0 +2\] must lie in 0\.\.2"),
        (np.diag([1, np.nan, 1]), [0, 1, 2], "row 1 of the scores holds NaN"),
    ],
)
def test_what_does_not_fit_is_refused(score, values, labels, message):
    with pytest.raises(ValueError, match=message):
        score(values, labels)
