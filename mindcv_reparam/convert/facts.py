"""What the shapes of a family's parameters tell about the input and the classes of its network."""

from typing import Any

from mindcv_reparam.errors import UserError
from mindcv_reparam.formats import Formats, Parameters, shape_of

_MOST_CLASSES = 100_000  # a head of more is taken for another matrix; ImageNet-22k has 21,843


def input_facts(formats: Formats, classifier: str, parameters: Parameters) -> dict[str, Any]:
    """Arguments of create_model that do not tell models apart: in_channels, and img_size and num_classes if known.

    Args:
        classifier: name of the last layer.

    Raises:
        StopIteration: there is no stem.
        UserError: a tensor has other axes than a network's, or more classes than any data set.
    """
    facts: dict[str, Any] = {
        "in_channels": next(shape_of(parameters, name, 4)[1] for name in formats.stems if name in parameters)
    }
    for position, stride in formats.positions:
        if position in parameters:
            facts["img_size"] = [side * stride for side in shape_of(parameters, position, 4)[2:]]
            break
    head = f"{classifier}.weight"
    if head in parameters:
        facts["num_classes"] = shape_of(parameters, head, 2)[0]
        if facts["num_classes"] > _MOST_CLASSES:
            raise UserError(f"{head} is for {facts['num_classes']} classes, more than {_MOST_CLASSES}")
    return facts
