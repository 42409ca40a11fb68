"""Kernels that take the tensors of a whole network at once.

MindSpore launches and compiles up to a dozen operators for every tensor instead; docs/speed.md has what that costs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindcv_reparam import multi_tensor, private
from mindcv_reparam.cpu.library import Kernel

AT_ONCE = 64  # tensors: what MindSpore does about the inputs of one operator takes time with their square

_map = ops.HyperMap()
_type_of = ops.MultitypeFuncGraph("type_of")


@_type_of.register("Tensor")
def _type_of_tensor(x):
    return x.dtype


@ops.constexpr
def _all_float32(types: tuple[ms.Type, ...]) -> bool:
    return all(kind == ms.float32 for kind in types)


def _are_float32(tensors):
    return _all_float32(_map(_type_of, tensors))


def _one_number(name: str) -> Kernel:
    """A kernel that makes one number of any number of tensors."""
    return Kernel(name, lambda *x: [1], lambda *x: x[0])


def _numbers(kernel, tensors):
    """What a kernel makes of them, one for each launch."""
    numbers = ()
    for begin in range(0, len(tensors), AT_ONCE):
        numbers += (kernel(*tensors[begin : begin + AT_ONCE]),)
    return numbers


class AllFinite(multi_tensor.AllFinite):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.add_n = _one_number("all_finite"), ops.AddN()

    def construct(self, tensors):
        if not _are_float32(tensors):
            return super().construct(tensors)
        verdicts = _numbers(self.kernel, tensors)
        return self.add_n(verdicts).reshape(()) == len(verdicts)


class SquareSum(multi_tensor.SquareSum):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = _one_number("square_sum")

    def construct(self, tensors):
        if not _are_float32(tensors):
            return super().construct(tensors)
        return self.add_n(_numbers(self.kernel, tensors)).reshape(())


class Scaled(multi_tensor.Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel("scaled", lambda factor, *x: x)

    def construct(self, tensors, factor):
        if not _are_float32(tensors):
            return super().construct(tensors, factor)
        scaled = ()
        for begin in range(0, len(tensors), AT_ONCE):
            scaled += self.kernel(factor.reshape(1), *tensors[begin : begin + AT_ONCE])
        return scaled


def _in_place(name: str, constants: int, changed: int, read: int) -> Kernel:
    """A kernel that gives nothing of interest and changes Parameters: those behind so many other inputs."""
    return private.changing(_one_number(name), constants, changed, read)


class MovingAverage(multi_tensor.MovingAverage):
    def __init__(self, cell: multi_tensor.MovingAverage) -> None:
        super().__init__(cell.averages, cell.values)
        sizes = _sizes(len(cell.values))
        self.kernels = tuple(_in_place("moving_average", 1, size, size) for size in sizes)
        self.exchanges = tuple(_in_place("exchange", 0, 2 * size, 0) for size in sizes)

    def construct(self, decay, moves):
        if not _are_float32(self.averages + self.values):
            return super().construct(decay, moves)
        moves = ops.ones_like(decay) if moves is None else ops.cast(moves, ms.float32)
        scalars, done = ops.stack((decay, moves)), ()
        for i in range(len(self.kernels)):
            begin, end = i * AT_ONCE, (i + 1) * AT_ONCE
            done += (self.kernels[i](scalars, *self.averages[begin:end], *self.values[begin:end]),)
        return done

    @contextmanager
    def in_place(self) -> Iterator[None]:
        if any(parameter.dtype != ms.float32 for parameter in (*self.values, *self.averages)):
            with super().in_place():
                yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Operator by operator, since a graph would have to be compiled; done when this returns."""
        for begin, kernel in zip(range(0, len(self.values), AT_ONCE), self.exchanges):
            part = slice(begin, begin + AT_ONCE)
            kernel(*self.values[part], *self.averages[part]).asnumpy()


class AdamUpdate(multi_tensor.AdamUpdate):
    def __init__(self, cell: multi_tensor.AdamUpdate) -> None:
        super().__init__(cell.parameters, cell.moment1, cell.moment2, *cell.factors)
        sizes = _sizes(len(cell.parameters))
        self.kernels = tuple(_in_place("adam_update", 2, 3 * size, size) for size in sizes)
        table = np.array(cell.factors, np.float32)
        self.tables = tuple(Tensor(table[:, i * AT_ONCE : (i + 1) * AT_ONCE]) for i in range(len(sizes)))

    def construct(self, gradients, step_size, beta1, beta2, eps, decay_scale, finite):
        if not _are_float32(self.parameters + gradients):
            return super().construct(gradients, step_size, beta1, beta2, eps, decay_scale, finite)
        updates = ops.ones_like(step_size) if finite is None else ops.cast(finite, ms.float32)
        scalars, done = ops.stack((step_size, beta1, beta2, eps, decay_scale, updates)), ()
        for i in range(len(self.kernels)):
            begin, end = i * AT_ONCE, (i + 1) * AT_ONCE
            of_network = (
                *self.parameters[begin:end],
                *self.moment1[begin:end],
                *self.moment2[begin:end],
            )
            done += (self.kernels[i](scalars, self.tables[i], *of_network, *gradients[begin:end]),)
        return done


def _sizes(number: int) -> list[int]:
    """Of the parts of so many tensors."""
    return [min(AT_ONCE, number - begin) for begin in range(0, number, AT_ONCE)]


WITHOUT_STATE: dict[type[nn.Cell], type[nn.Cell]] = {
    multi_tensor.AllFinite: AllFinite,
    multi_tensor.SquareSum: SquareSum,
    multi_tensor.Scaled: Scaled,
}
OF_PARAMETERS: dict[type[nn.Cell], Callable] = {
    multi_tensor.MovingAverage: MovingAverage,
    multi_tensor.AdamUpdate: AdamUpdate,
}
