"""The commands of ``python -m mindcv_reparam``, one module each.

A command module has a docstring whose first line the help shows, ``add_arguments(parser)`` and ``run(args) -> int``
(the exit status). A new file in this folder is a new command.
"""

import ast
import pkgutil
from pathlib import Path


def summaries() -> dict[str, str]:
    """First line of every command's docstring, by name; read without importing the commands."""
    files = {module.name: Path(__path__[0], f"{module.name}.py") for module in pkgutil.iter_modules(__path__)}
    return {name: _first_line(file) for name, file in sorted(files.items())}


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
