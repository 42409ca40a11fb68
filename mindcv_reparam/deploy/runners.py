"""Exported models as functions of NumPy arrays, whatever runs them."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from ..errors import UserError
from ..runtime import detect_device
from .manifest import read_manifest

# (N, …) images → outputs, each with the batch in front.
Program = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def cell_program(net: Callable) -> Program:
    """A Cell, or a graph that MindSpore loaded, as a function of arrays."""
    ms = importlib.import_module("mindspore")

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = net(ms.Tensor(images))
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        return tuple(output.asnumpy() for output in outputs)

    return run


def mindspore_program(path: str | os.PathLike[str]) -> Program:
    """A MindIR file, run by MindSpore as a graph; ``runtime.prepare`` must have set MindSpore up.

    Raises:
        UserError: the file cannot be read.
    """
    ms = importlib.import_module("mindspore")
    try:
        return cell_program(ms.nn.GraphCell(ms.load(str(path))))
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"MindSpore cannot load {path}: it is truncated, damaged or no MindIR file") from error


def onnxruntime_program(path: str | os.PathLike[str], threads: int | None = None) -> Program:
    """An ONNX file, run by onnxruntime on the CPU.

    Args:
        threads: within an operator; all cores by default.

    Raises:
        UserError: onnxruntime is not installed, or refuses the file.
    """
    onnxruntime = _package("onnxruntime", "pip install onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    # Threads that wait for the next call would take the cores from those that decode its images and serve its clients.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common public class
        raise UserError(f"onnxruntime cannot load {path}: {str(error).splitlines()[0]}") from error
    (images_input,) = session.get_inputs()
    return lambda images: tuple(session.run(None, {images_input.name: images}))


def lite_program(path: str | os.PathLike[str]) -> Program:
    """A MindIR file, run by MindSpore Lite: on the Ascend device where its package is the one for that, else on the
    CPU. Not run on Ascend here, nor with MindSpore Lite at all.

    Raises:
        UserError: mindspore_lite is not installed, or refuses the file.
    """
    lite = _package("mindspore_lite", "see MindSpore Lite's site")
    context = lite.Context()
    context.target = [detect_device().lower()]
    model = lite.Model()
    try:
        model.build_from_file(str(path), lite.ModelType.MINDIR, context)
    except RuntimeError as error:
        raise UserError(f"MindSpore Lite cannot load {path}: {str(error).splitlines()[0]}") from error

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        (tensor,) = model.get_inputs()
        model.resize([tensor], [list(images.shape)])
        tensor.set_data_from_numpy(images)
        return tuple(output.get_data_to_numpy() for output in model.predict([tensor]))

    return run


# name → format it runs, and how
BACKENDS: dict[str, tuple[str, Callable[..., Program]]] = {
    "onnxruntime": ("ONNX", onnxruntime_program),
    "mindspore": ("MINDIR", mindspore_program),
    "lite": ("MINDIR", lite_program),
}


def backend_for(folder: str | os.PathLike[str], backend: str | None = None) -> str:
    """The name of a backend for a bundle: the one asked for, else the first of BACKENDS that runs a file of it.

    Raises:
        UserError: the bundle has no file that it could run.
    """
    files = read_manifest(folder).files
    names = [backend] if backend else list(BACKENDS)
    for name in names:
        if BACKENDS[name][0] in files:
            return name
    raise UserError(f"{folder} has {', '.join(files)}: {' and '.join(names)} cannot run that")


def bundle_program(folder: str | os.PathLike[str], backend: str | None = None) -> Program:
    """The model of a bundle, ready to run.

    Raises:
        UserError: the bundle or the backend is not there, or they do not fit.
    """
    manifest = read_manifest(folder)
    file_format, load = BACKENDS[backend_for(folder, backend)]
    return load(Path(folder, manifest.files[file_format]))


def _package(name: str, advice: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed: {advice}, or use another backend") from None
