"""RT-DETR's parts against what the reference implementation computed from the same weights and inputs."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from networks import arrays, difference
from recipe_rtdetr import Fixture, cotangent, feature_input

from mindcv_reparam.cpu import use_kernels
from mindcv_reparam.models.rtdetr import encoder as encoder_module
from mindcv_reparam.models.rtdetr.decoder import BORDER, Moved, RTDETRTransformer, anchors_of
from mindcv_reparam.models.rtdetr.deformable import DeformableAttention, GatherSampling, GridSampling
from mindcv_reparam.models.rtdetr.encoder import HybridEncoder, TransformerEncoder, position_table
from mindcv_reparam.reparam import reparameterize

R18_CHANNELS = (128, 256, 512)
_NORM_LEAVES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


pytestmark = pytest.mark.usefixtures("pynative")


def official_names(net: nn.Cell) -> dict[str, str]:
    """Our names → the reference's; they differ in the leaves of norms."""
    names = {}
    for name in arrays(net):
        module, _, leaf = name.rpartition(".")
        back = {ours: theirs for theirs, ours in _NORM_LEAVES.items()}
        names[name] = f"{module}.{back.get(leaf, leaf)}"
    return names


def fill(net: nn.Cell, state: dict[str, np.ndarray], prefix: str) -> nn.Cell:
    """Load the reference's weights strictly: every one of ours is there, every one of theirs that counts is used."""
    names = official_names(net)
    theirs = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    assert set(names.values()) == {name for name in theirs if not name.endswith("num_batches_tracked")}
    for name, parameter in net.parameters_and_names():
        parameter.set_data(Tensor(state[prefix + names[name]]))
    return net.set_train(False)


# -- Deformable attention ---------------------------------------------------------------------------------------------


class Sampled(nn.Cell):
    """The core with its loss: Σ output · cotangent."""

    def __init__(self, sampling: type[nn.Cell], shapes, weight: np.ndarray):
        super().__init__()
        self.sampling = sampling()
        self.shapes = shapes
        self.weight = Tensor(weight)

    def construct(self, value, locations, weights):
        output = self.sampling(value, locations[..., 0], locations[..., 1], weights, self.shapes)
        return (output * self.weight).sum(), output


@pytest.mark.parametrize("sampling", [GatherSampling, GridSampling])
def test_deformable_sampling_and_its_gradients(graph_mode, sampling):
    fixture = Fixture("deform")
    results = fixture.results
    shapes = tuple((int(height), int(width)) for height, width in results["shapes"])
    net = Sampled(sampling, shapes, cotangent("deform", results["output"].shape, fixture.salt))
    inputs = [Tensor(results[name]) for name in ("value", "locations", "weights")]
    (_, output), gradients = ms.value_and_grad(net, (0, 1, 2), has_aux=True)(*inputs)
    assert difference(output, results["output"]) <= 1e-5
    smooth = results["locations_smooth"][..., None]
    for name, value in zip(("value", "locations", "weights"), gradients, strict=True):
        expected = results[f"{name}_grad"]
        if name == "locations":
            value, expected = value * Tensor(smooth.astype(np.float32)), expected * smooth
        assert difference(value, expected) <= 1e-5


@pytest.mark.parametrize("sampling", ["gather", "grid_sample"])
def test_deformable_attention(sampling):
    fixture = Fixture("deform")
    results, config = fixture.results, fixture.spec["config"]
    sizes = (config["embed_dim"], config["heads"], config["levels"], config["points"])
    net = fill(DeformableAttention(*sizes, sampling), fixture.state, "decoder.decoder.layers.0.cross_attn.")
    shapes = tuple((int(height), int(width)) for height, width in results["shapes"])
    query, boxes, memory = (Tensor(results[f"module_{name}"]) for name in ("query", "boxes", "memory"))
    assert difference(net(query, boxes, memory, shapes), results["module_output"]) <= 1e-5


# -- Layers -----------------------------------------------------------------------------------------------------------


def r18_decoder() -> RTDETRTransformer:
    return RTDETRTransformer((256, 256, 256), 80, 256, 8, 1024, num_layers=3, num_queries=300)


def r18_encoder(in_channels=R18_CHANNELS) -> HybridEncoder:
    return HybridEncoder(in_channels, 256, 8, 1024, 0.5, 3)


def small_input(fixture: Fixture, name: str, count: int) -> Tensor:
    return Tensor(0.01 * feature_input(f"layers {name}", (2, count, 256, 1), fixture.salt)[..., 0])


def reference_table(height: int, width: int, dim: int) -> Tensor:
    """The reference's positions, whose tokens are enumerated columns first although maps are rows first."""
    return position_table(width, height, dim)


def test_layers_where_the_epsilons_show(monkeypatch):
    fixture = Fixture("layers")
    monkeypatch.setattr(encoder_module, "position_table", reference_table)
    encoder = fill(TransformerEncoder(1, 256, 8, 1024), fixture.state, "encoder.encoder.0.")
    tokens = small_input(fixture, "tokens", 20)
    output = encoder(tokens.transpose((0, 2, 1)).reshape((2, 256, 4, 5)))
    output = output.reshape((2, 256, 20)).transpose((0, 2, 1))
    assert difference(output[..., ::8], fixture.results["encoder_layer"]) <= 1e-5

    layer = fill(r18_decoder().decoder.layers[0], fixture.state, "decoder.decoder.layers.0.")
    query, pos, memory = (small_input(fixture, *pair) for pair in (("query", 12), ("pos", 12), ("memory", 84)))
    shapes = tuple(map(tuple, fixture.spec["config"]["shapes"]))
    boxes, mask = Tensor(fixture.results["boxes"]), Tensor(fixture.results["mask"])
    output = layer(query, pos, boxes, memory, shapes, mask)
    assert difference(output[..., ::4], fixture.results["decoder_layer"]) <= 1e-5


def test_logits_of_boxes_end_where_the_references_inverse_sigmoid_does():
    results = Fixture("layers").results
    probabilities = np.clip(results["probabilities"].astype(np.float64), 1e-30, 1 - 1e-16)
    logits = Tensor(np.log(probabilities / (1 - probabilities)).astype(np.float32))
    assert np.abs(Moved()(logits, 0.0).asnumpy() - results["inverse_sigmoid"]).max() <= 2e-5


# -- Encoder ----------------------------------------------------------------------------------------------------------


def feature_maps(part: str, tag: str, size: tuple[int, int], channels: tuple[int, ...], batch: int = 2):
    """The recipe's maps at strides 8, 16, 32 of an image of ``size``."""
    return tuple(
        Tensor(feature_input(f"{part} {tag} {i}", (batch, count, size[0] // stride, size[1] // stride)))
        for i, (count, stride) in enumerate(zip(channels, (8, 16, 32)))
    )


def size_of(tag: str) -> tuple[int, int]:
    height, _, width = tag.partition("x")
    return int(height), int(width)


def check_maps(outputs, results: dict[str, np.ndarray], prefix: str, bound: float) -> None:
    """The parts that are kept of every map: shape, mean per channel, and two corners."""
    for i, output in enumerate(outputs):
        expected = {
            name.removeprefix(f"{prefix}{i}_"): value for name, value in results.items() if f"{prefix}{i}_" in name
        }
        assert output.shape == tuple(expected["shape"])
        parts = {
            "mean": output.mean((2, 3)),
            "corner": output[:, :4, :4, :4],
            "last": output[:, -4:, -3:, -3:],
        }
        for name in expected.keys() & parts.keys():
            assert difference(parts[name], expected[name]) <= bound, f"{prefix}{i}_{name}"
    assert "corner" in expected


@pytest.fixture(scope="module")
def encoder():
    return fill(r18_encoder(), Fixture("encoder").state, "encoder.")


@pytest.mark.parametrize("size", ["4x5", "5x5"])
def test_positions_are_the_references_on_squares_and_in_order_elsewhere(size):
    expected = Fixture("encoder").results[f"pos_embed_{size}"]
    height, width = size_of(size)
    ours, theirs = position_table(height, width, 256)[0], reference_table(height, width, 256)[0]
    assert difference(theirs[:, ::8], expected) <= 1e-5
    assert np.array_equal(ours.asnumpy(), theirs.asnumpy()) == (height == width)
    tokens = ours.reshape((height, width, 4, 64))
    assert np.abs(np.diff(tokens.asnumpy()[..., :2, :], axis=1)).max() == 0.0  # the first half knows rows alone
    assert np.abs(np.diff(tokens.asnumpy()[..., 2:, :], axis=0)).max() == 0.0


@pytest.mark.parametrize("tag", ["128x160", "160x160"])
def test_encoder(monkeypatch, encoder, tag):
    results = Fixture("encoder").results
    monkeypatch.setattr(encoder_module, "position_table", reference_table)
    maps = feature_maps("encoder", tag, size_of(tag), R18_CHANNELS)
    check_maps(encoder(maps), results, f"{tag}_out", 1e-5)
    tokens = encoder.encoder[0](encoder.input_proj[2](maps[2])).reshape((2, 256, -1)).transpose((0, 2, 1))
    assert difference(tokens[:, :4, ::16], results[f"{tag}_aifi_corner"]) <= 1e-5


@pytest.mark.slow
def test_encoder_at_640(encoder):
    maps = feature_maps("encoder", "640x640", (640, 640), R18_CHANNELS, batch=1)
    check_maps(encoder(maps), Fixture("encoder").results, "640x640_out", 1e-5)


def test_fused_encoder(monkeypatch, encoder):
    results = Fixture("encoder").results
    monkeypatch.setattr(encoder_module, "position_table", reference_table)
    fused = reparameterize(encoder)
    weights = {name: value for name, value in arrays(fused).items() if ".bottlenecks." in name}
    for name, weight, bias in zip(*(results[f"fused_{each}"] for each in ("names", "weight_norms", "bias_norms"))):
        ours = str(name).removeprefix("encoder.")
        ours = ours if ours.endswith(".conv") else f"{ours}.conv"
        assert np.linalg.norm(weights.pop(f"{ours}.weight")) == pytest.approx(weight, rel=1e-5)
        assert np.linalg.norm(weights.pop(f"{ours}.bias")) == pytest.approx(bias, rel=1e-5)
    assert not weights
    for tag in ("128x160", "160x160"):
        maps = feature_maps("encoder", tag, size_of(tag), R18_CHANNELS)
        check_maps(fused(maps), results, f"fused_{tag}_out", 2e-5)


# In front of a batch normalisation with batch statistics: nothing but rounding.
VANISHING = ("encoder.input_proj.0.1.bias", "encoder.input_proj.1.1.bias", "encoder.0.layers.0.norm2.bias")


def check_gradients(gradients: dict[str, Tensor], names, norms, bound: float) -> None:
    """Their norms, but of those that vanish in exact arithmetic."""
    ours = {name: float(np.linalg.norm(value.asnumpy())) for name, value in gradients.items()}
    assert set(ours) == set(names)
    for name, norm in zip(names, norms):
        if str(name).endswith(VANISHING):
            assert ours[name] <= 1e-4
        else:
            assert ours[name] == pytest.approx(norm, rel=bound), name


class TrainedEncoder(nn.Cell):
    """The encoder with its loss: Σ over outputs of Σ output · cotangent."""

    def __init__(self, encoder: nn.Cell, weights: list[np.ndarray]):
        super().__init__()
        self.encoder = encoder
        self.weights = tuple(Tensor(weight) for weight in weights)

    def construct(self, fine, middle, coarse):
        outputs = self.encoder((fine, middle, coarse))
        loss = 0.0
        for i in range(3):
            loss = loss + (outputs[i] * self.weights[i]).sum()
        return loss, outputs


def test_encoder_in_training():
    fixture = Fixture("encoder")
    results = fixture.results
    encoder = fill(r18_encoder(), fixture.state, "encoder.")
    net = TrainedEncoder(
        encoder, [cotangent(f"encoder {i}", tuple(results[f"train_out{i}_shape"])) for i in range(3)]
    ).set_train(True)
    maps = feature_maps("encoder", "160x160", (160, 160), R18_CHANNELS)
    weights, names = encoder.trainable_params(), official_names(net)
    step = ms.value_and_grad(net, (0, 1, 2), ms.ParameterTuple(weights), has_aux=True)
    (_, outputs), (by_input, by_weight) = step(*maps)
    check_maps(outputs, results, "train_out", 1e-5)
    gradients = {names[weight.name]: value for weight, value in zip(weights, by_weight, strict=True)}
    check_gradients(gradients, results["grad_norm_names"], results["grad_norms"], 1e-4)
    for value, norm in zip(by_input, results["input_grad_norms"], strict=True):
        assert np.linalg.norm(value.asnumpy()) == pytest.approx(norm, rel=1e-4)
    after = {names[name]: value for name, value in arrays(net).items()}
    for name, norm in zip(results["buffer_names"], results["buffer_norms"], strict=True):
        assert np.linalg.norm(after[str(name)]) == pytest.approx(norm, rel=1e-5), name


# -- Query selection and decoder --------------------------------------------------------------------------------------


def check_queries(fixture: Fixture, decoder: RTDETRTransformer, maps, bound: float) -> None:
    """The selected pixels in their order, and what the layers make of them."""
    results = fixture.results
    memory, shapes = decoder.encode(maps)
    _, box_logits, features, best = decoder.select(memory, shapes)
    assert np.array_equal(best.asnumpy(), results["topk"])
    assert difference(ops.sigmoid(box_logits)[:, ::3], results["enc_boxes"]) <= bound
    assert difference(features[:, :8, ::16], results["target_corner"]) <= bound
    scores = decoder.enc_score_head(decoder.enc_output(memory * anchors_of(shapes, 300)[1]))
    assert difference(ops.amax(scores, -1).sum(-1), results["enc_scores_sum"]) <= bound
    check_result(results, *decoder(maps), bound)


def check_result(results: dict[str, np.ndarray], logits: Tensor, boxes: Tensor, bound: float) -> None:
    kept = results["pred_logits_8th"]
    assert difference(logits[:, :: logits.shape[1] // kept.shape[1], ::8], kept) <= bound
    assert difference(logits.sum(-1), results["pred_logits_sum"]) <= bound
    assert difference(boxes, results["pred_boxes"]) <= bound


@pytest.mark.parametrize("tag", ["128x160", "160x160", pytest.param("640x640", marks=pytest.mark.slow)])
def test_decoder(tag):
    fixture = Fixture(f"decoder_{tag}")
    decoder = use_kernels(fill(r18_decoder(), fixture.state, "decoder."))  # for their sigmoid
    batch = fixture.spec["config"]["batch"]
    check_queries(fixture, decoder, feature_maps("decoder", tag, size_of(tag), (256, 256, 256), batch), 1e-5)


def test_every_layer_can_be_the_last():
    fixture = Fixture("decoder_128x160")
    decoder = fill(r18_decoder(), fixture.state, "decoder.")
    maps = feature_maps("decoder", "128x160", (128, 160), (256, 256, 256))
    for layer in (0, 1):
        decoder.eval_idx = layer
        logits, boxes = decoder(maps)
        assert difference(boxes[:, ::6], fixture.results[f"layer{layer}_boxes"]) <= 1e-5
        assert difference(logits[:, ::12, ::8], fixture.results[f"layer{layer}_logits_8th"]) <= 1e-5


def test_anchors():
    anchors, valid = anchors_of(((16, 20), (8, 10), (4, 5)), 300)
    assert difference(anchors[0, ::4], Fixture("decoder_128x160").results["anchors"]) <= 1e-6
    assert valid.asnumpy().all()
    results = Fixture("decoder_640x640").results
    anchors, valid = (each.asnumpy()[0] for each in anchors_of(((80, 80), (40, 40), (20, 20)), 300))
    kept, expected = anchors[81:8400:50], results["anchors"]
    assert np.array_equal(kept == BORDER, np.isinf(expected))
    assert np.allclose(kept[kept != BORDER], expected[np.isfinite(expected)], rtol=1e-6, atol=1e-6)
    assert np.array_equal(valid[:100, 0], results["valid_first_row_and_start_of_second"].reshape(-1)[:100])
    assert (valid == 0).sum() == 316
    assert ops.sigmoid(Tensor(BORDER, ms.float32)) == 1.0


class Trained(nn.Cell):
    """A network in training, as the objective calls it."""

    def __init__(self, network: nn.Cell):
        super().__init__()
        self.network = network

    def construct(self, fine, middle, coarse, labels, references, blocked):
        return self.network.forward_training((fine, middle, coarse), labels, references, blocked)


def denoising_queries(results: dict[str, np.ndarray], classes: int = 80) -> tuple[Tensor, Tensor, Tensor]:
    """The fixture's noisy classes, logits of boxes and mask."""
    groups, queries, _ = results["dn_group_split"]
    labels = [results[f"target_labels_{i}"] for i in range(len(results["dn_embed_sum"]))]
    longest = max(map(len, labels))
    padded = np.stack([np.pad(each, (0, longest - len(each)), constant_values=classes) for each in labels])
    tiled = np.tile(padded, (1, 2 * groups))
    flipped = (results["noise_flip_uniform"] < 0.25) & (tiled < classes)
    labels = np.where(flipped, results["noise_new_label"], tiled)
    count = int(np.prod(results["dn_mask_shape"]))
    mask = np.unpackbits(results["dn_mask_bits"])[:count].reshape(results["dn_mask_shape"]).astype(bool)
    assert labels.shape[1] == queries
    return Tensor(labels.astype(np.int32)), Tensor(results["dn_boxes_unact"]), Tensor(mask)


def test_decoder_in_training():
    fixture = Fixture("decoder_train")
    results = fixture.results
    net = Trained(fill(r18_decoder(), fixture.state, "decoder."))
    labels, references, blocked = denoising_queries(results)
    assert difference(net.network.denoising_class_embed(labels).sum(-1), results["dn_embed_sum"]) <= 1e-5
    net.set_train(True)
    maps = feature_maps("decoder", "train", (128, 160), (256, 256, 256), batch=3)
    logits, boxes, encoder_logits, encoder_boxes = net(*maps, labels, references, blocked)
    assert difference(encoder_boxes[:, ::10], results["encoder_boxes"]) <= 1e-5
    assert difference(encoder_logits[:, ::20, ::8], results["encoder_logits_8th"]) <= 1e-5
    for layer in range(3):
        for part, prefix in ((slice(0, 200), "dn_layer"), (slice(200, None), "layer")):
            assert difference(boxes[layer, :, part][:, ::10], results[f"{prefix}{layer}_boxes"]) <= 1e-5
            assert difference(logits[layer, :, part][:, ::20, ::8], results[f"{prefix}{layer}_logits_8th"]) <= 1e-5


def test_a_query_that_sees_nothing_gives_numbers():
    attention = encoder_module.MultiheadAttention(8, 2)
    x = Tensor(np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32))
    assert np.isfinite(attention(x, 0.0, Tensor(np.ones((3, 3), bool))).asnumpy()).all()
