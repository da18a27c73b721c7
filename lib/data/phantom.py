"""Synthetic fundus photographs ("phantoms") of every grade, with the place of every lesion known.

A phantom is a drawing, not data. Its lesions follow the wording of the International Clinical Diabetic Retinopathy
scale (Wilkinson et al. 2003), larger than life so that they survive 128 pixels; no patient's photograph went into
it, and nothing clinical follows from it. Anatomy and camera depend on seed and eye alone: grade g and grade 0 of
one seed are twins that differ in the signs of the disease and in nothing else.
"""

import math
from operator import index

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

# What a lesion does to the light (r, g, b) of the retina below it: the share that it keeps, the share that it adds.
LOOKS = {
    "microaneurysm": ((0.52, 0.22, 0.3), (0, 0, 0)),
    "haemorrhage": ((0.5, 0.18, 0.25), (0, 0, 0)),
    "hard_exudate": ((0.1, 0.1, 0.1), (0.97, 0.85, 0.36)),
    "cotton_wool_spot": ((0.25, 0.2, 0.15), (0.72, 0.68, 0.55)),
    "new_vessels": ((0.74, 0.26, 0.32), (0, 0, 0)),
    "preretinal_haemorrhage": ((0.42, 0.1, 0.15), (0.03, 0, 0)),
}
LESIONS = tuple(LOOKS)
MASKS = (*LESIONS, "optic_disc")  # what bit i of a mask file stands for
VEIN, ARTERY = (0.66, 0.42, 0.5), (0.88, 0.62, 0.62)
RETINAS = (
    (0.95, 0.5, 0.12),
    (0.6, 0.25, 0.1),
    (0.9, 0.52, 0.4),
    (0.82, 0.35, 0.1),
    (0.8, 0.5, 0.22),
)
EYES = ("left", "right")
VERSION = 2  # of the drawing: another one makes other pixels of the same arguments


def check(name, value, low, high):
    """ValueError unless `value` is an integer from low to high."""
    try:
        inside = low <= index(value) <= high
    except TypeError:
        inside = False
    if not inside:
        raise ValueError(f"{name} is {value!r}; give an integer from {low} to {high}")


def _grid(size):
    """x (1, size), y (size, 1) of the pixels, in radii of the retina: nose on the right, y downwards."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1) / 0.98
    return axis[None, :], axis[:, None]


def _discs(size, x, y, radius, feather=0.0):
    """Coverage (size, size) float32 in [0, 1] of a union of discs, all in radii of the retina."""
    unit = np.float32(0.49 * size)
    x, y = (np.asarray(v, np.float32) * unit + np.float32((size - 1) / 2) for v in (x, y))
    radius, feather = np.asarray(radius, np.float32) * unit, max(1.0, feather * unit)
    reach = math.ceil(radius.max() + feather / 2)
    reach = np.arange(-reach, reach + 1, dtype=np.int32)
    column, row = (
        np.clip(np.rint(v).astype(np.int32)[:, None] + reach, 0, size - 1) for v in (x, y)
    )
    square = ((row - y[:, None]) ** 2)[:, :, None] + ((column - x[:, None]) ** 2)[:, None, :]
    cover = np.clip(
        (radius[:, None, None] - np.sqrt(square)) / feather + 0.5, 0, 1, dtype=np.float32
    )
    canvas = np.zeros(size * size, np.float32)
    np.maximum.at(canvas, (row[:, :, None] * size + column[:, None, :]).ravel(), cover.ravel())
    return canvas.reshape(size, size)


def _strokes(size, x, y, radius):
    """Coverage of polylines, rows of x, y, radius (B, S); what is thinner than a pixel is drawn fainter."""
    gap = np.hypot(np.diff(x), np.diff(y)) * 0.49 * size
    gap = np.where(np.hypot(x, y)[:, :-1] < 1.05, np.ceil(gap / 0.85), 0).astype(int).ravel()
    segment = np.repeat(np.arange(len(gap)), gap)
    share = (np.arange(len(segment)) - (np.cumsum(gap) - gap)[segment]) / gap[segment]
    x, y, radius = (
        v[:, :-1].ravel()[segment] + np.diff(v).ravel()[segment] * share for v in (x, y, radius)
    )
    return _discs(size, x, y, np.maximum(radius - 0.25 / size, 0.2 / size))


def _grow(rng, x, y, heading, length, radius, bend, wander, steps):
    """Vessels from (x, y): x, y, radius, heading (B, steps). They bend early, wander and taper."""
    t = np.linspace(0, 1, steps)
    waves = rng.uniform(0.5, 2.2, (2, len(x), 1)) * t + rng.random((2, len(x), 1))
    waves = (rng.normal(0, wander, (2, len(x), 1)) * np.sin(2 * np.pi * waves)).sum(0)
    heading = heading[:, None] + bend[:, None] * (1 - np.exp(-t / 0.3)) + waves
    x = x[:, None] + np.cumsum(np.cos(heading), 1) * length[:, None] / steps
    y = y[:, None] + np.cumsum(np.sin(heading), 1) * length[:, None] / steps
    return x, y, radius[:, None] * (1 - 0.55 * t), heading


def _tree(rng, disc):
    """The vascular tree: three generations [((x, y, radius, heading), is_vein (B,))]; rows 0, 1: the great veins."""
    up, vein = np.tile([-1.0, 1.0], 6), np.repeat([True, False] * 3, 2)
    heading, bend, length, radius = (
        np.repeat(  # the temporal arcades, the nasal trunks, twigs to the macula
            [[1.75, 1.7, 1.85, 0.0205], [0.9, -0.35, 0.8, 0.015], [2.75, 0.3, 0.6, 0.0065]],
            4,
            axis=0,
        ).T
    )
    heading, bend = heading + rng.normal(0, 0.13, 12) - 0.14 * vein, bend + rng.normal(0, 0.12, 12)
    radius = radius * np.where(vein, 1, 0.72) * rng.uniform(0.85, 1.15)
    x, y = disc[0] + 0.02 + rng.normal(0, 0.02, 12), disc[1] + up * rng.uniform(0, 0.03, 12)
    tree = [
        (
            _grow(
                rng, x, y, up * heading, length * rng.uniform(0.9, 1.1), radius, up * bend, 0.09, 56
            ),
            vein,
        )
    ]
    for children, steps in ((6, 32), (3, 16)):
        (x, y, radius, heading), vein = tree[-1]
        parent = np.repeat(np.arange(len(x)), children)
        t = 0.2 + 0.75 * (np.tile(np.arange(children), len(x)) + rng.random(len(parent))) / children
        at = parent, (t * x.shape[1]).astype(int)
        side = np.where((np.arange(len(parent)) % 2 == 0) == (rng.random(len(parent)) < 0.8), 1, -1)
        length = (
            np.hypot(np.diff(x), np.diff(y)).sum(1)[parent]
            * rng.uniform(0.25, 0.6, len(parent))
            * (1.1 - 0.6 * t)
        )
        turn, bend = (
            side * rng.uniform(0.4, 1.0, len(parent)),
            side * rng.uniform(-0.9, 0.35, len(parent)),
        )
        grown = _grow(
            rng, x[at], y[at], heading[at] + turn, length, 0.6 * radius[at], bend, 0.22, steps
        )
        tree.append((grown, vein[parent]))
    return tree


class _Room:
    """Where there is room for a lesion: within the retina, off the disc, off earlier lesions."""

    def __init__(self, rng, disc, tree):
        self.rng, axis = rng, (np.arange(64) + 0.5) / 32 - 1
        self.x, self.y = axis[None, :], axis[:, None]
        self.free = (self.x**2 + self.y**2 < 0.86**2) & (abs(self.y) < 0.78)
        self.take(*disc, 0.22)
        self.off_vessels = np.ones((64, 64), bool)
        for (x, y, _, _), _ in tree[:2]:
            column, row = (np.clip((v.ravel() + 1) * 32, 0, 63).astype(int) for v in (x, y))
            self.off_vessels[row, column] = False

    def take(self, x, y, radius):
        self.free &= (self.x - x) ** 2 + (self.y - y) ** 2 > radius**2

    def find(self, radius, where=True):
        """A free place (x, y) in `where`, a mask of the cells; `radius` around it is taken."""
        row, column = divmod(self.rng.choice(np.flatnonzero(self.free & where)), 64)
        self.take(self.x[0, column], self.y[row, 0], radius)
        return self.x[0, column], self.y[row, 0]


def _lesions(grade, size, disc, fovea, room):
    """Coverage (size, size) of every lesion that the grade has by the ICDR scale."""
    drawn, rng = {}, room.rng
    form = rng.integers(3)  # new vessels, pre-retinal haemorrhage, both

    def strew(places, count, spread, radius, feather=0.0):
        x, y = np.repeat(places, count, axis=0).T + rng.normal(0, spread, (2, count * len(places)))
        return _discs(size, x, y, np.maximum(rng.uniform(*radius, len(x)), 1.5 / size), feather)

    if grade == 4 and form != 0:  # a pool under a level surface
        width, height = rng.uniform(0.2, 0.34), rng.uniform(0.16, 0.26)
        left, top = room.find(width, (abs(abs(room.y) - 0.35) < 0.2) & (abs(room.x) < 0.5))
        room.take(left, top + height / 2, width)
        x, y = (v - at for v, at in zip(_grid(size), (left, top), strict=True))
        bowl, level = (
            1 - np.sqrt((x / width) ** 2 + (y / height) ** 2),
            (y - 0.02 * np.sin(9 * x)) / 0.03,
        )
        drawn["preretinal_haemorrhage"] = np.clip(bowl * 8, 0, 1) * np.clip(level + 0.5, 0, 1)
    if grade == 4 and form != 1:  # tufts, on the disc or elsewhere
        tufts = [disc] * rng.integers(2) + [room.find(0.2) for _ in range(rng.integers(1, 3))]
        x, y = np.repeat(tufts, 16, axis=0).T
        heading, bend = rng.uniform(-np.pi, np.pi, len(x)), rng.normal(0, 2.2, len(x))
        length, thin = rng.uniform(0.18, 0.38, len(x)), rng.uniform(0.0135, 0.017, len(x))
        drawn["new_vessels"] = _strokes(
            size, *_grow(rng, x, y, heading, length, thin, bend, 0.7, 24)[:3]
        )
    if grade >= 3 and (
        spots := [room.find(0.12) for _ in range(rng.integers(*((2, 6), (0, 3))[grade - 3]))]
    ):
        drawn["cotton_wool_spot"] = strew(spots, 5, 0.03, (0.03, 0.055), 0.05)
    near = (room.x - fovea[0]) ** 2 + (room.y - fovea[1]) ** 2 < 0.6**2
    if grade >= 2 and (
        spots := [room.find(0.13, near) for _ in range(rng.integers(grade == 2, 4))]
    ):
        drawn["hard_exudate"] = strew(spots, rng.integers(12, 26), 0.055, (0.008, 0.021))
    if grade >= 2:
        quarters = [
            (room.x * i > 0) & (room.y * j > 0) & room.off_vessels for i in (-1, 1) for j in (-1, 1)
        ]
        few = rng.choice(rng.permutation(4)[:3], rng.integers(4, 10))
        quarter = np.repeat(np.arange(4), rng.integers(6, 11, 4)) if grade == 3 else few
        drawn["haemorrhage"] = strew(
            [room.find(0.08, quarters[q]) for q in quarter], 5, 0.016, (0.014, 0.034)
        )
    if grade >= 1:
        dots = [room.find(0.055, room.off_vessels) for _ in range(rng.integers(8, 17))]
        drawn["microaneurysm"] = strew(dots, 1, 0, (0.017, 0.025))
    return drawn


def photograph(grade, seed, size, eye="right"):
    """A synthetic fundus photograph: image (size, size, 3) uint8 and masks {what: (size, size) bool} of MASKS.

    Grades of the ICDR scale: 0 no lesion; 1 microaneurysms only; 2 also haemorrhages and hard exudates; 3 many
    haemorrhages in all four quadrants, cotton-wool spots and beaded veins (a sign of the vessels, in no mask);
    4 new vessels, pre-retinal haemorrhage or both, with milder lesions. The optic disc is nasal: on the right in a
    right eye. Equal arguments give equal pixels. Raises ValueError for grade, seed, size (48-2048) or eye out of range.
    """
    for name, value, low, high in (
        ("grade", grade, 0, 4),
        ("seed", seed, 0, 2**63),
        ("size", size, 48, 2048),
    ):
        check(name, value, low, high)
    if eye not in EYES:
        raise ValueError(f"eye is {eye!r}; give 'left' or 'right'")
    rng = np.random.default_rng([seed, EYES.index(eye)])
    disc = rng.uniform(0.52, 0.7), rng.uniform(-0.1, 0.06)
    fovea = disc[0] - rng.uniform(0.68, 0.78), disc[1] + rng.uniform(0.03, 0.1)
    tree, retina = _tree(rng, disc), rng.dirichlet([0.4] * len(RETINAS)) @ np.float32(RETINAS)
    signs = np.random.default_rng([seed, EYES.index(eye), grade])
    drawn = _lesions(grade, size, disc, fovea, _Room(signs, disc, tree))

    x, y = _grid(size)
    to_fovea = (x - fovea[0]) ** 2 + (y - fovea[1]) ** 2
    to_disc = np.sqrt(
        ((x - disc[0]) * rng.uniform(1, 1.15)) ** 2 + (y - disc[1]) ** 2
    ) / rng.uniform(0.145, 0.18)
    haze, choroid = (
        zoom(
            rng.normal(0, 1, (n, n)).astype("f"), size / n, order=1, grid_mode=True, mode="nearest"
        )
        for n in (7, 30)
    )
    choroid = np.abs(gaussian_filter(choroid, size / 90, truncate=2))
    shade = (
        0.05 * haze
        - rng.uniform(0.02, 0.15) * choroid
        - rng.uniform(0.15, 0.4) * np.exp(-to_fovea / 0.018)
    )
    shade -= rng.uniform(0.05, 0.2) * np.exp(-to_fovea / 0.1)
    image = (1 + shade[..., None] * np.float32([0.7, 1.1, 1.2])) * np.float32(retina)
    bright = np.clip((1.08 - to_disc) * 4, 0, 1) * (0.78 + 0.22 * np.exp(-((to_disc / 0.5) ** 2)))
    bright += 0.15 * np.exp(-((to_disc / 2) ** 2)) * (1 - bright)
    image += bright[..., None] * (np.float32([1.15, 0.88, 0.46]) - image)

    for kind, keep in ((False, ARTERY), (True, VEIN)):
        cover = np.zeros((size, size), np.float32)
        for (*course, _), vein in tree:
            cover = np.maximum(cover, _strokes(size, *(v[vein == kind] for v in course)))
        cover *= 1 - 0.9 * np.exp(-to_fovea / 0.02)
        if kind and grade == 3:
            beads = [v[:2, 8:44:3].ravel() for v in tree[0][0][:3]]
            cover = np.maximum(cover, _discs(size, *beads[:2], 1.6 * beads[2]))
        image *= 1 - cover[..., None] * (1 - np.float32(keep))
    for lesion, cover in drawn.items():
        keep, add = np.float32(LOOKS[lesion])
        image += cover[..., None] * (image * (keep - 1) + add)

    off_axis = (x - rng.normal(0, 0.12)) ** 2 + (y - rng.normal(0, 0.12)) ** 2
    image *= (
        (1 - rng.uniform(0.15, 0.4) * off_axis - 0.12 * off_axis**3) * rng.uniform(0.75, 1.15)
    )[..., None]
    blur = rng.uniform(0.0015, 0.006) * size / 2
    image = gaussian_filter(image, (blur, blur, 0), truncate=3)
    image += rng.normal(0, rng.uniform(0.004, 0.014), (size, size, 1)).astype(np.float32)
    aperture = np.clip((1 - np.sqrt(x**2 + y**2)) * size / 2 + 0.5, 0, 1)
    image *= aperture[..., None]
    image = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    drawn["optic_disc"] = np.clip((1 - to_disc) * 4 + 0.25, 0, 1)
    masks = {name: drawn.get(name, np.zeros((size, size))) * aperture > 0.25 for name in MASKS}
    if eye == "left":
        image, masks = (
            image[:, ::-1].copy(),
            {lesion: mask[:, ::-1].copy() for lesion, mask in masks.items()},
        )
    return image, masks
