"""Photographs on disk: each explained as its sequencer sees it or listed with the reason, once, also when stopped."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib import explain, photographs
from lib import notebook as companion
from lib.data import phantom
from lib.data.retina import extract


@pytest.fixture
def folder(tmp_path):
    """Five phantoms of different sizes, a black frame and a file that is none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for grade in range(5):
        image = np.pad(
            phantom.photograph(grade, grade, 120 + 30 * grade)[0], ((5, 5), (30, 30), (0, 0))
        )
        Image.fromarray(image).save(folder / f"eye{grade}.png")
    Image.new("RGB", (200, 150)).save(folder / "black.png")
    (folder / "page.jpg").write_text("<html>")
    return folder


def test_every_photograph_is_explained_or_listed_with_its_reason(sequencer, folder, tmp_path):
    out = tmp_path / "out"
    assert (
        companion.main(["explain", str(folder), "--sequencer", str(sequencer), "--out", str(out)])
        == 0
    )
    table = pd.read_csv(out / "results.csv").set_index("image").sort_index()
    rejects = pd.read_csv(out / "rejects.csv")
    assert (
        len(table) == 5 and len(rejects) == 2 and rejects.to_string().count("no retina found") == 1
    )
    network, config = explain.load(sequencer)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    for name, row in table.iterrows():
        path = next(folder.glob(f"{row['image'] if 'image' in row else name}*"))
        image = (
            torch.from_numpy(extract(path.read_bytes(), path.name, 64)[0]).permute(2, 0, 1) / 255
        )
        with torch.no_grad():
            p = network(((image - mean) / std)[None]).softmax(1)[0].numpy()
        np.testing.assert_allclose(row[[f"p{g}" for g in range(5)]].to_numpy(float), p, atol=2e-3)
        assert row["grade"] == p.argmax() and (out / row["figure"]).exists()
    before = (out / "results.csv").read_bytes()
    companion.main(["explain", str(folder), "--sequencer", str(sequencer), "--out", str(out)])
    assert (out / "results.csv").read_bytes() == before


def test_what_was_interrupted_goes_on_and_explains_nothing_twice(
    sequencer, folder, tmp_path, monkeypatch
):
    whole, out, write, drawn = tmp_path / "whole", tmp_path / "out", photographs.paths.write, []
    photographs.explain_files([folder], sequencer, whole)

    def stopping(path, save):
        if path.suffix == ".png":
            drawn.append(path.name)
            if len(drawn) == 3:
                raise KeyboardInterrupt
        write(path, save)

    monkeypatch.setattr(photographs.paths, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        photographs.explain_files([folder], sequencer, out)
    assert len(pd.read_csv(out / "results.csv")) == 2
    with open(out / "results.csv", "a") as results:
        results.write("eye9.png,3,0.")  # a line that was cut off
    count, rejects = photographs.explain_files([folder], sequencer, out)
    assert count == 5 and {path.name for path in rejects} == {"black.png", "page.jpg"}
    assert drawn == ["eye0.png", "eye1.png", "eye2.png", "eye2.png", "eye3.png", "eye4.png"]
    assert (out / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_photographs_of_one_name_have_figures_of_their_own(sequencer, folder, tmp_path):
    (folder / "left").mkdir()
    Image.fromarray(phantom.photograph(4, 9, 150)[0]).save(folder / "left" / "eye0.png")
    files = [folder / "eye0.png", folder / "left" / "eye0.png"]
    assert photographs.explain_files(files, sequencer, tmp_path / "out")[0] == 2
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table.figure.tolist() == ["eye0.png", "eye0-2.png"] and table.path.tolist() == [
        str(file) for file in files
    ]
    pictures = [(tmp_path / "out" / name).read_bytes() for name in table.figure]
    assert pictures[0] != pictures[1]


def test_the_boxes_of_the_regions_are_in_the_photographs_own_pixels(sequencer, folder, tmp_path):
    photographs.explain_files([folder / "eye4.png"], sequencer, tmp_path / "out")
    (row,) = pd.read_csv(tmp_path / "out" / "results.csv").to_dict("records")
    network, config = explain.load(sequencer)
    prepared, (left, top, right, _), _ = extract((folder / "eye4.png").read_bytes(), "eye4", 64)
    x = torch.from_numpy(prepared).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    (eye,) = explain.explained(network, ((x - mean) / std)[None])
    across = (right - left) / 64  # the retina of a phantom is as wide as it is high
    for region, told in zip(eye.regions, json.loads(row["regions"]), strict=True):
        expected = np.array(region.box) * across + [left, top, left, top]
        np.testing.assert_allclose(told["box"], expected, atol=1.5 * across)


def test_results_of_another_sequencer_are_not_mixed_in(sequencer, folder, tmp_path):
    photographs.explain_files([folder / "eye0.png"], sequencer, tmp_path / "out")
    before = (tmp_path / "out" / "results.csv").read_bytes()
    weights = load_file(sequencer / "weights.safetensors")
    save_file(weights | {"head.bias": weights["head.bias"] + 1}, sequencer / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"holds other results of sequencer .* choose another folder"
    ):
        photographs.explain_files([folder], sequencer, tmp_path / "out")
    with pytest.raises(ValueError, match="holds other results"):
        photographs.explain_files([folder], sequencer, tmp_path / "out", relu="gated")
    assert (tmp_path / "out" / "results.csv").read_bytes() == before


def test_a_request_that_cannot_be_says_why(sequencer, folder, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no photographs \(.*jpeg.*\) in .*empty"):
        photographs.explain_files([tmp_path / "empty"], sequencer, out)
    with pytest.raises(FileNotFoundError, match=r"there is no .*eye9\.png"):
        photographs.explain_files([folder / "eye9.png"], sequencer, out)
    with pytest.raises(ValueError, match=r"relu is .best.; the readings of Eq\. 3 are"):
        photographs.explain_files([folder], sequencer, out, relu="best")
    assert not out.exists()
    command = ["explain", str(folder), "--sequencer", str(tmp_path / "nowhere"), "--out", str(out)]
    assert companion.main(command) == 2 and "no finished training in" in capsys.readouterr().err
