"""Every command that README, CONTRIBUTING and data/README print does what it says there.

A command is run: papermill prepares the notebook and runs no cell, `lib run` plans and starts
none, `make` says what it would do, and a benchmark what it takes.
"""

import importlib
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from lib import __main__, execution, paths, results
from lib.data import phantom

PAGES = ("README.md", "CONTRIBUTING.md", "data/README.md")
PROGRAMS = ("make", "papermill", "python", "pytest", "ruff", "uv", "pip")


def printed():
    """Every command in a block of code or between backquotes, without `.venv/bin/`."""
    found = []
    for page in PAGES:
        text = (paths.ROOT / page).read_text()
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"^    (\S.*)$", text, re.MULTILINE)
        lines += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
        for line in lines:
            words = shlex.split(line.removeprefix(".venv/bin/"), comments=True)
            if len(words) > 1 and words[0] in PROGRAMS:
                found.append(pytest.param(words, id=f"{page}: {' '.join(words)[:60]}"))
    return found


COMMANDS = printed()


def ran(words):
    """The words of a command, run from the repository: what it printed, where it succeeded."""
    done = subprocess.run(words, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def makes(words, tmp_path, monkeypatch, capsys):
    options = [word.replace("/path/to/python3.12", sys.executable) for word in words[1:]]
    ran(["make", "--dry-run", *options])


def prepares(words, tmp_path, monkeypatch, capsys):
    from papermill.cli import papermill

    if words[1] == "--help-notebook":
        done = CliRunner().invoke(papermill, ["--help-notebook", str(paths.ROOT / words[2])])
        assert done.exit_code == 0 and "relu: str" in done.output
        return
    source, output, *options = words[1:]
    options = [word.replace("notebooks/", f"{paths.NOTEBOOKS}/") for word in options]
    source, output = str(paths.ROOT / source), str(tmp_path / output)
    done = CliRunner().invoke(papermill, ["--prepare-only", source, output, *options])
    assert done.exit_code == 0, done.output
    cells = json.loads(Path(output).read_text())["cells"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    injected = cells[tags.index(["injected-parameters"])]["source"]
    given = {}
    exec("".join(injected), given)
    del given["__builtins__"]
    notebook = Path(source).stem
    assert given
    execution.check_parameters(notebook, given, execution._declared(notebook))


def starts(words, tmp_path, monkeypatch, capsys):
    if words[:4] == ["python", "-m", "lib", "explain"] and len(words) > 4:
        explains(words, tmp_path, monkeypatch, capsys)
    elif words[1:3] == ["-m", "lib"]:
        planned = []
        monkeypatch.setattr(execution, "run", lambda *given: planned.append(given) or 0)
        if words[3:4] == ["run"]:
            assert __main__.main(words[3:]) == 0 and planned[0][1]
        else:
            with pytest.raises(SystemExit, match="0"):
                __main__.main([*words[3:], "--help"])
    else:
        monkeypatch.syspath_prepend(paths.ROOT)
        monkeypatch.setattr(sys, "argv", [words[2], *words[3:], "--help"])
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(words[2]).main()
        assert "usage:" in capsys.readouterr().out


def explains(words, tmp_path, monkeypatch, capsys):
    """As printed, with a photograph for PHOTO... and a folder for DIR, beside a trained phantom."""
    image = Image.fromarray(phantom.draw_photograph(2, 0, 480)[0])
    image.save(tmp_path / "eye.png")
    (tmp_path / "data" / "sequencers").mkdir(parents=True)
    (tmp_path / "run").rename(tmp_path / "data" / "sequencers" / "phantom")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "SEQUENCERS", tmp_path / "data" / "sequencers")
    monkeypatch.chdir(tmp_path)
    words = [{"PHOTO...": "eye.png", "DIR": "out"}.get(word, word) for word in words]
    assert __main__.main(words[3:]) == 0
    assert results.read_results(tmp_path / "out" / "results.csv").image.tolist() == ["eye.png"]


def is_there(words, tmp_path, monkeypatch, capsys):
    """A linter or the test runner: its options are known; a marker is declared."""
    assert shutil.which(words[0], path=Path(sys.executable).parent)
    settings = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = [marker.split(":")[0] for marker in settings["ini_options"]["markers"]]
    if "-m" in words:
        assert words[words.index("-m") + 1].removeprefix("not ") in markers
    if words[0] == "ruff":
        ran([str(Path(sys.executable).with_name("ruff")), *words[1:], "--help"])
    elif "-m" not in words:
        assert all((paths.ROOT / word).exists() for word in words[1:])


def compiles(words, tmp_path, monkeypatch, capsys):
    """uv is not among the dependencies: the files and the extra that are named are there."""
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    assert words[1:3] == ["pip", "compile"]
    assert words[words.index("--extra") + 1] in project["optional-dependencies"]
    assert words[words.index("--python-version") + 1] in project["requires-python"]
    files = [word for word in words if word.endswith((".toml", ".lock"))]
    assert len(files) == 2 and all((paths.ROOT / file).exists() for file in files)


def installs(words, tmp_path, monkeypatch, capsys):
    """Nothing is downloaded by a test; what a module says when it is missing, is the same."""
    assert words[1] == "install"
    assert " ".join(words) in (paths.ROOT / "benchmarks" / "cam.py").read_text()


CHECKS = {
    "make": makes,
    "papermill": prepares,
    "python": starts,
    "pytest": is_there,
    "ruff": is_there,
    "uv": compiles,
    "pip": installs,
}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_printed_command_works(words, sequencer, tmp_path, monkeypatch, capsys):
    CHECKS[words[0]](words, tmp_path, monkeypatch, capsys)


def test_commands_of_each_kind_are_found():
    assert {param.values[0][0] for param in COMMANDS} == set(CHECKS)
    assert len(COMMANDS) > 20


def test_the_installed_command_is_the_module():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="companion")
    assert script.load() is __main__.main
