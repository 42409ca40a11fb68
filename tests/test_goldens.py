"""Parity with the reference implementations: converted weights, the same input, the same outputs in fp32."""

import numpy as np
import pytest
from goldens import Golden, names
from mindspore import Tensor

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.checkpoint import load_arrays
from mindcv_reparam.complexity import count_parameters, measured
from mindcv_reparam.convert import convert

INFERENCE = [name for name in names() if not name.startswith("train-")]
# Compiling and running one of these takes more than about five seconds.
LARGE = (
    "fastvit_s",
    "fastvit_ma36",
)


def parametrized(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.slow) if any(part in name for part in LARGE) else name


def difference(actual: Tensor, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected number."""
    return float(np.abs(actual.asnumpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", [parametrized(name) for name in INFERENCE])
def test_outputs_are_those_of_the_reference(name):
    golden = Golden(name)
    conversion = convert(golden.state)
    assert (conversion.model, conversion.table.source) == (golden.model, golden.source)
    net = create_model(conversion.model, **conversion.hparams).set_train(False)
    load_arrays(net, conversion.parameters, name)
    images, logits = Tensor(golden.images), golden.results["logits"]
    params = measured()[conversion.model].params

    assert count_parameters(net) == params["train"]
    assert difference(net(images), logits) <= 1e-5
    for level in ("branches", "full"):
        fused = reparameterize(net, level)
        assert count_parameters(fused) == params[level], level
        assert difference(fused(images), logits) <= 2e-5, level

    # The comparison can fail: a weight of the last stage reaches the logits.
    weight = next(p for p in reversed(list(fused.get_parameters())) if p.ndim == 4)
    weight.set_data(weight * 1.01)
    assert difference(fused(images), logits) > 1e-4
