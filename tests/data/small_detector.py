"""``rtdetr_small``, a family from outside the package: a detector that compiles sooner than those it has."""

from networks import SMALL_DETECTOR

from mindcv_reparam.models.rtdetr import RTDETR
from mindcv_reparam.registry import register_variants

FAMILY = {
    "task": "detection",
    "num_classes": 10,
    "input_size": 64,
    "queries": 30,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "blocks": r"backbone\.stages\.\d+\.blocks\.\d+\.",
    "models": {"rtdetr_small": {}},
    "published": {},
}
VARIANTS = {"rtdetr_small": {"backbone": "riformer_s12", "output_norms": True, **SMALL_DETECTOR}}
register_variants(RTDETR, VARIANTS)
