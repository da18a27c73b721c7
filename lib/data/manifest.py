"""What a collection of photographs holds: labels, eyes, patients, duplicates, and its split."""

import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path, PureWindowsPath

import pandas as pd

from lib import paths
from lib.data import files

SPLITS = ("train", "val", "test")
HELD_OUT = "lesions"  # photographs with masks that are neither learnt from nor graded
_VALIDATION_SHARE = 0.1
# A choice of eyes, and what is known of the photographs' eyes; "" where nothing is.
EYE_CHOICES = {"right": ("right",), "left": ("left",), "both": ("left", "right", "")}
PHOTOGRAPH_SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Endings of photographs that are not read: to be listed, where other files are passed over.
_OTHER_SUFFIXES = tuple(
    ".avif .bmp .cr2 .dcm .dng .eps .gif .heic .heif .j2k .jfif .jp2 .jxl .nef .pgm .ppm .ps .psd "
    ".raw .svg .tga".split()
)
LABEL_TABLES = ("trainLabels.csv", "labels.csv", "testLabels.csv")
_FURTHER = ["level", "patient", "eye", "split", "file"]  # what a label table may say of an image
LONGEST_NAME = 240  # bytes: files are named after a photograph, with an ending
MADE_BY = "notebooks/03_dr_dataset.ipynb"

OFF_SCALE = "level is not 0 to 4: "  # begins the reason for which such a level is rejected
_LEVEL = r"^(-1|[0-4])(?:[.,]0*)?$"  # 2, and what spreadsheets make of it
_NO_PATIENT = "neither its name nor a column patient says whose eye it shows"
_EYES = {"left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right"}
_GAP = r"[\s_.–—-]"
_EYE = rf"(?P<eye>{'|'.join(_EYES)})({_GAP}*eye)?"
_EYE_BEFORE = re.compile(rf"{_EYE}{_GAP}+(?P<patient>.+)", re.IGNORECASE)
_EYE_AFTER = re.compile(rf"(?P<patient>.+?){_GAP}+{_EYE}", re.IGNORECASE)


def eye_of(name: str) -> tuple[str, str]:
    """The patient and the eye that a photograph's name says.

    The eye is left, right, OD, OS, L or R in any case, before or after the patient, and apart from
    it by `_`, `-`, `.` or a blank: 10_left, p3-OD, "L 12".

    Returns:
        The patient and "left" or "right"; both "" where the name says no eye, or two.
    """
    name = _stem(name)
    before, after = _EYE_BEFORE.fullmatch(name), _EYE_AFTER.fullmatch(name)
    if bool(before) == bool(after):
        return "", ""
    found = before or after
    return found["patient"], _EYES[found["eye"].lower()]


def name_fault(name: str) -> str:
    """Why a photograph cannot be called so, for files are named after it; "" where it can."""
    if name in ("", ".", ".."):
        return "no name of a photograph"
    if PureWindowsPath(name).name != name:  # it knows both kinds of slash, and drives
        return "not a plain name: it holds a folder; a column file may say where a photograph is"
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", name):
        return "its name holds a control character, or bytes that are not UTF-8: rename it"
    if (length := len(name.encode())) > LONGEST_NAME:
        return f"its name has {length} bytes, {LONGEST_NAME} at most: rename it"
    return ""


def _stem(name: str) -> str:
    """The name without the ending of a photograph's file."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in PHOTOGRAPH_SUFFIXES else name


def _plain(name: str) -> str:
    """The name in one spelling: macOS writes the accents of file names apart."""
    return unicodedata.normalize("NFC", name).strip()


def read_labels(raw: Path, eye: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Bring the photographs of a collection and their labels together.

    Args:
        raw: Folder with trainLabels.csv or labels.csv, and testLabels.csv where Kaggle's test
            photographs are there too; photographs anywhere below, none of them in masks/. The
            tables' columns are image, the photograph's name, and level, its grade. Further columns
            are read where they are there, an empty value as none: file, the photograph's path;
            eye and patient, else what the name says (`eye_of`); split, one of `SPLITS` or
            `HELD_OUT`, where the collection has its own. Only held-out photographs may have the
            unknown level -1.
        eye: A key of `EYE_CHOICES`.

    Returns:
        The photographs, sorted by name, in a table with the columns image, path, patient, eye,
        grade and split ("" where the collection has none); and why the others are left out, by
        name. In a collection with its own test split a photograph of whose patient nothing is
        known is its own patient.

    Raises:
        FileNotFoundError: Without label table or photographs.
        ValueError: For a table that cannot be read, for eyes or patients nobody knows, for a
            patient in two splits.
    """
    labels = _read_tables(raw)
    photographs, unread = _find_photographs(raw, labels)
    stems = {image for image, _ in photographs}
    labels["image"] = [name if name in stems else _stem(name) for name in labels["image"]]
    faulty = {name: name_fault(name) for name in sorted(stems.union(labels["image"]))}
    faulty = {name: fault for name, fault in faulty.items() if fault}
    unread |= {paths.printable(name) or "(empty)": fault for name, fault in faulty.items()}
    labels = labels[[name not in faulty for name in labels["image"]]]
    photographs = [row for row in photographs if row[0] not in faulty]

    photographs = pd.DataFrame(photographs, columns=["image", "path"])
    table = photographs.merge(labels, how="outer", on="image", indicator="found")
    table = table.sort_values("image", ignore_index=True, kind="stable")
    table[_FURTHER] = table[_FURTHER].fillna("")
    named = pd.DataFrame(map(eye_of, table["image"]), columns=["patient", "eye"])
    said = table["eye"].str.lower().map(_EYES).fillna("")
    is_eye = (table["eye"] == "") | (said != "")
    agree = (said == "") | (named["eye"] == "") | (said == named["eye"])
    table["eye"] = said.mask(said == "", named["eye"])
    table["patient"] = _name_patients(named["patient"], table["patient"])
    if has_own_split(table):
        table["patient"] = table["patient"].mask(table["patient"] == "", table["image"])
    table["grade"] = pd.to_numeric(table["level"].str.extract(_LEVEL)[0])
    if eye != "both" and len(table) and (table["eye"] == "").all():
        raise ValueError(
            f"Neither the names in {raw}, such as {table['image'][0]}, nor a column eye say which "
            f"eye a photograph shows, so the {eye} ones are unknown: add the columns eye (left or "
            "right) and patient to the label table. Names that say so end, or begin, with left, "
            "right, OD, OS, L or R, as 10_left."
        )

    ungraded = (table["split"] == HELD_OUT) & (table["grade"] == -1)
    splits = ", ".join(SPLITS)
    faults = {
        "no label": table["found"] == "left_only",
        "no photograph": table["found"] == "right_only",
        "labelled, or there, more than once": table["image"].duplicated(keep=False),
        f"{OFF_SCALE}{{level!r}}": ~table["grade"].isin(range(5)) & ~ungraded,
        f"split is not one of {splits}: {{split!r}}": ~table["split"].isin(["", *SPLITS, HELD_OUT]),
        "eye is neither left nor right": ~is_eye,
        "its name says another eye than the column eye, {eye}": ~agree,
        "neither its name nor a column eye says which eye it shows": ~table["eye"].isin(
            EYE_CHOICES[eye]
        ),
    }
    of_eye = table["eye"].isin([*EYE_CHOICES[eye], ""]) | ~agree
    rejects = {}
    for reason, faulty in faults.items():
        for row in table[faulty & of_eye].to_dict("records"):
            rejects.setdefault(row["image"], reason.format_map(row))
    table = table[of_eye & ~table["image"].isin(rejects)]

    unknown = table["patient"] == ""
    if len(table) and unknown.all():
        raise ValueError(
            f"Neither the names in {raw}, such as {table['image'].iloc[0]}, nor a column patient "
            "say whose eyes the photographs show, so those of one patient could come into two "
            "splits: add a column patient, and eye where it is known, to the label table. Where "
            "each photograph is known to be of another patient, repeat the column image there."
        )
    rejects |= dict.fromkeys(table["image"][unknown], _NO_PATIENT)
    table = table[~unknown].astype({"grade": int})
    _check_patients(raw, table)
    return table[["image", "path", "patient", "eye", "grade", "split"]], unread | rejects


def _read_tables(raw: Path) -> pd.DataFrame:
    """The label tables of `raw`, one below the other, every value as it is written there."""
    found = [raw / name for name in LABEL_TABLES if (raw / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{raw} has no trainLabels.csv or labels.csv. A raw collection is train/*.jpeg and "
            f"trainLabels.csv, as Kaggle ships EyePACS; {MADE_BY} writes a phantom collection of "
            "that form."
        )
    tables = []
    for path in found:
        table = files.read_table(path, ("image", "level"))
        if "part" in table:  # to go on without it would draw another split than the collection's
            raise ValueError(
                f"{path} has the column part, which is called split: rename it, or delete {raw} "
                f"where {MADE_BY} wrote it, and run that again."
            )
        tables.append(table.reindex(columns=["image", *_FURTHER], fill_value=""))
    labels = pd.concat(tables, ignore_index=True)
    labels["image"] = [_plain(name) for name in labels["image"]]
    labels["split"] = labels["split"].str.lower()
    return labels


def _find_photographs(
    raw: Path, labels: pd.DataFrame
) -> tuple[list[tuple[str, Path]], dict[str, str]]:
    """Name and path of every photograph, and why what else looks like one is none.

    They are those that the labels point to; where some point nowhere, also all others below `raw`.
    """
    photographs = []
    for image, file in labels.drop_duplicates("image")[["image", "file"]].to_numpy():
        if file and os.path.isfile(raw / file):
            photographs.append((image, raw / file))
    unread = {}
    if (labels["file"] == "").any():
        pointed = {path.resolve() for _, path in photographs}
        found, closed = files.walk(raw)
        others = []
        for path in found:
            if path.parts[len(raw.parts)] == "masks" or (pointed and path.resolve() in pointed):
                continue
            if path.suffix.lower() in PHOTOGRAPH_SUFFIXES and path.is_file():
                photographs.append((_plain(path.stem), path))
            else:
                others.append(path)
        missing = {*labels["image"]} - {image for image, _ in photographs}
        reasons = dict.fromkeys(closed, "this folder may not be read: change its permissions")
        for path in others:
            suffix = path.suffix.lower()
            if suffix in PHOTOGRAPH_SUFFIXES:
                reasons[path] = "no regular file, or a link to none"
            elif suffix in _OTHER_SUFFIXES or _plain(path.stem) in missing:
                endings = ", ".join(PHOTOGRAPH_SUFFIXES)
                reasons[path] = (
                    f"its ending is {suffix or 'missing'}, not one of {endings}: save it anew"
                )
        unread = {paths.printable(str(path.relative_to(raw))): why for path, why in reasons.items()}
    if not photographs:
        there = "".join(f" {name}: {why}." for name, why in [*unread.items()][:1])
        raise FileNotFoundError(
            f"{raw} holds no photograph ({', '.join(PHOTOGRAPH_SUFFIXES)}).{there} Unpack Kaggle's "
            f"train archive there, or run {MADE_BY}, which writes a phantom collection."
        )
    return photographs, unread


def _name_patients(named: pd.Series, said: pd.Series) -> list[str]:
    """Whose eye each photograph shows: what the table says, else its name; "" for unknown.

    The table may say it of one eye of a patient alone. One patient may be spelled in several ways;
    the first is taken.
    """
    spelled = {}
    also_said = {}  # what the table says of the photographs whose names say the same patient
    for name, patient in zip(named, said, strict=True):
        if patient:
            spelled.setdefault(_spelling(patient), patient)
            also_said.setdefault(_spelling(name), set()).add(_spelling(patient))
    patients = []
    for name, patient in zip(named, said, strict=True):
        known = {_spelling(patient)}
        if name and not patient:
            spelled.setdefault(_spelling(name), name)
            known = also_said.get(_spelling(name), {_spelling(name)})
        patients.append(spelled.get(next(iter(known)), "") if len(known) == 1 else "")
    return patients


def _spelling(patient: str) -> str:
    """What the spellings of one patient have in common."""
    return re.sub(f"{_GAP}+", "_", unicodedata.normalize("NFKC", patient).casefold())


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
    """Keep one at most of the photographs with the same content, or one for each way to score.

    One of the test split and one that is held out stay before others, so that nothing of them is
    learnt from. Else, where their grades agree, the first stays; where they differ nobody knows
    which is right, and none stays.

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
            leaving = group.drop(unseen.drop_duplicates("split").index)
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


def has_own_split(table: pd.DataFrame) -> bool:
    """Whether a collection says itself what is not learnt from.

    Args:
        table: A table with the column split, "" where there is none.
    """
    return not table["split"].isin(["", "train"]).all()


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
    has_own = has_own_split(table)
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
    """Hash of what `read_labels` would read: labels, and every photograph and mask by content.

    Args:
        raw: A collection, as `read_labels` takes it.

    Returns:
        The SHA-256 in hexadecimal: another collection, another fingerprint. Where the files lie
        does not matter.

    Raises:
        FileNotFoundError: As `read_labels`.
        ValueError: For a table that cannot be read.
        OSError: For a file that cannot be read, for a reason that may pass.
    """
    labels = _read_tables(raw)
    photographs, unread = _find_photographs(raw, labels)
    masks = [(f"masks/{path.name}", path) for path in sorted((raw / "masks").glob("*.png"))]
    named = photographs + masks
    hashes = files.content_hashes(raw, [path for _, path in named])
    contents = [(name, hashes[path]) for name, path in named]
    rows = labels.drop(columns="file").to_numpy().tolist()
    content = json.dumps([sorted(rows), sorted(contents), sorted(unread.items())])
    return hashlib.sha256(content.encode()).hexdigest()
