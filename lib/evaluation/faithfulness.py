"""Whether a map shows what the network used: deletion and insertion, and the sanity check of random weights.

A map is (H, W), one for each image, and higher where it claims more. Each test has a control that knows nothing of the
network and must do badly: `random_map` for deletion and insertion, `edges` for the sanity check.
"""

import copy

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.stats import spearmanr

from lib.methods import cam


def deletion(network, images, maps, classes, patch, steps=20, batch_size=64):
    """The class' probability while the pixels with the most response are taken away first (RISE, Petsiuk 2018, 4.2).

    images (B, C, H, W) normalised, maps (B, H, W), classes (B,) int: whose probability, by softmax. `patch` is what a
    pixel becomes that is taken away, a number (0 is the training part's mean) or a tensor that broadcasts to the
    images, as their blurred selves. Equal responses go in an order drawn once at random. CLEAR's responses ring dark
    lesions rather than cover them: taken pixel by pixel they miss what they surround, so smooth them first by the
    tolerance that scoring lesions grants.
    Returns curves (B, steps + 1), after k / steps of the pixels, and the areas below them (B,), in [0, 1]: the lower,
    the more faithful. Raises ValueError for shapes that do not fit, NaN, steps below 1 and classes out of range.
    """
    return _curves(network, images, _patched(images, patch), maps, classes, steps, batch_size)


def insertion(network, images, maps, classes, patch, steps=20, batch_size=64):
    """As `deletion`, but from `patch` alone to the image, most response first: the higher the area the better."""
    return _curves(network, _patched(images, patch), images, maps, classes, steps, batch_size)


def _patched(images, patch):
    cam.check(images)
    patch = torch.as_tensor(patch, dtype=images.dtype, device=images.device)
    try:
        return patch.expand_as(images)
    except RuntimeError:
        raise ValueError(
            f"patch {tuple(patch.shape)} does not broadcast to images {tuple(images.shape)}"
        ) from None


@torch.no_grad()
def _curves(network, before, after, maps, classes, steps, batch_size):
    maps, classes, pixels = (
        torch.as_tensor(maps).detach().cpu(),
        torch.as_tensor(classes).cpu(),
        before[0, 0].numel(),
    )
    if (
        maps.shape != before[:, 0].shape
        or classes.shape != before.shape[:1]
        or not maps.isfinite().all()
    ):
        raise ValueError(f"maps {tuple(maps.shape)}, which must be finite, and classes {tuple(classes.shape)} do not "
                         f"fit images {tuple(before.shape)}: give (B, H, W) and (B,)")  # fmt: skip
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps is {steps}; give 1 to {pixels}, the pixels of an image")
    ties = torch.randperm(pixels, generator=torch.Generator().manual_seed(0))
    order = ties[maps.flatten(1)[:, ties].argsort(dim=1, descending=True, stable=True)]
    rank = order.argsort(1).view(maps.shape)[:, None]
    device, curves = next(network.parameters()).device, []
    with cam.evaluating(network):
        for a, b, place, wanted in zip(
            *(t.split(batch_size) for t in (before, after, rank, classes)), strict=True
        ):
            a, b, place = a.to(device), b.to(device), place.to(device)
            moved = (torch.where(place < k * pixels // steps, b, a) for k in range(steps + 1))
            answers = torch.stack([network(x).softmax(1) for x in moved], 2).cpu()
            cam.chosen(wanted.tolist(), answers.shape[1])
            curves.append(answers[torch.arange(len(wanted)), wanted])
    curves = torch.cat(curves)
    if not curves.isfinite().all():
        raise ValueError(
            f"{type(network).__name__} answers with NaN or infinite values; look at its weights"
        )
    return curves, torch.trapezoid(curves, dx=1 / steps)


def random_map(images, generator):
    """A map (B, H, W) of noise: what deletion and insertion are worth to a map that knows nothing."""
    return torch.rand(images[:, 0].shape, generator=generator)


def edges(images):
    """The edges (B, H, W) of the images' mean channel, Sobel's gradient magnitude: a map that knows no network."""
    grey = images.detach().cpu().mean(1).numpy()
    return torch.from_numpy(
        np.stack([np.hypot(ndimage.sobel(image, 0), ndimage.sobel(image, 1)) for image in grey])
    )


def similarity(maps, others, where=None):
    """How alike two sets of maps (B, H, W) are: Spearman's rank correlation of |map|, and of max(map, 0), as two means.

    `where` (B, H, W) bool: the pixels that count, as the retina's; on the black frame all maps are alike. A map
    without structure is like nothing, 0; an image whose own map has none is left out, and NaN if all are.
    """
    maps, others = (
        np.asarray(map.detach().cpu() if torch.is_tensor(map) else map, float)
        for map in (maps, others)
    )
    where = np.ones(maps.shape, bool) if where is None else np.asarray(where, bool)
    if maps.ndim != 3 or not maps.shape == others.shape == where.shape:
        raise ValueError(
            f"maps {maps.shape}, others {others.shape}, where {where.shape}: all must be (B, H, W)"
        )
    if not (np.isfinite(maps).all() and np.isfinite(others).all()):
        raise ValueError(
            "the maps hold NaN or infinite values; look at the network's weights and the images"
        )
    pairs = [
        (map[inside], other[inside]) for map, other, inside in zip(maps, others, where, strict=True)
    ]
    found = []
    for part in (np.abs, lambda values: values.clip(min=0)):
        structured = [(part(a), part(b)) for a, b in pairs if np.ptp(part(a)) > 0]
        found.append([spearmanr(a, b).statistic if np.ptp(b) > 0 else 0.0 for a, b in structured])
    return tuple(float(np.mean(values)) if values else float("nan") for values in found)


def sanity(network, images, explain, where=None, seed=0):
    """How a map changes as weights become random, layer by layer from the last to the first (Adebayo et al. 2018, 3.1).

    A copy's layers are re-initialised by their `reset_parameters`, cumulatively, the one registered last (the class
    kernels) first; normalisation starts anew as well. After each, `explain(network, images)` -> maps (B, H, W) is
    compared with the maps of the network itself. Explain the same classes throughout: those it answers now.
    Returns a table with a row for each layer: layer, absolute, positive (`similarity`, which explains `where`), and
    beside them chance_absolute and chance_positive: how alike the maps of unrelated images are, each and the one half
    the images further on, which must not be the same eye. See `passes`.
    Raises ValueError for fewer than two images, a network without weights or with weights that cannot be reset.
    """
    layers = [
        name for name, module in network.named_modules() if list(module.parameters(recurse=False))
    ]
    fixed = [
        name for name in layers if not hasattr(network.get_submodule(name), "reset_parameters")
    ]
    if fixed or not layers or len(images) < 2:
        raise ValueError(f"{type(network).__name__} has {len(layers)} layers with weights, of which {fixed} have no "
                         f"reset_parameters, and there are {len(images)} images: give layers, all with it, and 2 "
                         "images or more")  # fmt: skip
    with cam.evaluating(network):
        maps = torch.as_tensor(explain(network, images)).detach().cpu()
    chance = similarity(maps, maps.roll(len(maps) // 2, 0), where)
    randomised, rows = copy.deepcopy(network).eval(), []
    for depth, name in enumerate(reversed(layers)):
        with torch.random.fork_rng():
            torch.manual_seed(1_000 * seed + depth)
            randomised.get_submodule(name).reset_parameters()
        rows.append((name, *similarity(maps, explain(randomised, images), where), *chance))
    return pd.DataFrame(
        rows, columns=["layer", "absolute", "positive", "chance_absolute", "chance_positive"]
    )


def passes(table, level=0.25):
    """Whether a map passes `sanity`: with all weights random, hardly more of it is left than by chance.

    Of what a map shares with itself beyond chance, less than `level` may be left: similarity < chance + level * (1 -
    chance), both of |map| and of its positive part. Adebayo et al. judge by eye; a quarter is our choice. A map that
    ignores the weights, as `edges`, keeps all and fails. A map that passes at the end may still be the same for every
    class: that shows in the table's first row, where only the class kernels are random.
    """
    last = table.iloc[-1]
    return all(
        last[part] < (1 - level) * last[f"chance_{part}"] + level
        for part in ("absolute", "positive")
    )
