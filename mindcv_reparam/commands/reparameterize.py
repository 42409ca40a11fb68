"""Fuse a train-time checkpoint into an inference checkpoint, and compare the two networks.

    python -m mindcv_reparam reparameterize -c CONFIG --ckpt_path IN.ckpt --output OUT.ckpt

validate.py and export.py recognise the result by themselves.
"""

import argparse
import dataclasses
import functools
import os

from mindcv_reparam.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", metavar="FILE", help="training YAML, for checkpoints that do not tell all")
    parser.add_argument("--ckpt_path", metavar="IN", required=True, help="train-time checkpoint")
    parser.add_argument("--output", metavar="OUT", required=True, help="file to write")
    parser.add_argument(
        "--level", choices=("full", "branches"), default="full", help="every exact fold, or what the papers publish"
    )


def run(args: argparse.Namespace) -> int:
    from mindcv_reparam.config import Config, load_yaml
    from mindcv_reparam.runtime import prepare

    if os.path.realpath(args.output) == os.path.realpath(args.ckpt_path):
        raise UserError("--output is the checkpoint itself: what is fused cannot be trained on, give another name")
    config = load_yaml(args.config) if args.config else Config()
    prepare(config.device_target)
    from mindcv_reparam.checkpoint import save_checkpoint
    from mindcv_reparam.reparam import reparameterize
    from mindcv_reparam.run.compare import largest_difference, random_input
    from mindcv_reparam.run.runners import cell_program
    from mindcv_reparam.tasks import task_of
    from mindcv_reparam.tensors import TOLERANCE
    from mindcv_reparam.zoo import model_from_checkpoint

    network, info = model_from_checkpoint(args.ckpt_path, config.model, **config.model_arguments())
    if info.state != "train":
        raise UserError(f"{args.ckpt_path} is fused already (reparam {info.state}): it needs a train-time checkpoint")
    fused = reparameterize(network, args.level)
    trials = [random_input(info.hparams, batch=2)]
    results = task_of(info.model).results
    measure = functools.partial(results.difference, results.plain(info.hparams, 2)[0])
    difference = largest_difference(cell_program(network), cell_program(fused), trials, measure)
    if not difference <= TOLERANCE:
        raise UserError(f"not written: the fused network differs by {difference:.1e}, more than {TOLERANCE:.0e}")
    save_checkpoint(args.output, fused, dataclasses.replace(info, state=args.level))
    before, after = (sum(p.size for p in net.get_parameters()) for net in (network, fused))
    print(f"{args.output}: {info.model} ({args.level}), {before:,} → {after:,} numbers, differs by {difference:.1e}")
    return 0
