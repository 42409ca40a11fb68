"""Writing a deployment bundle: every file compared with the checkpoint's network before the folder appears."""

import dataclasses
import functools
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from mindcv_reparam import __version__, complexity
from mindcv_reparam.bundle.checksums import file_digest, write_checksums
from mindcv_reparam.bundle.manifest import LABELS, MANIFEST, Format, Manifest, unfit_label, write_manifest
from mindcv_reparam.checkpoint import CheckpointInfo
from mindcv_reparam.checkpoint_info import State
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.errors import UserError
from mindcv_reparam.export import ascend
from mindcv_reparam.export.air import check_air, write_air
from mindcv_reparam.export.graph import Deployment, Interface, prepare, reference
from mindcv_reparam.export.mindir import write_mindir
from mindcv_reparam.export.operator_files import operator_files
from mindcv_reparam.export.report import Measurement, Report, Source, report_text
from mindcv_reparam.files import written_folder
from mindcv_reparam.run.accuracy import Comparison
from mindcv_reparam.run.compare import largest_difference
from mindcv_reparam.run.runners import Program, mindspore_program, onnxruntime_program
from mindcv_reparam.run.sample import write_sample
from mindcv_reparam.tasks import task_of
from mindcv_reparam.tensors import TOLERANCE, relative_difference
from mindcv_reparam.zoo import create_model

FILES: dict[Format, str] = {"MINDIR": "model.mindir", "ONNX": "model.onnx", "AIR": "model.air"}
REPORT = "report.md"
_RUNS = 10  # timed, after one that is not


@dataclass(frozen=True)
class Candidate:
    """A network to export and what it is."""

    network: nn.Cell
    info: CheckpointInfo  # of the file it comes from
    state: State
    checkpoint: str


def write_bundle(
    folder: str | os.PathLike[str],
    candidate: Candidate,
    interface: Interface,
    formats: Sequence[Format],
    *,
    labels: Sequence[str] | None = None,
    opset: int = 17,
    device_target: str = "CPU",
    comparison: Comparison | None = None,
) -> Report:
    """Export a network to ``folder``, whole or not at all; an earlier bundle there is replaced.

    Args:
        formats: of "MINDIR", "ONNX" and "AIR", at least one.
        labels: class names; the checkpoint's by default, or else the indices as text.
        opset: of ONNX.
        comparison: with the checkpoint on real images, for the report.

    Raises:
        UserError: the network cannot be exported that way, a file differs from the network by more than TOLERANCE, or
            the folder cannot be written.
    """
    ascend.check_gears(interface.batch_sizes)
    info, labels = candidate.info, _labels(candidate.info, labels)
    info.check_images()
    task = task_of(info.model)
    kind = interface.kind_of(task)
    if comparison is not None:
        comparison.check(task.results, kind)
    preprocessing = {key: tuple(v) if isinstance(v, list) else v for key, v in info.preprocessing.items()}
    preprocessing["image_resize"] = height_and_width(info.hparams["img_size"])
    with written_folder(folder, marker=MANIFEST) as temporary:
        deployment = prepare(candidate.network, candidate.state, interface, preprocessing, task)
        if "AIR" in formats:
            check_air(device_target, deployment.input)
        manifest = _manifest(candidate, deployment, formats, labels, preprocessing)
        programs = _write_models(temporary, deployment, formats, opset)
        measured = {name: _measure(name, temporary, program, deployment) for name, program in programs.items()}
        if comparison is not None:
            measured = {
                name: dataclasses.replace(measurement, agreement=comparison(manifest, programs[name]))
                for name, measurement in measured.items()
            }
        write_manifest(manifest, temporary)
        write_sample(temporary, manifest, deployment.expected)
        (temporary / ascend.FOLDER).mkdir()
        texts = {f"{ascend.FOLDER}/{name}": text for name, text in ascend.ascend_files(manifest).items()}
        texts |= operator_files(_text(Path(os.path.abspath(folder)).name), manifest)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        rounding = _rounding(candidate, deployment, preprocessing)
        report = Report(manifest, _source(candidate), measured, rounding, _written(formats, opset))
        (temporary / REPORT).write_text(report_text(report), encoding="utf-8")
        write_checksums(temporary)
    return report


def _manifest(
    candidate: Candidate,
    deployment: Deployment,
    formats: Sequence[Format],
    labels: tuple[str, ...],
    preprocessing: dict[str, Any],
) -> Manifest:
    interface = deployment.interface
    return Manifest(
        model=candidate.info.model,
        state=candidate.state,
        input=deployment.input,
        input_kind=interface.input_kind,
        outputs=deployment.outputs,
        output_kind=deployment.output_kind,
        batch_sizes=interface.batch_sizes,
        weights=interface.weights,
        files={name: FILES[name] for name in formats},
        labels=labels,
        preprocessing=preprocessing,
        task=deployment.task.name,
        sizes=deployment.sizes,
        meanings=deployment.task.results.meanings(deployment.output_kind),
        category_ids=candidate.info.category_ids,
    )


def _write_models(folder: Path, deployment: Deployment, formats: Sequence[Format], opset: int) -> dict[Format, Program]:
    """Write the files and load them again: programs by format, without AIR, which nothing here loads."""
    programs: dict[Format, Program] = {}
    mindir = folder / FILES["MINDIR"]
    if "MINDIR" in formats or "ONNX" in formats:  # ONNX is translated from it
        names = tuple(output.name for output in deployment.outputs)
        write_mindir(deployment.graph, mindir, deployment.input, names, deployment.sizes)
    if "ONNX" in formats:
        from mindcv_reparam.export.onnx import export_onnx  # without the package the other formats are written

        export_onnx(mindir, folder / FILES["ONNX"], opset=opset)
        programs["ONNX"] = onnxruntime_program(folder / FILES["ONNX"])
    if "MINDIR" in formats:
        programs["MINDIR"] = mindspore_program(mindir)
    else:
        mindir.unlink(missing_ok=True)
    if "AIR" in formats:
        write_air(deployment.graph, folder / FILES["AIR"], deployment.inputs)
    return programs


def _measure(name: Format, folder: Path, program: Program, deployment: Deployment) -> Measurement:
    """How far a file is from the network, and how long it takes; raises UserError if it is too far."""
    trials = deployment.trials()
    measure = functools.partial(deployment.task.results.difference, deployment.output_kind)
    expected, program = deployment.on_images(deployment.expected), deployment.on_images(program)
    differences = [largest_difference(expected, program, [images], measure) for images in trials]
    worst = int(np.argmax(differences))  # NaN counts as the largest
    found, shape = differences[worst], trials[worst].shape
    if not found <= TOLERANCE:
        raise UserError(
            f"not written: {FILES[name]} differs from the network by {found:.1e} for an input of {shape}, more than "
            f"{TOLERANCE}"
        )
    size = (folder / FILES[name]).stat().st_size
    return Measurement(found, size, len(trials[0]), _seconds(program, trials[0]), shape)


def _seconds(program: Program, images: np.ndarray) -> float:
    """Median time of a call."""
    program(images)
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        program(images)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _rounding(candidate: Candidate, deployment: Deployment, preprocessing: dict[str, Any]) -> float | None:
    """How far float16 weights move the logits; None where the weights are float32."""
    interface = deployment.interface
    if interface.weights == "fp32" or not deployment.task.results.tells(deployment.output_kind):
        return None
    head = deployment.task.head(deployment.output_kind, interface.top_k)
    exact = reference(candidate.network, head, interface.input_kind, preprocessing["mean"], preprocessing["std"])
    images = deployment.trials()[0]
    return relative_difference(deployment.on_images(exact)(images), deployment.on_images(deployment.expected)(images))


def _written(formats: Sequence[str], opset: int) -> str:
    """When and by what. SOURCE_DATE_EPOCH, in seconds, is the time where it is set: a bundle can be made again."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(seconds), UTC) if seconds.isdecimal() else datetime.now(UTC)
    versions = f"mindcv_reparam {__version__}, MindSpore {ms.__version__}, NumPy {np.__version__}"
    if "ONNX" in formats:
        import onnx
        import onnxruntime

        versions += f", ONNX {onnx.__version__} (opset {opset}), onnxruntime {onnxruntime.__version__}"
    return f"{now:%Y-%m-%d %H:%M} UTC by {versions}, Python {platform.python_version()}"


def _source(candidate: Candidate) -> Source:
    """What the report says of the network, train-time and as exported."""
    info = candidate.info
    height, width = height_and_width(info.hparams["img_size"])
    shape = (1, info.hparams["in_channels"], height, width)
    train = create_model(info.model, **info.hparams).set_train(False)
    before, after = (complexity.cost(net, shape) for net in (train, candidate.network))
    return Source(
        checkpoint=os.path.basename(candidate.checkpoint),
        digest=file_digest(candidate.checkpoint),
        info=info,
        parameters=(complexity.count_parameters(train), complexity.count_parameters(candidate.network)),
        macs=(before.macs, after.macs),
        operators=(before.operators, after.operators),
    )


def _labels(info: CheckpointInfo, labels: Sequence[str] | None) -> tuple[str, ...]:
    count = info.hparams["num_classes"]
    names = labels if labels is not None else info.labels or info.classes or [str(index) for index in range(count)]
    if len(names) != count:
        raise UserError(f"{len(names)} labels for a model of {count} classes: give one name per class, in their order")
    names = [_text(name) for name in names]
    broken = unfit_label(names)
    if broken is not None:
        raise UserError(
            f"the class name {broken!r} has a line break or byte order mark, which {LABELS} cannot hold: give --labels "
            "FILE"
        )
    return tuple(names)


def _text(name: str) -> str:
    """The name of a folder, which Linux allows to be no text, as text: ``caf\\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
