"""The packages that this project uses, what each is for, and how a missing one is installed."""

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

_LIST = Path(__file__).parents[1] / "requirements.txt"
_LINE = re.compile(r"(?P<name>[\w.-]+)(?P<extra>\[[\w,]+\])?(?P<version>==[\w.]+)?\s*#\s*(?P<purpose>.+)")
# Modules whose distribution has another name, and those that no requirement lists.
_DISTRIBUTIONS = {"yaml": "pyyaml", "PIL": "pillow", "google": "protobuf", "noto_cjk_sans_otc": "noto-cjk-sans-otc"}
_ELSEWHERE = {"mindspore_lite": "see MindSpore Lite's site", "torch": "pip install torch"}


@dataclass(frozen=True)
class Package:
    """A requirement."""

    name: str  # of the distribution
    version: str  # "==2.10.0"
    purpose: str


def requirements() -> list[Package]:
    """What requirements.txt lists; an installed project has no such file, its metadata have no purposes."""
    if _LIST.is_file():
        lines = _LIST.read_text(encoding="utf-8").splitlines()
    else:
        try:
            lines = [f"{line}  # -" for line in importlib.metadata.requires("mindcv_reparam") or ()]
        except importlib.metadata.PackageNotFoundError:
            lines = []
    found = (_LINE.fullmatch(line) for line in lines)
    return [Package(match["name"], match["version"] or "", match["purpose"]) for match in found if match]


def is_installed(module: str) -> bool:
    """Whether a module could be imported; it is not, which may take seconds."""
    return importlib.util.find_spec(module) is not None


def install_command(module: str) -> str:
    """The command that installs the module's distribution, in the version that this project is tested with."""
    top = module.partition(".")[0]
    if top in _ELSEWHERE:
        return _ELSEWHERE[top]
    name = _DISTRIBUTIONS.get(top, top)
    version = next((package.version for package in requirements() if package.name.lower() == name.lower()), "")
    return f"pip install {name}{version}"


def missing(module: str) -> str:
    """A line for a module that cannot be imported."""
    return f"{_DISTRIBUTIONS.get(module.partition('.')[0], module)} is not installed: {install_command(module)}"
