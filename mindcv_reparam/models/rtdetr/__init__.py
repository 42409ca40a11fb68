"""RT-DETR: DETRs Beat YOLOs on Real-time Object Detection (Zhao et al., arXiv 2304.08069).

``rtdetr_r*`` are the published detectors; the others put their encoder and decoder on the backbones of this zoo, with
the head of ``rtdetr_r18vd``.
"""

from typing import Any

from mindcv_reparam.models.rtdetr.detector import RTDETR
from mindcv_reparam.models.rtdetr.formats import FORMATS
from mindcv_reparam.registry import register_variants

FAMILY = {
    "place": 7,
    "task": "detection",
    "num_classes": 80,
    "input_size": 640,
    "queries": 300,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "blocks": r"backbone\.(stages\.\d+\.blocks\.\d+|stage\d\.\d+|res_layers\.\d+\.blocks\.\d+)\.",
    "models": {
        "rtdetr_riformer_s12": {},
        "rtdetr_riformer_s24": {},
        "rtdetr_riformer_s36": {},
        "rtdetr_riformer_m36": {},
        "rtdetr_riformer_m48": {},
        "rtdetr_riformer_xs": {"input_size": 128, "queries": 30},
        "rtdetr_fastvit_t8": {},
        "rtdetr_fastvit_t12": {},
        "rtdetr_fastvit_s12": {},
        "rtdetr_fastvit_sa12": {},
        "rtdetr_fastvit_sa24": {},
        "rtdetr_fastvit_sa36": {},
        "rtdetr_fastvit_ma36": {},
        "rtdetr_visformer_tiny": {},
        "rtdetr_visformer_tiny_v2": {},
        "rtdetr_visformer_small": {},
        "rtdetr_visformer_small_v2": {},
        # These see pixels in 0 to 1 as they are.
        "rtdetr_r18vd": {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
        "rtdetr_r34vd": {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
        "rtdetr_r50vd_m": {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
        "rtdetr_r50vd": {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
        "rtdetr_r101vd": {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
    },
    "published": {
        "lyuwenyu/RT-DETR": {
            640: {
                "rtdetr_r18vd": (46.5, 63.8),
                "rtdetr_r34vd": (48.9, 66.8),
                "rtdetr_r50vd_m": (51.3, 69.6),
                "rtdetr_r50vd": (53.1, 71.3),
                "rtdetr_r101vd": (54.3, 72.7),
            },
        },
        "lyuwenyu/RT-DETR, Objects365": {
            640: {
                "rtdetr_r18vd": (49.2, None),
                "rtdetr_r50vd": (55.3, None),
                "rtdetr_r101vd": (56.2, None),
            },
        },
    },
}

_R18: dict[str, Any] = dict(num_layers=3)
_R50: dict[str, Any] = dict(expansion=1.0, num_layers=6)
_RIFORMER = {
    f"rtdetr_riformer_{size}": dict(backbone=f"riformer_{size}", output_norms=True, **_R18)
    for size in ("s12", "s24", "s36", "m36", "m48")
}
_OTHERS = {
    f"rtdetr_{backbone}": dict(backbone=backbone, **_R18)
    for backbone in (
        *(f"fastvit_{size}" for size in ("t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36")),
        *(f"visformer_{size}" for size in ("tiny", "tiny_v2", "small", "small_v2")),
    )
}
VARIANTS = {
    **_RIFORMER,
    "rtdetr_riformer_xs": dict(
        backbone="riformer_s12",
        output_norms=True,
        depths=(1, 1, 2, 1),
        embed_dims=(32, 64, 96, 128),
        layer_scale_init_value=0.1,
        encoder_dim=64,
        encoder_feedforward=128,
        num_blocks=1,
        hidden_dim=64,
        dim_feedforward=128,
        num_heads=4,
        num_layers=2,
        num_queries=30,
    ),
    **_OTHERS,
    "rtdetr_r18vd": dict(backbone="resnet18_vd", **_R18),
    "rtdetr_r34vd": dict(backbone="resnet34_vd", num_layers=4),
    "rtdetr_r50vd_m": dict(backbone="resnet50_vd", num_layers=6, eval_idx=2),
    "rtdetr_r50vd": dict(backbone="resnet50_vd", **_R50),
    "rtdetr_r101vd": dict(backbone="resnet101_vd", encoder_dim=384, encoder_feedforward=2048, **_R50),
}
register_variants(RTDETR, VARIANTS, FORMATS)
