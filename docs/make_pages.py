"""Write README.md and docs/findings.md from their templates in docs/pages/: `make docs`.

A template is Markdown with expressions of Jinja. Every result in it is one, read from
data/recorded/, so that no page says what no file holds. What a template may use:

| name | gives |
|---|---|
| `retinas["06"]`, `mnist["02"]`, ... | the numbers of data/recorded/<profile>/, by notebook |
| `sweep("retinas-448", "04", "kappa")` | one number of a sweep's runs of one notebook, a series |
| `discs` | by recipe, times chance on the disc in photographs for validation, mean of the seeds |
| `table1` | distances to CLEAR's Table 1: a row a training, a column a reading or control |
| `score | percent`, `| percent(1)`, `| decimals(2)`, `| thousands` | a number, written |
| `score | interval("percent")` | the ends of its 95 % interval, `low` to `high` |
| `series | spread("decimals", 2)` | the smallest to the largest of several |
| `paper("73.2 %")` | what a paper says, not we |
| `section("6.1")` | a link to the notebook, once it is certain that it has such a section |
| `given(condition)` | nothing; an error where the sentence beside it is no longer true |

Wherever a link begins with `@`, the page's way to the root of the repository is put.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from lib import paths
from lib import sweep as sweeps
from lib.data import sources
from lib.methods import clear

TEMPLATES = paths.ROOT / "docs" / "pages"
OPTIC_DISCS = paths.RECORDED / "sweeps" / "optic-discs" / "results.csv"
PAGES = {"README.md": "README.md", "findings.md": "docs/findings.md"}


def percent(value: float, digits: int = 0) -> str:
    """A share as `91 %`."""
    return f"{value:.{digits}%}".replace("%", " %")


def decimals(value: float, digits: int = 1) -> str:
    """A number with so many digits after its point; no minus before zeros."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def thousands(value: float) -> str:
    """A count as `44,351`."""
    return f"{value:,.0f}"


WRITTEN = {"percent": percent, "decimals": decimals, "thousands": thousands}


def interval(score: dict[str, float], how: str = "percent", digits: int = 0) -> str:
    """The ends of a score's interval."""
    return " to ".join(WRITTEN[how](score[end], digits) for end in ("low", "high"))


def spread(series: pd.Series, how: str = "percent", digits: int = 0) -> str:
    """The smallest and the largest of several values."""
    return " to ".join(WRITTEN[how](value, digits) for value in (series.min(), series.max()))


def given(condition: bool) -> str:
    """Nothing, where the premise of a sentence holds.

    Raises:
        ValueError: it does not.
    """
    if not condition:
        raise ValueError("what is recorded now contradicts the sentence: write another one")
    return ""


def paper(text: str) -> str:
    """What a paper says."""
    return text


def section(number: str) -> str:
    """A link to the notebook that has this section.

    Raises:
        ValueError: none has.
    """
    (notebook,) = paths.NOTEBOOKS.glob(f"0{number[0]}_*.ipynb")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    if not re.search(rf"^## {re.escape(number)} ", text, re.MULTILINE):
        raise ValueError(f"{notebook.name} has no section {number}")
    return f"[{number}](@notebooks/{notebook.name})"


def sweep(name: str, notebook: str, metric: str) -> pd.Series:
    """One number of one notebook in all points of a recorded sweep (`lib.sweep.recorded`)."""
    return sweeps.recorded(name, notebook, metric).set_index("point").value


def recorded() -> dict[str, dict[str, dict[str, Any]]]:
    """The recorded numbers, by profile and notebook."""
    found = {}
    for file in sorted(paths.RECORDED.glob("*/0*.json")):
        numbers = json.loads(file.read_text(encoding="utf-8"))["numbers"]
        found.setdefault(file.parent.name, {})[file.stem[:2]] = numbers
    return found


def distances(mnist: dict[str, Any]) -> pd.DataFrame:
    """How near CLEAR's Table 1 each training comes, by reading of Eq. 3 and control."""
    names = [name for name, score in mnist["table1"].items() if isinstance(score, dict)]
    table = pd.DataFrame({name: sweep("mnist", "02", f"table1.{name}.distance") for name in names})
    table.loc["recorded"] = [mnist["table1"][name]["distance"] for name in names]
    return table


def page(template: str) -> str:
    """A page's text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    environment.filters |= WRITTEN | {"interval": interval, "spread": spread}
    numbers = recorded()
    text = environment.get_template(template).render(
        **numbers,
        **{function.__name__: function for function in (given, paper, section, sweep)},
        right_eyes={split: sum(counts) for split, counts in sources.EYEPACS_RIGHT_EYES.items()},
        table1=distances(numbers["mnist"]["02"]),
        discs=pd.read_csv(OPTIC_DISCS).groupby("recipe").times_chance.mean(),
        readings=list(clear.RULES),
    )
    up = "../" * PAGES[template].count("/")
    return re.sub(r"(?<=\]\()@|(?<=src=\")@", up, text)


if __name__ == "__main__":
    for template, name in PAGES.items():
        write = partial(Path.write_text, data=page(template), encoding="utf-8")
        paths.write(paths.ROOT / name, write)
