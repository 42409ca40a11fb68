"""Settings as flags of a command."""

import argparse
import functools
from typing import Any

from mindcv_reparam.config.schema import DECODING, INACTIVE, SETTINGS, Config
from mindcv_reparam.config.texts import HINTS, convert, read_settings
from mindcv_reparam.errors import Parser, UserError
from mindcv_reparam.settings import choices, elements, members, takes_several


def add_settings(parser: Parser, command: str) -> None:
    """Give a command ("train", "validate", "export", "probe") a flag for every setting of its, and one for a YAML file.

    The parser only collects text, so that flags and YAML values are converted and refused alike.
    """
    parser.usage = "%(prog)s [-c FILE] [--SETTING VALUE ...]"
    parser.argument_default = argparse.SUPPRESS
    parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=110)
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file of settings; flags override it")
    groups: dict[str, Any] = {}
    used = {name: item for name, item in SETTINGS.items() if command[0].upper() in item.metadata["scripts"]}
    for name, item in used.items():
        group = item.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        shape = _shape(name, HINTS[name])
        groups[group].add_argument(f"--{name}", help=_help(name, command), **shape)
        if older := item.metadata["older_flag"]:
            parser.add_argument(f"--{older}", dest=name, help=argparse.SUPPRESS, **shape)
    for name, (hint, _, _) in INACTIVE.items():
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **_shape(name, hint))
    parser.of_others = {f"--{name}" for name in SETTINGS.keys() - used.keys()}


def configuration(arguments: argparse.Namespace, command: str) -> Config:
    """What the words of a command line ask for: defaults, then the YAML file, then the flags.

    Args:
        arguments: what a parser with the flags of :func:`add_settings` collected.

    Raises:
        UserError: a key or value that is not valid, naming where it stands and the nearest valid one; a setting without
            which the command cannot run.
    """
    texts = dict(vars(arguments))
    path = texts.pop("config", None)
    values = read_settings(path) if path else {}
    for name, text in texts.items():
        values |= convert(name, " ".join(text) if isinstance(text, list) else text, where="--")
    config = Config(**values, given=frozenset(values))
    if command == "train":
        config.required_model()
    # Elsewhere the recipe's word of how the training began means nothing.
    if command == "train" and config.ckpt_path and config.backbone_ckpt:
        raise UserError(
            "ckpt_path gives weights to the whole network, backbone_ckpt to its backbone: name one of them "
            '(--backbone_ckpt "" takes back what a recipe names)'
        )
    if command != "train" and not config.ckpt_path:
        raise UserError(f"no checkpoint to {command}: give --ckpt_path FILE")
    return config


def _shape(name: str, hint: Any) -> dict[str, Any]:
    """How many words a flag takes, and what the help calls them."""
    path = name.endswith(("_dir", "_path", "_ckpt")) or name in ("output", "labels", "verify_data", "report")
    kinds = {bool: "BOOL", int: "N", float: "X", str: "PATH" if path else "NAME"}
    listed = choices(hint)
    metavar = next(
        (word for kind, word in kinds.items() if kind in elements(hint)), "{" + ",".join(map(str, listed)) + "}"
    )
    if bool in members(hint):
        return {"nargs": "?", "const": "True", "metavar": metavar}
    return {"nargs": "+" if takes_several(hint) else None, "metavar": metavar}


def _help(name: str, command: str) -> str:
    item = SETTINGS[name]
    default = item.default
    if isinstance(default, tuple):
        default = ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in default)
    if item.metadata["inherited"] and command != "train":
        default = "the checkpoint's"
    elif item.metadata["inherited"] == "model" and name not in DECODING:
        default = "the model's"
    shown = item.metadata["help"] if default == "" else f"{item.metadata['help']} (default: {default})"
    return shown.replace("%", "%%")
