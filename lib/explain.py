"""One eye or a folder of them: the grade, its CLEAR-DR map, and in words where the response lies.

`explain_images` says what a sequencer makes of prepared photographs, `explain_files` of photographs
on disk, one after another, however many: `python -m lib explain`.
"""

import hashlib
import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

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
# In explain_files.
_AT_ONCE = 8  # photographs held at a time, with at most so many pixels:
_PIXELS = 1 << 19
_SHOWN = 640  # pixels of a photograph in a figure
_COLUMNS = (
    "image grade p0 p1 p2 p3 p4 share0 share1 share2 share3 share4 regions figure path".split()
)

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

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the weights are damaged or give another number of grades than five; config.json
            does not say how the photographs were prepared, as another kind of run's does not.
    """
    folder = Path(folder)
    weights = folder / "weights.safetensors"
    if not weights.exists():  # the next line raises, and says what to do
        return checkpoint.load_network(networks.RadiomicSequencer(), folder, TRAINED_BY)
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    needed = ["body", *fundus.PREPARATION]
    missing = [name for name in needed if name not in config and name != "fingerprint"]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: it is no sequencer's, or an old one's. "
            f"Notebook {TRAINED_BY} trains sequencers of fundus photographs"
        )
    if config["body"] not in networks.SEQUENCERS:
        raise ValueError(
            f"{path}: body is {config['body']!r}; known are {', '.join(networks.SEQUENCERS)}"
        )
    grades = _class_kernels(weights)
    if grades != GRADES:
        raise ValueError(
            f"the sequencer in {folder} answers with {grades} grades; CLEAR-DR has {GRADES}, 0 to 4"
        )
    network = networks.SEQUENCERS[config["body"]]()
    return checkpoint.load_network(network, folder, TRAINED_BY)


def _class_kernels(weights: Path) -> int:
    """How many class kernels the file holds; five where it cannot be read, for others to say."""
    try:
        with safe_open(weights, "pt") as file:
            return file.get_slice("head.weight").get_shape()[0]
    except (SafetensorError, OSError):
        return GRADES


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
    """
    scores, responses = clear.attentive_responses(network, images, relu)
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
    sheet.pictures(image, clear_dr_map(eye.R), boxes, frame, canvas)
    sheet.grades(eye.probabilities, np.nan_to_num(eye.shares), _palette())
    first, _, _, *regions = describe(eye, disc).split("\n")
    sheet.text(title, "\n".join(textwrap.fill(line, 86) for line in (first, *regions)))
    return sheet.fig


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


def _place(region: localisation.Region, size: int) -> tuple[int | None, float]:
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
        hour, distance = _place(region, eye.R.shape[-1])
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


# Photographs on disk


class _Photograph(NamedTuple):
    """A photograph from disk.

    prepared uint8 (size, size, 3); image, the whole frame on a square canvas to look at; box of the
    retina and shape, width and height, in the photograph's own pixels.
    """

    path: Path
    prepared: np.ndarray
    image: np.ndarray
    box: list
    shape: tuple


def explain_files(
    photographs: Sequence[str | Path],
    sequencer: str | Path,
    out: str | Path,
    relu: str = "guided",
    device: str = "cpu",
) -> tuple[int, dict[Path, str]]:
    """Grade photographs from disk and draw their CLEAR-DR figures.

    A few photographs are held at a time. What an interrupted run has done is not done again;
    rejects are tried again.

    Args:
        photographs: files, and folders, of which all photographs below are meant.
        sequencer: folder of data/sequencers/ that notebook 04 trained, or a path; photographs are
            prepared as its were.
        out: folder for a figure of each photograph, results.csv (image; grade; p0..p4;
            share0..share4; regions as JSON: hour on the clock, distance from the middle in retinal
            diameters, share of the response for the grade, box in the photograph's pixels; figure;
            path) and rejects.csv (image, reason, path).
        relu: the reading of Eq. 3.
        device: where the network computes.

    Returns:
        How many were explained, and {path: reason} of the rejects.

    Raises:
        ValueError: as `load_sequencer`; an unknown reading; no photograph; `out` holds another
            sequencer's results.
        FileNotFoundError: as `load_sequencer`; a photograph that is not there.
        RuntimeError: another process writes to `out`.
    """
    if relu not in clear.RULES:
        raise ValueError(
            f"relu is {relu!r}; the readings of Eq. 3 are {', '.join(map(repr, clear.RULES))}"
        )
    folder = paths.SEQUENCERS / sequencer
    network, config = load_sequencer(folder)
    files = _files(photographs)
    out = Path(out).absolute()
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    with paths.alone(out, "explaining photographs into"):
        journal = _claim(out, {"sequencer": str(sequencer), "weights": digest, "relu": relu})
        done = {row["path"]: row for row in journal.records if (out / row["figure"]).exists()}
        left = [file for file in files if str(file) not in done]
        rejects = {}
        try:
            eyes = _eyes(network.to(device), config, left, relu, rejects)
            sheet = figures.EyeSheet(Figure((7, 4.1), dpi=110))
            for photograph, eye in tqdm(eyes, total=len(left), unit="photograph", disable=None):
                taken = {row["figure"] for row in done.values()}
                name = _unique(f"{photograph.path.stem}.png", taken)
                canvas = canvas_extent(photograph.box, config["size"])
                frame = canvas_extent((0, 0, *photograph.shape), len(photograph.image))
                title = f"{photograph.path.name}, sequencer {sequencer}"
                fig = draw_eye(sheet, eye, photograph.image, frame, canvas, title)
                fast = {"compress_level": 1}
                paths.write(out / name, partial(fig.savefig, format="png", pil_kwargs=fast))
                row = {"image": photograph.path.name, **_row(eye, canvas), "figure": name}
                row["path"] = str(photograph.path)
                journal.add(row)
                done[row["path"]] = row
        finally:
            _write_table(out / "results.csv", list(done.values()), _COLUMNS)
        rows = []
        for path, reason in rejects.items():
            rows.append({"image": path.name, "reason": reason, "path": str(path)})
        _write_table(out / "rejects.csv", rows, ["image", "reason", "path"])
    return len(files) - len(rejects), rejects


def _write_table(path: Path, rows: list[dict], columns: list[str]) -> None:
    import pandas as pd

    table = pd.DataFrame(rows, columns=columns)
    paths.write(path, lambda beside: table.to_csv(beside, index=False))


def _files(photographs: Sequence[str | Path]) -> list[Path]:
    """The files that are meant, absolute, each once."""
    files = []
    for photograph in photographs:
        path = Path(photograph).expanduser().absolute()
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
        if path.is_dir():
            endings = manifest.PHOTOGRAPH_SUFFIXES
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in endings)
        else:
            files.append(path)
    if not files:
        raise ValueError(
            f"no photographs ({', '.join(manifest.PHOTOGRAPH_SUFFIXES)}) in "
            f"{', '.join(map(str, photographs))}"
        )
    return list(dict.fromkeys(files))


def _claim(out: Path, made_by: dict[str, str]) -> paths.Journal:
    """Make `out` the folder of one sequencer's results; returns the journal of what is done."""
    told = out / "explain.json"
    found = json.loads(told.read_text()) if told.exists() else None
    if found not in (None, made_by) or (found is None and (out / "results.csv").exists()):
        whose = ""
        if found:
            whose = "of sequencer {sequencer!r}, weights {weights:.8}, {relu}".format(**found)
        raise ValueError(
            f"{out} holds other results {whose}: choose another folder, or move them away"
        )
    out.mkdir(parents=True, exist_ok=True)
    paths.write(told, lambda beside: beside.write_text(json.dumps(made_by, indent=1) + "\n"))
    return paths.Journal(out / "journal.jsonl")


def _eyes(
    network: nn.Module, config: dict, files: list[Path], relu: str, rejects: dict[Path, str]
) -> Iterator[tuple[_Photograph, Eye]]:
    """Every file's photograph and eye; what cannot be read goes to `rejects` with the reason."""
    mean = torch.tensor(config["mean"]).view(3, 1, 1)
    std = torch.tensor(config["std"]).view(3, 1, 1)
    device = next(network.parameters()).device
    loss = config.get("loss", "cross-entropy")  # fitted heads name none: theirs is cross-entropy
    at_once = max(1, min(_AT_ONCE, _PIXELS // config["size"] ** 2))
    for start in range(0, len(files), at_once):
        photographs = []
        for path in files[start : start + at_once]:
            try:
                photographs.append(_read(path, config))
            except (ValueError, OSError) as error:
                rejects[path] = str(error)
        if photographs:
            stacked = np.stack([photograph.prepared for photograph in photographs])
            images = torch.from_numpy(stacked).permute(0, 3, 1, 2)
            images = fundus.normalise(images, mean, std).to(device)
            yield from zip(photographs, explain_images(network, images, relu, loss), strict=True)


def _read(path: Path, config: dict) -> _Photograph:
    """Raises ValueError or OSError with the reason for which a photograph is rejected."""
    data = path.read_bytes()
    prepared, box, shape = retina.extract(
        data, path.name, config["size"], config["crop"], config["contrast"]
    )
    image, _, _ = retina.extract(data, path.name, min(_SHOWN, max(shape)), crop=False)
    return _Photograph(path, prepared, image, box, shape)


def _row(eye: Eye, canvas: Extent) -> dict:
    """A photograph's numbers for results.csv."""
    size = eye.R.shape[-1]
    regions = []
    for region in eye.regions:
        hour, distance = _place(region, size)
        x0, y0, x1, y1 = region.box
        corners = [*to_photograph((x0, y0), canvas, size), *to_photograph((x1, y1), canvas, size)]
        box = [round(corner) for corner in corners]
        share = round(region.share, 3)
        regions.append({"hour": hour, "distance": round(distance, 3), "share": share, "box": box})
    row = {"grade": eye.grade}
    row |= {f"p{grade}": round(float(p), 4) for grade, p in enumerate(eye.probabilities)}
    row |= {f"share{grade}": round(float(share), 4) for grade, share in enumerate(eye.shares)}
    return row | {"regions": json.dumps(regions)}


def _unique(name: str, taken: set[str]) -> str:
    """`name`, or with -2, -3, ... before its suffix where that is taken already."""
    path = Path(name)
    number = 2
    while name in taken:
        name = f"{path.stem}-{number}{path.suffix}"
        number += 1
    return name
