"""Train a model; every setting may stand in the YAML file, and flags override it.

python -m mindcv_reparam train --config configs/visformer/visformer_tiny_digits_cpu.yaml
mpirun -n 8 python -m mindcv_reparam train --config RECIPE --data_dir /path/to/imagenet
"""

import argparse
from pathlib import Path

from mindcv_reparam.config import add_settings, configuration
from mindcv_reparam.errors import Parser, require


def add_arguments(parser: Parser) -> None:
    add_settings(parser, "train")


def run(args: argparse.Namespace) -> int:
    config = configuration(args, "train")
    require("mindspore", "numpy", "PIL", "matplotlib", "numba", "tqdm")
    from mindcv_reparam import distributed, runtime
    from mindcv_reparam.checkpoint_info import check_images, network_settings
    from mindcv_reparam.owner import own
    from mindcv_reparam.registry import model_info
    from mindcv_reparam.tasks import task_of
    from mindcv_reparam.training.data import open_data
    from mindcv_reparam.training.run_log import RunLog
    from mindcv_reparam.training.tensorboard import require_tensorboard

    model = config.required_model()
    task = task_of(model)
    config = config.with_defaults(**model_info(model).preprocessing, dataset=task.datasets[0])
    config = config.with_defaults(**network_settings(config.ckpt_path or config.backbone_ckpt))
    check_images(model, config.in_channels)
    task.check(config)
    if config.tensorboard:
        require_tensorboard()
    runtime.show_log()
    own(Path(config.ckpt_save_dir))
    device = runtime.prepare(config.device_target, config.mode, config.seed, config.jit_level, config.deterministic)
    with (
        distributed.start(config.distribute, device, config.stall_timeout) as ranks,
        RunLog(ranks.is_main) as run_log,
        open_data(config, task, ranks) as data,
    ):
        # MindSpore must not be imported before runtime.prepare, nor for --help.
        from mindcv_reparam.training.assembly import train

        train(config.with_defaults(num_classes=data.num_classes), task, device, ranks, data, run_log)
    return 0
