"""``python -m mindcv_reparam COMMAND``: imports the one command that is asked for and runs it."""

import argparse
import importlib
import sys

from mindcv_reparam import __version__, commands
from mindcv_reparam.errors import Parser, UserError, nearest, run_script

PROGRAM = "python -m mindcv_reparam"


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"mindcv_reparam {__version__}")
        return 0
    known = commands.summaries()
    if name not in known:
        raise UserError(f"unknown command {name}; the nearest is {nearest(name, known)}; see {PROGRAM} --help")
    command = importlib.import_module(f"mindcv_reparam.commands.{name}")
    parser = Parser(
        prog=f"{PROGRAM} {name}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    return command.run(parser.parse_args(rest))


def _help() -> str:
    lines = [f"usage: {PROGRAM} COMMAND [--help] ...", ""]
    lines += [f"  {name:<16}{summary}" for name, summary in commands.summaries().items()]
    return "\n".join([*lines, "", "Training, validation and export are scripts: train.py, validate.py, export.py."])


if __name__ == "__main__":
    run_script(main)
