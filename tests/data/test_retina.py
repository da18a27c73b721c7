"""Masks' bits; cropping on discs in known places; a zoo of bad files; decoding less than all."""

import errno
import hashlib
import os
import random
import re
import struct
import zlib
from io import BytesIO
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin
from scipy.ndimage import gaussian_filter

from lib import paths
from lib.data import phantom, retina

RED = np.array([1.0, 0.55, 0.25])
ORIENTATION = 0x0112
# How a photograph is stored for each value of EXIF's orientation, written out from the standard's
# table: where its 0th row and 0th column are, undone.
STORED = {
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: a[::-1].swapaxes(0, 1),  # left, bottom
}


def frame(
    height=240, width=320, x=160, y=120, radius=90, level=170, rim=1.0, noise=0, black=0, seed=0
):
    """A disc in a frame, uint8 (H, W, 3), and its box; it falls from `level` to `rim * level`."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(columns - x, rows - y) / radius
    brightness = level * (1 - (1 - rim) * distance**2) * (distance <= 1) + black
    grain = np.random.default_rng(seed).normal(0, 1, (height, width, 3)) * noise
    image = (brightness[..., None] * RED + grain).clip(0, 255).astype(np.uint8)
    right, bottom = min(x + radius + 1, width), min(y + radius + 1, height)
    return image, (max(x - radius, 0), max(y - radius, 0), right, bottom)


def encoded(image, file_format="jpeg", mode=None, **options):
    """The bytes of `image`, uint8 (H, W[, 3]), as a file of that format and mode."""
    buffer = BytesIO()
    image = Image.fromarray(image)
    (image.convert(mode) if mode else image).save(buffer, format=file_format, **options)
    return buffer.getvalue()


def turned(image, orientation, file_format="jpeg", **options):
    """The bytes of a file that says by EXIF how it is to be turned to show `image`."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](image))
    return encoded(stored, file_format, exif=exif, **options)


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 images in dB."""
    return 10 * np.log10(255**2 / max(1e-9, np.square(a.astype(float) - b).mean()))


def chunked(width, height, depth, colour, rows):
    """A PNG written from its specification: `rows` are the scan lines with their filter bytes."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(pixels, planar=1, compression=1, order="<"):
    """A TIFF of 16 bits a channel written from its specification; Pillow writes none."""
    height, width, channels = pixels.shape
    pixels = pixels.astype(f"{order}u2")
    planes = [pixels] if planar == 1 else [pixels[..., i].copy() for i in range(channels)]
    strips = [plane.tobytes() for plane in planes]
    if compression == 8:
        strips = [zlib.compress(strip) for strip in strips]
    lengths = [len(strip) for strip in strips]
    offsets = [8 + sum(lengths[:i]) for i in range(len(strips))]
    data = b"".join(strips).ljust(sum(lengths) + sum(lengths) % 2, b"\0")
    entries = [
        *((256, "H", [width]), (257, "H", [height]), (258, "H", [16] * channels)),
        *((259, "H", [compression]), (262, "H", [2]), (273, "I", offsets), (277, "H", [channels])),
        *((278, "H", [height]), (279, "I", lengths), (284, "H", [planar])),
    ]
    directory, behind = struct.pack(f"{order}H", len(entries)), b""
    start = 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        value = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(value) > 4:
            behind += value
            value = struct.pack(f"{order}I", start + len(behind) - len(value))
        number = {"H": 3, "I": 4}[kind]
        directory += struct.pack(f"{order}HHI", tag, number, len(values)) + value.ljust(4, b"\0")
    header = struct.pack(f"{order}2sHI", {"<": b"II", ">": b"MM"}[order], 42, 8 + len(data))
    return header + data + directory + bytes(4) + behind


def prepared(tmp_path, data, mask=None, size=32, file_format="webp"):
    """What `prepare_photograph` says of a file of these bytes; it writes into tmp_path/out."""
    for folder in ("images", "masks"):
        (tmp_path / "out" / folder).mkdir(parents=True, exist_ok=True)
    path = tmp_path / "bad.jpeg"
    path.write_bytes(data)
    if mask is not None:
        (tmp_path / "mask.png").write_bytes(mask)
        mask = tmp_path / "mask.png"
    out = tmp_path / "out"
    return retina.prepare_photograph("bad", path, mask, out, size, True, "none", file_format)


@pytest.fixture(scope="module")
def eye():
    """A phantom of 640 pixels, smooth enough to be enlarged."""
    return phantom.draw_photograph(2, 5, 640)[0]


def full_size(eye, width=2592, height=1944, diameter=1944, left=None):
    """The phantom, `diameter` pixels across, in a black frame of a camera's size."""
    canvas = Image.new("RGB", (width, height))
    disc = Image.fromarray(eye).resize((diameter, diameter), Image.Resampling.BICUBIC)
    left = (width - diameter) // 2 if left is None else left
    canvas.paste(disc, (left, (height - diameter) // 2))
    return np.asarray(canvas)


# Masks


def test_bit_i_of_a_mask_file_is_the_mask_of_that_name(tmp_path):
    assert retina.MASKS == (
        *("microaneurysm", "haemorrhage", "hard_exudate", "cotton_wool_spot"),
        *("new_vessels", "preretinal_haemorrhage", "optic_disc"),
    )
    haemorrhage = np.array([[True, False, True]])
    disc = np.array([[False, False, True]])
    bits = retina.pack_masks({"optic_disc": disc, "haemorrhage": haemorrhage})
    assert bits.dtype == np.uint8 and bits.tolist() == [[2, 0, 2 + 64]]
    Image.fromarray(bits).save(tmp_path / "mask.png")
    masks = retina.read_masks(tmp_path / "mask.png")
    assert tuple(masks) == retina.MASKS and all(mask.dtype == bool for mask in masks.values())
    assert (masks["haemorrhage"] == haemorrhage).all() and (masks["optic_disc"] == disc).all()
    assert sum(mask.sum() for mask in masks.values()) == 3


@pytest.mark.parametrize("size", [16, 37, 64])
def test_no_single_lesion_pixel_is_lost(size):
    rng = np.random.default_rng(size)
    box = 13, 7, 311, 229
    left, top, width, height = retina.placement(box, size)
    for _ in range(60):
        x, y, bit = rng.integers(13, 311), rng.integers(7, 229), rng.integers(0, 8)
        bits = np.zeros((240, 320), np.uint8)
        bits[y, x] = 1 << bit
        small = retina.cut_mask(bits, box, size)
        assert set(np.unique(small)) == {0, 1 << bit}
        expected = left + (x + 0.5 - 13) * width / 298, top + (y + 0.5 - 7) * height / 222
        assert np.abs(np.argwhere(small)[:, ::-1] + 0.5 - expected).max() <= 1


# The crop box


@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param({}, id="plain"),
        pytest.param({"x": 120, "y": 130}, id="off centre"),
        pytest.param({"level": 30}, id="dark"),
        pytest.param({"noise": 4, "black": 8}, id="noisy"),
        pytest.param({"level": 60, "noise": 3, "black": 5}, id="dark and noisy"),
        pytest.param({"level": 60, "noise": 8, "black": 25}, id="very noisy"),
        pytest.param({"rim": 0.35}, id="dark rim"),
        pytest.param({"width": 480, "x": 100, "radius": 60}, id="small"),
        pytest.param({"radius": 150, "x": 160}, id="cut"),
        pytest.param({"radius": 150, "x": 155, "y": 110}, id="cut off centre"),
        pytest.param({"height": 181, "width": 181, "x": 90, "y": 90}, id="tight"),
    ],
)
def test_the_crop_box_is_the_box_of_the_disc(drawn):
    image, box = frame(**drawn)
    off = np.abs(np.subtract(retina.crop_box(image), box)).max()
    assert off <= max(2, 0.01 * (box[2] - box[0]))


@given(
    st.tuples(st.integers(200, 420), st.integers(200, 420))
    | st.tuples(st.integers(200, 900), st.integers(200, 900)),
    st.floats(0.15, 0.6),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.floats(30, 220),
    st.floats(0.3, 1),
    st.floats(0, 1),
    st.integers(0, 25),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_crop_box_of_any_disc_is_right_and_holds_it(
    shape, radius, centre, level, rim, noise, black
):
    """Cut by the frame or not: within 1.5 % of its extent and two pixels, with 98 % of its area."""
    (height, width), radius = shape, radius * min(shape)
    x, y = centre[0] * width, centre[1] * height
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot(columns - x, rows - y) <= radius
    assume(0.08 <= disc.mean() <= 0.9)
    noise *= min(8, level / 10)
    image, _ = frame(height, width, x, y, radius, level, rim, noise, black, height)
    left, top, right, bottom = box = retina.crop_box(image)
    upright, across = np.flatnonzero(disc.any(1)), np.flatnonzero(disc.any(0))
    truth = np.array([across[0], upright[0], across[-1] + 1, upright[-1] + 1])
    assert np.abs(box - truth).max() <= max(2, 0.015 * max(truth[2:] - truth[:2]))
    assert disc[top:bottom, left:right].sum() >= 0.98 * disc.sum()


def test_the_retina_is_the_disc():
    image, _ = frame(rim=0.4, noise=2)
    rows, columns = np.mgrid[:240, :320]
    disc = np.hypot(columns - 160, rows - 120) <= 90
    mask = retina.retina_mask(image)
    assert mask.dtype == bool and mask.shape == disc.shape
    assert (mask & disc).sum() / (mask | disc).sum() > 0.97


def test_text_beside_the_retina_does_not_widen_the_box():
    image, box = frame()
    plain = retina.crop_box(image)
    image[116:124, 250:260] = 170
    image[8:20, 8:60:3] = 255
    assert retina.crop_box(image) == plain
    assert np.abs(np.subtract(plain, box)).max() <= 2


@pytest.mark.parametrize("x, y", [(160, 30), (160, 210), (70, 120), (250, 120)])
def test_a_notch_in_the_rim_does_not_narrow_the_box(x, y):
    image, box = frame(noise=2, black=4)
    rows, columns = np.mgrid[:240, :320]
    image[np.hypot(columns - x, rows - y) <= 7] = 4
    assert np.abs(np.subtract(retina.crop_box(image), box)).max() <= 2


def test_a_bright_grey_background_is_background(eye):
    """Over-exposed: the frame around the retina is grey 60 and noisy."""
    noise = np.random.default_rng(0).normal(60, 2, (800, 1000, 3))
    noise[80:720, 200:840] += eye
    box = retina.crop_box(noise.clip(0, 255).astype(np.uint8))
    truth = 206, 86, 834, 714  # the phantom's retina is 0.98 of its 640 pixels
    assert np.abs(np.subtract(box, truth)).max() <= 8


@pytest.mark.parametrize("fraction", [0, 0.1, 0.15])
def test_a_photograph_cropped_already_stays_whole(eye, fraction):
    """The retina touches all edges; above and below it is cut, as most cameras do."""
    cut = round(640 * fraction)
    box = retina.crop_box(eye[cut : 640 - cut])
    truth = (6, 0, 634, 640 - 2 * cut) if cut else (6, 6, 634, 634)
    assert np.abs(np.subtract(box, truth)).max() <= 4


def test_a_retina_that_fills_the_frame_stays_whole(eye):
    """No background: what is darker than the rest, fovea and vessels, is no reason to cut."""
    left, top, right, bottom = retina.crop_box(eye[110:530, 110:530])
    assert (right - left) * (bottom - top) >= 0.98 * 420**2


@pytest.mark.parametrize("turns", range(4))
def test_a_shaded_side_of_a_retina_that_fills_the_frame_stays(turns):
    """Its red falls from 220 to 70; a black side opposite is cut, as is a side of faint red light.

    The darkest eighth is no brighter than the level at which the background would end.
    """
    level = np.linspace(220, 70, 320)[:, None] * RED
    noise = np.random.default_rng(0).normal(0, 2, (240, 320, 3))
    filled = (level + noise).clip(0, 255).astype(np.uint8)
    black, faint = filled.copy(), filled.copy()
    black[:, :40] = 3
    faint[:, :40] = 30 * RED
    for image, left in ((filled, 0), (black, 40), (faint, 40)):
        truths = [
            (left, 0, 320, 240), (0, 0, 240, 320 - left),
            (0, 0, 320 - left, 240), (0, left, 240, 320),
        ]  # fmt: skip
        box = retina.crop_box(np.rot90(image, turns))
        assert np.abs(np.subtract(box, truths[turns])).max() <= 2


BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "paper": (250, 240, 220),
    "yellow": (255, 230, 0),
    "blue": (40, 80, 250),
    "red": (250, 0, 0),
    "brown": (180, 120, 90),
}


def on(background, eye, noise=2):
    """The phantom off the centre of a frame of that colour, and the frame on black."""
    disc = np.hypot(*(np.mgrid[:640, :640] - 319.5)) < 313
    frames = []
    for colour in (background, (0, 0, 0)):
        grain = np.random.default_rng(0).normal(0, noise, (800, 1000, 3))
        frame = (grain + np.float64(colour)).clip(0, 255).astype(np.uint8)
        frame[80:720, 200:840][disc] = eye[disc]
        frames.append(frame)
    return frames


@pytest.mark.parametrize("file_format", ["jpeg", "png"])
@pytest.mark.parametrize("colour", BACKGROUNDS)
def test_a_background_as_bright_as_the_retina_is_made_black(eye, colour, file_format):
    bright, black = on(BACKGROUNDS[colour], eye)
    options = {"jpeg": {"quality": 95, "subsampling": 0}, "png": {"compress_level": 1}}[file_format]
    image, box, _ = retina.extract(encoded(bright, file_format, **options), "bright", 128)
    expected, wanted, _ = retina.extract(encoded(black, file_format, **options), "black", 128)
    assert np.abs(np.subtract(box, wanted)).max() <= 8
    assert image[:12, :12].max() <= 8 and image[-12:, -12:].max() <= 8
    middle = np.hypot(*(np.mgrid[:128, :128] - 63.5)) < 55
    difference = np.abs(image.astype(int) - expected)[middle]
    assert difference.mean() < 6


def test_on_white_the_retina_is_the_disc(eye):
    white, _ = on((255, 255, 255), eye)
    disc = np.hypot(*(np.mgrid[:800, :1000] - np.array([399.5, 519.5])[:, None, None])) < 313
    mask = retina.retina_mask(white)
    assert (mask & disc).sum() / (mask | disc).sum() > 0.97
    whole, _, _ = retina.extract(encoded(white, "png"), "white", 100, crop=False)
    assert whole[50, 1].min() > 240  # as it is, for nobody was to look for the retina


@pytest.mark.parametrize("direction", [0, 1])
def test_a_bright_background_of_several_colours_is_refused(eye, direction):
    white, _ = on((255, 255, 255), eye)
    outside = white.min(axis=2) > 200
    ramp = np.linspace(255, 120, white.shape[direction]).astype(np.uint8)
    ramp = ramp[:, None] if direction == 0 else ramp[None, :]
    white[outside] = np.broadcast_to(ramp, outside.shape)[outside][:, None]
    with pytest.raises(ValueError, match="no retina found: the background is bright"):
        retina.extract(encoded(white, "png"), "ramp", 64)


def test_a_white_banner_in_the_frame_is_no_background():
    image, box = frame()
    image[:14] = 255
    assert np.abs(np.subtract(retina.crop_box(image), box)).max() <= 2


def test_a_page_of_text_has_no_retina():
    page = np.full((400, 300, 3), 255, np.uint8)
    page[40:360:12, 40:260:3] = 0
    with pytest.raises(ValueError, match=r"no retina found: .* 5% needed"):
        retina.crop_box(page)


def stripes():
    image = np.zeros((200, 300, 3), np.uint8)
    image[:, ::10] = 200
    return image


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.random.default_rng(0).normal(0, 4, (200, 300, 3)), r"varies by \d+\.\d of 255 levels"),
        (np.random.default_rng(0).normal(90, 4, (200, 300, 3)), r"varies by \d+\.\d of 255 levels"),
        (stripes(), r"largest region covers \d\.\d% of the frame, 5% needed"),
        (np.random.default_rng(0).integers(0, 256, (200, 300, 3)), r"largest region covers 0\.0%"),
    ],
    ids=["black", "flat", "specks of light", "noise"],
)
def test_a_frame_without_a_retina_is_refused(image, reason):
    with pytest.raises(ValueError, match=f"no retina found: the .*{reason}"):
        retina.crop_box(image.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("contrast", ["none", "graham"])
def test_a_frame_taken_whole_that_hardly_varies_is_no_retina(contrast):
    flat = np.random.default_rng(0).integers(40, 46, (90, 90, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"frame varies by \d+ of 255 levels, 12 needed"):
        retina.extract(encoded(flat, "png"), "flat.png", 64, crop=False, contrast=contrast)


# Where it lands


@given(
    *(st.integers(0, 500), st.integers(0, 500), st.integers(1, 3000), st.integers(1, 3000)),
    st.integers(16, 2048),
)
@settings(deadline=None, derandomize=True)
def test_the_placement_keeps_the_aspect_ratio_and_is_centred(left, top, wide, high, size):
    x, y, width, height = retina.placement((left, top, left + wide, top + high), size)
    assert max(width, height) == size and min(width, height) >= 1
    assert abs(width - size * wide / max(wide, high)) <= 0.51 or width == 1
    assert abs(height - size * high / max(wide, high)) <= 0.51 or height == 1
    for start, extent in ((x, width), (y, height)):
        assert start >= 0 and start + extent <= size and abs(2 * start + extent - size) <= 1


def test_a_disc_that_the_camera_cut_stays_a_disc():
    image, _ = frame(height=200, width=320, y=100, radius=140)
    small = retina.cut(image, retina.crop_box(image), 112)
    lit = small.max(axis=2) > 40
    assert not lit[:15].any() and not lit[-15:].any() and lit[20].any() and lit[-21].any()
    across, upright = lit[56].sum(), lit[:, 56].sum()
    assert across >= 110 and abs(upright / across - 200 / 281) < 0.03


def test_a_whole_frame_is_taken_as_it_is(eye):
    image = full_size(eye, 640, 480, 300)
    whole, box, shape = retina.extract(encoded(image, "png"), "whole.png", 160, crop=False)
    assert box == [0, 0, 640, 480] and shape == (640, 480)
    expected = np.asarray(Image.fromarray(image).resize((160, 120), Image.Resampling.LANCZOS))
    assert (whole[20:140] == expected).all() and not whole[:20].any() and not whole[140:].any()


# Reading


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK"])
def test_other_modes_are_read_as_rgb(mode, tmp_path):
    image = Image.new("RGB", (8, 8), (153, 153, 153)).convert(mode)  # of the palette, too
    image.save(tmp_path / "photograph.tiff")
    read = retina.read_photograph(tmp_path / "photograph.tiff")
    assert read.shape == (8, 8, 3) and (abs(read.astype(int) - 153) <= 4).all()


def test_cmyk_jpegs_have_their_right_colours():
    """Stored as Adobe does, inverted: the retina is red, not cyan."""
    image, box = frame()
    data = encoded(image, mode="CMYK", quality=95)
    read, found, _ = retina.extract(data, "photograph.jpeg", 64)
    expected = retina.cut(image, box, 64)
    assert np.abs(np.subtract(found, box)).max() <= 2
    difference = read[20:44, 20:44].mean((0, 1)) - expected[20:44, 20:44].mean((0, 1))
    assert np.abs(difference).max() < 3


def test_a_png_named_jpeg_is_read_for_what_it_is(tmp_path):
    image, _ = frame(seed=4, noise=3)
    record = prepared(tmp_path, encoded(image, "png"), size=48)
    file = np.asarray(Image.open(tmp_path / "out" / "images" / "bad.webp"))
    assert "reason" not in record
    assert (file == retina.cut(image, retina.crop_box(image), 48)).all()


def test_a_colour_png_of_16_bits_keeps_its_upper_8(tmp_path):
    image, _ = frame(48, 64, 32, 24, 20)
    low = np.random.default_rng(0).integers(0, 256, image.shape)
    rows = (image * np.uint16(256) + low).astype(">u2").reshape(48, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    (tmp_path / "deep.png").write_bytes(chunked(64, 48, 16, 2, data))
    assert (retina.read_photograph(tmp_path / "deep.png") == image).all()


@pytest.mark.parametrize("planar, compression", [(1, 1), (1, 8), (2, 8)])
@pytest.mark.parametrize("order", "<>")
def test_a_tiff_of_16_bits_keeps_its_upper_8(planar, compression, order, tmp_path):
    image, _ = frame(48, 64, 32, 24, 20)
    low = np.random.default_rng(0).integers(0, 256, image.shape)
    data = tiff(image.astype(int) * 256 + low, planar, compression, order)
    (tmp_path / "deep.tiff").write_bytes(data)
    assert (retina.read_photograph(tmp_path / "deep.tiff") == image).all()


@pytest.mark.parametrize("bits", [10, 12, 14, 15])
@pytest.mark.parametrize("kind", ["tiff", "tiff, deflated", "png"])
def test_fewer_bits_than_16_in_a_file_of_16_are_not_taken_for_darkness(bits, kind):
    image = frame(240, 320)[0].astype(np.uint16) * 257 >> 16 - bits
    if kind == "png":
        rows = image.astype(">u2").reshape(240, -1)
        data = chunked(320, 240, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))
    else:
        data = tiff(image, compression=8 if "," in kind else 1)
    with pytest.raises(ValueError, match=f"16 bits a channel of which {bits} are used.* 8 bits"):
        retina.extract(data, "deep", 32)


def test_planes_of_16_bits_which_pillow_takes_for_8_are_refused():
    data = tiff(frame(240, 320)[0].astype(np.uint16) * 257, planar=2)
    with pytest.raises(ValueError, match="16 bits a channel, plane by plane: save it with 8 bits"):
        retina.extract(data, "planes", 32)


@pytest.mark.parametrize("kind", ["RGBA", "colour key", "palette"])
def test_what_is_transparent_is_black_whatever_colour_it_hides(eye, kind):
    hidden, black = on((255, 255, 255), eye, noise=0)
    outside = (hidden == 255).all(axis=2)
    picture = Image.fromarray(hidden)
    if kind == "RGBA":
        picture.putalpha(Image.fromarray(np.where(outside, 0, 255).astype(np.uint8)))
        options = {}
    elif kind == "colour key":
        options = {"transparency": (255, 255, 255)}
    else:
        picture = picture.quantize(256)
        options = {"transparency": picture.getpixel((0, 0))}
    buffer = BytesIO()
    picture.save(buffer, "png", **options)
    image, box, _ = retina.extract(buffer.getvalue(), "hidden", 128)
    expected, wanted, _ = retina.extract(encoded(black, "png"), "black", 128)
    if kind == "palette":
        assert np.abs(np.subtract(box, wanted)).max() <= 4 and psnr(image, expected) > 25
    else:
        assert box == wanted and (image == expected).all()


def test_half_transparent_is_half_as_bright(tmp_path):
    image = np.full((8, 8, 4), (200, 100, 50, 128), np.uint8)
    Image.fromarray(image).save(tmp_path / "half.png")
    read = retina.read_photograph(tmp_path / "half.png")
    assert np.abs(read.astype(int) - (100, 50, 25)).max() <= 1


def several(file_format, second, **options):
    """A file of two frames, the first a disc."""
    buffer = BytesIO()
    first = Image.fromarray(DISC)
    first.save(buffer, file_format, save_all=True, append_images=[second], **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["tiff", "webp", "png", "mpo"])
def test_of_several_photographs_in_one_file_none_is_taken(file_format):
    data = several(file_format, Image.fromarray(DISC[::-1].copy()))
    with pytest.raises(ValueError, match="2 frames in one file: save the one that is meant alone"):
        retina.extract(data, "several", 32)


@pytest.mark.parametrize("kind", ["gain map", "cut off behind the photograph", "reduced page"])
def test_a_preview_beside_the_photograph_is_none(kind, tmp_path):
    small = Image.fromarray(DISC).resize((160, 120))
    if kind == "reduced page":
        small.encoderinfo = {"tiffinfo": {254: 1}}
        data = several("tiff", small)
        alone = encoded(DISC, "tiff")
    else:
        data = several("mpo", small, quality=95)
        alone = encoded(DISC, quality=95)
        if kind != "gain map":
            data = data[: data.rindex(b"\xff\xd8")]
    for name, content in (("several", data), ("alone", alone)):
        (tmp_path / name).write_bytes(content)
    read = retina.read_photograph(tmp_path / "several")
    assert (read == retina.read_photograph(tmp_path / "alone")).all()


def damaged_exif(orientation, tag=271, kind=2):
    """EXIF with a camera's name, which is said to be another tag's or no text."""
    exif = Image.Exif()
    exif[271] = "a camera"
    exif[ORIENTATION] = orientation
    data = exif.tobytes()
    return data.replace(struct.pack(">HH", 271, 2), struct.pack(">HH", tag, kind))


@pytest.mark.filterwarnings("ignore:Tag data larger")
def test_damaged_exif_never_turns_a_photograph_wrongly(eye):
    """Where all but a tag can be read, the orientation holds; else a turned one is refused."""
    plain = np.ascontiguousarray(eye[::4, ::4])
    expected, _, _ = retina.extract(encoded(plain, "png"), "plain", 32)
    for orientation, damage in ((1, {"tag": 256}), (1, {"kind": 10}), (6, {"kind": 10})):
        exif = damaged_exif(orientation, **damage)
        stored = np.ascontiguousarray(STORED[orientation](plain)) if orientation > 1 else plain
        assert (retina.extract(encoded(stored, "png", exif=exif), "x", 32)[0] == expected).all()
    with pytest.raises(ValueError, match=r"unreadable: its EXIF is damaged .* the orientation"):
        retina.extract(encoded(plain, exif=damaged_exif(6, tag=256)), "turned", 32)


@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_gives_the_upright_photograph_and_box(eye, orientation):
    """Decoded at half its size; the disc is off the centre, the optic disc on its right."""
    upright = np.pad(eye[::2, ::2], ((96, 64), (64, 256), (0, 0)))
    data = encoded(upright, quality=98, subsampling=0)
    expected, wanted, _ = retina.extract(data, "upright.jpeg", 32)
    data = turned(upright, orientation, quality=98, subsampling=0)
    image, box, shape = retina.extract(data, "turned.jpeg", 32)
    assert shape == (640, 480)
    assert np.abs(np.subtract(box, (67, 99, 381, 413))).max() <= 5
    assert np.abs(np.subtract(box, wanted)).max() <= 2
    if box == wanted:
        assert psnr(image, expected) > 40
    assert psnr(image, expected) > 25 > psnr(image[::-1], expected)


@pytest.mark.parametrize("file_format", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_to_every_pixel_once(orientation, file_format, tmp_path):
    upright, _ = frame(60, 90, 40, 25, 20, noise=9)
    options = {"lossless": True} if file_format == "webp" else {}
    data = turned(upright, orientation, file_format, **options)
    (tmp_path / "turned").write_bytes(data)
    assert (retina.read_photograph(tmp_path / "turned") == upright).all()
    whole, box, shape = retina.extract(data, "turned", 90, crop=False)
    assert (whole[15:75] == upright).all() and box == [0, 0, 90, 60] and shape == (90, 60)


# No more is decoded than the result shows


@pytest.fixture
def drafts(monkeypatch):
    """The sizes at which JPEGs are decoded."""
    sizes, draft = [], JpegImagePlugin.JpegImageFile.draft

    def spy(photograph, *arguments):
        draft(photograph, *arguments)
        sizes.append(photograph.size)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", spy)
    return sizes


@pytest.mark.parametrize("shape", [(2592, 1944), (2593, 1945)])
def test_a_reduced_decode_is_the_full_one_resampled(eye, shape, drafts):
    """Also where a side is no multiple of 8, and the last decoded pixel stands for a part of 8."""
    data = encoded(full_size(eye, *shape), quality=92)
    full = np.asarray(Image.open(BytesIO(data)))
    centre = shape[0] // 2
    truth = centre - 953, 19, centre + 953, 1925  # 0.98 of 1,944 pixels
    for size, fraction in ((64, 8), (128, 8), (224, 4), (512, 2)):
        image, box, found = retina.extract(data, "full.jpeg", size)
        assert found == shape
        assert drafts.pop() == tuple(-(-side // fraction) for side in shape) and not drafts
        assert psnr(image, retina.cut(full, box, size)) > 45
        assert np.abs(np.subtract(box, truth)).max() <= 0.01 * 1944


def test_a_small_disc_is_decoded_again_and_finer(eye, drafts):
    data = encoded(full_size(eye, diameter=700, left=300), quality=92)
    image, box, _ = retina.extract(data, "small.jpeg", 256)
    assert drafts == [(648, 486), (2592, 1944)]
    assert np.abs(np.subtract(box, (307, 629, 993, 1315))).max() <= 8
    full, coarse = Image.open(BytesIO(data)), Image.open(BytesIO(data))
    coarse.draft(None, (648, 486))
    expected = retina.cut(np.asarray(full), box, 256)
    coarse = retina.cut(np.asarray(coarse), [end / 4 for end in box], 256)
    assert psnr(image, expected) > 45 > 40 > psnr(coarse, expected)


# Contrast and files


@pytest.mark.parametrize("size", [64, 301, 512])
def test_graham_is_what_the_winner_wrote_down(eye, size):
    """`addWeighted(image, 4, GaussianBlur(image, scale / 30), -4, 128)` of the radius `scale`.

    Grey beyond 0.9 of it. Pillow's Gaussian is three box filters, SciPy's the sampled function:
    their averages differ by under a level.
    """
    image = np.asarray(Image.fromarray(eye).resize((size, size), Image.Resampling.LANCZOS))
    radius = size / 2
    average = gaussian_filter(image.astype(float), (radius / 30, radius / 30, 0))
    literal = (4.0 * image - 4 * average + 128).clip(0, 255)
    rows, columns = np.mgrid[:size, :size] + 0.5 - radius
    inside = np.sqrt(rows**2 + columns**2) / radius <= 0.9
    assert np.array_equal(retina.inner_disc(size, retina.GRAHAM_SHARE), inside)
    result = retina.graham(image)
    assert result.dtype == np.uint8 and (result[~inside] == 128).all()
    difference = np.abs(result - literal)[inside]
    assert difference.mean() < 2.5 and np.percentile(difference, 99) <= 8
    assert result[inside].std() > 8  # of an image with structure; 128 everywhere is not it


def test_graham_draws_no_bar_where_the_camera_cut_the_retina():
    """Of a retina of one colour nothing is left, up to the cut; averaged with the black it is."""
    size, box = 200, (0, 40, 400, 360)  # a disc of 400 pixels, 40 cut off above and below
    x, y, width, height = retina.placement(box, size)
    image = np.zeros((size, size, 3), np.uint8)
    image[y : y + height, x : x + width] = (150, 80, 40)
    assert (y, height) == (20, 160)
    assert (retina.graham(image, box) == 128).all()
    assert np.abs(retina.graham(image)[y : y + 3, 80:120] - 128.0).max() > 50


def test_webp_keeps_every_level_and_jpeg_nearly(tmp_path, eye):
    data = encoded(eye, "png")
    expected, box, _ = retina.extract(data, "bad.jpeg", 128)
    record, other = (prepared(tmp_path, data, None, 128, name) for name in ("webp", "jpeg"))
    webp = Image.open(tmp_path / "out" / "images" / "bad.webp")
    jpeg = Image.open(tmp_path / "out" / "images" / "bad.jpeg")
    assert (np.asarray(webp) == expected).all() and webp.format == "WEBP"
    assert psnr(np.asarray(jpeg), expected) > 35
    assert JpegImagePlugin.get_sampling(jpeg) == 0  # 4:4:4
    assert record == other and record["box"] == box
    assert record["sha256"] == hashlib.sha256(data).hexdigest()
    levels = expected.reshape(-1, 3).astype(object)  # Python's integers, exact
    assert record["sums"] == levels.sum(axis=0).tolist()
    assert record["squares"] == (levels**2).sum(axis=0).tolist()


# The zoo


def cut_off(data, share=0.6):
    return data[: int(share * len(data))]


def flipped(data, at):
    """One byte is another."""
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def bomb(side, colour, data):
    return lambda: chunked(side, side, 8, colour, bytes(data))


DISC = frame(noise=3, seed=1)[0]
GREY = DISC[..., 0]
NOISE = np.random.default_rng(0).bytes(4000)
UNKNOWN = "unreadable: cannot identify image file: bad.jpeg"
UNREADABLE = "unreadable: .*: bad.jpeg"
TRUNCATED = r"truncated: image file is truncated.*: bad.jpeg"
FLAT = r"no retina found: the frame varies by 0\.0 of 255 levels"
SPECK = r"no retina found: .* covers \d\.\d% of the frame, 5% needed"
TINY = r"too small: a retina of 1\d x 1\d pixels for a size of 32"
BOMB = "decompression bomb: .*400000000 pixels.*, more than 89,478,485"
SMALL_BOMB = "decompression bomb: 10000 x 10000 pixels, more than 89,478,485"
ZOO = {
    "a JPEG cut off": (lambda: cut_off(encoded(DISC)), TRUNCATED),
    "a JPEG without its last bytes": (lambda: encoded(DISC)[:-9], TRUNCATED),
    "a progressive JPEG cut off": (lambda: cut_off(encoded(DISC, progressive=True)), TRUNCATED),
    "a JPEG's header": (lambda: encoded(DISC)[:400], "(truncated|unreadable): .*: bad.jpeg"),
    "a PNG cut off": (lambda: cut_off(encoded(DISC, "png")), TRUNCATED),
    "a PNG with one wrong byte": (lambda: flipped(encoded(DISC, "png"), 20_000), UNREADABLE),
    "a GIF": (lambda: encoded(DISC, "gif"), UNKNOWN),
    "a bitmap": (lambda: encoded(DISC, "bmp"), UNKNOWN),
    "a SPIDER image": (lambda: encoded(GREY.astype(np.float32), "spider"), UNKNOWN),
    "PostScript": (lambda: encoded(DISC, "eps"), UNKNOWN),
    "PostScript in few words": (lambda: b"%!PS\n%%BoundingBox: 0 0 9 9\n{} loop", UNKNOWN),
    "a WebP cut off": (lambda: cut_off(encoded(DISC, "webp")), UNREADABLE),
    "a TIFF cut off": (lambda: cut_off(encoded(DISC, "tiff")), TRUNCATED),
    "a web page": (lambda: b"<!DOCTYPE html><html><body>403: accept the rules</body>", UNKNOWN),
    "a text": (lambda: b"not a photograph", UNKNOWN),
    "an empty file": (lambda: b"", UNKNOWN),
    "zeros, then noise": (lambda: bytes(4000) + NOISE, UNKNOWN),
    "noise behind a JPEG's first bytes": (lambda: encoded(DISC)[:20] + NOISE, UNREADABLE),
    "16-bit grey": (
        lambda: encoded(GREY.astype(np.uint16) * 256, "png"),
        "unreadable: mode I;16 has more than 8 bits a channel: bad.jpeg",
    ),
    "32-bit grey": (
        lambda: encoded(GREY.astype(np.int32) << 16, "tiff"),
        "unreadable: mode I has more than 8",
    ),
    "floating point": (
        lambda: encoded(GREY.astype(np.float32), "tiff"),
        "unreadable: mode F has more than 8",
    ),
    "a grey JPEG": (lambda: encoded(GREY), "unreadable: mode L has no colour: bad.jpeg"),
    "grey and transparent": (lambda: encoded(GREY, "png", "LA"), "unreadable: mode LA has no col"),
    "black and white": (lambda: encoded(DISC, "png", "1"), "unreadable: mode 1 has no colour"),
    "a black frame": (lambda: encoded(0 * DISC), FLAT),
    "a white frame": (lambda: encoded(0 * DISC + 255), FLAT),
    "a speck of light": (lambda: encoded(frame(radius=25, x=30, y=40)[0]), SPECK),
    "a tiny retina": (lambda: encoded(frame(24, 24, 12, 12, 5)[0], "png"), TINY),
    "a decompression bomb": (bomb(20_000, 2, 60 * 20_000), BOMB),
    "a smaller bomb": (bomb(10_000, 2, 30_001 * 10), SMALL_BOMB),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ZOO)
def test_a_bad_file_is_rejected_with_its_reason(kind, tmp_path):
    make, reason = ZOO[kind]
    data = make()
    record = prepared(tmp_path, data)
    assert re.match(reason, record.pop("reason"))
    assert record == {"image": "bad", "sha256": hashlib.sha256(data).hexdigest()}
    assert not [*(tmp_path / "out" / "images").iterdir()]


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device", "a link to a pipe"])
def test_what_is_no_regular_file_is_rejected_without_being_opened(tmp_path, kind):
    path = tmp_path / "x.jpeg"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe" if kind == "a pipe" else path
        if kind != "a pipe":
            path.symlink_to(tmp_path / "pipe")
    (tmp_path / "good.jpeg").write_bytes(encoded(DISC))
    for photograph, mask in ((path, None), (tmp_path / "good.jpeg", path)):
        record = retina.prepare_photograph(
            "x", photograph, mask, tmp_path, 32, True, "none", "webp"
        )
        assert record == {"image": "x", "reason": f"unreadable: not a regular file: {path.name}"}


def test_a_file_larger_than_any_photograph_is_not_read(tmp_path):
    with (tmp_path / "x.jpeg").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"unreadable: 1,099,511,627,776 bytes, more than 1,0"):
        retina.read_photograph(tmp_path / "x.jpeg")


def test_a_file_that_cannot_be_read_is_no_fault_of_the_photograph(tmp_path, monkeypatch):
    path, rest = tmp_path / "x.jpeg", (None, tmp_path, 32, True, "none", "webp")
    with pytest.raises(FileNotFoundError):
        retina.prepare_photograph("x", path, *rest)
    path.write_bytes(encoded(DISC))
    for number in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES):
        with monkeypatch.context() as patch, pytest.raises(OSError) as raised:
            patch.setattr(type(path), "read_bytes", mock.Mock(side_effect=OSError(number, "now")))
            retina.prepare_photograph("x", path, *rest)
        assert raised.value.errno == number


@pytest.mark.parametrize(
    "error",
    [
        *(struct.error, TypeError, AttributeError, MemoryError, zlib.error, AssertionError),
        *(KeyError, IndexError, OverflowError, RecursionError, UnicodeDecodeError, SystemError),
    ],
)
def test_whatever_pillow_raises_is_a_reject(error, tmp_path, monkeypatch):
    said = ("utf-8", b"x", 0, 1, "said") if error is UnicodeDecodeError else ()
    broken = mock.Mock(side_effect=error(*said))
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", broken)
    assert re.match("unreadable: .+: bad.jpeg", prepared(tmp_path, encoded(DISC))["reason"])


@pytest.mark.parametrize(
    "name",
    [
        *("../../x", "/tmp/x", "day1/x", "a\\b", "..\\x", "C:\\x", "a/", "", ".", ".."),
        *("x\0", "a\nb", "a\rb", "a\tb", "\x7f", "\udce9", "a" * 247, "é" * 124),
    ],
)
def test_a_name_that_is_no_plain_name_is_rejected_and_nothing_written(tmp_path, name):
    out = tmp_path / "deep" / "er" / "out"
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True)
    (tmp_path / "good.jpeg").write_bytes(encoded(DISC))
    (tmp_path / "mask.png").write_bytes(encoded(BITS, "png"))
    before = set(tmp_path.rglob("*"))
    files = tmp_path / "good.jpeg", tmp_path / "mask.png"
    record = retina.prepare_photograph(name, *files, out, 32, True, "none", "webp")
    assert re.match("the name .* is no plain name|a name of .* is too long", record["reason"])
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["$_$", "=1+1", "a b", "..x", "x.", "日本 é", "NA", "a" * 245])
def test_an_unusual_name_is_a_name(tmp_path, name):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "good.jpeg").write_bytes(encoded(DISC))
    record = retina.prepare_photograph(
        name, tmp_path / "good.jpeg", None, tmp_path, 32, True, "none", "webp"
    )
    assert "reason" not in record and (tmp_path / "images" / f"{name}.webp").exists()


BITS = np.zeros(DISC.shape[:2], np.uint8)
OTHER_SHAPE = "for a photograph of shape"
BAD_MASKS = {
    "text": (lambda: b"no mask", "mask unreadable: cannot identify"),
    "cut off": (
        lambda: cut_off(encoded(BITS, "png")),
        "mask unreadable: image file is truncated.*: mask.png",
    ),
    "another size": (
        lambda: encoded(BITS[1:], "png"),
        rf"mask of shape \(239, 320\) {OTHER_SHAPE} \(240, 320\)",
    ),
    "colour": (lambda: encoded(DISC, "png"), rf"mask of shape \(240, 320, 3\) {OTHER_SHAPE}"),
    "16 bits": (
        lambda: encoded(BITS.astype(np.uint16), "png"),
        "mask of uint16, not of 8 bits: mask.png",
    ),
    "floating point": (
        lambda: encoded(BITS.astype(np.float32), "tiff"),
        "mask of float32, not of 8 bits: mask.png",
    ),
    "a bomb": (bomb(20_000, 0, 20_000), "mask unreadable: .* pixels"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_photograph_with_a_bad_mask_is_rejected_with_the_reason(kind, tmp_path):
    make, reason = BAD_MASKS[kind]
    assert re.match(reason, prepared(tmp_path, encoded(DISC), make())["reason"])
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


SMALL = np.ascontiguousarray(DISC[::8, ::8])
FILES = [
    turned(SMALL, 6),
    encoded(SMALL, exif=damaged_exif(6)),
    encoded(SMALL, progressive=True),
    encoded(SMALL, mode="CMYK"),
    several("mpo", Image.fromarray(SMALL[::2, ::2])),
    turned(SMALL, 6, "png"),
    encoded(SMALL, "png", "P"),
    encoded(SMALL, "png", "RGBA"),
    encoded(SMALL, "tiff"),
    turned(SMALL, 6, "tiff"),
    encoded(SMALL, "tiff", compression="tiff_lzw"),
    tiff(SMALL.astype(np.uint16) * 257, compression=8),
    turned(SMALL, 6, "webp"),
    encoded(SMALL, "webp", lossless=True),
]
REASONS = "unreadable: |truncated: |decompression bomb: |no retina found: |too small: "
MUTATIONS = 200


def mutated(data, rng):
    """A file cut off, one that lost some bytes, or one in which up to eleven are others."""
    damaged = bytearray(data)
    at, damage = rng.randrange(len(data)), rng.randrange(6)
    if damage == 0:
        del damaged[at:]
    elif damage == 1:
        del damaged[at : at + rng.randrange(1, 40)]
    else:
        for _ in range(rng.randrange(1, 12)):
            damaged[rng.randrange(min(rng.choice((400, len(data))), len(data)))] = rng.randrange(
                256
            )
    return bytes(damaged)


@pytest.mark.filterwarnings("ignore:::PIL")
@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whatever_is_wrong_with_a_file_it_is_prepared_or_rejected(seed):
    """20,000 mutations."""
    rng = random.Random(seed)
    for i in range(MUTATIONS):
        data = mutated(FILES[i % len(FILES)], rng)
        try:
            image, box, (width, height) = retina.extract(data, "damaged", 16, crop=i % 4 > 0)
        except ValueError as error:
            assert re.match(REASONS, str(error))
        else:
            assert image.shape == (16, 16, 3)
            assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height


# Real photographs


@pytest.mark.slow
def test_no_crop_cuts_more_than_a_hundredth_of_a_real_retina():
    """IDRiD's photographs of 4288 x 2848 pixels: outside the retina they are below level 20."""
    photographs = sorted(paths.dataset("idrid").rglob("IDRiD_[0-9][0-9].jpg"))
    if not photographs:
        pytest.skip("no idrid in COMPANION_DATASETS or data/raw")
    lost = {}
    for path in photographs:
        data = path.read_bytes()
        _, (left, top, right, bottom), shape = retina.extract(data, path.name, 512)
        bright = np.asarray(Image.open(path).getchannel("R")) > 20
        lost[path.name] = 1 - bright[top:bottom, left:right].sum() / bright.sum()
        assert shape == bright.shape[::-1] and bright.mean() > 0.5
        assert (right - left) * (bottom - top) < 0.9 * bright.size  # else nothing would show
    assert len(lost) >= 54
    assert max(lost.values()) <= 0.01, f"most lost: {max(lost.items(), key=lambda item: item[1])}"
