"""The published sequencer answers as it did when it was published.

`python tests/test_weights.py` writes the answers of the weights that are there to weights.json.
"""

import json
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib import explain, paths, photographs, results
from lib.data import phantom

PUBLISHED = paths.WEIGHTS / "retinas"
RECORD = Path(__file__).with_name("weights.json")
REAL = "idrid/grading/images_768/test_IDRiD_001.jpg"
GRADES = [f"p{grade}" for grade in range(5)]


def frame():
    """A disc that grows brighter to the right, with a dark and a bright spot, uint8 (H, W, 3)."""
    rows, columns = np.mgrid[:700, :900]
    inside = np.hypot(rows - 350, columns - 450) < 330
    level = inside * (0.5 + columns / 1800)
    level -= 0.3 * (np.hypot(rows - 250, columns - 350) < 12)
    level += 0.4 * (np.hypot(rows - 450, columns - 550) < 12)
    return (level.clip(0, 1)[..., None] * (200, 110, 50)).astype(np.uint8)


def draw(folder):
    """The synthetic photographs, as files."""
    eye, _ = phantom.draw_photograph(grade=4, seed=71, size=700, eye="right")
    Image.fromarray(eye).save(folder / "phantom.png")
    Image.fromarray(frame()).save(folder / "frame.png")
    return [folder / "phantom.png", folder / "frame.png"]


def answers(files, out):
    """By photograph: the probabilities of the grades, the grade, and the first region's box."""
    photographs.explain_files(files, PUBLISHED, out, drawn=False)
    table = results.read_results(out / "results.csv").set_index("image")
    found = {}
    for image, row in table.iterrows():
        found[image] = {
            "probabilities": [float(row[grade]) for grade in GRADES],
            "grade": int(row.grade),
            "box": json.loads(row.regions)[0]["box"],
        }
    return found


def overlap(a, b):
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return shared / (sum(areas) - shared)


def require_equal(found, recorded):
    assert found.keys() == recorded.keys()
    for image, answer in found.items():
        expected = recorded[image]
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-3), image
        assert answer["grade"] == expected["grade"], image
        assert overlap(answer["box"], expected["box"]) > 0.8, image


def test_the_file_is_small_and_known_by_its_hash(tmp_path):
    file = PUBLISHED / "weights.safetensors"
    assert file.stat().st_size <= 3_000_000
    network, config = explain.load_sequencer(PUBLISHED)
    assert config["rim"] == 0.9 and network.head.out_channels == 5
    for name in ("weights.safetensors", "config.json"):
        (tmp_path / name).write_bytes((PUBLISHED / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"members": config["members"] + 1}))
    with pytest.raises(ValueError, match="are not of one training"):
        explain.load_sequencer(tmp_path)


def test_the_model_card_says_what_was_recorded():
    card = runpy.run_path(paths.WEIGHTS / "model_card.py")["model_card"]()
    assert (PUBLISHED / "README.md").read_text(encoding="utf-8") == card


def test_synthetic_photographs_are_answered_as_when_it_was_published(tmp_path):
    found = answers(draw(tmp_path), tmp_path / "out")
    require_equal(found, json.loads(RECORD.read_text())["synthetic"])


def test_a_real_photograph_is_answered_as_when_it_was_published(tmp_path):
    photograph = paths.dataset(REAL)
    if not photograph.exists():
        pytest.skip(f"no {REAL} where COMPANION_DATASETS points")
    found = answers([photograph], tmp_path / "out")
    require_equal(found, json.loads(RECORD.read_text())["real"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        record = {
            "synthetic": answers(draw(folder), folder / "out"),
            "real": answers([paths.dataset(REAL)], folder / "real"),
        }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(RECORD.read_text(), file=sys.stderr)
