"""One eye explained: its shares, colours and words held against a map whose answer is known."""

import colorsys
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib import explain, paths
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


def test_what_responds_glows_in_its_grades_colour_and_the_rest_stays_grey():
    R = np.full((5, 200, 200), -1, np.float32)
    R[3, 40:60, 40:60], R[1, 40:60, 40:60], R[2, 150, 150] = 4, 3, 1
    photograph = np.zeros((200, 200, 3), np.uint8)
    photograph[...] = 30, 60, 90
    drawn = explain.laid_over(R, photograph)
    grey = 60 / 255
    np.testing.assert_allclose(drawn[50, 50], colorsys.hsv_to_rgb(clear.GRADE_HUES[3], 1, 1))
    np.testing.assert_allclose(drawn[100:140, 80:140], grey, atol=1e-6)
    # A single pixel of 1, smoothed by 1.2 pixels, peaks at 1 / (2 pi 1.2 ** 2); the square is 4.
    opacity = 1 / (2 * math.pi * 1.2**2) / 4
    colour = np.array(colorsys.hsv_to_rgb(clear.GRADE_HUES[2], 1, 1))
    expected = (1 - opacity) * grey + opacity * colour
    np.testing.assert_allclose(drawn[150, 150], expected, rtol=0.02)
    np.testing.assert_allclose(explain.laid_over(R, photograph / 255), drawn)
    np.testing.assert_allclose(explain.laid_over(-np.abs(R), photograph), grey, atol=1e-6)
    with pytest.raises(ValueError, match=r"a photograph \(100, 100, 3\) for responses"):
        explain.laid_over(R, photograph[:100, :100])


def test_a_few_strong_pixels_do_not_make_the_map_dark():
    R = np.zeros((5, 200, 200), np.float32)
    R[4, 100:140, 100:140] = 1
    R[4, 20, 20] = 1000
    assert explain.glow(R)[120, 120, 3] == pytest.approx(1)
    R[4, 100:140, 100:140] = 0  # so few that the percentile is 0
    assert explain.glow(R)[20, 20, 3] == 1


@pytest.mark.parametrize("several", [False, True])
def test_the_original_of_a_prepared_photograph_is_found_in_its_collection(
    tmp_path, monkeypatch, several
):
    monkeypatch.setattr(paths, "RAW", tmp_path / "raw")
    monkeypatch.setattr(paths, "PREPARED", tmp_path)
    folders = []
    for source in ("the_first", "second")[: 1 + several]:
        folders.append(tmp_path / "raw" / source)
        folders[-1].mkdir(parents=True)
        rows = []
        for number, split in enumerate(("train", "train", "val", "test")):
            seed = len(rows) + 10 * len(folders)
            image = phantom.draw_photograph(number, seed, 120)[0]
            image = np.pad(image, ((3, 3), (20, 20), (0, 0)))
            Image.fromarray(image).save(folders[-1] / f"eye_{number}.png")
            rows.append((f"eye_{number}", number, split))
        table = pd.DataFrame(rows, columns=["image", "level", "split"])
        table.assign(patient=table.image).to_csv(folders[-1] / "labels.csv", index=False)
    raw = folders if several else folders[0]
    test = fundus.FundusDataset(fundus.prepare(raw, tmp_path / "set", 64, "both"), "test")
    for i in range(len(test)):
        file, box = explain.original(test, i)
        shown = retina.cut(retina.read_photograph(file), box, 64)
        np.testing.assert_array_equal(shown, (test.photograph(i) * 255).round())
    assert len(test) == 1 + several
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"eye_3"):
        explain.original(test, len(test) - 1)


@pytest.mark.parametrize("rim", [0, 1.01, "0.9", True, math.nan])
def test_a_rim_that_cannot_be_is_named(sequencer, rim):
    config = json.loads((sequencer / "config.json").read_text())
    (sequencer / "config.json").write_text(json.dumps(config | {"rim": rim}))
    with pytest.raises(ValueError, match=r"rim is .*; it is a share of the radius"):
        explain.load_sequencer(sequencer)
    (sequencer / "config.json").write_text(json.dumps(config | {"rim": 0.94}))
    assert explain.load_sequencer(sequencer)[1]["rim"] == 0.94


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
