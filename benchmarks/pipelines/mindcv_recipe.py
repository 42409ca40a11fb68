"""MindCV's own pipeline with its own transforms. Arguments: JSON of settings, folder, workers, checkout or ""."""

import json
import sys
from collections.abc import Iterator

from rounds import serve

settings, folder, workers, checkout = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
if checkout:
    sys.path.insert(0, checkout)

from mindcv.data import create_dataset, create_loader, create_transforms  # noqa: E402

TRANSFORMS = ("image_resize", "auto_augment", "interpolation", "re_prob", "color_jitter")
MIXING = ("mixup", "cutmix", "cutmix_prob", "num_classes")
transforms = {key: value for key, value in settings.items() if key in TRANSFORMS}
# rand-… is timm's name for what MindCV calls randaug-…; colour jitter is off where MindCV's script leaves it off.
if "auto_augment" in transforms:
    transforms["auto_augment"] = transforms["auto_augment"].replace("rand-", "randaug-")
mixing = {key: value for key, value in settings.items() if key in MIXING}


def epoch() -> Iterator[int]:
    images = create_dataset("imagenet", folder, "train", shuffle=True, num_parallel_workers=workers)
    batches = create_loader(
        images,
        settings["batch_size"],
        drop_remainder=True,
        is_training=True,
        transform=create_transforms("imagenet", is_training=True, **transforms),
        num_parallel_workers=workers,
        **mixing,
    )
    for batch in batches.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False):
        yield len(batch[0])


serve(epoch)
