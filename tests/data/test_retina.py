"""Selective cropping on discs drawn in known places; a zoo of bad files; what is decoded against a full decode."""

import hashlib
import re
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin, features
from scipy.ndimage import gaussian_filter

from lib import paths
from lib.data import phantom
from lib.data import retina as cropping

RED = np.array([1.0, 0.55, 0.25])
ORIENTATION = 0x0112
# How a photograph is stored for each value of EXIF's orientation, written out from the standard's table: where its
# 0th row and 0th column are, undone.
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
    """A disc in a frame, uint8 (H, W, 3), and its box: brightness falls from `level` to `rim * level`."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(columns - x, rows - y) / radius
    brightness = level * (1 - (1 - rim) * distance**2) * (distance <= 1) + black
    values = (
        brightness[..., None] * RED
        + np.random.default_rng(seed).normal(0, 1, (height, width, 3)) * noise
    )
    box = (
        max(x - radius, 0),
        max(y - radius, 0),
        min(x + radius + 1, width),
        min(y + radius + 1, height),
    )
    return values.clip(0, 255).astype(np.uint8), box


def encoded(image, format="jpeg", mode=None, **options):
    """The bytes of `image`, uint8 (H, W[, 3]), as a file of that format and mode."""
    buffer = BytesIO()
    image = Image.fromarray(image)
    (image.convert(mode) if mode else image).save(buffer, format=format, **options)
    return buffer.getvalue()


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 images in dB."""
    return 10 * np.log10(255**2 / max(1e-9, np.square(a.astype(float) - b).mean()))


def chunked(width, height, depth, colour, rows):
    """A PNG written by hand from its specification: `rows` are the scan lines with their filter bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def prepared(tmp_path, data, mask=None, size=32, contrast="none", format="webp"):
    """What `prepare_photograph` says of a file of these bytes, with a mask of those; it writes into tmp_path/out."""
    for folder in ("images", "masks"):
        (tmp_path / "out" / folder).mkdir(parents=True, exist_ok=True)
    path = tmp_path / "bad.jpeg"
    path.write_bytes(data)
    if mask is not None:
        (tmp_path / "mask.png").write_bytes(mask)
        mask = tmp_path / "mask.png"
    return cropping.prepare_photograph(
        "bad", path, mask, tmp_path / "out", size, True, contrast, format
    )


@pytest.fixture(scope="module")
def fundus():
    """A phantom of 640 pixels, smooth enough to be enlarged."""
    return phantom.photograph(2, 5, 640)[0]


def full_size(fundus, width=2592, height=1944, diameter=1944, left=None):
    """The phantom, `diameter` pixels across, in a black frame of a camera's size."""
    canvas = Image.new("RGB", (width, height))
    disc = Image.fromarray(fundus).resize((diameter, diameter), Image.Resampling.BICUBIC)
    canvas.paste(
        disc, ((width - diameter) // 2 if left is None else left, (height - diameter) // 2)
    )
    return np.asarray(canvas)


# The crop box


@pytest.mark.parametrize(
    "drawn",
    [
        {},
        {"x": 120, "y": 130},
        {"level": 30},
        {"noise": 4, "black": 8},
        {"level": 60, "noise": 3, "black": 5},
        {"level": 60, "noise": 8, "black": 25},
        {"rim": 0.35},
        {"width": 480, "x": 100, "radius": 60},
        {"radius": 150, "x": 160},
        {"radius": 150, "x": 155, "y": 110},
        {"height": 181, "width": 181, "x": 90, "y": 90},
        {"height": 900, "width": 1200, "x": 640, "y": 450, "radius": 400, "noise": 3, "black": 4},
    ],
    ids=[
        "plain",
        "off centre",
        "dark",
        "noisy",
        "dark and noisy",
        "very noisy",
        "dark rim",
        "small",
        "cut",
        "cut off centre",
    ]
    + ["tight", "large"],
)
def test_the_crop_box_is_the_box_of_the_disc(drawn):
    image, box = frame(**drawn)
    assert np.abs(np.subtract(cropping.crop_box(image), box)).max() <= max(
        2, 0.01 * (box[2] - box[0])
    )


def test_the_retina_is_the_disc():
    image, _ = frame(rim=0.4, noise=2)
    rows, columns = np.mgrid[:240, :320]
    disc = np.hypot(columns - 160, rows - 120) <= 90
    mask = cropping.retina(image)
    assert mask.dtype == bool and mask.shape == disc.shape
    assert (mask & disc).sum() / (mask | disc).sum() > 0.97


def test_text_and_a_notch_do_not_widen_the_box():
    image, box = frame()
    plain = cropping.crop_box(image)
    image[116:124, 250:260] = 170
    image[8:20, 8:60:3] = 255
    assert cropping.crop_box(image) == plain
    assert np.abs(np.subtract(plain, box)).max() <= 2


@pytest.mark.parametrize("level", [0, 90])
def test_a_black_or_flat_frame_has_no_retina(level):
    image = np.random.default_rng(0).normal(level, 4, (200, 300, 3)).clip(0, 255).astype(np.uint8)
    with pytest.raises(ValueError, match=r"no retina found: .* \d+\.\d of 255 levels"):
        cropping.crop_box(image)


def test_a_speck_of_light_is_no_retina():
    image = np.zeros((200, 300, 3), np.uint8)
    image[:, ::10] = 200
    with pytest.raises(
        ValueError, match=r"no retina found: the largest region covers \d\.\d% of the frame"
    ):
        cropping.crop_box(image)


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
    """Anywhere, cut by the frame or not: within 1.5 % of its extent and two pixels, with 98 % of its area."""
    (height, width), radius = shape, radius * min(shape)
    x, y = centre[0] * width, centre[1] * height
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot(columns - x, rows - y) <= radius
    assume(0.08 <= disc.mean() <= 0.9)
    image, _ = frame(
        height, width, x, y, radius, level, rim, noise * min(8, level / 10), black, height
    )
    left, top, right, bottom = box = cropping.crop_box(image)
    upright, across = np.flatnonzero(disc.any(1)), np.flatnonzero(disc.any(0))
    truth = np.array([across[0], upright[0], across[-1] + 1, upright[-1] + 1])
    assert np.abs(box - truth).max() <= max(2, 0.015 * max(truth[2:] - truth[:2]))
    assert disc[top:bottom, left:right].sum() >= 0.98 * disc.sum()


def test_a_bright_grey_background_is_background(fundus):
    """Over-exposed: the frame around the retina is grey 60 and noisy."""
    noise = np.random.default_rng(0).normal(60, 2, (800, 1000, 3))
    noise[80:720, 200:840] += fundus
    box = cropping.crop_box(noise.clip(0, 255).astype(np.uint8))
    assert (
        np.abs(np.subtract(box, (206, 86, 834, 714))).max() <= 8
    )  # the phantom's retina is 0.98 of its 640 pixels


@pytest.mark.parametrize("fraction", [0, 0.1, 0.15])
def test_a_photograph_cropped_already_stays_whole(fundus, fraction):
    """The retina touches all edges; above and below it is cut, as most cameras do."""
    cut = round(640 * fraction)
    box = cropping.crop_box(fundus[cut : 640 - cut])
    assert (
        np.abs(
            np.subtract(box, (6, 6 if cut == 0 else 0, 634, 634 if cut == 0 else 640 - 2 * cut))
        ).max()
        <= 4
    )


def test_a_retina_that_fills_the_frame_stays_whole(fundus):
    """No background at all: what is darker than the rest, fovea and vessels, is no reason to cut."""
    left, top, right, bottom = cropping.crop_box(fundus[110:530, 110:530])
    assert (right - left) * (bottom - top) >= 0.98 * 420**2


@pytest.mark.parametrize("x, y", [(160, 30), (160, 210), (70, 120), (250, 120)])
def test_a_notch_in_the_rim_does_not_narrow_the_box(x, y):
    image, box = frame(noise=2, black=4)
    rows, columns = np.mgrid[:240, :320]
    image[np.hypot(columns - x, rows - y) <= 7] = 4
    assert np.abs(np.subtract(cropping.crop_box(image), box)).max() <= 2


def test_noise_alone_is_no_retina():
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    with pytest.raises(
        ValueError, match=r"no retina found: the largest region covers 0\.0% of the frame"
    ):
        cropping.crop_box(image)


# Where it lands


@given(
    st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(1, 3000), st.integers(1, 3000)),
    st.integers(16, 2048),
)
@settings(deadline=None, derandomize=True)
def test_the_placement_keeps_the_aspect_ratio_and_is_centred_on_the_canvas(box, size):
    left, top, wide, high = box
    x, y, width, height = cropping.placement((left, top, left + wide, top + high), size)
    assert max(width, height) == size and min(width, height) >= 1
    assert abs(width - size * wide / max(wide, high)) <= 0.51 or width == 1
    assert abs(height - size * high / max(wide, high)) <= 0.51 or height == 1
    for start, extent in ((x, width), (y, height)):
        assert start >= 0 and start + extent <= size and abs(2 * start + extent - size) <= 1


def test_a_disc_that_the_camera_cut_stays_a_disc():
    image, _ = frame(height=200, width=320, y=100, radius=140)
    small = cropping.cut(image, cropping.crop_box(image), 112)
    lit = small.max(axis=2) > 40
    assert not lit[:15].any() and not lit[-15:].any() and lit[20].any() and lit[-21].any()
    across, upright = lit[56].sum(), lit[:, 56].sum()
    assert across >= 110 and abs(upright / across - 200 / 281) < 0.03


@pytest.mark.parametrize("size", [16, 37, 64])
def test_no_single_lesion_pixel_is_lost(size):
    rng = np.random.default_rng(size)
    box = 13, 7, 311, 229
    for x, y, bit in zip(
        rng.integers(13, 311, 60), rng.integers(7, 229, 60), rng.integers(0, 8, 60), strict=True
    ):
        bits = np.zeros((240, 320), np.uint8)
        bits[y, x] = 1 << bit
        small = cropping.cut_mask(bits, box, size)
        assert set(np.unique(small)) == {0, 1 << bit}
        left, top, width, height = cropping.placement(box, size)
        expected = left + (x + 0.5 - 13) * width / 298, top + (y + 0.5 - 7) * height / 222
        assert np.abs(np.argwhere(small)[:, ::-1] + 0.5 - expected).max() <= 1


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK"])
def test_other_modes_are_read_as_rgb(mode, tmp_path):
    image = Image.new("RGB", (8, 8), (153, 153, 153)).convert(mode)  # of the palette, too
    image.save(tmp_path / "photograph.tiff")
    read = cropping.read_photograph(tmp_path / "photograph.tiff")
    assert read.shape == (8, 8, 3) and (abs(read.astype(int) - 153) <= 4).all()


def test_cmyk_jpegs_have_their_right_colours():
    """Stored as Adobe does, inverted: the retina is red, not cyan."""
    image, box = frame()
    read, found, _ = cropping.extract(
        encoded(image, mode="CMYK", quality=95), "photograph.jpeg", 64
    )
    expected = cropping.cut(image, box, 64)
    assert np.abs(np.subtract(found, box)).max() <= 2
    assert np.abs(read[20:44, 20:44].mean((0, 1)) - expected[20:44, 20:44].mean((0, 1))).max() < 3


def test_a_png_named_jpeg_is_read_for_what_it_is(tmp_path):
    image, _ = frame(seed=4, noise=3)
    record = prepared(tmp_path, encoded(image, "png"), size=48)
    file = np.asarray(Image.open(tmp_path / "out" / "images" / "bad.webp"))
    assert (
        "reason" not in record and (file == cropping.cut(image, cropping.crop_box(image), 48)).all()
    )


def test_a_colour_png_of_16_bits_keeps_its_upper_8(tmp_path):
    image, _ = frame(48, 64, 32, 24, 20)
    low = np.random.default_rng(0).integers(0, 256, image.shape)
    rows = (image * np.uint16(256) + low).astype(">u2").reshape(48, -1)
    (tmp_path / "deep.png").write_bytes(
        chunked(64, 48, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))
    )
    assert (cropping.read_photograph(tmp_path / "deep.png") == image).all()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("size", [32, 200])
def test_every_exif_orientation_gives_the_upright_photograph_and_box(fundus, orientation, size):
    """Size 32 is decoded at half its size, 200 whole; the disc is off the centre, the optic disc on its right."""
    upright = np.pad(fundus[::2, ::2], ((96, 64), (64, 256), (0, 0)))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    expected, wanted, _ = cropping.extract(
        encoded(upright, quality=98, subsampling=0), "upright.jpeg", size
    )
    data = encoded(stored, quality=98, subsampling=0, exif=exif)
    image, box, shape = cropping.extract(data, "turned.jpeg", size)
    assert shape == (640, 480)
    assert np.abs(np.subtract(box, (67, 99, 381, 413))).max() <= 5
    assert np.abs(np.subtract(box, wanted)).max() <= 2
    if box == wanted:
        assert psnr(image, expected) > 40
    assert psnr(image, expected) > 25 > psnr(image[::-1], expected)


@pytest.mark.parametrize(
    "format", [{"format": "png"}, {"format": "tiff"}, {"format": "webp", "lossless": True}]
)
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_to_every_pixel_once(orientation, format, tmp_path):
    upright, _ = frame(60, 90, 40, 25, 20, noise=9)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(np.ascontiguousarray(STORED[orientation](upright)), exif=exif, **format)
    (tmp_path / "turned").write_bytes(data)
    assert (cropping.read_photograph(tmp_path / "turned") == upright).all()
    whole, box, shape = cropping.extract(data, "turned", 90, crop=False)
    assert (whole[15:75] == upright).all() and box == [0, 0, 90, 60] and shape == (90, 60)


# No more is decoded than the result shows


@pytest.mark.parametrize("shape", [(2592, 1944), (2593, 1945)])
def test_a_reduced_decode_is_the_full_one_resampled(fundus, shape, monkeypatch):
    """Also where a side is no multiple of 8, and the last pixel that is decoded stands for a part of 8."""
    data, decode, decoded = encoded(full_size(fundus, *shape), quality=92), cropping._decoded, []
    monkeypatch.setattr(cropping, "_decoded", lambda *a: decoded.append(decode(*a)) or decoded[-1])
    full = np.asarray(decode(data, "full.jpeg")[0])
    for size, fraction in ((64, 8), (128, 8), (224, 4), (512, 2)):
        image, box, found = cropping.extract(data, "full.jpeg", size)
        assert found == shape and full.shape == (*shape[::-1], 3)
        assert (
            decoded.pop()[0].size == tuple(-(-side // fraction) for side in shape) and not decoded
        )
        assert psnr(image, cropping.cut(full, box, size)) > 45
        centre = shape[0] // 2
        truth = centre - 953, 19, centre + 953, 1925  # 0.98 of 1,944 pixels
        assert np.abs(np.subtract(box, truth)).max() <= 0.01 * 1944


def test_a_small_disc_is_decoded_again_and_finer(fundus, monkeypatch):
    data, decode, decoded = (
        encoded(full_size(fundus, diameter=700, left=300), quality=92),
        cropping._decoded,
        [],
    )
    monkeypatch.setattr(cropping, "_decoded", lambda *a: decoded.append(decode(*a)) or decoded[-1])
    image, box, _ = cropping.extract(data, "small.jpeg", 256)
    assert [first.size for first, _ in decoded] == [(648, 486), (2592, 1944)]
    assert np.abs(np.subtract(box, (307, 629, 993, 1315))).max() <= 8
    full, coarse = np.asarray(decode(data, "small.jpeg")[0]), np.asarray(decoded[0][0])
    expected = cropping.cut(full, box, 256)
    assert (
        psnr(image, expected)
        > 45
        > 40
        > psnr(cropping.cut(coarse, [end / 4 for end in box], 256), expected)
    )


def test_a_whole_frame_is_taken_as_it_is(fundus):
    image = full_size(fundus, 640, 480, 300)
    whole, box, shape = cropping.extract(encoded(image, "png"), "whole.png", 160, crop=False)
    assert box == [0, 0, 640, 480] and shape == (640, 480)
    expected = np.asarray(Image.fromarray(image).resize((160, 120), Image.Resampling.LANCZOS))
    assert (whole[20:140] == expected).all() and not whole[:20].any() and not whole[140:].any()


# Contrast and files


@pytest.mark.parametrize("size", [64, 301, 512])
def test_graham_is_what_the_winner_wrote_down(fundus, size):
    """`addWeighted(image, 4, GaussianBlur(image, scale / 30), -4, 128)`, grey beyond 0.9 of the radius `scale`.

    Pillow's Gaussian is three box filters, SciPy's the sampled function: their averages differ by under a level.
    """
    image = np.asarray(Image.fromarray(fundus).resize((size, size), Image.Resampling.LANCZOS))
    radius = size / 2
    average = gaussian_filter(image.astype(float), (radius / 30, radius / 30, 0))
    literal = (4.0 * image - 4 * average + 128).clip(0, 255)
    rows, columns = np.mgrid[:size, :size] + 0.5 - radius
    distance = np.sqrt(rows**2 + columns**2) / radius
    result = cropping.graham(image)
    assert result.dtype == np.uint8 and (result[distance > 0.9] == 128).all()
    difference = np.abs(result - literal)[distance <= 0.9]
    assert difference.mean() < 2.5 and np.percentile(difference, 99) <= 8
    assert result[distance <= 0.9].std() > 8  # of an image with structure; 128 everywhere is not it


def test_contrast_is_taken_off_before_writing(tmp_path, fundus):
    data = encoded(fundus, "png")
    prepared(tmp_path, data, size=64, contrast="graham")
    file = np.asarray(Image.open(tmp_path / "out" / "images" / "bad.webp"))
    assert (file == cropping.graham(cropping.extract(data, "bad.jpeg", 64)[0])).all()


def test_webp_keeps_every_level_and_jpeg_nearly(tmp_path, fundus):
    data = encoded(fundus, "png")
    expected, box, _ = cropping.extract(data, "bad.jpeg", 128)
    records = [prepared(tmp_path, data, size=128, format=format) for format in ("webp", "jpeg")]
    webp, jpeg = (
        Image.open(tmp_path / "out" / "images" / f"bad.{format}") for format in ("webp", "jpeg")
    )
    assert (np.asarray(webp) == expected).all() and webp.format == "WEBP"
    assert (
        JpegImagePlugin.get_sampling(jpeg) == 0 and psnr(np.asarray(jpeg), expected) > 35
    )  # 0: 4:4:4
    assert records[0] == records[1] and records[0]["box"] == box
    assert records[0]["sha256"] == hashlib.sha256(data).hexdigest()
    levels = expected.reshape(-1, 3).astype(object)  # Python's integers, exact
    assert records[0]["sums"] == levels.sum(axis=0).tolist()
    assert records[0]["squares"] == (levels**2).sum(axis=0).tolist()


def test_a_photograph_gets_its_name_when_it_is_whole(tmp_path, fundus, monkeypatch):
    def fails(path, write):
        write(path.with_name("half.part"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths, "write", fails)
    with pytest.raises(OSError, match="No space left"):
        prepared(tmp_path, encoded(fundus, "png"))
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["half.part"]


# The zoo


def cut_off(data, share=0.6):
    return data[: int(share * len(data))]


def blanked(data):
    return cut_off(data, 0.5) + bytes(len(data) - len(data) // 2)


def flipped(data, at):
    """One byte is another."""
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


DISC = frame(noise=3, seed=1)[0]
NOISE = np.random.default_rng(0).bytes(4000)
UNKNOWN = "unreadable: cannot identify image file: bad.jpeg"
TRUNCATED = r"truncated: image file is truncated.*: bad.jpeg"
ZOO = {
    "a JPEG cut off": (lambda: cut_off(encoded(DISC)), TRUNCATED),
    "a JPEG without its last bytes": (lambda: encoded(DISC)[:-9], TRUNCATED),
    "a progressive JPEG cut off": (lambda: cut_off(encoded(DISC, progressive=True)), TRUNCATED),
    "a JPEG's header alone": (lambda: encoded(DISC)[:400], "(truncated|unreadable): .*: bad.jpeg"),
    "a PNG cut off": (lambda: cut_off(encoded(DISC, "png")), TRUNCATED),
    "a PNG with one wrong byte": (lambda: flipped(encoded(DISC, "png"), 20_000), "unreadable: .*: bad.jpeg"),
    "a GIF cut off": (lambda: cut_off(encoded(DISC, "gif")), TRUNCATED),
    "a WebP cut off": (lambda: cut_off(encoded(DISC, "webp")), "unreadable: .*: bad.jpeg"),
    "a TIFF cut off": (lambda: cut_off(encoded(DISC, "tiff")), TRUNCATED),
    "an AVIF, its second half zeros": (lambda: blanked(encoded(DISC, "avif")), "unreadable: .*: bad.jpeg"),
    "a web page": (lambda: b"<!DOCTYPE html><html><body>403: accept the rules</body></html>", UNKNOWN),
    "a text": (lambda: b"not a photograph", UNKNOWN),
    "an empty file": (lambda: b"", UNKNOWN),
    "zeros, then noise": (lambda: bytes(4000) + NOISE, UNKNOWN),
    "noise behind a JPEG's first bytes": (lambda: encoded(DISC)[:20] + NOISE, "unreadable: .*: bad.jpeg"),
    "16-bit grey": (lambda: encoded(DISC[..., 0].astype(np.uint16) * 256, "png"), "unreadable: mode I;16 has more"),
    "32-bit grey": (lambda: encoded(DISC[..., 0].astype(np.int32) << 16, "tiff"), "unreadable: mode I has more than 8"),
    "floating point": (lambda: encoded(DISC[..., 0].astype(np.float32), "tiff"), "unreadable: mode F has more than 8"),
    "a grey JPEG": (lambda: encoded(DISC[..., 0]), "unreadable: mode L has no colour: bad.jpeg"),
    "grey and transparent": (lambda: encoded(DISC[..., 0], "png", "LA"), "unreadable: mode LA has no colour"),
    "black and white": (lambda: encoded(DISC, "png", "1"), "unreadable: mode 1 has no colour: bad.jpeg"),
    "a black frame": (lambda: encoded(0 * DISC), r"no retina found: the frame varies by 0\.0 of 255 levels"),
    "a white frame": (lambda: encoded(0 * DISC + 255), r"no retina found: the frame varies by 0\.0 of 255 levels"),
    "a speck of light": (
        lambda: encoded(frame(radius=25, x=30, y=40)[0]),
        r"no retina found: .* covers \d\.\d% of the frame, 5% needed",
    ),
    "a tiny retina": (lambda: encoded(frame(24, 24, 12, 12, 5)[0], "png"), r"too small: a retina of 1\d x 1\d pixels"),
    "a decompression bomb": (
        lambda: chunked(20_000, 20_000, 8, 2, bytes(60_000 * 20_000 // 1000)),
        "decompression bomb: .*400000000 pixels.*, more than 89,478,485",
    ),
    "a smaller bomb": (
        lambda: chunked(10_000, 10_000, 8, 2, bytes(30_001 * 10)),
        "decompression bomb: 10000 x 10000 pixels, more than 89,478,485",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ZOO)
def test_a_bad_file_is_rejected_with_its_reason(kind, tmp_path):
    if "AVIF" in kind and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    make, reason = ZOO[kind]
    data = make()
    record = prepared(tmp_path, data)
    assert re.match(reason, record.pop("reason"))
    assert record == {"image": "bad", "sha256": hashlib.sha256(data).hexdigest()}
    assert not [*(tmp_path / "out" / "images").iterdir()]


def test_a_photograph_that_cannot_be_opened_is_rejected_with_what_the_system_says(tmp_path):
    (tmp_path / "folder.jpeg").mkdir()
    for name, said in (("folder.jpeg", "Is a directory"), ("gone.jpeg", "No such file")):
        record = cropping.prepare_photograph(
            "x", tmp_path / name, None, tmp_path, 32, True, "none", "webp"
        )
        assert re.match(f"unreadable: .*{said}", record["reason"])


BITS = np.zeros(DISC.shape[:2], np.uint8)
MASKS = {
    "a mask of text": (lambda: b"no mask", "mask unreadable: cannot identify"),
    "a mask cut off": (
        lambda: cut_off(encoded(BITS, "png")),
        "mask unreadable: image file is truncated.*: mask.png",
    ),
    "a mask of another size": (
        lambda: encoded(BITS[1:], "png"),
        r"mask of shape \(239, 320\) for a photograph of shape",
    ),
    "a colour mask": (
        lambda: encoded(DISC, "png"),
        r"mask of shape \(240, 320, 3\) for a photograph of shape",
    ),
    "a mask of 16 bits": (
        lambda: encoded(BITS.astype(np.uint16), "png"),
        "mask of uint16, not of 8 bits: mask.png",
    ),
    "a mask in floating point": (
        lambda: encoded(BITS.astype("f"), "tiff"),
        "mask of float32, not of 8 bits: mask.png",
    ),
    "a mask that is a bomb": (
        lambda: chunked(20_000, 20_000, 8, 0, bytes(20_000)),
        "mask unreadable: .* pixels",
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_photograph_with_a_bad_mask_is_rejected_with_the_reason(kind, tmp_path):
    make, reason = MASKS[kind]
    assert re.match(reason, prepared(tmp_path, encoded(DISC), make())["reason"])
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


SMALL = np.ascontiguousarray(DISC[::3, ::3])
EXIF = Image.Exif()
EXIF[ORIENTATION] = 6
FILES = [
    encoded(SMALL, exif=EXIF),
    encoded(SMALL, progressive=True),
    encoded(SMALL, mode="CMYK"),
    encoded(SMALL, "png", exif=EXIF),
    encoded(SMALL, "png", "P"),
    encoded(SMALL, "tiff"),
    encoded(SMALL, "tiff", compression="tiff_lzw"),
    encoded(SMALL, "webp", exif=EXIF),
    encoded(SMALL, "webp", lossless=True),
    encoded(SMALL, "gif"),
    *([encoded(SMALL, "avif")] if features.check("avif") else []),
]


@given(
    st.sampled_from(FILES),
    st.randoms(use_true_random=False),
    st.sampled_from(["cut", "changed", "lost"]),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_is_wrong_with_a_file_it_is_prepared_or_rejected(data, random, damage):
    damaged = bytearray(data)
    at = random.randrange(len(data))
    if damage == "cut":
        del damaged[at:]
    elif damage == "lost":
        del damaged[at : at + random.randrange(1, 40)]
    else:
        for _ in range(random.randrange(1, 12)):
            damaged[random.randrange(random.choice((400, len(data))))] = random.randrange(256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image, box, (width, height) = cropping.extract(bytes(damaged), "damaged", 32)
        except ValueError as error:
            assert re.match(
                "unreadable: |truncated: |decompression bomb: |no retina found: |too small: ",
                str(error),
            )
        else:
            assert (
                image.shape == (32, 32, 3)
                and 0 <= box[0] < box[2] <= width
                and 0 <= box[1] < box[3] <= height
            )


# Real photographs


@pytest.mark.slow
def test_no_crop_cuts_more_than_a_hundredth_of_a_real_retina():
    """IDRiD's photographs of 4288 x 2848 pixels: outside the retina they are below level 12 (of JPEG's ringing, 20)."""
    photographs = sorted(paths.dataset("idrid").rglob("IDRiD_[0-9][0-9].jpg"))
    if not photographs:
        pytest.skip("no idrid in COMPANION_DATASETS or data/raw")
    lost = {}
    for path in photographs:
        data = path.read_bytes()
        _, (left, top, right, bottom), shape = cropping.extract(data, path.name, 512)
        bright = np.asarray(Image.open(path).getchannel("R")) > 20
        lost[path.name] = 1 - bright[top:bottom, left:right].sum() / bright.sum()
        assert shape == bright.shape[::-1] and bright.mean() > 0.5
        assert (right - left) * (
            bottom - top
        ) < 0.9 * bright.size  # a crop that cuts nothing would not show it
    assert len(lost) >= 54 and max(lost.values()) <= 0.01, (
        f"most lost: {max(lost.items(), key=lambda item: item[1])}"
    )


@pytest.mark.parametrize("contrast", ["none", "graham"])
def test_a_frame_taken_whole_that_hardly_varies_is_no_retina(contrast):
    flat = np.random.default_rng(0).integers(40, 46, (90, 90, 3), dtype=np.uint8)
    with pytest.raises(
        ValueError, match=r"no retina found: the frame varies by \d+ of 255 levels, 12 needed"
    ):
        cropping.extract(encoded(flat, "png"), "flat.png", 64, crop=False, contrast=contrast)
