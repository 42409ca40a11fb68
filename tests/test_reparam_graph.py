"""What is left of a fully fused network in the exported graph: its operators, and the parameters that feed them."""

from collections import Counter

import mindspore as ms
import pytest
from mindspore import nn
from networks import random_images, small_network

from mindcv_reparam import reparameterize

# Of the token mixers' group normalisations, which have statistics and so cannot fold; nothing else keeps a scale.
KEPT_SCALES = {"visformer": 0, "fastvit": 0, "riformer": 4, "poolformer": 4}


def exported(net: nn.Cell, folder) -> tuple[Counter[str], Counter[str]]:
    """How often each operator and each last part of a parameter's name occurs."""
    models = []
    ms.export(net, random_images(), file_name=str(folder / "net"), file_format="MINDIR", custom_func=models.append)
    (model,) = models
    operators = {primitive.name: primitive.op_type for primitive in model.primitives}
    nodes = Counter(operators.get(node.op_type.removeprefix("REF::"), node.op_type) for node in model.graph.node)
    places = [parameter.name.rsplit(":", 1)[-1] for parameter in model.graph.parameter]
    return nodes, Counter(place.rsplit(".", 1)[-1] for place in places)


def surplus_products(nodes: Counter[str], parameters: Counter[str]) -> int:
    """Multiplications by an attention's or layer's scale or by an affine: those that no operator below explains.

    An exact GELU has two beside its Erf, a gate one beside its sigmoid, a group normalisation one for its deviation
    and one for its scale, where that is left.
    """
    return nodes["Mul"] + nodes["Muls"] - 2 * nodes["Erf"] - nodes["Sigmoid"] - nodes["Rsqrt"] - parameters["gamma"]


def has_norms_or_dropout(nodes: Counter[str]) -> bool:
    return any(word in name for name in nodes for word in ("BatchNorm", "Dropout", "Bernoulli", "Random", "Uniform"))


@pytest.mark.parametrize("family", KEPT_SCALES)
def test_nothing_to_fold_is_exported(family, tmp_path):
    nodes, parameters = exported(reparameterize(small_network(family)), tmp_path)
    assert not has_norms_or_dropout(nodes)
    assert surplus_products(nodes, parameters) == 0
    assert parameters["gamma"] == KEPT_SCALES[family]
    assert parameters.keys() <= {"weight", "bias", "gamma", "beta", *(f"pos_embed{i}" for i in range(4))}


def test_the_train_time_graph_has_all_of_them(tmp_path):
    """So that the counts above can fail."""
    nodes, parameters = exported(small_network("fastvit"), tmp_path)
    assert nodes["BatchNorm"] == parameters["moving_mean"] == 37
    layer_scales, attention_scales = 3 * 2 + 2, 1
    # Layer scales are called gamma like the norms', which need no product of their own.
    assert surplus_products(nodes, parameters) == layer_scales + attention_scales - parameters["gamma"]
