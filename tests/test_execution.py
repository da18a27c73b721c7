"""The command line and what it runs, on small notebooks made here, never on the real ones."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from papermill.cli import _resolve_type
from test_notebook import VALUES, profile, record, write

from lib import __main__, execution, notebook, paths

# What is to be run


def test_bundled_runs_every_notebook_as_it_is_and_a_profile_those_it_has_a_file_for(shelf):
    write("01_x"), write("02_x")
    profile("tiny", **{"02_x": "profile: tiny\nepochs: 1\n"})
    as_it_is = {"profile": "bundled"}
    assert execution.plan("bundled", [], []) == ("bundled", {"01_x": as_it_is, "02_x": as_it_is})
    tiny = {"profile": "tiny", "epochs": 1}
    assert execution.plan("tiny", [], []) == ("tiny", {"02_x": tiny})
    assert list(execution.plan("bundled", ["02"], [])[1]) == ["02_x"]


def test_given_values_go_to_every_notebook_that_declares_the_name(shelf):
    write("01_x"), write("02_x"), write("03_x", declared='profile: str = "bundled"\nseed: int = 1')
    given = [("flips", "false"), ("rate", "2"), ("weights", "no"), ("seed", "5")]
    name, chosen = execution.plan("bundled", [], given)
    assert name == "bundled+flips=false+rate=2.0+seed=5+weights=no"
    full = {"profile": name, "flips": False, "rate": 2, "weights": "no", "seed": 5}
    assert chosen == {"01_x": full, "02_x": full, "03_x": {"profile": name, "seed": 5}}


def test_what_one_notebook_makes_under_other_parameters_reaches_those_that_read_it(shelf):
    write("03_x", declared=DATA_ONLY + '\nn: int = 9  # eyes\nprepared: str = "eyes"  # to make')
    for number in (4, 5):
        write(f"0{number}_x", declared=DECLARED)
    name, chosen = execution.plan("bundled", [], [("n", "5")])
    assert name == "bundled+n=5"
    assert chosen == {
        "03_x": {"profile": name, "n": 5},
        "04_x": {"profile": name, "prepared": "eyes+n=5"},
        "05_x": {"profile": name, "prepared": "eyes+n=5", "sequencer": "reader+n=5"},
    }
    name, chosen = execution.plan("bundled", [], [("epochs", "2"), ("prepared", "mine")])
    assert name == "bundled+epochs=2+prepared=mine"
    assert chosen["04_x"]["prepared"] == "mine+epochs=2"  # as 03 calls what it then makes
    assert chosen["05_x"]["sequencer"] == "reader+epochs=2+prepared=mine"
    # Notebook 4 alone reads what lies there, and 5 what that makes of it.
    name, chosen = execution.plan("bundled", ["04", "05"], [("epochs", "2")])
    assert chosen["04_x"] == {"profile": name, "epochs": 2}
    assert chosen["05_x"]["sequencer"] == "reader+epochs=2" and "prepared" not in chosen["05_x"]
    # Papermill alone, with what `run` gave, comes to the same folder.
    used = execution.resolved("05_x", chosen["05_x"]) | {"profile": "bundled"}
    assert notebook.run_name("05_x", used) == name == "bundled+epochs=2"


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
        (["-p", "epochs", "1:30"], "epochs must be int, got '1:30'"),
        (["-p", "epochs", "1e3"], "epochs must be int, got '1e3'"),
        (["-p", "flips", "no"], "flips must be bool, got 'no'"),
        (["-p", "flips", "1"], "flips must be bool, got '1'"),
        (["-p", "rate", "nan"], "rate must be a finite number, got nan"),
        (["-p", "rate", ".inf"], "rate must be float, got '.inf'"),
        (["-p", "seed", "1", "-p", "seed", "2"], "-p seed is given twice"),
        (["-p", "profile", "mine"], "profile is 'mine', but --profile is 'bundled'"),
        (["--workers", "-1"], "--workers must be 1 or more, got -1"),
        (["--timeout", "0"], "--timeout must be 1 or more, got 0"),
        (["--only", "01", "--only", "07"], "no notebook 07. There are 01_x, 02_x"),
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


@pytest.mark.parametrize("text", ["010", "1_000", "-7", "+5", "0", " 3 "])
def test_a_number_on_the_command_line_is_the_one_that_papermill_reads(shelf, text):
    write("01_x")
    for name in ("epochs", "rate"):
        found = execution.plan("bundled", [], [(name, text)])[1]["01_x"][name]
        assert found == _resolve_type(text) == int(text)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "1e-3", 0.001),
        ("rate", "1.0e3", 1000.0),
        ("flips", "False", False),
        ("flips", "true", True),
        ("weights", "010", "010"),
        ("weights", "no", "no"),
        ("weights", "", ""),
        ("weights", "{a: 1}", "{a: 1}"),
    ],
)
def test_a_value_on_the_command_line_is_of_its_declared_type(shelf, name, text, value):
    write("01_x")
    found = execution.plan("bundled", [], [(name, text)])[1]["01_x"][name]
    assert found == value and type(found) is type(value)


def test_a_profile_holds_numbers_booleans_and_texts_as_python_writes_them(shelf):
    write("01_x")
    text = "profile: tiny\nepochs: 10\nrate: 1.0e-3\nflips: FALSE\nweights: '010'\nseed: 0\n"
    profile("tiny", **{"01_x": "\ufeff" + text})
    expected = VALUES | {"profile": "tiny", "epochs": 10, "rate": 0.001, "flips": False}
    expected |= {"weights": "010", "seed": 0}
    assert execution.plan("tiny", [], []) == ("tiny", {"01_x": expected})
    profile("whole", **{"01_x": "rate: -2\n"})
    assert execution.plan("whole", [], [])[1] == {"01_x": {"profile": "whole", "rate": -2}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 010", "line 1, epochs: 010 would be read as 8"),
        ("seed: 1\nepochs: 1:30", "line 2, epochs: 1:30 would be read as 90"),
        ("epochs: 1_000", "1_000 would be read as 1000"),
        ("epochs: 0x1F", "0x1F would be read as 31"),
        ("rate: 1:30.5", "1:30.5 would be read as 90.5"),
        ("rate: .inf", ".inf would be read as inf"),
        ("rate: .NaN", ".NaN would be read as nan"),
        ("flips: no", "no would be read as False"),
        ("weights: on", "a text in quotes: 'on'"),
        ("weights: 010", "a text in quotes: '010'"),
        ("weights: 5", "weights must be str, got 5 of type int. In YAML such a text needs quotes"),
        ("rate: 1e-3", "1.0e-3, not 1e-3"),
        ("weights: 2024-13-45", "month must be in 1..12"),
        ("weights:", "weights must be str, got None"),
        ("", "lines `name: value` are needed"),
        ("# epochs: 3", "lines `name: value` are needed"),
        ("- epochs: 3", "lines `name: value` are needed"),
        ("epochs", "lines `name: value` are needed"),
        ("epochs: 1\nepochs: 2", "line 2, epochs: given twice"),
        ("5: 1", "line 1, 5: that is no name of a parameter"),
        ("on: 1", "line 1, on: that is no name of a parameter"),
        ("[1]: 1", "that is no name of a parameter"),
        ("<<: {epochs: 1}", "that is no name of a parameter"),
        ("epochs:\t1\n\tseed: 2", "cannot start any token"),
        ("epochs: 1\n---\nepochs: 2", "expected a single document"),
        ("epochs: !!python/name:os.system 1", "could not determine a constructor"),
        (b"weights: \xe4", "can't decode byte 0xe4"),
        ("epochs: 1".encode("utf-16"), "can't decode byte 0xff"),
        (b"epochs: 1\0", "special characters are not allowed"),
    ],
)
def test_a_profile_that_is_damaged_or_reads_otherwise_is_named_with_the_reason(
    shelf, capsys, text, said
):
    write("01_x")
    profile("odd")
    content = text if isinstance(text, bytes) else text.encode()
    (paths.PROFILES / "odd" / "01_x.yaml").write_bytes(content)
    assert __main__.main(["run", "--profile", "odd"]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.startswith(("odd/01_x.yaml: ", "01_x: "))
    assert captured.err.count("\n") == 1 and not paths.BUILD.exists()


def test_a_profile_of_which_nothing_would_be_run_is_refused(shelf, capsys):
    write("01_x")
    profile("hollow")
    assert __main__.main(["run", "--profile", "hollow"]) == 2
    assert "hollow holds no <notebook>.yaml. There are notebooks 01_x" in capsys.readouterr().err
    (paths.PROFILES / "hollow" / "01_x.yml").write_text("epochs: 1\n")
    assert __main__.main(["run", "--profile", "hollow"]) == 2
    assert "hollow/01_x.yml is not read: let its name end in .yaml" in capsys.readouterr().err


# Which numbers are of this run


@pytest.fixture
def executed(shelf, monkeypatch):
    """Notebooks 02 to 07, executed by a stand-in; a set names those that fail, or stop the run."""
    for number in range(2, 8):
        write(f"0{number}_x", declared=DECLARED if number in (4, 5, 6) else DATA_ONLY)
    failing, stopping = set(), set()

    def execute(source, output, parameters, timeout, environment):
        name = source.stem
        if name[:2] in stopping:
            raise KeyboardInterrupt
        run = notebook.begin(name, execution.resolved(name, parameters))
        assert output.parent == notebook.run_folder(run.name)
        if name[:2] in failing:
            return execution.Outcome("failed", f"{name} failed")
        run.finish({"of": name}, data="d", weights="w")
        return execution.Outcome("ok", "", record(name, run.name))

    monkeypatch.setattr(execution, "execute", execute)
    monkeypatch.setattr(paths, "PREPARED", shelf / "prepared")
    monkeypatch.setattr(paths, "SEQUENCERS", shelf / "sequencers")
    execute.failing, execute.stopping = failing, stopping
    return execute


def start(*arguments):
    """Run the notebooks in this very process, where the stand-in is."""
    return __main__.main(["run", "--workers", "1", *arguments])


DATA_ONLY = 'profile: str = "bundled"  # name\nseed: int = 7  # seed\nepochs: int = 3  # passes'
DECLARED = DATA_ONLY + (
    '\nprepared: str = "eyes"  # of notebook 3\nsequencer: str = "reader"  # of notebook 4'
)


def counted(**parameters):
    """The numbers of the notebooks whose numbers the ledger takes, and what is said of each."""
    used = {"profile": "bundled", "seed": 7, "epochs": 3} | parameters
    ledger = notebook.begin("07_x", used)
    found = {f"0{number}": execution.read_record(f"0{number}_x", ledger) for number in range(2, 7)}
    records = {number for number, (record, _) in found.items() if record}
    return records, {number: said for number, (_, said) in found.items() if said}


def test_what_a_run_was_to_do_and_did_not_is_not_judged_by_its_old_numbers(executed, capsys):
    assert start() == 0
    assert counted() == ({"02", "03", "04", "05", "06"}, {})
    executed.failing.add("03")
    assert start() == 1
    again = "03 was begun again and has not ended well"
    assert counted() == ({"02"}, dict.fromkeys(("03", "04", "05", "06"), again))
    earlier = paths.BUILD / "bundled" / "earlier" / "metrics"
    assert json.loads((earlier / "06_x.json").read_text())["numbers"] == {"of": "06_x"}
    executed.failing.clear()
    assert start("--only", "03", "04", "05", "06") == 0
    assert counted() == ({"02", "03", "04", "05", "06"}, {})


def test_numbers_that_rest_on_a_notebook_which_failed_later_are_not_judged(executed):
    assert start() == 0
    executed.failing.add("04")
    assert start("--only", "04") == 1
    assert counted()[0] == {"02", "03"}


def test_after_a_stopped_run_only_what_had_ended_is_judged(executed, capsys):
    assert start() == 0
    page = paths.BUILD / "bundled" / "04_x.html"
    page.write_text("of the earlier run")
    executed.stopping.add("04")
    assert start() == 130
    assert counted()[0] == {"02", "03"} and not page.exists()
    assert (paths.BUILD / "bundled" / "earlier" / "04_x.html").read_text() == "of the earlier run"
    executed.stopping.clear()
    assert start("--only", "04", "05", "06") == 0
    assert counted() == ({"02", "03", "04", "05", "06"}, {})


def test_a_notebook_that_fails_in_jupyterlab_leaves_no_numbers_of_an_earlier_run(executed):
    assert start() == 0
    notebook.begin("02_x", {"profile": "bundled", "seed": 7, "epochs": 3})
    assert counted()[0] == {"03", "04", "05", "06"}


def rewritten(name, **changed):
    path = paths.BUILD / "bundled" / "metrics" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_numbers_of_another_commit_version_seed_or_parameter_carry_a_flag(executed, monkeypatch):
    monkeypatch.setattr(execution, "commit", lambda: "b" * 40)
    monkeypatch.setattr(notebook, "commit", lambda: "b" * 40)
    assert start() == 0
    rewritten("02_x", commit="a" * 40 + "-dirty")
    rewritten("03_x", versions=notebook.versions() | {"companion": "0.0.9", "torch": "1.0"})
    rewritten("04_x", seed=8)
    profile("bundled", **{"05_x": "epochs: 9\n"})  # edited since
    version = notebook.versions()
    assert counted() == (
        {"02", "03", "04", "05", "06"},
        {
            "02": "commit aaaaaaa-dirty, here bbbbbbb",
            "03": f"companion 0.0.9, here {version['companion']}; "
            f"torch 1.0, here {version['torch']}",
            "04": "seed 8, here 7",
            "05": "epochs=3, other than in the profile",
        },
    )
    assert counted(seed=8)[0] == set()  # that is another run, of which nothing is there


def test_numbers_made_from_data_or_weights_that_changed_since_are_not_judged(executed, shelf):
    eyes, reader = shelf / "prepared" / "eyes", shelf / "sequencers" / "reader"
    for file in (eyes / "dataset.json", eyes / "manifest.csv", reader / "config.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    (reader / "weights.safetensors").write_bytes(b"one")
    assert start() == 0
    (reader / "weights.safetensors").write_bytes(b"two")
    changed = "sequencer reader changed since: run the notebook again"
    assert counted() == ({"02", "03"}, dict.fromkeys(("04", "05", "06"), changed))
    (reader / "weights.safetensors").write_bytes(b"one")
    (eyes / "manifest.csv").write_text("other labels")
    assert counted()[0] == {"02", "03"}
    (eyes / "manifest.csv").unlink()
    assert counted() == (
        {"02", "03", "04", "05", "06"},
        dict.fromkeys(("04", "05", "06"), "prepared eyes is gone"),
    )


def test_a_profile_need_not_repeat_its_name_and_homes_are_compared_as_they_are_saved(
    executed, monkeypatch, shelf
):
    monkeypatch.setenv("HOME", str(shelf))
    (shelf / "prepared").mkdir()
    for name in ("dataset.json", "manifest.csv"):
        (shelf / "prepared" / name).write_text("{}")
    profile("tiny", **{"02_x": "epochs: 1", "04_x": f"prepared: {shelf / 'prepared'}"})
    assert start("--profile", "tiny") == 0
    assert record("04_x", "tiny")["parameters"]["prepared"] == "~/prepared"
    said = {f"0{number}": "not run" for number in (3, 5, 6)}
    assert counted(profile="tiny") == ({"02", "04"}, said)


@pytest.mark.parametrize("text", ["", "[]", "{}", "5", "{", '{"numbers": 1}'])
def test_a_damaged_record_is_named_and_not_judged(executed, text):
    assert start() == 0
    (paths.BUILD / "bundled" / "metrics" / "02_x.json").write_text(text)
    damaged = {"02": "02_x.json is damaged: run the notebook again"}
    assert counted() == ({"03", "04", "05", "06"}, damaged)


def test_of_two_runs_of_one_profile_the_second_is_told_who_holds_it(executed, capsys):
    profile("tiny", **{"02_x": "epochs: 1\n"})
    assert start() == 0
    with paths.alone(paths.BUILD / "bundled", "writing"):
        assert start() == 2
        said = capsys.readouterr().err
        assert f"Another run is writing {paths.BUILD / 'bundled'} (process {os.getpid()}" in said
        assert counted()[0] == {"02", "03", "04", "05", "06"}
        assert start("--profile", "tiny") == 0


@pytest.mark.parametrize("variable", ["BUILD", "DATA"])
def test_a_file_in_place_of_build_or_data_ends_with_a_sentence(
    shelf, monkeypatch, capsys, variable
):
    write("01_x")
    (shelf / "file").write_text("mine")
    monkeypatch.setattr(paths, variable, shelf / "file" / "below")
    assert __main__.main(["run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{shelf / 'file'} is no folder" in said
    assert f"set COMPANION_{variable} to a folder" in said
    assert (shelf / "file").read_text() == "mine"


def test_a_disk_that_fills_up_while_papermill_writes_is_said(shelf, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    write("01_x")
    monkeypatch.setattr(papermill, "execute_notebook", full)
    assert __main__.main(["run"]) == 1
    said = f"No space left on device\nIs there room in {paths.BUILD / 'bundled'}? See "
    assert said in capsys.readouterr().err


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
@pytest.mark.parametrize(("refused", "status"), [(1, 0), (2, 1)])
def test_a_kernel_that_does_not_start_is_started_once_more(
    shelf, monkeypatch, capsys, refused, status
):
    """Kernels choose ports and bind them later: two that start at once may choose the same."""
    real, asked = papermill.execute_notebook, []

    def execute(*arguments, **options):
        asked.append(arguments)
        if len(asked) <= refused:
            raise RuntimeError("Kernel didn't respond in 60 seconds")
        return real(*arguments, **options)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    write("01_x", "a = 1", numbers='{"a": a}')
    assert __main__.main(["run", "--workers", "1"]) == status
    assert len(asked) == 2
    said = capsys.readouterr()
    assert ("Kernel didn't respond" in said.err) == bool(status)


@pytest.mark.slow
def test_a_profiles_parameters_reach_the_notebook_and_the_kernel_is_this_python(shelf, monkeypatch):
    """And its lib is this one, though another copy of it comes first elsewhere."""
    other = shelf / "other" / "lib"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('another copy')")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
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
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_stops_the_kernel_says_how_to_go_on_and_exits_with_130(shelf, workers):
    write("01_x")
    write(
        "02_x",
        "import os, time",
        f"Path({str(shelf / 'pid')!r}).write_text(str(os.getpid()))\ntime.sleep(120)",
    )
    program = (
        "import sys; from pathlib import Path; from lib import __main__, paths; "
        f"paths.NOTEBOOKS = Path({str(paths.NOTEBOOKS)!r}); "
        f"sys.exit(__main__.main(['run', '--workers', '{workers}']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=paths.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pid, first_page = shelf / "pid", paths.BUILD / "bundled" / "01_x.html"
    while process.poll() is None and not (pid.exists() and pid.read_text() and first_page.exists()):
        time.sleep(0.2)
    time.sleep(1)  # until the first notebook's end has been told
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Stopped in 02_x" in said and "--only 02\n" in said
    # The kernel may have last words, the command must not.
    assert "execution.py" not in errors, errors
    assert "\r" not in errors
    assert record("01_x")["numbers"] == {"epochs": 3}
    assert not (paths.BUILD / "bundled" / "metrics" / "02_x.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
