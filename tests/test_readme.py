"""What README, CONTRIBUTING and the pages of docs/ and data/ say holds.

Their results are those of the records, their links lead somewhere, the messages that they explain
are the code's, and every command does what it says there. A command is run: papermill prepares the
notebook and runs no cell, `lib run` plans and starts none, `make` says what it would do, and a
benchmark what it takes.
"""

import ast
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
from urllib.parse import unquote

import pytest
from click.testing import CliRunner
from jinja2 import UndefinedError
from PIL import Image

from lib import __main__, execution, paths, results, sweep
from lib.data import phantom

import make_pages

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "data/README.md",
    "docs/findings.md",
    "docs/running.md",
    "docs/speed.md",
    "docs/troubleshooting.md",
)
TEMPLATES = [f"docs/pages/{name}" for name in make_pages.PAGES]
PROGRAMS = ("make", "papermill", "python", "pytest", "ruff", "uv", "pip")


def read(page):
    return (paths.ROOT / page).read_text(encoding="utf-8")


# Results


def test_the_committed_pages_are_what_make_docs_writes():
    for template, page in make_pages.PAGES.items():
        assert read(page) == make_pages.page(template), f"{page} is stale: run `make docs`"


def record_with(monkeypatch, folder, change):
    """The recorded results, of which those of real retinas are changed by `change`."""
    shutil.copytree(paths.RECORDED, folder, ignore=shutil.ignore_patterns("*.png", "*.jpeg"))
    file = folder / "retinas" / "06_clear_dr_scored.json"
    record = json.loads(file.read_text())
    change(record["numbers"])
    file.write_text(json.dumps(record))
    monkeypatch.setattr(paths, "RECORDED", folder)


def test_another_record_makes_another_page(monkeypatch, tmp_path):
    def change(numbers):
        numbers["lesions"]["any lesion"]["times_chance"]["value"] = 7.777

    record_with(monkeypatch, tmp_path / "recorded", change)
    for template, page in make_pages.PAGES.items():
        assert "7.8" in make_pages.page(template) and "7.8" not in read(page)


def test_a_sentence_whose_premise_is_gone_and_a_number_that_is_not_there_fail(
    monkeypatch, tmp_path
):
    def not_ahead_of_edges(numbers):
        numbers["used_more"]["edges"]["insertion, blur"]["low"] = -0.01

    record_with(monkeypatch, tmp_path / "a", not_ahead_of_edges)
    for template in make_pages.PAGES:
        with pytest.raises(ValueError, match="contradicts the sentence"):
            make_pages.page(template)
    record_with(monkeypatch, tmp_path / "b", lambda numbers: numbers.pop("used_more"))
    with pytest.raises(UndefinedError, match="used_more"):
        make_pages.page("README.md")
    with pytest.raises(ValueError, match=r"has no section 4\.44"):
        make_pages.section("4.44")
    with pytest.raises(ValueError, match="has no kapa of notebook 04"):
        make_pages.sweep("retinas-single", "04", "kapa")


NAMES = r"CC BY(-\w+)* \d\.\d|YAML 1\.1|Python 3\.\d+|SqueezeNet 1\.1|arXiv:\d+\.\d+|BSD-3"


def typed_results(text):
    """Decimal numbers, percentages and thousands in the prose of a page or a template.

    Prose is what is no code, no expression, address or attribute of an image. Names that hold a
    number are none, nor is the `section 2.7` that a notebook has.
    """
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", text, flags=re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|<https?:[^>]*>|(src|width)=\"[^\"]*\"", "", text)
    text = re.sub(NAMES, "", text)
    for named in re.findall(r"section\s+(\d\.\d+)", text):
        make_pages.section(named)
    text = re.sub(r"section\s+\d\.\d+", "", text)
    return re.findall(r"\d+[.,]\d+|\d+ ?%", text)


WRITTEN_BY_HAND = ("docs/running.md", "docs/troubleshooting.md")


@pytest.mark.parametrize("page", [*TEMPLATES, *WRITTEN_BY_HAND])
def test_no_result_is_typed_by_hand(page):
    """Of all pages but docs/speed.md, which dates and places its measurements instead."""
    assert not set(typed_results(read(page))) - {"95 %"}  # the level of every interval


# What the prose of a notebook may say by hand: what papers report, what a method fixes, an example.
STATED = {
    "01_cam_imagenet": {
        "20 %": "the paper's threshold of a box",
        "0.5": "the IoU from which a box counts; the average in the first example",
        "2 %": "what the averaged head costs on ImageNet, in the paper",
        "56.4": "GoogLeNet-GAP's top-1 error, in the paper",
        "43.0": "its top-5 error",
        **dict.fromkeys(("1,000", "1,024", "50,000"), "classes, channels, validation images"),
    },
    "02_clear_mnist": {
        **dict.fromkeys(("99.26", "79.89", "43.45"), "Table 1, MNIST"),
        **dict.fromkeys(("92.6", "69.12", "54.46"), "Table 1, SVHN"),
        "0.05": "the distance that counts as near Table 1",
    },
    "03_dr_dataset": {
        "8 %": "the share of a column's pixels that makes it part of the box",
        **dict.fromkeys(("53,576", "53,354"), "Kaggle's test eyes, and the paper's images"),
        "73.2": "CLEAR-DR's accuracy",
    },
    "04_radiomic_sequencer": {
        "73.2": "CLEAR-DR's accuracy",
        **dict.fromkeys(("87 %", "98 %"), "specificities of Abramoff 2016 and Gulshan 2016"),
        **dict.fromkeys(("0.9", "1.12", "0.5"), "parameters of the training"),
        "0.531": "the best of MedMNIST v2",
        **dict.fromkeys(("0.631", "0.553", "0.515"), "the best three of IDRiD's challenge"),
        **dict.fromkeys(("0.80", "0.82", "0.84", "0.91"), "kappas in Krause 2018"),
        **dict.fromkeys(("100 %", "80 %"), "a reader's mistaken answer; an example"),
        "0.95": "the accuracy that the compared trainings have to reach",
        "0.05": "the step of a question",
        **dict.fromkeys(("0.6", "0.4"), "CORN's example"),
    },
    "05_clear_dr_figures": {
        **dict.fromkeys(("0.5", "0.6", "3 %", "99.5"), "how the figures are drawn"),
        **dict.fromkeys(("2.65", "7.8"), "where the fovea lies, Jonas 2015"),
    },
    "06_clear_dr_scored": {
        **dict.fromkeys(("1 %", "30 %"), "the example of a cap"),
        **dict.fromkeys(("0.5", "2 %", "3 %"), "smoothing, peaks and tolerances"),
        "0.9": "where Graham's contrast ends",
        "500,000": "where the numbers of drawn patients begin",
        **dict.fromkeys(("0.1", "0.25", "0.5"), "the levels that count as strong"),
        "1.0": "a rim that is left on, as a parameter",
    },
    "07_ledger": {
        **dict.fromkeys(("0.012", "0.014", "0.034"), "the example of an interval"),
        "20 %": "CAM's threshold of a box",
        "5,335": "a tenth of the paper's images",
        "0.05": "the distance that counts as near Table 1",
        "73.2": "CLEAR-DR's accuracy",
    },
}

PROSE = {}
for stem in STATED:
    cells = json.loads(read(f"notebooks/{stem}.ipynb"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    PROSE[stem] = "\n\n".join(texts)


@pytest.mark.parametrize("name", STATED)
def test_no_result_is_typed_into_a_notebook(name):
    """Its results are printed by its cells; its prose has what is named above, and all of that."""
    prose = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", PROSE[name], flags=re.DOTALL)
    sections = set(re.findall(r"^## (\d\.\d+)", "\n".join(PROSE.values()), re.MULTILINE))
    assert set(typed_results(prose)) - sections - {"95 %"} == set(STATED[name])


@pytest.mark.parametrize(
    "sentence",
    ["Kappa is 0.67 on IDRiD.", "It finds 20 % of them.", "of 44,351 eyes", "91% of it"],
)
def test_a_result_typed_by_hand_is_found(sentence):
    assert typed_results(f"{{{{ given(1 < 2) }}}}\n- {sentence}")
    assert not typed_results("CC BY 4.0, `0.5`, {{ score | percent }}, [x](a-1.5), section 2.7")


def test_the_section_of_a_page_must_exist():
    with pytest.raises(ValueError, match="has no section"):
        typed_results("see notebook 2, section 2.77")


def test_the_readme_is_short_and_its_pictures_are_small():
    text = read("README.md")
    assert len(text.splitlines()) <= 150
    pictures = re.findall(r'<img src="([^"]+)"[^>]* alt="([^"]+)"', text)
    assert len(pictures) == 3
    for file, alt in pictures:
        assert len(alt.split()) > 10
        assert (paths.ROOT / file).stat().st_size <= 300_000
        with Image.open(paths.ROOT / file) as picture:
            assert min(picture.size) >= 600


def test_the_changes_begin_with_this_version():
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[0] == version


# Links


def slugs(page):
    """The anchors that GitHub and the site give the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_every_link_of_a_page_leads_to_a_file_and_to_a_heading_in_it(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", read(page), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    broken = []
    for link in filter(None, [one or other for one, other in links]):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (paths.ROOT / page).parent / name if name else paths.ROOT / page
        if not target.exists() or (anchor and anchor not in slugs(target)):
            broken.append(link)
    assert not broken


def test_the_running_page_knows_every_profile_and_variable():
    text = read("docs/running.md")
    profiles = re.findall(r"^\| `([\w-]+)` \| (?:all|\d)", text, re.MULTILINE)
    assert set(profiles) == set(execution.profiles())
    assert set(re.findall(r"COMPANION_[A-Z]+", text)) <= set(
        re.findall(r"COMPANION_[A-Z]+", (paths.ROOT / "lib" / "paths.py").read_text())
    )
    assert all(sweep.read(name) for name in ("mnist", "learning-curve"))


# Messages


def messages():
    """What the code may say: its texts, with dots where a value is put in."""
    found = [read("Makefile")]
    for file in [*(paths.ROOT / "lib").rglob("*.py"), paths.ROOT / "exercises" / "checks.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", None) for part in node.values]
                found.append("".join(p if isinstance(p, str) else "..." for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_that_is_explained_is_one_of_the_code():
    blocks = re.findall(r"```text\n(.*?)```", read("docs/troubleshooting.md"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 30
    known = messages()
    unknown = []
    for line in lines:
        pieces = [piece for piece in re.split(r"\.{3,}", line) if len(piece.strip()) > 1]
        assert pieces and max(map(len, pieces)) >= 9, line
        unknown += [f"{line}: {piece!r}" for piece in pieces if piece not in known]
    assert not unknown, "\n".join(unknown)


def test_without_make_one_does_what_make_does():
    """The lines for Windows install what the Makefile installs, and say that they are untried."""
    text = read("docs/troubleshooting.md").split("### ")[1]
    recipe = read("Makefile")
    assert "-r requirements.lock" in text and "cp requirements.lock .venv/requirements" in recipe
    for options in ("--no-deps -e .", "-m lib run"):
        assert options in text and options in recipe
    assert "**Untried**" in text


# Commands


def printed():
    """Every command in a block of code or between backquotes, without `.venv/bin/`."""
    found = []
    for page in PAGES:
        text = read(page)
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"^    (\S.*)$", text, re.MULTILINE)
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
        for line in lines:
            try:
                words = shlex.split(line.removeprefix(".venv/bin/"), comments=True)
            except ValueError:  # an apostrophe: no command
                continue
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
