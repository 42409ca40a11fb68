"""``python -m mindcv_reparam COMMAND``: imports the one command that is asked for and runs it."""

import functools
import sys

from mindcv_reparam import __version__, commands
from mindcv_reparam.errors import UserError, run_script, shortened
from mindcv_reparam.suggestions import suggestion


def main(argv: list[str] | None = None, program: str = "python -m mindcv_reparam") -> int:
    """Run a command line and return its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help(program))
        return 0
    if name == "--version":
        print(f"mindcv_reparam {__version__}")
        return 0
    known = commands.summaries()
    if name not in known:
        raise UserError(f"unknown command {shortened(name)}{suggestion(name, known)}; see {program} --help")
    return commands.run(name, rest, f"{program} {name}")


def _help(program: str) -> str:
    lines = [f"usage: {program} COMMAND [--help] ...", ""]
    return "\n".join(lines + [f"  {name:<16}{summary}" for name, summary in commands.summaries().items()])


def script() -> None:
    """``mindcv-reparam COMMAND``, once the package is installed."""
    run_script(functools.partial(main, program="mindcv-reparam"))


if __name__ == "__main__":
    run_script(main)
