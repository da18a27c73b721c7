"""Photographs on disk, graded and explained one after another, however many: `python -m lib.notebook explain`."""

import hashlib
import json
from functools import partial
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from lib import paths
from lib.data.fundus import normalised
from lib.data.manifest import SUFFIXES
from lib.data.retina import extract
from lib.explain import Sheet, explained, extent, into, load, place
from lib.methods import clear

COLUMNS = (
    "image grade p0 p1 p2 p3 p4 share0 share1 share2 share3 share4 regions figure path".split()
)
AT_ONCE = 8, 1 << 19  # photographs, and pixels, that are held at a time
SHOWN = 640  # pixels of a photograph in a figure


class Photograph(NamedTuple):
    """A photograph from disk.

    prepared uint8 (size, size, 3); image, the whole frame on a square canvas to look at; box of the retina and shape,
    width and height, in the photograph's own pixels.
    """

    path: Path
    prepared: np.ndarray
    image: np.ndarray
    box: list
    shape: tuple


def explain_files(photographs, sequencer, out, relu="guided", device="cpu"):
    """Grade photographs from disk and draw their CLEAR-DR figures; returns how many, and {path: reason} of the rejects.

    photographs  files, and folders, of which all photographs below are meant
    sequencer    folder of data/sequencers/ that notebook 04 trained; photographs are cropped as its were
    out          folder for the figures, results.csv (image; grade; p0..p4; share0..share4; regions as JSON: hour on the
                 clock, distance from the middle in diameters of the retina, share of the response for the grade, box in
                 the photograph's pixels; figure; path) and rejects.csv (image, reason, path)

    A few photographs are held at a time. A row is written when its figure is; what an interrupted run has done is not
    done again, rejects are tried again. Raises as `load`, FileNotFoundError for a photograph that is not there,
    ValueError where there is none and where `out` holds another sequencer's results.
    """
    if relu not in clear.RULES:
        raise ValueError(
            f"relu is {relu!r}; the readings of Eq. 3 are {', '.join(map(repr, clear.RULES))}"
        )
    folder, out = paths.SEQUENCERS / sequencer, Path(out).absolute()
    network, config = load(folder)
    files = _files(photographs)
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    done = _claim(out, {"sequencer": str(sequencer), "weights": digest, "relu": relu})
    left, rejects, taken = [file for file in files if str(file) not in done], {}, set(done.values())
    sheet, savings = (
        Sheet(Figure((7, 4.1), dpi=110)),
        {"format": "png", "pil_kwargs": {"compress_level": 1}},
    )
    eyes = _eyes(network.to(device), config, left, relu, rejects)
    with open(out / "results.csv", "a", newline="", encoding="utf-8") as results:
        for photograph, eye in tqdm(eyes, total=len(left), unit="photograph", disable=None):
            name = _unique(f"{photograph.path.stem}.png", taken)
            frame = extent((0, 0, *photograph.shape), len(photograph.image))
            canvas = extent(photograph.box, config["size"])
            fig = sheet.draw(
                eye,
                photograph.image,
                frame,
                canvas,
                f"{photograph.path.name}, sequencer {sequencer}",
            )
            paths.write(out / name, partial(fig.savefig, **savings))
            row = _row(eye, canvas) | {
                "image": photograph.path.name,
                "figure": name,
                "path": photograph.path,
            }
            pd.DataFrame([row], columns=COLUMNS).to_csv(results, header=False, index=False)
            results.flush()
    rows = [(path.name, reason, path) for path, reason in rejects.items()]
    table = pd.DataFrame(rows, columns=["image", "reason", "path"])
    paths.write(out / "rejects.csv", lambda beside: table.to_csv(beside, index=False))
    return len(files) - len(rejects), rejects


def _files(photographs):
    """The files that are meant, absolute, each once."""
    files = []
    for path in (Path(photograph).expanduser().absolute() for photograph in photographs):
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
        below = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        files += below if path.is_dir() else [path]
    if not files:
        raise ValueError(
            f"no photographs ({', '.join(SUFFIXES)}) in {', '.join(map(str, photographs))}"
        )
    return list(dict.fromkeys(files))


def _claim(out, by):
    """Make `out` the folder of results `by` a sequencer: {path: figure} of those that are there already, whole."""
    told, results = out / "explain.json", out / "results.csv"
    found = json.loads(told.read_text()) if told.exists() else None
    if found not in (None, by) or (found is None and results.exists()):
        whose = (
            f"of sequencer {found['sequencer']!r}, weights {found['weights'][:8]}, {found['relu']}"
            if found
            else ""
        )
        raise ValueError(
            f"{out} holds other results {whose}: choose another folder, or move them away"
        )
    out.mkdir(parents=True, exist_ok=True)
    paths.write(told, lambda beside: beside.write_text(json.dumps(by, indent=1) + "\n"))
    told_so_far = (
        results.read_text(encoding="utf-8") if results.exists() else ",".join(COLUMNS) + "\n"
    )
    whole = told_so_far[: told_so_far.rfind("\n") + 1]  # the last line may have been cut off
    table = pd.read_csv(StringIO(whole), dtype=str, keep_default_na=False)
    table = table[table["figure"].map(lambda name: (out / name).exists()).astype(bool)]
    paths.write(results, lambda beside: table.to_csv(beside, index=False))
    return dict(zip(table["path"], table["figure"], strict=True))


def _eyes(network, config, files, relu, rejects):
    """(photograph, eye) of every file; what cannot be read goes to `rejects` with the reason."""
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    at_once, device = (
        max(1, min(AT_ONCE[0], AT_ONCE[1] // config["size"] ** 2)),
        next(network.parameters()).device,
    )
    for start in range(0, len(files), at_once):
        read = []
        for path in files[start : start + at_once]:
            try:
                read.append(_read(path, config))
            except (ValueError, OSError) as error:
                rejects[path] = str(error)
        if read:
            images = torch.from_numpy(
                np.stack([photograph.prepared for photograph in read])
            ).permute(0, 3, 1, 2)
            yield from zip(
                read,
                explained(network, normalised(images, mean, std).to(device), relu),
                strict=True,
            )


def _read(path, config):
    """Raises ValueError or OSError with the reason for which a photograph is rejected."""
    data = path.read_bytes()
    prepared, box, shape = extract(
        data, path.name, config["size"], config["crop"], config["contrast"]
    )
    image, _, _ = extract(data, path.name, min(SHOWN, max(shape)), crop=False)
    return Photograph(path, prepared, image, box, shape)


def _row(eye, canvas):
    size, regions = eye.R.shape[-1], []
    for region in eye.regions:
        hour, distance = place(region, size)
        corners = [
            round(v)
            for corner in (region.box[:2], region.box[2:])
            for v in into(corner, canvas, size)
        ]
        regions.append(
            {
                "hour": hour,
                "distance": round(distance, 3),
                "share": round(region.share, 3),
                "box": corners,
            }
        )
    numbers = {f"p{c}": round(float(p), 4) for c, p in enumerate(eye.probabilities)}
    numbers |= {f"share{c}": round(float(share), 4) for c, share in enumerate(eye.shares)}
    return {"grade": eye.grade, **numbers, "regions": json.dumps(regions)}


def _unique(name, taken):
    """`name`, or with -2, -3, ... before its suffix where that is taken already; taken from now on."""
    path, number = Path(name), 2
    while name in taken:
        name, number = f"{path.stem}-{number}{path.suffix}", number + 1
    taken.add(name)
    return name
