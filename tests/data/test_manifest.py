"""What a collection's tables say of its photographs: eyes, patients, parts, duplicates. Photographs are empty files."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data import manifest as labels


def collection(folder, rows, columns="image level", table="labels.csv", photographs=None):
    """A collection of these rows and of a file for each, or for each of `photographs`."""
    (folder / "photographs").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=columns.split()).to_csv(folder / table, index=False)
    for name in photographs if photographs is not None else [f"{row[0]}.jpeg" for row in rows]:
        (folder / "photographs" / name).touch()
    return folder


def known(table, *columns):
    """{image: the values of those columns}."""
    return {
        row.image: tuple(getattr(row, column) for column in columns) for row in table.itertuples()
    }


def manifest(*rows):
    return pd.DataFrame(rows, columns=["image", "grade", "part", "sha256"])


def patients(grades, part="", eyes=("left", "right"), first=0):
    """A table as `split` takes it: for each patient both eyes of those grades, the left one never the worse."""
    rows = [
        (f"{patient}_{eye}", str(patient), eye, grade if eye == "right" else 0, part)
        for patient, grade in enumerate(grades, first)
        for eye in eyes
    ]
    return pd.DataFrame(rows, columns=["image", "patient", "eye", "grade", "part"])


# Reading


def test_kaggles_names_say_patient_and_eye(tmp_path):
    raw = collection(
        tmp_path, [("10_left", 0), ("10_right", 3), ("007_right", 1)], table="trainLabels.csv"
    )
    both, rejects = labels.read_labels(raw, "both")
    assert known(both, "patient", "eye", "grade", "part") == {
        "10_left": ("10", "left", 0, ""),
        "10_right": ("10", "right", 3, ""),
        "007_right": ("007", "right", 1, ""),
    }
    assert both["image"].tolist() == ["007_right", "10_left", "10_right"] and not rejects
    assert both["path"].tolist() == [raw / "photographs" / f"{name}.jpeg" for name in both["image"]]
    assert known(labels.read_labels(raw, "left")[0], "grade") == {"10_left": (0,)}
    assert set(known(labels.read_labels(raw, "right")[0])) == {"10_right", "007_right"}


def test_the_tables_of_both_of_kaggles_parts_are_one(tmp_path):
    collection(tmp_path, [("1_right", 0), ("2_right", 2)], table="trainLabels.csv")
    rows = [("3_right", 4, "Private"), ("4_right", 1, "Public")]
    collection(tmp_path, rows, "image level Usage", "testLabels.csv")
    table, rejects = labels.read_labels(tmp_path, "right")
    grades = {"1_right": (0,), "2_right": (2,), "3_right": (4,), "4_right": (1,)}
    assert known(table, "grade") == grades and not rejects and set(table["part"]) == {""}
    (tmp_path / "trainLabels.csv").unlink()
    assert labels.read_labels(tmp_path, "right")[1] == {
        "1_right": "no label",
        "2_right": "no label",
    }


def test_further_columns_say_patient_part_and_file(tmp_path):
    raw = collection(
        tmp_path / "raw",
        [
            ("a", 0, "anna", "train", "photographs/x.jpeg"),
            ("b", 1, "anna", "train", str(tmp_path / "elsewhere" / "IDRiD 1.JPG")),
            ("c_left", 2, "", "test", "photographs/c_left.jpeg"),
            ("d", 3, "", "", "photographs/gone.jpeg"),
            ("e", 4, "eve", "val", "photographs/e.jpeg"),
        ],
        "image level patient part file",
        photographs=["x.jpeg", "c_left.jpeg", "e.jpeg", "not in the table.jpeg"],
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "IDRiD 1.JPG").touch()
    table, rejects = labels.read_labels(raw, "both")
    assert known(table, "patient", "part", "eye", "grade") == {
        "a": ("anna", "train", "", 0),
        "b": ("anna", "train", "", 1),
        "c_left": ("c", "test", "left", 2),
        "e": ("eve", "val", "", 4),
    }
    assert known(table, "path")["a"] == (raw / "photographs" / "x.jpeg",)
    assert known(table, "path")["b"] == (tmp_path / "elsewhere" / "IDRiD 1.JPG",)
    assert rejects == {"d": "no photograph"}


def test_masks_are_no_photographs(tmp_path):
    raw = collection(tmp_path, [("1_left", 0)])
    (raw / "masks").mkdir()
    (raw / "masks" / "1_left.png").touch()
    table, rejects = labels.read_labels(raw, "both")
    assert known(table) == {"1_left": ()} and not rejects


def test_names_without_eyes_are_taken_with_both_and_refused_with_one(tmp_path):
    raw = collection(tmp_path, [("IDRiD_001", 0), ("IDRiD_002", 4)])
    table, rejects = labels.read_labels(raw, "both")
    expected = {"IDRiD_001": ("IDRiD_001", "", 0), "IDRiD_002": ("IDRiD_002", "", 4)}
    assert known(table, "patient", "eye", "grade") == expected and not rejects
    for eye in ("right", "left"):
        with pytest.raises(ValueError, match=rf"so the {eye} eyes are unknown: take eye='both'"):
            labels.read_labels(raw, eye)


def test_a_name_without_eye_among_others_is_rejected_where_the_eye_matters(tmp_path):
    raw = collection(tmp_path, [("1_left", 0), ("1_right", 1), ("portrait", 2)])
    assert labels.read_labels(raw, "right")[1] == {
        "portrait": "name does not end in _left or _right"
    }
    table, rejects = labels.read_labels(raw, "both")
    assert len(table) == 3 and not rejects


def test_every_row_and_file_that_cannot_be_used_has_its_reason(tmp_path):
    rows = [
        ("ok", 4, ""),
        ("five", 5, ""),
        ("half", 0.5, ""),
        ("empty", "", ""),
        ("words", "severe", ""),
    ]
    rows += [
        ("minus", -1, "train"),
        ("spare", 1, "dev"),
        ("twice", 1, ""),
        ("twice", 1, ""),
        ("gone", 1, ""),
    ]
    names = "ok five half empty words minus spare twice extra".split()
    raw = collection(
        tmp_path, rows, "image level part", photographs=[f"{name}.png" for name in names]
    )
    (raw / "ok too.jpeg").touch()
    (raw / "photographs" / "same.jpeg").touch()
    (raw / "same.png").touch()
    with open(raw / "labels.csv", "a") as file:
        file.write("same,1,\n")
    table, rejects = labels.read_labels(raw, "both")
    assert known(table, "grade") == {"ok": (4,)}
    assert rejects == {
        **dict.fromkeys(("five", "half", "empty", "words", "minus"), "level is not 0 to 4"),
        **dict.fromkeys(("twice", "same"), "labelled, or there, more than once"),
        **dict.fromkeys(("extra", "ok too"), "no label"),
        "spare": "part is not one of train, val, test",
        "gone": "no photograph",
    }


def test_only_held_out_photographs_may_be_ungraded(tmp_path):
    rows = [
        ("a", -1, "lesions"),
        ("b", 2, "lesions"),
        ("c", -1, "test"),
        ("d", -1, ""),
        ("e", -2, "lesions"),
    ]
    table, rejects = labels.read_labels(collection(tmp_path, rows, "image level part"), "both")
    assert known(table, "grade", "part") == {"a": (-1, "lesions"), "b": (2, "lesions")}
    assert rejects == dict.fromkeys("cde", "level is not 0 to 4")


def test_a_patient_in_two_parts_is_refused(tmp_path):
    rows = [
        ("1_left", 0, "train"),
        ("1_right", 1, "test"),
        ("2_left", 0, ""),
        ("2_right", 1, "train"),
    ]
    raw = collection(tmp_path, rows, "image level part")
    with pytest.raises(
        ValueError, match=r"1 patients .* 1 in train and test: give all photographs of a patient"
    ):
        labels.read_labels(raw, "both")
    assert len(labels.read_labels(raw, "right")[0]) == 2


def test_a_collection_that_cannot_be_read_is_answered_with_what_to_do(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has no trainLabels.csv or labels.csv.*03_dr_dataset.ipynb"
    ):
        labels.read_labels(tmp_path, "both")
    collection(tmp_path, [("1_left", 0)], "id_code diagnosis")
    with pytest.raises(
        ValueError, match=r"labels.csv has the columns id_code, diagnosis; it needs image and level"
    ):
        labels.read_labels(tmp_path, "both")
    (tmp_path / "photographs" / "1_left.jpeg").unlink()
    collection(tmp_path, [("1_left", 0)], photographs=[])
    with pytest.raises(FileNotFoundError, match=r"holds no photograph \(\.jpeg, .*Unpack"):
        labels.read_labels(tmp_path, "both")


# Duplicates


def test_of_duplicates_that_agree_one_stays_and_of_those_that_differ_none():
    table = manifest(
        ("a", 0, "", "1"), ("b", 2, "", "2"), ("c", 2, "", "2"), ("d", 1, "", "3"), ("e", 3, "", "3"),
        ("f", 0, "", "4"), ("g", 0, "", "5"), ("h", 0, "", "5"), ("i", 0, "", "5"),
    )  # fmt: skip
    kept, rejects = labels.reject_duplicates(table)
    assert kept["image"].tolist() == ["a", "b", "f", "g"] and kept.index.tolist() == [0, 1, 2, 3]
    assert rejects == {
        "c": "duplicate of b of grade 2; its own grade is 2",
        "d": "duplicate of e of grade 3; its own grade is 1",
        "e": "duplicate of d of grade 1; its own grade is 3",
        "h": "duplicate of g of grade 0, i of grade 0; its own grade is 0",
        "i": "duplicate of g of grade 0, h of grade 0; its own grade is 0",
    }


@pytest.mark.parametrize("unseen", ["test", "lesions"])
@pytest.mark.parametrize("grade", [2, 4])
def test_a_duplicate_is_never_learnt_from_and_kept_unseen(unseen, grade):
    table = manifest(
        ("a", 2, "train", "1"),
        ("b", grade, unseen, "1"),
        ("c", 2, "val", "1"),
        ("d", 0, "train", "2"),
    )
    kept, rejects = labels.reject_duplicates(table)
    assert known(kept, "part") == {"b": (unseen,), "d": ("train",)}
    assert rejects == {
        "a": f"duplicate of b of grade {grade}, c of grade 2; its own grade is 2",
        "c": f"duplicate of a of grade 2, b of grade {grade}; its own grade is 2",
    }


def test_a_held_out_photograph_without_grade_stays_for_its_twin():
    kept, rejects = labels.reject_duplicates(
        manifest(("a", -1, "lesions", "1"), ("b", 2, "train", "1"))
    )
    assert known(kept, "part") == {"a": ("lesions",)}
    assert rejects == {"b": "duplicate of a of grade -1; its own grade is 2"}


def test_nothing_is_rejected_where_nothing_is_a_duplicate():
    table = manifest(*((name, i % 5, "", name) for i, name in enumerate("qwertyuiop")))
    kept, rejects = labels.reject_duplicates(table)
    pd.testing.assert_frame_equal(kept, table)
    assert rejects == {}


# Parts


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.2, 0.3]), st.integers(0, 4))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_both_eyes_of_a_patient_are_never_in_two_parts(seed, share, dropped):
    """Whatever the seed, and where some eyes are missing; each part has its share of each grade of worse eyes."""
    grades = [0] * 40 + [1] * 20 + [3] * 20
    table = patients(grades)
    table = table.drop(np.random.default_rng(seed).choice(len(table), dropped, replace=False))
    part = labels.split(table, share, seed)
    assert part.index.equals(table.index) and set(part) == set(labels.PARTS)
    assert (part.groupby(table["patient"]).nunique() == 1).all()
    worst = table.assign(part=part).groupby("patient").agg({"grade": "max", "part": "first"})
    for grade, count in worst["grade"].value_counts().items():
        parts = worst["part"][worst["grade"] == grade].value_counts()
        assert (
            abs(parts["test"] - share * count) <= 1
            and abs(parts["val"] - 0.1 * (1 - share) * count) <= 1
        )


def test_equal_seeds_split_alike_and_others_do_not():
    table = patients([0] * 40 + [1] * 20)
    first = labels.split(table, 0.1, 0)
    assert first.equals(labels.split(table, 0.1, 0))
    assert len({tuple(labels.split(table, 0.1, seed)) for seed in range(10)}) == 10


def test_a_collections_own_test_part_is_kept_and_validation_is_taken_from_training():
    """By patient, a tenth of those of each grade; the parts that nobody learns from stay as they are."""
    table = pd.concat(
        [
            patients([0] * 30 + [2] * 20, "train"),
            patients([0] * 6 + [2] * 4, "test", first=50),
            patients([-1] * 3, "lesions", eyes=("right",), first=60),
        ],
        ignore_index=True,
    )
    for seed in range(5):
        part = labels.split(table, 0.3, seed)
        assert (part[table["part"] != "train"] == table["part"][table["part"] != "train"]).all()
        taken = table[part == "val"].groupby("patient")["grade"].agg(["size", "max"])
        assert (taken["size"] == 2).all() and sorted(taken["max"]) == [0, 0, 0, 2, 2]
        assert set(part[table["part"] == "train"]) == {"train", "val"}


def test_a_collections_own_validation_part_is_kept_too():
    table = patients([0] * 10 + [1] * 10, "train")
    table.loc[:7, "part"] = "val"
    table.loc[20:23, "part"] = "test"
    table.loc[30:31, "part"] = ""
    part = labels.split(table, 0.1, 0)
    assert part.tolist() == table["part"].replace("", "train").tolist()


def test_too_few_patients_of_a_grade_are_counted():
    with pytest.raises(
        ValueError,
        match=r"40 of grade 0, 2 of grade 3 are too few patients .* test_share=0\.1\. Add",
    ):
        labels.split(patients([0] * 40 + [3] * 2), 0.1, 0)
    table = pd.concat(
        [patients([0] * 20 + [4], "train"), patients([0, 4], "test", first=30)], ignore_index=True
    )
    with pytest.raises(
        ValueError, match=r"2 of grade 4 are too few patients"
    ):  # one of them to train on
        labels.split(table[table["eye"] == "right"], 0.1, 0)


# Fingerprint


def test_the_fingerprint_is_of_labels_and_photographs_alone(tmp_path):
    raw = collection(tmp_path, [("1_left", 0), ("2_left", 1)])
    seen = [labels.fingerprint(raw)]
    (raw / "README.md").write_text("notes")
    assert labels.fingerprint(raw) == seen[0]
    for change in (
        lambda: (raw / "photographs" / "3_left.jpeg").touch(),
        lambda: (raw / "photographs" / "3_left.jpeg").write_bytes(b"x"),
        lambda: (raw / "photographs" / "3_left.jpeg").rename(raw / "photographs" / "4_left.jpeg"),
        lambda: collection(raw, [("1_left", 0), ("2_left", 2)]),
        lambda: collection(raw, [("4_left", 0)], table="testLabels.csv"),
    ):
        change()
        seen.append(labels.fingerprint(raw))
    assert len(set(seen)) == len(seen)
