"""One fundus photograph: decode it, find the retina, cut it out, normalise its contrast.

CLEAR-DR crops automatically to the retina and brings all photographs to one size. NumPy, SciPy
and Pillow alone, so that a process that prepares photographs starts at once and stays small.
"""

import hashlib
import math
import multiprocessing
import os
import re
import stat
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFilter
from scipy import ndimage

from lib import paths

LESIONS = (
    "microaneurysm",
    "haemorrhage",
    "hard_exudate",
    "cotton_wool_spot",
    "new_vessels",
    "preretinal_haemorrhage",
)
OPTIC_DISC = "optic_disc"
MASKS = (*LESIONS, OPTIC_DISC)  # bit i of a mask file stands for MASKS[i]

_Box = tuple[float, float, float, float]  # left, top, right, bottom in a photograph's pixels

DETECTION = 320  # pixels of the shorter side of the copy that the retina is looked for in
_OVERSAMPLING = 1.5  # decoded pixels of the frame's shorter side for each prepared one
_ENOUGH = 1.4  # ... of the retina's longer side; with fewer, what is left out begins to show
_VARIES = 12  # levels of 255 by which a frame with a retina in it varies, at the least
_BRIGHT = 50  # levels above which a background is not black, where it is not far below the retina
_SHADED = 0.25  # share of the bright level above which what is red is retina, however shaded
_LIKE = 20  # levels by which the corners of one background may differ
GRAHAM_SHARE = 0.9  # of the radius: where `graham` leaves the photograph
IMAGE_FORMATS = {
    "webp": {"lossless": True, "quality": 0, "method": 0},
    "jpeg": {"quality": 95, "subsampling": 0},
}
_READ = ("JPEG", "PNG", "TIFF", "WEBP")  # no other format's code meets a file from outside
_BYTES = 1 << 30  # of a file; no photograph of Pillow's limit of pixels has as many
_SUBFILE, _BITS = 254, 258  # tags of a TIFF: what a frame is, the bits of its channels
_TURNS = {  # what undoes each value of EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BROKEN = (
    "A worker process ended before its work was done: most often the memory was full, or a script "
    "called this outside `if __name__ == '__main__':`. Run again"
)


def pack_masks(masks: dict[str, np.ndarray]) -> np.ndarray:
    """The bits of a mask file.

    Args:
        masks: bool (H, W) by name of `MASKS`, one at least; what is not named is nowhere.

    Returns:
        uint8 (H, W); bit i is set where `MASKS[i]` is.
    """
    bits = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for name, mask in masks.items():
        bits |= mask.astype(np.uint8) << MASKS.index(name)
    return bits


def read_masks(path: Path) -> dict[str, np.ndarray]:
    """The masks in a file of a collection's or a prepared data set's `masks/`.

    Returns:
        bool (H, W) by name, for each of `MASKS`.

    Raises:
        ValueError: it is no mask file.
        OSError: the file cannot be read.
    """
    bits = _bits(read_file(path), path.name)
    return {name: bits >> i & 1 == 1 for i, name in enumerate(MASKS)}


def retina_mask(image: np.ndarray) -> np.ndarray:
    """The retina on its background: the largest region brighter than the frame around it.

    Bright means: the strongest channel, averaged over its neighbourhood, is a twentieth of the way
    from the frame's dark level (5th percentile) to its bright level (98th percentile), and two
    deviations of the dark pixels' noise. A background that is not dark is taken off first, see
    `on_black`.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        bool (H, W).

    Raises:
        ValueError: the frame is black or flat, nothing bright covers 5 % of it, or the background
            is bright and not of one colour.
    """
    mask = _largest_region(on_black(image))
    corners = np.array([np.median(corner, axis=(0, 1)) for corner in _corners(image)])
    inside = np.array([corner.mean() > 0.5 for corner in _corners(mask)])
    grey = corners.min(axis=1) > np.maximum(0.9 * corners.max(axis=1), _BRIGHT)
    if (inside & grey).sum() > 1:
        raise ValueError(
            "no retina found: the background is bright, and its colour differs from corner to "
            "corner; make it black"
        )
    return mask


def _largest_region(image: np.ndarray) -> np.ndarray:
    """The largest bright region, bool (H, W), as `retina_mask` says."""
    red, green, blue = np.moveaxis(image, 2, 0)
    brightness = np.maximum(np.maximum(red, green), blue).astype(np.float32)
    smooth = ndimage.uniform_filter(brightness, _neighbourhood(image), mode="nearest")
    dark, bright = np.percentile(smooth[::2, ::2], [5, 98])
    contrast = bright - dark
    if contrast < _VARIES:
        raise ValueError(
            f"no retina found: the frame varies by {contrast:.1f} of 255 levels, {_VARIES} needed"
        )
    noise = (brightness - smooth)[smooth < dark + 0.1 * contrast].std()
    regions, count = ndimage.label(smooth > dark + max(0.05 * contrast, 2 * noise))
    areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    share = areas.max(initial=0) / regions.size
    if share < 0.05:
        raise ValueError(
            f"no retina found: the largest region covers {share:.1%} of the frame, 5% needed"
        )
    return regions == 1 + areas.argmax()


def _neighbourhood(image: np.ndarray) -> int:
    """The pixels of a side of the square over which brightness is averaged."""
    return max(3, min(image.shape[:2]) // 200)


def _corners(image: np.ndarray) -> list[np.ndarray]:
    """The four corners of the frame, each a fortieth of its shorter side wide."""
    side = max(2, min(image.shape[:2]) // 40)
    ends = slice(side), slice(-side, None)
    return [image[rows, columns] for rows in ends for columns in ends]


def _bright_background(image: np.ndarray) -> np.ndarray | None:
    """The colour (3,) of a background that is not dark beside the retina; None where it is dark.

    At least three corners are alike, and of no retina's colour, or all four are equal. A retina
    that fills the frame is in the corners, too: it is red, and shaded (of 10,000 pieces cut out of
    real ones, none had its corners within 2 levels).
    """
    levels = np.array([np.median(corner, axis=(0, 1)) for corner in _corners(image)])
    background = np.median(levels, axis=0)
    alike = (np.abs(levels - background).max(axis=1) <= _LIKE).sum() >= 3
    if not alike or background.max() < _BRIGHT:
        return None
    step = max(1, min(image.shape[:2]) // DETECTION)
    if background.max() < 0.4 * np.percentile(image[::step, ::step].max(axis=2), 98):
        return None
    equal = np.ptp(levels, axis=0).max() <= 2
    return background if equal or not _is_red(background) else None


def on_black(image: np.ndarray) -> np.ndarray:
    """A photograph whose background, white or grey for example, is as bright as the retina.

    The retina is the largest region that differs from it; what is around becomes black.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        uint8 (H, W, 3); where the background is dark already, `image` itself.

    Raises:
        ValueError: nothing that differs from the background covers 5 % of the frame.
    """
    background = _bright_background(image)
    return image if background is None else _blackened(image, background)


def _blackened(image: np.ndarray, background: np.ndarray) -> np.ndarray:
    """`on_black` of a photograph whose background has that colour."""
    difference = np.abs(image - background.astype(np.float32)).astype(np.uint8)
    inside = ndimage.binary_fill_holes(_largest_region(difference))
    rim = 1 + _neighbourhood(image) // 2  # of both colours
    inside = ndimage.binary_erosion(inside, iterations=rim, border_value=1)
    return np.where(inside[..., None], image, np.uint8(0))


def crop_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Selective cropping (CLEAR-DR): the box of the retina.

    Rows and columns with less than 8 % of the retina's widest extent are left out: the camera's
    notch is no wider, and of a disc it costs 0.3 % of the radius. Of a disc that the frame cuts,
    the box holds what is there; up to the frame's edge also where the retina is shaded, so that one
    that fills the frame stays whole.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        left, top, right, bottom in pixels; right and bottom are exclusive.

    Raises:
        ValueError: as `retina_mask`.
    """
    mask = retina_mask(image)
    ends = []
    for axis in (0, 1):
        extent = mask.sum(axis=axis)
        inside = np.flatnonzero(extent >= 0.08 * extent.max())
        ends.append((int(inside[0]), int(inside[-1]) + 1))
    (left, right), (top, bottom) = ends
    height, width = mask.shape
    black = on_black(image)
    left = 0 if _is_shaded_retina(black[:, :left], black) else left
    top = 0 if _is_shaded_retina(black[:top], black) else top
    right = width if _is_shaded_retina(black[:, right:], black) else right
    bottom = height if _is_shaded_retina(black[bottom:], black) else bottom
    return left, top, right, bottom


def _is_shaded_retina(beside: np.ndarray, image: np.ndarray) -> bool:
    """Whether what lies beside the largest bright region of a photograph is retina, not frame.

    Beside the discs of 996 photographs of two cameras the red median was 5 % of the bright level at
    most; beside the region found in pieces cut out of these discs, 27 % or more in 99 of 100.
    """
    if not beside.size:
        return False
    colour = np.median(beside[::4, ::4], axis=(0, 1))
    if colour[0] <= _BRIGHT or not _is_red(colour):
        return False
    return colour[0] > _SHADED * np.percentile(image.max(axis=2), 98)


def _is_red(colour: np.ndarray) -> bool:
    """Whether a colour (3,) may be a retina's."""
    red, green, blue = colour
    return green <= 0.9 * red and blue <= min(0.8 * red, 140)


def placement(box: _Box, size: int) -> tuple[int, int, int, int]:
    """Where `box` lands on the size x size canvas: its longer side fills it, the other is centred.

    The aspect ratio is kept: a disc stays a disc. Returns x, y, width, height in canvas pixels.
    """
    left, top, right, bottom = box
    scale = size / max(right - left, bottom - top)
    width = max(1, round((right - left) * scale))
    height = max(1, round((bottom - top) * scale))
    return (size - width) // 2, (size - height) // 2, width, height


def cut(image: np.ndarray, box: _Box, size: int) -> np.ndarray:
    """A box of a photograph, Lanczos-resampled on a black canvas.

    Args:
        image: uint8 (H, W, 3).
        box: what is cut out of it.
        size: side of the canvas in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    return _cut(Image.fromarray(image), box, size)


def _cut(photograph: Image.Image, box: _Box, size: int) -> np.ndarray:
    """`cut` of a Pillow image."""
    x, y, width, height = placement(box, size)
    canvas = np.zeros((size, size, 3), np.uint8)
    resized = photograph.resize((width, height), Image.Resampling.LANCZOS, box=box)
    canvas[y : y + height, x : x + width] = np.asarray(resized)
    return canvas


def cut_mask(bits: np.ndarray, box: _Box, size: int) -> np.ndarray:
    """The bits of a mask file in the geometry of `cut`.

    A pixel has every bit that any of the pixels it covers has: the smallest lesion survives.

    Args:
        bits: uint8 (H, W), as `pack_masks` makes them.
        box: what is cut out of it.
        size: side of the canvas in pixels.

    Returns:
        uint8 (size, size).
    """
    x, y, width, height = placement(box, size)
    canvas = np.zeros((size, size), np.uint8)
    for bit in np.flatnonzero(np.bitwise_or.reduce(bits.ravel()) >> np.arange(8) & 1):
        mask = Image.fromarray((bits >> bit & 1).astype(np.float32))
        share = np.asarray(mask.resize((width, height), Image.Resampling.BOX, box=box))
        canvas[y : y + height, x : x + width][share > 0] |= np.uint8(1 << bit)
    return canvas


@cache
def inner_disc(size: int, share: float) -> np.ndarray:
    """The pixels of a prepared photograph within `share` of the retina's radius.

    It is made once, for training asks for it with every photograph.

    Returns:
        bool (size, size), the same array each time: not to be written to.
    """
    radius = size / 2
    axis = np.arange(size) + 0.5 - radius
    return np.hypot(axis, axis[:, None]) <= share * radius


def graham(image: np.ndarray, box: _Box | None = None) -> np.ndarray:
    """A prepared photograph less its local average, as the winner of Kaggle's competition did.

    4 (image - average) + 128 within `GRAHAM_SHARE` of the radius, 128 outside (Graham 2015). The
    average is a Gaussian of a thirtieth of the retina's radius. Where the camera cut the retina,
    the average is of what it kept: averaged with the black beyond, the cut would be drawn as a bar.

    Args:
        image: uint8 (size, size, 3), the retina from edge to edge.
        box: of the retina in its photograph, as for `placement`; None where it fills the image.

    Returns:
        uint8 (size, size, 3).
    """
    size = len(image)
    x, y, width, height = placement(box, size) if box else (0, 0, size, size)
    kept = image[y : y + height, x : x + width]
    blur = ImageFilter.GaussianBlur(size / 2 / 30)
    average = np.asarray(Image.fromarray(kept).filter(blur), np.float32)
    contrast = np.full((size, size, 3), 128, np.uint8)
    difference = (4 * (kept - average) + 128).clip(0, 255)
    contrast[y : y + height, x : x + width] = difference.astype(np.uint8)
    contrast[~inner_disc(size, GRAHAM_SHARE)] = 128
    return contrast


def read_file(path: Path) -> bytes:
    """The bytes of a file that may hold a photograph.

    Raises:
        ValueError: it is none, whatever its name: a folder, a pipe, a device, or too large.
        OSError: it cannot be read, now: that is no fault of the photograph's.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"unreadable: not a regular file: {path.name}")
    if about.st_size > _BYTES:
        raise ValueError(f"unreadable: {about.st_size:,} bytes, more than {_BYTES:,}: {path.name}")
    return path.read_bytes()


def _decode(data: bytes, name: str, shorter: int = 0) -> tuple[Image.Image, tuple[int, int]]:
    """The photograph in the bytes `data`, upright and in RGB, and its whole width and height.

    With `shorter`, a JPEG is decoded at 1/8, 1/4 or 1/2 where its shorter side stays that long.
    Raises ValueError with the reason for which it is rejected.
    """
    try:
        with Image.open(BytesIO(data), formats=_READ) as photograph:
            width, height = photograph.size
            if width * height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            if photograph.mode.startswith(("I", "F")):
                raise ValueError(f"mode {photograph.mode} has more than 8 bits a channel")
            if photograph.mode in ("1", "L", "LA"):
                raise ValueError(f"mode {photograph.mode} has no colour")
            _require_one_frame(data)
            has_16_bits = _has_16_bits(photograph)
            if shorter:
                photograph.draft(None, (shorter, shorter))
            photograph.load()  # which turns a TIFF, and takes the orientation off it
            if has_16_bits:
                _require_full_range(photograph)
            exif = photograph.getexif()
            orientation = exif.get(ExifTags.Base.Orientation)
            upright = photograph
            if orientation in _TURNS:
                _require_whole(exif)
                upright = photograph.transpose(_TURNS[orientation])
            if orientation in (5, 6, 7, 8):
                width, height = height, width
            if photograph.has_transparency_data:  # what is transparent may have any colour
                layer = upright.convert("RGBA")
                upright = Image.new("RGB", upright.size)
                upright.paste(layer, mask=layer.getchannel("A"))
            if upright.mode != "RGB":
                upright = upright.convert("RGB")
            return upright, (width, height)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"decompression bomb: {error}, more than {Image.MAX_IMAGE_PIXELS:,}"
        ) from error
    except Exception as error:  # Pillow lets through whatever damaged bytes lead to
        kind = "truncated" if "truncated" in str(error) else "unreadable"
        raise ValueError(f"{kind}: {_said(error)}: {name}") from error


def _said(error: Exception) -> str:
    """What Pillow says of a file, the same each time."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "cannot identify image file"
    return str(error) or type(error).__name__


def _require_whole(exif: Image.Exif) -> None:
    """Raise ValueError where other tags are damaged: the orientation may be, too."""
    try:
        exif.tobytes()
    except Exception as error:  # as in _decode
        raise ValueError(
            f"its EXIF is damaged ({error}), and so perhaps the orientation in it: save it upright"
        ) from error


def _require_one_frame(data: bytes) -> None:
    """Raise ValueError for several photographs in one file: nobody says which is meant.

    What a TIFF calls reduced is no photograph of its own, nor what stands behind a JPEG at half its
    size or less: previews and gain maps.
    """
    with Image.open(BytesIO(data), formats=_READ) as file:
        frames = getattr(file, "n_frames", 1)
        half = file.width / 2, file.height / 2
        for number in range(1, frames):
            if file.format == "MPO":
                try:
                    file.seek(number)
                except Exception:  # announced, and not there: what is there is the first
                    continue
                is_photograph = file.width > half[0] or file.height > half[1]
            elif file.format == "TIFF":
                file.seek(number)
                is_photograph = not file.tag_v2.get(_SUBFILE, 0) & 1
            else:
                is_photograph = True
            if is_photograph:
                raise ValueError(f"{frames} frames in one file: save the one that is meant alone")


def _has_16_bits(photograph: Image.Image) -> bool:
    """Whether a file that is not loaded yet has 16 bits a channel.

    Raises ValueError where they lie plane by plane: Pillow takes them for 8.
    """
    if any(";16" in str(tile) for tile in photograph.tile):
        return True
    if photograph.format == "TIFF" and max(photograph.tag_v2.get(_BITS, (8,))) > 8:
        raise ValueError("16 bits a channel, plane by plane: save it with 8 bits")
    return False


def _require_full_range(photograph: Image.Image) -> None:
    """Raise ValueError for 16 bits a channel of which the upper are not used.

    Of each sample the upper 8 are left. What a camera of 10, 12 or 14 bits wrote into the lower
    ones would look dark.
    """
    extrema = zip(photograph.getbands(), photograph.getextrema(), strict=True)
    highest = max(high for band, (_, high) in extrema if band != "A")
    if highest < 128:
        used = 8 + highest.bit_length()
        raise ValueError(
            f"16 bits a channel of which {used} are used: a dark photograph, or one of a camera "
            "with fewer bits? Save it with 8 bits"
        )


def read_photograph(path: Path) -> np.ndarray:
    """The whole photograph upright (EXIF orientation applied).

    Returns:
        uint8 (H, W, 3), RGB; what is transparent is black.

    Raises:
        ValueError: with the reason: "unreadable: ..." where it is no JPEG, PNG, TIFF or WebP or
            cannot be decoded, where it has more than 8 bits a channel or no colour, where several
            photographs are in one file; "truncated: ..."; "decompression bomb: ..." beyond Pillow's
            limit of pixels.
        OSError: the file cannot be read.
    """
    photograph, _ = _decode(read_file(path), path.name)
    return np.asarray(photograph)


def _enlarge(box: tuple, factor: int, shape: tuple[int, int]) -> list[int]:
    """A box of an image reduced by `factor` in the pixels of the whole, `shape` (width, height)."""
    return [min(factor * end, full) for end, full in zip(box, (*shape, *shape), strict=True)]


def extract(
    data: bytes, name: str, size: int, crop: bool = True, contrast: str = "none"
) -> tuple[np.ndarray, list[int], tuple[int, int]]:
    """The retina of one photograph at the size of the data set.

    No more is decoded than the result shows: a JPEG at a fraction of its size, with 1.5 pixels for
    each prepared one. Where the retina turns out to be small and has fewer than 1.4, the file is
    decoded again, finer. The retina is looked for in a copy of `DETECTION` pixels, at least of
    half as many.

    Args:
        data: the bytes of the file.
        name: of the file, for the reasons.
        size: side of the result in pixels.
        crop: False takes the whole frame.
        contrast: "graham" takes off the local average, see `graham`; "none" does not.

    Returns:
        The retina uint8 (size, size, 3); its box [left, top, right, bottom] in whole pixels of the
        upright photograph; the photograph's (width, height).

    Raises:
        ValueError: with the reason for which it is rejected: as `read_photograph`, "no retina
            found" or "too small".
    """
    needed = round(_OVERSAMPLING * size)
    shorter = max(needed, DETECTION // 2) if crop else needed
    photograph, shape = _decode(data, name, shorter)

    box = (0, 0, *photograph.size)  # of the decoded photograph, then of the whole one
    background = None
    if crop:
        factor = max(1, min(photograph.size) // DETECTION)
        small = np.asarray(photograph.reduce(factor))
        background = _bright_background(small)
        found = crop_box(small)
        box = _enlarge(found, factor, photograph.size)
    scale = round(shape[0] / photograph.width)  # 1, 2, 4 or 8 pixels of the whole to a decoded one
    box = _enlarge(box, scale, shape)

    width, height = box[2] - box[0], box[3] - box[1]
    longer = max(width, height)
    if crop and longer < size / 2:
        raise ValueError(f"too small: a retina of {width} x {height} pixels for a size of {size}")
    if scale > 1 and longer < _ENOUGH * size * scale:
        photograph, _ = _decode(data, name, math.ceil(needed * min(shape) / longer))
        scale = round(shape[0] / photograph.width)

    if background is not None:
        photograph = Image.fromarray(_blackened(np.asarray(photograph), background))
    prepared = _cut(photograph, tuple(end / scale for end in box), size)
    levels = np.ptp(prepared)
    if levels < _VARIES:
        raise ValueError(
            f"no retina found: the frame varies by {levels} of 255 levels, {_VARIES} needed"
        )
    if contrast == "graham":
        prepared = graham(prepared, box)
    return prepared, box, shape


def _bits(data: bytes, name: str) -> np.ndarray:
    """The pixels of a mask file; ValueError says why there are none."""
    try:
        with Image.open(BytesIO(data), formats=_READ) as mask:
            return np.asarray(mask)
    except Exception as error:  # as in _decode
        raise ValueError(f"mask unreadable: {_said(error)}: {name}") from error


def _read_bits(data: bytes, name: str, shape: tuple[int, int]) -> np.ndarray:
    """The bits uint8 of a mask file of that shape; ValueError says why it is rejected."""
    bits = _bits(data, name)
    if bits.shape != shape:
        raise ValueError(f"mask of shape {bits.shape} for a photograph of shape {shape}")
    if bits.dtype not in (np.uint8, bool):
        raise ValueError(f"mask of {bits.dtype}, not of 8 bits: {name}")
    return bits


def require_plain_name(name: str, file_format: str) -> None:
    """Raise ValueError with the reason for which no files of a data set can have this name."""
    if name in ("", ".", "..") or re.search(r"[\x00-\x1f\x7f/\\\ud800-\udfff]", name):
        raise ValueError(f"the name {name!a} is no plain name of a file")
    if len(f"{name}.{file_format}.part".encode()) > 255:
        raise ValueError(f"a name of {len(name.encode())} bytes is too long for a file")


def prepare_photograph(
    name: str,
    path: Path,
    mask: Path | None,
    out: Path,
    size: int,
    crop: bool,
    contrast: str,
    file_format: str,
) -> dict:
    """Write out/images/<name>.<file_format> and, with a mask file, out/masks/<name>.png.

    Files are written beside and renamed. `size`, `crop` and `contrast` are those of `extract`.

    Returns:
        What is known of it: image (its name); sha256 of the file; mask, that of the mask file if
        there is one; and either the reason for which it is rejected, or box, width, height, and
        sums and squares, the exact sums of x and x² by channel in levels of 255.

    Raises:
        OSError: a file cannot be read or written: that is no fault of the photograph's.
    """
    record = {"image": name}
    try:
        require_plain_name(name, file_format)
        data = read_file(path)
        if mask:
            mask_data = read_file(mask)
            record["mask"] = hashlib.sha256(mask_data).hexdigest()
        record["sha256"] = hashlib.sha256(data).hexdigest()
        prepared, box, (width, height) = extract(data, path.name, size, crop, contrast)
        bits = _read_bits(mask_data, mask.name, (height, width)) if mask else None
    except ValueError as error:
        return record | {"reason": str(error)}

    if mask:
        small = Image.fromarray(cut_mask(bits, box, size))
        save = partial(small.save, format="png", compress_level=1)
        paths.write(out / "masks" / f"{name}.png", save)
    photograph = Image.fromarray(prepared)
    save = partial(photograph.save, format=file_format, **IMAGE_FORMATS[file_format])
    paths.write(out / "images" / f"{name}.{file_format}", save)
    counts = np.reshape(photograph.histogram(), (3, 256))
    levels = np.arange(256)
    record |= {"box": box, "width": width, "height": height}
    record["sums"] = (counts @ levels).tolist()
    record["squares"] = (counts @ levels**2).tolist()
    return record


def _end_with_parent() -> None:
    """In a worker process: end when the process that started it ends, also by kill -9."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of that many processes, which end with the process that started them."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
