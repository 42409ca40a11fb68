"""Mixup and cutmix of a batch, each with the normalisation before or after it, in the ways ``input_steps.py`` compares.

In the graph means in MindSpore's, here on the CPU: on an accelerator it would be that one's time, not run here.
"""

from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from way import NORMALIZE, Way

from mindcv_reparam.data.mixup import BatchMix, cutmix_box
from mindcv_reparam.data.picture import Picture

SEED = 1  # draws λ = 0.43 for mixup and a box of 103 × 90 pixels for cutmix


def mixing(small: Sequence[np.ndarray]) -> list[Way]:
    """``small``: the batch, uint8 (H, W, 3) each. The time of a batch is spread over its images."""
    count, (height, width, _) = len(small), small[0].shape
    batch, targets = np.empty((count, 3, height, width), np.float32), np.zeros((count, 1), np.float32)
    pictures = np.stack(small)
    mixup, cutmix = BatchMix(mixup_alpha=1.0), BatchMix(cutmix_alpha=1.0)
    share = mixup.draw(generator())[0]
    top, bottom, left, right = drawn_box(cutmix, height, width)
    inside = np.zeros((height, width), bool)
    inside[top:bottom, left:right] = True
    lam, mask = Tensor(share, ms.float32), Tensor(inside)

    def normalized(some: np.ndarray) -> np.ndarray:
        for picture, planes in zip(some, batch):
            NORMALIZE.fill(planes, Picture(picture))
        return batch

    def pair_by_pair(mix: BatchMix) -> np.ndarray:
        mix(normalized(pictures), targets, generator())
        return batch

    def at_once() -> np.ndarray:
        images = normalized(pictures)
        return np.float32(share) * images + np.float32(1 - share) * images[::-1]

    def patch_at_once() -> np.ndarray:
        images = normalized(pictures)
        images[:, :, top:bottom, left:right] = images[::-1, :, top:bottom, left:right].copy()
        return images

    def in_bytes() -> np.ndarray:
        first, second = np.uint16([round(256 * share), 256 - round(256 * share)])[:, None, None, None]
        mixed = np.empty_like(pictures)
        for index, picture in enumerate(pictures):
            mixed[index] = (picture * first + pictures[-1 - index] * second + 128) >> 8
        return normalized(mixed)

    def patch_in_bytes() -> np.ndarray:
        mixed = pictures.copy()
        mixed[:, top:bottom, left:right] = pictures[::-1, top:bottom, left:right]
        return normalized(mixed)

    def in_graph(mix: Callable[..., Tensor], parameter: Tensor) -> np.ndarray:
        return mix(Tensor.from_numpy(normalized(pictures)), parameter).asnumpy()

    return [
        batch_way("normalise, no mixing", "(used)", lambda: normalized(pictures)),
        batch_way("normalise, mixup", "pair by pair, float32 (used)", lambda: pair_by_pair(mixup)),
        batch_way("normalise, mixup", "at once, float32", at_once),
        batch_way("normalise, mixup", "uint8, before normalising", in_bytes),
        batch_way("normalise, mixup", "in the graph", lambda: in_graph(blended, lam)),
        batch_way("normalise, cutmix", "pair by pair, float32 (used)", lambda: pair_by_pair(cutmix)),
        batch_way("normalise, cutmix", "all patches copied, float32", patch_at_once),
        batch_way("normalise, cutmix", "uint8, before normalising", patch_in_bytes),
        batch_way("normalise, cutmix", "in the graph", lambda: in_graph(patched, mask)),
    ]


def batch_way(step: str, name: str, run: Callable[[], np.ndarray]) -> Way:
    """All of the work is done for image 0."""
    return Way(step, name, lambda index: run() if index == 0 else None)


def generator() -> np.random.Generator:
    return np.random.default_rng(SEED)


def drawn_box(cutmix: BatchMix, height: int, width: int) -> tuple[int, int, int, int]:
    rng = generator()
    return cutmix_box(height, width, cutmix.draw(rng)[0], rng)


@ms.jit
def blended(images: Tensor, lam: Tensor) -> Tensor:
    return lam * images + (1.0 - lam) * ops.flip(images, (0,))


@ms.jit
def patched(images: Tensor, inside: Tensor) -> Tensor:
    return ops.select(inside, ops.flip(images, (0,)), images)
