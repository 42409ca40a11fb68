"""YAML files of settings: lines of the form key: value, read without building what YAML describes.

Keys and values stay texts, whose meaning the settings' types give; every refusal names the file and the line.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.kinds import mistaken
from mindcv_reparam.settings import Text
from mindcv_reparam.untrusted import read_bytes

_LONGEST = 1 << 20  # bytes of a file; a recipe has 3,000
_DEEPEST = 8  # a list of a mapping's has 2; up to here the message names the setting


@dataclass(frozen=True)
class Entry:
    """A key with its value as the user wrote it, and the key's line."""

    key: str
    value: Text
    line: int


def read_entries(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """The entries of a file in their order, repeated keys too.

    Raises:
        UserError: no file, no text, too large, no YAML, nested too deeply, no mapping, or a value that is neither a
            single one nor a list of such.
    """
    for key, value in compose(path):
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{path}:{line}: a key must be a word, got a mapping or a list")
        where = f"{path}:{value.start_mark.line + 1}: {shortened(key.value)}"
        yield Entry(key.value, _text(value, where), line)


def compose(path: str | os.PathLike[str]) -> list[tuple[yaml.Node, yaml.Node]]:
    """Key and value nodes of a YAML mapping, which unlike a dict know their lines and repeat repeated keys.

    Raises:
        UserError: see :func:`read_entries`; values of other kinds are the caller's to refuse.
    """
    text = _yaml_text(path)
    try:
        _check_depth(path, text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML, {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}:{line}: not valid YAML, the character {error.character:#x} is not allowed") from None
    except (ValueError, OverflowError):  # of an escape or a version that is no number
        raise UserError(f"{path}: not valid YAML, a number in an escape or a directive is out of range") from None
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}:{node.start_mark.line + 1}: expected lines of the form key: value")
    return node.value


def _yaml_text(path: str | os.PathLike[str]) -> str:
    content = read_bytes(path, _LONGEST, "configuration")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        told = mistaken(path, "configuration") or f"the configuration {path} is damaged, or of another kind"
        raise UserError(f"{told} (not a text file in UTF-8)") from None


def _check_depth(path: str | os.PathLike[str], text: str) -> None:
    """Refuse collections within collections, which no setting takes and whose reader calls itself for each."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            line = event.start_mark.line + 1  # type: ignore[union-attr]  # events of a text have a place
            raise UserError(f"{path}:{line}: nested too deeply: settings are lines key: value")


def _text(node: yaml.Node, where: str) -> Text:
    """A value as the user wrote it."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [item.value for item in node.value]
    raise UserError(f"{where} must be a single value or a list, got a mapping or a nested list")
