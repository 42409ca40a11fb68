"""Time a bundle's models by batch size and threads, and recommend which to serve with.

    python -m mindcv_reparam benchmark exports/fastvit_t8
    python -m mindcv_reparam benchmark exports/fastvit_t8 --batch_size 1 8 32 --threads 1 2 4 --seconds 10 --json

The bundle's sample is the input. Settings take turns; a first call of every turn is not counted. Threads are
onnxruntime's; MindSpore has its own number, one per processor that it may use. See docs/serving.md.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindcv_reparam.commands.list import aligned
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.run.runners import (
    BACKENDS,
    SETS_THREADS,
    arguments,
    backends_for,
    bundle_program,
    check_threads,
    sizes_of,
)
from mindcv_reparam.settings import whole_number

if TYPE_CHECKING:
    import numpy as np

    from mindcv_reparam.bundle.manifest import Manifest
    from mindcv_reparam.run.runners import Program
    from mindcv_reparam.run.timing import Recommendation, Timing

_BATCHES = (1, 2, 4, 8, 16)
_HEADER = ("backend", "threads", "batch", "p50 ms", "p95 ms", "images/s", "calls")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that export.py wrote")
    parser.add_argument("--backend", choices=BACKENDS, help="what runs the model (default: all that can here)")
    parser.add_argument(
        "--batch_size",
        type=whole_number(most=2**16),
        nargs="+",
        help=f"images together (default: the bundle's, or {', '.join(map(str, _BATCHES))})",
    )
    parser.add_argument(
        "--threads", type=whole_number(most=1024), nargs="+", help="of onnxruntime (default: 1, 2, 4 … all processors)"
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=3.0, help="for each setting, at least nine calls (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    from mindcv_reparam.bundle.manifest import read_manifest
    from mindcv_reparam.run.timing import measure, recommend

    manifest = read_manifest(args.bundle)
    inputs = _inputs(args.bundle, manifest, _batches(manifest, args.batch_size))
    programs = _programs(args.bundle, args.backend, args.threads)
    print(f"settings: {len(inputs) * len(programs)}; {args.seconds:g} s or nine calls each", file=sys.stderr)
    timings = measure(programs, inputs, args.seconds)
    found = recommend(timings)
    print(_document(args, manifest, timings, found) if args.json else _text(args.bundle, timings, found))
    return 0


def _batches(manifest: "Manifest", asked: Sequence[int] | None) -> list[int]:
    listed = manifest.batch_sizes
    wrong = [size for size in asked or () if listed and size not in listed]
    if listed and wrong:
        raise UserError(f"batch_size {wrong[0]}: this bundle has {', '.join(map(str, listed))}")
    return sorted(set(asked or listed or _BATCHES))


def _inputs(folder: Path, manifest: "Manifest", batches: Sequence[int]) -> "dict[int, tuple[np.ndarray, ...]]":
    """The sample's first image, as often as it takes, by batch size."""
    import numpy as np

    from mindcv_reparam.run.sample import read_sample

    _, images, _ = read_sample(folder, manifest)
    height, width = height_and_width(manifest.preprocessing["image_resize"])
    repeated = {batch: np.repeat(images[:1], batch, axis=0) for batch in batches}
    return {batch: arguments(manifest, one, sizes_of([(width, height)] * batch)) for batch, one in repeated.items()}


def _programs(folder: Path, backend: str | None, threads: Sequence[int] | None) -> "dict[tuple[str, int], Program]":
    """By backend and threads."""
    processors = len(os.sched_getaffinity(0))
    powers = [2**n for n in range(processors.bit_length()) if 2**n < processors]
    programs = {}
    for name in backends_for(folder, backend):
        if name == "mindspore":
            from mindcv_reparam.runtime import prepare

            prepare("CPU")
        if threads and backend:
            check_threads(name)
        settable = name in SETS_THREADS
        for count in sorted(set(threads or [*powers, processors])) if settable else [processors]:
            programs[name, count] = bundle_program(folder, name, count if settable else None)
    return programs


def _text(bundle: Path, timings: "Sequence[Timing]", found: "Recommendation") -> str:
    rows = [
        (
            one.backend,
            *map(str, (one.threads, one.batch)),
            *(f"{number:.1f}" for number in (one.p50, one.p95, one.images_per_second)),
            str(one.calls),
        )
        for one in timings
    ]
    lines = [aligned([_HEADER, *rows], left=[0]), ""]
    for purpose, one in dataclasses.asdict(found).items():
        setting = f"{one['backend']}, threads {one['threads']}, batch {one['batch']}"
        taken = f"p50 {one['p50']:.1f} ms, p95 {one['p95']:.1f} ms, {one['images_per_second']:.1f} images/s"
        lines.append(f"for {purpose}: {setting}: {taken}")
        threads = f" --threads {one['threads']}" if one["backend"] in SETS_THREADS else ""
        lines.append(f"  serve {bundle} --backend {one['backend']} --max_batch_size {one['batch']}{threads}")
    return "\n".join(lines)


def _document(
    args: argparse.Namespace, manifest: "Manifest", timings: "Sequence[Timing]", found: "Recommendation"
) -> str:
    values: Mapping[str, object] = {
        "bundle": str(args.bundle),
        "model": manifest.model,
        "processors": len(os.sched_getaffinity(0)),
        "seconds": args.seconds,
        "timings": [dataclasses.asdict(one) for one in timings],
        "recommended": dataclasses.asdict(found),
    }
    return json.dumps(values, indent=2)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and up to 3600, got {shortened(text)!r}")
    return value
