"""Attentive responses of all N classes: `lib.methods.clear` against Captum class by class and
against plain forward passes.

    make run    # once: the trained networks and photographs
    python -m benchmarks.clear [--rounds 9] [--out FILE.json]

The rivals are Captum's Deconvolution and GuidedBackprop, called once for each class, and 1 + N
plain forward passes. All take turns in one process, so that a busy machine is busy for all; medians
of the rounds are compared. Memory is what a single call adds to the largest resident size of a
fresh process. Trained weights and images are those of notebooks 02 and 04, photographs enlarged,
and at 448 pixels the published sequencer's, of five grades and batches of two; random weights are
PyTorch's, with a normal last layer."""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import captum.attr
import torch
from torch.nn import functional

from benchmarks import record
from lib import notebook, paths
from lib.data import digits, fundus
from lib.learning import checkpoint, networks
from lib.methods import clear

CASES = {
    "28x28, N=10, batch 64": (28, 64),
    "192x192, N=5, batch 4": (192, 4),
    "512x512, N=5, batch 1": (512, 1),
    "448x448, published": (448, 2),
}
METHODS = (
    "clear guided",
    "clear deconvnet",
    "clear gated",
    "clear linear",
    "GuidedBackprop",
    "Deconvolution",
    "1+N forward",
)


def untrained(size):
    """A network as the case with images of that size has it, with random weights."""
    if size == 28:
        return networks.AllConvNet(channels=(32, 64, 128))
    return networks.PretrainedSequencer() if size == 448 else networks.RadiomicSequencer()


def network_and_images(case, weights):
    """What notebook 02 or 04 trained, or the same with random weights, and `case`'s images,
    normalised."""
    size, batch = CASES[case]
    if size == 28:
        network = untrained(size)
        checkpoint.load_network(network, paths.SEQUENCERS / "clear-digits-bundled", "02")
        images = digits.load_digits_split("digits", "test")[0][:batch]
    else:
        network = untrained(size)
        folder = paths.WEIGHTS / "retinas" if size == 448 else paths.SEQUENCERS / "phantom"
        checkpoint.load_network(network, folder, "04")
        test = fundus.FundusDataset(paths.PREPARED / "phantom-128", "test")
        images = torch.stack([test[i][0] for i in range(batch)])
        images = functional.interpolate(images, size=(size, size), mode="bilinear")
    if weights == "random":
        torch.manual_seed(0)
        network = untrained(size).eval()
        torch.nn.init.normal_(network.head.weight)
    return network, images


def method(name, network, images):
    """A function without arguments that makes all classes' responses, or 1 + N forward passes, by
    method `name`."""
    classes = range(network.config["classes"])
    if name.startswith("clear"):
        return lambda: clear.attentive_responses(network, images, name.split()[1])[1]
    if name == "1+N forward":
        return torch.no_grad()(lambda: [network(images) for _ in (None, *classes)])
    attribution = getattr(captum.attr, name)(network)
    return lambda: torch.stack([attribution.attribute(images, target=c).sum(1) for c in classes], 1)


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timed(case, weights, rounds):
    """Median seconds of each method over `rounds` in which all take turns, after one that does not
    count."""
    network, images = network_and_images(case, weights)
    runs = {name: method(name, network, images) for name in METHODS}
    taken = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds + 1)][1:]
    return {name: statistics.median(turn[name] for turn in taken) for name in METHODS}


def memory(case, name):
    """Megabytes that one call adds to the largest resident size of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.clear", "--memory-of", case, name]
    return float(
        subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    )


def print_memory(case, name):
    size, batch = CASES[case]
    network = untrained(size)
    torch.nn.init.normal_(network.head.weight)
    run = method(name, network.eval(), torch.rand(batch, 1 if size == 28 else 3, size, size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(added / (1024**2 if sys.platform == "darwin" else 1024))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=paths.BUILD / "benchmarks" / "clear.json")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Captum says at each call that it sets hooks
    if options.memory_of:
        return print_memory(*options.memory_of)
    rows = []
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    print(
        f"{'case':22} {'weights':8} {'method':16} {'ms':>8} {'MB':>6}  "
        "times clear's rate, same reading"
    )
    for case in CASES:
        added = {name: memory(case, name) for name in METHODS}
        for weights in ("trained", "random"):
            medians = timed(case, weights, options.rounds)
            for name, median in medians.items():
                ours = medians["clear deconvnet" if name == "Deconvolution" else "clear guided"]
                row = {
                    "case": case,
                    "weights": weights,
                    "method": name,
                    "seconds": median,
                    "megabytes": added[name],
                }
                rows.append(row | {"ratio_to_clear": median / ours})
                ratio = "" if name.startswith("clear") else f"{median / ours:6.2f}"
                print(
                    f"{case:22} {weights:8} {name:16} {1e3 * median:8.1f} "
                    f"{added[name]:6.0f}  {ratio}",
                    flush=True,
                )
    measured = {
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "versions": notebook.versions(),
        "rows": rows,
    }
    record.write(options.out, measured)


if __name__ == "__main__":
    main()
