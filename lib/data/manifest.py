"""What a raw collection of fundus photographs holds: labels, eyes, patients, duplicates, and how it is split."""

import hashlib

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

PARTS = ("train", "val", "test")
HELD_OUT = "lesions"  # a part for photographs with masks that are neither learnt from nor graded
EYES = {"right": ["right"], "left": ["left"], "both": ["left", "right", ""]}
SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TABLES = ("trainLabels.csv", "labels.csv", "testLabels.csv")
VALIDATION_SHARE = 0.1
MAKER = "notebooks/03_dr_dataset.ipynb"


def read_labels(raw, eye):
    """The photographs of `eye` with their labels: (table of image, path, patient, eye, grade, part; rejects).

    `raw` holds trainLabels.csv or labels.csv, and testLabels.csv where Kaggle's test photographs are there too, with
    the columns image and level, and photographs of these names anywhere below. Further columns where known: file, the
    photograph's path; patient, else what stands before _left or _right, else the name; part, one of `PARTS` or
    `HELD_OUT`, where the collection has a split of its own. Only held-out photographs may have the unknown level -1.
    Raises FileNotFoundError without labels or photographs, ValueError for other columns, for eyes nobody knows and for
    a patient in two parts.
    """
    tables = [raw / name for name in TABLES if (raw / name).exists()]
    if not tables:
        raise FileNotFoundError(
            f"{raw} has no trainLabels.csv or labels.csv. A raw collection is train/*.jpeg and trainLabels.csv, as "
            f"Kaggle ships EyePACS; {MAKER} writes a phantom collection of that form."
        )
    labels = pd.concat(
        [pd.read_csv(path, dtype=str, keep_default_na=False) for path in tables], ignore_index=True
    )
    if not {"image", "level"} <= set(labels):
        raise ValueError(
            f"{tables[0]} has the columns {', '.join(labels)}; it needs image and level, as Kaggle's has."
        )
    found = [
        path
        for path in raw.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.relative_to(raw).parts[0] != "masks"
    ]
    if "file" in labels:
        named = labels[["image", "file"]].drop_duplicates("image")
        found = [raw / file for file in named["file"] if (raw / file).exists()]
        names = named["image"][[(raw / file).exists() for file in named["file"]]].tolist()
    else:
        found.sort()
        names = [path.stem for path in found]
    if not found:
        raise FileNotFoundError(
            f"{raw} holds no photograph ({', '.join(SUFFIXES)}). Unpack Kaggle's train archive there, or run {MAKER}, "
            "which writes a phantom collection."
        )
    photographs = pd.DataFrame({"image": names, "path": found})
    table = photographs.merge(labels, how="outer", on="image").sort_values(
        "image", ignore_index=True, kind="stable"
    )
    sides = table["image"].str.extract(r"^(.+)_(left|right)$")
    if eye != "both" and sides[1].isna().all():
        raise ValueError(
            f"No name in {raw} ends in _left or _right, so the {eye} eyes are unknown: take eye='both'."
        )
    table["eye"] = sides[1].fillna("")
    table = (
        pd.DataFrame({"patient": "", "part": ""}, table.index)
        .assign(**table)
        .fillna({"patient": "", "part": ""})
    )
    table["patient"] = table["patient"].where(
        table["patient"] != "", sides[0].fillna(table["image"])
    )
    table["grade"] = pd.to_numeric(table["level"], errors="coerce")
    table = table[table["eye"].isin([*EYES[eye], ""])]
    unknown = (table["part"] == HELD_OUT) & (table["grade"] == -1)
    reasons = {
        "name does not end in _left or _right": (table["eye"] == "") & (eye != "both"),
        "no label": table["level"].isna(),
        "no photograph": table["path"].isna(),
        "labelled, or there, more than once": table["image"].duplicated(keep=False),
        "level is not 0 to 4": ~table["grade"].isin(range(5)) & ~unknown,
        f"part is not one of {', '.join(PARTS)}": ~table["part"].isin(["", *PARTS, HELD_OUT]),
    }
    reason = np.select(list(reasons.values()), list(reasons), "")
    rejects = {image: why for image, why in zip(table["image"], reason, strict=True) if why}
    table = table[reason == ""].astype({"grade": int})
    sides = table["part"].replace("", "train").groupby(table["patient"]).unique()
    if len(torn := sides[sides.str.len() > 1]):
        raise ValueError(
            f"{len(torn)} patients have photographs in more than one part, {torn.index[0]} in "
            f"{' and '.join(torn.iloc[0])}: give all photographs of a patient the same part in {tables[0]}."
        )
    return table, rejects


def reject_duplicates(manifest):
    """Of photographs with the same content (sha256) at most one stays: (manifest; rejects with the reason).

    One of the test part stays before others, so that nothing of it is learnt from. Else, where their grades
    agree, the first by name stays; where they differ nobody knows which is right, and none stays.
    """
    kept, rejects = [], {}
    for _, group in manifest.groupby("sha256", sort=False):
        unseen = group[group["part"].isin(["test", HELD_OUT])]
        stays = (unseen if len(unseen) else group).index[:1]
        if len(group) > 1 and group["grade"].nunique() > 1 and not len(unseen):
            stays = stays[:0]
        kept.extend(stays)
        for row in group.drop(stays).itertuples():
            twins = [f"{r.image} of grade {r.grade}" for r in group.drop(row.Index).itertuples()]
            rejects[row.image] = f"duplicate of {', '.join(twins)}; its own grade is {row.grade}"
    return manifest.loc[sorted(kept)].reset_index(drop=True), rejects


def split(table, test_share, seed):
    """The part of every row: its own where the collection has a split, a tenth of its patients to train on for
    validation where it has none for that; else `test_share` of the patients, then a tenth of the others for validation.

    Drawn by patient, so that both eyes fall on one side, and stratified by the grade of the worse eye.
    Raises ValueError when a part would lack a grade.
    """
    part = table["part"].where(table["part"] != "", "train")
    own = (part != "train").any()
    drawn = (
        [("val", VALIDATION_SHARE)] if own else [("test", test_share), ("val", VALIDATION_SHARE)]
    )
    try:
        for name, share in [] if "val" in part.tolist() else drawn:
            worst = table[part == "train"].groupby("patient")["grade"].max()
            taken = train_test_split(worst, test_size=share, stratify=worst, random_state=seed)[1]
            part = part.mask((part == "train") & table["patient"].isin(taken.index), name)
        whole = own or all(
            set(table["grade"][part == name]) == set(table["grade"]) for name in PARTS
        )
    except ValueError:
        whole = False
    if not whole:
        counts = table.groupby("patient")["grade"].max().value_counts().sort_index().items()
        raise ValueError(
            f"{', '.join(f'{n} of grade {grade}' for grade, n in counts)} are too few patients for training, "
            f"validation and test parts that each hold every grade at test_share={test_share}. Add photographs of the "
            "rarest grade, or raise test_share."
        )
    return part


def fingerprint(raw):
    """Hash of the label tables and of every file's name and size: another collection, another fingerprint."""
    digest = hashlib.sha256()
    for path in sorted(
        path for path in raw.rglob("*") if path.name in TABLES or path.suffix.lower() in SUFFIXES
    ):
        digest.update(f"{path.relative_to(raw)} {path.stat().st_size}\n".encode())
        if path.name in TABLES:
            digest.update(path.read_bytes())
    return digest.hexdigest()
