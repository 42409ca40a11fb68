"""What data and a run are, in a few lines for people."""

import os
from collections.abc import Sequence

import numpy as np

from mindcv_reparam.config import Config
from mindcv_reparam.data.datasets import EMBEDDED
from mindcv_reparam.data.source import ImageSource

_SHOWN = 4  # classes named in a message


def named(config: Config, source: ImageSource) -> str:
    """A data set for somebody elsewhere: its kind, its folder's name, :func:`counted`."""
    folder = "" if config.dataset in EMBEDDED else f" {os.path.basename(os.path.abspath(config.data_dir))}"
    return f"{config.dataset}{folder}: {counted(source)}"


def described(source: ImageSource) -> str:
    """:func:`counted`, and how much was left out while listing."""
    return counted(source) + (f"; left out: {len(source.problems)}, named above" if source.problems else "")


def counted(source: ImageSource) -> str:
    """Images, classes with the largest and the smallest."""
    counts, names = source.class_counts, source.classes
    text = f"{len(source)} images, {len(names)} {'class' if len(names) == 1 else 'classes'}"
    if len(names) > 1:
        most, least = int(np.argmax(counts)), int(np.argmin(counts))
        smallest = f"{counts[least]} ({names[least]}) to " if counts[least] < counts[most] else ""
        largest = f"{counts[most]} ({names[most]})" if smallest else f"{counts[most]}"
        text += f" of {smallest}{largest} {source.counted}"
    return text


def place_of(config: Config) -> str:
    """The data set and where it lies."""
    return config.dataset if config.dataset in EMBEDDED else f"{config.dataset} in {config.data_dir}"


def data_doubts(config: Config, source: ImageSource, val: ImageSource | None = None) -> list[str]:
    """A line for everything that looks like a mistake about the data.

    Args:
        source: the images to train on, or to validate on alone.
        val: those of the validation beside it.
    """
    lines = source.doubts()
    if config.dataset in EMBEDDED and config.data_dir != Config.data_dir:
        lines.insert(0, f"data_dir {config.data_dir} is not read: the data set {config.dataset} comes along")
    if val is not None:
        lacking = np.flatnonzero((val.class_counts == 0) & (source.class_counts > 0)).tolist()
        if not val.class_counts.any():
            lines.append(f"the validation has no {val.counted}: it measures nothing, and there is no best checkpoint")
        elif lacking:
            shown = ", ".join(source.classes[index] for index in lacking[:_SHOWN])
            more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
            lines.append(f"the validation lacks {len(lacking)} of {len(source.classes)} classes: {shown}{more}")
    return lines


def block(rows: Sequence[tuple[str, str]]) -> str:
    """Rows of a title and a text, a line each, aligned."""
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"  {title:<{width}}  {text}" for title, text in rows)
