"""Seconds until a module is there: what a notebook's third cell and the command line wait for.

    python -m benchmarks.imports [--rounds 5] [--out FILE.json]

Each import runs in a fresh interpreter, all in turns, so that a busy machine is busy for all;
medians count. The yardstick for the notebooks is what every one of them needs, torch, torchvision
and pyplot."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import record
from lib import notebook, paths

YARDSTICK = "import torch, torchvision, matplotlib.pyplot"
IMPORTS = {
    "torch": "import torch",
    "torch, torchvision, pyplot": YARDSTICK,
    "lib.methods.cam": "import lib.methods.cam",
    "lib.methods.clear": "import lib.methods.clear",
    "lib.learning.training": "import lib.learning.training",
    "lib.notebook": "import lib.notebook",
    "lib.explain": "import lib.explain",
}


def third_cell(file):
    """The imports of a notebook's third cell, which holds all of them."""
    book = json.loads(file.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    lines = "".join(code[1]["source"]).splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith(("import ", "from ")))
    return "\n".join(lines[: last + 1])


def seconds(program):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], cwd=paths.ROOT, check=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=paths.BUILD / "benchmarks" / "imports.json")
    options = parser.parse_args()
    programs = dict(IMPORTS)
    for file in sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb")):
        programs[f"third cell of {file.stem}"] = third_cell(file)
    taken = {name: [] for name in programs}
    for turn in range(options.rounds + 1):
        for name, program in programs.items():
            passed = seconds(program)
            if turn:  # the first one fills the disk's cache
                taken[name].append(passed)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    needed = medians["torch, torchvision, pyplot"]
    print(f"{'import':36} {'seconds':>8}  times torch, torchvision, pyplot")
    for name, median in medians.items():
        print(f"{name:36} {median:8.2f}  {median / needed:.2f}")
    measured = {"rounds": options.rounds, "versions": notebook.versions(), "seconds": medians}
    record.write(options.out, measured)


if __name__ == "__main__":
    main()
