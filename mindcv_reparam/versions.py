"""Which MindSpore is supported, and which CANN, driver and devices it goes with, as far as its makers say.

Not run on Ascend here: the lists are those of MindSpore's wheels and of its installation guide, docs/versions.md.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SUPPORTED = "2.7 to 2.10"
_FROM, _BELOW = (2, 7), (2, 11)
# The versions of CANN that MindSpore's own check (mindspore/run_check) takes.
_CANN = {
    "2.7.0": ("7.7", "7.8", "8.2"),
    "2.7.1": ("7.8", "8.2", "8.3"),
    "2.7.2": ("8.5",),
    "2.8": ("8.2", "8.3", "8.5"),
    "2.9": ("8.2", "8.3", "8.5", "9.0"),
    "2.10": ("8.2", "8.3", "8.5", "9.0", "9.1"),
}
# The driver (HDK) that is published together with a CANN.
_DRIVERS = {"8.2": "25.2.0", "8.3": "25.3.RC1", "8.5": "25.5.0", "9.0": "26.0.RC1"}
_DEVICE = re.compile(r"^\|\s*\d+\s+(?P<name>(?:Ascend\s*)?\d{3}\w*(?:-\d+)?)\s*\|\s*(?P<health>\w+)\s*\|", re.MULTILINE)


class Devices(NamedTuple):
    """What ``npu-smi info`` shows."""

    driver: str | None
    names: tuple[str, ...]  # of every chip
    unwell: tuple[str, ...]  # "chip 3: Alarm"


def is_supported(mindspore: str) -> bool:
    """Whether a version of MindSpore is in the range."""
    return _FROM <= _numbers(mindspore) < _BELOW


def cann_of(mindspore: str) -> tuple[str, ...]:
    """The versions of CANN that a supported MindSpore takes by its own list."""
    minor = ".".join(map(str, _numbers(mindspore)))
    return _CANN.get(mindspore.partition(".post")[0], _CANN.get(minor, ()))


def mindspore_of(cann: str) -> tuple[str, ...]:
    """The versions of MindSpore that take a CANN."""
    return tuple(mindspore for mindspore, taken in _CANN.items() if _short(cann) in taken)


def fits(mindspore: str, cann: str) -> bool:
    """Whether MindSpore takes a CANN ("8.2.RC1")."""
    return _short(cann) in cann_of(mindspore)


def driver_of(cann: str) -> str | None:
    """The driver published with a CANN, where that is known."""
    return _DRIVERS.get(_short(cann))


def read_cann(environ: Mapping[str, str] = os.environ) -> str | None:
    """The version of CANN that the environment names; None without one, or where it does not say."""
    home = environ.get("ASCEND_HOME_PATH")
    path = Path(home or "", "compiler", "version.info")
    if not home or not path.is_file():
        return None
    found = re.search(r"^Version=\s*(\S+)", path.read_text(errors="replace"), re.MULTILINE)
    return found[1] if found else None


def read_devices(shown: str) -> Devices:
    """What ``npu-smi info`` printed."""
    driver = re.search(r"Version:\s*(\S+)", shown)
    rows = list(_DEVICE.finditer(shown))
    unwell = (f"chip {number}: {row['health']}" for number, row in enumerate(rows) if row["health"] != "OK")
    return Devices(driver[1] if driver else None, tuple(row["name"] for row in rows), tuple(unwell))


def _short(cann: str) -> str:
    return ".".join(cann.split(".")[:2])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
