"""A checkpoint as a model that runs here and now, fused but not exported."""

import os

from mindcv_reparam.bundle.manifest import INPUT_NAME, Manifest
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.reparam import reparameterize
from mindcv_reparam.run.runners import Program, cell_program
from mindcv_reparam.tasks import task_of
from mindcv_reparam.tensors import TensorSpec
from mindcv_reparam.zoo import model_from_checkpoint


def fused_model(path: str | os.PathLike[str], batch_size: int, model: str | None = None) -> tuple[Manifest, Program]:
    """What a bundle's manifest would say of a checkpoint's network, and the network at full re-parameterization.

    Args:
        batch_size: the only one it takes, since MindSpore compiles the graph anew for every other.
        model: name of the model, for a file that does not tell it.

    Raises:
        UserError: the file cannot be read, does not fit, or is of another model than ``model``.
    """
    network, info = model_from_checkpoint(path, model)
    if info.state != "full":
        network = reparameterize(network, "full")
    size = height_and_width(info.hparams["img_size"])
    task = task_of(info.model)
    kind, outputs = task.results.plain(info.hparams, batch_size)
    manifest = Manifest(
        model=info.model,
        state="full",
        input=TensorSpec(INPUT_NAME, "float32", (batch_size, info.hparams["in_channels"], *size)),
        input_kind="normalized",
        outputs=outputs,
        output_kind=kind,
        batch_sizes=(batch_size,),
        weights="fp32",
        files={},
        labels=tuple(info.labels or info.classes or ()),
        preprocessing={**info.preprocessing, "image_resize": size},
        task=task.name,
        category_ids=info.category_ids,
    )
    return manifest, cell_program(network)
