"""One fundus photograph: reading it, finding the retina in it (CLEAR-DR's automatic cropping), bringing it to one size.

NumPy, SciPy and Pillow alone, so that a process that prepares photographs starts at once and stays small.
"""

import hashlib
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageFilter, ImageOps
from scipy import ndimage

from lib import paths

DETECTION = 320  # pixels of the shorter side of the copy that the retina is looked for in
OVERSAMPLING = 1.5  # decoded pixels of the frame's shorter side for each prepared one
ENOUGH = 1.4  # ... of the retina's longer side; with fewer, what is left out begins to show in the result
VARIES = 12  # levels of 255 by which a frame with a retina in it varies, at the least
FORMATS = {
    "webp": {"lossless": True, "quality": 0, "method": 0},
    "jpeg": {"quality": 95, "subsampling": 0},
}


def retina(image):
    """The retina on its black background: the largest region that is brighter than the frame around it.

    Bright means: the strongest channel, averaged over its neighbourhood, is a twentieth of the way from the frame's
    dark level (5th percentile) to its bright level (98th percentile), and two deviations of the dark pixels' noise.
    `image` uint8 (H, W, 3); returns bool (H, W). Raises ValueError for a black or flat frame.
    """
    red, green, blue = np.moveaxis(image, 2, 0)
    brightness = np.maximum(np.maximum(red, green), blue).astype(np.float32)
    smooth = ndimage.uniform_filter(
        brightness, size=max(3, min(brightness.shape) // 200), mode="nearest"
    )
    dark, bright = np.percentile(smooth[::2, ::2], [5, 98])
    if bright - dark < VARIES:
        raise ValueError(
            f"no retina found: the frame varies by {bright - dark:.1f} of 255 levels, {VARIES} needed"
        )
    noise = (brightness - smooth)[smooth < dark + 0.1 * (bright - dark)].std()
    regions, count = ndimage.label(smooth > dark + max(0.05 * (bright - dark), 2 * noise))
    areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    share = areas.max(initial=0) / regions.size
    if share < 0.05:
        raise ValueError(
            f"no retina found: the largest region covers {share:.1%} of the frame, 5% needed"
        )
    return regions == 1 + areas.argmax()


def crop_box(image):
    """Selective cropping: the box (left, top, right, bottom) of the retina in pixels, right and bottom exclusive.

    Rows and columns with less than 8 % of the retina's widest extent are left out: the camera's notch is no wider,
    and of a disc it costs 0.3 % of the radius. Of a disc that the frame cuts, the box holds what is there.
    `image` uint8 (H, W, 3). Raises ValueError as `retina` does.
    """
    mask = retina(image)
    ends = []
    for axis in (0, 1):
        extent = mask.sum(axis=axis)
        inside = np.flatnonzero(extent >= 0.08 * extent.max())
        ends.append((int(inside[0]), int(inside[-1]) + 1))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def placement(box, size):
    """Where `box` lands on the size x size canvas: the longer side fills it, the shorter one is centred.

    The aspect ratio is kept: a disc stays a disc. Returns (x, y, width, height) in canvas pixels.
    """
    left, top, right, bottom = box
    scale = size / max(right - left, bottom - top)
    width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    return (size - width) // 2, (size - height) // 2, width, height


def cut(image, box, size):
    """`box` of `image` uint8 (H, W, 3), Lanczos-resampled on a black canvas; uint8 (size, size, 3)."""
    return _cut(Image.fromarray(image), box, size)


def _cut(photograph, box, size):
    """`cut` of a Pillow image."""
    x, y, width, height = placement(box, size)
    canvas = np.zeros((size, size, 3), np.uint8)
    resized = photograph.resize((width, height), Image.Resampling.LANCZOS, box=box)
    canvas[y : y + height, x : x + width] = np.asarray(resized)
    return canvas


def cut_mask(bits, box, size):
    """Lesion bits uint8 (H, W) in the geometry of `cut`, uint8 (size, size).

    A pixel has every bit that any of the pixels it covers has, so that the smallest lesion survives.
    """
    x, y, width, height = placement(box, size)
    canvas = np.zeros((size, size), np.uint8)
    for bit in np.flatnonzero(np.bitwise_or.reduce(bits.ravel()) >> np.arange(8) & 1):
        lesion = (bits >> bit & 1).astype(np.float32)
        covered = Image.fromarray(lesion).resize((width, height), Image.Resampling.BOX, box=box)
        canvas[y : y + height, x : x + width] |= np.where(
            np.asarray(covered) > 0, np.uint8(1 << bit), np.uint8(0)
        )
    return canvas


def graham(image):
    """A prepared photograph with the local average taken off, as the winner of Kaggle's competition did (Graham 2015).

    4 (image - average) + 128 within nine tenths of the retina's radius, 128 outside; the average is a Gaussian of a
    thirtieth of the radius. uint8 (size, size, 3), the retina from edge to edge, to the same.
    """
    radius = len(image) / 2
    average = np.asarray(
        Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius / 30)), np.float32
    )
    axis = np.arange(len(image)) + 0.5 - radius
    inside = np.hypot(axis, axis[:, None]) <= 0.9 * radius
    return (
        np.where(inside[..., None], 4 * (image - average) + 128, 128).clip(0, 255).astype(np.uint8)
    )


def _decoded(data, name, shorter=None):
    """The photograph in the bytes `data` upright, a Pillow image in RGB, and its whole width and height.

    With `shorter`, a JPEG is decoded at 1/8, 1/4 or 1/2 where its shorter side stays at least that long. Raises
    ValueError with the reason for which it is rejected.
    """
    try:
        with Image.open(BytesIO(data)) as photograph:
            width, height = photograph.size
            if width * height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            if photograph.mode.startswith(("I", "F")):
                raise ValueError(f"mode {photograph.mode} has more than 8 bits a channel")
            if photograph.mode in ("1", "L", "LA"):
                raise ValueError(f"mode {photograph.mode} has no colour")
            if shorter:
                photograph.draft(None, (shorter, shorter))
            photograph.load()  # which turns a TIFF, and takes the orientation off it
            if photograph.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
                width, height = height, width
            ImageOps.exif_transpose(photograph, in_place=True)
            return photograph if photograph.mode == "RGB" else photograph.convert("RGB"), (
                width,
                height,
            )
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"decompression bomb: {error}, more than {Image.MAX_IMAGE_PIXELS:,}"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:
        kind = "truncated" if "truncated" in str(error) else "unreadable"
        said = (
            "cannot identify image file"
            if isinstance(error, Image.UnidentifiedImageError)
            else error
        )
        raise ValueError(f"{kind}: {said}: {name}") from error


def read_photograph(path):
    """The whole photograph upright (EXIF orientation applied), uint8 (H, W, 3) RGB.

    Raises ValueError with the reason: "unreadable: ..." where Pillow cannot decode it, where it has more than 8 bits a
    channel or no colour; "truncated: ..."; "decompression bomb: ..." beyond Pillow's limit of pixels.
    """
    return np.asarray(_decoded(path.read_bytes(), path.name)[0])


def extract(data, name, size, crop=True, contrast="none"):
    """The retina of the photograph in the bytes `data`, uint8 (size, size, 3), its box and the photograph's size.

    No more is decoded than the result shows: a JPEG at a fraction of its size with `OVERSAMPLING` pixels for each
    prepared one, finer where the retina turns out to be small and has fewer than `ENOUGH`. The retina is looked for in
    a copy of `DETECTION` pixels, at least of half as many. `crop=False` takes the whole frame; `contrast="graham"`
    takes off the local average. The box is in whole pixels of the upright photograph. Raises ValueError with the reason
    for which it is rejected, as `read_photograph`, "no retina found" and "too small".
    """
    needed = round(OVERSAMPLING * size)
    photograph, (width, height) = _decoded(
        data, name, max(needed, DETECTION // 2) if crop else needed
    )
    box = 0, 0, *photograph.size
    if crop:
        factor = max(1, min(photograph.size) // DETECTION)
        small = np.asarray(photograph.reduce(factor))
        box = tuple(
            min(factor * end, full) for end, full in zip(crop_box(small), 2 * box[2:], strict=True)
        )
    by = round(width / photograph.width)  # 1, 2, 4 or 8 pixels of the photograph to a decoded one
    whole = [
        min(end * by, full) for end, full in zip(box, (width, height, width, height), strict=True)
    ]
    longer = max(whole[2] - whole[0], whole[3] - whole[1])
    if crop and longer < size / 2:
        raise ValueError(
            f"too small: a retina of {whole[2] - whole[0]} x {whole[3] - whole[1]} pixels for a size of {size}"
        )
    if longer < ENOUGH * size * by and by > 1:
        photograph, _ = _decoded(data, name, -(-needed * min(width, height) // longer))
        by = round(width / photograph.width)
    box = tuple(end / by for end in whole)
    prepared = _cut(photograph, box, size)
    if np.ptp(prepared) < VARIES:
        raise ValueError(
            f"no retina found: the frame varies by {np.ptp(prepared)} of 255 levels, {VARIES} needed"
        )
    return graham(prepared) if contrast == "graham" else prepared, whole, (width, height)


def _lesion_bits(path, shape):
    """The bits in a mask file, uint8 of that shape; raises ValueError with the reason for which it is rejected."""
    try:
        with Image.open(path) as mask:
            bits = np.asarray(mask)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"mask unreadable: {error}: {path.name}") from error
    if bits.shape != shape:
        raise ValueError(f"mask of shape {bits.shape} for a photograph of shape {shape}")
    if bits.dtype not in (np.uint8, bool):
        raise ValueError(f"mask of {bits.dtype}, not of 8 bits: {path.name}")
    return bits


def prepare_photograph(name, path, mask, out, size, crop, contrast, format):
    """Write out/images/<name>.<format> and, where there is a `mask`, out/masks/<name>.png; returns what is known of it.

    A dictionary: image, sha256 of the file, and either the reason for which it is rejected, or box, width, height,
    and sums and squares, the exact sums of x and x² by channel in levels of 255. Files are written beside and renamed.
    Raises OSError where a file cannot be written.
    """
    record = {"image": name}
    try:
        data = path.read_bytes()
        record["sha256"] = hashlib.sha256(data).hexdigest()
        prepared, box, (width, height) = extract(data, path.name, size, crop, contrast)
        bits = _lesion_bits(mask, (height, width)) if mask else None
    except OSError as error:
        return record | {"reason": f"unreadable: {error}"}
    except ValueError as error:
        return record | {"reason": str(error)}
    if mask:
        save = partial(
            Image.fromarray(cut_mask(bits, box, size)).save, format="png", compress_level=1
        )
        paths.write(out / "masks" / f"{name}.png", save)
    photograph, levels = Image.fromarray(prepared), np.arange(256)
    paths.write(
        out / "images" / f"{name}.{format}",
        partial(photograph.save, format=format, **FORMATS[format]),
    )
    counts = np.reshape(photograph.histogram(), (3, 256))
    sums, squares = (counts @ levels).tolist(), (counts @ levels**2).tolist()
    return record | {"box": box, "width": width, "height": height, "sums": sums, "squares": squares}


def _end_with_parent():
    """In a worker process: end when the process that started it ends, also by kill -9."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def pool_of(workers):
    """A pool of that many processes, to be given `prepare_photograph`; they end with the process that started them."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
