"""RIFormer: Keep Your Vision Backbone Effective But Removing Token Mixer (Wang et al., arXiv 2304.05659).

A MetaFormer whose token mixer is, for inference, nothing but a normalisation. mmpretrain publishes its weights, of the
train-time network and of the deployed one, which is level "branches" here.
"""

from mindspore import nn

from .. import fusion
from ..layers import GroupNorm, conv2d, linear_of
from ..registry import register_variants
from ..reparam import Reparameterizable
from .metaformer import SIZES, MetaFormer


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


VARIANTS = {f"riformer_{size}": hyper_parameters for size, hyper_parameters in SIZES.items()}
register_variants(RIFormer, VARIANTS)
