"""Files that go from one MindSpore to another: ``exchange.py write|read FOLDER``, each with a Python of its own.

``write`` leaves a checkpoint, a bundle in both formats and the outputs of a small network of every family; ``read``
loads them strictly, computes the same, and verifies the bundle.
"""

import sys
from pathlib import Path

import numpy as np

from mindcv_reparam import runtime

FAMILIES = ("visformer", "fastvit", "riformer")
LARGEST = 1e-5  # difference, relative to the largest output


def write(folder: Path) -> None:
    from networks import IMAGE_SIZE, NUM_CLASSES, SMALL, random_images, small_network

    from mindcv_reparam import reparameterize
    from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
    from mindcv_reparam.export.bundle import Candidate, write_bundle
    from mindcv_reparam.export.graph import Interface
    from mindcv_reparam.registry import model_info

    folder.mkdir(parents=True)
    outputs = {}
    for family in FAMILIES:
        model, hparams = SMALL[family]
        net = small_network(family)
        outputs[family] = net(random_images()).asnumpy()
        hparams = {**hparams, "num_classes": NUM_CLASSES, "in_channels": 3, "img_size": IMAGE_SIZE}
        preprocessing = dict(model_info(model).preprocessing, image_resize=IMAGE_SIZE)
        info = CheckpointInfo(model, hparams, [f"class {index}" for index in range(NUM_CLASSES)], preprocessing)
        save_checkpoint(folder / f"{family}.ckpt", net, info)
    np.savez(folder / "outputs.npz", **outputs)
    fused = Candidate(reparameterize(net), info, "full", str(folder / f"{family}.ckpt"))
    write_bundle(folder / "bundle", fused, Interface(batch_sizes=(2,)), ("MINDIR", "ONNX"))


def read(folder: Path) -> None:
    from networks import difference, random_images

    from mindcv_reparam.run.verify import verify_bundle
    from mindcv_reparam.zoo import model_from_checkpoint

    with np.load(folder / "outputs.npz") as outputs:
        for family in FAMILIES:
            net, _ = model_from_checkpoint(folder / f"{family}.ckpt")
            found = difference(net.set_train(False)(random_images()), outputs[family])
            if not found <= LARGEST:
                sys.exit(f"{family}.ckpt computes something else here: {found:.1e} of the largest output")
            print(f"{family}.ckpt: {found:.1e}")
    for line in verify_bundle(folder / "bundle"):
        print(line)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    runtime.prepare("CPU", seed=0)
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
