"""Make student and solution notebooks of the exercises: `make exercises`.

One source for each notebook, `NN_name.py` in jupytext's percent format. Its cells are tagged: an
exercise has a `stub` that students get, a `solution`, wrong answers tagged `misconception` that the
tests plant, and a `check`. Students get the first and the last; the solution notebook has the
second in place of the first. Both carry nbgrader's metadata. The site has all three, the solution
folded.
"""

import hashlib
import itertools
import re
import shutil
from functools import partial
from pathlib import Path

import jupytext
import nbformat
from nbconvert.preprocessors import TagRemovePreprocessor
from nbformat import NotebookNode, v4

from lib import paths

from checks import version_of

SOURCES = paths.ROOT / "exercises"
KINDS = {"student": ("solution", "misconception"), "solution": ("stub", "misconception")}
HEADING = re.compile(
    r"## (?P<number>\d\.\d) (?P<title>.+) "
    r"\((?P<kind>predict|compute|extend), (?P<points>\d+) points?, (?P<minutes>\d+) minutes\)"
)


DETAILS = re.compile(r"(<details><summary>.+?</summary>)\s*(.+?)\s*(</details>)", re.DOTALL)
SOLUTION = "<details><summary>Solution</summary>\n\n{}\n\n</details>"


def names() -> list[str]:
    """The notebooks that have exercises, by name."""
    return sorted(path.stem for path in SOURCES.glob("[0-9]*.py"))


def reads(text: str) -> NotebookNode:
    """A source of exercises as a notebook, all its cells.

    Blank lines are put round what is folded: without them Markdown within HTML stays as written.
    """
    book = jupytext.reads(text, fmt="py:percent")
    book.metadata = NotebookNode(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"}
    )
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = DETAILS.sub(r"\1\n\n\2\n\n\3\n", cell.source).strip()
    return book


def read(name: str) -> NotebookNode:
    """The source of a notebook's exercises, all its cells."""
    return reads((SOURCES / f"{name}.py").read_text(encoding="utf-8"))


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def _nbgrader(identity: str, **settings: bool | int) -> dict:
    metadata = {"grade": False, "locked": True, "solution": False, "task": False}
    return metadata | settings | {"grade_id": identity, "schema_version": 3}


def make(name: str, kind: str) -> NotebookNode:
    """One notebook for students or with solutions.

    Args:
        name: of the notebook, as `01_cam_imagenet`.
        kind: a key of `KINDS`.
    """
    book = read(name)
    heading = None
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
        heading = HEADING.match(cell.source) or heading
        identity = heading["number"].replace(".", "-") if heading else ""
        if tags(cell) and heading is None:
            raise ValueError(f"{name}: a cell tagged {tags(cell)} before the first exercise")
        if {"stub", "solution"} & set(tags(cell)) and cell.cell_type == "code":
            options = {"locked": False, "solution": True}
            cell.metadata["nbgrader"] = _nbgrader(f"answer-{identity}", **options)
        elif "check" in tags(cell):
            options = {"grade": True, "points": int(heading["points"])}
            cell.metadata["nbgrader"] = _nbgrader(f"check-{identity}", **options)
        else:
            cell.metadata["nbgrader"] = _nbgrader(f"read-{number}")
        begun = f'checks.begin("{name}"'
        cell.source = cell.source.replace(f"{begun})", f'{begun}, version="{version_of(name)}")')
    remover = TagRemovePreprocessor(remove_cell_tags=set(KINDS[kind]), enabled=True)
    book, _ = remover.preprocess(book, {})
    book.metadata["companion"] = {"untouched": fingerprint(book)}
    return book


def page(text: str) -> NotebookNode:
    """A source of exercises as the site shows it: tasks, stubs and checks, solutions folded.

    Args:
        text: of the source. MyST-NB reads it with this function, see `nb_custom_formats`.
    """
    book = reads(re.sub(r"`notebooks/(\w+\.ipynb)`", r"[\1](../notebooks/\1)", text))
    book.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    remover = TagRemovePreprocessor(remove_cell_tags={"misconception"}, enabled=True)
    book, _ = remover.preprocess(book, {})
    cells = []
    for solved, group in itertools.groupby(book.cells, lambda cell: "solution" in tags(cell)):
        if solved:
            parts = [
                f"```python\n{cell.source}\n```" if cell.cell_type == "code" else cell.source
                for cell in group
            ]
            cells.append(v4.new_markdown_cell(SOLUTION.format("\n\n".join(parts))))
        else:
            cells.extend(group)
    book.cells = cells
    return book


def fingerprint(book: NotebookNode) -> str:
    """A hash of what stands in a notebook's cells."""
    sources = "\0".join(cell.source for cell in book.cells)
    return hashlib.sha256(sources.encode()).hexdigest()


def keep_work(path: Path) -> Path | None:
    """Move a notebook that somebody has worked in out of the way; where to, if it was one."""
    if not path.exists():
        return None
    book = nbformat.read(path, 4)
    if book.metadata.get("companion", {}).get("untouched") == fingerprint(book):
        return None
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}.ipynb")).exists():
        number += 1
    return path.rename(kept)


def write(folder: Path) -> None:
    """Write student/ and solution/ into a folder, with the checks beside the notebooks."""
    for kind in KINDS:
        paths.make(folder / kind)
        for module in ("checks.py", "answers.py"):
            shutil.copy(SOURCES / module, folder / kind)
        for name in names():
            path = folder / kind / f"{name}.ipynb"
            kept = keep_work(path)
            if kept:
                print(f"{path.name} was worked in: kept as {kept.name}")
            text = nbformat.writes(make(name, kind))
            paths.write(path, partial(Path.write_text, data=text, encoding="utf-8"))
    print(f"{len(names())} notebooks each in {', '.join(str(folder / kind) for kind in KINDS)}")


if __name__ == "__main__":
    write(paths.BUILD / "exercises")
