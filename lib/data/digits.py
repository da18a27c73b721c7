"""Digits behind one interface: the bundled 8x8 digits, MNIST, SVHN, and one digit in clutter."""

import hashlib

import numpy as np
import torch
from torch.nn import functional
from torchvision.datasets import MNIST, SVHN

from lib import paths

DATASETS = ("digits", "mnist", "svhn")
# MNIST's files, unpacked, and their md5: torchvision takes what is there for MNIST.
MNIST_FILES = {
    "train": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    },
    "test": {
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
}


def load_digits_split(dataset: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One split of a data set of digits.

    Args:
        dataset: "digits", scikit-learn's 1,797 bundled 8x8 digits, bilinearly enlarged to 24x24
            and framed by 2 black pixels, C 1, H and W 28; a stratified fifth of them is the test
            split. "mnist", MNIST's own 60,000 and 10,000, C 1, H and W 28, from `MNIST/raw` in the
            data sets' folder, else downloaded. "svhn", street view house numbers, 73,257 and
            26,032, C 3, H and W 32, from `SVHN/<split>_32x32.mat` there, else downloaded.
        split: "train" or "test".

    Returns:
        Images (n, C, H, W) float32 in [0, 1] and labels (n,) int64.

    Raises:
        ValueError: the data set or the split is unknown.
        RuntimeError: data can be neither found nor downloaded.
    """
    if dataset not in DATASETS or split not in ("train", "test"):
        raise ValueError(
            f"no split {split!r} of {dataset!r}: datasets are {', '.join(DATASETS)}, splits train "
            "and test"
        )
    if dataset != "digits":
        return _load_downloadable(dataset, split)
    from sklearn.datasets import load_digits  # a second, which MNIST need not wait for
    from sklearn.model_selection import train_test_split

    bundled = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        bundled.images, bundled.target, test_size=0.2, stratify=bundled.target, random_state=0
    )
    images = train_images if split == "train" else test_images
    labels = train_labels if split == "train" else test_labels
    images = torch.tensor(images, dtype=torch.float32)[:, None] / 16
    images = functional.interpolate(images, size=24, mode="bilinear", align_corners=False)
    return functional.pad(images, (2, 2, 2, 2)), torch.tensor(labels, dtype=torch.int64)


def _load_downloadable(dataset: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    needed = {"mnist": "MNIST/raw", "svhn": f"SVHN/{split}_32x32.mat"}[dataset]
    path = paths.dataset(needed)
    try:
        if dataset == "mnist":
            mnist = MNIST(path.parents[1], train=split == "train", download=not path.exists())
            for name, md5 in MNIST_FILES[split].items():
                found = hashlib.md5((path / name).read_bytes()).hexdigest()
                if found != md5:
                    raise RuntimeError(f"the md5 of {name} is {found}, MNIST's is {md5}")
            return mnist.data[:, None].float() / 255, mnist.targets
        svhn = SVHN(path.parent, split, download=not path.exists())
        return torch.from_numpy(svhn.data).float() / 255, torch.from_numpy(svhn.labels)
    except (RuntimeError, OSError, ValueError) as error:  # ValueError for files that are cut off
        raise RuntimeError(
            f"{dataset} is neither complete in {path} nor could it be downloaded ({error}). "
            f"Either (1) set COMPANION_DATASETS to a folder that holds {needed} as torchvision "
            f"lays it out, (2) delete what is incomplete in {path} and try again with a network, "
            "or (3) use dataset='digits', which is bundled."
        ) from error


def scenes(
    dataset: str, split: str, count: int, seed: int, size: int = 64, clutter: int = 8
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cluttered scenes with one whole digit at a random place, labelled with the digit only.

    The clutter is pieces of 9x9 pixels cut from digits of the same split; the digit's frame of
    28x28 pixels is clear of it.

    Args:
        dataset: "digits" or "mnist".
        split: "train" or "test".
        count: of scenes.
        seed: of everything that is drawn.
        size: side of a scene in pixels, at least 28.
        clutter: pieces in a scene.

    Returns:
        Images (count, 1, size, size) float32 in [0, 1], labels (count,) int64 and, for scoring
        alone, boxes (count, 4) int64 (x0, y0, x1, y1), x1 and y1 exclusive, tight around the
        digit's pixels above a tenth of full ink.

    Raises:
        ValueError: `size` leaves no room for a digit.
    """
    if size < 28:
        raise ValueError(f"size is {size}; a scene needs at least 28 pixels for a digit")
    images, labels = load_digits_split(dataset, split)
    images = images[:, 0].numpy()
    rng = np.random.default_rng(seed)
    drawn = np.zeros((count, size, size), np.float32)
    boxes = np.zeros((count, 4), np.int64)
    subjects = rng.integers(len(images), size=count)
    for scene, box, digit in zip(drawn, boxes, images[subjects], strict=True):
        for _ in range(clutter):
            source = images[rng.integers(len(images))]
            row, column = rng.integers(4, 15, size=2)
            y, x = rng.integers(0, size - 8, size=2)
            piece = source[row : row + 9, column : column + 9]
            below = scene[y : y + 9, x : x + 9]
            np.maximum(below, piece, out=below)
        ink = digit > 0.1
        y, x = rng.integers(0, size - 27, size=2)
        scene[y : y + 28, x : x + 28] = np.where(ink, digit, 0)
        rows = np.flatnonzero(ink.any(axis=1))
        columns = np.flatnonzero(ink.any(axis=0))
        box[:] = x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1
    return torch.from_numpy(drawn)[:, None], labels[subjects], torch.from_numpy(boxes)
