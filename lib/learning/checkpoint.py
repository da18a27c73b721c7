"""The folder of a training: whose it is, its checkpoint, and the weights, history and settings that it ends with."""

import json
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lib import paths


def claim(out, settings):
    """Make `out` the folder of a run with `settings`, another finished one moved aside; returns why that cannot be."""
    settings = json.loads(json.dumps(settings))
    try:
        found = json.loads((out / "config.json").read_text())
    except (FileNotFoundError, ValueError):
        found = None
    if found == settings:
        return ""
    if (
        isinstance(found, dict)
        and (out / "checkpoint.pt").exists()
        and not (out / "weights.safetensors").exists()
    ):
        pairs = {name: (found.get(name), settings.get(name)) for name in sorted(found | settings)}
        changed = ", ".join(
            f"{name} {old!r} -> {new!r}" for name, (old, new) in pairs.items() if old != new
        )
        return (f"{out} holds an unfinished run with other settings: {changed}. Set them back to continue it; to begin "
                "anew, delete the folder or choose another run name")  # fmt: skip
    if out.exists():
        print(f"{out.name} held a run with another configuration, kept as {paths.aside(out).name}")
    out.mkdir(parents=True, exist_ok=True)
    paths.write(out / "config.json", lambda path: path.write_text(json.dumps(settings, indent=1)))
    return ""


def resume(path, parts, device):
    """Fill `parts` from the checkpoint, where there is one; returns the history and the best weights so far."""
    if not path.exists():
        return [], None
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
        return checkpoint["history"], checkpoint["best"]
    except Exception as error:
        advice = f"delete {path.parent} to train anew"
        raise ValueError(f"{path} is damaged or another network's ({error}): {advice}") from error


def keep(network, history, out):
    """Write the weights, the history and its kept row as metrics; returns the history as a table."""
    table, kept = pd.DataFrame(history), next(row for row in history if row["kept"])
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    paths.write(out / "weights.safetensors", lambda path: save_file(weights, path))
    paths.write(out / "history.csv", lambda path: table.to_csv(path, index=False))
    paths.write(out / "metrics.json", lambda path: path.write_text(json.dumps(kept, indent=1)))
    return table


def load(network, folder, notebook):
    """`network` with the weights of the run in `folder`, in evaluation mode, and the run's configuration.

    Raises FileNotFoundError, naming the `notebook` that makes them, where there are none, and ValueError where they
    are damaged or another network's.
    """
    path = Path(folder) / "weights.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"no finished training in {folder}: run notebook {notebook} first, with this run name"
        )
    try:
        network.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete {folder} and run notebook {notebook} again"
        ) from error
    except RuntimeError as error:
        lines = " ".join(str(error).splitlines()[1:3])
        raise ValueError(
            f"the weights in {folder} are not a {type(network).__name__}'s: {lines}"
        ) from error
    return network.eval(), json.loads((Path(folder) / "config.json").read_text())
