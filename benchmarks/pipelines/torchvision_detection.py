"""What RT-DETR's authors read and augment images with. Arguments: JSON of settings, folder, workers.

The operations, their order and their settings are those of lyuwenyu/RT-DETR, rtdetr_pytorch:
configs/rtdetr/include/dataloader.yml, src/data/transforms.py and src/data/coco/coco_dataset.py, by the names that
torchvision gives them today.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rounds import serve

sys.path.append(str(Path(__file__).parents[1]))

import cpu_torchvision  # noqa: F401
import torchvision
from torchvision import tv_tensors
from torchvision.transforms import v2

settings, folder, workers = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)


class RandomIoUCrop(v2.RandomIoUCrop):
    def __call__(self, *inputs: Any) -> Any:
        return inputs if torch.rand(1) >= 0.8 else super().forward(*inputs)


class ConvertBox(v2.Transform):
    _transformed_types = (tv_tensors.BoundingBoxes,)

    def transform(self, inpt: Any, params: dict[str, Any]) -> torch.Tensor:
        boxes = torchvision.ops.box_convert(inpt, in_fmt=inpt.format.value.lower(), out_fmt="cxcywh")
        return boxes / torch.tensor(inpt.canvas_size[::-1]).tile(2)[None]


class CocoDetection(torchvision.datasets.CocoDetection):
    def __getitem__(self, index: int) -> Any:
        image, objects = super().__getitem__(index)
        width, height = image.size
        objects = [one for one in objects if one.get("iscrowd", 0) == 0]
        boxes = torch.as_tensor([one["bbox"] for one in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=width)
        boxes[:, 1::2].clamp_(min=0, max=height)
        kept = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        labels = torch.tensor([one["category_id"] for one in objects], dtype=torch.int64)
        corners = tv_tensors.BoundingBoxes(boxes[kept], format="XYXY", canvas_size=(height, width))
        return augment(image, {"boxes": corners, "labels": labels[kept]})


augment = v2.Compose(
    [
        v2.RandomPhotometricDistort(p=0.5),
        v2.RandomZoomOut(fill=0),
        RandomIoUCrop(),
        v2.SanitizeBoundingBoxes(min_size=1),
        v2.RandomHorizontalFlip(),
        v2.Resize(size=[settings["image_resize"]] * 2),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.SanitizeBoundingBoxes(min_size=1),
        ConvertBox(),
    ]
)
with contextlib.redirect_stdout(sys.stderr):  # standard output has the answers alone
    source = CocoDetection(folder / settings["train_split"], folder / settings["train_annotations"])
loader = torch.utils.data.DataLoader(
    source,
    batch_size=settings["batch_size"],
    shuffle=True,
    drop_last=True,
    num_workers=workers,
    collate_fn=lambda items: (torch.cat([image[None] for image, _ in items]), [target for _, target in items]),
)


def epoch() -> Iterator[int]:
    for images, _ in loader:
        yield len(images)


serve(epoch)
