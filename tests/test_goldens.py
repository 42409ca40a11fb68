"""Parity with the reference implementations: converted weights, the same input, the same outputs in fp32."""

import re

import numpy as np
import pytest
from goldens import Golden, names
from mindspore import Tensor, nn

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.checkpoint import load_arrays
from mindcv_reparam.complexity import count_parameters, measured
from mindcv_reparam.convert import convert
from mindcv_reparam.cpu import use_kernels
from mindcv_reparam.reparam import LEVELS

INFERENCE = [name for name in names() if not name.startswith("train-")]
QUICK = ("timm-visformer_tiny", "timm-fastvit_t8", "mmpretrain-riformer_s12", "timm-poolformer_s12")
# Only these families have branches to fuse, and their deeper networks are made of the same blocks; of the others, the
# fused form that has all the folds is run.
BRANCHED, DEEP = ("fastvit", "riformer"), ("24", "36", "48")


class ChannelsFirst(nn.Cell):
    """A norm over the last axis, on (N, C, H, W)."""

    def __init__(self, norm: nn.Cell):
        super().__init__(auto_prefix=False)
        self.norm = norm

    def construct(self, x):
        return self.norm(x.transpose((0, 2, 3, 1))).transpose((0, 3, 1, 2))


class StagesAndLogits(nn.Cell):
    """Both in one graph, since compiling takes most of the time."""

    def __init__(self, net: nn.Cell, between: nn.Cell):
        super().__init__(auto_prefix=False)
        self.net = net
        self.between = between  # of the last stage and the head

    def construct(self, x):
        stages = self.net.forward_stages(x)
        return stages, self.net.forward_head(self.between(stages[-1]))


BETWEEN = {
    "fastvit": lambda net: net.final_conv,
    "riformer": lambda net: net.norm,
    "gfnet": lambda net: ChannelsFirst(net.norm),
}


# Of the blocks of a smaller one that is tested; their own sizes are in the published numbers of parameters. Of another
# size of the image, MindCV's names for visformer_tiny, which those of visformer_tiny_v2 are as well, or Apple's for
# fastvit_t8, which are among those of fastvit_sa12.
LARGER = re.compile(
    r"gfnet_h_[sb]|former_(s24|s36|m36|m48)|fastvit_(t12|s12|sa24|sa36|ma36)|visformer_small|_384|mindcv-visformer_tiny$"
    r"|apple-fastvit_t8"
)


def parametrized(name: str) -> list[object]:
    """By the name: operator by operator, or compiled, for which one is enough: other tests compile smaller ones."""
    if name == "timm-visformer_tiny":
        return [pytest.param(name, True, id=name)]
    if name in QUICK:
        compiled = pytest.param(name, True, id=f"{name}-compiled", marks=(pytest.mark.slow, pytest.mark.exhaustive))
        return [pytest.param(name, False, id=name), compiled]
    marks = [pytest.mark.slow, *([pytest.mark.exhaustive] if LARGER.search(name) else [])]
    return [pytest.param(name, False, id=name, marks=marks)]


@pytest.fixture
def as_it_runs(compiled, request):
    """How networks run: as a graph of MindSpore's operators, or operator by operator with the kernels of the CPU, which
    takes half the time."""
    request.getfixturevalue("graph_mode" if compiled else "pynative")
    return (lambda net: net) if compiled else use_kernels


def is_one_of(parts: tuple[str, ...], name: str) -> bool:
    return any(part in name for part in parts)


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected number."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def logits_of(net: nn.Cell, golden: Golden) -> np.ndarray:
    """The logits of a train-time network; its stages are compared on the way, where the reference tells them."""
    if "feature0_mean" not in golden.results:
        return net(Tensor(golden.images)).asnumpy()
    stages, logits = StagesAndLogits(net, BETWEEN[golden.model.split("_")[0]](net))(Tensor(golden.images))
    assert sum(name.endswith("_shape") for name in golden.results) == len(stages)
    for i, stage in enumerate(map(Tensor.asnumpy, stages)):
        assert stage.shape == tuple(golden.results[f"feature{i}_shape"])
        assert difference(stage.mean((2, 3)), golden.results[f"feature{i}_mean"]) <= 1e-5
        assert difference(stage[:, :4, :4, :4], golden.results[f"feature{i}_corner"]) <= 1e-5
    return logits.asnumpy()


@pytest.mark.parametrize(("name", "compiled"), [one for name in INFERENCE for one in parametrized(name)])
def test_outputs_are_those_of_the_reference(name, as_it_runs):
    golden = Golden(name)
    conversion = convert(golden.state)
    assert (conversion.model, conversion.table.source) == (golden.model, golden.source.replace("official", "gfnet"))
    net = create_model(conversion.model, **conversion.hparams).set_train(False)
    load_arrays(net, conversion.parameters, name)
    expected, params = golden.results["logits"], measured()[conversion.model].params

    fused_nets = {level: reparameterize(net, level) for level in LEVELS}
    assert count_parameters(net) == params["train"]
    assert difference(logits_of(as_it_runs(net), golden), expected) <= 1e-5
    for level, fused in fused_nets.items():
        assert count_parameters(fused) == params[level], level
        fused = as_it_runs(fused)
        if level == "full" or (is_one_of(BRANCHED, name) and not is_one_of(DEEP, name)):
            assert difference(fused(Tensor(golden.images)).asnumpy(), expected) <= 2e-5, level

    # The comparison can fail: a weight of the last stage reaches the logits. (A common factor a norm would undo.)
    weight = next(p for p in reversed(list(fused.get_parameters())) if p.ndim == 4)
    factors = np.random.default_rng(0).uniform(0.9, 1.1, weight.shape)
    weight.set_data(Tensor(weight.asnumpy() * factors, weight.dtype))
    assert difference(fused(Tensor(golden.images)).asnumpy(), expected) > 1e-4
