"""The compiled kernels: built once per machine, in the user's cache."""

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

from ..errors import UserError
from ..files import written_whole
from ..runtime import cpu_flags

SOURCES = sorted(Path(__file__).with_name("kernels").iterdir())
# Sums may be reordered, so that they vectorise; infinities and NaN keep their meaning, which -ffast-math would not do.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)

_log = logging.getLogger(__name__)


@functools.cache
def library() -> Path | None:
    """The shared library; None, with a line in the log, where it cannot be built."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        _log.info("no C++ compiler: MindSpore's own kernels run, convolutions and GELU several times slower")
        return None
    build = ([source.read_text() for source in SOURCES], compiler, FLAGS, platform.machine(), sorted(cpu_flags()))
    path = cache_folder() / f"kernels-{hashlib.sha256(repr(build).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        try:
            with written_whole(path) as temporary:
                files = [str(source) for source in SOURCES if source.suffix == ".cc"]
                command = [compiler, *FLAGS, *files, "-o", str(temporary)]
                subprocess.run(command, check=True, capture_output=True, text=True)
        except (subprocess.CalledProcessError, UserError) as error:
            reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            _log.warning("the CPU kernels were not built, MindSpore's own are slower: %s", reason.strip()[:200])
            return None
    return path


def cache_folder() -> Path:
    """Of this package, by the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindcv_reparam"
