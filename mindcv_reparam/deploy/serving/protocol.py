"""Requests and responses of the Open Inference Protocol v2, with the binary tensor data and classification extensions.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and Triton's
extensions "binary_tensor_data" and "classification". A body is a JSON object; where tensors are binary, their bytes
(little-endian, row-major) follow it and the header ``Inference-Header-Content-Length`` tells its length.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from ..manifest import Manifest, TensorSpec
from .refused import Refused

VERSION = "1"  # of every model: a bundle has one
EXTENSIONS = ("binary_tensor_data", "classification")
HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"float16": "FP16", "float32": "FP32", "uint8": "UINT8", "int32": "INT32", "int64": "INT64"}

_LENGTH = re.compile(r"[0-9]{1,18}")
_Size = Annotated[int, Field(ge=0, lt=2**31)]


class _Object(BaseModel):
    model_config = ConfigDict(strict=True)  # "3" is not 3; keys that the protocol does not know are ignored, as it says


class _InputParameters(_Object):
    binary_data_size: NonNegativeInt | None = None


class _Input(_Object):
    name: str
    shape: Annotated[list[_Size], Field(min_length=1, max_length=8)]
    datatype: str
    parameters: _InputParameters = _InputParameters()
    data: list[Any] | None = None


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
    inputs: Annotated[list[_Input], Field(min_length=1)]
    outputs: list[_Output] = []


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a client wants: as binary data or JSON; its ``classes`` largest values, or all of them (None)."""

    name: str
    binary: bool
    classes: int | None = None


@dataclass(frozen=True)
class InferRequest:
    """What a client sent: one batch of images and the outputs that it wants of them."""

    id: str | None
    images: np.ndarray
    outputs: tuple[RequestedOutput, ...]


def model_metadata(name: str, platform: str, input: TensorSpec, outputs: Sequence[TensorSpec]) -> dict[str, Any]:
    return {
        "name": name,
        "versions": [VERSION],
        "platform": platform,
        "inputs": [_tensor_metadata(input)],
        "outputs": [_tensor_metadata(output) for output in outputs],
    }


def read_request(body: bytes, header_length: str | None, manifest: Manifest) -> InferRequest:
    """A request for the model of a manifest, from the body and the header HEADER_LENGTH, if there was one.

    Raises:
        Refused: the body is not what the protocol says, or the model has no such tensors.
    """
    header, binary = _split(body, header_length)
    try:
        request = _InferRequest.model_validate_json(header)
    except ValidationError as error:
        raise Refused(400, _first_problem(error)) from None
    if len(request.inputs) != 1 or request.inputs[0].name != manifest.input.name:
        given = ", ".join(tensor.name for tensor in request.inputs)
        raise Refused(400, f"the model has one input, {manifest.input.name}; the request gives {given}")
    images = _read_tensor(request.inputs[0], binary, manifest.input)
    return InferRequest(request.id, images, _requested(request, manifest))


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
        tensor = {
            "name": output.name,
            "datatype": "BYTES" if array.dtype == object else DATATYPES[array.dtype.name],
            "shape": array.shape,
        }
        if output.binary:
            binary.append(_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        described.append(tensor)
    response = {"model_name": model, "model_version": VERSION, "outputs": described}
    if request.id is not None:
        response["id"] = request.id
    try:
        header = json.dumps(response, allow_nan=False).encode()
    except ValueError:
        raise Refused(400, "an output is not finite, which JSON cannot say: ask for binary data") from None
    return b"".join([header, *binary]), len(header) if binary else None


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """The JSON object and what follows it."""
    if header_length is None:
        return body, b""
    if not _LENGTH.fullmatch(header_length) or int(header_length) > len(body):
        raise Refused(400, f"{HEADER_LENGTH} is {header_length[:20]!r}, the body has {len(body)} bytes")
    return body[: int(header_length)], body[int(header_length) :]


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if place else problem["msg"]


def _read_tensor(tensor: _Input, binary: bytes, spec: TensorSpec) -> np.ndarray:
    if tensor.datatype != DATATYPES[spec.dtype]:
        raise Refused(400, f"input {spec.name} is {DATATYPES[spec.dtype]}, the request gives {tensor.datatype}")
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise Refused(400, f"input {spec.name} needs either data or the parameter binary_data_size")
    if len(binary) != (size or 0):
        raise Refused(400, f"{len(binary)} bytes follow the JSON object, binary_data_size says {size or 0}")
    dtype = np.dtype(spec.dtype)
    count = math.prod(tensor.shape)
    if size is None:
        values = _from_json(tensor.data, dtype, spec.name)
        given, needed, unit = values.size, count, "values"
    else:
        given, needed, unit = size, count * dtype.itemsize, "bytes"
    if given != needed:
        raise Refused(400, f"input {spec.name} of shape {tensor.shape} is {needed} {unit}, the request has {given}")
    if size is not None:
        values = np.frombuffer(binary, dtype.newbyteorder("<"))
    return values.reshape(tensor.shape)


def _from_json(data: list[Any], dtype: np.dtype, name: str) -> np.ndarray:
    """Numbers, in nested lists or a flat one."""
    try:
        values = np.array(data)
    except ValueError:
        raise Refused(400, f"input {name}: its lists are not all of one length") from None
    if values.size == 0:
        return values.astype(dtype)
    if dtype.kind == "f" and values.dtype.kind in "iuf":
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    if dtype.kind in "iu" and values.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if limits.min <= values.min() and values.max() <= limits.max:
            return values.astype(dtype)
    raise Refused(400, f"input {name}: its data are not all {DATATYPES[dtype.name]} numbers")


def _requested(request: _InferRequest, manifest: Manifest) -> tuple[RequestedOutput, ...]:
    """The outputs asked for; all of them where none is named."""
    everything = request.parameters.binary_data_output
    names = [output.name for output in manifest.outputs]
    if not request.outputs:
        return tuple(RequestedOutput(name, everything) for name in names)
    asked = [output.name for output in request.outputs]
    if not set(asked) <= set(names) or len(set(asked)) < len(asked):
        raise Refused(400, f"the model has the outputs {', '.join(names)}; the request asks for {', '.join(asked)}")
    if manifest.output_kind not in ("logits", "softmax") and any(o.parameters.classification for o in request.outputs):
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
        label = f":{labels[index]}" if index < len(labels) else ""
        strings[place] = f"{values[place[0], index]:f}:{index}{label}"
    return strings


def _bytes(array: np.ndarray) -> bytes:
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = [string.encode() for string in array.ravel()]
    return b"".join(len(string).to_bytes(4, "little") + string for string in encoded)
