"""What is run and with which parameters, checked before it starts: the notebooks by papermill, one after another."""

import ast
import difflib
import json
import os
import sys

import yaml
from tqdm import tqdm

from lib import paths

TYPES = {"int": int, "float": float, "str": str, "bool": bool}
NEEDS = {"04": ("03",), "05": ("03", "04")}  # 06 reads whatever numbers there are


def declared(notebook):
    """The parameters that a notebook declares in lines `name: type = literal`, `{name: type's name}`."""
    cells = json.loads((paths.NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    tagged = [
        "".join(cell["source"])
        for cell in cells
        if "parameters" in cell["metadata"].get("tags", [])
    ]
    return {line.target.id: line.annotation.id for line in ast.parse(tagged[0]).body}


def meant(name, known):
    near = difflib.get_close_matches(name, known, n=1)
    return f"{f'Did you mean {near[0]}? ' if near else ''}There are {', '.join(known)}."


def check(notebook, values):
    """Raise ValueError for a name in `values` that is not declared and for a value not of its type."""
    known = declared(notebook)
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{notebook} has no parameter {name!r}. {meant(name, known)}")
        kind = known[name]
        if type(value) is TYPES[kind] or (kind == "float" and type(value) is int):
            continue
        message = (
            f"{notebook}: {name} must be {kind}, got {value!r} of type {type(value).__name__}."
        )
        if kind == "bool" and isinstance(value, str):
            message += f" papermill's -p reads True and False only; or use -y '{name}: true'."
        if kind == "float" and isinstance(value, str):
            message += " In YAML a number needs its decimal point: 1.0e-3, not 1e-3."
        raise ValueError(message)


def metrics(profile, notebook):
    return paths.BUILD / profile / "metrics" / f"{notebook}.json"


def plan(profile, only, given):
    """What to run, `{notebook: parameters}`, all checked: ValueError for an unknown profile, number or name.

    `bundled` runs every notebook as it is; any folder of notebooks/profiles runs the notebooks that it holds a
    YAML file for. `only` lists notebook numbers, `given` pairs of a parameter's name and its value in YAML.
    """
    notebooks = sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    chosen = {notebook: {} for notebook in notebooks}
    if profile != "bundled":
        profiles = ["bundled", *sorted(path.name for path in paths.PROFILES.glob("*/"))]
        if profile not in profiles:
            raise ValueError(f"There is no profile {profile!r}. {meant(profile, profiles)}")
        files = sorted((paths.PROFILES / profile).glob("*.yaml"))
        chosen = {
            file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) or {} for file in files
        }
    for notebook in chosen:
        if notebook not in notebooks:
            raise ValueError(
                f"{profile}/{notebook}.yaml is for no notebook. {meant(notebook, notebooks)}"
            )
    for number in only:
        if number not in {name[:2] for name in chosen}:
            raise ValueError(
                f"Profile {profile} has no notebook {number}. There are {', '.join(chosen)}."
            )
    chosen = {name: values for name, values in chosen.items() if not only or name[:2] in only}
    kinds = {notebook: declared(notebook) for notebook in chosen}
    for name, text in given:
        if not any(name in kind for kind in kinds.values()):
            known = sorted(set().union(*kinds.values()))
            raise ValueError(
                f"No notebook to be run has a parameter {name!r}. {meant(name, known)}"
            )
        for notebook, values in chosen.items():
            if name in kinds[notebook]:
                values[name] = text if kinds[notebook][name] == "str" else yaml.safe_load(text)
    for notebook, values in chosen.items():
        if values.setdefault("profile", profile) != profile:
            raise ValueError(
                f"{notebook}: profile is {values['profile']!r}, but --profile is {profile!r}."
            )
        check(notebook, values)
    return chosen


def execute(notebook, parameters, timeout):
    """Run a notebook into build/<profile>/<notebook>.ipynb and .html; None, or in a few lines what failed."""
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbconvert import HTMLExporter

    folder, record = paths.BUILD / parameters["profile"], metrics(parameters["profile"], notebook)
    output, page = folder / f"{notebook}.ipynb", folder / f"{notebook}.html"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (record, page, *folder.glob(f"figures/{notebook[:2]}-*")):
        stale.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            paths.NOTEBOOKS / f"{notebook}.ipynb", output, parameters, kernel_name="python3",
            cwd=paths.NOTEBOOKS, progress_bar=sys.stderr.isatty(), execution_timeout=timeout,
            extra_arguments=["--log-level=50"],
        )  # fmt: skip
        error = (
            None
            if record.exists()
            else "it ended without run.finish(...), which records its numbers"
        )
    except papermill.PapermillExecutionError as failure:
        error = "\n".join(f"{failure.ename}: {failure.evalue}".splitlines()[:5])
    except CellTimeoutError:
        error = f"it took longer than {timeout} s; --timeout allows more"
    except DeadKernelError:
        error = "the kernel died, as it does when memory runs out (the bundled run needs 6 GB)"
    if error:
        cells = [cell for cell in nbformat.read(output, 4).cells if cell.cell_type == "code"]
        code = [cell.source for cell in cells if cell.metadata.papermill.start_time]
        return f"{notebook} failed in cell [{len(code)}] `{code[-1].splitlines()[0]}`\n{error}\nSee {output}"
    html, _ = HTMLExporter().from_filename(str(output))
    paths.write(page, lambda beside: beside.write_text(html, encoding="utf-8"))


def summary(record):
    numbers = [
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record["numbers"].items()
    ]
    skipped = "".join(f"; skipped: {part['what']}" for part in record["skipped"])
    return f"{record['seconds']:7.1f}  {', '.join(numbers[:3])}{skipped}"


def run(profile, chosen, timeout):
    """Run the `chosen` notebooks in order, print a table of what came out, and return the exit status."""
    os.environ["JUPYTER_PATH"] = (
        f"{sys.prefix}/share/jupyter"  # the kernel python3 of this very interpreter
    )
    rows, failed = {}, []
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
            rows[notebook] = summary(json.loads(metrics(profile, notebook).read_text()))
    print(f"\n{'notebook':24} seconds  numbers")
    for notebook, row in rows.items():
        print(f"{notebook:24} {row}")
    print(f"Notebooks, HTML, figures and metrics are in {paths.BUILD / profile}")
    return 1 if failed else 0
