"""The commands of ``python -m mindcv_reparam``, one module each.

A command module has a docstring whose first line the help shows, ``add_arguments(parser)`` and ``run(args) -> int``
(the exit status). A new file in this folder is a new command.
"""

import argparse
import ast
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from mindcv_reparam.errors import Parser


def summaries() -> dict[str, str]:
    """First line of every command's docstring, by name; read without importing the commands."""
    files = {module.name: Path(__path__[0], f"{module.name}.py") for module in pkgutil.iter_modules(__path__)}
    return {name: _first_line(file) for name, file in sorted(files.items())}


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def run(name: str, arguments: Sequence[str], program: str) -> int:
    """Import a command, run it with the words of a command line, and return its exit status.

    Args:
        program: what the help and messages call it.
    """
    command = importlib.import_module(f"{__name__}.{name}")
    parser = Parser(prog=program, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))
