"""One eye explained: its shares, colours and words held against a map whose answer is known."""

import colorsys
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib import __main__, explain, paths
from lib.data import fundus, phantom, retina
from lib.evaluation import localisation
from lib.learning import networks
from lib.methods import clear


def test_the_shares_of_the_grades_are_those_of_the_dominant_response():
    torch.manual_seed(1)
    network = networks.RadiomicSequencer().eval()
    torch.nn.init.normal_(network.head.weight)
    eye = explain.explain_images(network, torch.rand(1, 3, 64, 64))[0]
    response, grade = eye.R.max(0).clip(min=0), eye.R.argmax(0)
    expected = [response[grade == g].sum() / response.sum() for g in range(5)]
    np.testing.assert_allclose(eye.shares, expected, rtol=1e-4)
    assert eye.grade == eye.probabilities.argmax() and len(eye.regions) <= 3


def test_a_run_that_cannot_explain_is_named(sequencer, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished training"):
        explain.load_sequencer(tmp_path / "nowhere")
    config = json.loads((sequencer / "config.json").read_text())
    del config["size"]
    (sequencer / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has no size: it is no sequencer's"):
        explain.load_sequencer(sequencer)
    weights = {"head.weight": torch.zeros(3, 96, 1, 1)}
    save_file(weights, sequencer / "weights.safetensors")
    (sequencer / "config.json").write_text(json.dumps(config | {"size": 64}))
    with pytest.raises(ValueError, match="answers with 3 grades; CLEAR-DR has 5"):
        explain.load_sequencer(sequencer)


def test_colours_are_the_dominant_grades_and_grey_where_hardly_anything_responds():
    R = np.zeros((5, 1, 4), np.float32)
    R[3, 0, 0], R[1, 0, 0], R[0, 0, 1], R[2, 0, 2] = 1, 0.9, 0.02, 0.005
    colours = explain.grade_colours(R)[0]
    np.testing.assert_allclose(colours[0], colorsys.hsv_to_rgb(clear.GRADE_HUES[3], 1, 1))
    np.testing.assert_allclose(colours[1], colorsys.hsv_to_rgb(clear.GRADE_HUES[0], 1, 1))
    assert (colours[2:] == 0.25).all()
    assert (explain.grade_colours(-R) == 0.25).all()


@pytest.mark.parametrize("x", [30, 130])
def test_the_fovea_is_expected_temporal_of_the_disc_and_below(x):
    rows, columns = np.mgrid[:160, :160] + 0.5
    centre, diameter, fovea = explain.landmarks(np.hypot(columns - x, rows - 70) < 10)
    assert centre == (x, 70) and diameter == pytest.approx(20, rel=0.02)
    assert math.dist(fovea, centre) == pytest.approx(2.65 * diameter)
    assert (fovea[0] > x) == (x < 80)
    assert math.degrees(math.asin((fovea[1] - 70) / math.dist(fovea, centre))) == pytest.approx(7.8)


def test_without_knowing_which_side_is_temporal_no_fovea_is_expected():
    rows, columns = np.mgrid[:160, :160]
    assert explain.landmarks(np.hypot(columns - 75, rows - 70) < 10)[2] is None
    with pytest.raises(ValueError, match="optic disc is empty"):
        explain.landmarks(np.zeros((4, 4)))


@pytest.mark.parametrize("box", [(100, 50, 300, 250), (0, 0, 200, 100), (40, 10, 90, 250)])
def test_a_point_of_the_prepared_photograph_lies_where_it_was_cut_from(box):
    image, point = np.zeros((260, 310, 3), np.uint8), (box[0] + 24, box[1] + 64)
    image[point[1] - 3 : point[1] + 4, point[0] - 3 : point[0] + 4] = 255
    prepared = retina.cut(image, box, 60).sum(2).astype(float)
    y, x = (np.average(grid + 0.5, weights=prepared) for grid in np.mgrid[:60, :60])
    found = explain.to_photograph((x, y), explain.canvas_extent(box, 60), 60)
    np.testing.assert_allclose(found, np.add(point, 0.5), atol=0.3)


def test_words_say_where_the_response_lies():
    R = np.zeros((5, 80, 80), np.float32)
    R[2, 38:42, 66:70], R[4, 10:12, 10:12] = 1, 0.5
    shares = np.array([0, 0, 16, 0, 2]) / 18
    eye = explain.Eye(
        2, np.array([0.1, 0, 0.7, 0.2, 0]), R, shares, localisation.attentive_regions(R[2])
    )
    rows, columns = np.mgrid[:80, :80] + 0.5
    disc = np.hypot(columns - 68, rows - 60) < 5
    text = explain.describe(eye, disc).split("\n")
    assert "moderate" in text[0].lower() and "70%" in text[0]
    assert "89%" in text[2] and "11%" in text[2]
    assert len(text) == 4 and text[3].startswith(
        "region 1: 3 o'clock, 0.35 retinal diameters from the middle, 100% of"
    )
    assert "2.0 disc diameters from the disc's centre" in text[3] and "from the fovea" in text[3]
    nothing = explain.Eye(0, np.eye(5)[0], -R, np.full(5, np.nan), [])
    assert explain.describe(nothing).endswith("nothing responds")


def test_a_point_is_drawn_as_large_as_a_128th_of_the_width():
    R = np.zeros((5, 384, 384), np.float32)
    R[3, 100, 200], R[1, 101, 200] = 2, 1
    drawn = explain.thicken(R)
    expected = np.zeros((384, 384))
    expected[99:103, 199:202] = [[2], [2], [2], [1]]
    np.testing.assert_array_equal(drawn.max(0), expected)
    assert (explain.thicken(R[:, :255, :255]) == R[:, :255, :255]).all()


# Photographs on disk


@pytest.fixture
def folder(tmp_path):
    """Five phantoms of different sizes, a black frame and a file that is none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for grade in range(5):
        image = np.pad(
            phantom.draw_photograph(grade, grade, 120 + 30 * grade)[0], ((5, 5), (30, 30), (0, 0))
        )
        Image.fromarray(image).save(folder / f"eye{grade}.png")
    Image.new("RGB", (200, 150)).save(folder / "black.png")
    (folder / "page.jpg").write_text("<html>")
    return folder


def test_every_photograph_gets_what_its_prepared_twin_gets_or_is_listed(
    sequencer, folder, tmp_path
):
    out = tmp_path / "out"
    command = ["explain", str(folder), "--sequencer", str(sequencer), "--out", str(out)]
    assert __main__.main(command) == 0
    table = pd.read_csv(out / "results.csv", index_col="image")
    rejects = pd.read_csv(out / "rejects.csv")
    assert sorted(rejects.image) == ["black.png", "page.jpg"] and len(table) == 5
    assert rejects.to_string().count("no retina found") == 1

    splits = ("test", "val", "train", "train", "train")
    rows = [(f"eye{grade}", grade, split) for grade, split in enumerate(splits)]
    labels = pd.DataFrame(rows, columns=["image", "level", "split"])
    labels.to_csv(folder / "labels.csv", index=False)
    prepared = fundus.prepare(folder, tmp_path / "set", 64, "both")
    network, config = explain.load_sequencer(sequencer)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    for grade, split in enumerate(splits):
        data = fundus.FundusDataset(prepared, split)
        pixels = data.photograph(data.names.index(f"eye{grade}"))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        with torch.no_grad():
            p = network(((image - mean) / std)[None]).softmax(1)[0].numpy()
        row = table.loc[f"eye{grade}.png"]
        np.testing.assert_allclose(row[[f"p{g}" for g in range(5)]].to_numpy(float), p, atol=1e-4)
        assert row["grade"] == p.argmax() and (out / row["figure"]).exists()

    before = (out / "results.csv").read_bytes()
    (folder / "labels.csv").unlink()
    __main__.main(command)
    assert (out / "results.csv").read_bytes() == before


def test_what_was_interrupted_goes_on_and_explains_nothing_twice(
    sequencer, folder, tmp_path, monkeypatch
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    write, drawn = paths.write, []
    explain.explain_files([folder], sequencer, whole)

    def stopping(path, save):
        if path.suffix == ".png":
            drawn.append(path.name)
            if len(drawn) == 3:
                raise KeyboardInterrupt
        write(path, save)

    monkeypatch.setattr(paths, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        explain.explain_files([folder], sequencer, out)
    assert len(pd.read_csv(out / "results.csv")) == 2
    with open(out / "journal.jsonl", "a") as journal:
        journal.write('\n{"image": "eye9.png", "grade": 3, "p')  # a line that was cut off
    (out / "results.csv").unlink()  # as kill -9 leaves it
    count, rejects = explain.explain_files([folder], sequencer, out)
    assert count == 5 and {path.name for path in rejects} == {"black.png", "page.jpg"}
    assert drawn == ["eye0.png", "eye1.png", "eye2.png", "eye2.png", "eye3.png", "eye4.png"]
    assert (out / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_photographs_of_one_name_have_figures_of_their_own(sequencer, folder, tmp_path):
    (folder / "left").mkdir()
    Image.fromarray(phantom.draw_photograph(4, 9, 150)[0]).save(folder / "left" / "eye0.png")
    files = [folder / "eye0.png", folder / "left" / "eye0.png"]
    assert explain.explain_files(files, sequencer, tmp_path / "out")[0] == 2
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table.figure.tolist() == ["eye0.png", "eye0-2.png"] and table.path.tolist() == [
        str(file) for file in files
    ]
    pictures = [(tmp_path / "out" / name).read_bytes() for name in table.figure]
    assert pictures[0] != pictures[1]


def sees_bright_spots(folder):
    """Make the run in `folder` one whose kernel of grade 4 responds to what is bright, no other."""
    network = networks.RadiomicSequencer()
    with torch.no_grad():
        for layer in network.features:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
                layer.weight[0, 0, 1, 1] = 1
        network.head.weight[4, 0] = 1
    save_file(network.state_dict(), folder / "weights.safetensors")


def test_the_box_surrounds_the_spot_that_the_network_sees_in_the_photographs_own_pixels(
    sequencer, tmp_path
):
    sees_bright_spots(sequencer)
    rows, columns = np.mgrid[:260, :400]
    retina_of_100 = np.hypot(columns - 240, rows - 130) < 100
    image = np.where(retina_of_100[..., None], 60, 0).astype(np.uint8).repeat(3, 2)
    image[170:186, 200:216] = 255
    Image.fromarray(image).save(tmp_path / "spot.png")
    explain.explain_files([tmp_path / "spot.png"], sequencer, tmp_path / "out")
    (row,) = pd.read_csv(tmp_path / "out" / "results.csv").to_dict("records")
    (region,) = json.loads(row["regions"])
    left, top, right, bottom = region["box"]
    assert row["grade"] == 4 and row["share4"] == 1 and region["share"] == 1
    pixel = 200 / 64  # of the prepared photograph; the kernels see 2 of them beyond the spot
    for low, high, start, end in ((left, right, 200, 216), (top, bottom, 170, 186)):
        assert start - 6 * pixel <= low <= start + 2 * pixel
        assert end - 2 * pixel <= high <= end + 6 * pixel
    assert region["hour"] == 7  # 32 pixels left of the middle and 48 below
    assert region["distance"] == pytest.approx(np.hypot(32, 48) / 200, abs=0.03)


def test_results_of_another_sequencer_are_not_mixed_in(sequencer, folder, tmp_path):
    explain.explain_files([folder / "eye0.png"], sequencer, tmp_path / "out")
    before = (tmp_path / "out" / "results.csv").read_bytes()
    weights = load_file(sequencer / "weights.safetensors")
    save_file(weights | {"head.bias": weights["head.bias"] + 1}, sequencer / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"holds other results of sequencer .* choose another folder"
    ):
        explain.explain_files([folder], sequencer, tmp_path / "out")
    with pytest.raises(ValueError, match="holds other results"):
        explain.explain_files([folder], sequencer, tmp_path / "out", relu="gated")
    assert (tmp_path / "out" / "results.csv").read_bytes() == before


def test_a_request_that_cannot_be_says_why(sequencer, folder, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no photographs \(.*jpeg.*\) in .*empty"):
        explain.explain_files([tmp_path / "empty"], sequencer, out)
    with pytest.raises(FileNotFoundError, match=r"there is no .*eye9\.png"):
        explain.explain_files([folder / "eye9.png"], sequencer, out)
    with pytest.raises(ValueError, match=r"relu is .best.; the readings of Eq\. 3 are"):
        explain.explain_files([folder], sequencer, out, relu="best")
    assert not out.exists()
    command = ["explain", str(folder), "--sequencer", str(tmp_path / "nowhere"), "--out", str(out)]
    assert __main__.main(command) == 2 and "no finished training in" in capsys.readouterr().err
