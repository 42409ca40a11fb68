"""Check a deployment bundle: that no byte changed and its models still compute what they did.

    python -m mindcv_reparam verify BUNDLE

What is not installed (MindSpore, onnxruntime) is left out with a line that says so.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that export.py wrote")


def run(args: argparse.Namespace) -> int:
    import importlib.util

    from mindcv_reparam.deploy.manifest import read_manifest
    from mindcv_reparam.deploy.verify import verify_bundle

    if "MINDIR" in read_manifest(args.bundle).files and importlib.util.find_spec("mindspore"):
        from mindcv_reparam.runtime import prepare

        prepare("CPU")
    for line in verify_bundle(args.bundle):
        print(line, flush=True)
    print(f"{args.bundle} is whole")
    return 0
