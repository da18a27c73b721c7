"""Write the guide's table of minutes into README.md, and the glossary's pictures: `make guide`.

The cell that holds a section's heading has in its metadata, under `minutes` and the section's
number, the section's week, the minutes that each of the three plans spends on teaching it, and the
exercises that belong to it:

    "minutes": {"1.2": {"week": 1, "weeks": 30, "half_day": 20, "short": 12,
        "weeks_exercises": ["1.2", "1.4", "1.5"], "half_day_exercises": ["1.2"],
        "short_exercises": []}}

The minutes of an exercise stand in its own heading.
"""

import re
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from lib import paths
from lib.data import phantom, retina

FOLDER = paths.ROOT / "teaching"
PLANS = {"short": "90 minutes", "half_day": "half a day", "weeks": "four weeks"}
COLUMNS = ("week", *PLANS, *(f"{plan}_exercises" for plan in PLANS))
SECTION = re.compile(r"^## (\d\.\d+) (.+)$", re.MULTILINE)
EXERCISE = re.compile(r"^# ## (\d\.\d) .+, (\d+) minutes\)$", re.MULTILINE)
BLOCK = "<!-- minutes: begin, written by make_guide.py -->\n{}\n<!-- minutes: end -->"


def headings() -> list[tuple[str, str, dict]]:
    """The sections of all notebooks: number, title, and the metadata of the heading's cell."""
    found = []
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                for number, title in SECTION.findall(cell.source):
                    found.append((number, title, cell.metadata))
    return found


def minutes_of_exercises() -> dict[str, int]:
    """The exercises' minutes, as their headings say."""
    found = {}
    for path in sorted((paths.ROOT / "exercises").glob("[0-9]*.py")):
        found |= {number: int(minutes) for number, minutes in EXERCISE.findall(path.read_text())}
    return found


def sections() -> pd.DataFrame:
    """A row for each section: its title, week, and the minutes and exercises of each plan.

    Raises:
        ValueError: a section has no minutes, or not all that `COLUMNS` names.
    """
    rows = {}
    for number, title, metadata in headings():
        row = metadata.get("minutes", {}).get(number, {})
        if set(row) != set(COLUMNS):
            raise ValueError(
                f"{number} {title}: the metadata of the heading's cell has {sorted(row)} under "
                f'["minutes"]["{number}"], and {sorted(COLUMNS)} are wanted'
            )
        rows[number] = {"title": title} | row
    table = pd.DataFrame.from_dict(rows, orient="index")
    minutes = minutes_of_exercises()
    for plan in PLANS:
        table[f"{plan}_practice"] = [
            sum(minutes[number] for number in numbers) for numbers in table[f"{plan}_exercises"]
        ]
    return table


def _cell(teaching: int, practice: int) -> str:
    return " + ".join(str(minutes) for minutes in (teaching, practice) if minutes) or "·"


def minutes_table(table: pd.DataFrame) -> str:
    """The table of minutes, in Markdown: teaching + exercises for each section and plan."""
    lines = ["| section | " + " | ".join(PLANS.values()) + " | week | exercises |"]
    lines.append("|---|" + "--:|" * len(PLANS) + "--:|---|")
    for section, row in table.iterrows():
        cells = [_cell(row[plan], row[f"{plan}_practice"]) for plan in PLANS]
        cells += [str(row.week), ", ".join(row.weeks_exercises) or "·"]
        lines.append(f"| {section} {row.title} | {' | '.join(cells)} |")
    sums = []
    for plan in PLANS:
        teaching, practice = table[plan].sum(), table[f"{plan}_practice"].sum()
        sums.append(f"**{teaching + practice}** ({teaching} + {practice})")
    lines.append(f"| **together** | {' | '.join(sums)} | | |")
    return "\n".join(lines)


def guide(text: str) -> str:
    """The guide with its table of minutes written anew."""
    pattern = re.escape(BLOCK).replace(re.escape("{}"), ".*?")
    return re.sub(pattern, lambda _: BLOCK.format(minutes_table(sections())), text, flags=re.DOTALL)


def pictures() -> dict[str, Image.Image]:
    """A square of the phantom of notebook 3, 3.2, round each kind of lesion, disc and fovea."""
    sick, masks = phantom.draw_photograph(grade=4, seed=71, size=700, eye="right")
    healthy, _ = phantom.draw_photograph(grade=0, seed=71, size=700, eye="right")
    found = {}
    for kind, mask in masks.items():
        pieces, _ = ndimage.label(mask)
        areas = np.bincount(pieces.ravel())
        areas[0] = 0  # what lies outside the mask is no piece
        rows, columns = np.nonzero(pieces == areas.argmax())
        found[kind] = (sick, int(rows.mean()), int(columns.mean()))
    dark = ndimage.gaussian_filter(healthy[230:460, 230:460, 1].astype(float), 17)
    row, column = np.unravel_index(dark.argmin(), dark.shape)
    found["fovea"] = (healthy, row + 230, column + 230)
    squares = {}
    for kind, (photograph, row, column) in found.items():
        half = 110 if kind in (retina.OPTIC_DISC, "fovea", "preretinal_haemorrhage") else 70
        square = Image.fromarray(photograph).crop(
            (column - half, row - half, column + half, row + half)
        )
        squares[kind] = square.resize((128, 128), Image.Resampling.LANCZOS)
    return squares


if __name__ == "__main__":
    readme = FOLDER / "README.md"
    text = guide(readme.read_text(encoding="utf-8"))
    paths.write(readme, partial(Path.write_text, data=text, encoding="utf-8"))
    paths.make(FOLDER / "pictures")
    for kind, square in pictures().items():
        save = partial(square.save, format="jpeg", quality=80)
        paths.write(FOLDER / "pictures" / f"{kind}.jpeg", save)
