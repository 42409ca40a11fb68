"""Where the ranks of a job wait for one another without a collective.

A collective on a CPU is given up after a time that MindSpore sets, 30 s until 2.9 whatever the variables say: less than
one rank may compile, write or judge while the others have nothing to do. Here they wait for as long as it takes, and
then go into the collective together.
"""

import contextlib
import re
import socket
import time
from collections.abc import Iterator, Sequence

from mindcv_reparam.errors import UserError

_LEFT = 120.0  # seconds that a launcher may take to end what is left of a job, once a rank is gone
_ARRIVED = b"."
_IMPATIENT = 25.0  # seconds in a collective after which it was given up, and did not fail because a rank is gone
_GIVEN_UP = re.compile(r"[Ll]aunch kernel failed.*All(Reduce|Gather)", re.DOTALL)


class Meeting:
    """One rank's end of the connections by which the ranks wait for one another.

    Args:
        links: connections; of rank 0 to every other rank, of the others to rank 0.
        presides: whether this is rank 0.
    """

    def __init__(self, links: Sequence[socket.socket], presides: bool) -> None:
        self._links = tuple(links)
        self._presides = presides

    def wait(self) -> None:
        """Until every rank is here.

        Raises:
            UserError: a rank is gone. It has told why itself, and the launcher had time to end the others.
        """
        if not self._presides:
            self._tell()
        for link in self._links:
            said = b""
            with contextlib.suppress(OSError):
                said = link.recv(1)
            if not said:
                time.sleep(_LEFT)
                raise UserError("a rank has left the job, and its launcher does not end it")
        if self._presides:
            self._tell()

    def close(self) -> None:
        for link in self._links:
            link.close()

    def _tell(self) -> None:
        for link in self._links:
            with contextlib.suppress(OSError):  # gone: whoever waits for it next says so
                link.sendall(_ARRIVED)


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Around collectives of the device: one given up since a rank came late is a UserError that says so."""
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        waited = time.monotonic() - start
        if waited < _IMPATIENT or not _GIVEN_UP.search(str(error)):
            raise
        raise UserError(
            f"a rank came more than {waited:.0f} s after the others to the sum of the gradients; on a CPU MindSpore "
            "2.9 and older do not wait longer; look for what slows it (reading images, another job), or take 2.10"
        ) from error
