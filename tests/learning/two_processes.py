"""The trainings that test_training.py compares: python tests/two_processes.py PROCESSES FOLDER, or by torchrun."""

import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric
from test_training import Graded, plain

from lib.learning import networks, training

OPTIONS = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "balanced": {"balanced": True, "select": "kappa"},
    "corn": {"loss": "corn", "accumulate": 2, "balanced": True},
}


def main(processes, folder):
    processes = int(processes)
    fabric = Fabric(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto"
    )
    fabric.launch()
    shared = {"epochs": 4, "seed": 2, "fabric": fabric}
    parts = Graded(30, dtype=torch.float64), Graded(10, dtype=torch.float64, flips=False)
    for name, options in OPTIONS.items():
        training.fit(plain(), *parts, Path(folder) / name, batch_size=7, **shared, **options)

    stopped = Graded(30, dtype=torch.float64, stop=50 // processes)
    try:
        training.fit(plain(), stopped, parts[1], Path(folder) / "continued", batch_size=7, **shared)
    except KeyboardInterrupt:
        training.fit(plain(), *parts, Path(folder) / "continued", batch_size=7, **shared)

    torch.manual_seed(0)
    network = networks.AllConvNet(3, 1, (8, 16))
    training.fit(
        network,
        Graded(200),
        Graded(20, flips=False),
        Path(folder) / "float32",
        batch_size=20,
        **shared,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
