"""Formats of image files: what their first bytes are, who decodes them, what that takes, and the names they go by."""

from dataclasses import dataclass

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)


@dataclass(frozen=True)
class Kind:
    """A format that is read.

    Attributes:
        plugin: Pillow's class for it. Pillow's ``Image.open`` would try others too, one of which starts Ghostscript.
        signatures: what files begin with.
        suffixes: of file names.
        bytes_per_pixel: memory that decoding takes at most, the pixels and one Pillow image of them included.
        pixels_per_byte: the most that a whole file can hold; no bound where a format has none.
    """

    plugin: type[ImageFile.ImageFile]
    signatures: tuple[bytes, ...]
    suffixes: tuple[str, ...]
    bytes_per_pixel: float = 7.0
    pixels_per_byte: float = float("inf")


KINDS = {
    # A block of 64 pixels takes a bit at least: the code of its mean.
    "JPEG": Kind(JpegImagePlugin.JpegImageFile, (b"\xff\xd8\xff",), (".jpg", ".jpeg", ".jpe", ".jfif"), 7.0, 512),
    # Deflate shrinks to a 1032nd.
    "PNG": Kind(PngImagePlugin.PngImageFile, (b"\x89PNG\r\n\x1a\n",), (".png", ".apng"), 7.0, 8 * 1032),
    "BMP": Kind(BmpImagePlugin.BmpImageFile, (b"BM",), (".bmp", ".dib")),
    "GIF": Kind(GifImagePlugin.GifImageFile, (b"GIF87a", b"GIF89a"), (".gif",)),
    "PPM": Kind(
        PpmImagePlugin.PpmImageFile,
        tuple(f"P{digit}{space}".encode() for digit in "123456" for space in " \t\r\n"),
        (".ppm", ".pgm", ".pbm", ".pnm"),
    ),
    "TIFF": Kind(TiffImagePlugin.TiffImageFile, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), (".tif", ".tiff")),
    "WEBP": Kind(WebPImagePlugin.WebPImageFile, (b"RIFF",), (".webp",), 24.0),
}
if features.check("avif"):
    KINDS["AVIF"] = Kind(AvifImagePlugin.AvifImageFile, (), (".avif",), 24.0)

SUFFIXES = frozenset(suffix for kind in KINDS.values() for suffix in kind.suffixes)
# Images all the same, which are told of where they lie among those that are read.
_FOREIGN = """
    heic heif hif avif avifs jxl jp2 j2k jpf jpx psd psb xcf svg eps ai pdf ico icns tga pcx exr hdr dds pfm raw dng cr2
    cr3 nef arw orf rw2 raf pef srw mpo jps wmf emf fits
"""
FOREIGN_SUFFIXES = frozenset(f".{name}" for name in _FOREIGN.split()) - SUFFIXES
_FOREIGN_SIGNATURES = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\x01\0": "ICO",
    b"v/1\x01": "OpenEXR",
    b"Pf": "floating-point",
    b"PF": "floating-point",
    b"<svg": "SVG",
    b"<?xml": "SVG",
}


def kind_of(data: bytes) -> Kind | None:
    """The format of an image file, by its beginning; None where it is none of KINDS."""
    if data.startswith(KINDS["JPEG"].signatures):  # most are
        return KINDS["JPEG"]
    if data[4:8] == b"ftyp":
        return KINDS.get("AVIF") if _brands(data) & {b"avif", b"avis"} else None
    if data[:4] == b"RIFF":
        return KINDS["WEBP"] if data[8:12] == b"WEBP" else None
    return next((kind for kind in KINDS.values() if data.startswith(kind.signatures)), None)


def name_of_foreign(data: bytes) -> str | None:
    """What a file is that is none of KINDS, if that can be told."""
    if data[4:8] == b"ftyp":
        return "HEIF (.heic)" if _brands(data) & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"} else "video"
    return next((name for start, name in _FOREIGN_SIGNATURES.items() if data.startswith(start)), None)


def _brands(data: bytes) -> set[bytes]:
    """Of an ISO media file: the major one and those it is compatible with."""
    box = data[: min(int.from_bytes(data[:4], "big"), 256)]
    return {box[place : place + 4] for place in (8, *range(16, len(box), 4))}
