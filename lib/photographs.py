"""Photographs on disk explained, one after another, however many: `python -m lib explain`."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from lib import explain, figures, paths, results
from lib.data import files, manifest, retina
from lib.methods import clear

_AT_ONCE = 8  # photographs held at a time, with at most so many pixels:
_PIXELS = 1 << 19
_SHOWN = 640  # pixels of a photograph in a figure
_WAITS = (0.3, 1.5)  # seconds before a photograph that could not be read is tried again
_UNREAD = 3  # so many that still could not be read, and the rest is not tried


class _Photograph(NamedTuple):
    """A photograph from disk.

    prepared uint8 (size, size, 3); image, the whole frame on a square canvas to look at, where
    figures are drawn; box of the retina and shape, width and height, in the photograph's own
    pixels; content, what tells it from another of its name.
    """

    path: Path
    prepared: np.ndarray
    image: np.ndarray | None
    box: list
    shape: tuple
    content: dict


def explain_files(
    photographs: Sequence[str | Path],
    sequencer: str | Path,
    out: str | Path,
    relu: str = "guided",
    device: str = "cpu",
    drawn: bool = True,
) -> tuple[int, dict[Path, str]]:
    """Grade photographs from disk and draw their CLEAR-DR figures.

    A few photographs are held at a time; while one is drawn the next are explained, and those after
    them read. What an interrupted run has done is not done again, unless the photograph has changed
    since; rejects are tried again. What was explained into `out` before, of other photographs,
    stays as it is. Nothing that lies in `out` is taken for a photograph.

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
            `read_results` reads them.
        relu: the reading of Eq. 3.
        device: where the network computes.
        drawn: whether a photograph gets a figure; without, the column `figure` of results.csv stays
            empty until the photograph is explained with one.

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
    network, config = explain.load_sequencer(run)
    out = _expanded(out).absolute()
    request = [_resolved(photograph) for photograph in photographs]
    meant, left_out = _listed(request, out)
    made_by = {"sequencer": run.name, **_digests(network, config), "relu": relu}
    results.require_own(out, made_by)
    paths.make(out)
    with paths.alone(out / "results", "writing"):
        results.require_own(out, made_by)
        kept = results.Results(out, made_by, drawn)
        kept.forget({*kept.below(request)} - {*meant, *left_out})
        for path, reason in left_out.items():
            kept.reject(path, reason)
        left = [path for path in meant if not kept.has(path)]
        unread = {}
        try:
            read = _read(left, config, kept, unread)
            with (
                closing(_ahead(read)) as read,
                closing(_ahead(_eyes(network.to(device), config, read, relu))) as eyes,
            ):
                sheet = figures.EyeSheet(Figure((7, 4.1), dpi=110))
                for photograph, eye in tqdm(eyes, total=len(left), unit="photograph", disable=None):
                    canvas = explain.canvas_extent(photograph.box, config["size"])
                    fig = _draw(sheet, photograph, eye, canvas, run.name) if drawn else None
                    kept.add(photograph.path, photograph.content, _row(eye, canvas), fig)
        finally:
            kept.write_tables()
    if unread:
        path, error = next(iter(unread.items()))
        raise OSError(
            f"{len(unread)} photographs could not be read, {paths.printable(str(path))} for one: "
            f"{error.strerror or error}. See to the disk or the network; the same command then "
            "goes on from there"
        )
    rejects = {path: kept.reasons[path] for path in kept.below(request, kept.reasons)}
    return sum(path in kept.rows for path in meant), rejects


def _ahead(items: Iterator) -> Iterator:
    """The items, the next one made in a thread while one is used; to be closed, which ends it."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _draw(
    sheet: figures.EyeSheet,
    photograph: _Photograph,
    eye: explain.Eye,
    canvas: explain.Extent,
    sequencer: str,
) -> Figure:
    """A photograph's figure."""
    frame = explain.canvas_extent((0, 0, *photograph.shape), len(photograph.image))
    name = results.shortened(photograph.path.name)
    title = f"{name}, sequencer {results.shortened(sequencer)}"
    return explain.draw_eye(sheet, eye, photograph.image, frame, canvas, title)


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
        others = {file.parent for file in below if file.name == results.JOURNAL} - own
        others = {place for place in others if os.path.exists(place / results.MADE_BY)}
        for file in below:
            inside = others.intersection(file.parents)
            if file.parent in own:
                continue
            if inside:
                left_out[min(inside)] = "results of explain: no photographs"
            elif reason := _why_not(file, out):
                left_out[file] = reason
            else:
                found.append(file)
    if not found:
        instead = "".join(f"; {line}" for line in results.counted(left_out))
        raise ValueError(
            f"no photographs ({', '.join(manifest.PHOTOGRAPH_SUFFIXES)}) in "
            f"{', '.join(map(str, request))}{instead}"
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
    left: list[Path], config: dict, kept: results.Results, unread: dict[Path, OSError]
) -> Iterator[_Photograph]:
    """Every photograph that has not been explained as it is now; those at fault are rejected."""
    for path in left:
        try:
            data, content = _content(path)
            if kept.has(path, content):
                continue
            photograph = _prepared(path, data, content, config, kept.drawn)
        except ValueError as error:
            kept.reject(path, str(error))
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
            stamp = results.stamp_of(path)
            data = retina.read_file(path)
            return data, {"stamp": stamp, "sha256": hashlib.sha256(data).hexdigest()}
        except PermissionError as error:
            os.listdir(path.parent)  # raises where it is not the file's fault alone
            raise ValueError(f"cannot be read: {error.strerror}") from error
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)


def _prepared(path: Path, data: bytes, content: dict, config: dict, drawn: bool) -> _Photograph:
    """Raises ValueError with the reason for which a photograph is rejected."""
    prepared, box, shape = retina.extract(
        data, path.name, config["size"], config["crop"], config["contrast"]
    )
    image = None
    if drawn:
        image, _, _ = retina.extract(data, path.name, min(_SHOWN, max(shape)), crop=False)
    return _Photograph(path, prepared, image, box, shape, content)


def _eyes(
    network: nn.Module, config: dict, photographs: Iterator[_Photograph], relu: str
) -> Iterator[tuple[_Photograph, explain.Eye]]:
    """Every photograph with its eye."""
    device = next(network.parameters()).device
    at_once = max(1, min(_AT_ONCE, _PIXELS // config["size"] ** 2))
    while batch := list(islice(photographs, at_once)):
        stacked = np.stack([photograph.prepared for photograph in batch])
        images = explain.network_images(stacked, config).to(device)
        eyes = explain.explain_images(network, images, relu, config["loss"])
        yield from zip(batch, eyes, strict=True)


def _row(eye: explain.Eye, canvas: explain.Extent) -> dict:
    """A photograph's numbers for results.csv."""
    size = eye.R.shape[-1]
    regions = []
    for region in eye.regions:
        hour, distance = explain.place(region, size)
        x0, y0, x1, y1 = region.box
        corners = [
            *explain.to_photograph((x0, y0), canvas, size),
            *explain.to_photograph((x1, y1), canvas, size),
        ]
        box = [round(corner) for corner in corners]
        share = round(region.share, 3)
        regions.append({"hour": hour, "distance": round(distance, 3), "share": share, "box": box})
    row = {"grade": eye.grade}
    row |= {f"p{grade}": round(float(p), 4) for grade, p in enumerate(eye.probabilities)}
    row |= {f"share{grade}": round(float(share), 4) for grade, share in enumerate(eye.shares)}
    return row | {"regions": json.dumps(regions)}
