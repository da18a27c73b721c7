"""One eye or a folder of them: the grade, its CLEAR-DR map, and in words where the response lies.

`explain_images` says what a sequencer makes of prepared photographs, `explain_files` of photographs
on disk, one after another, however many: `python -m lib explain`.
"""

import csv
import hashlib
import json
import math
import os
import re
import textwrap
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from lib import figures, paths
from lib.data import files, fundus, manifest, retina
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
_WAITS = (0.3, 1.5)  # seconds before a photograph that could not be read is tried again
_UNREAD = 3  # so many that still could not be read, and the rest is not tried
_NUMBERS = "p0 p1 p2 p3 p4 share0 share1 share2 share3 share4".split()
_COLUMNS = ["image", "grade", *_NUMBERS, "regions", "figure", "path", "sha256"]
_NAMES = ["image", "path", "reason"]  # columns that hold what the user called something
_MADE_BY = "explain.json"
_JOURNAL = "journal.jsonl"

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
    return config


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
    retina and shape, width and height, in the photograph's own pixels; content, what tells it from
    another of its name.
    """

    path: Path
    prepared: np.ndarray
    image: np.ndarray
    box: list
    shape: tuple
    content: dict


def explain_files(
    photographs: Sequence[str | Path],
    sequencer: str | Path,
    out: str | Path,
    relu: str = "guided",
    device: str = "cpu",
) -> tuple[int, dict[Path, str]]:
    """Grade photographs from disk and draw their CLEAR-DR figures.

    A few photographs are held at a time. What an interrupted run has done is not done again, unless
    the photograph has changed since; rejects are tried again. What was explained into `out` before,
    of other photographs, stays as it is. Nothing that lies in `out` is taken for a photograph.

    Args:
        photographs: files, and folders, of which all photographs below are meant, in linked
            folders, too.
        sequencer: name of a run in data/sequencers/ that notebook 04 trained, or the path of its
            folder; photographs are prepared as its were.
        out: new or empty folder, or one of this sequencer's results, for a figure of each
            photograph, results.csv (image; grade; p0..p4; share0..share4; regions as JSON: hour on
            the clock, distance from the middle in retinal diameters, share of the response for the
            grade, box in the photograph's pixels; figure; path; sha256 of the file) and
            rejects.csv (image, reason, path), with all files that are not explained.
            `read_table` reads them.
        relu: the reading of Eq. 3.
        device: where the network computes.

    Returns:
        How many are explained, and {path: reason} of the files that are not.

    Raises:
        ValueError: as `load_sequencer`; an unknown reading; no photograph; `out` holds something
            else, or the photographs.
        FileNotFoundError: as `load_sequencer`; a photograph that is not there.
        OSError: a photograph or folder could not be read now, though it may be later; `out` cannot
            be written.
        RuntimeError: another process writes to `out`.
    """
    if relu not in clear.RULES:
        raise ValueError(
            f"relu is {relu!r}; the readings of Eq. 3 are {', '.join(map(repr, clear.RULES))}"
        )
    run = _run_folder(sequencer)
    network, config = load_sequencer(run)
    out = _expanded(out).absolute()
    request = [_resolved(photograph) for photograph in photographs]
    meant, left_out = _listed(request, out)
    made_by = {"sequencer": run.name, **_digests(network, config), "relu": relu}
    _require_own(out, made_by)
    paths.make(out)
    with paths.alone(out / "results", "writing"):
        _require_own(out, made_by)
        results = _Results(out, made_by)
        results.forget({*results.below(request)} - {*meant, *left_out})
        for path, reason in left_out.items():
            results.reject(path, reason)
        left = [path for path in meant if not results.has(path)]
        unread = {}
        try:
            read = _read(left, config, results, unread)
            eyes = _eyes(network.to(device), config, read, relu)
            sheet = figures.EyeSheet(Figure((7, 4.1), dpi=110))
            for photograph, eye in tqdm(eyes, total=len(left), unit="photograph", disable=None):
                canvas = canvas_extent(photograph.box, config["size"])
                frame = canvas_extent((0, 0, *photograph.shape), len(photograph.image))
                title = f"{_short(photograph.path.name)}, sequencer {_short(run.name)}"
                fig = draw_eye(sheet, eye, photograph.image, frame, canvas, title)
                results.add(photograph, _row(eye, canvas), fig)
        finally:
            results.write_tables()
    if unread:
        path, error = next(iter(unread.items()))
        raise OSError(
            f"{len(unread)} photographs could not be read, {plain(str(path))} for one: "
            f"{error.strerror or error}. See to the disk or the network; the same command then "
            "goes on from there"
        )
    rejects = {path: results.reasons[path] for path in results.below(request, results.reasons)}
    return sum(path in results.rows for path in meant), rejects


def _run_folder(sequencer: str | Path) -> Path:
    """The folder of a sequencer's run, called by its name or its path."""
    path = _expanded(sequencer).absolute()
    folders = [paths.SEQUENCERS / sequencer, path, paths.ROOT / sequencer]
    if str(sequencer).startswith((".", "~")):
        folders = [path]
    for folder in folders:
        if (folder / "weights.safetensors").exists():
            return folder
    return folders[0] if len(Path(sequencer).parts) == 1 else path


def _expanded(path: str | Path) -> Path:
    """A path with the home folder for `~`; a name like `~x` is one."""
    if path == "":
        raise ValueError("a name is empty, as that of a shell variable that is not set: give one")
    path = Path(path)
    return path.expanduser() if path.parts[:1] == ("~",) else path


def _resolved(photograph: str | Path) -> Path:
    """The path of what is asked for, the same from every folder; a linked file keeps its name."""
    path = _expanded(photograph).absolute()
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: check the name")
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _digests(network: nn.Module, config: dict) -> dict[str, str]:
    """What tells this sequencer's results from another's: the SHA-256 of weights and config."""
    weights = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.contiguous().numpy().tobytes())
    settings = json.dumps(config, sort_keys=True).encode()
    return {"weights": weights.hexdigest(), "config": hashlib.sha256(settings).hexdigest()}


# Which files are meant


def _listed(request: list[Path], out: Path) -> tuple[list[Path], dict[Path, str]]:
    """The photographs that are asked for, each once, and why other files are left out."""
    found = []
    left_out = {}
    for path in request:
        if _within(path, out):
            raise ValueError(
                f"{path} lies in the output folder {out}, whose files are never taken for "
                "photographs: choose another folder with --out"
            )
        if not path.is_dir():
            found.append(path)
            continue
        below, closed = files.walk(path)
        left_out |= dict.fromkeys(closed, "folder cannot be read: permission denied")
        own = {place for place in {file.parent for file in below} if _within(place, out)}
        others = {file.parent for file in below if file.name == _JOURNAL} - own
        others = {place for place in others if os.path.exists(place / _MADE_BY)}
        for file in below:
            results = others.intersection(file.parents)
            if file.parent in own:
                continue
            if results:
                left_out[min(results)] = "results of explain: no photographs"
            elif reason := _why_not(file, out):
                left_out[file] = reason
            else:
                found.append(file)
    if not found:
        raise ValueError(
            f"no photographs ({', '.join(manifest.PHOTOGRAPH_SUFFIXES)}) in "
            f"{', '.join(map(str, request))}{''.join(f'; {line}' for line in counted(left_out))}"
        )
    return list(dict.fromkeys(found)), left_out


def _why_not(path: Path, out: Path) -> str:
    """Why a file in a folder is left out; empty where it is not."""
    if path.suffix.lower() not in manifest.PHOTOGRAPH_SUFFIXES:
        kind = f"ending {path.suffix}" if path.suffix else "no ending"
        return f"{kind}: read are {', '.join(manifest.PHOTOGRAPH_SUFFIXES)}"
    if not os.path.islink(path):
        return ""
    if not os.path.exists(path):
        return "link to nothing"
    return "link into the output folder" if _within(path, out) else ""


def _within(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, is the folder or lies in it."""
    path = path.resolve()
    return folder.exists() and any(folder.samefile(parent) for parent in (path, *path.parents))


# What is in them


def _read(
    left: list[Path], config: dict, results: "_Results", unread: dict[Path, OSError]
) -> Iterator[_Photograph]:
    """Every photograph that has not been explained as it is now; those at fault are rejected."""
    for path in left:
        try:
            data, content = _content(path)
            if results.has(path, content):
                continue
            photograph = _prepared(path, data, content, config)
        except ValueError as error:
            results.reject(path, str(error))
        except OSError as error:
            unread[path] = error
            if len(unread) == _UNREAD:
                return
        else:
            yield photograph


def _content(path: Path) -> tuple[bytes, dict]:
    """The bytes of a file and what they are known by.

    Raises ValueError for a fault of the file's own, OSError for one that may pass.
    """
    for wait in (*_WAITS, None):
        try:
            stamp = _stamp(path)
            data = retina.read_file(path)
            return data, {"stamp": stamp, "sha256": hashlib.sha256(data).hexdigest()}
        except PermissionError as error:
            os.listdir(path.parent)  # raises where it is not the file's fault alone
            raise ValueError(f"cannot be read: {error.strerror}") from error
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)


def _stamp(path: Path) -> list[int]:
    """What changes whenever a file does."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _prepared(path: Path, data: bytes, content: dict, config: dict) -> _Photograph:
    """Raises ValueError with the reason for which a photograph is rejected."""
    prepared, box, shape = retina.extract(
        data, path.name, config["size"], config["crop"], config["contrast"]
    )
    image, _, _ = retina.extract(data, path.name, min(_SHOWN, max(shape)), crop=False)
    return _Photograph(path, prepared, image, box, shape, content)


def _eyes(
    network: nn.Module, config: dict, photographs: Iterator[_Photograph], relu: str
) -> Iterator[tuple[_Photograph, Eye]]:
    """Every photograph with its eye."""
    mean = torch.tensor(config["mean"]).view(3, 1, 1)
    std = torch.tensor(config["std"]).view(3, 1, 1)
    device = next(network.parameters()).device
    at_once = max(1, min(_AT_ONCE, _PIXELS // config["size"] ** 2))
    while batch := list(islice(photographs, at_once)):
        stacked = np.stack([photograph.prepared for photograph in batch])
        images = torch.from_numpy(stacked).permute(0, 3, 1, 2)
        images = fundus.normalise(images, mean, std).to(device)
        eyes = explain_images(network, images, relu, config["loss"])
        yield from zip(batch, eyes, strict=True)


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


# Where it goes


def _require_own(out: Path, made_by: dict[str, str]) -> None:
    """Raise ValueError unless `out` is new, empty, or holds what the same request has made."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file: choose a folder with --out")
    told = out / _MADE_BY
    if not told.exists():
        # What a run that was stopped at once can have left.
        others = sorted({*os.listdir(out)} - {"results.lock", f"{_MADE_BY}.part"})
        if others:
            raise ValueError(
                f"{out} is not empty and not of this command ({plain(others[0])} is in it): choose "
                "another folder with --out"
            )
        return
    try:
        found = json.loads(told.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() >= made_by.keys():
        raise ValueError(
            f"{told} does not say whose results {out} holds: it is damaged, or of an earlier "
            "version. Choose another folder with --out, or move them away"
        )
    names = [name for name in ("weights", "config", "relu") if found[name] != made_by[name]]
    if names:
        raise ValueError(
            f"{out} holds other results of sequencer {found['sequencer']!r} (their "
            f"{' and '.join(names)} differ): choose another folder with --out, or move them away"
        )


class _Results:
    """What an output folder holds, by the path of the photograph.

    Its journal lists every figure and every table before it is written: what it does not list is
    not this command's, and never replaced.

    rows: what is explained; reasons: why files are not.
    """

    def __init__(self, out: Path, made_by: dict[str, str]) -> None:
        self.out = out
        self.rows = {}
        self.reasons = {}
        self._figures = {}
        self._tables = set()
        told = json.dumps(made_by, indent=1) + "\n"
        if not (out / _MADE_BY).exists():
            paths.write(out / _MADE_BY, lambda beside: beside.write_text(told))
        try:
            self._journal = paths.Journal(out / _JOURNAL)
        except ValueError as error:
            raise ValueError(
                f"{out / _JOURNAL} is damaged ({error}): choose another folder with --out, or move "
                "it away"
            ) from error
        for record in self._journal.records:
            self._take(record)
        names = [*os.listdir(out), *self._figures.values()]
        self._taken = {_folded(name) for name in names}
        self._count = Counter()

    def _take(self, record: Any) -> None:
        """Learn from a line of the journal what it tells; one that is none of ours, nothing."""
        record = record if isinstance(record, dict) else {}
        path = Path(str(record.get("path")))
        figure = record.get("figure")
        if "table" in record:
            self._tables.add(str(record["table"]))
        elif "reason" in record:
            self.rows.pop(path, None)
            self.reasons.pop(path, None)
            if record["reason"]:
                self.reasons[path] = str(record["reason"])
        elif isinstance(figure, str) and figure == _portable(figure) and figure.endswith(".png"):
            self._figures[path] = figure
            if record.keys() >= {*_COLUMNS, "stamp"}:
                self.reasons.pop(path, None)
                self.rows[path] = record

    def _add(self, record: dict) -> None:
        self._journal.add(record)
        self._take(record)

    def below(self, request: list[Path], known: Iterable[Path] | None = None) -> list[Path]:
        """Of the paths that are known, those that are asked for, or lie in what is asked for."""
        asked = set(request)
        known = [*self.rows, *self.reasons] if known is None else known
        return [path for path in known if not asked.isdisjoint([path, *path.parents])]

    def has(self, path: Path, content: dict | None = None) -> bool:
        """Whether a photograph is explained with that content, by default with that on disk."""
        row = self.rows.get(path)
        if row is None or not (self.out / row["figure"]).exists():
            return False
        if content is None:
            try:
                return row["stamp"] == _stamp(path)
            except OSError:
                return False
        same = row["sha256"] == content["sha256"]
        if same:
            self._add(row | content)
        return same

    def add(self, photograph: _Photograph, row: dict, fig: Figure) -> None:
        """Write a photograph's figure, and note its row."""
        path = photograph.path
        figure = self._figures.get(path) or self._new_figure(path)
        self._add({"path": str(path), "figure": figure})
        save = partial(fig.savefig, format="png", pil_kwargs={"compress_level": 1})
        paths.write(self.out / figure, save)
        named = {"image": path.name, "figure": figure, "path": str(path)}
        self._add(named | row | photograph.content)

    def _new_figure(self, path: Path) -> str:
        """A figure's name for a photograph that no file and no other figure has, in any case."""
        stem = _portable(path.stem).encode()[:200].decode(errors="ignore")
        while True:
            self._count[stem] += 1
            number = self._count[stem]
            name = f"{stem}-{number}.png" if number > 1 else f"{stem}.png"
            if _folded(name) not in self._taken:
                self._taken.add(_folded(name))
                return name

    def reject(self, path: Path, reason: str) -> None:
        """Note why a file is not explained."""
        if self.reasons.get(path) != reason:
            self._add({"path": str(path), "reason": reason})

    def forget(self, unlisted: set[Path]) -> None:
        """Take those from the tables that are on disk no more; what was explained, with a word."""
        for path in sorted(unlisted):
            try:
                path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                figure = self._figures.get(path)
                self.reject(path, f"no longer there: {figure} shows it" if figure else "")
            except OSError:  # a folder that cannot be read now
                continue

    def write_tables(self) -> None:
        """Write results.csv and rejects.csv; one that somebody has changed is kept aside."""
        rows = []
        for path, reason in self.reasons.items():
            rows.append({"image": path.name, "reason": reason, "path": str(path)})
        self._write_table("results.csv", self.rows.values(), _COLUMNS)
        self._write_table("rejects.csv", rows, ["image", "reason", "path"])

    def _write_table(self, name: str, rows: Iterable[dict], columns: list[str]) -> None:
        cells = []
        for row in rows:
            cells.append(
                [_cell(str(row[name])) if name in _NAMES else row[name] for name in columns]
            )
        table = pd.DataFrame(cells, columns=columns)
        data = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode()
        path = self.out / name
        old = path.read_bytes() if path.exists() else b""
        if old == data:
            return
        if old and hashlib.sha256(old).hexdigest() not in self._tables:
            print(f"{name} had been changed, and is kept as {paths.aside(path).name}")
        self._add({"table": hashlib.sha256(data).hexdigest()})
        paths.write(path, lambda beside: beside.write_bytes(data))


# Names as users have them


def plain(text: str) -> str:
    """A text to be printed or drawn: what is no printable character, as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def counted(reasons: dict[Path, str]) -> list[str]:
    """A line for each kind of reason: how many files have it, and one of them."""
    kinds = {}
    for path, reason in reasons.items():
        kinds.setdefault(reason.split(":")[0], []).append(path)
    lines = []
    for which in kinds.values():
        example = f"{plain(which[0].name)}: {plain(reasons[which[0]])}"
        lines.append(f"{len(which)} rejected, {example}")
    return lines


def _short(name: str) -> str:
    """A name for a figure's title."""
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"


def _portable(name: str) -> str:
    """A name that every disk takes and no shell mistakes."""
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"[^\w .()-]|^[-. ]", "_", name)


def _folded(name: str) -> str:
    """Two names of which some disk takes one for the other are equal after this."""
    return unicodedata.normalize("NFC", name).casefold()


def _cell(name: str) -> str:
    """A name in a table: no spreadsheet takes it for a formula, and it is UTF-8."""
    name = re.sub(r"\\(?=udc)", r"\\udc5c", name)
    name = re.sub(r"[\udc80-\udcff]", lambda byte: f"\\u{ord(byte[0]):x}", name)
    return f"'{name}" if re.match(r"'*[\s=+\-@＝＋－＠]", name) else name


def _name(cell: str) -> str:
    """The name that `_cell` was given."""
    name = cell[1:] if re.match(r"'+[\s=+\-@＝＋－＠]", cell) else cell
    name = re.sub(r"\\(udc[89a-f].)", lambda byte: chr(int(byte[1][1:], 16)), name)
    return name.replace(r"\udc5c", "\\")


def read_table(path: str | Path) -> pd.DataFrame:
    r"""The results.csv or rejects.csv of `explain_files`, with names as they are on disk.

    In the file a name that a spreadsheet would take for a formula, as `=1+2.jpg`, stands behind an
    apostrophe, and a byte that is no UTF-8 as `\udcff`.
    """
    text = dict.fromkeys([*_NAMES, "regions", "figure", "sha256"], str)
    empty = {name: [""] for name in _NUMBERS}
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
    for column in table.columns.intersection(_NAMES):
        table[column] = pd.Series(map(_name, table[column]), dtype=object)
    return table
