"""What a network of N grade scores is trained to minimise, and how its scores are read: probabilities, expected grade.

CLEAR needs one kernel for each grade, so every objective takes scores S (B, N) and none changes the network. Each
returns two tensors (B,): an example's loss, and of how many terms it is the sum. The loss of a batch is the sum of the
one by the sum of the other, however the batch was split.
"""

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score
from torch.nn import functional

SMOOTHING = 0.1


def cross_entropy(scores, labels):
    """-log softmax(S)_y, the paper's: every wrong grade is as wrong as any other."""
    losses = functional.cross_entropy(scores, labels, reduction="none")
    return losses, torch.ones_like(losses)


def label_smoothing(scores, labels):
    """Cross-entropy with a tenth of the target spread over all grades alike (Szegedy et al. 2016)."""
    losses = functional.cross_entropy(scores, labels, reduction="none", label_smoothing=SMOOTHING)
    return losses, torch.ones_like(losses)


def expected_grade(scores, labels):
    """Cross-entropy plus the squared error of the expected grade, (sum_c c softmax(S)_c - y)²: far costs more."""
    losses, terms = cross_entropy(scores, labels)
    return losses + (expectation(scores.softmax(1)) - labels) ** 2, terms


def corn(scores, labels):
    """CORN (Shi, Cao, Raschka 2021, Eq. 5): N - 1 conditional binary tasks, is y above k, given that it is not below?

    CORN has an output for each task; here its log-odds are S_{k+1} - S_k, so that each grade keeps a kernel. An affine
    head can take on the same values either way. Task k sees the examples with y >= k; the mean is over all tasks'
    examples. The highest score is then not the answer: read the scores with `probabilities` and `answers`. (With the
    log-odds that softmax(S) implies, the conditionals multiply to the softmax again, and CORN would be cross-entropy
    times a factor that depends on the batch alone.)
    """
    odds, tasks = scores.diff(dim=1), torch.arange(scores.shape[1] - 1, device=scores.device)
    above = (labels[:, None] > tasks).to(odds)
    asked = (labels[:, None] >= tasks).to(odds)
    losses = functional.binary_cross_entropy_with_logits(odds, above, reduction="none")
    return (asked * losses).sum(1), asked.sum(1)


LOSSES = {
    "cross-entropy": cross_entropy, "label-smoothing": label_smoothing, "corn": corn, "expected-grade": expected_grade,
}  # fmt: skip


def probabilities(scores, loss="cross-entropy"):
    """The probabilities (B, N) of the grades, as a network that was trained with `loss` means its scores (B, N).

    softmax(S), but for "corn" P(y > k) = prod_{j <= k} sigmoid(S_{j+1} - S_j), and P(y = k) = P(y > k-1) - P(y > k).
    """
    if loss != "corn":
        return scores.softmax(1)
    return functional.pad(functional.pad(_above(scores), (1, 0), value=1), (0, 1)).diff(dim=1).neg()


def _above(scores):
    """CORN's P(y > k), (B, N - 1): the chain rule over its conditional tasks."""
    return scores.diff(dim=1).sigmoid().cumprod(1)


def expectation(probabilities):
    """The expected grade (B,), sum_c c P(y = c), of probabilities (B, N)."""
    return probabilities @ torch.arange(probabilities.shape[1]).to(probabilities)


def answers(scores, loss="cross-entropy", cuts=None):
    """The answered grade (B,) int64 from scores (B, N).

    The likeliest grade; for "corn" the number of k with P(y > k) > 1/2, its paper's rule; for "expected-grade", and
    where `cuts` (N - 1,) are given, the number of cuts that the expected grade reaches; without cuts it is rounded.
    """
    if cuts is None and loss == "corn":
        return (_above(scores) > 0.5).sum(1)
    p = probabilities(scores, loss)
    if cuts is None and loss != "expected-grade":
        return p.argmax(1)
    halves = torch.arange(1, p.shape[1]) - 0.5
    return torch.bucketize(
        expectation(p), (halves if cuts is None else torch.as_tensor(cuts)).to(p), right=True
    )


def kappa(answered, grades):
    """Quadratic weighted kappa (Cohen 1968); 0 where one grade is all that is answered and all that is true."""
    if torch.cat([answered, grades]).unique().numel() == 1:
        return 0.0
    return float(cohen_kappa_score(answered, grades, weights="quadratic"))


def thresholds(expected, grades, classes=5):
    """The cuts (classes - 1,) in ascending order with which `answers` reaches the highest quadratic weighted kappa.

    expected (n,) float, grades (n,) int in 0..classes-1, both of the validation part. With answers a and grades y,

        kappa = 1 - sum_i (y_i - a_i)² / sum_i ((a_i - mean y)² + var y),

    a ratio of two sums. Dinkelbach's iteration (1967) finds the least ratio exactly: take the ratio so far, choose the
    cuts for which numerator - ratio x denominator is least, by dynamic programming along the sorted expectations, and
    repeat until the ratio no longer falls. Raises ValueError for different lengths, values that are not finite, and
    grades that are all the same.
    """
    expected, grades = np.asarray(expected, float), np.asarray(grades, float)
    if expected.shape != grades.shape or not np.isfinite(expected).all():
        raise ValueError(
            f"expected grades {expected.shape} must be finite and as many as the grades {grades.shape}"
        )
    if len(np.unique(grades)) < 2:
        raise ValueError(
            f"all {len(grades)} grades are {grades[:1]}: kappa needs two, so no cut is better than another"
        )
    order, answer = np.argsort(expected), np.arange(classes)
    values, places = np.unique(expected[order], return_index=True)
    places = np.append(
        places, len(expected)
    )  # where a cut may lie: before every new value, and behind the last
    wrong = np.cumsum(np.vstack([0 * answer, (grades[order, None] - answer) ** 2]), axis=0)[places]
    chance = places[:, None] * ((answer - grades.mean()) ** 2 + grades.var())
    ratio, lower = np.inf, 1.0
    while lower < ratio - 1e-12:
        ratio = lower
        cost = wrong - ratio * chance  # of all up to a place, were they given one answer
        best, before = cost[:, 0], []
        for k in answer[1:]:
            change = best - cost[:, k]
            least = np.minimum.accumulate(change)
            before.append(
                np.maximum.accumulate(np.where(change == least, np.arange(len(places)), 0))
            )
            best = cost[:, k] + least
        ends = [len(places) - 1]
        for where in reversed(before):
            ends.insert(0, where[ends[0]])
        spans = list(zip(answer, [0, *ends[:-1]], ends, strict=True))
        lower = sum(wrong[b, k] - wrong[a, k] for k, a, b in spans) / sum(
            chance[b, k] - chance[a, k] for k, a, b in spans
        )
    middles = np.concatenate([[0], (values[1:] + values[:-1]) / 2, [classes]])
    return middles[ends[:-1]].tolist()
