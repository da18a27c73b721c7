"""What a collection's tables say of its photographs, which are empty files here."""

import errno
import os
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data import manifest


def collection(folder, rows, columns="image level", table="labels.csv", photographs=None):
    """A collection of these rows and of a file for each, or for each of `photographs`."""
    (folder / "photographs").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=columns.split()).to_csv(folder / table, index=False)
    for name in photographs if photographs is not None else [f"{row[0]}.jpeg" for row in rows]:
        (folder / "photographs" / name).touch()
    return folder


def known(table, *columns):
    """{image: the values of those columns}."""
    rows = table[["image", *columns]].itertuples(index=False)
    return {image: tuple(values) for image, *values in rows}


def hashed(*rows):
    return pd.DataFrame(rows, columns=["image", "grade", "split", "sha256"])


def patients(grades, split="", eyes=("left", "right"), first=0):
    """What `draw_split` takes: both eyes of each patient, the left one never the worse."""
    rows = [
        (f"{patient}_{eye}", str(patient), eye, grade if eye == "right" else 0, split)
        for patient, grade in enumerate(grades, first)
        for eye in eyes
    ]
    return pd.DataFrame(rows, columns=["image", "patient", "eye", "grade", "split"])


# Reading


def test_kaggles_names_say_patient_and_eye(tmp_path):
    rows = [("10_left", 0), ("10_right", 3), ("007_right", 1)]
    raw = collection(tmp_path, rows, table="trainLabels.csv")
    both, rejects = manifest.read_labels(raw, "both")
    assert known(both, "patient", "eye", "grade", "split") == {
        "10_left": ("10", "left", 0, ""),
        "10_right": ("10", "right", 3, ""),
        "007_right": ("007", "right", 1, ""),
    }
    assert both["image"].tolist() == ["007_right", "10_left", "10_right"] and not rejects
    assert both["path"].tolist() == [raw / "photographs" / f"{name}.jpeg" for name in both["image"]]
    assert known(manifest.read_labels(raw, "left")[0], "grade") == {"10_left": (0,)}
    assert set(known(manifest.read_labels(raw, "right")[0])) == {"10_right", "007_right"}


def test_the_tables_of_both_of_kaggles_splits_are_one(tmp_path):
    collection(tmp_path, [("1_right", 0), ("2_right", 2)], table="trainLabels.csv")
    rows = [("3_right", 4, "Private"), ("4_right", 1, "Public")]
    collection(tmp_path, rows, "image level Usage", "testLabels.csv")
    table, rejects = manifest.read_labels(tmp_path, "right")
    grades = {"1_right": (0,), "2_right": (2,), "3_right": (4,), "4_right": (1,)}
    assert known(table, "grade") == grades and not rejects and set(table["split"]) == {""}
    (tmp_path / "trainLabels.csv").unlink()
    rejects = manifest.read_labels(tmp_path, "right")[1]
    assert rejects == {"1_right": "no label", "2_right": "no label"}


def test_further_columns_say_patient_split_and_file(tmp_path):
    raw = collection(
        tmp_path / "raw",
        [
            ("a", 0, "anna", "train", "photographs/x.jpeg"),
            ("b", 1, "anna", "train", str(tmp_path / "elsewhere" / "IDRiD 1.JPG")),
            ("c_left", 2, "", "test", "photographs/c_left.jpeg"),
            ("d", 3, "", "", "photographs/gone.jpeg"),
            ("e", 4, "eve", "val", "photographs/e.jpeg"),
        ],
        "image level patient split file",
        photographs=["x.jpeg", "c_left.jpeg", "e.jpeg", "not in the table.jpeg"],
    )
    elsewhere = tmp_path / "elsewhere" / "IDRiD 1.JPG"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    table, rejects = manifest.read_labels(raw, "both")
    photographs = raw / "photographs"
    assert known(table, "patient", "split", "eye", "grade", "path") == {
        "a": ("anna", "train", "", 0, photographs / "x.jpeg"),
        "b": ("anna", "train", "", 1, elsewhere),
        "c_left": ("c", "test", "left", 2, photographs / "c_left.jpeg"),
        "e": ("eve", "val", "", 4, photographs / "e.jpeg"),
    }
    assert rejects == {"d": "no photograph"}


def test_a_table_without_the_column_file_finds_its_photographs_by_name(tmp_path):
    """Also where the other table has one, and where a file is not named."""
    raw = collection(tmp_path, [("1_left", 0), ("2_left", 1)], table="trainLabels.csv")
    elsewhere = tmp_path.with_name(f"{tmp_path.name}.png")
    elsewhere.touch()
    rows = [("3_left", 2, elsewhere), ("4_left", 3, ""), ("5_left", 4, "photographs/five.png")]
    collection(raw, rows, "image level file", photographs=["4_left.tif", "five.png", "six.png"])
    table, rejects = manifest.read_labels(raw, "both")
    files = dict(zip(table["image"], table["path"], strict=True))
    photographs = raw / "photographs"
    assert files == {
        "1_left": photographs / "1_left.jpeg",
        "2_left": photographs / "2_left.jpeg",
        "3_left": elsewhere,
        "4_left": photographs / "4_left.tif",
        "5_left": photographs / "five.png",
    }
    assert rejects == {"six": "no label"}


def test_masks_are_no_photographs(tmp_path):
    raw = collection(tmp_path, [("1_left", 0)])
    (raw / "masks").mkdir()
    (raw / "masks" / "1_left.png").touch()
    table, rejects = manifest.read_labels(raw, "both")
    assert known(table) == {"1_left": ()} and not rejects


@pytest.mark.parametrize(
    ("name", "patient", "eye"),
    [
        ("10_left", "10", "left"),
        ("IMG_1_OD.jpg", "IMG_1", "right"),
        ("img-1-os", "img-1", "left"),
        ("12-L", "12", "left"),
        ("p3 left", "p3", "left"),
        ("p3__RIGHT", "p3", "right"),
        ("p 3 - right eye", "p 3", "right"),
        ("Od_17", "17", "right"),
        ("l 17.png", "17", "left"),
        ("Patient093_R", "Patient093", "right"),
        ("left_eye_5", "5", "left"),
        ("x.left", "x", "left"),
        ("IDRiD_001", "", ""),
        ("left", "", ""),
        ("_left", "", ""),
        ("bright", "", ""),
        ("12OD", "", ""),
        ("12_left_2", "", ""),
        ("R_12_left", "", ""),  # it says two
    ],
)
def test_a_name_says_patient_and_eye_before_or_after(name, patient, eye):
    assert manifest.eye_of(name) == (patient, eye)


def test_however_they_are_spelled_both_eyes_are_of_one_patient(tmp_path):
    names = "P1_left P1_right p2-OD P2_os 3_L R_3 OS-4 4_right P.5_l P_5-r".split() + [
        "6 od",
        "6_OS",
    ]
    raw = collection(tmp_path, [(name, 0) for name in names])
    table, rejects = manifest.read_labels(raw, "both")
    assert not rejects and sorted(Counter(table["patient"]).values()) == [2] * 6
    assert (table.groupby("patient")["eye"].agg(sorted).str.join(" ") == "left right").all()
    right = {"P1_right", "p2-OD", "R_3", "4_right", "P_5-r", "6 od"}
    assert set(known(manifest.read_labels(raw, "right")[0])) == right


def test_eyes_and_patients_nobody_knows_are_asked_for(tmp_path):
    rows = [("IMG_1", 0), ("IMG_2", 4)]
    raw = collection(tmp_path, rows)
    for eye in ("right", "left"):
        message = rf"such as IMG_1, .* so the {eye} ones are unknown: add .* eye .* and patient"
        with pytest.raises(ValueError, match=message) as caught:
            manifest.read_labels(raw, eye)
        assert "both" not in str(caught.value)
    collection(raw, [(*row, "Right ") for row in rows], "image level eye")
    for eye in ("right", "both"):  # of one patient?
        with pytest.raises(ValueError, match=r"such as IMG_1, .*: add a column patient"):
            manifest.read_labels(raw, eye)
    rows = [("IMG_1", 0, "OD", " anna "), ("IMG_2", 4, "l", "Anna")]
    collection(raw, rows, "image level eye patient")
    table, rejects = manifest.read_labels(raw, "both")
    expected = {"IMG_1": ("right", "anna"), "IMG_2": ("left", "anna")}
    assert known(table, "eye", "patient") == expected and not rejects
    assert set(known(manifest.read_labels(raw, "left")[0])) == {"IMG_2"}
    collection(raw, [("IMG_1", 0, "train"), ("IMG_2", 4, "test")], "image level split")
    table, rejects = manifest.read_labels(raw, "both")  # nothing is drawn: each its own patient
    assert known(table, "patient") == {"IMG_1": ("IMG_1",), "IMG_2": ("IMG_2",)} and not rejects


def test_a_patient_that_the_table_names_for_one_eye_alone_is_that_of_both(tmp_path):
    rows = [
        ("1_left", "anna"), ("1_right", ""),
        ("2-OD", ""), ("2-OS", "\tbert "),
        ("3_left", ""), ("3_right", ""),
        ("4_left", "ANNA"), ("5_left", "bert"), ("5_right", "carl"),
        ("left_5", ""),  # bert's or carl's?
        ("alone", ""), ("known", "anna"),
    ]  # fmt: skip
    raw = collection(tmp_path, [(name, 0, who) for name, who in rows], "image level patient")
    table, rejects = manifest.read_labels(raw, "both")
    assert {image: who for image, (who,) in known(table, "patient").items()} == {
        "1_left": "anna", "1_right": "anna", "2-OD": "bert", "2-OS": "bert",
        "3_left": "3", "3_right": "3", "4_left": "anna", "5_left": "bert", "5_right": "carl",
        "known": "anna",
    }  # fmt: skip
    reason = "neither its name nor a column patient says whose eye it shows"
    assert rejects == {"left_5": reason, "alone": reason}


def test_an_eye_that_is_not_known_is_a_reject_where_it_matters(tmp_path):
    rows = [("1_left", 0, ""), ("1_right", 1, "OD"), ("2_left", 0, "R"), ("3_left", 0, "upper")]
    raw = collection(tmp_path, [*rows, ("portrait", 2, "")], "image level eye")
    wrong = {
        "2_left": "its name says another eye than the column eye, right",
        "3_left": "eye is neither left nor right",
    }
    unknown = {"portrait": "neither its name nor a column eye says which eye it shows"}
    table, rejects = manifest.read_labels(raw, "right")
    assert set(known(table)) == {"1_right"}
    assert rejects == unknown | {"2_left": wrong["2_left"]}
    assert manifest.read_labels(raw, "left")[1]["2_left"] == wrong["2_left"]
    table, rejects = manifest.read_labels(raw, "both")
    assert set(known(table)) == {"1_left", "1_right"}
    assert set(rejects) == {*wrong, "portrait"} and wrong.items() <= rejects.items()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_no_spelling_of_eyes_puts_a_patient_into_two_splits(tmp_path_factory, seed):
    """However the names are spelled, and wherever the column patient is filled."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(6):
        for words in (("left", "OS", "l"), ("Right", "od", "R")):
            word, gap = rng.choice(words), rng.choice(["_", "-", " ", "__", " - "])
            parts = [f"p{patient}", word][:: rng.choice([1, -1])]
            said = rng.choice(["", f" Name{patient}", f"name{patient} "])
            rows.append((gap.join(parts), patient % 2, said, patient))
    raw = collection(
        tmp_path_factory.mktemp("raw"), [row[:3] for row in rows], "image level patient"
    )
    table, rejects = manifest.read_labels(raw, "both")
    assert not rejects and len(table) == 12
    whose = {row[0]: row[3] for row in rows}
    true = table["image"].map(whose)
    assert (true.groupby(table["patient"]).nunique() == 1).all()
    assert (table["patient"].groupby(true).nunique() == 1).all()


def test_every_row_and_file_that_cannot_be_used_has_its_reason(tmp_path):
    rows = [
        ("ok", 4, ""),
        ("five", 5, ""),
        ("half", 0.5, ""),
        ("empty", "", ""),
        ("words", "severe", ""),
        ("minus", -1, "train"),
        ("tested", -1, "test"),
        ("valid", 7, "val"),
        ("drawn", -1, ""),
        ("below", -2, "lesions"),
        ("held out", -1, "lesions"),  # alone may be ungraded
        ("graded", 2, "lesions"),
        ("spare", 1, "dev"),
        ("twice", 1, ""),
        ("twice", 1, ""),
        ("gone", 1, ""),
        ("same", 1, ""),
    ]
    names = {f"{row[0]}.png" for row in rows} - {"gone.png"} | {"extra.png", "same.jpeg"}
    raw = collection(tmp_path, rows, "image level split", photographs=names)
    (raw / "ok too.jpeg").touch()
    table, rejects = manifest.read_labels(raw, "both")
    assert known(table, "grade", "split") == {
        "ok": (4, ""),
        "held out": (-1, "lesions"),
        "graded": (2, "lesions"),
    }
    assert rejects == {
        **{row[0]: f"level is not 0 to 4: {str(row[1])!r}" for row in rows[1:10]},
        **dict.fromkeys(("twice", "same"), "labelled, or there, more than once"),
        **dict.fromkeys(("extra", "ok too"), "no label"),
        "spare": "split is not one of train, val, test: 'dev'",
        "gone": "no photograph",
    }


def test_a_label_is_read_as_spreadsheets_write_it_and_no_other_number_taken_for_one(tmp_path):
    levels = {"2": 2, " 2": 2, "2.0": 2, "2,0": 2, "4.": 4, "2.5": None, "02": None, "1e0": None}
    levels |= {"2,5": None, "+1": None, "NA": None, "0x1": None, "True": None, "-0": None}
    rows = [(f"{i}_left", level) for i, level in enumerate(levels)]
    table, rejects = manifest.read_labels(collection(tmp_path, rows), "both")
    read = {f"{i}_left": (grade,) for i, grade in enumerate(levels.values()) if grade is not None}
    assert known(table, "grade") == read and len(rejects) == len(levels) - len(read)


NUMBERS = "NA null nan None NaN 007 7 1e5 100000 0x10 inf True 1_000 -1 1.0 1".split()


def test_names_that_look_like_numbers_or_nothing_are_names(tmp_path):
    rows = [(name, i % 5, f"p{i}") for i, name in enumerate(NUMBERS)]
    raw = collection(tmp_path, rows, "image level patient")
    table, rejects = manifest.read_labels(raw, "both")
    expected = {name: (i % 5, f"p{i}") for i, name in enumerate(NUMBERS)}
    assert known(table, "grade", "patient") == expected and not rejects
    assert [path.stem for path in table["path"]] == table["image"].tolist()


def test_names_with_endings_and_accents_find_their_photographs(tmp_path):
    e = "\u00e9"  # on macOS the accent stands apart in the name of the file
    rows = [("1_left.jpeg", 0), ("2_left.PNG", 1), (f"{e}_left", 2), ("dot.tif_left", 3)]
    there = ["1_left.jpeg", "2_left.png", "e\u0301_left.jpg", "dot.tif_left.jpg"]
    raw = collection(tmp_path, [*rows, ("5.jpg_left.png", 4)], photographs=there)
    (raw / "photographs" / "5.jpg_left.png.webp").touch()
    table, rejects = manifest.read_labels(raw, "both")
    names = {"1_left": (0,), "2_left": (1,), f"{e}_left": (2,), "dot.tif_left": (3,)}
    assert known(table, "grade") == names | {"5.jpg_left.png": (4,)} and not rejects


@pytest.mark.parametrize(
    "name",
    [
        "../../x", "/etc/x", "day1/x", "day1\\x", "..\\x", "C:x", "\\\\host\\x", "", ".", "..",
        "a\nb", "a\tb", "a\x1bb", "a\0b", "a\u2028b", "a" * 247, "é" * 121,
    ],
)  # fmt: skip
def test_a_name_that_is_no_plain_one_is_a_reject_and_named_as_text(tmp_path, name):
    rows = [("1_left", 0, ""), (name, 1, "labels.csv")]
    for columns in ("image level", "image level file"):
        said = [row[: len(columns.split())] for row in rows]
        raw = collection(tmp_path, said, columns, photographs=["1_left.jpeg"])
        table, rejects = manifest.read_labels(raw, "both")
        assert known(table) == {"1_left": ()} and len(rejects) == 1
        ((shown, reason),) = rejects.items()
        assert "name" in reason and shown.isprintable() and shown.encode()
        assert manifest.name_fault(name) == reason


def test_a_photograph_whose_name_cannot_be_written_is_a_reject(tmp_path):
    raw = collection(tmp_path, [("1_left", 0), ("$_$_left", 1), ("=cmd_left", 2)])
    for name in (b"\xff_left.jpeg", b"a\nb_left.jpeg", b"a\rb.png", b"b" * 247 + b".png"):
        (raw / "photographs" / os.fsdecode(name)).touch()
    (raw / "photographs" / "a\\b.png").touch()
    table, rejects = manifest.read_labels(raw, "both")
    assert set(known(table)) == {"1_left", "$_$_left", "=cmd_left"}
    shown = {r"\udcff_left", r"a\nb_left", r"a\rb", "b" * 247, r"a\b"}
    assert set(rejects) == shown and all("name" in reason for reason in rejects.values())
    manifest.fingerprint(raw)


def test_photographs_in_linked_folders_are_found_and_loops_are_not_followed(tmp_path):
    raw = collection(tmp_path / "raw", [("1_left", 0), ("2_left", 1)], photographs=["1_left.png"])
    elsewhere = tmp_path / "elsewhere" / "below"
    elsewhere.mkdir(parents=True)
    (elsewhere / "2_left.png").touch()
    (raw / "photographs" / "linked").symlink_to(elsewhere.parent)
    (raw / "again").symlink_to(raw / "photographs")  # the same once more
    (elsewhere / "loop").symlink_to(raw)
    (raw / "up").symlink_to(tmp_path.parent)
    table, rejects = manifest.read_labels(raw, "both")
    assert known(table) == {"1_left": (), "2_left": ()} and not rejects


def test_what_looks_like_a_photograph_and_is_not_read_is_listed(tmp_path):
    rows = [("1_left", 0), ("2_left", 1), ("3_left", 2)]
    raw = collection(tmp_path, rows, photographs=["1_left.jpeg", "1_left.txt", "2_left.bmp"])
    photographs = raw / "photographs"
    for name in ("3_left", "4_left.HEIC", "notes.txt", "5_left.jpeg.part"):
        (photographs / name).touch()
    (photographs / "gone.jpeg").symlink_to("nowhere")
    os.mkfifo(photographs / "pipe.jpg")
    (photographs / "folder.png").mkdir()
    table, rejects = manifest.read_labels(raw, "both")
    assert known(table) == {"1_left": ()}
    ending = "its ending is {}, not one of .jpeg, .jpg, .png, .tif, .tiff, .webp: save it anew"
    assert rejects == {
        "2_left": "no photograph",
        "3_left": "no photograph",
        "photographs/2_left.bmp": ending.format(".bmp"),
        "photographs/3_left": ending.format("missing"),
        "photographs/4_left.HEIC": ending.format(".heic"),
        "photographs/gone.jpeg": "no regular file, or a link to none",
        "photographs/pipe.jpg": "no regular file, or a link to none",
    }
    (photographs / "1_left.jpeg").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no photograph .*left.\w+: its ending"):
        manifest.read_labels(raw, "both")


def test_a_folder_that_may_not_be_read_is_listed(tmp_path, monkeypatch):
    raw = collection(tmp_path, [("1_left", 0)])
    (raw / "closed").mkdir()
    scandir = os.scandir

    def refuse(folder):
        if os.fspath(folder).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    table, rejects = manifest.read_labels(raw, "both")
    assert known(table) == {"1_left": ()}
    assert rejects == {"closed": "this folder may not be read: change its permissions"}


def test_a_patient_in_two_splits_is_refused(tmp_path):
    rows = [
        ("1_left", 0, "train"),
        ("1_right", 1, "test"),
        ("2_left", 0, ""),
        ("2_right", 1, "train"),
    ]
    raw = collection(tmp_path, rows, "image level split")
    message = r"1 patients .* 1 in train and test: give all photographs of a patient the same split"
    with pytest.raises(ValueError, match=message):
        manifest.read_labels(raw, "both")
    assert len(manifest.read_labels(raw, "right")[0]) == 2


def test_a_collection_that_cannot_be_read_is_answered_with_what_to_do(tmp_path):
    message = r"has no trainLabels.csv or labels.csv.*03_dr_dataset.ipynb"
    with pytest.raises(FileNotFoundError, match=message):
        manifest.read_labels(tmp_path, "both")
    collection(tmp_path, [("1_left", 0)], "id_code diagnosis")
    message = r"labels.csv has the columns id_code, diagnosis; it needs image and level"
    with pytest.raises(ValueError, match=message):
        manifest.read_labels(tmp_path, "both")
    collection(tmp_path, [("1_left", 0, "train")], "image level part")
    with pytest.raises(ValueError, match="has the column part, which is called split: rename it"):
        manifest.read_labels(tmp_path, "both")
    (tmp_path / "photographs" / "1_left.jpeg").unlink()
    collection(tmp_path, [("1_left", 0)], photographs=[])
    with pytest.raises(FileNotFoundError, match=r"holds no photograph \(\.jpeg, .*Unpack"):
        manifest.read_labels(tmp_path, "both")


# Duplicates


def test_of_duplicates_that_agree_one_stays_and_of_those_that_differ_none():
    table = hashed(
        ("a", 0, "", "1"), ("b", 2, "", "2"), ("c", 2, "", "2"), ("d", 1, "", "3"),
        ("e", 3, "", "3"), ("f", 0, "", "4"), ("g", 0, "", "5"), ("h", 0, "", "5"),
        ("i", 0, "", "5"),
    )  # fmt: skip
    kept, rejects = manifest.reject_duplicates(table)
    pd.testing.assert_frame_equal(kept, table.iloc[[0, 1, 5, 6]].reset_index(drop=True))
    assert rejects == {
        "c": "duplicate of b of grade 2; its own grade is 2",
        "d": "duplicate of e of grade 3; its own grade is 1",
        "e": "duplicate of d of grade 1; its own grade is 3",
        "h": "duplicate of g of grade 0, i of grade 0; its own grade is 0",
        "i": "duplicate of g of grade 0, h of grade 0; its own grade is 0",
    }


@pytest.mark.parametrize(("unseen", "grade"), [("test", 2), ("test", 4), ("lesions", -1)])
def test_a_duplicate_is_never_learnt_from_and_kept_unseen(unseen, grade):
    table = hashed(
        ("a", 2, "train", "1"),
        ("b", grade, unseen, "1"),
        ("c", 2, "val", "1"),
        ("d", 0, "train", "2"),
    )
    kept, rejects = manifest.reject_duplicates(table)
    assert known(kept, "split") == {"b": (unseen,), "d": ("train",)}
    assert rejects == {
        "a": f"duplicate of b of grade {grade}, c of grade 2; its own grade is 2",
        "c": f"duplicate of a of grade 2, b of grade {grade}; its own grade is 2",
    }


def test_a_held_out_photograph_takes_none_from_the_test_split():
    table = hashed(
        ("a", 2, "lesions", "1"), ("b", 2, "lesions", "1"), ("c", 2, "test", "1"),
        ("d", 2, "test", "1"), ("e", 2, "train", "1"),
    )  # fmt: skip
    kept, rejects = manifest.reject_duplicates(table)
    assert known(kept, "split") == {"a": ("lesions",), "c": ("test",)}
    assert set(rejects) == {"b", "d", "e"}


# Splits


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.2, 0.3]), st.integers(0, 4))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_both_eyes_of_a_patient_are_never_in_two_splits(seed, share, dropped):
    """Also where some eyes are missing; each split has its share of each grade of worse eyes."""
    table = patients([0] * 40 + [1] * 20 + [3] * 20)
    table = table.drop(np.random.default_rng(seed).choice(len(table), dropped, replace=False))
    split = manifest.draw_split(table, share, seed)
    assert split.index.equals(table.index) and set(split) == set(manifest.SPLITS)
    assert (split.groupby(table["patient"]).nunique() == 1).all()
    worst = table.assign(split=split).groupby("patient").agg({"grade": "max", "split": "first"})
    for grade, count in worst["grade"].value_counts().items():
        drawn = worst["split"][worst["grade"] == grade].value_counts()
        assert abs(drawn["test"] - share * count) <= 1
        assert abs(drawn["val"] - 0.1 * (1 - share) * count) <= 1


def test_equal_seeds_split_alike_and_others_do_not():
    table = patients([0] * 40 + [1] * 20)
    drawn = [tuple(manifest.draw_split(table, 0.1, seed)) for seed in (*range(10), 0)]
    assert drawn[0] == drawn[-1] and len(set(drawn)) == 10


def test_a_collections_own_test_split_is_kept_and_validation_is_taken_from_training():
    """By patient, a tenth of each grade; the splits that nobody learns from stay as they are."""
    tables = [
        patients([0] * 30 + [2] * 20, "train"),
        patients([0] * 6 + [2] * 4, "test", first=50),
        patients([-1] * 3, "lesions", eyes=("right",), first=60),
    ]
    table = pd.concat(tables, ignore_index=True)
    own = table["split"]
    for seed in range(5):
        split = manifest.draw_split(table, 0.3, seed)
        assert (split[own != "train"] == own[own != "train"]).all()
        taken = table[split == "val"].groupby("patient")["grade"].agg(["size", "max"])
        assert (taken["size"] == 2).all() and sorted(taken["max"]) == [0, 0, 0, 2, 2]
        assert set(split[own == "train"]) == {"train", "val"}


def test_a_collections_own_validation_split_is_kept_too():
    table = patients([0] * 10 + [1] * 10, "train")
    table.loc[:7, "split"] = "val"
    table.loc[20:23, "split"] = "test"
    table.loc[30:31, "split"] = ""
    split = manifest.draw_split(table, 0.1, 0)
    assert split.tolist() == ["val"] * 8 + ["train"] * 12 + ["test"] * 4 + ["train"] * 16


def test_too_few_patients_of_a_grade_are_counted():
    message = r"40 of grade 0, 2 of grade 3 are too few patients .* test_share=0\.1\. Add"
    with pytest.raises(ValueError, match=message):
        manifest.draw_split(patients([0] * 40 + [3] * 2), 0.1, 0)
    own = [patients([0] * 20 + [4], "train"), patients([0, 4], "test", first=30)]
    table = pd.concat(own, ignore_index=True)
    message = r"2 of grade 4 are too few patients"  # one of them to train on
    with pytest.raises(ValueError, match=message):
        manifest.draw_split(table[table["eye"] == "right"], 0.1, 0)


# Fingerprint


def test_the_fingerprint_is_of_labels_photographs_and_masks_by_content(tmp_path):
    rows = [("1_left", 0), ("2_left", 1)]
    raw = collection(tmp_path / "raw", rows)
    seen = [manifest.fingerprint(raw)]
    (raw / "README.md").write_text("notes")
    (raw / "photographs" / "day 1").mkdir()
    (raw / "photographs" / "1_left.jpeg").rename(raw / "photographs" / "day 1" / "1_left.jpeg")
    shutil.copytree(raw, tmp_path / "copy")
    assert manifest.fingerprint(raw) == manifest.fingerprint(tmp_path / "copy") == seen[0]
    third = raw / "photographs" / "3_left.jpeg"
    mask = raw / "masks" / "1_left.png"
    mask.parent.mkdir()
    for change in (
        third.touch,
        lambda: third.write_bytes(b"x"),
        lambda: third.write_bytes(b"y"),
        lambda: third.rename(third.with_stem("4_left")),
        mask.touch,
        lambda: mask.write_bytes(b"x"),
        lambda: mask.write_bytes(b"y"),
        lambda: collection(raw, [("1_left", 0), ("2_left", 2)]),
        lambda: collection(raw, [("4_left", 0)], table="testLabels.csv"),
    ):
        change()
        seen.append(manifest.fingerprint(raw))
    assert len(set(seen)) == len(seen)
    mask.unlink()
    (raw / "testLabels.csv").unlink()
    third.with_stem("4_left").unlink()
    collection(raw, rows)
    (raw / "photographs" / "1_left.jpeg").unlink()
    assert manifest.fingerprint(raw) == seen[0]


def test_the_fingerprint_is_also_of_files_that_the_table_points_to(tmp_path):
    elsewhere = tmp_path / "elsewhere.png"
    raw = collection(tmp_path / "raw", [("1_left", 0, elsewhere)], "image level file", "labels.csv")
    (raw / "photographs" / "2_left.png").touch()
    elsewhere.write_bytes(b"whole")
    seen = [manifest.fingerprint(raw)]
    times = elsewhere.stat().st_atime_ns, elsewhere.stat().st_mtime_ns
    elsewhere.write_bytes(b"w\0ole")
    os.utime(elsewhere, ns=times)
    seen.append(manifest.fingerprint(raw))
    elsewhere.write_bytes(b"whole")
    assert manifest.fingerprint(raw) == seen[0] != seen[1]
    elsewhere.unlink()
    with pytest.raises(FileNotFoundError, match="holds no photograph"):
        manifest.fingerprint(raw)
