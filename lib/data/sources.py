"""Where photographs come from: fundus photographs as Kaggle ships EyePACS, and ILSVRC's boxes.

Each source of fundus photographs returns the folder of its collection: photographs and a label
table, as `lib.data.manifest.read_labels` takes them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from PIL import Image

from lib import paths
from lib.data import kaggle, retina
from lib.data.manifest import HELD_OUT, LABEL_TABLES, SPLITS
from lib.data.phantom import BALANCED, VERSION, write_collection

# Right eyes of EyePACS by grade 0 to 4, counted in Kaggle's label tables; the CLEAR-DR paper says
# 53,354 images.
EYEPACS_RIGHT_EYES = {"train": (12939, 1231, 2590, 448, 355), "test": (19816, 1857, 3904, 601, 610)}

# MedMNIST v2 (Yang et al. 2023, https://medmnist.com), CC BY 4.0: the file of each size, its md5.
RETINAMNIST = {
    28: ("retinamnist.npz", "bd4c0672f1bba3e3a89f0e4e876791e4"),
    224: ("retinamnist_224.npz", "eae7e3b6f3fcbda4ae613ebdcbe35348"),
}

# IDRiD (Porwal et al. 2018), CC BY 4.0: what the ends of its masks' names stand for.
IDRID_MASKS = {
    "MA": "microaneurysm",
    "HE": "haemorrhage",
    "EX": "hard_exudate",
    "SE": "cotton_wool_spot",
    "OD": retina.OPTIC_DISC,
}
# Photographs of eyes that IDRiD took twice, for the second time among those with masks (25, 11, 26,
# 39) and in its test split (072). No hash sees that; they were found by their vessels, which
# correlate with 0.76 to 0.89 once aligned, and looked at.
SAME_EYE = {f"train_IDRiD_{number}" for number in ("347", "083", "299", "271", "017")}
# Mean difference of thumbnails, of 255 levels, below which two photographs are one.
_SAME_PHOTOGRAPH = 2


def phantom(n: int, seed: int, share: Sequence[float] = BALANCED) -> Path:
    """Draw the phantom collection, or find it where it was drawn with the same arguments.

    Args:
        n: Patients, each with both eyes.
        seed: Seed of everything that is drawn.
        share: Share of each grade 0 to 4.

    Raises:
        ValueError: As `lib.data.phantom.write_collection`.
    """
    raw = paths.RAW / "phantom"
    wanted = {"n": n, "seed": seed, "share": list(share), "version": VERSION}
    about = raw / "collection.json"
    if not about.exists() or json.loads(about.read_text()) != wanted:
        write_collection(raw, n, seed, share)
    return raw


def eyepacs() -> Path:
    """Fetch EyePACS from Kaggle; the test split too where its labels lie in raw/eyepacs.

    What is there already is not asked for again. Raises as `lib.data.kaggle.fetch`.
    """
    raw = paths.RAW / "eyepacs"
    tables = ("testLabels.csv", kaggle.COLLECTIONS["eyepacs"].splits["test"].labels)
    labelled = any((raw / name).exists() for name in tables)
    return kaggle.fetch("eyepacs", raw, ("train", "test") if labelled else ("train",))


def aptos() -> Path:
    """Fetch APTOS 2019 from Kaggle, its training split; raises as `lib.data.kaggle.fetch`."""
    return kaggle.fetch("aptos", paths.RAW / "aptos")


def folder(path: str | Path) -> Path:
    """Take the collection in a folder of your own.

    Args:
        path: Folder with photographs and labels.csv; a relative one counts from where Python runs.

    Raises:
        FileNotFoundError: Without a label table.
    """
    raw = Path(path).expanduser().absolute()
    if not any((raw / name).exists() for name in LABEL_TABLES):
        raise FileNotFoundError(
            f"{raw} is no collection: it needs photographs and labels.csv with the columns image "
            "(a photograph's name without ending) and level (0 to 4); further columns patient, "
            "split and file are read where they are there"
        )
    return raw


def retinamnist(size: int = 28) -> Path:
    """Unpack RetinaMNIST into a collection with its own split, 1,080 / 120 / 400 photographs.

    Args:
        size: Side of the photographs in pixels, 28 or 224. The file is read from medmnist/ in the
            data sets' folder, or from ~/.medmnist, where the package medmnist downloads it.

    Raises:
        ValueError: For another size, and for a file that is not MedMNIST's.
        FileNotFoundError: With the steps to get the file.
    """
    if size not in RETINAMNIST:
        raise ValueError(f"size is {size}; RetinaMNIST is here read in 28 and 224 pixels")
    name, md5 = RETINAMNIST[size]
    path = paths.dataset(f"medmnist/{name}")
    if not path.exists():
        path = Path.home() / ".medmnist" / name
    if not path.exists():
        raise FileNotFoundError(
            f"{name} is not on disk. To get it:\n"
            f"1. download https://zenodo.org/records/10519652/files/{name}?download=1\n"
            f"2. check it: its md5 is {md5}\n"
            f"3. put it into {paths.RAW / 'medmnist'}, or into medmnist/ where COMPANION_DATASETS "
            "points\n"
            "4. run this notebook again"
        )
    found = hashlib.md5(path.read_bytes()).hexdigest()
    if found != md5:
        raise ValueError(
            f"{path} is not MedMNIST's file: its md5 is {found}, not {md5}. Delete it and download "
            "it anew"
        )
    raw = paths.RAW / f"retinamnist-{size}"
    if raw.exists():
        return raw
    beside = _new_beside(raw)
    (beside / "train").mkdir()
    arrays = np.load(path)
    rows = []
    for split in SPLITS:
        levels = arrays[f"{split}_labels"][:, 0]
        for i, pixels in enumerate(arrays[f"{split}_images"]):
            image = f"{split}_{i:04d}"
            Image.fromarray(pixels).save(beside / "train" / f"{image}.png", compress_level=1)
            rows.append({"image": image, "level": levels[i], "split": split})
    return _finish(beside, raw, rows)


def idrid(lesions: bool = False, path: str = "") -> Path:
    """Make IDRiD a collection with its own split: 413 and 103 graded photographs.

    The photographs stay where they are.

    Args:
        lesions: Whether to hold out the photographs that have masks, as the split "lesions". Their
            graded twins (the same photograph in the training split, found by its thumbnail) and
            those of `SAME_EYE` leave the training split, so that nothing of them is learnt. A
            held-out photograph without graded twin has the level -1.
        path: Folder of IDRiD as published ("A. Segmentation", "B. Disease Grading"), or any with
            the same names of files; empty for idrid/ in the data sets' folder.

    Raises:
        FileNotFoundError: Where there is no IDRiD, or no masks.
    """
    home = Path(path).expanduser().absolute() if path else paths.dataset("idrid")
    tables = list(home.rglob("*Disease Grading_T*ing Labels.csv"))
    if len(tables) != 2:
        raise FileNotFoundError(
            f"no IDRiD in {home}: put `B. Disease Grading`, and `A. Segmentation` for lesions, "
            "from https://ieee-dataport.org/open-access/"
            "indian-diabetic-retinopathy-image-dataset-idrid there"
        )
    levels = {}
    for table in tables:
        for name, level in pd.read_csv(table, index_col=0)["Retinopathy grade"].items():
            levels[f"{_idrid_split(table)}_{name}"] = level
    rows = {}
    for file in sorted(home.rglob("*IDRiD_[0-9][0-9][0-9].jpg")):
        split = _idrid_split(file)
        image = f"{split}_{file.stem[-9:]}"
        row = {"image": image, "level": levels.get(image, ""), "split": split, "file": file}
        rows.setdefault(image, row)  # `C. Localization` has the same photographs again
    rows = list(rows.values())
    raw = paths.RAW / ("idrid-lesions" if lesions else "idrid")
    beside = _new_beside(raw)
    if lesions:
        rows = _hold_out(rows, home)
        _write_masks(rows, home, beside / "masks", raw / "masks")
    return _finish(beside, raw, rows)


def _idrid_split(path: Path) -> str:
    """The split an IDRiD file belongs to, from its own or its folder's name."""
    return "train" if "train" in f"{path.parent.name} {path.name}".lower() else "test"


def _hold_out(rows: list[dict], home: Path) -> list[dict]:
    """The rows and those of the photographs with masks, whose twins leave the training split."""
    thumbnails = np.array([_thumbnail(row["file"]) for row in rows])
    held_out = []
    twins = set(SAME_EYE)
    for photograph in sorted(home.rglob("IDRiD_[0-9][0-9].jpg")):
        difference = np.abs(thumbnails - _thumbnail(photograph)).mean((1, 2))
        same = [rows[i] for i in np.flatnonzero(difference < _SAME_PHOTOGRAPH)]
        twins |= {row["image"] for row in same if row["split"] == "train"}
        levels = {row["level"] for row in same}
        row = {"image": f"{HELD_OUT}_{photograph.stem}", "split": HELD_OUT, "file": photograph}
        held_out.append(row | {"level": levels.pop() if len(levels) == 1 else -1})
    return [row for row in rows if row["image"] not in twins] + held_out


def _write_masks(rows: list[dict], home: Path, folder: Path, before: Path) -> None:
    """Write a mask file for each held-out photograph, or take it over from the folder `before`."""
    files = {path.stem: path for path in home.rglob("IDRiD_[0-9][0-9]_[A-Z][A-Z].*")}
    if not files:
        raise FileNotFoundError(
            f"no lesion masks in {home}: put `A. Segmentation` of IDRiD there, or lesions=False"
        )
    folder.mkdir()
    for row in rows:
        if row["split"] != HELD_OUT:
            continue
        target = f"{row['image']}.png"
        if (before / target).exists():
            os.link(before / target, folder / target)
            continue
        with Image.open(row["file"]) as photograph:
            masks = {retina.OPTIC_DISC: np.zeros(photograph.size[::-1], bool)}
        for end, what in IDRID_MASKS.items():
            if file := files.get(f"{row['file'].stem}_{end}"):
                with Image.open(file) as mask:
                    masks[what] = np.asarray(mask.convert("L")) > 0
        Image.fromarray(retina.pack_masks(masks)).save(folder / target, compress_level=1)


def _thumbnail(path: Path) -> np.ndarray:
    """The photograph in 64 x 42 grey pixels, each the mean of what it covers; float32 (42, 64)."""
    with Image.open(path) as file:
        width, height = file.size
        file.draft("RGB", (64, 42))
        by = round(width / file.width)  # the last decoded pixel may stand for less
        box = (0, 0, width / by, height / by)
        return np.asarray(file.convert("L").resize((64, 42), Image.Resampling.BOX, box), np.float32)


def _new_beside(raw: Path) -> Path:
    """A new folder beside `raw`, to be renamed when it is whole."""
    beside = raw.with_name(f"{raw.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside


def _finish(beside: Path, raw: Path, rows: list[dict]) -> Path:
    """Write the label table; then the collection, now whole, gets its name."""
    pd.DataFrame(rows).to_csv(beside / "labels.csv", index=False)
    shutil.rmtree(raw, ignore_errors=True)
    os.replace(beside, raw)
    return raw


def imagenet_boxes(
    path: str | Path,
) -> dict[str, tuple[int, list[tuple[int, int, int, int]]]]:
    """Read ILSVRC's boxes, with the classes numbered by sorted wnid, as in torchvision.

    Args:
        path: Kaggle's LOC_val_solution.csv (ImageId, PredictionString of "wnid x0 y0 x1 y1",
            repeated), or a folder of the official XML files, one for each photograph. Where fewer
            than 1,000 classes occur, LOC_synset_mapping.txt beside it numbers them.

    Returns:
        Class and boxes (x0, y0, x1, y1) by the photograph's name without ending, in pixels. In
        ILSVRC's files the last pixel belongs to the box; here x1 and y1 are exclusive.

    Raises:
        FileNotFoundError: For a path that is not there.
        ValueError: For a row or file that cannot be read, for two classes in one photograph, and
            without a numbering.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no boxes at {path}: give LOC_val_solution.csv or the folder of ILSVRC's XML files"
        )
    rows = _boxes_of_xml(path) if path.is_dir() else _boxes_of_csv(path)
    wnids = sorted({wnid for _, wnid, _ in rows})
    mapping = path.parent / "LOC_synset_mapping.txt"
    if mapping.exists():
        wnids = sorted(line.split()[0] for line in mapping.read_text().splitlines() if line.strip())
    elif len(wnids) < 1000:
        raise ValueError(
            f"{path} holds {len(wnids)} classes: put LOC_synset_mapping.txt, which numbers all "
            f"1,000, into {path.parent}"
        )
    boxes = {}
    for image, wnid, (x0, y0, x1, y1) in rows:
        label, instances = boxes.setdefault(image, (wnids.index(wnid), []))
        if label != wnids.index(wnid):
            raise ValueError(
                f"{image} in {path} has boxes of two classes, {wnids[label]} and {wnid}; ILSVRC "
                "has one"
            )
        instances.append((x0, y0, x1 + 1, y1 + 1))
    return boxes


def _boxes_of_csv(path: Path) -> list[tuple]:
    """Photograph, wnid and corners of every box."""
    rows = []
    for image, text in pd.read_csv(path)[["ImageId", "PredictionString"]].itertuples(index=False):
        words = text.split()
        if not words or len(words) % 5:
            raise ValueError(f"{image} in {path}: {text!r} is not `wnid x0 y0 x1 y1`, repeated")
        for i in range(0, len(words), 5):
            corners = tuple(int(word) for word in words[i + 1 : i + 5])
            rows.append((image, words[i], corners))
    return rows


def _boxes_of_xml(folder: Path) -> list[tuple]:
    """Photograph, wnid and corners of every box."""
    rows = []
    for file in sorted(folder.glob("*.xml")):
        try:
            for thing in ElementTree.parse(file).iter("object"):
                corners = []
                for side in ("xmin", "ymin", "xmax", "ymax"):
                    corners.append(int(thing.findtext(f"bndbox/{side}")))
                rows.append((file.stem, thing.findtext("name"), tuple(corners)))
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not an ILSVRC annotation: {error}") from error
    return rows
