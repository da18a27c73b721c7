"""How good an answer is, beside what an answer that knows nothing would score."""

import numpy as np
import torch
from sklearn import metrics

from lib.methods import cam


def grading(probabilities, grades, predicted=None):
    """The scores of grading diabetic retinopathy, each beside what it is worth without skill, as one dictionary.

    probabilities (n, 5) summing to 1, grades (n,) int in 0..4, predicted (n,), the answers where they are not the
    likeliest grades. Returns accuracy and `majority_rate`, the accuracy of always answering the commonest grade;
    balanced_accuracy (chance 0.2); kappa, quadratically weighted (chance 0; None where one grade is all that is
    answered and all that is true); auc_referable, the area under the ROC curve of grade >= 2 (chance 0.5; None with one
    side only); recall (5,), None for a grade that does not occur; confusion (5, 5), rows true. Raises ValueError for
    shapes that do not fit, NaN, and grades that have no probability.
    """
    probabilities, grades = checked(probabilities, grades)
    labels = list(range(probabilities.shape[1]))
    predicted = probabilities.argmax(1) if predicted is None else np.asarray(predicted)
    confusion = metrics.confusion_matrix(grades, predicted, labels=labels)
    counts = confusion.sum(1)
    recall = [
        row[grade] / count if count else None
        for grade, (row, count) in enumerate(zip(confusion, counts, strict=True))
    ]
    constant = confusion.diagonal().max() == len(grades)
    referable = grades >= 2
    one_side = referable.all() or not referable.any()
    return {
        "accuracy": metrics.accuracy_score(grades, predicted),
        "majority_rate": counts.max() / counts.sum(),
        "balanced_accuracy": float(np.mean([share for share in recall if share is not None])),
        "kappa": None
        if constant
        else metrics.cohen_kappa_score(grades, predicted, labels=labels, weights="quadratic"),
        "auc_referable": None
        if one_side
        else metrics.roc_auc_score(referable, probabilities[:, 2:].sum(1)),
        "recall": recall,
        "confusion": confusion.tolist(),
    }


def checked(values, labels):
    """Scores or probabilities (n, N) float64 and labels (n,) int; raises ValueError for what `grading` cannot take."""
    values, labels = np.asarray(values, float), np.asarray(labels)
    if values.ndim != 2 or labels.shape != values.shape[:1] or not len(labels):
        raise ValueError(
            f"{values.shape} for labels {labels.shape} do not fit: give (n, N) and (n,), n > 0"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"row {int(np.argmin(np.isfinite(values).all(1)))} of the scores holds NaN or infinite values"
        )
    if not np.isin(labels, range(values.shape[1])).all():
        raise ValueError(f"labels {np.unique(labels)} must lie in 0..{values.shape[1] - 1}")
    return values, labels.astype(int)


def pointing_game(response, mask):
    """Whether the response's maximum lies inside the mask (Zhang et al. 2016); both (H, W).

    The first in reading order of equal maxima counts. A response without a positive value points nowhere: False.
    """
    response, mask = _pair(response, mask)
    return bool(mask.flat[response.argmax()] and response.max() > 0)


def share_inside(response, mask):
    """The share of the positive response that lies inside the mask, both (H, W): 1 all, 0 none or no response at all.

    By chance it is the mask's share of the area in which a response can lie.
    """
    response, mask = _pair(response, mask)
    positive = response.clip(min=0)
    return float(positive[mask].sum() / positive.sum()) if positive.any() else 0.0


def _pair(response, mask):
    response, mask = np.asarray(response, float), np.asarray(mask, bool)
    if response.shape != mask.shape or response.ndim != 2:
        raise ValueError(f"response {response.shape} and mask {mask.shape} must both be (H, W)")
    if not np.isfinite(response).all():
        raise ValueError(
            "the response holds NaN or infinite values; look at the network's weights and the image"
        )
    return response, mask


def iou(a, b):
    """Intersection over union of two boxes (x0, y0, x1, y1), x1 and y1 exclusive: in [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    if min(area) <= 0:
        raise ValueError(f"boxes {tuple(a)} and {tuple(b)}: x1 > x0 and y1 > y0 are needed")
    return float(both / (sum(area) - both))


def localisation_error(predicted, boxes, labels, true_boxes):
    """The share of images of which no answer is right in class and place: ILSVRC's localisation error (Zhou 2016, 3.2).

    predicted (n, k) classes and boxes (n, k, 4), one for each answered class: k = 1 gives the top-1 error, k = 5 the
    top-5 error. labels (n,), true_boxes a list of (m, 4) for each image, m >= 1 instances of the labelled class. An
    answer is right where its class is the label and its box has IoU >= 0.5 with any instance. Raises ValueError for
    lists of different lengths.
    """
    images = zip(predicted, boxes, labels, true_boxes, strict=True)
    right = [
        any(c == label and _fits(box, instances) for c, box in zip(answers, answered, strict=True))
        for answers, answered, label, instances in images
    ]
    return 1 - float(np.mean(right))


def known_class_accuracy(boxes, true_boxes):
    """GT-known localisation: the share of boxes (n, 4), of the labelled class' maps, which fit an instance."""
    return float(
        np.mean([_fits(box, instances) for box, instances in zip(boxes, true_boxes, strict=True)])
    )


def max_box_accuracy(maps, true_boxes, thresholds):
    """MaxBoxAcc (Choe et al. 2020): `known_class_accuracy` at the best threshold for all images, and that threshold.

    maps (n, H, W), of the labelled class, at the image's size. A map without a positive value has no box and fits none.
    """
    found = []
    for threshold in thresholds:
        boxes = [cam.box(map, threshold) if map.max() > 0 else (0, 0, 1, 1) for map in maps]
        found.append((known_class_accuracy(boxes, true_boxes), threshold))
    return max(found, key=lambda pair: pair[0])


def _fits(box, instances):
    return any(iou(box, instance) >= 0.5 for instance in instances)


def strong(response, threshold):
    """Where a response (B, H, W) is strong: positive and at least `threshold` x its image's maximum, as bool.

    CLEAR's Table 1 speaks of strong features and does not say above which level. Raises ValueError for a threshold
    outside [0, 1] and for a response with NaN.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold is {threshold}; give a share of the maximum, 0 <= threshold <= 1"
        )
    if response.isnan().any():
        raise ValueError("the response holds NaN; look at the network's weights and the images")
    return (response > 0) & (response >= threshold * response.amax((1, 2), keepdim=True))


def as_many_at_random(mask, generator):
    """A mask that is true in as many pixels of each image as `mask` (B, H, W), drawn at random: the control."""
    rank = torch.rand(mask.shape, generator=generator).flatten(1).argsort(1).argsort(1)
    return (rank < mask.flatten(1).sum(1, keepdim=True)).view(mask.shape)


@torch.no_grad()
def accuracy_with_and_without(network, images, labels, mask, patch, batch_size=256):
    """Accuracy with only what lies in `mask`, and without it (Kumar 2017, Table 1); everything else becomes `patch`.

    images (B, C, H, W), labels (B,), mask (B, H, W) bool, all on the CPU; `patch` is the value of what is taken away:
    the background for MNIST, grey for SVHN. Returns two numbers in [0, 1]. Raises ValueError where shapes do not fit.
    """
    if mask.shape != images[:, 0].shape or len(labels) != len(images):
        raise ValueError(f"mask {tuple(mask.shape)} and labels {tuple(labels.shape)} do not fit images "
                         f"{tuple(images.shape)}: give (B, H, W) and (B,)")  # fmt: skip
    device, right = next(network.parameters()).device, torch.zeros(2)
    with cam.evaluating(network):
        for x, label, inside in zip(
            *(t.split(batch_size) for t in (images, labels, mask[:, None])), strict=True
        ):
            for i, kept in enumerate((inside, ~inside)):
                scores = network(torch.where(kept, x, patch).to(device))
                right[i] += (scores.argmax(1).cpu() == label).sum()
    return tuple((right / len(labels)).tolist())
