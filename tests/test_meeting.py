"""Ranks that wait for one another outside of collectives."""

import socket
import threading
import time

import numpy as np
import pytest

from mindcv_reparam import meeting
from mindcv_reparam.distributed import Distributed
from mindcv_reparam.errors import UserError
from mindcv_reparam.meeting import Meeting, impatient


@pytest.fixture
def ranks():
    """The ends of a job of three."""
    pairs = [socket.socketpair() for _ in range(2)]
    ends = [
        Meeting([pair[0] for pair in pairs], presides=True),
        *(Meeting([pair[1]], presides=False) for pair in pairs),
    ]
    yield ends
    for end in ends:
        end.close()


@pytest.mark.parametrize("late", [0, 1, 2])
def test_nobody_goes_on_before_the_last(ranks, late):
    left, gone = [], threading.Barrier(3)

    def meet(rank: int) -> None:
        for _ in range(2):
            ranks[rank].wait()
            left.append(rank)
            gone.wait(10)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(3) if rank != late]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert left == []
    last = threading.Thread(target=meet, args=(late,))
    last.start()
    for thread in (*threads, last):
        thread.join(10)
    assert sorted(left) == [0, 0, 1, 1, 2, 2]


def test_a_rank_that_is_gone_is_left_to_the_launcher_and_then_an_error(ranks, monkeypatch):
    slept = []
    monkeypatch.setattr(meeting.time, "sleep", slept.append)
    ranks[0].close()
    with pytest.raises(UserError, match="a rank has left the job"):
        ranks[1].wait()
    assert slept == [120.0]


def test_collectives_of_the_host_begin_with_a_meeting():
    class Met(Exception):
        pass

    class Place:
        def wait(self):
            raise Met

    with pytest.raises(Met):
        Distributed(0, 2, _meeting=Place()).sum(np.ones(2))


@pytest.mark.parametrize(
    ("seconds", "message", "kind"),
    [
        (31.0, "Launch kernel failed, name:Default/AllReduce-op0", UserError),
        (31.0, "#umsg#Kernel error:#umsg#Launch kernel failed, name:Default/network-Net/\nAllGather-op3", UserError),
        (1.0, "Launch kernel failed, name:Default/AllReduce-op0", RuntimeError),  # a rank is gone, and says why
        (31.0, "Launch kernel failed, name:Default/MatMul-op0", RuntimeError),
    ],
)
def test_a_collective_that_was_given_up_is_one_line(monkeypatch, seconds, message, kind):
    clock = iter((100.0, 100.0 + seconds))
    monkeypatch.setattr(meeting.time, "monotonic", lambda: next(clock))
    with pytest.raises(kind) as error, impatient():
        raise RuntimeError(message)
    assert error.type is kind
    assert kind is RuntimeError or "more than 31 s after the others" in str(error.value)
