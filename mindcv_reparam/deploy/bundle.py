"""Writing a deployment bundle: every file compared with the checkpoint's network before the folder appears."""

import dataclasses
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from .. import complexity
from ..checkpoint import CheckpointInfo
from ..data.transforms import height_and_width
from ..errors import UserError
from ..files import written_folder
from ..registry import create_model
from . import ascend
from .accuracy import Comparison
from .air import check_air, write_air
from .checksums import file_digest, write_checksums
from .compare import TOLERANCE, difference, largest_difference
from .graph import Deployment, Interface, prepare, reference
from .manifest import LABELS, MANIFEST, Manifest, write_manifest
from .mindir import write_mindir
from .onnx import export_onnx
from .report import Measurement, Report, Source, report_text
from .runners import Program, mindspore_program, onnxruntime_program
from .sample import write_sample

FILES = {"MINDIR": "model.mindir", "ONNX": "model.onnx", "AIR": "model.air"}
REPORT = "report.md"
_RUNS = 10  # timed, after one that is not


@dataclass(frozen=True)
class Candidate:
    """A network to export and what it is."""

    network: nn.Cell
    info: CheckpointInfo  # of the file it comes from
    state: str
    checkpoint: str


def write_bundle(
    folder: str | os.PathLike[str],
    candidate: Candidate,
    interface: Interface,
    formats: Sequence[str],
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
    info, labels = candidate.info, _labels(candidate.info, labels)
    if info.hparams["in_channels"] != 3:
        raise UserError(f"images have 3 channels and this {info.model} takes {info.hparams['in_channels']}")
    if comparison is not None and interface.output_kind == "features":
        raise UserError("verify_data compares classes, and head features gives none")
    preprocessing = {key: tuple(v) if isinstance(v, list) else v for key, v in info.preprocessing.items()}
    preprocessing["image_resize"] = height_and_width(info.hparams["img_size"])
    with written_folder(folder, marker=MANIFEST) as temporary:
        deployment = prepare(candidate.network, candidate.state, interface, preprocessing)
        if "AIR" in formats:
            check_air(device_target, deployment.input)
        manifest = Manifest(
            model=info.model,
            state=candidate.state,
            input=deployment.input,
            input_kind=interface.input_kind,
            outputs=deployment.outputs,
            output_kind=interface.output_kind,
            batch_sizes=interface.batch_sizes,
            weights=interface.weights,
            files={name: FILES[name] for name in formats},
            labels=labels,
            preprocessing=preprocessing,
        )
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
        for name, text in ascend.ascend_files(manifest).items():
            (temporary / ascend.FOLDER / name).write_text(text, encoding="utf-8")
        report = Report(manifest, _source(candidate), measured, _rounding(candidate, deployment, preprocessing))
        (temporary / REPORT).write_text(report_text(report), encoding="utf-8")
        write_checksums(temporary)
    return report


def _write_models(folder: Path, deployment: Deployment, formats: Sequence[str], opset: int) -> dict[str, Program]:
    """Write the files and load them again: programs by format, without AIR, which nothing here loads."""
    programs = {}
    mindir = folder / FILES["MINDIR"]
    if "MINDIR" in formats or "ONNX" in formats:  # ONNX is translated from it
        names = tuple(output.name for output in deployment.outputs)
        write_mindir(deployment.graph, mindir, deployment.input, names)
    if "ONNX" in formats:
        export_onnx(mindir, folder / FILES["ONNX"], opset=opset)
        programs["ONNX"] = onnxruntime_program(folder / FILES["ONNX"])
    if "MINDIR" in formats:
        programs["MINDIR"] = mindspore_program(mindir)
    else:
        mindir.unlink(missing_ok=True)
    if "AIR" in formats:
        write_air(deployment.graph, folder / FILES["AIR"], deployment.input)
    return programs


def _measure(name: str, folder: Path, program: Program, deployment: Deployment) -> Measurement:
    """How far a file is from the network, and how long it takes; raises UserError if it is too far."""
    trials = deployment.trials()
    kind = deployment.interface.output_kind
    found = largest_difference(deployment.expected, program, trials, kind)
    if not found <= TOLERANCE:
        raise UserError(f"not written: {FILES[name]} differs from the network by {found:.1e}, more than {TOLERANCE}")
    return Measurement(found, (folder / FILES[name]).stat().st_size, len(trials[0]), _seconds(program, trials[0]))


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
    if interface.weights == "fp32" or interface.output_kind == "features":
        return None
    exact = reference(candidate.network, interface, preprocessing["mean"], preprocessing["std"])
    images = deployment.trials()[0]
    kind = "logits"  # the reference gives a single array of numbers for every kind but features
    return difference(kind, exact(images), deployment.expected(images))


def _source(candidate: Candidate) -> Source:
    """What the report says of the network, train-time and as exported."""
    info = candidate.info
    height, width = height_and_width(info.hparams["img_size"])
    shape = (1, info.hparams["in_channels"], height, width)
    train = create_model(info.model, **info.hparams).set_train(False)
    costs = [complexity.cost(net, shape) for net in (train, candidate.network)]
    return Source(
        checkpoint=os.path.basename(candidate.checkpoint),
        digest=file_digest(candidate.checkpoint),
        info=info,
        parameters=tuple(complexity.count_parameters(net) for net in (train, candidate.network)),
        macs=tuple(cost.macs for cost in costs),
        operators=tuple(cost.operators for cost in costs),
    )


def _labels(info: CheckpointInfo, labels: Sequence[str] | None) -> tuple[str, ...]:
    count = info.hparams["num_classes"]
    names = labels if labels is not None else info.classes or [str(index) for index in range(count)]
    if len(names) != count:
        raise UserError(f"{len(names)} labels for a model of {count} classes: give one name per class, in their order")
    broken = next((name for name in names if "\n" in name or "\r" in name), None)
    if broken is not None:
        raise UserError(f"the class name {broken!r} has a line break, which {LABELS} cannot hold: give --labels FILE")
    return tuple(names)
