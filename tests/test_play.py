"""Interactive figures without a browser: what is drawn, what a slider does, and headless nothing.

tests/test_play_browser.py uses them in JupyterLab.
"""

import base64
import re
from io import BytesIO
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import nn

from lib import play
from lib.data import digits, retina
from lib.learning import networks
from lib.methods import clear


@pytest.fixture(scope="module")
def network():
    """A reader of digits with random weights."""
    torch.manual_seed(0)
    network = networks.AllConvNet(classes=10, in_channels=1, channels=(4, 6, 8)).eval()
    nn.init.normal_(network.head.weight)
    return network


class Recorder(SimpleNamespace):
    """In place of a Run: keeps what it is told."""

    def __init__(self, attended, **parameters):
        super().__init__(attended=attended, parameters=parameters, figures=[], skipped=[])

    def figure(self, figure, name, alt):
        self.figures.append((figure, name, alt))

    def skip(self, what, why):
        self.skipped.append(why)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: (data, metadata) of each output."""
    outputs = []
    monkeypatch.setattr(
        play, "display", lambda data, metadata, raw: outputs.append((data, metadata))
    )
    return outputs


def widget_of(data):
    model = data["application/vnd.jupyter.widget-view+json"]["model_id"]
    return ipywidgets.widgets.widget._instances[model]


SIDE = 112  # of the pad


def as_browser_sends(ink):
    """The data URL of a canvas: PNG, with colours and opacity."""
    data = BytesIO()
    Image.fromarray(ink).convert("RGBA").save(data, "png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def doubled(what, factor):
    figure, axes = play._panels(2, 1)
    axes[0].barh([what], [factor])
    return figure, f"{what} times\n{factor} <"


SLIDERS = (
    play.Slider("What", {"one": 1, "ten": 10}, "ten"),
    play.Slider("How often", {"twice": 2, "thrice": 3}, "twice"),
)


def test_headless_a_figure_is_the_runs_own_and_no_widget_is_made(shown):
    run = Recorder(attended=False)
    before = set(ipywidgets.widgets.widget._instances)
    play.with_sliders(run, "any", doubled, *SLIDERS)
    [(figure, name, alt)] = run.figures
    assert (name, alt.split()) == ("any", ["10", "times", "2", "<"]) and len(figure.axes) == 2
    assert not shown and set(ipywidgets.widgets.widget._instances) == before


def test_attended_sliders_redraw_and_what_shows_no_widget_gets_the_picture(shown):
    run = Recorder(attended=True)
    play.with_sliders(run, "any", doubled, *SLIDERS)
    [(data, metadata)] = shown
    assert data["image/png"].startswith(b"\x89PNG") and not run.figures
    assert metadata["image/png"]["alt"] == "10 times 2 <"
    what, how_often, picture = widget_of(data).children
    assert [what.description, how_often.description] == ["What", "How often"]
    assert (what.options, what.value) == (("one", "ten"), "ten")
    assert 'alt="10 times 2 &lt;"' in picture.value
    first = picture.value
    how_often.value = "thrice"
    what.value = "one"
    assert "<figcaption>1 times 3 &lt;</figcaption>" in picture.value
    sources = [re.search('src="([^"]+)"', text)[1] for text in (first, picture.value)]
    assert sources[0] != sources[1]


def bundled():
    """The bundled digits that fill the height of their grid and stand in its middle."""
    for grid in load_digits().images:
        rows, columns = np.nonzero(grid)
        left, right = columns.min(), columns.max() + 1
        faint = (grid > 0) & (grid < 3)  # as good as no ink
        if len(set(rows)) == 8 and left == (8 - (right - left)) // 2 and not faint.any():
            yield grid


def test_a_drawing_of_a_bundled_digit_becomes_that_digit():
    images = torch.cat(
        [digits.load_digits_split("digits", split)[0] for split in ("train", "test")]
    )
    found = 0
    for grid in bundled():
        ink = np.kron(np.rint(grid * 255 / 16).astype(np.uint8), np.ones((14, 14), np.uint8))
        made = play.as_digit(ink, "digits")
        found += 1
        assert ((images - made).abs().amax((1, 2, 3)) < 0.003).sum() == 1
    assert found >= 3


@pytest.mark.parametrize("corner", [(5, 60), (60, 3)])
def test_a_drawing_for_mnist_has_20_pixels_and_its_mass_in_the_middle(corner):
    ink = np.zeros((SIDE, SIDE), np.uint8)
    y, x = corner
    ink[y : y + 40, x : x + 8] = 255
    ink[y : y + 8, x : x + 24] = 255
    digit = play.as_digit(ink, "mnist")
    assert digit.shape == (1, 1, 28, 28) and digit.max() == 1
    rows, columns = np.nonzero(digit[0, 0].numpy())
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 12)
    assert np.allclose(ndimage.center_of_mass(digit[0, 0].numpy()), 13.5, atol=0.51)


def test_a_drawing_with_a_long_tail_does_not_go_on_at_the_other_edge():
    ink = np.zeros((SIDE, SIDE), np.uint8)
    ink[0:30, 0:30] = 255
    ink[30:100, 14:16] = 255
    digit = play.as_digit(ink, "mnist")[0, 0].numpy()
    assert ndimage.label(digit > 0)[1] == 1 and not digit[0].any()


@pytest.mark.parametrize("dataset", digits.DATASETS)
def test_nothing_drawn_is_no_digit_and_one_dot_is(dataset):
    ink = np.zeros((SIDE, SIDE), np.uint8)
    assert play.as_digit(ink, dataset) is None
    ink[50, 50] = 255
    assert play.as_digit(ink, dataset).shape == (1, 1, 28, 28)


def test_a_stroke_on_the_pad_is_answered_and_a_cleared_pad_shows_the_example(network, shown):
    run = Recorder(attended=True)
    example = digits.load_digits_split("digits", "test")[0][:1]
    play.drawing(run, network, example, "digits", "guided")
    pad = widget_of(shown[0][0])
    assert "A digit of the test split" in pad.picture
    before = pad.picture
    ink = np.zeros((SIDE, SIDE), np.uint8)
    ink[20:90, 50:60] = 255
    pad.ink = as_browser_sends(ink)
    x = play.as_digit(ink, "digits")
    with torch.no_grad():
        probability = network(x).softmax(1)[0]
    answer = f"answered {int(probability.argmax())} with probability {probability.max():.0%};"
    assert "Your drawing" in pad.picture and answer in pad.picture
    pad.ink = as_browser_sends(0 * ink)
    assert pad.picture == before


def test_readings_say_the_share_of_each_for_the_true_class(network):
    images, labels = digits.load_digits_split("digits", "test")
    figure, alt = play.draw_readings(network, images, labels, 5)
    for relu in clear.RULES:
        _, R = clear.attentive_responses(network, images[5:6], relu)
        largest = R[0].amax(0).clamp(min=0)
        share = largest[R[0].argmax(0) == labels[5]].sum() / largest.sum()
        assert f"{relu} {share:.0%}" in alt
    assert f"image 5, a {labels[5]};" in alt and len(figure.axes) == 5


def test_strong_counts_the_pixels_from_the_level_on_and_names_its_point_of_the_curve(network):
    response = torch.zeros(1, 28, 28)
    response[0, 3, :4] = torch.tensor([1, 0.3, 0.2, 0.1])
    x = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    rows = [("mine", 0.2, 0.75, 0.5), ("mine", 0.3, 0.625, 0.9), ("other", 0.3, 0.1, 0.2)]
    table = pd.DataFrame(rows, columns=["method", "t", "only_strong", "without_strong"])
    said = []
    for t in (0.2, 0.3):
        figure, alt = play.draw_strong(network, x, {"mine": response}, table, 0.0, "mine", t)
        said.append(alt)
        kept = figure.axes[1].images[0].get_array()
        assert (kept > 0).sum() == (response >= t).sum()
    assert "3 pixels" in said[0] and "75.0% and 50.0%" in said[0]
    assert "2 pixels" in said[1] and "62.5% and 90.0%" in said[1]


def largest(above):
    regions, _ = ndimage.label(above)
    return regions == np.bincount(regions.ravel())[1:].argmax() + 1


def box(region):
    rows, columns = np.nonzero(region)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_a_low_threshold_takes_a_dim_part_into_the_box_and_a_high_one_does_not():
    frame = np.zeros((60, 80, 3), np.uint8)
    frame[10:40, 20:60] = 200
    frame[10:40, 60:75] = 30
    steps = (lambda frame: frame.max(2).astype(float), largest, box)
    _, low = play.draw_crop({"frame": frame}, steps, "frame", 0.05)
    _, high = play.draw_crop({"frame": frame}, steps, "frame", 0.5)
    assert "the box has 55 x 30 pixels" in low and "34% of the frame" in low
    assert "the box has 40 x 30 pixels" in high and "25% of the frame" in high


CONFIG = {"body": "plain", "size": 64, "crop": True, "contrast": "none", "loss": "cross-entropy"}
CONFIG |= {"mean": [0.4, 0.2, 0.1], "std": [0.3] * 3}


def test_lesions_of_a_kind_go_alone_and_without_any_the_phantom_is_its_healthy_twin():
    healthy, _, none = play.prepared_phantom(CONFIG, 0, 3, ())
    sick, x, every = play.prepared_phantom(CONFIG, 2, 3, retina.LESIONS)
    bare, _, nothing = play.prepared_phantom(CONFIG, 2, 3, ())
    without, _, some = play.prepared_phantom(
        CONFIG, 2, 3, [kind for kind in retina.LESIONS if kind != "haemorrhage"]
    )
    assert not none and not nothing
    assert set(every) - set(some) == {"haemorrhage"} and {"microaneurysm"} < set(some)
    assert np.abs(bare.astype(int) - healthy).max() <= 2
    assert np.abs(sick.astype(int) - healthy).max() > 40
    gone = every["haemorrhage"]
    changed = np.abs(sick.astype(int) - without).max(2) > 2
    assert changed[gone].mean() > 0.8
    mean, std = (np.array(CONFIG[name]) for name in ("mean", "std"))
    by_hand = (sick[32, 32] / 255 - mean) / std
    assert np.allclose(by_hand, x[0, :, 32, 32], atol=1e-5)


def test_lesions_are_offered_to_a_sequencer_of_phantoms_alone():
    torch.manual_seed(0)
    sequencer = networks.RadiomicSequencer().eval()
    nn.init.normal_(sequencer.head.weight)
    run = Recorder(attended=False, prepared="phantom-64")
    play.lesions(run, sequencer, CONFIG, "phantom-1040", "guided", seed=3)
    [(figure, _, alt)] = run.figures
    assert figure.get_suptitle() == "phantom-64"
    assert "microaneurysm, hard exudate. Graded" in alt
    play.lesions(run, sequencer, CONFIG, "idrid+utem", "guided", seed=3)
    assert len(run.figures) == 1 and "learnt from idrid+utem" in run.skipped[0]


def test_a_maximum_beside_a_lesion_hits_it_from_the_tolerance_on_that_reaches_it():
    lesions = np.zeros((2, 50, 50), bool)
    lesions[0, 20, 20] = True
    lesions[1, 30, 30] = True
    response = np.zeros((2, 50, 50))
    response[0, 20, 22] = 3  # two pixels beside
    response[0, 5, 5] = 1
    response[1, 30, 30] = 1
    everywhere = np.ones_like(lesions)
    photograph = np.zeros((50, 50, 3))
    said = []
    for per_cent in (2, 4):
        drawn = play.draw_tolerance(
            photograph, {"mine": response}, lesions, everywhere, "mine", per_cent
        )
        said.append(drawn[1])
    assert "50% of 2 photographs, 50% of the response" in said[0]
    assert "100% of 2 photographs, 88% of the response" in said[1]
    chance = 13 / 2500  # pixels within 2 of one
    assert f"{0.875 / chance:.1f} times chance" in said[1]


def test_a_map_that_ignores_the_weights_stays_and_one_of_the_weights_changes():
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1))
    images = torch.rand(2, 1, 8, 8)

    def of_weights(network, images):
        with torch.no_grad():
            return network(images)[:, 0]

    explainers = {"ignores": lambda network, images: images[:, 0], "weights": of_weights}
    where = np.ones((2, 8, 8), bool)
    run = Recorder(attended=False, seed=0)
    alike = []
    for name in explainers:
        photograph = np.zeros((8, 8, 3))
        play.random_layers(run, small, images, photograph, explainers, where, name)
        figure, _, alt = run.figures[-1]
        assert f"{name}, the last 1 of 2 layers random" in alt
        trained = explainers[name](small, images)[0].clamp(min=0).sqrt()
        assert np.allclose(figure.axes[1].images[0].get_array(), trained)
        alike.append(float(alt.rstrip(".").split()[-1]))
    assert alike[0] == 1 and alike[1] < 0.9
