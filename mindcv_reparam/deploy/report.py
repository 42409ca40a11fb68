"""report.md of a bundle: where the model comes from, what it costs, how far its files agree with the network."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint import CheckpointInfo
from .compare import TOLERANCE
from .manifest import Manifest


@dataclass(frozen=True)
class Agreement:
    """Predictions of a checkpoint's network and of an exported file on the same labelled images."""

    images: int
    checkpoint_correct: int  # top-1
    exported_correct: int
    same: int  # predictions

    def __str__(self) -> str:
        checkpoint, exported = (100 * n / self.images for n in (self.checkpoint_correct, self.exported_correct))
        return (
            f"top-1 {exported:.3f} % ({self.exported_correct}/{self.images}), the checkpoint {checkpoint:.3f} %, "
            f"{self.images - self.same} predictions differ"
        )


@dataclass(frozen=True)
class Measurement:
    """What was measured of an exported file."""

    difference: float  # max|Δ| / max|output|
    size: int  # bytes
    batch: int
    seconds: float  # per call on random images
    agreement: Agreement | None = None

    def __str__(self) -> str:
        text = (
            f"{self.size / 1e6:.2f} MB, differs from the network by {self.difference:.1e}, "
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
    measured: Mapping[str, Measurement]  # by format
    rounding: float | None  # what float16 weights change


def report_text(report: Report) -> str:
    """The report in Markdown."""
    manifest, source = report.manifest, report.source
    info = source.info
    before, after = source.operators
    accuracy = ", ".join(f"{name} {value:g}" for name, value in info.metrics.items())
    rows = [
        ("checkpoint", f"`{source.checkpoint}`, {info.state}, epoch {info.epoch}{', ' + accuracy if accuracy else ''}"),
        ("SHA-256 of the checkpoint", f"`{source.digest}`"),
        ("weights converted from", info.source),
        ("fused to", "nothing" if manifest.state == "train" else manifest.state),
        (
            "input",
            f"`{manifest.input.name}` {manifest.input.dtype} {_shape(manifest.input.shape)}, {manifest.input_kind}",
        ),
        ("outputs", ", ".join(f"`{o.name}` {o.dtype} {_shape(o.shape)}" for o in manifest.outputs)),
        (
            "weights",
            manifest.weights + (f", which moves the output by {report.rounding:.1e}" if report.rounding else ""),
        ),
        ("parameters", f"{source.parameters[0]:,} → {source.parameters[1]:,}"),
        ("multiply-accumulates per image", f"{source.macs[0]:,} → {source.macs[1]:,}"),
        ("operators", f"{before.total()} → {after.total()}"),
    ]
    text = [f"# {manifest.model}", "", "| | |", "|---|---|"]
    text += [f"| {name} | {value} |" for name, value in rows if value]
    text += ["", "Before → after the arrow: the network as it trains and as it is exported. Operators are those of the"]
    text += ["MindIR graph:", "", "| operator | train | exported |", "|---|---|---|"]
    text += [f"| {name} | {before[name]} | {after[name]} |" for name in sorted(before | after)]
    text += ["", "## Files", "", "| format | MB | max\\|Δ\\| / max\\|output\\| | latency here |", "|---|---|---|---|"]
    for name, path in manifest.files.items():
        if name in report.measured:
            one = report.measured[name]
            latency = f"{1000 * one.seconds:.1f} ms, batch {one.batch}"
            text.append(f"| {name} `{path}` | {one.size / 1e6:.2f} | {one.difference:.1e} | {latency} |")
        else:
            text.append(f"| {name} `{path}` | | not run: nothing but Ascend runs it | |")
    text += ["", f"The difference is from the checkpoint's network in MindSpore; above {TOLERANCE} nothing is written."]
    if manifest.output_kind in ("softmax", "topk"):
        text += ["That of probabilities is divided by the spread of their logits, if it is above 1."]
    text += ["Latencies are medians on the CPU that wrote this file; not run on Ascend here."]
    agreements = {name: one.agreement for name, one in report.measured.items() if one.agreement}
    if agreements:
        text += ["", "## Accuracy on real images", ""]
        text += [f"- {name}: {agreement}" for name, agreement in agreements.items()]
    return "\n".join(text) + "\n"


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
