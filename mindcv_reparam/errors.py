"""Failures a user can mend: one exception, one line on stderr, exit status 2."""

import argparse
import difflib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MS_NODE_ID", "RANK_ID")
_CONSEQUENCE = 6.0  # seconds; longer than any rank takes to report an expected error


class UserError(Exception):
    """A failure the user can mend: one line that says what was wrong and what to do; the scripts exit with status 2."""


class Interrupted(Exception):
    """A signal ended the work in good order; the scripts print the message and exit with status 128 + the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that resembles ``word`` most, for error messages that name it."""
    names = {choice.lower(): choice for choice in choices}
    return names[difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.0)[0]]


class Parser(argparse.ArgumentParser):
    """An argument parser that reports every error as a UserError and takes no abbreviated flags."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        namespace, rest = self.parse_known_args(args, namespace)
        if rest:
            self.refuse(rest)
        return namespace

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Raise for the arguments that ``parse_known_args`` left over, naming the nearest flag of the help."""
        word = next((word.split("=")[0] for word in rest if word.startswith("-")), None)
        if word is None:
            raise UserError(f"unexpected argument {rest[0]!r}; see --help")
        shown = [flag for action in self._actions if action.help != argparse.SUPPRESS for flag in action.option_strings]
        raise UserError(f"unknown flag {word}; the nearest is {nearest(word, shown)}")


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main function and leave the process with its exit status.

    A ``UserError`` becomes one line ``error: …`` and status 2, Ctrl-C status 130, a closed pipe (``… | head``) 141,
    an ``Interrupted`` its one line and 128 + the number of the signal (143 for SIGTERM).
    """
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        _fail(2, f"error: {' '.join(str(error).splitlines())}\n")
    except Interrupted as interruption:
        _fail(128 + interruption.number, f"{interruption}\n")
    except KeyboardInterrupt:
        _leave(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        _leave(141)
    except Exception:
        _fail(1, traceback.format_exc(), unexpected=True)
    sys.exit(status)


def _fail(status: int, message: str, unexpected: bool = False) -> NoReturn:
    time.sleep(_turn(os.environ, unexpected))
    print(message, end="", file=sys.stderr)
    _leave(status)


def _leave(status: int) -> NoReturn:
    """End this process; as one of several ranks at once, since MPI's clean-up at exit would wait for the others."""
    sys.stderr.flush()
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


def _rank(environ: Mapping[str, str]) -> int | None:
    """This process's rank in the job of a launcher, None without one."""
    return next((int(environ[name]) for name in _RANK_VARIABLES if environ.get(name, "").isdigit()), None)
