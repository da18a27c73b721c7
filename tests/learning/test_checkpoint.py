"""The folder of a training: who may have it, what is resumed from it, and what is read from it."""

import json
import pickle

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lib.learning import checkpoint
from lib.learning.networks import AllConvNet

CPU = torch.device("cpu")
HISTORY = [{"epoch": 1, "loss": 0.5, "kept": True}, {"epoch": 2, "loss": 0.7, "kept": False}]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    checkpoint.claim_run(out, {"seed": 1, "channels": (4,)})
    network = parts()["network"]
    checkpoint.save_checkpoint(out, parts(), HISTORY, None)
    table = checkpoint.save_run(out, network, HISTORY)
    return out, network, table


def test_a_folder_is_claimed_once_and_again_by_the_same_settings(tmp_path, capsys):
    out = tmp_path / "deep" / "run"
    for _ in range(2):
        checkpoint.claim_run(out, {"seed": 1, "channels": (4, 5)})
        assert json.loads((out / "config.json").read_text()) == {"seed": 1, "channels": [4, 5]}
    assert contents(out).keys() == {"config.json"} and len(list(out.parent.iterdir())) == 1
    assert capsys.readouterr().out == ""


def test_a_finished_run_with_other_settings_is_kept_beside_and_none_is_lost(finished, capsys):
    out, _, _ = finished
    first = contents(out)
    checkpoint.claim_run(out, {"seed": 2})
    second = contents(out)
    assert "run held a run with another configuration, kept as run.1" in capsys.readouterr().out
    checkpoint.claim_run(out, {"seed": 3})
    assert contents(out.with_name("run.1")) == first
    assert contents(out.with_name("run.2")) == second
    assert json.loads((out / "config.json").read_text()) == {"seed": 3}


@pytest.mark.parametrize("damage", [None, b"", b'{"epochs": 3,', b"\xff\xfe\x00", b"[]"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_whose_configuration_cannot_be_read_is_kept_beside(finished, damage, whole):
    out, _, _ = finished
    if not whole:
        (out / "weights.safetensors").unlink()
    (out / "config.json").unlink()
    if damage is not None:
        (out / "config.json").write_bytes(damage)
    before = contents(out)
    checkpoint.claim_run(out, {"seed": 1})
    assert contents(out.with_name("run.1")) == before
    assert contents(out).keys() == {"config.json"}


def test_an_unfinished_run_with_other_settings_is_refused_and_the_differences_are_listed(finished):
    out, _, _ = finished
    (out / "weights.safetensors").unlink()
    before = contents(out)
    with pytest.raises(ValueError, match="holds an unfinished run with other settings") as caught:
        checkpoint.claim_run(out, {"seed": 2, "fingerprint": "b"})
    listed = "channels [4] -> None, fingerprint None -> 'b', seed 1 -> 2. Set them back to continue"
    assert listed in str(caught.value)
    assert "delete the folder or choose another run name" in str(caught.value)
    assert contents(out) == before and not out.with_name("run.1").exists()
    checkpoint.claim_run(out, {"seed": 1, "channels": [4]})
    assert contents(out) == before


def test_a_run_that_was_stopped_before_its_first_checkpoint_has_nothing_to_lose(tmp_path):
    checkpoint.claim_run(tmp_path / "run", {"seed": 1})
    checkpoint.claim_run(tmp_path / "run", {"seed": 2})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"seed": 2}


def test_what_is_resumed_is_what_was_saved(tmp_path):
    saved, again = parts(seed=0), parts(seed=1)
    assert checkpoint.resume_checkpoint(tmp_path, again, CPU) == ([], None)
    best = {"weight": torch.ones(2, 3)}
    checkpoint.save_checkpoint(tmp_path, saved, HISTORY[:1], None)
    checkpoint.save_checkpoint(tmp_path, saved, HISTORY, best)
    history, found = checkpoint.resume_checkpoint(tmp_path, again, CPU)
    assert history == HISTORY and torch.equal(found["weight"], best["weight"])
    for a, b in zip(saved["network"].parameters(), again["network"].parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in saved["optimiser"].state[a].items():
            assert torch.equal(value, again["optimiser"].state[b][name]), name


@pytest.mark.parametrize("length", [0, 10, 1000, -30])
def test_a_damaged_checkpoint_is_named_and_left_where_it_is(finished, length):
    out, _, _ = finished
    path = out / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:length])
    before = contents(out)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*delete .*run to train anew"):
        checkpoint.resume_checkpoint(out, parts(), CPU)
    assert contents(out) == before


def test_a_checkpoint_of_another_network_is_not_continued(finished):
    with pytest.raises(ValueError, match=r"(?s)another network's .*size mismatch for weight"):
        checkpoint.resume_checkpoint(finished[0], parts(inputs=4), CPU)


def test_a_run_leaves_its_weights_its_history_and_the_row_that_is_kept(finished):
    out, network, table = finished
    assert table.to_dict("records") == HISTORY
    pd.testing.assert_frame_equal(pd.read_csv(out / "history.csv"), table)
    assert json.loads((out / "metrics.json").read_text()) == HISTORY[0]
    weights = load_file(out / "weights.safetensors")
    assert weights.keys() == network.state_dict().keys()
    assert torch.equal(weights["weight"], network.weight)


def test_a_network_is_loaded_ready_to_use_and_with_its_configuration(finished):
    out, network, _ = finished
    loaded, config = checkpoint.load_network(nn.Linear(3, 2).train(), str(out), "04")
    assert not loaded.training and config == {"seed": 1, "channels": [4]}
    images = torch.randn(5, 3)
    assert torch.equal(loaded(images), network(images))


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


def test_weights_of_another_network_are_named(finished):
    with pytest.raises(ValueError, match=r"not a AllConvNet's: .*head\.weight"):
        checkpoint.load_network(AllConvNet(3, 1, (4,)), finished[0], "02")
