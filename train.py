"""Train a model of the zoo: ``python -m mindcv_reparam train``, from a checkout.

python train.py --config configs/visformer/visformer_tiny_digits_cpu.yaml
mpirun -n 8 python train.py --config configs/visformer/visformer_tiny_ascend.yaml --data_dir /path/to/imagenet
"""

import sys

from mindcv_reparam.commands import run
from mindcv_reparam.errors import run_script


def main() -> int:
    return run("train", sys.argv[1:], program="train.py")


if __name__ == "__main__":
    run_script(main)
