"""What every notebook begins and ends with: parameters, seeds, figures, numbers.

In a notebook: `run = notebook.begin("02_clear_mnist", globals())`, then `run.figure`, `run.skip`
and `run.finish`.
"""

import ast
import difflib
import hashlib
import json
import math
import os
import random
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from lib import figures, paths

TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def begin(notebook: str, namespace: dict) -> "Run":
    """Check a notebook's parameters, seed Python, NumPy and PyTorch, and start the clock.

    Its numbers of an earlier run are kept aside: if this one fails or is stopped, they are not its.

    Args:
        notebook: the notebook's name without its ending.
        namespace: its `globals()`, in which the cell with the parameters has been run.

    Raises:
        ValueError: a parameter that papermill passed and the notebook does not declare; a value
            that is not of the declared type; a profile that is no plain folder name; a seed
            outside [0, 2**32).
        OSError: data/ or build/ is no folder, or nothing can be written to build/.
    """
    paths.require_folders()
    known = {name: kind for name, (kind, _) in declared(notebook).items()}
    missing = [name for name in known if name not in namespace]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: not defined yet. Run the cell with the parameters first."
        )
    used = {name: namespace[name] for name in known}
    injected = {name: namespace[name] for name in _injected(namespace.get("In", []))}
    check_parameters(notebook, used | injected, known)
    profile = used["profile"]
    if not re.fullmatch(r"\w[\w.-]*", profile):
        raise ValueError(
            f"profile {profile!r} names a folder under build/: use a plain name like 'bundled'."
        )
    seed = used["seed"]
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}.")
    keep_earlier(metrics_path(profile, notebook), profile)
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


def declared(notebook: str) -> dict[str, tuple[str, Any]]:
    """The parameters that a notebook declares in lines `name: type = literal`: type and literal.

    `papermill.inspect_notebook` tells the same, but a kernel would wait seconds for its import.
    """
    book = json.loads((paths.NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            lines = ast.parse("".join(cell["source"])).body
            return {
                line.target.id: (line.annotation.id, ast.literal_eval(line.value)) for line in lines
            }
    raise ValueError(f"{notebook} has no cell tagged `parameters`")


def _injected(cells: list[str]) -> list[str]:
    """The names that papermill set, in the cell that it put below the one with the parameters."""
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            return [line.targets[0].id for line in ast.parse(cell).body]
    return []


def check_parameters(notebook: str, values: dict[str, Any], known: dict[str, str]) -> None:
    """Raise ValueError for a name in `values` that is not `known` and for a value of another type.

    Args:
        notebook: its name, for the message.
        values: the parameters by name.
        known: the declared type's name of each parameter.
    """
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{notebook} has no parameter {name!r}. {did_you_mean(name, known)}")
        kind = known[name]
        if kind == "float" and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{notebook}: {name} must be a finite number, got {value!r}.")
        if type(value) is TYPES[kind] or (kind == "float" and type(value) is int):
            continue
        message = (
            f"{notebook}: {name} must be {kind}, got {value!r} of type {type(value).__name__}."
        )
        if kind == "bool" and isinstance(value, str):
            message += f" papermill's -p reads True and False only; or use -y '{name}: true'."
        if kind == "float" and isinstance(value, str):
            message += " In YAML a number needs its point and its sign: 1.0e-3, not 1e-3 or 1.0e3."
        if kind == "str" and value is not None:
            message += f" In YAML such a text needs quotes: '{value}'."
        raise ValueError(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Two sentences: which of the `known` names is nearest, if one is near, and which there are."""
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"Did you mean {near[0]}? " if near else ""
    return f"{guess}There are {', '.join(known)}."


def metrics_path(profile: str, notebook: str) -> Path:
    """Where `Run.finish` records a notebook's numbers."""
    return paths.BUILD / profile / "metrics" / f"{notebook}.json"


def earlier(path: Path, profile: str) -> Path:
    """Where what an earlier run left at `path`, below build/<profile>, is kept by a new one."""
    folder = paths.BUILD / profile
    return folder / "earlier" / path.relative_to(folder)


def keep_earlier(path: Path, profile: str) -> None:
    """Move what an earlier run left at `path`, if it did, to build/<profile>/earlier/."""
    if path.exists():
        paths.make(earlier(path, profile).parent)
        os.replace(path, earlier(path, profile))


def made_from(parameters: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of the data set and of the sequencer that parameters name, where they are there.

    Args:
        parameters: of a notebook, by name.
    """
    found = {}
    for kind, home, names in (
        ("prepared", paths.PREPARED, ("dataset.json", "manifest.csv")),
        ("sequencer", paths.SEQUENCERS, ("config.json", "weights.safetensors")),
    ):
        folder = parameters.get(kind, "")
        files = [home / Path(folder).expanduser() / name for name in names]
        if folder and all(file.is_file() for file in files):
            content = b"".join(file.read_bytes() for file in files)
            found[f"{kind} {Path(folder).name}"] = hashlib.sha256(content).hexdigest()
    return found


def versions() -> dict[str, str]:
    """The versions of Python, of this companion and of the packages that numbers depend on."""
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    packages = {name: version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")}
    python = ".".join(map(str, sys.version_info[:3]))
    return {"companion": project["version"], "python": python, **packages}


def commit() -> str | None:
    """The commit checked out, `-dirty` where tracked files differ; None outside a git checkout."""
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    within = paths.environment(GIT_CEILING_DIRECTORIES=str(paths.ROOT.parent))
    try:
        return subprocess.run(
            [*command, "--exclude=*"], env=within, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def plain(name: str, value: Any) -> Any:
    """`value` as JSON takes it, dictionaries level by level and NumPy's scalars converted.

    Raises:
        ValueError: a value at any level that is no finite number and no text.
    """
    if isinstance(value, dict):
        return {str(key): plain(f"{name}[{key!r}]", inner) for key, inner in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, (int, float, str)) or not finite:
        raise ValueError(f"{name} must be a finite number or a text, got {value!r}.")
    return value


@dataclass
class Run:
    """One execution of a notebook: its device, its figures, what it skipped, its numbers.

    Attributes:
        notebook: its name.
        parameters: its parameters as used.
        device: a GPU where there is one.
        attended: whether a person watches in JupyterLab, so that figures may move.
        skipped: what was not run, and why.
    """

    notebook: str
    parameters: dict[str, Any]
    device: torch.device
    attended: bool = field(default_factory=paths.in_jupyterlab)
    skipped: list[dict[str, str]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def figure(self, figure: Figure, name: str) -> None:
        """Save a figure as build/<profile>/figures/<NN>-<name>.png (150 dpi) and .pdf."""
        folder = paths.make(paths.BUILD / self.parameters["profile"] / "figures")
        for kind in ("png", "pdf"):
            save = partial(figure.savefig, format=kind, dpi=150)
            paths.write(folder / f"{self.notebook[:2]}-{name}.{kind}", save)
            figure.set_layout_engine("none")  # found once: that takes as long as to draw

    def skip(self, what: str, why: str) -> None:
        """Say that a part of the notebook is not run, and why; both end up in the metrics."""
        why = paths.without_home(why)
        self.skipped.append({"what": what, "why": why})
        print(f"SKIPPED: {what}: {why}")

    def finish(self, numbers: dict, data: str, weights: str) -> None:
        """Write build/<profile>/metrics/<notebook>.json: the numbers and all they came from.

        Args:
            numbers: names to finite numbers, texts, or such dictionaries; the most telling first.
            data: in words, what the numbers were computed from.
            weights: in words, where the networks' weights came from.

        Raises:
            ValueError: NaN, infinity or any other type among the numbers.
        """
        numbers = {name: plain(f"numbers[{name!r}]", value) for name, value in numbers.items()}
        profile = self.parameters["profile"]
        record = {
            "notebook": self.notebook,
            "profile": profile,
            "data": data,
            "weights": weights,
            "device": str(self.device),
            "seed": self.parameters["seed"],
            "parameters": self.parameters,
            "made_from": made_from(self.parameters),
            "versions": versions(),
            "commit": commit(),
            "seconds": round(time.perf_counter() - self.started, 1),
            "skipped": self.skipped,
            "numbers": numbers,
        }
        path = metrics_path(profile, self.notebook)
        paths.make(path.parent)
        text = paths.without_home(json.dumps(record, indent=2)) + "\n"
        paths.write(path, lambda beside: beside.write_text(text))
        print(f"numbers recorded after {record['seconds']} s: {', '.join(numbers)}")
