"""Ranks, here threads with connections of their own, agree on the step after which all of them stop."""

import contextlib
import random
import socket
import threading
import time

import pytest

from mindcv_reparam import votes
from mindcv_reparam.votes import Ballot

TOKEN = b"12345678"
STEPS = 60


def connected(size: int) -> list[Ballot]:
    """The ballots of a job's ranks, connected as in a job."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    links: dict[int, list[socket.socket]] = {}

    def connect(rank: int) -> None:
        links[rank] = votes.connect(rank, size, address, TOKEN, None if rank else listener)

    threads = [threading.Thread(target=connect, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return [Ballot(links[rank], presides=rank == 0) for rank in range(size)]


class Job:
    """Ranks that take steps together: one is at most a step ahead of another where a device is waited for at every
    step, as on a CPU, and ``ahead`` more where the hosts queue steps."""

    def __init__(self, ballots: list[Ballot], ahead: int = 0) -> None:
        self.ballots = ballots
        self.ahead = ahead
        self.begun = [0] * len(ballots)
        self.stopped: dict[int, tuple[int, int] | None] = {}  # by rank: step and signal, None for a run to its end
        self.moved = threading.Condition()

    def step(self, rank: int, step: int) -> None:
        with self.moved:
            self.begun[rank] = step + 1
            self.moved.notify_all()
            if not self.moved.wait_for(lambda: min(self.begun) > step - self.ahead, 20):
                raise TimeoutError(f"rank {rank} waits at step {step}: {self.begun}")

    def rank(self, rank: int, first: int, pause: float) -> None:
        rng = random.Random(rank)
        ballot = self.ballots[rank]
        with contextlib.ExitStack() as last:
            last.callback(ballot.leave)
            for step in range(first, first + STEPS):
                self.step(rank, step)
                time.sleep(pause * rng.random())
                if number := ballot.passed(step):
                    self.stopped[rank] = step, number
                    return
            self.stopped[rank] = None

    def run(self, first: int = 0, pause: float = 0.002) -> list[threading.Thread]:
        self.begun = [first] * len(self.ballots)
        threads = [
            threading.Thread(target=self.rank, args=(rank, first, pause), daemon=True)
            for rank in range(len(self.ballots))
        ]
        for thread in threads:
            thread.start()
        return threads

    def end(self, threads: list[threading.Thread]) -> set[tuple[int, int] | None]:
        for thread in threads:
            thread.join(30)
        assert len(self.stopped) == len(self.ballots)
        return set(self.stopped.values())


@pytest.mark.parametrize("ahead", [0, 7])
@pytest.mark.parametrize("caller", [0, 2])
def test_all_ranks_stop_after_the_same_step(caller, ahead):
    for trial in range(5):
        job = Job(connected(3), ahead)
        threads = job.run(first=40)
        time.sleep(0.005 * trial)
        job.ballots[caller].call(15)
        (stop,) = job.end(threads)
        assert stop is not None
        assert 40 <= stop[0] < 40 + STEPS - 1
        assert stop[1] == 15


def test_signals_to_several_ranks_are_one_vote():
    job = Job(connected(4), ahead=2)
    threads = job.run()
    for rank, ballot in enumerate(job.ballots):
        ballot.call(10 + rank)
    (stop,) = job.end(threads)
    assert stop is not None
    assert stop[1] in {10, 11, 12, 13}


def test_a_signal_before_the_first_step_stops_after_it():
    ballots = connected(2)
    ballots[1].call(12)
    time.sleep(0.1)
    job = Job(ballots)
    assert job.end(job.run(first=5)) == {(5, 12)}


def test_without_a_signal_every_rank_comes_to_its_end_and_nobody_waits():
    job = Job(connected(2))
    assert job.end(job.run(pause=0.0)) == {None}


def test_a_signal_at_the_end_stops_all_ranks_or_none():
    """A rank that has left takes no further step, so the other must not stop short of its own end."""
    for trial in range(8):
        job = Job(connected(2), ahead=3)
        threads = job.run(pause=0.0005)
        time.sleep(0.0012 * trial)
        job.ballots[trial % 2].call(15)
        assert len(job.end(threads)) == 1
    ballots = connected(2)
    ballots[0].leave()
    ballots[1].call(15)
    assert [ballots[1].passed(step) for step in range(3)] == [None] * 3
    ballots = connected(2)
    ballots[1].leave()
    ballots[0].call(15)
    assert [ballots[0].passed(step) for step in range(3)] == [None] * 3


def test_a_rank_that_has_answered_waits_for_the_answer_of_the_others():
    """Else it would begin a step that the last one may be before."""
    first, second = socket.socketpair()
    ballot = Ballot([first], presides=True)
    ballot.call(15)
    passed = []
    waiting = threading.Thread(target=lambda: passed.append(ballot.passed(7)), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert passed == []
    second.sendall(votes._MESSAGE.pack(votes._AT, 7))
    waiting.join(5)
    assert passed == [15]


def test_strangers_and_their_silence_do_not_take_a_ranks_place(monkeypatch):
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    stranger = socket.create_connection(address)
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    found = []
    presiding = threading.Thread(target=lambda: found.extend(votes.connect(0, 2, address, TOKEN, listener)))
    presiding.start()
    (link,) = votes.connect(1, 2, address, TOKEN, None)
    presiding.join(10)
    assert [other.getpeername() for other in found] == [link.getsockname()]

    monkeypatch.setattr(votes, "_PATIENCE", 0.2)
    with pytest.raises(OSError, match="timed out"):
        votes.connect(0, 2, address, TOKEN, socket.create_server(("127.0.0.1", 0)))
