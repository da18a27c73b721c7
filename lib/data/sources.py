"""Where photographs come from: fundus photographs as Kaggle ships EyePACS, and ILSVRC's boxes.

Each source of fundus photographs returns the folder of its collection: photographs and a label
table, as `lib.data.manifest.read_labels` takes them.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from PIL import Image

from lib import paths
from lib.data import files, kaggle, retina
from lib.data.manifest import (
    HELD_OUT,
    LABEL_TABLES,
    PHOTOGRAPH_SUFFIXES,
    SPLITS,
    draw_split,
    eye_of,
)
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
# What IDRiD publishes: photographs with masks, and graded ones.
IDRID_WITH_MASKS = [f"IDRiD_{number:02d}" for number in range(1, 82)]
IDRID_GRADED = {"train": 413, "test": 103}
# Photographs of eyes that IDRiD took twice, for the second time among those with masks (25, 11, 26,
# 39) and in its test split (072). No hash sees that; they were found by their vessels, which
# correlate with 0.76 to 0.89 once aligned, and looked at.
SAME_EYE = {f"train_IDRiD_{number}" for number in ("347", "083", "299", "271", "017")}

# UTeM (S. S. Rahim 2025, academic use with attribution): the ICDR grade of each of its classes.
UTEM_GRADES = {
    "no dr": 0,
    "mild dr without maculopathy": 1,
    "mild dr with maculopathy": 1,
    "moderate dr without maculopathy": 2,
    "moderate dr with maculopathy": 2,
    "severe dr without maculopathy": 3,
    "severe dr with maculopathy": 3,
    "pdr without maculopathy": 4,
    "pdr with maculopathy": 4,
    "aded": 4,  # advanced diabetic eye disease
}
UTEM_PHOTOGRAPHS = 600
_UTEM_DRAW = {"test_share": 1 / 8, "seed": 0}  # of the split that UTeM is given here

_MADE = "made.json"  # in a collection that was written here: of what, and its files' hashes
# Mean difference of thumbnails, of 255 levels, below which two photographs are one.
_SAME_PHOTOGRAPH = 2


def phantom(n: int, seed: int, share: Sequence[float] = BALANCED) -> Path:
    """Draw the phantom collection, or find it whole where it was drawn with the same arguments.

    Each choice of arguments has a folder of its own, `phantom-<n>` with a seed that is not 0.

    Args:
        n: Patients, each with both eyes.
        seed: Seed of everything that is drawn.
        share: Share of each grade 0 to 4.

    Raises:
        ValueError: As `lib.data.phantom.write_collection`.
    """
    request = {"n": n, "seed": seed, "share": list(share), "version": VERSION}
    name = f"phantom-{n}" + (f"-seed{seed}" if seed else "")
    if tuple(share) != tuple(BALANCED):
        name += f"-shares{hashlib.sha256(repr(list(share)).encode()).hexdigest()[:6]}"
    raw = paths.RAW / name
    return _make(raw, request, lambda beside: write_collection(beside, n, seed, share))


def eyepacs() -> Path:
    """Fetch EyePACS from Kaggle; the test split too where its labels lie in raw/eyepacs.

    What is there already is not asked for again. Raises as `lib.data.kaggle.fetch`.
    """
    raw = paths.RAW / "eyepacs"
    tables = ("testLabels.csv", kaggle.COLLECTIONS["eyepacs"].splits["test"].labels)
    labelled = any((raw / name).exists() for name in tables)
    return kaggle.fetch("eyepacs", raw, ("train", "test") if labelled else ("train",))


def aptos() -> Path:
    """Fetch APTOS 2019 from Kaggle, its training split; raises as `lib.data.kaggle.fetch`.

    Nobody has published whose eyes these are: each photograph is taken for another patient's.
    """
    raw = kaggle.fetch("aptos", paths.RAW / "aptos")
    path = raw / "trainLabels.csv"
    labels = files.read_table(path, ("image", "level"))
    if "patient" not in labels:
        labels["patient"] = labels["image"]
        paths.write(path, partial(labels.to_csv, index=False))
    return raw


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
            "(a photograph's name) and level (0 to 4); further columns patient, eye, split and "
            "file are read where they are there"
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
    return _make(
        paths.RAW / f"retinamnist-{size}", {"md5": md5}, partial(_unpack_retinamnist, path)
    )


def _unpack_retinamnist(path: Path, raw: Path) -> None:
    """Write the photographs of MedMNIST's file and their label table."""
    (raw / "train").mkdir()
    arrays = np.load(path)
    rows = []
    for split in SPLITS:
        levels = arrays[f"{split}_labels"][:, 0]
        for i, pixels in enumerate(arrays[f"{split}_images"]):
            image = f"{split}_{i:04d}"
            Image.fromarray(pixels).save(raw / "train" / f"{image}.png", compress_level=1)
            rows.append({"image": image, "level": levels[i], "split": split})
    pd.DataFrame(rows).to_csv(raw / "labels.csv", index=False)


def idrid(lesions: bool = False, path: str = "") -> Path:
    """Make IDRiD a collection with its own split: 413 and 103 graded photographs.

    The photographs stay where they are; the collection, with the masks of lesions, is made anew
    where a file of IDRiD has changed. One printed line says how much of IDRiD there is.

    Args:
        lesions: Whether to hold out the photographs that have masks, as the split "lesions". Their
            graded twins (the same photograph in the training split, found by its thumbnail) and
            those of `SAME_EYE` leave the training split, so that nothing of them is learnt. A twin
            in the test split stays there, since neither is learnt from. A held-out photograph
            without graded twin has the level -1.
        path: Folder of IDRiD as published ("A. Segmentation", "B. Disease Grading"), or any with
            the same names of files; empty for idrid/ in the data sets' folder.

    Raises:
        FileNotFoundError: Where there is no IDRiD, or no masks.
        ValueError: For a file of IDRiD that cannot be read, and for two that are called like one
            of its photographs with masks, or their masks, but differ.
    """
    home = Path(path).expanduser().absolute() if path else paths.dataset("idrid")
    tables = sorted(home.rglob("*Disease Grading_T*ing Labels.csv"))
    if len(tables) != 2:
        raise FileNotFoundError(
            f"no IDRiD in {home}: put `B. Disease Grading`, and `A. Segmentation` for lesions, "
            "from https://ieee-dataport.org/open-access/"
            "indian-diabetic-retinopathy-image-dataset-idrid there"
        )
    graded = _find_graded(home)
    outlined = _find_outlined(home) if lesions else {}
    used = tables + list(graded.values())
    for photograph, masks in outlined.items():
        used += [photograph, *masks.values()]
    make = partial(_write_idrid, tables, graded, outlined)
    name = "idrid-lesions" if lesions else "idrid-grades"
    raw = _make(paths.RAW / name, _contents(home, used), make)
    print(_idrid_account(raw, len(graded)))
    return raw


def _idrid_split(path: Path) -> str:
    """The split an IDRiD file belongs to, from its own or its folder's name."""
    return "train" if "train" in f"{path.parent.name} {path.name}".lower() else "test"


def _find_graded(home: Path) -> dict[str, Path]:
    """IDRiD's graded photographs, as far as they are there, by split and name."""
    graded = {}
    for file in sorted(home.rglob("*IDRiD_[0-9][0-9][0-9].jpg")):
        split = _idrid_split(file)
        if 1 <= int(file.stem[-3:]) <= IDRID_GRADED[split]:
            # The first: `C. Localization` has the same photographs again.
            graded.setdefault(f"{split}_{file.stem[-9:]}", file)
    return graded


def _find_outlined(home: Path) -> dict[Path, dict[str, Path]]:
    """IDRiD's photographs with masks, as far as they are there, and by its end the file of each."""
    files_of = {}
    for file in sorted(home.rglob("IDRiD_[0-9][0-9]*.*")):
        if file.suffix.lower() in PHOTOGRAPH_SUFFIXES:
            files_of.setdefault(file.stem, []).append(file)
    outlined = {}
    for name in IDRID_WITH_MASKS:
        photographs = [file for file in files_of.get(name, []) if file.suffix == ".jpg"]
        masks = {}
        for end in IDRID_MASKS:
            if copies := files_of.get(f"{name}_{end}"):
                masks[end] = _one_of(copies)
        if photographs and masks:
            outlined[_one_of(photographs)] = masks
    if not outlined:
        raise FileNotFoundError(
            f"no lesion masks in {home}: put `A. Segmentation` of IDRiD there, or lesions=False"
        )
    return outlined


def _one_of(copies: list[Path]) -> Path:
    """The first of files with the same content; ValueError where they differ."""
    if len(copies) > 1 and len(set(files.content_hashes(copies[0].parent, copies).values())) > 1:
        raise ValueError(
            f"{copies[0]} and {copies[1]} have the name of one file of IDRiD, and differ: take "
            "away what is not IDRiD's"
        )
    return copies[0]


def _write_idrid(
    tables: list[Path],
    graded: dict[str, Path],
    outlined: dict[Path, dict[str, Path]],
    raw: Path,
) -> None:
    """Write the label table of IDRiD's photographs, and the masks of those that are held out."""
    levels = {}
    for table in tables:
        labels = files.read_table(table, ("image name", "retinopathy grade"))
        for name, level in labels[["image name", "retinopathy grade"]].to_numpy():
            levels[f"{_idrid_split(table)}_{name}"] = level
    rows = []
    for image, file in graded.items():
        row = {"image": image, "level": levels.get(image, "")}
        rows.append(row | {"split": image.partition("_")[0], "file": file})
    if outlined:
        rows = _hold_out(rows, outlined)
        (raw / "masks").mkdir()
        for photograph, masks in outlined.items():
            _write_masks(photograph, masks, raw / "masks" / f"{HELD_OUT}_{photograph.stem}.png")
    pd.DataFrame(rows).to_csv(raw / "labels.csv", index=False)


def _hold_out(rows: list[dict], outlined: Iterable[Path]) -> list[dict]:
    """The rows and those of the photographs with masks, whose twins leave the training split."""
    thumbnails = np.array([_thumbnail(row["file"]) for row in rows])
    held_out = []
    leaving = set(SAME_EYE)
    for photograph in outlined:
        difference = np.abs(thumbnails - _thumbnail(photograph)).mean((1, 2))
        twins = [rows[i] for i in np.flatnonzero(difference < _SAME_PHOTOGRAPH)]
        leaving |= {row["image"] for row in twins if row["split"] == "train"}
        levels = {row["level"] for row in twins}
        row = {"image": f"{HELD_OUT}_{photograph.stem}", "split": HELD_OUT, "file": photograph}
        row["level"] = levels.pop() if len(levels) == 1 else -1
        row["twins"] = " ".join(twin["image"] for twin in twins)
        held_out.append(row)
    return [row for row in rows if row["image"] not in leaving] + held_out


def _write_masks(photograph: Path, masks_of: dict[str, Path], target: Path) -> None:
    """Write the mask file of a photograph of IDRiD."""
    width, height = _read(photograph, lambda image: image.size)
    masks = {retina.OPTIC_DISC: np.zeros((height, width), bool)}
    for end, file in masks_of.items():
        mask = _read(file, lambda image: np.asarray(image.convert("L")) > 0)
        if mask.shape != (height, width):
            raise ValueError(
                f"{file} is {mask.shape[::-1]} pixels, its photograph {width, height}: take both "
                "from one copy of IDRiD"
            )
        masks[IDRID_MASKS[end]] = mask
    Image.fromarray(retina.pack_masks(masks)).save(target, compress_level=1)


def _idrid_account(raw: Path, graded: int) -> str:
    """How much of IDRiD is in its collection, of so many graded photographs, in a line."""
    table = files.read_table(raw / "labels.csv", ("image", "split"))
    here = f"{graded} of its {sum(IDRID_GRADED.values())} graded photographs"
    if "twins" not in table:
        return f"IDRiD: {here} are here"
    held_out = (table["split"] == HELD_OUT).sum()
    left = graded - (len(table) - held_out)
    stayed = table["twins"].str.contains("test_").sum()
    return (
        f"IDRiD: {here} and {held_out} of its {len(IDRID_WITH_MASKS)} with masks are here; {left} "
        "graded ones of training show an eye that is scored and are left out, "
        f"{stayed} of testing are among those with masks too and stay"
    )


def utem(path: str = "") -> Path:
    """Make UTeM a collection: left and right eyes of 300 patients, ten classes as five ICDR grades.

    S. S. Rahim, Retinal Fundus Image Dataset for Diabetic Retinopathy Detection, 2025. The
    photographs stay where they are; the collection is made anew where one has changed. UTeM
    publishes no split: an eighth of the patients is drawn for testing and a tenth of the others for
    validation, each with both eyes, stratified by the worse eye. Patients of whom a photograph is
    filed under another name again are all in training. One printed line says how much there is.

    Args:
        path: Folder of UTeM as published, <class>/PatientNNN_L.jpg or PatientNNN_R.jpg at any
            depth; empty for utem/ in the data sets' folder.

    Raises:
        FileNotFoundError: With the steps to get UTeM.
        ValueError: For a photograph in no folder of a class, with another name, or that cannot be
            read; for too few patients.
    """
    home = Path(path).expanduser().absolute() if path else paths.dataset("utem")
    found = files.walk(home)[0] if home.is_dir() else []
    photographs = []
    for file in found:
        if file.suffix.lower() in PHOTOGRAPH_SUFFIXES and not file.name.startswith("."):
            photographs.append(file)
    if not photographs:
        raise FileNotFoundError(
            f"no photograph of UTeM in {home}. To get them (S. S. Rahim 2025, free for academic "
            "use, with attribution):\n"
            "1. download https://github.com/SRahimDR/DR-image-dataset (Code, Download ZIP)\n"
            f"2. unpack it into {paths.RAW / 'utem'}, or into utem/ where COMPANION_DATASETS "
            "points; its folder `DR and maculopathy 10 classes` stays as it is\n"
            "3. run this notebook again"
        )
    request = _contents(home, photographs) | _UTEM_DRAW
    # Not raw/utem, where the photographs may lie.
    raw = _make(paths.RAW / "collections" / "utem", request, partial(_write_utem, home, request))
    table = files.read_table(raw / "labels.csv", ("patient",))
    print(
        f"UTeM: {len(table)} of its {UTEM_PHOTOGRAPHS} photographs are here, of "
        f"{table['patient'].nunique()} patients"
    )
    return raw


def _write_utem(home: Path, request: dict, raw: Path) -> None:
    """Write the label table of UTeM's photographs, with a split."""
    rows = []
    for name, digest in request["files"].items():
        file = home / name
        patient, eye = eye_of(file.name)
        if not re.fullmatch(r"patient\d+", patient, re.IGNORECASE):
            raise ValueError(
                f"{file} is not called PatientNNN_L or PatientNNN_R, as UTeM's photographs are: "
                "rename it, or take it away"
            )
        patient = f"Patient{int(patient[7:]):03d}"
        _read(file, lambda photograph: photograph.size)
        row = {"image": f"{patient}_{eye[0].upper()}", "grade": _utem_grade(home, file)}
        rows.append(row | {"patient": patient, "eye": eye, "file": file, "sha256": digest})
    table = pd.DataFrame(rows).drop_duplicates(["image", "grade", "sha256"])  # copies of a file
    # What several patients have is left to `reject_duplicates`, which prefers the test split.
    shared = table["patient"][table["sha256"].duplicated(keep=False)]
    table["split"] = ""
    alone = table[~table["patient"].isin(shared)]
    drawn = draw_split(alone, **_UTEM_DRAW)
    table["split"] = drawn.reindex(table.index, fill_value="train")
    table = table.rename(columns={"grade": "level"}).drop(columns="sha256")
    table.to_csv(raw / "labels.csv", index=False)


def _utem_grade(home: Path, file: Path) -> int:
    """The ICDR grade of the class in whose folder a photograph of UTeM lies."""
    for folder in file.parents:
        if folder == home.parent:
            break
        name = re.sub(r"[\W\d_]+", " ", folder.name).strip().lower()
        if name in UTEM_GRADES:
            return UTEM_GRADES[name]
    raise ValueError(
        f"{file} is in no folder of a class of UTeM: they are called `1 - No DR`, `2 - Mild DR "
        "without maculopathy` to `10 - ADED`. Name it as published, or take it away"
    )


def _contents(home: Path, used: list[Path]) -> dict:
    """What a collection of files that stay in the folder `home` is known by: their content."""
    hashes = files.content_hashes(home, used)
    return {
        "home": str(home),
        "files": {str(path.relative_to(home)): digest for path, digest in hashes.items()},
    }


def _read(path: Path, what: Callable[[Image.Image], Any]) -> Any:
    """What a function makes of an image of a published data set."""
    try:
        with Image.open(path, formats=["JPEG", "PNG", "TIFF"]) as image:
            return what(image)
    except Exception as error:  # Pillow raises any kind for damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} cannot be read ({error}): fetch it anew") from error


def _thumbnail(path: Path) -> np.ndarray:
    """The photograph in 64 x 42 grey pixels, each the mean of what it covers; float32 (42, 64)."""

    def reduce(file: Image.Image) -> np.ndarray:
        width, height = file.size
        file.draft("RGB", (64, 42))
        by = round(width / file.width)  # the last decoded pixel may stand for less
        box = (0, 0, width / by, height / by)
        return np.asarray(file.convert("L").resize((64, 42), Image.Resampling.BOX, box), np.float32)

    return _read(path, reduce)


def _make(raw: Path, request: dict, write: Callable[[Path], None]) -> Path:
    """The collection `raw`, as `write` makes it in the new folder that it is handed.

    It is used again if the same request made it and each of its files is as it was written. It gets
    its name when it is whole. What was there before is kept aside, unless it is as it was made.
    """
    request = json.loads(json.dumps(request))  # as it will be read again
    if _made(raw).get("request") == request:
        return raw
    with paths.alone(raw, "writing"):
        made = _made(raw)  # another run may have been faster
        if made.get("request") == request:
            return raw
        beside = raw.with_name(f"{raw.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        about = {"request": request, "files": _checksums(beside)}
        (beside / _MADE).write_text(json.dumps(about))
        if made and made["files"].keys() == _checksums(raw).keys():
            shutil.rmtree(raw)
        elif raw.exists():
            kept = paths.aside(raw)
            print(f"{raw.name} was not as it had been written here; it is kept as {kept.name}")
        os.replace(beside, raw)
    return raw


def _made(raw: Path) -> dict:
    """What is recorded of a collection that was written here; empty if a file is not as it was."""
    try:
        made = json.loads((raw / _MADE).read_text())
        whole = made["request"] and made["files"].items() <= _checksums(raw).items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return made if whole else {}


def _checksums(raw: Path) -> dict[str, str]:
    """The hash of every file of a collection but that of `_MADE`, by its path there."""
    found = [path for path in files.walk(raw)[0] if path.is_file() and path != raw / _MADE]
    return {
        str(path.relative_to(raw)): digest
        for path, digest in files.content_hashes(raw, found).items()
    }


class Annotation(NamedTuple):
    """What ILSVRC says of a photograph."""

    label: int
    boxes: list[tuple[int, int, int, int]]  # x0, y0, x1, y1 in pixels; x1 and y1 are exclusive
    size: tuple[int, int] | None  # width and height of the photograph they were drawn on, if said


def imagenet_boxes(path: str | Path) -> dict[str, Annotation]:
    """Read ILSVRC's boxes, with the classes numbered by sorted wnid, as in torchvision.

    Args:
        path: Kaggle's LOC_val_solution.csv (ImageId, PredictionString of "wnid x0 y0 x1 y1",
            repeated), or a folder of the official XML files, one for each photograph. Where fewer
            than 1,000 classes occur, LOC_synset_mapping.txt beside it numbers them.

    Returns:
        Class, boxes and size by the photograph's name without ending. In ILSVRC's files the last
        pixel belongs to the box; here x1 and y1 are exclusive. The CSV says no sizes.

    Raises:
        FileNotFoundError: For a path that is not there.
        ValueError: For a row or file that cannot be read, for a box that ends before it begins, for
            two classes in one photograph, and without a numbering.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no boxes at {path}: give LOC_val_solution.csv or the folder of ILSVRC's XML files"
        )
    rows = list(_boxes_of_xml(path) if path.is_dir() else _boxes_of_csv(path))
    if not rows:
        raise ValueError(f"{path} holds no box: give LOC_val_solution.csv or the XML files' folder")
    wnids = sorted({wnid for _, _, wnid, _ in rows})
    mapping = path.parent / "LOC_synset_mapping.txt"
    if mapping.exists():
        lines = mapping.read_text(encoding="utf-8").splitlines()
        wnids = sorted(line.split()[0] for line in lines if line.strip())
    elif len(wnids) < 1000:
        raise ValueError(
            f"{path} holds {len(wnids)} classes: put LOC_synset_mapping.txt, which numbers all "
            f"1,000, into {path.parent}"
        )
    number = {wnid: i for i, wnid in enumerate(wnids)}
    annotations = {}
    for image, size, wnid, (x0, y0, x1, y1) in rows:
        if wnid not in number:
            raise ValueError(f"{image} in {path} is of class {wnid!r}, which {mapping} has not")
        if min(x0, y0) < 0 or x1 < x0 or y1 < y0:
            raise ValueError(
                f"{image} in {path} has the box {(x0, y0, x1, y1)}, which is no x0 <= x1, y0 <= y1 "
                "from 0 on"
            )
        annotation = annotations.setdefault(image, Annotation(number[wnid], [], size))
        if annotation.label != number[wnid]:
            raise ValueError(
                f"{image} in {path} has boxes of two classes, {wnids[annotation.label]} and {wnid};"
                " ILSVRC has one"
            )
        annotation.boxes.append((x0, y0, x1 + 1, y1 + 1))
    return annotations


_Row = tuple[str, tuple[int, int] | None, str, tuple[int, ...]]  # photograph, size, wnid, corners


def _boxes_of_csv(path: Path) -> Iterable[_Row]:
    """Every box, without its photograph's size."""
    table = files.read_table(path, ("imageid", "predictionstring"))
    for image, text in table[["imageid", "predictionstring"]].to_numpy():
        words = text.split()
        try:
            corners = [int(word) for i, word in enumerate(words) if i % 5]
        except ValueError:
            corners = []
        if not words or len(corners) * 5 != len(words) * 4:
            raise ValueError(f"{image} in {path}: {text!r} is not `wnid x0 y0 x1 y1`, repeated")
        for i, wnid in enumerate(words[::5]):
            yield image, None, wnid, tuple(corners[4 * i : 4 * i + 4])


def _boxes_of_xml(folder: Path) -> Iterable[_Row]:
    """Every box, with its photograph's size where the file says it."""
    for file in sorted(folder.glob("*.xml")):
        try:
            root = ElementTree.parse(file)
            sides = [root.findtext(f"size/{side}") for side in ("width", "height")]
            size = tuple(int(side) for side in sides) if all(sides) else None
            things = list(root.iter("object"))
            for thing in things:
                corners = []
                for side in ("xmin", "ymin", "xmax", "ymax"):
                    corners.append(int(thing.findtext(f"bndbox/{side}")))
                yield file.stem, size, thing.findtext("name", ""), tuple(corners)
            if not things:
                raise ValueError("it has no object")
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not an ILSVRC annotation: {error}") from error


def imagenet_photographs(
    folder: str | Path, annotations: dict[str, Annotation], limit: int = 0
) -> list[Path]:
    """ILSVRC's photographs that have boxes, once these are seen to be of photographs of their size.

    Args:
        folder: With the photographs, <name>.JPEG.
        annotations: As `imagenet_boxes` reads them.
        limit: How many to return, of all that are looked at; 0 means all.

    Raises:
        FileNotFoundError: For a folder without such a photograph.
        ValueError: Where boxes reach beyond a photograph, or were drawn on one of another size.
    """
    folder = Path(folder).expanduser()
    found = sorted(path for path in folder.glob("*.JPEG") if path.stem in annotations)
    found = [path for path in found if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no photograph <name>.JPEG that has boxes: give the folder of "
            f"ILSVRC2012_val_*.JPEG; the first of {len(annotations):,} boxes is of "
            f"{min(annotations)}"
        )
    for path in found:
        width, height = _read(path, lambda photograph: photograph.size)
        boxes, size = annotations[path.stem][1:]
        said = f"were drawn on {size}" if size and size != (width, height) else ""
        for box in boxes:
            if box[2] > width + 1 or box[3] > height + 1:  # some of ILSVRC's count from 1
                said = said or f"reach to {box[2:]}"
        if said:
            raise ValueError(
                f"boxes and photographs differ in size: {path} has {width, height} pixels, its "
                f"boxes {said}. Give the photographs as ILSVRC published them, not resized, and "
                "the boxes of the same"
            )
    return found[: limit or None]
