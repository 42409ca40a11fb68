"""RIFormer: Keep Your Vision Backbone Effective But Removing Token Mixer (Wang et al., arXiv 2304.05659).

A MetaFormer whose token mixer is, for inference, nothing but a normalisation. mmpretrain publishes its weights, of the
train-time network and of the deployed one, which is level "branches" here.
"""

import re

from mindspore import nn

from mindcv_reparam import fusion
from mindcv_reparam.formats import TIMM_HEAD, Formats, Rule, State, Table
from mindcv_reparam.layers import GroupNorm, conv2d, linear_of
from mindcv_reparam.models.metaformer import SIZES, STEMS, MetaFormer, variant_of
from mindcv_reparam.registry import register_variants
from mindcv_reparam.reparam import Reparameterizable

FAMILY = {
    "place": 2,
    "input_size": 224,
    "crop_pct": 0.9,
    "blocks": r"stages\.\d+\.blocks\.\d+\.",
    "index_modes": ("stages", "mmpretrain"),
    "models": {
        "riformer_s12": {"imitates": "poolformer_s12"},
        "riformer_s24": {"imitates": "poolformer_s24"},
        "riformer_s36": {"imitates": "poolformer_s36"},
        "riformer_m36": {"crop_pct": 0.95, "imitates": "poolformer_m36"},
        "riformer_m48": {"crop_pct": 0.95, "imitates": "poolformer_m48"},
    },
    "published": {
        "mmpretrain, RIFormer paper": {
            224: {
                "riformer_s12": (76.9, 93.06),
                "riformer_s24": (80.28, 94.8),
                "riformer_s36": (81.29, 95.41),
                "riformer_m36": (82.57, 95.99),
                "riformer_m48": (82.75, 96.11),
            },
            384: {
                "riformer_s12": (78.29, 93.93),
                "riformer_s24": (81.36, 95.4),
                "riformer_s36": (82.22, 95.95),
                "riformer_m36": (83.39, 96.4),
                "riformer_m48": (83.7, 96.6),
            },
        },
    },
}


class AffineMixer(Reparameterizable, nn.Cell):
    """``affine(y) - y`` of the normed input y: a token mixer without mixing (section 3.3); fuses to a normalisation."""

    level = "branches"

    def __init__(self, dim: int):
        super().__init__()
        self.norm = GroupNorm(dim)
        self.affine = conv2d(dim, dim, groups=dim, bias=True)

    def construct(self, x):
        return self.mix(self.norm(x))

    def mix(self, y):
        """The operator without its norm, which module imitation compares with the teacher's."""
        return self.affine(y) - y

    def fuse(self) -> nn.Cell:
        """Equation 5: with an affine operator s·y + t, the norm has γ' = γ(s - 1) and β' = β(s - 1) + t."""
        weight, bias = linear_of(self.affine)
        operator = fusion.affine(weight - 1.0, bias)
        return self.norm.with_affine(*fusion.compose(operator, self.norm.affine()))


class RIFormer(MetaFormer):
    """RIFormer; see MetaFormer for the arguments."""

    token_mixer = AffineMixer
    own_parameters = ".token_mixer.affine."


VARIANTS = {f"riformer_{size}": hyper_parameters for size, hyper_parameters in SIZES.items()}


def _table(backbone: str, norm1: Rule, marker: str, state: State) -> Table:
    """mmpretrain's layout; ``backbone`` is the prefix in a classifier's file and empty in a backbone's own."""
    return Table(
        source="mmpretrain",
        markers=(f"{backbone}patch_embed.proj.weight", f"{backbone}network.0.0.{marker}"),
        rules=(
            Rule(f"{backbone}network.{{2i-1}}.proj.{{leaf}}", "stages.{i}.patch_embed.{leaf}"),
            Rule(f"{backbone}network.{{2i}}.{{j}}.{{rest}}", "stages.{i}.blocks.{j}.{rest}"),
            Rule(f"{backbone}patch_embed.proj.{{leaf}}", "stages.0.patch_embed.{leaf}"),
            Rule(f"{backbone}norm6.{{leaf}}", "norm.{leaf}"),
            norm1,
            Rule("{path}.layer_scale_{i}", "{path}.layer_scale{i}.gamma"),
            TIMM_HEAD,
        ),
        norms=r"norm|.*\.norm2|.*\.token_mixer(\.norm)?",
        roots=(backbone, "head.") if backbone else ("",),
        unused=((rf"{re.escape(backbone)}norm[0-5]\..*", "normalises an output of a backbone, not of the classifier"),),
        state=state,
    )


_Kind = tuple[Rule, str, State]
_AFFINE: _Kind = Rule("{path}.norm1.{leaf}", "{path}.token_mixer.norm.{leaf}"), "token_mixer.affine.weight", "train"
_DEPLOY: _Kind = Rule("{path}.norm_reparam.{leaf}", "{path}.token_mixer.{leaf}"), "norm_reparam.weight", "branches"
FORMATS = Formats(
    tables=tuple(_table(backbone, *kind) for backbone in ("backbone.", "") for kind in (_AFFINE, _DEPLOY)),
    stems=STEMS,
    variant=variant_of,
)
register_variants(RIFormer, VARIANTS, FORMATS)
