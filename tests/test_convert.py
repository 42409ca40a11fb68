import hashlib
import re

import mindspore as ms
import numpy as np
import pickled
import pytest
from goldens import Golden, names
from safetensors.numpy import load_file, save_file
from test_goldens import LARGER

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.__main__ import main
from mindcv_reparam.checkpoint import CheckpointInfo, load_arrays, read_checkpoint, save_checkpoint
from mindcv_reparam.convert import convert, detect, revert, table_for, tables
from mindcv_reparam.convert.files import read_source
from mindcv_reparam.errors import UserError
from mindcv_reparam.formats import Rule
from mindcv_reparam.zoo import model_from_checkpoint


@pytest.fixture(scope="module")
def golden():
    """A small network of ten classes in timm's names."""
    return Golden("train-timm-fastvit_t8")


@pytest.fixture(scope="module")
def riformer():
    return Golden("train-mmpretrain-riformer_s12").state


def identical(one, other):
    """Same names, and arrays the same to the bit."""
    same = (
        one[name].tobytes() == other[name].tobytes()
        and one[name].shape == other[name].shape
        and one[name].dtype == other[name].dtype
        for name in one
        if name in other
    )
    return set(one) == set(other) and all(same)


# -- Rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours", "name", "converted"),
    [
        ("network.{2i}.{j}.{rest}", "stages.{i}.blocks.{j}.{rest}", "network.4.1.a.b", "stages.2.blocks.1.a.b"),
        ("network.{2i-1}.proj.{leaf}", "stages.{i}.embed.{leaf}", "network.3.proj.bias", "stages.2.embed.bias"),
        ("s{i+1}.b{j+1}.{rest}", "stages.{i}.{j}.{rest}", "s1.b12.conv.weight", "stages.0.11.conv.weight"),
        ("{path}.layer_scale", "{path}.layer_scale.gamma", "a.b.layer_scale", "a.b.layer_scale.gamma"),
    ],
)
def test_a_rule_reads_in_both_directions(theirs, ours, name, converted):
    rule = Rule(theirs, ours)
    assert rule.forward(name) == converted
    assert rule.backward(converted) == name


@pytest.mark.parametrize("name", ["network.3.1.weight", "network.x.1.weight", "a.network.2.1.weight"])
def test_a_rule_leaves_other_names_alone(name):
    assert Rule("network.{2i}.{j}.{rest}", "stages.{i}.{j}.{rest}").forward(name) == name


def test_a_rule_does_not_invent_negative_indices():
    assert Rule("network.{2i-1}.{rest}", "stages.{i}.{rest}").backward("stages.0.weight") == "stages.0.weight"


# -- Names and arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",  # a deeper network of a family, or the weights that training begins with, has no other names
    [
        pytest.param(name, marks=pytest.mark.exhaustive if LARGER.search(name) or name.startswith("train-") else ())
        for name in names()
    ],
)
def test_the_inverse_of_a_conversion_is_the_identity(name):
    state = Golden(name).state
    conversion = convert(state)
    assert len(conversion.parameters) + len(conversion.unused) == len(state)
    assert all(unused.endswith("num_batches_tracked") for unused in conversion.unused)
    assert identical(revert(conversion.parameters, conversion.table), state)


@pytest.mark.parametrize(
    "table",
    [table for table in tables() if table.state == "branches"],
    ids=lambda table: f"{table.source}-{table.markers[0]}",
)
def test_fused_releases_load_into_the_branches_level(table):
    model = {"fastvit": "fastvit_t8", "riformer": "riformer_s12"}[table.family]
    if any("network.7" in marker for marker in table.markers):
        model = "fastvit_sa12"
    net = reparameterize(create_model(model, num_classes=10), "branches")
    parameters = {parameter.name: parameter.asnumpy() for parameter in net.get_parameters()}
    if table.roots == ("",) and table.source == "mmpretrain":
        parameters = {name: value for name, value in parameters.items() if not name.startswith("head.")}
    state = revert(parameters, table)

    conversion = convert(state)
    assert (conversion.model, conversion.table, conversion.state) == (model, table, "branches")
    assert identical(conversion.parameters, parameters)


FUSED_NAMES = {
    "timm": ("stem.0.reparam_conv.weight", "stages.1.downsample.proj.0.reparam_conv.bias",
             "stages.3.pos_emb.reparam_conv.weight", "stages.3.blocks.1.layer_scale_2.gamma",
             "stages.2.blocks.5.token_mixer.reparam_conv.bias", "final_conv.se.fc1.weight", "head.fc.weight"),
    "apple": ("patch_embed.0.reparam_conv.weight", "network.1.proj.0.lkb_reparam.bias", "network.6.reparam_conv.weight",
              "network.7.1.layer_scale_2", "network.4.5.token_mixer.reparam_conv.bias", "conv_exp.se.reduce.weight",
              "head.weight"),
}  # fmt: skip


@pytest.mark.parametrize("source", FUSED_NAMES)
def test_fused_fastvit_has_the_names_of_the_original(source):
    table = next(t for t in tables() if t.source == source and t.state == "branches" and t.family == "fastvit")
    net = reparameterize(create_model("fastvit_sa12", num_classes=10), "branches")
    assert set(FUSED_NAMES[source]) <= set(revert({p.name: p.asnumpy() for p in net.get_parameters()}, table))


# -- Recognising ------------------------------------------------------------------------------------------------------


def test_a_wrapper_around_the_network_is_taken_off(golden):
    conversion = convert({f"module.{name}": value for name, value in golden.state.items()})
    assert identical(conversion.parameters, convert(golden.state).parameters)


def test_averaged_weights_are_preferred_and_the_others_named():
    state = Golden("mindcv-visformer_tiny").state
    extra = {f"ema.{name}": value + 1 for name, value in state.items()}
    extra |= {f"moment1.{name}": value for name, value in state.items()} | {"global_step": np.zeros(1)}
    conversion = convert(state | extra)
    np.testing.assert_array_equal(conversion.parameters["norm.gamma"], state["norm.gamma"] + 1)
    assert set(conversion.unused) == set(state) | {n for n in extra if not n.startswith("ema.")}


def test_optimizer_state_beside_the_network_is_named(golden):
    state = Golden("mindcv-visformer_tiny").state
    moments = {f"moment1.{name}": value for name, value in state.items()}
    conversion = convert(state | moments | {"learning_rate": np.zeros(1)})
    assert set(conversion.unused) == {*moments, "learning_rate"}
    assert identical(conversion.parameters, state)


def test_the_rest_of_a_detector_and_a_distillation_teacher_are_named(riformer):
    beside = {"neck.conv.weight": np.zeros(1), "teacher.backbone.norm6.weight": np.zeros(1)}
    conversion = convert(riformer | beside)
    assert conversion.unused == dict.fromkeys(beside, "not part of the network")


def test_output_norms_of_a_backbone_are_named(riformer):
    backbone = {n.removeprefix("backbone."): v for n, v in riformer.items() if n.startswith("backbone.")}
    conversion = convert(backbone | {"norm0.weight": np.ones(64)})
    assert set(conversion.unused) == {"norm0.weight"}
    assert "num_classes" not in conversion.hparams
    assert identical(conversion.parameters, {n: v for n, v in convert(riformer).parameters.items() if "head" not in n})


def test_image_size_classes_and_gelu_are_read_from_the_tensors():
    assert convert(Golden("train-timm-visformer_tiny").state).hparams == {
        "in_channels": 3,
        "img_size": [64, 64],
        "num_classes": 10,
        "gelu": "exact",
    }
    assert convert(Golden("mindcv-visformer_tiny_v2").state).hparams["gelu"] == "tanh"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"a": np.zeros(1), "b": np.zeros(1)}, "tensors named a, b, … are no known format"),
        (lambda state: {n: v for n, v in state.items() if "stages.3" not in n}, "is not whole"),
        (lambda state: {n: v for n, v in state.items() if "stages.2.blocks.3" not in n}, "is no model of the zoo"),
        (
            lambda state: {f"{copy}.{n}": v for copy in "ab" for n, v in state.items()},
            "the file holds several networks, a., b.: extract one of them",
        ),
    ],
)
def test_what_is_not_recognised_is_one_line(golden, change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        convert(change(golden.state))


def test_the_model_named_must_fit(golden):
    assert convert(golden.state, "fastvit_t8").model == "fastvit_t8"
    with pytest.raises(UserError, match=r"does not fit fastvit_s12: it holds a fastvit of .* that is fastvit_t8"):
        convert(golden.state, "fastvit_s12")
    with pytest.raises(UserError, match="no model is called 'fastvit_t9'"):
        convert(golden.state, "fastvit_t9")


@pytest.mark.parametrize("name", names())
def test_the_format_is_recognised(name):
    golden = Golden(name)
    assert detect(golden.spec["state_dict"])[0].source == golden.source.replace("official", "gfnet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("visformer_tiny_v2", "timm", "train"), "timm has no visformer_tiny_v2"),
        (("riformer_s12", "timm", "train"), "timm has no riformer_s12"),
        (("fastvit_t8", "timm", "full"), "timm has no names for the parameters of a full checkpoint"),
    ],
)
def test_what_another_code_base_lacks_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        table_for(*arguments)


# -- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "taken", "beside"),
    [
        ({"state_dict": 0, "epoch": 3, "optimizer": {}}, "state_dict", ["epoch", "optimizer"]),
        ({"state_dict": 0, "state_dict_ema": 1, "args": None}, "state_dict_ema", ["state_dict", "args"]),
        ({"model": 0, "model_ema": 1}, "model_ema", ["model"]),
        ({"meta": {}, "state_dict": 0, "ema_state_dict": 1}, "state_dict", ["meta", "ema_state_dict"]),
    ],
)
def test_the_weights_in_a_training_checkpoint_are_chosen_and_the_rest_is_named(tmp_path, content, taken, beside):
    weights = [{"a": np.full(2, i, np.float32)} for i in range(2)]
    saved = {
        key: weights[value] if isinstance(value, int) and key != "epoch" else value for key, value in content.items()
    }
    source = read_source(pickled.write(tmp_path / "checkpoint.pth.tar", saved))
    np.testing.assert_array_equal(source.tensors["a"], weights[content[taken]]["a"])
    assert source.notes == (f"weights taken from {taken!r}; not converted: {', '.join(map(repr, beside))}",)


def test_half_precision_is_widened(tmp_path):
    values = {"a": np.array([1.5, -2.0], np.float16), "n": np.array(7)}
    save_file(values, tmp_path / "half.safetensors")
    source = read_source(tmp_path / "half.safetensors")
    assert source.tensors["a"].dtype == np.float32
    assert source.tensors["a"].tolist() == [1.5, -2.0]
    assert source.tensors["n"].dtype == np.int64
    assert source.notes == ("float16 written in float32",)


def test_bfloat16_is_widened(tmp_path):
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + np.array([0x3FC0, 0xC000], "<u2").tobytes()
    (tmp_path / "b.safetensors").write_bytes(data)
    assert read_source(tmp_path / "b.safetensors").tensors["a"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.safetensors", None, "no file at"),
        ("net.h5", b"", r"convert reads \.safetensors, .* not \.h5"),
        ("net.safetensors", b"short", "is no whole safetensors file"),
        ("net.ckpt", b"nothing", "is no whole checkpoint"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_source(tmp_path / name)


# -- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def convert_files(tmp_path, capsys):
    """Run the command on ``tensors`` and return the path it wrote and what it printed."""

    def run(tensors, *arguments, output="out.ckpt"):
        save_file(tensors, tmp_path / "in.safetensors")
        assert main(["convert", str(tmp_path / "in.safetensors"), "-o", str(tmp_path / output), *arguments]) == 0
        return tmp_path / output, capsys.readouterr().out

    return run


def test_the_command_converts_there_and_back_bit_for_bit(golden, convert_files, tmp_path, capsys):
    path, printed = convert_files(golden.state)
    net, info = model_from_checkpoint(path)
    np.testing.assert_array_equal(net.head.weight.asnumpy(), golden.state["head.fc.weight"])
    assert (info.model, info.state, info.hparams["num_classes"]) == ("fastvit_t8", "train", 10)
    assert info.preprocessing["image_resize"] == 256
    digest = hashlib.sha256((tmp_path / "in.safetensors").read_bytes()).hexdigest()
    assert info.source == f"timm, in.safetensors, sha256 {digest}"
    assert "392 tensors used" in printed
    assert "70 not used, PyTorch's counter of batches, not used in inference: *.num_batches_tracked" in printed

    assert main(["convert", str(path), "-o", str(tmp_path / "back.safetensors"), "--to", "timm"]) == 0
    assert identical(load_file(tmp_path / "back.safetensors"), golden.state)
    assert "462 tensors of fastvit_t8 (train) in the names of timm" in capsys.readouterr().out
    with pytest.raises(UserError, match="is a checkpoint of this project already; --to writes it for another one"):
        main(["convert", str(path), "-o", str(tmp_path / "again.ckpt")])


def test_a_fused_network_is_written_as_mmpretrain_deploys_it(riformer, tmp_path):
    conversion = convert(riformer)
    net = create_model(conversion.model, **conversion.hparams)
    load_arrays(net, conversion.parameters, "riformer")
    fused = reparameterize(net, "branches")
    info = CheckpointInfo(conversion.model, conversion.hparams, state="branches")
    save_checkpoint(tmp_path / "fused.ckpt", fused, info)
    assert (
        main(["convert", str(tmp_path / "fused.ckpt"), "-o", str(tmp_path / "o.safetensors"), "--to", "mmpretrain"])
        == 0
    )
    written = load_file(tmp_path / "o.safetensors")

    block = "backbone.network.0.1."
    scale, shift = (
        riformer[f"{block}token_mixer.affine.weight"].ravel() - 1,
        riformer[f"{block}token_mixer.affine.bias"],
    )
    gamma, beta = riformer[f"{block}norm1.weight"], riformer[f"{block}norm1.bias"]
    np.testing.assert_allclose(written[f"{block}norm_reparam.weight"], gamma * scale, rtol=1e-6)
    np.testing.assert_allclose(written[f"{block}norm_reparam.bias"], beta * scale + shift, rtol=1e-5, atol=1e-7)
    assert not any("norm1" in name or "token_mixer" in name for name in written)
    back, _ = read_checkpoint(tmp_path / "fused.ckpt")
    assert identical(convert(written).parameters, back)


def test_a_backbone_gets_a_new_head_only_when_asked(riformer, convert_files):
    backbone = {n.removeprefix("backbone."): v for n, v in riformer.items() if n.startswith("backbone.")}
    with pytest.raises(UserError, match="has no classifier: --num_classes N gives it a new, untrained one"):
        convert_files(backbone)
    path, printed = convert_files(backbone, "--num_classes", "7")
    assert model_from_checkpoint(path)[0].head.weight.shape == (7, 512)
    assert "new, untrained head of 7 classes\n" in printed


def test_another_class_count_replaces_the_head_and_says_so(riformer, convert_files):
    path, printed = convert_files(riformer, "--num_classes", "7", "--img_size", "384")
    net, info = model_from_checkpoint(path)
    assert net.head.weight.shape == (7, 512)
    assert "154 tensors used" in printed
    assert "new, untrained head of 7 classes in place of head.bias, head.weight" in printed
    assert info.preprocessing["image_resize"] == [384, 384]


def test_weights_of_imagenet_carry_the_names_of_its_classes(golden, convert_files):
    rng, state = np.random.default_rng(0), golden.state
    heads = {name: state[name] for name in ("head.fc.weight", "head.fc.bias")}
    heads = {name: rng.normal(size=(1000, *value.shape[1:])).astype(np.float32) for name, value in heads.items()}
    path, _ = convert_files({**state, **heads})
    _, info = read_checkpoint(path)
    assert (len(info.classes), len(info.labels)) == (1000, 1000)
    assert (info.classes[207], info.labels[207]) == ("n02099601", "golden retriever")
    for arguments in ([], ["--num_classes", "1000"]):  # of other data, and a new head that has learnt nothing
        _, info = read_checkpoint(convert_files(state, *arguments)[0])
        assert (info.classes, info.labels) == (None, None)


def test_a_tensor_too_many_is_refused_and_nothing_written(riformer, convert_files, tmp_path):
    with pytest.raises(UserError, match=r"the network lacks head\.extra"):
        convert_files(riformer | {"head.fc.extra": np.zeros(1, np.float32)})
    assert not (tmp_path / "out.ckpt").exists()


def test_a_gelu_that_timm_does_not_have_is_told(tmp_path, capsys):
    state = Golden("mindcv-visformer_tiny").state
    entries = [{"name": name, "data": ms.Tensor(value)} for name, value in state.items()]
    ms.save_checkpoint(entries, str(tmp_path / "mindcv.ckpt"))
    assert main(["convert", str(tmp_path / "mindcv.ckpt"), "-o", str(tmp_path / "ours.ckpt")]) == 0
    assert identical(read_checkpoint(tmp_path / "ours.ckpt")[0], state)
    assert main(["convert", str(tmp_path / "ours.ckpt"), "-o", str(tmp_path / "o.safetensors"), "--to", "timm"]) == 0
    assert "timm's visformer_tiny has gelu exact, this checkpoint has not" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.safetensors"], r"--output must end with \.ckpt, got out\.safetensors"),
        (["-o", "out.ckpt", "--to", "timm"], r"--output must end with \.safetensors, got out\.ckpt"),
        (["-o", "out.ckpt", "--num_classes", "0"], "--num_classes: must be a whole number from 1 to 100000, got '0'"),
        (["-o", "out.ckpt", "--num_classes", "9" * 5000], "--num_classes: must be a whole number from 1 to 100000"),
        (["-o", "out.ckpt", "--img_size", "1e3"], "--img_size: must be a whole number from 1 to 4096, got '1e3'"),
        (["-o", "out.ckpt", "--nb_classes", "3"], "unknown flag --nb_classes; here it is --num_classes"),
    ],
)
def test_the_suffix_of_the_output_must_fit(arguments, message):
    with pytest.raises(UserError, match=message):
        main(["convert", "in.safetensors", *arguments])
