"""Measure a checkpoint, train-time or fused: top-1, top-5 and loss over every validation image once.

python validate.py -c configs/visformer/visformer_tiny_ascend.yaml --ckpt_path FILE --data_dir /path/to/imagenet
mpirun -n 8 python validate.py ...
"""

import json
from pathlib import Path

from mindcv_reparam import distributed, runtime
from mindcv_reparam.config import parse
from mindcv_reparam.data import create_dataset, create_loader
from mindcv_reparam.errors import run_script
from mindcv_reparam.files import check_checkpoint, written_whole


def main() -> None:
    config = parse(None, "validate")
    check_checkpoint(config.ckpt_path)
    runtime.show_log()
    device = runtime.prepare(config.device_target, config.mode, config.seed)
    ranks = distributed.start(None, device)  # as launched: a recipe that asks for eight devices can be checked on one

    from mindcv_reparam.checkpoint import model_from_checkpoint
    from mindcv_reparam.cpu import use_kernels
    from mindcv_reparam.training.evaluate import evaluate
    from mindcv_reparam.training.precision import mixed_precision, supported_level

    network, info = model_from_checkpoint(config.ckpt_path, config.model, **config.model_arguments())
    config = config.with_defaults(**info.preprocessing, num_classes=info.hparams["num_classes"])
    mixed_precision(network, supported_level(config.val_amp_level, device))
    if device == "CPU":
        use_kernels(network)
    source = create_dataset(config, train=False, classes=info.classes)
    with create_loader(source, config, train=False, rank=ranks.rank, size=ranks.size) as loader:
        result = evaluate(network, loader, ranks)
    if ranks.is_main:
        print(
            f"{info.model} ({info.state}): top-1 {result.top1:.3f} % ({result.correct1}/{result.samples}), "
            f"top-5 {result.top5:.3f} % ({result.correct5}/{result.samples}), loss {result.loss:.4f}, "
            f"{result.images_per_second:.1f} img/s"
        )
        if config.output:
            report = {"model": info.model, "state": info.state, "checkpoint": config.ckpt_path}
            report |= {name: getattr(result, name) for name in ("samples", "correct1", "correct5", "top1", "top5")}
            report |= {"loss": result.loss, "images_per_second": result.images_per_second}
            with written_whole(Path(config.output)) as temporary:
                temporary.write_text(json.dumps(report, indent=2) + "\n")
    ranks.close()


if __name__ == "__main__":
    run_script(main)
