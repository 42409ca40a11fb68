"""Dropout and stochastic depth whose masks can be reproduced.

``nn.Dropout`` draws other masks in every process on CPU, whatever the seeds, and its state cannot be saved. Here every
Cell has one int32 of state, which each call in training mode moves on by a constant; a mask is a hash of the state and
of the element's index (SplitMix: Steele, Lea, Flood, OOPSLA 2014, with the finalizer of MurmurHash3). Whole numbers
alone make the masks, so they are the same in any mixed precision, mode and device.
"""

import itertools
import math
import zlib

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from .reparam import Reparameterizable

_numbers = itertools.count()  # of the states of this process: parameters of one graph need different names


def _int32(value: int) -> int:
    """The int32 of the same low 32 bits."""
    return (value + 2**31) % 2**32 - 2**31


STEP = _int32(0x9E3779B9)  # 2^32 / golden ratio, odd
_SPREAD = _int32(0x85EBCA6B)
_MIX1, _MIX2 = _int32(0x85EBCA6B), _int32(0xC2B2AE35)
_BITS = 24


class Stochastic(Reparameterizable, nn.Cell):
    """A Cell that zeroes parts of its input with probability ``rate`` in training mode and is the identity otherwise.

    What is left is divided by 1 - rate. The state is no parameter of the network: it is neither trained nor averaged
    nor part of the weights.
    """

    def __init__(self, rate: float):
        super().__init__()
        number = next(_numbers)
        self.rate = rate
        # In a tuple, or it would be among the network's parameters.
        self.state = (Parameter(Tensor(0, ms.int32), name=f"random_state_{number}", requires_grad=False),)
        set_random_state(self, f"{ms.get_seed()} {number}")

    def kept(self, shape: tuple[int, ...]) -> Tensor:
        """The next mask: True with probability 1 - rate."""
        state = self.state[0] + Tensor(STEP, ms.int32)
        index = ops.arange(0, math.prod(shape), 1).astype(ms.int32) * Tensor(_SPREAD, ms.int32)
        index = ops.depend(index, ops.assign(self.state[0], state))
        bits = ops.bitwise_xor(index, state)
        bits = ops.bitwise_xor(bits, _shifted(bits, 16)) * Tensor(_MIX1, ms.int32)
        bits = ops.bitwise_xor(bits, _shifted(bits, 13)) * Tensor(_MIX2, ms.int32)
        bits = ops.bitwise_xor(bits, _shifted(bits, 16))
        return (_shifted(bits, 32 - _BITS) >= Tensor(int(self.rate * 2**_BITS), ms.int32)).reshape(shape)

    def fuse(self) -> nn.Cell:
        return nn.Identity()


def _shifted(bits: Tensor, count: int) -> Tensor:
    """A logical shift to the right; int32's own repeats the sign."""
    return ops.bitwise_and(
        ops.bitwise_right_shift(bits, Tensor(count, ms.int32)), Tensor(2 ** (32 - count) - 1, ms.int32)
    )


class Dropout(Stochastic):
    """Dropout of single elements (Srivastava et al., JMLR 15, 2014)."""

    def construct(self, x):
        if not self.training or self.rate == 0.0:
            return x
        return x * self.kept(x.shape).astype(x.dtype) * (1.0 / (1.0 - self.rate))


class DropPath(Stochastic):
    """Stochastic depth per sample (Huang et al., arXiv 1603.09382): a residual branch (N, C, H, W) is dropped."""

    def construct(self, x):
        if not self.training or self.rate == 0.0:
            return x
        return x * self.factors(x)

    def factors(self, x: Tensor) -> Tensor:
        """Of the next call, (N, 1, 1, 1): 0 for what is dropped, else 1 / (1 - rate)."""
        return self.kept((x.shape[0], 1, 1, 1)).astype(x.dtype) * (1.0 / (1.0 - self.rate))


def seed_masks(network: nn.Cell, seed: int, rank: int = 0) -> None:
    """Start the masks of a network over: functions of the seed, the rank and the place in the network alone."""
    for name, cell in network.cells_and_names():
        if isinstance(cell, Stochastic):
            set_random_state(cell, f"{seed} {rank} {name}")


def set_random_state(cell: Stochastic, text: str) -> None:
    cell.state[0].set_data(Tensor(_int32(zlib.crc32(text.encode())), ms.int32))


def mask_states(network: nn.Cell) -> dict[str, Parameter]:
    """The random states of a network by their places; they change with every training step."""
    return {f"{name}.state": cell.state[0] for name, cell in network.cells_and_names() if isinstance(cell, Stochastic)}
