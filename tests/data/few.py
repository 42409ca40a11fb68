"""A Visformer with few blocks, for tests that start processes: ``MINDCV_REPARAM_FAMILIES`` names this file."""

from mindcv_reparam.models.visformer import Visformer
from mindcv_reparam.registry import register_variants

FAMILY = {
    "input_size": 32,
    "crop_pct": 1.0,
    "blocks": r"stage\d\.\d+\.",
    "models": {"visformer_few": {}},
}

FEW = dict(init_channels=16, embed_dim=64, depths=(0, 1, 1, 1), num_heads=(2, 2), qk_scale=-0.25, drop_path_rate=0.0)
register_variants(Visformer, {"visformer_few": FEW})
