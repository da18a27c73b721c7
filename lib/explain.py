"""One eye explained: the grade that a sequencer gives it, its CLEAR-DR map, and in words where the response lies."""

import json
import math
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from safetensors import SafetensorError, safe_open
from scipy import ndimage

from lib import figures
from lib.data.retina import placement
from lib.evaluation import localisation as lesions
from lib.learning import networks, training
from lib.methods import clear

GRADES = len(figures.GRADE_NAMES)
HOW_PREPARED = ("fingerprint", "size", "crop", "contrast", "mean", "std")
MAKER = "04_radiomic_sequencer"
COLUMNS = (
    "image grade p0 p1 p2 p3 p4 share0 share1 share2 share3 share4 regions figure path".split()
)
AT_ONCE = 8, 1 << 19  # photographs, and pixels, that are held at a time
SHOWN = 640  # pixels of a photograph in a figure from disk
FOVEA = (
    2.65,
    math.radians(7.8),
)  # from the disc's centre, in its diameters, and below the horizontal: Jonas et al. 2015


class Eye(NamedTuple):
    """What a sequencer says of one photograph.

    grade, the predicted one; probabilities (5,); R (5, H, W), the attentive responses; shares (5,) of the positive
    dominant response that are for each grade, NaN without any; regions, at most three of R[grade], as
    `lesions.attentive_regions` has them: round the first is the red box.
    """

    grade: int
    probabilities: np.ndarray
    R: np.ndarray
    shares: np.ndarray
    regions: list


def load(folder):
    """The sequencer of the run in `folder`, in evaluation mode, and the run's configuration.

    Raises FileNotFoundError where there are no weights; ValueError where they are damaged, give another number of
    grades than five, or where config.json does not say how the photographs were prepared, as another kind of run's.
    """
    folder = Path(folder)
    path, weights = folder / "config.json", folder / "weights.safetensors"
    if not weights.exists():
        return training.load(networks.SEQUENCERS["plain"](), folder, MAKER)  # which says what to do
    config = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in ("body", *HOW_PREPARED[1:]) if name not in config]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: it is no sequencer's, or an old one's. "
                         f"Notebook {MAKER} trains sequencers of fundus photographs")  # fmt: skip
    if config["body"] not in networks.SEQUENCERS:
        raise ValueError(
            f"{path}: body is {config['body']!r}; known are {', '.join(networks.SEQUENCERS)}"
        )
    if (grades := _grades(weights)) != GRADES:
        raise ValueError(
            f"the sequencer in {folder} answers with {grades} grades; CLEAR-DR has {GRADES}, 0 to 4"
        )
    return training.load(networks.SEQUENCERS[config["body"]](), folder, MAKER)


def _grades(weights):
    """How many class kernels the weights hold; five where the file is not readable, for `load` to say."""
    try:
        with safe_open(weights, "pt") as file:
            return file.get_slice("head.weight").get_shape()[0]
    except (SafetensorError, OSError):
        return GRADES


def check(config, made):
    """Raise ValueError unless a sequencer's `config` and a data set's dataset.json tell of the same photographs.

    The collection, size, cropping, contrast and normalisation must be the same; so, by the training part's mean, is
    the split, and nothing that is scored has been learnt from.
    """
    differing = [name for name in HOW_PREPARED
                 if not np.all(np.asarray(config.get(name)) == np.asarray(made[name]))]  # fmt: skip
    if differing:
        told = "; ".join(
            f"{name} {config.get(name)!r} there, {made[name]!r} here" for name in differing
        )
        raise ValueError(f"the sequencer learnt from {config.get('prepared')!r}, prepared otherwise: {told}. Run "
                         f"notebook {MAKER} with the data set that is there now, or choose another")  # fmt: skip


def explained(network, images, relu="guided"):
    """What a sequencer says of images (B, 3, H, W), normalised as it was trained: a list of B `Eye`s."""
    scores, responses = clear.attentive_responses(network, images, relu)
    eyes = []
    for p, R in zip(scores.softmax(1).cpu().numpy(), responses.cpu().numpy(), strict=True):
        grade = int(p.argmax())
        shares = lesions.grade_shares(R.argmax(0), R.max(0), len(p))
        eyes.append(Eye(grade, p, R, shares, lesions.attentive_regions(R[grade])))
    return eyes


# For the reader


def drawn(R):
    """R (5, H, W) as it is drawn, float32: every point as large as a 128th of the width.

    A response has few bright points, which vanish when a map of many pixels is made small: each pixel shows the largest
    response in a square around it. Up to 255 pixels that is the response itself.
    """
    side = max(1, np.shape(R)[-1] // 128)
    return ndimage.maximum_filter(np.asarray(R, np.float32), (1, side, side))


def clear_dr_map(R):
    """The CLEAR-DR map of R (5, H, W): colour = dominant grade, value = square root of its response (CLEAR, Eq. 6).

    RGB (H, W, 3) in [0, 1], of `drawn` responses; the square root lets the faint ones be seen.
    """
    return clear.render(torch.from_numpy(drawn(R))[None].clamp(min=0).sqrt(), clear.GRADE_HUES)[
        0
    ].numpy()


def grade_colours(R):
    """The dominant grade's colour at each pixel of R (5, H, W) as `drawn`, RGB (H, W, 3).

    Grey where the response is below a hundredth of its maximum: there the dominant grade is an accident.
    """
    R = drawn(R)
    colours, response = (
        np.array([hsv_to_rgb((hue, 1, 1)) for hue in clear.GRADE_HUES])[R.argmax(0)],
        R.max(0),
    )
    return np.where((response > max(0.01 * response.max(), 0))[..., None], colours, 0.25)


def landmarks(disc):
    """From the optic disc's mask (H, W): its centre (x, y), its diameter in pixels, where the fovea is to be expected.

    The diameter is that of a circle of equal area. The fovea lies, on average, 2.65 disc diameters temporal of the
    disc's centre and 7.8 degrees below the horizontal (Jonas et al. 2015, doi 10.1371/journal.pone.0138701 and
    0141771); temporal is where the photograph's middle is, and where that is less than a diameter away nobody knows:
    None. Raises ValueError for an empty mask.
    """
    rows, columns = np.nonzero(disc)
    if not len(rows):
        raise ValueError("the mask of the optic disc is empty: give it only where there is one")
    x, y, diameter = columns.mean() + 0.5, rows.mean() + 0.5, 2 * math.sqrt(len(rows) / math.pi)
    to_middle, (far, angle) = disc.shape[1] / 2 - x, FOVEA
    if abs(to_middle) < diameter:
        return (x, y), diameter, None
    across = math.copysign(far * diameter * math.cos(angle), to_middle)
    return (x, y), diameter, (x + across, y + far * diameter * math.sin(angle))


def place(region, size):
    """Where a region lies, seen from the middle of a photograph of `size` pixels: the hour, and the distance.

    The hour is that of a clock's face (None in the middle itself), the distance in diameters of the retina.
    """
    hour, distance = lesions.clock_hour(region.centre, (size / 2, size / 2), size)
    return (hour if distance >= 0.05 else None), distance


def words(eye, disc=None):
    """An `Eye` in words: grade, probabilities, shares of the response, and the most attentive regions, a line each.

    A region's share is of R[grade], the response for the predicted grade. With the optic disc's mask (H, W), also how
    far each region is from the disc and from where the fovea is to be expected (`landmarks`), in disc diameters.
    """
    known = landmarks(disc) if disc is not None and np.any(disc) else None
    lines = [
        f"grade {figures.GRADE_NAMES[eye.grade]}, probability {eye.probabilities[eye.grade]:.0%}",
        "probability of each grade: " + _each(eye.probabilities),
        "share of the response: "
        + ("nothing responds" if np.isnan(eye.shares[0]) else _each(eye.shares)),
    ]
    for number, region in enumerate(eye.regions, 1):
        hour, distance = place(region, eye.R.shape[-1])
        where = (
            f"{hour} o'clock, {distance:.2f} retinal diameters from the middle"
            if hour
            else "in the middle"
        )
        line = f"region {number}: {where}, {region.share:.0%} of the response"
        if known:
            disc_at, diameter, fovea = known
            line += f"; {math.dist(region.centre, disc_at) / diameter:.1f} disc diameters from the disc's centre"
            if fovea:
                line += f", about {math.dist(region.centre, fovea) / diameter:.1f} from the fovea"
        lines.append(line)
    return "\n".join(lines)


def _each(values):
    return ", ".join(
        f"{name} {value:.0%}" for name, value in zip(figures.GRADE_NAMES, values, strict=True)
    )


def extent(box, size):
    """Where the size x size canvas of `cropping.cut` lies in its photograph: (left, right, bottom, top) in pixels.

    `box` is what was cut out. matplotlib's imshow takes the result as its `extent`, and so brings a map of prepared
    size up to the photograph's.
    """
    (left, top, right, bottom), (x, y, width, height) = box, placement(box, size)
    across, down = (right - left) / width, (bottom - top) / height
    return left - x * across, left + (size - x) * across, top + (size - y) * down, top - y * down


def into(point, extent, size):
    """A point (x, y) of a size x size canvas in the photograph's pixels, where `extent` says the canvas lies."""
    left, right, bottom, top = extent
    return left + point[0] / size * (right - left), top + point[1] / size * (bottom - top)


class Sheet:
    """A figure for one eye after another, as a new one for each takes twice as long: photograph, CLEAR-DR map, one over
    the other, and how probable each grade is beside its share of the response.

    The regions are outlined and numbered, the first, the most attentive of the predicted grade, in red. Grades have
    their colours, and in the bars also their order.
    """

    def __init__(self, fig):
        fig.clear()
        fig.set_layout_engine("none")
        self.fig, self.panels, empty = fig, [], np.zeros((1, 1, 4))
        for i, name in enumerate(("photograph", "CLEAR-DR", "CLEAR-DR over the photograph")):
            ax = fig.add_axes(
                (0.01 + 0.331 * i, 0.37, 0.318, 0.53), facecolor="black", xticks=[], yticks=[]
            )
            ax.set_title(name, fontsize=8)
            below = ax.imshow(empty, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
            self.panels.append((ax, below, ax.imshow(empty, interpolation="bilinear")))
        ax, grades = fig.add_axes((0.12, 0.05, 0.21, 0.24)), np.arange(GRADES)
        options = {
            "color": [hsv_to_rgb((hue, 1, 1)) for hue in clear.GRADE_HUES],
            "height": 0.38,
            "lw": 0,
        }
        self.bars = [ax.barh(grades - 0.2, 1, **options)]
        self.bars += [
            ax.barh(grades + 0.2, 1, alpha=0.4, hatch="////", edgecolor="black", **options)
        ]
        ax.set(xlim=(0, 1), ylim=(GRADES - 0.5, -0.5), xticks=[])
        ax.set_yticks(grades, figures.GRADE_NAMES, fontsize=7)
        ax.tick_params(length=0)
        ax.set_title("probability; hatched: response", fontsize=7)
        self.title = fig.text(0.5, 0.955, "", ha="center", fontsize=9)
        self.words = fig.text(0.36, 0.325, "", va="top", fontsize=7, linespacing=1.5)

    def draw(self, eye, image, frame=None, canvas=None, title="", disc=None):
        """Show one eye; returns the figure.

        image          the photograph (h, w, 3), uint8 or in [0, 1], whole or prepared, at any resolution
        frame, canvas  where it lies and where the prepared one lies, in the photograph's pixels, as `extent` gives
                       them; None where the image is the prepared one
        disc           the optic disc's mask as `words` takes it
        """
        size = eye.R.shape[-1]
        frame, canvas = frame or (0, size, size, 0), canvas or (0, size, size, 0)
        image = image / 255 if image.dtype == np.uint8 else image
        map = clear_dr_map(eye.R)
        value = map.max(
            2, keepdims=True
        )  # the saturation is 1, so the largest channel is the value
        over = np.dstack([map / np.where(value > 0, value, 1), 0.85 * value])
        nothing = np.zeros((1, 1, 4))
        shown = (image, nothing), (nothing, map), (image.mean(2), over)
        for i, ((ax, *layers), arrays) in enumerate(zip(self.panels, shown, strict=True)):
            for layer, array, place in zip(layers, arrays, (frame, canvas), strict=True):
                layer.set_data(array)
                layer.set_extent(place)
            ax.set(xlim=canvas[:2], ylim=canvas[2:])
            for mark in [*ax.patches, *ax.texts]:
                mark.remove()
            for number, region in enumerate(eye.regions if i != 1 else (), 1):
                _number(
                    ax,
                    number,
                    *(into(corner, canvas, size) for corner in (region.box[:2], region.box[2:])),
                )
        for bars, widths in zip(
            self.bars, (eye.probabilities, np.nan_to_num(eye.shares)), strict=True
        ):
            for bar, width in zip(bars, widths, strict=True):
                bar.set_width(width)
        lines = words(eye, disc).split("\n")
        self.words.set_text("\n".join(textwrap.fill(line, 86) for line in (lines[0], *lines[3:])))
        self.title.set_text(title)
        return self.fig


def _number(ax, number, upper, lower):
    colour = "red" if number == 1 else "white"
    figures.outline(ax, (upper[0] + 0.5, upper[1] + 0.5, lower[0] + 0.5, lower[1] + 0.5), colour)
    ax.annotate(
        str(number), upper, (2, -2), textcoords="offset points", va="top", color="white", fontsize=7
    )
