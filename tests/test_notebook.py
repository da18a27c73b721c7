"""What notebooks begin and end with, on small ones made here: none of the real ones is read."""

import json
import random
import subprocess
from io import BytesIO

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from PIL import Image

from lib import notebook, paths

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


def write(name, *cells, declared=DECLARED, numbers='{"epochs": epochs}'):
    """A notebook in the usual form, `cells` before `run.finish`; numbers=None for neither end."""
    imports = "from pathlib import Path\nfrom lib import notebook, paths"
    folder = f"paths.NOTEBOOKS = Path({str(paths.NOTEBOOKS)!r})"
    folder += "\npaths.PROFILES = paths.NOTEBOOKS / 'profiles'"
    begin = f"{imports}\n{folder}\nrun = notebook.begin({name!r}, globals())"
    finish = f'run.finish({numbers}, data="none", weights="none")'
    sources = [declared, begin, *cells, finish] if numbers else [declared, *cells]
    code = [nbformat.v4.new_code_cell(source) for source in sources]
    code[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {name}"), *code])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, paths.NOTEBOOKS / f"{name}.ipynb")


def profile(name, **files):
    (paths.PROFILES / name).mkdir()
    for stem, text in files.items():
        (paths.PROFILES / name / f"{stem}.yaml").write_text(text)


def record(notebook, profile="bundled"):
    return json.loads((paths.BUILD / profile / "metrics" / f"{notebook}.json").read_text())


# In the notebook


def test_begin_returns_the_parameters_as_used_and_says_what_is_used(shelf, capsys):
    write("n02_x")
    run = notebook.begin("n02_x", VALUES | {"rate": 1, "other": object()})
    assert run.parameters == VALUES | {"rate": 1}
    said = capsys.readouterr().out
    assert "n02_x, run bundled+rate=1, seed 7, on c" in said
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
        notebook.begin("n02_x", VALUES | wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_begin_refuses_a_number_that_is_not_finite(shelf, value):
    write("n02_x")
    with pytest.raises(ValueError, match="rate must be a finite number, got "):
        notebook.begin("n02_x", VALUES | {"rate": value})


def test_begin_keeps_the_numbers_of_an_earlier_run_aside(shelf):
    write("n02_x")
    for number in (1, 2):
        notebook.begin("n02_x", VALUES).finish({"a": number}, data="d", weights="w")
    notebook.begin("n02_x", VALUES)
    folder = paths.BUILD / "bundled"
    assert not (folder / "metrics" / "n02_x.json").exists()
    kept = json.loads((folder / "earlier" / "metrics" / "n02_x.json").read_text())
    assert kept["numbers"] == {"a": 2}


def test_begin_says_at_once_where_nothing_could_be_recorded_at_the_end(shelf, monkeypatch):
    write("n02_x")
    (shelf / "file").write_text("mine")
    monkeypatch.setattr(paths, "BUILD", shelf / "file")
    with pytest.raises(OSError, match=r"file is no folder.*set COMPANION_BUILD to a folder"):
        notebook.begin("n02_x", VALUES)


def test_begin_allows_declared_names_in_papermills_cell_and_other_names_elsewhere(shelf):
    write("n02_x")
    cells = ["", "epoch = 9", "# Parameters\nepochs = 5\n"]
    assert (
        notebook.begin("n02_x", VALUES | {"epochs": 5, "epoch": 9, "In": cells}).parameters[
            "epochs"
        ]
        == 5
    )


def test_begin_before_the_parameters_cell_says_so(shelf):
    write("n02_x")
    with pytest.raises(ValueError, match="seed, epochs: not defined yet"):
        notebook.begin(
            "n02_x", {name: VALUES[name] for name in ("profile", "rate", "flips", "weights")}
        )


def test_begin_seeds_python_numpy_and_torch(shelf):
    write("n02_x")

    def drawn(seed):
        notebook.begin("n02_x", VALUES | {"seed": seed})
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_finish_records_the_numbers_and_what_they_came_from(shelf, capsys):
    write("n02_x")
    run = notebook.begin("n02_x", VALUES)
    run.skip("photographs", "no weights")
    numbers = {"share": {"value": np.float32(0.5), 3: np.int64(3)}, "worst": "a"}
    run.finish(numbers, data="digits", weights="here")
    found = record("n02_x")
    assert found["numbers"] == {"share": {"value": 0.5, "3": 3}, "worst": "a"}
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
    run = notebook.begin("n02_x", VALUES)
    run.finish({"a": 1}, data="d", weights="w")
    with pytest.raises(ValueError, match=r"numbers\['bad'\]"):
        run.finish({"a": 2, "bad": value}, data="d", weights="w")
    with pytest.raises(ValueError, match=r"numbers\['a'\]\[3\]\['bad'\] must be a finite number"):
        run.finish({"a": {3: {"good": 1, "bad": value}}}, data="d", weights="w")
    assert record("n02_x")["numbers"] == {"a": 1}


def test_what_is_saved_names_the_home_folder_by_a_tilde(shelf, monkeypatch, capsys):
    write("n02_x")
    monkeypatch.setenv("HOME", "/home/j\u00fcrgen")
    run = notebook.begin("n02_x", VALUES | {"weights": "/home/j\u00fcrgen/w.pt"})
    run.skip("photographs", "no file '/home/j\u00fcrgen/eyes/a'")
    assert "SKIPPED: photographs: no file '~/eyes/a'" in capsys.readouterr().out
    run.finish({"a": "/home/j\u00fcrgens/b"}, data="of /home/j\u00fcrgen/eyes", weights="w")
    found = record("n02_x", run.name)
    assert found["parameters"]["weights"] == "~/w.pt" and found["data"] == "of ~/eyes"
    assert found["numbers"] == {"a": "/home/j\u00fcrgens/b"}


def test_two_parameters_two_folders_and_the_bundled_numbers_stay_byte_for_byte(shelf):
    write("02_x")
    notebook.begin("02_x", VALUES).finish({"a": 1}, data="d", weights="w")
    before = (paths.BUILD / "bundled" / "metrics" / "02_x.json").read_bytes()
    run = notebook.begin("02_x", VALUES | {"epochs": 1, "flips": False})
    run.figure(plt.figure(), "any", "Nothing")
    run.finish({"a": 2}, data="d", weights="w")
    assert run.name == "bundled+epochs=1+flips=false" == record("02_x", run.name)["run"]
    assert (paths.BUILD / "bundled" / "metrics" / "02_x.json").read_bytes() == before
    assert sorted(path.name for path in (paths.BUILD / "bundled").iterdir()) == ["metrics"]
    assert record("02_x", run.name)["numbers"] == {"a": 2}


def test_a_default_that_is_edited_in_jupyterlab_is_another_run(shelf):
    (paths.PROFILES / "bundled").mkdir()
    (paths.PROFILES / "bundled" / "02_x.yaml").write_text("epochs: 3\n")
    write("02_x", declared=DECLARED.replace("epochs: int = 3", "epochs: int = 4"))
    assert notebook.begin("02_x", VALUES | {"epochs": 4}).name == "bundled+epochs=4"
    assert notebook.begin("02_x", VALUES).name == "bundled"


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"profile": "bundled+n=5"}, "bundled+n=5"),  # brought along from another notebook
        ({"profile": "bundled+n=5", "seed": 1}, "bundled+n=5+seed=1"),
        ({"rate": 0.25, "epochs": -1}, "bundled+epochs=-1+rate=0.25"),
    ],
)
def test_a_run_is_named_by_its_parameters(shelf, changed, name):
    write("02_x")
    assert notebook.run_name("02_x", VALUES | changed) == name


@pytest.mark.parametrize("text", ["/a b/c.pt", "W.pt", "a+b", "ümlaut", "", "x" * 300])
def test_a_value_that_no_folder_can_be_named_by_is_shortened_to_a_hash(shelf, text):
    write("02_x")
    names = {notebook.run_name("02_x", VALUES | {"weights": text + end}) for end in ("", "1")}
    assert len(names) == 2  # two values, two folders
    for name in names:
        assert name.startswith("bundled+weights=") and len(name) < 60
        assert name == name.lower() and "/" not in name and name.count("+") == 1


def test_a_long_name_keeps_its_beginning_and_a_hash_of_the_whole(shelf):
    many = "\n".join(f"parameter_{i}: int = 0  # of many" for i in range(30))
    write("02_x", declared=f'{many}\nprofile: str = "bundled"  # run\nseed: int = 0  # seed')
    used = {f"parameter_{i}": 1 for i in range(30)} | {"profile": "bundled", "seed": 0}
    name = notebook.run_name("02_x", used)
    assert len(name) <= 100 and name.startswith("bundled+parameter_0=1+parameter_10=1+")
    assert name != notebook.run_name("02_x", used | {"parameter_29": 2})


def test_what_is_trained_is_named_by_what_it_depends_on(shelf, monkeypatch):
    monkeypatch.setattr(paths, "SEQUENCERS", shelf / "sequencers")
    write("02_x")
    run = notebook.begin("02_x", VALUES | {"epochs": 1, "rate": 0.5})
    assert run.trained("digits", ["epochs", "seed"]).name == "digits-bundled+epochs=1"
    assert run.trained("digits", ["seed"]).name == "digits-bundled"


# Claims


def test_a_failing_claim_leaves_its_numbers_and_is_named_with_value_and_bound(shelf, capsys):
    write("02_x")
    run = notebook.begin("02_x", VALUES)
    run.check("most are right", np.float64(0.75), ">=", 0.9)
    run.check("all are seen", True, "==", True)
    run.check("few are lost", 7, "<", np.int64(3))
    run.check("no error", float("nan"), "<=", 1.0)
    with pytest.raises(notebook.ClaimsFailed) as failure:
        run.finish({"share": 0.75}, data="d", weights="w")
    assert str(failure.value).splitlines() == [
        "3 of 4 claims of 02_x failed, its numbers are recorded:",
        "most are right: 0.75, bound >= 0.9",
        "few are lost: 7, bound < 3",
        "no error: nan, bound <= 1.0",
    ]
    found = record("02_x")
    assert found["numbers"] == {"share": 0.75}
    assert [claim["held"] for claim in found["claims"]] == [False, True, False, False]
    assert [claim["value"] for claim in found["claims"]] == [0.75, True, 7, "nan"]
    said = capsys.readouterr().out
    assert "FAILS: most are right: 0.75, bound >= 0.9" in said and "holds: all are seen" in said


@pytest.mark.parametrize(
    ("settings", "asserted"),
    [
        ({}, True),
        ({"epochs": 3, "weights": "none", "flips": True}, True),
        ({"epochs": range(3, 9)}, True),
        ({"weights": ("none", "some")}, True),
        ({"profile": "bundled"}, True),  # whatever else differs
        ({"epochs": range(4, 9)}, False),
        ({"weights": "non"}, False),
        ({"epochs": 3, "profile": "smoke"}, False),
    ],
)
def test_a_claim_is_asserted_for_its_settings_and_reported_elsewhere(
    shelf, capsys, settings, asserted
):
    write("02_x")
    run = notebook.begin("02_x", VALUES | {"seed": 8})
    run.check("wrong", 0, ">", 1, **settings)
    assert run.claims[0]["asserted"] == asserted and not run.claims[0]["held"]
    if asserted:
        with pytest.raises(notebook.ClaimsFailed):
            run.finish({"a": 1}, data="d", weights="w")
    else:
        run.finish({"a": 1}, data="d", weights="w")
        assert "does not hold: wrong: 0, bound > 1; claimed only for" in capsys.readouterr().out
    with pytest.raises(KeyError):
        run.check("of nothing", 1, ">", 0, epoch=3)


def test_figure_is_shown_with_what_it_shows_and_saved_as_png_at_150_dpi_and_as_pdf(
    shelf, monkeypatch
):
    write("02_x")
    shown = []
    monkeypatch.setattr(notebook, "display", lambda *what, **how: shown.append((*what, how)))
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.bar([0, 1], [3, 4])
    run = notebook.begin("02_x", VALUES)
    with pytest.raises(ValueError, match="say in `alt` what it shows"):
        run.figure(figure, "figure-2.1", " ")
    run.figure(figure, "figure-2.1", "Two bars,\n  3 and 4")
    [(data, how)] = shown
    assert Image.open(BytesIO(data["image/png"])).size[0] > 200 and "Figure" in data["text/plain"]
    assert how == {"raw": True, "metadata": {"image/png": {"alt": "Two bars, 3 and 4"}}}
    assert not plt.get_fignums()
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
    assert notebook.commit() is None
    git("init", "-q")
    (tmp_path / "repo" / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    git("tag", "-a", "-m", "v1", "v1")
    head = git("rev-parse", "HEAD")
    assert notebook.commit() == head
    (tmp_path / "repo" / "file").write_text("2")
    assert notebook.commit() == f"{head}-dirty"
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repo" / "inner")
    assert notebook.commit() is None, (
        "a copy inside somebody else's repository is not at that commit"
    )


@pytest.mark.slow
def test_a_run_is_attended_where_the_sender_of_a_cell_could_ask_somebody(shelf):
    """What JupyterLab, VS Code and Colab send, and what nbclient and nbval send instead."""
    write("n02_x")
    assert not notebook.begin("n02_x", VALUES).attended  # no kernel at all
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(paths.ROOT))
    try:
        said = []
        for allow_stdin in (True, False):
            options = {"user_expressions": {"said": "notebook.attended()"}}
            code = "from lib import notebook"
            reply = client.execute_interactive(code, allow_stdin=allow_stdin, **options)
            said.append(reply["content"]["user_expressions"]["said"]["data"]["text/plain"])
        assert said == ["True", "False"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
