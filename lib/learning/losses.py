"""What a network of N grade scores is trained to minimise, and how its scores become a grade.

CLEAR needs one kernel for each grade, so every loss takes scores S (B, N) and none changes the
network. A loss returns two tensors (B,): an example's loss, and the number of terms it sums. The
loss of a batch is the sum of the first over the sum of the second, however the batch was split.
"""

import torch
from torch import Tensor
from torch.nn import functional

_SMOOTHING = 0.1


def require_labels(labels: Tensor, classes: int, whose: str = "a batch") -> None:
    """Refuse labels that the losses would read each in its own way: -100 is one.

    Args:
        labels: of any shape and type.
        classes: N, how many grades there are.
        whose: labels, for the message.

    Raises:
        ValueError: they are not (n,) int64 in 0..N-1; the message tells which and how many.
    """
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(
            f"the labels of {whose} are {labels.dtype} {tuple(labels.shape)}: one whole number "
            "(int64) is needed for each example"
        )
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        values, counts = outside.unique(return_counts=True)
        found = [f"{value} ({count})" for value, count in zip(values[:5], counts, strict=False)]
        raise ValueError(
            f"the labels of {whose} are to be 0 to {classes - 1}, the grades that the network "
            f"answers, and {len(outside)} of {len(labels)} are not: {', '.join(found)}. Leave "
            "those examples out or label them anew, or build a network of more grades"
        )


def cross_entropy(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(S)_y, the paper's loss: every wrong grade is as wrong as any other.

    Args:
        scores: (B, N) floating point.
        labels: (B,) int64 in 0..N-1.

    Returns:
        The losses (B,) and their numbers of terms (B,), all 1.

    Raises:
        ValueError: as `require_labels`, like every loss.
    """
    require_labels(labels, scores.shape[1])
    losses = functional.cross_entropy(scores, labels, reduction="none")
    return losses, torch.ones_like(losses)


def label_smoothing(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy with a tenth of the target spread over all grades (Szegedy et al. 2016).

    Args:
        scores: (B, N) floating point.
        labels: (B,) int64 in 0..N-1.

    Returns:
        The losses (B,) and their numbers of terms (B,), all 1.
    """
    require_labels(labels, scores.shape[1])
    losses = functional.cross_entropy(scores, labels, reduction="none", label_smoothing=_SMOOTHING)
    return losses, torch.ones_like(losses)


def expected_grade(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy plus (sum_c c softmax(S)_c - y)²: an expected grade far off costs more.

    Args:
        scores: (B, N) floating point.
        labels: (B,) int64 in 0..N-1.

    Returns:
        The losses (B,) and their numbers of terms (B,), all 1.
    """
    losses, terms = cross_entropy(scores, labels)
    return losses + (expected(scores.softmax(1)) - labels) ** 2, terms


def corn(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """CORN (Shi, Cao, Raschka 2021, Eq. 5): N - 1 tasks, is y above k, given that y >= k?

    CORN has an output for each task. Here the log-odds of task k are S_{k+1} - S_k, so that each
    grade keeps a kernel; an affine head can take on the same values either way. Only examples with
    y >= k enter task k, and the mean is over the examples of all tasks. The highest score is then
    not the answer: read the scores with `probabilities` and `answered_grades`. (With the log-odds
    that softmax(S) implies, the conditionals would multiply to the softmax again, and CORN would be
    cross-entropy times a factor that depends on the batch alone.)

    Args:
        scores: (B, N) floating point.
        labels: (B,) int64 in 0..N-1.

    Returns:
        The losses (B,), summed over an example's tasks, and its numbers of tasks (B,).
    """
    require_labels(labels, scores.shape[1])
    log_odds = scores.diff(dim=1)
    tasks = torch.arange(scores.shape[1] - 1, device=scores.device)
    above = (labels[:, None] > tasks).to(log_odds)
    entered = (labels[:, None] >= tasks).to(log_odds)
    losses = functional.binary_cross_entropy_with_logits(log_odds, above, reduction="none")
    return (entered * losses).sum(1), entered.sum(1)


LOSSES = {
    "cross-entropy": cross_entropy,
    "label-smoothing": label_smoothing,
    "corn": corn,
    "expected-grade": expected_grade,
}


def probabilities(scores: Tensor, loss: str = "cross-entropy") -> Tensor:
    """The probabilities of the grades, as a network that was trained with `loss` means its scores.

    They are softmax(S), but for "corn" the chain rule over its tasks gives
    P(y > k) = prod_{j <= k} sigmoid(S_{j+1} - S_j), and P(y = k) = P(y > k-1) - P(y > k).

    Args:
        scores: (B, N) floating point.
        loss: one of `LOSSES`.

    Returns:
        (B, N), each row summing to 1.
    """
    if loss != "corn":
        return scores.softmax(1)
    above = scores.diff(dim=1).sigmoid().cumprod(1)
    certain = torch.ones_like(scores[:, :1])
    return -torch.cat([certain, above, 0 * certain], dim=1).diff(dim=1)


def expected(probabilities: Tensor) -> Tensor:
    """The expected grade sum_c c P(y = c).

    Args:
        probabilities: (B, N) floating point.

    Returns:
        (B,) in [0, N - 1].
    """
    return probabilities @ torch.arange(probabilities.shape[1]).to(probabilities)


def answered_grades(probabilities: Tensor, loss: str = "cross-entropy") -> Tensor:
    """The grades that a network answers with, by the rule that belongs to the `loss`.

    It is the likeliest grade; for "corn" its paper's rule, the number of k with P(y > k) > 1/2; for
    "expected-grade" the expected grade rounded to the nearest, a half upwards.

    Args:
        probabilities: (B, N) floating point, as `probabilities` gives them or means of such.
        loss: one of `LOSSES`.

    Returns:
        (B,) int64 in 0..N-1.
    """
    if loss == "corn":
        above = 1 - probabilities.cumsum(1)[:, :-1]
        return (above > 0.5).sum(1)
    if loss == "expected-grade":
        return (expected(probabilities).double() + 0.5).floor().long()
    return probabilities.argmax(1)
