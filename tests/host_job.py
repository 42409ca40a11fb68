"""``host_job.py train …`` and ``validate …``: the scripts with the small network of fault_job.py."""

import sys

import fault_job

from mindcv_reparam import runtime
from mindcv_reparam.errors import run_script
from mindcv_reparam.registry import register_variants


def main() -> None:
    runtime.prepare("CPU")
    from mindcv_reparam.models.visformer import Visformer

    register_variants(Visformer, {fault_job.MODEL: fault_job.SMALL})
    import train
    import validate

    name = sys.argv.pop(1)
    {"train": train, "validate": validate}[name].main()


if __name__ == "__main__":
    run_script(main)
