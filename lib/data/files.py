"""A user's files as they lie on disk: folders walked, tables read strictly, contents hashed."""

import codecs
import csv
import hashlib
import io
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from lib import paths

KEPT_FROM = 1.0  # seconds of hashing from which on the hashes are kept for the next time
_SETTLED = 2.0  # seconds after which a change of a file changes its times for sure


def walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Every file below a folder, also behind links to folders, each real folder once.

    A link to a folder that holds `folder` is a loop, and not followed.

    Returns:
        The files in order, whatever they are; and the folders that may not be read.

    Raises:
        OSError: A folder cannot be read for another reason, which may pass.
    """
    here = folder.resolve()
    seen = set(here.parents)
    files = []
    closed = []

    def note(error: OSError) -> None:
        if not isinstance(error, PermissionError):
            raise error
        closed.append(Path(error.filename))

    for place, below, names in os.walk(folder, onerror=note, followlinks=True):
        below.sort()
        real = Path(place).resolve()
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        files += [os.path.join(place, name) for name in names]
    return [Path(file) for file in sorted(files)], closed


def read_table(path: Path, needed: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV table as it is written: every value is text, without blanks around it.

    Values are separated by commas, semicolons or tabs. The text is UTF-8, or UTF-16 with its mark,
    as Excel writes it. Columns without a name, and lines without a value, are left out.

    Args:
        path: The table.
        needed: Columns that it must have.

    Returns:
        The table; the names of its columns are in lower case.

    Raises:
        ValueError: Names the table, the line, and the usual cause.
    """
    lines = list(io.StringIO(_decoded(path), newline=""))
    first = next((line for line in lines if line.strip()), "")
    records = _records(path, lines, max(",;\t", key=first.count))
    _, header = next(records, (0, []))
    header = [name.lower() for name in header]
    named = [name for name in header if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise ValueError(f"{path} has the column {', '.join(twice)} more than once: leave one")
    if absent := [name for name in needed if name not in named]:
        shown = ", ".join(name if name.isprintable() else ascii(name) for name in named)
        found = f"has the columns {shown}" if named else "is empty"
        raise ValueError(
            f"{path} {found}; it needs {' and '.join(needed)}, and has no {' or '.join(absent)}: "
            "rename a column, or save the table as CSV anew"
        )
    while header and not header[-1]:
        header.pop()
    rows = []
    for number, values in records:
        if len(values) < len(header):
            raise ValueError(
                f"{path}, line {number} has {len(values)} values for {len(header)} columns: it was "
                "cut off, or its values are not separated as those of the first line"
            )
        for name, value in zip_longest(header[1:], values[1:], fillvalue=""):
            if value and not name:  # a first column without name is pandas' index
                raise ValueError(
                    f"{path}, line {number} has the value {value!r} in a column without name: name "
                    "the column, or put a text that holds a comma between quotation marks"
                )
        rows.append(values[: len(header)])
    if not rows:
        raise ValueError(f"{path} has no line below its columns: fill it, or take it away")
    return pd.DataFrame(rows, columns=header, dtype=str)[named]


def _decoded(path: Path) -> str:
    """The text of a table; ValueError names the line that is in another encoding."""
    data = path.read_bytes()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    advice = "save it as `CSV UTF-8`, as Excel calls it"
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].count(b"\n")
        raise ValueError(
            f"{path}, line {line}: the byte {data[error.start]:#04x} is not UTF-8, so the table is "
            f"probably in Latin-1, as Excel's plain CSV, or no CSV: {advice}"
        ) from None
    if 4 * text.count("\0") > len(text):
        line = 1 + text[: text.index("\0")].count("\n")
        raise ValueError(
            f"{path}, line {line} holds zero bytes, so the table is probably in UTF-16: {advice}"
        )
    return text


def _records(path: Path, lines: list[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line, counted from 1, and the values of every record with a value."""
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    before = 0
    while before < len(lines):
        stray = ""
        try:
            values = next(reader)
        except csv.Error as error:
            stray = str(error)
        text = "".join(lines[before : reader.line_num])
        if text.count('"') % 2:
            stray = "one without its partner"
        elif not stray and any("\n" in value and separator in value for value in values):
            stray = f"a text goes on to line {reader.line_num}"
        if stray:
            raise ValueError(
                f"{path}, line {before + 1}: a stray quotation mark? ({stray}) Take it out, or "
                "write it twice, in a text between quotation marks"
            )
        values = [value.strip() for value in values]
        if any(values):
            yield before + 1, values
        before = reader.line_num


def content_hashes(folder: Path, files: Iterable[Path]) -> dict[Path, str]:
    """The SHA-256 of files, in hexadecimal; "" of one that may not be read, or is none.

    What took long is kept for `folder` in raw/.hashes. It is taken from there as long as a file's
    size, times and inode are the same, unless they are so young that a change may not show in them.

    Raises:
        OSError: A file cannot be read for another reason, which may pass.
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    cache = paths.RAW / ".hashes" / f"{digest[:16]}.json"
    known = {}
    with suppress(OSError, ValueError, TypeError):  # not there, or not whole
        known = dict(json.loads(cache.read_text()))
    begun = time.time()
    young = set()
    hashes = {}
    for file in files:
        try:
            about = file.stat()
            if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
                hashes[file] = ""
                continue
            times = about.st_mtime_ns, about.st_ctime_ns
            state = f"{file} {about.st_size} {times} {about.st_ino}"
            if state not in known:
                with file.open("rb") as opened:
                    known[state] = hashlib.file_digest(opened, "sha256").hexdigest()
        except PermissionError:
            hashes[file] = ""
            continue
        hashes[file] = known[state]
        if max(times) / 1e9 >= begun - _SETTLED:
            young.add(state)
    if time.time() - begun > KEPT_FROM:
        with suppress(OSError):  # a shortcut, no more
            cache.parent.mkdir(parents=True, exist_ok=True)
            kept = {state: known[state] for state in known if state not in young}
            paths.write(cache, lambda path: path.write_text(json.dumps(kept)))
    return hashes
