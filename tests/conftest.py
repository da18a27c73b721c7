"""What tests of several modules share."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lib import paths
from lib.learning import networks


@pytest.fixture
def sequencer(tmp_path):
    """The folder of a run with random weights, prepared at 64 pixels."""
    torch.manual_seed(0)
    network = networks.RadiomicSequencer()
    torch.nn.init.normal_(network.head.weight)
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(network.state_dict(), folder / "weights.safetensors")
    config = {"body": "plain", "size": 64, "crop": True, "contrast": "none"}
    config |= {"mean": [0.4, 0.2, 0.1], "std": [0.3] * 3}
    config |= {"prepared": "phantom-64", "fingerprint": "x"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Empty notebooks/ and build/ folders in place of the repository's."""
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(paths, "PROFILES", tmp_path / "notebooks" / "profiles")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setenv("COMPANION_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("JUPYTER_PATH", "")
    return tmp_path
