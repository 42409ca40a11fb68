"""A bundle's model as Triton describes models: its ``config.pbtxt``, and the same as JSON for the server.

The message ModelConfig of https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto.
"""

import json
from collections.abc import Mapping
from typing import Any

from mindcv_reparam.bundle.manifest import LABELS, Manifest
from mindcv_reparam.tensors import DATATYPES, TensorSpec

CONFIG = "config.pbtxt"
TOGETHER = 8  # images that run together where any number may

_ENUMS = ("data_type", "kind")  # fields whose value is a word of the schema, not a text


def onnx_config(name: str, manifest: Manifest) -> dict[str, Any]:
    """The ModelConfig of a bundle's ONNX file, in Triton's own onnxruntime backend.

    A file of one batch size has no batch for Triton: ``max_batch_size`` is 0 and the dims have all axes. Of the others
    Triton gathers requests, up to the largest listed size, or 8.
    """
    batched = manifest.input.shape[0] is None
    sizes = sorted(manifest.batch_sizes or ())
    largest = (sizes[-1] if sizes else TOGETHER) if batched else 0
    config = model_config(name, "onnxruntime_onnx", manifest, manifest.inputs, manifest.outputs, largest)
    config["default_model_filename"] = manifest.files["ONNX"]
    if largest > 1:
        config["dynamic_batching"] = {"preferred_batch_size": [size for size in sizes if size > 1]} if sizes else {}
    return config


def model_config(
    name: str,
    platform: str,
    manifest: Manifest,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    largest: int,
) -> dict[str, Any]:
    """A ModelConfig in the JSON form that Triton gives, with whole numbers as numbers.

    Args:
        inputs, outputs: with the batch in front.
        largest: ``max_batch_size``; with 0 the dims tell the batch, too.
    """
    one_per_class = manifest.results.classes(manifest.output_kind, manifest.outputs) is not None
    labelled = {"label_filename": LABELS} if one_per_class and len(outputs[0].shape) == 2 else {}
    return {
        "name": name,
        "platform": platform,
        "backend": platform.partition("_")[0],
        "max_batch_size": largest,
        "input": [_tensor(spec, largest) for spec in inputs],
        "output": [_tensor(spec, largest) | labelled for spec in outputs],
    }


def _tensor(spec: TensorSpec, largest: int) -> dict[str, Any]:
    dims = [-1 if size is None else size for size in spec.shape[1 if largest else 0 :]]
    return {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": dims}


def text_format(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format: a line per value, a block per message and per element of a list of them."""
    lines = []
    for key, value in message.items():
        for one in value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]:
            if isinstance(one, dict):
                lines.append(f"{indent}{key} {{\n{text_format(one, indent + '  ')}{indent}}}\n")
            else:
                text = one if key in _ENUMS else json.dumps(one, ensure_ascii=False)
                lines.append(f"{indent}{key}: {text}\n")
    return "".join(lines)
