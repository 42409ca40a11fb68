"""What must happen right before and right after MindSpore is imported: device, mode, seeds, threads, oneDNN.

oneDNN: MindSpore 2.10's convolutions of more than 1×1 fall to a reference kernel on processors with AVX-512, about a
hundred times slower than the AVX2 one. oneDNN reads ``ONEDNN_MAX_CPU_ISA`` at the first convolution of the process. The
operators of ``cpu`` need no limit and lift it where they are the only convolutions of a process.

Memory: on a CPU the process must allocate by the C library's own malloc, see ``check_allocator``.
"""

import contextlib
import ctypes
import functools
import logging
import os
import platform
import random
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from mindcv_reparam.distributed import launched, set_environment
from mindcv_reparam.errors import UserError
from mindcv_reparam.hosts import check_port, local_ranks

ONEDNN_LIMIT = "AVX2"
ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # the second is the older name

_log = logging.getLogger(__name__)


def prepare(
    device_target: str | None,
    mode: int = 0,
    seed: int | None = None,
    jit_level: str | None = None,
    deterministic: bool = False,
) -> str:
    """Import MindSpore and set it up; call it before anything else of MindSpore, and before ``distributed.start``.

    Args:
        device_target: "Ascend" or "CPU"; None is what ``detect_device`` says.
        mode: graph mode (0) or PyNative mode (1).
        seed: of Python's, NumPy's and MindSpore's global generators; the same on every rank, so that all of them draw
            the same initial weights.
        jit_level: "O0", "O1" or "O2"; None leaves MindSpore its own.
        deterministic: only kernels that give the same bits in every run. A CPU's do.

    Returns:
        The device target in use. On Ascend the device is the one of the local rank.

    Raises:
        UserError: MindSpore is missing, NumPy is too new for it, the device is not there, on a CPU another allocator
            than the C library's is loaded, or this is msrun's scheduler and its port is taken.
    """
    check_numpy(np.__version__)
    target = device_target or detect_device()
    launch = launched()
    if launch.is_scheduler:  # before the workers beside it, which take an import of MindSpore, look for it
        check_port(os.environ)
    threads = threads_of_a_rank(local_ranks(os.environ, launch.size))
    set_environment()
    if target == "CPU":
        check_allocator(allocator())
        if limit_onednn():
            _tell_of_limit()
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of our kernels, read when MindSpore loads OpenMP
        # Threads that spin for long would hold up MindSpore's own; between two kernels, waking them takes longer.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    ms = _import_mindspore()
    try:
        ms.set_device(target, launch.local_rank if target == "Ascend" else 0)
    except RuntimeError as error:
        advice = "install its driver and CANN and source set_env.sh, or give --device_target CPU"
        raise UserError(f"device_target {target}: MindSpore finds no such device here; {advice}") from error
    if target == "CPU":
        _set_kernel_threads(threads)
    ms.set_context(mode=mode, jit_syntax_level=ms.STRICT)
    if jit_level:
        ms.set_context(jit_config={"jit_level": jit_level})
    if deterministic:
        ms.set_deterministic(True)
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        ms.set_seed(seed)
    return target


def show_log() -> None:
    """Print the package's log on stderr: everything of rank 0, warnings of the others under their rank."""
    rank = launched().rank
    handler = _AboveBars(sys.stderr)
    handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s" if rank else "%(message)s"))
    logger = logging.getLogger("mindcv_reparam")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if rank else logging.INFO)
    logger.propagate = False


class _AboveBars(logging.StreamHandler):
    """Writes lines above the progress bars of the process, not into them."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # without it there is no bar
        with tqdm.tqdm.external_write_mode(file=self.stream) if tqdm else contextlib.nullcontext():
            super().emit(record)


def detect_device(devices: Path = Path("/dev")) -> str:
    """ "Ascend" where the driver shows a device (``/dev/davinci0``), else "CPU"."""
    return "Ascend" if any(devices.glob("davinci[0-9]*")) else "CPU"


def check_numpy(version: str) -> None:
    """Raise UserError for a NumPy that MindSpore 2.10's binaries were not built for, though its wheel allows it."""
    if int(version.split(".")[0]) >= 2:
        raise UserError(f"MindSpore does not work with NumPy {version}: pip install 'numpy==1.26.4'")


class _Symbol(ctypes.Structure):
    """What dladdr tells of an address."""

    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


class _Loaded(ctypes.Structure):
    """A library of this process, as <link.h> declares it (struct link_map)."""


_Loaded._fields_ = [
    ("base", ctypes.c_void_p),
    ("name", ctypes.c_char_p),
    ("dynamic", ctypes.c_void_p),
    ("next", ctypes.POINTER(_Loaded)),
]


def allocator() -> str | None:
    """The library whose malloc this process calls, the first loaded that has one; None where that cannot be told.

    The process's own answer to "where is malloc?" would not do: of a program at fixed addresses, as Debian's Python is,
    it names the program, where every call goes through a jump to the library's.
    """
    if sys.platform != "linux":
        return None
    process = ctypes.CDLL(None)
    library = ctypes.cast(process._handle, ctypes.POINTER(_Loaded)).contents.next  # the program itself comes first
    while library:
        name, found = library.contents.name, _Symbol()
        try:
            malloc = ctypes.CDLL(os.fsdecode(name), mode=os.RTLD_NOLOAD | os.RTLD_LAZY).malloc  # its own, or another's
            process.dladdr(ctypes.cast(malloc, ctypes.c_void_p), ctypes.byref(found))
        except (OSError, AttributeError, ValueError):
            pass
        if name and found.file == name:
            return os.fsdecode(name)
        library = library.contents.next
    return None


def check_allocator(library: str | None) -> None:
    """Raise UserError for another malloc than glibc's in front of MindSpore's CPU kernels.

    After its 25 trial runs an operator of oneDNN in MindSpore 2.10 (MKLCpuKernelMod::ExecutePrimitive) may read its
    number of threads from behind the end of a list of five. With glibc the size of the next block lies there, never
    zero, and only speed hangs on it. With jemalloc results were left as the memory held them before.
    """
    if library and sys.platform == "linux" and not Path(library).name.startswith(("libc.so", "libc-", "ld-")):
        raise UserError(
            f"memory comes from {library}, not from the C library: with it MindSpore's CPU kernels may leave out "
            "operators and go on with wrong numbers; unset LD_PRELOAD"
        )


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The processor's instruction sets as Linux names them; none where that is not known."""
    if not cpuinfo.exists():
        return frozenset()
    names = ("flags", "Features")  # x86's and Arm's
    lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith(names))
    return frozenset(next(lines, ":").split(":")[1].split())


def needs_onednn_cap(flags: Collection[str], machine: str) -> bool:
    """Whether oneDNN would pick AVX-512 kernels on this processor."""
    return machine.lower() in ("x86_64", "amd64") and "avx512f" in flags


def isa_setting(environ: Mapping[str, str]) -> str | None:
    """The user's own limit on oneDNN's instruction sets."""
    return next((f"{name}={environ[name]}" for name in ISA_VARIABLES if name in environ), None)


@functools.cache
def limit_onednn() -> bool:
    """Set the limit where the processor needs one and the user gave none; whether it did. Once per process.

    Whatever builds a convolution calls this: the kernels that MindSpore gets without a limit are of use to nobody.
    """
    if isa_setting(os.environ) or not needs_onednn_cap(cpu_flags(), platform.machine()):
        return False
    os.environ["ONEDNN_MAX_CPU_ISA"] = ONEDNN_LIMIT
    return True


def _tell_of_limit() -> None:
    if "mindspore" in sys.modules:
        _log.warning(
            "MindSpore was imported before ONEDNN_MAX_CPU_ISA=AVX2 could be set: if it already ran a "
            "convolution, all of them are about 100 times slower; set the variable in the shell"
        )
    else:
        _log.info("set ONEDNN_MAX_CPU_ISA=AVX2: MindSpore's convolutions are about 100 times slower with AVX-512")


def threads_of_a_rank(ranks: int) -> int:
    """Threads for one of several processes on this machine, so that together they want no more than its cores."""
    total, bound = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    share = max(1, total // ranks)
    if bound < share:
        _log.info(
            "the launcher binds each rank to %d of its %d processors: mpirun --bind-to none lifts that", bound, share
        )
    return min(bound, share)


@functools.cache  # MindSpore refuses a second setting
def _set_kernel_threads(threads: int) -> None:
    from mindspore.device_context.cpu import op_tuning

    op_tuning.threads_num(threads)


def _import_mindspore() -> ModuleType:
    try:
        import mindspore
    except ImportError as error:
        raise UserError(f"MindSpore cannot be imported ({error}): pip install -r requirements.txt") from error
    return mindspore
