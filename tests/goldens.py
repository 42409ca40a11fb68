"""The parity fixtures of tests/data: what the reference implementations computed from weights made by a recipe."""

import json
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "data"


class Golden:
    """``NAME.json`` tells the reference's parameters and input, ``NAME.npz`` its results in fp32."""

    def __init__(self, name: str):
        self.name = name
        self.spec = json.loads((FOLDER / f"{name}.json").read_text())
        with np.load(FOLDER / f"{name}.npz") as arrays:
            self.results = dict(arrays)
        self.source, _, model = name.removeprefix("train-").partition("-")
        self.model = model.removesuffix("_384")

    @cached_property
    def state(self) -> dict[str, np.ndarray]:
        """The reference's weights under its own names."""
        return {name: tensor(name, shape, self.spec["salt"]) for name, shape in self.spec["state_dict"].items()}

    @property
    def images(self) -> np.ndarray:
        return images(self.spec["resolution"], self.spec.get("batch", 2), self.spec["salt"])


def names(pattern: str = "*") -> list[str]:
    return sorted(path.stem for path in FOLDER.glob(f"{pattern}.npz"))


def tensor(name: str, shape: tuple[int, ...], salt: int = 0) -> np.ndarray:
    """The recipe's weights: the same name and shape give the same tensor everywhere."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), salt])
    shape = tuple(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf in ("running_var", "moving_variance"):
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("running_mean", "moving_mean", "bias", "beta", "affine_bias"):
        value = rng.normal(0.0, 0.05, shape)
    elif "layer_scale" in name:
        value = rng.uniform(0.05, 0.4, shape)
    elif "pos_embed" in name:
        value = rng.normal(0.0, 0.05, shape)
    elif leaf in ("weight", "gamma", "affine_scale") and len(shape) == 1:
        value = rng.uniform(0.7, 1.3, shape)
    elif leaf == "complex_weight":
        value = rng.normal(0.0, 0.3, shape)
    else:
        value = rng.normal(0.0, (0.6 / max(1, int(np.prod(shape[1:])))) ** 0.5, shape)
    return value.astype(np.float32)


def images(resolution: int | tuple[int, int], batch: int = 2, salt: int = 0) -> np.ndarray:
    """The recipe's input: 8×8 blocks of colour plus noise, (batch, 3, height, width) float32; one side is both."""
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    rng = np.random.default_rng([20261121, salt])
    low = rng.standard_normal((batch, 3, 8, 8))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    noise = rng.standard_normal((batch, 3, height, width))
    return (low[:, :, rows][..., columns] + 0.5 * noise).astype(np.float32)
