"""ONNX files against the networks they are made of, run by onnxruntime; their operators; and what is refused."""

import json
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import Parameter, Tensor, nn, ops
from networks import IMAGE_SIZE, SMALL, cells, small_network

from mindcv_reparam import reparameterize
from mindcv_reparam.errors import UserError
from mindcv_reparam.export import onnx as export_onnx_module
from mindcv_reparam.export.onnx import OPSETS, export_onnx, translate
from mindcv_reparam.export.onnx.graph import Constant, Literal, Node, Pack, elements, producer
from mindcv_reparam.features import feature_network
from mindcv_reparam.layers import GroupNorm, gelu
from mindcv_reparam.operations import LayerNorm
from mindcv_reparam.tensors import TOLERANCE

ASCEND_OPERATORS = Path(__file__).parent / "data" / "cann-onnx-operators.json"
BOUNDARIES = (11, 13, 15, 18, 20, 21)  # opsets at which a rule changes; other tests are of 17
RESIZABLE = ("fastvit", "riformer", "poolformer", "regnet")


def only_fastvit(families) -> list[object]:
    """The fused networks of all are exported above; of another form of them, one is enough where others are."""
    return [one if one == "fastvit" else pytest.param(one, marks=pytest.mark.exhaustive) for one in families]


def network(family: str, state: str) -> nn.Cell:
    """A small random network whose activations keep their size, without which attention is a hard choice that rounding
    turns over."""
    net = small_network(family)
    for name, parameter in net.parameters_and_names():
        if name.endswith("moving_variance"):
            parameter.set_data(parameter * 50)
    return net if state == "train" else reparameterize(net, state)


def images(batch: int, size: tuple[int, int] = IMAGE_SIZE) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, *size), np.float32)


def export(net: nn.Cell, folder: Path, shape: tuple[int | None, ...], dtype=ms.float32) -> Path:
    path = folder / "net.mindir"
    ms.export(net, Tensor(shape=list(shape), dtype=dtype), file_name=str(path), file_format="MINDIR")
    return path


def run(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a model that ONNX's checker accepts, with the types and shapes that it declares."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {entry.name: x for entry, x in zip(session.get_inputs(), inputs)})


def relative_difference(model: onnx.ModelProto, net: nn.Cell, x: np.ndarray) -> float:
    """max|Δ| / max|expected|, over all outputs."""
    expected = net(Tensor(x))
    expected = [y.asnumpy() for y in (expected if isinstance(expected, tuple) else (expected,))]
    actual = run(model, x)
    assert [(y.shape, y.dtype) for y in actual] == [(y.shape, y.dtype) for y in expected]
    return max(float(np.abs(a - e).max() / np.abs(e).max()) for a, e in zip(actual, expected))


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators after onnxruntime's own fusions."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return counts(onnx.load(folder / "optimised.onnx"))


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def dims(entry: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]


# A graph is compiled for every export already.
pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """By family, once asked for: the fully fused network and its MindIR with a dynamic batch."""

    class Exported(dict):
        def __missing__(self, family: str) -> tuple[nn.Cell, Path]:
            net = network(family, "full")
            self[family] = net, export(net, tmp_path_factory.mktemp(family), (None, 3, *IMAGE_SIZE))
            return self[family]

    return Exported()


# -- Networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SMALL)
def test_a_fused_network_computes_the_same(fused, family):
    net, mindir = fused[family]
    model = translate(mindir)
    assert [relative_difference(model, net, images(batch)) <= TOLERANCE for batch in (1, 3)] == [True, True]
    assert [dims(model.graph.input[0]), dims(model.graph.output[0])] == [["batch", 3, *IMAGE_SIZE], ["batch", 5]]
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("x", "output")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "state"),
    [
        *(("fastvit", "train"), ("fastvit", "branches")),
        *(pytest.param(family, "train", marks=pytest.mark.exhaustive) for family in SMALL if family != "fastvit"),
        pytest.param("riformer", "branches", marks=pytest.mark.exhaustive),
    ],
)
def test_a_network_that_is_not_fused_computes_the_same(family, state, tmp_path):
    net = network(family, state)
    model = translate(export(net, tmp_path, (2, 3, *IMAGE_SIZE)))
    assert relative_difference(model, net, images(2)) <= TOLERANCE
    assert dims(model.graph.input[0]) == [2, 3, *IMAGE_SIZE]
    assert counts(model)["BatchNormalization"] == len(cells(net, nn.BatchNorm2d))


@pytest.mark.slow
@pytest.mark.parametrize("family", only_fastvit(SMALL))
def test_a_backbone_gives_all_its_maps(family, tmp_path):
    net = feature_network(network(family, "full"), norm_outputs=True).set_train(False)
    model = translate(export(net, tmp_path, (None, 3, *IMAGE_SIZE)))
    assert relative_difference(model, net, images(2)) <= TOLERANCE
    channels = [info["channels"] for info in net.feature_info]
    assert [dims(output)[:2] for output in model.graph.output] == [["batch", channel] for channel in channels]
    assert [output.name for output in model.graph.output] == [f"output_{i}" for i in range(len(channels))]


@pytest.mark.slow
@pytest.mark.parametrize("family", only_fastvit(RESIZABLE))
def test_height_and_width_may_be_dynamic(family, tmp_path):
    net = network(family, "full")
    model = translate(export(net, tmp_path, (1, 3, None, None)))
    assert dims(model.graph.input[0]) == [1, 3, "height", "width"]
    for size in (IMAGE_SIZE, (96, 32)):
        assert relative_difference(model, net, images(1, size)) <= TOLERANCE
    found = counts(model)
    norms, attentions = len(cells(net, GroupNorm)), 1 if family == "fastvit" else 0
    assert found["InstanceNormalization"] == norms
    # A normalisation takes the shape of its input; of an attention, only the result needs height and width.
    assert found["Shape"] == norms + 2 * attentions - (1 if family == "poolformer" else 0)


@pytest.mark.parametrize("family", SMALL)
def test_parameters_keep_names_and_values(fused, family):
    net, mindir = fused[family]
    found = initializers(translate(mindir))
    for name, parameter in net.parameters_and_names():
        if "complex_weight" in name:  # split into real and imaginary part
            parts = np.stack([found[name], found[f"{name}_1"]], axis=-1)
            np.testing.assert_array_equal(parts.ravel(), parameter.asnumpy().ravel())
        elif family == "gfnet" and name.endswith(("fc1.weight", "fc2.weight")):  # operands of a plain MatMul
            np.testing.assert_array_equal(found[name], parameter.asnumpy().T)
        elif "downsample.spatial" in name:  # a convolution for the first output of each channel, one for the second
            np.testing.assert_array_equal(found[name], parameter.asnumpy()[::2])
            np.testing.assert_array_equal(found[f"{name}_1"], parameter.asnumpy()[1::2])
        elif "downsample.pointwise" in name and name.endswith("weight"):  # on their outputs in that order
            even, odd = (parameter.asnumpy()[:, first::2] for first in (0, 1))
            np.testing.assert_array_equal(found[name], np.concatenate([even, odd], axis=1))
        else:
            np.testing.assert_array_equal(found[name].ravel(), parameter.asnumpy().ravel())


# What the arithmetic of the small fused networks needs. Conv, Gemm: the layers. An exact GELU is Div, Erf, Add and two
# Mul, an approximate one Pow, Tanh, two Add and four Mul. Every block has two residual sums, GFNet's one.
NEEDED = {
    # stem, 4 patch embeddings, 2 × 3 in mlps with a 3×3, 2 × 4 with attention; 4 sums of position, 6 residual sums;
    # 6 approximate GELUs; qᵀk and v·attnᵀ on transposed operands
    "visformer": dict(Conv=19, Gemm=1, Add=4 + 6 + 2 * 6, Mul=4 * 6, MatMul=4, Transpose=4, Reshape=4, Tanh=6, Pow=6),
    # stem 3, RepMixer 3 × 4, downsampling 3 × 3, position 1, attention 5, final 1 + 2 of the gates; 5 residual sums, of
    # RepMixer blocks one; 11 GELUs; one product with the gates
    "fastvit": dict(
        Conv=33, Gemm=1, Add=5 + 11, Mul=2 * 11 + 1, MatMul=2, Transpose=2, Reshape=2, Erf=11, Div=11, Concat=3
    ),
    # 4 patch embeddings, 4 × 2 in mlps; scale and shift of the token mixers, neither for the other norms
    "riformer": dict(Conv=12, Gemm=1, Add=8 + 4 + 4, Mul=4 + 2 * 4, Reshape=18, InstanceNormalization=9, Erf=4),
    # the scale of the token mixers alone; the pooled map minus the map
    "poolformer": dict(Conv=12, Gemm=1, Add=8 + 4, Mul=4 + 2 * 4, Sub=4, AveragePool=4, InstanceNormalization=9, Erf=4),
    # complex products of 4 Mul, Add and Sub; 4 products with Fourier matrices and 2 dense layers with bias per block
    "gfnet": dict(Conv=4, Gemm=1, Add=1 + 4 * (1 + 1 + 2 + 1), Mul=4 * (4 + 2), Sub=4, MatMul=4 * 6, Erf=4, Div=4),
    # 5 blocks of 3, with gates of 2, shortcuts at 4 and the stem
    "regnet": dict(Conv=15 + 10 + 4 + 1, Gemm=1, Add=5, Mul=5, Relu=21, Sigmoid=5),
}


@pytest.mark.parametrize("family", SMALL)
def test_a_fused_network_has_no_more_operators_than_its_arithmetic_needs(fused, family):
    net, mindir = fused[family]
    model = translate(mindir)
    found = counts(model)
    assert {op: found[op] for op in NEEDED[family]} == NEEDED[family]
    if family != "gfnet":  # whose Fourier transforms are convolutions to MindSpore
        assert found["Conv"] - found["Concat"] == len(cells(net, nn.Conv2d))  # FastViT's downsampling has one more each
    assert not {"BatchNormalization", "Dropout", "Identity", "Cast", "Constant", "Shape"} & set(found)


@pytest.mark.parametrize("family", SMALL)
def test_no_node_is_dead_and_no_initializer_unused(fused, family):
    graph = translate(fused[family][1]).graph
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    assert {name for node in graph.node for name in node.output} <= used
    assert {tensor.name for tensor in graph.initializer} <= used


@pytest.mark.parametrize("family", SMALL)
def test_ascends_compiler_knows_every_operator(fused, family):
    """The default opset is that of ONNX 1.12, which the list is for."""
    known = json.loads(ASCEND_OPERATORS.read_text())["operators"]
    assert set(counts(translate(fused[family][1]))) <= set(known)


def test_two_exports_of_a_network_give_the_same_bytes(fused, tmp_path):
    net, mindir = fused["fastvit"]
    again = translate(export(net, tmp_path, (None, 3, *IMAGE_SIZE)))
    assert again.SerializeToString(deterministic=True) == translate(mindir).SerializeToString(deterministic=True)


def test_a_perturbed_weight_is_noticed(fused):
    """So that the comparisons above compare something."""
    net, mindir = fused["riformer"]
    model = translate(mindir)
    tensor = next(t for t in model.graph.initializer if t.name == "stages.2.blocks.0.mlp.fc1.weight")
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight[0] *= 1.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    assert relative_difference(model, net, images(1)) > TOLERANCE


# -- Opsets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["visformer", "fastvit", "riformer", "gfnet"])
def test_every_opset_computes_the_same(fused, family):
    """As opset 17, which is compared with the network."""
    mindir, x = fused[family][1], images(2)
    (expected,) = run(translate(mindir, opset=17), x)
    for opset in BOUNDARIES:
        model = translate(mindir, opset=opset)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
        (actual,) = run(model, x)
        assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max(), opset


def test_opsets_bring_their_operators(fused):
    def with_opset(family: str, opset: int) -> Counter[str]:
        return counts(translate(fused[family][1], opset=opset))

    assert (with_opset("fastvit", 19)["Gelu"], with_opset("fastvit", 20)["Gelu"]) == (0, 11)
    assert (with_opset("visformer", 19)["Gelu"], with_opset("visformer", 20)["Gelu"]) == (0, 6)
    assert (with_opset("gfnet", 16)["LayerNormalization"], with_opset("gfnet", 17)["LayerNormalization"]) == (0, 9)
    assert (with_opset("riformer", 20)["GroupNormalization"], with_opset("riformer", 21)["GroupNormalization"]) == (
        0,
        9,
    )
    assert with_opset("riformer", 21)["Reshape"] == 0


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[-1] + 1])
def test_another_opset_is_refused(fused, opset):
    with pytest.raises(UserError, match=f"opset {opset} is not supported: choose 11 to 21"):
        translate(fused["fastvit"][1], opset=opset)


@pytest.mark.parametrize(("family", "operator", "count"), [("fastvit", "Gelu", 11), ("visformer", "FastGelu", 6)])
def test_onnxruntime_takes_gelu_and_attention_together(fused, tmp_path, family, operator, count):
    found = optimised(translate(fused[family][1]), tmp_path)
    assert (found[operator], found["Erf"], found["Tanh"]) == (count, 0, 0)
    attentions = {"fastvit": 1, "visformer": 2}[family]
    assert (found["FusedMatMul"], found["Transpose"]) == (2 * attentions, 0)


# -- Around a network -------------------------------------------------------------------------------------------------


class OnPixels(nn.Cell):
    """uint8 (N, H, W, 3) → the three largest probabilities, and everything else once more."""

    def __init__(self, net: nn.Cell):
        super().__init__(auto_prefix=False)
        self.net = net
        self.shift = Parameter(Tensor(np.full((3, 1, 1), -128.0), ms.float32), name="shift")
        self.softmax = ops.Softmax(axis=-1)
        self.top = ops.TopK(sorted=True)

    def construct(self, pixels):
        logits = self.net((ops.cast(pixels, ms.float32).transpose((0, 3, 1, 2)) + self.shift) * 0.01)
        best, classes = self.top(self.softmax(logits * 0.1), 3)
        return best, classes, logits, logits


def test_pixels_in_and_probabilities_out(fused, tmp_path):
    net = OnPixels(fused["fastvit"][0]).set_train(False)
    model = translate(export(net, tmp_path, (None, *IMAGE_SIZE, 3), ms.uint8))
    pixels = np.random.default_rng(0).integers(0, 256, (2, *IMAGE_SIZE, 3), np.uint8)
    best, classes, logits, again = (output.asnumpy() for output in net(Tensor(pixels)))
    found = run(model, pixels)
    assert len(np.unique(classes)) > 1
    np.testing.assert_allclose(found[0], best, rtol=1e-4)
    np.testing.assert_array_equal(found[1], classes)
    assert found[1].dtype == np.int32
    for actual, expected in zip(found[2:], (logits, again)):
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE * np.abs(logits).max())
    assert [dims(output) for output in model.graph.output] == [["batch", 3], ["batch", 3], ["batch", 5], ["batch", 5]]
    assert counts(model)["Identity"] == 1  # the same tensor under a second name


class HalfWeights(nn.Cell):
    """A convolution, a norm, a dense layer of four axes and one of two, with weights in float16."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)

        def half(*shape: int) -> Tensor:
            return Tensor(rng.standard_normal(shape) / 4, ms.float16)

        self.weight = Parameter(half(8, 3, 3, 3), name="weight")
        self.scale = Parameter(half(8), name="scale")
        self.dense = Parameter(half(6, 8), name="dense")
        self.head = Parameter(half(5, 6), name="head")
        self.bias = Parameter(half(6), name="bias")
        self.matmul = ops.MatMul(transpose_b=True)
        self.bias_add = ops.BiasAdd()

    def construct(self, x):
        x = ops.conv2d(x, ops.cast(self.weight, ms.float32), pad_mode="pad", padding=1)
        x = x * ops.cast(self.scale, ms.float32).reshape((-1, 1, 1))
        x = x.transpose((0, 2, 3, 1)).reshape((-1, 8))
        x = self.bias_add(self.matmul(x, ops.cast(self.dense, ms.float32)), ops.cast(self.bias, ms.float32))
        x = x.reshape((-1, 16, 16, 6)).mean((1, 2))
        return self.matmul(x, ops.cast(self.head, ms.float32))


def test_weights_stay_in_float16_until_they_are_used(tmp_path):
    net = HalfWeights().set_train(False)
    model = translate(export(net, tmp_path, (None, 3, 16, 16)))
    assert relative_difference(model, net, images(2, (16, 16))) <= TOLERANCE
    found = initializers(model)
    assert {found[name].dtype for name in ("weight", "scale", "dense", "head", "bias")} == {np.dtype(np.float16)}
    casts = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    assert casts == {"weight", "scale", "dense", "head", "bias"}
    assert (counts(model)["MatMul"], counts(model)["Gemm"], counts(model)["Reshape"]) == (2, 0, 0)


# -- Operators --------------------------------------------------------------------------------------------------------


class Windows(nn.Cell):
    """Convolutions and poolings with every padding, on odd sizes, where "same" is asymmetric."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)

        def conv(pad_mode: str, **options) -> nn.Conv2d:
            weight = Tensor(rng.standard_normal((6, 3 // options.get("group", 1), 4, 3)), ms.float32)
            return nn.Conv2d(3, 6, (4, 3), pad_mode=pad_mode, weight_init=weight, has_bias=False, **options)

        self.layers = nn.CellList(
            [
                conv("same", stride=2),
                conv("same", dilation=2),
                conv("valid", stride=(2, 3), group=3),
                conv("pad", padding=(0, 1, 2, 3)),
                nn.AvgPool2d(kernel_size=4, stride=2, pad_mode="same", padding=0, ceil_mode=False),
                nn.AvgPool2d(kernel_size=3, stride=1, pad_mode="same", padding=0, ceil_mode=False),
                nn.AvgPool2d(kernel_size=3, stride=2, pad_mode="valid", padding=0, ceil_mode=False),
            ]
        )

    def construct(self, x):
        outputs = ()
        for layer in self.layers:
            outputs = outputs + (layer(x),)
        return outputs


def test_every_padding_is_exact(tmp_path):
    net = Windows().set_train(False)
    model = translate(export(net, tmp_path, (None, 3, 15, 22)))
    assert relative_difference(model, net, images(2, (15, 22))) <= TOLERANCE


class Multiplied(nn.Cell):
    """Depthwise convolutions with three outputs per channel: before a dense convolution, and before a grouped one."""

    def __init__(self, groups: int):
        super().__init__()
        rng = np.random.default_rng(0)

        def conv(inputs: int, outputs: int, group: int, kernel: int) -> nn.Conv2d:
            weight = Tensor(rng.standard_normal((outputs, inputs // group, kernel, kernel)), ms.float32)
            bias = Tensor(rng.standard_normal(outputs), ms.float32)
            options = dict(pad_mode="pad", padding=kernel // 2, has_bias=True, weight_init=weight, bias_init=bias)
            return nn.Conv2d(inputs, outputs, kernel, stride=1, group=group, **options)

        self.depthwise = conv(8, 24, 8, 3)
        self.next = conv(24, 16, groups, 5)

    def construct(self, x):
        return self.next(self.depthwise(x))


@pytest.mark.parametrize(("groups", "operators"), [(1, {"Conv": 3 + 1, "Concat": 1}), (2, {"Conv": 1 + 1})])
def test_a_depthwise_convolution_has_one_output_per_channel(tmp_path, groups, operators):
    net = Multiplied(groups).set_train(False)
    model = translate(export(net, tmp_path, (1, 8, None, None)))
    x = np.random.default_rng(0).standard_normal((1, 8, 6, 7), np.float32)
    assert relative_difference(model, net, x) <= TOLERANCE
    assert counts(model) == operators


class LookAlikes(nn.Cell):
    """What resembles a GELU or a normalisation with one group, and is none."""

    def __init__(self):
        super().__init__()
        self.scale = Parameter(Tensor(np.linspace(1.0, 2.0, 8), ms.float32), name="scale")

    def construct(self, x):
        halves = x.reshape((-1, 512))  # two a sample
        centred = halves - halves.mean(1, keep_dims=True)
        by_halves = centred * ops.rsqrt(ops.square(centred).mean(1, keep_dims=True) + 1e-5)
        flat = x.reshape((-1, 1024))
        centred = flat - flat.mean(1, keep_dims=True)
        factor = ops.rsqrt(ops.square(centred).mean(1, keep_dims=True) + 1e-5)
        by_rows = centred.reshape((-1, 8, 8, 16)) * (factor * self.scale).reshape((-1, 1, 8, 1))
        elsewhere = centred * ops.rsqrt(ops.square(flat).mean(1, keep_dims=True) + 1e-5)
        return (
            by_halves.reshape((-1, 8, 8, 16)),
            by_rows,
            elsewhere.reshape((-1, 8, 8, 16)),
            x * (ops.erf(x / 1.5) + 1.0) * 0.5,
            x * (ops.erf(x / 1.4142135) + 0.9) * 0.5,
            x * (ops.erf(self.scale.reshape((-1, 1, 1)) / 1.4142135) + 1.0) * 0.5,
        )


def test_look_alikes_are_translated_as_they_are(tmp_path):
    net = LookAlikes().set_train(False)
    path = export(net, tmp_path, (None, 8, 8, 16))
    x = 1.0 + np.random.default_rng(0).standard_normal((2, 8, 8, 16)).astype(np.float32)
    assert relative_difference(translate(path), net, x) <= TOLERANCE
    found = counts(translate(path, opset=21))
    assert not {"Gelu", "GroupNormalization", "InstanceNormalization"} & set(found)
    assert found["Erf"] == 3


class Normalised(nn.Cell):
    """Both kinds of GELU, and group and layer normalisation with all their options, each used twice."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        options = ((True, True), (True, False), (False, True), (False, False))
        self.norms = nn.CellList([GroupNorm(8, 1e-3, scale, shift) for scale, shift in options])
        for norm in self.norms:
            for parameter in norm.get_parameters():
                parameter.set_data(Tensor(rng.uniform(0.5, 2.0, 8), ms.float32))
        self.layer_norm = LayerNorm(8, 1e-6)
        self.layer_norm.gamma.set_data(Tensor(rng.uniform(0.5, 2.0, 8), ms.float32))
        self.layer_norm.beta.set_data(Tensor(rng.uniform(0.5, 2.0, 8), ms.float32))
        self.gelus = nn.CellList([gelu("exact"), gelu("tanh")])

    def construct(self, x):
        outputs = (self.layer_norm(x.transpose((0, 2, 3, 1))),)
        for norm in self.norms:
            outputs = outputs + (norm(x), norm(x * 2.0))
        for activation in self.gelus:
            outputs = outputs + (activation(x), activation(x * 3.0))
        return outputs


@pytest.mark.parametrize(
    ("opset", "shape"),
    [(11, (2, 8, None, None)), (17, (None, 8, 6, 4)), (17, (2, 8, None, None)), (21, (None, 8, 6, 4))],
)
def test_normalisations_and_gelus_are_recognised(tmp_path, opset, shape):
    net = Normalised().set_train(False)
    model = translate(export(net, tmp_path, shape), opset=opset)
    x = 2.0 + np.random.default_rng(0).standard_normal((2, 8, 6, 4)).astype(np.float32)
    assert relative_difference(model, net, x) <= TOLERANCE
    found = counts(model)
    assert found["GroupNormalization" if opset >= 21 else "InstanceNormalization"] == 8
    assert (found["Gelu"], found["Erf"], found["Tanh"]) == ((4, 0, 0) if opset >= 21 else (0, 2, 2))


class Unknown(nn.Cell):
    def construct(self, x):
        return ops.sin(x)


def test_a_primitive_without_a_rule_is_named(tmp_path):
    path = export(Unknown(), tmp_path, (1, 3, 4, 4))
    with pytest.raises(UserError, match=r"Sin \(in the network\) has no rule for ONNX"):
        translate(path)


@pytest.mark.parametrize(
    ("ask", "found"),
    [
        (lambda: Literal(2).type, "a literal in the place of a tensor"),
        (lambda: Pack(()).type, "a pack in the place of a tensor"),
        (lambda: elements(Node("Add", [], ())), "an argument that Add computes"),
        (lambda: producer(Constant(np.zeros(2))), "an output of a constant"),
    ],
)
def test_a_value_of_another_kind_is_named(ask, found):
    with pytest.raises(UserError, match=f"^{found} cannot be translated into ONNX$"):
        ask()


# -- Files ------------------------------------------------------------------------------------------------------------


def test_the_file_holds_what_was_translated(fused, tmp_path):
    mindir = fused["fastvit"][1]
    path = tmp_path / "folder" / "net.onnx"
    export_onnx(mindir, path, opset=18)
    model = onnx.load(path)
    assert model == translate(mindir, opset=18)
    assert [entry.name for entry in path.parent.iterdir()] == ["net.onnx"]


def test_a_model_that_the_checker_refuses_is_not_written(fused, tmp_path, monkeypatch):
    monkeypatch.setitem(export_onnx_module.RULES, "ReLU", lambda writer, node: writer.add("Relu", node.inputs, slope=1))
    with pytest.raises(onnx.checker.ValidationError, match="slope"):
        export_onnx(fused["regnet"][1], tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"no protobuf", b""])
def test_a_file_that_is_no_mindir_is_named(tmp_path, content):
    path = tmp_path / "net.mindir"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"net\.mindir cannot be read as MindIR"):
        translate(path)
