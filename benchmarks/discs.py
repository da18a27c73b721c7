"""Do the maps lie on the optic disc, in photographs for validation?

    python -m benchmarks.discs RECIPE RUN [RUN ...] [--out FILE.csv]

A photograph for validation has no outlined lesions, but its optic disc is easily seen, and a map of
lesions should not lie there. `data/marks/optic_discs.csv` has these discs as circles. As in
notebook 6, the dominant response's share of the disc is set beside chance, the disc's share of the
retina. RUN names a sequencer in `data/sequencers/`, each of another seed. RECIPE names them in the
table, whose lines of that recipe are replaced.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd

from lib import explain, memory, paths
from lib.data import fundus
from lib.evaluation import localisation
from lib.learning import checkpoint

MARKS = paths.ROOT / "data" / "marks" / "optic_discs.csv"
TOLERANCE = 0.005  # share of the width, as in notebook 6


def disc_mask(x: float, y: float, radius: float, size: int) -> np.ndarray:
    """A disc in a square photograph: bool (size, size). All lengths are shares of the width."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    return np.hypot(columns - x * size, rows - y * size) <= radius * size


def on_the_disc(run: str) -> dict:
    """A line of the table: how many times as often as by chance the response lies on the disc."""
    folder = paths.SEQUENCERS / run
    network, config = explain.load_sequencer(folder)
    val = fundus.FundusDataset(
        paths.PREPARED / config["prepared"], "val", rim=config.get("rim", 1.0)
    )
    fundus.require_same_preparation(config, val)
    marks = pd.read_csv(MARKS, index_col="image")
    inside, chance = [], []
    for i, name in enumerate(val.names):
        if name not in marks.index:
            continue  # its disc cannot be seen
        (eye,) = explain.explain_images(network, val[i][0][None])
        response = eye.R.max(0)
        disc = disc_mask(*marks.loc[name, ["x", "y", "radius"]], len(response))
        retina = val.retina(i)
        disc = localisation.widen(disc, round(TOLERANCE * len(response))) & retina
        inside.append(localisation.share_inside(response, disc))
        chance.append(disc.sum() / retina.sum())
    if len(inside) < len(marks):
        raise ValueError(f"{len(marks)} discs are marked, {config['prepared']} has {len(inside)}")
    times = math.fsum(inside) / math.fsum(chance)
    return {
        "seed": config.get("seed", "all"),  # a mean of trainings has no seed of its own
        "size": config["size"],
        "photographs": len(inside),
        "times_chance": round(times, 4),
        "weights": checkpoint.fingerprint(folder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, default=paths.BUILD / "benchmarks" / "discs.csv")
    options = parser.parse_args()
    memory.keep_freed()
    lines = [{"recipe": options.recipe} | on_the_disc(run) for run in options.runs]
    table = pd.DataFrame(lines)
    if options.out.exists():
        before = pd.read_csv(options.out)
        table = pd.concat([before[before.recipe != options.recipe], table])
    paths.make(options.out.parent)
    paths.write(options.out, lambda path: table.to_csv(path, index=False))
    print(pd.DataFrame(lines).to_string(index=False))


if __name__ == "__main__":
    main()
