"""lib.notebook on small notebooks made here: none of the real ones is read."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
import torch
from PIL import Image

from lib import execution, paths
from lib import notebook as companion

DECLARED = """\
profile: str = "bundled"  # names the folder under build/
seed: int = 7  # of every random number
epochs: int = 3  # passes over the data
rate: float = 0.1  # of learning
flips: bool = True  # mirror the images
weights: str = "none"  # where they come from"""
VALUES = {
    "profile": "bundled",
    "seed": 7,
    "epochs": 3,
    "rate": 0.1,
    "flips": True,
    "weights": "none",
}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Empty notebooks/ and build/ folders in place of the repository's."""
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(paths, "PROFILES", tmp_path / "notebooks" / "profiles")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setenv("COMPANION_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("JUPYTER_PATH", "")
    return tmp_path


def write(name, *cells, declared=DECLARED, numbers='{"epochs": epochs}'):
    """A notebook in the usual form with `cells` before `run.finish`; numbers=None leaves out begin and finish."""
    folder = f"from pathlib import Path\nfrom lib import companion, paths\npaths.NOTEBOOKS = Path({str(paths.NOTEBOOKS)!r})"
    begin = f"{folder}\nrun = companion.begin({name!r}, globals())"
    finish = f'run.finish({numbers}, data="none", weights="none")'
    sources = [declared, begin, *cells, finish] if numbers else [declared, *cells]
    code = [nbformat.v4.new_code_cell(source) for source in sources]
    code[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {name}"), *code])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, paths.NOTEBOOKS / f"{name}.ipynb")


def profile(name, **files):
    (paths.PROFILES / name).mkdir()
    for notebook, text in files.items():
        (paths.PROFILES / name / f"{notebook}.yaml").write_text(text)


def record(notebook, profile="bundled"):
    return json.loads((paths.BUILD / profile / "metrics" / f"{notebook}.json").read_text())


# In the notebook


def test_begin_returns_the_parameters_as_used_and_says_what_is_used(shelf, capsys):
    write("n02_x")
    run = companion.begin("n02_x", VALUES | {"rate": 1, "other": object()})
    assert run.parameters == VALUES | {"rate": 1}
    said = capsys.readouterr().out
    assert "n02_x, profile bundled, seed 7, on cpu" in said or "on cuda" in said
    assert f"torch {torch.__version__.split('+')[0]}" in said and f"numpy {np.__version__}" in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 2.0}, "epochs must be int, got 2.0 of type float"),
        ({"epochs": True}, "epochs must be int, got True of type bool"),
        ({"rate": "1e-3"}, "1.0e-3, not 1e-3"),
        ({"rate": False}, "rate must be float"),
        ({"flips": 1}, "flips must be bool, got 1 of type int"),
        ({"flips": "true"}, "-y 'flips: true'"),
        ({"weights": None}, "weights must be str, got None"),
        ({"profile": "../elsewhere"}, "'../elsewhere' names a folder"),
        ({"profile": ".."}, "'..' names a folder"),
        ({"profile": ""}, "'' names a folder"),
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*32\), got -1"),
        (
            {"epoch": 3, "In": ["", "# Parameters\nepoch = 3\n"]},
            "no parameter 'epoch'. Did you mean epochs",
        ),
    ],
)
def test_begin_refuses_wrong_parameters_by_name_and_value(shelf, wrong, said):
    write("n02_x")
    with pytest.raises(ValueError, match=said):
        companion.begin("n02_x", VALUES | wrong)


def test_begin_allows_declared_names_in_papermills_cell_and_other_names_elsewhere(shelf):
    write("n02_x")
    cells = ["", "epoch = 9", "# Parameters\nepochs = 5\n"]
    assert (
        companion.begin("n02_x", VALUES | {"epochs": 5, "epoch": 9, "In": cells}).parameters[
            "epochs"
        ]
        == 5
    )


def test_begin_before_the_parameters_cell_says_so(shelf):
    write("n02_x")
    with pytest.raises(ValueError, match="seed, epochs: not defined yet"):
        companion.begin(
            "n02_x", {name: VALUES[name] for name in ("profile", "rate", "flips", "weights")}
        )


def test_begin_seeds_python_numpy_and_torch(shelf):
    write("n02_x")

    def drawn(seed):
        companion.begin("n02_x", VALUES | {"seed": seed})
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_finish_records_the_numbers_and_what_they_came_from(shelf, capsys):
    write("n02_x")
    run = companion.begin("n02_x", VALUES)
    run.skip("photographs", "no weights")
    run.finish(
        {"share": np.float32(0.5), "n": np.int64(3), "worst": "a"}, data="digits", weights="here"
    )
    found = record("n02_x")
    assert found["numbers"] == {"share": 0.5, "n": 3, "worst": "a"}
    assert found["skipped"] == [{"what": "photographs", "why": "no weights"}]
    assert "SKIPPED: photographs: no weights" in capsys.readouterr().out
    expected = {
        "notebook": "n02_x",
        "profile": "bundled",
        "data": "digits",
        "weights": "here",
        "seed": 7,
    }
    assert expected.items() <= found.items()
    assert found["parameters"] == VALUES and found["device"] == str(run.device)
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {
        "companion",
        "python",
        "torch",
        "torchvision",
        "numpy",
        "scikit-learn",
    }
    assert 0 <= found["seconds"] < 60


@pytest.mark.parametrize(
    "value", [float("nan"), np.float32("inf"), [1, 2], None, torch.tensor(1.0)]
)
def test_finish_refuses_what_is_no_number_and_leaves_the_record_alone(shelf, value):
    write("n02_x")
    run = companion.begin("n02_x", VALUES)
    run.finish({"a": 1}, data="d", weights="w")
    with pytest.raises(ValueError, match=r"numbers\['bad'\]"):
        run.finish({"a": 2, "bad": value}, data="d", weights="w")
    assert record("n02_x")["numbers"] == {"a": 1}


def test_figure_is_saved_as_png_at_150_dpi_and_as_pdf(shelf):
    write("02_x")
    figure = plt.figure(figsize=(3, 2))
    assert companion.begin("02_x", VALUES).figure(figure, "figure-2.1") is None
    plt.close(figure)
    folder = paths.BUILD / "bundled" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [
        "02-figure-2.1.pdf",
        "02-figure-2.1.png",
    ]
    assert Image.open(folder / "02-figure-2.1.png").size == (450, 300)
    assert (folder / "02-figure-2.1.pdf").read_bytes().startswith(b"%PDF-")


def test_commit_is_the_head_marked_dirty_when_a_tracked_file_differs_and_none_outside_git(
    tmp_path, monkeypatch
):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.check_output(
            ["git", *identity, *arguments], cwd=tmp_path / "repo", text=True
        ).strip()

    (tmp_path / "repo" / "inner").mkdir(parents=True)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repo")
    assert companion.commit() is None
    git("init", "-q")
    (tmp_path / "repo" / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    git("tag", "-a", "-m", "v1", "v1")
    head = git("rev-parse", "HEAD")
    assert companion.commit() == head
    (tmp_path / "repo" / "file").write_text("2")
    assert companion.commit() == f"{head}-dirty"
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repo" / "inner")
    assert companion.commit() is None, (
        "a copy inside somebody else's repository is not at that commit"
    )


def test_importing_companion_does_not_import_papermill_or_nbconvert():
    program = (
        "import sys, lib.notebook; sys.exit(bool({'papermill', 'nbconvert'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=paths.ROOT).returncode == 0


# What is to be run


def test_bundled_runs_every_notebook_as_it_is_and_a_profile_those_it_has_a_file_for(shelf):
    write("01_x"), write("02_x")
    profile("tiny", **{"02_x": "profile: tiny\nepochs: 1\n"})
    assert execution.plan("bundled", [], []) == {
        "01_x": {"profile": "bundled"},
        "02_x": {"profile": "bundled"},
    }
    assert execution.plan("tiny", [], []) == {"02_x": {"profile": "tiny", "epochs": 1}}
    assert list(execution.plan("bundled", ["02"], [])) == ["02_x"]


def test_given_values_are_yaml_and_go_to_every_notebook_that_declares_the_name(shelf):
    write("01_x"), write("02_x"), write("03_x", declared='profile: str = "bundled"\nseed: int = 1')
    given = [("flips", "false"), ("rate", "2"), ("weights", "no"), ("seed", "5")]
    chosen = execution.plan("bundled", [], given)
    full = {"profile": "bundled", "flips": False, "rate": 2, "weights": "no", "seed": 5}
    assert chosen == {"01_x": full, "02_x": full, "03_x": {"profile": "bundled", "seed": 5}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--profile", "smok"],
            "no profile 'smok'. Did you mean smoke? There are bundled, broken, smoke",
        ),
        (["--profile", ".."], "no profile '..'"),
        (["--profile", "stray"], "stray/03_x.yaml is for no notebook"),
        (["--profile", "broken"], "01_x has no parameter 'epoch'. Did you mean epochs?"),
        (["--profile", "other"], "01_x: profile is 'smoke', but --profile is 'other'"),
        (["--profile", "torn"], "mapping values are not allowed"),
        (["--only", "07"], "no notebook 07. There are 01_x, 02_x"),
        (
            ["--profile", "smoke", "--only", "02"],
            "Profile smoke has no notebook 02. There are 01_x",
        ),
        (
            ["-p", "epoch", "3"],
            "No notebook to be run has a parameter 'epoch'. Did you mean epochs?",
        ),
        (["-p", "epochs", "many"], "epochs must be int, got 'many'"),
        (["-p", "profile", "mine"], "profile is 'mine', but --profile is 'bundled'"),
    ],
)
def test_unknown_things_end_with_status_2_before_anything_is_run(shelf, capsys, arguments, said):
    write("01_x"), write("02_x")
    profile("smoke", **{"01_x": "profile: smoke\n"})
    if "stray" in arguments:
        profile("stray", **{"03_x": "epochs: 1\n"})
    if "other" in arguments:
        profile("other", **{"01_x": "profile: smoke\n"})
    if "torn" in arguments:
        profile("torn", **{"01_x": "epochs: 1: 2\n"})
    profile("broken", **{"01_x": "epoch: 1\n"})
    assert companion.main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") <= 6
    assert not paths.BUILD.exists()


# Running


@pytest.mark.slow
def test_a_failing_cell_is_named_its_notebook_kept_and_what_needs_it_is_not_run(shelf, capsys):
    write(
        "01_x",
        'run.skip("photographs", "no weights")',
        numbers='{"a": 0.123456, "b": 2, "c": "c", "d": 4}',
    )
    write("03_x", "1 + 1", 'x = 0\nraise KeyError("the reason\\nin two lines")')
    write("04_x"), write("05_x"), write("06_x")
    stale = [
        paths.BUILD / "bundled" / name
        for name in ("metrics/03_x.json", "03_x.html", "figures/03-a.png")
    ]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert companion.main(["run"]) == 1
    captured = capsys.readouterr()
    assert "03_x failed in cell [5] `x = 0`\nKeyError: " in captured.err
    assert "the reason" in captured.err and captured.err.count("\n") < 8
    assert not any(path.exists() for path in stale)
    kept = nbformat.read(paths.BUILD / "bundled" / "03_x.ipynb", 4)
    assert any(
        out.get("data", {}).get("text/plain") == "2"
        for c in kept.cells
        for out in c.get("outputs", [])
    )
    table = captured.out[captured.out.index("notebook ") :].splitlines()
    assert [line.split()[0] for line in table[1:6]] == ["01_x", "03_x", "04_x", "05_x", "06_x"]
    assert table[1].endswith("a 0.1235, b 2, c c; skipped: photographs")
    assert table[2].endswith("failed")
    assert table[3].endswith("not run: needs 03") and table[4].endswith("not run: needs 03 and 04")
    assert table[5].endswith("epochs 3")
    assert "<html" in (paths.BUILD / "bundled" / "06_x.html").read_text()
    assert not (paths.BUILD / "bundled" / "04_x.ipynb").exists()
    assert list(paths.BUILD.rglob("*.part")) == []


@pytest.mark.slow
def test_a_slow_cell_a_dead_kernel_and_a_missing_finish_are_failures(shelf, capsys):
    write("01_x", "import time\ntime.sleep(300)", numbers=None)
    write("02_x", "import os\nos.kill(os.getpid(), 9)", numbers=None)
    write("03_x", "done = True", numbers=None)
    assert companion.main(["run", "--timeout", "10"]) == 1
    said = capsys.readouterr().err
    assert "01_x failed in cell [3] `import time`\nit took longer than 10 s" in said
    assert "02_x failed in cell [3] `import os`\nthe kernel died" in said
    assert "03_x failed in cell [3] `done = True`\nit ended without run.finish" in said


@pytest.mark.slow
def test_a_profiles_parameters_reach_the_notebook_and_the_kernel_is_this_python(shelf, monkeypatch):
    foreign = shelf / "foreign" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {
        "argv": ["/bin/false", "{connection_file}"],
        "display_name": "foreign",
        "language": "python",
    }
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(shelf / "foreign"))
    write(
        "02_x",
        "import os, sys",
        numbers='{"epochs": epochs, "python": sys.prefix, "folder": os.getcwd()}',
    )
    profile("tiny", **{"02_x": "profile: tiny\nepochs: 11\n"})
    assert companion.main(["run", "--profile", "tiny"]) == 0
    expected = {"epochs": 11, "python": sys.prefix, "folder": str(paths.NOTEBOOKS)}
    assert record("02_x", "tiny")["numbers"] == expected


@pytest.mark.slow
def test_plain_papermill_with_an_unknown_parameter_fails_with_the_name_that_was_meant(shelf):
    write("02_x")
    source, output = paths.NOTEBOOKS / "02_x.ipynb", shelf / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="Did you mean epochs"):
        papermill.execute_notebook(
            source, output, {"epoch": 3}, kernel_name="python3", progress_bar=False
        )


@pytest.mark.slow
def test_ctrl_c_stops_the_kernel_says_how_to_go_on_and_exits_with_130(shelf):
    write("01_x")
    write(
        "02_x",
        f"import os, time\nPath({str(shelf / 'pid')!r}).write_text(str(os.getpid()))\ntime.sleep(120)",
    )
    write("03_x")
    program = (
        "import sys; from pathlib import Path; from lib import companion, paths; "
        f"paths.NOTEBOOKS = Path({str(paths.NOTEBOOKS)!r}); sys.exit(companion.main(['run']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=paths.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not ((shelf / "pid").exists() and (shelf / "pid").read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Stopped in 02_x" in said and "--only 02 03" in said
    assert "companion.py" not in errors, (
        errors
    )  # the kernel may have last words, the command must not
    assert "\r" not in errors
    assert record("01_x")["numbers"] == {"epochs": 3}
    assert not (paths.BUILD / "bundled" / "metrics" / "02_x.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((shelf / "pid").read_text()), 0)


def test_a_session_is_attended_where_jupyterlab_has_named_it(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not companion.attended()
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/01_cam_imagenet.ipynb")
    assert companion.attended()
