"""Convert weights from another code base (timm, Apple, mmpretrain, MindCV, GFNet, RT-DETR, transformers), or to one.

Format and model are recognised from the names and shapes of the tensors. Every tensor of the source is used or named.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindcv_reparam.errors import UserError, require
from mindcv_reparam.labels import published
from mindcv_reparam.registry import model_info
from mindcv_reparam.settings import whole_number

if TYPE_CHECKING:
    from mindspore import nn

    from mindcv_reparam.convert import Conversion
    from mindcv_reparam.convert.files import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="a file of safetensors, PyTorch, Lightning or MindCV; with --to one of this project"
    )
    parser.add_argument("-o", "--output", required=True, help="file to write: .ckpt, or .safetensors with --to")
    parser.add_argument("--model", help="name of the model, if the shapes leave a choice")
    parser.add_argument(
        "--num_classes",
        type=whole_number(most=100_000),
        metavar="N",
        help="classes of a new, untrained head; needed if the source has none",
    )
    parser.add_argument(
        "--img_size",
        type=whole_number(most=4096),
        metavar="N",
        help="input size the weights are for, if not the model's published one",
    )
    parser.add_argument(
        "--to", metavar="CODE_BASE", help="write for this one instead: timm, mmpretrain, rt-detr, transformers"
    )


def run(args: argparse.Namespace) -> int:
    require("safetensors")
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
    from mindcv_reparam.checkpoint import CheckpointInfo, classifier_prefixes, save_checkpoint
    from mindcv_reparam.convert import convert
    from mindcv_reparam.convert.files import read_source

    source = read_source(args.source)
    conversion = convert(source.tensors, args.model)
    hparams = _hparams(conversion, source, args)
    net, new_head = _network(conversion, source, hparams)
    heads = classifier_prefixes(net) if new_head else ()
    replaced = sorted(name for name in conversion.parameters if name.startswith(heads))

    # What the tables know are weights of ImageNet-1k or COCO where they have its number of classes.
    known = model_info(conversion.model).num_classes
    names = published(known) if not new_head and hparams.get("num_classes") == known else None
    info = CheckpointInfo(
        conversion.model,
        hparams,
        classes=list(names.folders) if names else None,
        labels=list(names.shown) if names else None,
        category_ids=names.category_ids if names else None,
        state=conversion.state,
        source=f"{conversion.table.source}, {source.path.name}, sha256 {source.sha256}"[-4096:],
    )
    save_checkpoint(args.output, net, info)

    fused = "" if conversion.state == "train" else f", fused ({conversion.state})"
    what = f"{conversion.table.part} of {conversion.model}" if conversion.table.part else conversion.model
    print(f"{source.path}: {what} by {conversion.table.source}{fused}, sha256 {source.sha256}")
    for note in source.notes:
        print(f"  {note}")
    print(f"  {len(source.tensors) - len(conversion.unused) - len(replaced)} tensors used")
    for line in _unused(conversion.unused):
        print(f"  {line}")
    if new_head:
        instead = f" in place of {', '.join(replaced)}" if replaced else ""
        print(f"  new, untrained head of {hparams['num_classes']} classes{instead}")
    print(f"wrote {args.output}" + (f", for --{conversion.table.part}_ckpt" if conversion.table.part else ""))


def _hparams(conversion: "Conversion", source: "Source", args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of create_model, those of the command line before those the tensors tell."""
    hparams, part = dict(conversion.hparams), conversion.table.part
    if part and args.num_classes is not None:
        raise UserError(f"{source.path} holds the {part} of a {conversion.model} alone: leave --num_classes out")
    if args.num_classes is not None:
        hparams["num_classes"] = args.num_classes
    elif "num_classes" not in hparams and not part:
        raise UserError(f"{source.path} has no classifier: --num_classes N gives it a new, untrained one")
    if args.img_size is not None:
        hparams["img_size"] = [args.img_size, args.img_size]
    return hparams


def _network(conversion: "Conversion", source: "Source", hparams: dict[str, Any]) -> tuple["nn.Cell", bool]:
    """The network, or the part of it that the file holds, with the weights of the conversion, strictly loaded, and
    whether its head is a new one."""
    from mindcv_reparam.checkpoint import classifier_prefixes, load_arrays
    from mindcv_reparam.reparam import reparameterize
    from mindcv_reparam.zoo import create_model

    net = create_model(conversion.model, **hparams)
    if conversion.state != "train":
        net = reparameterize(net, conversion.state)
    if conversion.table.part:
        part = getattr(net, conversion.table.part)
        load_arrays(part, conversion.parameters, source.path)
        return part, False
    new_head = hparams["num_classes"] != conversion.hparams.get("num_classes")
    arrays = dict(conversion.parameters)
    if new_head:
        heads = classifier_prefixes(net)
        arrays |= {p.name: p.asnumpy() for p in net.get_parameters() if p.name.startswith(heads)}
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
    from mindcv_reparam.zoo import family_variants

    parameters, info = read_checkpoint(source)
    if info is None:
        raise UserError(f"{source} does not say which model it is: convert it without --to first")
    table = table_for(info.model, target, info.state)
    tensors = revert(parameters, table)
    write_safetensors(output, tensors, {"format": "pt", "model": info.model, "source": str(source)})
    print(f"{source}: {len(tensors)} tensors of {info.model} ({info.state}) in the names of {target}")
    for name, value in table.hparams:
        if info.hparams.get(name, family_variants(table.family)[info.model][name]) != value:
            print(f"  {target}'s {info.model} has {name} {value}, this checkpoint has not: its outputs will differ")
    print(f"wrote {output}")
