"""MindCV's own training loop beside the device of ``host_cost.py``, on one rank. Argument: a JSON of its options.

Its trainer, step, optimizer and monitor (``StateMonitor``), which makes log lines and checkpoints. Batches
lie in memory and come out of a ``GeneratorDataset`` as its loader's do.
"""

import json
import logging
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from host_cost import CLASSES, LOG_INTERVAL, Device, of_steps, timed

from mindcv_reparam import runtime


def standing_in(step, device: Device, counts: list[tuple[float, ...]]):
    """The same step, whose call queues work of the device and returns."""
    import mindspore as ms

    told = ms.Tensor(1.0, ms.float32)

    def call(self, *inputs):
        counts.append(device.count())
        device.sent += sum(one.nbytes for one in inputs)
        device.work()
        return told + 0.0

    step.__class__ = type("StandIn", (type(step),), {"__call__": call})


def loop(args, device: Device, folder: str) -> dict[str, float]:
    import mindspore as ms
    from mindcv.loss import create_loss
    from mindcv.models import create_model
    from mindcv.optim import create_optimizer
    from mindcv.utils import StateMonitor, create_trainer

    network = create_model(args.model, num_classes=CLASSES)
    rates = [1e-3] * (2 * args.steps)
    optimizer = create_optimizer(network.trainable_params(), opt="adamw", lr=rates, weight_decay=0.05)
    model = create_trainer(
        network, create_loss(), optimizer, {"a": ms.nn.Loss()}, "O0", None, "fixed", ema=True, loss_scale=1.0
    )
    counts: list[tuple[float, ...]] = []
    standing_in(model.train_network, device, counts)
    ms.ops.assign(optimizer.global_step, ms.Tensor([7], ms.int32))  # which the step would count
    images = np.zeros((args.batch, 3, args.image_size, args.image_size), np.float32)
    labels = np.zeros((args.batch, CLASSES), np.float32)
    batches = ms.dataset.GeneratorDataset(
        lambda: ((images, labels) for _ in range(args.steps)), ["image", "label"], shuffle=False
    )
    batches.dataset_size = args.steps
    # Without a validation: to put averages in place, it hands Tensors to load_param_into_net, which MindSpore refuses.
    monitor = StateMonitor(
        *(model, args.model),
        dataset_sink_mode=False,
        ckpt_save_dir=folder,
        summary_dir=folder,
        log_interval=LOG_INTERVAL,
    )
    ended: list[float] = []
    monitor.on_train_epoch_end = timed(monitor.on_train_epoch_end, ended)
    device.install()
    model.train(2, batches, callbacks=[monitor], dataset_sink_mode=False)
    for thread in threading.enumerate():
        if thread.name == "asyn_save_ckpt":
            thread.join()
    logged = (np.arange(1, args.steps) % LOG_INTERVAL == 0) | (np.arange(1, args.steps) == 1)
    return of_steps(counts, args.steps, logged, device) | {
        "state and checkpoints (s)": ended[-1],
        "averages in and out (s)": float("nan"),
    }


if __name__ == "__main__":
    args = SimpleNamespace(**json.loads(sys.argv[1]))
    logging.disable(logging.WARNING)
    runtime.prepare("CPU", seed=0)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(loop(args, Device(args.step_ms / 1e3), folder)), flush=True)
