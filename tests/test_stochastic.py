"""Dropout and stochastic depth: the masks' statistics, and what they depend on and what not."""

import subprocess
import sys
import zlib
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from graphs import compiled
from mindspore import ParameterTuple, Tensor, nn, ops

from mindcv_reparam.reparam import reparameterize
from mindcv_reparam.stochastic import SALT, STEP, Dropout, DropPath, Stochastic, mask_states, seed_masks

RATE, CALLS = 0.3, 8


class Network(nn.Cell):
    """Two branches through one Cell and one through another, so that masks can be compared."""

    def __init__(self, kind: type[Stochastic] = Dropout, rate: float = RATE) -> None:
        super().__init__()
        self.twice = kind(rate)
        self.once = kind(rate)

    def construct(self, x):
        return self.twice(x), self.twice(x), self.once(x)


def masks(network: nn.Cell, calls: int = CALLS, shape: tuple[int, ...] = (64, 32, 1, 1)) -> np.ndarray:
    """What is kept of ones, bool (calls, outputs, elements or samples)."""
    network.set_train(True)
    ones = Tensor(np.ones(shape), ms.float32)
    outputs = np.stack([np.stack([y.asnumpy() for y in network(ones)]) for _ in range(calls)])
    assert np.all((outputs == 0) | (np.abs(outputs * (1 - RATE) - 1) < 1e-3))
    kept = outputs.reshape(calls, outputs.shape[1], shape[0], -1) > 0
    if isinstance(network.once, DropPath):
        assert np.array_equal(kept.any(-1), kept.all(-1))
        kept = kept[..., :1]
    return kept.reshape(calls, outputs.shape[1], -1)


def mixed(bits: int) -> int:
    """MurmurHash3's finalizer, in Python."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ bits >> shift) * factor % 2**32
    return bits ^ bits >> 16


def test_masks_are_the_documented_hash():
    network = Network()
    seed_masks(network, seed=5, rank=1)
    kept = masks(network, calls=1, shape=(2, 3, 5, 1))
    for output, (name, call) in enumerate([("twice", 1), ("twice", 2), ("once", 1)]):
        state = zlib.crc32(f"5 1 {name}".encode()) + call * STEP
        rows, columns = ([(index * 0x85EBCA6B ^ state) % 2**32 for index in range(size)] for size in (6, 5))
        table = [mixed(row) ^ mixed(column ^ SALT) for row in rows for column in columns]
        hashes = [(bits ^ bits >> 15) * 0xC2B2AE35 % 2**32 for bits in table]
        assert kept[0, output].tolist() == [bits >> 8 >= int(RATE * 2**24) for bits in hashes]


def test_masks_of_samples_are_the_documented_hash():
    network = Network(DropPath)
    seed_masks(network, seed=5, rank=1)
    kept = masks(network, calls=1, shape=(30, 2, 1, 1))
    for output, (name, call) in enumerate([("twice", 1), ("twice", 2), ("once", 1)]):
        state = zlib.crc32(f"5 1 {name}".encode()) + call * STEP
        hashes = [mixed((index * 0x85EBCA6B ^ state) % 2**32) for index in range(30)]
        assert kept[0, output].tolist() == [bits >> 8 >= int(RATE * 2**24) for bits in hashes]


@pytest.mark.usefixtures("by_operator")
def test_corners_of_rectangles_are_independent():
    """Of the table that a mask is: a sum of hashes of rows and columns alone would make every fourth corner a function
    of the other three. Bounds are five standard deviations, the sizes of disjoint rectangles."""
    network = Network(rate=RATE)
    seed_masks(network, seed=3)
    kept = masks(network, calls=1, shape=(256, 16, 16, 16))[0].reshape(3, 256 * 16 // 2, 2, 16 * 16 // 2, 2)
    signs = kept - (1 - RATE)
    corners = signs[:, :, 0, :, 0] * signs[:, :, 0, :, 1] * signs[:, :, 1, :, 0] * signs[:, :, 1, :, 1]
    deviation = (RATE * (1 - RATE)) ** 2 / corners.size**0.5
    assert abs(corners.mean()) < 5 * deviation


@pytest.mark.parametrize("kind", [Dropout, DropPath])
def test_the_graph_holds_no_constant_as_large_as_a_map(kind):
    """Of 4 MiB per map; the numbers of rows and columns are what is left."""
    network = kind(RATE).set_train(True)
    x = Tensor(np.zeros((16, 16, 64, 64)), ms.float32)
    assert len(compiled(network, x)) < 2**18


@pytest.mark.usefixtures("by_operator")
@pytest.mark.parametrize("kind", [Dropout, DropPath])
def test_rate_and_independence(kind):
    """Of calls, layers, uses of one layer, ranks and seeds, by correlation; all bounds are five standard deviations."""
    shape = (4096, 1, 1, 1) if kind is DropPath else (64, 64, 1, 1)
    found = []
    for seed, rank in ((0, 0), (0, 1), (1, 0)):
        network = Network(kind)
        seed_masks(network, seed, rank)
        found += list(masks(network, calls=4, shape=shape).reshape(-1, 4096))
    found = np.stack(found).astype(np.float64)  # (3 · 4 · 3, 4096)
    deviation = (RATE * (1 - RATE) / 4096) ** 0.5
    assert np.abs(found.mean(1) - (1 - RATE)).max() < 5 * deviation
    correlation = np.corrcoef(found) - np.eye(len(found))
    assert np.abs(correlation).max() < 5 / 4096**0.5
    neighbours = np.array([np.corrcoef(mask[1:], mask[:-1])[0, 1] for mask in found])
    assert np.abs(neighbours).max() < 5 / 4096**0.5


def test_precision_and_mode_do_not_change_the_masks():
    expected = None
    for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE):
        for dtype in (ms.float32, ms.float16):
            ms.set_context(mode=mode, jit_syntax_level=ms.STRICT)
            network = Network()
            seed_masks(network, seed=0)
            kept = masks(network.to_float(dtype), calls=2)
            expected = kept if expected is None else expected
            assert np.array_equal(kept, expected)
    ms.set_context(mode=ms.GRAPH_MODE, jit_syntax_level=ms.STRICT)


@pytest.mark.usefixtures("by_operator")
def test_a_restored_state_continues_the_masks():
    network = Network(DropPath)
    seed_masks(network, seed=0)
    masks(network, calls=3)
    states = {name: state.asnumpy().copy() for name, state in mask_states(network).items()}
    expected = masks(network)
    other = Network(DropPath)
    for name, state in mask_states(other).items():
        state.set_data(Tensor(states[name]))
    assert list(states) == ["twice.state", "once.state"]
    assert np.array_equal(masks(other), expected)
    assert not np.array_equal(masks(other), expected)


def test_gradients_go_through_the_mask_of_their_step():
    class Product(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = DropPath(0.5), Dropout(0.5)
            self.weight = ms.Parameter(Tensor(np.ones((16, 4, 1, 1)), ms.float32), name="weight")

        def construct(self, x):
            return self.second(self.first(x * self.weight))

    network = Product().set_train(True)
    weights = ParameterTuple(network.trainable_params())

    def loss(x):
        return (network(x) * x).sum()

    step = ms.value_and_grad(loss, None, weights)
    for _ in range(5):
        value, (gradient,) = step(Tensor(np.ones((16, 4, 1, 1)), ms.float32))
        assert set(np.unique(gradient.asnumpy())) == {0.0, 4.0}
        assert value.asnumpy() == gradient.asnumpy().sum()


def test_nothing_in_evaluation_nor_among_the_parameters_nor_after_fusing():
    network = nn.SequentialCell(Dropout(0.9), DropPath(0.9))
    states = {name: state.asnumpy().copy() for name, state in mask_states(network).items()}
    x = Tensor(np.random.default_rng(0).normal(size=(8, 4, 2, 2)), ms.float32)
    assert np.array_equal(network.set_train(False)(x).asnumpy(), x.asnumpy())
    assert all(np.array_equal(state.asnumpy(), states[name]) for name, state in mask_states(network).items())
    assert not list(network.get_parameters())
    assert all(isinstance(cell, nn.Identity) for cell in reparameterize(network))


@pytest.mark.usefixtures("by_operator")
def test_unseeded_layers_differ_and_rate_zero_drops_nothing():
    kept = masks(Network(), calls=1)
    assert not np.array_equal(kept[0, 0], kept[0, 2])
    x = Tensor(np.ones((4, 4, 1, 1)), ms.float32)
    assert ops.equal(DropPath(0.0).set_train(True)(x), x).all()


PROGRAM = """
from mindcv_reparam.runtime import prepare
prepare("CPU", seed=0)
import zlib
import test_stochastic as test
network = test.Network(test.DropPath)
test.seed_masks(network, seed=3)
print(zlib.crc32(test.np.packbits(test.masks(network)).tobytes()))
"""


@pytest.mark.slow
def test_another_process_draws_the_same_masks():
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = f"import sys; sys.path[:0] = {folders}\n{PROGRAM}"
    printed = subprocess.check_output([sys.executable, "-c", program], text=True).split()[-1]
    network = Network(DropPath)
    seed_masks(network, seed=3)
    assert printed == str(zlib.crc32(np.packbits(masks(network)).tobytes()))
