"""The command line and what it runs, on small notebooks made here, never on the real ones."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from test_notebook import profile, record, write

from lib import __main__, execution, paths

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
    assert __main__.main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") <= 6
    assert not paths.BUILD.exists()


# Running


@pytest.mark.slow
def test_a_failing_cell_is_named_its_notebook_kept_and_what_needs_it_is_not_run(shelf, capsys):
    write(
        "01_x",
        'run.skip("photographs", "no weights")',
        numbers='{"a": {"value": 0.123456, "low": 2}, "c": "c", "d": 4}',
    )
    write("03_x", "1 + 1", 'x = 0\nraise KeyError("the reason\\nin two lines")')
    write("04_x"), write("05_x"), write("07_x")
    stale = [
        paths.BUILD / "bundled" / name
        for name in ("metrics/03_x.json", "03_x.html", "figures/03-a.png")
    ]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert __main__.main(["run"]) == 1
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
    assert [line.split()[0] for line in table[1:6]] == ["01_x", "03_x", "04_x", "05_x", "07_x"]
    assert table[1].endswith("a 0.1235, a.low 2, c c; skipped: photographs")
    assert table[2].endswith("failed")
    assert table[3].endswith("not run: needs 03") and table[4].endswith("not run: needs 03 and 04")
    assert table[5].endswith("epochs 3")
    assert "<html" in (paths.BUILD / "bundled" / "07_x.html").read_text()
    assert not (paths.BUILD / "bundled" / "04_x.ipynb").exists()
    assert list(paths.BUILD.rglob("*.part")) == []


@pytest.mark.slow
def test_a_slow_cell_a_dead_kernel_and_a_missing_finish_are_failures(shelf, capsys):
    write("01_x", "import time\ntime.sleep(300)", numbers=None)
    write("02_x", "import os\nos.kill(os.getpid(), 9)", numbers=None)
    write("03_x", "done = True", numbers=None)
    assert __main__.main(["run", "--timeout", "3"]) == 1
    said = capsys.readouterr().err
    assert "01_x failed in cell [3] `import time`\nit took longer than 3 s" in said
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
    assert __main__.main(["run", "--profile", "tiny"]) == 0
    expected = {"epochs": 11, "python": sys.prefix, "folder": str(paths.NOTEBOOKS)}
    assert record("02_x", "tiny")["numbers"] == expected


@pytest.mark.slow
def test_plain_papermill_with_an_unknown_parameter_fails_with_the_name_that_was_meant(shelf):
    write("02_x")
    source, output = paths.NOTEBOOKS / "02_x.ipynb", shelf / "out.ipynb"
    meant = pytest.raises(papermill.PapermillExecutionError, match="Did you mean epochs")
    with meant as failure:
        papermill.execute_notebook(
            source, output, {"epoch": 3}, kernel_name="python3", progress_bar=False
        )
    assert failure.value.exec_count == 3  # the parameters, papermill's cell, and then begin


@pytest.mark.slow
def test_ctrl_c_stops_the_kernel_says_how_to_go_on_and_exits_with_130(shelf):
    write("01_x")
    write(
        "02_x",
        "import os, time",
        f"Path({str(shelf / 'pid')!r}).write_text(str(os.getpid()))\ntime.sleep(120)",
    )
    write("03_x")
    program = (
        "import sys; from pathlib import Path; from lib import __main__, paths; "
        f"paths.NOTEBOOKS = Path({str(paths.NOTEBOOKS)!r}); sys.exit(__main__.main(['run']))"
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
    # The kernel may have last words, the command must not.
    assert "execution.py" not in errors, errors
    assert "\r" not in errors
    assert record("01_x")["numbers"] == {"epochs": 3}
    assert not (paths.BUILD / "bundled" / "metrics" / "02_x.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((shelf / "pid").read_text()), 0)
