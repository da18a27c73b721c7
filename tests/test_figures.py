"""What the figures show: drawn with one screen pixel for each image pixel and read back from the
canvas."""

from io import BytesIO

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colormaps
from matplotlib.cbook import is_math_text
from matplotlib.colors import hsv_to_rgb, to_rgb
from PIL import Image
from scipy import ndimage

from lib import figures


@pytest.fixture(autouse=True)
def as_it_was():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # another test may have called figures.style()
        plt.rcParams.update({"image.interpolation": "nearest", "image.resample": False})
        yield
    plt.close("all")


def canvas(height, width, zoom=1):
    """Axes that fill a figure of `zoom` screen pixels for each pixel."""
    return plt.figure(figsize=(width * zoom / 100, height * zoom / 100), dpi=100).add_axes(
        (0, 0, 1, 1)
    )


def drawn(ax):
    """What is on the screen, uint8 (H, W, 3)."""
    ax.axis("off")
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]


def luminance(colour):
    """Relative luminance of an sRGB colour (WCAG 2)."""
    colour = np.asarray(to_rgb(colour))
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


COLOURS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREYS = np.random.default_rng(1).integers(0, 256, (12, 17), dtype=np.uint8)
GREYS[0, :2] = 0, 255


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (COLOURS, COLOURS),
        (COLOURS.transpose(2, 0, 1), COLOURS),
        (torch.tensor(COLOURS.transpose(2, 0, 1)), COLOURS),
        (torch.tensor(COLOURS) / 255, COLOURS),
        (torch.tensor(COLOURS.transpose(2, 0, 1) / 255).requires_grad_(), COLOURS),
        (GREYS, np.stack([GREYS] * 3, -1)),
        (GREYS[None] / 255, np.stack([GREYS] * 3, -1)),
        (torch.tensor(GREYS[None]).float().requires_grad_(), np.stack([GREYS] * 3, -1)),
    ],
    ids=["HWC", "CHW", "CHW tensor", "HWC tensor", "CHW with gradient", "HW", "1HW", "1HW tensor"],
)
def test_show_draws_the_pixels_of_an_image_in_any_layout(image, expected):
    ax = canvas(12, 17)
    assert figures.show(ax, image, "seven") is ax
    assert ax.get_title() == "seven" and not len(ax.get_xticks()) and not len(ax.get_yticks())
    assert np.abs(drawn(ax).astype(int) - expected).max() <= 1


def test_show_passes_its_options_on():
    ax = figures.show(canvas(1, 3), np.array([[0.0, 0.5, 1.0]]), vmin=0, vmax=2, cmap="magma")
    expected = 255 * colormaps["magma"]([0, 0.25, 0.5])[:, :3]
    np.testing.assert_allclose(drawn(ax)[0], expected, atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_overlay_of_a_map_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="the map holds NaN or infinite"):
        figures.overlay(canvas(12, 17), COLOURS, np.full((12, 17), value))


def test_the_bar_of_overlays_has_their_shades_and_counts_in_shares_of_the_maximum():
    fig, axes = plt.subplots(1, 2)
    bar = figures.heat_bar(fig, axes)
    assert bar.cmap.name == "inferno" and (bar.vmin, bar.vmax) == (0, 1)
    assert bar.ax.get_ylabel() == "share of the map's maximum"


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_an_overlay_is_clear_where_the_map_is_not_positive_and_denser_where_it_is_higher(kind):
    heat = np.linspace(-3, 2, 12 * 17).reshape(12, 17)
    ax = canvas(12, 17)
    assert figures.overlay(ax, kind(COLOURS), kind(heat), "grade 2", strength=0.8) is ax
    assert ax.get_title() == "grade 2"
    alpha = 0.8 * np.sqrt(heat.clip(0) / 2)[..., None]
    expected = (1 - alpha) * COLOURS + alpha * 255 * colormaps["inferno"](heat / 2)[..., :3]
    screen = drawn(ax)
    assert (heat <= 0).any() and np.array_equal(screen[heat <= 0], COLOURS[heat <= 0])
    assert np.abs(screen - expected).max() <= 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_map_without_a_positive_value_leaves_the_image_as_it_is(value):
    ax = figures.overlay(canvas(12, 17), COLOURS, np.full((12, 17), value))
    assert np.array_equal(drawn(ax), COLOURS)


def test_an_outline_runs_along_the_outer_edges_of_the_boxs_pixels():
    zoom, box = 20, (3, 2, 8, 6)
    ax = figures.show(canvas(10, 12, zoom), np.zeros((10, 12, 3)))
    assert figures.outline(ax, box, colour="red", label="most attentive") is ax
    rows, columns = np.nonzero(drawn(ax)[..., 0] > 127)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == pytest.approx(
        np.array(box) * zoom, abs=2
    )
    assert not drawn(ax)[2 * zoom + 3 : 6 * zoom - 3, 3 * zoom + 3 : 8 * zoom - 3].any()
    assert not drawn(ax)[..., 1:].any()
    assert ax.get_legend_handles_labels()[1] == ["most attentive"]


def test_a_hue_legend_has_the_colour_and_the_name_of_every_class_in_order():
    hues, names = (0.60, 0.44, 0.15, 0.06, 0.87), list("abcde")
    ax = canvas(1, 5)
    assert figures.hue_legend(ax, hues, names) is ax
    assert [tick.get_text() for tick in ax.get_xticklabels()] == names
    assert ax.get_xticks().tolist() == [0, 1, 2, 3, 4] and not len(ax.get_yticks())
    np.testing.assert_allclose(
        drawn(ax)[0], 255 * hsv_to_rgb([(hue, 1, 1) for hue in hues]), atol=1
    )


def test_a_level_legend_has_above_each_name_its_hue_from_black_to_full():
    _, ax = plt.subplots()
    figures.level_legend(ax, [0, 1 / 3, 2 / 3], ["red", "green", "blue"])
    (image,) = ax.images
    left, right, *_ = image.get_extent()
    colours = np.asarray(image.get_array())[0]
    for name, tick in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True):
        start, end = ((tick + side - left) / (right - left) * len(colours) for side in (-0.5, 0.5))
        ramp, channel = (
            colours[round(start) : round(end)],
            ["red", "green", "blue"].index(name.get_text()),
        )
        np.testing.assert_allclose(ramp[:, channel], (np.arange(64) + 0.5) / 64)
        assert ramp.sum() == pytest.approx(ramp[:, channel].sum())


def test_a_confusion_matrix_has_its_counts_in_their_cells_and_its_shares_as_shades():
    matrix = [[30, 10, 0], [0, 0, 0], [1, 2, 5]]
    ax = canvas(3, 3)
    assert figures.confusion(ax, matrix, ["none", "mild", "moderate"]) is ax
    counts = {text.get_position()[::-1]: text.get_text() for text in ax.texts}
    assert counts == {
        (row, column): str(matrix[row][column]) for row in range(3) for column in range(3)
    }
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    for axis in (ax.xaxis, ax.yaxis):
        assert [tick.get_text() for tick in axis.get_ticklabels()] == ["none", "mild", "moderate"]
        assert axis.get_ticklocs().tolist() == [0, 1, 2]
    for text in list(ax.texts):
        text.remove()
    shares = np.array([[0.75, 0.25, 0], [0, 0, 0], [0.125, 0.25, 0.625]])
    np.testing.assert_allclose(drawn(ax), 255 * colormaps["Blues"](shares)[..., :3], atol=1)


@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_a_count_can_be_read_on_every_shade(percent):
    ax = figures.confusion(canvas(2, 2), [[percent, 100 - percent], [0, 1]], ["no", "yes"])
    ground = luminance(colormaps["Blues"](percent / 100))
    ink = luminance(ax.texts[0].get_color())
    assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) > 4.5


def test_a_history_draws_the_losses_on_the_first_axes_and_the_accuracy_on_the_second():
    table = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "loss": [1.0, 0.5, 0.25],
            "val_loss": [1.2, 0.7, 0.6],
            "val_accuracy": [0.3, 0.6, 0.8],
        }
    )
    _, axes = plt.subplots(1, 2)
    assert figures.training_curves(axes, table) is axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes[0].lines}
    assert lines == {
        "training": [[1, 1], [2, 0.5], [3, 0.25]],
        "validation": [[1, 1.2], [2, 0.7], [3, 0.6]],
    }
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == [
        "training",
        "validation",
    ]
    assert [line.get_xydata().tolist() for line in axes[1].lines] == [
        [[1, 0.3], [2, 0.6], [3, 0.8]]
    ]
    assert axes[1].get_ylim() == (0, 1) and axes[0].get_yscale() == "log"


def test_style_sets_the_resolution_that_keeps_notebooks_small():
    plt.rcParams["figure.dpi"] = 300
    figures.style()
    figure, ax = plt.subplots()
    assert figure.dpi <= 110
    assert figure.get_layout_engine() is not None
    assert ax.imshow(GREYS).get_interpolation() == "nearest"


def test_a_table_without_labels_says_its_shares_in_per_cent():
    ax = figures.heat_table(canvas(1, 2), [[0.25, 0.75]], ["row"], ["left", "right"])
    assert [text.get_text() for text in ax.texts] == ["25%", "75%"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["left", "right"]


def test_a_sheet_shows_each_eye_anew_with_its_first_region_in_red():
    fig = plt.figure(figsize=(7, 4.1), dpi=100)
    sheet = figures.EyeSheet(fig)
    clear_map = np.zeros((8, 8, 3))
    clear_map[2, 5] = (0, 1, 0)
    layer = np.dstack([clear_map, clear_map[..., 1]])
    place = (0, 80, 80, 0)  # in the pixels of a photograph of 80 x 80
    for boxes in ([(0, 0, 80, 80)], [(40, 10, 70, 40), (5, 50, 20, 70)]):
        grey = np.full((80, 80, 3), 51, np.uint8)
        sheet.pictures(grey, clear_map, layer, boxes, place, place)
    sheet.grades(np.array([0, 0, 0.75, 0.25, 0]), np.eye(5)[2], np.eye(5)[:, :3])
    sheet.text("a title", "two\nlines")
    fig.canvas.draw()
    photograph, map_alone, over, bars = fig.axes
    assert [len(ax.patches) for ax in (photograph, map_alone, over)] == [2, 0, 2]
    assert [text.get_text() for text in over.texts] == ["1", "2"]
    red, white = photograph.patches
    assert to_rgb(red.get_edgecolor()) == (1, 0, 0) and to_rgb(white.get_edgecolor()) == (1, 1, 1)
    assert red.get_bbox().extents.tolist() == [40, 10, 70, 40]
    widths = [bar.get_width() for bar in bars.patches]
    assert widths == [0, 0, 0.75, 0.25, 0, 0, 0, 1, 0, 0]

    screen = np.asarray(fig.canvas.buffer_rgba())[..., :3]

    def on_screen(ax, x, y):
        column, row = ax.transData.transform((x, y))
        return screen[len(screen) - 1 - int(row), int(column)]

    assert on_screen(photograph, 55, 60).tolist() == [51, 51, 51]
    assert on_screen(map_alone, 55, 25)[1] > 200 and not on_screen(map_alone, 25, 65).any()
    assert on_screen(over, 55, 25)[1] > 150 and on_screen(over, 25, 45).tolist() == [51, 51, 51]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$_$.jpg", "$_$.jpg"),
        ("a$b.jpg", "a$b.jpg"),
        ("two\nlines\r.jpg", "two\\nlines\\r.jpg"),
        ("no utf-8 \udcff.jpg", "no utf-8 \\udcff.jpg"),
        ("nul \0 and \u202egpj.eye", "nul \\x00 and \\u202egpj.eye"),
        ("J\u00fcrgen", "J\u00fcrgen"),
        ("n" * 247, "n" * 247),
    ],
)
def test_the_name_of_any_file_is_drawn_on_one_line_and_as_it_is(name, shown):
    sheet = figures.EyeSheet(plt.figure(figsize=(7, 4.1)))
    sheet.text(name, f"first\n$x_$ {name.splitlines()[0]}")
    sheet.fig.canvas.draw()
    drawn = sheet.fig.texts[0].get_text()
    assert not is_math_text(drawn) and drawn.replace(r"\$", "$") == shown
    assert sheet.fig.texts[1].get_text().startswith("first\n")
    ax = figures.show(canvas(1, 2), GREYS, figures.verbatim(name))
    ax.figure.canvas.draw()
    assert ax.get_title() == drawn


def chart():
    fig, ax = plt.subplots(figsize=(4, 3))
    for name, colour in figures.READING_COLOURS.items():
        ax.plot(np.random.default_rng(len(name)).random(9), color=colour, lw=3, label=name)
    ax.legend()
    return fig


def photograph():
    fig = plt.figure(figsize=(4, 3))
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.random((300, 400, 3)), (3, 3, 0))
    fig.add_axes((0, 0, 1, 1)).imshow((image - image.min()) / np.ptp(image))
    return fig


@pytest.mark.parametrize(
    ("draw", "kind", "other"), [(chart, "image/png", "jpeg"), (photograph, "image/jpeg", "png")]
)
def test_a_figure_is_handed_over_in_the_smaller_form_and_looks_as_it_was_drawn(draw, kind, other):
    fig = draw()
    drawn = BytesIO()
    fig.savefig(drawn, format="png", dpi=fig.dpi, bbox_inches="tight")
    drawn = Image.open(drawn).convert("RGB")
    found, data = figures.as_bytes(fig)
    image = Image.open(BytesIO(data))
    assert found == kind == Image.MIME[image.format] and image.size == drawn.size
    rival = BytesIO()
    drawn.save(rival, other, **({"quality": 55} if other == "jpeg" else {"optimize": True}))
    assert len(data) < len(rival.getvalue())
    off = np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(drawn, int))
    assert off.mean() < 6 and np.quantile(off, 0.99) < 40


def test_a_figure_of_more_colours_than_a_palette_holds_keeps_them():
    fig, axes = plt.subplots(2, figsize=(4, 3))
    hues = np.arange(5) / 5
    figures.level_legend(axes[0], hues, range(5))
    axes[1].imshow(np.arange(400).reshape(20, 20), cmap="viridis")
    _, data = figures.as_bytes(fig)
    colours = np.asarray(Image.open(BytesIO(data)).convert("RGB"), int).reshape(-1, 3)
    for hue in hues:
        wanted = 255 * hsv_to_rgb((hue, 1, 1))
        assert (np.abs(colours - wanted).max(1) < 32).sum() > 20, hue


def test_the_colours_of_the_readings_survive_the_palette():
    kind, data = figures.as_bytes(chart())
    assert kind == "image/png"
    colours = np.asarray(Image.open(BytesIO(data)).convert("RGB"), int).reshape(-1, 3)
    for name, colour in figures.READING_COLOURS.items():
        wanted = 255 * np.array(to_rgb(colour))
        assert (np.abs(colours - wanted).max(1) < 6).sum() > 100, name


@pytest.mark.parametrize("draw", [figures.by_parameter, figures.by_seed])
def test_texts_too_long_to_stand_side_by_side_are_numbered(draw):
    def ticks(values):
        ax = plt.figure().subplots()
        draw(ax, pd.DataFrame({"start": values, "value": [0.5, 0.6, 0.7]}), "start", {})
        return [tick.get_text() for tick in ax.get_xticklabels()], ax.get_xlabel()

    short, label = ticks(["a", "b", "c"])
    assert short == ["a", "b", "c"] and "numbered" not in label and label.startswith("start")
    numbered, label = ticks([name * 40 for name in "abc"])
    assert numbered == ["1", "2", "3"] and "numbered in their order in the table" in label
