"""The pieces of figures that more than one notebook draws; each takes matplotlib axes and returns them."""

from colorsys import hsv_to_rgb

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

GRADE_NAMES = ("0 none", "1 mild", "2 moderate", "3 severe", "4 proliferative")


def style():
    """Set matplotlib for all notebooks: 100 dpi, small type, tight boxes, lines in colours that all can tell apart."""
    plt.rcParams.update({
        "figure.dpi": 100, "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 9,
        "figure.titlesize": 11, "legend.frameon": False, "image.cmap": "viridis", "image.interpolation": "nearest",
        "axes.prop_cycle": plt.style.library["petroff10"]["axes.prop_cycle"],
    })  # fmt: skip


def show(ax, image, title="", **options):
    """An image without ticks: (H, W), (1, H, W), (3, H, W) or (H, W, 3), array or tensor; (H, W) in grey."""
    image = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if image.ndim == 3 and image.shape[0] in (1, 3):
        image = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)
    ax.imshow(image, **({"cmap": "gray"} | options if image.ndim == 2 else options))
    ax.set(xticks=[], yticks=[], title=title)
    return ax


def overlay(ax, image, heat, title="", strength=0.55):
    """A map (H, W) over its image in shades of `inferno`, more opaque where it is higher; negative values are clear.

    Shades count from 0 to the map's own maximum (`heat_bar`). Raises ValueError for a map with NaN.
    """
    show(ax, image, title)
    heat = np.asarray(heat.detach().cpu() if hasattr(heat, "detach") else heat).clip(min=0)
    if not np.isfinite(heat).all():
        raise ValueError(
            "the map holds NaN or infinite values; look at the network's weights and the image"
        )
    heat = heat / (heat.max() or 1)
    ax.imshow(heat, cmap="inferno", alpha=strength * np.sqrt(heat), vmin=0, vmax=1)
    return ax


def heat_bar(fig, axes, label="share of the map's maximum"):
    """The colour bar for the overlays on `axes`, to their right."""
    shades = ScalarMappable(Normalize(0, 1), "inferno")
    return fig.colorbar(shades, ax=axes, label=label, fraction=0.03, aspect=35, ticks=[0, 0.5, 1])


def outline(ax, box, colour="white", label=None):
    """A box (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, drawn around its pixels."""
    x0, y0, x1, y1 = box
    ax.add_patch(
        Rectangle(
            (x0 - 0.5, y0 - 0.5),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=colour,
            lw=1.6,
            label=label,
        )
    )
    return ax


def hue_legend(ax, hues, names):
    """Which hue is which class, as a row of swatches with their names below."""
    return _swatches(ax, [hsv_to_rgb(hue, 1, 1) for hue in hues], names)


def level_legend(ax, hues, names, levels=64):
    """Which hue is which class, each as a ramp of its value from 0 to 1, with its name below: the key to CLEAR maps."""
    values = (np.arange(levels) + 0.5) / levels
    return _swatches(ax, [hsv_to_rgb(hue, 1, value) for hue in hues for value in values], names)


def _swatches(ax, colours, names):
    """A row of colours, as many for each name, which stands below their middle."""
    ax.imshow([colours], aspect="auto", extent=(-0.5, len(names) - 0.5, 1, 0))
    ax.set(yticks=[])
    ax.set_xticks(range(len(names)), names)
    ax.tick_params(length=0)
    return ax


def confusion(ax, matrix, names):
    """A confusion matrix with its counts, shaded by the share of each true class."""
    matrix = np.asarray(matrix)
    share = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        ax.text(
            column,
            row,
            count,
            ha="center",
            va="center",
            color="white" if share[row, column] > 0.7 else "black",
        )
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


def history(axes, table):
    """A training's history on two axes: losses on the first, accuracy on the validation part on the second."""
    axes[0].plot(table.epoch, table.loss, label="training")
    axes[0].plot(table.epoch, table.val_loss, "--", label="validation")
    axes[0].set(xlabel="epoch", ylabel="cross-entropy", title="loss", yscale="log")
    axes[0].legend()
    axes[1].plot(table.epoch, table.val_accuracy, "--", color="C1")
    axes[1].set(xlabel="epoch", ylabel="accuracy", title="validation accuracy", ylim=(0, 1))
    return axes
