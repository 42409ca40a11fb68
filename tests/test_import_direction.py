"""Rooms import in one direction, and what answers ``--help`` does so without importing MindSpore."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "mindcv_reparam"

# What each room may import of the package, besides itself. A room is a module or a folder directly under the package;
# the commands and the three scripts, which wire the rooms together, may import all of them.
BASE = {
    *("suggestions", "packages", "errors", "kinds", "files", "settings", "untrusted"),
    *("archives", "fonts", "labels", "plain_paths", "tensors"),
}
CELLS = BASE | {"private", "fusion", "tree", "reparam", "stochastic", "layers", "operations", "multi_tensor"}
WEIGHTS = BASE | {"reparam", "registry", "checkpoint_info", "network", "checkpoint", "zoo"}
ALLOWED = {
    "__init__": {"reparam", "checkpoint", "registry", "run", "zoo"},  # the public names, loaded on first use
    "suggestions": set(),
    "errors": {"suggestions", "packages", "hosts"},
    "packages": set(),
    "fonts": {"packages"},
    "kinds": set(),
    "files": {"errors", "kinds"},
    "settings": {"suggestions", "errors"},
    "untrusted": {"errors"},
    "tensors": set(),
    "versions": set(),
    "labels": {"errors", "untrusted"},
    "archives": {"errors", "untrusted"},
    "plain_paths": {"errors", "untrusted"},
    "yaml_file": BASE,
    "config": BASE | {"registry", "yaml_file"},
    "watch": BASE,
    "meeting": {"errors"},
    "hosts": {"errors"},
    "guardian": {"hosts", "watch"},
    "scheduler": set(),
    "votes": BASE,
    "joining": {"errors", "hosts", "private", "scheduler"},
    "distributed": BASE | {"guardian", "hosts", "joining", "meeting", "scheduler", "votes", "watch"},
    "owner": BASE | {"distributed"},
    "runtime": BASE | {"distributed", "hosts"},
    "fusion": BASE,
    "private": set(),
    "tree": {"private"},
    "reparam": BASE | {"fusion", "tree"},
    "stochastic": BASE | {"reparam"},
    "operations": {"private"},
    "multi_tensor": set(),
    "layers": BASE | {"operations", "private", "fusion", "reparam", "runtime", "stochastic"},
    "formats": {"errors"},
    "registry": BASE | {"formats"},
    "models": CELLS | {"formats", "registry", "features"},
    "cpu": CELLS | {"runtime"},
    "network": BASE | {"private", "tree", "checkpoint_info"},
    "features": BASE | {"tree", "reparam", "stochastic", "network"},
    "ckpt_format": {"errors", "untrusted"},
    "checkpoint_info": BASE | {"registry", "ckpt_format"},
    "checkpoint": BASE | {"reparam", "checkpoint_info", "network"},
    "zoo": BASE | {"reparam", "registry", "checkpoint_info", "checkpoint", "features", "models", "network"},
    "convert": WEIGHTS | {"formats"},
    "bundle": BASE | {"registry", "config", "data", "tasks"},
    "run": WEIGHTS | {"bundle", "config", "data", "runtime", "tasks"},
    "export": WEIGHTS | CELLS | {"bundle", "run", "data", "complexity", "tasks"},
    "report": {"errors"},
    "serving": BASE | {"bundle", "run", "data", "tasks"},
    "probe": BASE | {"data", "tasks"},
    "complexity": WEIGHTS,
    "data": BASE | {"config", "distributed", "yaml_file"},
    "precision": BASE,
    "tasks": WEIGHTS | {"zoo", "features", "config", "data", "watch", "distributed", "precision", "report"},
    "training": WEIGHTS
    | {"tree", "zoo", "features", "config", "cpu", "data", "watch", "distributed", "precision", "stochastic", "tasks"}
    | {"multi_tensor", "votes", "meeting"},
}
WIRING = {"__main__", "commands"}
WITHOUT_MINDSPORE = [
    "",
    ".config",
    ".errors",
    ".files",
    ".registry",
    ".formats",
    ".checkpoint_info",
    ".runtime",
    ".distributed",
    ".__main__",
    ".fusion",
    ".commands.infer",
    ".tasks",
    ".training.data",
]


def imports_of(path: Path) -> set[str]:
    """Rooms of the package that a file imports, anywhere in it, by statements or by strings."""
    module = path.relative_to(REPOSITORY).with_suffix("").parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = imported_by_string(tree, module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module[: len(module) - node.level] if node.level else ()
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    rooms = {name.split(".")[1] for name in found if name.startswith("mindcv_reparam.")}
    return rooms - {"__version__"}  # of the package itself


def imported_by_string(tree: ast.AST, module: tuple[str, ...]) -> set[str]:
    """What ``import_module`` and ``__import__`` are called with. Where that is computed, it may be any room that the
    file has as a string, alone or behind the package's name."""
    package = module[:-1]
    found: set[str] = set()
    for node in ast.walk(tree):
        called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if called not in ("import_module", "__import__") or not node.args:
            continue
        name = literal(node.args[0], ".".join(package))
        if name.startswith("."):
            level = len(name) - len(name.lstrip("."))
            name = ".".join([*package[: len(package) - level + 1], name.lstrip(".")])
        if not name.removeprefix("mindcv_reparam.").startswith("?"):
            found.add(name)
            continue
        strings = {part.value for part in ast.walk(tree) if isinstance(part, ast.Constant)} - {None}
        found |= {f"mindcv_reparam.{room}" for room in rooms() if room in strings}
        found |= {text for text in strings if isinstance(text, str) and re.fullmatch(r"mindcv_reparam(\.\w+)+", text)}
    return found


def literal(node: ast.expr, package: str) -> str:
    """The text of an expression, with ? for every part that is computed."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part, package) for part in node.values)
    if isinstance(node, ast.BinOp):
        return literal(node.left, package) + literal(node.right, package)
    text = ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)
    return package if text in ("__package__", "__name__") else "?"


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


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('import_module("mindcv_reparam.training.step")', {"training"}),
        ('importlib.import_module(f"{__package__}.models.{family}")', {"models"}),
        ('importlib.import_module(".features", __package__)', {"features"}),
        ('importlib.import_module("." + name, __package__); TABLE = {"create": "zoo"}', {"zoo"}),
        ('importlib.import_module(module); WRITERS = ("mindcv_reparam.export.air", "numpy")', {"export"}),
        ('importlib.import_module("mindspore"); KINDS = ("data", "config")', set()),
        ("import mindcv_reparam.cpu.library", {"cpu"}),
    ],
)
def test_imports_by_string_are_seen(monkeypatch, code, expected):
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: code)
    assert imports_of(PACKAGE / "probe.py") == expected


def test_what_runs_bundles_imports_no_training_no_models_and_no_mindspore():
    """As a device or a server does; a checkpoint that runs unexported, run.fused, is no bundle."""
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for room in ("bundle", "run", "serving")
        for path in rooms()[room]
        if path.name not in ("__init__.py", "fused.py")
    ]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('mindcv_reparam.')}\n"
        "print(*sorted(rooms & {'training', 'models', 'zoo', 'checkpoint', 'export'}), 'mindspore' in sys.modules)"
    )
    assert len(modules) > 20
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=REPOSITORY, check=True, capture_output=True)
    assert done.stdout.decode().split() == ["False"]


@pytest.mark.parametrize("module", WITHOUT_MINDSPORE)
def test_import_does_not_import_mindspore(module):
    code = f"import mindcv_reparam{module}, sys; sys.exit('mindspore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
