"""One job of several processes: who this process is, how the processes find each other, and the host-side collectives.

``launched`` reads environment variables only. ``start`` joins MindSpore's communication cluster:

========  ========  ==========================================================================================
launcher  device    how the processes find each other
========  ========  ==========================================================================================
mpirun    CPU       MPI broadcasts an address, rank 0 serves a ``TCPStore`` there, MPI is left again
mpirun    Ascend    MindSpore's own ``init()`` on MPI
msrun     CPU, NPU  MindSpore's own ``init()`` and the scheduler process that msrun starts
========  ========  ==========================================================================================

``init()`` under mpirun is not supported by MindSpore on CPU. The ``TCPStore`` needs no scheduler process, so nothing
can outlive the job, and it is ready in seconds.
"""

import atexit
import ctypes
import hashlib
import os
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NoReturn

import numpy as np

from mindcv_reparam.errors import UserError

_RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
_LOG_LEVEL, _ERROR = "GLOG_v", "3"  # MindSpore's log level
_PR_SET_PDEATHSIG = 1  # prctl(2)

# the variables that hold rank, size and local rank
_MSRUN = ("MS_NODE_ID", "MS_WORKER_NUM", "DEVICE_ID")
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")  # MPICH, Intel MPI


@dataclass(frozen=True)
class Launch:
    """What the launcher's environment variables say about this process."""

    launcher: str = "single"  # "single", "mpirun" or "msrun"
    rank: int = 0
    size: int = 1
    local_rank: int = 0  # the device to use on this host
    is_scheduler: bool = False  # msrun runs the script once more, as the scheduler of its cluster

    @property
    def needs_cluster(self) -> bool:
        """Whether MindSpore's cluster has to be joined: msrun's scheduler waits even for a single rank."""
        return self.size > 1 or self.launcher == "msrun"


def launched(environ: Mapping[str, str] = os.environ) -> Launch:
    """Who this process is, without importing mindspore or MPI."""
    role = environ.get("MS_ROLE")
    if role == "MS_SCHED":
        return Launch("msrun", is_scheduler=True)
    if role == "MS_WORKER":
        if "MS_NODE_ID" not in environ:
            raise UserError("msrun left the ranks open: give every host its --node_rank (0, 1, …)")
        return Launch("msrun", *_numbers(environ, _MSRUN))
    for names in (_OPEN_MPI, _HYDRA):
        if {*names[:2]} <= environ.keys():
            return Launch("mpirun", *_numbers(environ, names))
    return Launch()


def _numbers(environ: Mapping[str, str], names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(int(environ.get(name, 0)) for name in names)


def set_environment() -> None:
    """Set what MindSpore reads from the environment about clusters; to be called before mindspore is imported.

    What the user has set stays as it is.
    """
    launch = launched()
    if not launch.needs_cluster:
        return
    # Building a cluster logs dozens of warnings per rank about connections that are retried.
    os.environ.setdefault(_LOG_LEVEL, _ERROR)
    # A rank waits 30 s for the others in a collective on CPU before it fails: less than compiling a large network, or
    # writing a checkpoint, may take on one of them. A rank that died is the launcher's to notice.
    os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", "3600")
    # Seconds from heartbeat to heartbeat to msrun's scheduler, and so until a rank sees that the cluster is complete.
    os.environ.setdefault("MS_RETRY_INTERVAL_LOWER", "1")
    os.environ.setdefault("MS_RETRY_INTERVAL_UPPER", "1")
    if launch.is_scheduler:  # seconds without a rank's heartbeat before the scheduler, and so msrun, gives up
        os.environ.setdefault("MS_NODE_TIMEOUT", "15")


@dataclass(frozen=True)
class Distributed:
    """This process among the ``size`` processes of the job. Every method is collective: all ranks must call it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = "single"
    _store: object = field(default=None, repr=False, compare=False)  # rank 0's serves the others while it lives

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes files."""
        return self.rank == 0

    def sum(self, values: np.ndarray | Iterable[float]) -> np.ndarray:
        """The element-wise sum over the ranks in float64, in rank order: equal on all ranks, counts to 2**53 exact."""
        values = np.array(values, np.float64)
        total = np.zeros_like(values)
        for of_rank in self.gather(values.reshape(-1).view(np.int32)):
            total += of_rank.view(np.float64).reshape(values.shape)
        return total

    def gather(self, words: np.ndarray) -> np.ndarray:
        """(n,) int32 of this rank → (size, n) of all ranks. The CPU's collectives know few types; bits are bits."""
        if self.size == 1:
            return words[None]
        import mindspore as ms

        return ms.ops.AllGather()(ms.Tensor(words[None])).asnumpy()

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.gather(np.zeros(1, np.int32))

    def check_identical(self, parameters: Iterable[tuple[str, np.ndarray]]) -> None:
        """Raise a UserError on all ranks if a parameter's name, shape, type or a single bit differs between ranks."""
        names, digests = [], []
        for name, value in parameters:
            header = f"{name} {value.dtype} {value.shape}".encode()
            names.append(name)
            digests.append(hashlib.blake2b(header + np.ascontiguousarray(value).tobytes(), digest_size=16).digest())
        counts = self.gather(np.array([len(names)], np.int32))[:, 0]
        if any(counts != counts[0]):
            raise UserError(
                f"the ranks hold {counts.tolist()} parameters: start every rank with the same code and options"
            )
        if not names:
            return
        gathered = self.gather(np.frombuffer(b"".join(digests), np.int32)).reshape(self.size, len(names), -1)
        differing = np.argwhere((gathered != gathered[0]).any(-1))  # (rank, index) pairs, in rank order
        if len(differing):
            rank, index = differing[0]
            raise UserError(
                f"rank {rank} holds another {names[index]!r} than rank 0: give every rank the same code, seed and "
                "checkpoint file"
            )

    def close(self) -> None:
        """Wait for the other ranks and leave the cluster; to be called at the end of a job that went well."""
        if self.size > 1:
            from mindspore.communication import release

            self.barrier()
            release()


def start(distribute: bool | None, device_target: str) -> Distributed:
    """Join the other processes of the job; to be called once, after the device is set and before the first Tensor.

    ``set_environment`` comes before the import of mindspore. ``distribute`` None means as launched; a value that
    contradicts the launch is a UserError. msrun's scheduler process does its whole work in here and leaves.
    """
    launch = launched()
    if launch.is_scheduler:
        _schedule()
    if distribute and launch.launcher == "single":
        raise UserError("distribute is True, but one process was started: start with `mpirun -n N python …` or msrun")
    if distribute is False and launch.size > 1:
        raise UserError(f"distribute is False, but {launch.launcher} started {launch.size} processes: drop one of both")
    if not launch.needs_cluster:
        return Distributed(launcher=launch.launcher, local_rank=launch.local_rank)

    store = None
    if launch.launcher == "mpirun" and device_target == "CPU":
        _die_with_launcher()
        store = _join_by_store(launch)
    else:
        from mindspore.communication import init

        init()
    from mindspore.communication import get_group_size, get_rank

    if os.environ.get(_LOG_LEVEL) == _ERROR:
        atexit.register(_silence_stderr)
    if (get_rank(), get_group_size()) != (launch.rank, launch.size):
        raise RuntimeError(f"MindSpore sees rank {get_rank()} of {get_group_size()}, {launch.launcher} gave {launch}")
    return Distributed(launch.rank, launch.size, launch.local_rank, launch.launcher, store)


def _schedule() -> NoReturn:
    """Be msrun's scheduler: until every rank has left."""
    from mindspore.communication import init

    try:
        init()
    except RuntimeError as error:  # a timeout: the heartbeat of a rank stopped
        raise UserError("a rank of the job died: its error is in the worker logs in msrun's --log_dir") from error
    sys.exit(0)


def _join_by_store(launch: Launch) -> object:
    """Build MindSpore's CPU cluster on a key-value store that rank 0 serves."""
    host, port = _agree_on_address(launch)
    # The function under mint.distributed.init_process_group, which lets only Ascend through.
    from mindspore.communication.management import _init_with_store
    from mindspore.mint.distributed import TCPStore

    store = TCPStore(
        host_name=host,
        port=port,
        world_size=launch.size,
        is_master=launch.rank == 0,
        timeout=_RENDEZVOUS_TIMEOUT,
        wait_for_workers=True,
    )
    _init_with_store("mccl", _RENDEZVOUS_TIMEOUT, launch.size, launch.rank, store)
    return store


def _agree_on_address(launch: Launch) -> tuple[str, int]:
    """An address of rank 0 that all ranks can reach, and a port free there, by MPI.

    MPI is finalized at once: left to the end of the process, it would make a rank that failed wait for the others.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(f"mpirun needs the package mpi4py, built for the same MPI: {error}") from error
    world = MPI.COMM_WORLD
    if world.size != launch.size:
        raise UserError(
            f"mpirun started {launch.size} processes, mpi4py sees {world.size}: they belong to two MPI installations; "
            f"use the mpirun in {os.path.join(sys.prefix, 'bin')}"
        )
    hosts = world.allgather(socket.gethostname())
    address = None
    if launch.rank == 0:
        address = os.environ.get("MS_SCHED_HOST") or _address_towards(hosts)
        with socket.socket() as probe:
            probe.bind((address, 0))
            address = address, probe.getsockname()[1]
    address = world.bcast(address)
    MPI.Finalize()
    return address


def _address_towards(hosts: list[str]) -> str:
    """The IPv4 address by which the other ``hosts`` reach this one, the first of them."""
    others = [host for host in hosts if host != hosts[0]]
    if not others:
        return "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((others[0], 9))  # sends nothing: the kernel only looks up the route
            return probe.getsockname()[0]
    except OSError as error:
        raise UserError(
            f"{hosts[0]} finds no route to {others[0]} ({error}): give its address by mpirun -x MS_SCHED_HOST=ADDRESS"
        ) from error


def _silence_stderr() -> None:
    """Drop what MindSpore logs while it is torn down, with no regard to the log level.

    Its own exit handler does that: this one must be registered after the import of mindspore to run before it.
    """
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _die_with_launcher() -> None:
    """Have the kernel end this process when mpirun is killed, which mpirun itself does not see to."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
