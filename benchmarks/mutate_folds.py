"""Show that the tests notice a fault in any fold: plant one at a time in a copy of the project and run its tests.

    python benchmarks/mutate_folds.py ["models/*"]

Prints a table with the test that turned red first, and fails if a fault goes unnoticed.
"""

import argparse
import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Room(NamedTuple):
    """A file of the package, the tests that guard its folds, and faults: what stands there once, and what to put."""

    path: str
    tests: str
    faults: dict[str, tuple[str, str]]


ROOMS = (
    Room(
        "fusion.py",
        "tests/test_fusion.py",
        {
            "norm: eps left out": ("np.asarray(variance, np.float64) + eps)", "variance)"),
            "norm: sign of the mean": ("np.float64) - np.asarray(mean", "np.float64) + np.asarray(mean"),
            "compose: outer shift lost": ("inner.shift + outer.shift)", "inner.shift)"),
            "after: shift lost": ("linear.bias + affine.shift)", "linear.bias)"),
            "after: bias not scaled": ("affine.scale * linear.bias", "linear.bias"),
            "before: sign of the shift": ("linear.bias + (matrix", "linear.bias - (matrix"),
            "before: channels of other groups": (
                "np.repeat(affine.shift.reshape(groups, in_per_group), out_per_group, axis=0)",
                "np.tile(affine.shift.reshape(groups, in_per_group), (out_per_group, 1))",
            ),
            "pad: off centre": ("(rows, rows), (columns, columns)", "(0, 2 * rows), (columns, columns)"),
            "identity: wrong channel": ("outputs % (channels // groups),", "outputs % groups,"),
            "parallel: kernels transposed": ("sum(branch.weight for", "sum(branch.weight.swapaxes(2, 3) for"),
            "parallel: one bias": ("sum(branch.bias for branch in padded)", "padded[0].bias"),
        },
    ),
    Room(
        "layers.py",
        "tests/test_layers.py",
        {
            "another eps": ("eps=cell.eps)", "eps=1e-6)"),
            "bias overlooked": ("cell.bias.asnumpy() if cell.has_bias else None", "None"),
            "before: groups ignored": (
                "fusion.affine_before(linear_of(layer), affine, groups)",
                "fusion.affine_before(linear_of(layer), affine)",
            ),
            "bias lost on the move": ("with_linear(second, moved)", "with_linear(second, linear_of(second))"),
            "attention: q's bias not scaled": ("qkv.bias[q] * scale", "qkv.bias[q]"),
            "attention: v scaled instead of q": ("weight[q] *= scale", "weight[v] *= scale"),
            "attention: scale twice": ("scale=nn.Identity(),", "scale=self.scale,"),
            "attention: bias of v lost": ("fusion.affine_before(proj, value_bias)", "proj"),
        },
    ),
    Room(
        "reparam.py",
        # the protocol is the same for every family: one will do
        "tests/test_reparam.py -m 'not slow' -k 'not (visformer or riformer or poolformer or gfnet or regnet)'",
        {
            "in place": ("_fuse(_copy(net),", "_fuse(net,"),
            "root left out": (
                "_fuse(_copy(net), LEVELS.index(level))",
                "_copy(net) if isinstance(net, Reparameterizable) else _fuse(_copy(net), LEVELS.index(level))",
            ),
            "stale list of cells": ("cell[int(name)] = new", "setattr(cell, name, new)"),
            "training mode kept": ("return net.set_train(False)", "return net"),
            "graphs of the original lost": ("child.compile_cache.clear()", "pass"),
            "names kept": ("        parameter.name = name\n", ""),
            "rounds after every fold": ("Tensor(value, ms.float64)", "Tensor(value, ms.float32)"),
        },
    ),
    Room(
        "models/fastvit.py",
        "tests/test_fastvit.py -k cells_fuse",
        {
            "MobileOne: identity lost": (
                "affine_of(self.identity), identity)",
                "fusion.affine(0 * identity.bias), identity)",
            ),
            "MobileOne: scale branch lost": ("branches.append(linear_of(fused(self.scale)))", "pass"),
            "large kernel: small one lost": (
                "fusion.parallel(linear_of(large), linear_of(small))",
                "linear_of(large)",
            ),
            "RepMixer: sign of the norm": ("fusion.Affine(-norm.scale, -norm.shift)", "norm"),
            "RepMixer: residual lost": ("fusion.parallel(identity, branch)", "branch"),
            "RepMixer: layer scale lost": (
                "affine_of(self.layer_scale), fusion",
                "fusion.affine(0 * norm.shift + 1), fusion",
            ),
            "position: residual lost": (
                "fusion.parallel(fusion.identity(len(conv.bias), groups=len(conv.bias)), conv)",
                "conv",
            ),
            "attention block: layer scales mixed up": (
                "(mixer.proj, self.layer_scale_1)",
                "(mixer.proj, self.layer_scale_2)",
            ),
        },
    ),
    Room(
        "models/visformer.py",
        "tests/test_reparam.py -k 'visformer and outputs_are_equal'",
        {"last norm lost": ("head=fold_before(self.norm, self.head)", "head=self.head")},
    ),
    Room(
        "models/riformer.py",
        "tests/test_reparam.py -k 'riformer and outputs_are_equal'",
        {"minus one lost": ("fusion.affine(weight - 1.0, bias)", "fusion.affine(weight, bias)")},
    ),
    Room(
        "models/metaformer.py",
        "tests/test_reparam.py -k 'poolformer and outputs_are_equal'",
        {"layer scale lost": ("fold_after(self.mlp.fc2, self.layer_scale2)", "self.mlp.fc2")},
    ),
    Room(
        "models/gfnet.py",
        "tests/test_reparam.py -k 'gfnet and outputs_are_equal'",
        {"layer scale lost": ("with_linear(self.mlp.fc2, scaled)", "self.mlp.fc2")},
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of the files to plant faults in")
    rooms = [room for room in ROOMS if fnmatch.fnmatch(room.path, parser.parse_args().pattern)]

    planted = unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("mindcv_reparam", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)

        print("| fault | in | first red test |\n|---|---|---|")
        for room in rooms:
            if red := first_red_test(copy, room.tests):
                raise SystemExit(f"{red} is red without a fault")
            for name, (was, becomes) in room.faults.items():
                red = with_fault(copy, room, was, becomes)
                planted, unnoticed = planted + 1, unnoticed + (red is None)
                print(f"| {name} | `{room.path}` | {f'`{red}`' if red else '**none**'} |", flush=True)
    print(f"\n{planted - unnoticed} of {planted} faults turn a test red")
    return int(unnoticed > 0)


def with_fault(copy: Path, room: Room, was: str, becomes: str) -> str | None:
    """The first red test while the fault is in place."""
    path = copy / "mindcv_reparam" / room.path
    source = path.read_text()
    if source.count(was) != 1:
        raise SystemExit(f"{was!r} occurs {source.count(was)} times in {room.path}; mend the table of faults")
    path.write_text(source.replace(was, becomes))
    try:
        return first_red_test(copy, room.tests)
    finally:
        path.write_text(source)


def first_red_test(copy: Path, tests: str) -> str | None:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if red := re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - .*)?$", run.stdout, re.MULTILINE):
        return red[1]
    if run.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with status {run.returncode}:\n{run.stdout}{run.stderr}")
    return None


if __name__ == "__main__":
    sys.exit(main())
