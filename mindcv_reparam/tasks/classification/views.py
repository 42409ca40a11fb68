"""Test-time augmentation: several views of an image, whose probabilities are averaged."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mindcv_reparam.data.transforms import EvalTransform

COUNTS = {"none": 1, "flip": 2, "five_crop": 5, "ten_crop": 10}


@dataclass(frozen=True)
class Views:
    """``views(image)`` → float32 (count, 3, H, W), the first of them what validation sees without this, but for crops.

    "flip" is that and its mirror image; "five_crop" the four corners and the centre of the resized image, "ten_crop"
    these and their mirror images, as torchvision's FiveCrop and TenCrop have them (Krizhevsky et al., 2012).

    Args:
        transform: of validation.
        kind: one of COUNTS.
    """

    transform: EvalTransform
    kind: str = "none"

    @property
    def count(self) -> int:
        return COUNTS[self.kind]

    def __call__(self, image: Image.Image) -> np.ndarray:
        transform, resized = self.transform, self.transform.resize(image)
        places = [transform.centre(resized)]
        if self.kind in ("five_crop", "ten_crop"):
            bottom, right = resized.height - transform.size[0], resized.width - transform.size[1]
            places = [(0, 0), (0, right), (bottom, 0), (bottom, right), *places]
        views = np.stack([transform.normalize(transform.crop(resized, *place)) for place in places])
        return np.concatenate([views, views[..., ::-1]]) if self.kind in ("flip", "ten_crop") else views


def average(logits: np.ndarray, count: int) -> np.ndarray:
    """Logits (N, C), float64, whose probabilities are the means of those of ``count`` views each, from (N·count, C).

    Of one view they are the logits themselves, as they are.
    """
    if count == 1:
        return logits
    views = logits.astype(np.float64).reshape(-1, count, logits.shape[1])
    with np.errstate(invalid="ignore"):  # ∞ − ∞, which stays a NaN
        logs = views - np.logaddexp.reduce(views, axis=2, keepdims=True)
        return np.logaddexp.reduce(logs, axis=1) - np.log(count)
