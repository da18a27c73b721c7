"""One eye explained: a run folder made by hand, photographs on disk, and the words held against the map."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib import companion, explain, networks, phantom
from lib.cropping import extract


@pytest.fixture
def sequencer(tmp_path):
    """The folder of a run with random weights, prepared at 64 pixels."""
    torch.manual_seed(0)
    network = networks.RadiomicSequencer()
    torch.nn.init.normal_(network.head.weight)
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(network.state_dict(), folder / "weights.safetensors")
    config = {"body": "plain", "size": 64, "crop": True, "contrast": "none", "mean": [0.4, 0.2, 0.1], "std": [0.3] * 3}
    (folder / "config.json").write_text(json.dumps(config | {"prepared": "phantom-64", "fingerprint": "x"}))
    return folder


@pytest.fixture
def photographs(tmp_path):
    """Five phantoms of different sizes, a black frame and a file that is none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for grade in range(5):
        image = np.pad(phantom.photograph(grade, grade, 120 + 30 * grade)[0], ((5, 5), (30, 30), (0, 0)))
        Image.fromarray(image).save(folder / f"eye{grade}.png")
    Image.new("RGB", (200, 150)).save(folder / "black.png")
    (folder / "page.jpg").write_text("<html>")
    return folder


def test_every_photograph_is_explained_or_listed_with_its_reason(sequencer, photographs, tmp_path):
    out = tmp_path / "out"
    assert companion.main(["explain", str(photographs), "--sequencer", str(sequencer), "--out", str(out)]) == 0
    table = pd.read_csv(out / "results.csv").set_index("image").sort_index()
    rejects = pd.read_csv(out / "rejects.csv")
    assert len(table) == 5 and len(rejects) == 2 and rejects.to_string().count("no retina found") == 1
    network, config = explain.load(sequencer)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    for name, row in table.iterrows():
        path = next(photographs.glob(f"{row['image'] if 'image' in row else name}*"))
        image = torch.from_numpy(extract(path.read_bytes(), path.name, 64)[0]).permute(2, 0, 1) / 255
        with torch.no_grad():
            p = network(((image - mean) / std)[None]).softmax(1)[0].numpy()
        np.testing.assert_allclose(row[[f"p{g}" for g in range(5)]].to_numpy(float), p, atol=2e-3)
        assert row["grade"] == p.argmax() and (out / row["figure"]).exists()
    before = (out / "results.csv").read_bytes()
    companion.main(["explain", str(photographs), "--sequencer", str(sequencer), "--out", str(out)])
    assert (out / "results.csv").read_bytes() == before


def test_the_shares_of_the_grades_are_those_of_the_dominant_response():
    torch.manual_seed(1)
    network = networks.RadiomicSequencer().eval()
    torch.nn.init.normal_(network.head.weight)
    eye = explain.explained(network, torch.rand(1, 3, 64, 64))[0]
    response, grade = eye.R.max(0).clip(min=0), eye.R.argmax(0)
    expected = [response[grade == g].sum() / response.sum() for g in range(5)]
    np.testing.assert_allclose(eye.shares, expected, rtol=1e-4)
    assert eye.grade == eye.probabilities.argmax() and len(eye.regions) <= 3


def test_a_run_that_cannot_explain_is_named(sequencer, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished training"):
        explain.load(tmp_path / "nowhere")
    config = json.loads((sequencer / "config.json").read_text())
    made = {name: config[name] for name in explain.HOW_PREPARED}
    explain.check(config, made)
    with pytest.raises(ValueError, match="prepared otherwise: size 64 there, 128 here"):
        explain.check(config, made | {"size": 128})
    del config["size"]
    (sequencer / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has no size: it is no sequencer's"):
        explain.load(sequencer)
    weights = {"head.weight": torch.zeros(3, 96, 1, 1)}
    save_file(weights, sequencer / "weights.safetensors")
    (sequencer / "config.json").write_text(json.dumps(config | {"size": 64}))
    with pytest.raises(ValueError, match="answers with 3 grades; CLEAR-DR has 5"):
        explain.load(sequencer)
