"""Training a network on (image, label) pairs with Lightning Fabric: seeded, one printed line an epoch, resumable."""

import math
import re
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from lib import paths
from lib.learning import losses as objectives
from lib.learning.checkpoint import claim, keep, resume
from lib.learning.checkpoint import load as load

KEPT = "The checkpoint of the epoch before is kept."
LINE = "epoch {epoch:3d}  loss {loss:.3f}  val loss {val_loss:.3f}  accuracy {val_accuracy:.3f}"


@torch.random.fork_rng(devices=[])
def fit(
    network, train, val, out, *, epochs, batch_size=32, learning_rate=3e-3, seed=0, loss="cross-entropy",
    balanced=False, select="last", config=None, device="cpu", fabric=None, accumulate=1, compile=False, workers=0,
    report=None,
):  # fmt: skip
    """Minimise an objective of `network` on `train` with AdamW and a one-cycle rate; returns the history.

    network   scores (B, N) from images (B, C, H, W); left on the device, in evaluation mode, with the weights kept
    train     dataset of (image (C, H, W) float32, label int); `val` likewise, looked at but not learnt from. Images may
              be uint8 where the dataset has `normalise`, which makes them float32, whole batches on the device
    out       folder for weights.safetensors, history.csv, metrics.json and config.json; checkpoint.pt after each epoch
    batch_size, accumulate  examples in a step of the optimiser, and in how many parts, one after the other
    loss      one of `objectives.LOSSES`; `balanced` draws every grade equally often (`train` needs `grades`)
    select    the weights kept are those of the "last" epoch, or of the first with the highest "kappa" on `val`
    config    what else made the result (the data's fingerprint, the network's arguments), JSON-able
    fabric    a launched `Fabric`, with its devices, machines and precision; without it, one `device` in float32
    report    called with the history so far, a list of rows, after each epoch; without it, one line is printed
    compile, workers  whether to `torch.compile`, and how many processes load images beside each that computes

    The batches of epoch e, and what an example draws from PyTorch's generator (its flips), depend on (seed, e) alone.
    So a run that was interrupted continues from its last whole epoch to the same weights as an undisturbed one (to the
    last bit on one kind of CPU with as many threads), and several processes have the loss curve of one, up to rounding
    and dropout; batch normalisation shares its statistics on GPUs only. A finished run with the same settings is
    loaded, not repeated; one with others is kept beside, as `<out>.1`, `.2`, ... PyTorch's CPU generator is left as it
    was.

    The history has a row for each epoch: epoch, loss, val_loss, val_accuracy, val_kappa (quadratically weighted),
    learning_rate, seconds of the training pass, wait_share (of them, waiting for images), and kept.

    Raises ValueError for settings that cannot be, a grade that `train` lacks, an unfinished run with other settings, a
    loss that is not finite and a damaged checkpoint; MemoryError, naming what to change, where memory runs out.
    """
    fabric, out = fabric or _one(device), Path(out)
    settings = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "loss": loss,
        "balanced": balanced, "select": select, "accumulate": accumulate, "network": type(network).__name__,
        "precision": fabric.strategy.precision.precision, "train": len(train), "val": len(val), **(config or {}),
    }  # fmt: skip
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network.to(fabric.device, memory_format=torch.channels_last)
    _check(settings, network, train, val, fabric)
    if refusal := fabric.broadcast(claim(out, settings) if fabric.is_global_zero else ""):
        raise ValueError(refusal)

    objective, grades = objectives.LOSSES[loss], train.grades if balanced else None
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-4)
    steps = epochs * -(-len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
    history, best = resume(out / "checkpoint.pt", parts, fabric.device)
    if history and fabric.is_global_zero:
        print(
            f"continues after epoch {len(history)} of {epochs}"
            if len(history) < epochs
            else "already trained"
        )
    model, optimiser = fabric.setup(torch.compile(network) if compile else network, optimiser)

    for epoch in range(len(history) + 1, epochs + 1):
        share = batches(
            len(train), batch_size, seed, epoch, grades, fabric.global_rank, fabric.world_size
        )
        with _memory_named(settings):
            mean, seconds, waited = _one_epoch(
                fabric,
                model,
                objective,
                optimiser,
                schedule,
                train,
                share,
                accumulate,
                workers,
                epoch,
            )
        scores, labels = _predicted(fabric, network, val, len(share[0]), workers)
        losses, terms = objective(scores, labels)
        answers = objectives.answers(scores, loss)
        row = {
            "epoch": epoch, "loss": mean, "val_loss": (losses.sum() / terms.sum()).item(),
            "val_accuracy": (answers == labels).float().mean().item(), "val_kappa": objectives.kappa(answers, labels),
            "learning_rate": schedule.get_last_lr()[0], "seconds": seconds, "wait_share": waited / seconds,
        }  # fmt: skip
        if not math.isfinite(row["val_loss"]):
            raise ValueError(
                f"epoch {epoch}: loss {mean:g}, then val loss {row['val_loss']}; lower learning_rate. {KEPT}"
            )
        if select == "kappa" and row["val_kappa"] > max(
            (old["val_kappa"] for old in history), default=-math.inf
        ):
            best = {name: value.clone() for name, value in network.state_dict().items()}
        history.append(row)
        if fabric.is_global_zero:
            report(history) if report else print(LINE.format(**row))
            states = {name: part.state_dict() for name, part in parts.items()} | {
                "history": history,
                "best": best,
            }
            paths.write(out / "checkpoint.pt", lambda path, states=states: torch.save(states, path))

    if best:
        network.load_state_dict(best)
    network.eval()
    kept = max(history, key=lambda row: row["val_kappa"]) if select == "kappa" else history[-1]
    history = [row | {"kept": row is kept} for row in history]
    if fabric.is_global_zero:
        keep(network, history, out)
    fabric.barrier()
    return pd.DataFrame(history)


def fit_head(network, train, val, out, *, strengths=(0.01, 0.03, 0.1), config=None, device="cpu"):
    """Fit only the grade kernels of a pretrained `network`, by logistic regression on its radiomic sequences.

    The scores are affine in the sequence, S = W s + b; with frozen features the cross-entropy is convex and needs no
    epochs. Every photograph of `train` (as of `fit`, with `normalise` or float32) and its mirror image count. The
    penalty C is the one of `strengths` with the least cross-entropy in five-fold cross-validation over the photographs;
    the standardisation of the sequences is taken into W and b. Leaves in `out` what `fit` leaves, but no checkpoint,
    and returns a history of one row. Raises ValueError for an unfinished run in `out`.
    """
    out, settings = (
        Path(out),
        {"strengths": list(strengths), "network": type(network).__name__, **(config or {})},
    )
    if refusal := claim(out, settings):
        raise ValueError(refusal)
    network.to(device).eval()
    sequences, grades = _sequences(network, train, device)
    groups = np.tile(np.arange(len(train)), 2)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(sequences, grades, groups)
    steps = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    grid = {"logisticregression__C": list(strengths)}
    search = GridSearchCV(steps, grid, scoring="neg_log_loss", cv=list(folds)).fit(
        sequences, grades
    )
    scaler, model = (step for _, step in search.best_estimator_.steps)
    weight = model.coef_ / scaler.scale_
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(weight)[:, :, None, None])
        network.head.bias.copy_(torch.from_numpy(model.intercept_ - weight @ scaler.mean_))
    scores, labels = predict(network, val, device)
    answers = scores.argmax(1)
    row = {
        "epoch": 1,
        "loss": -search.best_score_,
        "val_loss": functional.cross_entropy(scores, labels).item(),
    }
    row |= {
        "val_accuracy": (answers == labels).float().mean().item(),
        "val_kappa": objectives.kappa(answers, labels),
    }
    return keep(network, [row | {"C": model.C, "kept": True}], out)


@torch.no_grad()
def _sequences(network, train, device):
    """The radiomic sequences (2n, K) of a dataset and of its mirror images, and the grades (2n,), as arrays."""
    found = []
    for images, labels in _arriving(DataLoader(train, 16), train, device):
        found.append(
            [network.sequence(images).cpu(), network.sequence(images.flip(3)).cpu(), labels.cpu()]
        )
    plain, mirrored, labels = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    return np.concatenate([plain, mirrored]), np.tile(labels, 2)


def _one_epoch(
    fabric, model, objective, optimiser, schedule, train, share, accumulate, workers, epoch
):
    """One pass over this process' `share` of the batches: the mean loss of all, the seconds, and those it waited."""
    model.train()
    start, waited, sums = time.perf_counter(), 0.0, torch.zeros(2, dtype=torch.float64)
    pinned = fabric.device.type == "cuda"
    loader = DataLoader(Seeded(train), batch_sampler=share, num_workers=workers, pin_memory=pinned)
    arriving = _arriving(loader, train, fabric.device)
    torch.manual_seed(share[0][0][0])  # dropout's generator on a GPU; on the CPU, below
    for number, keys in enumerate(share, 1):
        asked = time.perf_counter()
        images, labels = next(arriving)
        waited += time.perf_counter() - asked
        torch.default_generator.manual_seed(keys[0][0])

        optimiser.zero_grad()
        losses, terms = [], 0
        for x, y in (
            pieces := list(zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True))
        ):
            with fabric.no_backward_sync(model, enabled=len(losses) < len(pieces) - 1):
                loss, weight = objective(model(x), y)
                fabric.backward(loss.sum())
            losses.append(loss.detach())
            terms += weight.sum()
        losses = torch.cat(losses)
        batch = fabric.all_reduce(torch.stack([losses.sum(), terms]), reduce_op="sum")
        if not batch.isfinite().all():
            bad = [
                keys[i][1]
                for i in (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
            ]
            why = f"images {bad[:8]} of train are not finite" if bad else "lower learning_rate"
            raise ValueError(
                f"epoch {epoch}, batch {number} of {len(share)}: loss {batch[0]:g}; {why}. {KEPT}"
            )
        for parameter in (
            model.parameters()
        ):  # from the sum, averaged over processes, to the mean over the batch
            if parameter.grad is not None:
                parameter.grad *= fabric.world_size / batch[1]
        optimiser.step()
        schedule.step()
        sums += batch.cpu()
    return (sums[0] / sums[1]).item(), time.perf_counter() - start, waited


def batches(count, batch_size, seed, epoch, grades=None, rank=0, world=1):
    """The share of process `rank` of `world` in each batch of an epoch: lists of [seed of the example, its index].

    Every one of `count` examples once, in random order; with their `grades` (count,) int64, as many are drawn with
    replacement, every grade equally often. Batches are even, at most `batch_size`; they do not depend on `world`.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    if grades is None:
        order = torch.randperm(count, generator=generator)
    else:
        order = torch.multinomial(
            1 / grades.bincount()[grades], count, replacement=True, generator=generator
        )
    seeds = torch.randint(2**62, (count,), generator=generator)
    keys = torch.stack([seeds, order], 1)
    return [batch[rank::world].tolist() for batch in keys.tensor_split(-(-count // batch_size))]


class Seeded(Dataset):
    """`dataset` read by [seed, index]: what an example draws from PyTorch's generator depends on the seed alone."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        torch.default_generator.manual_seed(key[0])
        return self.dataset[key[1]]


def _arriving(loader, dataset, device):
    """The batches of a loader on the device, images as float32."""
    for images, labels in loader:
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        yield (
            dataset.normalise(images) if images.dtype == torch.uint8 else images,
            labels.to(device),
        )


@torch.no_grad()
def predict(network, dataset, device="cpu", batch_size=256, workers=0, only=None):
    """Scores (n, N) and labels (n,) of a dataset, in its order, or of the indices `only`, on the CPU.

    The network is left in evaluation mode.
    """
    network.eval()
    arriving = _arriving(
        DataLoader(dataset, batch_size, sampler=only, num_workers=workers), dataset, device
    )
    scores, labels = zip(
        *[(network(images).cpu(), labels.cpu()) for images, labels in arriving], strict=True
    )
    return torch.cat(scores), torch.cat(labels)


def _predicted(fabric, network, val, batch_size, workers):
    """`predict` with every process taking its share; all get the whole."""
    rank, world = fabric.global_rank, fabric.world_size
    if world > 1:
        for buffer in filter(
            torch.is_floating_point, network.buffers()
        ):  # running statistics: the processes' mean
            fabric.all_reduce(buffer)
    found = []
    for part in predict(
        network, val, fabric.device, batch_size, workers, range(rank, len(val), world)
    ):
        whole = part.new_zeros(len(val), *part.shape[1:])
        whole[rank::world] = part
        found.append(fabric.all_reduce(whole, reduce_op="sum").cpu())
    return found


def _one(device):
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, and PyTorch finds no GPU (torch.cuda.is_available() is False): take "
                         "device='cpu', or install the PyTorch that fits this machine's driver")  # fmt: skip
    return Fabric(accelerator=device.type, devices=[device.index] if device.index else 1)


def _check(settings, network, train, val, fabric):
    """Refuse, before anything is written, what cannot be trained."""
    for name in ("epochs", "batch_size", "accumulate", "train", "val"):
        if settings[name] < 1:
            raise ValueError(f"{name}: {settings[name]}, and at least 1 is needed")
    for name, known in (("loss", list(objectives.LOSSES)), ("select", ["last", "kappa"])):
        if settings[name] not in known:
            raise ValueError(f"{name} is {settings[name]!r}; choose one of {', '.join(known)}")
    smallest, processes = len(train) // -(-len(train) // settings["batch_size"]), fabric.world_size
    if processes > min(smallest, len(val)):
        raise ValueError(f"{processes} processes cannot share a batch of {smallest} or validate on {len(val)}: start "
                         f"fewer, or raise batch_size from {settings['batch_size']}")  # fmt: skip
    grades = getattr(train, "grades", None)
    if grades is None and settings["balanced"]:
        raise ValueError("balanced needs train.grades, the label of every example, int64")
    if grades is not None:
        classes = predict(network, val, fabric.device, only=[0])[0].shape[1]
        counts = grades.bincount(minlength=classes).tolist()
        if len(counts) > classes or 0 in counts:
            raise ValueError(f"train has {counts} examples of the grades 0, 1, ..., and the network answers 0 to "
                             f"{classes - 1}: each needs one. Add examples, or build another network")  # fmt: skip


@contextmanager
def _memory_named(settings):
    try:
        yield
    except RuntimeError as error:
        if not re.search("out of memory|allocate memory|not enough memory", str(error)):
            raise
        now = ", ".join(
            f"{name} {settings[name]}" for name in ("batch_size", "accumulate", "precision")
        )
        raise MemoryError(f"out of memory with {now}: raise accumulate, lower batch_size or the photographs' size, or "
                          "give Fabric(precision='bf16-mixed')") from error  # fmt: skip
