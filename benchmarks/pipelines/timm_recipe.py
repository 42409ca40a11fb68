"""timm's loader and mixing, as in its training script on a CPU. Arguments: JSON of settings, folder, workers."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rounds import serve

sys.path.append(str(Path(__file__).parents[1]))

import cpu_torchvision  # noqa: F401
from timm.data import Mixup, create_dataset, create_loader

settings, folder, workers = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
policy = settings.get("auto_augment")
size = settings.get("image_resize", 224)
loader = create_loader(
    create_dataset("", root=folder, split="train", is_training=True),
    input_size=(3, size, size),
    batch_size=settings["batch_size"],
    is_training=True,
    use_prefetcher=False,
    re_prob=settings.get("re_prob", 0.0),
    re_mode=settings.get("re_mode", "const"),
    color_jitter=settings.get("color_jitter", 0.4),
    auto_augment={"autoaug": "original-mstd0.5"}.get(policy, policy),
    interpolation="bicubic",
    num_workers=workers,
)
mix = Mixup(
    settings.get("mixup", 0.0),
    settings.get("cutmix", 0.0),
    label_smoothing=settings.get("label_smoothing", 0.0),
    num_classes=settings["num_classes"],
)


def epoch() -> Iterator[int]:
    for images, labels in loader:
        if mix.mixup_alpha or mix.cutmix_alpha:
            images, labels = mix(images, labels)
        yield len(images)


serve(epoch)
