"""What a collection's tables say of its photographs, which are empty files here."""

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


def test_masks_are_no_photographs(tmp_path):
    raw = collection(tmp_path, [("1_left", 0)])
    (raw / "masks").mkdir()
    (raw / "masks" / "1_left.png").touch()
    table, rejects = manifest.read_labels(raw, "both")
    assert known(table) == {"1_left": ()} and not rejects


def test_names_without_eyes_are_taken_with_both_and_refused_with_one(tmp_path):
    raw = collection(tmp_path, [("IDRiD_001", 0), ("IDRiD_002", 4)])
    table, rejects = manifest.read_labels(raw, "both")
    expected = {"IDRiD_001": ("IDRiD_001", "", 0), "IDRiD_002": ("IDRiD_002", "", 4)}
    assert known(table, "patient", "eye", "grade") == expected and not rejects
    for eye in ("right", "left"):
        with pytest.raises(ValueError, match=rf"so the {eye} eyes are unknown: take eye='both'"):
            manifest.read_labels(raw, eye)


def test_a_name_without_eye_among_others_is_rejected_where_the_eye_matters(tmp_path):
    raw = collection(tmp_path, [("1_left", 0), ("1_right", 1), ("portrait", 2)])
    rejects = manifest.read_labels(raw, "right")[1]
    assert rejects == {"portrait": "name does not end in _left or _right"}
    table, rejects = manifest.read_labels(raw, "both")
    assert len(table) == 3 and not rejects


def test_every_row_and_file_that_cannot_be_used_has_its_reason(tmp_path):
    rows = [
        ("ok", 4, ""),
        ("five", 5, ""),
        ("half", 0.5, ""),
        ("empty", "", ""),
        ("words", "severe", ""),
        ("minus", -1, "train"),
        ("tested", -1, "test"),
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
    unknown = ("five", "half", "empty", "words", "minus", "tested", "drawn", "below")
    assert rejects == {
        **dict.fromkeys(unknown, "level is not 0 to 4"),
        **dict.fromkeys(("twice", "same"), "labelled, or there, more than once"),
        **dict.fromkeys(("extra", "ok too"), "no label"),
        "spare": "split is not one of train, val, test",
        "gone": "no photograph",
    }


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


def test_the_fingerprint_is_of_labels_and_photographs_alone(tmp_path):
    raw = collection(tmp_path, [("1_left", 0), ("2_left", 1)])
    seen = [manifest.fingerprint(raw)]
    (raw / "README.md").write_text("notes")
    assert manifest.fingerprint(raw) == seen[0]
    third = raw / "photographs" / "3_left.jpeg"
    for change in (
        third.touch,
        lambda: third.write_bytes(b"x"),
        lambda: third.rename(third.with_stem("4_left")),
        lambda: collection(raw, [("1_left", 0), ("2_left", 2)]),
        lambda: collection(raw, [("4_left", 0)], table="testLabels.csv"),
    ):
        change()
        seen.append(manifest.fingerprint(raw))
    assert len(set(seen)) == len(seen)
