"""Networks as models that run here and now, not exported."""

import os

import numpy as np

from mindcv_reparam.bundle.manifest import INPUT_NAME, Manifest
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.errors import UserError
from mindcv_reparam.network import Network
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
    return network_manifest(network, (batch_size,)), cell_program(network)


def network_model(network: Network, batch_sizes: tuple[int, ...] | None) -> tuple[Manifest, Program]:
    """The same of a network as it is, which runs in evaluation mode and is afterwards in the mode that it was in.

    Args:
        batch_sizes: that it takes, each a graph of its own; None for any.

    Raises:
        UserError: it gives features.
    """
    if not network.is_whole:
        results = task_of(network.model_name).results
        raise UserError(f"this {network.model_name} gives features and has no {results.what} to tell")
    program = cell_program(network)

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        was_training = network.training
        network.set_train(False)
        try:
            return program(*inputs)
        finally:
            network.set_train(was_training)

    return network_manifest(network, batch_sizes), run


def network_manifest(network: Network, batch_sizes: tuple[int, ...] | None) -> Manifest:
    """What a bundle's manifest would say of a network."""
    hparams, task = network.hparams, task_of(network.model_name)
    size = height_and_width(hparams["img_size"])
    batch = batch_sizes[0] if batch_sizes and len(batch_sizes) == 1 else None
    kind, outputs = task.results.plain(hparams, batch)
    return Manifest(
        model=network.model_name,
        state="full",
        input=TensorSpec(INPUT_NAME, "float32", (batch, hparams["in_channels"], *size)),
        input_kind="normalized",
        outputs=outputs,
        output_kind=kind,
        batch_sizes=batch_sizes,
        weights="fp32",
        files={},
        labels=network.labels or network.classes,
        preprocessing={**network.preprocessing, "image_resize": size},
        task=task.name,
        category_ids=network.category_ids,
    )
