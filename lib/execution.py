"""What is run and with which parameters, checked first; then papermill runs it, in order."""

import json
import os
import sys
from typing import Any

import yaml
from tqdm import tqdm

from lib import paths
from lib.notebook import check_parameters, did_you_mean, metrics_path

NEEDS = {"04": ("03",), "05": ("03", "04"), "06": ("03", "04")}  # 07 reads what numbers there are


def plan(profile: str, only: list[str], given: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """What to run, `{notebook: parameters}`, all checked.

    Args:
        profile: "bundled" runs every notebook as it is; a folder of notebooks/profiles runs the
            notebooks that it holds a YAML file for.
        only: numbers of notebooks, as "02"; empty for all of the profile.
        given: pairs of a parameter's name and its value in YAML, for every notebook that has it.

    Raises:
        ValueError: an unknown profile, number, name, or a value of another type.
    """
    notebooks = sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    chosen = {notebook: {} for notebook in notebooks}
    if profile != "bundled":
        chosen = _profile(profile, notebooks)
    for number in only:
        if number not in {notebook[:2] for notebook in chosen}:
            raise ValueError(
                f"Profile {profile} has no notebook {number}. There are {', '.join(chosen)}."
            )
    if only:
        chosen = {notebook: chosen[notebook] for notebook in chosen if notebook[:2] in only}
    kinds = {notebook: _declared(notebook) for notebook in chosen}
    _give(given, chosen, kinds)
    for notebook, values in chosen.items():
        if values.setdefault("profile", profile) != profile:
            raise ValueError(
                f"{notebook}: profile is {values['profile']!r}, but --profile is {profile!r}."
            )
        check_parameters(notebook, values, kinds[notebook])
    return chosen


def _profile(profile: str, notebooks: list[str]) -> dict[str, dict[str, Any]]:
    """The parameters in the YAML files of a profile."""
    profiles = ["bundled", *sorted(path.name for path in paths.PROFILES.glob("*/"))]
    if profile not in profiles:
        raise ValueError(f"There is no profile {profile!r}. {did_you_mean(profile, profiles)}")
    chosen = {}
    for file in sorted((paths.PROFILES / profile).glob("*.yaml")):
        if file.stem not in notebooks:
            raise ValueError(
                f"{profile}/{file.name} is for no notebook. {did_you_mean(file.stem, notebooks)}"
            )
        chosen[file.stem] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return chosen


def _declared(notebook: str) -> dict[str, str]:
    """The parameters of a notebook and their types, as papermill sees them."""
    from papermill import inspect_notebook  # two seconds, which only a run should wait for

    found = inspect_notebook(paths.NOTEBOOKS / f"{notebook}.ipynb")
    return {name: parameter["inferred_type_name"] for name, parameter in found.items()}


def _give(given: list[tuple[str, str]], chosen: dict, kinds: dict[str, dict[str, str]]) -> None:
    """Put the values from the command line into the parameters of the notebooks that have them."""
    for name, text in given:
        takers = [notebook for notebook in chosen if name in kinds[notebook]]
        if not takers:
            known = sorted(set().union(*kinds.values()))
            raise ValueError(
                f"No notebook to be run has a parameter {name!r}. {did_you_mean(name, known)}"
            )
        for notebook in takers:
            is_text = kinds[notebook][name] == "str"
            chosen[notebook][name] = text if is_text else yaml.safe_load(text)


def execute(notebook: str, parameters: dict[str, Any], timeout: int) -> str | None:
    """Run a notebook into build/<profile>/<notebook>.ipynb and .html.

    Args:
        notebook: its name.
        parameters: its parameters, checked.
        timeout: seconds that one cell may take.

    Returns:
        None, or in a few lines what failed.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbconvert import HTMLExporter

    folder = paths.BUILD / parameters["profile"]
    record = metrics_path(parameters["profile"], notebook)
    output = folder / f"{notebook}.ipynb"
    page = folder / f"{notebook}.html"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (record, page, *folder.glob(f"figures/{notebook[:2]}-*")):
        stale.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            paths.NOTEBOOKS / f"{notebook}.ipynb",
            output,
            parameters,
            kernel_name="python3",
            cwd=paths.NOTEBOOKS,
            progress_bar=sys.stderr.isatty(),
            execution_timeout=timeout,
            extra_arguments=["--log-level=50"],
        )
    except papermill.PapermillExecutionError as failure:
        lines = f"{failure.ename}: {failure.evalue}".splitlines()[:5]
        return _failure(notebook, output, "\n".join(lines))
    except CellTimeoutError:
        return _failure(notebook, output, f"it took longer than {timeout} s; --timeout allows more")
    except DeadKernelError:
        died = "the kernel died, as it does when memory runs out (the bundled run needs 6 GB)"
        return _failure(notebook, output, died)
    if not record.exists():
        unfinished = "it ended without run.finish(...), which records its numbers"
        return _failure(notebook, output, unfinished)
    html, _ = HTMLExporter().from_filename(str(output))
    paths.write(page, lambda beside: beside.write_text(html, encoding="utf-8"))
    return None


def _failure(notebook: str, output: os.PathLike, error: str) -> str:
    """Which cell failed, and why."""
    import nbformat

    begun = []
    for cell in nbformat.read(output, 4).cells:
        if cell.cell_type == "code" and cell.metadata.papermill.start_time:
            begun.append(cell.source)
    first_line = begun[-1].splitlines()[0]
    return f"{notebook} failed in cell [{len(begun)}] `{first_line}`\n{error}\nSee {output}"


def _flat(numbers: dict, prefix: str = "") -> dict[str, Any]:
    """Nested numbers, their keys joined by dots; a score's own `value` keeps the score's name."""
    flat = {}
    for name, value in numbers.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}".removesuffix(".value")] = value
    return flat


def _summary(record: dict) -> str:
    """Seconds, the first three numbers, and what was skipped, on one line."""
    shown = []
    for name, value in list(_flat(record["numbers"]).items())[:3]:
        shown.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    skipped = "".join(f"; skipped: {part['what']}" for part in record["skipped"])
    return f"{record['seconds']:7.1f}  {', '.join(shown)}{skipped}"


def run(profile: str, chosen: dict[str, dict[str, Any]], timeout: int) -> int:
    """Run the `chosen` notebooks in order, print a table of what came out, return the exit status.

    Args:
        profile: the folder below build/.
        chosen: what `plan` returned.
        timeout: seconds that one cell may take.
    """
    os.environ["JUPYTER_PATH"] = f"{sys.prefix}/share/jupyter"  # the kernel of this very Python
    rows = {}
    failed = []
    for notebook in tqdm(chosen, unit="notebook", disable=None):
        needed = [number for number in NEEDS.get(notebook[:2], ()) if number in failed]
        if needed:
            failed.append(notebook[:2])
            rows[notebook] = f"      -  not run: needs {' and '.join(needed)}"
            continue
        tqdm.write(f"{notebook} ...", file=sys.stderr)
        try:
            error = execute(notebook, chosen[notebook], timeout)
        except KeyboardInterrupt:
            rest = " ".join(name[:2] for name in chosen if name not in rows)
            tqdm.write(
                f"\nStopped in {notebook}. To go on from there: the same command with --only {rest}"
            )
            tqdm.write(f'(with make: make run ARGS="--only {rest}")')
            return 130
        if error:
            failed.append(notebook[:2])
            tqdm.write(error, file=sys.stderr)
            rows[notebook] = "      -  failed"
        else:
            rows[notebook] = _summary(json.loads(metrics_path(profile, notebook).read_text()))
    print(f"\n{'notebook':24} seconds  numbers")
    for notebook, row in rows.items():
        print(f"{notebook:24} {row}")
    print(f"Notebooks, HTML, figures and metrics are in {paths.BUILD / profile}")
    return 1 if failed else 0
