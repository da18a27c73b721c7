"""Run the notebooks, `python -m lib.notebook run`, and what every notebook begins and ends with.

In a notebook: `run = companion.begin("02_clear_mnist", globals())`, then `run.figure`, `.skip` and `.finish`.
"""

import argparse
import ast
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

from lib import execution, figures, paths


def begin(notebook, namespace):
    """Check a notebook's parameters, seed Python, NumPy and PyTorch, print what is used, and start the clock.

    `namespace` is the notebook's `globals()`. Returns a `Run`. Raises ValueError for a parameter that
    papermill passed and the notebook does not declare, for a value that is not of the declared type, for a
    profile that is not a plain folder name, and for a seed outside [0, 2**32).
    """
    known = execution.declared(notebook)
    missing = [name for name in known if name not in namespace]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: not defined yet. Run the cell with the parameters first."
        )
    used = {name: namespace[name] for name in known}
    passed = next(
        (cell for cell in namespace.get("In", []) if cell.startswith("# Parameters\n")), ""
    )
    names = [line.targets[0].id for line in ast.parse(passed).body]
    execution.check(notebook, used | {name: namespace[name] for name in names})
    profile, seed = used["profile"], used["seed"]
    if not re.fullmatch(r"\w[\w.-]*", profile):
        raise ValueError(
            f"profile {profile!r} names a folder under build/: use a plain name like 'bundled'."
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}.")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, libraries draw from the global generator
    torch.manual_seed(seed)
    figures.style()
    run = Run(notebook, used, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    threads = torch.get_num_threads()
    print(
        f"{notebook}, profile {profile}, seed {seed}, on {run.device} with {threads} CPU thread(s)"
    )
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
    command = [
        "git",
        "-C",
        str(paths.ROOT),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    within = os.environ | {"GIT_CEILING_DIRECTORIES": str(paths.ROOT.parent)}
    try:
        return subprocess.run(
            command, env=within, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def plain(name, value):
    """`value` as a JSON number or text, NumPy's scalars converted; ValueError for NaN and the rest."""
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (int, float, str)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
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
        path = execution.metrics(profile, self.notebook)
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.write(path, lambda beside: beside.write_text(json.dumps(record, indent=2) + "\n"))
        print(f"{len(numbers)} numbers recorded after {seconds} s")


def explain(photographs, sequencer, out, relu):
    """Explain photographs from disk (`lib.photographs.explain_files`), say how many, and return the exit status."""
    from lib.photographs import explain_files

    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        count, rejects = explain_files(photographs, sequencer, out, relu, device)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from there.")
        return 130
    print(
        f"{count} explained, {len(rejects)} rejected: results.csv, rejects.csv and a figure for each are in {out}"
    )
    for path, reason in list(rejects.items())[:5]:
        print(f"rejected {path.name}: {reason}")
    return 0 if count else 1


def main(arguments=None):
    """Run notebooks, or explain photographs.

    run [--profile bundled] [--only 02 05] [-p NAME VALUE] [--timeout SECONDS]
    explain PHOTO... --sequencer RUN --out DIR [--relu guided]
    """
    parser = argparse.ArgumentParser(
        prog="python -m lib.notebook", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, dest="command")
    command = commands.add_parser("run", help="execute the notebooks in order")
    command.add_argument(
        "--profile", default="bundled", help="bundled or a folder of notebooks/profiles"
    )
    command.add_argument(
        "--only", nargs="+", default=[], metavar="NN", help="numbers of notebooks: 02 05"
    )
    command.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given"
    )
    command.add_argument(
        "--timeout", type=int, default=21600, help="seconds that one cell may take"
    )
    command = commands.add_parser(
        "explain", help="grades and CLEAR-DR figures of fundus photographs"
    )
    command.add_argument(
        "photographs", nargs="+", metavar="PHOTO", help="a file, or a folder of any number of them"
    )
    command.add_argument(
        "--sequencer", required=True, help="folder of data/sequencers/ that notebook 04 trained"
    )
    command.add_argument(
        "--out", required=True, help="folder for results.csv, rejects.csv and the figures"
    )
    command.add_argument("--relu", default="guided", help="reading of CLEAR's Eq. 3 (notebook 02)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "explain":
            return explain(options.photographs, options.sequencer, options.out, options.relu)
        chosen = execution.plan(options.profile, options.only, options.given)
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(error, file=sys.stderr)
        return 2
    return execution.run(options.profile, chosen, options.timeout)


if __name__ == "__main__":
    sys.exit(main())
