"""Write a checkpoint for deployment, and leave the file only if it computes what the network does.

python export.py -c configs/visformer/visformer_tiny_ascend.yaml --ckpt_path FILE --output exports
"""

from pathlib import Path

from mindcv_reparam import runtime
from mindcv_reparam.config import parse
from mindcv_reparam.errors import run_script


def main() -> None:
    config = parse(None, "export")
    runtime.show_log()
    runtime.prepare(config.device_target, config.mode, config.seed)

    from mindcv_reparam.checkpoint import model_from_checkpoint
    from mindcv_reparam.deploy.compare import input_shape
    from mindcv_reparam.deploy.mindir import export_mindir
    from mindcv_reparam.reparam import reparameterize

    network, info = model_from_checkpoint(config.ckpt_path, config.model, **config.model_arguments())
    state = info.state
    if config.reparam != "none" and state != "full":
        network, state = reparameterize(network, config.reparam), config.reparam
    shape = input_shape(info.hparams, batch=None if config.export_batch_size == "dynamic" else config.export_batch_size)
    path = Path(config.output or ".") / f"{info.model}_{state}.mindir"
    difference = export_mindir(network, path, shape)
    print(f"{path}: {info.model} ({state}), input {shape}, differs from the network by {difference:.1e}, relative")


if __name__ == "__main__":
    run_script(main)
