"""RT-DETR (Zhao et al., arXiv 2304.08069): a backbone of the zoo, the hybrid encoder and the decoder."""

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from mindspore import nn, ops

from mindcv_reparam.errors import UserError
from mindcv_reparam.features import feature_network
from mindcv_reparam.layers import Gelu, GroupNorm, fold_before, fold_norm
from mindcv_reparam.models import resnet_vd
from mindcv_reparam.models.rtdetr.decoder import RTDETRTransformer, check_queries
from mindcv_reparam.models.rtdetr.deformable import Sampling
from mindcv_reparam.models.rtdetr.encoder import HybridEncoder
from mindcv_reparam.registry import VARIANTS, model_info
from mindcv_reparam.reparam import Reparameterizable
from mindcv_reparam.tree import copy_of, replace_child

STRIDES = (8, 16, 32)


@ops.constexpr
def check_size(height: int, width: int) -> None:
    """Refuse images whose maps do not double from one to the next.

    Raises:
        UserError: a side is no multiple of 32.
    """
    if height % STRIDES[-1] or width % STRIDES[-1] or not height * width:
        raise UserError(f"image size {height}x{width}: both sides must be multiples of {STRIDES[-1]}")


class RTDETR(Reparameterizable, nn.Cell):
    """RT-DETR: images (N, in_channels, H, W) → logits (N, Q, classes) and boxes (N, Q, 4), cx cy w h in 0 to 1.

    The queries come in the order of their selection, best first; there is no class for the background. Images may have
    any size of which both sides are multiples of 32, if the backbone takes it.

    Args:
        backbone: a model of the zoo or of resnet_vd with maps at strides 8, 16 and 32.
        output_norms: normalise these maps by the ``output_norm`` of their family, as RIFormer's detectors do.
        encoder_dim, encoder_feedforward: channels of the encoder's maps, and inside its MLP.
        expansion, num_blocks: see HybridEncoder.
        hidden_dim, dim_feedforward: channels of the decoder's queries, and inside its MLPs.
        num_heads: of attention in both.
        num_layers, num_queries, num_points, eval_idx, sampling: see RTDETRTransformer.
        img_size: (height, width) that a backbone with a parameter per pixel is built for.
        drop_rate, drop_path_rate, gelu, depths, embed_dims, layer_scale_init_value: the backbone's hyper-parameters,
            where they are not its own.

    Raises:
        UserError: the backbone lacks such a map or hyper-parameter, the image size is no multiple of 32, or its maps
            have fewer pixels than there are queries.
    """

    # What has an entry per class.
    classifier = ("decoder.enc_score_head", "decoder.dec_score_head", "decoder.denoising_class_embed")

    def __init__(
        self,
        backbone: str,
        output_norms: bool = False,
        encoder_dim: int = 256,
        encoder_feedforward: int = 1024,
        expansion: float = 0.5,
        num_blocks: int = 3,
        hidden_dim: int = 256,
        dim_feedforward: int = 1024,
        num_heads: int = 8,
        num_layers: int = 3,
        num_queries: int = 300,
        num_points: int = 4,
        eval_idx: int = -1,
        sampling: Sampling = "gather",
        num_classes: int = 80,
        in_channels: int = 3,
        img_size: tuple[int, int] = (640, 640),
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        gelu: Gelu | None = None,
        depths: tuple[int, ...] = (),
        embed_dims: tuple[int, ...] = (),
        layer_scale_init_value: float | None = None,
    ):
        super().__init__()
        self.num_queries, self.img_size = num_queries, img_size
        self._check(*img_size)
        changed: dict[str, Any] = {
            **{"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "gelu": gelu},
            **{"depths": tuple(depths), "embed_dims": tuple(embed_dims)},
            "layer_scale_init_value": layer_scale_init_value,
        }
        changed = {key: value for key, value in changed.items() if value is not None and value != ()}
        self.backbone = _backbone(backbone, output_norms, changed, in_channels=in_channels, img_size=img_size)
        self.resized = getattr(self.backbone, "resized", {})
        channels = tuple(info["channels"] for info in self.backbone.feature_info)
        self.layers = num_layers
        self.encoder = HybridEncoder(channels, encoder_dim, num_heads, encoder_feedforward, expansion, num_blocks)
        self.decoder = RTDETRTransformer(
            (encoder_dim,) * len(channels),
            num_classes,
            hidden_dim,
            num_heads,
            dim_feedforward,
            num_layers,
            num_queries,
            num_points,
            eval_idx,
            sampling,
        )

    def _check(self, height: int, width: int) -> None:
        check_size(height, width)
        check_queries(self.num_queries, tuple((height // stride, width // stride) for stride in STRIDES))

    def check_sides(self, sides: Sequence[int]) -> None:
        """Refuse square images that the network, as it was built, does not take.

        Raises:
            UserError: a side is no multiple of 32, its maps have fewer pixels than there are queries, or the backbone
                has a parameter per pixel of images of another size.
        """
        for side in sides:
            self._check(side, side)
            if self.resized and (side, side) != tuple(self.img_size):
                raise UserError(
                    f"images of {side}x{side}: the backbone has parameters per pixel, for {self.img_size[0]}x"
                    f"{self.img_size[1]} alone; leave multi_scale out, or take another backbone"
                )

    def features(self, images):
        """The encoder's three maps."""
        check_size(images.shape[2], images.shape[3])
        return self.encoder(self.backbone(images))

    def construct(self, images):
        return self.decoder(self.features(images))

    def forward_training(self, images, dn_labels, dn_references, dn_blocked):
        """See RTDETRTransformer.forward_training, of images (N, in_channels, H, W)."""
        return self.decoder.forward_training(self.features(images), dn_labels, dn_references, dn_blocked)

    def fuse(self) -> nn.Cell:
        """The scale and shift of the norms of the backbone's outputs go into the encoder's projections."""
        new = copy_of(self)
        for i, index in enumerate(new.backbone.out_indices):
            norm, projection = new.backbone.norms[index], new.encoder.input_proj[i]
            if isinstance(norm, GroupNorm):
                norm, projection = fold_norm(norm, projection)
            elif not isinstance(norm, nn.Identity):
                norm, projection = nn.Identity(), fold_before(norm, projection)
            replace_child(new.backbone.norms, str(index), norm)
            replace_child(new.encoder.input_proj, str(i), projection)
        return new


def _backbone(name: str, output_norms: bool, changed: dict[str, Any], **arguments: Any) -> nn.Cell:
    """The backbone of a detector, with its maps at strides 8, 16 and 32."""
    if name in resnet_vd.VARIANTS:
        network, variant = resnet_vd.ResNetVd, resnet_vd.VARIANTS[name]
    else:
        if name not in VARIANTS:
            importlib.import_module(f"mindcv_reparam.models.{model_info(name).family}")
        network, variant = VARIANTS[name]
    accepted = inspect.signature(network.__init__).parameters
    for key in [key for key in changed if key not in accepted]:
        if changed.pop(key):  # a rate of 0 is what a backbone without it has
            raise UserError(f"the backbone {name} has no hyper-parameter {key}")
    net = network(**{**variant, **changed, **arguments, "num_classes": 1})
    strides = [info["stride"] for info in net.feature_info]
    if not set(STRIDES) <= set(strides):
        raise UserError(f"the backbone {name} has maps at strides {strides}, a detector needs {list(STRIDES)}")
    return feature_network(net, [strides.index(stride) for stride in STRIDES], output_norms)
