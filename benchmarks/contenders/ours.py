"""This project's networks. Argument: JSON with model, hparams, size, batch, threads, weights and form.

form: "inference" (fused), "train-time" (the network as it trains, for inference), "step" (of training), "import" (calls
that do nothing), or "onnx", which writes ``file``, with a ``dynamic`` batch or without, and ends.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from serve import serve

from mindcv_reparam.runtime import prepare

if TYPE_CHECKING:
    import mindspore as ms
    from mindspore import nn

    from mindcv_reparam.training.step import TrainStep


def class_indices(net: "nn.Cell", batch: int) -> "ms.Tensor":
    import mindspore as ms

    return ms.Tensor(np.arange(batch), ms.int32)


def objects(net: "nn.Cell", batch: int) -> tuple["ms.Tensor", ...]:
    """Eight to an image, as in transformers_network.py, in the forms that train.py gives a detector."""
    import mindspore as ms

    from mindcv_reparam.tasks.detection.denoising import Noise, denoise

    labels, boxes = np.zeros((batch, 100), np.int32), np.zeros((batch, 100, 4), np.float32)
    side = np.linspace(0.1, 0.4, 8)
    labels[:, :8], boxes[:, :8] = np.arange(8), np.stack([1 - side, side, side, side], axis=1)
    valid = np.broadcast_to(np.arange(100) < 8, (batch, 100))
    noise = Noise.draw(np.random.default_rng(0), batch, 200, 80)
    ratios = dict(label_noise_ratio=0.5, box_noise_scale=1.0)
    made = denoise(labels, boxes, valid, noise, num_classes=80, num_queries=net.num_queries, **ratios)
    return ms.mutable(tuple(map(ms.Tensor, (labels, boxes, valid, *made.arrays()))))


TARGETS = {"classification": class_indices, "detection": objects}  # of a batch, by the network's task


def train_step(net: "nn.Cell", model: str, batch: int) -> tuple["TrainStep", object]:
    """What train.py runs for the model's task, with AdamW, and the targets of a batch."""
    from mindcv_reparam.config import Config
    from mindcv_reparam.tasks import task_of
    from mindcv_reparam.training.optimizer import create_optimizer
    from mindcv_reparam.training.step import TrainStep

    task = task_of(model)
    objective = task.objective(Config(model=model, num_classes=1000), net, (), "O0", 1)
    return TrainStep(objective, create_optimizer(net, "adamw", weight_decay=0.05)), TARGETS[task.name](net, batch)


def outputs_of(outputs: object) -> tuple["ms.Tensor", ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def main(settings: dict) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])  # as many threads as cores
    prepare("CPU", seed=0)

    import mindspore as ms

    from mindcv_reparam.checkpoint import load_checkpoint
    from mindcv_reparam.cpu import use_kernels
    from mindcv_reparam.reparam import reparameterize
    from mindcv_reparam.zoo import create_model

    if settings["form"] == "import":
        serve(lambda: None)
        return
    shape = (settings["batch"], 3, settings["size"], settings["size"])
    net = create_model(settings["model"], img_size=shape[2:], **settings["hparams"]).set_train(False)
    if settings["weights"]:
        load_checkpoint(net, Path(settings["weights"]) / "ours.ckpt")
    if settings["form"] in ("inference", "onnx"):
        net = reparameterize(net)
    images = ms.Tensor(np.random.default_rng(0).standard_normal(shape), ms.float32)
    if settings["form"] == "onnx":
        from mindcv_reparam.bundle.manifest import TensorSpec
        from mindcv_reparam.export.mindir import write_mindir
        from mindcv_reparam.export.onnx import export_onnx
        from mindcv_reparam.tasks import task_of

        file = Path(settings["file"])
        batch = None if settings["dynamic"] else shape[0]
        outputs = ("logits", "boxes") if task_of(settings["model"]).name == "detection" else ("logits",)
        write_mindir(net, file.with_suffix(".mindir"), TensorSpec("images", "float32", (batch, *shape[1:])), outputs)
        export_onnx(file.with_suffix(".mindir"), file)
    elif settings["form"] == "step":
        step, targets = train_step(net, settings["model"], shape[0])
        use_kernels(step, alone=True)  # as train.py
        rate, update = ms.Tensor(1e-3, ms.float32), ms.Tensor(True)
        serve(lambda: step(images, targets, rate, update)[0].asnumpy())
    else:
        use_kernels(net, alone=True)  # as validate.py
        serve(lambda: [output.asnumpy() for output in outputs_of(net(images))])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
