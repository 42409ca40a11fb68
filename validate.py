"""Measure a checkpoint: ``python -m mindcv_reparam validate``, from a checkout.

python validate.py -c configs/visformer/visformer_tiny_ascend.yaml --ckpt_path FILE --data_dir /path/to/imagenet
mpirun -n 8 python validate.py ...
"""

import sys

from mindcv_reparam.commands import run
from mindcv_reparam.errors import run_script


def main() -> int:
    return run("validate", sys.argv[1:], program="validate.py")


if __name__ == "__main__":
    run_script(main)
