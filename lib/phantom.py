"""Synthetic fundus photographs ("phantoms") of every grade, with the place of every lesion known.

A phantom is drawing, not data: the lesions follow the wording of the International Clinical Diabetic Retinopathy
scale (Wilkinson et al. 2003), larger than life so that they survive 128 pixels; no patient's photograph went into
it and nothing clinical can be learnt from it. Anatomy and camera depend on `seed` and `eye` alone, so grade
g and grade 0 of one seed are twins that differ in the lesions and in nothing else.
"""

import json
import math
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from operator import index
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

LESIONS = (
    "microaneurysm",
    "haemorrhage",
    "hard_exudate",
    "cotton_wool_spot",
    "new_vessels",
    "preretinal_haemorrhage",
)
BALANCED = (0.2,) * 5
KAGGLE = tuple(count / 35126 for count in (25810, 2443, 5292, 873, 708))  # EyePACS train, both eyes
EYES = ("left", "right")
VERSION = 1

# How a lesion looks: it keeps these shares of the (r, g, b) below it and adds this much of the flash's light.
LOOKS = {
    "microaneurysm": ((0.52, 0.25, 0.3), (0, 0, 0)),
    "haemorrhage": ((0.46, 0.2, 0.25), (0, 0, 0)),
    "hard_exudate": ((0.1, 0.1, 0.1), (0.95, 0.84, 0.36)),
    "cotton_wool_spot": ((0.25, 0.2, 0.15), (0.72, 0.7, 0.6)),
    "new_vessels": ((0.72, 0.3, 0.35), (0, 0, 0)),
    "preretinal_haemorrhage": ((0.4, 0.1, 0.15), (0.03, 0, 0)),
}
VEIN, ARTERY = (0.62, 0.4, 0.5), (0.86, 0.6, 0.62)
SKINS = ((0.9, 0.47, 0.13), (0.62, 0.27, 0.1), (0.82, 0.46, 0.33), (0.74, 0.33, 0.11))


@lru_cache(maxsize=8)
def _grid(size):
    """Right-eye coordinates x (towards the nose), y (down) of the pixels; the retina is the unit disc."""
    axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32) / 0.98
    return axis[None, :], axis[:, None]


def _discs(size, x, y, radius, feather=0.0):
    """Coverage (size, size) float32 in [0, 1] of the union of discs; arrays in units of the retina's radius."""
    unit = 0.49 * size
    x, y = (np.ravel(v) * unit + (size - 1) / 2 for v in (x, y))
    radius = np.broadcast_to(np.ravel(radius), x.shape) * unit
    feather = max(1.0, feather * unit)
    reach = np.arange(-math.ceil(radius.max() + feather / 2), math.ceil(radius.max() + feather / 2) + 1)
    column = np.clip(np.rint(x).astype(int)[:, None] + reach, 0, size - 1)
    row = np.clip(np.rint(y).astype(int)[:, None] + reach, 0, size - 1)
    distance = np.sqrt(((column - x[:, None]) ** 2)[:, None, :] + ((row - y[:, None]) ** 2)[:, :, None])
    cover = np.clip((radius[:, None, None] - distance) / feather + 0.5, 0, 1).astype(np.float32)
    canvas = np.zeros(size * size, np.float32)
    np.maximum.at(canvas, (row[:, :, None] * size + column[:, None, :]).ravel(), cover.ravel())
    return canvas.reshape(size, size)


def _strokes(size, x, y, radius):
    """Coverage of polylines whose vertices are the rows of x, y, radius (B, S)."""
    gap = np.hypot(np.diff(x), np.diff(y)).max() * 0.49 * size
    share = np.arange(math.ceil(gap / max(0.9, 0.5 * radius.min() * size * 0.49)))
    share = share / len(share)
    between = [(v[:, :-1, None] * (1 - share) + v[:, 1:, None] * share).ravel() for v in (x, y, radius)]
    return _discs(size, between[0], between[1], np.maximum(between[2], 0.9 / size))


def _grow(rng, x, y, heading, length, radius, bend, wander, steps):
    """Vessels from (x, y) (B,): x, y, heading, radius (B, steps); they bend early, wander and taper."""
    t = np.linspace(0, 1, steps)
    waves = rng.normal(0, wander, (2, len(x), 1)) * np.sin(
        2 * np.pi * (rng.uniform(0.7, 2.6, (2, len(x), 1)) * t + rng.random((2, len(x), 1)))
    )
    heading = heading[:, None] + bend[:, None] * (1 - np.exp(-t / 0.3)) + waves.sum(0)
    step = length[:, None] / steps
    x = x[:, None] + np.cumsum(np.cos(heading) * step, 1)
    y = y[:, None] + np.cumsum(np.sin(heading) * step, 1)
    return x, y, heading, radius[:, None] * (1 - 0.55 * t)


def _vessels(rng, disc):
    """Three generations [(x, y, heading, radius)], each (B, S), and is_vein (B,) for each: the vascular tree."""
    up = np.tile([-1.0, 1.0], 6)  # superior, inferior
    nasal = np.repeat([0, 0, 1, 1, 2, 2], 2)  # temporal arcade, nasal trunk, twig to the macula
    vein = np.repeat([True, False, True, False, True, False], 2)
    heading = np.select([nasal == 0, nasal == 1], [1.72, 0.95], 2.8) + rng.normal(0, 0.13, 12) - 0.12 * vein
    bend = np.select([nasal == 0, nasal == 1], [1.72, -0.35], 0.25) + rng.normal(0, 0.12, 12)
    length = np.select([nasal == 0, nasal == 1], [1.85, 0.8], 0.45) * rng.uniform(0.9, 1.1, 12)
    radius = np.select([nasal == 0, nasal == 1], [0.023, 0.016], 0.008) * np.where(vein, 1, 0.72)
    x, y = disc[0] + rng.normal(0, 0.02, 12), disc[1] + up * rng.uniform(0, 0.03, 12)
    radius = radius * rng.uniform(0.85, 1.1)
    tree = [(_grow(rng, x, y, up * heading, length, radius, up * bend, 0.08, 56), vein)]
    for children, steps in ((6, 36), (3, 20)):
        (x, y, heading, radius), vein = tree[-1]
        parent = np.repeat(np.arange(len(x)), children)
        t = (np.tile(np.arange(children), len(x)) + rng.uniform(0.3, 1.1, len(parent))) / (children + 0.3)
        at = parent, (np.clip(t, 0.08, 0.97) * x.shape[1]).astype(int)
        side = np.where(np.arange(len(parent)) % 2, 1, -1) * np.where(rng.random(len(parent)) < 0.85, 1, -1)
        extent = np.hypot(np.diff(x), np.diff(y)).sum(1)[parent]
        length = extent * (1 - 0.45 * t) * rng.uniform(0.25, 0.5, len(parent))
        turn, bend = side * rng.uniform(0.45, 0.95, len(parent)), -side * rng.uniform(-0.2, 0.6, len(parent))
        vein = vein[parent]
        tree.append((_grow(rng, x[at], y[at], heading[at] + turn, length, 0.62 * radius[at], bend, 0.16, steps), vein))
    return tree


class _Places:
    """Where there is room for a lesion: inside the retina, off the disc, off the larger vessels."""

    def __init__(self, rng, disc, disc_radius, tree):
        self.rng = rng
        axis = (np.arange(72) + 0.5) / 36 - 1
        self.x, self.y = np.meshgrid(axis, axis)
        self.free = (np.hypot(self.x, self.y) < 0.86) & (abs(self.y) < 0.78)
        self.take(*disc, disc_radius * 1.25)
        self.off_vessels = np.ones_like(self.free)
        for (x, y, _, _), _ in tree[:2]:
            column, row = (np.clip((v.ravel() + 1) * 36, 0, 71).astype(int) for v in (x, y))
            self.off_vessels[row, column] = False

    def take(self, x, y, radius):
        self.free &= np.hypot(self.x - x, self.y - y) > radius

    def find(self, radius, where=True):
        """A place (x, y) in `where` (a mask of the cells), with `radius` around it taken from then on."""
        cells = np.flatnonzero(self.free & where)
        cell = self.rng.choice(cells if len(cells) else np.flatnonzero(self.free))
        x, y = self.x.flat[cell], self.y.flat[cell]
        self.take(x, y, radius)
        return x, y


def _cluster(rng, centres, count, spread, radius):
    """x, y, radius of `count` discs strewn about every centre."""
    centres = np.repeat(np.asarray(centres, float), count, axis=0)
    x, y = centres.T + rng.normal(0, spread, (2, len(centres)))
    return x, y, rng.uniform(*radius, len(centres))


def _lesions(rng, grade, size, disc, fovea, places, tree):
    """Coverage (size, size) of each lesion that the grade has by the ICDR scale, and of beads on the veins."""
    drawn = {}
    proliferation = rng.integers(3) if grade == 4 else None  # new vessels, pre-retinal haemorrhage, both
    if grade == 4 and proliferation > 0:
        width, height = rng.uniform(0.2, 0.34), rng.uniform(0.14, 0.24)
        x, y = places.find(width, abs(abs(places.y) - 0.35) < 0.2)
        places.take(x, y + height / 2, width)
        gx, gy = _grid(size)
        bowl = 1 - np.sqrt(((gx - x) / width) ** 2 + ((gy - y) / height) ** 2)
        level = (gy - y - 0.02 * np.sin(9 * gx)) / 0.03
        drawn["preretinal_haemorrhage"] = np.clip(bowl * 8, 0, 1) * np.clip(level + 0.5, 0, 1)
    if grade == 4 and proliferation != 1:
        at_disc = rng.random() < 0.5
        elsewhere = [places.find(0.2) for _ in range(rng.integers(1, 3))]
        tufts = np.repeat([tuple(disc)] * at_disc + elsewhere, 16, axis=0)
        ends = rng.uniform(-np.pi, np.pi, len(tufts)), rng.uniform(0.2, 0.42, len(tufts))
        thin, bend = rng.uniform(0.011, 0.016, len(tufts)), rng.normal(0, 2.2, len(tufts))
        x, y, _, radius = _grow(rng, *tufts.T, *ends, thin, bend, 0.7, 30)
        drawn["new_vessels"] = _strokes(size, x, y, radius)
    if grade >= 3:
        spots = [places.find(0.12) for _ in range(rng.integers(2, 6) if grade == 3 else rng.integers(0, 3))]
        if spots:
            drawn["cotton_wool_spot"] = _discs(size, *_cluster(rng, spots, 4, 0.032, (0.035, 0.06)), 0.05)
    if grade >= 2:
        near = np.hypot(places.x - fovea[0], places.y - fovea[1]) < 0.6
        clusters = [places.find(0.13, near) for _ in range(rng.integers(0 if grade > 2 else 1, 4))]
        if clusters:
            strewn = _cluster(rng, clusters, int(rng.integers(12, 26)), 0.06, (0.008, 0.021))
            drawn["hard_exudate"] = _discs(size, *strewn)
        quadrants = [(places.x * i > 0) & (places.y * j > 0) for i in (-1, 1) for j in (-1, 1)]
        if grade == 3:
            wanted = np.repeat(np.arange(4), rng.integers(6, 11, 4))
        else:
            wanted = rng.choice(rng.permutation(4)[:3], rng.integers(4, 10))
        blots = [places.find(0.085, quadrants[q] & places.off_vessels) for q in wanted]
        x, y, radius = _cluster(rng, blots, 4, 0.018, (0.018, 0.034))
        drawn["haemorrhage"] = _discs(size, x, y, radius * np.repeat(rng.uniform(0.8, 1.3, len(blots)), 4))
    if grade >= 1:
        dots = [places.find(0.06, places.off_vessels) for _ in range(rng.integers(8, 17) if grade == 1 else 8)]
        radius = rng.uniform(0.017, 0.025, len(dots))
        drawn["microaneurysm"] = _discs(size, *np.transpose(dots), np.maximum(radius, 1.6 / size))
    beads = np.zeros((size, size), np.float32)
    if grade == 3:
        (x, y, _, radius), _ = tree[0]
        beads = _discs(size, *(v[:2, 8:44:3] for v in (x, y)), 1.6 * radius[:2, 8:44:3])
    return drawn, beads


def photograph(grade, seed, size, eye="right"):
    """A synthetic fundus photograph of an ICDR grade: image uint8 (size, size, 3), masks {lesion: bool (size, size)}.

    grade 0 has no lesion; 1 microaneurysms only; 2 also haemorrhages and hard exudates; 3 many haemorrhages in all
    four quadrants, cotton-wool spots, beaded veins; 4 new vessels, pre-retinal haemorrhage or both, besides milder
    lesions. The optic disc lies nasally: on the right in a right eye. Equal arguments give equal pixels.
    Raises ValueError for a grade outside 0-4, a seed below 0, a size outside 48-2048 or another eye.
    """
    _check("grade", grade, 0, 4)
    _check("seed", seed, 0, None)
    _check("size", size, 48, 2048)
    if eye not in EYES:
        raise ValueError(f"eye is {eye!r}; give 'left' or 'right'")
    rng = np.random.default_rng([seed, EYES.index(eye)])
    disc = np.array([rng.uniform(0.52, 0.7), rng.uniform(-0.1, 0.06)])
    disc_radius = rng.uniform(0.135, 0.17)
    fovea = disc + (-rng.uniform(0.68, 0.78), rng.uniform(0.03, 0.1))
    tree = _vessels(rng, disc)
    places = _Places(np.random.default_rng([seed, EYES.index(eye), grade]), disc, disc_radius, tree)
    drawn, beads = _lesions(places.rng, grade, size, disc, fovea, places, tree)

    x, y = _grid(size)
    to_fovea = (x - fovea[0]) ** 2 + (y - fovea[1]) ** 2
    to_disc = np.sqrt(((x - disc[0]) * rng.uniform(1, 1.15)) ** 2 + (y - disc[1]) ** 2) / disc_radius
    skin = rng.dirichlet(np.ones(len(SKINS)) * 0.6) @ SKINS
    haze, choroid = (zoom(rng.normal(0, 1, (n, n)).astype(np.float32), size / n, order=1) for n in (7, 26))
    choroid = np.abs(gaussian_filter(choroid, size / 90))
    texture = 1 + 0.04 * haze[:size, :size] - rng.uniform(0.02, 0.16) * choroid[:size, :size]
    texture -= rng.uniform(0.12, 0.4) * np.exp(-to_fovea / 0.018) + rng.uniform(0.05, 0.2) * np.exp(-to_fovea / 0.1)
    image = texture[..., None] ** np.array([0.7, 1.1, 1.2], np.float32) * skin.astype(np.float32)
    bright = np.clip((1.08 - to_disc) * 4, 0, 1) * (0.75 + 0.25 * np.exp(-((to_disc / 0.5) ** 2)))
    bright += 0.12 * np.exp(-((to_disc / 2) ** 2)) * (1 - bright)
    image += bright[..., None] * (np.array([1.12, 0.86, 0.48], np.float32) - image)

    calm = 1 - 0.9 * np.exp(-to_fovea / 0.02)
    for kind, keep in ((False, ARTERY), (True, VEIN)):
        cover = beads if kind else np.zeros_like(beads)
        for (vx, vy, _, radius), vein in tree:
            chosen = vein == kind
            cover = np.maximum(cover, calm * _strokes(size, vx[chosen], vy[chosen], radius[chosen]))
        image *= 1 - cover[..., None] * (1 - np.array(keep, np.float32))
    for lesion, cover in drawn.items():
        keep, add = np.array(LOOKS[lesion], np.float32)
        image += cover[..., None] * (image * (keep - 1) + add)

    away = np.sqrt((x - rng.normal(0, 0.12)) ** 2 + (y - rng.normal(0, 0.12)) ** 2)
    light = (1 - rng.uniform(0.15, 0.4) * away**2 - 0.12 * away**6) * rng.uniform(0.72, 1.05)
    image *= light[..., None]
    image = gaussian_filter(image, (*(rng.uniform(0.0015, 0.006) * size / 2,) * 2, 0), truncate=3)
    image += rng.normal(0, rng.uniform(0.006, 0.018), (size, size, 1)).astype(np.float32)
    image *= np.clip((1 - np.sqrt(x**2 + y**2)) * size / 2 + 0.5, 0, 1)[..., None]
    image = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    masks = {lesion: drawn.get(lesion, np.zeros_like(beads)) > 0.4 for lesion in LESIONS}
    if eye == "left":
        image, masks = image[:, ::-1].copy(), {lesion: mask[:, ::-1].copy() for lesion, mask in masks.items()}
    return image, masks


def _check(name, value, low, high):
    """ValueError unless `value` is an integer from low to high (None: no bound)."""
    try:
        value = index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; give an integer") from None
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}; give {low}" + (" or more" if high is None else f" to {high}"))


def _camera(rng, image, masks):
    """The photograph as a camera frames it: uint8 (H, W, 3) on noisy black, and its masks as bits uint8 (H, W)."""
    size = len(image)
    bits = sum(masks[lesion].astype(np.uint8) << i for i, lesion in enumerate(LESIONS)).astype(np.uint8)
    if rng.random() < 0.3:  # a notch on the rim
        angle, axis = rng.uniform(-np.pi, np.pi), (np.arange(size) + 0.5) / size * 2 - 1
        notch = np.hypot(axis - np.cos(angle), axis[:, None] - np.sin(angle)) < rng.uniform(0.05, 0.08)
        image = np.where(notch[..., None], 0, image)
    tall = size * (rng.uniform(0.84, 0.95) if rng.random() < 0.35 else rng.uniform(1.02, 1.2))
    height = round(tall)
    width = max(round(tall * rng.choice([4 / 3, 3 / 2, 1.2])), size + 4)
    left = (width - size) // 2 + round(rng.uniform(-0.4, 0.4) * (width - size))
    top = (height - size) // 2 + round(rng.uniform(-0.3, 0.3) * max(height - size, 0))
    frame, framed = np.zeros((height, width, 3)), np.zeros((height, width), np.uint8)
    inside = np.s_[max(top, 0) : top + size, left : left + size]
    cut = np.s_[max(-top, 0) : max(-top, 0) + min(size, height)]
    frame[inside], framed[inside] = image[cut], bits[cut]
    frame += rng.normal(2, 1.5, (height, width, 1))
    return np.clip(frame + 0.5, 0, 255).astype(np.uint8), framed


def _write_photograph(folder, patient, eye, grade, seed):
    """Write train/<patient>_<eye>.jpeg and masks/<patient>_<eye>.png; the grade does not touch the camera."""
    rng = np.random.default_rng([seed, patient, EYES.index(eye)])
    size = int(rng.integers(150, 231))
    image, bits = _camera(rng, *photograph(grade, seed * 10**6 + patient, size, eye))
    Image.fromarray(image).save(folder / "train" / f"{patient}_{eye}.jpeg", quality=90)
    Image.fromarray(bits).save(folder / "masks" / f"{patient}_{eye}.png")


def _allot(rng, n, share):
    """n grades in random order whose counts are n * share, rounded by the largest remainder."""
    exact = n * np.asarray(share, float)
    counts = np.floor(exact + 1e-9).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    return rng.permutation(np.repeat(np.arange(5), counts))


def write_collection(folder, n, seed, share=BALANCED, workers=None):
    """Write both eyes of n patients as Kaggle ships EyePACS: train/10_left.jpeg, ... and trainLabels.csv (image,level).

    Beside them masks/10_left.png (see `read_masks`) and collection.json (n, seed, share, version). Each eye's
    grades have exactly the shares of grades 0-4 in `share`, by largest remainder; `KAGGLE` are those of EyePACS.
    The files do not depend on the number of `workers` (processes; all cores by default). An interrupted write
    leaves only <folder>.partial. Raises ValueError for n outside 1-100000, a negative seed or a share that is not
    five numbers adding up to 1, FileExistsError if `folder` holds something else than a collection.
    """
    _check("n", n, 1, 100_000)
    _check("seed", seed, 0, None)
    share = tuple(float(s) for s in share)
    if len(share) != 5 or not min(share) >= 0 or not math.isclose(sum(share), 1, abs_tol=1e-6):
        raise ValueError(f"share is {share}; give five shares, one for each grade 0-4, that add up to 1")
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / "collection.json").exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files that are no phantom collection; move them or name another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in ("train", "masks"):
        (partial / part).mkdir(parents=True)

    rng = np.random.default_rng(seed)
    patients = np.cumsum(rng.integers(1, 5, n)) + 9
    grades = {eye: _allot(rng, n, share) for eye in EYES}
    eyes = [(int(p), eye, int(grades[eye][i])) for i, p in enumerate(patients) for eye in EYES]
    tasks = [(partial, *eye, seed) for eye in eyes]
    workers = workers or min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 1 + n // 25
    )
    if workers == 1:
        for task in tasks:
            _write_photograph(*task)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_write_photograph, *zip(*tasks, strict=True), chunksize=8))
    lines = ["image,level", *(f"{patient}_{eye},{grade}" for patient, eye, grade in eyes)]
    (partial / "trainLabels.csv").write_text("\n".join(lines) + "\n")
    about = {"n": int(n), "seed": int(seed), "share": share, "version": VERSION}
    (partial / "collection.json").write_text(json.dumps(about) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def read_masks(path):
    """The masks {lesion: bool (H, W)} in a file of a collection's masks/."""
    with Image.open(path) as file:
        bits = np.asarray(file)
    return {lesion: bits >> i & 1 == 1 for i, lesion in enumerate(LESIONS)}
