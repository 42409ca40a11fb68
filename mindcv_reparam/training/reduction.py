"""The mean of gradients over the ranks."""

import itertools
from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

MEGABYTES = 16  # that are sent together: above, copying them costs what the saved message gains
_NUMBERS = 2**18  # of float32 in a megabyte

_flat = ops.MultitypeFuncGraph("flat")
_cut = ops.MultitypeFuncGraph("cut")


@_flat.register("Tensor")
def _flattened(gradient):
    return gradient.reshape(-1)


@_cut.register("Tensor", "Number", "Number", "Tensor")
def _cut_out(joined, first, size, gradient):
    return ops.slice(joined, (first,), (size,)).reshape(gradient.shape)


def create_reducer(parameters: Sequence[Parameter], size: int, megabytes: int | None = None) -> nn.Cell:
    """Gradients of ``parameters`` → their means over ``size`` ranks; so many megabytes are sent together."""
    if ms.get_context("device_target") == "CPU":
        gradients = [(parameter.size, str(parameter.dtype)) for parameter in parameters]
        return JoinedReducer(gradients, size, (megabytes or MEGABYTES) * _NUMBERS)
    # MindSpore fuses the messages of an NPU, and sends while the rest is still computed.
    if megabytes:
        ms.set_auto_parallel_context(comm_fusion={"allreduce": {"mode": "size", "config": megabytes}})
    return nn.DistributedGradReducer(parameters, mean=True, degree=size)


class JoinedReducer(nn.Cell):
    """Sends gradients together, as many as fit into a message.

    On a CPU a message takes half a millisecond whatever its length, and a detector has some hundred gradients. With two
    ranks the result has the bits of one message per gradient.

    Args:
        gradients: numbers and type of each.
        ranks: by which the sums are divided.
        largest: numbers in a message, but for a gradient that has more alone.
    """

    def __init__(self, gradients: Sequence[tuple[int, str]], ranks: int, largest: int) -> None:
        super().__init__(auto_prefix=False)
        self.factor = 1.0 / ranks
        self.parts = messages(gradients, largest)
        self.sum_over_ranks = ops.AllReduce()
        self.map = ops.HyperMap()  # a loop over some hundred gradients is too deep for the compiler

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        means: tuple[Tensor, ...] = ()
        for first, starts, sizes in self.parts:
            group = gradients[first : first + len(sizes)]
            mean = self.sum_over_ranks(ops.concat(self.map(_flat, group))) * self.factor
            means += self.map(ops.partial(_cut, mean), starts, sizes, group)
        return means


def messages(
    gradients: Sequence[tuple[int, str]], largest: int
) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]:
    """Which gradients, of these numbers and types, go together: the first one's index, where each starts in the
    message, and how many numbers each has."""
    found: list[tuple[int, list[int]]] = []
    for index, (size, kind) in enumerate(gradients):
        if found and kind == gradients[index - 1][1] and sum(found[-1][1]) + size <= largest:
            found[-1][1].append(size)
        else:
            found.append((index, [size]))
    return tuple((first, tuple(itertools.accumulate([0, *sizes[:-1]])), tuple(sizes)) for first, sizes in found)
