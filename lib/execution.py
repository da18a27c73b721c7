"""What is run and with which parameters, checked first; then papermill runs it, in order."""

import json
import os
import re
import sys
from typing import Any

import yaml
from tqdm import tqdm

from lib import paths
from lib.notebook import (
    TYPES,
    Run,
    check_parameters,
    commit,
    declared,
    did_you_mean,
    earlier,
    keep_earlier,
    made_from,
    metrics_path,
    versions,
)

NEEDS = {"04": ("03",), "05": ("03", "04"), "06": ("03", "04")}  # 07 reads what numbers there are


def plan(profile: str, only: list[str], given: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """What to run, `{notebook: parameters}`, all checked.

    Args:
        profile: "bundled" runs every notebook as it is; a folder of notebooks/profiles runs the
            notebooks that it holds a YAML file for.
        only: numbers of notebooks, as "02"; empty for all of the profile.
        given: pairs of a parameter's name and its value as `papermill -p` reads it, for every
            notebook that has it.

    Raises:
        ValueError: an unknown profile, number, name, a value of another type, a damaged profile.
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
    for file in sorted((paths.PROFILES / profile).glob("*.y*ml")):
        if file.suffix != ".yaml":
            raise ValueError(f"{profile}/{file.name} is not read: let its name end in .yaml.")
        if file.stem not in notebooks:
            raise ValueError(
                f"{profile}/{file.name} is for no notebook. {did_you_mean(file.stem, notebooks)}"
            )
        chosen[file.stem] = _profile_file(profile, file.stem)
    if not chosen:
        raise ValueError(
            f"Profile {profile} holds no <notebook>.yaml. There are notebooks "
            f"{', '.join(notebooks)}."
        )
    return chosen


def _profile_file(profile: str, notebook: str) -> dict[str, Any]:
    """The parameters that a profile has for a notebook; {} if it has no file.

    PyYAML and papermill read YAML 1.1, where 010 is 8, 1:30 is 90 and no is False: such a value is
    refused, whatever was meant.
    """
    file = paths.PROFILES / profile / f"{notebook}.yaml"
    if not file.exists():
        return {}
    try:
        text = file.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"lines `name: value` are needed, at least `profile: {profile}`")
        seen = set()
        for key, node in root.value:
            where = f"line {key.start_mark.line + 1}, {key.value}"
            if not key.tag.endswith(":str"):
                raise ValueError(f"{where}: that is no name of a parameter")
            if key.value in seen:
                raise ValueError(f"{where}: given twice, keep one of the two lines")
            seen.add(key.value)
            _require_unambiguous(where, node)
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{profile}/{file.name}: {' '.join(str(error).split())}") from None


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


def _declared(notebook: str) -> dict[str, str]:
    """The parameters of a notebook and their types, as papermill sees them."""
    from papermill import inspect_notebook  # two seconds, which only a run should wait for

    found = inspect_notebook(paths.NOTEBOOKS / f"{notebook}.ipynb")
    return {name: parameter["inferred_type_name"] for name, parameter in found.items()}


def _give(given: list[tuple[str, str]], chosen: dict, kinds: dict[str, dict[str, str]]) -> None:
    """Put the values from the command line into the parameters of the notebooks that have them."""
    for number, (name, text) in enumerate(given):
        if name in dict(given[:number]):
            raise ValueError(f"-p {name} is given twice: keep one of the two.")
        takers = [notebook for notebook in chosen if name in kinds[notebook]]
        if not takers:
            known = sorted(set().union(*kinds.values()))
            raise ValueError(
                f"No notebook to be run has a parameter {name!r}. {did_you_mean(name, known)}"
            )
        for notebook in takers:
            chosen[notebook][name] = _read(text, kinds[notebook][name])


def _read(text: str, kind: str) -> Any:
    """A value from the command line, as Python reads it; the text where that is not of its kind."""
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return TYPES[kind](text)
    except ValueError:
        return text


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

    folder = paths.make(paths.BUILD / parameters["profile"])
    record = metrics_path(parameters["profile"], notebook)
    output = folder / f"{notebook}.ipynb"
    page = folder / f"{notebook}.html"
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
        if not record.exists():
            unfinished = "it ended without run.finish(...), which records its numbers"
            return _failure(notebook, output, unfinished)
        html, _ = HTMLExporter().from_filename(str(output))
        paths.write(page, lambda beside: beside.write_text(html, encoding="utf-8"))
    except papermill.PapermillExecutionError as failure:
        lines = f"{failure.ename}: {failure.evalue}".splitlines()[:5]
        return _failure(notebook, output, "\n".join(lines))
    except CellTimeoutError:
        return _failure(notebook, output, f"it took longer than {timeout} s; --timeout allows more")
    except DeadKernelError:
        died = "the kernel died, as it does when memory runs out (the bundled run needs 6 GB)"
        return _failure(notebook, output, died)
    except (OSError, RuntimeError) as error:  # a full disk; a kernel that does not start
        return f"{notebook} failed: {error}\nIs there room in {folder}? See {output}"
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

    What an earlier run of them left is kept in build/<profile>/earlier/: the numbers of a notebook
    that fails now, or is not run because another did, are not those of this run.

    Args:
        profile: the folder below build/.
        chosen: what `plan` returned.
        timeout: seconds that one cell may take.

    Raises:
        RuntimeError: another process runs this profile; the message says which.
        OSError: data/ or build/ cannot be used; the message says why.
    """
    paths.require_folders()
    with paths.alone(paths.BUILD / profile, "writing"):
        return _run(profile, chosen, timeout)


def _run(profile: str, chosen: dict[str, dict[str, Any]], timeout: int) -> int:
    os.environ["JUPYTER_PATH"] = f"{sys.prefix}/share/jupyter"  # the kernel of this very Python
    folder = paths.BUILD / profile
    for notebook in chosen:
        figures = folder.glob(f"figures/{notebook[:2]}-*")
        pages = [folder / f"{notebook}.{kind}" for kind in ("ipynb", "html")]
        for left in (metrics_path(profile, notebook), *pages, *figures):
            keep_earlier(left, profile)
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


def read_record(notebook: str, run: Run) -> tuple[dict[str, Any], str]:
    """What a notebook recorded under the profile of `run`, and how that differs from `run`.

    Args:
        notebook: its name.
        run: of the notebook that reads, the ledger.

    Returns:
        The record, {} where it does not count: the notebook has not been run, has begun again and
        not ended, or what its numbers were made from has changed since. And in words why it does
        not count, or of which other commit, version, seed or parameters it is; "" if of none.
    """
    profile = run.parameters["profile"]
    path = metrics_path(profile, notebook)
    for name in (*NEEDS.get(notebook[:2], ()), notebook[:2]):
        for kept in earlier(path.parent, profile).glob(f"{name}_*.json"):
            if not (path.parent / kept.name).exists():
                return {}, f"{name} was begun again and has not ended well"
    if not path.exists():
        return {}, "not run"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        used, made = dict(record["parameters"]), dict(record.get("made_from", {}))
        there = {"commit": record["commit"], "seed": record["seed"], **record["versions"]}
        record["numbers"] = dict(record["numbers"])
        now = made_from(used)
    except (ValueError, KeyError, TypeError):
        return {}, f"{path.name} is damaged: run the notebook again"
    changed = [name for name in made if name in now and now[name] != made[name]]
    if changed:
        return {}, f"{' and '.join(changed)} changed since: run the notebook again"
    differing = [f"{name} is gone" for name in made if name not in now]
    here = {"commit": commit(), "seed": run.parameters["seed"], **versions()}
    for name, value in here.items():
        if there.get(name) != value:
            differing.append(f"{name} {there.get(name)}, here {value}")
    expected = {name: default for name, (_, default) in declared(notebook).items()}
    if profile != "bundled":
        expected |= _profile_file(profile, notebook)
    expected = json.loads(paths.without_home(json.dumps(expected | {"profile": profile})))
    for name, value in expected.items():
        if name not in here and used.get(name) != value:
            differing.append(f"{name} {used.get(name)!r}, in the profile {value!r}")
    return record, re.sub(r"\b([0-9a-f]{7})[0-9a-f]{33}\b", r"\1", "; ".join(differing))
