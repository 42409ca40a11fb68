"""What the checkpoints of other code bases call the parameters of this one: one table per format and family."""

from .rules import Table

_VISFORMER = (
    Table(
        source="timm",
        family="visformer",
        markers=("stem.1.running_mean", "patch_embed3.proj.weight", "stage3.0.attn.qkv.weight"),
        norms=r"(.*\.)?norm\d?|stem\.1",
        hparams=(("gelu", "exact"),),
    ),
    Table(
        source="mindcv",
        family="visformer",
        markers=("stem.1.moving_mean", "patch_embed3.proj.weight", "stage3.0.attn.qkv.weight"),
        hparams=(("gelu", "tanh"),),
    ),
)

TABLES: tuple[Table, ...] = (*_VISFORMER,)
