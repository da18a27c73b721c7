"""The folder of a training: who may have it, what is resumed from it, and what is read from it."""

import errno
import hashlib
import json
import pickle
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lib import paths
from lib.learning import checkpoint
from lib.learning.networks import AllConvNet

CPU = torch.device("cpu")
HISTORY = [{"epoch": 1, "loss": 0.5, "kept": True}, {"epoch": 2, "loss": 0.7, "kept": False}]
SETTINGS = {
    "seed": 1, "channels": (4,), "network": "Linear", "loss": "corn", "balanced": False,
    "select": "last", "accumulate": 1, "precision": "32-true",
}  # fmt: skip
WRITTEN = SETTINGS | {"channels": [4]}


def claim(out, **changes):
    with checkpoint.claim_run(out, SETTINGS | changes):
        pass


def contents(folder):
    """What is in a folder, at any depth."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def parts(seed=0, inputs=3):
    """A network and an optimiser that has made a step."""
    torch.manual_seed(seed)
    network = nn.Linear(inputs, 2)
    optimiser = torch.optim.AdamW(network.parameters())
    network(torch.randn(5, inputs)).sum().backward()
    optimiser.step()
    return {"network": network, "optimiser": optimiser}


@pytest.fixture
def finished(tmp_path):
    """A finished run of a linear network, and the network."""
    out = tmp_path / "run"
    claim(out)
    network = parts()["network"]
    checkpoint.save_checkpoint(out, SETTINGS, parts(), HISTORY, None)
    table = checkpoint.save_run(out, SETTINGS, network, HISTORY)
    return out, network, table


# Whose a folder is


@pytest.mark.parametrize("name", ["phantom", "phantom-seed3", "a.b_C", "größe", "x" * 100])
def test_a_plain_run_name_is_a_folder_of_sequencers(name):
    assert checkpoint.run_folder(name) == paths.SEQUENCERS / name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/etc", "../x", ".hidden", "-x", "a b", "a\\b", "a\n", "a\0", "x" * 101],
)
def test_a_run_name_that_is_no_plain_one_is_refused_with_the_name(name):
    with pytest.raises(ValueError, match=r"run name .*data/sequencers/: take .*letters") as caught:
        checkpoint.run_folder(name)
    assert repr(name) in str(caught.value)


def test_a_folder_is_claimed_once_and_again_by_the_same_settings(tmp_path, capsys):
    out = tmp_path / "deep" / "run"
    for _ in range(2):
        claim(out, channels=(4, 5))
        assert json.loads((out / "config.json").read_text()) == WRITTEN | {"channels": [4, 5]}
    assert contents(out).keys() == {"config.json"}
    assert {path.name for path in out.parent.iterdir()} == {"run", "run.lock"}
    assert capsys.readouterr().out == ""


def test_a_finished_run_with_other_settings_is_kept_beside_and_none_is_lost(finished, capsys):
    out, _, _ = finished
    for number in (1, 2):
        (out / "history.csv").write_text(f"{number}")
        before = contents(out)
        claim(out, seed=1 + number)
        kept = f"run held a run with another configuration, kept as run.{number}\n"
        assert capsys.readouterr().out == kept
        assert contents(out.with_name(f"run.{number}")) == before
    assert contents(out).keys() == {"config.json"}
    assert json.loads((out / "config.json").read_text()) == WRITTEN | {"seed": 3}


NOBODYS = [None, b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b'{"network": "resnet18", "lr": 0.1}']


@pytest.mark.parametrize("config", NOBODYS)
@pytest.mark.parametrize("inside", ["photo.jpg", "weights.safetensors", "2024/photo.jpg"])
def test_a_folder_without_a_runs_own_config_is_refused_and_left_as_it_is(tmp_path, config, inside):
    out = tmp_path / "mine"
    (out / inside).parent.mkdir(parents=True)
    (out / inside).write_bytes(b"mine")
    if config is not None:
        (out / "config.json").write_bytes(config)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"mine is there already.*config\.json is absent, empty"):
        claim(out)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", NOBODYS)
def test_a_finished_run_whose_configuration_was_damaged_is_not_moved_either(finished, damage):
    out, _, _ = finished
    (out / "config.json").unlink()
    if damage is not None:
        (out / "config.json").write_bytes(damage)
    before = contents(out.parent)
    with pytest.raises(ValueError, match="choose another run name, move what is there, or put"):
        claim(out)
    assert contents(out.parent) == before


@pytest.mark.parametrize("spelling", ["", ".", "..", "../mine", "mine", "/"])
def test_a_folder_of_the_user_is_refused_in_every_spelling(tmp_path, monkeypatch, spelling):
    (tmp_path / "mine" / "mine").mkdir(parents=True)
    (tmp_path / "mine" / "mine" / "photo.jpg").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(ValueError, match="is there already, and is no run's folder"):
        claim(checkpoint.Path(spelling))
    assert contents(tmp_path).keys() == {"mine/mine/photo.jpg"}


def test_a_file_is_no_folder_and_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ValueError, match="file is there already"):
        claim(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    claim(tmp_path / "link")
    assert contents(tmp_path / "empty").keys() == {"config.json"}


def test_an_unfinished_run_with_other_settings_is_refused_and_the_differences_are_listed(finished):
    out, _, _ = finished
    (out / "weights.safetensors").unlink()
    before = contents(out)
    with pytest.raises(ValueError, match="holds an unfinished run with other settings") as caught:
        claim(out, seed=2, fingerprint="b", channels=None)
    listed = "channels [4] -> None, fingerprint None -> 'b', seed 1 -> 2. Set them back to continue"
    assert listed in str(caught.value)
    assert "delete the folder or choose another run name" in str(caught.value)
    assert contents(out) == before and not out.with_name("run.1").exists()
    claim(out, channels=[4])
    assert contents(out) == before


def test_a_run_that_was_stopped_before_its_first_checkpoint_has_nothing_to_lose(tmp_path):
    claim(tmp_path / "run")
    claim(tmp_path / "run", seed=2)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == WRITTEN | {"seed": 2}
    (tmp_path / "run" / "config.json").rename(tmp_path / "run" / "config.json.part")
    claim(tmp_path / "run", seed=3)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == WRITTEN | {"seed": 3}
    assert not (tmp_path / "run.1").exists()


HOLDS = """
import sys
from pathlib import Path
from lib.learning import checkpoint
with checkpoint.claim_run(Path(sys.argv[1]), {"network": "Linear", "strengths": [1]}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_training_of_one_name_is_told_who_holds_it_and_changes_nothing(finished):
    out, _, _ = finished
    before = contents(out)
    claimed = {"network": "Linear", "strengths": [1]}
    (out / "config.json").write_text(json.dumps(claimed))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, out], cwd=paths.ROOT, stdin=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RuntimeError, match=f"training .*run .process {other.pid} on "):
        claim(out)
    assert json.loads((out / "config.json").read_text()) == claimed
    claim(out.with_name("another"))
    other.kill()
    other.wait()
    claim(out)
    assert contents(out.with_name("run.1")).keys() == before.keys()


# What is resumed


def test_what_is_resumed_is_what_was_saved(tmp_path):
    saved, again = parts(seed=0), parts(seed=1)
    assert checkpoint.resume_checkpoint(tmp_path, SETTINGS, again, CPU) == ([], None)
    best = {"weight": torch.ones(2, 3)}
    checkpoint.save_checkpoint(tmp_path, SETTINGS, saved, HISTORY[:1], None)
    checkpoint.save_checkpoint(tmp_path, SETTINGS, saved, HISTORY, best)
    history, found = checkpoint.resume_checkpoint(tmp_path, SETTINGS, again, CPU)
    assert history == HISTORY and torch.equal(found["weight"], best["weight"])
    for a, b in zip(saved["network"].parameters(), again["network"].parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in saved["optimiser"].state[a].items():
            assert torch.equal(value, again["optimiser"].state[b][name]), name


@pytest.mark.parametrize("length", [0, 10, 1000, -30, -64, -1])
def test_a_cut_off_checkpoint_is_named_and_left_where_it_is(finished, length):
    out, _, _ = finished
    path = out / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:length])
    before = contents(out)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*delete it to train from the"):
        checkpoint.resume_checkpoint(out, SETTINGS, parts(), CPU)
    assert contents(out) == before


def test_a_checkpoint_with_any_byte_flipped_is_refused(finished):
    path, again = finished[0] / "checkpoint.pt", parts(seed=1)
    whole = path.read_bytes()
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="is damaged"):
            checkpoint.resume_checkpoint(finished[0], SETTINGS, again, CPU)
    path.write_bytes(whole)
    assert checkpoint.resume_checkpoint(finished[0], SETTINGS, again, CPU)[0] == HISTORY


def test_a_checkpoint_of_another_network_is_not_continued(finished):
    with pytest.raises(ValueError, match=r"(?s)another network's .*size mismatch for weight"):
        checkpoint.resume_checkpoint(finished[0], SETTINGS, parts(inputs=4), CPU)


def test_a_checkpoint_is_not_continued_with_settings_that_were_edited_into_config_json(finished):
    out, _, _ = finished
    (out / "config.json").write_text(json.dumps(WRITTEN | {"seed": 2}))
    claim(out, seed=2)
    with pytest.raises(ValueError, match=r"other settings, seed 1 -> 2; was config\.json edited"):
        checkpoint.resume_checkpoint(out, SETTINGS | {"seed": 2}, parts(), CPU)


@pytest.mark.parametrize("what", ["checkpoint", "run"])
def test_where_the_disk_is_full_it_is_said_and_what_was_there_is_kept(finished, monkeypatch, what):
    out, network, _ = finished
    before = contents(out)

    def full(path, content):
        with path.open("wb") as file:
            file.write(bytes(content)[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\): make room"):
        if what == "checkpoint":
            checkpoint.save_checkpoint(out, SETTINGS, parts(seed=1), HISTORY, None)
        else:
            checkpoint.save_run(out, SETTINGS, network, HISTORY)
    assert contents(out) == before


# What is left behind


def test_a_run_leaves_its_weights_its_history_and_the_row_that_is_kept(finished):
    out, network, table = finished
    assert table.to_dict("records") == HISTORY
    pd.testing.assert_frame_equal(pd.read_csv(out / "history.csv"), table)
    assert json.loads((out / "metrics.json").read_text()) == HISTORY[0]
    weights = load_file(out / "weights.safetensors")
    assert weights.keys() == network.state_dict().keys()
    assert torch.equal(weights["weight"], network.weight)


class Tied(nn.Module):
    """Two layers of one weight, a buffer that is a part of another, and all kinds of numbers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("whole", torch.arange(6.0).reshape(2, 3).to(torch.bfloat16))
        self.register_buffer("part", self.whole[1])
        self.register_buffer("turned", torch.ones(1, 2, 3, 3).to(memory_format=torch.channels_last))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("none", torch.zeros(0, 3))


def test_weights_that_share_memory_are_kept_each_and_shared_again_where_they_were(tmp_path):
    network = Tied()
    checkpoint.save_run(tmp_path, SETTINGS, network, HISTORY)
    (tmp_path / "config.json").write_text(json.dumps(WRITTEN))
    torch.manual_seed(9)
    again, _ = checkpoint.load_network(Tied(), tmp_path, "04")
    assert again.first.weight is again.second.weight
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2))


def compiled(network):
    return torch.compile(network, backend="eager")


WRAPPED = {
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "both": lambda network: nn.DataParallel(compiled(network)),
    "other way": lambda network: compiled(nn.DataParallel(network)),
    "a layer compiled": lambda network: nn.Sequential(compiled(network[0]), network[1]),
    "a layer parallel": lambda network: nn.Sequential(nn.DataParallel(network[0]), network[1]),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_network_is_kept_with_its_plain_names_and_loaded_wrapped_or_not(tmp_path, wrap):
    network = body()
    checkpoint.save_run(tmp_path, SETTINGS, wrap(network), HISTORY)
    (tmp_path / "config.json").write_text(json.dumps(WRITTEN))
    names = set(network.state_dict())
    assert load_file(tmp_path / "weights.safetensors").keys() == names
    for other in (nn.Identity(), *WRAPPED.values()):
        empty = body().requires_grad_(False)
        for weight in empty.parameters():
            weight.zero_()
        checkpoint.load_network(other(empty), tmp_path, "04")
        assert all(torch.equal(value, empty.state_dict()[name])
                   for name, value in network.state_dict().items())  # fmt: skip


def test_a_layer_that_is_called_module_keeps_its_name(tmp_path):
    network = nn.ModuleDict({"module": nn.Linear(3, 2)})
    checkpoint.save_run(tmp_path, SETTINGS, network, HISTORY)
    assert "module.weight" in load_file(tmp_path / "weights.safetensors")


# What is read


def test_a_network_is_loaded_ready_to_use_and_with_its_configuration(finished):
    out, network, _ = finished
    loaded, config = checkpoint.load_network(nn.Linear(3, 2).train(), str(out), "04")
    assert not loaded.training and config == WRITTEN
    images = torch.randn(5, 3)
    assert torch.equal(loaded(images), network(images))


def test_what_a_sequencer_comes_from_is_known_by_its_weights(finished, monkeypatch):
    out, _, _ = finished
    monkeypatch.setattr(paths, "SEQUENCERS", out.parent)
    weights = hashlib.sha256((out / "weights.safetensors").read_bytes()).hexdigest()
    moved = out.rename(out.with_name("another-name"))
    second = out.with_name("second")
    second.mkdir()
    checkpoint.save_run(second, SETTINGS, nn.Linear(3, 2), HISTORY)
    other = hashlib.sha256((second / "weights.safetensors").read_bytes()).hexdigest()
    assert checkpoint.earlier_runs({"start": weights}) == [moved]
    assert checkpoint.earlier_runs({"averaged": [other, weights]}) == [second, moved]
    assert checkpoint.earlier_runs({"epochs": 2}) == []
    for config in ({"start": "00ab"}, {"averaged": [weights, "00ab"]}):
        with pytest.raises(FileNotFoundError, match=r"SHA-256 00ab\) no run in .*train it again"):
            checkpoint.earlier_runs(config)


def test_the_notebook_is_named_where_no_training_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*04_radiomic_sequencer"):
        checkpoint.load_network(nn.Linear(3, 2), tmp_path / "nowhere", "04_radiomic_sequencer")
    (tmp_path / "weights.safetensors.part").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="04_radiomic_sequencer"):
        checkpoint.load_network(nn.Linear(3, 2), tmp_path, "04_radiomic_sequencer")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, pickle.dumps({"0.weight": 1}), None])
def test_weights_that_are_damaged_or_no_weights_are_named(finished, content):
    path = finished[0] / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    message = r"weights\.safetensors is damaged.*delete .*run and run notebook 04 again"
    with pytest.raises(ValueError, match=message):
        checkpoint.load_network(nn.Linear(3, 2), finished[0], "04")


def test_weights_with_a_flipped_byte_are_refused_or_the_same(finished):
    out, network, _ = finished
    path, refused = out / "weights.safetensors", 0
    whole = path.read_bytes()
    values = len(whole) - 8 * 4
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            loaded, _ = checkpoint.load_network(nn.Linear(3, 2), out, "04")
        except ValueError:
            refused += 1
            continue
        assert place < values and torch.equal(loaded.weight, network.weight)
    assert refused > len(whole) - 12  # all but the name under which the checksum stands


@pytest.mark.parametrize("change", [{"loss": "cross-entropy"}, {"mean": [0.1] * 3}])
def test_weights_beside_a_config_json_that_was_edited_are_refused(finished, change):
    out, _, _ = finished
    (out / "config.json").write_text(json.dumps(WRITTEN, indent=4, sort_keys=True))
    checkpoint.load_network(nn.Linear(3, 2), out, "04")
    (out / "config.json").write_text(json.dumps(WRITTEN | change))
    with pytest.raises(ValueError, match=r"config\.json beside it are not of one training"):
        checkpoint.load_network(nn.Linear(3, 2), out, "04")


def test_weights_without_a_checksum_are_loaded_as_they_are(finished):
    out, network, _ = finished
    save_file(network.state_dict(), out / "weights.safetensors")
    (out / "config.json").write_text('{"seed": 2}')
    loaded, config = checkpoint.load_network(nn.Linear(3, 2), out, "04")
    assert torch.equal(loaded.weight, network.weight) and config == {"seed": 2}


@pytest.mark.parametrize("config", [None, b"", b"{", b"\xff\xfe\x00", b"[]", b"null"])
def test_a_config_json_that_cannot_be_read_is_named(finished, config):
    path = finished[0] / "config.json"
    path.unlink()
    if config is not None:
        path.write_bytes(config)
    message = r"config\.json does not say how .*put back a whole copy, or delete .*run notebook 04"
    with pytest.raises(ValueError, match=message):
        checkpoint.load_network(nn.Linear(3, 2), finished[0], "04")


def test_weights_of_another_network_are_named(finished):
    with pytest.raises(ValueError, match=r"not a AllConvNet's: .*head\.weight"):
        checkpoint.load_network(AllConvNet(3, 1, (4,)), finished[0], "02")


# What others are to use


def test_published_weights_are_the_runs_and_known_by_their_hash(finished, tmp_path):
    run, network, _ = finished
    out = tmp_path / "published"
    checkpoint.publish(run, out)
    assert {path.name for path in out.iterdir()} == {"weights.safetensors", "config.json"}
    read, config = checkpoint.load_network(nn.Linear(3, 2), out, "04")
    assert torch.equal(read.weight, network.weight) and config == WRITTEN

    config["seed"] = 7
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not of one training"):
        checkpoint.load_network(nn.Linear(3, 2), out, "04")
