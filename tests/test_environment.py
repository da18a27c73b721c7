"""One list of dependencies in pyproject.toml, and whatever repeats it in step with it."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib import paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
WANTED = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
]
LOCK = (paths.ROOT / "requirements.lock").read_text()
PINS = [Requirement(line) for line in re.findall(r"^[^#\s].*", LOCK, re.M)]
COMPILE = "uv pip compile --universal --python-version 3.11 --extra dev --no-header pyproject.toml -o requirements.lock"


@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: wanted.name)
@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_pins_every_requirement_within_its_range(wanted, system, python):
    machine = {
        "sys_platform": system,
        "python_version": python,
        "python_full_version": f"{python}.1",
    }
    pins = [
        pin
        for pin in PINS
        if canonicalize_name(pin.name) == canonicalize_name(wanted.name)
        and (pin.marker is None or pin.marker.evaluate(machine))
    ]
    assert len(pins) == 1, f"{wanted.name} has {len(pins)} pins for {system} and Python {python}"
    (pin,) = pins[0].specifier
    assert pin.operator == "==" and wanted.specifier.contains(pin.version), (
        f"{pin} is not within {wanted}"
    )


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
    for module in (paths.ROOT / "lib").rglob("*.py"):
        ignored = subprocess.run(
            ["git", "check-ignore", "-q", "--no-index", str(module.relative_to(paths.ROOT))],
            cwd=paths.ROOT,
        )
        assert ignored.returncode == 1, f"{module} is ignored"


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


@pytest.mark.parametrize("target", ["run", "test", "lab", "lint"])
def test_make_sets_up_once_and_again_only_when_the_lock_or_pyproject_changes(checkout, target):
    assert "pip install" not in make(checkout, "-n", target).stdout
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(checkout / name)
        assert make(checkout, "-n", target).stdout.count("pip install") == 2
        os.utime(checkout / name, (1e9, 1e9))
    shutil.rmtree(checkout / ".venv")
    assert make(checkout, "-n", target).stdout.count("pip install") == 2


def test_make_without_a_new_enough_python_says_what_is_needed(checkout):
    shutil.rmtree(checkout / ".venv")
    (checkout / "bin").mkdir()
    for name in ("python3", "python3.12"):
        (checkout / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (checkout / "bin" / name).chmod(0o755)
    said = make(checkout, "run", PATH=str(checkout / "bin"))
    assert said.returncode != 0
    assert "Python 3.11 or later is needed, and python3 is not: make run PYTHON=" in said.stderr
    assert not (checkout / ".venv").exists()


def test_make_takes_a_newer_python_by_name_when_python3_is_too_old(checkout):
    shutil.rmtree(checkout / ".venv")
    (checkout / "bin").mkdir()
    (checkout / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")
    (checkout / "bin" / "python3.12").write_text(
        '#!/bin/sh\n[ "$1" = -c ] || echo "called with $*"\n'
    )
    for path in (checkout / "bin").iterdir():
        path.chmod(0o755)
    said = make(checkout, "run", PATH=str(checkout / "bin"))
    assert (
        "Setting up .venv with python3.12" in said.stdout
        and "called with -m venv .venv" in said.stdout
    )


def test_make_clean_keeps_the_environment_downloads_and_what_was_made_from_them(checkout):
    gone = [
        "build/a",
        "data/raw/phantom/a",
        "data/prepared/phantom-128/a",
        "data/sequencers/phantom/a",
        "data/sequencers/x-smoke.1/a",
        "lib/__pycache__/a",
    ]
    kept = [
        ".venv/lib/__pycache__/a",
        "data/sequencers/x-eyepacs/a",
        "data/raw/eyepacs/a",
        "data/prepared/eyepacs-512/a",
        "data/recorded/a",
    ]
    for name in (*gone, *kept):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    assert make(checkout, "clean").returncode == 0
    assert not any((checkout / name).parent.exists() for name in gone)
    assert all((checkout / name).exists() for name in kept)


def test_every_make_command_of_the_readme_is_a_target():
    quoted = re.findall(r"```.*?```|`[^`\n]+`", (paths.ROOT / "README.md").read_text(), re.S)
    named = set(re.findall(r"\bmake ([a-z]+)\b", "".join(quoted)))
    targets = set(re.findall(r"^([a-z]+):", (paths.ROOT / "Makefile").read_text(), re.M))
    assert {"run", "test"} <= named <= targets
