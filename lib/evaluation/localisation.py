"""The response scored as a detector of lesions, and where in the retina it is: what CLEAR-DR did not measure."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.metrics import average_precision_score

from lib.evaluation import grading as scores

DISC = "optic_disc"  # the trap: as bright and sharp as a lesion, and none


def widened(mask, tolerance):
    """The mask (H, W) and all within `tolerance` pixels of it. Raises ValueError for a negative tolerance."""
    mask = np.asarray(mask, bool)
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; give pixels, at least 0")
    return ndimage.distance_transform_edt(~mask) <= tolerance if tolerance and mask.any() else mask


def scored(response, masks, retina, tolerance=0):
    """A row for each kind of lesion in one photograph: how well the response (H, W) finds it, beside chance.

    masks      {lesion: bool (H, W)}; `DISC`, if there, is scored as one more kind, but is not in "any lesion"
    retina     bool (H, W): lesions count within it only
    tolerance  pixels by which the masks are widened: kernels answer to edges, on a lesion and just around it
    Columns: lesion ("any lesion" first); pointing, whether the maximum hits (`scores.pointing_game`); inside, the share
    of the positive response (`scores.share_inside`); precision, the average precision of the response's pixels within
    the retina as detections, the area under the precision-recall curve; chance, the widened lesion's share of the
    retina, about what each of the three is worth to a response spread evenly over it. A kind that is not there has no
    row: a healthy retina gives an empty table. Raises ValueError for masks without a lesion's, an empty retina, NaN and
    shapes that do not fit.
    """
    response, retina = np.asarray(response, float), np.asarray(retina, bool)
    lesions = [mask for lesion, mask in masks.items() if lesion != DISC]
    if not lesions:
        raise ValueError(
            f"masks of {list(masks)} hold no lesion: prepare photographs whose lesions are known"
        )
    if (
        not {np.shape(mask) for mask in (retina, *masks.values())} == {response.shape}
        or not retina.any()
    ):
        raise ValueError(f"response {response.shape}, retina {retina.shape} of {retina.sum()} pixels and masks "
                         f"{[np.shape(mask) for mask in masks.values()]}: all (H, W), and some retina")  # fmt: skip
    rows = []
    for lesion, mask in {"any lesion": np.any(lesions, 0), **masks}.items():
        if (found := widened(mask, tolerance) & retina).any():
            hit, inside = (
                scores.pointing_game(response, found),
                scores.share_inside(response, found),
            )
            precision = average_precision_score(found[retina], response[retina])
            rows.append((lesion, hit, inside, precision, found.sum() / retina.sum()))
    return pd.DataFrame(rows, columns=["lesion", "pointing", "inside", "precision", "chance"])


def grade_shares(grade_map, response, grades=5):
    """The share of the positive response that is for each grade, (grades,); NaN where nothing responds.

    grade_map int and response, of one shape: the dominant grade and its response at some pixels (`clear.dominant`).
    """
    sums = _sums(grade_map, response, grades)[0]
    return sums / sums.sum() if sums.any() else np.full(grades, np.nan)


def grade_matrix(grade_maps, responses, masks, grades=5):
    """Which grade dominates the pixels of each kind of lesion: two tables (lesion x grade) whose rows add up to 1.

    grade_maps int and responses (n, H, W), masks a list of n {lesion: bool (H, W)}, widened or not. The first table
    shares out the positive response, the second the pixels that respond positively (of the others, the dominant
    grade is an accident), both pooled over the photographs. The last row, "everywhere", is what a colour that means no
    lesion has in each. NaN for lesions without a response. Raises ValueError for lists of different lengths.
    """
    totals = {}
    for grade_map, response, kinds in zip(grade_maps, responses, masks, strict=True):
        grade_map, response = np.asarray(grade_map), np.asarray(response, float)
        for lesion, mask in kinds.items():
            if np.shape(mask) != response.shape:
                raise ValueError(
                    f"the mask {np.shape(mask)} of {lesion} does not fit the response {response.shape}"
                )
            totals[lesion] = totals.get(lesion, 0) + _sums(grade_map[mask], response[mask], grades)
        totals["everywhere"] = totals.get("everywhere", 0) + _sums(grade_map, response, grades)
    totals["everywhere"] = totals.pop("everywhere")
    tables = (
        pd.DataFrame({lesion: sums[i] for lesion, sums in totals.items()}).T for i in range(2)
    )
    return tuple(table.div(table.sum(axis=1), axis=0) for table in tables)


def _sums(grade_map, response, grades):
    """(2, grades): the positive response whose dominant grade is each, and its pixels."""
    grade_map, response = np.asarray(grade_map).ravel(), np.asarray(response, float).ravel()
    if grade_map.shape != response.shape or not np.isfinite(response).all():
        raise ValueError(
            f"grades of {grade_map.size} pixels for {response.size} responses, which must be finite"
        )
    if grade_map.size and not 0 <= grade_map.min() <= grade_map.max() < grades:
        raise ValueError(
            f"dominant grades from {grade_map.min()} to {grade_map.max()}, but grades 0..{grades - 1}"
        )
    grade, positive = grade_map[response > 0], response[response > 0]
    return np.stack([np.bincount(grade, positive, grades), np.bincount(grade, minlength=grades)])


def agreement(grade_maps, responses, predicted, grades=5):
    """How often the grade with the most response is the predicted one, and how often it would be by chance.

    grade_maps int and responses (n, H, W) of `clear.dominant`, predicted (n,). Chance: the two dealt out at random,
    each as often as it occurs. A photograph without a positive response agrees with nothing.
    """
    shares = [grade_shares(*pair, grades) for pair in zip(grade_maps, responses, strict=True)]
    most, predicted = (
        np.array([-1 if np.isnan(share[0]) else share.argmax() for share in shares]),
        np.asarray(predicted),
    )
    if predicted.shape != most.shape:
        raise ValueError(
            f"{len(most)} maps for {predicted.shape} predicted grades: give one for each photograph"
        )
    chance = sum((most == grade).mean() * (predicted == grade).mean() for grade in range(grades))
    return float((most == predicted).mean()), float(chance)


class Region(NamedTuple):
    """A part of a map: its box (x0, y0, x1, y1), x1 and y1 exclusive, its centre (x, y), its share of the response."""

    box: tuple
    centre: tuple
    share: float


def attentive_regions(R, n=3):
    """Up to n regions of a response R (H, W), a list of `Region`; the first, with most of the response, is the red box.

    A region is a connected part where R, its positive part smoothed by a Gaussian of 3 % of the width, exceeds half
    its maximum. The centre is the smoothed response's centre of gravity, in pixels from the upper left corner (the
    first pixel's middle is at 0.5). No region without a positive value. Raises ValueError for NaN and other shapes.
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
        (rows, columns), (y, x) = places[i], ndimage.center_of_mass(smooth, parts, i + 1)
        box = columns.start, rows.start, columns.stop, rows.stop
        regions.append(
            Region(box, (float(x) + 0.5, float(y) + 0.5), float(sums[i] / positive.sum()))
        )
    return regions


def clock_hour(point, origin, diameter):
    """Where a point lies, seen from an origin: the hour on a clock's face, 1 to 12, and the distance in diameters.

    point and origin (x, y) in pixels, y downwards; 12 is up and the hours go clockwise as seen, whichever the eye. From
    the middle of a prepared photograph, `clock_hour(centre, (size / 2, size / 2), size)` has retinal diameters;
    from the disc's centre and with its diameter, disc diameters. At the origin itself the hour, 12, means nothing.
    """
    if not diameter > 0:
        raise ValueError(f"diameter is {diameter}; give pixels, more than 0")
    right, up = point[0] - origin[0], origin[1] - point[1]
    return round(math.atan2(right, up) / math.tau * 12) % 12 or 12, math.hypot(right, up) / diameter
