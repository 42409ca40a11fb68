"""The compiled kernels: built once per machine, in the user's cache.

What a library was built from is in its name, and the checksum of its bytes behind the last of them, so that one that
was cut off or damaged is built anew: the processor would stop at it, and with it every command.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from mindcv_reparam import private
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import cache_folder
from mindcv_reparam.runtime import cpu_flags

SOURCES = sorted(Path(__file__).with_name("kernels").iterdir())
# Sums may be reordered, so that they vectorise; infinities and NaN keep their meaning, which -ffast-math would not do.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)
_CHECKSUM = 32  # bytes
_MAJOR, _MINOR, _THREADPOOL = 3, 10, 8  # of the oneDNN that kernels/onednn.h declares; who asks brings the threads

_log = logging.getLogger(__name__)


class _Unusable(Exception):
    """Why there is no library on this machine."""


@functools.cache
def library() -> Path | None:
    """The shared library; None, with a line in the log, where it cannot be built or loaded."""
    try:
        return _loadable(_build())
    except (_Unusable, UserError, OSError) as error:
        _log.warning("MindSpore's own operators run, which are several times slower than the CPU kernels: %s", error)
        return None


class Kernel(private.CompiledOperator):
    """A kernel as an operator; ``shapes`` gives the outputs' shapes from the inputs', by default the types too."""

    def __init__(self, name: str, shapes: Callable, types: Callable | None = None):
        super().__init__(f"{library()}:{name}", shapes, types or shapes, func_type="aot")


class _Version(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("major", "minor", "patch")),
        ("hash", ctypes.c_char_p),
        *((name, ctypes.c_uint) for name in ("cpu_runtime", "gpu_runtime")),
    ]


@functools.cache
def _onednn() -> tuple[Path, ctypes.CDLL]:
    """MindSpore's own oneDNN, loaded: what needs a library of that name is then content with it."""
    path = private.onednn_file()
    library = ctypes.CDLL(str(path))
    library.dnnl_version.restype = ctypes.POINTER(_Version)
    version = library.dnnl_version().contents
    if (version.major, version.cpu_runtime) != (_MAJOR, _THREADPOOL) or version.minor < _MINOR:
        number = f"{version.major}.{version.minor}.{version.patch} with threads of kind {version.cpu_runtime}"
        raise _Unusable(f"{path} is oneDNN {number}, and not {_MAJOR}.{_MINOR} or later with kind {_THREADPOOL}")
    return path, library


def lift_onednn_limit() -> bool:
    """Let oneDNN use every instruction set; False where it computed before, which settles the question."""
    return _onednn()[1].dnnl_set_max_cpu_isa(0) == 0


def _build() -> Path:
    """The library of these sources, this compiler and this processor, compiled if it is not there whole."""
    compiler = _compiler()
    sources = [source.read_text(encoding="utf-8") for source in SOURCES]
    version = _output([*compiler, "--version"])
    onednn, _ = _onednn()
    key = repr((sources, compiler, version, FLAGS, platform.machine(), sorted(cpu_flags())))
    path = cache_folder() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not _is_whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".kernels-", dir=path.parent) as folder:
            new = Path(folder) / path.name
            files = (str(source) for source in SOURCES if source.suffix == ".cc")
            _output([*compiler, *FLAGS, *files, str(onednn), "-o", str(new)])
            content = new.read_bytes()
            with open(new, "wb") as file:
                file.write(content + hashlib.sha256(content).digest())
                os.fsync(file.fileno())
            new.replace(path)
    return path


def _compiler() -> list[str]:
    """The command that ``CXX`` names, which may have several words (``ccache g++``)."""
    try:
        return shlex.split(os.environ.get("CXX", "")) or ["g++"]
    except ValueError as error:
        raise _Unusable(f"CXX={os.environ['CXX']} is no command ({error})") from error


def _output(command: list[str]) -> str:
    """What a compiler prints."""
    try:
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise _Unusable(f"no C++ compiler {command[0]} ({error.strerror}); install g++ or set CXX") from error
    if child.returncode:
        reason = " ".join(child.stderr.split())[:200]
        raise _Unusable(f"the compiler {command[0]} failed with status {child.returncode}: {reason}")
    return child.stdout


def _is_whole(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-_CHECKSUM]).digest() == content[-_CHECKSUM:]


def _loadable(path: Path) -> Path:
    """The same path, of a library that MindSpore will be able to load."""
    if ":" in str(path):
        raise _Unusable(
            f"MindSpore takes no colon in a path, as in {path.parent}; set XDG_CACHE_HOME to another folder"
        )
    allowed = os.environ.get("MS_CUSTOM_AOT_WHITE_LIST")
    if allowed is not None and not path.resolve().is_relative_to(Path(allowed).resolve()):
        raise _Unusable(f"MS_CUSTOM_AOT_WHITE_LIST={allowed} leaves out {path.parent}")
    if path.stat().st_uid not in (0, os.geteuid()):
        raise _Unusable(f"{path} is another user's; set XDG_CACHE_HOME to a folder of yours")
    ctypes.CDLL(str(path))
    return path
