"""Rooms import in one direction, and what answers ``--help`` does so without importing MindSpore."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "mindcv_reparam"

# What each room may import of the package, besides itself. A room is a module or a folder directly under the package;
# the commands and the three scripts, which wire the rooms together, may import all of them.
BASE = {"errors", "files", "settings"}
CELLS = BASE | {"fusion", "reparam", "stochastic", "layers"}
WEIGHTS = BASE | {"reparam", "registry", "checkpoint"}
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "files": {"errors"},
    "settings": {"errors"},
    "config": BASE | {"registry"},
    "distributed": BASE,
    "runtime": BASE | {"distributed"},
    "fusion": BASE,
    "reparam": BASE | {"fusion"},
    "stochastic": BASE | {"reparam"},
    "layers": BASE | {"fusion", "reparam", "stochastic"},
    "registry": BASE,
    "models": CELLS | {"registry"},
    "cpu": CELLS | {"runtime"},
    "features": BASE | {"reparam", "stochastic"},
    "checkpoint": BASE | {"reparam", "registry"},
    "convert": WEIGHTS,
    "deploy": WEIGHTS | CELLS | {"config", "data", "features", "complexity", "runtime"},
    "complexity": WEIGHTS,
    "data": BASE | {"config", "distributed"},
    "training": BASE | {"config", "distributed", "reparam", "checkpoint"},
}
WIRING = {"__main__", "commands"}
WITHOUT_MINDSPORE = [
    "",
    ".config",
    ".errors",
    ".files",
    ".registry",
    ".runtime",
    ".distributed",
    ".__main__",
    ".fusion",
    ".commands.infer",
]


def imports_of(path: Path) -> set[str]:
    """Rooms of the package that a file imports, anywhere in it."""
    module = path.relative_to(REPOSITORY).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module[: len(module) - node.level] if node.level else ()
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    rooms = {name.split(".")[1] for name in found if name.startswith("mindcv_reparam.")}
    return rooms - {"__version__"}  # of the package itself


def rooms() -> dict[str, list[Path]]:
    """Files of every room, by its name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def test_every_room_is_known_here():
    assert set(rooms()) <= set(ALLOWED) | WIRING


@pytest.mark.parametrize("room", [room for room in rooms() if room in ALLOWED])
def test_room_imports_only_what_lies_before_it(room):
    for path in rooms()[room]:
        wrong = imports_of(path) - ALLOWED[room] - {room}
        assert not wrong, f"{path.relative_to(REPOSITORY)} imports {sorted(wrong)}"


@pytest.mark.parametrize("module", WITHOUT_MINDSPORE)
def test_import_does_not_import_mindspore(module):
    code = f"import mindcv_reparam{module}, sys; sys.exit('mindspore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
