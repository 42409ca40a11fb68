"""Losses against their formulas in float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.mixup import soft_labels

LOGITS = np.random.default_rng(0).normal(scale=4.0, size=(5, 7)).astype(np.float32)
CLASSES = np.array([0, 6, 3, 3, 1], np.int32)
SOFT = np.random.default_rng(1).dirichlet(np.ones(7), size=5).astype(np.float32)


def expected(name: str, labels: np.ndarray, smoothing: float, reduction: str) -> float:
    x = LOGITS.astype(np.float64)
    y = np.eye(7)[labels] if labels.ndim == 1 else labels.astype(np.float64)
    y = y * (1 - smoothing) + smoothing / 7
    if name == "CE":
        loss = -(y * (x - np.log(np.exp(x).sum(1, keepdims=True)))).sum(1)
    else:
        probability = 1 / (1 + np.exp(-x))
        loss = -(y * np.log(probability) + (1 - y) * np.log(1 - probability))
    return loss.mean() if reduction == "mean" else loss.sum()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [CLASSES, SOFT], ids=["integer", "soft"])
@pytest.mark.parametrize("name", ["CE", "BCE"])
def test_value(name, labels, smoothing, reduction):
    given = labels
    if smoothing:  # as batches come
        given = soft_labels(labels, 7, smoothing) if labels.ndim == 1 else labels * (1 - smoothing) + smoothing / 7
    loss = create_loss(name, reduction=reduction)(Tensor(LOGITS), Tensor(given))
    assert float(loss) == pytest.approx(expected(name, labels, smoothing, reduction), rel=2e-6)


@pytest.mark.parametrize(("name", "value"), [("CE", 500.0), ("BCE", 250.0)])
def test_large_logits_stay_finite(name, value):
    logits = np.array([[500.0, -500.0], [-500.0, 500.0]], np.float32)
    loss = create_loss(name)(Tensor(logits), Tensor(np.array([1, 1], np.int32)))
    assert float(loss) == pytest.approx(value)


def test_float16_logits_are_raised_to_float32():
    loss = create_loss("CE", reduction="sum")(Tensor(LOGITS * 1000, ms.float16), Tensor(CLASSES))
    assert loss.dtype == ms.float32
    x = (LOGITS * 1000).astype(np.float16).astype(np.float64)
    top = x.max(1)
    assert float(loss) == pytest.approx((top - x[np.arange(5), CLASSES]).sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"name": "hinge"}, "CE, BCE"), ({"reduction": "none"}, "mean")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        create_loss(**options)
