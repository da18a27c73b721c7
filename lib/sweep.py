"""A grid of parameters over notebooks: checked, run on any executor, resumed; table and figures.

    build/sweeps/<name>/  results.csv  results.parquet  index.html  <metric>.png  journal.jsonl
                          runs/<run>/  what `python -m lib run` leaves in build/<run>/

A notebook that has the same parameters in several points is one task. A task is known by all that
its numbers come from: the notebook's cells, lib/, requirements.lock, its parameters, what it reads.
"""

import hashlib
import html
import itertools
import json
import math
import re
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
import yaml
from matplotlib.figure import Figure
from tqdm import tqdm

import lib
from lib import execution, figures, notebook, paths
from lib.execution import Outcome, Task

KEYS = {  # of a file, and what each holds
    "profile": (str, "the name of a profile"),
    "notebooks": (list, 'numbers in quotes: ["03", "04"]'),
    "set": (dict, "{name: value}, for every point"),
    "grid": (dict, "{name: [value, value]}"),
    "points": (list, "a list of {name: value}, each with the same names"),
    "plot": (list, "a list of metrics"),
    "lines": (dict, "{metric: {label: number}}"),
}


class Sweep(NamedTuple):
    """What is to be swept.

    Attributes:
        name: of its folder below build/sweeps/.
        notebooks: their numbers.
        points: the parameters that vary, each point with the same names.
        profile: whose parameters hold where a point says nothing.
        fixed: parameters of every point; `{name}` in a text stands for the point's value.
        plot: the metrics to draw; empty for all numbers that are there in two points at least.
        lines: by metric, levels to draw beside it, by their label.
        asks: in words, what is to be found out.
    """

    name: str
    notebooks: list[str]
    points: list[dict[str, Any]]
    profile: str = "bundled"
    fixed: dict[str, Any] = {}  # noqa: RUF012, nobody writes to these
    plot: list[str] = []  # noqa: RUF012
    lines: dict[str, dict[str, float]] = {}  # noqa: RUF012
    asks: str = ""


class Point(NamedTuple):
    """A point of a sweep.

    Attributes:
        name: as `seed=0 epochs=1`.
        values: of what varies.
        keys: of its tasks, by notebook.
    """

    name: str
    values: dict[str, Any]
    keys: dict[str, str]


def folder(name: str) -> Path:
    """The folder of a sweep below build/."""
    return paths.BUILD / "sweeps" / name


# What is asked


def names() -> list[str]:
    """The names of all sweeps in notebooks/sweeps/."""
    return sorted(path.stem for path in (paths.NOTEBOOKS / "sweeps").glob("*.yaml"))


def recorded(name: str, number: str, metric: str) -> pd.DataFrame:
    """One number of one notebook in a recorded sweep: its table's lines, one for each point.

    Args:
        name: of a folder of data/recorded/sweeps/.
        number: of the notebook, as "04".
        metric: as the table has it, as "by_source.utem.kappa".

    Returns:
        A column for each parameter that varies, and among others point, notebook, value and text.

    Raises:
        FileNotFoundError: there is no such sweep on record.
        ValueError: it has no such number.
    """
    table = pd.read_csv(
        paths.RECORDED / "sweeps" / name / "results.csv", dtype={"notebook": str, "text": str}
    )
    lines = table[table.notebook.str.startswith(number) & (table.metric == metric)]
    if lines.empty:
        raise ValueError(f"the recorded sweep {name} has no {metric} of notebook {number}")
    return lines


def read(name: str) -> Sweep:
    """The sweep in notebooks/sweeps/<name>.yaml.

    Raises:
        ValueError: there is none; the file is damaged, the message says where.
    """
    if name not in names():
        raise ValueError(
            f"There is no sweep {name!r} in notebooks/sweeps. "
            f"{notebook.did_you_mean(name, names())} Notebooks go by number: 02 -g seed 0,1."
        )
    text = (paths.NOTEBOOKS / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8-sig")
    try:
        said = notebook.read_yaml(text)
        _check_form(said)
        points = said.get("points") or _grid(said["grid"])
        for point in points:
            if not isinstance(point, dict) or not point or list(point) != list(points[0]):
                raise ValueError(f"points must give the same names, got {points[0]} and {point}.")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"sweeps/{name}.yaml: {' '.join(str(error).split())}") from None
    named = {key: said[key] for key in ("profile", "plot", "lines") if key in said}
    return Sweep(
        name, said["notebooks"], points, fixed=said.get("set", {}), asks=_comment(text), **named
    )


def _check_form(said: dict[str, Any]) -> None:
    """Raise ValueError for a key that a file does not have, and for what it does not hold."""
    for key, value in said.items():
        if key not in KEYS:
            raise ValueError(f"there is no key {key!r}. {notebook.did_you_mean(key, KEYS)}")
        kind, form = KEYS[key]
        if not isinstance(value, kind) or not value:
            raise ValueError(f"{key} must be {form}, got {value!r}.")
    if "notebooks" not in said or ("grid" in said) == ("points" in said):
        raise ValueError("notebooks are needed, and either grid or points.")
    for text in said["notebooks"] + said.get("plot", []):
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no text: put it in quotes.")
    for metric, levels in said.get("lines", {}).items():
        found = list(levels.values()) if isinstance(levels, dict) else [None]
        if not all(type(level) in (int, float) for level in found):
            raise ValueError(f"lines of {metric} must be {{label: number}}, got {levels!r}.")


def _grid(varied: dict[str, list]) -> list[dict[str, Any]]:
    """Every combination, the last name varying fastest."""
    for name, values in varied.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{name} in the grid must be a list of values, got {values!r}.")
    combinations = itertools.product(*varied.values())
    return [dict(zip(varied, values, strict=True)) for values in combinations]


def from_words(
    numbers: list[str],
    grid: list[tuple[str, str]],
    given: list[tuple[str, str]],
    profile: str,
    name: str | None,
) -> Sweep:
    """The sweep that a command line asks for.

    Args:
        numbers: of the notebooks.
        grid: pairs of a parameter's name and its values, joined by commas.
        given: pairs of a parameter's name and its value, for every point.
        profile: whose parameters hold otherwise.
        name: of the sweep; None for one made of the notebooks and of what varies.

    Raises:
        ValueError: an unknown profile or notebook; a name that is given twice; nothing varies.
    """
    if not grid:
        raise ValueError(f"Nothing varies: add -g seed 0,1,2, or name one of {', '.join(names())}.")
    kinds = {}
    for each in execution.of_profile(profile, numbers):
        kinds = {
            parameter: kind for parameter, (kind, _) in notebook.declared(each).items()
        } | kinds
    for option, pairs in (("-g", grid), ("-p", given)):
        for place, (parameter, _) in enumerate(pairs):
            if parameter in dict(pairs[:place]):
                raise ValueError(f"{option} {parameter} is given twice: keep one of the two.")
    varied = {}
    for parameter, texts in grid:
        kind = kinds.get(parameter, "str")
        varied[parameter] = [execution.read_value(text, kind) for text in texts.split(",")]
    fixed = {}
    for parameter, text in given:
        fixed[parameter] = execution.read_value(text, kinds.get(parameter, "str"))
    name = name or "-".join(part for part in (*numbers, profile, *varied) if part != "bundled")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"--name {name!r} names a folder: use a plain name like 'seeds'.")
    return Sweep(name, numbers, _grid(varied), profile, fixed)


# What is to be run


def plan(sweep: Sweep) -> tuple[list[Point], dict[str, Task]]:
    """The points, and the tasks by their hashes, makers first; all checked.

    Raises:
        ValueError: an unknown profile, notebook or parameter; a value of another type; two points
            that are one; a product that a notebook reads, that is not there and that none makes.
    """
    if execution.LAST in sweep.notebooks:
        raise ValueError(f"{execution.LAST} reads the numbers of a whole run: leave it out.")
    origin = [library(), _sha256((paths.ROOT / "requirements.lock").read_bytes())]
    points, tasks, outputs = [], {}, {}
    for values in sweep.points:
        name = " ".join(f"{parameter}={value}" for parameter, value in values.items())
        if values in [point.values for point in points]:
            raise ValueError(f"The point {name} is there twice: keep one of the two.")
        chosen = _chosen(sweep, values)
        keys = {}
        for each, parameters in chosen.items():
            used = execution.resolved(each, parameters)
            makers = execution.NEEDS.get(each[:2], ())
            needs = tuple(key for other, key in keys.items() if other[:2] in makers)
            outside = _outside(each, used, chosen)
            outside |= {name: used.get(name, "") for name in ("start", "averaged")}
            read = notebook.made_from(outside)
            known = json.dumps([*origin, _cells(each), used, needs, read], sort_keys=True)
            key = keys[each] = _sha256(known.encode())
            runs = folder(sweep.name) / "runs"
            output = runs / notebook.run_name(each, used) / f"{each}.ipynb"
            if outputs.setdefault(output, key) != key:
                raise ValueError(
                    f"Two points of {each} would be written to {output.parent}, one is {name}: "
                    "leave one of them out."
                )
            tasks[key] = Task(each, parameters, output, needs)
        points.append(Point(name, values, keys))
    return points, tasks


def library() -> str:
    """The SHA-256 of this library's source, as it is where this is called."""
    home = Path(lib.__file__).parent
    content = b""
    for file in sorted(home.rglob("*.py")):
        content += f"{file.relative_to(home)} {_sha256(file.read_bytes())}\n".encode()
    return _sha256(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _cells(name: str) -> list[tuple[str, str]]:
    """Type and source of a notebook's cells: what came out of them does not count."""
    book = json.loads((paths.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]


def _chosen(sweep: Sweep, point: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of each notebook in a point, checked, later ones reading what earlier make."""
    chosen = execution.of_profile(sweep.profile, sweep.notebooks)
    kinds = {}
    for each in chosen:
        kinds[each] = {name: kind for name, (kind, _) in notebook.declared(each).items()}
    for name, value in [*sweep.fixed.items(), *point.items()]:
        if name == "profile":
            raise ValueError("profile is of the whole sweep: --profile, or `profile:` in its file.")
        if name in sweep.fixed and name in point:
            raise ValueError(f"{name} is both set for every point and varied: keep one of the two.")
        takers = [each for each in chosen if name in kinds[each]]
        if not takers:
            known = notebook.did_you_mean(name, sorted(set().union(*kinds.values())))
            raise ValueError(f"No notebook of the sweep has a parameter {name!r}. {known}")
        for each in takers:
            chosen[each][name] = _filled(name, value, point) if isinstance(value, str) else value
    for each, values in chosen.items():
        values["profile"] = sweep.profile
        notebook.check_parameters(each, values, kinds[each])
    execution.link(chosen)
    return chosen


def _filled(name: str, text: str, point: dict[str, Any]) -> str:
    """A text, the point's values put where it names them in braces."""
    for other in re.findall(r"\{(\w+)\}", text):
        if other not in point:
            known = notebook.did_you_mean(other, point)
            raise ValueError(f"{name}: {{{other}}} stands for nothing that varies. {known}")
        text = text.replace(f"{{{other}}}", str(point[other]))
    return text


def _reads(name: str, used: dict[str, Any]) -> dict[str, str]:
    """The products that a notebook reads: by parameter the number of the notebook that makes it."""
    return {p: maker for p, maker in notebook.PRODUCTS.items() if p in used and maker != name[:2]}


def _is_there(parameter: str, product: str) -> bool:
    if parameter == "prepared":
        return (paths.PREPARED / product / "dataset.json").exists()
    return (paths.SEQUENCERS / Path(product).expanduser() / "config.json").exists()


def _outside(name: str, used: dict[str, Any], chosen: dict) -> dict[str, str]:
    """The products that a notebook reads and no notebook of the sweep makes; they must be there."""
    found = {}
    for parameter, maker in _reads(name, used).items():
        if maker in {each[:2] for each in chosen}:
            continue
        if not _is_there(parameter, used[parameter]):
            raise ValueError(
                f"{name} reads {parameter} {used[parameter]!r}, which is not there. Notebook "
                f"{maker} makes it: sweep that, too, or run it first."
            )
        found[parameter] = used[parameter]
    return found


def _done(home: Path) -> dict[str, dict[str, Any]]:
    """The last record of each task in a sweep's journal."""
    return {record["key"]: record for record in paths.Journal(home / "journal.jsonl").records}


def _left(tasks: dict[str, Task], done: dict[str, dict], retry: bool) -> dict[str, Task]:
    """The tasks to be run now, in order."""
    failed = {key for key in tasks if key in done and done[key]["status"] == "failed"}
    left = {key for key in tasks if key not in done} | (failed if retry else set())
    for key in reversed(tasks):
        task = tasks[key]
        used = execution.resolved(task.notebook, task.parameters)
        for parameter, maker in _reads(task.notebook, used).items():
            if key in left and not _is_there(parameter, used[parameter]):
                makers = {need for need in task.needs if tasks[need].notebook[:2] == maker}
                left |= makers - failed  # what they made was deleted
    hopeless = failed - left
    for key, task in tasks.items():
        if hopeless.intersection(task.needs):
            hopeless.add(key)
    return {key: task for key, task in tasks.items() if key in left - hopeless}


# Running


def run(sweep: Sweep, workers: int, cluster: str | None, timeout: int, retry: bool) -> int:
    """Run what is not done yet; write table, figures and page; return the exit status.

    Args:
        sweep: what to run.
        workers: how many notebooks at once on this machine.
        cluster: the address of a Dask scheduler, whose workers run them instead; None for none.
        timeout: seconds that one cell may take.
        retry: whether what failed is run again.

    Raises:
        ValueError: as `plan`.
        RuntimeError: another process runs this sweep; workers broke down; the cluster is not fit.
        OSError: no room on the disk. Whatever had ended is kept, and the next start goes on.
    """
    points, tasks = plan(sweep)
    paths.require_folders()
    home = folder(sweep.name)
    with paths.alone(home, "sweeping"):
        paths.make(home)
        left = _left(tasks, _done(home), retry)
        print(f"{sweep.name}: {len(left)} of {len(tasks)} notebooks are to be run.")
        stopped = False
        try:
            if left:
                _work(left, home, workers, cluster, timeout)
        except KeyboardInterrupt:
            stopped = True
        done = _done(home)
        _write(sweep, points, tasks, done)
    states = [_state(tasks, done, key)[0] for key in tasks]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    print(f"{', '.join(counts)}. Table, index.html and figures are in {home}")
    if stopped:
        print("Stopped. The same command goes on from there.")
        return 130
    if "failed" in states:
        print("What failed is run again by the same command with --retry.")
        return 1
    return 0


def _work(
    left: dict[str, Task], home: Path, workers: int, cluster: str | None, timeout: int
) -> None:
    """Run tasks and write into the journal what became of each."""
    given = paths.environment()
    environment = execution.kernel_environment(1)
    environment |= {"COMPANION_BUILD": str(home / "runs"), "COMPANION_DATA": str(paths.DATA)}
    # Sums depend on the number of threads: it is the same for any number of workers.
    environment["OMP_NUM_THREADS"] = given.get("OMP_NUM_THREADS", "1")
    if "COMPANION_DATASETS" in given:
        environment["COMPANION_DATASETS"] = given["COMPANION_DATASETS"]
    journal = paths.Journal(home / "journal.jsonl")
    progress = tqdm(total=len(left), unit="notebook", disable=None)

    def begun(key: str) -> None:
        progress.write(f"{left[key].notebook} {left[key].output.parent.name} ...", file=sys.stderr)

    def ended(key: str, outcome: Outcome) -> None:
        progress.update()
        if outcome.error:
            progress.write(outcome.error, file=sys.stderr)
        if outcome.status == "not run":
            return
        if outcome.status == "failed":
            paths.require_folders()  # where there is no room, that is no fault of the point
        record = {"key": key, "notebook": left[key].notebook, "run": left[key].output.parent.name}
        record |= {"status": outcome.status, "error": outcome.error}
        record["claims_failed"] = notebook.failed_claims(outcome.record)
        record["numbers"] = execution.flat(outcome.record.get("numbers", {}))
        record |= {name: outcome.record.get(name) for name in ("seconds", "commit")}
        try:
            journal.add(record)
        except OSError as error:
            raise OSError(
                f"{journal.path} cannot be written ({error.strerror}): make room, then give the "
                "same command again, which goes on from there."
            ) from error

    with _executor(min(workers, len(left)), cluster, home) as (executor, count), progress:
        execution.work(left, executor, count, timeout, environment, begun, ended)


@contextmanager
def _executor(workers: int, cluster: str | None, home: Path) -> Iterator[tuple[Executor, int]]:
    """What runs the notebooks, and how many at once."""
    if not cluster:
        with execution.pool(workers) as executor:
            yield executor, workers
        return
    from distributed import Client, KilledWorker

    try:
        client = Client(cluster, timeout=10)
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"No Dask scheduler answers at {cluster} ({str(error).splitlines()[0]}). Start one with"
            " `dask scheduler`, then workers with `dask worker ADDRESS --nthreads 1`."
        ) from None
    with client:
        count = _fit(client, home)
        try:
            yield client.get_executor(), count
        except (KilledWorker, CancelledError) as error:
            raise RuntimeError(
                f"The cluster at {cluster} broke down ({error}). What has ended is kept; give the "
                "same command again."
            ) from None


def _fit(client: Any, home: Path) -> int:
    """The number of a Dask client's workers, which can all run notebooks.

    Raises:
        RuntimeError: there are none, or some cannot; the message names them and says why.
    """
    threads = client.nthreads()
    if not threads:
        raise RuntimeError("The cluster has no worker: `dask worker ADDRESS --nthreads 1`.")
    token = home / f"token-{uuid.uuid4().hex}"
    token.write_text(token.name)
    try:
        seen = client.run(token.read_text, on_error="return")
        libraries = client.run(library, on_error="return")
    finally:
        token.unlink()
    here = library()
    several = "run more than one thread, and a notebook changes the folder of its whole process"
    for cure, unfit in (
        (f"{several}: start them with --nthreads 1", [w for w in threads if threads[w] > 1]),
        (
            f"do not see {home}: the repository, data/ and build/ must lie in a shared folder",
            [worker for worker in threads if seen.get(worker) != token.name],
        ),
        (
            "have another lib/ than this process, or none: update it, then start them again",
            [worker for worker in threads if libraries.get(worker) != here],
        ),
    ):
        if unfit:
            raise RuntimeError(f"Workers {', '.join(sorted(unfit))} {cure}.")
    return len(threads)


# What came out


def _state(tasks: dict[str, Task], done: dict[str, dict], key: str) -> tuple[str, str]:
    """Status and error of a task."""
    if key in done:
        return done[key]["status"], done[key]["error"]
    lost = [
        need
        for need in tasks[key].needs
        if _state(tasks, done, need)[0] not in ("ok", "claims failed")
    ]
    makers = " and ".join(tasks[need].notebook[:2] for need in lost)
    return "not run", f"needs {makers}" if lost else ""


def _table(points: list[Point], tasks: dict[str, Task], done: dict[str, dict]) -> pd.DataFrame:
    """One row for each point, notebook and metric, in that order; one without a metric if none."""
    rows = []
    for point in points:
        for name, key in point.keys.items():
            status, error = _state(tasks, done, key)
            record = done.get(key, {})
            for metric, value in (record.get("numbers") or {"": ""}).items():
                text = value if isinstance(value, str) else ""
                number = math.nan if isinstance(value, str) else float(value)
                row = [point.name, name, *point.values.values(), metric, number, text]
                rows.append([*row, status, error, record.get("seconds"), record.get("commit")])
    named = ["point", "notebook", *points[0].values, "metric", "value", "text"]
    table = pd.DataFrame(rows, columns=[*named, "status", "error", "seconds", "commit"])
    return table.astype({"value": float, "seconds": float, "commit": "string"})


def _write(
    sweep: Sweep, points: list[Point], tasks: dict[str, Task], done: dict[str, dict]
) -> None:
    """Write table, figures and page into the sweep's folder."""
    home = folder(sweep.name)
    table = _table(points, tasks, done)
    paths.write(home / "results.csv", partial(table.to_csv, index=False))
    paths.write(home / "results.parquet", partial(table.to_parquet, index=False))
    before = home / "index.html"
    shown = before.read_text(encoding="utf-8") if before.exists() else ""
    drawn = _draw(sweep, table)
    for old in home.glob("*.png"):
        if old.name not in drawn and f'<img src="{quote(old.name)}"' in shown:
            old.unlink()
    page = _page(sweep, points, tasks, done, drawn)
    paths.write(home / "index.html", lambda beside: beside.write_text(page, encoding="utf-8"))


def _draw(sweep: Sweep, table: pd.DataFrame) -> dict[str, str]:
    """Draw the metrics: names of files, each with what it shows in words."""
    varied = list(sweep.points[0])
    axes = []
    for name in varied:
        values = {point[name] for point in sweep.points}
        if name != "seed" and len(values) > 1 and not _goes_with_seed(sweep, name):
            axes.append(name)
    if len(axes) > 2:
        print(f"No figures: besides seed, {len(axes)} parameters vary, and a figure shows two.")
        return {}
    axis = [*axes, *sorted(varied, key=lambda name: name != "seed")][0]
    figures.style()
    numbers = table[table["value"].notna()]
    drawn = {}
    for metric in sweep.plot or dict.fromkeys(numbers["metric"]):
        makers = dict.fromkeys(numbers.loc[numbers["metric"] == metric, "notebook"])
        for name in makers:
            of_notebook = numbers[numbers["notebook"] == name]
            part = of_notebook[of_notebook["metric"] == metric]
            if len(part) < 2 and not sweep.plot:
                continue
            chance = of_notebook[of_notebook["metric"] == f"{metric}.chance"]
            levels = _levels(sweep.lines.get(metric, {}), chance, part, axis)
            fig = Figure(figsize=(6, 3.6))
            ax = fig.subplots()
            if len(axes) == 2:
                shown = figures.by_two_parameters(ax, part, *axes)
            elif axes:
                shown = figures.by_parameter(ax, part, axis, levels)
            else:
                shown = figures.by_seed(ax, part, axis, levels)
            title = [f"{metric}, notebook {name[:2]}, profile {sweep.profile}"]
            for label, level in levels.items():
                low, high = f"{level.min():.4g}", f"{level.max():.4g}"
                title.append(f"{label} {low}" if low == high else f"{label} {low} to {high}")
            ax.set_title("\n".join(map(figures.verbatim, title)))
            stem = re.sub(r"[^\w.-]+", "-", metric if len(makers) == 1 else f"{name[:2]}-{metric}")
            save = partial(fig.savefig, format="png", dpi=150)
            paths.write(folder(sweep.name) / f"{stem}.png", save)
            drawn[f"{stem}.png"] = f"{'; '.join(title)}; {shown}"
    return drawn


def _goes_with_seed(sweep: Sweep, name: str) -> bool:
    """Whether each seed has a value of the parameter to itself, which then tells no more than it.

    So it is with `start`, where each training goes on from the one with its own seed.
    """
    if "seed" not in sweep.points[0]:
        return False
    pairs = {(point["seed"], point[name]) for point in sweep.points}
    return len(pairs) == len({seed for seed, _ in pairs}) == len({value for _, value in pairs})


def _levels(
    given: dict[str, float], chance: pd.DataFrame, part: pd.DataFrame, axis: str
) -> dict[str, pd.Series]:
    """The lines to compare a metric with, by label; each by the value on the axis."""
    values = part[axis].unique()
    levels = {label: pd.Series(level, values, dtype=float) for label, level in given.items()}
    if len(chance):
        levels.setdefault("chance", chance.groupby(axis, sort=False)["value"].mean())
    return levels


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sweep {name}</title>
<style>
body {{ font: 15px/1.5 sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid #ccc; padding: .2em .6em; text-align: left; vertical-align: top; }}
small {{ white-space: pre-wrap; }}
img {{ max-width: 100%; width: 32em; }}
</style></head><body>
<h1>Sweep {name}</h1>
<p>{about}</p>
<p><a href="results.csv">results.csv</a>, <a href="results.parquet">results.parquet</a></p>
{table}
{pictures}
</body></html>
"""


def _page(
    sweep: Sweep,
    points: list[Point],
    tasks: dict[str, Task],
    done: dict[str, dict],
    drawn: dict[str, str],
) -> str:
    """The page: each point with its notebooks and the metrics to be drawn; the figures."""
    rows = []
    for point in points:
        row = {name: html.escape(str(value)) for name, value in point.values.items()}
        for name, key in point.keys.items():
            status, error = _state(tasks, done, key)
            kind = ".ipynb" if status == "failed" else ".html"
            shown = tasks[key].output.with_suffix(kind).relative_to(folder(sweep.name))
            row[name] = f'<a href="{quote(str(shown))}">{status}</a>' if key in done else status
            if error:
                row[name] += f"<br><small>{html.escape(error)}</small>"
        for metric in sweep.plot:
            numbers = [done.get(key, {}).get("numbers", {}) for key in point.keys.values()]
            found = [of_one[metric] for of_one in numbers if metric in of_one]
            said = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in found]
            row[html.escape(metric)] = html.escape(", ".join(said))
        rows.append(row)
    about = f"{sweep.asks} Notebooks {', '.join(sweep.notebooks)}, profile {sweep.profile}, "
    pictures = []
    for file, words in drawn.items():
        pictures.append(f'<img src="{quote(file)}" alt="{html.escape(words)}">')
    return PAGE.format(
        name=sweep.name,
        about=html.escape(f"{about}{len(points)} points.".strip()),
        table=pd.DataFrame(rows).to_html(index=False, escape=False, border=0),
        pictures="\n".join(pictures),
    )


# Without running anything


def dry_run(sweep: Sweep, workers: int, retry: bool) -> None:
    """Print the points, what is done already, and about how long the rest will take."""
    points, tasks = plan(sweep)
    done = _done(folder(sweep.name))
    left = _left(tasks, done, retry)
    width = max(len(point.name) for point in points)
    for point in points:
        words = []
        for name, key in point.keys.items():
            words.append(f"{name[:2]} {'to do' if key in left else _state(tasks, done, key)[0]}")
        print(f"{point.name:{width}}  {', '.join(words)}")
    to_do = [task.notebook for task in left.values()]
    total = 0
    for name in dict.fromkeys(to_do):
        each = minutes(sweep.profile, name)
        said = "how long is not recorded" if each is None else f"{each:.1f} minutes each"
        print(f"{name}: {to_do.count(name)} to do, {said}")
        total += to_do.count(name) * (each or 0)
    print(
        f"{sweep.name}: {len(points)} points, {len(left)} of {len(tasks)} notebooks to do, about "
        f"{total / min(workers, len(left) or 1):.0f} minutes by {workers} worker(s), as recorded"
    )


def minutes(profile: str, name: str) -> float | None:
    """How long a notebook took under a profile, here or as recorded in data/; None if neither."""
    for home in (notebook.run_folder(profile) / "metrics", paths.RECORDED / profile):
        record = home / f"{name}.json"
        if record.exists():
            return json.loads(record.read_text(encoding="utf-8"))["seconds"] / 60
    return None


def _comment(text: str) -> str:
    """The first line of a YAML file, which says what it is for."""
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def print_list() -> None:
    """Print a line for each notebook, profile and sweep that there is, 100 columns at the most."""
    lines = []
    for name in execution.notebooks():
        title = _cells(name)[0][1].partition("\n")[0].removeprefix("# ")
        lines.append((_total("bundled", [name]), name, title))
    _print_columns(("minutes", "notebook", "title"), lines)
    lines = []
    for profile in execution.profiles():
        chosen = list(execution.of_profile(profile, []))
        file = paths.PROFILES / profile / f"{chosen[0]}.yaml"
        about = _comment(file.read_text(encoding="utf-8-sig")) if file.exists() else ""
        numbers = " ".join(name[:2] for name in chosen)
        lines.append((_total(profile, chosen), profile, numbers, about))
    _print_columns(("minutes", "profile", "notebooks", "about"), lines)
    lines = []
    for name in names():
        sweep = read(name)
        lines.append((str(len(sweep.points)), name, " ".join(sweep.notebooks), sweep.asks))
    _print_columns(("points", "sweep", "notebooks", "asks"), lines)


def _print_columns(heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    """Print lines in columns, numbers first, and an empty line."""
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for first, *texts in (heads, *lines):
        columns = [text.ljust(width) for text, width in zip(texts, widths[1:], strict=True)]
        line = "  ".join([first.rjust(7), *columns]).rstrip()
        print(line if len(line) <= 100 else f"{line[:97]}...")
    print()


def _total(profile: str, chosen: list[str]) -> str:
    """The minutes of notebooks in all; what is not recorded counts as nothing, and `+` says so."""
    known = [minutes(profile, name) for name in chosen]
    found = [each for each in known if each is not None]
    if not found:
        return "-"
    return f"{sum(found):.1f}" + ("+" if len(found) < len(known) else "")
