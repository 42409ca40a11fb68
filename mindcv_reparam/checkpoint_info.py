"""What a checkpoint says of itself: its schema, with limits, since the file may come from anyone, and with defaults.

Reading it needs no MindSpore.
"""

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from typing_extensions import TypedDict

from mindcv_reparam.ckpt_format import Contents, DamagedCheckpoint, read_contents
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import check_checkpoint
from mindcv_reparam.labels import CategoryIds
from mindcv_reparam.registry import model_info
from mindcv_reparam.untrusted import explain, parse_json

ENTRY = "mindcv_reparam"  # the text's name in the file
DATA_LENGTH = 1024  # characters
_LARGEST = 4096  # pixels, far above what classifiers are trained for
_REMEDY = "take the file from where it comes from again"
# Arguments of create_model that say what to do, not what the network is.
_NO_HPARAMS = ("name", "checkpoint", "features_only", "out_indices", "norm_outputs", "frozen_stages", "index_mode")


def _checked_size(value: Any) -> Any:
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= _LARGEST for side in sides):
        raise ValueError(f"a side is a whole number from 1 to {_LARGEST}; one, or height and width")
    return value


State = Literal["train", "branches", "full"]  # or the level of reparameterize
Weights = Literal["online", "ema"]

_Size = Annotated[Any, pydantic.AfterValidator(_checked_size)]
_Count = Annotated[int, Ge(0), Le(2**53)]
_Byte = Annotated[int, Ge(0), Le(255)]
_Rate = Annotated[float, Ge(0), Lt(1)]
_Channels = Annotated[tuple[Annotated[float, Ge(-1e6), Le(1e6)], ...], MinLen(1), MaxLen(64)]
_Deviations = Annotated[tuple[Annotated[float, Gt(0), Le(1e6)], ...], MinLen(1), MaxLen(64)]
_Name = Annotated[str, MinLen(1), MaxLen(1024)]
_Names = Annotated[list[_Name], MinLen(1), MaxLen(100_000)]
_Number = Annotated[int, Ge(-4096), Le(4096)] | Annotated[float, Ge(-4096), Le(4096)]
_Further = bool | _Number | Annotated[str, MaxLen(64)] | None
_FURTHER = pydantic.TypeAdapter(_Further | Annotated[list[_Further], MaxLen(16)])


class _Preprocessing(TypedDict, total=False):
    """In the configuration's terms."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")  # type: ignore[misc]  # of pydantic's, no key
    image_resize: _Size
    crop_pct: Annotated[float, Gt(0), Le(1)]
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: _Channels
    std: _Deviations
    image_background: tuple[_Byte, _Byte, _Byte]
    exif_orientation: bool


class _KnownHparams(TypedDict, total=False):
    __pydantic_config__ = pydantic.ConfigDict(extra="allow")  # type: ignore[misc]  # of pydantic's, no key
    num_classes: Annotated[int, Ge(0), Le(100_000)]
    in_channels: Annotated[int, Ge(1), Le(64)]
    img_size: _Size
    gelu: Literal["tanh", "exact"] | None
    drop_rate: _Rate
    drop_path_rate: _Rate | None


def _checked_further(hparams: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a family, which its network checks: here, only that they are small and name no file."""
    for name, value in hparams.items():
        if name in _NO_HPARAMS or len(name) > 64:
            raise ValueError(f"{name[:64]} is no hyper-parameter")
        if name not in _KnownHparams.__annotations__:
            try:
                _FURTHER.validate_python(value, strict=True)
            except pydantic.ValidationError as error:
                raise ValueError(f"{name}: {explain(error)}") from None
    return hparams


def _of_kind(keys: type) -> pydantic.GetPydanticSchema:
    """What a dictionary is held against; code fills it and reads it by tables of names, which no checker follows."""
    return pydantic.GetPydanticSchema(lambda _, handler: handler.generate_schema(keys))


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is."""

    model: Annotated[str, MinLen(1), MaxLen(64)]
    # The other arguments of create_model.
    hparams: Annotated[dict[str, Any], _of_kind(_KnownHparams), pydantic.AfterValidator(_checked_further)]
    classes: _Names | None = None  # name of every class, by index: its folder in the data set
    preprocessing: Annotated[dict[str, Any], _of_kind(_Preprocessing)] = field(default_factory=dict)
    state: State = "train"
    epoch: _Count = 0  # epochs done
    step: _Count = 0  # batches trained with, per rank
    weights: Weights = "online"  # "ema": the moving average of the online ones
    metrics: Annotated[dict[_Name, float], MaxLen(100)] = field(default_factory=dict)  # of these weights
    source: Annotated[str, MaxLen(4096)] = ""  # where converted weights come from
    labels: _Names | None = None  # what to call every class, by index, where its folder says it badly
    category_ids: CategoryIds | None = None  # what the annotations call the classes, by index
    data: Annotated[str, MaxLen(DATA_LENGTH)] = ""  # what it was trained on, for people

    def contradicts(self, name: str, value: Any) -> bool:
        """Whether a hyper-parameter is known and another one than ``value``, which may be unknown (None), too."""
        said = self.hparams.get(name)
        said, value = (tuple(each) if isinstance(each, list) else each for each in (said, value))
        return None not in (said, value) and said != value

    def check_images(self) -> None:
        """See :func:`check_images`."""
        check_images(self.model, self.hparams["in_channels"])


def check_images(model: str, in_channels: int) -> None:
    """Refuse a network that takes other images than data sets and image files give.

    Raises:
        UserError: it takes more or fewer than three channels.
    """
    if in_channels != 3:
        raise UserError(f"images have 3 channels and this {model} takes {in_channels}")


_FIELDS = frozenset(item.name for item in dataclasses.fields(CheckpointInfo))
_SCHEMA = pydantic.TypeAdapter(CheckpointInfo)
_OBJECT = pydantic.TypeAdapter(dict[str, Any])


def default_info(model: str) -> CheckpointInfo:
    """What is taken for granted of a file that says nothing of itself.

    Raises:
        UserError: no model has this name.
    """
    return _complete(CheckpointInfo(model, {}))


def write_info(info: CheckpointInfo) -> str:
    """The text that :func:`parse_info` reads. Metrics that are no numbers, of a training that diverged, are left out.

    Raises:
        UserError: it could not be read again; a class is named in another encoding than UTF-8, for example.
    """
    metrics = {name: value for name, value in info.metrics.items() if value is not None and math.isfinite(value)}
    text = json.dumps(dataclasses.asdict(dataclasses.replace(info, metrics=metrics)))
    parse_info(text, f"the description of this {info.model}")
    return text


def parse_info(text: str, name: str) -> CheckpointInfo:
    """What a description says, the defaults of its model filled in; ``name`` is what messages call it.

    Raises:
        UserError: something in it is wrong, which is named.
    """
    if parse_json(text, _OBJECT, name, _REMEDY).keys() - _FIELDS:
        raise UserError(f"{name} was written by another version of this project, which said more about it")
    try:
        info = _complete(parse_json(text, _SCHEMA, name, _REMEDY))
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
    count, mean, std = (info.hparams["num_classes"], info.preprocessing["mean"], info.preprocessing["std"])
    if info.classes and len(info.classes) > count:
        raise UserError(f"{name} is damaged: it names {len(info.classes)} classes of {count}; {_REMEDY}")
    if info.labels and len(info.labels) != count:
        raise UserError(f"{name} is damaged: it has {len(info.labels)} labels for {count} classes; {_REMEDY}")
    if info.category_ids and len(info.category_ids) > count:
        raise UserError(
            f"{name} is damaged: it has {len(info.category_ids)} category_ids of {count} classes; {_REMEDY}"
        )
    if len(mean) != len(std):
        raise UserError(f"{name} is damaged: mean has {len(mean)} channels and std {len(std)}; {_REMEDY}")
    return info


def _complete(info: CheckpointInfo) -> CheckpointInfo:
    published = model_info(info.model)
    hparams = {"num_classes": published.num_classes, "in_channels": 3, "img_size": published.input_size, **info.hparams}
    preprocessing = {**published.preprocessing, "image_resize": hparams["img_size"], **info.preprocessing}
    return dataclasses.replace(info, hparams=hparams, preprocessing=preprocessing)


def read_info(path: str | os.PathLike[str]) -> CheckpointInfo | None:
    """What a checkpoint is; None for a file that another program wrote. Its tensors are not read.

    Raises:
        UserError: as :func:`read_described`, but for the checksum.
    """
    return read_described(path, texts_only=True)[1]


def network_settings(path: str) -> dict[str, Any]:
    """What a training that starts from a checkpoint takes from it, in the configuration's terms; without one, nothing.

    Raises:
        UserError: as :func:`read_info`, or the network takes other images than data sets give.
    """
    info = read_info(path) if path else None
    if info is None:
        return {}
    info.check_images()
    return {"gelu": info.hparams["gelu"]} if info.hparams.get("gelu") else {}


def read_described(path: str | os.PathLike[str], texts_only: bool = False) -> tuple[Contents, CheckpointInfo | None]:
    """The tensors of a checkpoint, and what it is.

    Raises:
        UserError: no such file, or it is truncated, damaged, no checkpoint, or of a later version of this project.
    """
    check_checkpoint(path)
    try:
        contents = read_contents(path, texts_only)
    except DamagedCheckpoint as error:
        raise UserError(f"{path} is no whole checkpoint: {error}; {_REMEDY}") from None
    text = contents.texts.get(ENTRY)
    if text is None:
        return contents, None
    if not contents.has_checksum:
        raise UserError(f"{path} is no whole checkpoint: its end is missing; {_REMEDY}")
    return contents, parse_info(text, os.fspath(path))
