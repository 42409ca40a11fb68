"""Write a deployment bundle: ``python -m mindcv_reparam export``, from a checkout.

python export.py -c configs/visformer/visformer_tiny_ascend.yaml --ckpt_path FILE --file_format MINDIR ONNX --output DIR
"""

import sys

from mindcv_reparam.commands import run
from mindcv_reparam.errors import run_script


def main() -> int:
    return run("export", sys.argv[1:], program="export.py")


if __name__ == "__main__":
    run_script(main)
