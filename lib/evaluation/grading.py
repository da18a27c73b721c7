"""How good grades are, how sure that is, and how sure the answers may be of themselves.

scikit-learn and SciPy are imported inside the functions that use them, so that training starts
without them.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def grade_scores(
    probabilities: ArrayLike, grades: ArrayLike, predicted: ArrayLike | None = None
) -> dict:
    """The scores of grading diabetic retinopathy, each beside what it is worth without skill.

    Args:
        probabilities: (n, 5), each row adding up to 1.
        grades: (n,) int in 0..4, the truth.
        predicted: (n,) int, the answers where they are not the likeliest grades.

    Returns:
        accuracy, and `majority_rate`, the accuracy of always answering the commonest grade;
        balanced_accuracy (chance 0.2); kappa, quadratically weighted (chance 0; None where one
        grade is all that is answered and all that is true); auc_referable, the area under the ROC
        curve of grade >= 2 (chance 0.5; None with one side only); recall, a list of 5, None for a
        grade that does not occur; confusion, a list of 5 rows, one for each true grade.

    Raises:
        ValueError: shapes that do not fit, NaN, or grades that have no probability.
    """
    from sklearn import metrics

    probabilities, grades = _checked(probabilities, grades)
    predicted = probabilities.argmax(1) if predicted is None else predicted
    _, predicted = _checked(probabilities, predicted)
    labels = range(probabilities.shape[1])
    confusion = metrics.confusion_matrix(grades, predicted, labels=list(labels))
    counts = confusion.sum(1)
    recall = [confusion[c, c] / counts[c] if counts[c] else None for c in labels]
    kappa = None if _constant(predicted, grades) else quadratic_kappa(predicted, grades)
    referable = grades >= 2
    auc = None
    if 0 < referable.sum() < len(grades):
        auc = metrics.roc_auc_score(referable, probabilities[:, 2:].sum(1))
    return {
        "accuracy": metrics.accuracy_score(grades, predicted),
        "majority_rate": counts.max() / counts.sum(),
        "balanced_accuracy": float(np.mean([share for share in recall if share is not None])),
        "kappa": kappa,
        "auc_referable": auc,
        "recall": recall,
        "confusion": confusion.tolist(),
    }


def quadratic_kappa(predicted: ArrayLike, grades: ArrayLike) -> float:
    """Quadratic weighted kappa (Cohen 1968): agreement beyond chance, far errors costing more.

    kappa = 1 - sum w O / sum w E with w = (i - j)², O the confusion matrix, E that of its margins.

    Args:
        predicted: (n,) int, the answered grades, 0 or more.
        grades: (n,) int, the true ones.

    Returns:
        1 for the truth, 0 for chance and where one grade is all that is answered and true.

    Raises:
        ValueError: lists of different lengths or none, or grades that are no integers from 0.
    """
    from sklearn.metrics import cohen_kappa_score

    predicted, grades = np.asarray(predicted), np.asarray(grades)
    if predicted.shape != grades.shape or not grades.size:
        raise ValueError(f"{predicted.shape} answers for {grades.shape} grades: give (n,) twice")
    for values in (predicted, grades):
        if not (np.isfinite(values) & (values >= 0) & (values % 1 == 0)).all():
            raise ValueError(f"grades {np.unique(values)} must be integers, 0 or more")
    if _constant(predicted, grades):
        return 0.0
    # All grades up to the highest: of those that occur alone, sklearn would weigh the ranks.
    labels = range(int(max(predicted.max(), grades.max())) + 1)
    return float(cohen_kappa_score(grades, predicted, labels=list(labels), weights="quadratic"))


def _constant(predicted: np.ndarray, grades: np.ndarray) -> bool:
    return len(np.unique(np.concatenate([predicted, grades]))) == 1


def _checked(values: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores or probabilities (n, N) float64 and labels (n,) int, or a ValueError."""
    values, labels = np.asarray(values, float), np.asarray(labels)
    if values.ndim != 2 or labels.shape != values.shape[:1] or not len(labels):
        raise ValueError(
            f"{values.shape} for labels {labels.shape} do not fit: give (n, N) and (n,), n > 0"
        )
    finite = np.isfinite(values).all(1)
    if not finite.all():
        raise ValueError(f"row {finite.argmin()} of the scores holds NaN or infinite values")
    if not np.isin(labels, range(values.shape[1])).all():
        raise ValueError(f"labels {np.unique(labels)} must lie in 0..{values.shape[1] - 1}")
    return values, labels.astype(int)


def bootstrap_interval(
    statistic: Callable,
    *arrays: ArrayLike,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple:
    """The percentile bootstrap interval of `statistic(*arrays)` over photographs (Efron 1979).

    Args:
        statistic: returns a number, or an array of numbers. A resample that leaves it without a
            value (None or NaN), as AUC with one side only, is left out.
        *arrays: (n, ...) each, row i of photograph i; they are resampled together. The photographs
            must be independent: one eye of each patient.
        samples: how many resamples are drawn.
        level: the share of resamples inside the interval.
        seed: of the resamples.

    Returns:
        (low, high), numbers or arrays as the statistic; NaN without a value in any resample. Where
        no photograph differs (all are right, say), no resample does, and low equals high: that is
        no certainty. Of a share take the `proportion_interval` instead.

    Raises:
        ValueError: arrays of different lengths or none, or a level outside (0, 1).
    """
    arrays = [np.asarray(array) for array in arrays]
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(f"arrays of lengths {lengths}: give one row for each photograph")
    _require_level(level)
    resamples = np.random.default_rng(seed).integers(lengths[0], size=(samples, lengths[0]))
    values = []
    for rows in resamples:
        values.append(statistic(*[array[rows] for array in arrays]))
    values = np.array(values, float)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN")
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (low, high) if values.ndim > 1 else (float(low), float(high))


def proportion_interval(right: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share of photographs (Clopper and Pearson 1934).

    The shares p of which neither P(X >= k) nor P(X <= k) is below (1 - level) / 2, where X is
    Binomial(n, p) and k of n are right. It has a width where all are right, or none: 104 of 104
    leave 0.965 to 1.

    Args:
        right: (n,) bool, one for each photograph; they must be independent, one eye of a patient.
        level: how often, at least, such an interval holds the share.

    Returns:
        (low, high).

    Raises:
        ValueError: shapes or types that do not fit, no photograph, or a level outside (0, 1).
    """
    from scipy.stats import binomtest

    right = np.asarray(right)
    if right.ndim != 1 or right.dtype != bool or not len(right):
        raise ValueError(f"right answers {right.dtype} {right.shape}: give bool (n,), n > 0")
    _require_level(level)
    found = binomtest(int(right.sum()), len(right)).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give the share of the interval, as 0.95")


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> tuple[float, int, int]:
    """The exact McNemar test of two answers to the same photographs.

    Where both are equally good, each photograph on which just one is right belongs to either with
    probability 1/2 (McNemar 1947): a binomial test. Against the majority answer, `right_b` is
    `grades == majority`.

    Args:
        right_a: (n,) bool, where answer a is right.
        right_b: (n,) bool, where answer b is.

    Returns:
        The two-sided p (1 where they never differ), and how often only a, only b was right.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    from scipy.stats import binomtest

    a, b = np.asarray(right_a), np.asarray(right_b)
    if a.shape != b.shape or a.ndim != 1 or a.dtype != bool or b.dtype != bool:
        raise ValueError(
            f"right answers {a.dtype} {a.shape} and {b.dtype} {b.shape}: give bool (n,) twice"
        )
    only_a = int((a & ~b).sum())
    only_b = int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0, 0, 0
    return float(binomtest(only_a, only_a + only_b).pvalue), only_a, only_b


def operating_points(
    probabilities: ArrayLike, grades: ArrayLike, specificities: Sequence[float] = (0.87, 0.98)
) -> pd.DataFrame:
    """Sensitivity for referable retinopathy, grade >= 2, at given specificities.

    A photograph is referred where P(grade >= 2) >= threshold; the lowest threshold with at least
    the specificity is taken. Thresholds read off the photographs that are scored flatter; for a
    system, read them off validation and apply them to test.

    Args:
        probabilities: (n, N > 2).
        grades: (n,) int.
        specificities: where the literature reports: 0.87 Abramoff et al. 2016 (IDx-DR), 0.98
            Gulshan et al. 2016.

    Returns:
        A row for each: wanted, threshold (inf: nobody is referred), sensitivity, specificity; NaN
        with one side only.

    Raises:
        ValueError: shapes that do not fit, NaN, or grades out of range.
    """
    from sklearn.metrics import roc_curve

    probabilities, grades = _checked(probabilities, grades)
    referable = grades >= 2
    rows = []
    if 0 < referable.sum() < len(grades):
        probability = probabilities[:, 2:].sum(1)
        false, true, threshold = roc_curve(referable, probability, drop_intermediate=False)
        for wanted in specificities:
            # The margin is for rounding: 1 - 0.9 is less than 1 / 10 in floating point.
            last = np.searchsorted(false, 1 - wanted + 1e-9, side="right") - 1
            rows.append((wanted, threshold[last], true[last], 1 - false[last]))
    else:
        rows = [(wanted, np.nan, np.nan, np.nan) for wanted in specificities]
    return pd.DataFrame(rows, columns=["wanted", "threshold", "sensitivity", "specificity"])


def fit_temperature(scores: ArrayLike, labels: ArrayLike) -> float:
    """The T whose softmax(scores / T) has the least negative log-likelihood (Guo 2017, 4.2).

    T > 1 makes answers less certain and never changes which is given. It is searched from 1/20,
    which comes out where every answer is right, to 20, where the scores say nothing of the labels.

    Args:
        scores: (n, N) before the softmax, of the validation split.
        labels: (n,) int.

    Raises:
        ValueError: shapes that do not fit, NaN, or labels out of range.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    scores, labels = _checked(scores, labels)

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(scores / np.exp(log_temperature), 1)
        return -log_probabilities[np.arange(len(labels)), labels].mean()

    bounds = np.log([1 / 20, 20])
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> tuple[float, pd.DataFrame]:
    """The expected calibration error and the reliability diagram's table (Guo 2017, Eq. 3).

    ECE = sum_b n_b / n |accuracy_b - confidence_b|, where the confidence is a photograph's highest
    probability.

    Args:
        probabilities: (n, N), each row adding up to 1.
        labels: (n,) int.
        bins: number of equal bins (low, high] of the confidence.

    Returns:
        The error, and a row for each bin: low, high, count, confidence, accuracy (means; NaN in an
        empty bin).

    Raises:
        ValueError: shapes that do not fit, labels out of range, or rows that are no probabilities.
    """
    probabilities, labels = _checked(probabilities, labels)
    if probabilities.min() < 0 or not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise ValueError(
            f"probabilities go from {probabilities.min():g} to {probabilities.max():g} and must "
            "add up to 1 in each row: take the softmax of the scores first"
        )
    confidence = probabilities.max(1)
    answers = pd.DataFrame(
        {"confidence": confidence, "accuracy": probabilities.argmax(1) == labels}
    )
    edges = np.linspace(0, 1, bins + 1)
    groups = answers.groupby(np.clip(np.searchsorted(edges, confidence) - 1, 0, bins - 1))
    table = groups.mean().reindex(range(bins))
    table["count"] = groups.size().reindex(range(bins), fill_value=0)
    table["low"] = edges[:-1]
    table["high"] = edges[1:]
    error = ((table.accuracy - table.confidence).abs() * table["count"]).sum() / len(labels)
    return float(error), table[["low", "high", "count", "confidence", "accuracy"]]


def medmnist_auc(probabilities: ArrayLike, labels: ArrayLike) -> float | None:
    """The mean over classes of the AUC of class c against the rest, as MedMNIST's evaluator takes.

    Its getAUC for multi-class and ordinal regression (Yang et al. 2023): every class counts alike,
    and the order of grades does not count.

    Args:
        probabilities: (n, N).
        labels: (n,) int.

    Returns:
        The mean, or None where a class does not occur or is all there is.

    Raises:
        ValueError: shapes that do not fit, NaN, or labels out of range.
    """
    from sklearn.metrics import roc_auc_score

    probabilities, labels = _checked(probabilities, labels)
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    if not counts.all() or len(counts) < 2:
        return None
    areas = [roc_auc_score(labels == c, probabilities[:, c]) for c in range(len(counts))]
    return float(np.mean(areas))
