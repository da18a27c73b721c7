"""What a collection of photographs holds: labels, eyes, patients, duplicates, and its split."""

import hashlib
from pathlib import Path

import pandas as pd

SPLITS = ("train", "val", "test")
HELD_OUT = "lesions"  # photographs with masks that are neither learnt from nor graded
_VALIDATION_SHARE = 0.1
# A choice of eyes, and what the photographs' names may say; "" where they do not say it.
EYE_CHOICES = {"right": ("right",), "left": ("left",), "both": ("left", "right", "")}
PHOTOGRAPH_SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LABEL_TABLES = ("trainLabels.csv", "labels.csv", "testLabels.csv")
MADE_BY = "notebooks/03_dr_dataset.ipynb"


def read_labels(raw: Path, eye: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Bring the photographs of a collection and their labels together.

    Args:
        raw: Folder with trainLabels.csv or labels.csv, and testLabels.csv where Kaggle's test
            photographs are there too; photographs anywhere below, none of them in masks/. The
            tables' columns are image, the photograph's name without ending, and level, its grade.
            Further columns are read where they are there: file, the photograph's path; patient,
            else what stands before _left or _right, else the name; split, one of `SPLITS` or
            `HELD_OUT`, where the collection has its own. Only held-out photographs may have the
            unknown level -1.
        eye: A key of `EYE_CHOICES`.

    Returns:
        The photographs, sorted by name, in a table with the columns image, path, patient, eye,
        grade and split ("" where the collection has none); and why the others are left out, by
        name.

    Raises:
        FileNotFoundError: Without label table or photographs.
        ValueError: For other columns, for eyes nobody knows, for a patient in two splits.
    """
    labels = _read_tables(raw)
    table = _find_photographs(raw, labels).merge(labels, how="outer", on="image")
    table = table.sort_values("image", ignore_index=True, kind="stable")

    named = table["image"].str.extract(r"^(?P<patient>.+)_(?P<eye>left|right)$")
    if eye != "both" and named["eye"].isna().all():
        raise ValueError(
            f"No name in {raw} ends in _left or _right, so the {eye} eyes are unknown: take "
            "eye='both'."
        )
    for column in ("patient", "split"):
        table[column] = table[column].fillna("") if column in table else ""
    unnamed = table["patient"] == ""
    table["patient"] = table["patient"].mask(unnamed, named["patient"].fillna(table["image"]))
    table["eye"] = named["eye"].fillna("")
    table["grade"] = pd.to_numeric(table["level"], errors="coerce")
    table = table[table["eye"].isin([*EYE_CHOICES[eye], ""])]

    ungraded = (table["split"] == HELD_OUT) & (table["grade"] == -1)
    faults = {
        "name does not end in _left or _right": ~table["eye"].isin(EYE_CHOICES[eye]),
        "no label": table["level"].isna(),
        "no photograph": table["path"].isna(),
        "labelled, or there, more than once": table["image"].duplicated(keep=False),
        "level is not 0 to 4": ~table["grade"].isin(range(5)) & ~ungraded,
        f"split is not one of {', '.join(SPLITS)}": ~table["split"].isin(["", *SPLITS, HELD_OUT]),
    }
    rejects = {}
    for reason, faulty in faults.items():
        for image in table["image"][faulty]:
            rejects.setdefault(image, reason)
    table = table[~table["image"].isin(rejects)].astype({"grade": int})
    _check_patients(raw, table)
    return table, rejects


def _read_tables(raw: Path) -> pd.DataFrame:
    """The label tables of `raw`, one below the other, every value as it is written there."""
    found = [raw / name for name in LABEL_TABLES if (raw / name).exists()]
    if not found:
        raise FileNotFoundError(
            f"{raw} has no trainLabels.csv or labels.csv. A raw collection is train/*.jpeg and "
            f"trainLabels.csv, as Kaggle ships EyePACS; {MADE_BY} writes a phantom collection of "
            "that form."
        )
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in found]
    labels = pd.concat(tables, ignore_index=True)
    if not {"image", "level"} <= set(labels):
        raise ValueError(
            f"{found[0]} has the columns {', '.join(labels)}; it needs image and level, as "
            "Kaggle's has."
        )
    if "part" in labels:  # to go on without it would draw another split than the collection's own
        raise ValueError(
            f"{found[0]} has the column part, which is called split: rename it, or delete {raw} "
            f"where {MADE_BY} wrote it, and run that again."
        )
    return labels


def _find_photographs(raw: Path, labels: pd.DataFrame) -> pd.DataFrame:
    """Name and path of every photograph: those that the labels point to, else all below `raw`."""
    photographs = []
    if "file" in labels:
        for image, file in labels.drop_duplicates("image")[["image", "file"]].to_numpy():
            if (raw / file).exists():
                photographs.append((image, raw / file))
    else:
        for path in sorted(raw.rglob("*")):
            is_mask = path.relative_to(raw).parts[0] == "masks"
            if path.suffix.lower() in PHOTOGRAPH_SUFFIXES and not is_mask:
                photographs.append((path.stem, path))
    if not photographs:
        raise FileNotFoundError(
            f"{raw} holds no photograph ({', '.join(PHOTOGRAPH_SUFFIXES)}). Unpack Kaggle's train "
            f"archive there, or run {MADE_BY}, which writes a phantom collection."
        )
    return pd.DataFrame(photographs, columns=["image", "path"])


def _check_patients(raw: Path, table: pd.DataFrame) -> None:
    """Raise ValueError where a patient has photographs in two of the collection's own splits."""
    splits = table["split"].replace("", "train").groupby(table["patient"]).unique()
    torn = splits[splits.str.len() > 1]
    if len(torn):
        raise ValueError(
            f"{len(torn)} patients have photographs in more than one split, {torn.index[0]} in "
            f"{' and '.join(torn.iloc[0])}: give all photographs of a patient the same split in "
            f"the label table of {raw}."
        )


def reject_duplicates(manifest: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Keep at most one of the photographs with the same content.

    One of the test split, or held out, stays before others, so that nothing of it is learnt from.
    Else, where their grades agree, the first stays; where they differ nobody knows which is right,
    and none stays.

    Args:
        manifest: A table with the columns image, grade, split and sha256, the hash of the file.

    Returns:
        The rows that stay, numbered anew; and why the others do not, by name.
    """
    dropped = []
    rejects = {}
    copies = manifest[manifest["sha256"].duplicated(keep=False)]
    for _, group in copies.groupby("sha256", sort=False):
        unseen = group[group["split"].isin(["test", HELD_OUT])]
        if len(unseen):
            leaving = group.drop(unseen.index[0])
        elif group["grade"].nunique() == 1:
            leaving = group.iloc[1:]
        else:
            leaving = group
        dropped += leaving.index.tolist()
        for row in leaving.itertuples():
            others = group.drop(row.Index).itertuples()
            twins = ", ".join(f"{other.image} of grade {other.grade}" for other in others)
            rejects[row.image] = f"duplicate of {twins}; its own grade is {row.grade}"
    return manifest.drop(dropped).reset_index(drop=True), rejects


def draw_split(table: pd.DataFrame, test_share: float, seed: int) -> pd.Series:
    """The split of every photograph: the collection's own, and drawn at random where it has none.

    `test_share` of the patients go to the test split, and a tenth of the others to validation. A
    collection with a split of its own keeps it; where it has no validation split, a tenth of its
    training patients go there. Drawn by patient, so that both eyes fall on one side, and stratified
    by the grade of the worse eye.

    Args:
        table: A table with the columns patient, grade and split ("" where there is none).
        test_share: Share of the patients, in (0, 1).
        seed: Seed of the draw.

    Returns:
        The split of each row of the table.

    Raises:
        ValueError: When a split would lack a grade.
    """
    # Imported here, as loading scikit-learn takes longer than anything that reads a manifest.
    from sklearn.model_selection import train_test_split

    split = table["split"].replace("", "train")
    has_own = (split != "train").any()
    shares = {} if has_own else {"test": test_share}
    if not (split == "val").any():
        shares["val"] = _VALIDATION_SHARE
    try:
        for name, share in shares.items():
            worse = table[split == "train"].groupby("patient")["grade"].max()
            _, drawn = train_test_split(worse, test_size=share, stratify=worse, random_state=seed)
            split = split.mask((split == "train") & table["patient"].isin(drawn.index), name)
        grades = table["grade"].groupby(split).nunique()
        complete = has_own or (grades == table["grade"].nunique()).all()
    except ValueError:  # too few patients to stratify
        complete = False
    if not complete:
        counts = table.groupby("patient")["grade"].max().value_counts().sort_index()
        patients = ", ".join(f"{count} of grade {grade}" for grade, count in counts.items())
        raise ValueError(
            f"{patients} are too few patients for training, validation and test splits that each "
            f"hold every grade at test_share={test_share}. Add photographs of the rarest grade, or "
            "raise test_share."
        )
    return split


def fingerprint(raw: Path) -> str:
    """Hash of the label tables and of every photograph's name and size.

    Args:
        raw: A collection, as `read_labels` takes it.

    Returns:
        The SHA-256 in hexadecimal: another collection, another fingerprint.
    """
    digest = hashlib.sha256()
    for path in sorted(raw.rglob("*")):
        is_table = path.name in LABEL_TABLES
        if is_table or path.suffix.lower() in PHOTOGRAPH_SUFFIXES:
            digest.update(f"{path.relative_to(raw)} {path.stat().st_size}\n".encode())
        if is_table:
            digest.update(path.read_bytes())
    return digest.hexdigest()
