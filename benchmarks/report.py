"""What every benchmark leaves: a Markdown table on standard output, its numbers as JSON and a picture."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path("runs/benchmarks")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> str:
    """A table; without rows its head, to which ``line`` adds what comes later."""
    return "\n".join(line(cells) for cells in (header, ["---"] * len(header), *rows))


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def machine(*packages: str) -> dict[str, str | int]:
    """What the numbers depend on: processor, usable cores, versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def save(name: str, results: object, draw: Callable[["Figure"], None], folder: Path = FOLDER) -> None:
    """Write ``name``.json and ``name``.png."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    draw(figure)
    figure.savefig(folder / f"{name}.png", dpi=120)
    print(f"\n{folder / name}.json, .png")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
