"""Training against a re-implementation in NumPy, interrupted wherever it writes, killed, and on two processes."""

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import TensorDataset

from lib import paths
from lib.learning import losses as objectives
from lib.learning import training
from lib.learning.networks import AllConvNet

COLUMNS = [
    "epoch",
    "loss",
    "val_loss",
    "val_accuracy",
    "val_kappa",
    "learning_rate",
    "seconds",
    "wait_share",
    "kept",
]
FOLDERS = os.pathsep.join([str(paths.ROOT), str(paths.ROOT / "tests")])


class Examples(torch.utils.data.Dataset):
    """`n` images (1, 4, 4) of 3 classes, flipped at random. `order` records the requests; number `stop` interrupts."""

    def __init__(self, n=10, stop=None, dtype=torch.float32, flips=True):
        generator = torch.Generator().manual_seed(n)
        self.labels = torch.arange(n) % 3
        self.images = (
            torch.randn(n, 1, 4, 4, generator=generator, dtype=dtype)
            + self.labels[:, None, None, None]
        )
        self.order, self.stop, self.flips = [], stop, flips

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if len(self.order) == self.stop:
            raise KeyboardInterrupt
        self.order.append(i)
        image = self.images[i]
        return (image.flip(2) if self.flips and torch.rand(()) < 0.5 else image), int(
            self.labels[i]
        )


class Graded(Examples):
    """Examples whose labels are known without reading them: 6, 3 and 1 of ten are of class 0, 1 and 2."""

    def __init__(self, n=10, **options):
        super().__init__(n, **options)
        self.labels = self.grades = torch.tensor([0, 0, 1, 0, 0, 1, 0, 1, 0, 2]).repeat(n // 10)


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


def fit(out, net=None, train=None, **changes):
    arguments = {"epochs": 3, "batch_size": 4, "seed": 5, "config": {"channels": (4,)}} | changes
    net = net or network()
    return net, training.fit(net, train or Examples(), Examples(7, flips=False), out, **arguments)


def plain():
    """A network in which an example's score does not depend on the others, in float64."""
    torch.manual_seed(3)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).double()


def assert_same_history(a, b):
    pd.testing.assert_frame_equal(
        *(t.drop(columns=["seconds", "wait_share"]) for t in (a, b)), check_exact=True
    )


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
    return (
        highest + (end - highest) * (1 - math.cos(math.pi * (step - turn) / (total - 1 - turn))) / 2
    )


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


def test_the_history_and_the_weights_are_those_of_adamw_and_one_cycle_written_out_in_numpy(
    tmp_path,
):
    train, val = (
        Examples(dtype=torch.float64, flips=False),
        Examples(7, dtype=torch.float64, flips=False),
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    parameters = [net[1].weight.detach().numpy().copy(), net[1].bias.detach().numpy().copy()]
    first, second = [[np.zeros_like(p) for p in parameters] for _ in range(2)]
    epochs, size, rate = 3, 4, 0.05
    table = training.fit(
        net, train, val, tmp_path / "run", epochs=epochs, batch_size=size, learning_rate=rate
    )

    x, y = train.images.flatten(1).numpy(), train.labels.numpy()
    total, step = epochs * math.ceil(len(x) / size), 0
    for epoch, order in enumerate(np.reshape(train.order, (epochs, len(x)))):
        summed = 0
        for batch in np.array_split(order, math.ceil(len(x) / size)):
            loss, slope = cross_entropy(x[batch] @ parameters[0].T + parameters[1], y[batch])
            summed += loss * len(batch)
            lr, beta = one_cycle(step, total, rate), one_cycle_momentum(step, total)
            step += 1
            for p, m, v, g in zip(
                parameters, first, second, (slope.T @ x[batch], slope.sum(0)), strict=True
            ):
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
        assert table.loc[epoch, list(expected)].to_dict() == pytest.approx(expected, rel=1e-6)
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
def test_the_result_does_not_depend_on_pytorchs_global_generator_nor_moves_it(
    tmp_path, undisturbed, global_seed
):
    net = network()
    torch.manual_seed(global_seed)
    before = torch.get_rng_state()
    _, table = fit(tmp_path / "run", net)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())
    assert_same_history(table, undisturbed[1])


def test_it_leaves_the_four_files_and_the_checkpoint_and_prints_a_line_an_epoch(tmp_path, capsys):
    out = tmp_path / "deep" / "run"
    net, table = fit(out)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1"], ["epoch", "2"], ["epoch", "3"]]
    assert (
        f"loss {table.loss[2]:.3f}" in lines[2]
        and f"accuracy {table.val_accuracy[2]:.3f}" in lines[2]
    )

    names = {"weights.safetensors", "history.csv", "metrics.json", "config.json", "checkpoint.pt"}
    assert set(contents(out)) == names
    assert_same_weights(load_file(out / "weights.safetensors"), net.state_dict())
    assert list(table) == COLUMNS
    assert table.kept.tolist() == [False, False, True]
    assert (table.seconds > 0).all() and table.wait_share.between(0, 1).all()
    pd.testing.assert_frame_equal(pd.read_csv(out / "history.csv"), table)
    assert json.loads((out / "metrics.json").read_text()) == table.loc[2].to_dict()
    assert json.loads((out / "config.json").read_text()) == {
        "epochs": 3, "batch_size": 4, "learning_rate": 3e-3, "seed": 5, "loss": "cross-entropy", "balanced": False,
        "select": "last", "accumulate": 1, "precision": "32-true", "network": "Sequential", "train": 10, "val": 7,
        "channels": [4],
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
    assert_same_history(table, undisturbed[1])
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", range(7))
def test_stopped_beside_any_write_nothing_half_made_is_taken_for_whole(
    tmp_path, monkeypatch, undisturbed, write, when
):
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
    assert_same_history(table, undisturbed[1])
    assert contents(out).keys() == contents(undisturbed[2]).keys()


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint_it_continues_from_the_one_before(
    tmp_path, undisturbed
):
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
    killed = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": FOLDERS}
    )
    assert killed.returncode == -signal.SIGKILL
    assert set(contents(out)) == {"config.json", "checkpoint.pt", "checkpoint.pt.part"}

    again = Examples()
    net, table = fit(out, network(seed=1), again)
    assert len(again.order) == 20
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())
    assert_same_history(table, undisturbed[1])


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
    assert_same_weights(
        *[load_file(tmp_path / name / "weights.safetensors") for name in ("run", "run.1")]
    )


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
    with pytest.raises(
        ValueError,
        match=r"epoch 1, batch \d of 3: loss nan; images \[4\] of train are not finite\. The checkpoint",
    ):
        fit(tmp_path / "run", train=train)
    assert set(contents(tmp_path / "run")) == {"config.json"}


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
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())
    assert_same_history(table, undisturbed[1])


def test_a_last_step_that_diverges_is_not_kept_though_the_loss_before_it_was_finite(tmp_path):
    net, val = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Examples(7)
    val.images *= 1e12
    with pytest.raises(
        ValueError, match=r"epoch 1: loss \d.*, then val loss (nan|inf); lower learning_rate"
    ):
        training.fit(
            net, Examples(), val, tmp_path / "run", epochs=1, batch_size=10, learning_rate=1e34
        )
    assert set(contents(tmp_path / "run")) == {"config.json"}


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
        ({"balanced": True}, "balanced needs train.grades"),
        ({"train": Graded(5)}, r"train has \[0, 0, 0\] examples of the grades"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, change, message):
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


@pytest.mark.parametrize("content", [b"", b"\0" * 100, pickle.dumps({"0.weight": 1}), None])
def test_load_names_weights_that_are_damaged_or_no_weights(tmp_path, undisturbed, content):
    out = tmp_path / "run"
    shutil.copytree(undisturbed[2], out)
    whole = (out / "weights.safetensors").read_bytes()
    (out / "weights.safetensors").write_bytes(whole[:-8] if content is None else content)
    with pytest.raises(
        ValueError, match=r"weights\.safetensors is damaged.*delete .*run and run notebook 04 again"
    ):
        training.load(network(), out, "04")


def test_load_names_the_weights_that_are_another_networks(undisturbed):
    with pytest.raises(ValueError, match=r"not a AllConvNet's: .*head\.weight"):
        training.load(AllConvNet(3, 1, (4,)), undisturbed[2], "02")


def test_an_unfinished_run_with_other_settings_is_refused_and_the_differences_are_listed(
    tmp_path, undisturbed
):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(out, train=Examples(stop=15))
    before = contents(out)
    with pytest.raises(
        ValueError, match=r"run holds an unfinished run with other settings: (.*)\. Set them back"
    ) as caught:
        fit(out, batch_size=5, config={"fingerprint": "b"})
    listed = "batch_size 4 -> 5, channels [4] -> None, fingerprint None -> 'b'. Set them back"
    assert listed in str(caught.value) and "delete the folder or choose another run name" in str(
        caught.value
    )
    assert contents(out) == before and not (tmp_path / "run.1").exists()
    net, _ = fit(out, network(seed=1))
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())


def test_a_run_stopped_in_its_first_epoch_has_nothing_to_lose(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(out, train=Examples(stop=5))
    _, table = fit(out, batch_size=5)
    assert len(table) == 3


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_weights_of_an_undisturbed_run(tmp_path):
    options = {"epochs": 12, "batch_size": 20, "balanced": True, "select": "kappa", "loss": "corn"}
    net, table = fit(tmp_path / "whole", train=Graded(400), **options)
    program = "import sys, test_training as t; t.fit(sys.argv[1], train=t.Graded(400), **eval(sys.argv[2]))"
    command = [sys.executable, "-u", "-c", program, str(tmp_path / "killed"), str(options)]
    rng, epochs = np.random.default_rng(), []
    for _ in range(2):
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": FOLDERS}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(rng.integers(2, 5)):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 2 * table.seconds.median()))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        epochs.append(len(torch.load(tmp_path / "killed" / "checkpoint.pt")["history"]))
    assert 1 <= epochs[0] <= epochs[1] < 12
    killed, again = fit(tmp_path / "killed", train=Graded(400), **options)
    assert_same_weights(killed.state_dict(), net.state_dict())
    assert_same_history(again, table)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_and_weights_of_one(tmp_path):
    command = [
        sys.executable,
        str(paths.ROOT / "tests" / "learning" / "two_processes.py"),
        "2",
        str(tmp_path / "2"),
    ]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": FOLDERS}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    import two_processes

    two_processes.main(1, tmp_path / "1")
    cases = sorted(folder.name for folder in (tmp_path / "2").iterdir())
    assert cases == ["accumulated", "balanced", "continued", "corn", "float32", "plain"]
    assert done.stdout.count("epoch   1 ") == len(cases)  # one process prints
    for case in cases:
        one, two = (tmp_path / processes / case for processes in ("1", "2"))
        assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
        a, b = (
            pd.read_csv(folder / "history.csv").drop(columns=["seconds", "wait_share"])
            for folder in (one, two)
        )
        pd.testing.assert_frame_equal(a, b, rtol=2e-4 if case == "float32" else 1e-9, atol=0)
        tolerance = (
            {"rtol": 1e-2, "atol": 1e-3} if case == "float32" else {"rtol": 1e-7, "atol": 1e-9}
        )
        weights = (load_file(folder / "weights.safetensors") for folder in (two, one))
        torch.testing.assert_close(*weights, **tolerance)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("grades", [None, Graded(20).grades])
def test_the_processes_share_every_batch_and_none_is_larger_than_asked_for(world, grades):
    whole = training.batches(20, 6, seed=1, epoch=2, grades=grades)
    shares = [training.batches(20, 6, 1, 2, grades, rank, world) for rank in range(world)]
    together = [
        sorted(key for part in parts for key in part) for parts in zip(*shares, strict=True)
    ]
    assert together == [sorted(batch) for batch in whole]
    assert [len(batch) for batch in whole] == [5, 5, 5, 5]
    assert (max(len(part) for share in shares for part in share)) == math.ceil(5 / world)
    for seed, epoch in ((1, 3), (2, 2)):
        assert training.batches(20, 6, seed, epoch, grades) != whole


def test_balanced_batches_hold_every_grade_equally_often():
    grades = (
        torch.arange(1000) // 10 % 10 // 9 + torch.arange(1000) // 990
    )  # 900 of 0, 90 of 1, 10 of 2
    assert grades.bincount().tolist() == [900, 90, 10]
    drawn = [
        index
        for epoch in range(3)
        for batch in training.batches(1000, 32, 0, epoch, grades)
        for _, index in batch
    ]
    assert len(drawn) == 3000
    assert (grades[drawn].bincount() - 1000).abs().max() < 150  # 5.8 deviations of a fair draw
    assert len(set(drawn)) > 650 and min(torch.tensor(drawn).bincount(minlength=1000)[990:]) > 50


def test_an_example_drawn_twice_is_flipped_anew_and_the_same_wherever_it_is_drawn():
    train = Examples()
    keys = [
        key for epoch in range(100) for batch in training.batches(10, 4, 0, epoch) for key in batch
    ]
    assert len({seed for seed, _ in keys}) == 1000
    flipped = [
        not torch.equal(training.Seeded(train)[key][0], train.images[key[1]]) for key in keys
    ]
    assert 430 < sum(flipped) < 570  # 4.4 deviations of a fair coin
    torch.rand(7)
    assert flipped == [
        not torch.equal(training.Seeded(train)[key][0], train.images[key[1]]) for key in keys
    ]


def test_processes_that_load_change_nothing_not_even_dropout(tmp_path, undisturbed):
    net, table = fit(tmp_path / "run", workers=2)
    assert_same_weights(net.state_dict(), undisturbed[0].state_dict())
    assert_same_history(table, undisturbed[1])


@pytest.mark.parametrize("loss", objectives.LOSSES)
def test_a_step_in_parts_is_the_step_of_the_whole_batch(tmp_path, loss):
    fitted = []
    for accumulate in (1, 2, 7):
        train, val = Graded(20, dtype=torch.float64), Graded(dtype=torch.float64)
        options = {"epochs": 2, "batch_size": 6, "loss": loss, "accumulate": accumulate}
        table = training.fit(net := plain(), train, val, tmp_path / str(accumulate), **options)
        fitted.append((net.state_dict(), table.loc[:, "loss":"learning_rate"]))
    for weights, table in fitted[1:]:
        torch.testing.assert_close(weights, fitted[0][0], rtol=1e-9, atol=1e-12)
        pd.testing.assert_frame_equal(table, fitted[0][1], rtol=1e-9)


@pytest.mark.parametrize("loss", objectives.LOSSES)
def test_the_history_of_every_objective_is_recomputed_from_the_kept_weights(tmp_path, loss):
    val = Graded(flips=False)
    table = training.fit(
        net := network(), Graded(), val, tmp_path / "run", epochs=3, batch_size=4, loss=loss
    )
    scores, labels = training.predict(net, val)
    losses, terms = objectives.LOSSES[loss](scores, labels)
    last = table.iloc[-1]
    assert last.val_loss == pytest.approx((losses.sum() / terms.sum()).item(), rel=1e-5)
    answers = objectives.answers(scores, loss)
    assert last.val_accuracy == pytest.approx((answers == labels).double().mean().item())
    assert last.val_kappa == pytest.approx(objectives.kappa(answers, labels))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["loss"] == loss


@pytest.mark.parametrize("stop", [None, 15, 35])
def test_selection_keeps_the_first_epoch_with_the_highest_kappa_also_after_an_interruption(
    tmp_path, monkeypatch, stop
):
    kappas, snapshots, net = [0.1, 0.5, 0.5, 0.2], [], network()

    def kappa(answers, labels):
        snapshots.append({name: value.clone() for name, value in net.state_dict().items()})
        return kappas[len(snapshots) - 1]

    monkeypatch.setattr(objectives, "kappa", kappa)
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


def test_images_may_come_as_bytes_and_be_normalised_on_the_device(tmp_path):
    class Bytes(Examples):
        def __init__(self, n, floats, flips=True):
            super().__init__(n, flips=flips)
            self.bytes = (self.images * 40 + 100).clamp(0, 255).byte()
            self.images = self.normalise(self.bytes) if floats else self.bytes

        def normalise(self, images):
            return (images.float() / 255 - 0.4) / 0.2

    fitted = []
    for floats in (False, True):
        train, val = Bytes(10, floats), Bytes(7, floats, flips=False)
        table = training.fit(
            net := network(), train, val, tmp_path / str(floats), epochs=2, batch_size=4
        )
        fitted.append((net, table, training.predict(net, val)))
    assert_same_weights(fitted[0][0].state_dict(), fitted[1][0].state_dict())
    assert_same_history(fitted[0][1], fitted[1][1])
    assert torch.equal(fitted[0][2][0], fitted[1][2][0])


def test_precision_is_fabrics_word_and_one_of_the_settings(tmp_path):
    train, val = Graded(40), Graded()
    tables = {}
    for precision in ("32-true", "bf16-mixed"):
        fabric, net = Fabric(accelerator="cpu", devices=1, precision=precision), plain().float()
        out = tmp_path / precision
        tables[precision] = training.fit(
            net, train, val, out, epochs=3, batch_size=10, fabric=fabric
        )
        assert json.loads((out / "config.json").read_text())["precision"] == precision
        assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    losses = [table.loss for table in tables.values()]
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert (losses[0] != losses[1]).all()


def test_a_compiled_network_has_the_same_loss_curve(tmp_path, monkeypatch):
    asked, compiler = (
        [],
        torch.compile,
    )  # PyTorch's own back end would call a C++ compiler, for minutes

    def traced(net, backend="eager"):
        asked.append(net)
        return compiler(net, backend=backend)

    monkeypatch.setattr(torch, "compile", traced)
    tables = []
    for compile in (False, True):
        train, val = Graded(20, dtype=torch.float64), Graded(dtype=torch.float64)
        table = training.fit(
            net := plain(),
            train,
            val,
            tmp_path / str(compile),
            epochs=2,
            batch_size=10,
            compile=compile,
        )
        tables.append(table.loc[:, "loss":"learning_rate"])
        assert set(load_file(tmp_path / str(compile) / "weights.safetensors")) == set(
            net.state_dict()
        )
    pd.testing.assert_frame_equal(*tables, rtol=1e-9)
    assert asked and all(compiled is net for compiled in asked)


@pytest.mark.parametrize("allocator", ["cpu", "cuda"])
def test_where_memory_runs_out_the_knobs_are_named(tmp_path, allocator):
    class Greedy(nn.Flatten):
        def forward(self, x):
            if self.training and allocator == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB.")
            return super().forward(x) + (torch.empty(2**50)[:1] if self.training else 0)

    net = nn.Sequential(Greedy(), nn.Linear(16, 3))
    message = r"batch_size 4, accumulate 2, precision 32-true: raise accumulate, lower batch_size or .*size, or .*bf16"
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


def test_a_grade_that_is_missing_from_the_training_part_is_named(tmp_path):
    train = Graded()
    train.grades = train.labels = train.labels.clamp(max=1)
    with pytest.raises(
        ValueError,
        match=r"train has \[6, 4, 0\] examples of the grades 0, 1, .*network answers 0 to 2",
    ):
        fit(tmp_path / "run", train=train)
    train.grades = train.labels = torch.arange(10) % 4
    with pytest.raises(ValueError, match=r"train has \[3, 3, 2, 2\] examples of the grades"):
        fit(tmp_path / "run", train=train)
    assert not list(tmp_path.iterdir())


def test_a_report_is_given_the_history_after_each_epoch_instead_of_a_printed_line(tmp_path, capsys):
    seen = []
    net = network()
    table = training.fit(
        net,
        Examples(),
        Examples(7),
        tmp_path / "run",
        epochs=2,
        report=lambda history: seen.append(list(history)),
    )
    assert capsys.readouterr().out == ""
    assert [[row["epoch"] for row in history] for history in seen] == [[1], [1, 2]]
    assert [row["loss"] for row in seen[1]] == table.loss.tolist()


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
    images = (
        torch.randn(n, 4, 3, 3, generator=generator) * 5
        + torch.eye(4)[labels][:, :, None, None] * 6
        + 20
    )
    return TensorDataset(images, labels)


def test_a_fitted_head_gives_the_scores_of_scikit_learns_logistic_regression(tmp_path):
    train, val = shaped(60, 0), shaped(30, 1)
    table = training.fit_head(network := Headed(), train, val, tmp_path / "run", strengths=(0.1,))
    sequences = train.tensors[0].mean((2, 3)).numpy()
    both, grades = np.concatenate([sequences, sequences]), np.tile(train.tensors[1].numpy(), 2)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000, tol=1e-8)).fit(
        both, grades
    )
    unseen = val.tensors[0]
    expected = model.predict_proba(unseen.mean((2, 3)).numpy())
    np.testing.assert_allclose(network(unseen).softmax(1).detach().numpy(), expected, atol=2e-3)
    assert table.val_accuracy[0] == np.mean(expected.argmax(1) == val.tensors[1].numpy()) > 0.7
    again, config = training.load(Headed(), tmp_path / "run", "04")
    assert torch.equal(again(unseen), network(unseen)) and config["strengths"] == [0.1]


def test_the_penalty_is_chosen_by_cross_validation_in_which_a_mirror_image_stays_with_its_photograph(
    tmp_path,
):
    noise = torch.randn(45, 60, 2, 2, generator=torch.Generator().manual_seed(0))
    train = TensorDataset(
        noise, torch.arange(45) % 3
    )  # nothing to learn: with twins on both sides weak penalties win
    table = training.fit_head(Headed(60), train, train, tmp_path / "run", strengths=(1e-4, 100.0))
    assert table.C[0] == 1e-4 and abs(table.loss[0] - math.log(3)) < 0.05
