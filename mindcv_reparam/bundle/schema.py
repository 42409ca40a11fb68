"""preprocessing.json of a bundle: settings of the configuration, of its types and within its limits."""

import functools
import os
import typing
from typing import Any

import pydantic

from mindcv_reparam.config import SETTINGS, Config
from mindcv_reparam.settings import check_limits
from mindcv_reparam.untrusted import read_json

_BYTES = 2**16
_REQUIRED = ("image_resize", "crop_pct", "interpolation", "mean", "std")
_SMALLEST, _LARGEST = 1e-3, 1e5  # what crop_pct, mean and std may be, lest float32 overflow


def read_preprocessing(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """The settings in the file; of the others, the defaults hold.

    Raises:
        UserError: it cannot be read, or something in it is wrong.
    """
    return read_json(path, _schema(), limit=_BYTES, remedy=remedy).model_dump(exclude_unset=True)


@functools.cache
def _schema() -> pydantic.TypeAdapter[pydantic.BaseModel]:
    """The settings of preprocessing that validation has, so that a new one of those is known here too."""
    hints = typing.get_type_hints(Config)
    groups = {name: item.metadata["group"] for name, item in SETTINGS.items() if item.metadata["inherited"]}
    names = [name for name, group in groups.items() if group == "augmentation"]
    fields: dict[str, Any] = {
        name: (hints[name], ... if name in _REQUIRED else SETTINGS[name].default) for name in names
    }
    limits = {f"limits_{name}": pydantic.field_validator(name)(_within_limits) for name in names}
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    model = pydantic.create_model("Preprocessing", __config__=config, __validators__=limits, **fields)
    return pydantic.TypeAdapter(model)


def _within_limits(value: Any, info: pydantic.ValidationInfo) -> Any:
    name = info.field_name or ""  # which a field's validator has
    check_limits(name, SETTINGS[name].metadata["limits"], value)
    numbers = [abs(number) for number in (value if isinstance(value, tuple) else (value,)) if type(number) is not str]
    if name in ("mean", "std") and len(numbers) != 3:
        raise ValueError("there is one number for each of three channels")
    smallest = _SMALLEST if name in ("crop_pct", "std") else 0
    if not all(smallest <= number <= _LARGEST for number in numbers):
        raise ValueError(f"must be between {smallest:g} and {_LARGEST:g}")
    return value
