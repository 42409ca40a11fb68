"""What the checkpoints of other code bases call the parameters of this one: one table per format and family."""

import re

from .rules import Rule, Table, tokens, trailing_ones


def conv_norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """A convolution and its batch norm, ``conv`` and ``bn`` there, 0 and 1 of a ConvNorm here."""
    return Rule(f"{theirs}.conv.{{leaf}}", f"{ours}.0.{{leaf}}"), Rule(f"{theirs}.bn.{{leaf}}", f"{ours}.1.{{leaf}}")


_HEAD = Rule("head.fc.{leaf}", "head.{leaf}")

# -- Visformer --------------------------------------------------------------------------------------------------------

_VISFORMER = (
    Table(
        source="timm",
        family="visformer",
        markers=("stem.1.running_mean", "patch_embed3.proj.weight", "stage3.0.attn.qkv.weight"),
        norms=r"(.*\.)?norm\d?|stem\.1",
        hparams=(("gelu", "exact"),),
        lacks=("visformer_tiny_v2", "visformer_small_v2"),
    ),
    Table(
        source="mindcv",
        family="visformer",
        markers=("stem.1.moving_mean", "patch_embed3.proj.weight", "stage3.0.attn.qkv.weight"),
        hparams=(("gelu", "tanh"),),
    ),
)

# -- FastViT ----------------------------------------------------------------------------------------------------------

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
_TIMM_FASTVIT = (
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
    _HEAD,
)
_TIMM_FASTVIT_FUSED = (
    Rule("stem.{i}.reparam_conv.{leaf}", "stem.{i}.conv.{leaf}"),
    Rule("final_conv.reparam_conv.{leaf}", "final_conv.conv.{leaf}"),
    Rule("{path}.downsample.proj.0.reparam_conv.{leaf}", "{path}.downsample.spatial.{leaf}"),
    Rule("{path}.downsample.proj.1.reparam_conv.{leaf}", "{path}.downsample.pointwise.conv.{leaf}"),
    Rule("{path}.token_mixer.reparam_conv.{leaf}", "{path}.token_mixer.{leaf}"),
    Rule("{path}.pos_emb.reparam_conv.{leaf}", "{path}.pos_emb.{leaf}"),
    *conv_norm("{path}.mlp.conv", "{path}.mlp.conv"),
    _HEAD,
)


def _fastvit(source: str, markers: tuple[str, ...], rules: tuple[Rule, ...], state: str = "train") -> Table:
    norms = r".*\.((kxk|scale|large|small)\.1|mlp\.conv\.1|identity|norm)"
    layouts = (trailing_ones(r".*\.token_mixer\.(qkv|proj)\.weight", theirs=2, ours=4),)
    return Table(source, "fastvit", markers, rules, norms, layouts, state=state)


_APPLE_STEM, _APPLE_FUSED_STEM = "patch_embed.0.rbr_conv.0.conv.weight", "patch_embed.0.reparam_conv.weight"
_APPLE_ATTENTION = "network.7.0.token_mixer.qkv.weight"
_FASTVIT = (
    _fastvit("timm", ("stem.0.conv_kxk.0.conv.weight",), _TIMM_FASTVIT),
    _fastvit("timm", ("stem.0.reparam_conv.weight",), _TIMM_FASTVIT_FUSED, "branches"),
    _fastvit("apple", (_APPLE_STEM, _APPLE_ATTENTION), _APPLE_TO_TIMM_HYBRID + _TIMM_FASTVIT),
    _fastvit("apple", (_APPLE_STEM,), _APPLE_TO_TIMM + _TIMM_FASTVIT),
    _fastvit("apple", (_APPLE_FUSED_STEM, _APPLE_ATTENTION), _APPLE_TO_TIMM_HYBRID + _TIMM_FASTVIT_FUSED, "branches"),
    _fastvit("apple", (_APPLE_FUSED_STEM,), _APPLE_TO_TIMM + _TIMM_FASTVIT_FUSED, "branches"),
)

# -- RIFormer and PoolFormer ------------------------------------------------------------------------------------------


def _riformer(backbone: str, norm1: Rule, marker: str, state: str) -> Table:
    """mmpretrain's layout; ``backbone`` is the prefix in a classifier's file and empty in a backbone's own."""
    return Table(
        source="mmpretrain",
        family="riformer",
        markers=(f"{backbone}patch_embed.proj.weight", f"{backbone}network.0.0.{marker}"),
        rules=(
            Rule(f"{backbone}network.{{2i-1}}.proj.{{leaf}}", "stages.{i}.patch_embed.{leaf}"),
            Rule(f"{backbone}network.{{2i}}.{{j}}.{{rest}}", "stages.{i}.blocks.{j}.{rest}"),
            Rule(f"{backbone}patch_embed.proj.{{leaf}}", "stages.0.patch_embed.{leaf}"),
            Rule(f"{backbone}norm6.{{leaf}}", "norm.{leaf}"),
            norm1,
            Rule("{path}.layer_scale_{i}", "{path}.layer_scale{i}.gamma"),
            _HEAD,
        ),
        norms=r"norm|.*\.norm2|.*\.token_mixer(\.norm)?",
        roots=(backbone, "head.") if backbone else ("",),
        unused=rf"{re.escape(backbone)}norm[0-5]\..*",
        state=state,
    )


_AFFINE = Rule("{path}.norm1.{leaf}", "{path}.token_mixer.norm.{leaf}"), "token_mixer.affine.weight", "train"
_DEPLOY = Rule("{path}.norm_reparam.{leaf}", "{path}.token_mixer.{leaf}"), "norm_reparam.weight", "branches"
_RIFORMER = (
    _riformer("backbone.", *_AFFINE),
    _riformer("backbone.", *_DEPLOY),
    _riformer("", *_AFFINE),
    _riformer("", *_DEPLOY),
)

_POOLFORMER = (
    Table(
        source="timm",
        family="poolformer",
        markers=("stem.conv.weight", "stages.0.blocks.0.layer_scale1.scale"),
        rules=(
            Rule("stages.{i}.downsample.conv.{leaf}", "stages.{i}.patch_embed.{leaf}"),
            Rule("stem.conv.{leaf}", "stages.0.patch_embed.{leaf}"),
            Rule("{path}.norm1.{leaf}", "{path}.token_mixer.norm.{leaf}"),
            Rule("{path}.layer_scale{i}.scale", "{path}.layer_scale{i}.gamma"),
            Rule("head.norm.{leaf}", "norm.{leaf}"),
            _HEAD,
        ),
        norms=r"norm|.*\.norm2|.*\.token_mixer\.norm",
    ),
)

# -- The other teachers -----------------------------------------------------------------------------------------------

_REGNET = (
    Table(
        source="timm",
        family="regnet",
        markers=("stem.conv.weight", "s1.b1.se.fc1.weight"),
        rules=(
            Rule("s{i+1}.b{j+1}.{rest}", "stages.{i}.{j}.{rest}"),
            *conv_norm("{path}", "{path}"),
            _HEAD,
        ),
        norms=r"stem\.1|.*\.(conv\d|downsample)\.1",
    ),
)

_GFNET = (
    Table(
        source="gfnet",
        family="gfnet",
        markers=("patch_embed.0.proj.weight", "blocks.0.0.filter.complex_weight"),
        rules=(
            Rule("patch_embed.{i}.proj.{leaf}", "stages.{i}.patch_embed.{leaf}"),
            Rule("blocks.{i}.{j}.{rest}", "stages.{i}.blocks.{j}.{rest}"),
        ),
        norms=r"norm|.*\.norm[12]",
        layouts=(tokens("pos_embed"),),
    ),
)

TABLES: tuple[Table, ...] = (*_VISFORMER, *_FASTVIT, *_RIFORMER, *_POOLFORMER, *_REGNET, *_GFNET)
