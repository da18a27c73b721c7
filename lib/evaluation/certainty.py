"""How sure a score is, and how sure an answer may be of itself: intervals, tests, operating points, calibration."""

import warnings

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn import metrics

from lib.evaluation.grading import checked

TEMPERATURES = (1 / 20, 20)  # what `temperature` searches


def interval(statistic, *arrays, samples=2000, level=0.95, seed=0):
    """The percentile bootstrap interval (low, high) of `statistic(*arrays)` over photographs (Efron 1979).

    arrays     (n, ...) each, row i of photograph i; they are resampled together. The photographs must be independent:
               one eye of each patient.
    statistic  returns a number or an array of numbers (then low and high are arrays); None or NaN where a resample
               leaves it without a value, as AUC with one side only: such resamples are left out. Without a value in
               any resample, low and high are NaN.
    Raises ValueError for arrays of different lengths or none, and for level outside (0, 1).
    """
    arrays = [np.asarray(array) for array in arrays]
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"arrays of lengths {[len(array) for array in arrays]}: give one row for each photograph"
        )
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give the share of the interval, as 0.95")
    n = lengths.pop()
    drawn = np.random.default_rng(seed).integers(n, size=(samples, n))
    values = np.array([statistic(*(array[rows] for array in arrays)) for rows in drawn], float)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN")
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (low, high) if values.ndim > 1 else (float(low), float(high))


def mcnemar(right_a, right_b):
    """The exact McNemar test of two answers to the same photographs: p, and how often only a, only b was right.

    right_a, right_b (n,) bool. Where both answers are equally good, the photographs on which just one is right go to
    either with probability 1/2 (McNemar 1947), so the two-sided p is a binomial test's; 1 without such a photograph.
    Against the majority answer, right_b is `grades == majority`. Raises ValueError for shapes that do not fit.
    """
    right_a, right_b = np.asarray(right_a), np.asarray(right_b)
    if (
        right_a.shape != right_b.shape
        or right_a.ndim != 1
        or not right_a.dtype == right_b.dtype == bool
    ):
        raise ValueError(f"right answers {right_a.dtype} {right_a.shape} and {right_b.dtype} {right_b.shape}: "
                         "give bool (n,) twice")  # fmt: skip
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return (
        float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
        only_a,
        only_b,
    )


def operating_points(probabilities, grades, specificities=(0.87, 0.98)):
    """Sensitivity for referable retinopathy, grade >= 2, where the ROC curve reaches each specificity, as a table.

    A photograph is referred where P(grade >= 2) >= threshold; the lowest threshold with at least the specificity is
    taken. The defaults are where the literature reports: 0.87 Abramoff et al. 2016 (IDx-DR), 0.98 Gulshan et al. 2016.
    Columns wanted, threshold (inf: nobody is referred), sensitivity, specificity; NaN with one side only. Thresholds
    read off the photographs that are scored flatter; for a system, read them off validation and apply them to test.
    probabilities (n, N > 2), grades (n,). Raises ValueError for shapes that do not fit, NaN, grades out of range.
    """
    probabilities, grades = checked(probabilities, grades)
    referable, rows = grades >= 2, []
    if 0 < referable.sum() < len(grades):
        false, true, threshold = metrics.roc_curve(
            referable, probabilities[:, 2:].sum(1), drop_intermediate=False
        )
        for wanted in specificities:
            last = np.searchsorted(false, 1 - wanted + 1e-9, side="right") - 1
            rows.append((wanted, threshold[last], true[last], 1 - false[last]))
    else:
        rows = [(wanted, *[np.nan] * 3) for wanted in specificities]
    return pd.DataFrame(rows, columns=["wanted", "threshold", "sensitivity", "specificity"])


def temperature(scores, labels):
    """The temperature T whose softmax(scores / T) has the least negative log-likelihood (Guo et al. 2017, 4.2).

    scores (n, N) before the softmax and labels (n,), of the validation part. T > 1 makes answers less certain and never
    changes which is given. It is searched in `TEMPERATURES`: the lower end comes out where every answer is right, the
    upper where the scores say nothing of the labels. Raises ValueError for shapes that do not fit, NaN and
    labels out of range.
    """
    scores, labels = checked(scores, labels)

    def loss(log_temperature):
        return -log_softmax(scores / np.exp(log_temperature), 1)[
            np.arange(len(labels)), labels
        ].mean()

    found = minimize_scalar(
        loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def calibration_error(probabilities, labels, bins=15):
    """The expected calibration error and the reliability diagram's table (Guo et al. 2017, Eq. 3).

    ECE = sum_b n_b / n |accuracy_b - confidence_b|, over `bins` equal bins (low, high] of the confidence, the highest
    probability of a photograph. The table has a row for each bin: low, high, count, confidence, accuracy (means; NaN in
    an empty bin). probabilities (n, N), labels (n,). Raises ValueError for shapes that do not fit, labels out
    of range and rows that are no probabilities.
    """
    probabilities, labels = checked(probabilities, labels)
    if probabilities.min() < 0 or not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise ValueError(f"probabilities go from {probabilities.min():g} to {probabilities.max():g} and must add up to "
                         "1 in each row: take the softmax of the scores first")  # fmt: skip
    answers = pd.DataFrame(
        {"confidence": probabilities.max(1), "accuracy": probabilities.argmax(1) == labels}
    )
    edges = np.linspace(0, 1, bins + 1)
    groups = answers.groupby(np.clip(np.searchsorted(edges, answers.confidence) - 1, 0, bins - 1))
    table = groups.mean().assign(count=groups.size()).reindex(range(bins))
    table = table.assign(low=edges[:-1], high=edges[1:], count=table["count"].fillna(0).astype(int))
    error = ((table.accuracy - table.confidence).abs() * table["count"]).sum() / len(labels)
    return float(error), table[["low", "high", "count", "confidence", "accuracy"]]


def medmnist_auc(probabilities, labels):
    """The mean over classes of the area under the ROC curve of class c against the rest, as MedMNIST's evaluator takes.

    Its getAUC for multi-class and ordinal regression (Yang et al. 2023): every class counts alike, and the order of
    grades does not count. probabilities (n, N), labels (n,). None where a class does not occur or is all there is.
    Raises ValueError for shapes that do not fit, NaN and labels out of range.
    """
    probabilities, labels = checked(probabilities, labels)
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    if not counts.all() or len(counts) < 2:
        return None
    return float(
        np.mean(
            [metrics.roc_auc_score(labels == c, probabilities[:, c]) for c in range(len(counts))]
        )
    )
