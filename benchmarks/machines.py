"""By how much do trained numbers differ between machines?

    python -m benchmarks.machines [--only 01 02 04] [--out FOLDER]

One machine stands for others: oneDNN and PyTorch's own kernels are held to what older processors
have (AVX2), and the notebooks compute on one thread or on two. All else is equal, the seed too.
Each setting runs the notebooks in a folder of its own, one after the other. The table has the form
of a sweep's: a line for each number of each run, with the setting as its point.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from lib import execution, paths

SETTINGS = {
    "as it is, 1 thread": {"OMP_NUM_THREADS": "1"},
    "as it is, 2 threads": {"OMP_NUM_THREADS": "2"},
    "AVX2, 1 thread": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
}


def measured(point: str, settings: dict[str, str], only: list[str], home: Path) -> list[dict]:
    """The numbers of the bundled run in one setting."""
    folder = home / point.replace(" ", "-").replace(",", "")
    here = {"COMPANION_DATA": str(folder / "data"), "COMPANION_BUILD": str(folder / "build")}
    command = [sys.executable, "-m", "lib", "run", "--workers", "1", "--only", *only]
    subprocess.run(command, env=os.environ | settings | here, cwd=paths.ROOT, check=True)
    lines = []
    for notebook in execution.of_profile("bundled", only):
        record = json.loads(
            (folder / "build" / "bundled" / "metrics" / f"{notebook}.json").read_text()
        )
        same = {"point": point, "notebook": notebook, "commit": record["commit"]}
        for metric, value in execution.flat(record["numbers"]).items():
            if isinstance(value, int | float):
                lines.append(same | {"metric": metric, "value": float(value), "text": None})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=["01", "02", "03", "04"])
    parser.add_argument("--out", type=Path, default=paths.BUILD / "benchmarks" / "machines")
    options = parser.parse_args()
    lines = []
    for point, settings in SETTINGS.items():
        lines += measured(point, settings, options.only, options.out.resolve())
    table = pd.DataFrame(lines)
    table.to_csv(options.out / "results.csv", index=False)
    apart = table.pivot_table(index=["notebook", "metric"], columns="point", values="value")
    print(apart.to_string(float_format="{:.3f}".format))
    print(f"written to {options.out / 'results.csv'}")


if __name__ == "__main__":
    main()
