"""The folder of a training: whose it is, how the training resumes, and what it leaves behind."""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lib import paths

_CHECKPOINT = "checkpoint.pt"
_WEIGHTS = "weights.safetensors"
_CONFIG = "config.json"
_CUT_OFF = f"{_CONFIG}.part"  # of a process that was killed while it wrote the first file
_OURS = (  # what each config.json names that a function of `training` wrote
    {"network", "loss", "balanced", "select", "accumulate", "precision"},  # fit
    {"network", "strengths"},  # fit_head
    {"network", "members"},  # average
)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_SEAL = 64  # characters of the SHA-256 that ends a checkpoint


def run_folder(name: str) -> Path:
    """The folder of the run of this name, below data/sequencers/.

    Raises:
        ValueError: the name is no plain one.
    """
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ValueError(
            f"the run name {name!r} is to name a folder of data/sequencers/: take at most 100 "
            "letters, digits, dots, - and _, like 'phantom'"
        )
    return paths.SEQUENCERS / name


@contextmanager
def claim_run(out: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Hold `out` as the folder of the run with these settings; no other process may meanwhile.

    A folder of the same settings is taken as it is, to be continued. A finished run with others is
    kept beside it as `<out>.1`, `.2`, ... What is no run's folder is never touched.

    Args:
        out: the run's folder; it need not exist.
        settings: all that makes the result, able to be written as JSON.

    Raises:
        ValueError: `out` holds an unfinished run with other settings; they are listed. Or `out`
            is not empty, and its config.json is not a run's.
        RuntimeError: another process trains in `out`; the message says which.
        OSError: the disk is full or does not let write.
    """
    out = out.resolve()
    _settings_in(out)
    with paths.alone(out, "training"):
        _claim(out, _as_json(settings))
        yield


def _claim(out: Path, settings: dict[str, Any]) -> None:
    found = _settings_in(out)
    if found == settings:
        return
    if (out / _CHECKPOINT).exists() and not (out / _WEIGHTS).exists():
        raise ValueError(
            f"{out} holds an unfinished run with other settings: {_changes(found, settings)}. Set "
            "them back to continue it; to begin anew, delete the folder or choose another run name"
        )
    if found and {path.name for path in out.iterdir()} - {_CONFIG, _CUT_OFF}:
        kept = paths.aside(out)
        print(f"{out.name} held a run with another configuration, kept as {kept.name}")
    _write_json(paths.make(out) / _CONFIG, settings)


def _settings_in(out: Path) -> dict[str, Any] | None:
    """The settings of the run in `out`, None where there is nothing; all else is refused."""
    if not out.exists() or (out.is_dir() and {path.name for path in out.iterdir()} <= {_CUT_OFF}):
        return None
    try:
        found = json.loads((out / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not any(names <= found.keys() for names in _OURS):
        raise ValueError(
            f"{out} is there already, and is no run's folder: its {_CONFIG} is absent, empty, "
            "damaged or of something else. Nothing was touched: choose another run name, move what "
            f"is there, or put the run's {_CONFIG} back"
        )
    return found


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    changed = []
    for name in sorted(old | new):
        if old.get(name) != new.get(name):
            changed.append(f"{name} {old.get(name)!r} -> {new.get(name)!r}")
    return ", ".join(changed)


def save_checkpoint(
    out: Path,
    settings: dict[str, Any],
    parts: dict[str, Any],
    history: list[dict],
    best: dict[str, Tensor] | None,
) -> None:
    """Write what `resume_checkpoint` reads, over the checkpoint before.

    The file ends with the SHA-256 of all before: PyTorch reads it, and does not see a damaged one.

    Args:
        out: the run's folder.
        settings: those that the run claimed it with.
        parts: what has a `state_dict`, by name: network, optimiser, schedule.
        history: a row for each epoch so far.
        best: the network's state after its best epoch, or None where the last one counts.

    Raises:
        OSError: the disk is full or does not let write; the checkpoint before is kept.
    """
    states = {name: state_of(part) for name, part in parts.items()}
    states |= {"history": history, "best": best, "settings": json.dumps(settings)}
    content = io.BytesIO()
    torch.save(states, content)
    content.write(hashlib.sha256(content.getbuffer()).hexdigest().encode())
    paths.write(out / _CHECKPOINT, lambda beside: beside.write_bytes(content.getbuffer()))


def resume_checkpoint(
    out: Path, settings: dict[str, Any], parts: dict[str, Any], device: torch.device
) -> tuple[list[dict], dict[str, Tensor] | None]:
    """Fill `parts` from the checkpoint in `out`, where there is one.

    Args:
        out: the run's folder.
        settings: those that the run claimed it with.
        parts: what `save_checkpoint` was given, made anew.
        device: where the tensors go.

    Returns:
        The history and the best state so far; an empty list and None without a checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, or another network's, or of other settings.
    """
    path = out / _CHECKPOINT
    if not path.exists():
        return [], None
    content = path.read_bytes()
    if hashlib.sha256(content[:-_SEAL]).hexdigest().encode() != content[-_SEAL:]:
        raise ValueError(
            f"{path} is damaged, or of an earlier version: put a whole copy in its place, or "
            "delete it to train from the first epoch"
        )
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        changes = _changes(json.loads(checkpoint["settings"]), _as_json(settings))
        if changes:
            raise ValueError(f"it is of other settings, {changes}; was {_CONFIG} edited?")
        for name, part in parts.items():
            fill(part, checkpoint[name])
    except Exception as error:
        raise ValueError(
            f"{path} is another network's or training's ({error}): choose another run name, or "
            f"move {out} away to train anew"
        ) from error
    return checkpoint["history"], checkpoint["best"]


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, where `torch.compile` or `DataParallel` is around it."""
    while hasattr(network, "_orig_mod") or isinstance(network, _PARALLEL):
        network = next(network.children())
    return network


def state_of(part: Any) -> dict[str, Any]:
    """The `state_dict` of a part; a network's without the names of wrappers round its layers."""
    state = part.state_dict()
    if not isinstance(part, nn.Module):
        return state
    return {_plain_name(part, name): value for name, value in state.items()}


def fill(part: Any, state: dict[str, Any]) -> None:
    """Give a part what `state_of` gave; a network may be wrapped otherwise than it was then."""
    if isinstance(part, nn.Module):
        names = {_plain_name(part, name): name for name in part.state_dict()}
        state = {names.get(name, name): value for name, value in state.items()}
    part.load_state_dict(state)


def _plain_name(module: Any, name: str) -> str:
    """A weight's name in a network that neither `torch.compile` nor `DataParallel` wraps."""
    plain = []
    for step in name.split("."):
        if step != "_orig_mod" and not isinstance(module, _PARALLEL):
            plain.append(step)
        module = getattr(module, step, None)
    return ".".join(plain)


def save_run(
    out: Path, settings: dict[str, Any], network: nn.Module, history: list[dict]
) -> pd.DataFrame:
    """Write weights.safetensors, history.csv and, of the epoch that is kept, metrics.json.

    Weights that share their memory are written each. Among the metadata of the weights is a SHA-256
    of them and the settings.

    Args:
        out: the run's folder, which already holds config.json.
        settings: what config.json holds.
        network: the network with the weights to keep.
        history: a row for each epoch, `kept` in one of them.

    Returns:
        The history as a table.

    Raises:
        OSError: the disk is full or does not let write.
    """
    table = pd.DataFrame(history)
    weights = {}
    for name, value in state_of(network).items():
        weights[name] = value.cpu().clone(memory_format=torch.contiguous_format)
    content = save(weights, {"sha256": digest(settings, weights)})
    paths.write(out / _WEIGHTS, lambda beside: beside.write_bytes(content))
    paths.write(out / "history.csv", lambda beside: table.to_csv(beside, index=False))
    _write_json(out / "metrics.json", next(row for row in history if row["kept"]))
    return table


def publish(run: Path, out: Path) -> None:
    """Copy a finished run's weights and its config.json for others to use.

    `load_network` reads them as it reads the run's, and checks the SHA-256 in them likewise.

    Args:
        run: the run's folder.
        out: folder for weights.safetensors and config.json; both are replaced.
    """
    paths.make(out)
    for name in (_WEIGHTS, _CONFIG):
        content = (run / name).read_bytes()
        paths.write(out / name, lambda beside, content=content: beside.write_bytes(content))


def fingerprint(run: Path) -> str:
    """The SHA-256 of a finished run's weights' file, by which runs that come from it know it."""
    return hashlib.sha256((run / _WEIGHTS).read_bytes()).hexdigest()


def earlier_runs(config: dict[str, Any]) -> list[Path]:
    """The runs that a sequencer's training went on from, or whose weights it is the mean of.

    Each is known by its `fingerprint`, which is `start` in the config.json of the run that went on,
    or one of `averaged`.

    Raises:
        FileNotFoundError: no run in data/sequencers/ has these weights.
    """
    wanted = [config["start"]] if "start" in config else config.get("averaged", [])
    if not wanted:
        return []
    found = {}
    for weights in sorted(paths.SEQUENCERS.glob(f"*/{_WEIGHTS}")):
        found.setdefault(fingerprint(weights.parent), weights.parent)
    for weights in wanted:
        if weights not in found:
            raise FileNotFoundError(
                f"the sequencer itself comes from another, whose weights (SHA-256 {weights}) no "
                f"run in {paths.SEQUENCERS} has. What that one learnt from cannot be checked: "
                "train it again, or take a sequencer whose forerunners are there"
            )
    return [found[weights] for weights in wanted]


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
        ValueError: the weights are damaged or another network's, or they and config.json are not
            of one run.
    """
    folder = Path(folder)
    path = folder / _WEIGHTS
    if not path.exists():
        raise FileNotFoundError(
            f"no finished training in {folder}: run notebook {notebook} first, with this run name"
        )
    again = f"put back a whole copy, or delete {folder} and run notebook {notebook} again"
    try:
        weights = load_file(path)
        with safe_open(path, "pt") as file:
            kept = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): {again}") from error
    config = _read_config(folder, notebook)
    if kept and kept != digest(config, weights):
        raise ValueError(
            f"{path} and the {_CONFIG} beside it are not of one training: one of them was damaged "
            f"or edited. Set {_CONFIG} back; else {again}"
        )
    try:
        fill(network, weights)
    except RuntimeError as error:
        lines = " ".join(str(error).splitlines()[1:3])
        raise ValueError(
            f"the weights in {folder} are not a {type(network).__name__}'s: {lines}"
        ) from error
    return network.eval(), config


def _read_config(folder: Path, notebook: str) -> dict[str, Any]:
    """What config.json in a run's folder says, or why that is not known."""
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
        problem = f"it is a {type(config).__name__}"
    except (OSError, ValueError) as error:
        problem = str(error)
    raise ValueError(
        f"{path} does not say how the network was trained ({problem}): put back a whole copy, or "
        f"delete {folder} and run notebook {notebook} again"
    )


def digest(settings: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the settings and of the names, types, shapes and bytes of tensors on the CPU."""
    found = hashlib.sha256(json.dumps(_as_json(settings), sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    paths.write(path, lambda beside: beside.write_text(json.dumps(content, indent=1)))
