"""Where things are, absolute, so that Jupyter, nbval and papermill find them from any folder.

The one module that reads the environment, and the home of how files and folders are written.

| variable              | moves                                                   | default |
|-----------------------|---------------------------------------------------------|---------|
| `COMPANION_DATA`      | what is made: raw/, prepared/, sequencers/              | `data/` |
| `COMPANION_BUILD`     | executed notebooks, HTML, figures, metrics              | `build/`|
| `COMPANION_DATASETS`  | a read-only folder of data sets on disk, searched first | none    |

A relative path is taken from the repository's root, whichever folder the notebook runs in.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
RECORDED = ROOT / "data" / "recorded"
DATA = (ROOT / (os.environ.get("COMPANION_DATA") or "data")).resolve()
BUILD = (ROOT / (os.environ.get("COMPANION_BUILD") or "build")).resolve()
RAW = DATA / "raw"
PREPARED = DATA / "prepared"
SEQUENCERS = DATA / "sequencers"


def dataset(relative: str) -> Path:
    """The path of a data set on disk, in COMPANION_DATASETS if it is there, else below `RAW`.

    The path need not exist: whoever asks says what to do when it does not.

    Args:
        relative: the path below either folder, `"MNIST/raw"` for example.
    """
    shelf = os.environ.get("COMPANION_DATASETS")
    if shelf:
        found = (ROOT / shelf).resolve() / relative
        if found.exists():
            return found
    return RAW / relative


def in_jupyterlab() -> bool:
    """Whether a person runs this in JupyterLab, which names its sessions; papermill does not."""
    return "JPY_SESSION_NAME" in os.environ


def environment(**changed: str) -> dict[str, str]:
    """This process's environment with some variables changed, for a process to be started."""
    return os.environ | changed


def aside(path: Path) -> Path:
    """Rename `path` to the first free one of `<path>.1`, `<path>.2`, ...; return the new path."""
    number = 1
    while (kept := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(kept)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Write a file atomically: `save(beside)` writes beside it, then that is renamed to `path`."""
    beside = path.with_name(f"{path.name}.part")
    save(beside)
    os.replace(beside, path)


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Hold the lock of `folder`, a file beside it; the lock ends with the process.

    Args:
        folder: the folder that only one process at a time may change.
        doing: the verb for the message, `"preparing"` for example.

    Raises:
        RuntimeError: another process holds the lock; the message says which.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    held = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(held)
    try:
        lock.acquire(timeout=0)
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
