"""The augmentation behind the normalisation, where that is done on the device: the host draws it, the graph carries it
out, in the host's order, by the host's formulas and so with its bits."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindcv_reparam.config import Config
from mindcv_reparam.data.erasing import MIX1, MIX2, NOISE_BITS, places, quantiles
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.tasks.classification.batches import augments_in_graph


def _int32(numbers: int | np.ndarray) -> Tensor:
    """Of the same 32 bits as unsigned numbers."""
    return Tensor(np.asarray(numbers, np.uint32).view(np.int32))


class Noise(nn.Cell):
    """Keys int32 (N,) → normal noise float32 (N, C, H, W): `data.erasing.noise`, bit for bit."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.places = _int32(places(shape))
        self.factors = _int32(MIX1), _int32(MIX2)
        # Shifts to the right repeat int32's sign, which is taken off again.
        self.shifts = tuple((_int32(by), _int32(2 ** (32 - by) - 1)) for by in (16, 13, 32 - NOISE_BITS))
        self.quantiles = Tensor(quantiles())
        self.xor, self.both, self.shift, self.mul = ops.BitwiseXor(), ops.BitwiseAnd(), ops.RightShift(), ops.Mul()

    def construct(self, keys: Tensor) -> Tensor:
        bits = self.xor(keys.reshape(-1, 1, 1, 1), self.places)
        bits = self.mul(self.xor(bits, self.high(bits, 0)), self.factors[0])
        bits = self.mul(self.xor(bits, self.high(bits, 1)), self.factors[1])
        return ops.gather(self.quantiles, self.high(bits, 2), 0)

    def high(self, bits: Tensor, index: int) -> Tensor:
        """The high bits, moved to the right."""
        by, mask = self.shifts[index]
        return self.both(self.shift(bits, by), mask)


class WithinBoxes(nn.Cell):
    """Boxes top, bottom, left, right (N, 4) → bool (N, 1, H, W), True within."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.rows = Tensor(np.arange(size[0]).reshape(1, 1, -1, 1), ms.int32)
        self.columns = Tensor(np.arange(size[1]).reshape(1, 1, 1, -1), ms.int32)

    def construct(self, boxes: Tensor) -> Tensor:
        top, bottom, left, right = ops.unstack(boxes.reshape(-1, 4, 1, 1, 1), 1)
        down = ops.logical_and(self.rows >= top, self.rows < bottom)
        return ops.logical_and(down, ops.logical_and(self.columns >= left, self.columns < right))


class Erasing(nn.Cell):
    """Images (N, C, H, W) and what `RandomErasing.arrays` gives → images.

    Args:
        shape: (C, H, W).
        noisy: filled with noise, by keys, and not with colours.
    """

    def __init__(self, shape: tuple[int, int, int], noisy: bool) -> None:
        super().__init__()
        self.inside = WithinBoxes(shape[1:])
        self.noise = Noise(shape) if noisy else None

    def construct(self, images: Tensor, boxes: Tensor, fills: Tensor) -> Tensor:
        filling = fills.reshape(-1, images.shape[1], 1, 1) if self.noise is None else self.noise(fills)
        return ops.where(self.inside(boxes), filling, images)


class Mixing(nn.Cell):
    """Images (N, C, H, W) and `Mix.array` → images.

    Args:
        size: (H, W).
        blends: by mixup.
        swaps: by cutmix.
    """

    def __init__(self, size: tuple[int, int], blends: bool, swaps: bool) -> None:
        super().__init__()
        self.blends = blends
        self.inside = WithinBoxes(size) if swaps else None

    def construct(self, images: Tensor, mix: Tensor) -> Tensor:
        others = ops.flip(images, (0,))
        mixed = images
        if self.blends:  # by a share of 0 that changes nothing, where a batch swaps or stays
            mixed = images + (others - images) * mix[0]
        if self.inside is not None:
            mixed = ops.where(self.inside(ops.cast(mix[1:], ms.int32)), others, mixed)
        return mixed


class Augmentation(nn.Cell):
    """Normalised images, (labels, what `TrainBatches` hands on behind them) → images, labels."""

    def __init__(self, erasing: Erasing | None, mixing: Mixing | None) -> None:
        super().__init__()
        self.erasing = erasing
        self.mixing = mixing
        self.place_of_mix = 1 if erasing is None else 3  # a graph cannot count from the end

    def construct(self, images: Tensor, targets: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if self.erasing is not None:
            images = self.erasing(images, targets[1], targets[2])
        if self.mixing is not None:
            images = self.mixing(images, targets[self.place_of_mix])
        return images, targets[0]


def augmentation(config: Config) -> Augmentation | None:
    """What a configuration's batches for training leave to the graph; None where that is nothing."""
    if not augments_in_graph(config):
        return None
    size = height_and_width(config.image_resize)
    erasing = Erasing((3, *size), config.re_mode == "pixel") if config.re_prob > 0.0 else None
    blends, swaps = config.mixup > 0.0, config.cutmix > 0.0
    return Augmentation(erasing, Mixing(size, blends, swaps) if blends or swaps else None)
