"""Where things are, absolute, so that Jupyter, nbval and papermill find them from any folder.

The one module that reads the environment, and the home of how files and folders are written.

| variable              | moves                                                   | default |
|-----------------------|---------------------------------------------------------|---------|
| `COMPANION_DATA`      | what is made: raw/, prepared/, sequencers/              | `data/` |
| `COMPANION_BUILD`     | executed notebooks, HTML, figures, metrics              | `build/`|
| `COMPANION_DATASETS`  | a read-only folder of data sets on disk, searched first | none    |
| `COMPANION_PATIENCE`  | nothing: the seconds to wait for a folder that another  | 0       |
|                       | process changes; set for notebooks that run at once     |         |

A relative path is taken from the repository's root, whichever folder the notebook runs in.
Importing this fails for none of their values; `require_folders` says what is wrong with them.
"""

import errno
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile

from filelock import FileLock, Timeout


def _moved(variable: str, default: str) -> str:
    """What a variable of the environment says, absolute; empty is as good as none."""
    said = os.path.expanduser(os.environ.get(variable) or default)
    return os.path.realpath(ROOT / said)


ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
RECORDED = ROOT / "data" / "recorded"
WEIGHTS = ROOT / "data" / "weights"
DATA = Path(_moved("COMPANION_DATA", "data"))
BUILD = Path(_moved("COMPANION_BUILD", "build"))
RAW = DATA / "raw"
PREPARED = DATA / "prepared"
SEQUENCERS = DATA / "sequencers"
_ROOM = 1 << 20  # bytes that build/ must have room for


def dataset(relative: str) -> Path:
    """The path of a data set on disk, in COMPANION_DATASETS if it is there, else below `RAW`.

    The path need not exist: whoever asks says what to do when it does not.

    Args:
        relative: the path below either folder, `"MNIST/raw"` for example.
    """
    found = Path(_moved("COMPANION_DATASETS", str(RAW)), relative)
    return found if os.path.exists(found) else RAW / relative


def require_folders() -> None:
    """Say at once what would end a run later.

    Raises:
        OSError: data/ or build/, wherever they are, is no folder and cannot be made one; nothing
            can be written to build/, which is made; or Jupyter would find no home folder.
    """
    if not os.path.isabs(os.path.expanduser("~")):
        raise OSError("No home folder is known: set HOME to a folder of yours, then run again.")
    for variable, folder in (("COMPANION_DATA", DATA), ("COMPANION_BUILD", BUILD)):
        try:
            there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
            if not there.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
            if folder == BUILD:
                folder.mkdir(parents=True, exist_ok=True)
                with TemporaryFile(dir=folder) as file:
                    file.write(bytes(_ROOM))
        except OSError as error:
            raise _failure(
                error, f"{folder} cannot be used", f"set {variable} to a folder with room"
            ) from None


def make(folder: Path) -> Path:
    """Make a folder, and those above it, where they are missing; returns it.

    Raises:
        OSError: it cannot be made; the message says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _failure(error, f"{folder} cannot be made a folder", "move what is there") from None
    return folder


def _failure(error: OSError, what: str, cure: str) -> OSError:
    """The same error as a sentence; `errno` stays."""
    failure = type(error)(f"{what} ({error.strerror or error}): {cure}, then run again.")
    failure.errno = error.errno
    return failure


def without_home(text: str) -> str:
    """A text or JSON that is to be saved, `~` in it for the user's home folder, if there is one."""
    home = os.path.expanduser("~")
    for written in (home, json.dumps(home)[1:-1]):
        if len(home) > 1:
            text = re.sub(rf"(?<![\w./~-]){re.escape(written)}/", "~/", text)
    return text


def environment(**changed: str) -> dict[str, str]:
    """This process's environment with some variables changed, for a process to be started."""
    return os.environ | changed


@contextmanager
def environment_with(variables: dict[str, str]) -> Iterator[None]:
    """Variables of this process's environment, for a while: what it starts inherits them."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def printable(text: str) -> str:
    """A user's text to be printed, written or drawn: what is not printable, as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def aside(path: Path) -> Path:
    """Rename `path` to the first free one of `<path>.1`, `<path>.2`, ...; return the new path."""
    number = 1
    while (kept := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(kept)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Write a file atomically: `save(beside)` writes beside it, then that is renamed to `path`.

    Raises:
        OSError: it cannot be written, and `path` is as it was; the message says why.
    """
    beside = path.with_name(f"{path.name}.part")
    try:
        save(beside)
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if not isinstance(error, OSError) or error.errno is None:
            raise
        raise _failure(error, f"{path} cannot be written", "make room or give leave") from error


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Hold the lock of `folder`, a file beside it; the lock ends with the process.

    Notebooks of one run or sweep wait for each other, `COMPANION_PATIENCE` seconds at most, and
    then find what the other has made.

    Args:
        folder: the folder that only one process at a time may change.
        doing: the verb for the message, `"preparing"` for example.

    Raises:
        RuntimeError: another process holds the lock; the message says which.
        ValueError: `COMPANION_PATIENCE` is no number.
    """
    make(folder.parent)
    held = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(held)
    patience = os.environ.get("COMPANION_PATIENCE") or "0"
    try:
        seconds = float(patience)
    except ValueError:
        raise ValueError(
            f"COMPANION_PATIENCE is {patience!r}; give seconds, or unset it."
        ) from None
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        holder = held.read_text(errors="replace") or "unknown"
        raise RuntimeError(
            f"Another run is {doing} {folder} ({holder}): wait until it has ended, then run again."
        ) from None
    try:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        held.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {now}")
        yield
    finally:
        lock.release()


class Journal:
    """What has been done, one line of JSON each: an interrupted run reads it and goes on.

    Attributes:
        records: the lines that are there, in order; a line that was cut off is left out.
    """

    def __init__(self, path: Path) -> None:
        """Read the journal at `path`; where there is none, the first `add` begins it."""
        self.path = path
        self.records = []
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                self.records.append(json.loads(line))
            except ValueError:
                continue

    def add(self, record: dict) -> None:
        """Append a record. Its line begins with a line break, which ends one that was cut off."""
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(record))
