"""Jobs that do not get on: who is named, and how they end."""

import json
import os
import re
import signal
import socket
import time
import uuid
from pathlib import Path

import pytest
from processes import finish, mpirun_command, processes_with, start, wait_for_end

from mindcv_reparam import distributed, watch
from mindcv_reparam.watch import STALLED, Place, Watch

WORKER = Path(__file__).with_name("distributed_worker.py")
CLOCK = r"\d\d:\d\d:\d\d"


@pytest.fixture
def token():
    """An argument that marks the processes of one job; none of them may be left."""
    token = uuid.uuid4().hex
    yield token
    assert wait_for_end(token, seconds=10) == []


def stepping(token, monkeypatch, **environment):
    """A job of two ranks that has taken some steps, and the process of each rank."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    job = start(mpirun_command(2, WORKER, "stepping", token))
    assert [job.stdout.readline(), job.stdout.readline()] == ["ready\n", "ready\n"]
    ranks = {}
    for pid in processes_with(token):
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {int(entry[21:]): pid for entry in environ if entry.startswith(b"OMPI_COMM_WORLD_RANK=")}
    return job, ranks


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_is_named_and_the_job_ends(frozen, token, monkeypatch):
    job, ranks = stepping(token, monkeypatch, STALL_TIMEOUT="6")
    os.kill(ranks[frozen], signal.SIGSTOP)
    begin = time.monotonic()
    status, _, errors = finish(job)
    assert status == STALLED == 75
    assert 5 < time.monotonic() - begin < 30
    other = "rank 1: " if frozen == 0 else ""
    (line,) = (line for line in errors.splitlines() if "no progress" in line)
    place = rf"at (step \d+|the vote|the reading of images) since {CLOCK}"
    assert line.startswith(
        f"{other}error: no progress for 6 s (stall_timeout): rank {frozen} on {socket.gethostname()} "
    )
    assert re.search(
        rf" is silent since {CLOCK}, at (step \d+|the vote|the reading of images); this rank waits {place}$", line
    ), line
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_hanging_disk_is_named_on_every_rank(token, monkeypatch):
    job, _ = stepping(token, monkeypatch, STALL_TIMEOUT="6", HANGS="1")
    status, _, errors = finish(job)
    assert status == STALLED
    lines = [line for line in errors.splitlines() if "no progress for 6 s" in line]
    assert len(lines) == 2
    waiting, hanging = sorted(lines)
    assert f"rank 1 on {socket.gethostname()} is at the reading of images since" in waiting
    assert waiting.startswith("error: ")
    assert re.search(rf"; this rank waits at step 6\d since {CLOCK}$", waiting)
    assert re.search(rf"^rank 1: error: .*: this rank is at the reading of images since {CLOCK}$", hanging)


@pytest.mark.slow
def test_sigterm_is_heard_while_a_rank_is_frozen(token, monkeypatch):
    """Which a rank in a collective would not hear of: it waits there, in C++, for the frozen one."""
    job, ranks = stepping(token, monkeypatch, STALL_TIMEOUT="600")
    os.kill(ranks[1], signal.SIGSTOP)
    time.sleep(1)
    os.kill(ranks[0], signal.SIGTERM)
    begin = time.monotonic()
    status, _, errors = finish(job)
    assert status == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 40
    assert "stopped by SIGTERM without saving: rank 1 on" in errors


@pytest.mark.slow
def test_a_job_that_gets_on_is_left_alone(token, monkeypatch):
    job, ranks = stepping(token, monkeypatch, STALL_TIMEOUT="8")
    time.sleep(10)
    os.kill(ranks[1], signal.SIGTERM)
    status, _, errors = finish(job)
    assert status == 128 + signal.SIGTERM
    assert "no progress" not in errors
    assert errors.count("stopped after step") == 1


@pytest.fixture
def place(monkeypatch):
    """Puts this process at a place, some seconds ago."""

    def put(seconds, **properties):
        since = time.monotonic() - seconds
        monkeypatch.setattr(watch._State, "place", Place("step 7", count=7, since=since, **properties))

    monkeypatch.setattr(watch._State, "longest", 0.0)
    monkeypatch.setattr(watch._State, "watch", None)
    return put


@pytest.fixture
def pair():
    """Rank 0 and rank 1 of two, connected, long awake."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))
    address = listener.getsockname()
    both = Watch(0, 2, 10.0, address, b"token", listener), Watch(1, 2, 10.0, address, b"token")
    for each in both:
        each._awake -= 1000
    yield both
    for each in both:
        each._socket.close()


def exchange(zero, one):
    """One message each way."""
    one._send()
    time.sleep(0.05)
    zero._receive()
    zero._send()
    time.sleep(0.05)
    one._receive()


def test_alone(place):
    alone = Watch(0, 1, 10.0)
    alone._awake -= 1000
    place(9.0)
    assert alone.waits(10.0, 10.0) is None
    place(11.0)
    assert re.fullmatch(rf"this process is at step 7 since {CLOCK}", alone.waits(10.0, 10.0))
    assert alone.waits(10.0, 60.0) is None


def test_ranks_hear_of_one_another(place, pair):
    zero, one = pair
    place(11.0)
    exchange(zero, one)
    assert [peer.count for peer in zero._known() + one._known()] == [7, 7]
    for each in pair:
        assert each.waits(10.0, 10.0).startswith("every rank is at step 7 since")
        assert each.waits(10.0, 60.0) is None
    zero._peers[1] = zero._peers[1]._replace(count=6, text="the images of step 7")
    assert zero.waits(10.0, 10.0).startswith(f"rank 1 on {socket.gethostname()} is at the images of step 7 since")
    zero._peers[1] = zero._peers[1]._replace(count=8)
    assert zero.waits(10.0, 10.0).startswith("this rank is at step 7 since")


def test_a_silent_rank_counts_also_where_one_compiles(place, pair):
    zero, one = pair
    place(11.0, compiles=True)
    exchange(zero, one)
    assert zero.waits(10.0, 60.0) is None
    zero._peers[1] = zero._peers[1]._replace(heard=time.monotonic() - 10.5)
    assert f"rank 1 on {socket.gethostname()} is silent since" in zero.waits(10.0, 60.0)


def test_who_was_stopped_itself_accuses_nobody(place, pair):
    """After SIGCONT, or the suspension of the whole job."""
    zero, one = pair
    place(1000.0)
    exchange(zero, one)
    zero._peers[1] = zero._peers[1]._replace(heard=time.monotonic() - 1000.0)
    zero._awake = time.monotonic()
    assert zero.waits(10.0, 10.0) is None


def test_strangers_and_lost_connections_change_nothing(place, pair):
    zero, one = pair
    place(0.0)
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    entry = [1, "elsewhere", 0.0, 0, "nowhere", 1000.0]
    stranger.sendto(b"guess" + json.dumps([entry]).encode(), zero._socket.getsockname())
    time.sleep(0.05)
    zero._receive()
    assert zero._known() == []
    stranger.close()
    place(11.0)
    assert zero.waits(10.0, 10.0).startswith("this rank, which hears no other, is at step 7")
    zero._socket.close()
    one._send()  # to nobody


def test_a_signal_waits_for_long_steps_and_for_saving(place, monkeypatch):
    monkeypatch.setattr(watch._State, "watch", alone := Watch(0, 1, 0.0))
    alone._awake -= 1000
    place(25.0)
    assert watch.hopeless(20.0)
    place(25.0, saves=True)
    assert watch.hopeless(20.0) is None
    place(25.0)
    watch._State.longest = 15.0
    assert watch.hopeless(20.0) is None
    watch._State.longest = 3600.0  # it was suspended once
    place(130.0)
    assert watch.hopeless(20.0)


def test_a_job_that_failed_leaves_no_watch_behind():
    """Where its process lives on: a notebook would end ten minutes later."""
    ranks = distributed.start(None, "CPU", 600.0)
    assert watch._State.watch.seconds == 600.0
    with pytest.raises(KeyError), ranks:
        raise KeyError
    assert watch._State.watch is None
    watch.begin(first := Watch(0, 1, 0.0))
    with ranks:
        watch.begin(Watch(0, 1, 0.0))
        assert first.ended.is_set()
    assert watch._State.watch is None


def test_places_are_counted_and_long_ones_remembered(place):
    place(30.0)
    watch.at("step 8")
    watch.at("step 9", compiles=True)
    assert (watch.here().text, watch.here().count, watch.here().compiles) == ("step 9", 9, True)
    assert 30 <= watch._State.longest < 31
