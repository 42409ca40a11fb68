"""transformers' RT-DETR as published, with random weights."""

from typing import Any

import torch
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

BASIC = dict(backbone=dict(layer_type="basic", hidden_sizes=[64, 128, 256, 512]), expansion=0.5)
BOTTLENECK = dict(backbone=dict(layer_type="bottleneck", hidden_sizes=[256, 512, 1024, 2048]), expansion=1.0)
MODELS: dict[str, dict[str, Any]] = {
    "rtdetr_r18vd": dict(BASIC, depths=[2, 2, 2, 2], layers=3),
    "rtdetr_r34vd": dict(BASIC, depths=[3, 4, 6, 3], layers=4),
    "rtdetr_r50vd": dict(BOTTLENECK, depths=[3, 4, 6, 3], layers=6),
    "rtdetr_r101vd": dict(
        BOTTLENECK,
        depths=[3, 4, 23, 3],
        layers=6,
        more=dict(encoder_hidden_dim=384, encoder_ffn_dim=2048, decoder_in_channels=[384] * 3),
    ),
}


def configuration(model: str, size: int | None = None) -> RTDetrConfig:
    """By this project's name. With a ``size`` in pixels, anchors are constants, as in the authors' exports."""
    sizes = MODELS[model]
    backbone = RTDetrResNetConfig(
        **sizes["backbone"], depths=sizes["depths"], out_features=["stage2", "stage3", "stage4"]
    )
    return RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=sizes["backbone"]["hidden_sizes"][1:],
        decoder_layers=sizes["layers"],
        hidden_expansion=sizes["expansion"],
        num_labels=80,
        freeze_backbone_batch_norms=sizes["backbone"]["layer_type"] == "bottleneck",  # as in the authors' recipes
        anchor_image_size=[size, size] if size else None,
        **sizes.get("more", {}),
    )


@torch.no_grad()
def randomise(net: RTDetrForObjectDetection) -> RTDetrForObjectDetection:
    """In place: no weight is what it is at the start of a training, where many are zero or alike."""
    for name, value in net.state_dict().items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "running_var" or (value.ndim == 1 and leaf == "weight"):
            value.uniform_(0.7, 1.3)
        elif leaf in ("bias", "running_mean"):
            value.normal_(0, 1.5 if "sampling_offsets" in name else 0.05)
        elif value.ndim > 1:
            value.normal_(0, (1.5 / value[0].numel()) ** 0.5)
    return net
