"""Environments of the peers that benchmarks compare with: made once, outside the project, never its dependencies."""

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

from mindcv_reparam.errors import UserError

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindcv_reparam_benchmarks"


def environment(name: str, requirements: Sequence[str], beside_project: bool = False) -> Path:
    """The Python of an environment with ``requirements``, made at the first call.

    ``beside_project`` lets it see this interpreter's packages, too (the same MindSpore for both sides); requirements
    are then installed without what they depend on. Raises UserError when pip fails.
    """
    kind = (sys.version_info[:2], sys.prefix if beside_project else "", *requirements)
    key = hashlib.sha256(repr(kind).encode()).hexdigest()[:8]
    folder = FOLDER / f"{name}-{key}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists():
        return python
    print(f"making {folder} with {' '.join(requirements)}: once, minutes", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)
    if beside_project:
        site = Path(subprocess.check_output([str(python), "-c", _SITE], text=True).strip())
        (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    without = ["--no-deps"] if beside_project else []
    command = [str(python), "-m", "pip", "install", "--quiet", *without, *requirements]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise UserError(f"pip could not install {' '.join(requirements)}: see its message above")
    ready.touch()
    return python


_SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"
