"""Who a process is, and whole jobs under mpirun and msrun: sums, equal weights, and failures that end everything."""

import json
import os
import subprocess
import sys
import uuid
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from processes import ENVIRONMENT, finish, mpirun_command, msrun_command, processes_with, start, wait_for_end

from mindcv_reparam import distributed, joining, scheduler
from mindcv_reparam.distributed import Distributed, Launch, launched
from mindcv_reparam.errors import UserError

WORKER = Path(__file__).with_name("distributed_worker.py")
MINDSPORE = tuple(map(int, version("mindspore").split(".")[:2]))
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "16", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2"}
MSRUN = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "16", "MS_NODE_ID": "9", "RANK_ID": "9", "DEVICE_ID": "1"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Launch()),
        ({"RANK_ID": "3", "DEVICE_ID": "2"}, Launch()),
        (OPEN_MPI, Launch("mpirun", rank=5, size=16, local_rank=1)),
        (HYDRA, Launch("mpirun", rank=3, size=4, local_rank=2)),
        (MSRUN, Launch("msrun", rank=9, size=16, local_rank=1)),
        (MSRUN | {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}, Launch("msrun", is_scheduler=True)),
    ],
)
def test_launch_is_read_from_the_environment(environ, expected):
    assert launched(environ) == expected


def test_msrun_on_several_hosts_needs_the_node_rank():
    environ = {name: value for name, value in MSRUN.items() if name != "MS_NODE_ID"}
    with pytest.raises(UserError, match="--node_rank"):
        launched(environ)


def test_importing_it_imports_neither_mindspore_nor_mpi():
    program = "import sys, mindcv_reparam.distributed; print('mindspore' in sys.modules, 'mpi4py' in sys.modules)"
    command, environ = [sys.executable, "-c", program], os.environ | ENVIRONMENT
    assert subprocess.run(command, env=environ, capture_output=True, text=True).stdout == "False False\n"


def test_distribute_has_to_agree_with_the_launch(monkeypatch):
    with pytest.raises(UserError, match="mpirun"):
        distributed.start(True, "CPU")
    for name, value in OPEN_MPI.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="mpirun started 16 processes"):
        distributed.start(False, "CPU")


def test_environment_is_set_for_clusters_only_and_never_over_the_users(monkeypatch):
    variables = ("GLOG_v", "MS_CPU_COMM_OP_TIMEOUT", "MS_RETRY_INTERVAL_LOWER", "MS_RETRY_INTERVAL_UPPER")
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    distributed.set_environment()
    assert not any(name in os.environ for name in variables)

    for name, value in OPEN_MPI.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(variables[0], "1")
    for name in variables[1:]:  # so that monkeypatch takes away what the call sets
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    distributed.set_environment()
    assert os.environ[variables[0]] == "1"
    assert os.environ["MS_CPU_COMM_OP_TIMEOUT"] == "3600"


def test_msruns_scheduler_gives_a_dead_rank_up_within_30_seconds(monkeypatch):
    for name in ("GLOG_v", "MS_CPU_COMM_OP_TIMEOUT", "MS_RETRY_INTERVAL_LOWER", "MS_RETRY_INTERVAL_UPPER"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    monkeypatch.setenv("MS_NODE_TIMEOUT", "")
    monkeypatch.delenv("MS_NODE_TIMEOUT")
    distributed.set_environment()
    assert int(os.environ["MS_NODE_TIMEOUT"]) <= 20


def test_a_single_process_needs_no_cluster():
    with distributed.start(None, "CPU") as job:
        assert job == Distributed(rank=0, size=1, local_rank=0, launcher="single")
        assert job.is_main
        np.testing.assert_array_equal(job.sum([[2**53, 0.1]]), [[2**53, 0.1]])
        job.check_identical([("weight", np.ones((2, 3)))])
        job.barrier()


def test_ranks_on_one_host_meet_on_its_loopback():
    assert joining.address_towards(["a", "a", "a"]) == "127.0.0.1"


def test_ranks_on_two_hosts_meet_where_the_route_between_them_starts():
    assert joining.address_towards(["a", "127.0.0.2"]) == "127.0.0.1"
    with pytest.raises(UserError, match="MS_SCHED_HOST"):
        joining.address_towards(["a", "no-such-host.invalid"])


@pytest.fixture
def token():
    """An argument that marks the processes of one job; none of them may be left."""
    token = uuid.uuid4().hex
    yield token
    assert wait_for_end(token, seconds=10) == []


@pytest.fixture
def by_scheduler(monkeypatch):
    """Ranks under mpirun are joined as before MindSpore 2.9; rank 0's scheduler ends with them."""
    monkeypatch.setenv("BY_SCHEDULER", "1")
    yield
    assert wait_for_end(scheduler.__file__, seconds=10) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpirun", "mpirun with a scheduler", "msrun"])
def test_sums_are_exact_and_equal_on_all_ranks(launcher, token, tmp_path, request):
    if launcher.endswith("scheduler"):
        request.getfixturevalue("by_scheduler")
    launcher, job = launcher.split()[0], (WORKER, "collectives", token)
    command = mpirun_command(2, *job) if launcher == "mpirun" else msrun_command(2, tmp_path, *job)
    status, output, errors = finish(start(command))
    assert status == 0, errors
    ranks, sizes, local_ranks, launchers, totals = zip(
        *(json.loads(x) for x in output.splitlines() if x.startswith("["))
    )
    assert sorted(ranks) == sorted(local_ranks) == [0, 1]
    assert sizes == (2, 2)
    assert launchers == (launcher, launcher)
    assert totals == ([[2.0**53 - 1, 0.75], [0.0, 1e-300]],) * 2
    assert "DISTRIBUTED" not in output + errors  # MindSpore's chatter about connections


def test_what_a_killed_mpirun_left_does_not_stop_one_of_its_number(tmp_path):
    leave = 'mkdir -p "$TMPDIR/ompi.$$" && touch "$TMPDIR/ompi.$$/pmix.vm.tool.$$" && exec "$@"'
    job = start(["env", f"TMPDIR={tmp_path}", "bash", "-c", leave, "-", *mpirun_command(1, "-c", "print('ran')")])
    assert finish(job) == (0, "ran\n", "")
    assert list(tmp_path.glob("ompi.*/pmix.vm.tool.*"))


@pytest.mark.slow
def test_ranks_with_different_weights_stop_with_one_line(token):
    status, _, errors = finish(start(mpirun_command(2, WORKER, "planted_difference", token)))
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "rank 1 holds another 'head.bias' than rank 0" in lines[0]


@pytest.mark.slow
def test_a_failing_rank_ends_the_job_and_shows_its_error_once(token):
    status, _, errors = finish(start(mpirun_command(2, WORKER, "failing_rank", token)))
    assert status == 1
    assert errors.count("ZeroDivisionError: planted failure") == 1
    assert errors.count("Traceback") == 1


@pytest.mark.slow
def test_a_killed_rank_ends_the_job(token):
    status, _, errors = finish(start(mpirun_command(2, WORKER, "killed_rank", token)))
    assert status == 128 + 9
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_scheduler_ends_with_a_killed_rank(by_scheduler, token):
    status, _, errors = finish(start(mpirun_command(2, WORKER, "killed_rank", token)))
    assert status == 128 + 9
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_scheduler_ends_with_a_killed_mpirun(by_scheduler, token):
    job = start(mpirun_command(2, WORKER, "waiting", token))
    assert [job.stdout.readline(), job.stdout.readline()] == ["ready\n", "ready\n"]
    assert len(processes_with(scheduler.__file__)) == 1
    job.kill()
    job.communicate()


@pytest.mark.slow
@pytest.mark.skipif(MINDSPORE >= (2, 10), reason="waits an hour in a collective")
@pytest.mark.parametrize(("where", "expected"), [("host", 0), ("device", 2)])
def test_a_rank_that_comes_late(where, expected, token, monkeypatch):
    """The ranks of MindSpore 2.9 and older wait for one another outside of its collectives, or it is said why not."""
    monkeypatch.setenv("LATE", f"{where} 45")
    status, output, errors = finish(start(mpirun_command(2, WORKER, "late_rank", token)))
    assert status == expected, errors
    assert output == ("2.0\n2.0\n" if expected == 0 else "")
    assert [line for line in errors.splitlines() if line.startswith("error: a rank came")] == [] or expected
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_ranks_end_with_a_killed_mpirun(token):
    job = start(mpirun_command(2, WORKER, "waiting", token))
    assert [job.stdout.readline(), job.stdout.readline()] == ["ready\n", "ready\n"]
    assert len(processes_with(token)) == 3
    job.kill()
    job.communicate()
