"""The folder of a training: whose it is, how the training resumes, and what it leaves behind."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib import paths

_CHECKPOINT = "checkpoint.pt"
_WEIGHTS = "weights.safetensors"
_CONFIG = "config.json"


def claim_run(out: Path, settings: dict[str, Any]) -> None:
    """Make `out` the folder of the run with these settings.

    A folder of the same settings is taken as it is, to be continued. A finished run with others, or
    a folder whose configuration cannot be read, is kept beside it as `<out>.1`, `.2`, ...

    Args:
        out: the run's folder; it need not exist.
        settings: all that makes the result, able to be written as JSON.

    Raises:
        ValueError: `out` holds an unfinished run with other settings; they are listed.
    """
    settings = json.loads(json.dumps(settings))
    try:
        found = json.loads((out / _CONFIG).read_text())
    except (FileNotFoundError, ValueError):
        found = None
    if found == settings:
        return
    unfinished = (out / _CHECKPOINT).exists() and not (out / _WEIGHTS).exists()
    if unfinished and isinstance(found, dict):
        changed = []
        for name in sorted(found | settings):
            old, new = found.get(name), settings.get(name)
            if old != new:
                changed.append(f"{name} {old!r} -> {new!r}")
        raise ValueError(
            f"{out} holds an unfinished run with other settings: {', '.join(changed)}. Set them "
            "back to continue it; to begin anew, delete the folder or choose another run name"
        )
    if out.exists():
        kept = paths.aside(out)
        print(f"{out.name} held a run with another configuration, kept as {kept.name}")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / _CONFIG, settings)


def save_checkpoint(
    out: Path, parts: dict[str, Any], history: list[dict], best: dict[str, Tensor] | None
) -> None:
    """Write what `resume_checkpoint` reads, over the checkpoint before.

    Args:
        out: the run's folder.
        parts: what has a `state_dict`, by name: network, optimiser, schedule.
        history: a row for each epoch so far.
        best: the network's state after its best epoch, or None where the last one counts.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    states |= {"history": history, "best": best}
    paths.write(out / _CHECKPOINT, lambda path: torch.save(states, path))


def resume_checkpoint(
    out: Path, parts: dict[str, Any], device: torch.device
) -> tuple[list[dict], dict[str, Tensor] | None]:
    """Fill `parts` from the checkpoint in `out`, where there is one.

    Args:
        out: the run's folder.
        parts: what `save_checkpoint` was given, made anew.
        device: where the tensors go.

    Returns:
        The history and the best state so far; an empty list and None without a checkpoint.

    Raises:
        ValueError: the checkpoint is damaged or another network's.
    """
    path = out / _CHECKPOINT
    if not path.exists():
        return [], None
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
        return checkpoint["history"], checkpoint["best"]
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or another network's ({error}): delete {out} to train anew"
        ) from error


def save_run(out: Path, network: nn.Module, history: list[dict]) -> pd.DataFrame:
    """Write weights.safetensors, history.csv and, of the epoch that is kept, metrics.json.

    Args:
        out: the run's folder, which already holds config.json.
        network: the network with the weights to keep.
        history: a row for each epoch, `kept` in one of them.

    Returns:
        The history as a table.
    """
    table = pd.DataFrame(history)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    paths.write(out / _WEIGHTS, lambda path: save_file(weights, path))
    paths.write(out / "history.csv", lambda path: table.to_csv(path, index=False))
    _write_json(out / "metrics.json", next(row for row in history if row["kept"]))
    return table


def load_network(
    network: nn.Module, folder: str | Path, notebook: str
) -> tuple[nn.Module, dict[str, Any]]:
    """Give `network` the weights of a finished run.

    Args:
        network: built as it was for that run; its weights are replaced.
        folder: the run's folder.
        notebook: the one that makes such runs, for the messages.

    Returns:
        The network in evaluation mode, and the run's configuration.

    Raises:
        FileNotFoundError: there are no weights; the message names the notebook.
        ValueError: the weights are damaged or another network's.
    """
    folder = Path(folder)
    path = folder / _WEIGHTS
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
    return network.eval(), json.loads((folder / _CONFIG).read_text())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    paths.write(path, lambda beside: beside.write_text(json.dumps(content, indent=1)))
