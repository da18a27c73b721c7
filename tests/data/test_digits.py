"""Digits against what they are made from; MNIST against its checksums; scenes as promised."""

import hashlib

import numpy as np
import pytest
import scipy.io
import torch
from sklearn.datasets import load_digits

from lib import paths
from lib.data import digits

MNIST = paths.dataset("MNIST/raw")
needs_mnist = pytest.mark.skipif(not MNIST.exists(), reason="no MNIST/raw in COMPANION_DATASETS")


@pytest.mark.parametrize(("split", "count"), [("train", 1437), ("test", 360)])
def test_digits_are_28x28_between_0_and_1_in_a_black_frame(split, count):
    images, labels = digits.load_digits_split("digits", split)
    assert images.shape == (count, 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 1
    inner = torch.zeros(28, 28, dtype=bool)
    inner[2:26, 2:26] = True
    assert not images[:, 0, ~inner].any()


def test_both_splits_together_are_the_bundled_digits_each_once_and_stratified():
    splits = [digits.load_digits_split("digits", split) for split in ("train", "test")]
    images, labels = (torch.cat(tensors) for tensors in zip(*splits, strict=True))
    # Every third pixel: there old and new pixels' centres coincide.
    sampled = (16 * images[:, 0, 3:27:3, 3:27:3]).round().long().flatten(1)
    ours = torch.column_stack([sampled, labels]).tolist()
    bundled = load_digits()
    theirs = np.column_stack([bundled.data, bundled.target]).astype(int).tolist()
    assert sorted(ours) == sorted(theirs) and len(set(map(tuple, theirs))) == 1797
    share = torch.bincount(splits[1][1], minlength=10) / torch.bincount(labels, minlength=10)
    assert ((share - 0.2).abs() < 0.005).all()
    assert torch.equal(digits.load_digits_split("digits", "test")[0], splits[1][0])


@needs_mnist
def test_mnist_on_disk_is_the_genuine_one():
    known = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    found = {name: hashlib.md5((MNIST / name).read_bytes()).hexdigest() for name in known}
    assert found == known


@needs_mnist
@pytest.mark.parametrize(
    ("split", "counts"),
    [
        ("train", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_mnist_has_its_known_counts_mean_and_first_labels(split, counts):
    images, labels = digits.load_digits_split("mnist", split)
    assert images.shape == (sum(counts), 1, 28, 28) and images.dtype == torch.float32
    assert torch.bincount(labels).tolist() == counts
    assert images.min() == 0 and images.max() == 1
    if split == "train":
        assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert images.mean().item() == pytest.approx(0.1307, abs=5e-5)
        assert images.std().item() == pytest.approx(0.3081, abs=5e-5)


def idx(array):
    """An array of bytes in MNIST's format."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


STEPS = r"MNIST.*\(1\).*COMPANION_DATASETS.*\(2\).*\(3\).*dataset='digits'"


def test_an_incomplete_mnist_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    monkeypatch.setattr(paths, "dataset", tmp_path.joinpath)
    with pytest.raises(RuntimeError, match=STEPS):
        digits.load_digits_split("mnist", "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_mnist_of_which_a_byte_differs_is_not_taken_for_it(tmp_path, monkeypatch, split):
    """Nor one that is cut off; as its md5 say, it is read."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    monkeypatch.setattr(paths, "dataset", tmp_path.joinpath)
    for names in digits.MNIST_FILES.values():
        for name in names:
            shape = (5, 28, 28) if "images" in name else (5,)
            (raw / name).write_bytes(idx(np.arange(np.prod(shape)).reshape(shape) % 10))
    with pytest.raises(RuntimeError, match=rf"the md5 of \S+images\S+ is \w+, .*{STEPS}"):
        digits.load_digits_split("mnist", split)
    md5 = {
        name: hashlib.md5((raw / name).read_bytes()).hexdigest()
        for name in digits.MNIST_FILES[split]
    }
    monkeypatch.setitem(digits.MNIST_FILES, split, md5)
    images, labels = digits.load_digits_split("mnist", split)
    assert labels.tolist() == [0, 1, 2, 3, 4] and images.shape == (5, 1, 28, 28)
    for name in md5:
        whole = (raw / name).read_bytes()
        for damaged in (whole[:-1], whole[:-1] + b"\x07", b""):
            (raw / name).write_bytes(damaged)
            with pytest.raises(RuntimeError, match=STEPS):
                digits.load_digits_split("mnist", split)
        (raw / name).write_bytes(whole)


@pytest.mark.parametrize("split", ["train", "test"])
def test_svhn_is_read_from_its_own_format(tmp_path, monkeypatch, split):
    drawn = np.random.default_rng(8).integers(0, 256, (32, 32, 3, 7), dtype=np.uint8)
    (tmp_path / "SVHN").mkdir()
    stored = {"X": drawn, "y": np.array([[1, 10, 9, 10, 5, 2, 3]]).T}  # rows, columns, colours, n
    scipy.io.savemat(tmp_path / f"SVHN/{split}_32x32.mat", stored)
    monkeypatch.setattr(paths, "dataset", tmp_path.joinpath)
    with pytest.raises(RuntimeError, match=r"svhn is neither complete in .*32x32\.mat"):
        digits.load_digits_split("svhn", split)  # it is not the genuine file
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *arguments: True)
    images, labels = digits.load_digits_split("svhn", split)
    assert images.shape == (7, 3, 32, 32) and images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1, 0, 9, 0, 5, 2, 3]  # SVHN writes 10 for the digit 0
    expected = drawn.astype(float).transpose(3, 2, 0, 1) / 255
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("dataset", "split"), [("cifar10", "train"), ("digits", "val"), ("", "test")]
)
def test_an_unknown_name_or_split_is_refused_with_the_known_ones(dataset, split):
    with pytest.raises(ValueError, match="datasets are digits, mnist, svhn, splits train and test"):
        digits.load_digits_split(dataset, split)


@pytest.fixture(scope="module")
def drawn():
    return digits.scenes("digits", "test", 200, seed=5)


def test_scenes_have_the_promised_shapes_and_follow_the_seed(drawn):
    images, labels, boxes = drawn
    assert images.shape == (200, 1, 64, 64) and images.dtype == torch.float32
    assert labels.dtype == boxes.dtype == torch.int64 and boxes.shape == (200, 4)
    assert images.min() == 0 and images.max() == 1
    assert set(labels.tolist()) == set(range(10))
    again, other = (digits.scenes("digits", "test", 200, seed) for seed in (5, 6))
    assert all(torch.equal(a, b) for a, b in zip(again, drawn, strict=True))
    assert not torch.equal(other[0], images) and not torch.equal(other[2], boxes)


def test_without_clutter_the_box_is_tight_around_all_the_ink():
    images, _, boxes = digits.scenes("digits", "test", 100, 1, clutter=0)
    for image, box in zip(images[:, 0].numpy(), boxes.tolist(), strict=True):
        rows, columns = np.nonzero(image)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box
        assert 8 <= box[2] - box[0] <= 24 and 16 <= box[3] - box[1] <= 24


def test_the_digit_is_whole_in_spite_of_the_clutter_and_is_the_labelled_one(drawn):
    sources, source_labels = digits.load_digits_split("digits", "test")
    known = {}
    for source, label in zip(sources[:, 0].numpy(), source_labels.tolist(), strict=True):
        rows, columns = np.nonzero(source > 0.1)
        cut = source[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        known[np.where(cut > 0.1, cut, 0).tobytes()] = label
    for image, label, (x0, y0, x1, y1) in zip(*(part.numpy() for part in drawn), strict=True):
        assert known[image[0, y0:y1, x0:x1].tobytes()] == label


def test_clutter_and_digits_reach_all_borders():
    images, _, boxes = digits.scenes("digits", "test", 600, 2, size=40)
    bare = digits.scenes("digits", "test", 600, 2, size=40, clutter=0)[0]
    assert images.sum() > 1.2 * bare.sum()
    inked = (images[:, 0] > 0).any(0)
    assert inked[0].any() and inked[-1].any() and inked[:, 0].any() and inked[:, -1].any()
    assert boxes[:, :2].min() <= 8 and boxes[:, 2:].max() >= 32


def test_a_scene_must_have_room_for_a_digit():
    images, _, boxes = digits.scenes("digits", "test", 20, 0, size=28)
    assert images.shape == (20, 1, 28, 28) and boxes.min() >= 0 and boxes.max() <= 28
    with pytest.raises(ValueError, match="size is 27; a scene needs at least 28 pixels"):
        digits.scenes("digits", "test", 20, 0, size=27)
