"""Fine-tuning on photographs: frozen, fine-tuned, from scratch and a linear probe, by the commands of the tutorial.

    pip install --no-deps --target runs/scikit-image scikit-image
    python benchmarks/fine_tuning.py runs/scikit-image/skimage/data runs/photographs

The package's photographs become two tasks, of which a network tells the photograph that a cut-out is from. Cut-outs of
the coloured ones are what is learnt before, in the place of published weights. Those of the grey ones are the small
set of one's own: 12 training images a class from the left half of each, 60 to validate from the right half. The table
is on standard output.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from report import line, markdown

from mindcv_reparam.errors import Parser, UserError, run_script

ROOT = Path(__file__).parents[1]
BEFORE = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "ihc", "motorcycle_left", "retina", "rocket")
OWN = ("brick", "camera", "cell", "clock_motion", "coins", "grass", "gravel", "moon", "page")
SIDE = 64  # pixels of a cut-out
NETWORK = ("--model", "fastvit_t8", "--image_resize", str(SIDE), "--crop_pct", "1.0")
# What of the recipe each run changes; a new network learns at a rate of its own.
RUNS = {
    "frozen, `--freeze backbone`": ("--freeze", "backbone", "--lr", "0.001", "--head_lr_factor", "1"),
    "fine-tuned, the recipe": (),
    "fine-tuned, `--lr 0.001 --head_lr_factor 1`": ("--lr", "0.001", "--head_lr_factor", "1"),
    "from scratch, `--lr 0.001`": ("--lr", "0.001", "--head_lr_factor", "1"),
}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of scikit-image's data")
    parser.add_argument("output", type=Path, help="folder to be made")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default 3)")
    args = parser.parse_args()
    args.output = args.output.absolute()
    if args.output.exists():
        raise UserError(f"{args.output} exists; name another folder or delete it")
    write_images(args.photographs, args.output)
    weights = learn_before(args.output)
    print(markdown(("", "top-1 of the held-out cut-outs by seed", "mean", "seconds a run")))
    rows = {name: (words if "scratch" in name else (*words, "--ckpt_path", weights)) for name, words in RUNS.items()}
    for number, (name, words) in enumerate(rows.items()):
        tell(name, [tuned(args.output, f"{number}-{seed}", words, seed) for seed in range(args.seeds)])
    tell("`probe`", [probed(args.output, weights)])


def write_images(photographs: Path, output: Path) -> None:
    """Cut-outs as PNG files, the same at every call."""
    rng = np.random.default_rng(0)
    for name in BEFORE:
        cut(photographs, name, output / "before" / name, rng, number=200, columns=(0.0, 1.0))
    for name in OWN:
        cut(photographs, name, output / "own" / "train" / name, rng, number=12, columns=(0.0, 0.5))
        cut(photographs, name, output / "own" / "val" / name, rng, number=60, columns=(0.5, 1.0))


def cut(photographs: Path, name: str, folder: Path, rng: np.random.Generator, number: int, columns: tuple) -> None:
    """``number`` cut-outs of a photograph, from a part of its columns."""
    (path,) = photographs.glob(f"{name}.*")
    folder.mkdir(parents=True)
    with Image.open(path) as image:
        left, right = (int(image.width * edge) for edge in columns)
        part = image.convert("RGB").crop((left, 0, right, image.height))
    for index in range(number):
        x, y = rng.integers(part.width - SIDE + 1), rng.integers(part.height - SIDE + 1)
        part.crop((x, y, x + SIDE, y + SIDE)).save(folder / f"{index:03d}.png")


def learn_before(output: Path) -> str:
    """The network that knows the coloured photographs; where its checkpoint is."""
    folder = output / "runs" / "before"
    words = (
        "--val_split",
        "0.1",
        "--epoch_size",
        "12",
        "--decay_epochs",
        "11",
        "--lr",
        "0.002",
        "--head_lr_factor",
        "1",
    )
    run("train.py", *NETWORK, "--data_dir", output / "before", *words, "--ckpt_save_dir", folder)
    weights = folder / "fastvit_t8_best.ckpt"
    print(f"before: top-1 {top1(folder, weights):.1f} of the coloured photographs' held-out cut-outs\n")
    return str(weights)


def tuned(output: Path, name: str, words: tuple[str, ...], seed: int) -> tuple[float, float]:
    """Top-1 and seconds of a training on the grey photographs."""
    folder, start = output / "runs" / name, time.monotonic()
    data = ("--data_dir", output / "own", "--seed", seed, "--early_stopping", 0, "--ckpt_save_dir", folder)
    run("train.py", *NETWORK, *data, *words)
    seconds = time.monotonic() - start
    return top1(folder, folder / "fastvit_t8_best.ckpt"), seconds


def probed(output: Path, weights: str) -> tuple[float, float]:
    folder, start = output / "runs" / "probe", time.monotonic()
    data = ("--data_dir", output / "own", "--ckpt_path", weights, "--ckpt_save_dir", folder)
    run("-m", "mindcv_reparam", "probe", "-c", "configs/finetune.yaml", *NETWORK, *data)
    seconds = time.monotonic() - start
    return top1(folder, folder / "fastvit_t8_probe.ckpt"), seconds


def top1(folder: Path, weights: Path) -> float:
    run("validate.py", "--ckpt_path", weights, "--output", folder / "accuracy.json", config=folder / "fastvit_t8.yaml")
    return json.loads((folder / "accuracy.json").read_text())["top1"]


def run(script: str, *words: object, config: Path | None = None) -> None:
    recipe = () if script == "-m" else ("-c", config or "configs/finetune.yaml")
    ended = subprocess.run(
        [sys.executable, script, *map(str, (*recipe, *words))], cwd=ROOT, capture_output=True, text=True
    )
    if ended.returncode:
        raise UserError(f"{script}: {ended.stderr[-2000:]}")


def tell(name: str, found: list[tuple[float, float]]) -> None:
    accuracies, seconds = zip(*found, strict=True)
    each = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies)
    print(line((name, each, f"{np.mean(accuracies):.1f}", f"{np.mean(seconds):.0f}")), flush=True)


if __name__ == "__main__":
    run_script(main)
