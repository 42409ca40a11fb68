"""This project's networks. Argument: JSON with model, hparams, size, batch, threads and form.

form: "fused", "train-time" (for inference), "step" (of training), "import" (calls that do nothing), or "onnx", which
writes ``file`` and ends.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from serve import serve

from mindcv_reparam.runtime import prepare


def main(settings: dict) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])  # as many threads as cores
    prepare("CPU", seed=0)

    import mindspore as ms

    from mindcv_reparam import create_model, reparameterize
    from mindcv_reparam.cpu import use_kernels

    if settings["form"] == "import":
        serve(lambda: None)
        return
    shape = (settings["batch"], 3, settings["size"], settings["size"])
    net = create_model(settings["model"], img_size=shape[2:], **settings["hparams"]).set_train(False)
    if settings["form"] in ("fused", "onnx"):
        net = reparameterize(net)
    images = ms.Tensor(np.random.default_rng(0).standard_normal(shape), ms.float32)
    if settings["form"] == "onnx":
        from mindcv_reparam.deploy.manifest import TensorSpec
        from mindcv_reparam.deploy.mindir import write_mindir
        from mindcv_reparam.deploy.onnx import export_onnx

        file = Path(settings["file"])
        write_mindir(net, file.with_suffix(".mindir"), TensorSpec("images", "float32", shape), ("logits",))
        export_onnx(file.with_suffix(".mindir"), file)
    elif settings["form"] == "step":
        from mindcv_reparam.training.losses import create_loss
        from mindcv_reparam.training.optimizer import create_optimizer
        from mindcv_reparam.training.step import TrainStep

        optimizer = create_optimizer(net, "adamw", weight_decay=0.05)
        step = use_kernels(TrainStep(net, create_loss("CE", reduction="mean"), optimizer))
        labels = ms.Tensor(np.arange(shape[0]), ms.int32)
        rate, update = ms.Tensor(1e-3, ms.float32), ms.Tensor(True)
        serve(lambda: step(images, labels, rate, update)[0].asnumpy())
    else:
        use_kernels(net)
        serve(lambda: net(images).asnumpy())


main(json.loads(sys.argv[1]))
