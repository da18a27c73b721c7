"""Training the radiomic sequencer: how near `training.fit` comes to computing alone.

    python -m benchmarks.train [--prepared FOLDER] [--workers 4] [--paper-epochs 60] [--price 2.5]
                               [--out FILE.json]

On a GPU where there is one (512 px, bf16-mixed), else on the CPU (128 px, float32). The rate of
pure compute is that of steps on one batch that lies ready on the device. It and `fit` take turns,
and medians of the rounds are compared. `fit` is measured as it is: the data set reads, normalises
and flips each photograph by itself. Phases are timed in steps of their own, the device waited for
after each; "data" is what `fit` waits for photographs. They are random bytes in memory, or the
train split of the prepared data set FOLDER. Memory is what a fresh process adds to its largest
resident size in two steps, on a GPU the most that PyTorch held. The paper's run is 44,351 right
eyes times the epochs (it names none).
"""

import argparse
import contextlib
import io
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch.nn import functional
from torch.utils.data import Dataset, Subset

from benchmarks import record
from lib import notebook, paths
from lib.data import fundus
from lib.learning import networks, training

RIGHT_EYES = 44_351
GPU = torch.cuda.is_available()
PRECISION = "bf16-mixed" if GPU else "32-true"
# A case is a photograph's size, the network's width and the batch: first the base, then others.
if GPU:
    BASE = (512, 1, 64)
    OTHERS = [(128, 1, 64), (256, 1, 64), (1024, 1, 64), (512, 1, 16), (512, 1, 256)]
    PAPER = BASE
else:
    BASE = (128, 1, 16)
    OTHERS = [(64, 1, 16), (256, 1, 16), (512, 1, 4), (128, 1, 4), (128, 1, 64)]
    PAPER = (512, 1, 4)
CASES = [BASE, *OTHERS, (BASE[0], 0.5, BASE[2]), (BASE[0], 2, BASE[2])]
PHASES = ("data", "forward", "backward", "optimiser")
HEAD = (
    "  px  width  batch |  photographs/s   alone  share"
    " | ms: data  forward  backward  optimiser |    MB"
)
LINE = (
    "{size:4d} {width:6g} {batch:6d}"
    " | {photographs_per_second:14.1f} {pure_compute:7.1f} {share_of_pure_compute:6.2f}"
    " | {data_ms:8.2f} {forward_ms:8.2f} {backward_ms:9.2f} {optimiser_ms:10.2f} | {megabytes:5.0f}"
)


class Photographs(Dataset):
    """`count` random photographs (3, size, size) of 5 grades, normalised, mirrored at random."""

    def __init__(self, count, size):
        self.images = torch.randint(256, (min(count, 256), 3, size, size), dtype=torch.uint8)
        self.grades = torch.arange(count) % 5

    def __len__(self):
        return len(self.grades)

    def __getitem__(self, i):
        image = (self.images[i % len(self.images)].float() / 255 - 0.5) / 0.25
        return image.flip([axis for axis in (1, 2) if torch.rand(()) < 0.5]), int(self.grades[i])


def sequencer(width):
    torch.manual_seed(0)
    return networks.RadiomicSequencer(
        channels=tuple(int(width * kernels) for kernels in (16, 32, 48, 64, 96))
    )


def stepper(case):
    """A function that makes one step on a batch that lies ready; `timed`, the seconds of phases."""
    size, width, batch = case
    fabric = Fabric(accelerator="cuda" if GPU else "cpu", devices=1, precision=PRECISION)
    network = sequencer(width).to(memory_format=torch.channels_last)
    model, optimiser = fabric.setup(network, torch.optim.AdamW(network.parameters()))
    images = torch.randn(batch, 3, size, size, device=fabric.device).to(
        memory_format=torch.channels_last
    )
    labels = torch.arange(batch, device=fabric.device) % 5

    def step(timed=False):
        times = []

        def tick():
            if timed:
                waited_for()
                times.append(time.perf_counter())

        tick()
        loss = functional.cross_entropy(model(images), labels)
        tick()
        fabric.backward(loss)
        tick()
        optimiser.step()
        optimiser.zero_grad()
        tick()
        return [after - before for before, after in pairwise(times)]

    return step


def waited_for():
    if GPU:
        torch.cuda.synchronize()


def steps_a_second(step, count):
    waited_for()
    start = time.perf_counter()
    for _ in range(count):
        step()
    waited_for()
    return count / (time.perf_counter() - start)


def fitted(case, data, workers):
    """Photographs a second in the second epoch of `fit`, and the seconds it waited for each."""
    size, width, batch = case
    fabric = Fabric(accelerator="cuda" if GPU else "cpu", devices=1, precision=PRECISION)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = {"epochs": 2, "batch_size": batch, "fabric": fabric, "workers": workers}
        history = training.fit(
            sequencer(width), data, Photographs(5, size), Path(folder) / "run", **options
        )
    last = history.iloc[-1]
    return len(data) / last.seconds, last.wait_share * last.seconds / len(data)


def measured(case, options):
    size, width, batch = case
    step = stepper(case)
    step()
    count = max(2, round(options.seconds * steps_a_second(step, 2)))
    if options.prepared and size == BASE[0]:
        data = fundus.FundusDataset(options.prepared, "train", flips=True)
        data = Subset(data, [i % len(data) for i in range(count * batch)])
    else:
        data = Photographs(count * batch, size)
    turns = [
        (batch * steps_a_second(step, count), *fitted(case, data, options.workers))
        for _ in range(options.rounds)
    ]
    pure, rate, waiting = (statistics.median(values) for values in zip(*turns, strict=True))
    share = statistics.median(fit / alone for alone, fit, _ in turns)
    phases = [
        statistics.median(times) / batch
        for times in zip(*(step(timed=True) for _ in range(count)), strict=True)
    ]
    return {
        "size": size,
        "width": width,
        "batch": batch,
        "photographs_per_second": rate,
        "pure_compute": pure,
        "share_of_pure_compute": share,
        **dict(zip(PHASES, (waiting, *phases), strict=True)),
    }


def megabytes(case):
    """What two steps need at most: on a GPU in all, inf for too much; else what they add."""
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = stepper(case)
            step(), step()
        except torch.OutOfMemoryError:
            return math.inf
        return torch.cuda.max_memory_allocated() / 2**20
    command = [sys.executable, "-m", "benchmarks.train", "--memory-of", *map(str, case)]
    return float(
        subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    )


def print_memory(size, width, batch):
    warm = stepper((32, 1, 2))
    warm(), warm()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = stepper((int(size), width, int(batch)))
    step(), step()
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(added / (1024**2 if sys.platform == "darwin" else 1024))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--prepared", type=Path, help="a prepared data set for the cases of its size"
    )
    parser.add_argument(
        "--workers", type=int, default=8 if GPU else 0, help="processes that load photographs"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of computing in each turn")
    parser.add_argument("--paper-epochs", type=int, default=60)
    parser.add_argument(
        "--price", type=float, help="of an hour of this machine, for the cost of the paper's run"
    )
    parser.add_argument("--out", type=Path, default=paths.BUILD / "benchmarks" / "train.json")
    parser.add_argument("--memory-of", nargs=3, type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        return print_memory(*options.memory_of)
    device = torch.cuda.get_device_name() if GPU else platform.processor() or platform.machine()
    print(
        f"{device}, {torch.get_num_threads()} CPU threads, {PRECISION}, torch {torch.__version__}"
    )
    print(HEAD)
    memory, rows = {case: megabytes(case) for case in CASES}, {}
    for case, added in memory.items():
        if added == math.inf:
            print(f"{case[0]:4d} {case[1]:6g} {case[2]:6d} | does not fit this GPU")
            continue
        rows[case] = row = measured(case, options) | {"megabytes": added}
        print(
            LINE.format(**row, **{f"{phase}_ms": 1e3 * row[phase] for phase in PHASES}), flush=True
        )
    rate = rows[PAPER]["photographs_per_second"]
    hours = RIGHT_EYES * options.paper_epochs / rate / 3600
    cost = f", {hours * options.price:.2f} at {options.price:g} an hour" if options.price else ""
    run = f"{RIGHT_EYES:,} right eyes at 512 px, {options.paper_epochs} epochs"
    print(f"the paper's {run}: {hours:.1f} hours{cost}")
    report = {
        "device": device,
        "precision": PRECISION,
        "threads": torch.get_num_threads(),
        "workers": options.workers,
        "rounds": options.rounds,
        "versions": notebook.versions(),
        "rows": list(rows.values()),
        "paper": {"epochs": options.paper_epochs, "hours": hours},
    }
    record.write(options.out, report)


if __name__ == "__main__":
    main()
