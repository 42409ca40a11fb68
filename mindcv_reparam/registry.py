"""Every model of the zoo by name: what its family's file says about it, and the hyper-parameters of its network.

A family is a file that assigns a literal to ``FAMILY`` and hands its network to :func:`register_variants`. The literal
is read here without running the file, so that names can be listed and checked without importing MindSpore;
:mod:`mindcv_reparam.zoo` imports the file when it builds a network. Families lie in ``models/``, in the files and
folders that the environment variable ``MINDCV_REPARAM_FAMILIES`` names, and where :func:`register_family` is told.
"""

import ast
import fnmatch
import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.suggestions import suggestion

if TYPE_CHECKING:
    from mindspore import nn

    from mindcv_reparam.formats import Formats

VARIABLE = "MINDCV_REPARAM_FAMILIES"
DEFAULT_TASK = "classification"  # of families and bundles that name none
_LISTED = "python -m mindcv_reparam list"
_FAMILY = re.compile(r"^FAMILY = (\{[^\n]*\}|\{\n.*?^\})$", re.MULTILINE | re.DOTALL)
_OF_FAMILY = ("models", "published", "blocks", "index_modes", "place")


@dataclass(frozen=True)
class Published:
    """An accuracy on ImageNet-1k that others published; none was measured by this project."""

    input_size: int
    top1: float  # per cent
    top5: float | None
    source: str

    @property
    def best(self) -> float:
        """The number that models are chosen by."""
        return self.top1


@dataclass(frozen=True)
class PublishedDetection:
    """An average precision on COCO's val2017 that others published; none was measured by this project."""

    input_size: int
    ap: float  # per cent, over IoU .5 to .95
    ap50: float | None
    source: str

    @property
    def best(self) -> float:
        """The number that models are chosen by."""
        return self.ap


_PUBLISHED: dict[str, Callable[..., PublishedDetection]] = {
    "detection": PublishedDetection
}  # other tasks than classification, by name


@dataclass(frozen=True)
class ModelInfo:
    """What a model expects of its input, and what is published about it."""

    name: str
    family: str
    input_size: int  # pixels, square
    crop_pct: float  # centre crop: the shorter side is resized to input_size / crop_pct first
    published: tuple[Published | PublishedDetection, ...]
    num_classes: int = 1000  # of the data set that it is published for
    interpolation: str = "bicubic"
    task: str = DEFAULT_TASK  # what it is for, see tasks/
    queries: int = 0  # of a detector: objects that it can find in an image, at most
    imitates: str | None = None  # the model whose modules it imitates, and whose weights start it
    mean: tuple[float, float, float] = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std: tuple[float, float, float] = (0.229 * 255, 0.224 * 255, 0.225 * 255)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The input it is published with, in the configuration's terms."""
        return {
            "image_resize": self.input_size,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
        }


@dataclass(frozen=True)
class Family:
    """What a family's file says of all its models."""

    name: str  # of the file
    path: Path
    models: tuple[ModelInfo, ...]
    blocks: str = ""  # regular expression: what the names of a block's parameters begin with, for layer decay
    index_modes: tuple[str, ...] = ("stages",)  # how out_indices may count, see features.feature_network
    place: int = 100  # in lists: smaller ones come first, then in the order in which they were found


def read_family(path: Path, text: str) -> Family | None:
    """The family that a file of Python says it is; None where it assigns no literal to ``FAMILY``.

    The literal holds what `ModelInfo` names, for all models or under ``models`` for one; ``published`` by source and
    input size; and what `Family` names.

    Raises:
        UserError: something is missing, unknown or of another kind.
    """
    found = _FAMILY.search(text)
    if found is None:
        return None
    name = path.parent.name if path.stem == "__init__" else path.stem
    try:
        said = ast.literal_eval(found[1])
        models = said.pop("models")
        published = said.pop("published", {})
        of_family = {key: said.pop(key) for key in _OF_FAMILY if key in said}
        infos = tuple(_info(model, name, {**said, **own}, published) for model, own in models.items())
        return Family(name, path, infos, **of_family)
    except KeyError as error:
        raise UserError(f"the family {path} is incomplete: FAMILY lacks {error}") from None
    except UserError as error:
        raise UserError(f"the family {path} is incomplete: {error}") from None
    except (AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(f"the family {path} cannot be read: FAMILY: {error}") from None


_KINDS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}  # of values, by a field's type


def _info(model: str, family: str, said: Mapping[str, Any], published: Mapping[str, Any]) -> ModelInfo:
    known = {field.name: field for field in fields(ModelInfo)}
    for key, value in said.items():
        if key not in known or key in ("name", "family", "published"):
            raise UserError(f"FAMILY knows no {key}{suggestion(key, [*known, *_OF_FAMILY])}")
        kinds = _KINDS.get(known[key].type, (str, tuple, type(None)))
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"{key} of {model} is {value!r}")
    for key in ("input_size", "crop_pct"):
        if key not in said:
            raise UserError(f"FAMILY lacks {key!r} of {model}")
    row: Callable[..., Published | PublishedDetection] = _PUBLISHED.get(said.get("task", ""), Published)
    accuracies = tuple(
        row(size, *rows[model], source)
        for source, sizes in published.items()
        for size, rows in sizes.items()
        if model in rows
    )
    return ModelInfo(model, family, published=accuracies, **said)


@functools.cache
def families() -> dict[str, Family]:
    """Every family by name: of the package, then of the environment variable, then those registered."""
    found: dict[str, Family] = {}
    _add(found, Path(__file__).with_name("models"))
    for place in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        _add(found, Path(place))
    return dict(sorted(found.items(), key=lambda item: item[1].place))


@functools.cache
def models() -> dict[str, ModelInfo]:
    """Every model by name, family after family."""
    return {info.name: info for family in families().values() for info in family.models}


def register_family(path: str | os.PathLike[str]) -> None:
    """Take the family of a file, or all of a folder, into the zoo.

    Raises:
        UserError: it cannot be read or lacks something, or its name or a model's is taken.
    """
    _add(families(), Path(path))
    models().update({info.name: info for family in families().values() for info in family.models})


def _add(known: dict[str, Family], place: Path) -> None:
    """Read a file, a package (a folder with ``__init__.py``) or the families of a folder."""
    package = place / "__init__.py"
    try:
        found = [read_family(path, path.read_text(encoding="utf-8")) for path in _files(place)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the family {place} cannot be read: {error}") from None
    new = [family for family in found if family is not None]
    if not new:
        raise UserError(f"{package if package.is_file() else place} is no family: it lacks FAMILY = {{…}}")
    for family in new:
        taken = {info.name: other for other in known.values() for info in other.models} | known
        for name in (family.name, *(info.name for info in family.models)):
            if name in taken:
                raise UserError(f"the family {family.path} calls {name} what is in {taken[name].path}")
        known[family.name] = family


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    if (place / "__init__.py").is_file() and _FAMILY.search((place / "__init__.py").read_text(encoding="utf-8")):
        return [place / "__init__.py"]
    inside = [path / "__init__.py" if path.is_dir() else path for path in sorted(place.iterdir())]
    return [path for path in inside if path.suffix == ".py" and path.is_file() and path.parent != place / "__pycache__"]


# name → network class and the variant's hyper-parameters, of the families imported so far
VARIANTS: dict[str, tuple[type["nn.Cell"], dict[str, Any]]] = {}
# family → its checkpoints in other code bases' names, of those among them that have any
FORMATS: dict[str, "Formats"] = {}

# What zoo, features and convert ask of a network class; a task that is not here asks nothing.
_CONTRACT = {
    "classification": (
        *("classifier", "head_parts", "output_norm"),
        *("forward_stages", "forward_features", "forward_head"),
    ),
    "detection": ("classifier", "forward_training"),
}
# What tasks ask of a network that imitates another.
_IMITATING = ("forward_observed", "own_parameters")
# What create_model gives such a network.
_ARGUMENTS = ("num_classes", "in_channels", "img_size", "drop_rate", "drop_path_rate")


def register_variants(
    network: type["nn.Cell"], variants: dict[str, dict[str, Any]], formats: "Formats | None" = None
) -> None:
    """Make ``create_model(name, ...)`` build ``network(**hyper_parameters, ...)`` for every name of ``variants``, and
    ``convert`` take checkpoints of the family in the names of ``formats``.

    Raises:
        UserError: the family's FAMILY lacks a name, a variant a hyper-parameter that has no default, or the network a
            part of the contract (CONTRIBUTING.md).
    """
    for name, hyper_parameters in variants.items():
        if name not in models():
            raise UserError(f"FAMILY lacks the model {name!r}")
        lacking = _lacking(network, models()[name])
        if lacking:
            raise UserError(f"{network.__name__} lacks {', '.join(lacking)}")
        if unset := _unset(network, hyper_parameters):
            raise UserError(f"the variant {name!r} lacks {', '.join(unset)}")
        VARIANTS[name] = network, hyper_parameters
        if formats is not None:
            FORMATS[models()[name].family] = formats


def _lacking(network: type["nn.Cell"], info: ModelInfo) -> list[str]:
    parts = _CONTRACT.get(info.task, ()) + (_IMITATING if info.imitates else ())
    accepted = inspect.signature(network.__init__).parameters
    arguments = _ARGUMENTS if info.task in _CONTRACT else ()
    return [part for part in parts if not hasattr(network, part)] + [
        f"the argument {argument}" for argument in arguments if argument not in accepted
    ]


def _unset(network: type["nn.Cell"], hyper_parameters: dict[str, Any]) -> list[str]:
    """What the network must be told and nobody tells it: every network is built for some classes and an image size."""
    _, *parameters = inspect.signature(network.__init__).parameters.values()
    named = [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD or one.kind is one.KEYWORD_ONLY]
    told = {*hyper_parameters, "num_classes", "img_size"}
    return [one.name for one in named if one.default is one.empty and one.name not in told]


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern, or contain a word without ``*``, ``?`` and ``[``; in the table's order."""
    if not set("*?[") & set(pattern):
        pattern = f"*{pattern}*"
    return [name for name in models() if fnmatch.fnmatchcase(name, pattern)]


def matching_models(pattern: str) -> list[str]:
    """:func:`list_models`, for a pattern that a user gave.

    Raises:
        UserError: no model matches; the nearest is named.
    """
    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {shortened(pattern)!r}{_meant(pattern.strip('*'))}")
    return names


def _meant(name: str) -> str:
    """The model that a name that is none means, also with what timm and mmpretrain append to theirs."""
    plain = name.lower().replace("-", "_")
    begun = [model for model in models() if re.match(rf"{re.escape(model)}[_.]", plain)]
    return suggestion(max(begun, key=len, default=name), models(), quoted=True) or f"; {_LISTED} shows the names"


def model_info(name: str) -> ModelInfo:
    """The row of a model.

    Raises:
        UserError: no model has this name; the nearest is named.
    """
    if name not in models():
        raise UserError(f"no model is called {shortened(name)!r}{_meant(name)}")
    return models()[name]
