"""An output folder of `python -m lib explain`: whose it is, what it holds, its two tables."""

import csv
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lib import paths

_NUMBERS = "p0 p1 p2 p3 p4 share0 share1 share2 share3 share4".split()
_COLUMNS = ["image", "grade", *_NUMBERS, "regions", "figure", "path", "sha256"]
_NAMES = ["image", "path", "reason"]  # columns that hold what the user called something
MADE_BY = "explain.json"
JOURNAL = "journal.jsonl"


def stamp_of(path: Path) -> list[int]:
    """What changes whenever a file does."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def require_own(out: Path, made_by: dict[str, str]) -> None:
    """Raise ValueError unless `out` is new, empty, or holds what the same request has made."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file: choose a folder with --out")
    told = out / MADE_BY
    if not told.exists():
        # What a run that was stopped at once can have left.
        others = sorted({*os.listdir(out)} - {"results.lock", f"{MADE_BY}.part"})
        if others:
            raise ValueError(
                f"{out} is not empty and not of this command ({paths.printable(others[0])} is in "
                "it): choose another folder with --out"
            )
        return
    try:
        found = json.loads(told.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() >= made_by.keys():
        raise ValueError(
            f"{told} does not say whose results {out} holds: it is damaged, or of an earlier "
            "version. Choose another folder with --out, or move them away"
        )
    names = [name for name in ("weights", "config", "relu") if found[name] != made_by[name]]
    if names:
        raise ValueError(
            f"{out} holds other results of sequencer {found['sequencer']!r} (their "
            f"{' and '.join(names)} differ): choose another folder with --out, or move them away"
        )


class Results:
    """What an output folder holds, by the path of the photograph.

    Its journal lists every figure and every table before it is written: what it does not list is
    not this command's, and never replaced.

    rows: what is explained, `figure` empty where none was drawn; reasons: why files are not; drawn:
    whether a photograph without its figure still has to be explained.
    """

    def __init__(self, out: Path, made_by: dict[str, str], drawn: bool = True) -> None:
        """Take `out` for the results of what `made_by` names, and read its journal."""
        self.out = out
        self.drawn = drawn
        self.rows = {}
        self.reasons = {}
        self._figures = {}
        self._tables = set()
        told = json.dumps(made_by, indent=1) + "\n"
        if not (out / MADE_BY).exists():
            paths.write(out / MADE_BY, lambda beside: beside.write_text(told))
        try:
            self._journal = paths.Journal(out / JOURNAL)
        except ValueError as error:
            raise ValueError(
                f"{out / JOURNAL} is damaged ({error}): choose another folder with --out, or move "
                "it away"
            ) from error
        for record in self._journal.records:
            self._take(record)
        names = [*os.listdir(out), *self._figures.values()]
        self._taken = {_folded(name) for name in names}
        self._count = Counter()

    def _take(self, record: Any) -> None:
        """Learn from a line of the journal what it tells; one that is none of ours, nothing."""
        record = record if isinstance(record, dict) else {}
        path = Path(str(record.get("path")))
        figure = record.get("figure")
        if "table" in record:
            self._tables.add(str(record["table"]))
        elif "reason" in record:
            self.rows.pop(path, None)
            self.reasons.pop(path, None)
            if record["reason"]:
                self.reasons[path] = str(record["reason"])
        elif figure == "" or _is_a_figure(figure):
            if figure:
                self._figures[path] = figure
            if record.keys() >= {*_COLUMNS, "stamp"}:
                self.reasons.pop(path, None)
                self.rows[path] = record

    def _add(self, record: dict) -> None:
        self._journal.add(record)
        self._take(record)

    def below(self, request: list[Path], known: Iterable[Path] | None = None) -> list[Path]:
        """Of the paths that are known, those that are asked for, or lie in what is asked for."""
        asked = set(request)
        known = [*self.rows, *self.reasons] if known is None else known
        return [path for path in known if not asked.isdisjoint([path, *path.parents])]

    def has(self, path: Path, content: dict | None = None) -> bool:
        """Whether a photograph is explained with that content, by default with that on disk."""
        row = self.rows.get(path)
        if row is None or (self.drawn and not row["figure"]):
            return False
        if not (self.out / row["figure"]).exists():
            return False
        if content is None:
            try:
                return row["stamp"] == stamp_of(path)
            except OSError:
                return False
        same = row["sha256"] == content["sha256"]
        if same:
            self._add(row | content)
        return same

    def add(self, path: Path, content: dict, row: dict, fig: Figure | None) -> None:
        """Write a photograph's figure, where it has one, and note its row."""
        figure = ""
        if fig:
            figure = self._figures.get(path) or self._new_figure(path)
            self._add({"path": str(path), "figure": figure})
            save = partial(fig.savefig, format="png", pil_kwargs={"compress_level": 1})
            paths.write(self.out / figure, save)
        named = {"image": path.name, "figure": figure, "path": str(path)}
        self._add(named | row | content)

    def _new_figure(self, path: Path) -> str:
        """A figure's name for a photograph that no file and no other figure has, in any case."""
        stem = _portable(path.stem).encode()[:200].decode(errors="ignore")
        while True:
            self._count[stem] += 1
            number = self._count[stem]
            name = f"{stem}-{number}.png" if number > 1 else f"{stem}.png"
            if _folded(name) not in self._taken:
                self._taken.add(_folded(name))
                return name

    def reject(self, path: Path, reason: str) -> None:
        """Note why a file is not explained."""
        if self.reasons.get(path) != reason:
            self._add({"path": str(path), "reason": reason})

    def forget(self, unlisted: set[Path]) -> None:
        """Take those from the tables that are on disk no more; what was explained, with a word.

        Of one that is there, such as a folder that can be read now, no old reason holds.
        """
        for path in sorted(unlisted):
            try:
                path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                figure = self._figures.get(path)
                self.reject(path, f"no longer there: {figure} shows it" if figure else "")
            except OSError:  # a folder that cannot be read now
                continue
            else:
                if path in self.reasons:
                    self.reject(path, "")

    def write_tables(self) -> None:
        """Write results.csv and rejects.csv; one that somebody has changed is kept aside."""
        rows = []
        for path, reason in self.reasons.items():
            rows.append({"image": path.name, "reason": reason, "path": str(path)})
        self._write_table("results.csv", self.rows.values(), _COLUMNS)
        self._write_table("rejects.csv", rows, ["image", "reason", "path"])

    def _write_table(self, name: str, rows: Iterable[dict], columns: list[str]) -> None:
        cells = []
        for row in rows:
            cells.append(
                [_cell(str(row[name])) if name in _NAMES else row[name] for name in columns]
            )
        table = pd.DataFrame(cells, columns=columns)
        data = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode()
        path = self.out / name
        old = path.read_bytes() if path.exists() else b""
        if old == data:
            return
        if old and hashlib.sha256(old).hexdigest() not in self._tables:
            print(f"{name} had been changed, and is kept as {paths.aside(path).name}")
        self._add({"table": hashlib.sha256(data).hexdigest()})
        paths.write(path, lambda beside: beside.write_bytes(data))


# Names as users have them


def counted(reasons: dict[Path, str]) -> list[str]:
    """A line for each kind of reason: how many files have it, and one of them."""
    kinds = {}
    for path, reason in reasons.items():
        kinds.setdefault(reason.split(":")[0], []).append(path)
    lines = []
    for which in kinds.values():
        example = f"{paths.printable(which[0].name)}: {paths.printable(reasons[which[0]])}"
        lines.append(f"{len(which)} rejected, {example}")
    return lines


def shortened(name: str) -> str:
    """A name for a figure's title."""
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"


def _is_a_figure(name: Any) -> bool:
    """Whether a line of the journal may name a figure so."""
    return isinstance(name, str) and name == _portable(name) and name.endswith(".png")


def _portable(name: str) -> str:
    """A name that every disk takes and no shell mistakes."""
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"[^\w .()-]|^[-. ]", "_", name)


def _folded(name: str) -> str:
    """Two names of which some disk takes one for the other are equal after this."""
    return unicodedata.normalize("NFC", name).casefold()


def _cell(name: str) -> str:
    """A name in a table: no spreadsheet takes it for a formula, and it is UTF-8."""
    name = re.sub(r"\\(?=udc)", r"\\udc5c", name)
    name = re.sub(r"[\udc80-\udcff]", lambda byte: f"\\u{ord(byte[0]):x}", name)
    return f"'{name}" if re.match(r"'*[\s=+\-@＝＋－＠]", name) else name


def _name(cell: str) -> str:
    """The name that `_cell` was given."""
    name = cell[1:] if re.match(r"'+[\s=+\-@＝＋－＠]", cell) else cell
    name = re.sub(r"\\(udc[89a-f].)", lambda byte: chr(int(byte[1][1:], 16)), name)
    return name.replace(r"\udc5c", "\\")


def read_results(path: str | Path) -> pd.DataFrame:
    r"""The results.csv or rejects.csv of `explain_files`, with names as they are on disk.

    In the file a name that a spreadsheet would take for a formula, as `=1+2.jpg`, stands behind an
    apostrophe, and a byte that is no UTF-8 as `\udcff`.
    """
    text = dict.fromkeys([*_NAMES, "regions", "figure", "sha256"], str)
    empty = {name: [""] for name in _NUMBERS}
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
    for column in table.columns.intersection(_NAMES):
        table[column] = pd.Series(map(_name, table[column]), dtype=object)
    return table
