"""Fonts that have what is written: Pillow's own has little but ASCII, matplotlib's the alphabets of Europe and the Near
East, Noto Sans CJK what is written in China, Japan and Korea."""

import functools
import importlib.util
import logging
from collections.abc import Iterable
from pathlib import Path

from PIL import ImageFont

from mindcv_reparam.packages import is_installed, missing

_NOTO = "noto_cjk_sans_otc"  # a package of nothing but the font, under the SIL Open Font License 1.1
# By package; matplotlib is not imported for its font, DejaVu Sans, which is free as well.
_FILES = {"matplotlib": "mpl-data/fonts/ttf/DejaVuSans.ttf", _NOTO: "NotoSansCJK-Regular.ttc"}
_JAPANESE, _KOREAN, _CHINESE = 0, 1, 2  # faces of Noto's file, which differ in how they write characters of one number
_NO_CHARACTER = "\U0010ffff"
_log = logging.getLogger(__name__)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(texts: Iterable[str], size: int) -> Font:
    """A font of ``size`` pixels for all of these texts, or the one that lacks least; then a line says so."""
    characters = frozenset("".join(texts))
    packages = ["", *(package for package in _FILES if is_installed(package))]
    lacking = [sum(_lacks(package, character) for character in characters) for package in packages]
    least = min(lacking)
    best = packages[lacking.index(least)]
    if least:
        _tell(min(character for character in characters if _lacks(best, character)), is_installed(_NOTO))
    return _font(best, size, _face(characters))


def matplotlib_families(texts: Iterable[str]) -> list[str]:
    """In which fonts matplotlib shall look for the characters of texts, one after the other; none: its own will do."""
    if all(map(str.isascii, texts)) or not is_installed(_NOTO):
        return []
    from matplotlib import font_manager

    manager, file = font_manager.fontManager, str(_file(_NOTO))
    if all(entry.fname != file for entry in manager.ttflist):
        manager.addfont(file)
    return ["DejaVu Sans", *(entry.name for entry in manager.ttflist if entry.fname == file)]


def _font(package: str, size: int, face: int = 0) -> Font:
    """The font of a package, or of none: Pillow's."""
    if not package:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(_file(package)), size, face * (package == _NOTO))


def _file(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, "is installed"
    assert spec.origin is not None, "is a package of files"
    return Path(spec.origin).parent / _FILES[package]


@functools.cache
def _lacks(package: str, character: str) -> bool:
    """Whether a font has no picture of a character but the one for all that it lacks."""
    if character.isascii():
        return False
    font = _font(package, 16)
    return bytes(font.getmask(character)) == bytes(font.getmask(_NO_CHARACTER))


def _face(characters: Iterable[str]) -> int:
    """By characters that one language alone has: kana and hangul."""
    numbers = [ord(character) for character in characters]
    if any(0x3040 <= number < 0x3100 for number in numbers):
        return _JAPANESE
    return _KOREAN if any(0xAC00 <= number < 0xD7A4 for number in numbers) else _CHINESE


@functools.cache
def _tell(character: str, complete: bool) -> None:
    remedy = "" if complete else f": {missing(_NOTO)}"
    _log.warning("no font here has %r, which is drawn as a box%s", character, remedy)
