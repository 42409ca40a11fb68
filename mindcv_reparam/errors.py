"""Failures a user can mend: one exception, one line on stderr, exit status 2."""

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from mindcv_reparam.packages import is_installed, missing
from mindcv_reparam.suggestions import suggestion

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MS_NODE_ID", "RANK_ID")
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MS_WORKER_NUM")
_CONSEQUENCE = 6.0  # seconds; longer than any rank takes to report an expected error


class UserError(Exception):
    """A failure the user can mend: one line that says what was wrong and what to do; the scripts exit with status 2."""


class Interrupted(Exception):
    """A signal ended the work in good order; the scripts print the message and exit with status 128 + the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def one_line(text: str) -> str:
    """A message as one line of what can be printed: names and contents of files may hold anything."""
    text = " ".join(text.splitlines())
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def shortened(text: str, most: int = 80) -> str:
    """What a user wrote, for a message."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


class Parser(argparse.ArgumentParser):
    """An argument parser that reports every error as a UserError and takes no abbreviated flags."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        self.of_others: Collection[str] = ()  # flags of other commands, whose settings this one does not use

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]  # the stub has two overloads
        namespace, rest = self.parse_known_args(args, namespace)
        if rest:
            self.refuse(rest)
        return namespace

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Raise for the arguments that ``parse_known_args`` left over, naming the flag of the help that was meant."""
        flags = [word.split("=")[0] for word in rest if word.startswith("-")]
        foreign = next((flag for flag in flags if flag in self.of_others), None)
        if foreign:
            raise UserError(f"{self.prog} has no flag {foreign}: it does not use that setting; see --help")
        word = next(iter(flags), None)
        if word is None:
            raise UserError(f"unexpected argument {shortened(rest[0])!r}; see --help")
        shown = [flag for action in self._actions if action.help != argparse.SUPPRESS for flag in action.option_strings]
        raise UserError(f"unknown flag {shortened(word)}{suggestion(word, shown) or '; see --help'}")


def require(*modules: str) -> None:
    """Raise UserError, with the commands that install them, for modules that are not there, before long work."""
    absent = [missing(module) for module in modules if not is_installed(module)]
    if absent:
        raise UserError("; ".join(absent))


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main function and leave the process with its exit status.

    A ``UserError`` becomes one line ``error: …`` and status 2, Ctrl-C status 130, a closed pipe (``… | head``) 141,
    an ``Interrupted`` its one line and 128 + the number of the signal (143 for SIGTERM).
    """
    signal.signal(signal.SIGINT, _interrupt_once)
    try:
        try:
            status = main() or 0
            sys.stdout.flush()
        except UserError as error:
            _fail(2, f"{_place(os.environ)}error: {one_line(str(error))}\n")
        except Interrupted as interruption:
            _fail(128 + interruption.number, f"{interruption}\n")
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
            _leave(141)
        except MemoryError as error:
            reason = f" ({one_line(str(error))})" if str(error) else ""
            advice = "take smaller batches or images, or fewer workers"
            _fail(2, f"{_place(os.environ)}error: out of memory{reason}: {advice}\n")
        except ModuleNotFoundError as error:
            module = error.name or "mindcv_reparam"
            if module.startswith("mindcv_reparam"):
                _fail(1, traceback.format_exc(), unexpected=True)
            _fail(2, f"{_place(os.environ)}error: {missing(module)}\n")
        except Exception:
            _fail(1, f"{_place(os.environ)}{traceback.format_exc()}", unexpected=True)
    except KeyboardInterrupt:  # also one that comes while an error is reported
        _leave(130)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def _interrupt_once(number: int, frame: FrameType | None) -> NoReturn:
    """Further ones come from impatience while the process ends, and would only add a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _fail(status: int, message: str, unexpected: bool = False) -> NoReturn:
    time.sleep(_turn(os.environ, unexpected))
    print(message, end="", file=sys.stderr)
    _leave(status)


def _leave(status: int) -> NoReturn:
    """End this process; as one of several ranks at once, since MPI's clean-up at exit would wait for the others."""
    sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which ends the process without a word, should it not end by itself
    if _rank(os.environ) is None:
        sys.exit(status)
    os._exit(status)


def _turn(environ: Mapping[str, str], unexpected: bool = False) -> float:
    """Seconds to wait before reporting an error, so that N ranks that meet the same one show it once.

    The launcher ends the whole job as soon as one rank leaves with an error, with that rank's status. Rank 0 reports at
    once, the others wait for it to end them; an error that only one of them meets is shown a little later. A rank that
    leaves makes the collectives of the others fail: an unexpected error waits longest, since it may be no more than
    that and must not be taken for the cause.
    """
    rank = _rank(environ)
    if rank is None:
        return 0.0
    return (_CONSEQUENCE if unexpected else 0.0) + (1.0 + min(0.1 * rank, 4.0) if rank else 0.0)


def _place(environ: Mapping[str, str]) -> str:
    """Rank and host before an error of another rank than 0, where the job spans several hosts."""
    from mindcv_reparam.hosts import local_ranks  # which raises errors of this module

    rank = _rank(environ)
    size = next((int(environ[name]) for name in _SIZE_VARIABLES if environ.get(name, "").isdigit()), 1)
    return f"rank {rank} on {socket.gethostname()}: " if rank and local_ranks(environ, size) < size else ""


def _rank(environ: Mapping[str, str]) -> int | None:
    """This process's rank in the job of a launcher, None without one."""
    return next((int(environ[name]) for name in _RANK_VARIABLES if environ.get(name, "").isdigit()), None)
