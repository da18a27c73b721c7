"""Where raw fundus photographs come from, each source a folder in the form in which Kaggle ships EyePACS."""

import json

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
