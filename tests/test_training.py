"""Training against a re-implementation in NumPy, interrupted wherever it writes, on networks of a few weights."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lib import paths, training
from lib.networks import AllConvNet


class Examples(torch.utils.data.Dataset):
    """`n` images (1, 4, 4) of 3 classes, flipped at random. `order` records the requests; number `stop` interrupts."""

    def __init__(self, n=10, stop=None, dtype=torch.float32, flips=True):
        generator = torch.Generator().manual_seed(n)
        self.labels = torch.arange(n) % 3
        self.images = torch.randn(n, 1, 4, 4, generator=generator, dtype=dtype) + self.labels[:, None, None, None]
        self.order, self.stop, self.flips = [], stop, flips

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if len(self.order) == self.stop:
            raise KeyboardInterrupt
        self.order.append(i)
        image = self.images[i]
        return (image.flip(2) if self.flips and torch.rand(()) < 0.5 else image), int(self.labels[i])


def network(seed=0):
    """Every kind of state there is: weights, running means, a counter, and dropout's draws."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)
    )


def fit(out, net=None, train=None, **changes):
    arguments = {"epochs": 3, "batch_size": 4, "seed": 5, "config": {"channels": (4,)}} | changes
    net = net or network()
    return net, training.fit(net, train or Examples(), Examples(7, flips=False), out, **arguments)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    net, table = fit(out)
    return net, table, out


def one_cycle(step, total, highest):
    """Smith 2018 with cosines: highest / 25 up to the highest in 30 % of the steps, down to the start / 10,000."""
    turn = 0.3 * total - 1
    start, end = highest / 25, highest / 25e4
    if step <= turn:
        return start + (highest - start) * (1 - math.cos(math.pi * step / turn)) / 2
    return highest + (end - highest) * (1 - math.cos(math.pi * (step - turn) / (total - 1 - turn))) / 2


def one_cycle_momentum(step, total):
    turn = 0.3 * total - 1
    if step <= turn:
        return 0.95 - 0.1 * (1 - math.cos(math.pi * step / turn)) / 2
    return 0.85 + 0.1 * (1 - math.cos(math.pi * (step - turn) / (total - 1 - turn))) / 2


def cross_entropy(scores, labels):
    """The mean of -log softmax, and its gradient with respect to the scores."""
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    gradient = shares.copy()
    gradient[rows, labels] -= 1
    return -np.log(shares[rows, labels]).mean(), gradient / len(labels)


def test_the_history_and_the_weights_are_those_of_adamw_and_one_cycle_written_out_in_numpy(tmp_path):
    train, val = Examples(dtype=torch.float64, flips=False), Examples(7, dtype=torch.float64, flips=False)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    parameters = [net[1].weight.detach().numpy().copy(), net[1].bias.detach().numpy().copy()]
    first, second = [[np.zeros_like(p) for p in parameters] for _ in range(2)]
    epochs, size, rate = 3, 4, 0.05
    table = training.fit(net, train, val, tmp_path / "run", epochs=epochs, batch_size=size, learning_rate=rate)

    x, y = train.images.flatten(1).numpy(), train.labels.numpy()
    total, step = epochs * math.ceil(len(x) / size), 0
    for epoch, order in enumerate(np.reshape(train.order, (epochs, len(x)))):
        summed = 0
        for batch in (order[start : start + size] for start in range(0, len(x), size)):
            loss, slope = cross_entropy(x[batch] @ parameters[0].T + parameters[1], y[batch])
            summed += loss * len(batch)
            lr, beta = one_cycle(step, total, rate), one_cycle_momentum(step, total)
            step += 1
            for p, m, v, g in zip(parameters, first, second, (slope.T @ x[batch], slope.sum(0)), strict=True):
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
            "learning_rate": one_cycle(step, total, rate),
        }
        assert table.loc[epoch].to_dict() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(net[1].weight.detach(), parameters[0], rtol=1e-9)
    np.testing.assert_allclose(net[1].bias.detach(), parameters[1], rtol=1e-9)


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own(tmp_path):
    orders = set()
    for seed in (0, 1):
        train = Examples()
        fit(tmp_path / str(seed), train=train, seed=seed)
        epochs = np.reshape(train.order, (3, 10))
        assert (np.sort(epochs) == np.arange(10)).all()
        orders |= {tuple(epoch) for epoch in epochs.tolist()}
    assert len(orders) == 6


@pytest.mark.parametrize("global_seed", [1, 999])
def test_the_result_does_not_depend_on_pytorchs_global_generator_nor_moves_it(tmp_path, undisturbed, global_seed):
    net = network()
    torch.manual_seed(global_seed)
    before = torch.get_rng_state()
    _, table = fit(tmp_path / "run", net)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())
    pd.testing.assert_frame_equal(table, undisturbed[1], check_exact=True)


def test_it_leaves_the_four_files_and_the_checkpoint_and_prints_a_line_an_epoch(tmp_path, capsys):
    out = tmp_path / "deep" / "run"
    net, table = fit(out)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1"], ["epoch", "2"], ["epoch", "3"]]
    assert f"loss {table.loss[2]:.3f}" in lines[2] and f"accuracy {table.val_accuracy[2]:.3f}" in lines[2]

    names = {"weights.safetensors", "history.csv", "metrics.json", "config.json", "checkpoint.pt"}
    assert set(contents(out)) == names
    assert_same_weights(load_file(out / "weights.safetensors"), net.state_dict())
    assert list(table) == ["epoch", "loss", "val_loss", "val_accuracy", "learning_rate"]
    pd.testing.assert_frame_equal(pd.read_csv(out / "history.csv"), table)
    assert json.loads((out / "metrics.json").read_text()) == table.loc[2].to_dict()
    assert json.loads((out / "config.json").read_text()) == {
        "epochs": 3, "batch_size": 4, "learning_rate": 3e-3, "seed": 5,
        "network": "Sequential", "train": 10, "val": 7, "channels": [4],
    }  # fmt: skip
    assert not net.training


@pytest.mark.parametrize("examples", [0, 3, 10, 17, 29])
def test_interrupted_at_any_example_it_continues_to_the_weights_of_an_undisturbed_run(
    tmp_path, capsys, undisturbed, examples
):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(out, train=Examples(stop=examples))
    with pytest.raises(FileNotFoundError):
        training.load(network(), out, "04")
    whole = examples // 10
    capsys.readouterr()
    again = Examples()
    net, table = fit(out, network(seed=1 if whole else 0), again)
    assert len(again.order) == 30 - 10 * whole
    assert (f"continues after epoch {whole} of 3" in capsys.readouterr().out) == (whole > 0)
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())
    pd.testing.assert_frame_equal(table, undisturbed[1], check_exact=True)
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", range(7))
def test_stopped_beside_any_write_nothing_half_made_is_taken_for_whole(tmp_path, monkeypatch, undisturbed, write, when):
    out, done = tmp_path / "run", []
    replace = os.replace

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
        assert_same_weights(load_file(out / "weights.safetensors"), undisturbed[0].state_dict())
    else:
        with pytest.raises(FileNotFoundError):
            training.load(network(), out, "04")
    net, table = fit(out, network(seed=1 if (out / "checkpoint.pt").exists() else 0))
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())
    pd.testing.assert_frame_equal(table, undisturbed[1], check_exact=True)
    assert contents(out).keys() == contents(undisturbed[2]).keys()


def test_killed_while_it_writes_a_checkpoint_it_continues_from_the_one_before(tmp_path, undisturbed):
    out = tmp_path / "run"
    program = f"""
import io, os, signal, torch
import test_training

save, saved = torch.save, []

def dying(states, path):
    whole = io.BytesIO()
    save(states, whole)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // (len(saved) + 1)])
    saved.append(path)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = dying
test_training.fit({str(out)!r})
"""
    folders = os.pathsep.join([str(paths.ROOT), str(paths.ROOT / "tests")])
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": folders})
    assert killed.returncode == -signal.SIGKILL
    assert set(contents(out)) == {"config.json", "checkpoint.pt", "checkpoint.pt.part"}

    again = Examples()
    net, table = fit(out, network(seed=1), again)
    assert len(again.order) == 20
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())
    pd.testing.assert_frame_equal(table, undisturbed[1], check_exact=True)


def test_a_finished_run_is_loaded_and_not_repeated(tmp_path, capsys):
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


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 2},
        {"batch_size": 5},
        {"learning_rate": 1e-3},
        {"seed": 6},
        {"config": {"channels": (5,)}},
        {"config": None},
        {"train": Examples(11)},
        {"net": AllConvNet(3, 1, (2,))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_run_with_another_configuration_is_kept_beside_and_none_is_lost(tmp_path, capsys, change):
    out = tmp_path / "run"
    fit(out, epochs=1)
    original = contents(out)
    fit(out, **({"epochs": 1} | change))
    changed = contents(out)
    assert "kept as run.1" in capsys.readouterr().out
    assert contents(tmp_path / "run.1") == original
    fit(out, epochs=1)
    assert contents(tmp_path / "run.1") == original
    assert contents(tmp_path / "run.2") == changed
    assert_same_weights(*[load_file(tmp_path / name / "weights.safetensors") for name in ("run", "run.1")])


@pytest.mark.parametrize("damage", [None, b"", b'{"epochs": 3,', b"\xff\xfe\x00", b"[]"])
def test_a_folder_whose_configuration_cannot_be_read_is_kept_beside(tmp_path, undisturbed, damage):
    out = tmp_path / "run"
    fit(out)
    (out / "config.json").unlink()
    if damage is not None:
        (out / "config.json").write_bytes(damage)
    before, again = contents(out), Examples()
    net, _ = fit(out, train=again)
    assert len(again.order) == 30
    assert contents(tmp_path / "run.1") == before
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())


@pytest.mark.parametrize("keep", [0, 10, 1000, -30])
def test_a_damaged_checkpoint_is_named_and_left_where_it_is(tmp_path, keep):
    out = tmp_path / "run"
    fit(out)
    (out / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes()[:keep])
    before = contents(out)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*delete .*run to train anew"):
        fit(out)
    assert contents(out) == before


def test_a_checkpoint_of_another_network_is_not_continued(tmp_path):
    out = tmp_path / "run"
    fit(out)
    before = contents(out)
    with pytest.raises(ValueError, match=r"(?s)another network's .*size mismatch for 1\.weight"):
        fit(out, nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    assert contents(out) == before


def test_nan_in_an_image_stops_training_before_its_weights_are_kept(tmp_path):
    train = Examples()
    train.images[4] = math.nan
    with pytest.raises(ValueError, match=r"epoch 1 diverged, loss nan.*lower learning_rate from 0\.003"):
        fit(tmp_path / "run", train=train)
    assert set(contents(tmp_path / "run")) == {"config.json"}


def test_a_last_step_that_diverges_is_not_kept_though_the_loss_before_it_was_finite(tmp_path):
    net, val = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Examples(7)
    val.images *= 1e12
    with pytest.raises(ValueError, match=r"epoch 1 diverged, loss \d.*val loss (nan|inf).*1e\+34"):
        training.fit(net, Examples(), val, tmp_path / "run", epochs=1, batch_size=10, learning_rate=1e34)
    assert set(contents(tmp_path / "run")) == {"config.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"train": Examples(0)}, "train's length is 0"),
        ({"val": Examples(0)}, "val's length is 0"),
    ],
)
def test_a_count_below_one_is_refused_before_anything_is_written(tmp_path, change, message):
    arguments = {"train": Examples(), "val": Examples(), "epochs": 1} | change
    with pytest.raises(ValueError, match=message):
        training.fit(network(), out=tmp_path / "run", **arguments)
    assert not list(tmp_path.iterdir())


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


def test_load_gives_the_trained_network_ready_to_use_and_its_configuration(undisturbed):
    net, _, out = undisturbed
    loaded, config = training.load(network(seed=1).train(), str(out), "04")
    assert not loaded.training
    assert config == json.loads((out / "config.json").read_text())
    images = torch.randn(5, 1, 4, 4)
    assert torch.equal(loaded(images), net(images))


def test_load_names_the_notebook_where_no_training_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*04_radiomic_sequencer"):
        training.load(network(), tmp_path / "nowhere", "04_radiomic_sequencer")
    (tmp_path / "weights.safetensors.part").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="04_radiomic_sequencer"):
        training.load(network(), tmp_path, "04_radiomic_sequencer")


def test_load_names_the_weights_that_are_another_networks(undisturbed):
    with pytest.raises(ValueError, match=r"not a AllConvNet's: .*head\.weight"):
        training.load(AllConvNet(3, 1, (4,)), undisturbed[2], "02")
