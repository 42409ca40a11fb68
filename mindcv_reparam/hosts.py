"""The hosts of a job of several: who of it is on this one, and what is wrong with their names and addresses."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from mindcv_reparam.errors import UserError

_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_MSRUN_DEFAULT = 8  # its --local_worker_num


def local_ranks(environ: Mapping[str, str], size: int) -> int:
    """Processes of the job on this host; all ``size`` of them where the launcher does not say."""
    if environ.get("MS_ROLE") == "MS_WORKER":
        return min(size, workers_of(_command_line(os.getppid())) or size)
    return int(next((environ[name] for name in _LOCAL_SIZE if environ.get(name)), size))


def workers_of(command: Sequence[str]) -> int | None:
    """``--local_worker_num`` in the command line of an msrun, which tells its workers in no other way; None for
    another program."""
    names = [Path(word).name for word in command[:3]]
    if "msrun" not in names:
        return None
    for word, following in zip(command, [*command[1:], ""]):
        flag, _, value = word.partition("=")
        if flag == "--local_worker_num" and (value or following).isdigit():
            return int(value or following)
    return _MSRUN_DEFAULT


def is_msrun(process: int) -> bool:
    return workers_of(_command_line(process)) is not None


def _command_line(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def check_names(hosts: Sequence[str], counts: Sequence[int]) -> None:
    """Raise UserError if two hosts have one name, by which ranks tell who shares a host.

    Args:
        hosts: name of every rank's host.
        counts: ranks on every rank's host, as its launcher says.
    """
    for host, count in zip(hosts, counts):
        if hosts.count(host) > count:
            raise UserError(
                f"{hosts.count(host)} ranks are on hosts called {host}, which say they have {count}: give every host a "
                "name of its own (hostnamectl set-hostname NAME)"
            )


def check_folder(folder: str) -> None:
    """Raise UserError if the folder that rank 0 was started in is missing here, where mpirun takes another."""
    if not os.path.isdir(folder):
        raise UserError(
            f"{folder}, where the job was started, is missing on {socket.gethostname()}, whose ranks are in "
            f"{os.getcwd()}: give every host the same checkout under the same path"
        )


def check_scheduler(environ: Mapping[str, str], size: int) -> None:
    """Raise UserError for an address of msrun's scheduler at which it is not, or which other hosts do not reach.

    msrun serves at an address of this host's interfaces and takes any other for another host's, 127.0.1.1 too.
    """
    host = environ.get("MS_SCHED_HOST", "127.0.0.1")
    several = environ.get("MS_ROLE") == "MS_WORKER" and local_ranks(environ, size) < size
    if host.startswith("127.") and (several or host != "127.0.0.1"):
        raise UserError(
            f"msrun's --master_addr is {host} on {socket.gethostname()}, where "
            f"{'other hosts do not reach it' if several else 'it serves nothing'}: give the first host's address "
            "(hostname -I), not a name that leads to 127.0.1.1 in /etc/hosts"
        )


def check_port(environ: Mapping[str, str]) -> None:
    """Raise UserError if msrun's scheduler, which this process is, cannot serve at its port."""
    host, port = environ.get("MS_SCHED_HOST", "127.0.0.1"), int(environ.get("MS_SCHED_PORT", 0))
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UserError(
            f"msrun's scheduler cannot serve at {host}:{port} ({error.strerror}): give another --master_port"
        ) from error


def served_address(given: str, hosts: Sequence[str]) -> tuple[str, int]:
    """``given``, an address of this host, and a port free there; for ranks on ``hosts``.

    Raises:
        UserError: it is another host's, or no other host reaches it.
    """
    try:
        with socket.socket() as probe:
            probe.bind((given, 0))
            address, port = probe.getsockname()
    except OSError as error:
        raise UserError(
            f"MS_SCHED_HOST={given} is no address of {hosts[0]}, where rank 0 is ({error}): leave it out, or give one "
            "of its own that the other hosts reach"
        ) from error
    if address.startswith("127.") and len({*hosts}) > 1:
        raise UserError(
            f"MS_SCHED_HOST={given} is {address} on {hosts[0]}, which no other host reaches: leave it out, or give an "
            "address that they reach"
        )
    return given, port
