"""Where things are, absolute, so that Jupyter, nbval and papermill find them from any folder.

| variable              | moves                                                   | default       |
|-----------------------|---------------------------------------------------------|---------------|
| `COMPANION_DATA`      | what is made: raw/, prepared/, sequencers/              | `data/`       |
| `COMPANION_BUILD`     | executed notebooks, HTML, figures, metrics              | `build/`      |
| `COMPANION_DATASETS`  | a read-only folder of data sets on disk, searched first | none          |

A relative path is taken from the repository's root, whichever folder the notebook runs in.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
RECORDED = ROOT / "data" / "recorded"
DATA = (ROOT / (os.environ.get("COMPANION_DATA") or "data")).resolve()
BUILD = (ROOT / (os.environ.get("COMPANION_BUILD") or "build")).resolve()
RAW, PREPARED, SEQUENCERS = DATA / "raw", DATA / "prepared", DATA / "sequencers"


def dataset(relative):
    """The path of `relative` (`"MNIST/raw"`, say) in COMPANION_DATASETS if it is there, else below `RAW`.

    The path returned need not exist: whoever asks says what to do when it does not.
    """
    shelf = os.environ.get("COMPANION_DATASETS")
    if shelf and (found := (ROOT / shelf).resolve() / relative).exists():
        return found
    return RAW / relative


def aside(path):
    """Keep what is at `path` beside it, as `<path>.1`, `.2`, ..., the first that is free; returns the new path."""
    number = 1
    while (kept := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(kept)


def write(path, write):
    """Let `write(beside)` write a file beside `path`, then rename it: `path` is whole or as it was before."""
    beside = path.with_name(f"{path.name}.part")
    write(beside)
    os.replace(beside, path)
