"""Convert weights from timm, Apple, mmpretrain, MindCV or GFNet, or to timm or mmpretrain.

Format and model are recognised from the names and shapes of the tensors. Every tensor of the source is used or named.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindcv_reparam.errors import UserError
from mindcv_reparam.registry import model_info

if TYPE_CHECKING:
    from mindspore import nn

    from mindcv_reparam.convert import Conversion
    from mindcv_reparam.convert.files import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a .safetensors, .pth, .pt, .bin, .pth.tar or MindCV .ckpt; a .ckpt with --to")
    parser.add_argument("-o", "--output", required=True, help="file to write: .ckpt, or .safetensors with --to")
    parser.add_argument("--model", help="name of the model, if the shapes leave a choice")
    parser.add_argument(
        "--num_classes", type=int, help="classes of a new, untrained head; needed if the source has none"
    )
    parser.add_argument("--img_size", type=int, help="input size the weights are for, if not the model's published one")
    parser.add_argument("--to", choices=("timm", "mmpretrain"), help="write for this code base instead")


def run(args: argparse.Namespace) -> int:
    suffix = ".safetensors" if args.to else ".ckpt"
    if Path(args.output).suffix != suffix:
        raise UserError(f"--output must end with {suffix}, got {args.output}")
    from mindcv_reparam.runtime import prepare

    prepare("CPU")
    if args.to:
        _write_for(args.to, args.source, args.output)
    else:
        _convert(args)
    return 0


def _convert(args: argparse.Namespace) -> None:
    from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
    from mindcv_reparam.convert import convert
    from mindcv_reparam.convert.files import read_source

    source = read_source(args.source)
    conversion = convert(source.tensors, args.model)
    hparams = _hparams(conversion, source, args)
    net, new_head = _network(conversion, source, hparams)
    replaced = sorted(name for name in conversion.parameters if new_head and name.startswith(f"{net.classifier}."))

    preprocessing = dict(model_info(conversion.model).preprocessing)
    if "img_size" in hparams:
        preprocessing["image_resize"] = hparams["img_size"]
    origin = f"{conversion.table.source}, {source.path.name}, sha256 {source.sha256}"
    info = CheckpointInfo(conversion.model, hparams, preprocessing=preprocessing, state=conversion.state, source=origin)
    save_checkpoint(args.output, net, info)

    fused = "" if conversion.state == "train" else f", fused ({conversion.state})"
    print(f"{source.path}: {conversion.model} by {conversion.table.source}{fused}, sha256 {source.sha256}")
    for note in source.notes:
        print(f"  {note}")
    print(f"  {len(conversion.parameters) - len(replaced)} tensors used")
    for line in _unused(conversion.unused):
        print(f"  {line}")
    if new_head:
        instead = f" in place of {', '.join(replaced)}" if replaced else ""
        print(f"  new, untrained head of {hparams['num_classes']} classes{instead}")
    print(f"wrote {args.output}")


def _hparams(conversion: "Conversion", source: "Source", args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of create_model, those of the command line before those the tensors tell."""
    hparams = dict(conversion.hparams)
    for name, value in (("num_classes", args.num_classes), ("img_size", args.img_size)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be positive, got {value}")
    if args.num_classes is not None:
        hparams["num_classes"] = args.num_classes
    elif "num_classes" not in hparams:
        raise UserError(f"{source.path} has no classifier: --num_classes N gives it a new, untrained one")
    if args.img_size is not None:
        hparams["img_size"] = [args.img_size, args.img_size]
    return hparams


def _network(conversion: "Conversion", source: "Source", hparams: dict[str, Any]) -> tuple["nn.Cell", bool]:
    """The network with the weights of the conversion, strictly loaded, and whether its head is a new one."""
    from mindcv_reparam.checkpoint import load_arrays
    from mindcv_reparam.registry import create_model
    from mindcv_reparam.reparam import reparameterize

    net = create_model(conversion.model, **hparams)
    if conversion.state != "train":
        net = reparameterize(net, conversion.state)
    new_head = hparams["num_classes"] != conversion.hparams.get("num_classes")
    arrays = dict(conversion.parameters)
    if new_head:
        head = f"{net.classifier}."
        arrays |= {p.name: p.asnumpy() for p in net.get_parameters() if p.name.startswith(head)}
    load_arrays(net, arrays, source.path)
    return net, new_head


def _unused(unused: dict[str, str]) -> list[str]:
    """One line per reason; PyTorch's counters, one per norm, under one name."""
    by_reason: dict[str, dict[str, int]] = {}
    for name, reason in unused.items():
        names = by_reason.setdefault(reason, {})
        shown = "*.num_batches_tracked" if name.endswith(".num_batches_tracked") else name
        names[shown] = names.get(shown, 0) + 1
    return [f"{sum(names.values())} not used, {reason}: {', '.join(names)}" for reason, names in by_reason.items()]


def _write_for(target: str, source: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    from mindcv_reparam.checkpoint import read_checkpoint
    from mindcv_reparam.convert import revert, table_for
    from mindcv_reparam.convert.files import write_safetensors

    parameters, info = read_checkpoint(source)
    if info is None:
        raise UserError(f"{source} does not say which model it is: convert it without --to first")
    table = table_for(info.model, target, info.state)
    tensors = revert(parameters, table)
    write_safetensors(output, tensors, {"format": "pt", "model": info.model, "source": str(source)})
    print(f"{source}: {len(tensors)} tensors of {info.model} ({info.state}) in the names of {target}")
    for name, value in table.hparams:
        if info.hparams.get(name) != value:
            print(f"  {target}'s {info.model} has {name} {value}, this checkpoint has not: its outputs will differ")
    print(f"wrote {output}")
