"""What every notebook begins and ends with.

In a notebook: `run = companion.begin("02_clear_mnist", globals())`, then `run.figure`, `.skip` and `.finish`.
"""

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
from importlib.metadata import version

import numpy as np
import torch

from lib import figures, paths

TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def parameters_cell(notebook):
    """The source of the one cell of `notebooks/<notebook>.ipynb` that is tagged `parameters`."""
    path = paths.NOTEBOOKS / f"{notebook}.ipynb"
    if not path.exists():
        raise ValueError(f"There is no notebook {notebook!r} in notebooks/.")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook} has {len(tagged)} cells tagged `parameters`: it must have one.")
    return "".join(tagged[0]["source"])


def declared(notebook):
    """The parameters a notebook declares in lines `name: type = literal`: `{name: (type, default)}`."""
    found = {}
    for line in ast.parse(parameters_cell(notebook)).body:
        if not (isinstance(line, ast.AnnAssign) and line.value and ast.unparse(line.annotation) in TYPES):
            raise ValueError(
                f"{notebook} declares a parameter as `{ast.unparse(line)}`: write `name: type = literal` "
                f"with one of the types {', '.join(TYPES)}."
            )
        found[line.target.id] = (ast.unparse(line.annotation), ast.literal_eval(line.value))
    return found


def check(notebook, values):
    """Raise ValueError for a name in `values` that is not declared and for a value not of its type."""
    known = declared(notebook)
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"{notebook} has no parameter {name!r}.{meant} It declares {', '.join(known)}.")
        kind = known[name][0]
        if type(value) is TYPES[kind] or (kind == "float" and type(value) is int):
            continue
        message = f"{notebook}: {name} must be {kind}, got {value!r} of type {type(value).__name__}."
        if kind == "bool" and isinstance(value, str):
            message += f" papermill's -p reads True and False only; or use -y '{name}: true'."
        if kind == "float" and isinstance(value, str):
            message += " In YAML a number needs its decimal point: 1.0e-3, not 1e-3."
        raise ValueError(message)


def injected(cells):
    """The names assigned by papermill's cell, the one of `cells` that starts with `# Parameters`."""
    source = next((cell for cell in cells if cell.startswith("# Parameters\n")), "")
    return [line.targets[0].id for line in ast.parse(source).body]


def begin(notebook, namespace):
    """Check a notebook's parameters, seed Python, NumPy and PyTorch, print what is used, and start the clock.

    `namespace` is the notebook's `globals()`. Returns a `Run`. Raises ValueError for a parameter that
    papermill passed and the notebook does not declare, for a value that is not of the declared type, for a
    profile that is not a plain folder name, and for a seed outside [0, 2**32).
    """
    missing = [name for name in declared(notebook) if name not in namespace]
    if missing:
        raise ValueError(f"{', '.join(missing)}: not defined yet. Run the cell with the parameters first.")
    used = {name: namespace[name] for name in declared(notebook)}
    check(notebook, {name: namespace[name] for name in injected(namespace.get("In", []))} | used)
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
            path = folder / f"{self.notebook[:2]}-{name}.{kind}"
            figure.savefig(path.with_suffix(".part"), format=kind, dpi=150)
            os.replace(path.with_suffix(".part"), path)

    def skip(self, what, why):
        """Say that a part of the notebook is not run, and why; both end up in the metrics."""
        self.skipped.append({"what": what, "why": why})
        print(f"SKIPPED: {what}: {why}")

    def finish(self, numbers, data, weights):
        """Write build/<profile>/metrics/<notebook>.json: the `numbers` and all that they came from.

        `numbers` maps names to finite numbers or texts, the most telling first; `data` and `weights` say in
        words what they were computed from. Raises ValueError for NaN, infinity or any other type.
        """
        profile, seed = self.parameters["profile"], self.parameters["seed"]
        record = {
            "notebook": self.notebook,
            "profile": profile,
            "data": data,
            "weights": weights,
            "device": str(self.device),
            "seed": seed,
            "parameters": self.parameters,
            "versions": versions(),
            "commit": commit(),
            "seconds": round(time.perf_counter() - self.started, 1),
            "skipped": self.skipped,
            "numbers": {name: plain(name, value) for name, value in numbers.items()},
        }
        path = paths.BUILD / profile / "metrics" / f"{self.notebook}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(record, indent=2) + "\n")
        os.replace(path.with_suffix(".part"), path)
        print(f"{len(numbers)} numbers recorded after {record['seconds']} s")
