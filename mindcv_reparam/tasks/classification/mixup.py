"""Mixup (arXiv 1710.09412) and CutMix (1905.04899), one draw per batch as in timm's ``Mixup(mode="batch")``."""

from dataclasses import dataclass

import numpy as np


def soft_labels(labels: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """One-hot labels smoothed by ``smoothing``: float32 (N, num_classes) of rows that sum to 1."""
    targets = np.full((len(labels), num_classes), smoothing / num_classes, dtype=np.float32)
    targets[np.arange(len(labels)), labels] += np.float32(1.0 - smoothing)
    return targets


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed with itself in reverse order.

    Args:
        share: of the reversed images, 0 for none.
        box: top, bottom, left, right of what the images swap, empty for nothing.
        label_share: of the reversed labels.
    """

    share: np.float32
    box: tuple[int, int, int, int]
    label_share: np.float32

    def apply(self, images: np.ndarray) -> None:
        """Mix ``images`` (N, C, H, W) in place; bytes can only swap."""
        top, bottom, left, right = self.box
        _swap(images[:, :, top:bottom, left:right])
        if self.share != 0.0:
            _blend(images, self.share)

    def apply_to_labels(self, targets: np.ndarray) -> None:
        """Mix ``targets`` float32 (N, K) in place."""
        if self.label_share != 0.0:
            _blend(targets, self.label_share)

    def array(self) -> np.ndarray:
        """Of the images, as a graph takes it: float32 (5,), the share and the box."""
        return np.array([self.share, *self.box], np.float32)


@dataclass(frozen=True)
class BatchMix:
    """Mixes a batch with itself in reverse order, by mixup or by cutmix.

    Sample i meets sample N−1−i; the one in the middle of an odd batch meets itself and stays as it is.

    Args:
        mixup_alpha: λ ~ Beta(α, α); 0 switches it off.
        cutmix_alpha: the same for cutmix.
        probability: of mixing a batch at all (MindCV's ``cutmix_prob``).
        switch_probability: of cutmix where both kinds are on.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5

    @property
    def active(self) -> bool:
        return self.mixup_alpha > 0.0 or self.cutmix_alpha > 0.0

    def __call__(self, images: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> None:
        """Mix ``images`` float32 (N, C, H, W) and ``targets`` float32 (N, K) in place."""
        mix = self.choose(images.shape[2], images.shape[3], rng)
        mix.apply(images)
        mix.apply_to_labels(targets)

    def choose(self, height: int, width: int, rng: np.random.Generator) -> Mix:
        """How a batch of images of ``height`` × ``width`` is mixed."""
        lam, use_cutmix = self.draw(rng)
        box = (0, 0, 0, 0)
        if use_cutmix and lam != 1.0:
            box = top, bottom, left, right = cutmix_box(height, width, lam, rng)
            lam = 1.0 - (bottom - top) * (right - left) / (height * width)
        share = np.float32(1.0) - np.float32(lam)
        return Mix(np.float32(0.0) if use_cutmix else share, box, share)

    def draw(self, rng: np.random.Generator) -> tuple[float, bool]:
        """λ and whether it is for cutmix; λ = 1 leaves the batch as it is."""
        if not self.active or rng.random() >= self.probability:
            return 1.0, False
        use_cutmix = self.cutmix_alpha > 0.0
        if use_cutmix and self.mixup_alpha > 0.0:
            use_cutmix = rng.random() < self.switch_probability
        alpha = self.cutmix_alpha if use_cutmix else self.mixup_alpha
        return rng.beta(alpha, alpha), use_cutmix


def cutmix_box(height: int, width: int, lam: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box of √(1−λ) of each side, its centre anywhere, clipped to the image."""
    cut_height, cut_width = int(height * np.sqrt(1.0 - lam)), int(width * np.sqrt(1.0 - lam))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, y - cut_height // 2), min(height, y + cut_height // 2)
    left, right = max(0, x - cut_width // 2), min(width, x + cut_width // 2)
    return top, bottom, left, right


def _swap(batch: np.ndarray) -> None:
    """batch ← reversed batch, pair by pair to stay in the cache."""
    for i in range(len(batch) // 2):
        held = batch[i].copy()
        batch[i] = batch[-1 - i]
        batch[-1 - i] = held


def _blend(batch: np.ndarray, share: np.float32) -> None:
    """batch ← (1 − share)·batch + share·reversed batch, pair by pair to stay in the cache."""
    for i in range(len(batch) // 2):
        first, last = batch[i], batch[-1 - i]
        difference = (first - last) * share
        first -= difference
        last += difference
