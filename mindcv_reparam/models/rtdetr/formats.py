"""RT-DETR's checkpoints as lyuwenyu/RT-DETR writes them (rtdetr_pytorch, and rtdetrv2_pytorch for reading), and as
transformers does (RTDetrForObjectDetection; RTDetrV2ForObjectDetection for reading).

A backbone of this zoo has in a detector's file the names that its own family's first train-time table gives it.
"""

import re
from typing import Any

from mindcv_reparam.formats import Formats, Joined, Layout, Parameters, Rule, Table, count, shape_of
from mindcv_reparam.models import fastvit, resnet_vd, riformer, visformer
from mindcv_reparam.registry import VARIANTS

_OWN = "backbone."
_RESNETS, _RESNET_STEM = r"rtdetr_r\d+vd", "conv1.conv1_1.conv.weight"
_ZOO = {"riformer": riformer, "fastvit": fastvit, "visformer": visformer}
_LEVELS_POINTS = 3 * 4  # sampled per head by every query
_NORMS = r"(encoder|decoder)\..*\.norm\d?|encoder\.input_proj\.\d+\.1|decoder\.enc_output\.1|backbone\.norms\.\d+"
_UNUSED = (
    (r"decoder\.(anchors|valid_mask)", "computed from the size of the image here"),
    (r"encoder\..*\.bottlenecks\.\d+\.conv\.(weight|bias)", "the sum of two branches that are used"),
    (r"backbone\.norm0\..*", "normalises a map that a detector does not see"),
)
# How many points a level has is told here alone; networks here have four at every level.
_CONSTANTS = ((r".*\.(cross_attn\.num|encoder_attn\.n)_points_scale", 0.25),)
_V2 = (
    Rule("encoder.input_proj.{i}.conv.{leaf}", "encoder.input_proj.{i}.0.{leaf}"),
    Rule("encoder.input_proj.{i}.norm.{leaf}", "encoder.input_proj.{i}.1.{leaf}"),
    Rule("decoder.enc_output.proj.{leaf}", "decoder.enc_output.0.{leaf}"),
    Rule("decoder.enc_output.norm.{leaf}", "decoder.enc_output.1.{leaf}"),
)
_OUTPUT_NORMS = Rule("backbone.norm{2i}.{leaf}", "backbone.norms.{i}.{leaf}")


def _conv_norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """transformers' ``convolution`` and ``normalization``."""
    return (
        Rule(f"{theirs}.convolution.{{leaf}}", f"{ours}.conv.{{leaf}}"),
        Rule(f"{theirs}.normalization.{{leaf}}", f"{ours}.norm.{{leaf}}"),
    )


_LAYER = "decoder.decoder.layers.{i}"
_TRANSFORMERS = (
    # The heads are there twice; safetensors hold one of the two.
    Rule("class_embed.{i}.{leaf}", "decoder.dec_score_head.{i}.{leaf}"),
    Rule("bbox_embed.{i}.{rest}", "decoder.dec_bbox_head.{i}.{rest}"),
    Rule("model.decoder.class_embed.{i}.{leaf}", "decoder.dec_score_head.{i}.{leaf}"),
    Rule("model.decoder.bbox_embed.{i}.{rest}", "decoder.dec_bbox_head.{i}.{rest}"),
    *_conv_norm("model.backbone.model.embedder.embedder.{i}", "backbone.conv1.conv1_{i+1}"),
    Rule("model.backbone.model.encoder.stages.{i}.layers.{j}.{rest}", "backbone.res_layers.{i}.blocks.{j}.{rest}"),
    *_conv_norm("{path}.shortcut.1", "{path}.short.conv"),
    *_conv_norm("{path}.shortcut", "{path}.short"),
    *(rule for i, leaf in enumerate("abc") for rule in _conv_norm(f"{{path}}.layer.{i}", f"{{path}}.branch2{leaf}")),
    Rule("model.encoder.{rest}", "encoder.{rest}"),
    Rule("model.encoder_input_proj.{rest}", "encoder.input_proj.{rest}"),
    Rule("model.decoder.layers.{i}.{rest}", f"{_LAYER}.{{rest}}"),
    Rule("model.decoder.query_pos_head.{rest}", "decoder.query_pos_head.{rest}"),
    Rule("model.decoder_input_proj.{i}.0.{leaf}", "decoder.input_proj.{i}.conv.{leaf}"),
    Rule("model.decoder_input_proj.{i}.1.{leaf}", "decoder.input_proj.{i}.norm.{leaf}"),
    Rule("model.denoising_class_embed.{leaf}", "decoder.denoising_class_embed.{leaf}"),
    Rule("model.enc_{rest}", "decoder.enc_{rest}"),
    Rule("encoder.encoder.{i}.layers.{j}.final_layer_norm.{leaf}", "encoder.encoder.{i}.layers.{j}.norm2.{leaf}"),
    Rule(f"{_LAYER}.encoder_attn_layer_norm.{{leaf}}", f"{_LAYER}.norm2.{{leaf}}"),
    Rule(f"{_LAYER}.final_layer_norm.{{leaf}}", f"{_LAYER}.norm3.{{leaf}}"),
    Rule(f"{_LAYER}.encoder_attn.{{rest}}", f"{_LAYER}.cross_attn.{{rest}}"),
    Rule("{path}.self_attn_layer_norm.{leaf}", "{path}.norm1.{leaf}"),
    Rule("{path}.fc1.{leaf}", "{path}.linear1.{leaf}"),
    Rule("{path}.fc2.{leaf}", "{path}.linear2.{leaf}"),
    *(Rule(f"{{path}}.self_attn.{x}_proj.{{leaf}}", f"{{path}}.self_attn.in_proj_{{leaf}}.{x}") for x in "qkv"),
)


def _official(
    models: str, markers: tuple[str, ...], rules: tuple[Rule, ...], norms: str, layouts: tuple[Layout, ...] = ()
) -> tuple[Table, ...]:
    """Tables of both versions for the models that a regular expression names, given what they call the backbone."""
    return tuple(
        Table(
            source,
            ("decoder.enc_score_head.weight", marker, *markers),
            (*own, *rules),
            f"{_NORMS}|{norms}",
            layouts,
            unused=_UNUSED,
            constants=_CONSTANTS,
            roots=(_OWN, "encoder.", "decoder."),
            lacks=rf"(?!{models}).*",
            written=source == "rt-detr",
        )
        for source, marker, own in (
            ("rt-detr", "decoder.enc_output.0.weight", ()),
            ("rt-detrv2", "decoder.enc_output.proj.weight", _V2),
        )
    )


def _over(family: str, formats: Formats) -> tuple[Table, ...]:
    """Tables of detectors over a family of this zoo."""
    table = next(table for table in formats.tables if table.roots == ("",) and table.state == "train" and table.written)
    return _official(
        f"rtdetr_{family}_",
        tuple(_OWN + marker for marker in table.markers),
        (_OUTPUT_NORMS, *(Rule(_OWN + rule.theirs, _OWN + rule.ours) for rule in table.rules)),
        rf"{re.escape(_OWN)}({table.norms})",
        tuple(Layout(re.escape(_OWN) + each.names, each.forward, each.backward) for each in table.layouts),
    )


def _transformers() -> Table:
    return Table(
        source="transformers",
        markers=("model.enc_score_head.weight", "model.backbone.model.embedder.embedder.0.convolution.weight"),
        rules=_TRANSFORMERS,
        norms=rf"{_NORMS}|backbone\..*\.norm",
        constants=_CONSTANTS,
        roots=("model.", "class_embed.", "bbox_embed."),
        joins=(Joined(r".*\.self_attn\.in_proj_(weight|bias)", ("q", "k", "v")),),
        lacks=rf"(?!{_RESNETS}).*",
        hparams=(("eval_idx", -1),),
    )


def _pretrained() -> Table:
    """ResNet-vd's weights of ImageNet-1k, without a classifier, as rtdetr_pytorch's presnet.py loads them."""
    return Table(
        source="rt-detr",
        markers=(_RESNET_STEM, "res_layers.0.blocks.0.branch2a.conv.weight"),
        rules=(Rule("conv1.{rest}", f"{_OWN}conv1.{{rest}}"), Rule("res_layers.{rest}", f"{_OWN}res_layers.{{rest}}")),
        norms=r"backbone\..*\.norm",
        roots=("conv1.", "res_layers."),
        lacks=rf"(?!{_RESNETS}).*",
        part="backbone",
        variant=lambda parameters: _backbone(_inner(parameters)),
        written=False,
    )


def _inner(parameters: Parameters) -> Parameters:
    """Those of the backbone, by its own names."""
    return {name.removeprefix(_OWN): value for name, value in parameters.items() if name.startswith(_OWN)}


def variant_of(parameters: Parameters) -> dict[str, Any]:
    """The hyper-parameters that tell the detectors apart, see Formats."""
    width = shape_of(parameters, "encoder.lateral_convs.0.conv.weight", 4)[0]
    points, dim = shape_of(parameters, "decoder.decoder.layers.0.cross_attn.attention_weights.weight", 2)
    return {
        **_backbone(_inner(parameters)),
        "encoder_dim": width,
        "encoder_feedforward": shape_of(parameters, "encoder.encoder.0.layers.0.linear1.weight", 2)[0],
        "expansion": shape_of(parameters, "encoder.fpn_blocks.0.conv1.conv.weight", 4)[0] / width,
        "num_blocks": count(parameters, r"encoder\.fpn_blocks\.0\.bottlenecks\.(\d+)\..*"),
        "hidden_dim": dim,
        "dim_feedforward": shape_of(parameters, "decoder.decoder.layers.0.linear1.weight", 2)[0],
        "num_heads": points // _LEVELS_POINTS,
        "num_layers": count(parameters, r"decoder\.decoder\.layers\.(\d+)\..*"),
    }


def _backbone(parameters: Parameters) -> dict[str, Any]:
    """The name of a backbone, or its own hyper-parameters where it is none of the zoo."""
    if _RESNET_STEM in parameters:
        facts = {
            "depths": tuple(count(parameters, rf"res_layers\.{i}\.blocks\.(\d+)\..*") for i in range(4)),
            "bottleneck": "res_layers.0.blocks.0.branch2c.conv.weight" in parameters,
        }
        variants = resnet_vd.VARIANTS
    else:
        module = next((each for each in _ZOO.values() if any(stem in parameters for stem in each.FORMATS.stems)), None)
        if module is None:
            raise KeyError("backbone's stem")
        facts = module.FORMATS.variant(parameters)
        variants = {name: VARIANTS[name][1] for name in module.VARIANTS}
    fitting = [name for name, hparams in variants.items() if facts.items() <= hparams.items()]
    return {"backbone": fitting[0]} if fitting else facts


def _further(parameters: Parameters) -> dict[str, Any]:
    return {"output_norms": any(name.startswith("backbone.norms.") for name in parameters)}


FORMATS = Formats(
    tables=(
        *_official(_RESNETS, (_OWN + _RESNET_STEM,), (), r"backbone\..*\.norm"),
        *(table for family, module in _ZOO.items() for table in _over(family, module.FORMATS)),
        _transformers(),
        _pretrained(),
    ),
    stems=tuple(_OWN + stem for stem in (_RESNET_STEM, *(s for each in _ZOO.values() for s in each.FORMATS.stems))),
    variant=variant_of,
    positions=tuple((_OWN + name, stride) for each in _ZOO.values() for name, stride in each.FORMATS.positions),
    further=_further,
)
