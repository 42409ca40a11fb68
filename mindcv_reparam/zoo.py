"""Networks of the zoo: built by name, filled from a checkpoint, turned into backbones."""

import dataclasses
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from mindcv_reparam.checkpoint import CheckpointInfo, classifier_prefixes, load_arrays, read_checkpoint, warn_of_new
from mindcv_reparam.checkpoint_info import default_info
from mindcv_reparam.errors import UserError, shortened
from mindcv_reparam.features import feature_network, lacking_parts, pooled_network
from mindcv_reparam.network import Network, as_network, describe
from mindcv_reparam.registry import FORMATS, VARIANTS, ModelInfo, families, model_info
from mindcv_reparam.reparam import reparameterize
from mindcv_reparam.suggestions import suggestion

_ALL_FEATURES = {"out_indices": None, "norm_outputs": False, "frozen_stages": -1, "index_mode": "stages"}
# A train-time network has a few times the numbers of its fused one, and its head may be for more classes.
_LARGER, _HEAD = 4, 2**22


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
    gelu: str | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    norm_outputs: bool = False,
    frozen_stages: int = -1,
    index_mode: str = "stages",
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = False,
    **kwargs: Any,
) -> Network:
    """Build a model, with the same arguments for every family.

    Args:
        name: one of :func:`mindcv_reparam.registry.list_models`.
        num_classes: ImageNet's 1000 or COCO's 80 by default; 0 gives a classifier's pooled features (N, channels).
        in_channels: of the images, 3 by default.
        img_size: pixels, a side or (height, width); the model's published input size by default.
        drop_rate: dropout.
        drop_path_rate: stochastic depth of the last block; the variant's own by default.
        gelu: "exact" or "tanh"; the family's own by default.
        features_only: return the maps of the stages, for dense prediction, instead of the logits. The four arguments
            after it choose which, see :func:`mindcv_reparam.features.feature_network`.
        checkpoint: weights to load, train-time or fused; then the network is as fused as they are. What the file says
            of its network holds before the defaults above. A classifier for another class count stays new, of which
            Python warns.
        pretrained: refused with a line that tells how to get weights: nothing is downloaded.
        kwargs: further hyper-parameters of the network.

    Raises:
        UserError: no model has this name, the family has no such hyper-parameter, the checkpoint does not fit or
            is of a network with other hyper-parameters, or the arguments for features_only do not fit.
    """
    info = model_info(name)
    if pretrained or num_classes is True:  # where timm's create_model has it
        raise UserError(_where_weights_are(info))
    selection: dict[str, Any] = {
        "out_indices": out_indices,
        "norm_outputs": norm_outputs,
        "frozen_stages": frozen_stages,
        "index_mode": index_mode,
    }
    _check_selection(info, features_only, selection)
    given = {"num_classes": num_classes, "in_channels": in_channels, "img_size": img_size, "gelu": gelu, **kwargs}
    given = {key: value for key, value in given.items() if value is not None}
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    net = _built(info, {**rates, **given}) if checkpoint is None else _of_file(checkpoint, name, given, rates)
    if features_only:
        return feature_network(net, **selection)
    return pooled_network(net) if num_classes == 0 else net


def _where_weights_are(info: ModelInfo) -> str:
    """What to do for trained weights."""
    import_family(info.family)
    tables = FORMATS[info.family].tables if info.family in FORMATS else ()
    read = ", ".join(dict.fromkeys(table.source for table in tables if not re.fullmatch(table.lacks or "", info.name)))
    here = "docs/tutorials/others-weights.md names files"
    if not read or not info.published:
        return f"nobody has published weights of {info.name}, as far as is known: train it and give checkpoint=FILE"
    return (
        f"weights are not downloaded: take a file of {info.name} from its authors ({read}; {here}), "
        f"python -m mindcv_reparam convert FILE -o {info.name}.ckpt, then "
        f'create_model("{info.name}", checkpoint="{info.name}.ckpt")'
    )


def _of_file(path: str | os.PathLike[str], name: str, given: dict[str, Any], rates: dict[str, Any]) -> Network:
    """The network of a checkpoint, as the file says where the caller gave nothing; a head of another size stays new."""
    arrays, said = read_checkpoint(path)
    if said is None:
        said = default_info(name)
    else:
        _check_agreement(path, said, name, given, free=("num_classes", "img_size"))
    wanted = {key: value for key, value in given.items() if key != "num_classes" or value}
    net, new = _filled({**rates, **wanted}, arrays, said, path, new_head=True)
    if new:
        warn_of_new(path, new, (), (), stacklevel=4)
    return net


def _check_selection(info: ModelInfo, features_only: bool, selection: dict[str, Any]) -> None:
    if not features_only and selection != _ALL_FEATURES:
        raise UserError(f"{', '.join(selection)} choose feature maps: give features_only=True with them")
    modes = families()[info.family].index_modes
    if selection["index_mode"] not in modes:
        raise UserError(f"index_mode {selection['index_mode']!r}: {info.name} has {', '.join(modes)}")


def model_from_checkpoint(
    path: str | os.PathLike[str], model: str | None = None, **hparams: Any
) -> tuple[Network, CheckpointInfo]:
    """The network a checkpoint holds, train-time or fused as it was saved, in evaluation mode.

    Args:
        model: name of the model, for a file that does not tell it; where it does, it must be the same.
        hparams: arguments of create_model that the file does not tell, and ``img_size``, which goes before the file's.

    Raises:
        UserError: the file cannot be read, does not fit, or is of another model than ``model`` or of one with other
            hyper-parameters than ``hparams``.
    """
    arrays, info = read_checkpoint(path)
    if info is not None:
        _check_agreement(path, info, model, hparams, free=("img_size",))
    elif model is None:
        raise UserError(f"{path} does not say which model it is: give --model NAME")
    else:
        info = default_info(model)
    net, _ = _filled(hparams, arrays, info, path)
    info = dataclasses.replace(info, hparams={**info.hparams, **hparams})
    return net.set_train(False), info


def family_variants(family: str) -> Mapping[str, Mapping[str, Any]]:
    """The hyper-parameters of the models of a family, by name."""
    import_family(family)
    variants = {info.name: VARIANTS[info.name] for info in families()[family].models}
    return {name: {**_hyper_parameters(network), **own} for name, (network, own) in variants.items()}


def family_classifier(family: str) -> str:
    """The name of the last layer of a family's networks; where several know the classes, of the first."""
    classifier = next(VARIANTS[name][0].classifier for name in family_variants(family))
    return classifier if isinstance(classifier, str) else classifier[0]


def import_family(name: str) -> ModuleType:
    """The module of a family, wherever it lies, imported if it was not yet, with every one of its models registered.

    Raises:
        UserError: a file from outside the package cannot be run, or something is missing in it.
    """
    family, module = families()[name], f"mindcv_reparam.models.{name}"
    try:
        if family.path.is_relative_to(Path(__file__).parent):
            importlib.import_module(f"mindcv_reparam.models.{name}")
        elif module not in sys.modules:
            _run(module, family.path)
    except UserError as error:
        raise UserError(f"the family {family.path} is incomplete: {error}") from None
    except Exception as error:  # whatever the file does
        raise UserError(f"the family {family.path} cannot be run: {type(error).__name__}: {error}") from error
    for info in family.models:
        if info.name not in VARIANTS:
            raise UserError(f"the family {family.path} is incomplete: register_variants lacks {info.name!r}")
    return sys.modules[module]


def _run(name: str, path: Path) -> None:
    """Import a file, or the package whose ``__init__.py`` it is, as a module of that name, or not at all."""
    folder = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder)
    if spec is None or spec.loader is None:
        raise ImportError("it is no file of Python")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except BaseException:
        del sys.modules[name]
        raise


def _variant(info: ModelInfo) -> tuple[type[nn.Cell], dict[str, Any]]:
    """The network class of a model and its hyper-parameters; its family is imported if it was not yet."""
    import_family(info.family)
    return VARIANTS[info.name]


def _hyper_parameters(network: type[nn.Cell]) -> dict[str, Any]:
    """The arguments of a network with their defaults."""
    # Not of the class itself, whose metaclass shows (*args, **kwargs) before Python 3.11.4.
    parameters = inspect.signature(network.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _built(info: ModelInfo, hparams: Mapping[str, Any]) -> Network:
    """The network of a model, which knows what it is."""
    network, hyper_parameters = _variant(info)
    size = hparams.get("img_size") or info.input_size
    classes = hparams.get("num_classes", info.num_classes)
    arguments = {
        **hyper_parameters,
        **{key: value for key, value in hparams.items() if value is not None},
        "img_size": (size, size) if isinstance(size, int) else tuple(size),
        "num_classes": classes or 1,
    }
    accepted = _hyper_parameters(network)
    for key in arguments:
        if key not in accepted:
            meant = suggestion(key, accepted) or f"; it has {', '.join(accepted)}"
            raise UserError(f"{info.family} has no hyper-parameter {shortened(key)}{meant}")
    net = network(**arguments)
    lacking = lacking_parts(net)
    if lacking:
        path = families()[info.family].path
        raise UserError(f"the family {path} is incomplete: {network.__name__} lacks {', '.join(lacking)}")
    described = {**accepted, **arguments, "num_classes": classes}
    return as_network(net, info.name, described, {**info.preprocessing, "image_resize": arguments["img_size"]})


def _filled(
    wanted: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    info: CheckpointInfo,
    path: str | os.PathLike[str],
    new_head: bool = False,
) -> tuple[Network, list[str]]:
    """The network that ``info`` describes, but for what is wanted otherwise, with the arrays of the file.

    It takes no memory for weights before its size is known to be about the file's.
    """
    with no_init_parameters():
        net = _described({**info.hparams, **wanted}, arrays, info, path)
    count, held = (sum(math.prod(each.shape) for each in every) for every in (net.get_parameters(), arrays.values()))
    if "img_size" not in wanted and count > _LARGER * held + _HEAD:
        raise UserError(f"{path} describes a {info.model} of {count:,} numbers, and holds {held:,}: it is damaged")
    if info.state != "train":
        net.init_parameters_data()
        net = reparameterize(net, info.state)
    if new_head:
        for parameter in net.get_parameters():
            if parameter.name.startswith(classifier_prefixes(net)):
                parameter.init_data()
    new = load_arrays(net, arrays, path, info, new_head)
    describe(net, info)
    return net, new


def _described(
    hparams: Mapping[str, Any], arrays: Mapping[str, np.ndarray], info: CheckpointInfo, path: str | os.PathLike[str]
) -> Network:
    """The network of hyper-parameters that a file gave, and which may be anything that its schema lets pass."""
    depths = info.hparams.get("depths", ())
    try:
        if sum(depths) > len(arrays):
            raise ValueError(f"{sum(depths)} blocks, more than the file has tensors")
        net = _built(model_info(info.model), hparams)
        return pooled_network(net) if hparams["num_classes"] == 0 else net
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # of MindSpore or of the network, for numbers that no network can have
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} describes no {info.model} that can be built: {reason}") from error


def _check_agreement(
    path: str | os.PathLike[str], info: CheckpointInfo, model: str | None, given: Mapping[str, Any], free: Sequence[str]
) -> None:
    """Refuse what contradicts a file."""
    if model is not None and model != info.model:
        raise UserError(f"{path} is a checkpoint of {info.model}, not of {model}")
    for name, value in given.items():
        if name not in free and info.contradicts(name, value):
            said = info.hparams[name]
            raise UserError(f"{path} is of a {info.model} with {name} {said}, not {value}: leave {name} to the file")
