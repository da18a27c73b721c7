"""The form of the committed notebooks, and the smoke profile run through the command line."""

import ast
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys

import nbformat
import pytest
import torch
import yaml
from safetensors.torch import load

from lib import paths

NAMES = [
    "01_cam_imagenet",
    "02_clear_mnist",
    "03_dr_dataset",
    "04_radiomic_sequencer",
    "05_clear_dr_figures",
    "06_clear_dr_scored",
    "07_ledger",
]
BOOKS = {file.stem: nbformat.read(file, 4) for file in sorted(paths.NOTEBOOKS.glob("*.ipynb"))}
RECORDED = sorted(paths.RECORDED.glob("*/*.json"))
LINE = re.compile(r"^(\w+): (int|float|str|bool) = ([^#]+?)  # \S.*$")
TYPES = {"int": int, "float": float, "str": str, "bool": bool}
MACHINE = re.compile(r"(?<![\w.:/])(/(home|work|root|Users|tmp|var|mnt)/|[A-Z]:\\)\S*")
every_notebook = pytest.mark.parametrize("name", BOOKS)


def code(name):
    return [cell for cell in BOOKS[name].cells if cell.cell_type == "code"]


def declared(name):
    """The parameters by their lines' text: {name: (type, value)}."""
    lines = [LINE.match(line) for line in code(name)[0].source.splitlines()]
    return {line[1]: (TYPES[line[2]], ast.literal_eval(line[3])) for line in lines}


def nodes(name, first):
    """The syntax of a notebook's code from its cell number `first`, counted from 0, on."""
    for cell in code(name)[first:]:
        yield from ast.walk(ast.parse(cell.source))


def test_the_seven_notebooks_are_there():
    assert list(BOOKS) == NAMES


@every_notebook
def test_a_notebook_is_valid_opens_with_its_title_and_runs_on_the_kernel_python3(name):
    book = BOOKS[name]
    nbformat.validate(book)
    assert book.cells[0].cell_type == "markdown" and re.match(r"# \S", book.cells[0].source)
    assert book.cells[-1].cell_type == "markdown"
    assert book.metadata.kernelspec.name == "python3"
    assert book.metadata.kernelspec.language == "python"
    assert "jupytext" not in book.metadata


@every_notebook
def test_the_second_cell_and_no_other_is_tagged_parameters(name):
    tagged = [cell for cell in BOOKS[name].cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [BOOKS[name].cells[1]] == code(name)[:1]
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in code(name))


@every_notebook
def test_each_parameter_is_a_name_a_plain_type_a_literal_of_that_type_and_help(name):
    for line in code(name)[0].source.splitlines():
        assert LINE.match(line), f"{name}: {line!r} is not `name: type = literal  # help`"
    for parameter, (kind, value) in declared(name).items():
        assert type(value) is kind, f"{name}: {parameter} = {value!r} is not {kind.__name__}"
    assert declared(name)["profile"] == (str, "bundled")
    assert declared(name)["seed"][0] is int


@every_notebook
def test_each_parameter_is_read_in_a_later_cell(name):
    names = [node for node in nodes(name, first=1) if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    unread = set(declared(name)) - read - {"profile", "seed"}  # notebook.begin reads these two
    assert not unread, f"{name} declares but never reads {unread}"


@every_notebook
def test_the_third_cell_imports_and_begins_and_no_later_one_imports(name):
    third = code(name)[1]
    assert BOOKS[name].cells[2] == third
    assert re.search(r"^(import|from) ", third.source, re.M)
    assert f'run = notebook.begin("{name}", globals())' in third.source
    late = [node for node in nodes(name, first=2) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not late, f"{name} imports later: {[ast.unparse(node) for node in late]}"


@every_notebook
def test_claims_are_checked_by_the_run_and_the_last_cell_with_code_finishes(name):
    """An assert about a result would end the notebook before its numbers are recorded."""
    finishing = [cell for cell in code(name) if "run.finish(" in cell.source]
    assert finishing == code(name)[-1:]
    checking = [cell for cell in code(name) if "run.check(" in cell.source]
    assert checking and max(cell.source.count("run.check(") for cell in checking) <= 6
    first = code(name).index(checking[0])
    assert not [cell.source for cell in code(name)[first:] if "assert " in cell.source]


@every_notebook
def test_no_claim_of_the_committed_run_failed_and_each_says_what_came_out(name):
    said = "".join(out.get("text", "") for cell in code(name) for out in cell.outputs)
    assert re.search(r"^holds: .+: \S+, bound \S+ \S+$", said, re.M)
    assert not re.search(r"^FAILS: ", said, re.M)


@every_notebook
def test_the_committed_run_trained_what_it_shows(name):
    said = "".join(out.get("text", "") for cell in code(name) for out in cell.outputs)
    assert not re.search(r"^(already trained|continues after epoch)", said, re.M)


@every_notebook
def test_every_cell_has_been_run_in_order_without_an_error_and_a_checked_one_has_an_output(name):
    assert [cell.execution_count for cell in code(name)] == list(range(1, len(code(name)) + 1))
    for cell in code(name):
        assert not [out for out in cell.outputs if out.output_type == "error"], cell.source
        if "NBVAL_CHECK_OUTPUT" in cell.source:
            assert cell.source.startswith("# NBVAL_CHECK_OUTPUT\n") and cell.outputs, cell.source


@every_notebook
def test_every_image_is_described_by_a_sentence_with_what_it_shows(name):
    for cell in code(name):
        for output in cell.outputs:
            kinds = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
            for kind in kinds:
                said = output.metadata
                alt = said.get(kind, {}).get("alt", said.get("alt", ""))
                assert len(alt.split()) >= 6, (cell.id, alt)


@every_notebook
def test_cells_are_short(name):
    lines = [len(cell.source.splitlines()) for cell in code(name)]
    assert max(lines) <= 30, f"{name}: a cell of {max(lines)} lines"
    assert statistics.median(lines) <= 6


@every_notebook
def test_a_notebook_is_small_enough_for_the_web_and_names_no_machine(name):
    assert (paths.NOTEBOOKS / f"{name}.ipynb").stat().st_size <= 500_000
    for cell in BOOKS[name].cells:
        texts = [cell.source]
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            texts += [out.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
        found = MACHINE.search("\n".join(texts))
        assert not found, f"{name} names the path {found[0]}"


@pytest.mark.parametrize(
    "file", sorted(paths.PROFILES.glob("*/*")), ids=lambda file: "/".join(file.parts[-2:])
)
def test_a_profile_passes_declared_parameters_of_the_right_type_to_a_notebook(file):
    assert file.suffix == ".yaml" and file.stem in BOOKS
    values = yaml.safe_load(file.read_text())
    assert values["profile"] == file.parent.name
    for name, value in values.items():
        assert name in declared(file.stem), f"{file.stem} declares no {name}"
        kind = declared(file.stem)[name][0]
        assert type(value) is kind or (kind is float and type(value) is int), f"{name}: {value!r}"


@pytest.mark.parametrize("profile", ["bundled", "smoke"])
def test_the_bundled_and_the_smoke_profile_cover_every_notebook(profile):
    assert [file.stem for file in sorted((paths.PROFILES / profile).glob("*.yaml"))] == NAMES


@every_notebook
def test_the_bundled_profile_says_what_the_notebook_declares(name):
    """Where they differed, a reader who pressed `Run all` would get a run of another name."""
    values = yaml.safe_load((paths.PROFILES / "bundled" / f"{name}.yaml").read_text())
    told = [(parameter, type(value), value) for parameter, value in values.items()]
    assert told == [(parameter, *kind) for parameter, kind in declared(name).items()]


@pytest.mark.parametrize("profile", sorted(path.name for path in paths.PROFILES.glob("*/")))
def test_the_notebooks_of_a_profile_read_what_its_earlier_ones_make(profile):
    for parameter, maker in (("prepared", "03_dr_dataset"), ("sequencer", "04_radiomic_sequencer")):
        given = {}
        for file in (paths.PROFILES / profile).glob("*.yaml"):
            values = yaml.safe_load(file.read_text())
            if parameter in values:
                given[file.stem] = values[parameter]
        assert len(set(given.values())) <= 1, f"{parameter}: {given}"
        if (paths.PROFILES / profile / f"{maker}.yaml").exists():
            assert maker in given


def companion(build, *arguments):
    """`python -m lib run --profile smoke`, in and into a folder that is not the repository."""
    environment = os.environ | {
        "COMPANION_DATA": str(build / "data"),
        "COMPANION_BUILD": str(build / "build"),
    }
    environment.pop("COMPANION_DATASETS", None)
    command = [sys.executable, "-m", "lib", "run", "--profile", "smoke", *arguments]
    return subprocess.run(command, env=environment, cwd=build, capture_output=True, text=True)


def numbers(build, name):
    record = build / "build" / "smoke" / "metrics" / f"{name}.json"
    return json.loads(record.read_text())["numbers"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A folder in which the smoke profile has run once, with what it said."""
    build = tmp_path_factory.mktemp("smoke")
    return build, companion(build)


@pytest.mark.slow
def test_the_smoke_profile_runs_all_notebooks_and_ends_with_the_table(smoke):
    build, said = smoke
    assert said.returncode == 0, said.stderr[-2000:]
    for name in NAMES:
        assert numbers(build, name)
        assert re.search(rf"^{name} +\d+\.\d  \S", said.stdout, re.M), said.stdout
        assert "<img" in (build / "build" / "smoke" / f"{name}.html").read_text()
    figures = sorted((build / "build" / "smoke" / "figures").glob("*"))
    assert {file.suffix for file in figures} == {".png", ".pdf"}
    assert len([file for file in figures if file.suffix == ".png"]) * 2 == len(figures)


@pytest.mark.slow
def test_a_notebook_whose_data_are_missing_names_the_one_that_makes_them(tmp_path):
    said = companion(tmp_path, "--only", "04", "05")
    assert said.returncode == 1
    assert "04_radiomic_sequencer failed in cell [4] `folder = paths.PREPARED" in said.stderr
    assert "notebooks/03_dr_dataset.ipynb makes it: run that first." in said.stderr
    assert re.search(r"^05_clear_dr_figures +-  not run: needs 04$", said.stdout, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("file", RECORDED, ids=lambda file: "/".join(file.parts[-2:]))
def test_recorded_numbers_are_under_the_names_that_the_notebook_gives_them(smoke, file):
    record = json.loads(file.read_text())
    assert (record["notebook"], record["profile"]) == (file.stem, file.parent.name)
    # 04 compares objectives only where `compared_epochs` is not 0; the others are newer than the
    # records of MNIST, RetinaMNIST and IDRiD. 01 has the last three with ImageNet's weights alone.
    optional = {
        *("objectives", "eq3_error", "photographs_by_source", "by_source", "val_kappa", "val"),
        *("froc", "paired", "random_networks", "used_more", "heads", "tolerances"),
        *("froc_methods", "deletion_photographs", "after_first_step"),
        *("photographs_known", "photographs_identity_error", "class_units"),
    }
    assert set(record["numbers"]) - optional == set(numbers(smoke[0], file.stem)) - optional


@pytest.mark.slow
def test_running_again_draws_prepares_and_trains_nothing_and_gives_the_same_numbers(smoke):
    """Of the notebooks that draw, prepare and train; what the others train goes through `fit`."""
    build, _ = smoke

    def made():
        kinds = (".jpeg", ".png", ".pt")  # a checkpoint is written after each epoch of training
        files = [path for path in (build / "data").rglob("*") if path.suffix in kinds]
        return {path: path.stat().st_mtime_ns for path in files}

    first = made()
    before = {name: numbers(build, name) for name in NAMES}
    assert {path.suffix for path in first} == {".jpeg", ".png", ".pt"}
    said = companion(build, "--only", "03", "04")
    assert said.returncode == 0, said.stderr[-2000:]
    assert made() == first
    assert {name: numbers(build, name) for name in NAMES} == before


@pytest.mark.slow
def test_a_training_that_goes_on_begins_with_the_weights_of_the_earlier_one(smoke):
    """At a learning rate of nearly nothing it also ends with them."""
    build, _ = smoke
    given = ("-p", "start", "phantom-smoke", "-p", "learning_rate", "1e-9")
    said = companion(build, "--only", "04", *given)
    assert said.returncode == 0, said.stderr[-2000:]
    home = build / "data" / "sequencers"
    earlier = (home / "phantom-smoke" / "weights.safetensors").read_bytes()
    later = home / "phantom-smoke+learning_rate=1e-09+start=phantom-smoke"
    config = json.loads((later / "config.json").read_text())
    assert config["start"] == hashlib.sha256(earlier).hexdigest()
    before, after = load(earlier), load((later / "weights.safetensors").read_bytes())
    assert before.keys() == after.keys()
    for name in before:
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(before[name], after[name], atol=1e-6), name
    third = companion(build, "--only", "04", "-p", "start", later.name, "-p", "epochs", "1")
    assert third.returncode == 0, third.stderr[-2000:]


@pytest.mark.slow
def test_a_sequencer_may_be_the_mean_of_two_others(smoke):
    build, _ = smoke
    home = build / "data" / "sequencers"
    body = ("-p", "body", "squeezenet")
    names, members = [], []
    for rate in ("0.001", "0.002"):
        given = (*body, "-p", "weights", "random", "-p", "learning_rate", rate)
        said = companion(build, "--only", "04", *given)
        assert said.returncode == 0, said.stderr[-2000:]
        names.append(f"phantom-smoke+body=squeezenet+learning_rate={rate}+weights=random")
        members.append((home / names[-1] / "weights.safetensors").read_bytes())
    names = " ".join(names)
    said = companion(build, "--only", "04", *body, "-p", "averaged", names, "-p", "epochs", "0")
    assert said.returncode == 0, said.stderr[-2000:]
    (made,) = home.glob("phantom-smoke+averaged=*/config.json")
    fingerprints = [hashlib.sha256(member).hexdigest() for member in members]
    assert json.loads(made.read_text())["averaged"] == fingerprints
    mean = load((made.parent / "weights.safetensors").read_bytes())
    one, other = (load(member) for member in members)
    for name, weight in mean.items():
        assert torch.allclose(weight, (one[name] + other[name]) / 2, atol=1e-7), name
    assert not torch.equal(one["head.weight"], other["head.weight"])
    both = companion(build, "--only", "04", *body, "-p", "averaged", names, "-p", "runs", "2")
    assert both.returncode != 0 and "the mean of the same sequencers" in both.stderr


@pytest.mark.slow
def test_a_run_with_other_parameters_leaves_alone_what_the_first_one_made(smoke):
    build, _ = smoke

    def content(skipped):
        files = [path for path in build.rglob("*") if path.is_file() and skipped not in str(path)]
        return {path: path.read_bytes() for path in files if path.suffix != ".lock"}

    before = content("eye=both")
    said = companion(build, "--only", "03", "04", "-p", "eye", "both")
    assert said.returncode == 0, said.stderr[-2000:]
    assert content("eye=both") == before
    run = build / "build" / "smoke+eye=both"
    read = json.loads((run / "metrics" / "04_radiomic_sequencer.json").read_text())
    assert read["parameters"]["prepared"] == "phantom-64+eye=both"
    assert read["products"] == {"sequencer": "phantom-smoke+eye=both"}
    assert read["numbers"]["train"] + read["numbers"]["test"] > 60
    for kind, name in (("prepared", "phantom-64"), ("sequencers", "phantom-smoke")):
        assert (build / "data" / kind / f"{name}+eye=both").is_dir()
