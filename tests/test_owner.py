"""A run's folder has one owner."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ENVIRONMENT

from mindcv_reparam import owner

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys, time
from pathlib import Path
from mindcv_reparam import owner
from mindcv_reparam.errors import run_script
owner._BEAT, owner._SILENT = 0.2, 2.0
{}
def main():
    owner.own(Path(sys.argv[1]))
    print("owned", flush=True)
    time.sleep(float(sys.argv[2]))
run_script(main)
"""
NO_LOCKS = "def refuse(*_): raise OSError(38, 'Function not implemented')\nowner.fcntl.lockf = refuse"
OTHER_HOST = "owner._boot = lambda: 'another'\nowner.fcntl.lockf = lambda *_: None"  # locks that hold on one host only


def start(folder, seconds=60.0, change="", **environment):
    command = [sys.executable, "-c", PROGRAM.format(change), str(folder), str(seconds)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | ENVIRONMENT | environment, stdout=pipe, stderr=pipe, text=True)


slow = pytest.mark.slow  # they start processes


@pytest.fixture
def owned(tmp_path):
    """A folder whose owner lives."""
    process = start(tmp_path / "run")
    assert process.stdout.readline() == "owned\n"
    yield tmp_path / "run", process
    process.kill()
    process.communicate()


def refused(folder, change="", **environment):
    process = start(folder, 0, change, **environment)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.count("error: "), "Traceback" in err) == (2, "", 1, False), err
    return err


def granted(folder, change=""):
    process = start(folder, 0, change)
    assert process.communicate(timeout=30)[0] == "owned\n"
    assert process.returncode == 0


@slow
def test_the_second_is_told_who_owns_the_folder(owned):
    folder, process = owned
    error = refused(folder)
    assert f"host {os.uname().nodename}, process {process.pid}, since 20" in error
    assert "ckpt_save_dir" in error
    (folder.parent / "link").symlink_to(folder)
    refused(folder.parent / "link")
    refused(os.path.relpath(folder))
    granted(folder.parent / "other")


@slow
def test_a_second_training_touches_nothing(tmp_path):
    """While the first one imports MindSpore, with an earlier run in the folder that neither has set aside yet."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("epoch\n")
    train = [sys.executable, ROOT / "train.py", "-c", ROOT / "configs/visformer/visformer_tiny_digits_cpu.yaml"]
    train = [*train, "--ckpt_save_dir", tmp_path / "run"]
    first = subprocess.Popen(train, stderr=subprocess.DEVNULL)
    while not (tmp_path / ".run.lock").exists():
        time.sleep(0.1)
    first.send_signal(signal.SIGSTOP)
    second = subprocess.run(train, capture_output=True, text=True, timeout=60)
    first.kill()
    first.wait()
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr.startswith(f"error: {tmp_path / 'run'} belongs to a run on host")
    assert f"process {first.pid}, since" in second.stderr
    assert second.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == [".run.lock", "run"]
    assert (tmp_path / "run" / "metrics.csv").read_text() == "epoch\n"


@slow
def test_it_survives_what_happens_to_the_folder(owned):
    folder, _ = owned
    folder.mkdir()
    folder.rename(folder.with_name("run.1"))
    refused(folder)


@slow
@pytest.mark.parametrize("change", ["", NO_LOCKS])
def test_the_dead_own_nothing(tmp_path, change):
    process = start(tmp_path / "run", change=change)
    assert process.stdout.readline() == "owned\n"
    process.kill()
    process.communicate()
    assert (tmp_path / ".run.lock").exists()
    granted(tmp_path / "run", change)
    assert list(tmp_path.iterdir()) == []


@slow
def test_a_frozen_owner_lives(owned):
    folder, process = owned
    process.send_signal(signal.SIGSTOP)
    refused(folder)


@slow
@pytest.mark.parametrize("change", [NO_LOCKS, OTHER_HOST])
def test_without_locks_signs_of_life_tell(tmp_path, change):
    process = start(tmp_path / "run", change=change)
    assert process.stdout.readline() == "owned\n"
    refused(tmp_path / "run", change if change == NO_LOCKS else "owner.fcntl.lockf = lambda *_: None")
    process.kill()
    process.communicate()


@slow
def test_of_many_that_start_together_one_runs(tmp_path):
    processes = [start(tmp_path / "run", 3) for _ in range(6)]
    statuses = [process.wait(timeout=60) for process in processes]
    [process.communicate() for process in processes]
    assert sorted(statuses) == [0, 2, 2, 2, 2, 2]


@slow
def test_other_ranks_and_msruns_scheduler_leave_it_to_rank_0(owned):
    folder, _ = owned
    other = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    for environment in (other, {"MS_ROLE": "MS_SCHED"}):
        process = start(folder, 0, **environment)
        assert process.communicate(timeout=30)[0] == "owned\n"


def test_a_mount_point_and_a_parent_that_is_read_only_have_it_inside(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    assert owner.lock_path(tmp_path / "run") == tmp_path / ".run.lock"
    assert owner.lock_path(Path("/proc")) == Path("/proc/.lock")
    monkeypatch.setattr(owner.os, "access", lambda path, mode: Path(path) != tmp_path)
    assert owner.lock_path(tmp_path / "run") == tmp_path / "run" / ".lock"


@slow
def test_a_damaged_record_is_no_obstacle(tmp_path):
    (tmp_path / ".run.lock").write_text('{"host": ')
    granted(tmp_path / "run")
    (tmp_path / ".run.lock").write_text(json.dumps(["host"]))
    granted(tmp_path / "run")
