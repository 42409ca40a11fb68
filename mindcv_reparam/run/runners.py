"""Exported models as functions of NumPy arrays, whatever runs them."""

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mindcv_reparam.bundle.checksums import check_files
from mindcv_reparam.bundle.manifest import LABELS, MANIFEST, PREPROCESSING, Format, Manifest, read_manifest
from mindcv_reparam.errors import UserError
from mindcv_reparam.packages import is_installed, missing
from mindcv_reparam.plain_paths import readable_path
from mindcv_reparam.runtime import detect_device
from mindcv_reparam.untrusted import inside

# (N, …) images, and where the model takes them the images' sizes (N, 2) → outputs, each with the batch in front.
Program = Callable[..., tuple[np.ndarray, ...]]


def sizes_of(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """(width, height) of images, as programs and results take them: (N, 2) int32."""
    return np.array(sizes, np.int32).reshape(-1, 2)


def arguments(manifest: Manifest, images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the program of a manifest takes."""
    return (images,) if manifest.sizes is None else (images, sizes)


def cell_program(net: Callable) -> Program:
    """A Cell, or a graph that MindSpore loaded, as a function of arrays."""
    ms = importlib.import_module("mindspore")

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = net(*map(ms.Tensor, inputs))
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
        with readable_path(path) as readable:
            return cell_program(ms.nn.GraphCell(ms.load(str(readable))))
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"MindSpore cannot load {path}: it is truncated, damaged or no MindIR file") from error


def onnxruntime_program(path: str | os.PathLike[str], threads: int | None = None) -> Program:
    """An ONNX file, run by onnxruntime on the CPU.

    Args:
        threads: within an operator; all cores by default.

    Raises:
        UserError: onnxruntime is not installed, or refuses the file.
    """
    _require("onnxruntime")
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    # Threads that wait for the next call would take the cores from those that decode its images and serve its clients.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with readable_path(path) as readable:
            session = onnxruntime.InferenceSession(str(readable), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common public class
        raise UserError(f"onnxruntime cannot load {path}: {str(error).splitlines()[0]}") from error
    names = [entry.name for entry in session.get_inputs()]
    return lambda *inputs: tuple(session.run(None, dict(zip(names, inputs, strict=True))))


def lite_program(path: str | os.PathLike[str]) -> Program:
    """A MindIR file, run by MindSpore Lite: on the Ascend device where its package is the one for that, else on the
    CPU. Not run on Ascend here, nor with MindSpore Lite at all.

    Raises:
        UserError: mindspore_lite is not installed, or refuses the file.
    """
    _require("mindspore_lite")
    lite = importlib.import_module("mindspore_lite")
    context = lite.Context()
    context.target = [detect_device().lower()]
    model = lite.Model()
    try:
        with readable_path(path) as readable:
            model.build_from_file(str(readable), lite.ModelType.MINDIR, context)
    except RuntimeError as error:
        raise UserError(f"MindSpore Lite cannot load {path}: {str(error).splitlines()[0]}") from error

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        tensors = model.get_inputs()
        model.resize(tensors, [list(array.shape) for array in inputs])
        for tensor, array in zip(tensors, inputs, strict=True):
            tensor.set_data_from_numpy(array)
        return tuple(output.get_data_to_numpy() for output in model.predict(tensors))

    return run


# name → format it runs, and how
BACKENDS: dict[str, tuple[Format, Callable[..., Program]]] = {
    "onnxruntime": ("ONNX", onnxruntime_program),
    "mindspore": ("MINDIR", mindspore_program),
    "lite": ("MINDIR", lite_program),
}

SETS_THREADS = ("onnxruntime",)
_PACKAGES = {"onnxruntime": "onnxruntime", "mindspore": "mindspore", "lite": "mindspore_lite"}


def backend_for(folder: str | os.PathLike[str], backend: str | None = None) -> str:
    """The name of a backend for a bundle: the one asked for, else the first of BACKENDS that runs a file of it.

    Raises:
        UserError: the bundle has no file that it could run, or the backend's package is not installed.
    """
    first = _fitting_backends(folder, backend)[0]
    _require(_PACKAGES[first])
    return first


def backends_for(folder: str | os.PathLike[str], backend: str | None = None) -> list[str]:
    """All backends that run a file of a bundle and are installed, or the one asked for; raises as `backend_for`."""
    names = _fitting_backends(folder, backend)
    return [name for name in names if is_installed(_PACKAGES[name])] or [backend_for(folder, backend)]


def _fitting_backends(folder: str | os.PathLike[str], backend: str | None) -> list[str]:
    files = read_manifest(folder).files
    names = [backend] if backend else list(BACKENDS)
    fitting = [name for name in names if BACKENDS[name][0] in files]
    if not fitting:
        raise UserError(f"{folder} has {', '.join(files)}: {' and '.join(names)} cannot run that")
    return fitting


def check_threads(backend: str) -> None:
    """Raise UserError for a backend that has its own number of threads."""
    if backend not in SETS_THREADS:
        raise UserError(f"threads are for {', '.join(SETS_THREADS)}: {backend} has one per processor that it may use")


def bundle_program(folder: str | os.PathLike[str], backend: str | None = None, threads: int | None = None) -> Program:
    """The model of a bundle, ready to run; its file and those that steer it are the ones that SHA256SUMS lists.

    The program raises UserError where the model does not take its input, or gives other outputs than the manifest says.

    Args:
        threads: of the backend; by default one per processor.

    Raises:
        UserError: the bundle or the backend is not there, they do not fit, or a file was changed.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    backend = backend_for(folder, backend)
    file_format, load = BACKENDS[backend]
    if threads:
        check_threads(backend)
        load = functools.partial(load, threads=threads)
    name = manifest.files[file_format]
    check_files(folder, (MANIFEST, LABELS, PREPROCESSING, name))
    path = inside(folder, name)
    return fitting(load(path), manifest, path)


def fitting(program: Program, manifest: Manifest, path: Path) -> Program:
    """A program that holds what a manifest says against what the model of a file does, at every call."""

    def run(images: np.ndarray, *sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            outputs = program(images, *sizes)
        except Exception as error:  # backends have no common class of exceptions
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} does not run on {images.dtype} {list(images.shape)}: {reason}") from error
        forms, specs = [(output.dtype.name, output.shape) for output in outputs], manifest.outputs
        if len(forms) != len(specs) or not all(
            spec.dtype == dtype and spec.accepts(shape) and shape[0] == len(images)
            for spec, (dtype, shape) in zip(specs, forms)
        ):
            wanted = [(spec.dtype, spec.shape) for spec in specs]
            raise UserError(f"{path}: the model gives {forms} for {len(images)} images, the manifest tells {wanted}")
        return outputs

    return run


def _require(package: str) -> None:
    if not is_installed(package):
        raise UserError(f"{missing(package)}, or use another backend")
