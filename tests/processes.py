"""Jobs of several processes for tests, started as users start them."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_BIN = Path(sys.executable).parent
ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).parents[1]),
    "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",  # msrun starts `python`
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "MINDCV_REPARAM_FAMILIES": str(Path(__file__).with_name("data") / "tiny.py"),
}
# A network that compiles in a moment, and the digits' recipe with it: most of a job's time goes to its start.
MODEL = "tiny"
DIGITS = ("-c", Path(__file__).parents[1] / "configs/visformer/visformer_tiny_digits_cpu.yaml", "--model", MODEL)
# Open MPI keeps a job's files in a folder named by mpirun's process number. A killed mpirun leaves it, and a later one
# that gets the number fails: "The PMIx server's listener thread failed to start". So each has a place of its own.
_SESSIONS = tempfile.TemporaryDirectory(prefix="sessions")


def mpirun_command(ranks: int, *command: str | Path) -> list[str]:
    place = tempfile.mkdtemp(dir=_SESSIONS.name)
    launcher = [str(_BIN / "mpirun"), "--prtemca", "prte_tmpdir_base", place, "-n", str(ranks)]
    return [*launcher, sys.executable, *map(str, command)]


def msrun_command(ranks: int, logs: Path, *command: str | Path) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    numbers = [f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={port}"]
    return [str(_BIN / "msrun"), *numbers, "--join=True", f"--log_dir={logs}", *map(str, command)]


def start(command: list[str], cwd: Path | None = None) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=os.environ | ENVIRONMENT, text=True, **pipes)


def finish(job: subprocess.Popen, seconds: float = 120) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a job that has to end within ``seconds``."""
    try:
        output, errors = job.communicate(timeout=seconds)
    finally:
        job.kill()
    return job.returncode, output, errors


def processes_with(argument: str) -> list[int]:
    """The processes that have ``argument`` on their command line, this one apart."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if argument in arguments and int(directory.name) != os.getpid():
            found.append(int(directory.name))
    return found


def wait_for_end(argument: str, seconds: float) -> list[int]:
    """The processes that still have ``argument`` on their command line after at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while (left := processes_with(argument)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
