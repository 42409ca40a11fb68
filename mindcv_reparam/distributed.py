"""One job of several processes: who this process is, how the processes find each other, and the host-side collectives.

``launched`` reads environment variables only. ``start`` joins MindSpore's communication cluster:

========  ========  ==========================================================================================
launcher  device    how the processes find each other
========  ========  ==========================================================================================
mpirun    CPU       MPI broadcasts an address, rank 0 serves a ``TCPStore`` there, MPI is left again; before MindSpore
                    2.9, ``init()`` and a scheduler process that rank 0 starts there
mpirun    Ascend    MindSpore's own ``init()`` on MPI
msrun     CPU, NPU  MindSpore's own ``init()`` and the scheduler process that msrun starts
========  ========  ==========================================================================================

``init()`` under mpirun is not supported by MindSpore on CPU. The ``TCPStore`` needs no scheduler process, and it is
ready in seconds; the scheduler takes the seconds of one more import of MindSpore. Nothing outlives the job.
"""

import atexit
import contextlib
import hashlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn, Protocol, Self

import numpy as np

from mindcv_reparam import joining, scheduler, votes, watch
from mindcv_reparam.errors import UserError
from mindcv_reparam.guardian import Guardian, guard
from mindcv_reparam.hosts import check_names, check_scheduler, local_ranks
from mindcv_reparam.meeting import Meeting

_LOG_LEVEL, _ERROR = "GLOG_v", "3"  # MindSpore's log level
_HOST_NAME = 64  # bytes of a host's name, as in Linux
_ADDRESS = struct.Struct("<4si8s")  # of IPv4, a port and a token: whole words of 32 bits

_log = logging.getLogger(__name__)

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


def _numbers(environ: Mapping[str, str], names: tuple[str, str, str]) -> tuple[int, int, int]:
    rank, size, local_rank = (int(environ.get(name, 0)) for name in names)
    return rank, size, local_rank


def set_environment() -> None:
    """Set what MindSpore reads from the environment about clusters; to be called before mindspore is imported.

    What the user has set stays as it is.
    """
    launch = launched()
    if not launch.needs_cluster:
        return
    # Building a cluster logs dozens of warnings per rank about connections that are retried.
    os.environ.setdefault(_LOG_LEVEL, _ERROR)
    # A rank waits 30 s for the others in a collective on CPU before it fails, which MindSpore 2.9 and older do whatever
    # this says: ``gather`` has the ranks meet before. A rank that died is the launcher's to notice.
    os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", "3600")
    # Seconds from heartbeat to heartbeat to msrun's scheduler, and so until a rank sees that the cluster is complete.
    os.environ.setdefault("MS_RETRY_INTERVAL_LOWER", "1")
    os.environ.setdefault("MS_RETRY_INTERVAL_UPPER", "1")
    if launch.is_scheduler:  # seconds without a rank's heartbeat before the scheduler, and so msrun, gives up
        os.environ.setdefault("MS_NODE_TIMEOUT", "15")


class Ranks(Protocol):
    """The processes of a job as the other rooms see them; :class:`Distributed` is the real one."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def is_main(self) -> bool: ...

    def sum(self, values: np.ndarray | Iterable[float]) -> np.ndarray: ...

    def gather(self, words: np.ndarray) -> np.ndarray: ...

    def barrier(self) -> None: ...

    def ballot(self) -> votes.Ballot | None: ...

    def check_identical(self, parameters: Iterable[tuple[str, np.ndarray]]) -> None: ...


@dataclass(frozen=True)
class Distributed:
    """This process among the ``size`` processes of the job. Every method is collective: all ranks must call it.

    A context manager: a job that goes well ends by ``close``. What goes wrong in the only process ends its watch, since
    the process may live on, in a notebook; one of several ends, watched to its end, which may wait for the others.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = "single"
    # what joined the cluster: rank 0's serves the others until it ends, msrun's workers' looks for their scheduler
    _store: object = field(default=None, repr=False, compare=False)
    _meeting: Meeting | None = field(default=None, repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        elif self.size == 1:
            watch.end()

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
        if self._meeting:
            self._meeting.wait()
        import mindspore as ms

        return ms.ops.AllGather()(ms.Tensor(words[None])).asnumpy()

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.gather(np.zeros(1, np.int32))

    def ballot(self) -> votes.Ballot | None:
        """What the ranks agree by without the device; None for a single one, or where they cannot connect."""
        if self.size == 1:
            return None
        links = _links(self)
        if not links:
            if self.is_main:
                _log.warning(
                    "the ranks cannot connect by TCP: a signal to one of them takes effect at a line of the log"
                )
            return None
        return votes.Ballot(links, presides=self.is_main)

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

            watch.at("the end, where all ranks meet")
            self.barrier()
            if isinstance(self._store, Guardian):
                self._store.end()
            if isinstance(self._store, scheduler.Scheduled):
                self._store.leave()
            else:
                release()
        watch.end()


def start(distribute: bool | None, device_target: str, stall_timeout: float = 0.0) -> Distributed:
    """Join the other processes of the job; to be called once, after the device is set and before the first Tensor.

    ``set_environment`` comes before the import of mindspore. ``distribute`` None means as launched; a value that
    contradicts the launch is a UserError. msrun's scheduler process does its whole work in here and leaves. From here
    to ``close`` the process is watched: after ``stall_timeout`` seconds without progress it ends (0: never).
    """
    ranks = _join(distribute, device_target)
    watch.begin(_watch_of(ranks, stall_timeout))
    return replace(ranks, _meeting=_meeting_of(ranks)) if device_target == "CPU" and ranks.size > 1 else ranks


def _watch_of(ranks: Distributed, seconds: float) -> watch.Watch:
    """What tells every rank of the others."""
    if ranks.size == 1:
        return watch.Watch(0, 1, seconds)
    listener, main, token = _meet(ranks, socket.SOCK_DGRAM)
    return watch.Watch(ranks.rank, ranks.size, seconds, main, token, listener)


def _meeting_of(ranks: Distributed) -> Meeting | None:
    """Where ranks wait outside of collectives; None where they cannot connect, and have to be quick."""
    links = _links(ranks)
    return Meeting(links, presides=ranks.is_main) if links else None


def _links(ranks: Distributed) -> list[socket.socket]:
    """Connections of rank 0 with every other rank; none on all of them where one cannot connect. Collective."""
    listener, address, token = _meet(ranks, socket.SOCK_STREAM)
    links: list[socket.socket] = []
    if address:
        with contextlib.suppress(OSError):
            links = votes.connect(ranks.rank, ranks.size, address, token, listener)
    if ranks.sum([bool(links)])[0] == ranks.size:
        return links
    for link in links:
        link.close()
    return []


def _meet(ranks: Distributed, kind: socket.SocketKind) -> tuple[socket.socket | None, tuple[str, int] | None, bytes]:
    """A new socket of rank 0, its address and eight bytes that all ranks know; no address where there is no route.
    Collective."""
    name = socket.gethostname().encode()[:_HOST_NAME].ljust(_HOST_NAME, b"\0")
    hosts = [row.tobytes().rstrip(b"\0").decode() for row in ranks.gather(np.frombuffer(name, np.int32))]
    here = local_ranks(os.environ, ranks.size)
    check_names(hosts, ranks.gather(np.array([here], np.int32))[:, 0].tolist())
    packed, listener = bytes(_ADDRESS.size), None
    if ranks.is_main:
        with contextlib.suppress(OSError, UserError):
            given = os.environ.get("MS_SCHED_HOST") if len({*hosts}) > 1 else None
            address = socket.gethostbyname(given or joining.address_towards(hosts))
            listener = socket.socket(socket.AF_INET, kind)
            listener.bind(("127.0.0.1" if len({*hosts}) == 1 else "", 0))
            if kind == socket.SOCK_STREAM:
                listener.listen(ranks.size)
            packed = _ADDRESS.pack(socket.inet_aton(address), listener.getsockname()[1], os.urandom(8))
    address, port, token = _ADDRESS.unpack(ranks.gather(np.frombuffer(packed, np.int32))[0].tobytes())
    return listener, (socket.inet_ntoa(address), port) if port else None, token


def _join(distribute: bool | None, device_target: str) -> Distributed:
    launch = launched()
    if launch.launcher == "msrun":
        check_scheduler(os.environ, launch.size)
    if launch.is_scheduler:
        _schedule()
    if distribute and launch.launcher == "single":
        raise UserError("distribute is True, but one process was started: start with `mpirun -n N python …` or msrun")
    if distribute is False and launch.size > 1:
        raise UserError(f"distribute is False, but {launch.launcher} started {launch.size} processes: drop one of both")
    if not launch.needs_cluster:
        return Distributed(launcher=launch.launcher, local_rank=launch.local_rank)

    store = None
    if launch.launcher == "mpirun":
        scheduler.die_with_parent()  # mpirun, which itself does not see to it
    if launch.launcher == "mpirun" and device_target == "CPU":
        store = joining.join(launch.rank, launch.size)
    else:
        guardian = guard(os.environ, launch.rank) if launch.launcher == "msrun" else None
        from mindspore.communication import init

        init()
        if guardian:
            guardian.joined()
            store = guardian
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
        raise UserError(
            "a rank of the job died, or its host is out of reach: its error is in the worker logs in msrun's --log_dir"
        ) from error
    sys.exit(0)


def _silence_stderr() -> None:
    """Drop what MindSpore logs while it is torn down, with no regard to the log level.

    Its own exit handler does that: this one must be registered after the import of mindspore to run before it.
    """
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
