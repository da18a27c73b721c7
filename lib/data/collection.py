"""A collection of phantoms on disk, in the tree and with the labels with which Kaggle ships EyePACS."""

import json
import math
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from lib.data.phantom import EYES, MASKS, VERSION, check, photograph

BALANCED = (0.2,) * 5
KAGGLE = tuple(count / 35126 for count in (25810, 2443, 5292, 873, 708))  # EyePACS train, both eyes


def _frame(rng, image, bits):
    """The photograph and its mask bits as a camera frames them: off-centre on noisy black, flat-cut or notched."""
    size = len(image)
    if rng.random() < 0.3:
        angle, axis = rng.uniform(-np.pi, np.pi), (np.arange(size) + 0.5) / size * 2 - 1
        notch = np.hypot(axis - np.cos(angle), axis[:, None] - np.sin(angle)) < rng.uniform(
            0.05, 0.08
        )
        image = np.where(notch[..., None], 0, image)
    height = round(size * rng.uniform(*((0.84, 0.95) if rng.random() < 0.35 else (1.02, 1.2))))
    width = max(round(height * rng.choice([4 / 3, 3 / 2, 1.2])), size + 4)
    left = round((0.5 + rng.uniform(-0.4, 0.4)) * (width - size))
    top = round((0.5 + rng.uniform(-0.3, 0.3) * (height > size)) * (height - size))
    into, cut = (
        np.s_[max(top, 0) : top + size, left : left + size],
        np.s_[max(-top, 0) : height - min(top, 0)],
    )
    frame, framed = (
        rng.normal(2, 1.5, (height, width, 1)).repeat(3, axis=2),
        np.zeros((height, width), np.uint8),
    )
    frame[into] += image[cut]
    framed[into] = bits[cut]
    return np.clip(frame + 0.5, 0, 255).astype(np.uint8), framed


def _write_photograph(folder, seed, patient, eye, grade):
    """Write train/<patient>_<eye>.jpeg and masks/<patient>_<eye>.png; the camera knows nothing of the grade."""
    rng = np.random.default_rng([seed, patient, EYES.index(eye)])
    image, masks = photograph(grade, seed * 10**6 + patient, int(rng.integers(150, 231)), eye)
    image, bits = _frame(
        rng, image, sum(masks[name] * np.uint8(1 << i) for i, name in enumerate(MASKS))
    )
    Image.fromarray(image).save(folder / "train" / f"{patient}_{eye}.jpeg", quality=90)
    Image.fromarray(bits).save(folder / "masks" / f"{patient}_{eye}.png")


def _allot(rng, n, share):
    """n grades in random order, n * share of each, rounded by the largest remainder."""
    counts = np.floor(n * np.array(share) + 1e-9).astype(int)
    counts[np.argsort(counts - n * np.array(share), kind="stable")[: n - counts.sum()]] += 1
    return rng.permutation(np.repeat(np.arange(5), counts)).tolist()


def write_collection(folder, n, seed, share=BALANCED, workers=None):
    """Write both eyes of n patients as Kaggle ships EyePACS: train/10_left.jpeg, ..., trainLabels.csv (image,level).

    Beside them masks/10_left.png (see `read_masks`) and collection.json (n, seed, share, version). In each eye,
    grades 0-4 have the shares `share` (`KAGGLE`: those of EyePACS) to the largest remainder. The files are the
    same for any number of `workers` (processes, as many as pay by default: a script calls this below
    `if __name__ == "__main__"`). An interrupted write leaves nothing but <folder>.partial. Raises ValueError for
    n, seed or share out of range, FileExistsError if `folder` holds something other than a collection.
    """
    check("n", n, 1, 100_000)
    check("seed", seed, 0, 10**12)
    share = [float(part) for part in share]
    if (
        len(share) != 5
        or not all(part >= 0 for part in share)
        or not math.isclose(sum(share), 1, abs_tol=1e-6)
    ):
        raise ValueError(f"share is {share}; give five shares, of grades 0 to 4, that add up to 1")
    folder = Path(folder).absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / "collection.json").exists():
        raise FileExistsError(
            f"{folder} holds files that are no phantom collection; move them or name another folder"
        )
    partial, old = (folder.with_name(folder.name + end) for end in (".partial", ".old"))
    for rest in (partial, old):
        shutil.rmtree(rest, ignore_errors=True)
    for part in ("train", "masks"):
        (partial / part).mkdir(parents=True)

    rng = np.random.default_rng(seed)
    patients = (9 + np.cumsum(rng.integers(1, 5, n))).tolist()
    grades = [_allot(rng, n, share) for _ in EYES]
    eyes = [(patients[i], eye, grades[k][i]) for i in range(n) for k, eye in enumerate(EYES)]
    jobs = [(partial, seed, *eye) for eye in eyes]
    workers = workers or min(os.cpu_count(), 1 + n // 40)
    if workers == 1:
        for job in jobs:
            _write_photograph(*job)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_write_photograph, *zip(*jobs, strict=True), chunksize=8))
    rows = ["image,level", *(f"{patient}_{eye},{grade}" for patient, eye, grade in eyes)]
    (partial / "trainLabels.csv").write_text("\n".join(rows) + "\n")
    about = {"n": int(n), "seed": int(seed), "share": share, "version": VERSION}
    (partial / "collection.json").write_text(json.dumps(about) + "\n")
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_masks(path):
    """The masks {what: (H, W) bool} of MASKS in a file of a collection's masks/."""
    with Image.open(path) as file:
        bits = np.asarray(file)
    return {name: bits >> i & 1 == 1 for i, name in enumerate(MASKS)}
