"""Where photographs come from: fundus photographs as Kaggle ships EyePACS, and ILSVRC's with their boxes."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from lib import paths
from lib.phantom import BALANCED, VERSION, write_collection

# Right eyes of EyePACS by grade 0-4, counted in Kaggle's label tables; the CLEAR-DR paper says 53,354 images.
EYEPACS_RIGHT_EYES = {"train": (12939, 1231, 2590, 448, 355), "test": (19816, 1857, 3904, 601, 610)}


def phantom(n, seed, share=BALANCED):
    """The folder of the phantom collection of n patients: written once, reused for the same arguments, else remade.

    `seed` draws everything, `share` is the share of each grade 0-4. Raises as `lib.phantom.write_collection` does.
    """
    folder = paths.RAW / "phantom"
    wanted = {"n": n, "seed": seed, "share": list(share), "version": VERSION}
    made = folder / "collection.json"
    if not made.exists() or json.loads(made.read_text()) != wanted:
        write_collection(folder, n, seed, share)
    return folder


def imagenet_boxes(path):
    """ILSVRC's boxes: {photograph's name without ending: (class index, [(x0, y0, x1, y1), ...])}, x1, y1 exclusive.

    path  Kaggle's LOC_val_solution.csv (ImageId, PredictionString of "wnid x0 y0 x1 y1" repeated), or a folder of the
          official XML files, one for each photograph. Pixels are ILSVRC's, the last one included.
    Classes are numbered by sorted wnid, as in torchvision. Where fewer than 1,000 occur, the numbering is taken from
    LOC_synset_mapping.txt beside `path`. Raises FileNotFoundError for a path that is not there, ValueError for a row
    or file that cannot be read, for two classes in one photograph, and without a numbering.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no boxes at {path}: give LOC_val_solution.csv or the folder of ILSVRC's XML files")
    rows = _boxes_of_xml(path) if path.is_dir() else _boxes_of_csv(path)
    mapping = path.parent / "LOC_synset_mapping.txt"
    wnids = sorted({wnid for _, wnid, _ in rows})
    if len(wnids) < 1000 and not mapping.exists():
        raise ValueError(f"{path} holds {len(wnids)} classes: put LOC_synset_mapping.txt, which numbers all 1,000, "
                         f"into {path.parent}")  # fmt: skip
    if mapping.exists():
        wnids = sorted(line.split()[0] for line in mapping.read_text().splitlines() if line.strip())
    boxes = {}
    for name, wnid, (x0, y0, x1, y1) in rows:
        label, instances = boxes.setdefault(name, (wnids.index(wnid), []))
        if label != wnids.index(wnid):
            raise ValueError(f"{name} in {path} has boxes of two classes, {wnids[label]} and {wnid}; ILSVRC has one")
        instances.append((x0, y0, x1 + 1, y1 + 1))
    return boxes


def _boxes_of_csv(path):
    rows = []
    for name, text in pd.read_csv(path)[["ImageId", "PredictionString"]].itertuples(index=False):
        words = text.split()
        if not words or len(words) % 5:
            raise ValueError(f"{name} in {path}: {text!r} is not `wnid x0 y0 x1 y1`, repeated")
        for i in range(0, len(words), 5):
            rows.append((name, words[i], tuple(map(int, words[i + 1 : i + 5]))))
    return rows


def _boxes_of_xml(folder):
    rows = []
    for file in sorted(folder.glob("*.xml")):
        try:
            for thing in ElementTree.parse(file).iter("object"):
                corners = (int(thing.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax"))
                rows.append((file.stem, thing.findtext("name"), tuple(corners)))
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not an ILSVRC annotation: {error}") from error
    return rows
