"""The CPU kernels against MindSpore's own operators, forwards and backwards, and what they leave alone."""

import ctypes

import mindspore as ms
import numpy as np
import pytest
from gradients import gradients_by_name
from mindspore import Tensor, nn
from networks import NUM_CLASSES, SMALL, difference, random_images, randomise, small_network

from mindcv_reparam.cpu import library as kernels
from mindcv_reparam.cpu import use_kernels
from mindcv_reparam.layers import GroupNorm, LayerScale, conv2d, gelu
from mindcv_reparam.multi_tensor import AdamUpdate, AllFinite, MovingAverage, Scaled, SquareSum
from mindcv_reparam.operations import (
    Apart,
    Float32Softmax,
    Inside,
    LayerNorm,
    Sigmoid,
    Softmax,
    Together,
    Upsample,
)
from mindcv_reparam.reparam import reparameterize
from mindcv_reparam.stochastic import DropPath, seed_masks

pytestmark = pytest.mark.skipif(
    tuple(map(int, ms.__version__.split(".")[:2])) < (2, 9), reason="MindSpore 2.7 and 2.8 bring another oneDNN"
)

TOLERANCE = 5e-6  # of the largest entry: that of sums in another order

# kernel size, stride, channel multiplier, bias, shape of the input
DEPTHWISE = [
    (3, 1, 1, True, (2, 5, 9, 13)),
    (3, 2, 1, False, (2, 6, 8, 40)),
    (3, 2, 2, True, (1, 6, 1, 1)),
    (7, 1, 1, False, (3, 4, 33, 20)),
    (7, 1, 2, True, (2, 6, 3, 4)),
    (7, 2, 2, True, (2, 3, 17, 16)),
]

# in and out channels, kernel size, stride, padding, groups, bias, batch and image
DENSE = [
    (5, 7, 1, 1, 0, 1, True, (3, 7, 7)),
    (40, 70, 1, 1, 0, 1, False, (2, 14, 13)),
    (6, 4, 1, 2, 0, 2, True, (2, 9, 8)),
    (8, 20, 3, 1, 1, 4, False, (2, 9, 70)),
    (3, 17, 3, 2, 1, 1, True, (3, 17, 16)),
    (4, 9, 2, 2, 0, 1, True, (2, 9, 6)),
    (3, 5, 7, 4, 2, 1, False, (2, 30, 33)),
    (4, 4, 3, 1, 4, 1, True, (1, 1, 2)),
    (600, 33, 1, 1, 0, 1, True, (1, 5, 30)),
    (33, 600, 1, 1, 0, 1, False, (2, 9, 30)),
    (2, 3, 3, 1, 1, 1, True, (2, 40, 41)),
]

# channels in and out, arguments of nn.Conv2d, batch and image
GEOMETRIES = {
    "same": (3, 8, dict(kernel_size=3, stride=2, pad_mode="same"), (2, 8, 9)),
    "same, wide": (4, 6, dict(kernel_size=(2, 5), stride=(3, 2), pad_mode="same", group=2), (2, 10, 11)),
    "valid": (5, 7, dict(kernel_size=4, stride=3, pad_mode="valid"), (2, 12, 9)),
    "dilated": (6, 4, dict(kernel_size=3, pad_mode="pad", padding=2, dilation=2), (2, 9, 12)),
    "dilated one way": (6, 4, dict(kernel_size=3, pad_mode="pad", padding=1, dilation=(1, 3)), (1, 9, 12)),
    "a row": (6, 5, dict(kernel_size=(1, 7), pad_mode="pad", padding=(0, 0, 3, 3)), (2, 6, 9)),
    "four paddings": (3, 5, dict(kernel_size=3, stride=2, pad_mode="pad", padding=(1, 2, 0, 3)), (2, 8, 7)),
    "depthwise, 5x5": (6, 6, dict(kernel_size=5, pad_mode="pad", padding=2, group=6), (2, 9, 20)),
    "depthwise, 5x5 / 2": (6, 12, dict(kernel_size=5, stride=2, pad_mode="pad", padding=2, group=6), (2, 9, 20)),
    "depthwise, no padding": (4, 4, dict(kernel_size=3, pad_mode="valid", group=4), (2, 9, 20)),
    "depthwise, dilated": (4, 8, dict(kernel_size=3, pad_mode="pad", padding=2, dilation=2, group=4), (2, 9, 10)),
}


class Weighted(nn.Cell):
    """A sum of outputs, each with another weight, so that no gradient cancels; and the outputs."""

    def __init__(self, cell: nn.Cell, weight: Tensor):
        super().__init__()
        self.cell = cell
        self.weight = weight

    def construct(self, x):
        y = self.cell(x)
        return (y * self.weight).sum(), y


def results(cell: nn.Cell, x: Tensor, compiled: bool = True) -> list[np.ndarray]:
    """The output and the gradients for the input and every parameter, of one graph or operator by operator."""
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        weight = Tensor(np.random.default_rng(1).normal(size=cell(x).shape), ms.float32)
        parameters = ms.ParameterTuple(cell.get_parameters())
        gradient = ms.value_and_grad(Weighted(cell, weight), 0, parameters or None, has_aux=True)
        (_, y), slopes = (ms.jit(gradient) if compiled else gradient)(x)
    finally:
        ms.set_context(mode=mode)
    slopes = (slopes[0], *slopes[1]) if parameters else (slopes,)
    return [one.asnumpy() for one in (y, *slopes)]


def assert_same(make, shape: tuple[int, ...]) -> None:
    plain = nn.SequentialCell(randomise(make()))
    fast = use_kernels(nn.SequentialCell(randomise(make())))
    assert type(fast[0]) is not type(plain[0])
    assert [p.name for p in fast.get_parameters()] == [p.name for p in plain.get_parameters()]
    x = Tensor(np.random.default_rng(0).normal(0.3, 2.0, shape), ms.float32)
    for actual, expected in zip(results(fast, x), results(plain, x, compiled=False), strict=True):
        assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["exact", "tanh"])
def test_gelu(kind):
    assert_same(lambda: gelu(kind), (3, 5, 7, 9))


@pytest.mark.parametrize(
    "paddings", [((0, 0), (0, 0), (1, 1), (1, 1)), ((1, 0), (0, 2), (0, 0), (3, 1)), ((0, 0),) * 4]
)
def test_padding(paddings):
    x = random_images((5, 7))
    net = use_kernels(nn.SequentialCell(nn.Pad(paddings)))
    assert type(net[0]) is not nn.Pad
    for found, wanted in zip(
        results(net, x), results(nn.SequentialCell(nn.Pad(paddings)), x, compiled=False), strict=True
    ):
        assert np.array_equal(found, wanted)
    mirrored = use_kernels(nn.SequentialCell(nn.Pad(paddings, "REFLECT")))
    assert type(mirrored[0]) is nn.Pad


def test_places_inside_a_map():
    x = Tensor(np.random.default_rng(0).integers(-50, 200, (2, 7, 3, 4)).astype(np.float32))
    x[0, 0, 0] = Tensor([-1e30, 1e30, 16777216.0, -0.0], ms.float32)
    last = Tensor([[79.0], [39.0], [0.0]], ms.float32)
    net = use_kernels(nn.CellList([Inside()]))
    assert type(net[0]) is not Inside
    assert np.array_equal(net[0](x, last).asnumpy(), Inside()(x, last).asnumpy())


class Parts(nn.Cell):
    """One tensor of what `Apart` gives, in which every part counts otherwise."""

    def __init__(self):
        super().__init__()
        self.apart = Apart()

    def construct(self, x):
        first, second, third = self.apart(x)
        return first + 2 * second + 4 * third


class Whole(nn.Cell):
    """`Together` of a tensor and others that follow from it."""

    def __init__(self):
        super().__init__()
        self.together = Together()

    def construct(self, x):
        return self.together((x, 2 * x, 4 * x))


class Doubled(nn.Cell):
    def __init__(self):
        super().__init__()
        self.upsample = Upsample()

    def construct(self, x):
        return self.upsample(x, 2 * x.shape[2], 2 * x.shape[3])


class Enlarged(Doubled):
    def construct(self, x):
        return self.upsample(x, 11, 12)


@pytest.mark.parametrize("make", [Parts, Whole, Doubled, Enlarged])
def test_what_other_operators_compute_is_the_same(make):
    """To the bit, powers of two times whole numbers; the gradient of a pixel is a sum of four."""
    plain, fast = nn.SequentialCell(make()), use_kernels(nn.SequentialCell(make()))
    (name, _), (_, cell) = plain[0].name_cells().popitem(), fast[0].name_cells().popitem()
    assert type(cell) is not type(plain[0].name_cells()[name])
    x = random_images((5, 3))
    (y, gradient), (expected, slope) = results(fast, x), results(plain, x, compiled=False)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(7,), (3, 40), (2, 5, 3), (2, 3, 5, 33)])
def test_layer_norm(shape):
    assert_same(lambda: LayerNorm(shape[-1], 1e-3), shape)


@pytest.mark.parametrize("shape", [(7,), (3, 1), (2, 3, 5, 49)])
def test_softmax(shape):
    assert_same(Softmax, shape)


def test_softmax_of_what_is_masked_infinite_or_no_number():
    rows = [[0.0, -65504.0, 1.0], [-65504.0] * 3, [3e38, -3e38, 3e38], [0.0, -np.inf, 0.0], [0.0, np.nan, 1.0]]
    y = use_kernels(nn.SequentialCell(Float32Softmax()))(Tensor(rows, ms.float32)).asnumpy()
    np.testing.assert_allclose(y[0], [1 / (1 + np.e), 0.0, np.e / (1 + np.e)], rtol=2e-7)
    assert y[0, 1] == y[2, 1] == y[3, 1] == 0.0
    np.testing.assert_allclose(y[1:4], [[1 / 3] * 3, [0.5, 0.0, 0.5], [0.5, 0.0, 0.5]], rtol=2e-7)
    assert np.isnan(y[4]).all()


def test_the_gradient_of_a_layer_norm_of_many_rows():
    """Summed in double, so within float32's own rounding of the sums in float64."""
    x = np.random.default_rng(0).normal(3.0, 0.5, (40000, 3)).astype(np.float32)
    _, _, gamma, beta = results(use_kernels(nn.SequentialCell(LayerNorm(3))), Tensor(x))
    centred = x - x.mean(1, keepdims=True, dtype=np.float64)
    normalised = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    np.testing.assert_allclose(gamma, (weight * normalised).sum(0), rtol=2e-6, atol=2e-4)
    np.testing.assert_allclose(beta, weight.sum(0, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("broken", [None, np.inf, -np.inf, np.nan])
def test_all_finite(broken):
    """Also what the sum of is infinite, and of no dimension or another type."""
    large = np.full((3, 70), 3e38, np.float32)
    tensors = [large, np.zeros((), np.float32), np.ones(5, np.float16), -large[:, :1]]
    if broken is not None:
        tensors[0][2, 69] = broken
    cell = use_kernels(nn.CellList([AllFinite()]))[0]
    assert type(cell) is not AllFinite
    verdict = cell(tuple(map(Tensor, tensors)))
    assert (verdict.shape, bool(verdict)) == ((), broken is None)
    for index in range(1, 4):
        spoiled = [np.ones_like(one) for one in tensors]
        spoiled[index][...] = np.nan
        assert not cell(tuple(map(Tensor, spoiled)))


SHAPES = [(), (1,), (3, 5), (2, 3, 7, 7), (20000,), *[(4,)] * 62]  # more than one launch takes


def tensors(seed: int, kind: type = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(kind) for shape in SHAPES]


def given(arrays: list[np.ndarray]) -> tuple[Tensor, ...]:
    return tuple(map(Tensor, arrays))


def replaced(cell: nn.Cell) -> nn.Cell:
    new = use_kernels(nn.CellList([cell]))[0]
    assert type(new) is not type(cell)
    return new


@pytest.mark.parametrize("number", [1, 65, len(SHAPES)])  # of the last launch: 1, 1, 3
def test_square_sums_and_products_of_many_tensors(number):
    x = tensors(0)[-number:]
    expected = sum((one.astype(np.float64) ** 2).sum() for one in x)
    np.testing.assert_allclose(replaced(SquareSum())(given(x)).asnumpy(), expected, rtol=1e-6)
    for y, one in zip(replaced(Scaled())(given(x), Tensor(0.37, ms.float32)), x, strict=True):
        np.testing.assert_allclose(y.asnumpy(), one * np.float32(0.37), rtol=1e-6)
        assert y.shape == one.shape


def test_other_types_are_left_to_mindspore():
    x = given(tensors(0, np.float16)[:3])
    assert replaced(SquareSum())(x) == SquareSum()(x)
    for y, expected in zip(replaced(Scaled())(x, Tensor(2.0)), Scaled()(x, Tensor(2.0)), strict=True):
        assert y.dtype == expected.dtype
        assert y.asnumpy().tobytes() == expected.asnumpy().tobytes()


def parameters(arrays: list[np.ndarray], name: str) -> ms.ParameterTuple:
    return ms.ParameterTuple([ms.Parameter(Tensor(one), name=f"{name}.{j}") for j, one in enumerate(arrays)])


class InPlace(nn.Cell):
    """Reads the first element of what is changed before and behind an update by a Cell, which has the parameters."""

    def __init__(self, update: nn.Cell, changed: ms.ParameterTuple):
        super().__init__()
        self.update = update
        self.first = changed[0]

    def construct(self, *rest):
        before = self.first * 1.0
        self.update(*rest)
        return before, self.first * 1.0


@pytest.mark.parametrize("moves", [None, True, False])
def test_averages_of_many_tensors(moves):
    average, value = tensors(0), tensors(1)
    averages = parameters(average, "average")
    network = use_kernels(InPlace(MovingAverage(averages, parameters(value, "value")), averages))
    assert type(network.update) is not MovingAverage
    before, behind = network(Tensor(0.9, ms.float32), None if moves is None else Tensor(moves))
    after = average if moves is False else [0.9 * one + 0.1 * two for one, two in zip(average, value)]
    for found, expected in zip(averages, after, strict=True):
        np.testing.assert_allclose(found.asnumpy(), expected, atol=0 if moves is False else 1e-6)
    np.testing.assert_allclose([float(before), float(behind)], [average[0], after[0]], atol=1e-6)


def bits(parameters: ms.ParameterTuple) -> list[bytes]:
    return [parameter.asnumpy().tobytes() for parameter in parameters]


class Reads(nn.Cell):
    def __init__(self, parameter: ms.Parameter):
        super().__init__()
        self.parameter = parameter

    def construct(self):
        return self.parameter * 1.0


def test_many_averages_in_place_of_the_weights_and_back():
    """What a compiled graph reads, too, and after an error within."""
    averages, weights = parameters(tensors(0), "average"), parameters(tensors(1), "weight")
    before = bits(weights), bits(averages)
    move, read = replaced(MovingAverage(averages, weights)), Reads(weights[2])
    assert read().asnumpy().tobytes() == before[0][2]
    with move.in_place():
        assert bits(weights) == before[1]
        assert read().asnumpy().tobytes() == before[1][2]
    assert read().asnumpy().tobytes() == before[0][2]
    with pytest.raises(ValueError, match="within"), move.in_place():
        raise ValueError("within")
    assert (bits(weights), bits(averages)) == before


@pytest.mark.parametrize("finite", [None, True, False])
def test_adam_of_many_tensors(finite):
    """By the formula in float64; what is not finite changes no bit."""
    w, m, g = tensors(0), tensors(1), tensors(3)
    v = [np.square(one) for one in tensors(2)]
    rng = np.random.default_rng(4)
    factors = tuple(tuple(map(float, rng.uniform(0.1, 1.0, len(SHAPES)))) for _ in range(3))
    changed = [parameters(arrays, name) for arrays, name in ((w, "w"), (m, "m"), (v, "v"))]
    network = use_kernels(InPlace(AdamUpdate(*changed, *factors), changed[0]))
    assert type(network.update) is not AdamUpdate
    scalars = (1e-2, 0.9, 0.99, 1e-3, 0.7)
    if finite is False:
        g[3][0, 0, 0, 0] = np.nan
    given_finite = None if finite is None else Tensor(finite)
    network(given(g), *(Tensor(one, ms.float32) for one in scalars), given_finite)
    step, beta1, beta2, eps, scale = scalars
    for j in range(len(SHAPES)):
        found = [of_kind[j].asnumpy() for of_kind in changed]
        if finite is False:
            assert [one.tobytes() for one in found] == [w[j].tobytes(), m[j].tobytes(), v[j].tobytes()]
            continue
        coupled, decoupled, factor = (of_kind[j] for of_kind in factors)
        gradient = g[j].astype(np.float64) + coupled * w[j]
        new_m, new_v = beta1 * m[j] + (1 - beta1) * gradient, beta2 * v[j] + (1 - beta2) * gradient**2
        new_w = w[j] - step * factor * (new_m / (np.sqrt(new_v) + eps) + decoupled * scale * w[j])
        for one, expected in zip(found, (new_w, new_m, new_v)):
            np.testing.assert_allclose(one, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["exact", "tanh"])
def test_gelu_far_out(kind):
    x = Tensor([-1e30, -100.0, -6.0, 0.0, 6.0, 100.0, 1e30, np.inf, np.nan], ms.float32)
    net = use_kernels(nn.SequentialCell(gelu(kind)))
    y = net(x).asnumpy()
    np.testing.assert_allclose(y[:-1], [0, 0, 0, 0, 6, 100, 1e30, np.inf], rtol=1e-6, atol=1e-6)
    assert np.isnan(y[-1])


def test_sigmoid():
    """As exact as float32, forwards and backwards, which MindSpore's own is not."""
    x = np.concatenate([np.linspace(-20, 20, 5001, dtype=np.float32), np.float32([-1e30, 1e30, -np.inf, np.inf])])
    net = use_kernels(nn.SequentialCell(Sigmoid()))
    y, gradient = results(net, Tensor(x))
    expected = 1 / (1 + np.exp(-np.clip(x.astype(np.float64), -700, 700)))
    np.testing.assert_allclose(y, expected, rtol=2e-7, atol=1e-30)
    weight = np.random.default_rng(1).normal(size=y.shape)
    np.testing.assert_allclose(gradient, weight * expected * (1 - expected), rtol=1e-6, atol=3e-7)
    assert np.isnan(net(Tensor([np.nan], ms.float32)).asnumpy())


@pytest.mark.parametrize(("size", "stride", "multiplier", "bias", "shape"), DEPTHWISE)
def test_depthwise_convolution(size, stride, multiplier, bias, shape):
    channels = shape[1]
    assert_same(lambda: conv2d(channels, multiplier * channels, size, stride, groups=channels, bias=bias), shape)


@pytest.mark.parametrize(("channels", "out", "size", "stride", "padding", "groups", "bias", "shape"), DENSE)
def test_dense_convolution(channels, out, size, stride, padding, groups, bias, shape):
    batch, *image = shape
    assert_same(
        lambda: conv2d(channels, out, size, stride, padding=padding, groups=groups, bias=bias),
        (batch, channels, *image),
    )


OPERANDS = {
    "convolution": (lambda: conv2d(3, 8), [(2, 1, 8, 8), (2, 4, 8, 8), (3, 8, 8), (0, 3, 8, 8), (2, 3, 0, 8)]),
    "convolution without padding": (lambda: conv2d(3, 8, 7, padding=0), [(2, 3, 5, 9)]),
    "grouped convolution": (lambda: conv2d(8, 8, 3, groups=2), [(2, 4, 8, 8), (2, 16, 8, 8)]),
    "depthwise convolution": (lambda: conv2d(6, 6, 7, groups=6, bias=True), [(2, 3, 8, 8), (2, 6, 8), (0, 6, 8, 8)]),
    "gelu": (lambda: gelu("exact"), [(), (0, 5)]),
    "gelu by tanh": (lambda: gelu("tanh"), [(), (0, 5)]),
    "group norm": (lambda: GroupNorm(6), [(2, 5, 4, 4), (2, 12, 4, 4), (2, 6), (0, 6, 4, 4)]),
    "softmax": (Softmax, [(), (0, 6)]),
    "layer norm": (lambda: LayerNorm(6), [(2, 5), (), (0, 6)]),
    "layer scale": (lambda: LayerScale((5, 1, 1), 0.5), [(2, 4, 3, 3), (2, 1, 3, 3), (5,), (0, 5, 3, 3)]),
    "stochastic depth": (lambda: DropPath(0.4).set_train(), [(6, 4), (0, 3, 4, 4)]),
}
OTHER_TYPES = [(name, kind) for name in OPERANDS for kind in (np.float16, np.int32)] + [("gelu", np.float64)]


def outcome(net: nn.Cell, x: np.ndarray) -> np.ndarray | tuple[type, str]:
    """What a Cell gives for an operand, or the exception and the first line of its text."""
    seed_masks(net, seed=2)
    try:
        return net(Tensor(x)).asnumpy()
    except Exception as error:
        return type(error), str(error).strip().splitlines()[0]


def assert_same_outcome(make, shape: tuple[int, ...], kind: type) -> None:
    x = (np.random.default_rng(0).normal(0.3, 2.0, shape) * 4).astype(kind)
    plain = outcome(nn.SequentialCell(randomise(make())), x)
    fast = outcome(use_kernels(nn.SequentialCell(randomise(make()))), x)
    if isinstance(plain, tuple):
        assert fast == plain
    else:
        assert (fast.dtype, fast.shape) == (plain.dtype, plain.shape)
        np.testing.assert_allclose(fast, plain, rtol=0, atol=TOLERANCE * np.abs(plain).max(initial=0.0))


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def mode(request):
    ms.set_context(mode=request.param)
    yield request.param
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name in OPERANDS for shape in OPERANDS[name][1]])
def test_an_operand_that_a_kernel_does_not_take_is_the_operators(name, shape, mode):
    assert_same_outcome(OPERANDS[name][0], shape, np.float32)


@pytest.mark.parametrize(("name", "kind"), OTHER_TYPES)
def test_another_type_is_the_operators(name, kind, mode):
    channels = {"convolution": 3, "convolution without padding": 3, "grouped convolution": 8, "layer scale": 5}
    assert_same_outcome(OPERANDS[name][0], (2, channels.get(name, 6), 8, 8), kind)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_of_other_geometries(name, bias):
    channels, out, arguments, (batch, *image) = GEOMETRIES[name]
    assert_same(lambda: nn.Conv2d(channels, out, has_bias=bias, **arguments), (batch, channels, *image))


def test_convolutions_of_one_shape_and_other_geometry_are_not_taken_for_the_same(mode):
    def net() -> nn.Cell:
        strides = ((1, 1, 1), (1, 2, 2), (1, 3, 3))  # of equal outputs
        arguments = [dict(stride=stride, dilation=dilation, padding=padding) for stride, dilation, padding in strides]
        cells = [nn.Conv2d(4, 4, 3, pad_mode="pad", has_bias=True, **some) for some in arguments]
        return randomise(nn.SequentialCell([*cells, nn.Conv2d(4, 4, 3, stride=2, pad_mode="same")]))

    x = random_images((2, 15), channels=4)
    assert difference(use_kernels(net())(x), net()(x)) <= TOLERANCE


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("size", [1, 3])
def test_infinities_and_nan_go_through_a_convolution_as_through_mindspores(size, groups):
    x = np.random.default_rng(0).normal(size=(2, 6, 12, 13)).astype(np.float32)
    x[0, 0, 3, 4], x[0, 1, 8, 9], x[1, 2, 5, 5] = np.inf, -np.inf, np.nan
    plain, fast = (nn.SequentialCell(randomise(conv2d(6, 12, size, groups=groups, bias=True))) for _ in range(2))
    expected, actual = plain(Tensor(x)).asnumpy(), use_kernels(fast)(Tensor(x)).asnumpy()
    finite = np.isfinite(expected)
    assert np.isinf(expected).sum() > 0
    assert np.isnan(expected).sum() > 0
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    assert np.abs(actual[finite] - expected[finite]).max() <= TOLERANCE * np.abs(expected[finite]).max()


def test_what_onednn_refuses_is_a_status_and_no_crash():
    x, weight, bias = (np.zeros(shape, np.float32) for shape in ((1, 4, 8, 8), (4, 4, 3, 3), (4,)))
    tensors = x, weight, bias, np.array([0, 0, 0, 0, 0, 0, 1]), np.zeros((1, 4, 6, 6), np.float32)
    assert status("convolution", *tensors) != 0


def call(name: str, *tensors: np.ndarray) -> None:
    """Call an operator as MindSpore does: inputs, then outputs."""
    assert status(name, *tensors) == 0


def status(name: str, *tensors: np.ndarray) -> int:
    shapes = [(ctypes.c_int64 * tensor.ndim)(*tensor.shape) for tensor in tensors]
    pointers = (ctypes.c_void_p * len(tensors))(*(tensor.ctypes.data for tensor in tensors))
    ranks = (ctypes.c_int * len(tensors))(*(tensor.ndim for tensor in tensors))
    rows = (ctypes.c_void_p * len(tensors))(*(ctypes.addressof(shape) for shape in shapes))
    operator = getattr(ctypes.CDLL(str(kernels.library())), name)
    return operator(len(tensors), pointers, ranks, rows, None, None, None)


@pytest.mark.parametrize(("stride", "groups", "size"), [(1, 1, 3), (2, 1, 3), (1, 3, 3), (1, 1, 1)])
def test_convolutions_do_not_depend_on_the_number_of_threads(stride, groups, size):
    rng = np.random.default_rng(0)
    side = (33 - size) // stride + 1
    x, weight = (
        rng.normal(size=shape).astype(np.float32) for shape in ((3, 24, 33, 33), (45, 24 // groups, size, size))
    )
    dy = rng.normal(size=(3, 45, side, side)).astype(np.float32)
    geometry, bias = np.array([stride, stride, 1, 1, 0, 0, 1]), np.ones(45, np.float32)
    results = []
    openmp = ctypes.CDLL("libgomp.so.1")
    before = openmp.omp_get_max_threads()
    for threads in (1, 2, 5):
        openmp.omp_set_num_threads(threads)
        y, dx, dweight, sums = (np.full_like(like, np.nan) for like in (dy, x, weight, bias))
        call("convolution", x, weight, bias, geometry, y)
        call("convolution_input_grad", dy, weight, x, geometry, dx)
        call("convolution_weight_grad", x, dy, weight, bias, geometry, dweight, sums)
        results.append((y, dx, dweight, sums))
    openmp.omp_set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("scale", "shift"), [(True, True), (True, False), (False, False)])
def test_group_norm(scale, shift):
    assert_same(lambda: GroupNorm(6, scale=scale, shift=shift), (3, 6, 5, 7))


@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (1, 5, 1, 1)])
def test_layer_scale(shape):
    assert_same(lambda: LayerScale((5, 1, 1), 1.0), shape)


def test_stochastic_depth():
    plain, fast = (nn.SequentialCell(DropPath(0.4)).set_train() for _ in range(2))
    use_kernels(fast)
    assert type(fast[0]) is not DropPath
    x = random_images((9, 7), channels=5)
    found = []
    for net in (plain, fast):
        seed_masks(net, seed=2)
        found.append([*results(net, x), *(net(x).asnumpy() for _ in range(4))])
        assert difference(net.set_train(False)(x), x) == 0.0
    for actual, expected in zip(*found):
        np.testing.assert_array_equal(actual, expected)
    kept = np.stack([y[:, 0, 0, 0] for y in found[0][2:]]) != 0.0
    assert 0 < kept.sum() < kept.size


@pytest.fixture
def mostly_by_operator(family):
    """Compiling would take most of the time; one of them is compiled."""
    ms.set_context(mode=ms.GRAPH_MODE if family == "visformer" else ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("family", SMALL)
def test_networks(family, mostly_by_operator):
    images, expected = random_images(), small_network(family)
    fast = use_kernels(small_network(family))
    assert [p.name for p in fast.get_parameters()] == [p.name for p in expected.get_parameters()]
    assert difference(fast(images), expected(images)) <= TOLERANCE
    assert difference(reparameterize(fast)(images), expected(images)) <= 1e-5
    assert difference(use_kernels(reparameterize(expected))(images), expected(images)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",  # of every kernel above; test_training_trajectory.py compares FastViT's with the reference
    ["visformer", *(pytest.param(family, marks=pytest.mark.exhaustive) for family in ("fastvit", "riformer"))],
)
def test_gradients_of_networks(family):
    images = random_images().asnumpy()
    labels = np.arange(len(images), dtype=np.int32) % NUM_CLASSES
    gradients = []
    for fast in (True, False):
        net = small_network(family)
        seed_masks(net, 0)
        net = use_kernels(net) if fast else net
        gradients.append(gradients_by_name(net, nn.CrossEntropyLoss(), images, labels, compiled=fast))
    fast, expected = gradients
    assert list(fast) == list(expected)
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name in expected:
        if np.abs(expected[name]).max() < 3e-6 * largest:
            # What a BatchNorm takes out again (a bias in front of it) has no gradient but rounding.
            assert np.abs(fast[name]).max() <= 1e-5 * largest, name
            continue
        error = np.abs(fast[name] - expected[name]).max()
        assert error <= 1e-4 * np.abs(expected[name]).max() + 1e-6 * largest, name
