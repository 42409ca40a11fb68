"""Dropout and stochastic depth whose masks can be reproduced.

``nn.Dropout`` draws other masks in every process on CPU, whatever the seeds, and its state cannot be saved. Here every
Cell has one int32 of state, which each call in training mode moves on by a constant; a mask is a hash of the state and
of the element's place (SplitMix: Steele, Lea, Flood, OOPSLA 2014, with the finalizer of MurmurHash3). Whole numbers
alone make the masks, so they are the same in any mixed precision, mode and device.
"""

import itertools
import math
import zlib
from typing import ClassVar

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam.reparam import Reparameterizable

_numbers = itertools.count()  # of the states of this process: parameters of one graph need different names


def _int32(value: int) -> int:
    """The int32 of the same low 32 bits."""
    return (value + 2**31) % 2**32 - 2**31


def _constant(value: int) -> Tensor:
    return Tensor(_int32(value), ms.int32)


STEP = _int32(0x9E3779B9)  # 2^32 / golden ratio, odd
_STEP, _SIGN = _constant(STEP), _constant(2**31)
_MIX1, _MIX2 = _constant(0x85EBCA6B), _constant(0xC2B2AE35)
SALT = 0x5BD1E995  # of the columns: an odd number, of MurmurHash2
_SALT, _15, _LOW17 = _constant(SALT), _constant(15), _constant(2**17 - 1)
_13, _16, _LOW19, _LOW16 = _constant(13), _constant(16), _constant(2**19 - 1), _constant(2**16 - 1)
_BITS = 24  # of a hash decide
# Operators, as functions of `ops` take longer to compile, and a network has dozens of masks.
_add, _mul, _xor, _and, _right_shift = ops.Add(), ops.Mul(), ops.BitwiseXor(), ops.BitwiseAnd(), ops.RightShift()
_greater_equal, _assign, _cast, _zeros_like = ops.GreaterEqual(), ops.Assign(), ops.Cast(), ops.ZerosLike()
_reshape = ops.Reshape()


class _Hash(nn.Cell):
    """Numbers of elements and a state → True with probability 1 - rate, for each.

    Its derivative is given, as zero: MindSpore would derive each of its operators, for a quarter of the time that a
    training step takes to compile.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.threshold = _constant((int(rate * 2**_BITS) << 32 - _BITS) - 2**31)

    def construct(self, indices, state):
        return self.kept(self.mixed(_xor(indices, state)))

    def mixed(self, bits):
        # Shifts to the right repeat int32's sign, which is taken off again.
        bits = _mul(_xor(bits, _and(_right_shift(bits, _16), _LOW16)), _MIX1)
        bits = _mul(_xor(bits, _and(_right_shift(bits, _13), _LOW19)), _MIX2)
        return _xor(bits, _and(_right_shift(bits, _16), _LOW16))

    def kept(self, bits):
        return _greater_equal(_xor(bits, _SIGN), self.threshold)  # compares as if there was no sign

    def bprop(self, indices, state, mask, gradient):
        return _zeros_like(indices), _zeros_like(state)


class _GridHash(_Hash):
    """Numbers of R rows (R, 1), of C columns (1, C) and a state → a mask (R, C).

    The hash of an element is that of its row, exclusive-or that of its column, mixed once more: that alone would make
    the corners of every rectangle depend on one another. As large as the mask is only what one call computes, and
    little of that: a constant of this size, and on a CPU 16 bytes per element for every sum and product of whole
    numbers, are kept for as long as the network.
    """

    def construct(self, rows, columns, state):
        bits = _xor(self.mixed(_xor(rows, state)), self.mixed(_xor(_xor(columns, state), _SALT)))
        return self.kept(_mul(_xor(bits, _and(_right_shift(bits, _15), _LOW17)), _MIX2))

    def bprop(self, rows, columns, state, mask, gradient):
        return _zeros_like(rows), _zeros_like(columns), _zeros_like(state)


class Mask(nn.Cell):
    """`_indices` → the next mask, of their shape: True with probability 1 - rate.

    The state is no parameter of the network: it is neither trained nor averaged nor part of the weights.
    """

    def __init__(self, rate: float, kind: type[_Hash] = _Hash):
        super().__init__()
        number = next(_numbers)
        # In a tuple, or it would be among the network's parameters.
        self.state = (Parameter(Tensor(0, ms.int32), name=f"random_state_{number}", requires_grad=False),)
        self.hash = kind(rate)
        self.restart(f"{ms.get_seed()} {number}")

    def construct(self, indices):
        state = _add(self.state[0], _STEP)
        return self.hash(ops.depend(indices, _assign(self.state[0], state)), state)

    def restart(self, text: str) -> None:
        self.state[0].set_data(Tensor(_int32(zlib.crc32(text.encode())), ms.int32))


class GridMask(Mask):
    """The numbers of rows (R, 1) and columns (1, C) → the next mask (R, C)."""

    def __init__(self, rate: float):
        super().__init__(rate, _GridHash)

    def construct(self, rows, columns):
        state = _add(self.state[0], _STEP)
        return self.hash(ops.depend(rows, _assign(self.state[0], state)), columns, state)


@ops.constexpr
def _indices(shape: tuple[int, ...]) -> Tensor:
    """The number of every element, spread over the whole numbers."""
    numbers = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(0x85EBCA6B)
    return Tensor(numbers.view(np.int32).reshape(shape))


@ops.constexpr
def _table(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a table, by a cut between two axes that keeps both few."""
    cuts = [(math.prod(shape[:axis]), math.prod(shape[axis:])) for axis in range(len(shape) + 1)]
    return min(cuts, key=sum)


class Stochastic(Reparameterizable, nn.Cell):
    """A Cell that zeroes parts of its input with probability ``rate`` in training mode and is the identity otherwise.

    What is left is divided by 1 - rate.
    """

    kind: ClassVar[type[Mask]] = Mask

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.mask = self.kind(rate)

    def fuse(self) -> nn.Cell:
        return nn.Identity()


class Dropout(Stochastic):
    """Dropout of single elements (Srivastava et al., JMLR 15, 2014)."""

    kind = GridMask

    def construct(self, x):
        if not self.training or self.rate == 0.0:
            return x
        rows, columns = _table(x.shape)
        kept = _reshape(self.mask(_indices((rows, 1)), _indices((1, columns))), x.shape)
        return _mul(x, _mul(_cast(kept, x.dtype), 1.0 / (1.0 - self.rate)))


class DropPath(Stochastic):
    """Stochastic depth per sample (Huang et al., arXiv 1603.09382): a residual branch (N, C, H, W) is dropped."""

    def construct(self, x):
        if not self.training or self.rate == 0.0:
            return x
        return _mul(x, self.factors(x))

    def factors(self, x: Tensor) -> Tensor:
        """Of the next call, (N, 1, 1, 1): 0 for what is dropped, else 1 / (1 - rate)."""
        return _mul(_cast(self.mask(_indices((x.shape[0], 1, 1, 1))), x.dtype), 1.0 / (1.0 - self.rate))


def seed_masks(network: nn.Cell, seed: int, rank: int = 0) -> None:
    """Start the masks of a network over: functions of the seed, the rank and the place in the network alone."""
    for name, cell in network.cells_and_names():
        if isinstance(cell, Stochastic):
            cell.mask.restart(f"{seed} {rank} {name}")


def mask_states(network: nn.Cell) -> dict[str, Parameter]:
    """The random states of a network by their places; they change with every training step."""
    return {
        f"{name}.state": cell.mask.state[0] for name, cell in network.cells_and_names() if isinstance(cell, Stochastic)
    }
