"""Training a network on (image, label) pairs: seeded, one printed line an epoch, every epoch resumable."""

import json
import math
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.data import DataLoader

from lib import paths


@torch.random.fork_rng(devices=[])
def fit(network, train, val, out, *, epochs, batch_size=32, learning_rate=3e-3, seed=0, device="cpu", config=None):
    """Minimise the cross-entropy of `network` on `train` with AdamW and a one-cycle rate; returns the history.

    network  scores (B, N) from images (B, C, H, W); left on `device`, in evaluation mode, with the last epoch's weights
    train    dataset of (image float32 (C, H, W), label int64); `val` likewise, looked at but not learnt from
    out      folder for weights.safetensors, history.csv, metrics.json and config.json; checkpoint.pt after each epoch
    config   what else made the result (the data's fingerprint, the network's arguments), JSON-able

    The order of the photographs and the flips of epoch e depend on (seed, e) alone, so a run that was interrupted
    continues from its last whole epoch to the same weights as an undisturbed one. A finished run with the same
    configuration is loaded, not repeated; one with another is kept beside, as `<out>.1`, `.2`, ... The history has
    a row for each epoch: epoch, loss, val_loss, val_accuracy, learning_rate. PyTorch's CPU generator is left as it
    was. Raises ValueError for a count below 1, a loss that is not finite and a checkpoint that cannot be continued.
    """
    counts = {"epochs": epochs, "batch_size": batch_size, "train's length": len(train), "val's length": len(val)}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    out = Path(out)
    settings = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    settings |= {"network": type(network).__name__, "train": len(train), "val": len(val), **(config or {})}
    _claim(out, settings)

    network.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-4)
    steps = -(-len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * steps)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
    history = []
    if (out / "checkpoint.pt").exists():
        try:
            checkpoint = torch.load(out / "checkpoint.pt", map_location=device, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(checkpoint[name])
        except Exception as error:
            raise ValueError(
                f"{out / 'checkpoint.pt'} is damaged or another network's ({error}): delete {out} to train anew"
            ) from error
        history = checkpoint["history"]
        print(f"continues after epoch {len(history)} of {epochs}" if len(history) < epochs else "already trained")

    for epoch in range(len(history) + 1, epochs + 1):
        torch.manual_seed(1_000_003 * seed + epoch)
        loss = _one_epoch(network, DataLoader(train, batch_size, shuffle=True), optimiser, schedule, device)
        scores, labels = predict(network, val, device)
        val_loss = functional.cross_entropy(scores, labels).item()
        if not (math.isfinite(loss) and math.isfinite(val_loss)):
            raise ValueError(
                f"epoch {epoch} diverged, loss {loss}, val loss {val_loss}: lower learning_rate from {learning_rate} "
                "or look for NaN in the images"
            )
        history.append({
            "epoch": epoch, "loss": loss, "val_loss": val_loss,
            "val_accuracy": (scores.argmax(1) == labels).float().mean().item(),
            "learning_rate": schedule.get_last_lr()[0],
        })  # fmt: skip
        row = history[-1]
        print("epoch {epoch:3d}  loss {loss:.3f}  val loss {val_loss:.3f}  accuracy {val_accuracy:.3f}".format(**row))
        states = {name: part.state_dict() for name, part in parts.items()}
        paths.write(out / "checkpoint.pt", lambda path, states=states: torch.save(states | {"history": history}, path))

    network.eval()
    table = pd.DataFrame(history)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    paths.write(out / "weights.safetensors", lambda path: save_file(weights, path))
    paths.write(out / "history.csv", lambda path: table.to_csv(path, index=False))
    paths.write(out / "metrics.json", lambda path: path.write_text(json.dumps(history[-1], indent=1)))
    return table


def _claim(out, settings):
    """Make `out` the folder of a run with `settings`; move aside what another run left there."""
    settings = json.loads(json.dumps(settings))
    try:
        same = json.loads((out / "config.json").read_text()) == settings
    except (FileNotFoundError, ValueError):
        same = False
    if out.exists() and not same:
        aside = next(path for i in range(1, 10_000) if not (path := out.with_name(f"{out.name}.{i}")).exists())
        out.rename(aside)
        print(f"{out.name} held a run with another configuration, kept as {aside.name}")
    out.mkdir(parents=True, exist_ok=True)
    paths.write(out / "config.json", lambda path: path.write_text(json.dumps(settings, indent=1)))


def _one_epoch(network, batches, optimiser, schedule, device):
    """One pass over the batches; returns the mean loss of the examples."""
    network.train()
    total = 0.0
    for images, labels in batches:
        images = images.to(device, memory_format=torch.channels_last)
        loss = functional.cross_entropy(network(images), labels.to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.item() * len(labels)
    return total / len(batches.dataset)


@torch.no_grad()
def predict(network, dataset, device="cpu", batch_size=256):
    """Scores (n, N) and labels (n,) of a whole dataset, in its order, on the CPU; leaves evaluation mode on."""
    network.eval()
    batches = [(network(images.to(device)).cpu(), labels) for images, labels in DataLoader(dataset, batch_size)]
    scores, labels = zip(*batches, strict=True)
    return torch.cat(scores), torch.cat(labels)


def load(network, folder, notebook):
    """`network` with the weights of the run in `folder`, in evaluation mode, and the run's configuration.

    Raises FileNotFoundError, naming the `notebook` that makes them, where there are none, and ValueError where they
    are another network's.
    """
    folder = Path(folder)
    if not (folder / "weights.safetensors").exists():
        raise FileNotFoundError(
            f"no finished training in {folder}: run notebook {notebook} first, with the same run name"
        )
    weights = load_file(folder / "weights.safetensors")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ValueError(
            f"the weights in {folder} are not a {type(network).__name__}'s: {' '.join(lines[1:3])}"
        ) from error
    return network.eval(), json.loads((folder / "config.json").read_text())
