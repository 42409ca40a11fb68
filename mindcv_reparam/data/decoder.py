"""The one decoder of image files: bytes or a path → RGB pixels, for training, validation, export, infer and serve.

What a file is, its first bytes tell; only the formats of KINDS are read, by the code of that format alone. Sizes are
checked from the header, before memory is taken, and large pictures of one process wait for one another.
"""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin

try:
    import simplejpeg
except ImportError:  # it saves copies; a bundle is verified, run and served without it
    simplejpeg = None

from mindcv_reparam.config import Config
from mindcv_reparam.data.image_kinds import KINDS, Kind, kind_of, name_of_foreign

MAX_SIDE = 65_535  # pixels; what JPEG and an Ascend's decoder can have at most
MAX_PIXELS = 108_000_000  # photographs of medium format have 102 million, those of telephones up to 12,000 × 9,000
MAX_MEMORY = 2**30  # bytes that decoding may take in a process: the file, what the format needs, and the pixels
_UNCOUNTED = 2**24  # bytes; so small a decoding waits for no other
_STRIP = 2**18  # pixels converted together
_MAX_SCANS = 200  # of a progressive JPEG; encoders write about ten
_JPEG_ALIKE = frozenset({"YCbCr", "Gray", "RGB"})  # colour spaces that simplejpeg decodes to the pixels of Pillow
_HEADER = 256  # bytes that tell the format
_DAMAGED = "not an image, or a damaged one"
_UNKNOWN_RANGE = "its pixels are numbers whose range the file does not tell: convert it to 8 or 16 bits per channel"
_TIFF_TAGS = {"photometric": 262, "rows": 278, "tile_height": 323, "tile_width": 322, "bits": 258}

# Pillow warns of what is odd in a file. Filters are the whole process's, and images are decoded in several threads: one
# for good is the only safe one.
warnings.filterwarnings("ignore", module=r"PIL\.")


Source = bytes | str | Path | Image.Image | np.ndarray  # of one image


class UnreadableImage(Exception):
    """An image that cannot be decoded, or not safely; the message says why, not which."""


@dataclass(frozen=True)
class Decoder:
    """Turns image files into RGB pixels.

    Attributes:
        background: colour that shows through transparent pixels, RGB, 0–255.
        exif_orientation: turn and mirror pictures as the EXIF of their camera says. The references' pipelines do not.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    exif_orientation: bool = False

    @classmethod
    def of(cls, config: Config) -> "Decoder":
        return cls(config.image_background, config.exif_orientation)

    def pixels(self, source: Source) -> np.ndarray:
        """An image file, its bytes or an image in memory as uint8 (H, W, 3), a writable array of its own.

        JPEGs are decoded to the pixels of Pillow, by the same library but without its copies. Those of printers (CMYK)
        and those that the library warns of are left to Pillow.

        Raises:
            UnreadableImage: it cannot be read, or is larger than the limits.
        """
        with _Claim() as claim:
            return self._load(source, claim)

    def size(self, path: str | Path) -> tuple[int, int]:
        """Width and height of what :meth:`pixels` gives, from the header. Raises UnreadableImage."""
        try:
            with open(path, "rb") as file:
                kind = kind_of(file.read(_HEADER))
                if kind is None:
                    raise UnreadableImage(_DAMAGED)
                file.seek(0)
                with kind.plugin(file) as image:
                    turned = self.exif_orientation and _orientation(image) > 4
                    return image.size[::-1] if turned else image.size
        except UnreadableImage:
            raise
        except Exception as error:  # see _load
            raise UnreadableImage(getattr(error, "strerror", None) or _DAMAGED) from error

    @contextlib.contextmanager
    def image(self, source: Source) -> Iterator[Image.Image]:
        """:meth:`pixels` as a Pillow image, for the body of ``with``; meanwhile other large ones wait."""
        with _Claim() as claim:
            yield Image.fromarray(self._load(source, claim))

    def _load(self, source: Source, claim: "_Claim") -> np.ndarray:
        try:
            if isinstance(source, Image.Image | np.ndarray):
                return self._in_memory(source)
            data = source if isinstance(source, bytes) else _read(source)
            kind = kind_of(data)
            if kind is None:
                foreign = name_of_foreign(data)
                raise UnreadableImage(
                    f"{foreign} files are not read: convert it to PNG or JPEG" if foreign else _DAMAGED
                )
            pixels = self._of_jpeg(data, claim) if kind is KINDS["JPEG"] else None
            return self._by_pillow(kind, data, claim) if pixels is None else pixels
        except UnreadableImage:
            raise
        except MemoryError:
            raise UnreadableImage("there is not memory enough to decode it") from None
        except Exception as error:  # Pillow's decoders raise almost any exception on a damaged file
            unreachable = error.strerror if isinstance(error, OSError) else None
            raise UnreadableImage(unreachable or _DAMAGED) from error

    def _in_memory(self, source: Image.Image | np.ndarray) -> np.ndarray:
        """A Pillow image, whose file need not be read yet, or an array, as if it came from a file without loss."""
        if isinstance(source, np.ndarray):
            channels = source.shape[2:] if source.ndim in (2, 3) else None
            if source.dtype != np.uint8 or channels not in ((), (3,), (4,)):
                raise UnreadableImage(
                    f"an array of {source.dtype} {list(source.shape)} is no image: uint8 (H, W, 3), (H, W) or (H, W, 4)"
                )
            source = Image.fromarray(source)
        check_size(*source.size)
        look = _Look.of(source, self.background)  # before its pixels are loaded
        pixels = look.pixels(source.copy())
        return _turned(pixels, _orientation(source)) if self.exif_orientation else pixels

    def _of_jpeg(self, data: bytes, claim: "_Claim") -> np.ndarray | None:
        """None for what Pillow has to decode, or to refuse."""
        if simplejpeg is None:
            return None
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space not in _JPEG_ALIKE:
                return None
            claim.take(_needed(KINDS["JPEG"], data, width, height, _jpeg_bytes_per_pixel(data)))
            pixels = simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            return None
        return self._upright(pixels, data) if self.exif_orientation else pixels

    def _by_pillow(self, kind: Kind, data: bytes, claim: "_Claim") -> np.ndarray:
        with kind.plugin(io.BytesIO(data)) as image:
            bytes_per_pixel = kind.bytes_per_pixel
            if kind is KINDS["JPEG"]:
                bytes_per_pixel = _jpeg_bytes_per_pixel(data)
            elif isinstance(image, TiffImagePlugin.TiffImageFile):
                bytes_per_pixel += _tiff_buffer(image) / (image.width * image.height)
            claim.take(_needed(kind, data, *image.size, bytes_per_pixel))
            look = _Look.of(image, self.background)
            image.load()
            pixels = look.pixels(image)
            return _turned(pixels, _orientation(image)) if self.exif_orientation else pixels

    @staticmethod
    def _upright(pixels: np.ndarray, data: bytes) -> np.ndarray:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            return _turned(pixels, _orientation(image))


@dataclass(frozen=True)
class _Look:
    """How the values of a picture are to be seen.

    Attributes:
        background: behind transparent pixels.
        key: the value or colour that is transparent, in a picture without an alpha channel or palette.
        largest: the value of white in 16-bit greys; None where nothing tells.
        inverted: greys of 16 bits count from white.
    """

    background: tuple[int, int, int]
    key: int | tuple[int, int, int] | None
    largest: int | None
    inverted: bool

    @classmethod
    def of(cls, image: Image.Image, background: tuple[int, int, int]) -> "_Look":
        """That of a picture before its pixels are loaded."""
        key = None if image.mode == "P" else image.info.get("transparency")
        tile = getattr(image, "tile", None)  # of a file that is not loaded yet
        layout = tile[0].args if tile else None
        layout = layout if isinstance(layout, str) else ""
        if layout in ("L;2", "L;4"):  # Pillow spreads the pixels over 0–255, but not their key
            key = None if key is None else key * 255 // (2 ** int(layout[-1]) - 1)
        elif layout == "RGB;16B":  # and keeps the upper halves
            key = None if key is None else tuple(value >> 8 for value in key)
        largest, inverted = None, False
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            largest = 2 ** image.tag_v2.get(_TIFF_TAGS["bits"], (1,))[0] - 1
            inverted = image.tag_v2.get(_TIFF_TAGS["photometric"]) == 0
        elif (image.mode == "I" and image.format == "PPM") or image.mode.startswith("I;16"):
            largest = 2**16 - 1
        return cls(background, key, largest, inverted)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 (H, W, 3) of a loaded picture; in strips, lest the steps between take several times its memory."""
        rows = max(1, _STRIP // image.width)
        if image.height <= rows:
            return self._strip(image)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            pixels[top:bottom] = self._strip(image.crop((0, top, image.width, bottom)))
        return pixels

    def _strip(self, image: Image.Image) -> np.ndarray:
        if image.mode.startswith("I") or image.mode == "F":
            return self._from_deep_grey(image)
        if self.key is None and not image.has_transparency_data:
            return np.array(image.convert("RGB"))
        if self.key is None:
            image = image.convert("LA") if image.mode == "La" else image
            values = np.asarray(image.convert("RGBA"), np.uint32)
            return self._composed(values[:, :, :3], values[:, :, 3:])
        image.info.pop("transparency", None)  # Pillow's own handling of keys knows no depths
        colours = np.asarray(image.convert("RGB"))
        key = np.broadcast_to(np.array(self.key), 3)
        return self._composed(colours, np.where((colours == key).all(axis=2, keepdims=True), 0, 255))

    def _from_deep_grey(self, image: Image.Image) -> np.ndarray:
        # Of "I", only PPM tells the range: Pillow brings it to 16 bits. TIFF has it for signed and for 32-bit numbers.
        if self.largest is None or self.largest > 2**16 - 1 or image.mode == "F":
            raise UnreadableImage(_UNKNOWN_RANGE)
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > self.largest:
            raise UnreadableImage(_UNKNOWN_RANGE)
        grey = (values * 255 + self.largest // 2) // self.largest
        grey = np.repeat((255 - grey if self.inverted else grey).astype(np.uint8)[:, :, None], 3, axis=2)
        if self.key is None:
            return grey
        return self._composed(grey, np.where(values == self.key, 0, 255)[:, :, None])

    def _composed(self, colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        """``colours`` (H, W, 3) over the background, by ``alpha`` (H, W, 1) of 0 to 255."""
        alpha = alpha.astype(np.uint32)
        mixed = colours.astype(np.uint32) * alpha + np.array(self.background, np.uint32) * (255 - alpha)
        return ((mixed + 127) // 255).astype(np.uint8)


class _Room:
    """Memory for decodings side by side: they wait, in the order they come, until what they need is free."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size

    def give(self, size: int) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()


_ROOM = _Room(MAX_MEMORY)


class _Claim:
    """What one decoding has taken of the room, until the end of ``with``."""

    size = 0

    def take(self, size: int) -> None:
        """In place of what was taken before; small sizes are not counted."""
        self._give()
        if size > _UNCOUNTED:
            _ROOM.take(size)
            self.size = size

    def _give(self) -> None:
        if self.size:
            _ROOM.give(self.size)
            self.size = 0

    def __enter__(self) -> "_Claim":
        return self

    def __exit__(self, *exception: object) -> None:
        self._give()


def check_size(width: int, height: int, state: Literal["", "resized"] = "") -> None:
    """Raise UnreadableImage for a picture that is larger than the limits, as it is in its file or resized."""
    if width < 1 or height < 1:
        raise UnreadableImage(_DAMAGED)
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{state} {width} x {height} pixels: an image may have {MAX_PIXELS:,}".lstrip())
    if not state and max(width, height) > MAX_SIDE:
        raise UnreadableImage(f"{width} x {height} pixels: a side may have {MAX_SIDE:,}")


def _needed(kind: Kind, data: bytes, width: int, height: int, bytes_per_pixel: float) -> int:
    """Bytes of memory that decoding a picture takes.

    Raises:
        UnreadableImage: it is too large, or so much larger than its file that this cannot be whole.
    """
    check_size(width, height)
    if width * height > len(data) * kind.pixels_per_byte:
        raise UnreadableImage(f"damaged: {len(data):,} bytes cannot hold {width} x {height} pixels")
    size = int(len(data) + width * height * bytes_per_pixel)
    if size > MAX_MEMORY:
        raise UnreadableImage(f"{width} x {height} pixels of this format would take {size / 2**20:,.0f} MiB to decode")
    return size


def _read(path: str | Path) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
        raise UnreadableImage("no regular file")
    if status.st_size > MAX_MEMORY:
        raise UnreadableImage(f"a file of {status.st_size:,} bytes")
    with open(path, "rb") as file:
        return file.read()


def _jpeg_bytes_per_pixel(data: bytes) -> float:
    """Memory of decoding a JPEG: pixels as bytes and as a Pillow image; where a part of the picture comes in several
    scans, all coefficients are kept meanwhile, of two bytes each.

    Raises:
        UnreadableImage: it has so many scans that decoding it would take minutes.
    """
    place, end, components, one_pass = 2, len(data) - 9, 4, False
    while place < end and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # a frame: sequential, or progressive
            components, one_pass = data[place + 9], marker != 0xC2
        elif marker == 0xDA:
            if one_pass and data[place + 4] == components:
                return 7.0
            break
        if marker == 0xFF:  # filling
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # no content
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    if data.count(b"\xff\xda") > _MAX_SCANS:
        raise UnreadableImage(f"a JPEG of more than {_MAX_SCANS} scans")
    return max(7.0, 3.0 + 2.0 * components)


def _tiff_buffer(image: TiffImagePlugin.TiffImageFile) -> int:
    """Bytes that decoding a strip or a tile takes; the file says how large they are."""
    tags = image.tag_v2
    bits = tags.get(_TIFF_TAGS["bits"], (1,))
    rows = min(tags.get(_TIFF_TAGS["rows"], image.height), image.height)
    width, height = tags.get(_TIFF_TAGS["tile_width"], image.width), tags.get(_TIFF_TAGS["tile_height"], rows)
    return width * height * max(len(bits), 4) * max(max(bits), 8) // 8


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # damaged metadata is no reason to lose the picture
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """``pixels`` upright, by the number of EXIF's orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
