"""One list of dependencies in pyproject.toml, and whatever repeats it in step with it."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import time
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from urllib.request import urlopen

import pytest
import skimage
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from lib import paths
from lib.__main__ import main

PYPROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEPENDENCIES = [*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values())]
LOCK = (paths.ROOT / "requirements.lock").read_text()
PINS = [Requirement(line) for line in re.findall(r"^[^#\s].*", LOCK, re.M)]
COMPILE = (
    f"uv pip compile --universal --python-version 3.11 --extra {' --extra '.join(EXTRAS)} "
    "--no-header pyproject.toml -o requirements.lock"
)


def misses(wanted, machine):
    """What is wrong with the pins of one requirement on one machine, if anything is."""
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(machine)]
    if len(pins) != 1:
        return [f"{wanted.name} has {len(pins)} pins for {machine}"]
    (version,) = pins[0].specifier
    if version.operator != "==" or not wanted.specifier.contains(version.version):
        return [f"{pins[0]} is not within {wanted}"]
    return []


def test_the_lock_pins_every_requirement_within_its_range():
    found = []
    for system in ("linux", "darwin"):
        for python in ("3.11", "3.12", "3.13"):
            versions = {"python_version": python, "python_full_version": f"{python}.1"}
            for line in DEPENDENCIES:
                found += misses(Requirement(line), versions | {"sys_platform": system})
    assert not found, "\n".join(found)


def test_the_lock_says_when_and_how_it_was_made_and_contributing_says_the_same():
    date, command = LOCK.splitlines()[:2]
    assert re.fullmatch(r"# Made on 20\d\d-[01]\d-[0-3]\d by", date)
    assert command == f"# {COMPILE}"
    assert COMPILE in (paths.ROOT / "CONTRIBUTING.md").read_text()


def test_the_lock_names_no_index_and_no_folder():
    assert not re.search(r"://|--|file:|^/|^\./", "\n".join(LOCK.splitlines()[2:]), re.M)


def test_the_conda_environment_is_python_pip_the_lock_and_this_project():
    conda = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    python, pip, packages = conda["dependencies"]
    assert conda["name"] == PROJECT["name"]
    assert pip == "pip" and packages == {"pip": ["-r requirements.lock", "-e ."]}
    floor = PROJECT["requires-python"].removeprefix(">=")
    assert f">={floor}" in str(Requirement(python).specifier).split(",")


def test_the_citation_is_of_this_version_and_names_the_three_papers():
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    papers = [one["value"] for paper in citation["references"] for one in paper["identifiers"]]
    assert papers == ["arXiv:1512.04150", "arXiv:1704.04133", "arXiv:1710.10675"]


def test_git_does_not_ignore_lib():
    if not (paths.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    modules = [str(path) for path in (paths.ROOT / "lib").rglob("*.py")]
    command = ["git", "check-ignore", "--no-index", *modules]
    said = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (1, ""), f"ignored: {said.stdout}{said.stderr}"


def test_every_room_of_lib_is_installed_and_companion_is_the_command_line():
    rooms = {path.parent for path in (paths.ROOT / "lib").rglob("*.py")}
    packages = {".".join(room.relative_to(paths.ROOT).parts) for room in rooms}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages
    script = EntryPoint("companion", PROJECT["scripts"]["companion"], "console_scripts")
    assert script.load() is main


@pytest.fixture
def checkout(tmp_path):
    """A folder with what `make` reads and a .venv that is set up, newer than the lock."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(paths.ROOT / name, tmp_path)
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()
    os.utime(tmp_path / ".venv" / ".ready", (1.1e9, 1.1e9))
    return tmp_path


def make(checkout, *arguments, **environment):
    """`make` as from a fresh shell: not told what a `make test` around these tests was told."""
    outer = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    command = [shutil.which("make"), "-C", str(checkout), *arguments]
    return subprocess.run(command, env=outer | environment, capture_output=True, text=True)


@pytest.mark.parametrize("target", "run test browser lab exercises guide slides lint site".split())
def test_make_sets_up_once_and_again_only_when_the_lock_or_pyproject_changes(checkout, target):
    assert "pip install" not in make(checkout, "-n", target).stdout
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(checkout / name)
        assert make(checkout, "-n", target).stdout.count("pip install") == 2
        os.utime(checkout / name, (1e9, 1e9))
    shutil.rmtree(checkout / ".venv")
    assert make(checkout, "-n", target).stdout.count("pip install") == 2


def pythons(checkout, **scripts):
    """A folder of pretended Pythons to be the PATH, in a checkout that is not set up."""
    shutil.rmtree(checkout / ".venv")
    (checkout / "bin").mkdir()
    for name, script in scripts.items():
        path = checkout / "bin" / name.replace("_", ".")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return str(checkout / "bin")


def test_make_without_a_new_enough_python_says_what_is_needed(checkout):
    said = make(checkout, "run", PATH=pythons(checkout, python3="exit 1", python3_12="exit 1"))
    assert said.returncode != 0
    assert "Python 3.11 or later is needed, and python3 is not: make run PYTHON=" in said.stderr
    assert not (checkout / ".venv").exists()


def test_make_takes_a_newer_python_by_name_when_python3_is_too_old(checkout):
    newer = '[ "$1" = -c ] || echo "called with $*"'
    said = make(checkout, "run", PATH=pythons(checkout, python3="exit 1", python3_12=newer))
    assert "Setting up .venv with python3.12" in said.stdout
    assert "called with -m venv .venv" in said.stdout


def set_up_for_the_cpu(checkout, status):
    """What make says and asks pip for, and what it leaves out; PyTorch's index gives `status`."""
    pip = f'#!/bin/sh\necho "$*" >> asked; case "$*" in *index-url*) exit {status};; esac'
    new = "[ $1 = -c ] || { mkdir -p .venv/bin; cp pip .venv/bin/python; }"
    path = pythons(checkout, python3=new)
    (checkout / "pip").write_text(pip)
    (checkout / "pip").chmod(0o755)
    said = make(checkout, ".venv/.ready", "TORCH=cpu", PATH=f"{path}:{os.environ['PATH']}")
    assert said.returncode == 0, said.stderr
    asked = (checkout / "asked").read_text().splitlines()
    left = (checkout / ".venv" / "requirements.txt").read_text()
    pins = {Requirement(line).name for line in re.findall(r"^[^#\s].*", left, re.M)}
    return said.stdout, asked, {pin.name for pin in PINS} - pins


def test_make_leaves_cuda_out_when_asked_and_where_pytorchs_index_offers_it(checkout):
    said, asked, gone = set_up_for_the_cpu(checkout, status=0)
    (torch,) = (pin for pin in PINS if pin.name == "torch")
    assert len(asked) == 3 and re.search(
        rf"/whl/cpu {torch}\+cpu torchvision==[\d.]+\+cpu$", asked[0]
    )
    assert "-r .venv/requirements.txt" in asked[1]
    of_torch = {"cuda-toolkit", "nvidia-cudnn-cu13", "triton"}
    assert of_torch <= gone and all(name.startswith(("cuda", "nvidia", "triton")) for name in gone)
    assert "does not offer" not in said


def test_make_says_so_and_takes_the_lock_where_that_index_does_not_answer(checkout):
    said, asked, gone = set_up_for_the_cpu(checkout, status=1)
    assert "does not offer the lock's versions, or cannot be reached" in said
    assert len(asked) == 3 and not gone


def test_make_knows_two_ways_to_set_up_pytorch(checkout):
    shutil.rmtree(checkout / ".venv")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    said = make(checkout, ".venv/.ready", "TORCH=rocm", PYTHON="true")
    assert said.returncode != 0 and "TORCH=rocm is not known" in said.stderr
    assert not (checkout / ".venv" / ".ready").exists()


def test_make_clean_keeps_the_environment_downloads_and_what_was_made_from_them(checkout):
    made = "prepared/phantom-128 raw/phantom sequencers/phantom sequencers/phantom.1"
    gone = ["build", "lib/__pycache__", *(f"data/{name}" for name in made.split())]
    gone.append("data/sequencers/x-smoke.1")
    real = "prepared/eyepacs-512 raw/eyepacs recorded sequencers/x-eyepacs sequencers/phantoms"
    kept = [".venv/lib/__pycache__", *(f"data/{name}" for name in real.split())]
    for name in (*gone, *kept):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "a").touch()
    assert make(checkout, "clean").returncode == 0
    assert not any((checkout / name).exists() for name in gone)
    assert all((checkout / name / "a").exists() for name in kept)


def test_every_make_command_of_the_readme_is_a_target():
    quoted = re.findall(r"```.*?```|`[^`\n]+`", (paths.ROOT / "README.md").read_text(), re.S)
    named = set(re.findall(r"\bmake ([a-z]+)\b", "".join(quoted)))
    targets = set(re.findall(r"^([a-z]+):", (paths.ROOT / "Makefile").read_text(), re.M))
    assert {"run", "test"} <= named <= targets


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_the_photographs_that_imagenet_knows_come_with_scikit_image(name):
    """A version whose wheel leaves them out would download them, and notebook 1 needs none."""
    folder = Path(skimage.__file__).parent / "data"
    assert Image.open(folder / f"{name}.png").mode == "RGB"


@pytest.fixture
def lab(tmp_path):
    """What `make lab` starts, without a browser: its address and token."""
    told = subprocess.run(
        ["make", "-n", "lab"], cwd=paths.ROOT, capture_output=True, text=True, check=True
    )
    [command] = [line for line in told.stdout.splitlines() if " -m jupyterlab" in line]
    settings = {"JUPYTER_RUNTIME_DIR": tmp_path, "JUPYTER_CONFIG_DIR": tmp_path / "config"}
    root = ["--allow-root"] if os.getuid() == 0 else []
    server = subprocess.Popen(
        [*shlex.split(command), "--no-browser", *root],
        cwd=paths.ROOT,
        env=os.environ | {name: str(folder) for name, folder in settings.items()},
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (found := list(tmp_path.glob("jpserver-*.json"))):
            assert server.poll() is None, "it has ended"
            time.sleep(0.2)
        yield json.loads(found[0].read_text())
    finally:
        server.terminate()
        server.wait()


def test_make_lab_opens_what_the_notebooks_link_to(lab):
    for path in ("exercises/01_cam_imagenet.py", "teaching/glossary.md", "notebooks"):
        url = f"{lab['url']}api/contents/{path}?content=0&token={lab['token']}"
        with urlopen(url, timeout=60) as answer:
            assert json.load(answer)["path"] == path
    with urlopen(f"{lab['url']}?token={lab['token']}", timeout=60) as answer:
        assert answer.url.partition("?")[0] == f"{lab['url']}lab/tree/notebooks"
