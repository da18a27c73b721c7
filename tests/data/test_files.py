"""A user's files: tables as spreadsheets and editors leave them, hashes that see every change."""

import csv
import errno
import hashlib
import io
import json
import os
import time

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import paths
from lib.data import files

ROWS = {"image": ["10_left", "NA"], "level": ["0", "4"]}


def table(folder, content):
    path = folder / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "image,level\n10_left,0\nNA,4",
        "image,level\r\n10_left,0\r\nNA,4\r\n",
        "image,level\r10_left,0\rNA,4\r",
        "\ufeffimage,level\n10_left,0\nNA,4\n",
        "image,level\n10_left,0\nNA,4\n".encode("utf-16"),
        b"\xfe\xff" + "image\tlevel\r\n10_left\t0\r\nNA\t4\r\n".encode("utf-16-be"),
        "image;level\n10_left;0\nNA;4\n",
        "image,level\n10_left,0,,\nNA,4,,\n",
        "image,level,,\n10_left,0\nNA,4,,\n",
        ",image,level\n0,10_left,0\n1,NA,4\n",
        "\n image , Level \n\n 10_left,0\n,,\nNA , 4 \n\n",
        '"image","level"\n"10_left", "0"\n"NA","4"\n',
    ],
)
def test_a_table_is_read_however_it_was_saved(tmp_path, content):
    read = files.read_table(table(tmp_path, content), ["image", "level"])
    assert read.to_dict("list") == ROWS


def test_every_value_is_text_as_it_is_written(tmp_path):
    values = ["007", "1e5", "NA", "null", "nan", "", "2.0", "2,0", "True", 'a"b', "x\ny", "é", "-"]
    path = tmp_path / "labels.csv"
    rows = {"image": [f"i{i}" for i in range(len(values))], "level": values}
    pd.DataFrame(rows).to_csv(path, index=False)
    assert files.read_table(path).to_dict("list") == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty; it needs image and level"),
        ("\n \n", "is empty"),
        ("image,level\n", "has no line below its columns: fill it"),
        ("image,level\n\n,,\n", "has no line below its columns"),
        ("id_code,diagnosis\na,0\n", "has the columns id_code, diagnosis; it needs image and lev"),
        ("a,0\nb,1\n", "has the columns a, 0; it needs"),
        ("image,level,level\na,0,1\n", "has the column level more than once"),
        ("image,Image,level\na,a,1\n", "has the column image more than once"),
        ("image,level\na,0\nb\nc,1\n", "line 3 has 1 values for 2 columns: it was cut off"),
        ("image,level\na,0\nb;1\n", "line 3 has 1 values for 2 columns"),
        ("image,level\na,0\nSmith, Jo,1\n", "line 3 has the value '1' in a column without name"),
        ("image,,level\na,x,0\n", "line 2 has the value 'x' in a column without name"),
        ('image,level\na,0\n"b,1\nc,2\n', "line 3: a stray quotation mark"),
        ('image,level\na,0\n"b,1\nc,"2\nd,0\n', "line 3: a stray quotation mark"),
        ('image,level\na,0\n"b,1\n"c",2\n', "line 3: a stray quotation mark"),
        ('image,level\na,0\n"b,1\nc",2\n', "line 3: a stray quotation mark.*goes on to line 4"),
        ('image,level\na,0\nb",1\n', "line 3: a stray quotation mark.*without its partner"),
        ('image,level\na,0\nb,"1"x\n', "line 3: a stray quotation mark"),
        ('image,level\na,"' + "x" * 200_000 + '"\n', "line 2: a stray quotation mark"),
        ("image,level\na,0\né,1\n".encode("latin-1"), "line 3: the byte 0xe9 .* Latin-1.*CSV UTF"),
        ("image,level\na,0\n".encode("utf-16-le"), "line 1 holds zero bytes, .* UTF-16"),
        ("image,level\na,0\n".encode("utf-32"), "line 1 holds zero bytes"),
        (b"PK\x03\x04\x14\x00\x08\x08", r"has the columns 'pk\\x03"),
        (b"\xff\xfei\x00m", "line 1"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_the_line_and_the_usual_cause(
    tmp_path, content, message
):
    with pytest.raises(ValueError, match=rf"labels\.csv,? .*{message}"):
        files.read_table(table(tmp_path, content), ["image", "level"])


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4), st.sampled_from(",;\t"))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_what_a_csv_writer_writes_is_read_as_it_is_or_the_table_named(tmp_path_factory, rows, sep):
    """Never other values: Python's own reader is the oracle."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=sep, quoting=csv.QUOTE_ALL)
    writer.writerows([("image", "level"), *rows])
    path = table(tmp_path_factory.getbasetemp(), text.getvalue())
    expected = [tuple(value.strip() for value in row) for row in rows]
    try:
        read = [tuple(row) for row in files.read_table(path).to_numpy()]
    except ValueError as error:
        assert "labels.csv" in str(error)
        broken = any(sep in value and "\n" in value for row in expected for value in row)
        assert broken or not any(map(any, expected))
    else:
        assert read == [row for row in expected if any(row)]


@given(st.integers(0, 60), st.integers(0, 255))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_byte_that_is_changed_is_read_or_named_and_nothing_else_is_raised(
    tmp_path_factory, at, value
):
    good = b'image,level,patient\n10_left,0,"a"\n10_right,1,\n11_left,2,b\n'
    data = bytearray(good)
    data[at % len(data)] = value
    path = table(tmp_path_factory.getbasetemp(), bytes(data))
    try:
        assert len(files.read_table(path)) in (2, 3)
    except ValueError as error:
        assert "labels.csv" in str(error)


# Walking


def test_each_real_folder_is_walked_once_and_every_error_but_a_closed_door_is_raised(
    tmp_path, monkeypatch
):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1", "a/b/2", "3"):
        (tmp_path / name).touch()
    (tmp_path / "c").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "root").symlink_to("/")
    found, closed = files.walk(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["3", "a/1", "a/b/2", "self"] and closed == []
    scandir = os.scandir
    for number, kind in ((errno.EACCES, PermissionError), (errno.EIO, OSError)):

        def fail(folder, number=number):
            if str(folder).endswith("b"):
                raise OSError(number, os.strerror(number), folder)
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", fail)
        if kind is PermissionError:
            found, closed = files.walk(tmp_path)
            assert len(found) == 3 and closed == [tmp_path / "a" / "b"]
        else:
            with pytest.raises(OSError, match=os.strerror(number)):
                files.walk(tmp_path)


# Hashes


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Three files of another day, whose hashes have been kept."""
    monkeypatch.setattr(paths, "RAW", tmp_path / "raw")
    monkeypatch.setattr(files, "KEPT_FROM", 0)
    monkeypatch.setattr(files, "_SETTLED", 0)
    folder = tmp_path / "mine"
    folder.mkdir()
    names = [folder / name for name in ("a", "é\n", os.fsdecode(b"\xff"))]
    for path in names:
        path.write_bytes(os.fsencode(path.name))
    time.sleep(0.02)  # the clock of files is coarse
    files.content_hashes(folder, names)
    assert len(list((tmp_path / "raw").rglob("*.json"))) == 1
    assert {path.name for path in folder.iterdir()} == {path.name for path in names}
    return folder, names


def content(names):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def test_a_file_that_did_not_change_is_not_read_again(kept, monkeypatch):
    folder, names = kept
    expected = content(names)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert files.content_hashes(folder, names) == expected


def test_a_file_that_changed_is_read_again_whatever_its_size_and_time_say(kept):
    folder, (first, second, third) = kept
    times = first.stat().st_atime_ns, first.stat().st_mtime_ns
    first.write_bytes(b"b")
    os.utime(first, ns=times)
    second.unlink()
    second.write_bytes(b"another")
    os.replace(third, folder / "x")
    (folder / "x").rename(second)
    names = [first, second]
    assert files.content_hashes(folder, names) == content(names)


def test_a_file_that_has_just_changed_is_read_again(kept, monkeypatch):
    """Within one tick of the clock a file may change and keep its times."""
    folder, names = kept
    monkeypatch.setattr(files, "_SETTLED", 60)
    before = files.content_hashes(folder, names)
    (cache,) = paths.RAW.rglob("*.json")
    assert json.loads(cache.read_text()) == {} and before == content(names)


@pytest.mark.parametrize("damage", [b"", b"[]", b"[1]", b"{", b"null", b"\xff", b'{"a": 1}'])
def test_damaged_or_missing_kept_hashes_are_no_error(kept, damage):
    folder, names = kept
    (cache,) = paths.RAW.rglob("*.json")
    cache.write_bytes(damage)
    assert files.content_hashes(folder, names) == content(names)
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.touch()  # and none can be kept
    assert files.content_hashes(folder, names) == content(names)


def test_a_file_that_may_not_be_read_has_no_hash_and_one_that_fails_is_an_error(
    kept, monkeypatch, tmp_path
):
    folder, names = kept
    monkeypatch.setattr(paths, "RAW", tmp_path / "other")
    for number, kind in ((errno.EACCES, None), (errno.EIO, OSError)):

        def fail(*_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(hashlib, "file_digest", fail)
        if kind:
            with pytest.raises(OSError, match=os.strerror(number)):
                files.content_hashes(folder, names)
        else:
            assert files.content_hashes(folder, names) == dict.fromkeys(names, "")
