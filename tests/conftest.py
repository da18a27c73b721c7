"""What tests of several modules share."""

import json

import pytest
import torch
from safetensors.torch import save_file

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
    config = {
        "body": "plain",
        "size": 64,
        "crop": True,
        "contrast": "none",
        "mean": [0.4, 0.2, 0.1],
        "std": [0.3] * 3,
    }
    (folder / "config.json").write_text(
        json.dumps(config | {"prepared": "phantom-64", "fingerprint": "x"})
    )
    return folder
