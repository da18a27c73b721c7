"""Sweeps of small notebooks made here: what is run, what is not run again, and what comes out."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import psutil
import pytest
from PIL import Image
from test_notebook import profile, write

from lib import __main__, execution, notebook, paths, sweep
from lib.execution import Outcome

HEAD = 'profile: str = "bundled"  # name\nseed: int = 0  # seed\n'
TRAINED = (
    HEAD + "epochs: int = 3  # passes\nrate: float = 0.1  # of learning\nflips: bool = True  #"
)
PREPARED = HEAD + 'n: int = 8  # photographs\nprepared: str = "eyes"  # data set'
GRADED = HEAD + 'prepared: str = "eyes"  # of 03\nsequencer: str = "reader"  #\nepochs: int = 3  #'
SCORED = (
    HEAD + 'prepared: str = "eyes"  # of 03\nsequencer: str = "reader"  #\nrelu: str = "gated"  #'
)


@pytest.fixture
def books(shelf, monkeypatch):
    """Notebooks 02, 03, 04, 06 and 07; one for trainings, three in a chain, the ledger."""
    monkeypatch.setattr(paths, "PREPARED", shelf / "prepared")
    monkeypatch.setattr(paths, "SEQUENCERS", shelf / "sequencers")
    monkeypatch.setattr(paths, "RECORDED", shelf / "recorded")
    (paths.NOTEBOOKS / "sweeps").mkdir()
    write("02_x", declared=TRAINED)
    write("03_x", declared=PREPARED)
    write("04_x", declared=GRADED)
    write("06_x", declared=SCORED)
    write("07_x", declared=HEAD)
    return shelf


class StandIn:
    """Stands in for `execution.execute`: what was run, and what is to fail, claim wrongly, stop."""

    def __init__(self):
        self.ran = []
        self.failing, self.claiming, self.stopping = [], [], []

    def __call__(self, source, output, parameters, timeout, environment):
        used = execution.resolved(source.stem, parameters)
        told = (source.stem[:2], {n: v for n, v in used.items() if n != "profile"})
        if self.asked(self.stopping, told):
            raise KeyboardInterrupt
        self.ran.append(told)
        name = notebook.run_name(source.stem, used)
        assert output == paths.BUILD / "sweeps" / output.parts[-4] / "runs" / name / output.name
        assert environment["COMPANION_BUILD"] == str(output.parents[1])
        if self.asked(self.failing, told):
            return Outcome("failed", f"{source.stem} failed in cell [2] `x`\nValueError: odd")
        for parameter, maker in (("prepared", "03"), ("sequencer", "04")):
            if maker == told[0]:
                make(parameter, notebook.product_name(parameter, used, books_values(source.stem)))
        accuracy = {"value": used["seed"] + used.get("epochs", 0) / 10, "chance": 0.5}
        record = {"numbers": {"accuracy": accuracy, "nearest": f"s{used['seed']}", "runs": 1}}
        record |= {"seconds": 60.0, "commit": "c", "claims": []}
        if self.asked(self.claiming, told):
            claim = {"claim": "good", "value": 0, "bound": "> 1", "held": False, "asserted": True}
            return Outcome("claims failed", "1 claim failed", record | {"claims": [claim]})
        return Outcome("ok", "", record)

    @staticmethod
    def asked(asked, told):
        return any(told[0] == n and values.items() <= told[1].items() for n, values in asked)


def books_values(name):
    return {parameter: value for parameter, (_, value) in notebook.declared(name).items()}


def make(parameter, name, content="{}"):
    file, home = {
        "prepared": ("dataset.json", paths.PREPARED),
        "sequencer": ("config.json", paths.SEQUENCERS),
    }[parameter]
    (home / name).mkdir(parents=True, exist_ok=True)
    for each in (file, "manifest.csv", "weights.safetensors"):
        (home / name / each).write_text(content)


@pytest.fixture
def executed(books, monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(execution, "execute", stand_in)
    return stand_in


def ask(*words):
    """The exit status of `python -m lib sweep`, one worker."""
    return __main__.main(["sweep", *words, *([] if "--workers" in words else ["--workers", "1"])])


def table(name):
    home = paths.BUILD / "sweeps" / name
    found = pd.read_csv(home / "results.csv", keep_default_na=False, na_values={"value": [""]})
    other = pd.read_parquet(home / "results.parquet")
    assert list(found.columns) == list(other.columns) and len(found) == len(other)
    assert found["value"].equals(other["value"]) and list(found["text"]) == list(other["text"])
    return found


def written(name, text):
    (paths.NOTEBOOKS / "sweeps" / f"{name}.yaml").write_text(text)


# What is run


def test_a_grid_gives_a_table_row_for_each_point_and_number_in_order(executed):
    assert ask("02", "-g", "seed", "0,1", "-g", "epochs", "1,3", "--name", "t") == 0
    expected = []
    for seed, epochs, accuracy in ((0, 1, 0.1), (0, 3, 0.3), (1, 1, 1.1), (1, 3, 1.3)):
        start = [f"seed={seed} epochs={epochs}", "02_x", seed, epochs]
        end = ["ok", "", 60.0, "c"]
        expected += [
            [*start, "accuracy", accuracy, "", *end],
            [*start, "accuracy.chance", 0.5, "", *end],
            [*start, "nearest", math.nan, f"s{seed}", *end],
            [*start, "runs", 1.0, "", *end],
        ]
    names = "point notebook seed epochs metric value text status error seconds commit".split()
    pd.testing.assert_frame_equal(table("t"), pd.DataFrame(expected, columns=names))


def test_a_notebook_with_the_same_parameters_in_several_points_is_run_once_and_in_order(executed):
    assert ask("03", "04", "06", "-g", "n", "8,4", "-g", "epochs", "1,3") == 0
    runs = [(number, used) for number, used in executed.ran]
    assert [used["n"] for number, used in runs if number == "03"] == [8, 4]
    graded = [(used["prepared"], used["epochs"]) for number, used in runs if number == "04"]
    assert sorted(graded) == [("eyes", 1), ("eyes", 3), ("eyes+n=4", 1), ("eyes+n=4", 3)]
    scored = [(used["prepared"], used["sequencer"]) for number, used in runs if number == "06"]
    assert sorted(scored) == [
        ("eyes", "reader"),
        ("eyes", "reader+epochs=1"),
        ("eyes+n=4", "reader+epochs=1+n=4"),
        ("eyes+n=4", "reader+n=4"),
    ]
    for place, (number, used) in enumerate(runs):
        before = [other["n"] for earlier, other in runs[:place] if earlier == "03"]
        assert number == "03" or (4 if "n=4" in used["prepared"] else 8) in before
    found = table("03-04-06-n-epochs")
    per_point = found[found["metric"] == "accuracy"].groupby("point")["notebook"].agg(list)
    assert list(per_point) == [["03_x", "04_x", "06_x"]] * 4


def test_what_is_done_is_not_run_again_unless_what_it_is_made_of_changed(executed):
    words = ("02", "-g", "seed", "0,1", "--name", "t")
    assert ask(*words) == 0 and len(executed.ran) == 2
    (paths.BUILD / "sweeps" / "t" / "results.csv").unlink()
    assert ask(*words) == 0 and len(executed.ran) == 2 and len(table("t")) == 8
    assert ask("02", "-g", "seed", "0,1,2", "--name", "t") == 0 and len(executed.ran) == 3
    path = paths.NOTEBOOKS / "02_x.ipynb"
    book = nbformat.read(path, 4)
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="said")]
    book.cells[1].execution_count = 5
    nbformat.write(book, path)
    assert ask(*words) == 0 and len(executed.ran) == 3
    assert ask(*words, "-p", "rate", "0.2") == 0 and len(executed.ran) == 5
    book.cells[-1].source += "\n# changed"
    nbformat.write(book, path)
    assert ask(*words) == 0 and len(executed.ran) == 7


def test_a_notebook_is_run_again_where_what_it_reads_was_made_anew_or_is_gone(executed):
    make("prepared", "eyes"), make("sequencer", "reader")
    words = ("06", "-g", "relu", "gated,linear")
    assert ask(*words) == 0 and ask(*words) == 0 and len(executed.ran) == 2
    make("sequencer", "reader", "trained again")
    assert ask(*words) == 0 and len(executed.ran) == 4
    chain = ("04", "06", "-g", "epochs", "1,2")
    assert ask(*chain) == 0 and len(executed.ran) == 8
    (paths.SEQUENCERS / "reader+epochs=1" / "config.json").unlink()
    assert ask(*chain) == 0 and len(executed.ran) == 8  # nobody needs it
    write("06_x", "1", declared=SCORED)
    assert ask(*chain) == 0
    assert [number for number, _ in executed.ran[8:]] == ["04", "06", "06"]
    write("04_x", "1", declared=GRADED)  # whose sequencers 06 reads
    assert ask(*chain) == 0
    assert sorted(number for number, _ in executed.ran[11:]) == ["04", "04", "06", "06"]


def test_a_failed_point_is_a_row_what_needs_it_is_not_run_and_the_rest_goes_on(executed, capsys):
    executed.failing.append(("04", {"epochs": 1}))
    words = ("03", "04", "06", "-g", "epochs", "1,2", "--name", "t")
    assert ask(*words) == 1
    assert "--retry" in capsys.readouterr().out
    found = table("t").drop_duplicates(["point", "notebook"])
    states = [tuple(row) for row in found[["epochs", "notebook", "status"]].to_numpy()]
    assert states == [
        (1, "03_x", "ok"),
        (1, "04_x", "failed"),
        (1, "06_x", "not run"),
        (2, "03_x", "ok"),
        (2, "04_x", "ok"),
        (2, "06_x", "ok"),
    ]
    failed, not_run = found.iloc[1], found.iloc[2]
    assert failed["error"] == "04_x failed in cell [2] `x`\nValueError: odd"
    assert failed["metric"] == "" and math.isnan(failed["value"])
    assert not_run["error"] == "needs 04"
    ran = len(executed.ran)
    executed.failing.clear()
    assert ask(*words) == 1 and len(executed.ran) == ran  # as it failed before
    assert ask(*words, "--retry") == 0
    assert [number for number, _ in executed.ran[ran:]] == ["04", "06"]
    assert set(table("t")["status"]) == {"ok"}


def test_failed_claims_are_a_status_and_the_numbers_count(executed):
    executed.claiming.append(("02", {"seed": 1}))
    assert ask("02", "-g", "seed", "0,1", "--name", "t") == 0
    found = table("t")
    assert list(found.loc[found["metric"] == "accuracy", "status"]) == ["ok", "claims failed"]
    assert list(found.loc[found["metric"] == "accuracy", "value"]) == [0.3, 1.3]
    assert ask("02", "-g", "seed", "0,1", "--name", "t", "--retry") == 0 and len(executed.ran) == 2


def test_ctrl_c_says_how_to_go_on_and_keeps_what_had_ended(executed, capsys):
    executed.stopping.append(("02", {"seed": 1}))
    words = ("02", "-g", "seed", "0,1,2", "--name", "t")
    assert ask(*words) == 130
    assert "The same command goes on from there" in capsys.readouterr().out
    assert list(table("t").drop_duplicates("point")["status"]) == ["ok", "not run", "not run"]
    executed.stopping.clear()
    assert ask(*words) == 0 and [used["seed"] for _, used in executed.ran] == [0, 1, 2]


@pytest.mark.parametrize("where", ["journal", "notebook"])
def test_a_full_disk_is_a_sentence_and_the_next_start_goes_on(executed, monkeypatch, capsys, where):
    full = []
    if where == "notebook":
        executed.failing.append(("02", {"seed": 1}))
    add, require = paths.Journal.add, paths.require_folders

    def no_room(self, record):
        if full or where == "notebook" or len(self.records) < 1:
            return add(self, record)
        raise OSError(errno.ENOSPC, "No space left on device")

    def checked():
        if len(executed.ran) == 2 and not full:
            raise OSError("there is no room in build")
        require()

    monkeypatch.setattr(paths.Journal, "add", no_room)
    monkeypatch.setattr(paths, "require_folders", checked)
    words = ("02", "-g", "seed", "0,1,2", "--name", "t")
    assert ask(*words) == 2
    said = capsys.readouterr().err
    assert "there is no room" in said or "(No space left on device): make room" in said
    full.append("no more")
    executed.failing.clear()
    assert ask(*words) == 0 and [used["seed"] for _, used in executed.ran] == [0, 1, 1, 2]


def test_a_sweep_is_locked_against_itself(executed, capsys):
    with paths.alone(paths.BUILD / "sweeps" / "t", "sweeping"):
        assert ask("02", "-g", "seed", "0,1", "--name", "t") == 2
    assert "Another run is sweeping" in capsys.readouterr().err and not executed.ran


def test_a_file_sets_texts_from_a_points_values_and_lists_points_one_by_one(executed):
    written(
        "pairs",
        "# why?\nnotebooks: ['04', '06']\nset: {sequencer: 'r-{epochs}-s{seed}'}\n"
        "points: [{seed: 0, epochs: 1}, {seed: 3, epochs: 2}]\n",
    )
    make("prepared", "eyes")
    assert ask("pairs") == 0
    read = {used["sequencer"] for number, used in executed.ran if number == "06"}
    assert read == {"r-1-s0+epochs=1", "r-2-s3+epochs=2+seed=3"}


def test_a_dry_run_says_the_points_the_minutes_and_what_is_done_and_writes_nothing(
    executed, capsys
):
    words = ("02", "-g", "seed", "0,1,2", "--name", "t", "--dry-run")
    assert ask(*words) == 0 and not paths.BUILD.exists()
    assert "02_x: 3 to do, how long is not recorded" in capsys.readouterr().out
    recorded = paths.RECORDED / "bundled" / "02_x.json"
    recorded.parent.mkdir(parents=True)
    recorded.write_text('{"seconds": 120}')
    assert ask(*words) == 0
    assert "about 6 minutes by 1 worker" in capsys.readouterr().out
    notebook.metrics_path("bundled", "02_x").parent.mkdir(parents=True)
    notebook.metrics_path("bundled", "02_x").write_text('{"seconds": 600}')  # of this machine
    assert ask("02", "-g", "seed", "0", "--name", "t") == 0
    capsys.readouterr()
    assert ask(*words) == 0
    said = capsys.readouterr().out
    assert "seed=0  02 ok\nseed=1  02 to do\nseed=2  02 to do\n" in said
    assert "2 of 3 notebooks to do, about 20 minutes" in said
    assert len(executed.ran) == 1


# What is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["02"], "Nothing varies"),
        (["02", "-g", "seeds", "0,1"], "no parameter 'seeds'"),
        (["02", "-g", "epoch", "1"], "has a parameter 'epoch'. Did you mean epochs?"),
        (["02", "-p", "epoch", "1", "-g", "seed", "0"], "has a parameter 'epoch'"),
        (["02", "-g", "epochs", "1,many"], "02_x: epochs must be int, got 'many'"),
        (["02", "-g", "epochs", "1,"], "02_x: epochs must be int, got ''"),
        (["02", "-g", "epochs", "1:30"], "epochs must be int, got '1:30'"),
        (["02", "-g", "flips", "no"], "flips must be bool, got 'no'"),
        (["02", "-g", "rate", "1.0,1"], "rate=1.0 is there twice"),
        (["02", "-g", "seed", "1,01"], "The point seed=1 is there twice"),
        (["02", "-g", "seed", "1", "-g", "seed", "2"], "-g seed is given twice"),
        (["02", "-g", "seed", "1", "-p", "seed", "2"], "both set for every point and varied"),
        (["02", "-g", "profile", "a,b"], "profile is of the whole sweep"),
        (["02", "-g", "seed", "0", "--profile", "tini"], "no profile 'tini'. Did you mean tiny?"),
        (["03", "-g", "seed", "0", "--profile", "tiny"], "Profile tiny has no notebook 03"),
        (["08", "-g", "seed", "0"], "no notebook 08. There are 02_x, 03_x"),
        (["07", "-g", "seed", "0"], "07 reads the numbers of a whole run"),
        (["02", "-g", "seed", "0", "--name", "../x"], "--name '../x' names a folder"),
        (["02", "-g", "seed", "0", "--workers", "0"], "--workers must be 1 or more, got 0"),
        (["02", "-g", "seed", "0", "--timeout", "-5"], "--timeout must be 1 or more, got -5"),
        (["mnis"], "There is no sweep 'mnis' in notebooks/sweeps. Did you mean mnist?"),
        (["mnist", "-g", "seed", "0"], "mnist: give numbers of notebooks, or the name"),
        (["02", "mnist"], "02 mnist: give numbers of notebooks, or the name"),
        (["06", "-g", "relu", "a"], "06_x reads prepared 'eyes', which is not there. Notebook 03"),
        (["03", "06", "-g", "relu", "a"], "reads sequencer 'reader', which is not there. Notebook"),
        (
            ["03", "04", "-g", "seed", "0,1", "-p", "sequencer", "{sed}"],
            "sequencer: {sed} stands for nothing that varies. Did you mean seed?",
        ),
    ],
)
def test_what_is_asked_wrongly_ends_with_status_2_before_anything_is_run(
    executed, capsys, words, said
):
    profile("tiny", **{"02_x": "epochs: 1\n"})
    written("mnist", "notebooks: ['02']\ngrid: {seed: [0]}\n")
    assert ask(*words) == 2
    assert said.replace("no parameter", "No notebook of the sweep has a parameter") in (
        capsys.readouterr().err
    )
    assert not executed.ran and not (paths.BUILD / "sweeps" / "t").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lines `name: value` are needed"),
        ("notebooks: ['02']\ngird: {seed: [0]}\n", "no key 'gird'. Did you mean grid?"),
        ("notebooks: ['02']\n", "either grid or points"),
        ("grid: {seed: [0]}\n", "notebooks are needed"),
        ("notebooks: ['02']\ngrid: {}\n", "grid must be {name: [value, value]}, got {}"),
        ("notebooks: ['02']\ngrid: {seed: []}\n", "seed in the grid must be a list of values"),
        ("notebooks: ['02']\ngrid: {seed: 3}\n", "seed in the grid must be a list of values"),
        ("notebooks: ['02']\ngrid: {seed: [010]}\n", "line 2, seed: 010 would be read as 8"),
        ("notebooks: [02]\ngrid: {seed: [0]}\n", "02 would be read as 2"),
        ("notebooks: [12]\ngrid: {seed: [0]}\n", "12 is no text: put it in quotes"),
        ("notebooks: ['02']\npoints: []\n", "points must be a list"),
        ("notebooks: ['02']\npoints: [{seed: 0}, {epochs: 1}]\n", "give the same names"),
        ("notebooks: ['02']\npoints: [{seed: 0}, {seed: 0}]\n", "seed=0 is there twice"),
        ("notebooks: ['02']\ngrid: {seed: [[0]]}\n", "seed must be int, got [0]"),
        ("notebooks: ['02']\ngrid: {seed: [a]}\n", "seed must be int, got 'a'"),
        ("notebooks: ['02']\ngrid: {seed: [0]}\nlines: {a: 1}\n", "must be {label: number}"),
        ("profile: no\nnotebooks: ['02']\n", "no would be read as False"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(executed, capsys, text, said):
    written("wrong", text)
    assert ask("wrong") == 2
    assert said in capsys.readouterr().err and not executed.ran


def test_points_that_would_share_a_folder_are_refused(executed, capsys):
    make("prepared", "eyes"), make("prepared", "eyes+seed=1")
    written("both", "notebooks: ['04']\ngrid: {prepared: [eyes, eyes+seed=1], seed: [0, 1]}\n")
    assert ask("both") == 2
    assert "Two points of 04_x would be written to" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["010", "1_000", " 3"])
def test_a_number_is_the_one_that_papermill_reads(executed, text):
    assert ask("02", "-g", "epochs", text, "-p", "rate", "1e-3") == 0
    assert executed.ran[0][1]["epochs"] == int(text) and executed.ran[0][1]["rate"] == 0.001


# What comes out


def test_figures_and_page_show_seeds_means_and_chance(executed):
    assert ask("02", "-g", "seed", "0,1,2", "-g", "epochs", "1,3", "--name", "t") == 0
    home = paths.BUILD / "sweeps" / "t"
    assert {file.name for file in home.glob("*.png")} == {
        "accuracy.png",
        "accuracy.chance.png",
        "runs.png",
    }
    assert Image.open(home / "accuracy.png").size[0] > 500
    page = (home / "index.html").read_text()
    # seeds give 0.1, 1.1, 2.1: mean 1.1, s = 1, t(2) = 4.303, half = 4.303 / sqrt(3) = 2.484
    assert "by epochs: 1: 1.1 (95 % interval -1.384 to 3.584); 3: 1.3 (95 %" in page
    assert "chance 0.5; by epochs" in page and 'src="accuracy.png"' in page
    assert page.count("<tr") == 7
    assert 'href="runs/bundled%2Bepochs%3D1%2Bseed%3D2/02_x.html"' in page


def test_two_parameters_make_a_table_and_only_seeds_a_row_of_dots(executed, capsys):
    words = ("-g", "seed", "0,1", "-g", "epochs", "1,3", "-g", "rate", "0.1,0.2", "--name", "t")
    assert ask("02", *words) == 0
    page = (paths.BUILD / "sweeps" / "t" / "index.html").read_text()
    assert "by epochs and rate: 1 and 0.1: 0.6; 1 and 0.2: 0.6; 3 and 0.1: 0.8" in page
    assert ask("02", "-g", "seed", "0,1", "--name", "u") == 0
    page = (paths.BUILD / "sweeps" / "u" / "index.html").read_text()
    # 0.3, 1.3: mean 0.8, s = 0.7071, t(1) = 12.706, half = 6.353
    assert "by seed: 0.3, 1.3; mean 0.8 (95 % interval -5.553 to 7.153)" in page
    (paths.BUILD / "sweeps" / "t" / "mine.png").touch()
    assert ask("02", *words[:-2], "-g", "flips", "true,false", "--name", "t") == 0
    assert "besides seed, 3 parameters vary" in capsys.readouterr().out
    assert [file.name for file in (paths.BUILD / "sweeps" / "t").glob("*.png")] == ["mine.png"]


def test_a_file_says_which_metrics_are_drawn_and_which_lines(executed):
    text = "# is it <good>?\nnotebooks: ['03', '04']\ngrid: {relu: [x]}\n"
    text = text.replace("relu: [x]", "seed: [0, 1]")
    written("q", f"{text}plot: [accuracy, nearest]\nlines: {{accuracy: {{paper: 0.98}}}}\n")
    assert ask("q") == 0
    home = paths.BUILD / "sweeps" / "q"
    assert {file.name for file in home.glob("*.png")} == {"03-accuracy.png", "04-accuracy.png"}
    page = (home / "index.html").read_text()
    assert "is it &lt;good&gt;?" in page and "paper 0.98; chance 0.5; by seed" in page
    assert "<td>s1, s1</td>" in page


@pytest.mark.parametrize(("last", "axis"), [(2, "seed"), (1, "epochs")])
def test_what_goes_along_with_the_seed_is_no_axis_of_its_own(executed, last, axis):
    points = f"[{{seed: 0, epochs: 1}}, {{seed: 1, epochs: {last}}}, {{seed: 2, epochs: 3}}]"
    written("q", f"# is it good?\nnotebooks: ['02']\npoints: {points}\nplot: [accuracy]\n")
    assert ask("q") == 0
    assert f"; by {axis}: " in (paths.BUILD / "sweeps" / "q" / "index.html").read_text()


def test_the_list_names_notebooks_profiles_and_sweeps_in_100_columns(executed, capsys):
    profile("tiny", **{"02_x": f"# a few seconds{' more' * 40}\nepochs: 1\n"})
    written("q", "# is it good?\nnotebooks: ['02']\ngrid: {seed: [0, 1], epochs: [1, 2]}\n")
    recorded = paths.RECORDED / "tiny" / "02_x.json"
    recorded.parent.mkdir(parents=True)
    recorded.write_text('{"seconds": 90}')
    assert __main__.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    words = [line.split() for line in lines]
    assert ["-", "02_x", "02_x"] in words
    assert ["-", "bundled", "02", "03", "04", "06", "07"] in words
    assert ["1.5", "tiny", "02", "a", "few", "seconds"] in [line[:6] for line in words]
    assert ["4", "q", "02", "is", "it", "good?"] in words


def test_the_sweeps_of_this_project_can_be_run(books, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", paths.ROOT / "notebooks")
    monkeypatch.setattr(paths, "PROFILES", paths.ROOT / "notebooks" / "profiles")
    for name in ("phantom-128", "retinas", "retinas-640"):
        make("prepared", name)
    make("sequencer", "phantom")
    counts = {}
    for name in sweep.names():
        asked = sweep.read(name)
        points, tasks = sweep.plan(asked)
        counts[name] = (len(points), len(tasks))
        assert asked.asks.endswith("?")
    assert counts == {
        **{"learning-curve": (12, 36), "maps": (16, 16), "mnist": (10, 10)},
        **{"retinas": (5, 10), "ingredients": (9, 21), "heads": (5, 5)},
        **{"retinas-448": (5, 10), "retinas-640": (5, 10), "retinas-after-phantoms": (5, 10)},
        **{"retinas-without-phantoms": (5, 10), "retinas-single": (5, 10)},
        **{"from-scratch": (1, 2)},
    }
    recorded = json.loads(
        (paths.ROOT / "data" / "recorded" / "mnist" / "02_clear_mnist.json").read_text()
    )
    assert set(sweep.read("mnist").plot) <= set(execution.flat(recorded["numbers"]))


def test_a_number_of_a_recorded_sweep_is_that_of_the_notebook_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDED", tmp_path)
    (tmp_path / "sweeps" / "one").mkdir(parents=True)
    table = ["point,notebook,seed,metric,value,text", "a,04_x,0,kappa,0.5,", "a,06_y,0,kappa,0.9,"]
    table += ["b,04_x,1,kappa,0.7,", "b,04_x,1,kappa.low,0.1,", "b,04_x,1,failing,,none"]
    (tmp_path / "sweeps" / "one" / "results.csv").write_text("\n".join(table))
    lines = sweep.recorded("one", "04", "kappa")
    assert dict(zip(lines.seed, lines.value, strict=True)) == {0: 0.5, 1: 0.7}
    assert sweep.recorded("one", "04", "failing").text.tolist() == ["none"]
    with pytest.raises(ValueError, match="sweep one has no kapa of notebook 04"):
        sweep.recorded("one", "04", "kapa")


# A cluster


class Cluster:
    """Stands in for Dask's client: two workers, `tcp://a` as it should be."""

    def __init__(self, threads=1, lib="same", sees=True):
        self.threads, self.lib, self.sees = threads, lib, sees

    def nthreads(self):
        return {"tcp://a": 1, "tcp://b": self.threads} if self.threads else {}

    def run(self, function, on_error):
        there = function()
        if function == sweep.library:
            return {"tcp://a": there, "tcp://b": there if self.lib == "same" else self.lib}
        return {"tcp://a": there, "tcp://b": there if self.sees else FileNotFoundError("token")}


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (Cluster(threads=0), "no worker"),
        (Cluster(threads=2), "Workers tcp://b run more than one thread.*--nthreads 1"),
        (Cluster(lib=ImportError("lib")), "Workers tcp://b have another lib/"),
        (Cluster(sees=False), "Workers tcp://b do not see .*shared folder"),
    ],
)
def test_workers_that_are_not_fit_are_named(tmp_path, cluster, said):
    with pytest.raises(RuntimeError, match=said):
        sweep._fit(cluster, tmp_path)
    assert not list(tmp_path.iterdir())
    assert sweep._fit(Cluster(), tmp_path) == 2


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_a_sentence(executed, capsys):
    assert (
        __main__.main(["sweep", "02", "-g", "seed", "0,1", "--cluster", "tcp://127.0.0.1:9"]) == 2
    )
    assert "No Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
    assert not executed.ran


# The real thing: kernels, processes, a cluster

NUMBERS = '{"accuracy": {"value": draw, "chance": 0.1}, "name": f"s{seed}"}'
DRAW = "import random, torch\ndraw = float(torch.rand(5).sum()) + epochs"
GRID = ("02", "-g", "seed", "0,1", "-g", "epochs", "1,3")


def steady(name):
    """A sweep's table without what differs from run to run."""
    return table(name).drop(columns=["seconds", "commit"])


def command(*words):
    """A process that runs a sweep of the notebooks made here, its standard error to be read."""
    code = (
        "import sys; from pathlib import Path; from lib import __main__, paths\n"
        f"paths.NOTEBOOKS = Path({str(paths.NOTEBOOKS)!r})\n"
        f"paths.PROFILES = Path({str(paths.PROFILES)!r})\n"
        "sys.exit(__main__.main(sys.argv[1:]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, "sweep", *words], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_one_worker_two_workers_and_a_cluster_give_the_same_table_also_where_a_point_fails(books):
    from distributed import LocalCluster

    fail = "if (seed, epochs) == (1, 1):\n    raise ValueError('odd')"
    write("02_x", DRAW, fail, declared=TRAINED, numbers=NUMBERS)
    assert ask(*GRID, "--name", "one") == 1
    assert ask(*GRID, "--name", "two", "--workers", "2") == 1
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        words = ["sweep", *GRID, "--name", "cluster", "--cluster", address]
        assert __main__.main(words) == 1
        assert (
            __main__.main([*words, "--retry"]) == 1
        )  # its folder is unlocked, a point fails again
    one = steady("one")
    assert len(one) == 3 * 3 + 1 and "ValueError: odd" in one.loc[6, "error"]
    for name in ("two", "cluster"):
        other = steady(name)
        other["error"] = other["error"].str.replace(f"/{name}/", "/one/")
        pd.testing.assert_frame_equal(one, other)
    page = (paths.BUILD / "sweeps" / "cluster" / "index.html").read_text()
    assert page.count(">ok</a>") == 3 and page.count(">failed</a>") == 1


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_gives_the_table_of_an_undisturbed_run(books, shelf):
    killed = shelf / "killed"
    write("02_x", DRAW, declared=TRAINED, numbers=NUMBERS)
    assert ask(*GRID, "--name", "one") == 0
    die = f"from pathlib import Path\nimport os, time\nflag = Path({str(killed)!r})\n"
    die += "if seed == 1 and epochs == 1 and not flag.exists():\n"
    die += "    flag.touch()\n    os.kill(os.getpid(), 9)\ntime.sleep(3 * epochs)"
    write("02_x", DRAW, die, declared=TRAINED, numbers=NUMBERS)
    words = (*GRID, "--name", "two", "--workers", "2")
    process = command(*words)
    journal = paths.BUILD / "sweeps" / "two" / "journal.jsonl"
    while not journal.exists() and process.poll() is None:
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family and process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert gone and not alive
    again = command(*words)
    assert again.wait() == 1  # a kernel was killed
    assert b"the kernel died" in again.stderr.read()
    assert command(*words, "--retry").wait() == 0
    pd.testing.assert_frame_equal(steady("one"), steady("two"))
    records = [json.loads(line) for line in journal.read_text().splitlines() if line]
    assert sorted(record["status"] for record in records) == ["failed"] + ["ok"] * 4
    assert os.path.exists(killed)
