"""A photograph of full size brought to 512 pixels: `lib.data.retina` against a full decode and
against the way of 2015.

    python -m benchmarks.prepare [--rounds 7] [--out FILE.json]

The rivals: a full decode, the same detector on as small a copy, one LANCZOS resize of the box; and
what entrants of Kaggle's competition did in 2015, a 5x5 blur, a threshold against the sides of the
frame and a crop, all at full size, then Pillow's default resize. They turn the file's bytes into an
array, as `lib.data.retina.extract` does; "file to file" adds to all three what
`lib.data.retina.prepare_photograph` does besides (reading, SHA-256, sums, lossless WebP).

Photographs are phantoms enlarged to what cameras give, with a sensor's noise that makes their JPEGs
(quality 90) weigh about 1 MB as EyePACS's do (88.3 GB, 88,702 photographs); retinas are smaller
than the frame, as high, and cut by it. All take turns on one core; CPU time, the median of the
rounds, the mean of a row's photographs. PSNR: the worst photograph against its full decode cut at
the same box. Memory: the largest resident size of a fresh worker process."""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from io import BytesIO
from pathlib import Path
from unittest import mock

import numpy as np
import PIL
from PIL import Image, ImageFilter, features

from benchmarks import record
from lib import paths
from lib.data import phantom, retina

SIZE = 512
NOISE = 2  # the sensor's, in levels of 255
CASES = {  # what: (width, height), the retinas' diameters in heights of the frame
    "2592 x 1944": ((2592, 1944), (0.92, 1, 1.1)),
    "3888 x 2592": ((3888, 2592), (0.92, 1, 1.1)),
    "4752 x 3168": ((4752, 3168), (0.92, 1, 1.1)),
    "4752 x 3168, small": ((4752, 3168), (0.8,)),  # too small for what was decoded at first
}
PARTS = {"decode": "_decode", "detect": "crop_box"}
OUTPUTS = {**retina.IMAGE_FORMATS, "png": {}}
# In a process of its own, which is small: what is counted of a process begins with the size of the
# one that starts it.
WORKER = """
import resource, sys
from pathlib import Path
from lib.data import retina
usage, folder = (resource.getrusage, resource.RUSAGE_SELF), Path(sys.argv[1])
with retina.worker_pool(1) as pool:
    pool.submit(retina.placement, (0, 0, 1, 1), 1).result()
    print(pool.submit(*usage).result().ru_maxrss)
    for path in sorted(folder.glob("*.jpeg")):
        arguments = path.stem, path, None, folder, int(sys.argv[2]), True, "none", "webp"
        assert "box" in pool.submit(retina.prepare_photograph, *arguments).result()
    print(pool.submit(*usage).result().ru_maxrss)
"""


def write_photograph(path, camera, diameter, seed):
    """A phantom as a camera of `camera`, width and height, stores it."""
    width, height = camera
    side = round(diameter * height / 0.98)  # a phantom's retina has 0.98 of its side
    disc = Image.fromarray(phantom.draw_photograph(seed % 5, seed, 1024)[0]).resize((side, side))
    frame = Image.new("RGB", camera)
    frame.paste(disc, ((width - side) // 2, (height - side) // 2))
    noise = np.random.default_rng(seed).normal(0.5, NOISE, (height, width, 1)).astype(np.float32)
    Image.fromarray((np.asarray(frame) + noise).clip(0, 255).astype(np.uint8)).save(
        path, quality=90
    )


def full_decode(data):
    """Decode all, find the retina in a copy as small as `lib.data.retina`'s, resize its box."""
    photograph = Image.open(BytesIO(data))
    factor = min(photograph.size) // retina.DETECTION
    found = retina.crop_box(np.asarray(photograph.reduce(factor)))
    box = [min(factor * end, full) for end, full in zip(found, 2 * photograph.size, strict=True)]
    x, y, width, height = retina.placement(box, SIZE)
    canvas = Image.new("RGB", (SIZE, SIZE))
    canvas.paste(photograph.resize((width, height), Image.Resampling.LANCZOS, box=box), (x, y))
    return np.asarray(canvas)


def blur_and_threshold(data):
    """The way of 2015: what is still brighter than the frame's left and right sides after a blur is
    the retina."""
    photograph = Image.open(BytesIO(data))
    blurred = np.array(photograph.filter(ImageFilter.BLUR))
    margin = blurred.shape[1] // 32
    sides = [
        blurred[:, part].max(axis=(0, 1)).astype(int) for part in (np.s_[:margin], np.s_[-margin:])
    ]
    bright = Image.fromarray((blurred > np.maximum(*sides) + 10).astype(np.uint8))
    return np.asarray(photograph.crop(bright.getbbox()).resize((SIZE, SIZE)))


def encoded(prepared, format):
    """The prepared photograph in one of OUTPUTS, bytes."""
    file = BytesIO()
    prepared.save(file, format, **OUTPUTS[format])
    return file.getvalue()


def psnr(image, other):
    """Peak signal-to-noise ratio of two uint8 images in dB, None for equal ones."""
    error = np.square(image.astype(float) - other).mean()
    return float(10 * np.log10(255**2 / error)) if error else None


def clocked(function, times):
    """`function` that appends the CPU seconds of each call to `times`."""

    def run(*arguments):
        start = time.process_time()
        result = function(*arguments)
        times.append(time.process_time() - start)
        return result

    return run


def measured(path, rounds):
    """What there is to know of one photograph: {name: CPU seconds, median}, megabytes, dB; and of
    each output."""
    data = path.read_bytes()
    image, box, _ = retina.extract(data, path.name, SIZE)
    prepared = Image.fromarray(image)
    arguments = path.stem, path, None, path.parent, SIZE, True, "none", "webp"
    runs = {
        "extract": partial(retina.extract, data, path.name, SIZE),
        "full decode": partial(full_decode, data),
        "blur and threshold": partial(blur_and_threshold, data),
        "prepare": partial(retina.prepare_photograph, *arguments),
        **{name: partial(encoded, prepared, name) for name in OUTPUTS},
    }
    taken = {name: [] for name in (*runs, *PARTS)}
    for _ in range(rounds):
        for name, run in runs.items():
            parts = {part: [] for part in PARTS}
            clocks = {
                name: clocked(getattr(retina, name), parts[part]) for part, name in PARTS.items()
            }
            with mock.patch.multiple(retina, **clocks):
                clocked(run, taken[name])()
            if name == "extract":
                for part, times in parts.items():
                    taken[part].append(sum(times))
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    files = {name: encoded(prepared, name) for name in OUTPUTS}
    return {
        "megabytes": len(data) / 1e6,
        "psnr": psnr(image, retina.cut(retina.read_photograph(path), box, SIZE)),
        "seconds": seconds,
        "output_kilobytes": {name: len(file) / 1e3 for name, file in files.items()},
        "output_psnr": {
            name: psnr(image, np.asarray(Image.open(BytesIO(file)))) for name, file in files.items()
        },
    }


def worker_megabytes(folder):
    """The largest resident size of a worker with its imports alone, and after it prepared all of
    the folder."""
    command = [sys.executable, "-c", WORKER, str(folder), str(SIZE)]
    sizes = subprocess.run(
        command, cwd=paths.ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return [int(size) / (1024**2 if sys.platform == "darwin" else 1024) for size in sizes]


def print_row(what, rows):
    """One line of the table: the mean of `rows`, ratios of the means, the worst PSNR."""
    mean = {
        name: 1e3 * statistics.mean(row["seconds"][name] for row in rows)
        for name in rows[0]["seconds"]
    }
    ours, besides = mean["extract"], mean["prepare"] - mean["extract"]
    rest = ours - sum(mean[part] for part in PARTS)
    rivals = mean["full decode"], mean["blur and threshold"]
    print(
        f"{what:18} {statistics.mean(row['megabytes'] for row in rows):5.2f} | "
        f"{ours:7.1f} {mean['decode']:6.1f} "
        f"{mean['detect']:6.1f} {rest:6.1f} | {rivals[0]:6.1f} {rivals[0] / ours:5.2f} | "
        f"{rivals[1]:6.0f} "
        f"{rivals[1] / ours:5.1f} | {mean['prepare']:7.1f} "
        f"{(rivals[0] + besides) / mean['prepare']:5.2f} "
        f"{(rivals[1] + besides) / mean['prepare']:5.1f} | {min(row['psnr'] for row in rows):5.1f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=paths.BUILD / "benchmarks" / "prepare.json")
    options = parser.parse_args()
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
    versions |= {name: features.version(name) for name in ("libjpeg_turbo", "webp")}
    print(
        platform.processor() or platform.machine(),
        *(f"{name} {value}" for name, value in versions.items()),
    )
    print(f"{'':24} | {'extract':28} | {'full decode':12} | {'2015':12} | {'file to file':19} |")
    print(
        f"{'photograph':18} {'MB':>5} | {'CPU ms':>7} decode detect   rest | CPU ms times | "
        "CPU ms times | "
        f"prepare  full  2015 |  PSNR"
    )
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        for what, (camera, diameters) in CASES.items():
            photographs = [Path(folder) / f"{what}_{diameter}.jpeg" for diameter in diameters]
            for seed, (path, diameter) in enumerate(zip(photographs, diameters, strict=True)):
                write_photograph(path, camera, diameter, seed)
            cases[what] = [measured(path, options.rounds) for path in photographs]
            print_row(what, cases[what])
        rows = [row for case in cases.values() for row in case]
        print_row("all", rows)
        imports, largest = worker_megabytes(folder)
    print(f"\na worker: {largest:.0f} MB at its largest, {imports:.0f} MB of it imports")
    print(f"\n{'output':16} CPU ms    KB  PSNR")
    for name, settings in OUTPUTS.items():
        milliseconds = 1e3 * statistics.mean(row["seconds"][name] for row in rows)
        kilobytes = statistics.mean(row["output_kilobytes"][name] for row in rows)
        losses = [row["output_psnr"][name] for row in rows]
        worst = "-" if None in losses else f"{min(losses):.1f}"
        print(f"{name:16} {milliseconds:6.1f} {kilobytes:5.0f} {worst:>5}  {settings or ''}")
    measured = {
        "rounds": options.rounds,
        "versions": versions,
        "worker_megabytes": [imports, largest],
        "cases": cases,
    }
    record.write(options.out, measured)


if __name__ == "__main__":
    main()
