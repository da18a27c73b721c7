"""What every notebook begins and ends with: parameters, seeds, figures, claims, numbers.

In a notebook: `run = notebook.begin("02_clear_mnist", globals())`, then `run.figure`, `run.skip`,
`run.check` and `run.finish`.

A run is what its parameters are. Where they differ from those of its profile, its folder below
build/ and what it makes below data/ have names that say so: `bundled+relu=gated`,
`phantom-128+eye=both`. So no run overwrites what another one reads.
"""

import ast
import difflib
import hashlib
import json
import math
import operator
import os
import random
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from lib import figures, memory, paths

TYPES = {"int": int, "float": float, "str": str, "bool": bool}
PRODUCTS = {"prepared": "03", "sequencer": "04"}  # parameters that name what a notebook makes
RELATIONS = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
}
_LONGEST = 100  # characters of a folder's name below build/ or data/


class ClaimsFailed(AssertionError):
    """Claims of a notebook did not hold; its numbers are recorded all the same."""


def begin(notebook: str, namespace: dict) -> "Run":
    """Check a notebook's parameters, seed Python, NumPy and PyTorch, and start the clock.

    Its numbers of an earlier run are kept aside: if this one fails or is stopped, they are not its.

    Args:
        notebook: the notebook's name without its ending.
        namespace: its `globals()`, in which the cell with the parameters has been run.

    Raises:
        ValueError: a parameter that papermill passed and the notebook does not declare; a value
            that is not of the declared type; a profile that is no plain folder name or whose YAML
            is damaged; a seed outside [0, 2**32).
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
    if not re.fullmatch(r"\w[\w.-]*(\+[\w.=~-]+)*", profile):
        raise ValueError(
            f"profile {profile!r} names a folder under build/: use a plain name like 'bundled'."
        )
    seed = used["seed"]
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}.")
    name = run_name(notebook, used)
    keep_earlier(metrics_path(name, notebook), name)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, libraries draw from the global generator
    torch.manual_seed(seed)
    figures.style()
    memory.keep_freed()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(notebook, used, name, device)
    threads = torch.get_num_threads()
    print(f"{notebook}, run {name}, seed {seed}, on {device} with {threads} CPU thread(s)")
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


def profile_values(profile: str, notebook: str) -> dict[str, Any]:
    """The parameters that a profile gives a notebook: those of its YAML file over the defaults.

    The defaults are those of notebooks/profiles/bundled, which a test holds equal to the notebooks'
    own: who edits a default in JupyterLab has made another run.

    Raises:
        ValueError: a damaged YAML file.
    """
    defaults = {name: value for name, (_, value) in declared(notebook).items()}
    for name in dict.fromkeys(("bundled", profile)):
        defaults |= read_profile(name, notebook)
    return defaults


def read_profile(profile: str, notebook: str) -> dict[str, Any]:
    """What notebooks/profiles/<profile>/<notebook>.yaml says; {} where there is no such file.

    Raises:
        ValueError: the file is damaged; the message names the line.
    """
    file = paths.PROFILES / profile / f"{notebook}.yaml"
    if not file.exists():
        return {}
    try:
        return read_yaml(file.read_text(encoding="utf-8-sig"))
    except (ValueError, yaml.YAMLError) as error:
        said = f"{profile}/{file.name}: {' '.join(str(error).split())}"
        raise ValueError(said) from None


def read_yaml(text: str) -> dict[str, Any]:
    """Lines `name: value`, each name once, no value that YAML 1.1 and Python read differently.

    PyYAML and papermill read YAML 1.1, where 010 is 8, 1:30 is 90 and no is False: such a value is
    refused at any depth, whatever was meant.

    Raises:
        ValueError: what is wrong, with its line.
        yaml.YAMLError: no YAML.
    """
    root = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("lines `name: value` are needed")
    _require_plain(root, "")
    return yaml.safe_load(text)


def _require_plain(node: yaml.Node, key: str) -> None:
    """Raise ValueError for a name that is given twice and for an ambiguous value, at any depth."""
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _require_plain(inner, key)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for name, inner in node.value:
            where = f"line {name.start_mark.line + 1}, {name.value}"
            if not name.tag.endswith(":str"):
                raise ValueError(f"{where}: that is no name of a parameter")
            if name.value in seen:
                raise ValueError(f"{where}: given twice, keep one of the two lines")
            seen.add(name.value)
            _require_plain(inner, name.value)
    else:
        _require_unambiguous(f"line {node.start_mark.line + 1}, {key}", node)


def _require_unambiguous(where: str, node: yaml.Node) -> None:
    """Raise ValueError for a number or boolean that YAML 1.1 reads otherwise than Python."""
    kind = node.tag.rpartition(":")[2]
    if kind not in ("int", "float", "bool"):
        return
    value = yaml.constructor.SafeConstructor().construct_object(node)
    if kind == "float":
        plain = re.fullmatch(r"[-+]?[\d.]+(e[-+]\d+)?", node.value, re.I)
    else:
        plain = node.value.lower() == str(value).lower()
    if not plain:
        raise ValueError(
            f"{where}: {node.value} would be read as {value!r} (YAML 1.1). Write a number like 10 "
            f"or 0.5, a boolean as true or false, a text in quotes: '{node.value}'"
        )


def differences(used: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """How parameters differ from those of their profile: `name=value` of each, sorted.

    A product of another run says itself how that one differs: `phantom-128+eye=both` where the
    profile has `phantom-128` gives `eye=both`.

    Args:
        used: a notebook's parameters by name.
        base: those of the profile, as `profile_values` returns them.
    """
    found = set()
    for name, value in used.items():
        if name in PRODUCTS:
            value, *brought = value.split("+")
            found |= set(brought)
        if name != "profile" and value != base[name]:
            found.add(f"{name}={_in_a_name(value)}")
    return sorted(found)


def _in_a_name(value: Any) -> str:
    """A parameter's value as part of a folder's name, short and the same on any file system."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if re.fullmatch(r"[a-z0-9._-]{1,32}", text):
        return text
    readable = re.sub(r"[^a-z0-9._-]+", "-", text.lower()[-24:]).strip("-.")
    return f"{readable}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _joined(name: str, parts: Iterable[str]) -> str:
    """`name+part+...`, and where that is long its beginning and a hash of the whole."""
    whole = "+".join([name, *sorted(parts)])
    if len(whole) <= _LONGEST:
        return whole
    return f"{whole[: _LONGEST - 10].rstrip('+')}~{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def run_name(notebook: str, used: dict[str, Any]) -> str:
    """The name of a notebook's run: its profile, and how its parameters differ from those.

    Args:
        notebook: its name.
        used: all of its parameters; a `profile` like `bundled+eye=both` brings differences along,
            those of the other notebooks of one run.
    """
    profile, *brought = used["profile"].split("+")
    own = differences(used, profile_values(profile, notebook))
    return _joined(profile, {*brought, *own})


def product_name(parameter: str, used: dict[str, Any], base: dict[str, Any]) -> str:
    """The name of what a notebook makes: that which `parameter` gives, and the differences.

    Args:
        parameter: of `PRODUCTS`.
        used: the notebook's parameters.
        base: those of the profile.
    """
    own = differences(used, base)  # among them those that the name brings along
    name = used[parameter].split("+")[0]
    return _joined(name, [part for part in own if not part.startswith(f"{parameter}=")])


def run_folder(name: str) -> Path:
    """The folder of a run below build/."""
    return paths.BUILD / name


def metrics_path(name: str, notebook: str) -> Path:
    """Where `Run.finish` records a notebook's numbers, in the folder of the run `name`."""
    return run_folder(name) / "metrics" / f"{notebook}.json"


def earlier(path: Path, name: str) -> Path:
    """Where what an earlier run of that name left at `path` is kept by a new one."""
    folder = run_folder(name)
    return folder / "earlier" / path.relative_to(folder)


def keep_earlier(path: Path, name: str) -> None:
    """Move what an earlier run of that name left at `path`, if it did, to its earlier/."""
    if path.exists():
        paths.make(earlier(path, name).parent)
        os.replace(path, earlier(path, name))


def made_from(parameters: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of the data set and the sequencers that parameters name, where they are there.

    Args:
        parameters: of a notebook, by name; what it makes itself under the name that it has got.
    """
    found = {}
    for kind, home, names in (
        ("prepared", paths.PREPARED, ("dataset.json", "manifest.csv")),
        ("sequencer", paths.SEQUENCERS, ("config.json", "weights.safetensors")),
        ("start", paths.SEQUENCERS, ("config.json", "weights.safetensors")),
        ("averaged", paths.SEQUENCERS, ("config.json", "weights.safetensors")),
    ):
        value = parameters.get(kind, "")
        for folder in value.split() if kind == "averaged" else [value]:
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


def attended() -> bool:
    """Whether a front end with somebody before it runs this, rather than a program.

    A request to run a cell says whether its sender could pass a question of `input` on to a person
    (`allow_stdin`, Jupyter's messaging protocol). JupyterLab, VS Code and Colab can; nbconvert,
    papermill and nbval say that they cannot. So nothing is sent, and nothing waited for.
    """
    request = getattr(get_ipython(), "get_parent", dict)()  # a terminal has none
    return bool(request.get("content", {}).get("allow_stdin"))


@dataclass
class Run:
    """One execution of a notebook: its device, its figures, what it skipped, its claims, numbers.

    Attributes:
        notebook: its name.
        parameters: its parameters as used.
        name: of the run, and of its folder below build/.
        device: a GPU where there is one.
        attended: whether a person watches (`attended`), so that figures may move.
        skipped: what was not run, and why.
        claims: what `check` was told.
        products: the names of what the notebook made, by parameter.
    """

    notebook: str
    parameters: dict[str, Any]
    name: str
    device: torch.device
    attended: bool = field(default_factory=attended)
    skipped: list[dict[str, str]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    products: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def product(self, parameter: str) -> str:
        """The name of what the notebook makes below data/, as `parameter` and the run have it."""
        base = profile_values(self.parameters["profile"].split("+")[0], self.notebook)
        self.products[parameter] = product_name(parameter, self.parameters, base)
        return self.products[parameter]

    def trained(self, name: str, of: Iterable[str]) -> Path:
        """The folder of a network that the notebook trains for itself, below data/sequencers/.

        Args:
            name: what it is.
            of: the parameters that make it what it is.
        """
        profile = self.parameters["profile"].split("+")[0]
        base = profile_values(profile, self.notebook)
        used = {parameter: self.parameters[parameter] for parameter in of}
        return paths.SEQUENCERS / _joined(f"{name}-{profile}", differences(used, base))

    def figure(self, figure: Figure, name: str, alt: str) -> None:
        """Show a figure, and save it as figures/<NN>-<name>.png (150 dpi) and .pdf of the run.

        Args:
            figure: of matplotlib; it is closed, so that the notebook shows it once.
            name: of its files.
            alt: what it shows, with its numbers, in a sentence: for those who do not see it, and
                the caption on the pages of the notebook.

        Raises:
            ValueError: `alt` is empty.
        """
        alt = " ".join(alt.split())
        if not alt:
            raise ValueError(f"Figure {name!r}: say in `alt` what it shows, with its numbers.")
        folder = paths.make(run_folder(self.name) / "figures")
        for kind in ("png", "pdf"):
            save = partial(figure.savefig, format=kind, dpi=150)
            paths.write(folder / f"{self.notebook[:2]}-{name}.{kind}", save)
            figure.set_layout_engine("none")  # found once: that takes as long as to draw
        kind, shown = figures.as_bytes(figure)
        data = {kind: shown, "text/plain": repr(figure)}
        display(data, raw=True, metadata={kind: {"alt": alt}})
        plt.close(figure)

    def skip(self, what: str, why: str) -> None:
        """Say that a part of the notebook is not run, and why; both end up in the metrics."""
        why = paths.without_home(why)
        self.skipped.append({"what": what, "why": why})
        print(f"SKIPPED: {what}: {why}")

    def check(
        self, claim: str, value: Any, relation: str, bound: Any, **settings: Container | str
    ) -> None:
        """Compare a result with the bound of a claim, and say what came out; `finish` judges.

        Args:
            claim: in words.
            value: a finite number, a boolean or a text.
            relation: one of `RELATIONS`; a value that is not finite holds none.
            bound: what `value` is compared with.
            settings: parameters of the notebook, each with the value, or a container of the values,
                for which the claim is made; `profile` is the run's profile. Under other settings
                the outcome is reported, and failing is no fault.

        Raises:
            KeyError: a relation or a setting that does not exist.
        """
        unmet = {}
        for name, wanted in settings.items():
            used = self.parameters[name]
            used = used.split("+")[0] if name == "profile" else used
            one_value = isinstance(wanted, str) or not isinstance(wanted, Container)
            if used not in ([wanted] if one_value else wanted):
                unmet[name] = wanted
        value, bound = (x.item() if isinstance(x, np.generic) else x for x in (value, bound))
        held = bool(RELATIONS[relation](value, bound))
        record = {"claim": claim, "value": value, "bound": f"{relation} {bound}"}
        record |= {"held": held, "asserted": not unmet}
        if isinstance(value, float) and not math.isfinite(value):
            record["value"] = str(value)
        record["settings"] = {name: str(wanted) for name, wanted in settings.items()}
        self.claims.append(record)
        word = "holds" if held else "does not hold" if unmet else "FAILS"
        made = f"; claimed only for {_worded(unmet)}" if unmet else ""
        print(f"{word}: {claim}: {_rounded(value)}, bound {relation} {_rounded(bound)}{made}")

    def finish(self, numbers: dict, data: str, weights: str) -> None:
        """Write metrics/<notebook>.json in the run's folder: numbers, claims, all they came from.

        Args:
            numbers: names to finite numbers, texts, or such dictionaries; the most telling first.
            data: in words, what the numbers were computed from.
            weights: in words, where the networks' weights came from.

        Raises:
            ValueError: NaN, infinity or any other type among the numbers.
            ClaimsFailed: once all is written, where a claim that is made for these settings did
                not hold; the message names each with its value and bound.
        """
        numbers = {name: plain(f"numbers[{name!r}]", value) for name, value in numbers.items()}
        record = {
            "notebook": self.notebook,
            "run": self.name,
            "profile": self.parameters["profile"].split("+")[0],
            "data": data,
            "weights": weights,
            "device": str(self.device),
            "seed": self.parameters["seed"],
            "parameters": self.parameters,
            "products": self.products,
            "made_from": made_from(self.parameters | self.products),
            "versions": versions(),
            "commit": commit(),
            "seconds": round(time.perf_counter() - self.started, 1),
            "skipped": self.skipped,
            "claims": self.claims,
            "numbers": numbers,
        }
        path = metrics_path(self.name, self.notebook)
        paths.make(path.parent)
        text = paths.without_home(json.dumps(record, indent=2)) + "\n"
        paths.write(path, lambda beside: beside.write_text(text))
        print(f"numbers recorded after {record['seconds']} s: {', '.join(numbers)}")
        failed = failed_claims(record)
        if failed:
            raise ClaimsFailed(
                f"{len(failed)} of {len(self.claims)} claims of {self.notebook} failed, its numbers"
                f" are recorded:\n" + "\n".join(failed)
            )


def failed_claims(record: dict[str, Any]) -> list[str]:
    """The claims of a notebook's record that were made for its settings and did not hold."""
    failed = []
    for claim in record.get("claims", []):
        if claim["asserted"] and not claim["held"]:
            failed.append(f"{claim['claim']}: {_rounded(claim['value'])}, bound {claim['bound']}")
    return failed


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _worded(settings: dict[str, Any]) -> str:
    """`epochs 6 to 30, relu linear or gated`: settings, each with its value or its values."""
    parts = []
    for name, wanted in settings.items():
        if isinstance(wanted, range):
            wanted = f"{wanted[0]} to {wanted[-1]}"
        elif isinstance(wanted, (list, tuple)):
            wanted = " or ".join(map(str, wanted))
        parts.append(f"{name} {wanted}")
    return ", ".join(parts)
