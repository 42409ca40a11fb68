"""What is put around a network before it is exported, and that the exported file computes it."""

import functools
import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from networks import IMAGE_SIZE, NUM_CLASSES, SMALL, arrays, random_images, small_network
from test_export_onnx import only_fastvit

from mindcv_reparam import reparameterize
from mindcv_reparam.errors import UserError
from mindcv_reparam.export.graph import Interface, prepare
from mindcv_reparam.export.half import HalfConv2d, with_half_weights
from mindcv_reparam.export.mindir import write_mindir
from mindcv_reparam.export.stem import PixelStem, on_pixels, stem_of
from mindcv_reparam.private import mind_ir
from mindcv_reparam.run import compare
from mindcv_reparam.run.runners import cell_program, mindspore_program
from mindcv_reparam.tasks.classification.results import difference, softmax

PREPROCESSING = {"image_resize": IMAGE_SIZE, "mean": (123.675, 116.28, 103.53), "std": (58.4, 57.12, 57.375)}
KNOWN_TO_LITE = set(
    json.loads(Path(__file__).with_name("data").joinpath("mindspore-lite-primitives.json").read_text())["primitives"]
)
ANY_SIZE = ("fastvit", "riformer", "poolformer", "regnet")
FIXED_SIZE = ("visformer", "gfnet")


# Only what is exported is compiled: the networks that it is compared with run operator by operator.
pytestmark = pytest.mark.usefixtures("pynative")


def fused(family):
    """A fused network with logits of moderate size, so that probabilities tell differences."""
    net = reparameterize(small_network(family))
    scale = float(np.abs(net(random_images()).asnumpy()).max())
    for parameter in net.head.get_parameters():
        parameter.set_data(ms.Tensor(parameter.asnumpy() * 3 / scale))
    return reparameterize(net)  # a copy without a compiled graph


@pytest.fixture(scope="module", params=SMALL)
def net(request):
    return fused(request.param)


@pytest.fixture(scope="module")
def fastvit():
    return fused("fastvit")


def largest_difference(expected, actual, trials, kind="logits"):
    return compare.largest_difference(expected, actual, trials, functools.partial(difference, kind))


def primitives(path):
    """Names of the primitives in a MindIR file, without those that only hand values on or order the execution."""
    model = mind_ir().ModelProto()
    model.ParseFromString(path.read_bytes())
    return {one.op_type for one in model.primitives} - {"Load", "MakeTuple", "TupleGetItem", "UpdateState"}


def exported(deployment, folder):
    path = folder / "model.mindir"
    write_mindir(deployment.graph, path, deployment.input, tuple(output.name for output in deployment.outputs))
    return mindspore_program(path)


RGB = Interface("rgb", "logits", batch_sizes=(2,))
BGR = Interface("bgr", "topk", top_k=3, weights="fp16", batch_sizes=(1, 2))


@pytest.mark.parametrize(
    ("net", "interface"),
    [
        *(  # test_export_onnx.py exports riformer's graph, without what is around it
            pytest.param(family, RGB, id=f"{family}-rgb", marks=pytest.mark.exhaustive if family == "riformer" else ())
            for family in SMALL
        ),
        *(
            pytest.param(family, BGR, id=f"{family}-bgr-topk-fp16-batches", marks=marks)
            for family in SMALL
            for marks in [() if family == "fastvit" else (pytest.mark.exhaustive,)]  # the same Cells around all
        ),
    ],
    indirect=["net"],
)
def test_the_file_computes_what_the_network_does(net, interface, tmp_path):
    deployment = prepare(net, "full", interface, PREPROCESSING)
    program = exported(deployment, tmp_path)
    assert primitives(tmp_path / "model.mindir") <= KNOWN_TO_LITE
    assert largest_difference(deployment.expected, program, deployment.trials(), interface.output_kind) <= 2e-5
    for images in deployment.trials():
        assert deployment.input.accepts(images.shape)
        for spec, output in zip(deployment.outputs, program(images), strict=True):
            assert spec.accepts(output.shape)
            assert spec.dtype == output.dtype.name


def test_features_and_a_batch_of_any_size(fastvit, tmp_path):
    deployment = prepare(fastvit, "full", Interface("rgb", "features", batch_sizes=None), PREPROCESSING)
    assert [output.shape for output in deployment.outputs] == [
        (None, channels, IMAGE_SIZE[0] // stride, IMAGE_SIZE[1] // stride)
        for channels, stride in zip((8, 16, 32, 64), (4, 8, 16, 32))
    ]
    program = exported(deployment, tmp_path)
    assert [len(images) for images in deployment.trials()] == [1, 3]
    assert largest_difference(deployment.expected, program, deployment.trials(), "features") <= 2e-5


@pytest.mark.parametrize("family", only_fastvit(ANY_SIZE))
def test_an_image_size_that_varies(family, tmp_path):
    deployment = prepare(fused(family), "full", Interface(dynamic_image_size=True), PREPROCESSING)
    assert deployment.input.shape == (1, 3, None, None)
    assert [images.shape[2:] for images in deployment.trials()] == [(64, 96), (96, 160)]
    assert largest_difference(deployment.expected, exported(deployment, tmp_path), deployment.trials()) <= 2e-5
    # What these compute, sizes of maps, becomes a constant once a converter compiles a gear.
    assert primitives(tmp_path / "model.mindir") - KNOWN_TO_LITE <= {"ScalarMul", "ScalarFloorDiv"}


@pytest.mark.parametrize("family", FIXED_SIZE)
def test_networks_with_a_parameter_per_pixel_have_one_size(family):
    with pytest.raises(UserError, match=r"the image size of this model is fixed: \w*(pos_embed|complex_weight)"):
        prepare(fused(family), "full", Interface(dynamic_image_size=True), PREPROCESSING)


@pytest.mark.parametrize(
    ("state", "interface", "message"),
    [
        ("train", Interface("rgb"), "give --reparam full or branches"),
        ("full", Interface("bgr", dynamic_image_size=True), "input bgr fixes the image size"),
        ("full", Interface(batch_sizes=None, dynamic_image_size=True), "needs one batch size"),
        ("full", Interface(output_kind="topk", top_k=6), "top_k 6 is more than the model's 5 classes"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line(fastvit, state, interface, message):
    with pytest.raises(UserError, match=message):
        prepare(fastvit, state, interface, PREPROCESSING)


def test_the_mean_is_right_at_the_border(net):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, *IMAGE_SIZE)).astype(np.float32)
    mean, std = (np.array(PREPROCESSING[key])[:, None, None] for key in ("mean", "std"))
    normalized = ((pixels - mean) / std).astype(np.float32)
    expected = cell_program(net)(normalized)
    new = on_pixels(net, PREPROCESSING["mean"], PREPROCESSING["std"], IMAGE_SIZE)
    assert difference("logits", expected, cell_program(new.set_train(False))(pixels)) <= 2e-5

    # One bias per channel, as a fold without a border would have it, is wrong there wherever there is padding.
    (stem,) = (cell for _, cell in new.cells_and_names() if isinstance(cell, PixelStem))
    middle = stem.bias[:, :, 4:5, 4:5].asnumpy()
    constant = np.broadcast_to(middle, stem.bias.shape)
    if "gfnet" in type(net).__name__.lower():  # patches without padding have no border
        np.testing.assert_allclose(stem.bias.asnumpy(), constant, rtol=1e-5)
    else:
        new = on_pixels(net, PREPROCESSING["mean"], PREPROCESSING["std"], IMAGE_SIZE).set_train(False)
        (stem,) = (cell for _, cell in new.cells_and_names() if isinstance(cell, PixelStem))
        stem.bias.set_data(ms.Tensor(constant))
        assert difference("logits", expected, cell_program(new)(pixels)) > 1e-3


def test_the_network_itself_is_not_touched(fastvit):
    before = arrays(fastvit)
    prepare(fastvit, "full", Interface("bgr", "features", weights="fp16"), PREPROCESSING)
    after = arrays(fastvit)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])


def test_half_weights_are_half_and_rounded(fastvit):
    half = with_half_weights(fastvit)
    kinds = {name: parameter.dtype for name, parameter in half.parameters_and_names()}
    stem = f"{stem_of(fastvit)}.weight"
    assert kinds[stem] == ms.float32
    large = {name for name, value in arrays(fastvit).items() if value.ndim >= 2 and name.endswith("weight")} - {stem}
    assert {name for name, kind in kinds.items() if kind == ms.float16} == large
    images = np.asarray(random_images().asnumpy())
    moved = difference("logits", cell_program(fastvit)(images), cell_program(half.set_train(False))(images))
    assert 1e-5 < moved < 1e-2
    assert any(isinstance(cell, HalfConv2d) for _, cell in half.cells_and_names())


def test_the_file_names_its_input_and_outputs(fastvit, tmp_path):
    for interface, names in (
        (Interface(), ["logits"]),
        (Interface(output_kind="topk", top_k=2), ["probabilities", "classes"]),
        (Interface(output_kind="features"), ["stage1", "stage2", "stage3", "stage4"]),
    ):
        exported(prepare(fastvit, "full", interface, PREPROCESSING), tmp_path)
        model = mind_ir().ModelProto()
        model.ParseFromString((tmp_path / "model.mindir").read_bytes())
        assert [entry.name.split(":")[1] for entry in model.graph.input] == ["images"]
        given = {node.output[0].split(":")[1] for node in model.graph.node if ":" in node.output[0]}
        assert set(names) <= given


def test_a_planted_fault_is_seen(fastvit, tmp_path):
    deployment = prepare(fastvit, "full", Interface("rgb", "softmax"), PREPROCESSING)
    wrong = dict(PREPROCESSING, mean=(123.675, 116.28, 104.0))
    program = exported(prepare(fastvit, "full", Interface("rgb", "softmax"), wrong), tmp_path)
    assert largest_difference(deployment.expected, program, deployment.trials(), "softmax") > 2e-5


def test_ties_among_the_top_classes_are_no_difference():
    probabilities = np.array([[0.1, 0.3, 0.3, 0.2, 0.1]], np.float32)
    values = np.array([[0.3, 0.3, 0.2]], np.float32)
    spread = np.log(3)  # of the logits that give the probabilities
    for classes, expected in (([1, 2, 3], 0), ([2, 1, 3], 0), ([1, 0, 3], 2 / 3)):
        found = difference("topk", [probabilities], [values, np.array([classes], np.int32)])
        assert found == pytest.approx(expected / spread, abs=1e-6)
    assert difference("topk", [probabilities], [values * 2, np.array([[1, 2, 3]])]) == pytest.approx(1 / spread)


@pytest.mark.parametrize("size", [0.1, 5, 60])
def test_probabilities_are_held_to_what_their_logits_are(size):
    """A relative difference of the logits is found in the probabilities, not multiplied by the size of the logits."""
    rng = np.random.default_rng(0)
    logits = size * rng.uniform(-1, 1, (4, 10))
    moved = logits + 1e-4 * size * rng.uniform(-1, 1, logits.shape)
    found = difference("softmax", [softmax(logits)], [softmax(moved)])
    assert 1e-6 < found < 1e-4
    assert difference("softmax", [softmax(logits)], [softmax(logits)]) == 0


def test_a_network_without_finite_outputs_is_not_exported():
    net = fused("fastvit")
    net.head.bias.set_data(ms.Tensor(np.full(NUM_CLASSES, np.nan, np.float32)))
    with pytest.raises(UserError, match="outputs are not finite"):
        prepare(net, "full", Interface(), PREPROCESSING)


def test_a_nan_in_any_trial_is_the_largest_difference():
    trials = [np.ones((1, 2)), np.full((1, 2), np.nan), np.ones((1, 2))]
    assert np.isnan(largest_difference(lambda images: (np.ones((1, 2)),), lambda images: (images,), trials))


def test_a_difference_in_form_or_a_nan_is_one():
    ones = np.ones((2, NUM_CLASSES))
    assert difference("logits", [ones], [ones[:1]]) == float("inf")
    assert difference("logits", [ones], [ones, ones]) == float("inf")
    assert np.isnan(difference("features", [ones, ones], [ones, ones * np.nan]))


def test_reference_probabilities():
    logits = np.array([[0.0, np.log(2), 1000.0]])
    np.testing.assert_allclose(softmax(logits), [[0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(softmax(logits[:, :2]), [[1 / 3, 2 / 3]])
