"""Requests and responses of the Open Inference Protocol v2, with the binary tensor data and classification extensions.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and Triton's
extensions "binary_tensor_data" and "classification". A body is a JSON object; where tensors are binary, their bytes
(little-endian, row-major) follow it and the header ``Inference-Header-Content-Length`` tells its length.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, NonNegativeInt, PositiveInt, ValidationError

from mindcv_reparam.bundle.manifest import Manifest
from mindcv_reparam.serving import json_tensor
from mindcv_reparam.serving.model import Model
from mindcv_reparam.serving.refused import Refused
from mindcv_reparam.tensors import DATATYPES, TensorSpec

VERSION = "1"  # of every model: a bundle has one
EXTENSIONS = ("binary_tensor_data", "classification", "statistics", "model_configuration")
JSON_VALUES = 2**20  # of an output: a tenth of a second in which no other thread runs
HEADER_LENGTH = "Inference-Header-Content-Length"

_LENGTH = re.compile(r"[0-9]{1,18}")
_Size = Annotated[int, Field(ge=0, lt=2**31)]


class _Object(BaseModel):
    model_config = ConfigDict(strict=True)  # "3" is not 3; keys that the protocol does not know are ignored, as it says


class _InputParameters(_Object):
    binary_data_size: NonNegativeInt | None = None


class _Input(_Object):
    name: str
    shape: Annotated[list[_Size], FailFast(), Field(min_length=1, max_length=8)]
    datatype: str
    parameters: _InputParameters = _InputParameters()
    data: list[Any] | None = None  # of the first one empty: json_tensor has cut them out


class _OutputParameters(_Object):
    binary_data: bool | None = None
    classification: PositiveInt | None = None


class _Output(_Object):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _RequestParameters(_Object):
    binary_data_output: bool = False


class _InferRequest(_Object):
    id: str | None = None
    parameters: _RequestParameters = _RequestParameters()
    inputs: Annotated[list[_Input], FailFast(), Field(min_length=1)]
    outputs: Annotated[list[_Output], FailFast()] = []


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a client wants: as binary data or JSON; its ``classes`` largest values, or all of them (None)."""

    name: str
    binary: bool
    classes: int | None = None


@dataclass(frozen=True)
class InferRequest:
    """What a client sent: the inputs of one batch and the outputs that it wants of them."""

    id: str | None
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[RequestedOutput, ...]


def model_metadata(
    name: str, platform: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, Any]:
    return {
        "name": name,
        "versions": [VERSION],
        "platform": platform,
        "inputs": [_tensor_metadata(one) for one in inputs],
        "outputs": [_tensor_metadata(output) for output in outputs],
    }


def read_request(body: bytes, header_length: str | None, model: Model) -> InferRequest:
    """A request for a model, from the body and the header HEADER_LENGTH, if there was one.

    Raises:
        Refused: the body is not what the protocol says, or the model has no such tensors.
    """
    header, binary = _split(memoryview(body), header_length)
    try:
        skeleton, numbers = json_tensor.cut(header)
        request = _InferRequest.model_validate_json(skeleton)
    except ValidationError as error:
        raise Refused(400, _first_problem(error)) from None
    manifest = model.manifest
    names = [spec.name for spec in manifest.inputs]
    if [tensor.name for tensor in request.inputs] != names:
        given = ", ".join(tensor.name for tensor in request.inputs[:3])
        has = f"one input, {names[0]}" if len(names) == 1 else f"the inputs {', '.join(names)}, in this order"
        raise Refused(400, f"the model has {has}; the request gives {given}")
    return InferRequest(
        request.id, _read_tensors(request.inputs, numbers, binary, model), _requested(request, manifest)
    )


def write_response(
    model: str, request: InferRequest, outputs: Sequence[np.ndarray], manifest: Manifest
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON object where binary data follow it.

    Raises:
        Refused: a value is NaN or infinite and was asked for as JSON, which has no such numbers.
    """
    values = dict(zip((spec.name for spec in manifest.outputs), outputs))
    described, binary = [], []
    for output in request.outputs:
        array = values[output.name]
        if output.classes is not None:
            array = _largest(array, output.classes, manifest.labels)
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": "BYTES" if array.dtype == object else DATATYPES[array.dtype.name],
            "shape": array.shape,
        }
        if output.binary:
            binary.append(_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = _json_values(array)
        described.append(tensor)
    response = {"model_name": model, "model_version": VERSION, "outputs": described}
    if request.id is not None:
        response["id"] = request.id
    header = msgspec.json.encode(response)
    return b"".join([header, *binary]), len(header) if binary else None


def _json_values(array: np.ndarray) -> list[Any]:
    if array.size > JSON_VALUES:
        raise Refused(400, f"an output has more than {JSON_VALUES:,} values, too many for JSON: ask for binary data")
    if array.dtype != object and not np.isfinite(array).all():
        raise Refused(400, "an output is not finite, which JSON cannot say: ask for binary data")
    return array.ravel().tolist()


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


def _split(body: memoryview, header_length: str | None) -> tuple[memoryview, memoryview]:
    """The JSON object and what follows it."""
    if header_length is None:
        return body, memoryview(b"")
    if not _LENGTH.fullmatch(header_length) or int(header_length) > len(body):
        raise Refused(400, f"{HEADER_LENGTH} is {header_length[:20]!r}, the body has {len(body)} bytes")
    return body[: int(header_length)], body[int(header_length) :]


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if place else problem["msg"]


def _read_tensors(
    tensors: Sequence[_Input], numbers: memoryview | None, binary: memoryview, model: Model
) -> tuple[np.ndarray, ...]:
    """Every input; ``numbers`` are the data of the first, ``binary`` those of the binary ones, one after the other."""
    specs = model.manifest.inputs
    for tensor, spec in zip(tensors, specs):
        if tensor.datatype != DATATYPES[spec.dtype]:
            raise Refused(400, f"input {spec.name} is {DATATYPES[spec.dtype]}, the request gives {tensor.datatype}")
        if (tensor.parameters.binary_data_size is None) == (tensor.data is None):
            raise Refused(400, f"input {spec.name} needs either data or the parameter binary_data_size")
    said = sum(tensor.parameters.binary_data_size or 0 for tensor in tensors)
    if len(binary) != said:
        raise Refused(400, f"{len(binary)} bytes follow the JSON object, binary_data_size says {said}")
    model.check(*(tensor.shape for tensor in tensors))
    arrays = []
    for number, (tensor, spec) in enumerate(zip(tensors, specs)):
        size = tensor.parameters.binary_data_size or 0
        if tensor.data is None:
            arrays.append(_from_bytes(tensor, binary[:size], spec))
        elif number:  # small: it was not cut out
            text = memoryview(msgspec.json.encode(tensor.data))
            arrays.append(json_tensor.parse(text, tensor.shape, spec))
        elif numbers is None:
            raise Refused(400, "Invalid JSON: it has neither NaN nor Infinity, send them and ask for binary data")
        else:
            arrays.append(json_tensor.parse(numbers, tensor.shape, spec))
        binary = binary[size:]
    return tuple(arrays)


def _from_bytes(tensor: _Input, binary: memoryview, spec: TensorSpec) -> np.ndarray:
    size = len(binary)
    dtype = np.dtype(spec.dtype)
    needed = math.prod(tensor.shape) * dtype.itemsize
    if size != needed:
        raise Refused(400, f"input {spec.name} of shape {tensor.shape} is {needed} bytes, the request has {size}")
    values = np.frombuffer(binary, dtype.newbyteorder("<")).reshape(tensor.shape)
    return values.astype(dtype)  # a copy, aligned: backends compute unaligned ones in another order, or slower


def _requested(request: _InferRequest, manifest: Manifest) -> tuple[RequestedOutput, ...]:
    """The outputs asked for; all of them where none is named."""
    everything = request.parameters.binary_data_output
    names = [output.name for output in manifest.outputs]
    if not request.outputs:
        return tuple(RequestedOutput(name, everything) for name in names)
    asked = [output.name for output in request.outputs]
    if not set(asked) <= set(names) or len(set(asked)) < len(asked):
        raise Refused(400, f"the model has the outputs {', '.join(names)}; the request asks for {', '.join(asked)}")
    per_class = manifest.results.classes(manifest.output_kind, manifest.outputs) is not None
    one_each = per_class and len(manifest.outputs[0].shape) == 2
    if not one_each and any(o.parameters.classification for o in request.outputs):
        raise Refused(400, f"classification is for models that give a value per class, this one gives {names[0]}")
    return tuple(
        RequestedOutput(
            output.name,
            everything if output.parameters.binary_data is None else output.parameters.binary_data,
            output.parameters.classification,
        )
        for output in request.outputs
    )


def _largest(values: np.ndarray, count: int, labels: Sequence[str]) -> np.ndarray:
    """The ``count`` largest values (N, classes) → strings "value:index:label" (N, count), as Triton writes them."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    strings = np.empty(order.shape, object)
    for place, index in np.ndenumerate(order):
        label = f":{labels[int(index)]}" if index < len(labels) else ""
        strings[place] = f"{values[place[0], index]:f}:{index}{label}"
    return strings


def _bytes(array: np.ndarray) -> bytes:
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = [string.encode() for string in array.ravel()]
    return b"".join(len(string).to_bytes(4, "little") + string for string in encoded)
