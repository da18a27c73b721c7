"""Where things are, asked from other folders and with the three variables set."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lib import paths

NAMES = (
    "ROOT",
    "NOTEBOOKS",
    "PROFILES",
    "RECORDED",
    "DATA",
    "BUILD",
    "RAW",
    "PREPARED",
    "SEQUENCERS",
)
REPOSITORY = Path(os.path.abspath(__file__)).parent.parent.resolve()


def asked(folder, **variables):
    """Every path as a fresh Python started in `folder` has it, and where `MNIST/raw` is sought."""
    program = (
        "import json; from lib import paths; "
        f"found = [getattr(paths, name) for name in {NAMES}] + [paths.dataset('MNIST/raw')]; "
        "print(json.dumps(list(map(str, found))))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(REPOSITORY)} | variables,
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(zip((*NAMES, "dataset"), json.loads(done.stdout), strict=True))


def in_repository(data="data", build="build"):
    relative = {
        "ROOT": "",
        "NOTEBOOKS": "notebooks",
        "PROFILES": "notebooks/profiles",
        "RECORDED": "data/recorded",
        "DATA": data,
        "BUILD": build,
        "RAW": f"{data}/raw",
        "PREPARED": f"{data}/prepared",
        "SEQUENCERS": f"{data}/sequencers",
        "dataset": f"{data}/raw/MNIST/raw",
    }
    return {name: os.path.normpath(REPOSITORY / path) for name, path in relative.items()}


@pytest.mark.parametrize("folder", [".", "notebooks", "/"])
def test_without_variables_everything_is_in_the_repository_whichever_folder_asks(folder):
    assert asked(REPOSITORY / folder) == in_repository()


def test_empty_variables_are_as_good_as_none():
    assert (
        asked("/", COMPANION_DATA="", COMPANION_BUILD="", COMPANION_DATASETS="") == in_repository()
    )


def test_the_variables_move_what_is_made_and_leave_what_is_tracked(tmp_path):
    found = asked("/", COMPANION_DATA=str(tmp_path / "made"), COMPANION_BUILD=str(tmp_path / "b"))
    assert found == in_repository(tmp_path / "made", tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_a_relative_variable_means_the_same_in_every_folder(folder):
    found = asked(REPOSITORY / folder, COMPANION_DATA="../elsewhere", COMPANION_BUILD="build/other")
    assert found == in_repository("../elsewhere", "build/other")


@pytest.mark.parametrize("value", ["~/made", "file", "file/below", "loop", "x" * 300, "a\udcffb"])
def test_importing_fails_for_no_value_and_a_tilde_is_the_home_folder(tmp_path, value):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    said = value if value.startswith("~") else str(tmp_path / value)
    moved = dict.fromkeys(("COMPANION_DATA", "COMPANION_BUILD", "COMPANION_DATASETS"), said)
    found = asked(tmp_path, HOME=str(tmp_path), **moved)
    assert found["DATA"] == found["BUILD"] == str(tmp_path / value.removeprefix("~/"))


@pytest.mark.parametrize("variable", ["DATA", "BUILD"])
def test_a_folder_that_cannot_be_is_named_with_its_variable(tmp_path, monkeypatch, variable):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    paths.require_folders()
    assert [path.name for path in tmp_path.iterdir()] == ["build"]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "loop"):
        monkeypatch.setattr(paths, variable, wrong)
        with pytest.raises(OSError, match="is no folder.*: set COMPANION_" + variable):
            paths.require_folders()


def test_a_full_disk_and_a_missing_home_are_said_before_anything_is_run(tmp_path, monkeypatch):
    class Full:
        def __init__(self, dir):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setattr(paths, "TemporaryFile", Full)
    with pytest.raises(OSError, match=r"build cannot be used .No space left on device") as error:
        paths.require_folders()
    assert error.value.errno == errno.ENOSPC
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(OSError, match="No home folder is known: set HOME"):
        paths.require_folders()


@pytest.mark.parametrize(
    ("home", "text", "saved"),
    [
        ("/home/ada", "in /home/ada/eyes and '/home/ada/x'", "in ~/eyes and '~/x'"),
        ("/home/ada", "/home/adam/eyes /mnt/home/ada/eyes", "/home/adam/eyes /mnt/home/ada/eyes"),
        (
            "/home/a.a",
            '{"a": "/home/a.a/b", "c": "/home/aba/b"}',
            '{"a": "~/b", "c": "/home/aba/b"}',
        ),
        ("/home/\u00fc", '"/home/\\u00fc/b" /home/\u00fc/b', '"~/b" ~/b'),
        ("/", "/a/b", "/a/b"),
        ("", "~/b /a", "~/b /a"),
    ],
)
def test_the_home_folder_in_what_is_saved_becomes_a_tilde(monkeypatch, home, text, saved):
    monkeypatch.setenv("HOME", home)
    assert paths.without_home(text) == saved


def test_a_data_set_is_looked_for_on_the_shelf_and_then_below_raw(tmp_path, monkeypatch):
    shelf, raw = tmp_path / "shelf", tmp_path / "raw"
    monkeypatch.setattr(paths, "RAW", raw)
    monkeypatch.setenv("COMPANION_DATASETS", str(shelf))
    assert paths.dataset("MNIST/raw") == raw / "MNIST/raw"
    (raw / "MNIST/raw").mkdir(parents=True)
    assert paths.dataset("MNIST/raw") == raw / "MNIST/raw"
    (shelf / "MNIST").mkdir(parents=True)
    assert paths.dataset("MNIST/raw") == raw / "MNIST/raw"
    (shelf / "MNIST/raw").mkdir()
    assert paths.dataset("MNIST/raw") == shelf / "MNIST/raw"
    (shelf / "vgg16.safetensors").write_bytes(b"")
    assert paths.dataset("vgg16.safetensors") == shelf / "vgg16.safetensors"
    monkeypatch.delenv("COMPANION_DATASETS")
    assert paths.dataset("MNIST/raw") == raw / "MNIST/raw"


@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_a_relative_shelf_is_taken_from_the_root_in_every_folder(tmp_path, folder):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    found = asked(REPOSITORY / folder, COMPANION_DATASETS=os.path.relpath(tmp_path, REPOSITORY))
    assert found["dataset"] == str(tmp_path / "MNIST/raw")


def test_what_is_kept_aside_takes_the_first_free_number(tmp_path):
    for number in (1, 2):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "weights").write_text(str(number))
        assert paths.aside(tmp_path / "run") == tmp_path / f"run.{number}"
    (tmp_path / "run.1").rename(tmp_path / "elsewhere")
    (tmp_path / "run").write_text("3")
    paths.aside(tmp_path / "run")
    assert (tmp_path / "run.1").read_text() == "3" and (
        tmp_path / "run.2" / "weights"
    ).read_text() == "2"
    assert not (tmp_path / "run").exists()


def test_what_is_written_is_whole_or_as_it_was_before(tmp_path):
    path = tmp_path / "numbers.txt"
    paths.write(path, lambda beside: beside.write_text("old"))

    def fails(beside):
        beside.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        paths.write(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_file_that_cannot_be_written_is_named_and_leaves_no_part(tmp_path, number):
    def fails(beside):
        beside.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(type(OSError(number, "")), match=os.strerror(number)) as error:
        paths.write(tmp_path / "numbers.json", fails)
    assert str(error.value).startswith(f"{tmp_path / 'numbers.json'} cannot be written")
    assert error.value.errno == number and list(tmp_path.iterdir()) == []


def test_a_write_that_is_interrupted_or_fails_otherwise_leaves_no_part(tmp_path):
    for kind in (KeyboardInterrupt, RuntimeError):

        def fails(beside, kind=kind):
            beside.write_text("half")
            raise kind("enforce fail")

        with pytest.raises(kind, match=r"^enforce fail$"):
            paths.write(tmp_path / "weights", fails)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_with_those_above_it_or_the_reason_said(tmp_path):
    assert paths.make(tmp_path / "a" / "b").is_dir() and paths.make(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("mine")
    for wrong in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(OSError, match=f"{wrong} cannot be made a folder .*move what is there"):
            paths.make(wrong)


def test_what_is_kept_aside_gets_the_first_free_number(tmp_path):
    for text in ("a", "b"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "weights").write_text(text)
        kept = paths.aside(tmp_path / "run")
    assert kept == tmp_path / "run.2" and (kept / "weights").read_text() == "b"
    assert (tmp_path / "run.1" / "weights").read_text() == "a"


HOLDS = """
import sys
from pathlib import Path
from lib import paths
with paths.alone(Path(sys.argv[1]), "preparing"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_works_on_is_refused_until_that_is_killed(tmp_path):
    folder = tmp_path / "set"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, folder], cwd=REPOSITORY, stdin=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    said = f"Another run is training {folder} (process {other.pid} on "
    with pytest.raises(RuntimeError, match=re.escape(said)), paths.alone(folder, "training"):
        pass
    other.kill()
    other.wait()
    with paths.alone(folder, "training"), paths.alone(tmp_path / "another", "training"):
        pass


def test_with_patience_a_second_process_waits_until_the_first_has_ended(tmp_path, monkeypatch):
    folder = tmp_path / "network"
    monkeypatch.setenv("COMPANION_PATIENCE", "60")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, folder], cwd=REPOSITORY, stdin=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    threading.Timer(1, other.stdin.close).start()
    with paths.alone(folder, "training"):
        assert other.wait(10) == 0
    monkeypatch.setenv("COMPANION_PATIENCE", "")
    with paths.alone(folder, "training"):
        pass
    monkeypatch.setenv("COMPANION_PATIENCE", "long")
    with (
        pytest.raises(ValueError, match="COMPANION_PATIENCE is 'long'; give seconds"),
        paths.alone(folder, "training"),
    ):
        pass


def test_a_journal_keeps_what_was_added_and_leaves_out_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert paths.Journal(path).records == []
    paths.Journal(path).add({"image": "a", "name": "ä\ud800"})
    with path.open("a") as file:
        file.write('\n{"image": "b", "gra')
    again = paths.Journal(path)
    assert again.records == [{"image": "a", "name": "ä\ud800"}]
    again.add({"image": "c"})
    assert [record["image"] for record in paths.Journal(path).records] == ["a", "c"]
