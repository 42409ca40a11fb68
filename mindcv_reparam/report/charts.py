"""Figures that are part of a page: sharp at any size, in the colours of the page, without a file of their own."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mindcv_reparam.report.html import Element, element

_SIDE, _LEFT, _BOTTOM, _TOP = 260, 46, 40, 8  # of a unit square's drawing, in its own pixels
_LOSSLESS = 96  # the longest side, in pixels, of images that are kept as they are
_QUALITY = 92  # of JPEG


def unit_square(bars: Sequence[tuple[float, float, float, str]], horizontal: str, vertical: str) -> Element:
    """Bars in a square from 0 to 1 with its diagonal.

    Args:
        bars: of each its left and right end, its height, and what it says where the pointer rests on it.
        horizontal: what the lower side means.
        vertical: what the left side means.
    """

    def at(x: float, y: float) -> tuple[float, float]:
        return round(_LEFT + x * _SIDE, 1), round(_TOP + (1 - y) * _SIDE, 1)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        (x, base), (left, y) = at(tick, 0), at(0, tick)
        parts.append(element("line", x1=left, x2=left + _SIDE, y1=y, y2=y, class_="grid"))
        parts.append(element("text", f"{tick:g}", x=x, y=base + 15, text_anchor="middle"))
        parts.append(element("text", f"{tick:g}", x=left - 6, y=y + 4, text_anchor="end"))
    for start, end, height, said in bars:
        x, y = at(start, height)
        size = {"width": round((end - start) * _SIDE - 1, 1), "height": round(height * _SIDE, 1)}
        parts.append(element("rect", element("title", said), x=x, y=y, class_="bar", **size))
    (x1, y1), (x2, y2) = at(0, 0), at(1, 1)
    parts.append(element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="diagonal"))
    middle = _TOP + _SIDE / 2
    parts.append(element("text", horizontal, x=_LEFT + _SIDE / 2, y=_TOP + _SIDE + 33, text_anchor="middle"))
    turned = f"rotate(-90 12 {middle:g})"
    parts.append(element("text", vertical, x=12, y=middle, text_anchor="middle", transform=turned))
    box = f"0 0 {_LEFT + _SIDE + 14} {_TOP + _SIDE + _BOTTOM}"
    return element("svg", parts, viewBox=box, class_="chart", role="img", aria_label=f"{vertical} over {horizontal}")


def heat_table(counts: np.ndarray, names: Sequence[str], corner: str) -> Element:
    """A square table of counts (n, n), shaded by their part of the row, the diagonal in another colour."""
    head = element("tr", element("th", corner), (element("th", element("span", one), scope="col") for one in names))
    rows = []
    for place, row in enumerate(counts.tolist()):
        total = max(sum(row), 1)
        cells = []
        for column, count in enumerate(row):
            kind = "hit" if column == place else "miss"
            said = f"{names[place]} → {names[column]}: {count} of {sum(row)}"
            shade = f"--part:{count / total:.3f}"
            cells.append(element("td", count or "", class_=kind, style=shade, title=said) if count else element("td"))
        rows.append(element("tr", element("th", names[place], scope="row"), cells))
    square = element("table", element("thead", head), element("tbody", rows), class_="heat")
    return element("div", square, class_="scroll")


def picture(image: Image.Image, alt: str) -> Element:
    """An image in the page itself: of few pixels as it is, shown with hard edges, else as JPEG."""
    small = max(image.size) <= _LOSSLESS
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": _QUALITY}))
    data = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return element("img", src=data, alt=alt, class_="pixels" if small else "photo")
