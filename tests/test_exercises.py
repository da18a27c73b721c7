"""The exercises: the right answer passes, any other is told why, and no copy gives it away."""

import io
import os
import re
import sys
import warnings
from contextlib import redirect_stdout

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient

from lib import paths

import checks
import make_copies

NAMES = make_copies.names()
every_notebook = pytest.mark.parametrize("name", NAMES)
MISSING = "there is no such exercise"


def planted(name):
    """Each exercise of a source: {number: {"task", "stub", "solution", "check", "wrong"}}."""
    found = {}
    for cell in make_copies.read(name).cells:
        heading = make_copies.HEADING.match(cell.source)
        if heading:
            exercise = found[heading["number"]] = {"heading": heading, "task": cell.source}
            exercise["wrong"] = {}
        elif cell.cell_type == "code":
            for tag in make_copies.tags(cell):
                if tag == "misconception":
                    assert cell.metadata["shows"] not in exercise["wrong"]
                    exercise["wrong"][cell.metadata["shows"]] = cell.source
                else:
                    assert tag not in exercise, f"{name}: a second {tag}"
                    exercise[tag] = cell.source
    return found


EXERCISES = {name: planted(name) for name in NAMES}
every_exercise = pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in NAMES for number in EXERCISES[name]]
)
every_number = pytest.mark.parametrize("number", checks.EXERCISES)


def run(*sources, space=None):
    """Run cells one after the other in one namespace: what they print."""
    space = {} if space is None else space
    printed = io.StringIO()
    with redirect_stdout(printed):
        for source in sources:
            exec(compile(source, "cell", "exec"), space)
    return printed.getvalue()


@pytest.fixture(scope="module")
def setups():
    """The namespace after the first code cell of each source."""
    spaces = {}
    for name in NAMES:
        spaces[name] = {}
        first = next(c for c in make_copies.read(name).cells if c.cell_type == "code")
        run(first.source, space=spaces[name])
    return spaces


def told(name, number, source, setups):
    """What the check says to an answer, run after the notebook's first cell."""
    space = dict(setups[name])
    run(source, space=space)
    return run(EXERCISES[name][number]["check"], space=space)


def test_there_are_thirty_on_all_seven_notebooks_of_all_three_kinds():
    assert NAMES == [file.stem for file in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]
    for name in NAMES:
        kinds = [exercise["heading"]["kind"] for exercise in EXERCISES[name].values()]
        assert len(kinds) >= 4 and set(kinds) == {"predict", "compute", "extend"}
        assert all(number[0] == str(int(name[:2])) for number in EXERCISES[name])
    numbers = [number for name in NAMES for number in EXERCISES[name]]
    assert numbers == list(checks.EXERCISES) and len(numbers) == 30


@every_exercise
def test_an_exercise_has_its_parts_and_the_points_that_its_heading_says(name, number):
    exercise = EXERCISES[name][number]
    points = exercise["heading"]["points"]
    assert re.fullmatch(rf'checks.check\("{number}", \w+, points={points}\)', exercise["check"])
    assert (points == "1") == ("1 point," in exercise["task"])
    assert "<details><summary>Hint 1</summary>" in exercise["task"]
    assert exercise["task"].count("<details>") == exercise["task"].count("</details>")
    assert "None" in exercise["stub"] and len(exercise["wrong"]) >= 2


@every_exercise
def test_the_solution_is_right_and_the_stub_is_open(name, number, setups):
    exercise = EXERCISES[name][number]
    points = exercise["heading"]["points"]
    right = f"{number}: right. {points} of {points} points.\n"
    assert told(name, number, exercise["solution"], setups) == right
    assert told(name, number, exercise["stub"], setups) == (
        f"{number}: {checks.OPEN}. 0 of {points} points.\n"
    )


@every_exercise
def test_planted_misconceptions_are_told_what_is_wrong(name, number, setups):
    exercise = EXERCISES[name][number]
    for shows, source in exercise["wrong"].items():
        _, sentence = checks.EXERCISES[number].wrong[shows]
        wanted = f"{number}: not yet: {sentence}. 0 of {exercise['heading']['points']} points.\n"
        assert told(name, number, source, setups) == wanted, shows


@every_number
def test_every_misconception_that_has_a_name_is_wrong_and_gets_its_own_sentence(number):
    exercise = checks.EXERCISES[number]
    assert checks.find_fault(number, exercise.right) == ""
    for wrong, sentence in exercise.wrong.values():
        assert checks.find_fault(number, wrong) == f"not yet: {sentence}"
        assert not sentence.endswith(".")


def stops(*arguments):
    raise SystemExit("a\nb")


class Odd:
    """An object that answers nothing."""

    def __array__(self, *arguments, **options):
        raise KeyError("no")


VALUES = [
    None,
    ...,
    float("nan"),
    torch.tensor(float("inf")),
    "",
    "text",
    b"bytes",
    1 + 1j,
    True,
    (),
    (1, 2),
    [None, 2],
    [[1, 2], [3]],
    {},
    {"a": 1},
    set(),
    np.array(["a"]),
    np.array([None]),
    np.zeros((0, 3)),
    np.zeros((2, 3, 4)),
    torch.zeros(5, dtype=torch.complex64),
    torch.zeros(2, 2, requires_grad=True),
    torch.zeros(3, device="meta"),
    torch.eye(3).to_sparse(),
    pd.DataFrame({"a": ["b"]}),
    Odd(),
    torch.nn.Linear(2, 2),
    len,
    dict,
    stops,
]


@every_number
def test_no_answer_of_any_kind_ends_in_a_traceback(number):
    for value in VALUES:
        for answer in (value, lambda *arguments, value=value: value):
            printed = io.StringIO()
            with redirect_stdout(printed):
                got = checks.check(number, answer, points=2)
            said = printed.getvalue()
            assert got in (0, 2) and said.count("\n") == 1, (value, said)
            assert got == 0 or number == "7.2"  # True is right there in some cases, not in all
            assert re.fullmatch(rf"{number}: .{{10,400}}\. 0 of 2 points\.\n", said), said


@every_number
def test_the_answer_to_another_exercise_is_told_so_or_is_just_wrong(number):
    for other, exercise in checks.EXERCISES.items():
        if other != number:
            assert checks.find_fault(number, exercise.right)


def test_the_answer_to_another_exercise_of_the_notebook_is_recognised():
    right = {number: exercise.right for number, exercise in checks.EXERCISES.items()}
    assert checks.find_fault("1.4", right["1.1"]).endswith(". It is the answer to 1.1")
    assert checks.find_fault("6.3", right["6.2"]).endswith(". It is the answer to 6.2")
    said = checks.find_fault("1.2", right["1.4"])
    assert "a function is wanted, and a number was given. It is the answer to 1.4" in said


def test_what_an_answer_does_to_its_arguments_changes_nothing():
    def spoil(f, w, b):
        maps = torch.einsum("ck,kxy->cxy", w, f)
        for argument in (f, w, b):
            argument.zero_()
        return maps

    assert checks.find_fault("1.2", spoil) == checks.find_fault("1.2", spoil) == ""


def test_what_an_answer_prints_and_warns_of_is_not_shown(capsys):
    def loud(score, rivals, margin):
        print("at work", file=sys.stderr)
        print("at work")
        warnings.warn("at work", stacklevel=1)
        return score > margin * max(rivals.values())

    assert checks.check("7.2", loud, points=2) == 2
    assert capsys.readouterr() == ("7.2: right. 2 of 2 points.\n", "")


def test_an_answer_may_come_as_list_array_or_tensor_of_any_precision():
    right = checks.EXERCISES["2.1"].right
    for kind in (list, tuple, torch.tensor, lambda x: torch.tensor(x).bfloat16(), np.float16):
        assert checks.find_fault("2.1", kind(right)) == ""
    assert checks.find_fault("7.1", " Not run\n") == ""


def test_kinds_that_are_not_wanted_are_named():
    said = checks.find_fault("2.1", torch.zeros(3))
    assert said.endswith("an array of numbers of shape (3,) was given, and an array of numbers of "
                         "shape (4,) is wanted")  # fmt: skip
    assert "it holds NaN" in checks.find_fault("2.1", [0, 0, float("nan"), 0])
    assert "a number was given, and True or False" in checks.find_fault("7.2", lambda *a: 1)
    assert "a tuple of 1 was given, and a tuple of 3" in checks.find_fault("4.3", lambda *a: (1,))
    assert "stops with SystemExit: a b" in checks.find_fault("4.3", stops)
    assert "right in 3 of the 6 cases" in checks.find_fault("7.2", lambda *a: False)
    assert MISSING in checks.find_fault("9.9", 1)


def test_a_stale_notebook_says_which_version_it_is_of_and_what_to_do():
    name = NAMES[0]
    now = checks.version_of(name)
    said = run("import checks", f"checks.begin({name!r}, version='0000aaaa')")
    assert "version 0000aaaa" in said and now in said and "`make exercises`" in said
    assert "version 0000aaaa" in run("import checks", "checks.check('1.4', 1.0)")
    assert "version 0000aaaa" not in run("import checks", "checks.check('1.4', 1.5)")
    said = run(
        "import checks", f"checks.begin({name!r}, version={now!r})", "checks.check('1.4', 1)"
    )
    assert "make exercises" not in said


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The folder that `make exercises` writes."""
    folder = tmp_path_factory.mktemp("exercises")
    with redirect_stdout(io.StringIO()):
        make_copies.write(folder)
    return folder


def code(path):
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


@every_notebook
def test_a_student_notebook_holds_no_line_of_a_solution(name, copies):
    path = copies / "student" / f"{name}.ipynb"
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
    secret = set()
    for cell in make_copies.read(name).cells:
        lines = {line.strip() for line in cell.source.splitlines()}
        if {"solution", "misconception"} & set(make_copies.tags(cell)):
            secret |= {line for line in lines if len(line) > 8}
    stubs = {line.strip() for e in EXERCISES[name].values() for line in e["stub"].splitlines()}
    assert len(secret - stubs) >= 12
    assert not [line for line in secret - stubs if line in text]


@every_notebook
def test_a_solution_notebook_run_from_top_to_bottom_has_all_points(name, copies):
    printed = run(*code(copies / "solution" / f"{name}.ipynb"))
    points = sum(int(e["heading"]["points"]) for e in EXERCISES[name].values())
    assert printed.endswith(f"{points} of {points} points.\nAll of them are right.\n")


@every_notebook
def test_a_student_who_solves_nothing_is_told_what_to_do(name, copies):
    printed = run(*code(copies / "student" / f"{name}.ipynb"))
    numbers = list(EXERCISES[name])
    assert printed.count("still open") == len(numbers) and "\n0 of " in printed
    assert f"Left: {', '.join(numbers)}. Go on with {numbers[0]}: write" in printed


def test_a_student_notebook_runs_in_its_own_folder_and_gives_nbgrader_its_points(
    copies, monkeypatch
):
    """In a kernel, as JupyterLab and nbgrader run it: no error, and the points as the result."""
    path = [str(paths.ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    book = nbformat.read(copies / "student" / "07_ledger.ipynb", 4)
    stub = next(cell for cell in book.cells if "stub" in make_copies.tags(cell))
    stub.source = EXERCISES["07_ledger"]["7.1"]["solution"]
    folder = {"metadata": {"path": str(copies / "student")}}
    NotebookClient(book, timeout=120, kernel_name="python3", resources=folder).execute()
    results = []
    for cell in book.cells:
        if cell.metadata.nbgrader.grade:
            assert not [out for out in cell.outputs if out.get("name") == "stderr"]
            results += [o.data["text/plain"] for o in cell.outputs if "data" in o]
    assert results == ["1", "0", "0", "0"]


@every_notebook
def test_the_page_has_each_solution_folded_and_no_misconception(name):
    text = (make_copies.SOURCES / f"{name}.py").read_text()
    cells = make_copies.page(text).cells
    folded = [cell.source for cell in cells if cell.source.startswith("<details><summary>Solution")]
    assert len(folded) == len(EXERCISES[name])
    assert all(one.count("<details>") == 1 and one.endswith("</details>") for one in folded)
    rest = [cell.source for cell in cells if cell.source not in folded]
    for exercise, solution in zip(EXERCISES[name].values(), folded, strict=True):
        assert f"```python\n{exercise['solution']}\n```" in solution
        assert exercise["stub"] in rest and exercise["check"] in rest
        assert not {exercise["solution"], *exercise["wrong"].values()} & set(rest)
    assert f"(../notebooks/{name}.ipynb)" in cells[0].source


def test_what_is_folded_is_markdown():
    (cell,) = make_copies.reads(
        "# %% [markdown]\n# <details><summary>Hint</summary>`a`</details>"
    ).cells
    assert cell.source == "<details><summary>Hint</summary>\n\n`a`\n\n</details>"


@pytest.mark.parametrize("kind", make_copies.KINDS)
@every_notebook
def test_a_copy_is_a_valid_notebook_with_nbgraders_metadata(name, kind, copies):
    book = nbformat.read(copies / kind / f"{name}.ipynb", 4)
    nbformat.validate(book)
    assert "jupytext" not in book.metadata and book.metadata.kernelspec.name == "python3"
    grader = [cell.metadata["nbgrader"] for cell in book.cells]
    assert len({each["grade_id"] for each in grader}) == len(grader)
    assert all(re.fullmatch(r"[a-zA-Z0-9_\-]+", each["grade_id"]) for each in grader)
    keys = {"grade", "grade_id", "locked", "schema_version", "solution", "task"}
    assert all(set(each) - {"points"} == keys for each in grader)
    points = [each["points"] for each in grader if each["grade"]]
    assert points == [int(e["heading"]["points"]) for e in EXERCISES[name].values()]
    answers = [each for each in grader if each["solution"]]
    assert len(answers) == len(points) and not any(each["locked"] for each in answers)


def test_a_notebook_that_was_worked_in_is_kept_and_another_one_replaced(copies):
    student = copies / "student"
    worked, untouched = student / "01_cam_imagenet.ipynb", student / "02_clear_mnist.ipynb"
    book = nbformat.read(worked, 4)
    book.cells[3].source = "change = 1"
    nbformat.write(book, worked)
    said = run("import make_copies", "make_copies.write(copies)", space={"copies": copies})
    assert "01_cam_imagenet.ipynb was worked in: kept as 01_cam_imagenet.1.ipynb" in said
    assert "change = 1" in code(student / "01_cam_imagenet.1.ipynb")
    assert "change = 1" not in code(worked)
    assert sorted(student.glob("02*")) == [untouched]


def test_exercises_write_nothing_and_read_nothing_that_was_made():
    for path in sorted((paths.ROOT / "exercises").glob("*.py")):
        text = path.read_text()
        if path.stem != "make_copies":
            assert not re.search(r"paths\.(?!ROOT)|\.write_|to_csv|savefig|open\(", text), path.name
