"""Discs marked by eye, and how much of a response lies on them, against responses made by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import discs
from lib import explain, paths
from lib.data import fundus, phantom, retina

SIZE = 64


def test_a_disc_has_the_pixels_whose_centres_lie_in_it():
    # a square of 4 pixels; the centre (1, 3) is a corner of four, radius 1 reaches these alone
    expected = np.zeros((4, 4), bool)
    expected[2:4, 0:2] = True
    assert (discs.disc_mask(0.25, 0.75, 0.25, 4) == expected).all()


def test_the_marked_discs_are_discs():
    marks = pd.read_csv(discs.MARKS)
    assert marks["image"].is_unique and not marks.isna().any().any()
    for side in ("x", "y"):
        assert marks[side].between(0.05, 0.95).all()
    assert marks["radius"].between(0.05, 0.1).all()  # of the retina's width; an eighth across


@pytest.fixture
def run(tmp_path, monkeypatch, sequencer):
    """A run on prepared phantoms, of which all but one photograph for validation are marked."""
    monkeypatch.setattr(paths, "PREPARED", tmp_path / "prepared")
    monkeypatch.setattr(paths, "SEQUENCERS", tmp_path)
    phantom.write_collection(tmp_path / "raw", 30, 0, [0, 0, 1, 0, 0], workers=1)
    folder = fundus.prepare(tmp_path / "raw", paths.PREPARED / "phantom-64", SIZE, eye="both")
    val = fundus.FundusDataset(folder, "val")
    rows = []
    for i, name in enumerate(val.names[1:], 1):
        rows_of, columns = np.nonzero(val.masks(i)[retina.OPTIC_DISC])
        width = (columns.max() - columns.min() + 1) / SIZE
        x, y = (columns.mean() + 0.5) / SIZE, (rows_of.mean() + 0.5) / SIZE
        rows.append({"image": name, "x": x, "y": y, "radius": width / 2})
    monkeypatch.setattr(discs, "MARKS", tmp_path / "marks.csv")
    pd.DataFrame(rows).to_csv(discs.MARKS, index=False)
    path = sequencer / "config.json"
    config = json.loads(path.read_text()) | {"seed": 3, "fingerprint": val.about["fingerprint"]}
    config |= {name: val.about[name] for name in ("mean", "std")}
    path.write_text(json.dumps(config))
    return val


def answering(monkeypatch, val, response_of):
    """Let the explanation of the marked photographs, in their order, be `response_of(i)`."""
    places = iter(range(1, len(val)))

    def explain_images(network, images):
        R = np.zeros((5, SIZE, SIZE), np.float32)
        R[2] = response_of(next(places))
        return [explain.Eye(2, None, R, None, [])]

    monkeypatch.setattr(explain, "explain_images", explain_images)


def test_an_even_response_is_on_the_disc_by_chance(monkeypatch, run):
    answering(monkeypatch, run, run.retina)
    line = discs.on_the_disc("run")
    assert line["times_chance"] == 1
    assert (line["seed"], line["size"], line["photographs"]) == (3, SIZE, len(run) - 1)


def test_a_response_on_the_discs_mask_alone_is_all_on_it(monkeypatch, run):
    answering(monkeypatch, run, lambda i: run.masks(i)[retina.OPTIC_DISC])
    shares = []
    for i in range(1, len(run)):
        shares.append(run.masks(i)[retina.OPTIC_DISC].sum() / run.retina(i).sum())
    # marks are circles, masks are drawn discs: nearly the same pixels
    assert discs.on_the_disc("run")["times_chance"] == pytest.approx(1 / np.mean(shares), rel=0.15)


def test_a_photograph_that_is_marked_and_not_there_is_an_error(run):
    with discs.MARKS.open("a") as table:
        table.write("nobody_left,0.5,0.5,0.07\n")
    with pytest.raises(ValueError, match=r"discs are marked, phantom-64 has"):
        discs.on_the_disc("run")
