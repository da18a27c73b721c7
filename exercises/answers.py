"""The right answer to each exercise, and wrong ones that have a name.

A right answer is a value, or a function that is compared with the learner's on a few small cases:
random tensors, and phantoms drawn on the spot. Where `lib` has the function it is taken from there.
A named misconception has what it gives in place of the right answer, and the sentence that says
what is wrong with it. Whoever does the exercises need not read this file.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from sklearn import metrics
from torch import Tensor, nn
from torch.nn import functional

from lib import explain
from lib.data import phantom, retina
from lib.evaluation import faithfulness, grading, localisation
from lib.learning import networks
from lib.methods import cam, clear


class Exercise(NamedTuple):
    """What is right, what is wrong in a way that has a name, and what functions are tried on."""

    right: Any
    wrong: dict[str, tuple[Any, str]]
    cases: Callable[[], list[tuple]] | None = None


def _random(*shape: int, seed: int = 0, low: float = 0.0) -> Tensor:
    """Uniform numbers from `low` to 1, always the same."""
    numbers = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return low + (1 - low) * numbers


# 1 Class activation maps


def _activation_map(f: Tensor, w: Tensor, b: Tensor) -> Tensor:
    head = nn.Conv2d(*reversed(w.shape), 1)
    head.load_state_dict({"weight": w[:, :, None, None], "bias": b})
    network = nn.Sequential(head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return cam.class_activation_maps(network, f[None])[1][0]


def _sum_of_maps(f: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("ck,kxy->cxy", w, f)


@cache
def _maps_and_weights() -> list[tuple]:
    b = torch.tensor([0.5, -1.0, 2.0])
    return [(_random(6, 4, 5, seed=s), _random(3, 6, seed=s + 9, low=-1), b) for s in range(3)]


@cache
def _boxes() -> list[tuple]:
    peak_and_field = torch.zeros(9, 12)
    peak_and_field[1, 1] = 5
    peak_and_field[4:8, 5:11] = 2
    low = torch.zeros(8, 6)
    low[2:5, 1:3] = 0.1
    low[7, 5] = 0.05
    return [(peak_and_field, 0.2), (low, 0.2), (low, 0.7)]


def _box_of(above: Tensor) -> tuple:
    rows, columns = above.nonzero(as_tuple=True)
    ends = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return tuple(int(end) for end in ends)


def _box_of_all(m: Tensor, share: float) -> tuple:
    return _box_of(m > share * m.max())


def _box_inclusive(m: Tensor, share: float) -> tuple:
    x0, y0, x1, y1 = localisation.bounding_box(m, share)
    return x0, y0, x1 - 1, y1 - 1


def _box_rows_first(m: Tensor, share: float) -> tuple:
    x0, y0, x1, y1 = localisation.bounding_box(m, share)
    return y0, x0, y1, x1


CAM = {
    "1.1": Exercise(
        8**0.5 / 34**0.5,
        {
            "averaged": (0.0, "0 is what the averaged head sees; the flattened vector does change"),
            "nothing in common": (
                2**0.5,
                "that is for two vectors that share no place; here both hold a response at the "
                "same two places",
            ),
            "differences added": (
                4 / 34**0.5,
                "a length is the root of the sum of squares: two differences of 2 are √8 long, "
                "not 4",
            ),
            "not divided": (8**0.5, "that is the distance alone; divide it by the vector's length"),
        },
    ),
    "1.2": Exercise(
        _activation_map,
        {
            "bias added": (
                lambda f, w, b: _sum_of_maps(f, w) + b[:, None, None],
                "you added the bias to every place; Eq. 2 has none, b_c comes after the average",
            ),
            "averaged over maps": (
                lambda f, w, b: _sum_of_maps(f, w) / len(f),
                "you averaged over the maps k; Eq. 2 adds them up, and averages over places only",
            ),
            "negative part cut": (
                lambda f, w, b: _sum_of_maps(f, w).clamp(min=0),
                "you cut off the negative part; what speaks against the class belongs to M_c",
            ),
            "upside down": (
                lambda f, w, b: _sum_of_maps(f, w).flip(1),
                "your map is upside down: row 0 is the upper one",
            ),
        },
        _maps_and_weights,
    ),
    "1.3": Exercise(
        lambda m, share: localisation.bounding_box(m, share),
        {
            "all parts": (
                _box_of_all,
                "your box surrounds everything above the threshold; it belongs round the largest "
                "connected part alone",
            ),
            "inclusive": (
                _box_inclusive,
                "your x1 and y1 are the last column and row inside; they are to be exclusive, one "
                "further",
            ),
            "rows first": (
                _box_rows_first,
                "your corners are (row, column); a box is (x0, y0, x1, y1), columns first",
            ),
        },
        _boxes,
    ),
    "1.4": Exercise(
        1.5,
        {
            "no ReLU": (1.0, "1 is the mean without the ReLU, as in a network without one"),
            "summed": (6.0, "6 is the sum; the head averages over the four places"),
            "largest": (
                4.0,
                "4 is the largest place alone; the head averages, it takes no maximum",
            ),
            "positive places": (
                3.0,
                "you averaged over the places that are positive; all four places count",
            ),
        },
    ),
    "1.5": Exercise(
        lambda M: M - M.mean(0),
        {
            "over places": (
                lambda M: M - M.mean((1, 2), keepdim=True),
                "you took off each map's own mean over places, so that all scores are 0; take off "
                "what the classes have in common at a place",
            ),
            "one number": (
                lambda M: M - M.mean(),
                "you took off one number; what the classes have in common differs from place to "
                "place",
            ),
            "softmax": (
                lambda M: M.softmax(0),
                "a softmax at each place does not change either, but its mean is no longer the "
                "score",
            ),
        },
        lambda: [(_random(4, 3, 5, seed=s, low=-1),) for s in range(2)],
    ),
}


# 2 CLEAR


def _one_layer_back(z: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv_transpose2d(z[None, None], kernel[None, None], padding=1)[0, 0]


@cache
def _layers() -> list[tuple]:
    z = torch.zeros(5, 7)
    z[2, 2], z[3, 5] = 2, 1
    kernel = torch.tensor([[1.0, 2, 0], [0, 5, 3], [0, 0, 4]])
    return [(z, kernel), (_random(4, 6), _random(3, 3, seed=1, low=-1))]


def _swapped(R: Tensor) -> tuple:
    return tuple(reversed(clear.dominant(R)))


def _by_absolute_value(R: Tensor) -> tuple:
    classes = R.abs().argmax(1)
    return classes, R.gather(1, classes[:, None])[:, 0]


def _over_images(R: Tensor) -> tuple:
    response, classes = R.max(0)
    return classes, response


def _small_network(seed: int = 0) -> nn.Module:
    """An all-convolutional network with random weights, and random kernels for four classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks.AllConvNet(classes=4, channels=(4, 8)).eval()
        nn.init.normal_(network.head.weight)
        nn.init.normal_(network.head.bias)
    return network


@cache
def _networks() -> list[tuple]:
    x = _random(1, 1, 16, 16)
    return [(_small_network(s), x, c) for s in range(2) for c in range(4)]


def _response(network: nn.Module, x: Tensor, c: int) -> Tensor:
    return clear.attentive_responses(network, x, "guided", [c])[1][0, 0]


def _against(network: nn.Module, x: Tensor, c: int, bias: bool = True) -> Tensor:
    opposite = copy.deepcopy(network)
    opposite.head.weight.data.neg_()
    if bias:
        opposite.head.bias.data.neg_()
    return _response(opposite, x, c)


def _with_and_without(x: Tensor, D: Tensor, t: float, baseline: float) -> tuple:
    strong = faithfulness.strong_features(D[None], t)[0]
    return torch.where(strong, x, baseline), torch.where(strong, baseline, x)


def _parted(x: Tensor, strong: Tensor, baseline: float) -> tuple:
    return torch.where(strong, x, baseline), torch.where(strong, baseline, x)


CLEAR = {
    "2.1": Exercise(
        np.array([0.0, 0, 4, 0]),
        {
            "gated": (
                np.array([-2.0, 0, 4, 0]),
                "that is the gated reading; guided also cuts off what is negative on the way back",
            ),
            "deconvnet": (
                np.array([0.0, 3, 4, 0]),
                "that is the deconvnet reading; guided also closes where a was not positive",
            ),
            "linear": (
                np.array([-2.0, 3, 4, -5]),
                "that is the linear reading, which passes everything; guided does not",
            ),
        },
    ),
    "2.2": Exercise(
        _one_layer_back,
        {
            "kernel turned": (
                lambda z, kernel: _one_layer_back(z, kernel.flip(0, 1)),
                "your kernel comes back upside down and mirrored: that is conv2d once more, not "
                "its transpose",
            ),
            "padding kept": (
                lambda z, kernel: functional.conv_transpose2d(z[None, None], kernel[None, None])[
                    0, 0
                ],
                "your map is two rows and two columns too large: the forward pass padded by 1, and "
                "that is cut off again",
            ),
            "kernel left out": (
                lambda z, kernel: z,
                "you gave z back; put the kernel wherever z responds, as often as it does",
            ),
        },
        _layers,
    ),
    "2.3": Exercise(
        clear.dominant,
        {
            "swapped": (
                _swapped,
                "the two are in the wrong order: the classes first, then their response",
            ),
            "absolute value": (
                _by_absolute_value,
                "you took the largest absolute value; a large negative response speaks against its "
                "class and must not win",
            ),
            "over images": (
                _over_images,
                "you took the maximum over the images; it goes over the classes, dimension 1",
            ),
        },
        lambda: [(_random(2, 3, 4, 5, seed=s, low=-1.5),) for s in range(2)],
    ),
    "2.4": Exercise(
        _against,
        {
            "map negated": (
                lambda network, x, c: -_response(network, x, c),
                "you negated the map for c; what speaks against c was cut off at the top already: "
                "negate the class kernel",
            ),
            "bias forgotten": (
                lambda network, x, c: _against(network, x, c, bias=False),
                "you negated the kernels and left the bias of the head as it was",
            ),
            "for": (
                _response,
                "that is the response for c; the kernels are still those of c, not of its opposite",
            ),
        },
        _networks,
    ),
    "2.5": Exercise(
        _with_and_without,
        {
            "swapped": (
                lambda x, D, t, baseline: tuple(reversed(_with_and_without(x, D, t, baseline))),
                "the two are in the wrong order: only the strong pixels first, then without them",
            ),
            "absolute level": (
                lambda x, D, t, baseline: _parted(x, D >= t, baseline),
                "t is a share of the map's maximum; you compared D with t itself",
            ),
            "black": (
                lambda x, D, t, baseline: _with_and_without(x, D, t, 0.0),
                "you put 0 where a pixel was taken away; put the baseline there",
            ),
        },
        lambda: [
            (_random(8, 9), 4 * _random(8, 9, seed=1), 0.3, 0.5),
            (_random(6, 6, seed=2), 0.1 * _random(6, 6, seed=3), 0.6, 0.25),
        ],
    ),
}


# 3 From photographs to a data set


def _extent_box(region: np.ndarray, least: float) -> tuple:
    ends = []
    for axis in (0, 1):
        extent = region.sum(axis)
        inside = np.flatnonzero(extent >= max(1, least * extent.max()))
        ends.append((int(inside[0]), int(inside[-1]) + 1))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def _region_box(region: np.ndarray) -> tuple:
    return _extent_box(region, 0.08)


def _last_inside(region: np.ndarray) -> tuple:
    left, top, right, bottom = _region_box(region)
    return left, top, right - 1, bottom - 1


def _top_first(region: np.ndarray) -> tuple:
    left, top, right, bottom = _region_box(region)
    return top, left, bottom, right


@cache
def _regions() -> list[tuple]:
    regions = []
    for height, notch in ((80, slice(48, 52)), (120, slice(20, 25))):
        region = np.zeros((height + 20, height + 50), bool)
        region[10:-10, 30:-20] = retina.inner_disc(height, 1)
        region[notch, 10:30] = True  # of the camera
        regions.append((region,))
    return regions


@cache
def _photographs() -> list[tuple]:
    drawn = np.array([phantom.draw_photograph(g, seed=g, size=64)[0] for g in (0, 2, 4)])
    drawn[1, :14] = drawn[1, 50:] = 0  # a camera that cuts the disc
    return [(drawn, (drawn > 0).any(3))]


def _moments(photographs: np.ndarray, inside: np.ndarray) -> tuple:
    pixels = photographs[inside] / 255
    return pixels.mean(0), pixels.std(0)


def _mean_of_means(photographs: np.ndarray, inside: np.ndarray) -> tuple:
    each = [_moments(one, mask) for one, mask in zip(photographs, inside, strict=True)]
    return tuple(np.mean(each, 0))


DATASET = {
    "3.1": Exercise(
        np.array([1.0, 2, 0, 4]),
        {
            "disc counted": (
                np.array([1.0, 2, 1, 4]),
                "a bright optic disc is no lesion: every eye has one, and C has nothing else",
            ),
            "two quadrants": (
                np.array([1.0, 3, 0, 4]),
                "haemorrhages in two quadrants are grade 2; grade 3 has many in all four",
            ),
            "new vessels": (
                np.array([1.0, 2, 0, 3]),
                "new vessels make D proliferative, grade 4, however little else there is",
            ),
        },
    ),
    "3.2": Exercise(
        _region_box,
        {
            "notch": (
                lambda region: _extent_box(region, 0),
                "your box reaches out to the camera's notch: leave out rows and columns with less "
                "than 8 % of the fullest one's pixels",
            ),
            "inclusive": (
                _last_inside,
                "your right and bottom are the last column and row inside; they are to be "
                "exclusive, one further",
            ),
            "top first": (
                _top_first,
                "your box is (top, left, bottom, right); it is to be (left, top, right, bottom)",
            ),
        },
        _regions,
    ),
    "3.3": Exercise(
        180.0,
        {
            "all of the test": (
                200.0,
                "200 photographs are in the test split, but some lie there with their pair",
            ),
            "one way": (
                90.0,
                "90 have their left eye in the test split and the right one not; the other way "
                "round counts, too",
            ),
            "a tenth": (
                100.0,
                "a tenth of the photographs is in the test split; a patient has two chances",
            ),
        },
    ),
    "3.4": Exercise(
        _moments,
        {
            "black counted": (
                lambda photographs, inside: _moments(photographs, np.ones_like(inside)),
                "you counted the black frame: only pixels inside are to be counted",
            ),
            "levels": (
                lambda photographs, inside: tuple(
                    255 * part for part in _moments(photographs, inside)
                ),
                "your numbers are levels from 0 to 255; divide by 255 first",
            ),
            "mean of means": (
                _mean_of_means,
                "you averaged over the photographs, each counting alike; average over all pixels",
            ),
            "channels together": (
                lambda photographs, inside: tuple(
                    np.full(3, part)
                    for part in (photographs[inside].mean() / 255, photographs[inside].std() / 255)
                ),
                "your three channels have one mean: normalise channel by channel",
            ),
        },
        _photographs,
    ),
}


# 4 The sequencer


@cache
def _grades() -> list[tuple]:
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(2):
        true = rng.integers(0, 5, 60)
        predicted = np.clip(true + rng.integers(-2, 3, 60), 0, 4)
        cases.append((predicted, true))
    return cases


def _cohen(weights: str | None) -> Callable:
    def kappa(predicted: np.ndarray, true: np.ndarray) -> float:
        return metrics.cohen_kappa_score(true, predicted, labels=range(5), weights=weights)

    return kappa


@cache
def _answers() -> list[tuple]:
    rng = np.random.default_rng(1)
    return [(rng.random(80) < share, rng.random(80) < 0.5) for share in (0.65, 0.8)]


def _one_sided(a: np.ndarray, b: np.ndarray) -> tuple:
    p, only_a, only_b = grading.mcnemar(a, b)
    return p / 2, only_a, only_b


def _all_right(a: np.ndarray, b: np.ndarray) -> tuple:
    return grading.mcnemar(a, b)[0], int(a.sum()), int(b.sum())


def _other_first(a: np.ndarray, b: np.ndarray) -> tuple:
    return grading.mcnemar(b, a)


def _sequencer(seed: int = 0) -> nn.Module:
    """A sequencer with random weights and random grade kernels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks.RadiomicSequencer(channels=(4, 8)).eval()
        nn.init.normal_(network.head.weight)
        nn.init.normal_(network.head.bias)
    return network


@cache
def _sequenced() -> list[tuple]:
    image = torch.tensor(phantom.draw_photograph(3, seed=1, size=48)[0])
    image = image.permute(2, 0, 1)[None].float() / 255
    return [(_sequencer(s), image, c) for s, c in ((0, 4), (1, 0))]


def _contributions(network: nn.Module, image: Tensor, c: int) -> Tensor:
    with torch.no_grad():
        return network.head.weight[c, :, 0, 0] * network.sequence(image)[0]


def _sequence_alone(network: nn.Module, image: Tensor, c: int) -> Tensor:
    with torch.no_grad():
        return network.sequence(image)[0]


def _summed_over_places(network: nn.Module, image: Tensor, c: int) -> Tensor:
    with torch.no_grad():
        places = network.features(image)[0, 0].numel()
        return places * _contributions(network, image, c)


SEQUENCER = {
    "4.1": Exercise(
        18.0,
        {
            "strides forgotten": (
                9.0,
                "you widened by k - 1 pixels each time; after a pooling a step is twice as large",
            ),
            "multiplied": (27.0 * 4, "the sides do not multiply: each layer adds (k - 1) steps"),
            "last one forgotten": (10.0, "10 is what a unit of the second pooling sees"),
            "pooling sees nothing": (
                15.0,
                "a pooling of 2 sees a neighbour, too: it adds one step before it doubles it",
            ),
        },
    ),
    "4.2": Exercise(
        grading.quadratic_kappa,
        {
            "unweighted": (
                _cohen(None),
                "that is Cohen's kappa without weights: a 3 called 0 costs as much as a 3 called 4",
            ),
            "linear": (
                _cohen("linear"),
                "your weights grow with the distance of the grades; take its square",
            ),
            "accuracy": (
                lambda predicted, true: (predicted == true).mean(),
                "that is the accuracy, which knows neither chance nor distance",
            ),
        },
        _grades,
    ),
    "4.3": Exercise(
        grading.mcnemar,
        {
            "one-sided": (
                _one_sided,
                "your p is one-sided: either answer might have been the better one",
            ),
            "all right ones": (
                _all_right,
                "you counted all photographs on which each is right; only those count on which the "
                "other is wrong",
            ),
            "other first": (
                _other_first,
                "your two counts are in the wrong order: first those on which only a is right",
            ),
        },
        _answers,
    ),
    "4.4": Exercise(
        _contributions,
        {
            "sequence alone": (
                _sequence_alone,
                "that is the sequence; what an entry gives to the score is its weight times it",
            ),
            "summed": (
                _summed_over_places,
                "you summed over the places; the sequence is an average",
            ),
            "absolute": (
                lambda network, image, c: _contributions(network, image, c).abs(),
                "you took absolute values; an entry may speak against the grade",
            ),
        },
        _sequenced,
    ),
}


# 5 CLEAR-DR's figures


@cache
def _responses() -> list[tuple]:
    cases = []
    for seed in range(2):
        R = _random(5, 12, 14, seed=seed, low=-1.0).numpy()
        R[1] *= 0.2  # a faint grade
        R[:, :3] = -np.abs(R[:, :3])  # where nothing speaks for any grade
        cases.append((R,))
    return cases


def _rendered(levels: np.ndarray) -> np.ndarray:
    return clear.render(torch.tensor(levels)[None], clear.GRADE_HUES)[0].numpy()


def _each_by_its_own(R: np.ndarray) -> np.ndarray:
    level = np.sqrt(R.clip(min=0) / R.max((1, 2), keepdims=True))
    return _rendered(level)


def _shares(R: np.ndarray) -> np.ndarray:
    return localisation.grade_shares(R.argmax(0), R.max(0))


def _pixel_shares(R: np.ndarray) -> np.ndarray:
    return np.bincount(R.argmax(0)[R.max(0) > 0], minlength=5) / (R.max(0) > 0).sum()


def _every_response(R: np.ndarray) -> np.ndarray:
    sums = R.clip(min=0).sum((1, 2))
    return sums / sums.sum()


def _negative_too(R: np.ndarray) -> np.ndarray:
    sums = np.array([R.max(0)[R.argmax(0) == grade].sum() for grade in range(5)])
    return sums / sums.sum()


def _hour(point: tuple, origin: tuple) -> int:
    return localisation.clock_hour(point, origin, 1)[0]


def _mirrored_hour(across: int, down: int) -> Callable:
    def hour(point: tuple, origin: tuple) -> int:
        x = origin[0] + across * (point[0] - origin[0])
        y = origin[1] + down * (point[1] - origin[1])
        return _hour((x, y), origin)

    return hour


def _quarter_off(point: tuple, origin: tuple) -> int:
    return (_hour(point, origin) - 3) % 12 or 12


FIGURES = {
    "5.1": Exercise(
        (2.0, 5.0),
        {
            "predicted grade": (
                (4.0, 3.0),
                "the colour is that of the pixel's own dominant grade, not of the grade that is "
                "predicted for the eye",
            ),
            "summed": (
                (2.0, 9.0),
                "the brightness is the largest of the five responses; you added them up",
            ),
            "swapped": ((5.0, 2.0), "the two are in the wrong order: the grade, then the response"),
        },
    ),
    "5.2": Exercise(
        explain.clear_dr_map,
        {
            "no root": (
                lambda R: _rendered(R.clip(min=0)),
                "you left out the square root, so that only the highest peaks are seen",
            ),
            "each by its own": (
                _each_by_its_own,
                "you divided each grade by its own maximum, so that a faint grade looks as strong "
                "as the others; there is one maximum for the image",
            ),
            "absolute": (
                lambda R: _rendered(np.sqrt(np.abs(R))),
                "you took the root of the absolute value; a negative response is black",
            ),
        },
        _responses,
    ),
    "5.3": Exercise(
        _shares,
        {
            "pixels": (
                _pixel_shares,
                "you counted pixels; a pixel counts by how much it responds",
            ),
            "all responses": (
                _every_response,
                "you added all responses of a grade; at a pixel only the dominant one counts",
            ),
            "negative too": (
                _negative_too,
                "you let negative responses count; the shares are of the positive response",
            ),
        },
        _responses,
    ),
    "5.4": Exercise(
        _hour,
        {
            "upside down": (
                _mirrored_hour(1, -1),
                "your clock is upside down: in an image y grows downwards",
            ),
            "mirrored": (
                _mirrored_hour(-1, 1),
                "your clock runs backwards: 3 is on the right, whichever the eye",
            ),
            "quarter off": (
                _quarter_off,
                "you count from the right; 12 is up",
            ),
        },
        lambda: [((50 + x, 50 + y), (50, 50)) for x, y in ((9, -1), (4, -7), (-8, 5), (-1, -6))],
    ),
}


# 6 CLEAR-DR, scored


@cache
def _scored() -> list[tuple]:
    cases = []
    for seed in range(2):
        lesion = np.zeros((16, 18), bool)
        lesion[5:8, 4:6] = lesion[11, 12] = True
        response = _random(16, 18, seed=seed, low=-0.6).numpy()
        cases.append((response, lesion, 2))
    return cases


def _inside(response: np.ndarray, lesion: np.ndarray, tolerance: float) -> float:
    return localisation.share_inside(response, localisation.widen(lesion, tolerance))


def _inside_square(response: np.ndarray, lesion: np.ndarray, tolerance: int) -> float:
    return localisation.share_inside(response, ndimage.maximum_filter(lesion, 2 * tolerance + 1))


def _inside_signed(response: np.ndarray, lesion: np.ndarray, tolerance: float) -> float:
    return response[localisation.widen(lesion, tolerance)].sum() / response.sum()


@cache
def _deleted_from() -> list[tuple]:
    return [
        (_random(3, 6, 8, seed=s), _random(6, 8, seed=s + 5), share, -1.0)
        for s, share in ((0, 0.25), (1, 0.5))
    ]


def _deleted(
    image: Tensor, response: Tensor, share: float, baseline: float, highest: bool = True
) -> Tensor:
    count = round(share * response.numel())
    gone = response.flatten().argsort(descending=highest)[:count]
    without = image.clone().flatten(1)
    without[:, gone] = baseline
    return without.view_as(image)


def _above_share(image: Tensor, response: Tensor, share: float, baseline: float) -> Tensor:
    return torch.where(response >= share * response.max(), baseline, image)


@cache
def _two_maps() -> list[tuple]:
    cases = []
    for seed in range(2):
        where = retina.inner_disc(20, 0.9)
        one = (_random(20, 20, seed=seed, low=-1).numpy() ** 3) * where
        other = (one + 0.7 * _random(20, 20, seed=seed + 7, low=-1).numpy()) * where
        cases.append((one, other, where))
    return cases


def _alike(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    return faithfulness.similarity(one[None], other[None], where[None])[1]


def _pearson(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    return np.corrcoef(one[where].clip(min=0), other[where].clip(min=0))[0, 1]


SCORED = {
    "6.1": Exercise(
        3.0,
        {
            "of the frame": (
                3.75,
                "you divided by the lesions' share of the frame; a response can count only on the "
                "retina",
            ),
            "difference": (0.2, "that is how much more it is; how many times more is asked"),
            "no chance": (0.3, "that is the share itself, which says nothing without chance"),
        },
    ),
    "6.2": Exercise(
        _inside,
        {
            "not widened": (
                lambda response, lesion, tolerance: _inside(response, lesion, 0),
                "you left out the tolerance: the response to a lesion lies just around it, too",
            ),
            "square": (
                _inside_square,
                "you widened by a square, whose corners are further than the tolerance; take the "
                "distance",
            ),
            "negative too": (
                _inside_signed,
                "you let negative responses count; the share is of the positive response",
            ),
        },
        _scored,
    ),
    "6.3": Exercise(
        _deleted,
        {
            "lowest first": (
                lambda *case: _deleted(*case, highest=False),
                "you took away the pixels with the least response; deletion begins with the most",
            ),
            "black": (
                lambda image, response, share, baseline: _deleted(image, response, share, 0.0),
                "you put 0 where a pixel was taken away; put the baseline there",
            ),
            "share of the maximum": (
                _above_share,
                "you took what is above a share of the maximum; share says how many of the pixels "
                "go",
            ),
        },
        _deleted_from,
    ),
    "6.4": Exercise(
        _alike,
        {
            "not ranked": (
                _pearson,
                "you correlated the responses themselves; their ranks are asked for (Spearman)",
            ),
            "whole frame": (
                lambda one, other, where: _alike(one, other, np.ones_like(where)),
                "you let the black frame count, on which all maps are alike",
            ),
            "absolute": (
                lambda one, other, where: faithfulness.similarity(
                    one[None], other[None], where[None]
                )[0],
                "you compared absolute values; the positive part is asked for",
            ),
        },
        _two_maps,
    ),
}


# 7 The ledger


def _beats(score: float, rivals: dict, margin: float) -> bool:
    return score > margin * max(rivals.values())


@cache
def _rivals() -> list[tuple]:
    return [
        (2.0, {"chance": 1.0, "edges": 1.9, "random weights": 1.2}, 1.1),
        (2.2, {"chance": 1.0, "edges": 1.9}, 1.1),
        (0.5, {"chance": 0.1, "edges": 0.4, "random weights": 0.45}, 1.1),
        (0.9, {"chance": 1.0, "edges": 0.2}, 1.1),
        (0.3, {"edges": 0.25}, 1.1),
        (1.0, {"chance": 0.5, "edges": 3.0}, 1.1),
    ]


@cache
def _trainings() -> list[tuple]:
    distances = pd.DataFrame(
        {
            "linear": [0.30, 0.28, 0.33, 0.29],
            "deconvnet": [0.02, 0.04, 0.03, 0.049],
            "gated": [0.01, 0.02, 0.12, 0.01],
            "guided": [0.06, 0.02, 0.01, 0.04],
        }
    )
    return [(distances, 0.05), (distances, 0.25), (distances, 0.02)]


def _near(holds: Callable) -> Callable:
    def readings(distances: pd.DataFrame, bound: float) -> list:
        return [name for name in distances if holds(distances[name], bound)]

    return readings


LEDGER = {
    "7.1": Exercise(
        "not run",
        {
            "not reproduced": (
                "not reproduced",
                "NaN < 0.05 is False, but that says nothing of the claim: nobody has its number",
            ),
            "reproduced": (
                "reproduced",
                "that the notebook was not run does not make the claim true",
            ),
        },
    ),
    "7.2": Exercise(
        _beats,
        {
            "mean rival": (
                lambda score, rivals, margin: score > margin * sum(rivals.values()) / len(rivals),
                "you compared with the mean of the rivals; the best of them has to be beaten",
            ),
            "any rival": (
                lambda score, rivals, margin: score > margin * min(rivals.values()),
                "you let it beat any one rival; it has to beat all of them",
            ),
            "margin forgotten": (
                lambda score, rivals, margin: score > max(rivals.values()),
                "you left out the margin",
            ),
        },
        _rivals,
    ),
    "7.3": Exercise(
        lambda accuracy, majority: (accuracy - majority) / (1 - majority),
        {
            "difference": (
                lambda accuracy, majority: accuracy - majority,
                "that is the gain over the commonest grade; divide it by the gain that is possible",
            ),
            "ratio": (
                lambda accuracy, majority: accuracy / majority,
                "a ratio is 1 for the commonest grade, and it is to be 0",
            ),
            "cut at 0": (
                lambda accuracy, majority: max(0, (accuracy - majority) / (1 - majority)),
                "you cut it off at 0; worse than the commonest grade is to be negative",
            ),
        },
        lambda: [(0.9, 0.6), (0.732, 0.739), (0.5, 0.5), (1.0, 0.2)],
    ),
    "7.4": Exercise(
        _near(lambda column, bound: (column < bound).all()),
        {
            "on average": (
                _near(lambda column, bound: column.mean() < bound),
                "you compared the mean over the trainings; one bad training must count",
            ),
            "in any": (
                _near(lambda column, bound: (column < bound).any()),
                "you took what is near in some training; in every one is asked for",
            ),
        },
        _trainings,
    ),
}

EXERCISES = CAM | CLEAR | DATASET | SEQUENCER | FIGURES | SCORED | LEDGER
