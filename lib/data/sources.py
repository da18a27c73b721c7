"""Where photographs come from: fundus photographs as Kaggle ships EyePACS, and ILSVRC's with their boxes."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from PIL import Image

from lib import paths
from lib.data import kaggle as download
from lib.data.collection import BALANCED, write_collection
from lib.data.manifest import HELD_OUT, TABLES
from lib.data.phantom import MASKS, VERSION

# Right eyes of EyePACS by grade 0-4, counted in Kaggle's label tables; the CLEAR-DR paper says 53,354 images.
EYEPACS_RIGHT_EYES = {"train": (12939, 1231, 2590, 448, 355), "test": (19816, 1857, 3904, 601, 610)}


def phantom(n, seed, share=BALANCED):
    """The folder of the phantom collection of n patients: written once, reused for the same arguments, else remade.

    `seed` draws everything, `share` is the share of each grade 0-4. Raises as `lib.data.collection.write_collection` does.
    """
    folder = paths.RAW / "phantom"
    wanted = {"n": n, "seed": seed, "share": list(share), "version": VERSION}
    made = folder / "collection.json"
    if not made.exists() or json.loads(made.read_text()) != wanted:
        write_collection(folder, n, seed, share)
    return folder


def eyepacs():
    """EyePACS from Kaggle, downloaded, unpacked and counted: the test part too where its labels lie in raw/eyepacs.

    What is there already is not asked for again. Raises as `lib.data.kaggle.fetch` does.
    """
    raw = paths.RAW / "eyepacs"
    labelled = any((raw / name).exists() for name in ("testLabels.csv", "retinopathy_solution.csv"))
    return download.fetch("eyepacs", raw, ("train", "test") if labelled else ("train",))


def aptos():
    """APTOS 2019 from Kaggle, its training part, downloaded, unpacked and counted. Raises as `lib.data.kaggle.fetch`."""
    return download.fetch("aptos", paths.RAW / "aptos")


def folder(path):
    """The collection of photographs in a folder of your own: labels.csv with the columns image and level beside them.

    Raises FileNotFoundError, saying what is needed, where there is no such table.
    """
    raw = Path(path).expanduser().absolute()
    if not any((raw / name).exists() for name in TABLES):
        raise FileNotFoundError(
            f"{raw} is no collection: it needs photographs and labels.csv with the columns image (a photograph's name "
            "without ending) and level (0 to 4); further columns patient, part and file are read where they are there"
        )
    return raw


# MedMNIST v2 (Yang et al. 2023, https://medmnist.com), CC BY 4.0: the file of each size and its md5.
RETINAMNIST = {
    28: ("retinamnist.npz", "bd4c0672f1bba3e3a89f0e4e876791e4"),
    224: ("retinamnist_224.npz", "eae7e3b6f3fcbda4ae613ebdcbe35348"),
}


def retinamnist(size=28):
    """RetinaMNIST as a collection with its own split: 1,080 / 120 / 400 photographs of `size` 28 or 224 pixels.

    Read from medmnist/ in the data sets' folder or from ~/.medmnist, where the package medmnist leaves its downloads.
    Raises ValueError for another size and another file, FileNotFoundError with the steps to get the file.
    """
    if size not in RETINAMNIST:
        raise ValueError(f"size is {size}; RetinaMNIST is here read in 28 and 224 pixels")
    name, md5 = RETINAMNIST[size]
    path = next(
        (
            p
            for p in (paths.dataset(f"medmnist/{name}"), Path.home() / ".medmnist" / name)
            if p.exists()
        ),
        None,
    )
    if path is None:
        raise FileNotFoundError(
            f"{name} is not on disk. To get it:\n"
            f"1. download https://zenodo.org/records/10519652/files/{name}?download=1\n"
            f"2. check it: its md5 is {md5}\n"
            f"3. put it into {paths.RAW / 'medmnist'}, or into medmnist/ where COMPANION_DATASETS points\n"
            "4. run this notebook again"
        )
    if (found := hashlib.md5(path.read_bytes()).hexdigest()) != md5:
        raise ValueError(
            f"{path} is not MedMNIST's file: its md5 is {found}, not {md5}. Delete it and download it anew"
        )
    raw = paths.RAW / f"retinamnist-{size}"
    if raw.exists():
        return raw
    beside = _emptied(raw)
    (beside / "train").mkdir()
    rows, arrays = [], np.load(path)
    for part in ("train", "val", "test"):
        for i, (image, level) in enumerate(
            zip(arrays[f"{part}_images"], arrays[f"{part}_labels"][:, 0], strict=True)
        ):
            rows.append((f"{part}_{i:04d}", level, part))
            Image.fromarray(image).save(beside / "train" / f"{rows[-1][0]}.png", compress_level=1)
    return _tabled(raw, beside, rows, ["image", "level", "part"])


SAME = 2  # mean difference of thumbnails, of 255 levels, below which two photographs are one
# Photographs of eyes that IDRiD took twice, for the second time in the parts "lesions" (25, 11, 26, 39) and test (072).
# No hash sees that; they were found by their vessels, which correlate with 0.76 to 0.89 once aligned, and looked at.
SAME_EYE = {f"train_IDRiD_{number}" for number in ("347", "083", "299", "271", "017")}
# IDRiD (Porwal et al. 2018, CC BY 4.0) names its masks by these ends.
IDRID_MASKS = {
    "MA": "microaneurysm", "HE": "haemorrhage", "EX": "hard_exudate", "SE": "cotton_wool_spot", "OD": "optic_disc",
}  # fmt: skip


def idrid(lesions=False, path=""):
    """IDRiD as a collection with its own split, 413 and 103 graded photographs; the photographs stay where they are.

    lesions  also the photographs that have masks, as the part "lesions": their graded twins (the same photograph in
             the training part, found by its thumbnail) and those of `SAME_EYE` leave the training part, so that
             nothing of them is learnt
    path     the folder of IDRiD as published ("A. Segmentation", "B. Disease Grading"), or any with the same names
             of files; empty for idrid/ in the data sets' folder
    A held-out photograph without graded twin has the level -1. Raises FileNotFoundError where there is no IDRiD.
    """
    home = Path(path).expanduser().absolute() if path else paths.dataset("idrid")
    tables = [*home.rglob("*Disease Grading_T*ing Labels.csv")]
    if len(tables) != 2:
        raise FileNotFoundError(
            f"no IDRiD in {home}: put `B. Disease Grading`, and `A. Segmentation` for lesions, from "
            "https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid there"
        )
    levels = {
        _part(table): pd.read_csv(table, index_col=0)["Retinopathy grade"].to_dict()
        for table in tables
    }
    graded = {}
    for file in sorted(home.rglob("*IDRiD_[0-9][0-9][0-9].jpg")):
        graded.setdefault(
            (_part(file), file.stem[-9:]), file
        )  # `C. Localization` has the same photographs again
    rows = [
        (f"{part}_{name}", levels[part].get(name, ""), part, file)
        for (part, name), file in graded.items()
    ]
    raw = paths.RAW / ("idrid-lesions" if lesions else "idrid")
    beside = _emptied(raw)
    if lesions:
        (beside / "masks").mkdir()
        rows = _with_lesions(rows, home, beside / "masks", raw / "masks")
    return _tabled(raw, beside, rows, ["image", "level", "part", "file"])


def _part(path):
    """The part an IDRiD file belongs to, from its own or its folder's name."""
    return "train" if "train" in f"{path.parent.name} {path.name}".lower() else "test"


def _with_lesions(rows, home, masks, before):
    """The rows with those of the photographs that have masks; the masks are written, or taken over from `before`."""
    thumbnails = np.array([_thumbnail(row[3]) for row in rows])
    files = {path.stem: path for path in home.rglob("IDRiD_[0-9][0-9]_[A-Z][A-Z].*")}
    if not files:
        raise FileNotFoundError(
            f"no lesion masks in {home}: put `A. Segmentation` of IDRiD there, or lesions=False"
        )
    held_out, twins = [], set(SAME_EYE)
    for photograph in sorted(home.rglob("IDRiD_[0-9][0-9].jpg")):
        distance = np.abs(thumbnails - _thumbnail(photograph)).mean((1, 2))
        same = [rows[i] for i in np.flatnonzero(distance < SAME)]
        levels = {level for _, level, _, _ in same}
        twins |= {name for name, _, part, _ in same if part == "train"}
        name = f"{HELD_OUT}_{photograph.stem}"
        held_out.append((name, levels.pop() if len(levels) == 1 else -1, HELD_OUT, photograph))
        if (before / f"{name}.png").exists():
            os.link(before / f"{name}.png", masks / f"{name}.png")
            continue
        bits = np.zeros(Image.open(photograph).size[::-1], np.uint8)
        for end, lesion in IDRID_MASKS.items():
            if mask := files.get(f"{photograph.stem}_{end}"):
                marked = np.asarray(Image.open(mask).convert("L")) > 0
                bits |= np.where(marked, np.uint8(1 << MASKS.index(lesion)), np.uint8(0))
        Image.fromarray(bits).save(masks / f"{name}.png", compress_level=1)
    return [row for row in rows if row[0] not in twins] + held_out


def _thumbnail(path):
    with Image.open(path) as file:
        width, height = file.size
        file.draft("RGB", (64, 42))
        by = round(width / file.width)  # the last decoded pixel may stand for less
        box = 0, 0, width / by, height / by
        return np.asarray(file.convert("L").resize((64, 42), Image.Resampling.BOX, box), np.float32)


def _emptied(raw):
    """A new folder beside `raw`, to be renamed when it is whole."""
    beside = raw.with_name(f"{raw.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside


def _tabled(raw, beside, rows, columns):
    pd.DataFrame(rows, columns=columns).to_csv(beside / "labels.csv", index=False)
    shutil.rmtree(raw, ignore_errors=True)
    os.replace(beside, raw)
    return raw


def imagenet_boxes(path):
    """ILSVRC's boxes: {photograph's name without ending: (class index, [(x0, y0, x1, y1), ...])}, x1, y1 exclusive.

    path  Kaggle's LOC_val_solution.csv (ImageId, PredictionString of "wnid x0 y0 x1 y1" repeated), or a folder of the
          official XML files, one for each photograph. Pixels are ILSVRC's, the last one included.
    Classes are numbered by sorted wnid, as in torchvision. Where fewer than 1,000 occur, the numbering is taken from
    LOC_synset_mapping.txt beside `path`. Raises FileNotFoundError for a path that is not there, ValueError for a row
    or file that cannot be read, for two classes in one photograph, and without a numbering.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no boxes at {path}: give LOC_val_solution.csv or the folder of ILSVRC's XML files"
        )
    rows = _boxes_of_xml(path) if path.is_dir() else _boxes_of_csv(path)
    mapping = path.parent / "LOC_synset_mapping.txt"
    wnids = sorted({wnid for _, wnid, _ in rows})
    if len(wnids) < 1000 and not mapping.exists():
        raise ValueError(f"{path} holds {len(wnids)} classes: put LOC_synset_mapping.txt, which numbers all 1,000, "
                         f"into {path.parent}")  # fmt: skip
    if mapping.exists():
        wnids = sorted(line.split()[0] for line in mapping.read_text().splitlines() if line.strip())
    boxes = {}
    for name, wnid, (x0, y0, x1, y1) in rows:
        label, instances = boxes.setdefault(name, (wnids.index(wnid), []))
        if label != wnids.index(wnid):
            raise ValueError(
                f"{name} in {path} has boxes of two classes, {wnids[label]} and {wnid}; ILSVRC has one"
            )
        instances.append((x0, y0, x1 + 1, y1 + 1))
    return boxes


def _boxes_of_csv(path):
    rows = []
    for name, text in pd.read_csv(path)[["ImageId", "PredictionString"]].itertuples(index=False):
        words = text.split()
        if not words or len(words) % 5:
            raise ValueError(f"{name} in {path}: {text!r} is not `wnid x0 y0 x1 y1`, repeated")
        for i in range(0, len(words), 5):
            rows.append((name, words[i], tuple(map(int, words[i + 1 : i + 5]))))
    return rows


def _boxes_of_xml(folder):
    rows = []
    for file in sorted(folder.glob("*.xml")):
        try:
            for thing in ElementTree.parse(file).iter("object"):
                corners = (
                    int(thing.findtext(f"bndbox/{corner}"))
                    for corner in ("xmin", "ymin", "xmax", "ymax")
                )
                rows.append((file.stem, thing.findtext("name"), tuple(corners)))
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not an ILSVRC annotation: {error}") from error
    return rows
