"""Backbones for dense prediction: which maps, under which names, frozen, normalised or fused, and the references'."""

import mindspore as ms
import numpy as np
import pytest
from goldens import Golden
from mindspore import Tensor, nn
from networks import IMAGE_SIZE, NUM_CLASSES, SMALL, arrays, cells, difference, random_images, randomise, small_network

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.checkpoint import load_arrays
from mindcv_reparam.convert import convert
from mindcv_reparam.errors import UserError
from mindcv_reparam.features import feature_network
from mindcv_reparam.reparam import LEVELS

INTERLEAVED = ["riformer", "poolformer"]


def small_backbone(family: str, **options) -> nn.Cell:
    """A small backbone with random weights, in evaluation mode."""
    name, hyper_parameters = SMALL[family]
    net = create_model(name, img_size=IMAGE_SIZE, features_only=True, **options, **hyper_parameters)
    return randomise(net).set_train(False)


pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module", params=SMALL)
def classifier(request):
    return small_network(request.param)


@pytest.fixture(scope="module")
def backbone(classifier):
    return feature_network(classifier)


@pytest.fixture(scope="module")
def maps(backbone):
    return backbone(random_images())


def test_maps_have_the_channels_and_strides_that_are_told(backbone, maps):
    assert [info["stride"] for info in backbone.feature_info] == [4, 8, 16, 32]
    height, width = IMAGE_SIZE
    told = [(2, i["channels"], height // i["stride"], width // i["stride"]) for i in backbone.feature_info]
    assert [feature.shape for feature in maps] == told


@pytest.mark.parametrize(
    "classifier",
    [pytest.param(family, marks=pytest.mark.exhaustive if family == "riformer" else ()) for family in SMALL],
    indirect=True,
)
def test_a_backbone_compiles(graph_mode, classifier, maps):
    net = feature_network(classifier)
    for feature, expected in zip(net(random_images()), maps, strict=True):
        assert difference(feature, expected) <= 1e-5


def test_parameters_are_the_classifiers_without_the_head(classifier, backbone):
    ours, theirs = arrays(backbone), arrays(classifier)
    assert [parameter.name for parameter in backbone.get_parameters()] == list(ours)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    missing = {name.split(".")[0] for name in theirs.keys() - ours.keys()}
    assert missing == {part for part in classifier.head_parts if any(name.startswith(f"{part}.") for name in theirs)}
    assert "head" in missing


def test_the_classifier_stays_as_it_is(classifier, backbone, maps):
    name = next(iter(arrays(classifier)))
    before = classifier.parameters_dict()[name].asnumpy().copy()
    backbone.parameters_dict()[name].set_data(ms.ops.zeros_like(backbone.parameters_dict()[name]))
    try:
        assert np.array_equal(classifier.parameters_dict()[name].asnumpy(), before)
        assert classifier(random_images()).shape == (2, 5)
        assert difference(backbone(random_images())[0], maps[0]) > 1e-3
    finally:
        backbone.parameters_dict()[name].set_data(Tensor(before))


@pytest.mark.parametrize("level", LEVELS)
def test_a_backbone_fuses_and_a_fused_network_becomes_a_backbone(classifier, backbone, maps, level):
    fused = reparameterize(backbone, level)
    for feature, expected in zip(fused(random_images()), maps):
        assert difference(feature, expected) <= 1e-5
    if level == "full":
        assert not cells(fused, nn.BatchNorm2d, nn.Dropout)
    for other in (feature_network(reparameterize(classifier, level)), reparameterize(fused, level)):
        theirs, ours = arrays(other), arrays(fused)
        assert list(theirs) == list(ours)
        assert all(np.array_equal(theirs[name], ours[name]) for name in ours)


def test_indices_may_be_negative_in_any_order_and_are_not_changed(classifier, maps):
    indices = [-1, 0, -2]
    net = feature_network(classifier, out_indices=indices)
    assert indices == [-1, 0, -2]
    for feature, i in zip(net(random_images()), (3, 0, 2), strict=True):
        assert np.array_equal(feature.asnumpy(), maps[i].asnumpy())
    assert [info["stride"] for info in net.feature_info] == [32, 4, 16]
    assert feature_network(classifier, out_indices=-1).out_indices == (3,)


def test_visformers_without_a_first_stage_begin_at_stride_8():
    net = create_model("visformer_tiny", img_size=64, features_only=True)
    expected = [{"channels": 96, "stride": 8}, {"channels": 192, "stride": 16}, {"channels": 384, "stride": 32}]
    assert net.feature_info == expected


@pytest.mark.parametrize("family", ["fastvit", "riformer"])
def test_outputs_can_be_normalised(family):
    net, plain = small_backbone(family, out_indices=(1, 3), norm_outputs=True), small_backbone(family)
    names = {name.rsplit(".", 1)[0] for name in arrays(net) if name.startswith("norms.")}
    assert names == {"norms.1", "norms.3"}
    load_arrays(plain, {name: value for name, value in arrays(net).items() if not name.startswith("norms.")}, "")
    normed, maps = net(random_images()), plain(random_images())
    for output, i in zip(normed, (1, 3), strict=True):
        assert difference(output, net.norms[i](maps[i])) <= 1e-6
        assert difference(output, maps[i]) > 0.1
    for output, expected in zip(reparameterize(net)(random_images()), normed):
        assert difference(output, expected) <= 1e-5


def trained_parts(family: str) -> tuple[str, ...]:
    """What is left to train of a small backbone with two frozen stages."""
    stages = ("patch_embed2", "pos_embed2", "stage2", "patch_embed3", "pos_embed3", "stage3")
    return ("norms.", *(stages if family == "visformer" else ("stages.2", "stages.3")))


@pytest.mark.parametrize("family", ["visformer", "fastvit", "riformer"])
def test_frozen_stages_get_no_gradient(family):
    net = small_backbone(family, frozen_stages=2, norm_outputs=True, drop_path_rate=0.0).set_train(True)

    def loss(images):
        total = 0.0
        for feature in net(images):
            total = total + (feature * feature * feature).mean()
        return total

    trainable = net.trainable_params()
    _, gradients = ms.value_and_grad(loss, None, trainable)(random_images())
    names = {name for name in arrays(net) if name.startswith(trained_parts(family))}
    assert {parameter.name for parameter in trainable} == {name for name in names if "moving" not in name}
    assert all(np.abs(gradient.asnumpy()).max() > 0 for gradient in gradients)


@pytest.mark.parametrize("family", ["visformer", "fastvit", "riformer"])
def test_frozen_stages_stay_in_evaluation_mode(family):
    check_frozen_stages_stay_in_evaluation_mode(family)


@pytest.mark.slow
def test_frozen_stages_stay_in_evaluation_mode_when_compiled(graph_mode):
    check_frozen_stages_stay_in_evaluation_mode("visformer")


def check_frozen_stages_stay_in_evaluation_mode(family: str) -> None:
    """Neither dropout nor batch statistics in what is frozen, both behind it."""
    net = small_backbone(family, frozen_stages=2, out_indices=(1, 3), drop_path_rate=0.5, drop_rate=0.5)
    expected, before = net(random_images()), arrays(net)
    maps = net.set_train(True)(random_images())
    assert difference(maps[0], expected[0]) <= 1e-6
    assert difference(maps[1], expected[1]) > 1e-2
    after = arrays(net)
    moved = {name for name in after if not np.array_equal(after[name], before[name])}
    assert moved == {name for name in before if "moving" in name and name.startswith(trained_parts(family))}


def test_frozen_zero_is_the_stem_and_minus_one_nothing():
    stem = {p.name for p in small_backbone("fastvit", frozen_stages=0).get_parameters() if not p.requires_grad}
    nothing = {p.name for p in small_backbone("fastvit").get_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in stem - nothing} == {"stem"}
    assert all(name.endswith(("moving_mean", "moving_variance")) for name in nothing)


@pytest.mark.parametrize("family", INTERLEAVED)
def test_outputs_can_be_numbered_as_in_mmpretrain(family):
    net, stages = small_backbone(family, index_mode="mmpretrain"), small_backbone(family)
    outputs, maps = net(random_images()), stages(random_images())
    strides = [4, 8, 8, 16, 16, 32, 32]
    assert [info["stride"] for info in net.feature_info] == strides
    assert [output.shape[3] for output in outputs] == [IMAGE_SIZE[1] // stride for stride in strides]
    for i, expected in enumerate(maps):
        assert difference(outputs[2 * i], expected) <= 1e-6
    for i in (1, 2, 3):
        assert difference(outputs[2 * i - 1], stages.stages[i].patch_embed(maps[i - 1])) <= 1e-6
    chosen = small_backbone(family, index_mode="mmpretrain", out_indices=(0, 2, -1), norm_outputs=True)
    assert {name.rsplit(".", 1)[0] for name in arrays(chosen) if name.startswith("norms")} == {
        "norms.0",
        "norms.2",
        "norms.6",
    }


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("riformer", {"out_indices": (0, 4)}, r"out_indices \[0, 4\]: the network has outputs 0 to 3"),
        ("riformer", {"out_indices": (-8,), "index_mode": "mmpretrain"}, "has outputs 0 to 6"),
        ("riformer", {"out_indices": ()}, "has outputs 0 to 3"),
        ("fastvit", {"frozen_stages": 5}, "frozen_stages 5 is out of range: the network has 4 stages"),
        ("fastvit", {"index_mode": "mmpretrain"}, "index_mode 'mmpretrain': fastvit_sa12 has stages"),
        ("fastvit", {"features_only": False, "out_indices": (1,)}, "give features_only=True"),
    ],
)
def test_what_does_not_fit_is_an_error(family, options, message):
    name, hyper_parameters = SMALL[family]
    with pytest.raises(UserError, match=message):
        create_model(name, img_size=IMAGE_SIZE, **{"features_only": True, **options}, **hyper_parameters)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",  # those of every family are compared in test_goldens.py
    [
        "timm-fastvit_sa12",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("mmpretrain-riformer_s12", "official-gfnet_h_ti")
        ),
    ],
)
def test_maps_are_those_of_the_reference(name):
    """Of the reference's stages, the last one of attention included, before any output norm."""
    golden = Golden(name)
    conversion = convert(golden.state)
    net = create_model(conversion.model, **conversion.hparams).set_train(False)
    load_arrays(net, conversion.parameters, name)
    maps = feature_network(net)(Tensor(golden.images))
    for i, feature in enumerate(maps):
        assert feature.shape == tuple(golden.results[f"feature{i}_shape"])
        assert difference(feature.mean((2, 3)), golden.results[f"feature{i}_mean"]) <= 1e-5
        assert difference(feature[:, :4, :4, :4], golden.results[f"feature{i}_corner"]) <= 1e-5
    assert len(maps) == 4


@pytest.mark.parametrize("family", list(SMALL))
def test_no_classes_give_what_the_classifier_sees(family):
    name, hyper_parameters = SMALL[family]
    options = dict(img_size=IMAGE_SIZE, **hyper_parameters)
    net = randomise(create_model(name, num_classes=NUM_CLASSES, **options)).set_train(False)
    pooled = create_model(name, num_classes=0, **options).set_train(False)
    names = {parameter.name for parameter in net.get_parameters()}
    assert names - {parameter.name for parameter in pooled.get_parameters()} == {"head.weight", "head.bias"}
    kept = {name: value for name, value in arrays(net).items() if not name.startswith("head.")}
    load_arrays(pooled, kept, "file")
    images = random_images()
    features = pooled(images)
    assert features.shape == (2, net.head.in_channels)
    assert difference(net.head(features), net(images)) < 1e-6
    assert difference(reparameterize(pooled)(images), features) < 2e-5
