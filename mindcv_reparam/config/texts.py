"""Settings as a user writes them, in YAML files and as words of a command line."""

import math
import os
import typing
from typing import Any

import yaml

from mindcv_reparam.config.schema import INACTIVE, SETTINGS, Config
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.files import written_whole
from mindcv_reparam.registry import model_info
from mindcv_reparam.settings import Text, read
from mindcv_reparam.suggestions import suggestion
from mindcv_reparam.yaml_file import read_entries

HINTS = typing.get_type_hints(Config)


def load_yaml(path: str | os.PathLike[str]) -> Config:
    """The configuration a YAML file describes; what it leaves out keeps its default.

    Raises:
        UserError: see :func:`read_settings`; or settings contradict each other.
    """
    values = read_settings(path)
    return Config(**values, given=frozenset(values))


def save_yaml(config: Config, path: str | os.PathLike[str]) -> None:
    """Write every setting, grouped; ``load_yaml`` reads an equal configuration back."""
    lines, group = [], None
    for name, item in SETTINGS.items():
        value = getattr(config, name)
        if item.metadata["group"] != group:
            group = item.metadata["group"]
            lines.append(f"# {group}\n")
        if isinstance(value, tuple):
            lines.append(yaml.safe_dump({name: list(value)}, default_flow_style=None, width=math.inf))
        else:
            lines.append(yaml.safe_dump({name: value}, allow_unicode=True, width=math.inf))
    with written_whole(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings a YAML file gives, converted.

    Raises:
        UserError: the file cannot be read, or a key or value in it is not valid, naming the line and the nearest valid
            one.
    """
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for entry in read_entries(path):
        name, line = entry.key, entry.line
        where = f"{path}:{line}: "
        if name in lines:
            raise UserError(f"{where}{name} was set before, in line {lines[name]}: keep one of the two")
        lines[name] = line
        if name not in SETTINGS and name not in INACTIVE:
            meant = suggestion(name, SETTINGS) or "; python -m mindcv_reparam train --help lists the keys"
            raise UserError(f"{where}unknown key {shortened(name)}{meant}")
        values |= convert(name, entry.value, where)
    return values


def convert(name: str, text: Text, where: str) -> dict[str, Any]:
    """The settings that one key and its text stand for: itself, or none for an inactive key that is off.

    Args:
        name: the key; in ``SETTINGS`` or in ``INACTIVE``.
        where: what an error says before the name, such as a file and a line.

    Raises:
        UserError: the text is no value of the setting.
    """
    if name == "re_value" and text == "random":  # MindCV's way to ask for a random colour per pixel
        return {"re_mode": "pixel"}
    if name in SETTINGS and SETTINGS[name].default == () and text in ([], "[]"):
        return {name: ()}
    try:
        if name not in INACTIVE:
            value = read(name, HINTS[name], SETTINGS[name].metadata["limits"], text)
            if name == "model" and value is not None:
                _check_model(value, where + name)
            return {name: value}
        hint, off, instead = INACTIVE[name]
        if read(name, hint, {}, text) != off:
            raise ValueError(f"{name} can only be {off}: {instead}")
    except ValueError as error:
        raise UserError(f"{where}{error}") from None
    return {}


def _check_model(name: str, where: str) -> None:
    try:
        model_info(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
