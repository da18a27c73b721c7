"""From raw fundus photographs to a prepared data set: selective cropping, one size, three parts (CLEAR-DR).

`prepare` reads what Kaggle ships for EyePACS and writes a folder that `Prepared` hands to the training:

    images/<name>.png   size x size RGB, the retina from edge to edge, black where the camera cut it
    masks/<name>.png    lesions in the same geometry, bit i set where LESIONS[i] is (where raw has masks)
    manifest.csv        image, patient, eye, grade, part, left, top, right, bottom, width, height
    rejects.csv         image, reason: every photograph or label of the chosen eye that is not in the manifest
    dataset.json        the request, the counts, and the training part's channel means and deviations
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from lib.phantom import read_masks

PARTS = ("train", "val", "test")
EYES = {"right": ["right"], "left": ["left"], "both": ["left", "right"]}
VALIDATION_SHARE = 0.1
MAKER = "notebooks/03_dr_dataset.ipynb"


def retina(image):
    """The retina on its black background: the largest region that is brighter than the frame around it.

    Bright means: the strongest channel, averaged over its neighbourhood, is a twentieth of the way from the frame's
    dark level (5th percentile) to its bright level (98th percentile), and two deviations of the dark pixels' noise.
    `image` uint8 (H, W, 3); returns bool (H, W). Raises ValueError for a black or flat frame.
    """
    red, green, blue = np.moveaxis(image, 2, 0)
    brightness = np.maximum(np.maximum(red, green), blue).astype(np.float32)
    smooth = ndimage.uniform_filter(brightness, size=max(3, min(brightness.shape) // 200), mode="nearest")
    dark, bright = np.percentile(smooth[::2, ::2], [5, 98])
    if bright - dark < 12:
        raise ValueError(f"no retina found: the frame varies by {bright - dark:.1f} of 255 levels, 12 needed")
    noise = (brightness - smooth)[smooth < dark + 0.1 * (bright - dark)].std()
    regions, count = ndimage.label(smooth > dark + max(0.05 * (bright - dark), 2 * noise))
    areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    share = areas.max() / regions.size
    if share < 0.05:
        raise ValueError(f"no retina found: the largest region covers {share:.1%} of the frame, 5% needed")
    return regions == 1 + areas.argmax()


def crop_box(image):
    """Selective cropping: the box (left, top, right, bottom) of the retina in pixels, right and bottom exclusive.

    Rows and columns with less than 8 % of the retina's widest extent are left out: the camera's notch is no wider,
    and of a disc it costs 0.3 % of the radius. Of a disc that the frame cuts, the box holds what is there.
    `image` uint8 (H, W, 3). Raises ValueError as `retina` does.
    """
    mask = retina(image)
    ends = []
    for axis in (0, 1):
        extent = mask.sum(axis=axis)
        inside = np.flatnonzero(extent >= 0.08 * extent.max())
        ends.append((int(inside[0]), int(inside[-1]) + 1))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def placement(box, size):
    """Where `box` lands on the size x size canvas: the longer side fills it, the shorter one is centred.

    The aspect ratio is kept: a disc stays a disc. Returns (x, y, width, height) in canvas pixels.
    """
    left, top, right, bottom = box
    scale = size / max(right - left, bottom - top)
    width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    return (size - width) // 2, (size - height) // 2, width, height


def cut(image, box, size):
    """`box` of `image` uint8 (H, W, 3), Lanczos-resampled on a black canvas; uint8 (size, size, 3)."""
    x, y, width, height = placement(box, size)
    canvas = np.zeros((size, size, 3), np.uint8)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, box=box)
    canvas[y : y + height, x : x + width] = np.asarray(resized)
    return canvas


def cut_mask(bits, box, size):
    """Lesion bits uint8 (H, W) in the geometry of `cut`, uint8 (size, size).

    A pixel has every bit that any of the pixels it covers has, so that the smallest lesion survives.
    """
    x, y, width, height = placement(box, size)
    canvas = np.zeros((size, size), np.uint8)
    for bit in np.flatnonzero(np.bitwise_or.reduce(bits.ravel()) >> np.arange(8) & 1):
        lesion = (bits >> bit & 1).astype(np.float32)
        covered = Image.fromarray(lesion).resize((width, height), Image.Resampling.BOX, box=box)
        canvas[y : y + height, x : x + width] |= np.where(np.asarray(covered) > 0, np.uint8(1 << bit), np.uint8(0))
    return canvas


def read_photograph(path):
    """The photograph upright (EXIF orientation applied), uint8 (H, W, 3) RGB.

    Raises ValueError "unreadable: ..." when Pillow cannot decode it, or when it has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as photograph:
            if photograph.mode.startswith(("I", "F")):
                raise ValueError(f"mode {photograph.mode} has more than 8 bits a channel")
            return np.asarray(ImageOps.exif_transpose(photograph).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable: {error}".replace(str(path), path.name)) from error


def read_labels(raw, eye):
    """The labels of `eye` beside the photographs: (table of image, patient, eye, grade, path; rejects)."""
    labels = pd.read_csv(raw / "trainLabels.csv", dtype=str, keep_default_na=False)
    if not {"image", "level"} <= set(labels):
        raise ValueError(
            f"{raw / 'trainLabels.csv'} has the columns {', '.join(labels)}; it needs image and level, as Kaggle's has."
        )
    paths = sorted((raw / "train").glob("*.jpeg"))
    if not paths:
        raise FileNotFoundError(
            f"{raw / 'train'} holds no .jpeg photograph. Unpack Kaggle's train archive there, or run {MAKER}, which "
            "writes a phantom collection."
        )
    photographs = pd.DataFrame({"image": [path.stem for path in paths], "path": paths})
    table = photographs.merge(labels, how="outer", on="image").sort_values("image", ignore_index=True)
    table[["patient", "eye"]] = table["image"].str.extract(r"^(.+)_(left|right)$")
    table = table[table["eye"].isin(EYES[eye]) | table["eye"].isna()]
    table["grade"] = pd.to_numeric(table["level"], errors="coerce")
    reasons = {
        "name does not end in _left or _right": table["eye"].isna(),
        "no label": table["level"].isna(),
        "no photograph": table["path"].isna(),
        "labelled more than once": table["image"].duplicated(keep=False),
        "level is not 0 to 4": ~table["grade"].isin(range(5)),
    }
    reason = np.select(list(reasons.values()), list(reasons), "")
    rejects = {image: why for image, why in zip(table["image"], reason, strict=True) if why}
    return table[reason == ""].astype({"grade": int}), rejects


def prepare_photograph(row, raw, out, size):
    """Write one photograph and its mask, if it has one: (box, width and height; sums of x and x² by channel).

    Raises ValueError with the reason for which the photograph is rejected.
    """
    image = read_photograph(row.path)
    left, top, right, bottom = box = crop_box(image)
    if max(right - left, bottom - top) < size / 2:
        raise ValueError(f"too small: a retina of {right - left} x {bottom - top} pixels for a size of {size}")
    mask = raw / "masks" / f"{row.image}.png"
    if mask.exists():
        bits = np.asarray(Image.open(mask))
        if bits.shape != image.shape[:2]:
            raise ValueError(f"mask of shape {bits.shape} for a photograph of shape {image.shape[:2]}")
        Image.fromarray(cut_mask(bits, box, size)).save(out / "masks" / f"{row.image}.png", compress_level=1)
    prepared = cut(image, box, size)
    Image.fromarray(prepared).save(out / "images" / f"{row.image}.png", compress_level=1)
    values = prepared.reshape(-1, 3) / 255
    return (*box, image.shape[1], image.shape[0]), (values.sum(axis=0), (values**2).sum(axis=0))


def split(table, test_share, seed):
    """The part of every row: `test_share` of the patients, then a tenth of the others for validation.

    Drawn by patient, so that both eyes fall on one side, and stratified by the grade of the worse eye.
    Raises ValueError when a part would lack a grade.
    """
    worst = table.groupby("patient")["grade"].max()
    try:
        rest, test = train_test_split(worst, test_size=test_share, stratify=worst, random_state=seed)
        train, val = train_test_split(rest, test_size=VALIDATION_SHARE, stratify=rest, random_state=seed)
        parts = {patient: part for part, who in zip(PARTS, (train, val, test), strict=True) for patient in who.index}
    except ValueError:
        parts = {}
    part = table["patient"].map(parts)
    if any(set(table["grade"][part == name]) != set(table["grade"]) for name in PARTS):
        counts = ", ".join(f"{n} of grade {grade}" for grade, n in worst.value_counts().sort_index().items())
        raise ValueError(
            f"{counts} are too few patients for training, validation and test parts that each hold every grade at "
            f"test_share={test_share}. Add photographs of the rarest grade, or raise test_share."
        )
    return part


def fingerprint(raw):
    """Hash of the label table and of every file's name and size: another collection, another fingerprint."""
    digest = hashlib.sha256((raw / "trainLabels.csv").read_bytes())
    for path in sorted([*(raw / "train").glob("*"), *(raw / "masks").glob("*")]):
        digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def prepare(raw, out, size, eye="right", test_share=0.1, seed=0):
    """Crop, resize and split the photographs of `raw` into the data set `out`; returns `out` as a Path.

    `raw` holds train/<patient>_<eye>.jpeg and trainLabels.csv (image, level) as Kaggle ships EyePACS; `size` in
    pixels; `eye` is "right" (as CLEAR-DR), "left" or "both". The data set gets its name only when it is whole; one
    that the same request made is used again, one that another request made is replaced. A bad photograph goes to
    rejects.csv; raises ValueError, FileNotFoundError or FileExistsError for a bad request or collection.
    """
    raw, out = Path(raw), Path(out)
    if not 16 <= size <= 2048:
        raise ValueError(f"size is {size}; choose a side of 16 to 2048 pixels.")
    if not 0.01 <= test_share <= 0.5:
        raise ValueError(f"test_share is {test_share}; choose a share of 0.01 to 0.5 (CLEAR-DR: 0.1).")
    if eye not in EYES:
        raise ValueError(f"eye is {eye!r}; choose one of {', '.join(EYES)}.")
    if not (raw / "trainLabels.csv").exists():
        raise FileNotFoundError(
            f"{raw} has no trainLabels.csv. A raw collection is train/*.jpeg and trainLabels.csv, as Kaggle ships "
            f"EyePACS; {MAKER} writes a phantom collection of that form."
        )
    request = {"source": raw.name, "fingerprint": fingerprint(raw), "size": size, "eye": eye}
    request |= {"test_share": test_share, "seed": seed}
    made = out / "dataset.json"
    if made.exists() and request.items() <= json.loads(made.read_text()).items():
        return out
    if out.exists() and not made.exists():
        raise FileExistsError(f"{out} exists and is no prepared data set. Move it away or choose another folder.")

    table, rejects = read_labels(raw, eye)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    (partial / "masks").mkdir()
    rows, sums = [], {}
    for row in tqdm(table.itertuples(), total=len(table), desc="preparing", disable=None):
        try:
            geometry, sums[row.image] = prepare_photograph(row, raw, partial, size)
            rows.append((row.image, row.patient, row.eye, row.grade, *geometry))
        except ValueError as error:
            rejects[row.image] = str(error)
    if not rows:
        image, reason = next(iter(rejects.items()), ("", f"there is none of the {eye} eye"))
        raise ValueError(f"Nothing of {raw} can be prepared: {image} {reason}. Check the photographs and labels.")
    columns = ["image", "patient", "eye", "grade", "left", "top", "right", "bottom", "width", "height"]
    manifest = pd.DataFrame(rows, columns=columns)
    manifest.insert(4, "part", split(manifest, test_share, seed))
    manifest.to_csv(partial / "manifest.csv", index=False)
    pd.DataFrame(sorted(rejects.items()), columns=["image", "reason"]).to_csv(partial / "rejects.csv", index=False)

    training = manifest["image"][manifest["part"] == "train"]
    mean, square = np.sum([sums[image] for image in training], axis=0) / (len(training) * size**2)
    counts = json.loads(pd.crosstab(manifest["part"], manifest["grade"]).to_json(orient="index"))
    request |= {"counts": counts, "rejected": len(rejects)}
    request |= {"mean": mean.tolist(), "std": np.sqrt(square - mean**2).tolist()}
    (partial / "dataset.json").write_text(json.dumps(request, indent=1) + "\n")
    if out.exists():
        shutil.rmtree(out)
    os.replace(partial, out)
    return out


class Prepared(torch.utils.data.Dataset):
    """One part ("train", "val" or "test") of a prepared data set, held in memory as uint8: 3 x size² bytes each.

    Item i is (image float32 (3, H, W), normalised; grade int). `flips` mirrors at random left to right and upside
    down, drawn from torch's global generator. Attributes: `images` uint8 (N, 3, H, W), `grades` int64 (N,), `names`,
    `mean` and `std` float32 (3, 1, 1) of the training part.
    Raises ValueError for an unknown part, FileNotFoundError for a missing data set or photograph.
    """

    def __init__(self, folder, part, flips=False):
        if part not in PARTS:
            raise ValueError(f"part is {part!r}; choose one of {', '.join(PARTS)}.")
        self.folder, self.flips = Path(folder), flips
        if not (self.folder / "dataset.json").exists():
            raise FileNotFoundError(f"{self.folder} is no prepared data set. {MAKER} makes it: run that first.")
        made = json.loads((self.folder / "dataset.json").read_text())
        self.mean = torch.tensor(made["mean"]).view(3, 1, 1)
        self.std = torch.tensor(made["std"]).view(3, 1, 1)
        manifest = pd.read_csv(self.folder / "manifest.csv").query("part == @part")
        self.names = manifest["image"].tolist()
        self.grades = torch.tensor(manifest["grade"].to_numpy())
        photographs = np.stack([np.asarray(Image.open(self._path(f"images/{name}.png"))) for name in self.names])
        self.images = torch.from_numpy(photographs).permute(0, 3, 1, 2).contiguous()

    def _path(self, name):
        path = self.folder / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing. Delete {self.folder} and run {MAKER} again.")
        return path

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        image = self.normalise(self.images[i])
        if self.flips:
            image = image.flip([axis for axis in (1, 2) if torch.rand(()) < 0.5])
        return image, int(self.grades[i])

    def normalise(self, images):
        """Channel-wise normalisation, uint8 (..., 3, H, W) to float32: (x / 255 - mean) / std."""
        return (images.float() / 255 - self.mean) / self.std

    def photograph(self, i):
        """Photograph i to look at, float32 (H, W, 3) in [0, 1]."""
        return self.images[i].permute(1, 2, 0).numpy().astype(np.float32) / 255

    def masks(self, i):
        """Where the lesions of photograph i are, {lesion: bool (H, W)}. Raises FileNotFoundError without masks."""
        return read_masks(self._path(f"masks/{self.names[i]}.png"))
