"""How long a stroke on notebook 2's pad waits for its answer in the kernel.

    python -m benchmarks.play [--rounds 40] [--dataset digits] [--width 32] [--out FILE.json]

From the pad's PNG to the picture as HTML: the drawing in the data set's form, the ten responses,
the CLEAR map, the figure, its PNG. Beside the time on the clock stands that on the processor, which
a busy machine does not lengthen. The network has random weights, which take as long as trained
ones. What the browser and the way to it take is not measured here."""

import argparse
import base64
import platform
import statistics
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import record
from lib import figures, notebook, paths, play
from lib.learning import networks

WANTED = 200  # milliseconds
SIDE = 112  # of the pad


def strokes(count):
    """Drawings with one, two, ... strokes at random places: what the pad sends after each."""
    rng = np.random.default_rng(0)
    ink = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(count):
        y, x = rng.integers(10, SIDE - 50, 2)
        height, width = rng.permutation([40, 11])
        ink[y : y + height, x : x + width] = 255
        data = BytesIO()
        Image.fromarray(ink).convert("RGBA").save(data, "png")
        yield "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--width", type=int, default=32, help="of the network's first layer")
    parser.add_argument("--out", type=Path, default=paths.BUILD / "benchmarks" / "play.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    figures.style()
    channels = (options.width, 2 * options.width, 4 * options.width)
    network = networks.AllConvNet(classes=10, in_channels=1, channels=channels).eval()
    clock, processor = [], []
    for ink in strokes(options.rounds + 1):
        start = time.perf_counter(), time.process_time()
        digit = play.as_digit(play.drawn_on(ink), options.dataset)
        play.as_html(*play.draw_answer(network, digit, "guided", "Your drawing"))
        clock.append(1000 * (time.perf_counter() - start[0]))
        processor.append(1000 * (time.process_time() - start[1]))
    milliseconds = {"clock": clock[1:], "processor": processor[1:]}  # the first one does not count
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; width {options.width}"
    )
    for name, taken in milliseconds.items():
        low, median, high = (f(taken) for f in (min, statistics.median, max))
        print(
            f"{name:10} {median:5.0f} ms a stroke ({low:.0f} to {high:.0f}), under {WANTED} wanted"
        )
    measured = {
        "dataset": options.dataset,
        "width": options.width,
        "threads": torch.get_num_threads(),
        "versions": notebook.versions(),
        "milliseconds": milliseconds,
    }
    record.write(options.out, measured)


if __name__ == "__main__":
    main()
