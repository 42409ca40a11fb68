"""How the ranks of a job agree on the step after which all of them stop, by messages of the hosts alone.

A collective would do it on the device, and make the host wait for it at every vote. Here nobody asks anybody until a
rank has heard a signal. Then it tells rank 0, which asks every rank for the step that is under way there; a thread
answers, whatever the main one does, and from then on no rank begins another step before it knows the last one: the
largest of the answers. No rank is beyond it, and every rank that waits has been told, so nobody waits for a step that
another one will not take.

Messages go over TCP: from each rank to rank 0 and back, in order and without loss. A rank that has left, or whose
connection broke, takes no further step, so then there is no last one, and the others go on.
"""

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import cast

_HEARD, _HOLD, _AT, _LAST = range(4)  # of a rank: a signal's number; of rank 0: the same; a step; the last step
_MESSAGE = struct.Struct("!Bq")
_GREETING = struct.Struct("!8si")  # token and rank
_NEVER = 2**62  # a step that no run comes to
_PATIENCE = 10.0  # seconds in which the ranks connect


class Ballot:
    """One rank's part; to be made on all ranks of a job at once, and left once they take no more steps.

    Args:
        links: connections; of rank 0 to every other rank, of the others to rank 0.
        presides: whether this is rank 0.
    """

    def __init__(self, links: Sequence[socket.socket], presides: bool) -> None:
        self._links = tuple(links)
        self._presides = presides
        self._changed = threading.Condition()
        self._under_way = -1  # a step that is not yet passed; before the first one, any
        self._number = 0  # of the signal, once there is a vote
        self._answers: dict[object, int] = {}  # what rank 0 knows of the others' steps
        self._last: int | None = None
        threading.Thread(target=self._listen, name="votes", daemon=True).start()

    def call(self, number: int) -> None:
        """Say that this rank has heard a signal; from any thread but a signal's handler."""
        if self._presides:
            self._take(None, _HEARD, number)
        else:
            self._send(_HEARD, number)

    def passed(self, step: int) -> int | None:
        """To be called after every step: the number of the signal if it was the last, the same on all ranks."""
        with self._changed:
            if self._number:
                self._changed.wait_for(lambda: self._last is not None)
                if self._last is not None and step >= self._last:
                    return self._number
            self._under_way = step + 1
        return None

    def leave(self) -> None:
        """Take no further step. The thread stays until the others have left, so that none misses an answer."""
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for link in self._links:
                selector.register(link, selectors.EVENT_READ, bytearray())
            while selector.get_map():
                for key, _ in selector.select():
                    self._receive(selector, key)

    def _receive(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        link, pending = cast(socket.socket, key.fileobj), key.data
        try:
            content = link.recv(4096)
        except OSError:
            content = b""
        if not content:
            selector.unregister(link)
            self._take(link, _AT if self._presides else _LAST, _NEVER)
            link.close()
        pending += content
        while len(pending) >= _MESSAGE.size:
            self._take(link, *_MESSAGE.unpack(pending[: _MESSAGE.size]))
            del pending[: _MESSAGE.size]

    def _take(self, link: socket.socket | None, kind: int, value: int) -> None:
        with self._changed:
            if kind == _HEARD and not self._number:
                self._number = value
                self._send(_HOLD, value)
            elif kind == _HOLD:
                self._number = value
                self._send(_AT, self._under_way)
            elif kind == _AT:
                self._answers[link] = value
            elif kind == _LAST and self._last is None:
                self._last = value
            if self._presides and self._number and self._last is None and len(self._answers) == len(self._links):
                self._last = max(self._under_way, *self._answers.values())
                self._send(_LAST, self._last)
            self._changed.notify_all()

    def _send(self, kind: int, value: int) -> None:
        for link in self._links:
            with contextlib.suppress(OSError):  # the other has left
                link.sendall(_MESSAGE.pack(kind, value))


def connect(
    rank: int, size: int, address: tuple[str, int], token: bytes, listener: socket.socket | None
) -> list[socket.socket]:
    """The links of a rank's ballot.

    Args:
        address: by which the others reach rank 0.
        token: eight bytes that tell this job's connections from others.
        listener: rank 0's socket at that address, which is closed.

    Raises:
        OSError: not all ranks connected in time.
    """
    if listener is None:
        link = socket.create_connection(address, timeout=_PATIENCE)
        link.sendall(_GREETING.pack(token, rank))
        return [_ready(link)]
    links: dict[int, socket.socket] = {}
    until = time.monotonic() + _PATIENCE
    with listener:
        while len(links) < size - 1:
            listener.settimeout(max(until - time.monotonic(), 1e-3))
            link, _ = listener.accept()
            link.settimeout(1.0)
            with contextlib.suppress(OSError):
                greeted, other = _GREETING.unpack(link.recv(_GREETING.size, socket.MSG_WAITALL).ljust(_GREETING.size))
                if greeted == token:
                    links[other] = _ready(link)
                    continue
            link.close()
    return list(links.values())


def _ready(link: socket.socket) -> socket.socket:
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link
