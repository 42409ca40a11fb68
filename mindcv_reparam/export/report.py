"""report.md of a bundle: where the model comes from, what it costs, how far its files agree with the network."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindcv_reparam.bundle.manifest import LABELS, Format, Manifest
from mindcv_reparam.bundle.preprocessing import in_words
from mindcv_reparam.checkpoint import CheckpointInfo
from mindcv_reparam.tensors import TOLERANCE, TensorSpec

_SHOWN = 5  # classes


@dataclass(frozen=True)
class Measurement:
    """What was measured of an exported file."""

    difference: float  # max|Δ| / max|output|
    size: int  # bytes
    batch: int
    seconds: float  # per call on random images
    shape: tuple[int, ...]  # of the input that gave the difference, of those that were tried
    agreement: Any = None  # on real images, as the task tells it

    def __str__(self) -> str:
        text = (
            f"{self.size / 1e6:.2f} MB, differs from the network by {self.difference:.1e} (input {self.shape}), "
            f"{1000 * self.seconds:.1f} ms per batch of {self.batch}"
        )
        return f"{text}; {self.agreement}" if self.agreement else text


@dataclass(frozen=True)
class Source:
    """The checkpoint, and the network before and after fusing it."""

    checkpoint: str
    digest: str  # SHA-256 of the file
    info: CheckpointInfo
    parameters: tuple[int, int]
    macs: tuple[int, int]
    operators: tuple[Counter[str], Counter[str]]


@dataclass(frozen=True)
class Report:
    manifest: Manifest
    source: Source
    measured: Mapping[Format, Measurement]
    rounding: float | None  # what float16 weights change
    written: str  # when, and by which versions


def report_text(report: Report) -> str:
    """The report in Markdown."""
    manifest, source = report.manifest, report.source
    info = source.info
    before, after = source.operators
    shown = ", ".join(manifest.labels[:_SHOWN]) + (", …" if len(manifest.labels) > _SHOWN else "")
    rows = [
        ("written", report.written),
        ("checkpoint", f"`{source.checkpoint}`, {info.state}, epoch {info.epoch}"),
        ("SHA-256 of the checkpoint", f"`{source.digest}`"),
        ("weights converted from", info.source),
        ("trained on", info.data),
        ("classes", f"{len(manifest.labels)}, in {LABELS}: {shown}"),
        ("fused to", "nothing" if manifest.state == "train" else manifest.state),
        ("input", f"{_tensor(manifest.input)}, {manifest.input_kind}"),
        ("sizes", manifest.sizes and f"{_tensor(manifest.sizes)}, width and height of the images as decoded"),
        ("preprocessing", in_words(manifest)),
        ("outputs", ", ".join(map(_tensor, manifest.outputs))),
        (
            "weights",
            manifest.weights + (f", which moves the output by {report.rounding:.1e}" if report.rounding else ""),
        ),
        ("parameters", f"{source.parameters[0]:,} → {source.parameters[1]:,}"),
        ("multiply-accumulates per image", f"{source.macs[0]:,} → {source.macs[1]:,}"),
        ("operators", f"{before.total()} → {after.total()}"),
    ]
    text = [f"# {manifest.model}", "", "| | |", "|---|---|"]
    text += [f"| {name} | {_cell(value)} |" for name, value in rows if value]
    text += [""] + [f"- `{name}`: {meaning}" for name, meaning in manifest.meanings.items()]
    text += ["", "Before → after the arrow: the network as it trains and as it is exported. Operators are those of the"]
    text += ["MindIR graph:", "", "| operator | train | exported |", "|---|---|---|"]
    text += [f"| {name} | {before[name]} | {after[name]} |" for name in sorted(before | after)]
    if info.metrics:
        text += ["", "## Measured in training", "", f"Of the {info.weights} weights after epoch {info.epoch}:", ""]
        text += ["| | |", "|---|---|", *(f"| {name} | {value:g} |" for name, value in info.metrics.items())]
    text += ["", "## Files", "", "| format | MB | max\\|Δ\\| / max\\|output\\| | for the input | latency here |"]
    text += ["|---|---|---|---|---|"]
    for name, path in manifest.files.items():
        if name in report.measured:
            one = report.measured[name]
            latency = f"{1000 * one.seconds:.1f} ms, batch {one.batch}"
            text.append(f"| {name} `{path}` | {one.size / 1e6:.2f} | {one.difference:.1e} | {one.shape} | {latency} |")
        else:
            text.append(f"| {name} `{path}` | | | not run: nothing but Ascend runs it | |")
    text += ["", f"The difference is from the checkpoint's network in MindSpore; above {TOLERANCE} nothing is written."]
    note = manifest.results.difference_note(manifest.output_kind)
    text += [note] if note else []
    text += ["Latencies are medians on the CPU that wrote this file; not run on Ascend here."]
    agreements = {name: one.agreement for name, one in report.measured.items() if one.agreement}
    if agreements:
        text += ["", "## Accuracy on real images", ""]
        text += [f"- {name}: {agreement}" for name, agreement in agreements.items()]
    return "\n".join(text) + "\n"


def _cell(text: str) -> str:
    """A text, which may be a class's or a file's name, within a row."""
    return text.replace("|", "\\|").replace("\n", " ")


def _tensor(spec: TensorSpec) -> str:
    shape = ", ".join("any" if size is None else str(size) for size in spec.shape)
    return f"`{spec.name}` {spec.dtype} ({shape})"
