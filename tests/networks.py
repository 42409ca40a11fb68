"""Small networks of every family with random weights, for tests of what holds for all of them."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindcv_reparam import create_model
from mindcv_reparam.stochastic import seed_masks

IMAGE_SIZE = (64, 96)
NUM_CLASSES = 5
# A model of the family, and hyper-parameters that make it small but leave it every kind of Cell.
SMALL = {
    "visformer": (
        "visformer_tiny_v2",
        dict(init_channels=8, embed_dim=32, depths=(1, 1, 1, 1), num_heads=(2, 2), qk_scale=-0.5),
    ),
    "fastvit": ("fastvit_sa12", dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), mlp_ratio=2)),
    "riformer": ("riformer_s12", dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), mlp_ratio=2.0)),
    "poolformer": ("poolformer_s12", dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), mlp_ratio=2.0)),
    "gfnet": ("gfnet_h_ti", dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), mlp_ratio=2.0)),
    "regnet": ("regnety_160", dict(stem_width=8, depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), group_width=8)),
}

# Of a detector over RIFormer that compiles sooner than the smallest that the package has.
SMALL_DETECTOR = dict(
    **dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), encoder_dim=16, encoder_feedforward=16, num_blocks=1),
    **dict(num_heads=2, hidden_dim=16, dim_feedforward=16, num_layers=1, num_queries=30, drop_path_rate=0.2),
)


def small_network(family: str, seed: int = 0) -> nn.Cell:
    """A small network in evaluation mode, with dropout and stochastic depth to take out."""
    name, hyper_parameters = SMALL[family]
    options = dict(num_classes=NUM_CLASSES, img_size=IMAGE_SIZE, drop_rate=0.1, drop_path_rate=0.2)
    net = randomise(create_model(name, **options, **hyper_parameters), seed).set_train(False)
    seed_masks(net, seed)
    return net


def randomise(net: nn.Cell, seed: int = 0) -> nn.Cell:
    """Give every parameter random numbers under which no fold is an identity and no epsilon is negligible."""
    rng = np.random.default_rng(seed)
    for name, parameter in net.parameters_and_names():
        parameter.set_data(Tensor(_random(name.rsplit(".", 1)[-1], parameter.shape, rng), ms.float32))
    return net


def _random(leaf: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if leaf == "moving_variance":  # at 0.01 an epsilon of 1e-5 weighs 5e-4
        return rng.uniform(0.005, 0.05, shape)
    if leaf in ("moving_mean", "beta", "bias"):
        return rng.normal(0.0, 0.1, shape)
    if leaf == "gamma":
        return rng.uniform(0.1, 0.4, shape) * rng.choice([-1.0, 1.0], shape)
    return rng.normal(0.0, np.prod(shape[1:]) ** -0.5, shape)


def random_images(size: tuple[int, int] = IMAGE_SIZE, channels: int = 3, seed: int = 0) -> Tensor:
    """Two images (2, channels, height, width)."""
    return Tensor(np.random.default_rng(seed).standard_normal((2, channels, *size)), ms.float32)


def difference(actual: Tensor, expected: Tensor | np.ndarray) -> float:
    """Largest difference, relative to the largest expected number."""
    expected = expected.asnumpy() if isinstance(expected, Tensor) else expected
    return float(np.abs(actual.asnumpy() - expected).max() / np.abs(expected).max())


def arrays(net: nn.Cell) -> dict[str, np.ndarray]:
    """Copies of all parameters by their place in the tree."""
    return {name: parameter.asnumpy().copy() for name, parameter in net.parameters_and_names()}


def cells(net: nn.Cell, *kinds: type) -> list[str]:
    """The places of all Cells of the given kinds."""
    return [name for name, cell in net.cells_and_names() if isinstance(cell, kinds)]
