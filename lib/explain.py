"""One eye explained: the grade, its CLEAR-DR map, and in words where the response lies."""

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lib import figures, paths
from lib.data import fundus, manifest, retina
from lib.evaluation import localisation
from lib.learning import checkpoint, losses, networks
from lib.methods import clear

GRADES = len(figures.GRADE_NAMES)
TRAINED_BY = "04_radiomic_sequencer"
# From the disc's centre, in its diameters and radians below the horizontal: Jonas et al. 2015.
_FOVEA_DISTANCE = 2.65
_FOVEA_ANGLE = math.radians(7.8)
_GLOW = 0.006  # deviation of the Gaussian that `glow` smooths with, as a share of the width

Extent = tuple[float, float, float, float]  # left, right, bottom, top, as matplotlib has them


class Eye(NamedTuple):
    """What a sequencer says of one photograph.

    Attributes:
        grade: the answered grade.
        probabilities: (5,), of each grade.
        R: (5, H, W), the attentive responses.
        shares: (5,), of the positive dominant response that are for each grade; NaN without any.
        regions: at most three `localisation.Region` of R[grade]; round the first is the red box.
    """

    grade: int
    probabilities: np.ndarray
    R: np.ndarray
    shares: np.ndarray
    regions: list


def load_sequencer(folder: str | Path) -> tuple[nn.Module, dict]:
    """The sequencer of the run in `folder`, in evaluation mode, and the run's configuration.

    The configuration always says with which `loss` it was trained, for that decides how scores
    become a grade: heads fitted by logistic regression name none, and theirs is cross-entropy.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the weights are damaged or give another number of grades than five; config.json
            does not say how the photographs were prepared, as another kind of run's does not, or
            not what can be.
    """
    folder = Path(folder)
    weights = folder / "weights.safetensors"
    if not weights.exists():  # the next line raises, and says what to do
        return checkpoint.load_network(networks.RadiomicSequencer(), folder, TRAINED_BY)
    config = _read_config(folder / "config.json")
    grades = _class_kernels(weights)
    if grades != GRADES:
        raise ValueError(
            f"the sequencer in {folder} answers with {grades} grades; CLEAR-DR has {GRADES}, 0 to 4"
        )
    network = networks.SEQUENCERS[config["body"]]()
    network, _ = checkpoint.load_network(network, folder, TRAINED_BY)
    return network, config


def _read_config(path: Path) -> dict:
    """What a sequencer's config.json says, all of it such as can be."""
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it, or run notebook {TRAINED_BY} again"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings: run notebook {TRAINED_BY} again")
    if "epochs" not in config:
        config.setdefault("loss", "cross-entropy")
    needed = ["body", *fundus.PREPARATION, "loss"]
    missing = [name for name in needed if name not in config and name != "fingerprint"]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: it is no sequencer's, or an old one's. "
            f"Notebook {TRAINED_BY} trains sequencers of fundus photographs"
        )
    for name, known in (
        ("body", networks.SEQUENCERS),
        ("loss", losses.LOSSES),
        ("crop", [False, True]),
        ("contrast", ["none", "graham"]),
        ("size", range(16, 2049)),
    ):
        value = config[name]
        if type(value) not in (str, bool, int) or value not in known:
            choices = "16 to 2048" if name == "size" else ", ".join(map(str, known))
            raise ValueError(f"{path}: {name} is {value!r}; known are {choices}")
    for name, least in (("mean", -math.inf), ("std", 0)):
        value = config[name]
        numbers = isinstance(value, list) and [x for x in value if type(x) in (int, float)]
        if not numbers or len(value) != 3 or not all(least < x < math.inf for x in numbers):
            raise ValueError(
                f"{path}: {name} is {value!r}; it needs a number for each of 3 colours"
            )
    rim = config.get("rim", 1.0)
    if type(rim) not in (int, float) or not 0 < rim <= 1:
        raise ValueError(f"{path}: rim is {rim!r}; it is a share of the radius, above 0, at most 1")
    return config


def _class_kernels(weights: Path) -> int:
    """How many class kernels the file holds; five where it cannot be read, for others to say."""
    try:
        with safe_open(weights, "pt") as file:
            return file.get_slice("head.weight").get_shape()[0]
    except (SafetensorError, OSError):
        return GRADES


def network_images(photographs: np.ndarray, config: dict) -> Tensor:
    """Prepared photographs as a sequencer takes them: normalised, beyond its rim the mean.

    Args:
        photographs: (B, H, W, 3) uint8, prepared as the sequencer's were.
        config: of its run, as `load_sequencer` gives it.

    Returns:
        (B, 3, H, W) float32.
    """
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = torch.from_numpy(photographs).permute(0, 3, 1, 2)
    return fundus.without_rim(fundus.normalise(images, mean, std), config.get("rim", 1.0))


def explain_images(
    network: nn.Module, images: Tensor, relu: str = "guided", loss: str = "cross-entropy"
) -> list[Eye]:
    """What a sequencer says of photographs.

    Args:
        network: a sequencer.
        images: (B, 3, H, W) float32, normalised as it was trained, on its device.
        relu: the reading of Eq. 3 (`lib.methods.clear`).
        loss: what the sequencer was trained to minimise: it decides how scores become a grade.

    Returns:
        An `Eye` for each photograph.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    scores, responses = clear.attentive_responses(network, images, relu)
    if not scores.isfinite().all():
        raise ValueError(
            f"{type(network).__name__} answers with NaN or infinite scores; look at its weights"
        )
    probabilities = losses.probabilities(scores, loss)
    grades = losses.answered_grades(probabilities, loss).tolist()
    eyes = []
    for grade, p, R in zip(grades, probabilities.cpu(), responses.cpu(), strict=True):
        R = R.numpy()
        shares = localisation.grade_shares(R.argmax(0), R.max(0), len(p))
        eyes.append(Eye(grade, p.numpy(), R, shares, localisation.attentive_regions(R[grade])))
    return eyes


# As pictures


def thicken(R: np.ndarray) -> np.ndarray:
    """R as it is drawn: every point as large as a 128th of the width.

    A response has few bright points, which vanish when a map of many pixels is made small. So each
    pixel shows the largest response in a square around it. Up to 255 pixels that is the response.
    Takes and returns (5, H, W) float32.
    """
    from scipy.ndimage import maximum_filter

    side = max(1, np.shape(R)[-1] // 128)
    return maximum_filter(np.asarray(R, np.float32), (1, side, side))


def clear_dr_map(R: np.ndarray) -> np.ndarray:
    """The CLEAR-DR map: hue = dominant grade, value = square root of its response (CLEAR, Eq. 6).

    The square root lets the faint responses be seen. Takes responses (5, H, W), which are thickened
    first; returns RGB (H, W, 3) in [0, 1].
    """
    level = torch.from_numpy(thicken(R))[None].clamp(min=0).sqrt()
    return clear.render(level, clear.GRADE_HUES)[0].numpy()


def grade_colours(R: np.ndarray) -> np.ndarray:
    """The dominant grade's colour at each pixel; grey where hardly anything responds.

    Below a hundredth of the response's maximum the dominant grade is an accident. Takes responses
    (5, H, W), which are thickened first; returns RGB (H, W, 3) in [0, 1].
    """
    R = thicken(R)
    response = R.max(0)
    responds = response > max(0.01 * response.max(), 0)
    return np.where(responds[..., None], _palette()[R.argmax(0)], 0.25)


def glow(R: np.ndarray) -> np.ndarray:
    """The map as a layer over a photograph: where a grade responds its colour, opaque, else clear.

    Each grade's positive response is smoothed by a Gaussian of 0.6 % of the width, so that a lesion
    becomes one spot. The opacity is the largest of the five over its 99.5th percentile, 1 at most;
    the colour is the hue of its grade. For the eye: Eq. 6 itself is `clear_dr_map`.

    Args:
        R: (5, H, W), the responses.

    Returns:
        RGBA (H, W, 4) float32 in [0, 1].
    """
    from scipy.ndimage import gaussian_filter

    R = np.asarray(R, np.float32).clip(min=0)
    smooth = gaussian_filter(R, _GLOW * R.shape[-1], axes=(1, 2))
    response = smooth.max(0)
    bright = np.percentile(response, 99.5) or response.max() or 1
    opacity = (response / bright).clip(max=1)
    colour = _palette().astype(np.float32)[smooth.argmax(0)]
    return np.concatenate([colour, opacity[..., None]], axis=2)


def laid_over(R: np.ndarray, photograph: np.ndarray) -> np.ndarray:
    """The map laid over the photograph in grey: what responds glows, the rest stays grey.

    Args:
        R: (5, H, W), the responses; `glow` says what becomes of them.
        photograph: (H, W, 3), uint8 or in [0, 1], as it was prepared or in its own colours.

    Returns:
        RGB (H, W, 3) in [0, 1].

    Raises:
        ValueError: the photograph is of another size than the responses.
    """
    photograph = np.asarray(photograph)
    if photograph.shape != (*R.shape[1:], 3):
        raise ValueError(
            f"a photograph {photograph.shape} for responses {R.shape}: bring it to (H, W, 3)"
        )
    grey = photograph.mean(2, keepdims=True) / (255 if photograph.dtype == np.uint8 else 1)
    layer = glow(R)
    opacity = layer[..., 3:]
    return (1 - opacity) * grey + opacity * layer[..., :3]


def _palette() -> np.ndarray:
    """The grades' colours, (5, 3)."""
    return np.array([hsv_to_rgb((hue, 1, 1)) for hue in clear.GRADE_HUES])


def draw_eye(
    sheet: figures.EyeSheet,
    eye: Eye,
    image: np.ndarray,
    frame: Extent | None = None,
    canvas: Extent | None = None,
    title: str = "",
    disc: np.ndarray | None = None,
) -> Figure:
    """Show one eye on a sheet: photograph, map, the two together, grades, and words.

    Args:
        sheet: a `figures.EyeSheet`; it can be used again for the next eye.
        eye: what `explain_images` said.
        image: the photograph (h, w, 3), uint8 or in [0, 1], whole or prepared, at any resolution.
        frame: where it lies, as `canvas_extent` says; None where it is the prepared one.
        canvas: where the prepared one lies; None likewise.
        title: of the figure.
        disc: the optic disc's mask (H, W), as `describe` takes it.
    """
    size = eye.R.shape[-1]
    frame = frame or (0, size, size, 0)
    canvas = canvas or (0, size, size, 0)
    boxes = []
    for region in eye.regions:
        x0, y0, x1, y1 = region.box
        corners = to_photograph((x0, y0), canvas, size), to_photograph((x1, y1), canvas, size)
        boxes.append((*corners[0], *corners[1]))
    sheet.pictures(image, clear_dr_map(eye.R), glow(eye.R), boxes, frame, canvas)
    sheet.grades(eye.probabilities, np.nan_to_num(eye.shares), _palette())
    first, _, _, *regions = describe(eye, disc).split("\n")
    sheet.text(title, "\n".join(textwrap.fill(line, 86) for line in (first, *regions)))
    return sheet.fig


def original(dataset: fundus.FundusDataset, i: int) -> tuple[Path, list[int]]:
    """The file that a prepared photograph was cut from, and the box that was cut out.

    Args:
        dataset: of prepared photographs.
        i: which of them.

    Returns:
        The path; left, top, right, bottom in the pixels of the upright photograph, as
        `lib.data.retina.cut` takes them.

    Raises:
        FileNotFoundError: the collection, or the photograph in it, is no longer on disk.
    """
    name, source = dataset.names[i], dataset.sources[i]
    labels, _ = manifest.read_labels(paths.RAW / source, dataset.about["eye"])
    files = labels.set_index("image")["path"]
    own = name if name in files else name.removeprefix(fundus.prefix(source))  # if of several
    if own not in files or not files[own].exists():
        raise FileNotFoundError(f"{name} of {source} is no longer in {paths.RAW}")
    return files[own], dataset.boxes[i]


def canvas_extent(box: Sequence[int], size: int) -> Extent:
    """Where the size x size canvas of `retina.cut` lies in its photograph.

    `box` is what was cut out, (left, top, right, bottom) in the photograph's pixels. Returns
    (left, right, bottom, top): as `extent` of matplotlib's imshow it brings a map of prepared size
    up to the photograph's.
    """
    left, top, right, bottom = box
    x, y, width, height = retina.placement(box, size)
    across = (right - left) / width
    down = (bottom - top) / height
    return left - x * across, left + (size - x) * across, top + (size - y) * down, top - y * down


def to_photograph(point: tuple[float, float], extent: Extent, size: int) -> tuple[float, float]:
    """A point (x, y) of a size x size canvas in the photograph's pixels, where `extent` puts it."""
    left, right, bottom, top = extent
    return left + point[0] / size * (right - left), top + point[1] / size * (bottom - top)


# In words


def landmarks(
    disc: np.ndarray,
) -> tuple[tuple[float, float], float, tuple[float, float] | None]:
    """From the optic disc: its centre, its diameter, and where the fovea is to be expected.

    The fovea lies, on average, 2.65 disc diameters temporal of the disc's centre and 7.8 degrees
    below the horizontal (Jonas et al. 2015, doi 10.1371/journal.pone.0138701 and 0141771). Temporal
    is where the photograph's middle is.

    Args:
        disc: (H, W) bool, the mask of the optic disc.

    Returns:
        The centre (x, y) and the diameter in pixels, that of a circle of equal area; the fovea
        (x, y), or None where the disc is less than a diameter from the middle, so that nobody knows
        which side is temporal.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.nonzero(disc)
    if not len(rows):
        raise ValueError("the mask of the optic disc is empty: give it only where there is one")
    x = columns.mean() + 0.5
    y = rows.mean() + 0.5
    diameter = 2 * math.sqrt(len(rows) / math.pi)
    to_middle = disc.shape[1] / 2 - x
    if abs(to_middle) < diameter:
        return (x, y), diameter, None
    far = _FOVEA_DISTANCE * diameter
    across = math.copysign(far * math.cos(_FOVEA_ANGLE), to_middle)
    return (x, y), diameter, (x + across, y + far * math.sin(_FOVEA_ANGLE))


def place(region: localisation.Region, size: int) -> tuple[int | None, float]:
    """Where a region lies, seen from the middle of a photograph of `size` pixels.

    The hour on a clock's face (None in the middle itself) and the distance in retinal diameters.
    """
    hour, distance = localisation.clock_hour(region.centre, (size / 2, size / 2), size)
    return (hour if distance >= 0.05 else None), distance


def describe(eye: Eye, disc: np.ndarray | None = None) -> str:
    """An `Eye` in words: grade, probabilities, shares of the response, regions, a line each.

    A region's share is of R[grade], the response for the answered grade.

    Args:
        eye: what `explain_images` said.
        disc: (H, W) bool, the optic disc's mask. With it a region's line also says how far it is
            from the disc and from where the fovea is to be expected, in disc diameters.
    """
    nothing = np.isnan(eye.shares[0])
    lines = [
        f"grade {figures.GRADE_NAMES[eye.grade]}, probability {eye.probabilities[eye.grade]:.0%}",
        f"probability of each grade: {_each(eye.probabilities)}",
        f"share of the response: {'nothing responds' if nothing else _each(eye.shares)}",
    ]
    for number, region in enumerate(eye.regions, 1):
        hour, distance = place(region, eye.R.shape[-1])
        where = "in the middle"
        if hour:
            where = f"{hour} o'clock, {distance:.2f} retinal diameters from the middle"
        line = f"region {number}: {where}, {region.share:.0%} of the response"
        if disc is not None and np.any(disc):
            line += _from_landmarks(region, disc)
        lines.append(line)
    return "\n".join(lines)


def _from_landmarks(region: localisation.Region, disc: np.ndarray) -> str:
    centre, diameter, fovea = landmarks(disc)
    from_disc = math.dist(region.centre, centre) / diameter
    text = f"; {from_disc:.1f} disc diameters from the disc's centre"
    if fovea:
        text += f", about {math.dist(region.centre, fovea) / diameter:.1f} from the fovea"
    return text


def _each(values: np.ndarray) -> str:
    named = zip(figures.GRADE_NAMES, values, strict=True)
    return ", ".join(f"{name} {value:.0%}" for name, value in named)
