"""HTML as a tree of elements: the serialiser escapes every text and attribute, so that no name can become markup."""

import re
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

from mindcv_reparam.errors import one_line

_OTHERS = re.compile("[^\u00a0\u2000-\u200a\u200c\u200d\u202f\u205f\u3000]+")

Element = ElementTree.Element
Content = Element | str | float | None


def element(tag: str, *content: Content | Iterable[Content], **attributes: str | float) -> Element:
    """An element of HTML or SVG.

    Args:
        content: elements, and texts, whose characters stand for themselves; None is left out.
        attributes: by name; ``class_`` is ``class``, and ``_`` in others is ``-``.
    """
    names = {name.rstrip("_").replace("_", "-"): _shown(str(value)) for name, value in attributes.items()}
    made = ElementTree.Element(tag, names)
    for part in content:
        for one in [part] if part is None or isinstance(part, Element | str | float | int) else part:
            _append(made, one)
    return made


def _append(parent: Element, one: Content) -> None:
    if isinstance(one, Element):
        parent.append(one)
    elif one is not None:
        text = _shown(str(one))
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + text
        else:
            parent.text = (parent.text or "") + text


def _shown(text: str) -> str:
    """As :func:`one_line` has it, but with spaces of any width and the joiners of some scripts, which do no harm."""
    return _OTHERS.sub(lambda found: one_line(found[0]), text)


def table(head: Sequence[Content], rows: Iterable[Iterable[Content]], class_: str = "") -> Element:
    """A table that scrolls in a box of its own where it needs more room than there is; ``head`` may be empty."""
    header = element("thead", element("tr", (element("th", one, scope="col") for one in head))) if head else None
    body = element("tbody", (element("tr", (element("td", one) for one in row)) for row in rows))
    return element("div", element("table", header, body), class_=f"scroll {class_}".strip())


def cards(rows: Iterable[tuple[str, str, str]]) -> Element:
    """Numbers to see first: of each a name, the number, and a note."""
    made = (element("div", name, element("b", value), element("small", note)) for name, value, note in rows)
    return element("div", made, class_="numbers")


def document(title: str, style: str, *content: Element) -> str:
    """A whole page. Its policy lets nothing run and nothing be fetched, whatever stands in it."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    page = element("html", head, element("body", element("main", element("h1", title), *content)), lang="en")
    return "<!DOCTYPE html>\n" + ElementTree.tostring(page, encoding="unicode", method="html") + "\n"
