"""What an answer to an exercise is told: its points, and one sentence.

No answer ends in a traceback. One that is open, of another kind than wanted, wrong in a way that
has a name in `answers.py`, or wrong otherwise gets a sentence that says so.
"""

import copy
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from typing import Any

import numpy as np
import torch

from lib import paths

from answers import EXERCISES, Exercise

OPEN = (
    "still open: write your answer in the cell above in place of None, run it and then this one; "
    "the hints below the task unfold one by one"
)
_scored: dict[str, tuple[float, float]] = {}  # of this notebook: points got, points to be had
_stale = ""  # what to say where the notebook is of another version than the checkout


def version_of(notebook: str) -> str:
    """The version of a notebook's exercises, known by their content."""
    digest = hashlib.sha256()
    for name in (notebook, "answers", "checks"):
        digest.update((paths.ROOT / "exercises" / f"{name}.py").read_bytes())
    return digest.hexdigest()[:8]


def begin(notebook: str, version: str = "") -> None:
    """Start a notebook's exercises.

    Args:
        notebook: its name, as `01_cam_imagenet`.
        version: of the exercises that it was made from; empty for the source itself.
    """
    global _stale
    _scored.clear()
    _stale = ""
    torch.manual_seed(0)
    now = version_of(notebook)
    print(f"Exercises of notebook {notebook[:2]}, version {version or now}.")
    if version and version != now:
        _stale = (
            f"This notebook is of version {version}, the exercises here are of version {now}: "
            "`make exercises` writes a new one and keeps yours beside it."
        )
        print(_stale)


def check(number: str, answer: Any, points: float = 1) -> float:
    """Say what an answer is worth, and why.

    Args:
        number: of the exercise, as "1.2".
        answer: of any kind.
        points: what the right answer is worth.

    Returns:
        The points: all, or 0.
    """
    fault = find_fault(number, answer)
    got = 0 if fault else points
    _scored[number] = (got, points)
    print(f"{number}: {fault or 'right'}. {got} of {points} points.")
    if fault and _stale:
        print(_stale)
    return got


def summary() -> float:
    """Say how many points there are and which exercises are left; return the points."""
    got = sum(points for points, _ in _scored.values())
    print(f"{got} of {sum(points for _, points in _scored.values())} points.")
    left = [number for number, (points, _) in _scored.items() if not points]
    if left:
        print(f"Left: {', '.join(left)}. Go on with {left[0]}: write your answer in place of None.")
    elif _scored:
        print("All of them are right.")
    else:
        print("Nothing has been checked yet: run the cells from the top.")
    return got


def find_fault(number: str, answer: Any) -> str:
    """What is wrong with an answer, in one sentence without its full stop; "" where nothing is."""
    exercise = EXERCISES.get(number)
    if exercise is None:
        return "there is no such exercise in this version of the checks"
    given, fault = _results(exercise, answer)
    if fault:
        return fault + _elsewhere(number, answer)
    if all(value is None or value is ... for value in given):
        return OPEN
    right = _right(number)
    if same(given, right):
        return ""
    for wrong, sentence in exercise.wrong.values():
        expected, _ = _results(exercise, wrong)
        if same(given, expected):
            return f"not yet: {sentence}"
    for one, wanted in zip(given, right, strict=True):
        fault = _kind(one, wanted)
        if fault:
            return f"not yet: {fault}" + _elsewhere(number, answer)
    return _difference(exercise, given, right) + _elsewhere(number, answer)


def _results(exercise: Exercise, answer: Any) -> tuple[list, str]:
    """What an answer gives, for each case where it is a function; and what stops it."""
    if exercise.cases is None:
        if callable(answer):
            return [], "not yet: a function was given, and a value is wanted"
        return [answer], ""
    if answer is None or answer is ...:
        return [answer], ""
    if not callable(answer):
        return [], f"not yet: a function is wanted, and {_described(answer)} was given"
    given = []
    for case in exercise.cases():
        try:
            with _silence():
                given.append(answer(*copy.deepcopy(case)))
        except (Exception, SystemExit) as error:
            said = " ".join(str(error).split())[:200]
            return [], f"not yet: your function stops with {type(error).__name__}: {said}"
    return given, ""


@cache
def _right(number: str) -> list:
    """What the right answer gives, for each case where it is a function."""
    return _results(EXERCISES[number], EXERCISES[number].right)[0]


@contextmanager
def _silence() -> Iterator[None]:
    """Within this context nothing is printed: nbgrader gives nothing where a check has warned."""
    with (
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _elsewhere(number: str, answer: Any) -> str:
    """A further sentence where the answer is right for another exercise of the notebook."""
    for other, exercise in EXERCISES.items():
        if other != number and other[0] == number[0]:
            given, fault = _results(exercise, answer)
            if not fault and same(given, _right(other)):
                return f". It is the answer to {other}"
    return ""


def same(given: Any, wanted: Any) -> bool:
    """Whether two answers are one but for rounding, spelling and the kind of array."""
    if isinstance(wanted, str):
        return isinstance(given, str) and given.strip().casefold() == wanted.casefold()
    if isinstance(wanted, list | tuple):
        parts = _parts(given)
        if parts is None or len(parts) != len(wanted):
            return False
        return all(same(one, other) for one, other in zip(parts, wanted, strict=True))
    given, wanted = _array(given), _array(wanted)
    if given is None or given.shape != wanted.shape:
        return False
    if (given.dtype == bool) != (wanted.dtype == bool):
        return False
    scale = np.abs(wanted).max(initial=0)
    return bool(np.allclose(given, wanted, rtol=1e-3, atol=1e-4 * scale + 1e-9))


def _parts(value: Any) -> list | None:
    """The parts of a tuple, a list or an array; None where it has none."""
    if isinstance(value, list | tuple):
        return list(value)
    array = _array(value)
    return None if array is None or array.ndim == 0 else list(array)


def _array(value: Any) -> np.ndarray | None:
    """A number, a tensor or what is like an array, as bool or float64; None for anything else."""
    try:
        if torch.is_tensor(value):
            if value.is_complex():
                return None
            value = value.detach().cpu()
            value = value if value.dtype == torch.bool else value.double()
        array = np.asarray(value)
    except Exception:  # whatever a stranger's object does when it is asked for its numbers
        return None
    if array.dtype.kind not in "biuf":
        return None
    return array if array.dtype == bool else array.astype(float)


def _kind(given: Any, wanted: Any) -> str:
    """What is wrong with the kind of an answer, whatever its values; "" where nothing is."""
    instead = f"{_described(given)} was given, and {_described(wanted)} is wanted"
    if isinstance(wanted, str):
        return "" if isinstance(given, str) else instead
    if isinstance(wanted, list | tuple):
        parts = _parts(given)
        if parts is None or len(parts) != len(wanted):
            return instead
        faults = [_kind(one, other) for one, other in zip(parts, wanted, strict=True)]
        numbered = [f"in part {i}, {fault}" for i, fault in enumerate(faults, 1) if fault]
        return numbered[0] if numbered else ""
    array, right = _array(given), _array(wanted)
    if array is None or array.shape != right.shape:
        return instead
    if (array.dtype == bool) != (right.dtype == bool):
        return instead
    return "" if np.isfinite(array).all() else "it holds NaN or infinite values"


def _described(value: Any) -> str:
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    array = _array(value)
    if callable(value) or array is None:
        return "None" if value is None else f"an object {type(value).__name__}"
    if array.ndim == 0:
        return "True or False" if array.dtype == bool else "a number"
    numbers = "an array of True and False" if array.dtype == bool else "an array of numbers"
    return f"{numbers} of shape {array.shape}"


def _difference(exercise: Exercise, given: list, right: list) -> str:
    """Where an answer of the right kind is wrong, without giving the right one away."""
    if exercise.cases is None:
        return "not yet: the kind of answer is right, its value is not"
    hits = [same(one, wanted) for one, wanted in zip(given, right, strict=True)]
    return (
        f"not yet: right in {sum(hits)} of the {len(hits)} cases that were tried, wrong first in "
        f"number {hits.index(False) + 1}"
    )


def misconception(number: str, answer: Any) -> str:
    """The name of the misconception that an answer shows, "" for none of those that have one."""
    fault = find_fault(number, answer)
    for name, (_, sentence) in EXERCISES[number].wrong.items():
        if fault == f"not yet: {sentence}":
            return name
    return ""
