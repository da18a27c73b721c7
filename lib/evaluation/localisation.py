"""Where a map lies: against boxes, against lesions, and in the retina.

scikit-learn is imported inside the function that needs it, so that explaining one photograph
starts without it.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import ndimage

_Box = tuple[float, float, float, float]  # (x0, y0, x1, y1) in pixels, x1 and y1 exclusive


def bounding_box(activation_map: ArrayLike, threshold: float = 0.2) -> tuple[int, int, int, int]:
    """The box round the largest connected part of a map above `threshold` x its maximum.

    Zhou 2016, section 3.2: 20 % of the maximum. Neighbours share an edge; of parts equally large,
    the uppermost counts.

    Args:
        activation_map: (H, W).
        threshold: a share of the maximum, in [0, 1).

    Returns:
        (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.

    Raises:
        ValueError: a map without a positive finite maximum, the same everywhere, or a threshold
            outside [0, 1).
    """
    if torch.is_tensor(activation_map):
        activation_map = activation_map.detach().cpu().float()
    values = np.asarray(activation_map)
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold is {threshold}; give a share of the map's maximum, 0 <= threshold < 1"
        )
    if values.ndim != 2 or not np.isfinite(values).all() or values.max() <= max(values.min(), 0):
        raise ValueError(
            f"no box in a map of shape {values.shape} with values from {values.min()} to "
            f"{values.max()}: give a finite map (H, W), not the same everywhere, with a positive "
            "maximum"
        )
    parts, _ = ndimage.label(values > threshold * values.max())
    largest = np.bincount(parts.ravel())[1:].argmax()
    rows, columns = ndimage.find_objects(parts)[largest]
    return columns.start, rows.start, columns.stop, rows.stop


def iou(a: _Box, b: _Box) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1), x1 and y1 exclusive: in [0, 1].

    Raises:
        ValueError: a box without area, NaN or infinite corners.
    """
    a, b = [float(corner) for corner in a], [float(corner) for corner in b]  # uint8 would wrap
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    area = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    if any(x0 >= x1 or y0 >= y1 for x0, y0, x1, y1 in (a, b)) or not math.isfinite(sum(area)):
        raise ValueError(f"boxes {tuple(a)} and {tuple(b)}: finite x1 > x0 and y1 > y0 are needed")
    return float(both / (sum(area) - both))


def _fits(box: _Box, instances: Iterable[_Box]) -> bool:
    """Whether a box is right in place: IoU >= 0.5 with any instance of the object."""
    return any(iou(box, instance) >= 0.5 for instance in instances)


def _share(right: list[bool]) -> float:
    if not right:
        raise ValueError("there are no images to score: give at least one")
    return float(np.mean(right))


def localisation_error(
    predicted: Iterable, boxes: Iterable, labels: Iterable, true_boxes: Iterable
) -> float:
    """ILSVRC's localisation error (Zhou 2016, 3.2): images with no answer right in class and place.

    An answer is right in place where its box has IoU >= 0.5 with any instance of the label.

    Args:
        predicted: (n, k) answered classes: k = 1 gives the top-1 error, k = 5 the top-5 error.
        boxes: (n, k, 4), a box for each answered class.
        labels: (n,) true classes.
        true_boxes: for each image (m, 4), m >= 1 instances of the label.

    Returns:
        The share of images, in [0, 1].

    Raises:
        ValueError: lists of different lengths or none, or boxes without area.
    """
    right = []
    images = zip(predicted, boxes, labels, true_boxes, strict=True)
    for classes, class_boxes, label, instances in images:
        answers = zip(classes, class_boxes, strict=True)
        boxes_of_label = [box for c, box in answers if c == label]
        right.append(any(_fits(box, instances) for box in boxes_of_label))
    return 1 - _share(right)


def known_class_accuracy(boxes: Iterable[_Box], true_boxes: Iterable) -> float:
    """GT-known localisation: the share of images whose box has IoU >= 0.5 with an instance.

    Args:
        boxes: (n, 4), of the labelled class' maps.
        true_boxes: for each image (m, 4), m >= 1 instances of the label.

    Returns:
        The share of images, in [0, 1].

    Raises:
        ValueError: lists of different lengths or none, or boxes without area.
    """
    pairs = zip(boxes, true_boxes, strict=True)
    return _share([_fits(box, instances) for box, instances in pairs])


def max_box_accuracy(
    maps: np.ndarray | torch.Tensor, true_boxes: Sequence, thresholds: Iterable[float]
) -> tuple[float, float]:
    """MaxBoxAcc (Choe et al. 2020): `known_class_accuracy` at the best threshold for all images.

    Args:
        maps: (n, H, W), of the labelled class, at the image's size. A map without a positive value
            has no box and fits none.
        true_boxes: for each image (m, 4), m >= 1 instances of the label.
        thresholds: shares of a map's maximum, to choose from.

    Returns:
        The accuracy and the threshold, the first of equally good ones.

    Raises:
        ValueError: maps with NaN, boxes that reach beyond them, lists of different lengths or none.
    """
    for i, (activation_map, instances) in enumerate(zip(maps, true_boxes, strict=True)):
        height, width = activation_map.shape
        if not torch.as_tensor(activation_map).isfinite().all():
            raise ValueError(f"the map of image {i} holds NaN or infinite values")
        for x0, y0, x1, y1 in instances:
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise ValueError(
                    f"box {(x0, y0, x1, y1)} of image {i} reaches beyond its map of {width} x "
                    f"{height} pixels: boxes and maps must be of photographs of the same size"
                )
    found = []
    for threshold in thresholds:
        boxes = []
        for activation_map in maps:
            has_box = activation_map.max() > 0
            boxes.append(bounding_box(activation_map, threshold) if has_box else (0, 0, 1, 1))
        found.append((known_class_accuracy(boxes, true_boxes), threshold))
    return max(found, key=lambda pair: pair[0])


def pointing_game(response: ArrayLike, mask: ArrayLike) -> bool:
    """Whether the response's maximum lies inside the mask (Zhang et al. 2016).

    The first in reading order of equal maxima counts. A response without a positive value points
    nowhere: False.

    Args:
        response: (H, W).
        mask: (H, W) bool.

    Raises:
        ValueError: shapes that do not fit, or NaN.
    """
    response, mask = _fitting(response, mask)
    return bool(mask.flat[response.argmax()] and response.max() > 0)


def share_inside(response: ArrayLike, mask: ArrayLike) -> float:
    """The share of the positive response that lies inside the mask.

    By chance it is the mask's share of the area in which a response can lie.

    Args:
        response: (H, W).
        mask: (H, W) bool.

    Returns:
        1 for all, 0 for none or no response at all.

    Raises:
        ValueError: shapes that do not fit, or NaN.
    """
    response, mask = _fitting(response, mask)
    positive = response.clip(min=0)
    return float(positive[mask].sum() / positive.sum()) if positive.any() else 0.0


def _fitting(response: ArrayLike, mask: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    response, mask = np.asarray(response, float), np.asarray(mask, bool)
    if response.shape != mask.shape or response.ndim != 2:
        raise ValueError(f"response {response.shape} and mask {mask.shape} must both be (H, W)")
    if not np.isfinite(response).all():
        raise ValueError(
            "the response holds NaN or infinite values; look at the network's weights and the image"
        )
    return response, mask


def widen(mask: ArrayLike, tolerance: float) -> np.ndarray:
    """The mask and all within `tolerance` pixels of it.

    Kernels answer to edges, so a response lies on a lesion and just around it.

    Args:
        mask: (H, W) bool.
        tolerance: pixels, at least 0.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: a negative tolerance.
    """
    mask = np.asarray(mask, bool)
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; give pixels, at least 0")
    if tolerance == 0 or not mask.any():
        return mask
    return ndimage.distance_transform_edt(~mask) <= tolerance


def lesion_scores(
    response: ArrayLike,
    masks: Mapping[str, ArrayLike],
    retina: ArrayLike,
    tolerance: float = 0,
    traps: Collection[str] = (),
) -> pd.DataFrame:
    """How well a response finds each kind of lesion in one photograph, beside chance.

    Args:
        response: (H, W).
        masks: {lesion: bool (H, W)}.
        retina: (H, W) bool; lesions count within it only.
        tolerance: pixels by which the masks are widened, see `widen`.
        traps: the names in `masks` that are no lesions, as the optic disc, which is as bright and
            sharp as one. They are scored as well, but are not in "any lesion".

    Returns:
        A row for each kind that is there, so none for a healthy retina: lesion ("any lesion"
        first); pointing (`pointing_game`); inside (`share_inside`); precision, the average
        precision of the retina's pixels as detections, the area under the precision-recall curve;
        chance, the widened lesion's share of the retina, about what each of the three is worth to
        a response spread evenly over it.

    Raises:
        ValueError: masks without a lesion's, an empty retina, NaN, or shapes that do not fit.
    """
    from sklearn.metrics import average_precision_score

    response, retina = np.asarray(response, float), np.asarray(retina, bool)
    lesions = [mask for name, mask in masks.items() if name not in traps]
    if not lesions:
        raise ValueError(
            f"masks of {list(masks)} hold no lesion: prepare photographs whose lesions are known"
        )
    shapes = [np.shape(mask) for mask in masks.values()]
    if {retina.shape, *shapes} != {response.shape} or not retina.any():
        raise ValueError(
            f"response {response.shape}, retina {retina.shape} of {retina.sum()} pixels and masks "
            f"{shapes}: all (H, W), and some retina"
        )
    rows = []
    for name, mask in {"any lesion": np.any(lesions, 0), **masks}.items():
        lesion = widen(mask, tolerance) & retina
        if lesion.any():
            hit = pointing_game(response, lesion)
            inside = share_inside(response, lesion)
            precision = average_precision_score(lesion[retina], response[retina])
            rows.append((name, hit, inside, precision, lesion.sum() / retina.sum()))
    return pd.DataFrame(rows, columns=["lesion", "pointing", "inside", "precision", "chance"])


def detections(
    response: ArrayLike, retina: ArrayLike, smoothing: float = 0.005, apart: float = 0.01
) -> np.ndarray:
    """The map as a detector of lesions: its peaks in the retina, each with a score.

    Peaks of the smoothed map as CAMELYON16's FROC takes them from a heat map (Ehteshami Bejnordi
    et al. 2017; MONAI's `ProbNMS`): of the pixels in a square the highest alone is kept.

    Args:
        response: (H, W); its positive part counts.
        retina: (H, W) bool; outside of it nothing is detected.
        smoothing: the Gaussian's standard deviation, a share of the width.
        apart: half the square's side, a share of the width; 1 pixel at least.

    Returns:
        (n, 3) float64: row, column and score, the smoothed response there.

    Raises:
        ValueError: shapes that do not fit, or NaN.
    """
    response, retina = _fitting(response, retina)
    width = response.shape[1]
    smooth = ndimage.gaussian_filter(response.clip(min=0) * retina, smoothing * width) * retina
    reach = max(round(apart * width), 1)
    peaks = (smooth > 0) & (smooth == ndimage.maximum_filter(smooth, 2 * reach + 1))
    parts, _ = ndimage.label(peaks, np.ones((3, 3)))  # neighbours of one height are one peak
    rows, columns = np.nonzero(peaks)
    _, first = np.unique(parts[peaks], return_index=True)
    rows, columns = rows[first], columns[first]
    return np.column_stack([rows, columns, smooth[rows, columns]])


def lesion_hits(
    found: ArrayLike,
    masks: Mapping[str, ArrayLike],
    retina: ArrayLike,
    tolerance: float = 0,
    traps: Collection[str] = (),
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Which lesions of one photograph the detections find, and which detections are false.

    A lesion is a connected part of a kind's mask, pixels that share a corner connected. It is found
    by each detection within `tolerance` of it (`widen`), so that one detection may find two lesions
    that touch. A detection that finds no lesion of any kind is a false positive.

    Args:
        found: (n, 3), as `detections` returns them.
        masks: {lesion: bool (H, W)}.
        retina: (H, W) bool; lesions count within it only.
        tolerance: pixels, at least 0.
        traps: the names in `masks` that are no lesions, as the optic disc.

    Returns:
        {lesion: (lesions,) float64}, the score of the best detection of each, -inf for none; and
        the scores of the false positives.

    Raises:
        ValueError: masks that do not fit the retina, or a negative tolerance.
    """
    found, retina = np.asarray(found, float).reshape(-1, 3), np.asarray(retina, bool)
    shapes = [np.shape(mask) for mask in masks.values()]
    if {retina.shape, *shapes} != {retina.shape} or not tolerance >= 0:
        raise ValueError(
            f"masks {shapes}, retina {retina.shape}, tolerance {tolerance}: all (H, W), and pixels"
        )
    rows, columns = found[:, :2].astype(int).T
    scores = found[:, 2]
    reach = math.floor(tolerance)
    steps = [step for step in np.ndindex(2 * reach + 1, 2 * reach + 1)]
    near = [step for step in steps if math.dist(step, (reach, reach)) <= tolerance]
    hits = {}
    true = np.zeros(len(found), bool)
    for name, mask in masks.items():
        if name in traps:
            continue
        parts, count = ndimage.label(np.asarray(mask, bool) & retina, np.ones((3, 3)))
        parts = np.pad(parts, reach)
        best = np.full(count + 1, -np.inf)
        for down, across in near:
            part = parts[rows + down, columns + across]
            np.maximum.at(best, part, scores)
            true |= part > 0
        hits[name] = best[1:]
    return hits, scores[~true]


def froc(best: ArrayLike, false: ArrayLike, photographs: int) -> pd.DataFrame:
    """The free-response ROC curve: lesions found against false positives a photograph.

    Chakraborty 1989; CAMELYON16 scores the localisation of metastases by it. One threshold for all
    photographs runs through all scores from above.

    Args:
        best: (lesions,) of all photographs, as `lesion_hits` returns them.
        false: (false positives,) scores, of all photographs.
        photographs: how many there are, those without a lesion as well.

    Returns:
        A row for each threshold: threshold, false_positives (a photograph), sensitivity (the share
        of the lesions found). The first, infinity, finds nothing.

    Raises:
        ValueError: no lesion, no photograph, or NaN.
    """
    best, false = np.sort(np.asarray(best, float)), np.sort(np.asarray(false, float))
    if not best.size or photographs < 1 or np.isnan(best).any() or np.isnan(false).any():
        raise ValueError(
            f"{best.size} lesions in {photographs} photographs: give one at least, and no NaN"
        )
    scores = np.unique([*best, *false])
    thresholds = np.array([np.inf, *scores[np.isfinite(scores)][::-1]])
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "false_positives": (len(false) - np.searchsorted(false, thresholds)) / photographs,
            "sensitivity": 1 - np.searchsorted(best, thresholds) / len(best),
        }
    )


def froc_sensitivity(curve: pd.DataFrame, at: Sequence[float] = (1, 4, 8)) -> list[float]:
    """The share of lesions found with at most so many false positives a photograph.

    Args:
        curve: as `froc` returns it.
        at: false positives a photograph. Nothing is interpolated; a map with fewer peaks than that
            keeps what it has found with all of them.

    Returns:
        A share for each, in [0, 1].
    """
    return [float(curve.sensitivity[curve.false_positives <= most].max()) for most in at]


def grade_shares(grade_map: ArrayLike, response: ArrayLike, grades: int = 5) -> np.ndarray:
    """The share of the positive response that is for each grade.

    Args:
        grade_map: int, the dominant grade at some pixels (`clear.dominant`).
        response: of the same shape, its response there.
        grades: how many there are.

    Returns:
        (grades,), adding up to 1; NaN where nothing responds.

    Raises:
        ValueError: shapes that do not fit, NaN, or grades out of range.
    """
    sums, _ = _grade_sums(grade_map, response, grades)
    return sums / sums.sum() if sums.any() else np.full(grades, np.nan)


def grade_matrix(
    grade_maps: Iterable, responses: Iterable, masks: Iterable[Mapping], grades: int = 5
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Which grade dominates the pixels of each kind of lesion, pooled over the photographs.

    Args:
        grade_maps: (n, H, W) int, the dominant grades (`clear.dominant`).
        responses: (n, H, W), their responses.
        masks: for each photograph {lesion: bool (H, W)}, widened or not.
        grades: how many there are.

    Returns:
        Two tables (lesion x grade) whose rows add up to 1: the first shares out the positive
        response, the second the pixels that respond positively (of the others, the dominant grade
        is an accident). The last row, "everywhere", is what a colour that means no lesion has in
        each. NaN for lesions without a response.

    Raises:
        ValueError: lists of different lengths, shapes that do not fit, NaN, or grades out of range.
    """
    sums = {}
    everywhere = np.zeros((2, grades))
    for grade_map, response, kinds in zip(grade_maps, responses, masks, strict=True):
        grade_map, response = np.asarray(grade_map), np.asarray(response, float)
        everywhere += _grade_sums(grade_map, response, grades)
        for lesion, mask in kinds.items():
            if np.shape(mask) != response.shape:
                raise ValueError(
                    f"the mask {np.shape(mask)} of {lesion} does not fit the response "
                    f"{response.shape}"
                )
            sums.setdefault(lesion, np.zeros((2, grades)))
            sums[lesion] += _grade_sums(grade_map[mask], response[mask], grades)
    sums["everywhere"] = everywhere
    by_response = pd.DataFrame({lesion: pair[0] for lesion, pair in sums.items()}).T
    by_pixels = pd.DataFrame({lesion: pair[1] for lesion, pair in sums.items()}).T
    return (
        by_response.div(by_response.sum(axis=1), axis=0),
        by_pixels.div(by_pixels.sum(axis=1), axis=0),
    )


def _grade_sums(grade_map: ArrayLike, response: ArrayLike, grades: int) -> np.ndarray:
    """(2, grades): the positive response whose dominant grade is each, and its pixels."""
    grade_map, response = np.asarray(grade_map).ravel(), np.asarray(response, float).ravel()
    if grade_map.shape != response.shape or not np.isfinite(response).all():
        raise ValueError(
            f"grades of {grade_map.size} pixels for {response.size} responses, which must be finite"
        )
    if grade_map.size and not 0 <= grade_map.min() <= grade_map.max() < grades:
        raise ValueError(
            f"dominant grades from {grade_map.min()} to {grade_map.max()}, but grades "
            f"0..{grades - 1}"
        )
    positive = response > 0
    by_response = np.bincount(grade_map[positive], response[positive], grades)
    return np.stack([by_response, np.bincount(grade_map[positive], minlength=grades)])


def agreement(
    grade_maps: Iterable, responses: Iterable, predicted: ArrayLike, grades: int = 5
) -> tuple[float, float]:
    """How often the grade with the most response is the predicted one, and how often by chance.

    Args:
        grade_maps: (n, H, W) int, the dominant grades (`clear.dominant`).
        responses: (n, H, W), their responses. A photograph without a positive one agrees with
            nothing.
        predicted: (n,) int.
        grades: how many there are.

    Returns:
        The two shares of photographs. Chance: most responding and predicted grades dealt out at
        random, each as often as it occurs.

    Raises:
        ValueError: shapes that do not fit, NaN, or grades out of range.
    """
    most = []
    for grade_map, response in zip(grade_maps, responses, strict=True):
        shares = grade_shares(grade_map, response, grades)
        most.append(-1 if np.isnan(shares).any() else shares.argmax())
    most, predicted = np.array(most), np.asarray(predicted)
    if predicted.shape != most.shape or not most.size:
        raise ValueError(
            f"{len(most)} maps for {predicted.shape} predicted grades: give one for each photograph"
        )
    chance = sum((most == grade).mean() * (predicted == grade).mean() for grade in range(grades))
    return float((most == predicted).mean()), float(chance)


class Region(NamedTuple):
    """A part of a map: where it is, in pixels, and its share of the positive response."""

    box: tuple[int, int, int, int]  # (x0, y0, x1, y1), x1 and y1 exclusive
    centre: tuple[float, float]  # (x, y); the middle of the upper left pixel is at (0.5, 0.5)
    share: float


def attentive_regions(R: ArrayLike, n: int = 3) -> list[Region]:
    """The most attentive regions of a response; the first, with most of it, is the red box.

    A region is a connected part where R, its positive part smoothed by a Gaussian of 3 % of the
    width, exceeds half its maximum. Its centre is the smoothed response's centre of gravity.

    Args:
        R: (H, W).
        n: how many regions at the most.

    Returns:
        The regions, most response first; none without a positive value.

    Raises:
        ValueError: NaN, or another shape.
    """
    R = np.asarray(R, float)
    if R.ndim != 2 or not np.isfinite(R).all():
        raise ValueError(f"R of shape {R.shape} must be a finite map (H, W)")
    positive = R.clip(min=0)
    if not positive.any():
        return []
    smooth = ndimage.gaussian_filter(positive, 0.03 * R.shape[1])
    parts, count = ndimage.label(smooth > smooth.max() / 2)
    sums = ndimage.sum_labels(positive, parts, range(1, count + 1))
    places = ndimage.find_objects(parts)
    regions = []
    for i in np.argsort(-sums, kind="stable")[:n]:
        rows, columns = places[i]
        box = columns.start, rows.start, columns.stop, rows.stop
        y, x = ndimage.center_of_mass(smooth, parts, i + 1)
        centre = float(x) + 0.5, float(y) + 0.5
        regions.append(Region(box, centre, float(sums[i] / positive.sum())))
    return regions


def clock_hour(
    point: tuple[float, float], origin: tuple[float, float], diameter: float
) -> tuple[int, float]:
    """Where a point lies, seen from an origin, as one reads a clock's face.

    From the middle of a prepared photograph, `clock_hour(centre, (size / 2, size / 2), size)` has
    retinal diameters; from the disc's centre and with its diameter, disc diameters.

    Args:
        point: (x, y) in pixels, y downwards.
        origin: likewise.
        diameter: in pixels.

    Returns:
        The hour, 1 to 12, and the distance in diameters. 12 is up and the hours go clockwise as
        seen, whichever the eye. At the origin itself the hour, 12, means nothing.

    Raises:
        ValueError: a diameter that is not positive.
    """
    if not diameter > 0:
        raise ValueError(f"diameter is {diameter}; give pixels, more than 0")
    right = point[0] - origin[0]
    up = origin[1] - point[1]
    hour = round(math.atan2(right, up) / math.tau * 12) % 12 or 12
    return hour, math.hypot(right, up) / diameter
