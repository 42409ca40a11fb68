"""How far a detector that ``convert`` made of transformers' weights is from transformers itself, in float32 on a CPU.

    python benchmarks/converted_detector.py --size 320

transformers runs in an environment of its own, made at the first call. Prints the largest differences of logits and
boxes, and whether the way back gives the same file.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from peers import torch_python
from safetensors.numpy import load_file

from mindcv_reparam.__main__ import main as command

_CONTENDER = Path(__file__).with_name("contenders") / "transformers_detector.py"


def measure(folder: Path, size: int) -> None:
    """Run both on the same images and print how far apart they are.

    Raises:
        CalledProcessError: transformers did not run.
    """
    settings = json.dumps({"folder": str(folder), "size": size})
    subprocess.run([torch_python("rtdetr_r18vd"), _CONTENDER, settings], check=True)
    source, converted, back = folder / "model.safetensors", folder / "ours.ckpt", folder / "back.safetensors"
    command(["convert", str(source), "-o", str(converted), "--img_size", str(size)])
    command(["convert", str(converted), "-o", str(back), "--to", "transformers"])
    from mindspore import Tensor  # after the commands have prepared its environment

    from mindcv_reparam.zoo import model_from_checkpoint

    with np.load(folder / "results.npz") as results:
        net, _ = model_from_checkpoint(converted)
        outputs = [output.asnumpy() for output in net(Tensor(results["images"]))]
        for name, ours in zip(("logits", "boxes"), outputs):
            print(f"{name}: {np.abs(ours - results[name]).max():.2e} apart, largest {np.abs(results[name]).max():.3g}")
    theirs, ours = load_file(source), load_file(back)
    lacking = [name for name in theirs if name not in ours]
    differing = [name for name in theirs if name in ours and not np.array_equal(theirs[name], ours[name])]
    added = [name for name in ours if name not in theirs and not name.endswith("num_batches_tracked")]
    print(f"back: {len(theirs)} tensors, {len(lacking)} lacking, {len(differing)} differing, {len(added)} added")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=320, help="side of the images, a multiple of 32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.size)


if __name__ == "__main__":
    main()
