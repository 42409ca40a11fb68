"""Gradients are sent together; what comes back is every gradient's mean in its place."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from mindcv_reparam.training import reduction


class OtherRank(nn.Cell):
    """Stands for the sum over three ranks, two of which have twice the numbers of this one."""

    def construct(self, numbers):
        return numbers + 4 * numbers


def test_means_come_back_in_place(monkeypatch):
    """Two messages by size, a third by type; a scalar, and one that fills a message alone."""
    monkeypatch.setattr(reduction, "_NUMBERS", 11)
    monkeypatch.setattr(reduction.ops, "AllReduce", OtherRank)
    kinds = [((2, 3), ms.float32), ((), ms.float32), ((4,), ms.float32), ((3, 4), ms.float32), ((5,), ms.float16)]
    rng = np.random.default_rng(0)
    values = [rng.integers(-9, 9, shape).astype(np.float32) for shape, _ in kinds]
    parameters = [
        Parameter(Tensor(value, kind), name=f"p{i}") for i, (value, (_, kind)) in enumerate(zip(values, kinds))
    ]
    reducer = reduction.create_reducer(parameters, size=4, megabytes=1)
    assert reducer.parts == ((0, (0, 6, 7), (6, 1, 4)), (3, (0,), (12,)), (4, (0,), (5,)))
    means = reducer(tuple(Tensor(value, kind) for value, (_, kind) in zip(values, kinds)))
    assert len(means) == len(values)
    for mean, value, (shape, kind) in zip(means, values, kinds):
        assert (mean.shape, mean.dtype) == (shape, kind)
        np.testing.assert_array_equal(mean.asnumpy(), value * 1.25)


def test_an_npu_is_told_how_much_to_send_together(monkeypatch):
    """Not run on Ascend here: what MindSpore is asked for."""
    asked = []
    monkeypatch.setattr(reduction.ms, "get_context", lambda name: "Ascend")
    monkeypatch.setattr(reduction.ms, "set_auto_parallel_context", lambda **options: asked.append(options))
    monkeypatch.setattr(reduction.nn, "DistributedGradReducer", lambda parameters, mean, degree: (mean, degree))
    assert reduction.create_reducer([], size=8) == (True, 8)
    assert asked == []
    reduction.create_reducer([], size=8, megabytes=32)
    assert asked == [{"comm_fusion": {"allreduce": {"mode": "size", "config": 32}}}]
