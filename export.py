"""Fuse a checkpoint and write a deployment bundle, whose files are kept only if they compute what the network does.

python export.py -c configs/visformer/visformer_tiny_ascend.yaml --ckpt_path FILE --file_format MINDIR ONNX --output DIR
"""

import dataclasses
from pathlib import Path

from mindcv_reparam import runtime
from mindcv_reparam.config import parse
from mindcv_reparam.data import create_dataset
from mindcv_reparam.errors import UserError, run_script
from mindcv_reparam.files import check_checkpoint


def main() -> None:
    config = parse(None, "export")
    check_checkpoint(config.ckpt_path)
    runtime.show_log()
    device = runtime.prepare(config.device_target, config.mode, config.seed)

    from mindcv_reparam.checkpoint import model_from_checkpoint
    from mindcv_reparam.deploy.accuracy import Comparison
    from mindcv_reparam.deploy.bundle import Candidate, write_bundle
    from mindcv_reparam.deploy.graph import Interface
    from mindcv_reparam.deploy.manifest import read_labels
    from mindcv_reparam.reparam import reparameterize

    network, info = model_from_checkpoint(config.ckpt_path, config.model, **config.model_arguments())
    fused, state = network, info.state
    if config.reparam != "none" and state != "full":
        fused, state = reparameterize(network, config.reparam), config.reparam
    interface = Interface(
        input_kind=config.export_input,
        output_kind=config.export_head,
        top_k=config.top_k,
        weights=config.export_weights,
        batch_sizes=None if config.export_batch_size == "dynamic" else tuple(sorted(set(config.export_batch_size))),
        dynamic_image_size=config.dynamic_image_size,
    )
    comparison = None
    if config.verify_data:
        if config.dataset != "digits" and not Path(config.verify_data).is_dir():
            raise UserError(f"verify_data {config.verify_data} is no folder: give one with a folder per class")
        config = dataclasses.replace(config, data_dir=config.verify_data)
        source = create_dataset(config, train=False, classes=info.classes)
        comparison = Comparison(network, source, config.num_samples)
    folder = Path(config.output or f"{info.model}_{state}")
    report = write_bundle(
        folder,
        Candidate(fused, info, state, config.ckpt_path),
        interface,
        config.file_format,
        labels=read_labels(config.labels) if config.labels else None,
        opset=config.opset,
        device_target=device,
        comparison=comparison,
    )
    for name, measurement in report.measured.items():
        print(f"{folder / report.manifest.files[name]}: {info.model} ({state}), {measurement}")


if __name__ == "__main__":
    run_script(main)
