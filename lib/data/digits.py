"""Digits behind one interface: the bundled 8x8 digits, MNIST, SVHN, and scenes with one digit in clutter."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional
from torchvision.datasets import MNIST, SVHN

from lib import paths

DATASETS = ("digits", "mnist", "svhn")


def load(dataset, part):
    """Images (n, C, H, W) float32 in [0, 1] and labels (n,) int64 of `part`, "train" or "test".

    "digits"  scikit-learn's 1,797 bundled 8x8 digits, bilinearly enlarged to 24x24 and framed by 2 black pixels,
              (n, 1, 28, 28); a stratified fifth of them is the test part
    "mnist"   MNIST's own 60,000 and 10,000, (n, 1, 28, 28), from `MNIST/raw` in the data sets' folder, else downloaded
    "svhn"    street view house numbers, 73,257 and 26,032, (n, 3, 32, 32), from `SVHN/<part>_32x32.mat` there, else
              downloaded
    Raises ValueError for another name or part, RuntimeError where data can be neither found nor downloaded.
    """
    if dataset not in DATASETS or part not in ("train", "test"):
        raise ValueError(
            f"no part {part!r} of {dataset!r}: datasets are {', '.join(DATASETS)}, parts train and test"
        )
    if dataset != "digits":
        return _downloadable(dataset, part)
    bundled = load_digits()
    parts = train_test_split(
        bundled.images, bundled.target, test_size=0.2, stratify=bundled.target, random_state=0
    )
    images, labels = (parts[0], parts[2]) if part == "train" else (parts[1], parts[3])
    images = torch.tensor(images, dtype=torch.float32)[:, None] / 16
    images = functional.interpolate(images, size=24, mode="bilinear", align_corners=False)
    return functional.pad(images, (2, 2, 2, 2)), torch.tensor(labels, dtype=torch.int64)


def _downloadable(dataset, part):
    needed = {"mnist": "MNIST/raw", "svhn": f"SVHN/{part}_32x32.mat"}[dataset]
    path = paths.dataset(needed)
    try:
        if dataset == "mnist":
            mnist = MNIST(path.parents[1], train=part == "train", download=not path.exists())
            return mnist.data[:, None].float() / 255, mnist.targets
        svhn = SVHN(path.parent, part, download=not path.exists())
        return torch.from_numpy(svhn.data).float() / 255, torch.from_numpy(svhn.labels)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"{dataset} is neither complete in {path} nor could it be downloaded ({error}). Either (1) set "
            f"COMPANION_DATASETS to a folder that holds {needed} as torchvision lays it out, (2) delete what is "
            f"incomplete in {path} and try again with a network, or (3) use dataset='digits', which is bundled."
        ) from error


def scenes(dataset, part, count, seed, size=64, clutter=8):
    """Cluttered scenes with one whole digit at a random place, labelled with the digit only.

    The clutter is `clutter` pieces of 9x9 pixels cut from digits of the same part; the digit's frame of 28x28 pixels
    is clear of it. Returns images
    (count, 1, size, size) float32 in [0, 1], labels (count,) int64 and, for scoring alone, boxes (count, 4) int64
    (x0, y0, x1, y1), x1 and y1 exclusive, tight around the digit's pixels above a tenth of full ink.
    Raises ValueError where `size` leaves no room for a digit of 28x28.
    """
    if size < 28:
        raise ValueError(f"size is {size}; a scene needs at least 28 pixels for a digit")
    images, labels = load(dataset, part)
    images, rng = images[:, 0].numpy(), np.random.default_rng(seed)
    drawn, boxes = np.zeros((count, size, size), np.float32), np.zeros((count, 4), np.int64)
    subjects = rng.integers(len(images), size=count)
    for scene, subject, box in zip(drawn, subjects, boxes, strict=True):
        for _ in range(clutter):
            piece = images[rng.integers(len(images))]
            row, column = rng.integers(4, 15, size=2)
            y, x = rng.integers(0, size - 8, size=2)
            patch = scene[y : y + 9, x : x + 9]
            np.maximum(patch, piece[row : row + 9, column : column + 9], out=patch)
        digit = images[subject]
        y, x = rng.integers(0, size - 27, size=2)
        scene[y : y + 28, x : x + 28] = np.where(digit > 0.1, digit, 0)
        rows, columns = np.nonzero((digit > 0.1).any(1))[0], np.nonzero((digit > 0.1).any(0))[0]
        box[:] = x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1
    return torch.from_numpy(drawn)[:, None], labels[subjects], torch.from_numpy(boxes)
