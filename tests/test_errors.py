"""Scripts that fail: one line, the right exit status, and once for all ranks."""

import os
import subprocess
import sys
import typing

import pytest
from processes import ENVIRONMENT, mpirun_command

from mindcv_reparam import suggestions
from mindcv_reparam.config import SETTINGS, Config
from mindcv_reparam.settings import choices
from mindcv_reparam.suggestions import suggestion

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


MODELS = ["fastvit_t8", "visformer_tiny", "visformer_small", "regnety_160"]
FLAGS = ["--lr", "--decay_rate", "--gelu", "--batch_size", "--data_dir", "--device_target", "--epoch_size"]


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("visformer_tni", MODELS, "; the nearest is visformer_tiny"),
        ("FASTVIT_T8", MODELS, "; the nearest is fastvit_t8"),
        ("zzz", MODELS, ""),
        ("", MODELS, ""),
        ("resnet50", MODELS, ""),
        ("--learning_rate", FLAGS, "; here it is --lr"),
        ("--learning-rate", FLAGS, "; here it is --lr"),
        ("--gpu", FLAGS, "; here it is --device_target"),
        ("--batch", FLAGS, "; here it is --batch_size"),
        ("--batch-size", FLAGS, "; the nearest is --batch_size"),
        ("--data-path", FLAGS, "; here it is --data_dir"),
        ("--epochs", FLAGS, "; here it is --epoch_size"),
        ("--patience", FLAGS, ""),
        ("--weights", FLAGS, ""),  # the flag that it would be is not among these
        ("cosine", ["constant", "cosine_decay"], "; here it is cosine_decay"),
        ("x" * 1_000_000, MODELS, ""),
    ],
)
def test_a_suggestion_is_made_only_where_it_is_no_guess(word, choices, expected):
    assert suggestion(word, choices) == expected


def test_a_suggestion_can_be_quoted():
    assert suggestion("fastvit_t9", MODELS, quoted=True) == "; the nearest is 'fastvit_t8'"


def test_every_name_of_other_tools_leads_to_one_that_exists():
    """In the scripts, in a command, or among the choices of a setting."""
    known = set(SETTINGS) | {"img_size"}
    known |= {str(choice) for hint in typing.get_type_hints(Config).values() for choice in choices(hint)}
    assert set(suggestions._ELSEWHERE) <= known
    for ours, theirs in suggestions._ELSEWHERE.items():
        for word in theirs.split():
            assert suggestion(word, [ours]) in (f"; here it is {ours}", f"; the nearest is {ours}")


def test_what_a_file_holds_cannot_write_to_the_terminal():
    ended = script("raise UserError('no key \\x1b[2J\\x07 in\\nx\\udcff')")
    assert ended.stderr == "error: no key \\x1b[2J\\x07 in x\\udcff\n"
    assert ended.returncode == 2


def test_memory_that_is_not_there_is_one_line():
    ended = script("import numpy; numpy.ones(1 << 56)")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: out of memory (Unable to allocate 512. PiB")
    assert ended.stderr.endswith("take smaller batches or images, or fewer workers\n")
