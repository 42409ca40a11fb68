"""FastViT's checkpoints as timm and Apple (ml-fastvit) write them, in training and fused."""

from typing import Any

from mindcv_reparam.formats import (
    TIMM_HEAD,
    Formats,
    Parameters,
    Rule,
    State,
    Table,
    conv_norm,
    count,
    shape_of,
    trailing_ones,
)

_APPLE_TO_TIMM = (
    Rule("patch_embed.{rest}", "stem.{rest}"),
    Rule("conv_exp.{rest}", "final_conv.{rest}"),
    Rule("{path}.se.reduce.{leaf}", "{path}.se.fc1.{leaf}"),
    Rule("{path}.se.expand.{leaf}", "{path}.se.fc2.{leaf}"),
    Rule("{path}.rbr_conv.{rest}", "{path}.conv_kxk.{rest}"),
    Rule("{path}.rbr_scale.{rest}", "{path}.conv_scale.{rest}"),
    Rule("{path}.rbr_skip.{leaf}", "{path}.identity.{leaf}"),
    Rule("{path}.proj.0.lkb_origin.{rest}", "{path}.proj.0.large_conv.{rest}"),
    Rule("{path}.proj.0.lkb_reparam.{leaf}", "{path}.proj.0.reparam_conv.{leaf}"),
    Rule("{path}.convffn.{rest}", "{path}.mlp.{rest}"),
    Rule("{path}.layer_scale", "{path}.layer_scale.gamma"),
    Rule("{path}.layer_scale_{i}", "{path}.layer_scale_{i}.gamma"),
    Rule("network.{2i-1}.proj.{rest}", "stages.{i}.downsample.proj.{rest}"),
    Rule("network.{2i}.{j}.{rest}", "stages.{i}.blocks.{j}.{rest}"),
    Rule("head.{leaf}", "head.fc.{leaf}"),
)
# The positional encoding in front of the attention stage takes a place in Apple's list.
_APPLE_TO_TIMM_HYBRID = (
    *_APPLE_TO_TIMM,
    Rule("network.6.pe.{leaf}", "stages.3.pos_emb.pos_enc.{leaf}"),
    Rule("network.6.reparam_conv.{leaf}", "stages.3.pos_emb.reparam_conv.{leaf}"),
    Rule("network.7.{j}.{rest}", "stages.3.blocks.{j}.{rest}"),
)
_TIMM = (
    Rule("stem.{i}.{rest}", "stem.{i}.conv.{rest}"),
    Rule("final_conv.conv_{rest}", "final_conv.conv.conv_{rest}"),
    Rule("{path}.downsample.proj.1.{rest}", "{path}.downsample.pointwise.conv.{rest}"),
    Rule("{path}.token_mixer.norm.identity.{leaf}", "{path}.token_mixer.norm.{leaf}"),
    *conv_norm("{path}.conv_kxk.0", "{path}.kxk"),
    *conv_norm("{path}.conv_scale", "{path}.scale"),
    *conv_norm("{path}.downsample.proj.0.large_conv", "{path}.downsample.spatial.large"),
    *conv_norm("{path}.downsample.proj.0.small_conv", "{path}.downsample.spatial.small"),
    *conv_norm("{path}.mlp.conv", "{path}.mlp.conv"),
    Rule("{path}.pos_emb.pos_enc.{leaf}", "{path}.pos_emb.conv.{leaf}"),
    TIMM_HEAD,
)
_TIMM_FUSED = (
    Rule("stem.{i}.reparam_conv.{leaf}", "stem.{i}.conv.{leaf}"),
    Rule("final_conv.reparam_conv.{leaf}", "final_conv.conv.{leaf}"),
    Rule("{path}.downsample.proj.0.reparam_conv.{leaf}", "{path}.downsample.spatial.{leaf}"),
    Rule("{path}.downsample.proj.1.reparam_conv.{leaf}", "{path}.downsample.pointwise.conv.{leaf}"),
    Rule("{path}.token_mixer.reparam_conv.{leaf}", "{path}.token_mixer.{leaf}"),
    Rule("{path}.pos_emb.reparam_conv.{leaf}", "{path}.pos_emb.{leaf}"),
    *conv_norm("{path}.mlp.conv", "{path}.mlp.conv"),
    TIMM_HEAD,
)


def _table(source: str, markers: tuple[str, ...], rules: tuple[Rule, ...], state: State = "train") -> Table:
    norms = r".*\.((kxk|scale|large|small)\.1|mlp\.conv\.1|identity|norm)"
    layouts = (trailing_ones(r".*\.token_mixer\.(qkv|proj)\.weight", theirs=2, ours=4),)
    return Table(source, markers, rules, norms, layouts, state=state, written=source == "timm")


_APPLE_STEM, _APPLE_FUSED_STEM = "patch_embed.0.rbr_conv.0.conv.weight", "patch_embed.0.reparam_conv.weight"
_APPLE_ATTENTION = "network.7.0.token_mixer.qkv.weight"
_TABLES = (
    _table("timm", ("stem.0.conv_kxk.0.conv.weight",), _TIMM),
    _table("timm", ("stem.0.reparam_conv.weight",), _TIMM_FUSED, "branches"),
    _table("apple", (_APPLE_STEM, _APPLE_ATTENTION), _APPLE_TO_TIMM_HYBRID + _TIMM),
    _table("apple", (_APPLE_STEM,), _APPLE_TO_TIMM + _TIMM),
    _table("apple", (_APPLE_FUSED_STEM, _APPLE_ATTENTION), _APPLE_TO_TIMM_HYBRID + _TIMM_FUSED, "branches"),
    _table("apple", (_APPLE_FUSED_STEM,), _APPLE_TO_TIMM + _TIMM_FUSED, "branches"),
)


def variant_of(parameters: Parameters) -> dict[str, Any]:
    """The hyper-parameters that tell the models apart, see Formats."""
    mlps = [shape_of(parameters, f"stages.{i}.blocks.0.mlp.fc1.weight", 4) for i in range(4)]
    attention = [f"stages.{i}.blocks.0.token_mixer.qkv.weight" in parameters for i in range(4)]
    return {
        "depths": tuple(count(parameters, rf"stages\.{i}\.blocks\.(\d+)\..*") for i in range(4)),
        "dims": tuple(fc1[1] for fc1 in mlps),
        "mlp_ratio": mlps[0][0] // mlps[0][1],
        "token_mixers": tuple("attention" if has else "repmixer" for has in attention),
    }


FORMATS = Formats(_TABLES, stems=("stem.0.conv.kxk.0.weight", "stem.0.conv.weight"), variant=variant_of)
