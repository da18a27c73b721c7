"""Synthetic fundus photographs ("phantoms") of every grade, with the place of every lesion known.

A phantom is a drawing, not data. Its lesions follow the wording of the International Clinical
Diabetic Retinopathy (ICDR) scale (Wilkinson et al. 2003), larger than life so that they survive
128 pixels. No patient's photograph went into it, and nothing clinical follows from it. Anatomy and
camera depend on seed and eye alone: grade g and grade 0 of one seed are twins that differ in the
signs of the disease and in nothing else.

Lengths are in radii of the retina, its middle at (0, 0), the nose on the right, y downwards. A
coverage is float32 (size, size): how much of each pixel something covers, in [0, 1].
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from functools import partial
from operator import index
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from lib import paths
from lib.data.retina import BROKEN, MASKS, OPTIC_DISC, pack_masks, worker_pool

# What a lesion does to the light (r, g, b) of the retina below: the share it keeps, what it adds.
_LOOKS = {
    "microaneurysm": ((0.52, 0.22, 0.3), (0, 0, 0)),
    "haemorrhage": ((0.5, 0.18, 0.25), (0, 0, 0)),
    "hard_exudate": ((0.1, 0.1, 0.1), (0.97, 0.85, 0.36)),
    "cotton_wool_spot": ((0.25, 0.2, 0.15), (0.72, 0.68, 0.55)),
    "new_vessels": ((0.74, 0.26, 0.32), (0, 0, 0)),
    "preretinal_haemorrhage": ((0.42, 0.1, 0.15), (0.03, 0, 0)),
}
_VEIN = (0.66, 0.42, 0.5)
_ARTERY = (0.88, 0.62, 0.62)
_RETINAS = (
    (0.95, 0.5, 0.12),
    (0.6, 0.25, 0.1),
    (0.9, 0.52, 0.4),
    (0.82, 0.35, 0.1),
    (0.8, 0.5, 0.22),
)
_Point = tuple[float, float]
SIDES = ("left", "right")
VERSION = 2  # of the drawing: another one makes other pixels of the same arguments
BALANCED = (0.2,) * 5
# Of the grades in EyePACS's training photographs, both eyes
EYEPACS_SHARES = tuple(count / 35126 for count in (25810, 2443, 5292, 873, 708))


def _require_integer(name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless `value` is an integer from low to high."""
    try:
        inside = low <= index(value) <= high
    except TypeError:
        inside = False
    if not inside:
        raise ValueError(f"{name} is {value!r}; give an integer from {low} to {high}")


# Shapes


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels' x (1, size) and y (size, 1)."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1) / 0.98
    return axis[None, :], axis[:, None]


def _discs(
    size: int, x: np.ndarray, y: np.ndarray, radius: np.ndarray, feather: float = 0.0
) -> np.ndarray:
    """Coverage of a union of discs (N,); their edges fade over `feather`, over a pixel at least."""
    unit = np.float32(0.49 * size)  # pixels in a radius of the retina
    middle = np.float32((size - 1) / 2)
    x = np.asarray(x, np.float32) * unit + middle
    y = np.asarray(y, np.float32) * unit + middle
    radius = np.asarray(radius, np.float32) * unit
    feather = max(1.0, feather * unit)
    reach = math.ceil(radius.max() + feather / 2)
    window = np.arange(-reach, reach + 1, dtype=np.int32)  # the square of pixels round a disc
    column = np.clip(np.rint(x).astype(np.int32)[:, None] + window, 0, size - 1)
    row = np.clip(np.rint(y).astype(np.int32)[:, None] + window, 0, size - 1)
    across = (column - x[:, None])[:, None, :]
    down = (row - y[:, None])[:, :, None]
    depth = radius[:, None, None] - np.sqrt(down**2 + across**2)
    cover = np.clip(depth / feather + 0.5, 0, 1, dtype=np.float32)
    canvas = np.zeros(size * size, np.float32)
    pixels = row[:, :, None] * size + column[:, None, :]
    np.maximum.at(canvas, pixels.ravel(), cover.ravel())
    return canvas.reshape(size, size)


def _strokes(size: int, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Coverage of polylines (B, S), as discs in a row; what is under a pixel wide is fainter."""
    gap = np.hypot(np.diff(x), np.diff(y)) * 0.49 * size
    near = np.hypot(x, y)[:, :-1] < 1.05
    discs = np.where(near, np.ceil(gap / 0.85), 0).astype(int).ravel()  # of each segment
    segment = np.repeat(np.arange(len(discs)), discs)
    number = np.arange(len(segment)) - (np.cumsum(discs) - discs)[segment]  # within its segment
    share = number / discs[segment]

    def along(values: np.ndarray) -> np.ndarray:
        return values[:, :-1].ravel()[segment] + np.diff(values).ravel()[segment] * share

    thick = np.maximum(along(radius) - 0.25 / size, 0.2 / size)
    return _discs(size, along(x), along(y), thick)


# Vessels


def _grow(
    rng: Generator, start: tuple[np.ndarray, ...], wander: float, steps: int
) -> tuple[np.ndarray, ...]:
    """Vessels that bend early, wander and taper: x, y, radius, heading (B, steps).

    `start` is their x, y, heading, length, radius, bend (B,).
    """
    x, y, heading, length, radius, bend = start
    t = np.linspace(0, 1, steps)
    waves = rng.uniform(0.5, 2.2, (2, len(x), 1)) * t + rng.random((2, len(x), 1))
    waves = (rng.normal(0, wander, (2, len(x), 1)) * np.sin(2 * np.pi * waves)).sum(0)
    heading = heading[:, None] + bend[:, None] * (1 - np.exp(-t / 0.3)) + waves
    x = x[:, None] + np.cumsum(np.cos(heading), 1) * length[:, None] / steps
    y = y[:, None] + np.cumsum(np.sin(heading), 1) * length[:, None] / steps
    return x, y, radius[:, None] * (1 - 0.55 * t), heading


def _tree(rng: Generator, disc: _Point) -> list[tuple]:
    """The vascular tree, three generations of (what `_grow` gives, is_vein (B,)).

    Rows 0 and 1 of the first are the great veins.
    """
    up = np.tile([-1.0, 1.0], 6)
    vein = np.repeat([True, False] * 3, 2)
    # heading, bend, length, radius of the temporal arcades, the nasal trunks, twigs to the macula
    trunks = [[1.75, 1.7, 1.85, 0.0205], [0.9, -0.35, 0.8, 0.015], [2.75, 0.3, 0.6, 0.0065]]
    heading, bend, length, radius = np.repeat(trunks, 4, axis=0).T
    heading = heading + rng.normal(0, 0.13, 12) - 0.14 * vein
    bend = bend + rng.normal(0, 0.12, 12)
    radius = radius * np.where(vein, 1, 0.72) * rng.uniform(0.85, 1.15)
    x = disc[0] + 0.02 + rng.normal(0, 0.02, 12)
    y = disc[1] + up * rng.uniform(0, 0.03, 12)
    length = length * rng.uniform(0.9, 1.1)
    start = x, y, up * heading, length, radius, up * bend
    tree = [(_grow(rng, start, 0.09, 56), vein)]
    for children, steps in ((6, 32), (3, 16)):
        (x, y, radius, heading), vein = tree[-1]
        parent = np.repeat(np.arange(len(x)), children)
        child = np.tile(np.arange(children), len(x))
        t = 0.2 + 0.75 * (child + rng.random(len(parent))) / children  # where it leaves its parent
        at = parent, (t * x.shape[1]).astype(int)
        alternates = rng.random(len(parent)) < 0.8
        side = np.where((np.arange(len(parent)) % 2 == 0) == alternates, 1, -1)
        whole = np.hypot(np.diff(x), np.diff(y)).sum(1)[parent]
        length = whole * rng.uniform(0.25, 0.6, len(parent)) * (1.1 - 0.6 * t)
        turn = side * rng.uniform(0.4, 1.0, len(parent))
        bend = side * rng.uniform(-0.9, 0.35, len(parent))
        start = x[at], y[at], heading[at] + turn, length, 0.6 * radius[at], bend
        tree.append((_grow(rng, start, 0.22, steps), vein[parent]))
    return tree


# Lesions


class _Room:
    """Where there is room for a lesion: within the retina, off the disc, off earlier lesions."""

    def __init__(self, rng: Generator, disc: _Point, tree: list[tuple]) -> None:
        self.rng = rng
        axis = (np.arange(64) + 0.5) / 32 - 1  # of 64 x 64 cells
        self.x = axis[None, :]
        self.y = axis[:, None]
        self.free = (self.x**2 + self.y**2 < 0.86**2) & (abs(self.y) < 0.78)
        self.take(*disc, 0.22)
        self.off_vessels = np.ones((64, 64), bool)
        for (x, y, _, _), _ in tree[:2]:
            column = np.clip((x.ravel() + 1) * 32, 0, 63).astype(int)
            row = np.clip((y.ravel() + 1) * 32, 0, 63).astype(int)
            self.off_vessels[row, column] = False

    def take(self, x: float, y: float, radius: float) -> None:
        self.free &= (self.x - x) ** 2 + (self.y - y) ** 2 > radius**2

    def find(self, radius: float, where: np.ndarray | bool = True) -> _Point:
        """A free place (x, y) in `where`, a mask of the cells; `radius` around it is taken."""
        row, column = divmod(self.rng.choice(np.flatnonzero(self.free & where)), 64)
        x = self.x[0, column]
        y = self.y[row, 0]
        self.take(x, y, radius)
        return x, y


def _specks(
    rng: Generator,
    size: int,
    places: list,
    count: int,
    spread: float,
    radii: tuple,
    feather: float = 0.0,
) -> np.ndarray:
    """Coverage of `count` round specks near each place, none of them less than 3 pixels wide.

    `spread` is their standard deviation from the place, `radii` the smallest and largest radius.
    """
    x, y = np.repeat(places, count, axis=0).T + rng.normal(0, spread, (2, count * len(places)))
    radius = np.maximum(rng.uniform(*radii, len(x)), 1.5 / size)
    return _discs(size, x, y, radius, feather)


def _preretinal_haemorrhage(size: int, room: _Room) -> np.ndarray:
    """Coverage of a pool of blood below a level surface."""
    width = room.rng.uniform(0.2, 0.34)
    depth = room.rng.uniform(0.16, 0.26)
    off_middle = (abs(abs(room.y) - 0.35) < 0.2) & (abs(room.x) < 0.5)
    surface_x, surface_y = room.find(width, off_middle)
    room.take(surface_x, surface_y + depth / 2, width)
    x, y = _grid(size)
    x, y = x - surface_x, y - surface_y
    bowl = 1 - np.sqrt((x / width) ** 2 + (y / depth) ** 2)
    level = (y - 0.02 * np.sin(9 * x)) / 0.03
    return np.clip(bowl * 8, 0, 1) * np.clip(level + 0.5, 0, 1)


def _new_vessels(size: int, disc: _Point, room: _Room) -> np.ndarray:
    """Coverage of tufts of thin vessels, on the disc or elsewhere."""
    rng = room.rng
    tufts = [disc] * int(rng.integers(2))
    tufts += [room.find(0.2) for _ in range(rng.integers(1, 3))]
    x, y = np.repeat(tufts, 16, axis=0).T
    heading = rng.uniform(-np.pi, np.pi, len(x))
    bend = rng.normal(0, 2.2, len(x))
    length = rng.uniform(0.18, 0.38, len(x))
    radius = rng.uniform(0.0135, 0.017, len(x))
    x, y, radius, _ = _grow(rng, (x, y, heading, length, radius, bend), 0.7, 24)
    return _strokes(size, x, y, radius)


def _lesions(
    grade: int, size: int, disc: _Point, fovea: _Point, room: _Room
) -> dict[str, np.ndarray]:
    """Coverage of every lesion that the grade has by the ICDR scale, the rarest placed first."""
    rng = room.rng
    drawn = {}
    form = rng.integers(3)  # of grade 4: new vessels, pre-retinal haemorrhage, both
    if grade == 4 and form != 0:
        drawn["preretinal_haemorrhage"] = _preretinal_haemorrhage(size, room)
    if grade == 4 and form != 1:
        drawn["new_vessels"] = _new_vessels(size, disc, room)

    if grade >= 3:
        fewest, most = (2, 5) if grade == 3 else (0, 2)
        places = [room.find(0.12) for _ in range(rng.integers(fewest, most + 1))]
        if places:
            drawn["cotton_wool_spot"] = _specks(rng, size, places, 5, 0.03, (0.03, 0.055), 0.05)

    if grade >= 2:
        by_fovea = (room.x - fovea[0]) ** 2 + (room.y - fovea[1]) ** 2 < 0.6**2
        fewest = 1 if grade == 2 else 0
        places = [room.find(0.13, by_fovea) for _ in range(rng.integers(fewest, 4))]
        if places:
            count = rng.integers(12, 26)
            drawn["hard_exudate"] = _specks(rng, size, places, count, 0.055, (0.008, 0.021))

        quadrants = []
        for side in (-1, 1):
            for half in (-1, 1):
                quadrants.append((room.x * side > 0) & (room.y * half > 0) & room.off_vessels)
        chosen = rng.choice(rng.permutation(4)[:3], rng.integers(4, 10))  # three at the most
        if grade == 3:  # many, in all four
            chosen = np.repeat(np.arange(4), rng.integers(6, 11, 4))
        places = [room.find(0.08, quadrants[quadrant]) for quadrant in chosen]
        drawn["haemorrhage"] = _specks(rng, size, places, 5, 0.016, (0.014, 0.034))

    if grade >= 1:
        places = [room.find(0.055, room.off_vessels) for _ in range(rng.integers(8, 17))]
        drawn["microaneurysm"] = _specks(rng, size, places, 1, 0, (0.017, 0.025))
    return drawn


# The photograph


def draw_photograph(
    grade: int,
    seed: int,
    size: int,
    eye: str = "right",
    without: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A synthetic fundus photograph; equal arguments give equal pixels.

    The optic disc is nasal: on the right in a right eye.

    Args:
        grade: of the ICDR scale: 0 no lesion; 1 microaneurysms only; 2 also haemorrhages and hard
            exudates; 3 many haemorrhages in all four quadrants, cotton-wool spots and beaded veins
            (a sign of the vessels, in no mask); 4 new vessels, pre-retinal haemorrhage or both,
            with milder lesions.
        seed: of the eye, and with the grade of its lesions.
        size: side in pixels, 48 to 2048.
        eye: one of `SIDES`.
        without: bool (size, size), where no lesion is drawn; all else stays as it is.

    Returns:
        The photograph uint8 (size, size, 3), and masks bool (size, size) by name of
        `lib.data.retina.MASKS`.

    Raises:
        ValueError: an argument is out of range.
    """
    _require_integer("grade", grade, 0, 4)
    _require_integer("seed", seed, 0, 2**63)
    _require_integer("size", size, 48, 2048)
    if eye not in SIDES:
        raise ValueError(f"eye is {eye!r}; give 'left' or 'right'")
    if without is not None and np.shape(without) != (size, size):
        raise ValueError(f"without is {np.shape(without)}; give a mask ({size}, {size})")
    rng = np.random.default_rng([seed, SIDES.index(eye)])
    disc = rng.uniform(0.52, 0.7), rng.uniform(-0.1, 0.06)
    fovea = disc[0] - rng.uniform(0.68, 0.78), disc[1] + rng.uniform(0.03, 0.1)
    tree = _tree(rng, disc)
    colour = np.float32(rng.dirichlet([0.4] * len(_RETINAS)) @ np.float32(_RETINAS))
    signs = np.random.default_rng([seed, SIDES.index(eye), grade])
    lesions = _lesions(grade, size, disc, fovea, _Room(signs, disc, tree))
    if without is not None:
        shown = ~np.asarray(without, bool)
        shown = shown[:, ::-1] if eye == "left" else shown
        lesions = {name: cover * shown for name, cover in lesions.items()}

    x, y = _grid(size)
    to_fovea = (x - fovea[0]) ** 2 + (y - fovea[1]) ** 2
    to_disc = np.sqrt(((x - disc[0]) * rng.uniform(1, 1.15)) ** 2 + (y - disc[1]) ** 2)
    to_disc = to_disc / rng.uniform(0.145, 0.18)  # 1 at its edge

    image = _background(rng, size, colour, to_fovea, to_disc)
    _draw_vessels(image, tree, to_fovea, beaded=grade == 3)
    for name, cover in lesions.items():
        keep, add = np.float32(_LOOKS[name])
        image += cover[..., None] * (image * (keep - 1) + add)
    aperture = np.clip((1 - np.sqrt(x**2 + y**2)) * size / 2 + 0.5, 0, 1)
    image = _expose(rng, image, aperture)

    covers = lesions | {OPTIC_DISC: np.clip((1 - to_disc) * 4 + 0.25, 0, 1)}
    masks = {}
    for name in MASKS:
        masks[name] = covers.get(name, np.zeros((size, size))) * aperture > 0.25
    if eye == "left":
        image = image[:, ::-1].copy()
        masks = {name: mask[:, ::-1].copy() for name, mask in masks.items()}
    return image, masks


def _background(
    rng: Generator, size: int, colour: np.ndarray, to_fovea: np.ndarray, to_disc: np.ndarray
) -> np.ndarray:
    """The retina without vessels, (size, size, 3): haze, choroid, a dark fovea, a bright disc."""

    def clouds(cells: int) -> np.ndarray:
        noise = rng.normal(0, 1, (cells, cells)).astype(np.float32)
        return zoom(noise, size / cells, order=1, grid_mode=True, mode="nearest")

    haze = clouds(7)
    choroid = np.abs(gaussian_filter(clouds(30), size / 90, truncate=2))
    shade = 0.05 * haze - rng.uniform(0.02, 0.15) * choroid
    shade = shade - rng.uniform(0.15, 0.4) * np.exp(-to_fovea / 0.018)
    shade -= rng.uniform(0.05, 0.2) * np.exp(-to_fovea / 0.1)
    image = (1 + shade[..., None] * np.float32([0.7, 1.1, 1.2])) * colour
    bright = np.clip((1.08 - to_disc) * 4, 0, 1) * (0.78 + 0.22 * np.exp(-((to_disc / 0.5) ** 2)))
    bright += 0.15 * np.exp(-((to_disc / 2) ** 2)) * (1 - bright)
    image += bright[..., None] * (np.float32([1.15, 0.88, 0.46]) - image)
    return image


def _draw_vessels(image: np.ndarray, tree: list[tuple], to_fovea: np.ndarray, beaded: bool) -> None:
    """Draw arteries, then veins, on the image in place; they fade at the fovea."""
    size = len(image)
    for is_vein, keep in ((False, _ARTERY), (True, _VEIN)):
        cover = np.zeros((size, size), np.float32)
        for (x, y, radius, _), vein in tree:
            these = vein == is_vein
            cover = np.maximum(cover, _strokes(size, x[these], y[these], radius[these]))
        cover *= 1 - 0.9 * np.exp(-to_fovea / 0.02)
        if is_vein and beaded:
            x, y, radius = (values[:2, 8:44:3].ravel() for values in tree[0][0][:3])
            cover = np.maximum(cover, _discs(size, x, y, 1.6 * radius))
        image *= 1 - cover[..., None] * (1 - np.float32(keep))


def _expose(rng: Generator, image: np.ndarray, aperture: np.ndarray) -> np.ndarray:
    """What the camera makes of it, uint8: vignetting, exposure, blur, noise, a round aperture."""
    size = len(image)
    x, y = _grid(size)
    off_axis = (x - rng.normal(0, 0.12)) ** 2 + (y - rng.normal(0, 0.12)) ** 2
    vignette = 1 - rng.uniform(0.15, 0.4) * off_axis - 0.12 * off_axis**3
    image *= (vignette * rng.uniform(0.75, 1.15))[..., None]
    blur = rng.uniform(0.0015, 0.006) * size / 2
    image = gaussian_filter(image, (blur, blur, 0), truncate=3)
    noise = rng.uniform(0.004, 0.014)
    image += rng.normal(0, noise, (size, size, 1)).astype(np.float32)
    image *= aperture[..., None]
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


# The collection


def _frame(rng: Generator, image: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A photograph and its mask bits as a camera frames them, off-centre on noisy black.

    Some have a notch in the rim, some are cut off flat above and below.
    """
    size = len(image)
    if rng.random() < 0.3:
        angle = rng.uniform(-np.pi, np.pi)
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        to_rim = np.hypot(axis - np.cos(angle), axis[:, None] - np.sin(angle))
        notch = to_rim < rng.uniform(0.05, 0.08)
        image = np.where(notch[..., None], 0, image)
    flat = rng.random() < 0.35
    height = round(size * (rng.uniform(0.84, 0.95) if flat else rng.uniform(1.02, 1.2)))
    width = max(round(height * rng.choice([4 / 3, 3 / 2, 1.2])), size + 4)
    left = round((0.5 + rng.uniform(-0.4, 0.4)) * (width - size))
    off_centre = rng.uniform(-0.3, 0.3)
    top = round((0.5 + (0 if flat else off_centre)) * (height - size))  # below 0 where it is cut

    hidden = max(-top, 0)
    shown = slice(hidden, hidden + height)  # rows of the photograph
    place = np.s_[max(top, 0) : top + size, left : left + size]
    frame = rng.normal(2, 1.5, (height, width, 1)).repeat(3, axis=2)
    frame[place] += image[shown]
    framed_bits = np.zeros((height, width), np.uint8)
    framed_bits[place] = bits[shown]
    return np.clip(frame + 0.5, 0, 255).astype(np.uint8), framed_bits


def _write_photograph(folder: Path, seed: int, patient: int, eye: str, grade: int) -> None:
    """Write one photograph and its masks; the camera knows nothing of the grade."""
    rng = np.random.default_rng([seed, patient, SIDES.index(eye)])
    size = int(rng.integers(150, 231))
    image, masks = draw_photograph(grade, seed * 10**6 + patient, size, eye)
    image, bits = _frame(rng, image, pack_masks(masks))
    Image.fromarray(image).save(folder / "train" / f"{patient}_{eye}.jpeg", quality=90)
    Image.fromarray(bits).save(folder / "masks" / f"{patient}_{eye}.png")


def _allot(rng: Generator, n: int, share: list[float]) -> list[int]:
    """Grades of n patients in random order, n * share of each to the largest remainder."""
    wanted = n * np.array(share)
    counts = np.floor(wanted + 1e-9).astype(int)
    most_lacking = np.argsort(counts - wanted, kind="stable")
    counts[most_lacking[: n - counts.sum()]] += 1
    return rng.permutation(np.repeat(np.arange(5), counts)).tolist()


def write_collection(
    folder: str | Path,
    n: int,
    seed: int,
    share: Sequence[float] = BALANCED,
    workers: int | None = None,
) -> None:
    """Write phantoms of both eyes of n patients in the tree in which Kaggle ships EyePACS.

    That is train/10_left.jpeg, ... and trainLabels.csv (image, level). Beside them stand
    masks/10_left.png (`lib.data.retina.read_masks`) and collection.json (n, seed, share, version).
    The files are the same for any number of workers. An interrupted write leaves nothing but
    <folder>.partial.

    Args:
        folder: to be written; an older collection in it is kept beside as <folder>.1, .2, ...
        n: patients, 1 to 100,000.
        seed: 0 to 10^12.
        share: of grades 0 to 4 in each eye, met to the largest remainder; `EYEPACS_SHARES` are
            those of EyePACS.
        workers: processes, by default as many as pay: a script calls this below
            `if __name__ == "__main__"`.

    Raises:
        ValueError: n, seed or share is out of range.
        FileExistsError: `folder` holds something other than a collection.
        RuntimeError: another run is writing it; a worker process ended.
    """
    _require_integer("n", n, 1, 100_000)
    _require_integer("seed", seed, 0, 10**12)
    share = [float(part) for part in share]
    adds_up = math.isclose(sum(share), 1, abs_tol=1e-6)
    if len(share) != 5 or not all(part >= 0 for part in share) or not adds_up:
        raise ValueError(f"share is {share}; give five shares, of grades 0 to 4, that add up to 1")
    folder = Path(folder).absolute()
    with paths.alone(folder, "drawing"):
        if folder.exists() and any(folder.iterdir()) and not (folder / "collection.json").exists():
            raise FileExistsError(
                f"{folder} holds files that are no phantom collection; move them or name another "
                "folder"
            )
        unfinished = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        for below in ("train", "masks"):
            (unfinished / below).mkdir(parents=True)
        _write_files(unfinished, n, seed, share, workers)
        if (folder / "collection.json").exists():
            print(f"{folder.name} held another collection, kept as {paths.aside(folder).name}")
        os.replace(unfinished, folder)


def _write_files(folder: Path, n: int, seed: int, share: list[float], workers: int | None) -> None:
    """Write a collection's photographs, masks and tables."""
    rng = np.random.default_rng(seed)
    patients = (9 + np.cumsum(rng.integers(1, 5, n))).tolist()
    grades = {eye: _allot(rng, n, share) for eye in SIDES}
    photographs = []
    for i, patient in enumerate(patients):
        for eye in SIDES:
            photographs.append((patient, eye, grades[eye][i]))
    write = partial(_write_photograph, folder, seed)
    workers = workers or min(os.cpu_count(), 1 + n // 40)
    if workers == 1:
        for photograph in photographs:
            write(*photograph)
    else:
        try:
            with worker_pool(workers) as pool:
                list(pool.map(write, *zip(*photographs, strict=True), chunksize=8))
        except BrokenExecutor as error:
            raise RuntimeError(f"{BROKEN}, with fewer workers if that does not help.") from error

    rows = [f"{patient}_{eye},{grade}" for patient, eye, grade in photographs]
    (folder / "trainLabels.csv").write_text("\n".join(["image,level", *rows]) + "\n")
    about = {"n": int(n), "seed": int(seed), "share": share, "version": VERSION}
    (folder / "collection.json").write_text(json.dumps(about) + "\n")
