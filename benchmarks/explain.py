"""Photographs a second of `python -m lib explain`, with figures and without.

    python -m benchmarks.explain [--sequencer RUN] [--photographs 24] [--rounds 5] [--out FILE.json]

The sequencer is the published one, or that of a run. Photographs are phantoms of 1150x768 pixels,
written to a temporary folder as JPEG. Both ways take turns in one process, so that a busy machine
is busy for both; a round explains all photographs into a new folder; medians of the rounds are
compared. What a round takes besides the photographs, as loading the weights, counts."""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import record
from lib import explain, memory, notebook, paths, photographs
from lib.data import phantom

FRAME = 768, 1150
WAYS = {"with figures": True, "without": False}
WANTED = {"with figures": 3, "without": 8}  # photographs a second on two cores


def write_photographs(folder, count):
    """Phantoms as a camera stores them: the retina in the middle of a wider frame."""
    height, width = FRAME
    side = (width - height) // 2
    for seed in range(count):
        image = phantom.draw_photograph(seed % 5, seed, height)[0]
        image = np.pad(image, ((0, 0), (side, width - height - side), (0, 0)))
        Image.fromarray(image).save(folder / f"phantom{seed:03}.jpg", quality=90)


def seconds(folder, sequencer, out, drawn):
    start = time.perf_counter()
    count, rejects = photographs.explain_files([folder], sequencer, out, drawn=drawn)
    assert count and not rejects, rejects
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequencer", help="name or path; the published one")
    parser.add_argument("--photographs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=paths.BUILD / "benchmarks" / "explain.json")
    options = parser.parse_args()
    sequencer = options.sequencer or paths.WEIGHTS / "retinas"
    memory.keep_freed()  # as the command does
    _, config = explain.load_sequencer(photographs._run_folder(sequencer))
    taken = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        eyes = paths.make(Path(folder) / "eyes")
        write_photographs(eyes, options.photographs)
        for turn in range(options.rounds + 1):
            for way, drawn in WAYS.items():
                passed = seconds(eyes, sequencer, Path(folder) / f"{way} {turn}", drawn)
                if turn:  # the first one does not count
                    taken[way].append(passed)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; {config['body']} at {config['size']} px, "
        f"{options.photographs} photographs"
    )
    rates = {}
    for way, times in taken.items():
        rates[way] = options.photographs / statistics.median(times)
        print(f"{way:14} {rates[way]:6.2f} photographs a second, {WANTED[way]} wanted")
    measured = {
        "sequencer": Path(sequencer).name,
        "body": config["body"],
        "size": config["size"],
        "photographs": options.photographs,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "versions": notebook.versions(),
        "seconds": taken,
        "photographs_a_second": rates,
    }
    record.write(options.out, measured)


if __name__ == "__main__":
    main()
