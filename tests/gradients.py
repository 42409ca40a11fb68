"""Gradients of a loss, for comparison with others."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindcv_reparam.tasks.classification.objective import ClassificationObjective
from mindcv_reparam.training.step import ScaledForward


def gradients_by_name(
    network: nn.Cell, loss: nn.Cell, images: np.ndarray, labels: np.ndarray, compiled: bool = True
) -> dict[str, np.ndarray]:
    """The loss's gradient for every trainable parameter, in train mode, without an update: by graph or by operator."""
    network.set_train(True)
    parameters = network.trainable_params()
    forward = ScaledForward(ClassificationObjective(network, loss), scaled=False)
    mode = ms.get_context("mode")
    ms.set_context(mode=mode if compiled else ms.PYNATIVE_MODE)
    try:
        value_and_grad = ms.value_and_grad(forward, None, parameters, has_aux=True)
        value_and_grad = ms.jit(value_and_grad) if compiled else value_and_grad
        _, gradients = value_and_grad(Tensor(images), Tensor(labels), Tensor(1.0, ms.float32))
    finally:
        ms.set_context(mode=mode)
    return {parameter.name: gradient.asnumpy() for parameter, gradient in zip(parameters, gradients)}
