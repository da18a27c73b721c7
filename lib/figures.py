"""The pieces of figures that more than one notebook draws; most take axes and return them."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from scipy.special import stdtrit

from lib import paths

GRADE_NAMES = ("0 none", "1 mild", "2 moderate", "3 severe", "4 proliferative")
# Of CLEAR's Eq. 3: one colour each in all figures.
READING_COLOURS = {
    "linear": "#D55E00",
    "deconvnet": "#CC79A7",
    "gated": "#009E73",
    "guided": "#0072B2",
}

_LETTERS = 80  # that fit side by side below a figure


def style() -> None:
    """Set matplotlib for all notebooks: 100 dpi, small type, colours that all can tell apart."""
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.titlesize": 9,
            "figure.titlesize": 11,
            "legend.frameon": False,
            "image.cmap": "viridis",
            "image.interpolation": "nearest",
            "axes.prop_cycle": plt.style.library["petroff10"]["axes.prop_cycle"],
        }
    )


def as_bytes(figure: Figure) -> tuple[str, bytes]:
    """A figure at its own dpi in the smaller of two forms, its media type and its bytes.

    A chart is smallest as a PNG with a palette, a third of a JPEG, which also blurs its letters.
    Where 256 colours are too few, more than 16 of 255 levels off in more than a thousandth of the
    pixels, or a JPEG of quality 55 is smaller, it is that: so with photographs.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi, bbox_inches="tight")
    image = Image.open(drawn).convert("RGB")
    for method in (Image.Quantize.FASTOCTREE, Image.Quantize.MAXCOVERAGE):  # smallest, truest
        few = image.quantize(256, method, dither=Image.Dither.NONE)
        off = np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(image, int)).max(2)
        if (off > 16).mean() <= 0.001:
            break
    chart, photograph = BytesIO(), BytesIO()
    few.save(chart, "png", optimize=True)
    image.save(photograph, "jpeg", quality=55)
    if (off > 16).mean() > 0.001 or len(photograph.getvalue()) < len(chart.getvalue()):
        return "image/jpeg", photograph.getvalue()
    return "image/png", chart.getvalue()


def verbatim(name: str) -> str:
    """The name of a file as matplotlib is to draw it: on one line, `$` in it begins no formula."""
    return paths.printable(name).replace("$", r"\$")


def _array(image: Any) -> np.ndarray:
    return np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)


def show(ax: Axes, image: Any, title: object = "", **options: Any) -> Axes:
    """An image without ticks.

    Args:
        ax: where.
        image: (H, W), (1, H, W), (3, H, W) or (H, W, 3), array or tensor; one channel in grey.
        title: above it.
        options: handed on to imshow.
    """
    image = _array(image)
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    elif image.ndim == 3 and image.shape[0] == 3:
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 2:
        options = {"cmap": "gray"} | options
    ax.imshow(image, **options)
    ax.set(xticks=[], yticks=[], title=title)
    return ax


def overlay(ax: Axes, image: Any, heat: Any, title: object = "", strength: float = 0.55) -> Axes:
    """A map over its image in shades of `inferno`, more opaque where it is higher.

    Shades count from 0 to the map's own maximum (`heat_bar`); negative values are clear.

    Args:
        ax: where.
        image: as `show` takes it.
        heat: the map (H, W), array or tensor.
        title: above it.
        strength: opacity of the map's maximum, in [0, 1].

    Raises:
        ValueError: the map holds NaN or infinite values.
    """
    show(ax, image, title)
    heat = _array(heat).clip(min=0)
    if not np.isfinite(heat).all():
        raise ValueError(
            "the map holds NaN or infinite values; look at the network's weights and the image"
        )
    heat = heat / (heat.max() or 1)
    ax.imshow(heat, cmap="inferno", alpha=strength * np.sqrt(heat), vmin=0, vmax=1)
    return ax


def heat_bar(fig: Figure, axes: Any, label: str = "share of the map's maximum") -> Colorbar:
    """The colour bar for the overlays on `axes`, to their right."""
    shades = ScalarMappable(Normalize(0, 1), "inferno")
    return fig.colorbar(shades, ax=axes, label=label, fraction=0.03, aspect=35, ticks=[0, 0.5, 1])


def outline(
    ax: Axes, box: Sequence[float], colour: str = "white", label: str | None = None
) -> Axes:
    """A box (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, drawn around its pixels."""
    x0, y0, x1, y1 = box
    corner = (x0 - 0.5, y0 - 0.5)
    ax.add_patch(
        Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=1.6, label=label)
    )
    return ax


def hue_legend(ax: Axes, hues: Sequence[float], names: Sequence) -> Axes:
    """Which hue is which class, as a row of swatches with their names below."""
    return _swatches(ax, [hsv_to_rgb((hue, 1, 1)) for hue in hues], names)


def level_legend(ax: Axes, hues: Sequence[float], names: Sequence) -> Axes:
    """The key to CLEAR maps: each class's hue as a ramp of its value, 0 to 1, its name below."""
    levels = 64
    colours = []
    for hue in hues:
        for level in range(levels):
            colours.append(hsv_to_rgb((hue, 1, (level + 0.5) / levels)))
    return _swatches(ax, colours, names)


def _swatches(ax: Axes, colours: list, names: Sequence) -> Axes:
    """A row of colours, as many for each name, which stands below their middle."""
    ax.imshow([colours], aspect="auto", extent=(-0.5, len(names) - 0.5, 1, 0))
    ax.set(yticks=[])
    ax.set_xticks(range(len(names)), names)
    ax.tick_params(length=0)
    return ax


def heat_table(
    ax: Axes, shares: Any, rows: Sequence, columns: Sequence, labels: Any = None
) -> Axes:
    """A table whose cells are shaded by their share.

    Args:
        ax: where.
        shares: (R, C) in [0, 1].
        rows: the R rows' names.
        columns: the C columns' names.
        labels: what the cells say, (R, C); None for the shares in per cent.
    """
    shares = np.asarray(shares)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        said = f"{share:.0%}" if labels is None else labels[row][column]
        ink = "white" if share > 0.7 else "black"
        ax.text(column, row, said, ha="center", va="center", color=ink)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    return ax


def confusion(ax: Axes, matrix: Any, names: Sequence[str]) -> Axes:
    """A confusion matrix (N, N), rows true, with its counts, shaded by the share of each row."""
    matrix = np.asarray(matrix)
    shares = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    heat_table(ax, shares, names, names, matrix)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set(xlabel="predicted", ylabel="true", aspect="equal")
    return ax


def training_curves(axes: Sequence[Axes], table: Any) -> Sequence[Axes]:
    """A training's history: losses on the first axes, validation accuracy on the second.

    Args:
        axes: two.
        table: what `lib.learning.training.fit` returns, a row for each epoch.
    """
    axes[0].plot(table.epoch, table.loss, label="training")
    axes[0].plot(table.epoch, table.val_loss, "--", label="validation")
    axes[0].set(xlabel="epoch", ylabel="loss of an example", title="loss", yscale="log")
    axes[0].legend()
    axes[1].plot(table.epoch, table.val_accuracy, "--", color="C1")
    axes[1].set(xlabel="epoch", ylabel="accuracy", title="validation accuracy", ylim=(0, 1))
    return axes


def interval(values: Any) -> tuple[float, float]:
    """The mean of (N,) values and half of its 95 % interval, Student's t; NaN for a single one."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), math.nan
    error = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(stdtrit(len(values) - 1, 0.975) * error)


def _with_interval(mean: float, half: float) -> str:
    if math.isnan(half):
        return f"{mean:.4g}"
    return f"{mean:.4g} (95 % interval {mean - half:.4g} to {mean + half:.4g})"


def by_seed(ax: Axes, table: Any, seed: str, levels: dict[str, Any]) -> str:
    """Draw values by seed, their mean and its interval; return in words what is shown.

    Args:
        ax: where.
        table: a data frame, columns `seed` and "value", a row for each training.
        seed: the column on the horizontal axis.
        levels: lines to compare with, by label; each by the value of `seed`.
    """
    places = _axis(ax, table[seed], seed)
    ax.plot([places[value] for value in table[seed]], table["value"], "o")
    mean, half = interval(table["value"])
    ax.axhline(mean, label="mean")
    if not math.isnan(half):
        ax.axhspan(mean - half, mean + half, alpha=0.15, label="its 95 % interval")
    _lines(ax, places, levels)
    ax.legend()
    values = ", ".join(f"{value:.4g}" for value in table["value"])
    return f"by {seed}: {values}; mean {_with_interval(mean, half)}"


def by_parameter(ax: Axes, table: Any, parameter: str, levels: dict[str, Any]) -> str:
    """Draw values by a parameter, seeds as dots, and their means; return in words what is shown.

    Args:
        ax: where.
        table: a data frame, columns `parameter` and "value", a row for each training.
        parameter: the column on the horizontal axis; texts stand there in their order.
        levels: lines to compare with, by label; each by the value of `parameter`.
    """
    about = f"{parameter} (dashes: single seeds; bars: 95 % intervals of the means)"
    places = _axis(ax, table[parameter], about)
    seeds = [places[value] for value in table[parameter]]
    ax.plot(seeds, table["value"], "_", color="0.2", zorder=3)
    ax.margins(x=0.1)
    shown = []
    for value, place in places.items():
        mean, half = interval(table.loc[table[parameter] == value, "value"])
        bar = None if math.isnan(half) else half
        ax.errorbar(place, mean, bar, fmt="o", capsize=4, color="C0")
        shown.append(f"{value}: {_with_interval(mean, half)}")
    _lines(ax, places, levels)
    if levels:
        ax.legend()
    return f"by {parameter}: {'; '.join(shown)}"


def by_two_parameters(ax: Axes, table: Any, rows: str, columns: str) -> str:
    """Draw means over seeds as a table of two parameters; return in words what is shown.

    Args:
        ax: where.
        table: a data frame, columns `rows`, `columns` and "value", a row for each training.
        rows: the column whose values are the rows.
        columns: the one whose values are the columns.
    """
    means = table.groupby([rows, columns], sort=False)["value"].mean().unstack()
    means = means.reindex(index=table[rows].unique(), columns=table[columns].unique())
    values = means.to_numpy()
    low, high = np.nanmin(values), np.nanmax(values)
    labels = [["" if math.isnan(value) else f"{value:.4g}" for value in row] for row in values]
    heat_table(ax, (values - low) / ((high - low) or 1), means.index, means.columns, labels)
    ax.set(xlabel=f"{columns} (in the cells: means over seeds)", ylabel=rows)
    shown = []
    for row, of_row in means.iterrows():
        shown += [f"{row} and {column}: {mean:.4g}" for column, mean in of_row.dropna().items()]
    return f"by {rows} and {columns}: {'; '.join(shown)}"


def _axis(ax: Axes, values: Any, label: str) -> dict[Any, float]:
    """Ticks at the values of a parameter; where each stands, numbers to scale, texts in order.

    Texts too long to stand side by side, such as lists of names, are numbered.
    """
    found = list(dict.fromkeys(values))
    places = {value: place for place, value in enumerate(found)}
    if values.dtype.kind in "iuf":
        places = {value: value for value in sorted(found)}
        if min(found) > 0 and max(found) >= 8 * min(found):
            ax.set_xscale("log")
            ax.minorticks_off()
    ticks = [verbatim(str(value)) for value in places]
    if values.dtype.kind not in "iuf" and sum(map(len, ticks)) > _LETTERS:
        ticks = range(1, len(ticks) + 1)
        label += "\nnumbered in their order in the table"
    ax.set_xticks(list(places.values()), ticks)
    ax.set_xlabel(label)
    return places


def _lines(ax: Axes, places: dict[Any, float], levels: dict[str, Any]) -> None:
    for number, (label, level) in enumerate(levels.items()):
        dashes = ("--", ":", "-.")[number % 3]
        heights = [level[value] for value in places]
        ax.plot(list(places.values()), heights, dashes, color="black", lw=1, label=label)


class EyeSheet:
    """A figure for one eye after another, because a new figure for each takes twice as long.

    Photograph, CLEAR-DR map, one over the other; how probable each grade is beside its share of the
    response; a few lines of text. Regions are outlined and numbered, the first in red. Grades have
    their colours, and in the bars also their order.
    """

    def __init__(self, fig: Figure) -> None:
        """Lay the sheet out on a figure of about 7 x 4.1 inches."""
        fig.clear()
        fig.set_layout_engine("none")
        self.fig = fig
        self._panels = []
        empty = np.zeros((1, 1, 4))
        for i, name in enumerate(("photograph", "CLEAR-DR", "CLEAR-DR over the photograph")):
            place = (0.01 + 0.331 * i, 0.37, 0.318, 0.53)
            ax = fig.add_axes(place, facecolor="black", xticks=[], yticks=[])
            ax.set_title(name, fontsize=8)
            below = ax.imshow(empty, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
            above = ax.imshow(empty, interpolation="bilinear")
            self._panels.append((ax, below, above))
        ax = fig.add_axes((0.12, 0.05, 0.21, 0.24))
        order = np.arange(len(GRADE_NAMES))
        self._probabilities = ax.barh(order - 0.2, 1, height=0.38, lw=0)
        self._shares = ax.barh(
            order + 0.2, 1, height=0.38, lw=0, alpha=0.4, hatch="////", edgecolor="black"
        )
        ax.set(xlim=(0, 1), ylim=(len(order) - 0.5, -0.5), xticks=[])
        ax.set_yticks(order, GRADE_NAMES, fontsize=7)
        ax.tick_params(length=0)
        ax.set_title("probability; hatched: response", fontsize=7)
        self._title = fig.text(0.5, 0.955, "", ha="center", fontsize=9)
        self._lines = fig.text(0.36, 0.325, "", va="top", fontsize=7, linespacing=1.5)

    def pictures(
        self,
        image: np.ndarray,
        clear_map: np.ndarray,
        layer: np.ndarray,
        boxes: list[tuple[float, float, float, float]],
        frame: tuple[float, float, float, float],
        canvas: tuple[float, float, float, float],
    ) -> None:
        """Show the photograph, the map, and the map over the photograph.

        Args:
            image: (h, w, 3), uint8 or in [0, 1].
            clear_map: RGB (H, W, 3) in [0, 1].
            layer: the map as it lies over the photograph, RGBA (H, W, 4) in [0, 1].
            boxes: of the regions, (x0, y0, x1, y1) in the photograph's pixels.
            frame: where the image lies in the photograph, (left, right, bottom, top).
            canvas: where the map lies there.
        """
        image = image / 255 if image.dtype == np.uint8 else image
        nothing = np.zeros((1, 1, 4))
        shown = [
            (image, nothing, boxes),
            (nothing, clear_map, []),
            (image.mean(2), layer, boxes),
        ]
        for (ax, below, above), (picture, upon, outlined) in zip(self._panels, shown, strict=True):
            below.set_data(picture)
            below.set_extent(frame)
            above.set_data(upon)
            above.set_extent(canvas)
            ax.set(xlim=canvas[:2], ylim=canvas[2:])
            for mark in [*ax.patches, *ax.texts]:
                mark.remove()
            for number, (x0, y0, x1, y1) in enumerate(outlined, 1):
                colour = "red" if number == 1 else "white"
                outline(ax, (x0 + 0.5, y0 + 0.5, x1 + 0.5, y1 + 0.5), colour)
                inside = {"xytext": (2, -2), "textcoords": "offset points", "va": "top"}
                ax.annotate(str(number), (x0, y0), color="white", fontsize=7, **inside)

    def grades(self, probabilities: np.ndarray, shares: np.ndarray, colours: np.ndarray) -> None:
        """Set the bars: probabilities (5,), shares of the response (5,), colours (5, 3)."""
        for bars, widths in ((self._probabilities, probabilities), (self._shares, shares)):
            for bar, width, colour in zip(bars, widths, colours, strict=True):
                bar.set_width(width)
                bar.set_facecolor(colour)

    def text(self, title: str, lines: str) -> None:
        """Set the title and the lines below the pictures, `verbatim` both."""
        self._title.set_text(verbatim(title))
        self._lines.set_text("\n".join(verbatim(line) for line in lines.split("\n")))
