"""What is run and with which parameters, checked first; then papermill runs it, side by side."""

import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lib import paths
from lib.notebook import (
    PRODUCTS,
    TYPES,
    Run,
    check_parameters,
    commit,
    declared,
    did_you_mean,
    differences,
    earlier,
    failed_claims,
    keep_earlier,
    made_from,
    metrics_path,
    product_name,
    profile_values,
    read_profile,
    run_folder,
    run_name,
    versions,
)

NEEDS = {"04": ("03",), "05": ("03", "04"), "06": ("03", "04")}  # what makes the products they read
PATIENCE = 3600  # seconds that a notebook waits for a folder which another one is changing
LAST = "07"  # reads the numbers of all the others


class Outcome(NamedTuple):
    """What became of a notebook.

    Attributes:
        status: "ok"; "claims failed", its numbers are recorded; "failed"; "not run".
        error: in a few lines what failed and in which cell; "" where nothing did.
        record: what the notebook recorded, {} where it did not.
    """

    status: str
    error: str = ""
    record: dict[str, Any] = {}  # noqa: RUF012, nobody writes to it


class Here(Executor):
    """An executor that runs what it is given in this very process, at once."""

    def submit(self, function: Callable, /, *arguments: Any) -> Future:
        """The future of a call that has been made."""
        future = Future()
        future.set_result(function(*arguments))
        return future


def notebooks() -> list[str]:
    """The names of all notebooks, in order."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def profiles() -> list[str]:
    """The names of all profiles."""
    found = {path.name for path in paths.PROFILES.glob("*/")}
    return ["bundled", *sorted(found - {"bundled"})]


def plan(
    profile: str, only: list[str], given: list[tuple[str, str]]
) -> tuple[str, dict[str, dict[str, Any]]]:
    """What to run, all checked.

    Where parameters differ from the profile's, the run has a name of its own, and so has what its
    notebooks make for each other.

    Args:
        profile: "bundled" runs every notebook as it is; a folder of notebooks/profiles runs the
            notebooks that it holds a YAML file for.
        only: numbers of notebooks, as "02"; empty for all of the profile.
        given: pairs of a parameter's name and its value as `papermill -p` reads it, for every
            notebook that has it.

    Returns:
        The name of the run and `{notebook: parameters}`.

    Raises:
        ValueError: an unknown profile, number, name, a value of another type, a damaged profile.
    """
    chosen = of_profile(profile, only)
    kinds = {notebook: _declared(notebook) for notebook in chosen}
    _give(given, chosen, kinds)
    for notebook, values in chosen.items():
        if values.setdefault("profile", profile) != profile:
            raise ValueError(
                f"{notebook}: profile is {values['profile']!r}, but --profile is {profile!r}."
            )
        check_parameters(notebook, values, kinds[notebook])
    link(chosen)
    found = set()
    for notebook, values in chosen.items():
        found |= set(run_name(notebook, resolved(notebook, values)).split("+")[1:])
    for values in chosen.values():
        values["profile"] = "+".join([profile, *sorted(found)])
    names = {run_name(notebook, resolved(notebook, values)) for notebook, values in chosen.items()}
    return names.pop(), chosen


def of_profile(profile: str, only: list[str]) -> dict[str, dict[str, Any]]:
    """The notebooks of a profile, or `only` those numbers, and what its YAML files give them.

    Raises:
        ValueError: an unknown profile or number, a damaged profile.
    """
    known = notebooks()
    chosen = {notebook: {} for notebook in known}
    if profile != "bundled":
        chosen = _profile(profile, known)
    for number in only:
        if number not in {notebook[:2] for notebook in chosen}:
            raise ValueError(
                f"Profile {profile} has no notebook {number}. There are {', '.join(chosen)}."
            )
    if only:
        chosen = {notebook: chosen[notebook] for notebook in chosen if notebook[:2] in only}
    return chosen


def resolved(notebook: str, values: dict[str, Any]) -> dict[str, Any]:
    """All parameters of a notebook that is run with `values`."""
    return {name: default for name, (_, default) in declared(notebook).items()} | values


def link(chosen: dict[str, dict[str, Any]]) -> None:
    """Let each notebook read what an earlier one of `chosen` makes, under the name that it gets."""
    made = {}
    for notebook, values in chosen.items():
        used = resolved(notebook, values)
        base = profile_values(used["profile"].split("+")[0], notebook)
        for parameter, maker in PRODUCTS.items():
            if parameter in used and parameter in made:
                if made[parameter] != used[parameter]:
                    used[parameter] = values[parameter] = made[parameter]
            if maker == notebook[:2] and parameter in used:
                made[parameter] = product_name(parameter, used, base)


def _profile(profile: str, known: list[str]) -> dict[str, dict[str, Any]]:
    """The parameters in the YAML files of a profile, for the `known` notebooks."""
    if profile not in profiles():
        raise ValueError(f"There is no profile {profile!r}. {did_you_mean(profile, profiles())}")
    chosen = {}
    for file in sorted((paths.PROFILES / profile).glob("*.y*ml")):
        if file.suffix != ".yaml":
            raise ValueError(f"{profile}/{file.name} is not read: let its name end in .yaml.")
        if file.stem not in known:
            raise ValueError(
                f"{profile}/{file.name} is for no notebook. {did_you_mean(file.stem, known)}"
            )
        chosen[file.stem] = read_profile(profile, file.stem)
    if not chosen:
        raise ValueError(
            f"Profile {profile} holds no <notebook>.yaml. There are notebooks {', '.join(known)}."
        )
    return chosen


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
            chosen[notebook][name] = read_value(text, kinds[notebook][name])


def read_value(text: str, kind: str) -> Any:
    """A value from the command line, as Python reads it; the text where that is not of its kind."""
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return TYPES[kind](text)
    except ValueError:
        return text


def execute(
    source: Path,
    output: Path,
    parameters: dict[str, Any],
    timeout: int,
    environment: dict[str, str],
) -> Outcome:
    """Run a notebook, and write it executed and as a page.

    Args:
        source: the notebook.
        output: where it is written with what came out, the page beside it as .html. It records its
            numbers in metrics/ there.
        parameters: its parameters, checked.
        timeout: seconds that one cell may take.
        environment: variables that the notebook's process gets besides those of this one. It
            imports this very `lib`, also where another copy of the project is installed.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    record = output.parent / "metrics" / f"{source.stem}.json"
    page = output.with_suffix(".html")
    searched = [str(paths.ROOT), *filter(None, [paths.environment().get("PYTHONPATH")])]
    try:
        paths.make(output.parent)
        with paths.environment_with({"PYTHONPATH": os.pathsep.join(searched), **environment}):
            _start_twice_at_most(
                partial(
                    papermill.execute_notebook,
                    source,
                    output,
                    parameters,
                    kernel_name="python3",
                    cwd=source.parent,
                    progress_bar=False,
                    execution_timeout=timeout,
                    extra_arguments=["--log-level=50"],
                )
            )
        if not record.exists():
            unfinished = "it ended without run.finish(...), which records its numbers"
            return Outcome("failed", _failure(output, unfinished))
        _write_page(output, page)
        return Outcome("ok", "", json.loads(record.read_text()))
    except papermill.PapermillExecutionError as failure:
        if failure.ename == "ClaimsFailed":  # which run.finish raises once all is recorded
            _write_page(output, page)
            return Outcome("claims failed", failure.evalue, json.loads(record.read_text()))
        lines = f"{failure.ename}: {failure.evalue}".splitlines()[:5]
        return Outcome("failed", _failure(output, "\n".join(lines)))
    except CellTimeoutError:
        late = f"it took longer than {timeout} s; --timeout allows more"
        return Outcome("failed", _failure(output, late))
    except DeadKernelError:
        died = "the kernel died, as it does when memory runs out (the bundled run needs 6 GB)"
        return Outcome("failed", _failure(output, died))
    except (OSError, RuntimeError) as error:  # a full disk; a kernel that does not start
        room = f"Is there room in {output.parent}? See {output}"
        return Outcome("failed", f"{source.stem} failed: {error}\n{room}")


def _start_twice_at_most(run: Callable[[], object]) -> None:
    """Run a notebook, again if its kernel did not start: another took a port that was its own."""
    try:
        run()
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        run()


def _write_page(notebook: Path, page: Path) -> None:
    from lib.page import html  # nbconvert, a second which only a run should wait for

    written = html(notebook)
    paths.write(page, lambda beside: beside.write_text(written, encoding="utf-8"))


def _failure(output: Path, error: str) -> str:
    """Which cell failed, and why."""
    import nbformat

    begun = []
    for cell in nbformat.read(output, 4).cells:
        if cell.cell_type == "code" and cell.metadata.papermill.start_time:
            begun.append(cell.source)
    first_line = begun[-1].splitlines()[0]
    cell = f"{output.stem} failed in cell [{len(begun)}] `{first_line}`"
    return f"{cell}\n{error}\nSee {output}"


def flat(numbers: dict, prefix: str = "") -> dict[str, Any]:
    """Nested numbers, keys joined by dots; a score's own `value` keeps the score's name."""
    found = {}
    for name, value in numbers.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}".removesuffix(".value")] = value
    return found


def _summary(outcome: Outcome) -> str:
    """Seconds, the first three numbers, and what was skipped or failed, on one line."""
    if not outcome.record:
        return f"      -  {outcome.error if outcome.status == 'not run' else 'failed'}"
    shown = []
    for name, value in list(flat(outcome.record["numbers"]).items())[:3]:
        shown.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    more = "".join(f"; skipped: {part['what']}" for part in outcome.record["skipped"])
    if outcome.status == "claims failed":
        more += f"; {len(failed_claims(outcome.record))} claim(s) FAILED"
    return f"{outcome.record['seconds']:7.1f}  {', '.join(shown)}{more}"


class Task(NamedTuple):
    """A notebook to be run once.

    Attributes:
        notebook: its name.
        parameters: those to be given to it, checked.
        output: where it is written, executed.
        needs: the keys of the tasks that must have ended before.
    """

    notebook: str
    parameters: dict[str, Any]
    output: Path
    needs: tuple[str, ...] = ()


def work(
    tasks: dict[str, Task],
    executor: Executor,
    workers: int,
    timeout: int,
    environment: dict[str, str],
    begun: Callable[[str], object],
    ended: Callable[[str, Outcome], object],
) -> None:
    """Run tasks as soon as those that they need have ended, as many at once as there are workers.

    Of those that could begin, the one goes first on which most others wait; one worker takes them
    in their order. A task is not run where
    one that it needs was not run or failed; failing claims do not stop it, the numbers are there.

    Args:
        tasks: by a key.
        executor: any of concurrent.futures, whose workers see the same files. It runs `execute`,
            which changes its process's folder and environment: of processes, not of threads.
        workers: how many tasks at once.
        timeout: seconds that one cell may take.
        environment: of the notebooks' processes, besides that of the executor's.
        begun: called with the key of each task when it begins.
        ended: called with the key and outcome of each task when it has ended.

    Raises:
        RuntimeError: the executor broke down; tasks that ended before were reported.
    """
    outcomes = {}
    running = {}
    waited_for = {key: sum(key in task.needs for task in tasks.values()) for key in tasks}
    left = list(tasks) if workers == 1 else sorted(tasks, key=lambda key: -waited_for[key])
    try:
        while left or running:
            for key in list(left):
                task = tasks[key]
                missing = [need for need in task.needs if need in tasks and need not in outcomes]
                if missing or len(running) >= workers:
                    continue
                left.remove(key)
                unmade = [need for need in task.needs if need in outcomes if _lost(outcomes[need])]
                if unmade:
                    names = [tasks[need].notebook[:2] for need in unmade]
                    outcomes[key] = Outcome("not run", f"not run: needs {' and '.join(names)}")
                    ended(key, outcomes[key])
                    continue
                begun(key)
                source = paths.NOTEBOOKS / f"{task.notebook}.ipynb"
                arguments = (source, task.output, task.parameters, timeout, environment)
                running[executor.submit(execute, *arguments)] = key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                outcomes[key] = future.result()
                ended(key, outcomes[key])
    except BrokenExecutor as error:
        raise RuntimeError(
            "A process that ran notebooks ended, as it does when memory runs out. What has ended is"
            " kept; give the same command again, with --workers 1 if that does not help."
        ) from error
    finally:
        for future in running:
            future.cancel()


def _lost(outcome: Outcome) -> bool:
    return outcome.status in ("failed", "not run")


@contextmanager
def pool(workers: int) -> Iterator[Executor]:
    """An executor of so many processes; of this one where that is all.

    When the block is left early, the processes, the kernels that they run and whatever these
    started are ended.
    """
    if workers == 1:
        yield Here()
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, _deaf)
    try:
        yield executor
    except BaseException:
        _end_children()
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def _deaf() -> None:
    """In a worker: leave Ctrl-C to the process that started it, and end when that has ended."""
    import signal
    from threading import Thread

    signal.signal(signal.SIGINT, lambda *_: None)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _end_children() -> None:
    """End all processes that come from this one."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=10)


def default_workers() -> int:
    """How many notebooks to run at once: two, where there are two cores."""
    return min(2, os.cpu_count() or 1)


def run(name: str, chosen: dict[str, dict[str, Any]], timeout: int, workers: int) -> int:
    """Run the `chosen` notebooks, print a table of what came out, return the exit status.

    Notebooks that do not need each other run side by side, the ledger after all others. What an
    earlier run of the name left is kept in its earlier/: the numbers of a notebook that fails now,
    or is not run because another did, are not those of this run.

    Args:
        name: of the run, and of the folder below build/.
        chosen: as `plan` returned it.
        timeout: seconds that one cell may take.
        workers: notebooks to run at once.

    Raises:
        RuntimeError: another process runs this; the message says which. Or a worker process ended.
        OSError: data/ or build/ cannot be used; the message says why.
    """
    paths.require_folders()
    with paths.alone(run_folder(name), "writing"):
        return _run(name, chosen, timeout, workers)


def _run(name: str, chosen: dict[str, dict[str, Any]], timeout: int, workers: int) -> int:
    folder = run_folder(name)
    for notebook in chosen:
        figures = folder.glob(f"figures/{notebook[:2]}-*")
        pages = [folder / f"{notebook}.{kind}" for kind in ("ipynb", "html")]
        for left in (metrics_path(name, notebook), *pages, *figures):
            keep_earlier(left, name)
    tasks = {}
    for notebook, parameters in chosen.items():
        needs = tuple(other for other in chosen if other[:2] in NEEDS.get(notebook[:2], ()))
        if notebook[:2] == LAST:
            needs = ()
        tasks[notebook] = Task(notebook, parameters, folder / f"{notebook}.ipynb", needs)
    outcomes = {}
    running = []
    workers = min(workers, len(tasks))
    progress = tqdm(total=len(tasks), unit="notebook", disable=None)

    def begun(notebook: str) -> None:
        running.append(notebook)
        progress.write(f"{notebook} ...", file=sys.stderr)

    def ended(notebook: str, outcome: Outcome) -> None:
        outcomes[notebook] = outcome
        progress.update()
        if outcome.status != "not run":
            running.remove(notebook)
        if outcome.error and outcome.status != "not run":
            progress.write(outcome.error, file=sys.stderr)

    first = {key: task for key, task in tasks.items() if key[:2] != LAST}
    last = {key: task for key, task in tasks.items() if key[:2] == LAST}
    try:
        with pool(workers) as executor, progress:
            for part in (first, last):
                how = (executor, workers, timeout, kernel_environment(workers))
                work(part, *how, begun, ended)
    except KeyboardInterrupt:
        rest = [notebook for notebook in chosen if notebook not in outcomes]
        numbers = " ".join(notebook[:2] for notebook in rest)
        given = _products_given(chosen, rest)
        stopped = " and ".join(running)
        print(f"\nStopped in {stopped}. To go on from there: the same command with", end=" ")
        print(f"--only {numbers}{given}")
        print(f'(with make: make run ARGS="--only {numbers}{given}")')
        return 130
    print(f"\n{'notebook':24} seconds  numbers")
    for notebook in chosen:
        print(f"{notebook:24} {_summary(outcomes[notebook])}")
    print(f"Notebooks, HTML, figures and metrics are in {folder}")
    return 0 if all(outcome.status == "ok" for outcome in outcomes.values()) else 1


def _products_given(chosen: dict[str, dict[str, Any]], rest: list[str]) -> str:
    """The options that name what `rest` reads of notebooks which have run, if not as usual."""
    options = ""
    for parameter, maker in PRODUCTS.items():
        made_already = maker not in {notebook[:2] for notebook in rest}
        names = {chosen[n][parameter] for n in rest if parameter in chosen[n] and n[:2] != maker}
        for name in sorted(name for name in names if made_already and "+" in name):
            options += f" -p {parameter} {name}"
    return options


def kernel_environment(workers: int) -> dict[str, str]:
    """Of notebooks that so many workers run: this very Python's kernel, the cores shared.

    Two of them may need one network, which the first trains and the other then finds.
    """
    shared = {"JUPYTER_PATH": f"{sys.prefix}/share/jupyter", "COMPANION_PATIENCE": str(PATIENCE)}
    if workers > 1 and "OMP_NUM_THREADS" not in paths.environment():
        shared["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    return shared


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
    path = metrics_path(run.name, notebook)
    for name in (*NEEDS.get(notebook[:2], ()), notebook[:2]):
        for kept in earlier(path.parent, run.name).glob(f"{name}_*.json"):
            if not (path.parent / kept.name).exists():
                return {}, f"{name} was begun again and has not ended well"
    if not path.exists():
        return {}, "not run"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        used, made = dict(record["parameters"]), dict(record.get("made_from", {}))
        there = {"commit": record["commit"], "seed": record["seed"], **record["versions"]}
        record["numbers"] = dict(record["numbers"])
        now = made_from(used | record["products"])
        failed = failed_claims(record)
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
    profile, *brought = run.parameters["profile"].split("+")
    base = json.loads(paths.without_home(json.dumps(profile_values(profile, notebook))))
    for difference in differences({name: used.get(name, base[name]) for name in base}, base):
        if difference not in brought and not difference.startswith("seed="):
            differing.append(f"{difference}, other than in the profile")
    differing += [f"its claim failed: {claim}" for claim in failed]
    return record, re.sub(r"\b([0-9a-f]{7})[0-9a-f]{33}\b", r"\1", "; ".join(differing))
