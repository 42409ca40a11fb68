"""Scripts that fail: one line, the right exit status, and once for all ranks."""

import os
import subprocess
import sys

import pytest
from processes import ENVIRONMENT, mpirun_command

from mindcv_reparam.errors import nearest

SCRIPT = """
import os, sys, time
from mindcv_reparam.errors import UserError, run_script
rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))
def main():
    {}
run_script(main)
"""


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=60)


def script(body: str) -> subprocess.CompletedProcess:
    return run([sys.executable, "-c", SCRIPT.format(body)])


def mpirun(body: str, ranks: int) -> subprocess.CompletedProcess:
    return run(mpirun_command(ranks, "-c", SCRIPT.format(body)))


@pytest.mark.parametrize(
    ("body", "status", "err"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise UserError('no file x: give --y')", 2, "error: no file x: give --y\n"),
        ("raise UserError('two\\nlines')", 2, "error: two lines\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("sys.exit(0)", 0, ""),
    ],
)
def test_status_and_message(body, status, err):
    ended = script(body)
    assert (ended.returncode, ended.stderr) == (status, err)


def test_bug_keeps_its_traceback():
    ended = script("1 / 0")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_closed_pipe_is_quiet():
    code = SCRIPT.format("[print(i) for i in range(100000)]")
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
    )
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait() == 141


@pytest.mark.slow
@pytest.mark.parametrize("error", ["UserError('no such folder')", "ValueError('no such folder')"])
def test_failure_of_all_ranks_is_shown_once(error):
    ended = mpirun(f"raise {error}", 4)
    assert ended.returncode == (2 if "User" in error else 1)
    assert ended.stderr.count("no such folder") == 1 + ended.stderr.count("raise ")


@pytest.mark.slow
def test_failure_of_one_rank_is_shown_and_ends_the_others():
    ended = mpirun("\n    ".join(["if rank == 3:", "    raise UserError('bad disk')", "time.sleep(50)"]), 4)
    assert ended.returncode == 2
    assert ended.stderr.count("error: bad disk") == 1


@pytest.mark.slow
def test_failing_rank_does_not_wait_for_mpi_to_finalize():
    body = ["from mpi4py import MPI", "if rank == 1:", "    raise UserError('bad disk')", "MPI.COMM_WORLD.barrier()"]
    ended = mpirun("\n    ".join(body), 2)
    assert ended.returncode == 2
    assert ended.stderr.count("error: bad disk") == 1


@pytest.mark.slow
def test_what_follows_from_a_failure_is_not_taken_for_it():
    """Rank 1 leaves, and rank 0 loses its connection sooner than the launcher has noticed anything."""
    body = [
        "if rank == 1:",
        "    raise UserError('bad disk')",
        "time.sleep(1)",
        "raise RuntimeError('connection lost')",
    ]
    ended = mpirun("\n    ".join(body), 2)
    assert ended.returncode == 2
    assert ended.stderr.count("error: bad disk") == 1
    assert "connection lost" not in ended.stderr


@pytest.mark.parametrize(
    ("word", "expected"),
    [("visformer_tni", "visformer_tiny"), ("FASTVIT_T8", "fastvit_t8"), ("zzz", "fastvit_t8"), ("", "fastvit_t8")],
)
def test_nearest_always_finds_one(word, expected):
    names = ["fastvit_t8", "visformer_tiny", "visformer_small"]
    assert nearest(word, names) in names
    if word and word != "zzz":
        assert nearest(word, names) == expected
