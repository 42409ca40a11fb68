"""What every network of the zoo knows and can, whatever family it is of: its input, its classes, another classifier."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from mindcv_reparam.errors import UserError
from mindcv_reparam.private import forget_graphs
from mindcv_reparam.tree import copy_of, replace_child

if TYPE_CHECKING:
    from mindcv_reparam.checkpoint_info import CheckpointInfo


class Network(nn.Cell):
    """What :func:`mindcv_reparam.create_model` gives; the class of a network is this one and its family's.

    Attributes:
        model_name: as :func:`mindcv_reparam.list_models` has it.
        hparams: the arguments of its class.
        preprocessing: of its images, in the configuration's terms: ``image_resize`` (height, width), ``crop_pct``,
            ``interpolation``, ``mean`` and ``std`` (0–255); what the checkpoint says, or else what is published.
        classes: the data set's names of the classes, by index; empty where nobody has told them.
        labels: what to call them for people, where that is something else.
        category_ids: what annotations call them, see :class:`mindcv_reparam.checkpoint.CheckpointInfo`.
    """

    model_name: str
    hparams: dict[str, Any]
    preprocessing: dict[str, Any]
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    category_ids: tuple[int | None, ...] | None
    _folded: bool

    @property
    def num_classes(self) -> int:
        """How many it tells apart; 0: it gives pooled features."""
        return self.hparams["num_classes"]

    @property
    def is_whole(self) -> bool:
        """Whether it has its last layers, so that it gives what its task is about, and not features."""
        return self.num_classes > 0 and (not hasattr(self, "forward_stages") or hasattr(self, self._classifier))

    def get_classifier(self) -> nn.Cell:
        """The last layer, features (N, channels) → logits (N, classes); an ``nn.Identity`` after ``num_classes=0``.

        Raises:
            UserError: a detector, or a network for feature maps, has none.
        """
        name = getattr(self, "classifier", None)
        if not hasattr(self, "forward_stages") or not isinstance(getattr(self, str(name), None), nn.Cell):
            raise UserError(f"this {self.model_name} has no classifier: it gives other things than logits of an image")
        return getattr(self, str(name))

    def reset_classifier(self, num_classes: int, classes: Sequence[str] = ()) -> None:
        """Put a new classifier, initialised as the family does, in the place of the last layer, in place.

        Args:
            num_classes: 0 for none: the network then gives pooled features (N, channels).
            classes: their names, by index. A new classifier keeps the rows of those that the network knows.

        Raises:
            UserError: the network has no classifier; it is fused, so that its last norm is part of the old one; or
                there are not as many names as classes.
        """
        old = self.get_classifier()
        if self._folded:
            raise UserError(
                f"this {self.model_name} is fused, and its last normalisation with the classifier: reset the "
                "classifier of the train-time network, then reparameterize it"
            )
        if num_classes < 0 or (classes and len(set(classes)) != num_classes):
            raise UserError(f"{num_classes} classes, and {len(set(classes))} names of them: give one each")
        known = {name: index for index, name in enumerate(self.classes)}
        kept = {index: known[name] for index, name in enumerate(classes) if name in known}
        new = self._new_classifier(num_classes) if num_classes else nn.Identity()
        if kept:
            _keep_rows(old, new, kept)
        new.add_flags(**old.get_flags())
        replace_child(self, self._classifier, new.set_train(old.training))
        for name, parameter in new.parameters_and_names():
            parameter.name = f"{self._classifier}.{name}"
        forget_graphs(self)
        self.hparams = {**self.hparams, "num_classes": num_classes}
        self.classes, self.labels, self.category_ids = tuple(classes), (), None

    def fuse(self) -> nn.Cell:
        """As the family does; but without a classifier nothing folds at the root, where a norm would go into it."""
        if self.num_classes == 0:
            return copy_of(self)
        fused = cast(Network, super().fuse())  # where the family has it, which comes behind
        fused._folded = True
        return fused

    @property
    def _classifier(self) -> str:
        return cast(str, self.classifier)

    def _new_classifier(self, num_classes: int) -> nn.Cell:
        """That of a new network of the family; nothing else of it takes memory."""
        with no_init_parameters():
            net = self._family()(**{**self.hparams, "num_classes": num_classes})
        new = getattr(net, self._classifier)
        for parameter in new.get_parameters():
            parameter.init_data()
        return new

    def _family(self) -> type[nn.Cell]:
        order = type(self).__mro__
        return order[order.index(Network) + 1]


def as_network(net: nn.Cell, name: str, hparams: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> Network:
    """Make a network of the zoo one that knows what it is, in place."""
    family: Any = type(net)
    object.__setattr__(net, "__class__", _class(family))
    net.model_name, net.hparams, net.preprocessing = name, dict(hparams), dict(preprocessing)
    net.classes, net.labels, net.category_ids = (), (), None
    net._folded = False
    return net


@functools.cache
def _class(family: type[nn.Cell]) -> type[Network]:
    return type(family.__name__, (Network, family), {"__doc__": family.__doc__, "__module__": family.__module__})


def describe(net: nn.Cell, info: CheckpointInfo) -> None:
    """Have a network know what the checkpoint says whose weights it has, its classes included if it has as many."""
    if not isinstance(net, Network):
        return
    size = net.hparams["img_size"]
    net.preprocessing = {**net.preprocessing, **info.preprocessing, "image_resize": size}
    if info.hparams["num_classes"] == net.num_classes:
        net.classes, net.labels = tuple(info.classes or ()), tuple(info.labels or ())
        net.category_ids = info.category_ids


def _keep_rows(old: nn.Cell, new: nn.Cell, kept: Mapping[int, int]) -> None:
    """Take the rows of an old classifier into a new one; ``kept``: index there → index in the old one."""
    theirs = {name: parameter.asnumpy() for name, parameter in old.parameters_and_names()}
    for name, parameter in new.parameters_and_names():
        parameter.set_data(Tensor(with_rows(parameter.asnumpy(), theirs[name], kept), parameter.dtype))


def with_rows(new: np.ndarray, old: np.ndarray, kept: Mapping[int, int]) -> np.ndarray:
    """A classifier's numbers, an entry per class, with the old ones of the classes that it keeps."""
    if kept and new.shape[1:] == old.shape[1:]:
        new = new.copy()
        new[list(kept)] = old[list(kept.values())]
    return new
