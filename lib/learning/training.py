"""Training on (image, label) pairs: seeded, resumable, on whatever devices Lightning Fabric has."""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lib.evaluation import grading
from lib.learning import checkpoint, losses

if TYPE_CHECKING:  # Fabric and scikit-learn are slow to import: whoever only predicts needs neither
    from lightning_fabric import Fabric

_LINE = "epoch {epoch:3d}  loss {loss:.3f}  val loss {val_loss:.3f}  accuracy {val_accuracy:.3f}"
_Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_FOLDS = 5
PRECISIONS = ("32-true", "bf16-mixed")
_KEPT = "The checkpoint of the epoch before is kept."


@torch.random.fork_rng(devices=[])
def fit(
    network: nn.Module,
    train: Dataset,
    val: Dataset,
    out: str | Path,
    *,
    epochs: int,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
    loss: str = "cross-entropy",
    balanced: float = 0.0,
    select: str = "last",
    head_rate: float = 1.0,
    precision: str = "32-true",
    config: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    fabric: "Fabric | None" = None,
    accumulate: int = 1,
    compiled: bool = False,
    workers: int = 0,
    report: Callable[[list[dict]], object] | None = None,
) -> pd.DataFrame:
    """Minimise a loss of `network` on `train` with AdamW and a one-cycle learning rate.

    The batches of epoch e, and what an example draws from PyTorch's generator (its flips), depend
    on (seed, e) alone. So an interrupted run continues from its last whole epoch to the weights of
    an undisturbed one, to the last bit on one kind of CPU with as many threads. Several processes
    have the loss curve of one, up to rounding and dropout; batch normalisation shares its
    statistics on GPUs only. A finished run with the same settings is loaded, not repeated; one with
    others is kept beside, as `<out>.1`, `.2`, ... PyTorch's CPU generator is left as it was.

    Before the first epoch a few examples go through the network, and a data set without `grades` is
    read once for its labels.

    Args:
        network: scores (B, N) from images (B, C, H, W). It is left on the device, in evaluation
            mode, with the weights that are kept. Around it or its layers `torch.compile` and
            `DataParallel` may be: the weights have their plain names.
        train: dataset of (image (C, H, W) float32, label int).
        val: likewise; looked at, not learnt from.
        out: folder for weights.safetensors, history.csv, metrics.json and config.json, and after
            each epoch checkpoint.pt.
        epochs: passes over `train`.
        batch_size: the most examples in a step of the optimiser.
        learning_rate: the highest of the cycle.
        seed: of the batches and of what the examples draw.
        loss: one of `losses.LOSSES`.
        balanced: 0 takes every example once; with a more than 0, as many are drawn, one of a grade
            of n_c examples with probability in proportion to n_c^-a, so that 1 draws every grade
            equally often; `train` then needs `grades` (n,) int64.
        select: keep the weights of the "last" epoch, or of the first with the highest "kappa" on
            `val`.
        head_rate: the learning rate of `network.head`, in multiples of the others'.
        precision: without a `fabric`, "32-true" or "bf16-mixed", in which PyTorch computes the
            convolutions in 16 bits and keeps the weights in 32.
        config: what else made the result (the data's fingerprint, the network's arguments), able
            to be written as JSON.
        device: where to train, without a `fabric`.
        fabric: launched, with its devices, machines and precision.
        accumulate: how many parts a step's examples are taken in, one after the other.
        compiled: whether to `torch.compile` the network.
        workers: processes that load images beside each process that computes.
        report: called after each epoch with the history so far; without it, one line is printed.

    Returns:
        A row for each epoch: epoch, loss, val_loss, val_accuracy, val_kappa (quadratic weighted),
        learning_rate, seconds of the training pass, wait_share (of them, waiting for images), kept.

    Raises:
        ValueError: settings that cannot be, labels that are no grades, a grade that `train` lacks,
            scores that are not (B, N), an unfinished run with other settings, an `out` that is not
            a run's, a loss that is not finite, a damaged checkpoint.
        RuntimeError: another process trains in `out`.
        MemoryError: memory runs out; the message names what to change.
        OSError: the disk is full or does not let write; the checkpoint before is kept.
    """
    fabric = fabric or _one_device(device, precision)
    out = Path(out)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "loss": loss,
        "balanced": balanced,
        "select": select,
        "head_rate": head_rate,
        "accumulate": accumulate,
        "network": type(checkpoint.unwrapped(network)).__name__,
        "precision": fabric.strategy.precision.precision,
        "train": len(train),
        "val": len(val),
        **_content(train=train, val=val),
        **(config or {}),
    }
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network.to(fabric.device, memory_format=torch.channels_last)
    with _memory_named(settings):
        _check(settings, network, train, val, fabric, workers)
    with _claimed(fabric, out, settings):
        groups = _rates(network, learning_rate, head_rate)
        optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
        steps = epochs * math.ceil(len(train) / batch_size)
        rates = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps)
        parts = {"network": network, "optimiser": optimiser, "schedule": schedule}
        history, best = checkpoint.resume_checkpoint(out, settings, parts, fabric.device)
        if history and fabric.is_global_zero:
            done = len(history)
            print(
                f"continues after epoch {done} of {epochs}" if done < epochs else "already trained"
            )
        model = torch.compile(network) if compiled else network
        model, optimiser = fabric.setup(model, optimiser)

        grades = train.grades if balanced else None
        rank, world = fabric.global_rank, fabric.world_size
        for epoch in range(len(history) + 1, epochs + 1):
            batches = _batches(len(train), batch_size, seed, epoch, grades, rank, world, balanced)
            loader = DataLoader(
                _Seeded(train),
                batch_sampler=batches,
                num_workers=workers,
                pin_memory=fabric.device.type == "cuda",
            )
            with _memory_named(settings):
                mean, seconds, waited = _train_epoch(
                    fabric,
                    model,
                    optimiser,
                    schedule,
                    loader,
                    losses.LOSSES[loss],
                    accumulate,
                    epoch,
                )
            scores, labels = _predict_together(fabric, network, val, len(batches[0]), workers)
            row = {
                "epoch": epoch,
                "loss": mean,
                **_validation(scores, labels, loss),
                "learning_rate": schedule.get_last_lr()[0],
                "seconds": seconds,
                "wait_share": waited / seconds,
            }
            if not math.isfinite(row["val_loss"]):
                raise ValueError(
                    f"epoch {epoch}: loss {mean:g}, then val loss {row['val_loss']}; "
                    f"lower learning_rate. {_KEPT}"
                )
            highest = max((earlier["val_kappa"] for earlier in history), default=-math.inf)
            if select == "kappa" and row["val_kappa"] > highest:
                state = checkpoint.state_of(network)
                best = {name: value.clone() for name, value in state.items()}
            history.append(row)
            if fabric.is_global_zero:
                report(history) if report else print(_LINE.format(**row))
                checkpoint.save_checkpoint(out, settings, parts, history, best)

        if best:
            checkpoint.fill(network, best)
        network.eval()
        kept = max(history, key=lambda row: row["val_kappa"]) if select == "kappa" else history[-1]
        history = [row | {"kept": row is kept} for row in history]
        if fabric.is_global_zero:
            checkpoint.save_run(out, settings, network, history)
        fabric.barrier()
        return pd.DataFrame(history)


def fit_head(
    network: nn.Module,
    train: Dataset,
    val: Dataset,
    out: str | Path,
    *,
    strengths: Sequence[float] = (0.01, 0.03, 0.1),
    config: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> pd.DataFrame:
    """Fit only the grade kernels of a pretrained `network`, by logistic regression.

    The scores are affine in the radiomic sequence, S = W s + b. With frozen features the
    cross-entropy is convex and needs no epochs. Every photograph and its mirror image count, and in
    the five-fold cross-validation that chooses the penalty both lie in one fold. The
    standardisation of the sequences is taken into W and b.

    Args:
        network: with `sequence` and `head`, as `networks.RadiomicSequencer`; left on the device, in
            evaluation mode.
        train: dataset of (image (C, H, W) float32, label int).
        val: likewise; looked at, not learnt from.
        out: folder for what `fit` leaves, but no checkpoint.
        strengths: the penalties C to choose from, by the least cross-entropy.
        config: what else made the result, able to be written as JSON.
        device: where the sequences are computed.

    Returns:
        A history of one row; its loss is the cross-validated one.

    Raises:
        ValueError: labels that are no grades, a grade with fewer than 5 photographs in `train`,
            an unfinished run in `out`, an `out` that is not a run's.
        RuntimeError: another process trains in `out`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = Path(out)
    settings = {"strengths": list(strengths), "network": type(network).__name__, **(config or {})}
    classes = network.head.out_channels
    _require_each(_labels("train", train, classes, 16), classes, _FOLDS)
    _labels("val", val, classes, 16)
    with checkpoint.claim_run(out, settings):
        network.to(device).eval()
        sequences, grades = _sequences(network, train, device)
        photographs = np.tile(np.arange(len(train)), 2)
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
            {"logisticregression__C": list(strengths)},
            scoring="neg_log_loss",
            cv=folds,
        ).fit(sequences, grades, groups=photographs)

        scaler, model = search.best_estimator_.named_steps.values()
        weight = model.coef_ / scaler.scale_
        bias = model.intercept_ - weight @ scaler.mean_
        with torch.no_grad():
            network.head.weight.copy_(torch.from_numpy(weight)[:, :, None, None])
            network.head.bias.copy_(torch.from_numpy(bias))
        row = {
            "epoch": 1,
            "loss": -search.best_score_,
            **_validation(*predict(network, val, device), "cross-entropy"),
            "C": model.C,
            "kept": True,
        }
        return checkpoint.save_run(out, settings, network, [row])


@torch.no_grad()
def average(
    network: nn.Module,
    members: Sequence[nn.Module],
    val: Dataset,
    out: str | Path,
    *,
    loss: str,
    config: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> pd.DataFrame:
    """Give `network` the mean of trained networks' weights, a "model soup" (Wortsman et al. 2022).

    Networks that went on from the same weights often lie in one valley of the loss. Their mean then
    answers about as well as all of them together, in the time of one. Where they do not, it answers
    at random; the history tells.

    Args:
        network: built as the members were; left on the device, in evaluation mode.
        members: two or more, whose weights count alike.
        val: dataset of (image (C, H, W) float32, label int); looked at, not learnt from.
        out: folder for what `fit` leaves, but no checkpoint.
        loss: a name of `losses.LOSSES`, the one that the members have learnt by.
        config: what else made the result, able to be written as JSON.
        device: where it is validated.

    Returns:
        A history of one row: epoch (0), val_loss, val_accuracy, val_kappa, kept.

    Raises:
        ValueError: fewer than two members; members with batch normalisation, whose mean statistics
            are not the mean network's; labels that are no grades; an unfinished run in `out`, an
            `out` that is not a run's.
        RuntimeError: members or network of other shapes; another process trains in `out`.
    """
    if len(members) < 2:
        raise ValueError(f"a mean of {len(members)} network(s): give two or more")
    states = [checkpoint.state_of(member) for member in members]
    statistics = [name for name in states[0] if name.endswith("running_mean")]
    if statistics:
        raise ValueError(
            f"{statistics[0]} is a statistic of one network's activations, and that of a mean "
            "network is not the mean of theirs: take networks without batch normalisation"
        )
    mean = {}
    for name, value in states[0].items():
        together = torch.stack([state[name].double() for state in states])
        mean[name] = together.mean(0).to(value.dtype)
    checkpoint.fill(network, mean)

    out = Path(out)
    kind = type(network).__name__
    settings = {"network": kind, "members": len(members), "loss": loss, **(config or {})}
    with checkpoint.claim_run(out, settings):
        found = _validation(*predict(network.to(device), val, device, 16), loss)
        return checkpoint.save_run(out, settings, network, [{"epoch": 0, **found, "kept": True}])


@torch.no_grad()
def predict(
    network: nn.Module,
    dataset: Dataset,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    only: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """The scores of a dataset's examples, in its order; the network is left in evaluation mode.

    Args:
        network: scores (B, N) from images (B, C, H, W), on the device.
        dataset: of (image (C, H, W) float32, label int).
        device: where the network is.
        batch_size: images at a time.
        workers: processes that load images.
        only: the indices to take, in their order; all without it.

    Returns:
        Scores (n, N) and labels (n,) int64, on the CPU.

    Raises:
        ValueError: the network gives something else than scores (B, N).
    """
    network.eval()
    loader = DataLoader(dataset, batch_size, sampler=only, num_workers=workers)
    scores, truth = [], []
    for images, labels in _arriving(loader, device):
        scores.append(_scores(network, images).cpu())
        truth.append(labels.cpu())
    return torch.cat(scores), torch.cat(truth)


def _scores(network: nn.Module, images: Tensor) -> Tensor:
    """What the network gives for images (B, C, H, W), which has to be scores (B, N)."""
    scores = network(images)
    found = f"a {type(scores).__name__}"
    if isinstance(scores, Tensor):
        found = f"a tensor {tuple(scores.shape)}"
        if scores.ndim == 2 and len(scores) == len(images) and scores.shape[1] > 1:
            return scores
    raise ValueError(
        f"{type(checkpoint.unwrapped(network)).__name__} gives {found} for {len(images)} images "
        f"in {'training' if network.training else 'evaluation'} mode, where scores ({len(images)}, "
        "N), one for each of N > 1 grades, are needed: let its forward return these alone, as "
        "torchvision's GoogLeNet and Inception do with `network.aux_logits = False`"
    )


def _batches(
    count: int,
    batch_size: int,
    seed: int,
    epoch: int,
    grades: Tensor | None,
    rank: int,
    world: int,
    balanced: float = 1.0,
) -> list[list[list[int]]]:
    """What process `rank` of `world` takes of each batch: lists of [seed of an example, its index].

    Every one of `count` examples comes once, in random order. With their `grades` (count,) int64,
    as many are drawn with replacement, as `balanced` of `fit` says. Batches are even, at most
    `batch_size`, and the same for every `world`.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    if grades is None:
        order = torch.randperm(count, generator=generator)
    else:
        weights = 1 / grades.bincount()[grades] ** balanced
        order = torch.multinomial(weights, count, replacement=True, generator=generator)
    seeds = torch.randint(2**62, (count,), generator=generator)
    keys = torch.stack([seeds, order], 1)
    batches = keys.tensor_split(math.ceil(count / batch_size))
    return [batch[rank::world].tolist() for batch in batches]


class _Seeded(Dataset):
    """`dataset` read by [seed, index]: what an example draws depends on its seed alone."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: list[int]) -> tuple[Tensor, int]:
        seed, index = key
        torch.default_generator.manual_seed(seed)
        return self.dataset[index]


def _train_epoch(
    fabric: "Fabric",
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loader: DataLoader,
    objective: _Objective,
    accumulate: int,
    epoch: int,
) -> tuple[float, float, float]:
    """One pass: the mean loss of all processes, the seconds, and those spent waiting for images."""
    model.train()
    start = time.perf_counter()
    waited = 0.0
    sums = torch.zeros(2, dtype=torch.float64)
    arriving = _arriving(loader, fabric.device)
    batches = loader.batch_sampler
    torch.manual_seed(batches[0][0][0])  # of dropout on a GPU; on the CPU it is set at each batch
    for number, keys in enumerate(batches, 1):
        asked = time.perf_counter()
        images, labels = next(arriving)
        waited += time.perf_counter() - asked
        torch.default_generator.manual_seed(keys[0][0])

        optimiser.zero_grad()
        batch = _backward(fabric, model, objective, images, labels, accumulate)
        batch = fabric.all_reduce(batch, reduce_op="sum")
        if not batch.isfinite().all():
            raise ValueError(
                f"epoch {epoch}, batch {number} of {len(batches)}: loss {batch[0]:g}; "
                f"{_cause(images, keys)}. {_KEPT}"
            )
        for parameter in model.parameters():
            if parameter.grad is not None:
                # Fabric has averaged the sums over the processes; this is the mean over the batch.
                parameter.grad *= fabric.world_size / batch[1]
        optimiser.step()
        schedule.step()
        sums += batch.cpu()
    return (sums[0] / sums[1]).item(), time.perf_counter() - start, waited


def _backward(
    fabric: "Fabric",
    model: nn.Module,
    objective: _Objective,
    images: Tensor,
    labels: Tensor,
    accumulate: int,
) -> Tensor:
    """Add up the gradients of the summed loss, part by part; that sum and its number of terms."""
    pieces = list(zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True))
    found, terms = [], 0
    for number, (some, truth) in enumerate(pieces, 1):
        with fabric.no_backward_sync(model, enabled=number < len(pieces)):
            each, weights = objective(_scores(model, some), truth)
            fabric.backward(each.sum())
        found.append(each.detach())
        terms += weights.sum()
    return torch.stack([torch.cat(found).sum(), terms])


def _cause(images: Tensor, keys: list[list[int]]) -> str:
    """Why a loss is not finite: the images, or else the learning rate."""
    finite = images.flatten(1).isfinite().all(1).tolist()
    bad = [index for (_, index), fine in zip(keys, finite, strict=True) if not fine]
    return f"images {bad[:8]} of train are not finite" if bad else "lower learning_rate"


def _validation(scores: Tensor, labels: Tensor, loss: str) -> dict[str, float]:
    each, terms = losses.LOSSES[loss](scores, labels)
    predicted = losses.answered_grades(losses.probabilities(scores, loss), loss)
    return {
        "val_loss": (each.sum() / terms.sum()).item(),
        "val_accuracy": (predicted == labels).float().mean().item(),
        "val_kappa": grading.quadratic_kappa(predicted, labels),
    }


def _predict_together(
    fabric: "Fabric", network: nn.Module, val: Dataset, batch_size: int, workers: int
) -> list[Tensor]:
    """`predict`, of which every process takes its share; all get the whole."""
    rank, world = fabric.global_rank, fabric.world_size
    if world > 1:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                fabric.all_reduce(buffer)  # in place: running statistics become their mean
    share = predict(network, val, fabric.device, batch_size, workers, range(rank, len(val), world))
    together = []
    for values in share:
        whole = values.new_zeros(len(val), *values.shape[1:])
        whole[rank::world] = values
        together.append(fabric.all_reduce(whole, reduce_op="sum").cpu())
    return together


@torch.no_grad()
def _sequences(
    network: nn.Module, train: Dataset, device: str | torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The radiomic sequences (2n, K) of a dataset, then of its mirror images; the grades (2n,)."""
    plain, mirrored, grades = [], [], []
    for images, labels in _arriving(DataLoader(train, 16), device):
        plain.append(network.sequence(images).cpu())
        mirrored.append(network.sequence(images.flip(3)).cpu())
        grades.append(labels.cpu())
    return torch.cat(plain + mirrored).numpy(), torch.cat(grades + grades).numpy()


def _arriving(loader: DataLoader, device: str | torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader, on the device."""
    for images, labels in loader:
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        yield images, labels.to(device)


def _rates(network: nn.Module, learning_rate: float, head_rate: float) -> list[dict[str, Any]]:
    """The parameters in groups with a learning rate each: one, or the head's beside the others'."""
    if head_rate == 1:
        return [{"params": list(network.parameters()), "lr": learning_rate}]
    head = list(checkpoint.unwrapped(network).head.parameters())
    others = [weight for weight in network.parameters() if all(weight is not own for own in head)]
    return [
        {"params": others, "lr": learning_rate},
        {"params": head, "lr": head_rate * learning_rate},
    ]


def _one_device(device: str | torch.device, precision: str) -> "Fabric":
    from lightning_fabric import Fabric

    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {device}, and PyTorch finds no GPU (torch.cuda.is_available() is False): "
            "take device='cpu', or install the PyTorch that fits this machine's driver"
        )
    _require_precision(precision, device)
    devices = [device.index] if device.index else 1
    return Fabric(accelerator=device.type, devices=devices, precision=precision)


def _require_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device has not in hardware: it would emulate it, slower."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == "32-true":
        return
    if device.type == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_it = torch.cpu.get_capabilities().get("avx512_bf16", False)
    if not has_it:
        raise ValueError(
            f"precision is {precision!r}, and this {device.type} does not compute in bfloat16 "
            "itself, so that training would be slower: take precision '32-true'"
        )


def _content(**datasets: Dataset) -> dict[str, str]:
    """The SHA-256 of examples that are tensors; other data sets are named by a run's `config`."""
    tensors = {}
    for name, dataset in datasets.items():
        if isinstance(dataset, TensorDataset):
            for number, tensor in enumerate(dataset.tensors):
                tensors[f"{name} {number}"] = tensor.cpu()
    return {"content": checkpoint.digest({}, tensors)} if tensors else {}


def _check(
    settings: dict[str, Any],
    network: nn.Module,
    train: Dataset,
    val: Dataset,
    fabric: "Fabric",
    workers: int,
) -> None:
    """Refuse, before anything is written, what cannot be trained."""
    for name in ("epochs", "batch_size", "accumulate", "train", "val"):
        if settings[name] < 1:
            raise ValueError(f"{name}: {settings[name]}, and at least 1 is needed")
    for name, known in (("loss", list(losses.LOSSES)), ("select", ["last", "kappa"])):
        if settings[name] not in known:
            raise ValueError(f"{name} is {settings[name]!r}; choose one of {', '.join(known)}")
    count, size, world = len(train), settings["batch_size"], fabric.world_size
    smallest = count // math.ceil(count / size)
    if world > min(smallest, len(val)):
        raise ValueError(
            f"{world} processes cannot share a batch of {smallest} or validate on {len(val)}: "
            f"start fewer, or raise batch_size from {size}"
        )
    known = getattr(train, "grades", None) is not None
    if not 0 <= settings["balanced"] <= 1:
        raise ValueError(f"balanced is {settings['balanced']}; choose 0 to 1")
    for name in ("learning_rate", "head_rate"):
        if not 0 < settings[name] < math.inf:
            raise ValueError(f"{name} is {settings[name]}; give more than 0, a finite number")
    if settings["head_rate"] != 1 and not hasattr(checkpoint.unwrapped(network), "head"):
        raise ValueError(
            f"head_rate is {settings['head_rate']}, and {settings['network']} has no `head` whose "
            "rate it could be: give 1, or call the last layer so"
        )
    if settings["balanced"] and not known:
        raise ValueError("balanced needs train.grades, the label of every example, int64")

    parts = set()
    for rank in range(world):
        for batch in _batches(count, size, 0, 1, None, rank, world):
            parts |= {len(part) for part in torch.empty(len(batch)).chunk(settings["accumulate"])}
    try:
        classes = _try(checkpoint.unwrapped(network), val, fabric.device, min(2, *parts))
    except Exception as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"a batch normalisation is left with one value a channel, as a part of a batch is "
            f"{min(parts)} photograph of {count}, with batch_size {size}, accumulate "
            f"{settings['accumulate']} and {world} process(es): take another batch_size, or a "
            "smaller accumulate"
        ) from error
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ValueError(
                f"{name} in the network's state_dict is a {type(value).__name__}, and only dense "
                "tensors can be kept in weights.safetensors: make it one, or a plain attribute"
            )
    labels = _labels("train", train, classes, size, workers)
    _labels("val", val, classes, size, workers)
    if known:
        _require_each(labels, classes)


@torch.no_grad()
def _try(network: nn.Module, val: Dataset, device: torch.device, count: int) -> int:
    """How many grades the network answers; in training mode it is tried on `count` images.

    Afterwards running statistics are what they were.
    """
    image = next(iter(DataLoader(val, 1)))[0].to(device)
    classes = _scores(network.eval(), image).shape[1]
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        _scores(network.train(), image.repeat(count, 1, 1, 1))
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(before[name])
    return classes


def _labels(name: str, dataset: Dataset, classes: int, batch_size: int, workers: int = 0) -> Tensor:
    """The labels of all examples, (n,) int64: its `grades`, else read one by one."""
    labels = getattr(dataset, "grades", None)
    if labels is None:
        loader = DataLoader(dataset, batch_size, num_workers=workers)
        labels = [some for _, some in loader]
        if not all(isinstance(some, Tensor) for some in labels):
            raise ValueError(
                f"the labels of {name} are {labels[0]!r} and the like: numbers are needed"
            )
        labels = torch.cat(labels)
    labels = torch.as_tensor(labels)
    losses.require_labels(labels, classes, name)
    if len(labels) != len(dataset):
        raise ValueError(f"{name} has {len(dataset)} examples and {len(labels)} grades")
    return labels


def _require_each(labels: Tensor, classes: int, least: int = 1) -> None:
    counts = labels.bincount(minlength=classes).tolist()
    if min(counts) < least:
        raise ValueError(
            f"train has {counts} examples of the grades 0, 1, ..., and the network answers 0 to "
            f"{classes - 1}: each needs {least} at least. Add examples, or build another network"
        )


@contextmanager
def _claimed(fabric: "Fabric", out: Path, settings: dict[str, Any]) -> Iterator[None]:
    """`checkpoint.claim_run` by one process for all; where it refuses, all of them raise."""
    refusal = None
    with ExitStack() as held:
        if fabric.is_global_zero:
            try:
                held.enter_context(checkpoint.claim_run(out, settings))
            except Exception as error:
                refusal = error
        refusal = fabric.broadcast(refusal)
        if refusal is not None:
            raise refusal
        yield


@contextmanager
def _memory_named(settings: dict[str, Any]) -> Iterator[None]:
    """Turn an error for want of memory into one that names the settings that need it."""
    try:
        yield
    except RuntimeError as error:
        if not re.search("out of memory|allocate memory|not enough memory", str(error)):
            raise
        names = ("batch_size", "accumulate", "precision")
        now = ", ".join(f"{name} {settings[name]}" for name in names)
        raise MemoryError(
            f"out of memory with {now}: raise accumulate, lower batch_size or the photographs' "
            "size, or give Fabric(precision='bf16-mixed')"
        ) from error
