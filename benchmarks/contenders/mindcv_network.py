"""MindCV's networks. Argument: JSON with model, size, batch, threads, form ("inference" or "step") and checkout."""

import json
import sys

import numpy as np
from serve import serve


def main(settings: dict) -> None:
    sys.path[:0] = [settings["checkout"]] if settings["checkout"] else []

    import mindcv
    import mindspore as ms
    from mindcv.loss import create_loss
    from mindcv.optim import create_optimizer
    from mindspore import nn
    from mindspore.device_context.cpu import op_tuning

    ms.set_device("CPU")
    op_tuning.threads_num(settings["threads"])
    ms.set_context(mode=ms.GRAPH_MODE)
    net = mindcv.create_model(settings["model"], num_classes=1000)
    shape = (settings["batch"], 3, settings["size"], settings["size"])
    images = ms.Tensor(np.random.default_rng(0).standard_normal(shape), ms.float32)
    if settings["form"] == "step":
        optimizer = create_optimizer(net.trainable_params(), opt="adamw", lr=1e-3, weight_decay=0.05)
        step = nn.TrainOneStepCell(nn.WithLossCell(net, create_loss("CE")), optimizer).set_train()
        labels = ms.Tensor(np.arange(shape[0]), ms.int32)
        serve(lambda: step(images, labels).asnumpy())
    else:
        net.set_train(False)
        serve(lambda: net(images).asnumpy())


main(json.loads(sys.argv[1]))
