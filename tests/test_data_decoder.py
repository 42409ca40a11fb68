"""The one decoder: the pixels of every format and mode, what is refused, and what damaged and crafted files cost."""

import ast
import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mindcv_reparam.data import decoder as module
from mindcv_reparam.data.decoder import MAX_PIXELS, MAX_SIDE, Decoder, UnreadableImage
from mindcv_reparam.data.image_kinds import FOREIGN_SUFFIXES, KINDS, SUFFIXES

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data, **settings):
    pixels = Decoder(**settings).pixels(data)
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    return pixels


def png(width, height, depth, colour, rows, *chunks):
    """A PNG with the header and chunks given, of raw rows."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*one) for one in chunks), chunk(b"IDAT", content), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_saved(kind):
    pixels = RNG.integers(0, 256, (7, 9, 3), np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(saved(Image.fromarray(pixels), kind, **options)), pixels)


def test_avif_and_gif_come_near():
    pixels = np.asarray(Image.fromarray(RNG.integers(0, 256, (4, 5, 3), np.uint8)).resize((40, 32)))
    near = decode(saved(Image.fromarray(pixels), "AVIF", quality=95)).astype(int)
    assert np.abs(near - pixels).mean() < 3
    few = Image.fromarray(pixels).quantize(200)
    np.testing.assert_array_equal(decode(saved(few, "GIF")), np.asarray(few.convert("RGB")))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "P"])
def test_tiff_in_every_mode_and_compression(mode, compression):
    image = Image.fromarray(RNG.integers(0, 256, (13, 21, 3), np.uint8)).convert(mode)
    data = saved(image, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode(data), np.asarray(image.convert("RGB")))


def test_greys_and_bits_are_repeated_in_three_channels():
    grey = RNG.integers(0, 256, (5, 6), np.uint8)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=2))
    bits = decode(saved(Image.fromarray(grey > 127), "PNG"))
    np.testing.assert_array_equal(bits, np.stack([(grey > 127) * 255] * 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_greys_of_16_bits_are_scaled_by_their_range(kind):
    grey = np.array([[0, 128, 257, 1000], [20_000, 32_768, 65_000, 65_535]], np.uint16)
    image = Image.fromarray(grey.astype(np.int32)) if kind == "PPM" else Image.fromarray(grey)
    expected = np.stack([np.round(grey / 257)] * 3, axis=2)
    assert expected[..., 0].tolist() == [[0, 0, 1, 4], [78, 128, 253, 255]]
    np.testing.assert_array_equal(decode(saved(image, kind)), expected)


def test_16_bits_of_other_byte_order_of_which_white_is_zero_and_of_12_bits(tmp_path):
    grey = np.array([[0, 257, 25_700, 65_535]], np.uint16)
    swapped = Image.frombytes("I;16B", (4, 1), grey.byteswap().tobytes())
    assert decode(saved(swapped, "TIFF"))[0, :, 0].tolist() == [0, 1, 100, 255]
    white_is_zero = saved(Image.fromarray(grey), "TIFF", tiffinfo={262: 0})
    assert decode(white_is_zero)[0, :, 0].tolist() == [255, 254, 155, 0]


def test_16_bits_of_colour_keep_their_upper_halves():
    data = png(2, 1, 16, 2, [struct.pack(">6H", 65_535, 256, 0, 32_768, 513, 255)])
    assert decode(data).tolist() == [[[255, 1, 0], [128, 2, 0]]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_of_unknown_range_are_refused(dtype):
    data = saved(Image.fromarray(RNG.random((4, 4)).astype(dtype)), "TIFF")
    with pytest.raises(UnreadableImage, match="numbers whose range the file does not tell"):
        decode(data)


# transparency


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP")])
def test_alpha_lets_the_background_through(mode, kind, background):
    values = RNG.integers(0, 256, (6, 8, len(mode)), np.uint8)
    values[0, 0, -1], values[0, 1, -1] = 0, 255
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = decode(saved(Image.fromarray(values, mode), kind, **options), background=background)
    colours = np.broadcast_to(values[..., :1], (6, 8, 3)) if mode == "LA" else values[..., :3]
    alpha = values[..., -1:] / 255
    expected = np.floor(colours * alpha + np.array(background) * (1 - alpha) + 0.5)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels[0, 0].tolist() == list(background)
    assert pixels[0, 1].tolist() == colours[0, 1].tolist()


def test_transparent_entries_of_palettes():
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata([0, 1, 2])
    one = saved(image, "PNG", transparency=1)
    assert decode(one).tolist() == [[[200, 0, 0], [255, 255, 255], [0, 0, 200]]]
    several = saved(image, "PNG", transparency=bytes([255, 0, 51]))
    assert decode(several, background=(0, 100, 0)).tolist() == [[[200, 0, 0], [0, 100, 0], [0, 80, 40]]]
    assert decode(saved(image, "GIF", transparency=2)).tolist() == [[[200, 0, 0], [0, 200, 0], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "expected"),
    [
        (8, 2, bytes([1, 2, 3, 4, 5, 6]), (1, 2, 3), [[9, 9, 9], [4, 5, 6]]),
        (16, 2, struct.pack(">6H", 257, 514, 771, 65_535, 0, 0), (257, 514, 771), [[9, 9, 9], [255, 0, 0]]),
        (8, 0, bytes([7, 8]), (8,), [[7, 7, 7], [9, 9, 9]]),
        (4, 0, bytes([0x3F]), (3,), [[9, 9, 9], [255, 255, 255]]),
        (2, 0, bytes([0b01100000]), (2,), [[85, 85, 85], [9, 9, 9]]),
        (1, 0, bytes([0b10000000]), (1,), [[9, 9, 9], [0, 0, 0]]),
        (16, 0, struct.pack(">2H", 300, 301), (301,), [[1, 1, 1], [9, 9, 9]]),
    ],
)
def test_the_transparent_colour_of_a_png_of_any_depth(depth, colour, row, key, expected):
    data = png(2, 1, depth, colour, [row], (b"tRNS", struct.pack(f">{len(key)}H", *key)))
    assert decode(data, background=(9, 9, 9)).tolist() == [expected]


def test_of_animations_the_first_frame():
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue", "lime")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(data)[0, 0].tolist() == [255, 0, 0], kind


# orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_followed_where_asked_for(kind, orientation):
    image = Image.fromarray(RNG.integers(0, 256, (2, 3, 3), np.uint8)).resize((24, 16), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as opened:
        lying, upright = np.asarray(opened.convert("RGB")), np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_array_equal(decode(data), lying)
    np.testing.assert_array_equal(decode(data, exif_orientation=True), upright)
    assert (lying.shape == upright.shape) == (orientation < 5)


# limits


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 89_000_000), "1 x 89000000 pixels: a side may have 65,535"),
        ((70_000, 1), "70000 x 1 pixels: a side may have 65,535"),
        ((11_000, 10_000), "11000 x 10000 pixels: an image may have 108,000,000"),
        ((10_000, 10_000), "damaged: .* bytes cannot hold 10000 x 10000 pixels"),
    ],
)
def test_pngs_that_claim_too_much_are_refused_by_their_header(size, message):
    with pytest.raises(UnreadableImage, match=message):
        decode(png(*size, 8, 2, []))


def jpeg_of(width, height, progressive=False):
    """A small JPEG whose header claims another size."""
    data = bytearray(saved(Image.new("RGB", (16, 16)), "JPEG", progressive=progressive))
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_that_claim_too_much_are_refused_by_their_header(progressive):
    with pytest.raises(UnreadableImage, match="65500 x 6000 pixels: an image may have 108,000,000"):
        decode(jpeg_of(65_500, 6_000, progressive))
    with pytest.raises(UnreadableImage, match=r"damaged: .* bytes cannot hold 9000 x 9000 pixels"):
        decode(jpeg_of(9_000, 9_000, progressive))


def test_a_progressive_jpeg_of_endless_scans_is_refused():
    data = saved(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(UnreadableImage, match="a JPEG of more than 200 scans"):
        decode(data[:-2] + data[scan:-2] * 300 + data[-2:])


def test_tiles_of_a_tiff_count():
    data = saved(Image.new("L", (64, 64)), "TIFF", compression="tiff_deflate", tiffinfo={266: 1})
    for before, after in (((278, 3, 1, 64), (322, 3, 1, 60_000)), ((266, 3, 1, 1), (323, 3, 1, 60_000))):
        entry = struct.pack("<HHIHH", *before, 0)
        assert data.count(entry) == 1
        data = data.replace(entry, struct.pack("<HHIHH", *after, 0))
    with pytest.raises(UnreadableImage, match="64 x 64 pixels of this format would take 13,733 MiB"):
        decode(data)


def test_the_largest_pictures_of_cameras_are_read():
    width, height = 12_000, 9_000
    assert width * height == MAX_PIXELS
    data = saved(Image.new("L", (width, height), 7), "PNG", compress_level=1)
    assert decode(data)[::1000, ::1000].min() == 7
    assert MAX_SIDE == 65_535


def test_large_pictures_wait_for_one_another(monkeypatch):
    monkeypatch.setattr(module, "_ROOM", module._Room(100 * 2**20))
    data, small = (saved(Image.new("RGB", size), "PNG") for size in ((3000, 3000), (20, 20)))  # 63 MB of memory
    entered, release, order = threading.Event(), threading.Event(), []

    def hold():
        with Decoder().image(data):
            entered.set()
            release.wait(10)
            order.append("first")

    threads = [threading.Thread(target=hold), threading.Thread(target=lambda: order.append(decode(data).shape))]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    assert decode(small).shape == (20, 20, 3)
    time.sleep(0.3)
    assert order == []
    release.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", (3000, 3000, 3)]


# what is no image


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image, or a damaged one"),
        (b"hello", "not an image, or a damaged one"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "PostScript files are not read: convert",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"HEIF \(.heic\) files are not read"),
        (b"\0\0\x01\0\1\0", "ICO files are not read"),
    ],
)
def test_other_files_are_told_by_their_content(tmp_path, data, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(UnreadableImage, match=message) as raised:
            Decoder().pixels(source)
        assert "BytesIO" not in str(raised.value)


def test_postscript_starts_no_program(tmp_path):
    """Pillow's plugin for EPS runs Ghostscript; a program of its name that leaves a mark shows that nobody does."""
    mark, program = tmp_path / "mark", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.jpg").write_bytes(eps)
    code = f"""
from mindcv_reparam.data.decoder import *
try:
    Decoder().pixels({str(tmp_path / "a.jpg")!r})
except UnreadableImage as error:
    print(error)
"""
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.stdout == "PostScript files are not read: convert it to PNG or JPEG\n", child.stderr
    assert not mark.exists()


def test_pipes_folders_and_lost_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, message in (("pipe.jpg", "no regular file"), (".", "no regular file"), ("lost.jpg", "No such file")):
        with pytest.raises(UnreadableImage, match=message):
            Decoder().pixels(tmp_path / name)
    with pytest.raises(UnreadableImage, match="no regular file"):
        Decoder().pixels("/dev/zero")


def test_no_warning_of_pillow_reaches_the_terminal(tmp_path):
    """Palettes with bytes of transparency, 96 million pixels, damaged EXIF."""
    image = Image.new("P", (8, 8))
    image.putpalette(list(range(48)))
    image.save(tmp_path / "0.png", transparency=bytes([1, 2, 3]))
    Image.new("1", (12_000, 8_000)).save(tmp_path / "1.png")
    Image.new("1", (12_000, 8_000)).save(tmp_path / "2.tif", compression="group4")
    Image.new("RGB", (8, 8)).save(tmp_path / "3.webp", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    code = f"""
from mindcv_reparam.data.decoder import *
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    print(Decoder(exif_orientation=True).pixels(path).shape)
"""
    child = subprocess.run([sys.executable, "-W", "default", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert child.stdout.split("\n")[:3] == ["(8, 8, 3)", "(8000, 12000, 3)", "(8000, 12000, 3)"], child.stderr
    assert child.stderr == ""


# one place, and what it stands


def test_image_files_are_decoded_in_one_place():
    """No other module opens an image file: neither Pillow's nor simplejpeg's function occurs."""
    found = set()
    for path in (ROOT / "mindcv_reparam").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            opens = isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value) == "Image"
            if opens or "simplejpeg" in names or any(name.endswith("ImagePlugin") for name in names):
                found.add(path.name)
    assert found == {"decoder.py", "image_kinds.py"}


def test_suffixes_are_those_that_pillow_writes_here():
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"} <= SUFFIXES
    assert {".heic", ".jp2", ".eps"} <= FOREIGN_SUFFIXES
    assert not SUFFIXES & FOREIGN_SUFFIXES


FUZZ = """
import io, resource, sys
import numpy as np
from PIL import Image
from mindcv_reparam.data.decoder import Decoder, UnreadableImage

resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
rng, decoder = np.random.default_rng(1), Decoder(exif_orientation=True)
image = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).resize((60, 50))
exif = Image.Exif()
exif[0x0112] = 6
files = []
for kind, options in (
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("GIF", {}), ("PPM", {}), ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("WEBP", {}), ("AVIF", {}),
):
    file = io.BytesIO()
    image.save(file, kind, **({} if kind in ("BMP", "GIF", "PPM") else {"exif": exif}), **options)
    files.append(file.getvalue())
for mode in ("CMYK", "L"):
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG")
    files.append(file.getvalue())
pictures = refused = 0
for file in files:
    for turn in range(COUNT):
        data = bytearray(file)
        for _ in range(rng.integers(1, 9)):
            # headers are where it hurts
            place = int(rng.integers(len(data) if turn % 2 else min(len(data), 200)))
            data[place] = rng.integers(256)
        if turn % 5 == 0:
            data = data[: rng.integers(len(data))]
        try:
            pixels = decoder.pixels(bytes(data))
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            pictures += 1
        except UnreadableImage as error:
            assert "BytesIO" not in str(error) and chr(10) not in str(error)
            refused += 1
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(pictures, refused, peak // 1024)
"""


@pytest.mark.slow
def test_altered_bytes_give_a_picture_or_one_class_of_error_in_bounded_memory():
    code = FUZZ.replace("COUNT", "300")
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    pictures, refused, mebibytes = map(int, child.stdout.split())
    assert pictures + refused == 13 * 300
    assert min(pictures, refused) > 300
    assert mebibytes < 1024


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "progressive JPEG", "LZW TIFF", "RGBA PNG"])
def test_decoding_takes_no_more_memory_than_is_counted(kind, tmp_path):
    """12 million pixels of noise that compresses a little, in a process of its own: its growth in bytes a pixel."""
    width, height = 4000, 3000
    tile = RNG.integers(0, 64, (100, 100, 4 if kind == "RGBA PNG" else 3), np.uint8)
    image = Image.fromarray(np.tile(tile, (height // 100, width // 100, 1)))
    options = {
        "progressive JPEG": {"progressive": True, "subsampling": 0},
        "LZW TIFF": {"compression": "tiff_lzw"},
        "AVIF": {"speed": 10},
        "PNG": {"compress_level": 1},
        "RGBA PNG": {"compress_level": 1},
    }.get(kind, {})
    path = tmp_path / "a"
    image.save(path, kind.split()[-1], **options)
    code = f"""
from mindcv_reparam.data import decoder
rooms, room = [], decoder._ROOM.take
decoder._ROOM.take = lambda size: rooms.append(size) or room(size)
decoder._UNCOUNTED = 0
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = peak()
with decoder.Decoder().image({str(path)!r}) as image:
    pass
print(peak() - before, rooms[-1])
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    taken, counted = map(int, child.stdout.split())
    assert 0.3 * counted < taken < counted + 20e6, f"{taken / 12e6:.1f} bytes a pixel, {counted / 12e6:.1f} counted"
