"""What is checked about the hosts of a job before anybody waits, and a worker of msrun that has lost its scheduler."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mindcv_reparam import distributed, errors, guardian, hosts
from mindcv_reparam.errors import UserError
from mindcv_reparam.guardian import Guardian, _scheduler_beside
from mindcv_reparam.runtime import prepare

MSRUN = ["/opt/bin/python", "/opt/bin/msrun", "--worker_num=16"]
WORKER = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "16", "MS_SCHED_PORT": "8118"}


def test_msruns_workers_count_the_ranks_of_their_host(monkeypatch):
    assert hosts.workers_of([*MSRUN, "--local_worker_num=4", "train.py"]) == 4
    assert hosts.workers_of([*MSRUN, "--local_worker_num", "4", "train.py"]) == 4
    assert hosts.workers_of([*MSRUN, "train.py"]) == 8
    assert hosts.workers_of(["bash", "start.sh", "--local_worker_num=4"]) is None
    monkeypatch.setattr(hosts, "_command_line", lambda process: [*MSRUN, "--local_worker_num=4", "train.py"])
    assert hosts.local_ranks(WORKER, 16) == 4
    monkeypatch.setattr(hosts, "_command_line", lambda process: ["bash"])
    assert hosts.local_ranks(WORKER, 16) == 16


def test_ranks_on_this_host():
    assert hosts.local_ranks({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 16) == 4
    assert hosts.local_ranks({}, 16) == 16
    assert hosts._command_line(os.getpid())[0].endswith(("python", "python3", "pytest"))


def test_two_hosts_of_one_name_are_told():
    hosts.check_names(["a", "a", "b"], [2, 2, 1])
    with pytest.raises(UserError, match="2 ranks are on hosts called a, which say they have 1"):
        hosts.check_names(["a", "a", "b"], [1, 1, 1])


def test_a_folder_that_is_missing_on_another_host_is_told(tmp_path):
    hosts.check_folder(str(tmp_path))
    with pytest.raises(UserError, match=f"none, where the job was started, is missing on {socket.gethostname()}"):
        hosts.check_folder(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("address", "local", "message"),
    [
        ("127.0.0.1", 16, None),
        ("10.0.0.1", 8, None),
        ("127.0.1.1", 16, "serves nothing"),
        ("127.0.1.1", 8, "other hosts do not reach it"),
        ("127.0.0.1", 8, "other hosts do not reach it"),
    ],
)
def test_the_address_of_msruns_scheduler(address, local, message, monkeypatch):
    monkeypatch.setattr(hosts, "_command_line", lambda process: [*MSRUN, f"--local_worker_num={local}"])
    environ = WORKER | {"MS_SCHED_HOST": address}
    if message is None:
        hosts.check_scheduler(environ, 16)
    else:
        with pytest.raises(UserError, match=message):
            hosts.check_scheduler(environ, 16)


def test_a_worker_and_the_scheduler_check_before_they_wait(monkeypatch):
    for name, value in {**WORKER, "MS_NODE_ID": "0", "DEVICE_ID": "0", "MS_SCHED_HOST": "127.0.1.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"127\.0\.1\.1"):
        distributed.start(None, "CPU")
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    monkeypatch.setenv("MS_SCHED_HOST", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MS_SCHED_PORT", str(taken.getsockname()[1]))
        with pytest.raises(UserError, match=r"in use.*--master_port"):
            prepare("CPU")


def test_the_address_that_mpirun_is_told():
    assert hosts.served_address("127.0.0.1", ["a", "a"])[0] == "127.0.0.1"
    with pytest.raises(UserError, match="no address of a"):
        hosts.served_address("192.0.2.1", ["a", "b"])
    with pytest.raises(UserError, match="which no other host reaches"):
        hosts.served_address("127.0.0.1", ["a", "b"])


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ""),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, ""),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ""),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            f"rank 1 on {socket.gethostname()}: ",
        ),
    ],
)
def test_errors_of_other_hosts_say_where(environ, expected):
    assert errors._place(environ) == expected


@pytest.fixture
def guarded():
    """A guardian of a server, and what it said."""
    said, told = [], threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def lose(line):
        said.append(line)
        told.set()

    def make(scheduler=None):
        return Guardian(server.getsockname(), scheduler, lose, lost=0.5)

    make.server, make.said, make.told = server, said, told
    yield make
    server.close()


def test_a_worker_notices_that_its_scheduler_does_not_answer(guarded):
    guardian = guarded()
    guardian.joined()
    assert not guarded.told.wait(1.0)
    guarded.server.close()
    assert guarded.told.wait(5.0)
    assert "does not answer since" in guarded.said[0]
    assert "--resume auto" in guarded.said[0]


def test_connections_count_only_while_the_worker_is_in_the_cluster(guarded):
    guardian = guarded()
    guarded.server.close()
    assert not guarded.told.wait(1.0)
    guardian.joined()
    guardian.end()
    assert not guarded.told.wait(1.0)


def test_a_worker_notices_before_it_has_joined_that_the_scheduler_beside_it_has_ended(guarded):
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(program, env=os.environ | {"MS_ROLE": "MS_SCHED"})
    assert _scheduler_beside(os.getpid()) == child.pid
    guarded(child.pid)
    assert not guarded.told.wait(0.5)
    child.kill()  # a zombie, since nobody waits for it
    assert guarded.told.wait(5.0)
    assert "scheduler.log" in guarded.said[0]
    guarded(child.pid)  # tells it at once, since a worker's next step lets no thread look
    assert len(guarded.said) == 2
    child.wait()
    assert _scheduler_beside(os.getpid()) is None


def test_a_scheduler_that_has_ended_before_a_worker_looks_is_found():
    """msrun leaves it a zombie; who else has one has nothing to do with it."""
    for name, found in (("msrun", True), ("bash", False)):
        program = f"sleep 0.3 & echo $!; exec -a {name} sleep 60"  # bash reaps one that ends before exec
        with subprocess.Popen(["bash", "-c", program], stdout=subprocess.PIPE) as job:
            ended = int(job.stdout.readline())
            until = time.monotonic() + 10
            while ") Z " not in Path(f"/proc/{ended}/stat").read_text() and time.monotonic() < until:
                time.sleep(0.01)
            told = _scheduler_beside(job.pid)
            job.kill()
        assert (told == ended) is found


def test_who_has_lost_its_scheduler_says_whom_it_waits_for(monkeypatch):
    left = []
    monkeypatch.setattr(guardian, "Guardian", lambda address, scheduler, lose: lose)
    monkeypatch.setattr(guardian.watch, "leave", lambda status, message: left.append((status, message)))
    place = f"rank 1 on {socket.gethostname()}: error: it has ended"
    for silent, told in ((None, ""), ("rank 0 on a is silent", "; rank 0 on a is silent")):
        monkeypatch.setattr(guardian.watch, "hopeless", lambda seconds, silent=silent: silent)
        guardian.guard(WORKER, 1)("it has ended")
        assert left.pop() == (75, place + told)
