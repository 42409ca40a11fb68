"""Whether a job gets on: where every rank is, and an end with a line on each when none has moved for too long.

Every rank says where it is by ``at``, all of them in the same order. A thread tells rank 0 once a second, by UDP and so
without the device, and rank 0 tells all ranks who is silent or behind. A job ends when this process has stayed at one
place for the set time (six times as long where it compiles) or, at any place, a rank has been silent as long: frozen,
or on a host that is lost. What the ranks tell is only used to name whom they wait for: without a connection for UDP
between the hosts a job stalls and ends all the same, and says less.
"""

import json
import math
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

STALLED = 75  # exit status: EX_TEMPFAIL of sysexits.h, "try again later"
_PERIOD = 1.0  # seconds between two messages
_FROZEN = 5.0  # seconds more than that between two looks: this process itself was stopped, or compiled
_SPEAK = 3.0  # seconds from a rank's last words to its end, which ends the others
_COMPILES = 6  # times the set time
_LONGEST = 120.0  # seconds: what a signal waits at most for the step under way
_TOLD = 8  # ranks that rank 0 tells about
_DATAGRAM = 65_000


@dataclass(frozen=True)
class Place:
    """Where a process is; ``since`` is a time of the monotonic clock."""

    text: str
    compiles: bool = False  # and so may take long
    saves: bool = False  # and so is not cut short by a signal
    disposable: bool = False  # nothing is lost by ending here
    count: int = 0  # places before it
    since: float = field(default_factory=time.monotonic)


class Peer(NamedTuple):
    """What is known of another rank: when it was heard last, and since when it was where it was then."""

    rank: int
    host: str
    heard: float
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    text: str
    since: float


class _State:
    """Of this process, which has one."""

    place = Place("the set-up", compiles=True)
    longest = 0.0  # seconds at a place that neither compiles nor saves
    watch: "Watch | None" = None


def at(text: str, *, compiles: bool = False, saves: bool = False, disposable: bool = False) -> None:
    """Say where this process is from now on; on every rank, or on none."""
    before = _State.place
    _State.place = Place(text, compiles, saves, disposable, before.count + 1)
    if not (before.compiles or before.saves):
        _State.longest = max(_State.longest, _State.place.since - before.since)


def here() -> Place:
    return _State.place


def hopeless(seconds: float) -> str | None:
    """Whom this process waits for, if it has been at one place for ``seconds`` and twice as long as at any before;
    where it compiles or saves, only if a rank is silent. Else None."""
    watch = _State.watch or Watch(0, 1, seconds)
    seconds = max(seconds, min(2 * _State.longest, _LONGEST))
    place = here()
    return watch.waits(seconds, math.inf if place.compiles or place.saves else seconds)


def begin(watch: "Watch") -> None:
    """Watch this process until ``end`` or another watch; 0 seconds: only to know whom it waits for."""
    end()
    _State.watch = watch
    threading.Thread(target=watch.run, name="watch", daemon=True).start()


def end() -> None:
    if _State.watch:
        _State.watch.ended.set()
        _State.watch = None


def leave(status: int, message: str) -> NoReturn:
    """End the process at once, from any thread and whatever the main one does; its clean-up would wait for that."""
    start = "\n" if sys.stderr.isatty() else ""  # there may be a progress bar
    os.write(2, f"{start}{message}\n".encode())
    os._exit(status)


class Watch:
    """One rank's view of the others.

    Args:
        rank: of this process.
        size: how many there are.
        seconds: without progress until the job ends; 0: never.
        main: address of rank 0, None where there is no other rank.
        token: bytes that messages of this job begin with.
        listener: rank 0's socket at that address.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        seconds: float,
        main: tuple[str, int] | None = None,
        token: bytes = b"",
        listener: socket.socket | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self.seconds = seconds
        self.ended = threading.Event()
        self._main = main
        self._token = token
        self._host = socket.gethostname()
        self._peers: dict[int, Peer] = {}
        self._addresses: dict[int, tuple[str, int]] = {}  # of the other ranks, known to rank 0
        self._awake = time.monotonic()  # since then this process was not stopped itself
        self._socket = listener
        if main and not listener:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if self._socket:
            self._socket.setblocking(False)

    def run(self) -> None:
        period = min(_PERIOD, self.seconds / 10) if self.seconds else _PERIOD
        last = time.monotonic()
        while not self.ended.wait(period):
            now = time.monotonic()
            if now - last > period + _FROZEN:
                self._awake = now
            last = now
            self._receive()
            self._send()
            allowed = self.seconds * (_COMPILES if here().compiles else 1)
            if self.seconds and (reason := self.waits(self.seconds, allowed)):
                prefix = f"rank {self.rank}: " if self.rank else ""
                message = f"{prefix}error: no progress for {self.seconds:g} s (stall_timeout): {reason}"
                if self.size > 1:
                    os.write(2, f"{message}\n".encode())  # every rank says so, before the first one's end ends them
                    time.sleep(_SPEAK)
                    os._exit(STALLED)
                leave(STALLED, message)

    def waits(self, seconds: float, alone: float) -> str | None:
        """Whom this process waits for if it has been at one place for ``seconds`` and a rank is silent as long, or for
        ``alone``; else None."""
        now, place, peers = time.monotonic(), here(), self._known()
        stayed = now - max(place.since, self._awake)
        quiet = {peer.rank: now - max(peer.heard, self._awake) for peer in peers}
        if stayed < seconds or (stayed < alone and max(quiet.values(), default=0.0) < seconds):
            return None
        # A rank falls silent a little after the others begin to wait for it.
        silent = [peer for peer in peers if quiet[peer.rank] >= seconds / 2]
        behind = [peer for peer in peers if peer.count < place.count]
        if silent:
            told = [f"rank {p.rank} on {p.host} is silent since {_clock(p.heard)}, at {p.text}" for p in silent]
        else:
            told = [f"rank {p.rank} on {p.host} is at {p.text} since {_clock(p.since)}" for p in behind]
        verb = "waits" if told else "is"
        if self.size == 1:
            this = "this process"
        elif not peers:
            this = "this rank, which hears no other,"
        else:
            this = "this rank" if told or any(peer.count > place.count for peer in peers) else "every rank"
        return "; ".join([*told, f"{this} {verb} at {place.text} since {_clock(place.since)}"])

    def _known(self) -> list[Peer]:
        """The others as far as they are known. When rank 0 falls silent, nothing new is known of the rest."""
        peers = list(self._peers.values())
        if self.rank and 0 in self._peers and time.monotonic() - self._peers[0].heard > 5 * _PERIOD:
            return [self._peers[0]]
        return peers

    def _receive(self) -> None:
        """Take what has come: of rank 0 a table, of the others their own entries."""
        while self._socket:
            try:
                content, address = self._socket.recvfrom(_DATAGRAM)
            except OSError:  # nothing there, or word that rank 0 is gone
                return
            if not content.startswith(self._token):
                continue
            now, heard = time.monotonic(), {}
            for rank, host, silent, count, text, stayed in json.loads(content[len(self._token) :]):
                heard[rank] = Peer(rank, host, now - silent, count, text, now - stayed)
            if self.rank:
                heard.pop(self.rank, None)
                self._peers = heard
            else:
                self._peers |= heard
                self._addresses |= dict.fromkeys(heard, address)

    def _send(self) -> None:
        now, place = time.monotonic(), here()
        own = (self.rank, self._host, 0.0, place.count, place.text, now - place.since)
        entries, to = [own], [self._main]
        if not self.rank:
            worst = sorted(self._peers.values(), key=lambda peer: (now - peer.heard < 5 * _PERIOD, peer.count))
            entries += [(p.rank, p.host, now - p.heard, p.count, p.text, now - p.since) for p in worst[:_TOLD]]
            to = list(self._addresses.values())
        content = self._token + json.dumps(entries).encode()
        for address in to:
            if self._socket and address:
                try:
                    self._socket.sendto(content, address)
                except OSError:  # no route, or the other is gone: then nothing will be heard of it
                    continue


def _clock(monotonic: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time.time() - time.monotonic() + monotonic))
