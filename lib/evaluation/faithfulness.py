"""Whether a map shows what the network used.

Three tests: what the network answers without the pixels that a map calls important (deletion and
insertion, CLEAR's Table 1), and what becomes of a map when the weights become random (the sanity
check). Each has a control that knows nothing of the network and must do badly: `random_map` and
`as_many_at_random` for the first two, `edges` for the last. A map is (H, W), one for each image,
and higher where it claims more.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import ndimage
from torch import nn

from lib.methods import cam


def deletion(
    network: nn.Module,
    images: torch.Tensor,
    maps: ArrayLike,
    classes: Sequence[int] | torch.Tensor,
    baseline: float | torch.Tensor,
    steps: int = 20,
    batch_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A class' probability while the pixels with the most response are taken away first.

    RISE (Petsiuk 2018, 4.2). Equal responses go in an order drawn once at random. CLEAR's responses
    ring dark lesions rather than cover them: taken pixel by pixel they miss what they surround, so
    smooth them first by the tolerance that scoring lesions grants.

    Args:
        network: answers with class scores (B, N).
        images: (B, C, H, W) floating point, normalised.
        maps: (B, H, W).
        classes: (B,) int, whose probability, by softmax.
        baseline: what a pixel becomes that is taken away: a number (0 is the training split's mean)
            or a tensor that broadcasts to the images, as their blurred selves.
        steps: in how many equal steps the pixels go.
        batch_size: images at a time.

    Returns:
        Curves (B, steps + 1), after k / steps of the pixels, and the areas below them (B,), in
        [0, 1]: the lower, the more faithful.

    Raises:
        ValueError: shapes that do not fit, NaN, steps or classes out of range, or answers that are
            no finite class scores (B, N).
    """
    without = _expanded(baseline, images)
    return _curves(network, images, without, maps, classes, steps, batch_size)


def insertion(
    network: nn.Module,
    images: torch.Tensor,
    maps: ArrayLike,
    classes: Sequence[int] | torch.Tensor,
    baseline: float | torch.Tensor,
    steps: int = 20,
    batch_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `deletion`, but from the baseline alone to the image: the higher the area the better."""
    without = _expanded(baseline, images)
    return _curves(network, without, images, maps, classes, steps, batch_size)


def _expanded(baseline: float | torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    cam.check_images(images)
    baseline = torch.as_tensor(baseline, dtype=images.dtype, device=images.device)
    if not baseline.isfinite().all():
        raise ValueError(f"baseline holds NaN or values that are infinite in {images.dtype}")
    try:
        return baseline.expand_as(images)
    except RuntimeError:
        raise ValueError(
            f"baseline {tuple(baseline.shape)} does not broadcast to images {tuple(images.shape)}"
        ) from None


@torch.no_grad()
def _curves(
    network: nn.Module,
    before: torch.Tensor,
    after: torch.Tensor,
    maps: ArrayLike,
    classes: Sequence[int] | torch.Tensor,
    steps: int,
    batch_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities while the images `before` turn into `after`, and the areas below them."""
    maps = torch.as_tensor(maps).detach().cpu()
    classes = torch.as_tensor(classes).cpu()
    fitting = maps.shape == before[:, 0].shape and classes.shape == before.shape[:1]
    if not fitting or not maps.isfinite().all():
        raise ValueError(
            f"maps {tuple(maps.shape)}, which must be finite, and classes {tuple(classes.shape)} "
            f"do not fit images {tuple(before.shape)}: give (B, H, W) and (B,)"
        )
    pixels = maps[0].numel()
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps is {steps}; give 1 to {pixels}, the pixels of an image")
    device = next(network.parameters()).device
    curves = []
    with cam.evaluating(network):
        for start in range(0, len(before), batch_size):
            batch = slice(start, start + batch_size)
            old = before[batch].to(device)
            new = after[batch].to(device)
            turn = _turns(maps[batch])[:, None].to(device)
            curve = []
            for k in range(steps + 1):
                mixed = torch.where(turn < k * pixels // steps, new, old)
                mixed = mixed.contiguous(memory_format=torch.channels_last)  # twice as fast
                scores = network(mixed)
                cam.check_scores(network, scores, mixed)
                exact = torch.promote_types(scores.dtype, torch.float32)
                probabilities = scores.softmax(1, exact).cpu()
                wanted = cam.class_indices(classes[batch].tolist(), probabilities.shape[1])
                curve.append(probabilities[range(len(wanted)), wanted])
            curves.append(torch.stack(curve, 1))
    curves = torch.cat(curves)
    return curves, torch.trapezoid(curves, dx=1 / steps)


def _turns(maps: torch.Tensor) -> torch.Tensor:
    """When it is each pixel's turn (B, H, W): 0 for the highest, equal ones at random."""
    shuffled = torch.randperm(maps[0].numel(), generator=torch.Generator().manual_seed(0))
    descending = maps.flatten(1)[:, shuffled].argsort(dim=1, descending=True, stable=True)
    return shuffled[descending].argsort(1).view(maps.shape)


def random_map(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise (B, H, W): what deletion and insertion are worth to a map that knows nothing."""
    return torch.rand(images[:, 0].shape, generator=generator)


def edges(images: torch.Tensor) -> torch.Tensor:
    """A map that knows no network: the edges of the images' mean channel, Sobel's magnitude.

    Args:
        images: (B, C, H, W).

    Returns:
        (B, H, W) on the CPU.
    """
    found = []
    for grey in images.detach().cpu().float().mean(1).numpy():
        found.append(np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)))
    return torch.from_numpy(np.stack(found))


def similarity(
    maps: ArrayLike, others: ArrayLike, where: ArrayLike | None = None
) -> tuple[float, float]:
    """How alike two sets of maps are: Spearman's rank correlation, the mean over the images.

    A map without structure is like nothing, 0; an image whose own map has none is left out.

    Args:
        maps: (B, H, W).
        others: (B, H, W).
        where: (B, H, W) bool, the pixels that count, as the retina's; on the black frame all maps
            are alike.

    Returns:
        The correlation of |map|, and of max(map, 0); NaN where no map has structure.

    Raises:
        ValueError: shapes that do not fit, or NaN.
    """
    maps = torch.as_tensor(maps).detach().cpu().double().numpy()
    others = torch.as_tensor(others).detach().cpu().double().numpy()
    where = np.ones(maps.shape, bool) if where is None else np.asarray(where, bool)
    if maps.ndim != 3 or not maps.shape == others.shape == where.shape:
        raise ValueError(
            f"maps {maps.shape}, others {others.shape}, where {where.shape}: all must be (B, H, W)"
        )
    if not (np.isfinite(maps).all() and np.isfinite(others).all()):
        raise ValueError(
            "the maps hold NaN or infinite values; look at the network's weights and the images"
        )
    absolute = _rank_correlation(np.abs(maps), np.abs(others), where)
    positive = _rank_correlation(maps.clip(min=0), others.clip(min=0), where)
    return absolute, positive


def _rank_correlation(maps: np.ndarray, others: np.ndarray, where: np.ndarray) -> float:
    from scipy.stats import spearmanr  # half a second, for this one score

    correlations = []
    for one, other, inside in zip(maps, others, where, strict=True):
        a, b = one[inside], other[inside]
        if np.ptp(a) > 0:
            correlations.append(spearmanr(a, b).statistic if np.ptp(b) > 0 else 0.0)
    return float(np.mean(correlations)) if correlations else float("nan")


def sanity(
    network: nn.Module,
    images: torch.Tensor,
    explain: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    where: ArrayLike | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How a map changes as weights become random, from the last layer to the first.

    Adebayo et al. 2018, 3.1. A copy's layers are re-initialised by their `reset_parameters`,
    cumulatively, the one registered last (the class kernels) first; normalisation starts anew as
    well. After each, the copy's maps are compared with those of the network itself. See `passes`.

    Args:
        network: its layers with weights must all have `reset_parameters`.
        images: (B > 1, C, H, W).
        explain: `explain(network, images)` -> maps (B, H, W). It explains the same classes
            throughout: those that the network answers now.
        where: (B, H, W) bool, as `similarity` takes it.
        seed: of the random weights; the global generator is left as it was.

    Returns:
        A row for each layer: layer, absolute, positive (`similarity`), and beside them
        chance_absolute and chance_positive: how alike the maps of unrelated images are, each and
        the one half the images further on, which must not be the same eye.

    Raises:
        ValueError: fewer than two images, or a network with no weights or some that stay fixed.
    """
    layers, fixed = [], []
    for name, module in network.named_modules():
        if list(module.parameters(recurse=False)):
            layers.append(name)
            if not hasattr(module, "reset_parameters"):
                fixed.append(name)
    if fixed or not layers or len(images) < 2:
        raise ValueError(
            f"{type(network).__name__} has {len(layers)} layers with weights, of which {fixed} "
            f"have no reset_parameters, and there are {len(images)} images: give layers, all with "
            "it, and 2 images or more"
        )
    with cam.evaluating(network):
        maps = torch.as_tensor(explain(network, images)).detach().cpu()
    chance = similarity(maps, maps.roll(len(maps) // 2, 0), where)
    randomised = copy.deepcopy(network).eval()
    rows = []
    for depth, name in enumerate(reversed(layers)):
        with torch.random.fork_rng():
            torch.manual_seed(1_000 * seed + depth)
            randomised.get_submodule(name).reset_parameters()
        rows.append((name, *similarity(maps, explain(randomised, images), where), *chance))
    return pd.DataFrame(
        rows, columns=["layer", "absolute", "positive", "chance_absolute", "chance_positive"]
    )


def passes(table: pd.DataFrame, level: float = 0.25) -> bool:
    """Whether a map passes `sanity`: with all weights random, hardly more than chance is left.

    Of what a map shares with itself beyond chance, less than `level` may be left, of |map| and of
    its positive part: similarity < chance + level * (1 - chance). Adebayo et al. judge by eye; a
    quarter is our choice. A map that ignores the weights, as `edges`, keeps all and fails. A map
    that passes at the end may still be the same for every class: that shows in the table's first
    row, where only the class kernels are random.
    """
    last = table.iloc[-1]
    absolute = last["absolute"] < (1 - level) * last["chance_absolute"] + level
    positive = last["positive"] < (1 - level) * last["chance_positive"] + level
    return bool(absolute and positive)


def strong_features(response: torch.Tensor, threshold: float) -> torch.Tensor:
    """Where a response is strong: positive and at least `threshold` x its image's maximum.

    CLEAR's Table 1 speaks of strong features and does not say above which level.

    Args:
        response: (B, H, W).
        threshold: a share of the maximum, in [0, 1].

    Returns:
        (B, H, W) bool.

    Raises:
        ValueError: a threshold outside [0, 1], or a response with NaN or infinite values.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold is {threshold}; give a share of the maximum, 0 <= threshold <= 1"
        )
    if not response.isfinite().all():
        raise ValueError(
            "the response holds NaN or infinite values; look at the network's weights and the "
            "images"
        )
    return (response > 0) & (response >= threshold * response.amax((1, 2), keepdim=True))


def as_many_at_random(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The control: true in as many pixels of each image as `mask` (B, H, W), drawn at random."""
    rank = torch.rand(mask.shape, generator=generator).flatten(1).argsort(1).argsort(1)
    return (rank < mask.flatten(1).sum(1, keepdim=True)).view(mask.shape)


@torch.no_grad()
def accuracy_with_and_without(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    baseline: float | torch.Tensor,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Accuracy with only what lies in `mask`, and without it (Kumar 2017, Table 1).

    Args:
        network: answers with class scores (B, N).
        images: (B, C, H, W) on the CPU.
        labels: (B,) int on the CPU.
        mask: (B, H, W) bool on the CPU.
        baseline: what everything else becomes, as `deletion` takes it: the background for MNIST,
            grey for SVHN, the blurred photographs.
        batch_size: images at a time.

    Returns:
        The two accuracies, in [0, 1].

    Raises:
        ValueError: shapes that do not fit, labels that are no classes, or answers that are no
            finite class scores (B, N).
    """
    if mask.shape != images[:, 0].shape or len(labels) != len(images):
        raise ValueError(
            f"mask {tuple(mask.shape)} and labels {tuple(labels.shape)} do not fit images "
            f"{tuple(images.shape)}: give (B, H, W) and (B,)"
        )
    baseline = _expanded(baseline, images)
    device = next(network.parameters()).device
    right = torch.zeros(2)
    with cam.evaluating(network):
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            inside = mask[batch, None]
            only = torch.where(inside, images[batch], baseline[batch]).to(device)
            without = torch.where(inside, baseline[batch], images[batch]).to(device)
            for i, changed in enumerate((only, without)):
                scores = network(changed)
                cam.check_scores(network, scores, changed)
                wanted = cam.class_indices(labels[batch].tolist(), scores.shape[1])
                right[i] += (scores.argmax(1).cpu() == torch.tensor(wanted)).sum()
    return tuple((right / len(labels)).tolist())
