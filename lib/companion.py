"""Run the notebooks, `python -m lib.companion run`, and what every notebook begins and ends with.

In a notebook: `run = companion.begin("02_clear_mnist", globals())`, then `run.figure`, `.skip` and `.finish`.
"""

import argparse
import ast
import difflib
import json
import math
import os
import random
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
import yaml
from tqdm import tqdm

from lib import figures, paths

TYPES = {"int": int, "float": float, "str": str, "bool": bool}
NEEDS = {"04": ("03",), "05": ("03", "04")}  # 06 reads whatever numbers there are


def declared(notebook):
    """The parameters that a notebook declares in lines `name: type = literal`, `{name: type's name}`."""
    cells = json.loads((paths.NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
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
        message = f"{notebook}: {name} must be {kind}, got {value!r} of type {type(value).__name__}."
        if kind == "bool" and isinstance(value, str):
            message += f" papermill's -p reads True and False only; or use -y '{name}: true'."
        if kind == "float" and isinstance(value, str):
            message += " In YAML a number needs its decimal point: 1.0e-3, not 1e-3."
        raise ValueError(message)


def begin(notebook, namespace):
    """Check a notebook's parameters, seed Python, NumPy and PyTorch, print what is used, and start the clock.

    `namespace` is the notebook's `globals()`. Returns a `Run`. Raises ValueError for a parameter that
    papermill passed and the notebook does not declare, for a value that is not of the declared type, for a
    profile that is not a plain folder name, and for a seed outside [0, 2**32).
    """
    known = declared(notebook)
    missing = [name for name in known if name not in namespace]
    if missing:
        raise ValueError(f"{', '.join(missing)}: not defined yet. Run the cell with the parameters first.")
    used = {name: namespace[name] for name in known}
    passed = next((cell for cell in namespace.get("In", []) if cell.startswith("# Parameters\n")), "")
    names = [line.targets[0].id for line in ast.parse(passed).body]
    check(notebook, used | {name: namespace[name] for name in names})
    profile, seed = used["profile"], used["seed"]
    if not re.fullmatch(r"\w[\w.-]*", profile):
        raise ValueError(f"profile {profile!r} names a folder under build/: use a plain name like 'bundled'.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}.")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, libraries draw from the global generator
    torch.manual_seed(seed)
    figures.style()
    run = Run(notebook, used, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    threads = torch.get_num_threads()
    print(f"{notebook}, profile {profile}, seed {seed}, on {run.device} with {threads} CPU thread(s)")
    print(", ".join(f"{name} {number}" for name, number in versions().items()))
    return run


def attended():
    """Whether a person runs this in JupyterLab, which gives its sessions names, rather than papermill or nbval."""
    return "JPY_SESSION_NAME" in os.environ


def versions():
    """The versions of Python, of this companion and of the packages that the numbers depend on."""
    companion = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["version"]
    packages = {name: version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")}
    return {"companion": companion, "python": ".".join(map(str, sys.version_info[:3])), **packages}


def commit():
    """The commit checked out, `-dirty` where tracked files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    within = os.environ | {"GIT_CEILING_DIRECTORIES": str(paths.ROOT.parent)}
    try:
        return subprocess.run(command, env=within, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def plain(name, value):
    """`value` as a JSON number or text, NumPy's scalars converted; ValueError for NaN and the rest."""
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"numbers[{name!r}] must be a finite number or a text, got {value!r}.")
    return value


@dataclass
class Run:
    """One execution of a notebook: its device, its figures, what it skipped and the numbers it ends with."""

    notebook: str
    parameters: dict
    device: torch.device
    skipped: list = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def figure(self, figure, name):
        """Save a matplotlib figure as build/<profile>/figures/<NN>-<name>.png (150 dpi) and .pdf."""
        folder = paths.BUILD / self.parameters["profile"] / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("png", "pdf"):
            save = partial(figure.savefig, format=kind, dpi=150)
            paths.write(folder / f"{self.notebook[:2]}-{name}.{kind}", save)

    def skip(self, what, why):
        """Say that a part of the notebook is not run, and why; both end up in the metrics."""
        self.skipped.append({"what": what, "why": why})
        print(f"SKIPPED: {what}: {why}")

    def finish(self, numbers, data, weights):
        """Write build/<profile>/metrics/<notebook>.json: the `numbers` and all that they came from.

        `numbers` maps names to finite numbers or texts, the most telling first; `data` and `weights` say in
        words what they were computed from. Raises ValueError for NaN, infinity or any other type.
        """
        numbers = {name: plain(name, value) for name, value in numbers.items()}
        profile, seed = self.parameters["profile"], self.parameters["seed"]
        seconds = round(time.perf_counter() - self.started, 1)
        record = {
            "notebook": self.notebook, "profile": profile, "data": data, "weights": weights,
            "device": str(self.device), "seed": seed, "parameters": self.parameters, "versions": versions(),
            "commit": commit(), "seconds": seconds, "skipped": self.skipped, "numbers": numbers,
        }  # fmt: skip
        path = metrics(profile, self.notebook)
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.write(path, lambda beside: beside.write_text(json.dumps(record, indent=2) + "\n"))
        print(f"{len(numbers)} numbers recorded after {seconds} s")


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
        chosen = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) or {} for file in files}
    for notebook in chosen:
        if notebook not in notebooks:
            raise ValueError(f"{profile}/{notebook}.yaml is for no notebook. {meant(notebook, notebooks)}")
    for number in only:
        if number not in {name[:2] for name in chosen}:
            raise ValueError(f"Profile {profile} has no notebook {number}. There are {', '.join(chosen)}.")
    chosen = {name: values for name, values in chosen.items() if not only or name[:2] in only}
    kinds = {notebook: declared(notebook) for notebook in chosen}
    for name, text in given:
        if not any(name in kind for kind in kinds.values()):
            known = sorted(set().union(*kinds.values()))
            raise ValueError(f"No notebook to be run has a parameter {name!r}. {meant(name, known)}")
        for notebook, values in chosen.items():
            if name in kinds[notebook]:
                values[name] = text if kinds[notebook][name] == "str" else yaml.safe_load(text)
    for notebook, values in chosen.items():
        if values.setdefault("profile", profile) != profile:
            raise ValueError(f"{notebook}: profile is {values['profile']!r}, but --profile is {profile!r}.")
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
        error = None if record.exists() else "it ended without run.finish(...), which records its numbers"
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
    numbers = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record["numbers"].items()]
    skipped = "".join(f"; skipped: {part['what']}" for part in record["skipped"])
    return f"{record['seconds']:7.1f}  {', '.join(numbers[:3])}{skipped}"


def run(profile, chosen, timeout):
    """Run the `chosen` notebooks in order, print a table of what came out, and return the exit status."""
    os.environ["JUPYTER_PATH"] = f"{sys.prefix}/share/jupyter"  # the kernel python3 of this very interpreter
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
            tqdm.write(f"\nStopped in {notebook}. To go on from there: the same command with --only {rest}")
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


def explain(photographs, sequencer, out, relu):
    """Explain photographs from disk (`lib.explain.explain_files`), say how many, and return the exit status."""
    from lib.explain import explain_files

    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        count, rejects = explain_files(photographs, sequencer, out, relu, device)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from there.")
        return 130
    print(f"{count} explained, {len(rejects)} rejected: results.csv, rejects.csv and a figure for each are in {out}")
    for path, reason in list(rejects.items())[:5]:
        print(f"rejected {path.name}: {reason}")
    return 0 if count else 1


def main(arguments=None):
    """Run notebooks, or explain photographs.

    run [--profile bundled] [--only 02 05] [-p NAME VALUE] [--timeout SECONDS]
    explain PHOTO... --sequencer RUN --out DIR [--relu guided]
    """
    parser = argparse.ArgumentParser(prog="python -m lib.companion", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    command = commands.add_parser("run", help="execute the notebooks in order")
    command.add_argument("--profile", default="bundled", help="bundled or a folder of notebooks/profiles")
    command.add_argument("--only", nargs="+", default=[], metavar="NN", help="numbers of notebooks: 02 05")
    command.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given")
    command.add_argument("--timeout", type=int, default=21600, help="seconds that one cell may take")
    command = commands.add_parser("explain", help="grades and CLEAR-DR figures of fundus photographs")
    command.add_argument("photographs", nargs="+", metavar="PHOTO", help="a file, or a folder of any number of them")
    command.add_argument("--sequencer", required=True, help="folder of data/sequencers/ that notebook 04 trained")
    command.add_argument("--out", required=True, help="folder for results.csv, rejects.csv and the figures")
    command.add_argument("--relu", default="guided", help="reading of CLEAR's Eq. 3 (notebook 02)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "explain":
            return explain(options.photographs, options.sequencer, options.out, options.relu)
        chosen = plan(options.profile, options.only, options.given)
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(error, file=sys.stderr)
        return 2
    return run(options.profile, chosen, options.timeout)


if __name__ == "__main__":
    sys.exit(main())
