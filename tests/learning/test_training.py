"""Training against a re-implementation in NumPy, interrupted wherever it writes, killed, shared."""

import contextlib
import errno
import io
import json
import math
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import TensorDataset

from lib.learning import checkpoint, losses, networks, training

COLUMNS = "epoch loss val_loss val_accuracy val_kappa learning_rate seconds wait_share kept".split()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Bit for bit the same in this process and in those that it forks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Examples(torch.utils.data.Dataset):
    """`n` images (1, 4, 4) of 3 classes, flipped at random; request number `stop` interrupts.

    `order` and `flipped` record the requests.
    """

    def __init__(self, n=10, stop=None, dtype=torch.float32, flips=True):
        generator = torch.Generator().manual_seed(n)
        self.labels = self.grades = torch.arange(n) % 3
        noise = torch.randn(n, 1, 4, 4, generator=generator, dtype=dtype)
        self.images = noise + self.labels[:, None, None, None]
        self.order, self.flipped, self.stop, self.flips = [], [], stop, flips

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if len(self.order) == self.stop:
            raise KeyboardInterrupt
        self.order.append(i)
        self.flipped.append(self.flips and bool(torch.rand(()) < 0.5))
        image = self.images[i].flip(2) if self.flipped[-1] else self.images[i]
        return image, int(self.labels[i])


class Graded(Examples):
    """6, 3, 1 of ten are of class 0, 1, 2."""

    def __init__(self, n=10, **options):
        super().__init__(n, **options)
        self.labels = self.grades = torch.tensor([0, 0, 1, 0, 0, 1, 0, 1, 0, 2]).repeat(n // 10)


class Unlabelled(Examples):
    """The labels are known from the examples alone; those of the first are given."""

    def __init__(self, first=(), n=20):
        super().__init__(n, flips=False)
        del self.grades
        self.labels[: len(first)] = torch.tensor(first, dtype=torch.int64)


def network(seed=0):
    """Every kind of state there is: weights, running means, a counter, and dropout's draws."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def plain():
    """A network in which an example's score does not depend on the others, in float64."""
    torch.manual_seed(3)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).double()


def linear():
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def fit(out, net=None, train=None, **changes):
    arguments = {"epochs": 3, "batch_size": 4, "seed": 5, "config": {"channels": (4,)}} | changes
    net = network() if net is None else net
    return net, training.fit(net, train or Examples(), Examples(7, flips=False), out, **arguments)


def timeless(table):
    return table.drop(columns=["seconds", "wait_share"])


def assert_same(net, table, undisturbed):
    """The weights and the history are those of another run, to the last bit."""
    for name, value in undisturbed[0].state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name
    pd.testing.assert_frame_equal(timeless(table), timeless(undisturbed[1]), check_exact=True)


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("undisturbed") / "run")


# Against the papers, written out


def one_cycle(step, total, highest):
    """Smith 2018 with cosines: from a 25th up in 30 % of the steps, down to a 250,000th; momentum
    from 0.95 down to 0.85 and up again."""
    turn = 0.3 * total - 1
    if step <= turn:
        up = (1 - math.cos(math.pi * step / turn)) / 2
        return highest / 25 + (highest - highest / 25) * up, 0.95 - 0.1 * up
    down = (1 - math.cos(math.pi * (step - turn) / (total - 1 - turn))) / 2
    return highest + (highest / 25e4 - highest) * down, 0.85 + 0.1 * down


def cross_entropy(scores, labels):
    """The mean of -log softmax, and its gradient with respect to the scores."""
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    gradient = shares.copy()
    gradient[rows, labels] -= 1
    return -np.log(shares[rows, labels]).mean(), gradient / len(labels)


@pytest.mark.parametrize(
    "options", [{}, {"compiled": True}, {"accumulate": 3}], ids=["whole", "compiled", "in parts"]
)
def test_the_history_and_the_weights_are_those_of_adamw_and_one_cycle_written_out_in_numpy(
    tmp_path, monkeypatch, options
):
    compiler, asked = torch.compile, []

    def traced(net, backend="eager"):  # PyTorch's own would call a C++ compiler, for minutes
        asked.append(net)
        return compiler(net, backend=backend)

    monkeypatch.setattr(torch, "compile", traced)
    train = Examples(dtype=torch.float64, flips=False)
    val = Examples(7, dtype=torch.float64, flips=False)
    net = linear().double()
    parameters = [net[1].weight.detach().numpy().copy(), net[1].bias.detach().numpy().copy()]
    first, second = [[np.zeros_like(p) for p in parameters] for _ in range(2)]
    epochs, size, rate = 3, 4, 0.05
    options = {"epochs": epochs, "batch_size": size, "learning_rate": rate} | options
    table = training.fit(net, train, val, tmp_path / "run", **options)
    assert bool(asked) == ("compiled" in options) and all(each is net for each in asked)

    x, y = train.images.flatten(1).numpy(), train.labels.numpy()
    total, step = epochs * math.ceil(len(x) / size), 0
    for epoch, order in enumerate(np.reshape(train.order, (epochs, len(x)))):
        summed = 0
        for batch in np.array_split(order, math.ceil(len(x) / size)):
            loss, slope = cross_entropy(x[batch] @ parameters[0].T + parameters[1], y[batch])
            summed += loss * len(batch)
            lr, beta = one_cycle(step, total, rate)
            step += 1
            gradients = slope.T @ x[batch], slope.sum(0)
            for p, m, v, g in zip(parameters, first, second, gradients, strict=True):
                p *= 1 - lr * 1e-4
                m += (1 - beta) * (g - m)
                v += (1 - 0.999) * (g * g - v)
                p -= lr / (1 - beta**step) * m / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        scores = val.images.flatten(1).numpy() @ parameters[0].T + parameters[1]
        expected = {
            "epoch": epoch + 1,
            "loss": summed / len(x),
            "val_loss": cross_entropy(scores, val.labels.numpy())[0],
            "val_accuracy": np.mean(scores.argmax(1) == val.labels.numpy()),
            "learning_rate": one_cycle(step, total, rate)[0],
        }
        assert table.loc[epoch, list(expected)].to_dict() == pytest.approx(expected, rel=1e-6)
    for name, parameter in zip(("1.weight", "1.bias"), parameters, strict=True):
        np.testing.assert_allclose(net.state_dict()[name], parameter, rtol=1e-9)
    assert load_file(tmp_path / "run" / "weights.safetensors").keys() == net.state_dict().keys()


def by_hand(loss, scores, labels):
    """The mean loss and the answers, from scores (n, 3), in plain Python."""
    summed, terms, answers = 0.0, 0, []
    for (a, b, c), y in zip(scores.tolist(), labels.tolist(), strict=True):
        p = [math.exp(s) / (math.exp(a) + math.exp(b) + math.exp(c)) for s in (a, b, c)]
        mean = p[1] + 2 * p[2]
        if loss == "corn":
            above = [1 / (1 + math.exp(a - b)), 1 / (1 + math.exp(b - c))]  # each given that y >= k
            asked = above[: y + 1]
            summed -= sum(math.log(q if y > k else 1 - q) for k, q in enumerate(asked))
            terms += len(asked)
            answers.append((above[0] > 0.5) + (above[0] * above[1] > 0.5))
            continue
        target = [0.9 * (k == y) + 0.1 / 3 for k in range(3)]
        summed += {
            "cross-entropy": -math.log(p[y]),
            "label-smoothing": -sum(t * math.log(q) for t, q in zip(target, p, strict=True)),
            "expected-grade": -math.log(p[y]) + (mean - y) ** 2,
        }[loss]
        terms += 1
        answers.append(math.floor(mean + 0.5) if loss == "expected-grade" else int(np.argmax(p)))
    return summed / terms, answers


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_the_history_of_every_loss_is_recomputed_by_hand_from_the_kept_weights(tmp_path, loss):
    train, val, net = Graded(30), Graded(20, flips=False), network()
    options = {"epochs": 3, "batch_size": 10, "learning_rate": 0.02, "loss": loss}
    last = training.fit(net, train, val, tmp_path / "run", **options).iloc[-1]
    with torch.no_grad():
        mean, answers = by_hand(loss, net(val.images), val.labels)
    assert len(set(answers)) > 1
    assert last.val_loss == pytest.approx(mean, rel=1e-5)
    assert last.val_accuracy == pytest.approx(np.mean(val.labels.numpy() == answers))
    kappa = cohen_kappa_score(answers, val.labels, labels=[0, 1, 2], weights="quadratic")
    assert last.val_kappa == pytest.approx(kappa)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["loss"] == loss


# What an example and a batch are


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own(tmp_path):
    orders = set()
    for seed in (0, 1):
        train = Examples()
        fit(tmp_path / str(seed), train=train, seed=seed)
        epochs = np.reshape(train.order, (3, 10))
        assert (np.sort(epochs) == np.arange(10)).all()
        orders |= {tuple(epoch) for epoch in epochs.tolist()}
    assert len(orders) == 6


def test_balanced_batches_hold_every_grade_equally_often_and_each_example_is_flipped_anew(tmp_path):
    train = Examples(1000)
    counts = torch.tensor([900, 90, 10])
    train.labels = train.grades = torch.arange(3).repeat_interleave(counts)
    fit(tmp_path / "run", linear(), train, balanced=True, batch_size=250)
    drawn = torch.tensor(train.order)
    assert len(drawn) == 3000
    # 5.8 deviations of a fair draw
    assert (train.grades[drawn].bincount() - 1000).abs().max() < 150
    assert len(set(train.order)) > 650 and drawn.bincount(minlength=1000)[990:].min() > 50
    assert abs(sum(train.flipped) - 1500) < 120  # 4.4 deviations of a fair coin
    rarest = [flip for i, flip in zip(train.order, train.flipped, strict=True) if i == 999]
    assert 0 < sum(rarest) < len(rarest)


@pytest.mark.parametrize(
    ("exponent", "shares"), [(0.5, (0.70, 0.22, 0.07)), (0.25, (0.82, 0.15, 0.03))]
)
def test_between_the_extremes_a_grade_is_drawn_by_a_power_of_its_count(tmp_path, exponent, shares):
    train = Examples(1000)
    counts = torch.tensor([900, 90, 10])
    train.labels = train.grades = torch.arange(3).repeat_interleave(counts)
    powers = counts ** (1 - exponent)  # n_c examples, each with probability n_c^-a
    assert (powers / powers.sum()).tolist() == pytest.approx(shares, abs=0.01)
    fit(tmp_path / "run", linear(), train, balanced=exponent, batch_size=250)
    drawn = train.grades[torch.tensor(train.order)].bincount() / 3000
    assert drawn.tolist() == pytest.approx(shares, abs=0.04)


def test_the_head_learns_at_its_own_rate(tmp_path):
    """AdamW's first step is the rate times the sign of the gradient, for each weight."""

    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.features, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.features(x.flatten(1)))

    steps = {}
    for rate in (1.0, 5.0):
        net, before = Headed(), Headed()
        fit(tmp_path / str(rate), net, head_rate=rate, epochs=1, batch_size=10, learning_rate=1)
        for name, weight in net.named_parameters():
            steps[rate, name] = (weight - before.get_parameter(name)).abs().median().item()
    assert steps[5.0, "features.weight"] == pytest.approx(steps[1.0, "features.weight"], rel=0.01)
    assert steps[5.0, "head.weight"] == pytest.approx(5 * steps[1.0, "head.weight"], rel=0.01)


HAS_BF16 = torch.cpu.get_capabilities().get("avx512_bf16", False)


@pytest.mark.skipif(not HAS_BF16, reason="this processor does not compute in bfloat16")
def test_bf16_computes_in_16_bits_and_keeps_the_weights_in_32(tmp_path):
    seen = set()

    class Spy(nn.Flatten):
        def forward(self, x):
            seen.add((self.training, x.dtype))
            return super().forward(x)

    nets = []
    for precision in training.PRECISIONS:
        torch.manual_seed(0)
        nets.append(nn.Sequential(nn.Conv2d(1, 4, 3), Spy(), nn.Linear(16, 3)))
        fit(tmp_path / precision, nets[-1], precision=precision)
    assert (True, torch.bfloat16) in seen
    full, half = (net[0].weight for net in nets)
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert torch.allclose(full, half, atol=0.02)
    config = json.loads((tmp_path / "bf16-mixed" / "config.json").read_text())
    assert config["precision"] == "bf16-mixed"


def test_bf16_is_refused_where_the_processor_would_emulate_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    with pytest.raises(ValueError, match=r"does not compute in bfloat16 itself.*'32-true'"):
        fit(tmp_path / "run", precision="bf16-mixed")
    assert not list(tmp_path.iterdir())


def test_the_result_does_not_depend_on_pytorchs_global_generator_nor_moves_it(
    tmp_path, undisturbed
):
    net = network()
    torch.manual_seed(999)
    before = torch.get_rng_state()
    _, table = fit(tmp_path / "run", net)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(net, table, undisturbed)


def test_processes_that_load_change_nothing_not_even_dropout(tmp_path, undisturbed):
    assert_same(*fit(tmp_path / "run", workers=2), undisturbed)


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_a_step_in_parts_is_the_step_of_the_whole_batch(tmp_path, loss):
    fitted = []
    for accumulate in (1, 2, 7):
        train, val, net = Graded(20, dtype=torch.float64), Graded(dtype=torch.float64), plain()
        options = {"epochs": 2, "batch_size": 6, "loss": loss, "accumulate": accumulate}
        table = training.fit(net, train, val, tmp_path / str(accumulate), **options)
        fitted.append((net.state_dict(), table.loc[:, "loss":"learning_rate"]))
    for weights, table in fitted[1:]:
        torch.testing.assert_close(weights, fitted[0][0], rtol=1e-9, atol=1e-12)
        pd.testing.assert_frame_equal(table, fitted[0][1], rtol=1e-9)


# What it leaves


def test_it_leaves_the_four_files_and_the_checkpoint_and_prints_a_line_an_epoch(tmp_path, capsys):
    out = tmp_path / "deep" / "run"
    net, table = fit(out)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1"], ["epoch", "2"], ["epoch", "3"]]
    assert f"loss {table.loss[2]:.3f}" in lines[2]
    assert f"accuracy {table.val_accuracy[2]:.3f}" in lines[2]

    names = {"weights.safetensors", "history.csv", "metrics.json", "config.json", "checkpoint.pt"}
    assert contents(out).keys() == names
    assert_same_weights(load_file(out / "weights.safetensors"), net.state_dict())
    assert list(table) == COLUMNS
    assert table.kept.tolist() == [False, False, True]
    assert (table.seconds > 0).all() and table.wait_share.between(0, 1).all()
    pd.testing.assert_frame_equal(pd.read_csv(out / "history.csv"), table)
    assert json.loads((out / "metrics.json").read_text()) == table.loc[2].to_dict()
    assert json.loads((out / "config.json").read_text()) == {
        "epochs": 3, "batch_size": 4, "learning_rate": 3e-3, "seed": 5, "loss": "cross-entropy",
        "balanced": 0, "select": "last", "head_rate": 1, "accumulate": 1, "precision": "32-true",
        "network": "Sequential", "train": 10, "val": 7, "channels": [4],
    }  # fmt: skip
    assert not net.training


def test_a_report_is_given_the_history_after_each_epoch_instead_of_a_printed_line(tmp_path, capsys):
    seen = []
    _, table = fit(tmp_path / "run", epochs=2, report=lambda rows: seen.append(list(rows)))
    assert capsys.readouterr().out == ""
    assert [[row["epoch"] for row in history] for history in seen] == [[1], [1, 2]]
    assert [row["loss"] for row in seen[1]] == table.loss.tolist()


@pytest.mark.parametrize("stop", [None, 15, 35])
def test_selection_keeps_the_first_epoch_with_the_highest_kappa_also_after_an_interruption(
    tmp_path, monkeypatch, stop
):
    kappas, snapshots, net = [0.1, 0.5, 0.5, 0.2], [], network()

    def kappa(predicted, grades):
        snapshots.append({name: value.clone() for name, value in net.state_dict().items()})
        return kappas[len(snapshots) - 1]

    monkeypatch.setattr(training.grading, "quadratic_kappa", kappa)
    options, out = {"epochs": 4, "select": "kappa"}, tmp_path / "run"
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            fit(out, net, Examples(stop=stop), **options)
        net = network(seed=1)
    _, table = fit(out, net, **options)
    assert table.val_kappa.tolist() == kappas and table.kept.tolist() == [False, True, False, False]
    assert_same_weights(net.state_dict(), snapshots[1])
    assert_same_weights(load_file(out / "weights.safetensors"), snapshots[1])
    assert json.loads((out / "metrics.json").read_text())["epoch"] == 2
    again, table = fit(out, network(seed=2), Examples(stop=0), **options)
    assert_same_weights(again.state_dict(), snapshots[1])


def test_precision_is_fabrics_word_and_one_of_the_settings(tmp_path):
    found = []
    for precision in ("32-true", "bf16-mixed"):
        fabric, net = Fabric(accelerator="cpu", devices=1, precision=precision), plain().float()
        options = {"epochs": 3, "batch_size": 10, "fabric": fabric}
        table = training.fit(net, Graded(40), Graded(), tmp_path / precision, **options)
        config = json.loads((tmp_path / precision / "config.json").read_text())
        assert config["precision"] == precision
        assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
        found.append(table.loss)
    np.testing.assert_allclose(*found, rtol=0.02)
    assert (found[0] != found[1]).all()


# Interrupted, stopped beside a write, killed


@pytest.mark.parametrize("examples", [0, 3, 10, 17, 29])
def test_interrupted_at_any_example_it_continues_to_the_weights_of_an_undisturbed_run(
    tmp_path, capsys, undisturbed, examples
):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(out, train=Examples(stop=examples))
    with pytest.raises(FileNotFoundError):
        checkpoint.load_network(network(), out, "04")
    whole = examples // 10
    if whole:
        before = contents(out)
        with pytest.raises(ValueError, match=r"other settings: batch_size 4 -> 5, seed 5 -> 6\. "):
            fit(out, batch_size=5, seed=6)
        assert contents(out) == before
    capsys.readouterr()
    again = Examples()
    net, table = fit(out, network(seed=1 if whole else 0), again)
    assert len(again.order) == 30 - 10 * whole
    assert (f"continues after epoch {whole} of 3" in capsys.readouterr().out) == (whole > 0)
    assert_same(net, table, undisturbed)
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", range(7))
def test_stopped_beside_any_write_nothing_half_made_is_taken_for_whole(
    tmp_path, monkeypatch, undisturbed, write, when
):
    out, done, replace = tmp_path / "run", [], os.replace

    def stopping(source, target):
        if when == "after":
            replace(source, target)
        if len(done) == write:
            raise KeyboardInterrupt
        if when == "before":
            replace(source, target)
        done.append(target)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(out)
    monkeypatch.undo()

    if (out / "weights.safetensors").exists():
        weights = load_file(out / "weights.safetensors")
        assert_same_weights(weights, undisturbed[0].state_dict())
    else:
        with pytest.raises(FileNotFoundError):
            checkpoint.load_network(network(), out, "04")
    net, table = fit(out, network(seed=1 if (out / "checkpoint.pt").exists() else 0))
    assert_same(net, table, undisturbed)
    names = {"weights.safetensors", "history.csv", "metrics.json", "config.json", "checkpoint.pt"}
    assert contents(out).keys() == names


def killed(target, *arguments):
    """Run it in a process of its own, which has to end by SIGKILL."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_killed_while_it_writes_a_checkpoint_it_continues_from_the_one_before(
    tmp_path, undisturbed
):
    def dying():
        write, written = Path.write_bytes, []

        def half(path, content):
            written.append(path)
            write(path, content[: len(content) // len(written)])
            if len(written) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        Path.write_bytes = half
        fit(tmp_path / "run")

    killed(dying)
    assert contents(tmp_path / "run").keys() == {
        "config.json",
        "checkpoint.pt",
        "checkpoint.pt.part",
    }
    again = Examples()
    net, table = fit(tmp_path / "run", network(seed=1), again)
    assert len(again.order) == 20
    assert_same(net, table, undisturbed)


def test_killed_at_random_moments_it_ends_with_the_weights_of_an_undisturbed_run(tmp_path):
    options = {"epochs": 9, "batch_size": 20, "balanced": True, "select": "kappa", "loss": "corn"}
    whole = fit(tmp_path / "whole", train=Graded(200), **options)
    rng, epochs = np.random.default_rng(), []

    def dying(after, delay):
        def report(history):
            if len(history) == after:
                kill = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
                kill.daemon = True
                kill.start()

        fit(tmp_path / "killed", train=Graded(200), report=report, **options)

    for after in (2, 5):
        killed(dying, after, rng.uniform(0, 2 * whole[1].seconds.median()))
        epochs.append(len(torch.load(tmp_path / "killed" / "checkpoint.pt")["history"]))
    assert 1 <= epochs[0] <= epochs[1] < 9
    net, table = fit(tmp_path / "killed", train=Graded(200), **options)
    assert_same(net, table, whole)


def test_a_finished_run_is_loaded_and_one_with_other_settings_kept_beside(tmp_path, capsys):
    out = tmp_path / "run"
    first, table = fit(out)
    (out / "weights.safetensors").unlink()
    capsys.readouterr()
    again, same = fit(out, network(seed=1), Examples(stop=0))
    assert capsys.readouterr().out == "already trained\n"
    assert not again.training
    assert_same_weights(again.state_dict(), first.state_dict())
    assert_same_weights(load_file(out / "weights.safetensors"), first.state_dict())
    pd.testing.assert_frame_equal(same, table, check_exact=True)
    before = contents(out)
    other, _ = fit(out, network(seed=1), epochs=1)
    assert "kept as run.1" in capsys.readouterr().out
    assert contents(tmp_path / "run.1") == before
    assert_same_weights(load_file(out / "weights.safetensors"), other.state_dict())


def test_a_network_that_learnt_other_tensors_is_not_taken_for_this_one(tmp_path, capsys):
    images, labels = Examples().images, Examples().labels
    fit(tmp_path / "run", train=TensorDataset(images, labels))
    fit(tmp_path / "run", train=TensorDataset(images.clone(), labels))
    assert "already trained" in capsys.readouterr().out
    fit(tmp_path / "run", train=TensorDataset(1 - images, labels))
    assert "kept as run.1" in capsys.readouterr().out


def test_where_the_disk_is_full_the_last_whole_checkpoint_is_kept_and_continued(
    tmp_path, monkeypatch, undisturbed
):
    write, written = Path.write_bytes, []

    def full(path, content):
        written.append(path)
        if len(written) == 3:
            write(path, content[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        OSError, match=r"checkpoint\.pt cannot be written .No space left.*make room"
    ):
        fit(tmp_path / "run")
    monkeypatch.undo()
    assert contents(tmp_path / "run").keys() == {"config.json", "checkpoint.pt"}
    again = Examples()
    net, table = fit(tmp_path / "run", network(seed=1), again)
    assert len(again.order) == 10
    assert_same(net, table, undisturbed)


@pytest.mark.parametrize("name", ["history.csv", "metrics.json", "weights.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"edited"])
def test_what_was_emptied_or_edited_in_a_finished_run_is_written_again(tmp_path, name, content):
    out = tmp_path / "run"
    fit(out)
    before = contents(out)
    (out / name).unlink()
    if content is not None:
        (out / name).write_bytes(content)
    fit(out, network(seed=1), Examples(stop=0))
    assert contents(out) == before


@pytest.mark.parametrize(("name", "said"), [("checkpoint.pt", "damaged"), ("config.json", "empty")])
def test_what_cannot_be_made_again_is_named_where_it_was_emptied(tmp_path, name, said):
    out = tmp_path / "run"
    fit(out)
    (out / name).write_bytes(b"")
    before = contents(out)
    with pytest.raises(ValueError, match=rf"{said}.*(put a whole copy|put the run's)"):
        fit(out)
    assert contents(out) == before


def test_what_is_no_runs_folder_is_refused_and_left_as_it_is(tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "photo.jpg").write_bytes(b"mine")
    message = "mine is there already, and is no run's folder"
    with pytest.raises(ValueError, match=message):
        fit(out)
    with pytest.raises(ValueError, match=message):
        training.fit_head(Headed(), shaped(30, 0), shaped(15, 1), out)
    assert contents(out) == {"photo.jpg": b"mine"}
    assert list(tmp_path.iterdir()) == [out]


def test_of_two_trainings_of_one_name_the_second_is_told_who_holds_it(tmp_path, undisturbed):
    out = tmp_path / "run"

    def another(history):
        if len(history) == 2:
            for second in (
                lambda: fit(out, network(seed=1), learning_rate=1.0),
                lambda: training.fit_head(Headed(), shaped(30, 0), shaped(15, 1), out),
            ):
                holder = rf"training .*run \(process {os.getpid()} on .*wait until it has ended"
                with pytest.raises(RuntimeError, match=holder):
                    second()

    net, table = fit(out, report=another)
    assert_same(net, table, undisturbed)
    assert_same_weights(load_file(out / "weights.safetensors"), net.state_dict())
    assert json.loads((out / "config.json").read_text())["learning_rate"] == 3e-3


# Networks that are not plain


def eager(net):
    return torch.compile(net, backend="eager")


@pytest.mark.parametrize("wrap", [eager, nn.DataParallel, lambda net: eager(nn.DataParallel(net))])
def test_a_network_that_is_wrapped_already_leaves_what_the_plain_one_does(
    tmp_path, undisturbed, wrap
):
    net, out = network(), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(out, wrap(net), Examples(stop=15))
    net = network(seed=1)
    _, table = fit(out, wrap(net))
    assert_same(net, table, undisturbed)
    assert_same_weights(load_file(out / "weights.safetensors"), net.state_dict())
    assert json.loads((out / "config.json").read_text())["network"] == "Sequential"
    same = network(seed=2)
    fit(out, same, Examples(stop=0))
    assert_same(same, table, undisturbed)


def test_tied_weights_are_trained_kept_and_continued(tmp_path):
    def tied(seed):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3))
        net[2].weight = net[1].weight
        return net

    whole = fit(tmp_path / "whole", tied(0), select="kappa")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", tied(0), Examples(stop=15), select="kappa")
    net, table = fit(tmp_path / "run", tied(1), select="kappa")
    assert net[1].weight is net[2].weight
    assert_same(net, table, whole)
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert_same_weights(weights, net.state_dict())


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def test_a_state_that_cannot_be_kept_is_refused_before_training(tmp_path):
    net = nn.Sequential(nn.Flatten(), Stateful(16, 3))
    with pytest.raises(ValueError, match=r"1\._extra_state .* is a dict, and only dense tensors"):
        fit(tmp_path / "run", net)
    assert not list(tmp_path.iterdir())


class Outputs(NamedTuple):
    logits: torch.Tensor
    aux: torch.Tensor | None = None


class Answering(nn.Module):
    """`change` is made to the scores, in training mode or in both."""

    def __init__(self, change, always):
        super().__init__()
        self.linear, self.change, self.always = nn.Linear(16, 3), change, always

    def forward(self, images):
        scores = self.linear(images.flatten(1))
        return self.change(scores) if self.always or self.training else scores


@pytest.mark.parametrize("always", [True, False], ids=["always", "in training"])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (Outputs, "a Outputs"),
        (lambda scores: (scores, scores), "a tuple"),
        (lambda scores: {"logits": scores}, "a dict"),
        (lambda scores: [scores], "a list"),
        (lambda scores: None, "a NoneType"),
        (lambda scores: scores[:, 0], r"a tensor \(\d+,\)"),
        (lambda scores: scores[:, :1], r"a tensor \(\d+, 1\)"),
        (lambda scores: scores[:, :, None, None], r"a tensor \(\d+, 3, 1, 1\)"),
        (lambda scores: scores.mean(0, keepdim=True).repeat(9, 1), r"a tensor \(9, 3\)"),
    ],
)
def test_scores_that_are_no_tensor_b_n_are_refused_before_training(tmp_path, change, found, always):
    mode = "evaluation" if always else "training"
    message = rf"Answering gives {found} for \d+ images in {mode} mode, .*aux_logits = False"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", Answering(change, always))
    assert not list(tmp_path.iterdir())
    if always:
        with pytest.raises(ValueError, match=message):
            training.predict(Answering(change, always), Examples())


def normalised():
    """Batch normalisation of one value a channel."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "alone"),
    [(5, 1, False), (5, 2, False), (3, 2, True), (4, 3, True), (1, 1, True), (5, 4, True)],
)
def test_one_photograph_alone_in_batch_normalisation_is_said_before_training(
    tmp_path, batch_size, accumulate, alone
):
    net, options = normalised(), {"batch_size": batch_size, "accumulate": accumulate}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    if not alone:
        assert len(fit(tmp_path / "run", net, **options)[1]) == 3
        return
    message = f"1 photograph of 10, with batch_size {batch_size}, accumulate {accumulate} and 1 pro"
    for wrap in (lambda net: net, eager):
        with pytest.raises(ValueError, match=message):
            fit(tmp_path / "run", wrap(net), **options)
    assert_same_weights(net.state_dict(), before)
    assert not list(tmp_path.iterdir())
    options = {"epochs": 1, "batch_size": batch_size, "accumulate": accumulate}
    fit(tmp_path / "maps", network(), **options)  # of a map there are many values


# Several processes

TOGETHER = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "balanced": {"balanced": True, "select": "kappa"},
    "corn": {"loss": "corn", "accumulate": 2, "balanced": True},
}


def shared(fabric, folder):
    """What every process does; what it prints and what it is refused is left in a file."""
    options = {"epochs": 3, "seed": 2, "batch_size": 7, "fabric": fabric}
    train, val = Graded(30, dtype=torch.float64), Graded(10, dtype=torch.float64, flips=False)
    stopped = Graded(30, dtype=torch.float64, stop=50 // fabric.world_size)
    out = folder / "continued"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for name, changes in TOGETHER.items():
            training.fit(plain(), train, val, folder / name, **options, **changes)
        with pytest.raises(KeyboardInterrupt):
            training.fit(plain(), stopped, val, out, **options)
        with pytest.raises(ValueError, match="unfinished run with other settings: seed 2 -> 3"):
            training.fit(plain(), train, val, out, **(options | {"seed": 3}))
        training.fit(plain(), train, val, out, **options)
        if fabric.world_size == 2:
            message = (
                "2 processes cannot share a batch of 1 or validate on 10: .* batch_size from 1"
            )
            with pytest.raises(ValueError, match=message):
                training.fit(plain(), train, val, folder / "none", **(options | {"batch_size": 1}))
        torch.manual_seed(0)
        train, val = Graded(60), Graded(20, flips=False)
        net = networks.AllConvNet(3, 1, (8, 16))
        training.fit(net, train, val, folder / "float32", **(options | {"batch_size": 20}))
    (folder / f"printed-{fabric.global_rank}.txt").write_text(printed.getvalue())


def test_two_processes_have_the_loss_curve_and_weights_of_one(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    shared(Fabric(accelerator="cpu", devices=1), tmp_path / "1")
    Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(shared, tmp_path / "2")
    cases = [*TOGETHER, "continued", "float32"]
    assert (tmp_path / "2" / "printed-0.txt").read_text().count("epoch   1 ") == len(cases)
    assert (tmp_path / "2" / "printed-1.txt").read_text() == ""
    for case in cases:
        one, two = tmp_path / "1" / case, tmp_path / "2" / case
        assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
        a, b = (timeless(pd.read_csv(folder / "history.csv")) for folder in (one, two))
        pd.testing.assert_frame_equal(a, b, rtol=2e-4 if case == "float32" else 1e-9, atol=0)
        tolerance = {"rtol": 1e-7, "atol": 1e-9}
        if case == "float32":
            tolerance = {"rtol": 1e-2, "atol": 1e-3}
        weights = (load_file(folder / "weights.safetensors") for folder in (two, one))
        torch.testing.assert_close(*weights, **tolerance)


# What cannot be


def test_nan_in_an_image_stops_training_before_its_weights_are_kept(tmp_path):
    train = Examples()
    train.images[4] = math.nan
    message = (
        r"epoch 1, batch \d of 3: loss nan; images \[4\] of train are not finite\. The checkpoint"
    )
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", train=train)
    assert contents(tmp_path / "run").keys() == {"config.json"}


def test_nan_in_the_third_epoch_leaves_the_second_to_be_continued(tmp_path, undisturbed):
    class Failing(Examples):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image * (math.nan if len(self.order) == 25 else 1), label

    out, train = tmp_path / "run", Failing()
    with pytest.raises(ValueError, match="epoch 3, batch 2 of 3: loss nan") as caught:
        fit(out, train=train)
    assert f"images [{train.order[24]}] of train are not finite" in str(caught.value)
    again = Examples()
    net, table = fit(out, network(seed=1), again)
    assert len(again.order) == 10
    assert_same(net, table, undisturbed)


def test_a_last_step_that_diverges_is_not_kept_though_the_loss_before_it_was_finite(tmp_path):
    val, options = Examples(7), {"epochs": 1, "batch_size": 10, "learning_rate": 1e34}
    val.images *= 1e12
    message = r"epoch 1: loss \d.*, then val loss (nan|inf); lower learning_rate"
    with pytest.raises(ValueError, match=message):
        training.fit(linear(), Examples(), val, tmp_path / "run", **options)
    assert contents(tmp_path / "run").keys() == {"config.json"}


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("whose", ["train", "val"])
@pytest.mark.parametrize(
    ("first", "said"),
    [
        ([-100], r"1 of 20 are not: -100 \(1\)"),
        ([7, -1, 7], r"3 of 20 are not: -1 \(1\), 7 \(2\)"),
        ([3], r"1 of 20 are not: 3 \(1\)"),
    ],
)
def test_labels_that_are_no_grades_are_refused_before_the_first_epoch(
    tmp_path, loss, whose, first, said
):
    unknown, known = Unlabelled(first), Unlabelled(first)
    known.grades = known.labels
    message = f"labels of {whose} are to be 0 to 2, the grades that the network answers, and {said}"
    for dataset in (unknown, known):
        both = {"train": Unlabelled(), "val": Unlabelled()} | {whose: dataset}
        with pytest.raises(ValueError, match=message):
            training.fit(network(), **both, out=tmp_path / "run", epochs=3, loss=loss)
        with pytest.raises(ValueError, match=message):
            training.fit_head(Headed(1), **both, out=tmp_path / "run")
    assert known.order in ([], [0])
    assert not list(tmp_path.iterdir())


def test_labels_that_are_not_those_that_the_dataset_tells_are_refused_when_they_come(tmp_path):
    train = Unlabelled([-100])
    train.grades = torch.arange(20) % 3
    with pytest.raises(ValueError, match=r"labels of a batch .* not: -100 \(1\)"):
        fit(tmp_path / "run", train=train)
    assert contents(tmp_path / "run").keys() == {"config.json"}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.arange(10.0) % 3, r"torch.float32 \(10,\)"),
        (torch.arange(10)[:, None] % 3, r"torch.int64 \(10, 1\)"),
        (torch.eye(3)[torch.arange(10) % 3], r"torch.float32 \(10, 3\)"),
        ((torch.arange(10) % 3).int(), r"torch.int32 \(10,\)"),
    ],
)
def test_labels_that_are_not_one_whole_number_each_are_refused(tmp_path, labels, said):
    train = TensorDataset(Examples().images, labels)
    with pytest.raises(ValueError, match=f"labels of train are {said}: one whole number"):
        fit(tmp_path / "run", train=train)
    named = [(image, "mild") for image in Examples().images]
    with pytest.raises(ValueError, match=r"labels of train are .*mild"):
        fit(tmp_path / "run", train=named)
    assert not list(tmp_path.iterdir())


def graded(labels):
    train = Graded()
    train.grades = train.labels = torch.tensor(labels)
    return train


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: 0, and at least 1"),
        ({"epochs": -1}, "epochs: -1, and at least 1"),
        ({"batch_size": 0}, "batch_size: 0, and at least 1"),
        ({"accumulate": 0}, "accumulate: 0, and at least 1"),
        ({"train": Examples(0)}, "train: 0, and at least 1"),
        ({"val": Examples(0)}, "val: 0, and at least 1"),
        (
            {"loss": "mse"},
            "loss is 'mse'; choose one of cross-entropy, label-smoothing, corn, expected-grade",
        ),
        ({"select": "test"}, "select is 'test'; choose one of last, kappa"),
        ({"balanced": True, "train": Unlabelled()}, "balanced needs train.grades"),
        ({"balanced": 1.5}, "balanced is 1.5; choose 0 to 1"),
        ({"head_rate": 0}, "head_rate is 0; give more than 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; give more than 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf; give more than 0, a finite number"),
        ({"head_rate": 5.0}, "head_rate is 5.0, and Sequential has no `head`"),
        ({"precision": "16"}, "precision is '16'; choose one of 32-true, bf16-mixed"),
        ({"train": Graded(5)}, "train has 5 examples and 0 grades"),
        (
            {"train": graded([0, 0, 1, 0, 0, 1, 0, 1, 0, 1])},
            r"train has \[6, 4, 0\] examples of the grades 0, 1, .*network answers 0 to 2",
        ),
        (
            {"train": graded([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])},
            r"labels of train are to be 0 to 2, .*, and 2 of 10 are not: 3 \(2\)",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, change, message):
    arguments = {"train": Examples(), "val": Examples(), "epochs": 1} | change
    with pytest.raises(ValueError, match=message):
        training.fit(network(), out=tmp_path / "run", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("allocator", ["cpu", "cuda"])
def test_where_memory_runs_out_the_knobs_are_named(tmp_path, allocator):
    class Greedy(nn.Flatten):
        def forward(self, x):
            if self.training and allocator == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB.")
            return super().forward(x) + (torch.empty(2**50)[:1] if self.training else 0)

    net = nn.Sequential(Greedy(), nn.Linear(16, 3))
    message = (
        r"batch_size 4, accumulate 2, precision 32-true: raise accumulate, lower batch_size "
        r"or .*size, or .*bf16"
    )
    with pytest.raises(MemoryError, match=message):
        fit(tmp_path / "run", net, accumulate=2)


def test_another_error_in_the_network_is_passed_on_as_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(tmp_path / "run", nn.Sequential(nn.Flatten(), nn.Linear(15, 3)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_a_gpu_that_is_not_there_is_named(tmp_path, device):
    with pytest.raises(ValueError, match=r"device is cuda.*finds no GPU.*device='cpu'"):
        fit(tmp_path / "run", device=device)
    assert not list(tmp_path.iterdir())


# Scores, and a head alone


def test_predict_scores_every_example_in_order_as_one_by_one_in_evaluation_mode():
    net = network()
    net(torch.randn(50, 1, 4, 4))
    dataset = Examples(11, flips=False)
    scores, labels = training.predict(net.train(), dataset, batch_size=4)
    assert not net.training and not scores.requires_grad
    expected = torch.cat([net(image[None]) for image in dataset.images])
    torch.testing.assert_close(scores, expected.detach())
    assert torch.equal(labels, dataset.labels)
    assert dataset.order == list(range(11))
    some, labels = training.predict(net, dataset, only=[7, 2])
    torch.testing.assert_close(some, expected[[7, 2]].detach())
    assert labels.tolist() == dataset.labels[[7, 2]].tolist()


class Headed(nn.Module):
    """Frozen features (the image's pixels) and 1x1 grade kernels, as `fit_head` wants them."""

    def __init__(self, channels=4):
        super().__init__()
        self.features, self.head = nn.Identity(), nn.Conv2d(channels, 3, 1)

    def sequence(self, images):
        return images.mean((2, 3))

    def forward(self, images):
        return self.head(self.features(images)).mean((2, 3))


def shaped(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randn(n, 4, 3, 3, generator=generator) * 5 + 20
    return TensorDataset(images + torch.eye(4)[labels][:, :, None, None] * 6, labels)


def test_a_fitted_head_gives_the_scores_of_scikit_learns_logistic_regression(tmp_path):
    train, val, net = shaped(60, 0), shaped(30, 1), Headed()
    table = training.fit_head(net, train, val, tmp_path / "run", strengths=(0.1,))
    sequences, grades = (values.numpy() for values in train.tensors)
    sequences = np.tile(sequences.mean((2, 3)), (2, 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000, tol=1e-8))
    model.fit(sequences, np.tile(grades, 2))
    unseen, truth = val.tensors
    expected = model.predict_proba(unseen.mean((2, 3)).numpy())
    np.testing.assert_allclose(net(unseen).softmax(1).detach().numpy(), expected, atol=2e-3)
    assert table.val_accuracy[0] == pytest.approx(np.mean(expected.argmax(1) == truth.numpy()))
    assert table.val_accuracy[0] > 0.7
    again, config = checkpoint.load_network(Headed(), tmp_path / "run", "04")
    assert torch.equal(again(unseen), net(unseen)) and config["strengths"] == [0.1]


def test_the_penalty_is_chosen_with_every_mirror_image_in_its_photographs_fold(tmp_path):
    noise = torch.randn(45, 60, 2, 2, generator=torch.Generator().manual_seed(0))
    # Nothing to learn: with twins on both sides weak penalties would win.
    train = TensorDataset(noise, torch.arange(45) % 3)
    table = training.fit_head(Headed(60), train, train, tmp_path / "run", strengths=(1e-4, 100.0))
    assert table.C[0] == 1e-4 and abs(table.loss[0] - math.log(3)) < 0.05


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1] * 10, r"train has \[10, 10, 0\] examples of the grades"),
        ([0, 1] * 10 + [2] * 4, r"\[10, 10, 4\] examples .* needs 5 at least"),
    ],
)
def test_a_head_needs_photographs_of_every_grade(tmp_path, labels, said):
    labels = torch.tensor(labels)
    train = TensorDataset(torch.randn(len(labels), 4, 3, 3), labels)
    with pytest.raises(ValueError, match=said):
        training.fit_head(Headed(), train, shaped(15, 1), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_mean_of_heads_has_the_mean_of_their_scores_and_is_kept_as_a_run(tmp_path):
    """Heads on the same features: scores are affine in the weights, so their mean is known."""
    members = [Headed() for _ in range(3)]
    val, mean = shaped(30, 1), Headed()
    table = training.average(mean, members, val, tmp_path / "run", loss="cross-entropy")
    images, truth = val.tensors
    with torch.no_grad():
        expected = sum(member(images) for member in members) / 3
    torch.testing.assert_close(mean(images).detach(), expected)
    assert table.val_accuracy[0] == pytest.approx((expected.argmax(1) == truth).float().mean())
    loss = nn.functional.cross_entropy(expected, truth).item()
    assert table.val_loss[0] == pytest.approx(loss, abs=1e-4) and table.kept.tolist() == [True]
    again, config = checkpoint.load_network(Headed(), tmp_path / "run", "04")
    assert torch.equal(again(images), mean(images)) and config["members"] == 3


def test_a_mean_of_one_network_or_of_running_statistics_is_refused(tmp_path):
    val = shaped(15, 1)
    options = {"val": val, "out": tmp_path / "run", "loss": "cross-entropy"}
    with pytest.raises(ValueError, match=r"a mean of 1 network\(s\): give two or more"):
        training.average(Headed(), [Headed()], **options)
    normed = [nn.Sequential(nn.BatchNorm2d(4), Headed()) for _ in range(3)]
    with pytest.raises(ValueError, match=r"0\.running_mean .* without batch normalisation"):
        training.average(normed[0], normed[1:], **options)
    with pytest.raises(RuntimeError, match="head"):
        training.average(Headed(), [Headed(5), Headed(5)], **options)
    assert not list(tmp_path.iterdir())
