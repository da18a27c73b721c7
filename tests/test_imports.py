"""Which way imports point, and what loading a module costs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib import paths

HEAVY = ("captum", "kaggle", "lightning_fabric", "matplotlib", "nbconvert", "pandas", "papermill",
         "scipy", "sklearn", "torch", "torchvision")  # fmt: skip
LOADS_NONE_OF = {
    "lib.methods.clear": set(HEAVY) - {"torch"},
    "lib.data.retina": {"torch", "pandas", "matplotlib", "sklearn"},  # what a worker process loads
    "lib.data.kaggle": {"kaggle", "torch", "sklearn"},
    "lib.notebook": {"papermill", "nbconvert", "lightning_fabric", "sklearn", "pandas"},
    "lib.explain": {"lightning_fabric", "sklearn", "captum", "papermill"},
}


@pytest.mark.parametrize("module", LOADS_NONE_OF)
def test_importing_a_module_loads_nothing_that_it_does_not_need(module):
    program = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=paths.ROOT, capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & LOADS_NONE_OF[module]


@pytest.fixture
def linted(tmp_path):
    """A function that lints the imports of a copy of lib: the exit status and the report."""
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(paths.ROOT / "lib", tmp_path / "lib")
    command = Path(sys.executable).with_name("lint-imports")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def lint():
        done = subprocess.run(
            [command, "--no-cache"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout

    lint.lib = tmp_path / "lib"
    return lint


def test_imports_point_downwards_and_a_planted_upward_one_is_refused(linted):
    assert linted()[0] == 0, linted()[1]
    planted = linted.lib / "data" / "digits.py"
    planted.write_text(planted.read_text() + "\nfrom lib.learning import training\n")
    status, report = linted()
    assert status == 1 and "lib.data.digits -> lib.learning.training" in report


def test_a_module_outside_the_plan_is_refused(linted):
    (linted.lib / "attic.py").write_text("")
    status, report = linted()
    assert status == 1 and "attic" in report


def test_no_module_but_paths_reads_the_environment():
    for module in (paths.ROOT / "lib").rglob("*.py"):
        text = module.read_text()
        if module.name != "paths.py":
            assert "environ.get" not in text and "getenv" not in text, module
            assert "environ[" not in text.replace('os.environ["JUPYTER_PATH"] =', ""), module
