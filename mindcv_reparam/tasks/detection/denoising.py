"""Denoising queries (arXiv 2203.01305, contrastive as in 2203.03605): objects with noise, which the decoder restores.

Made on the host, with the batch. Their number is fixed: what the batch's objects leave free is padding, which nothing
attends to and no term of the loss counts.
"""

from dataclasses import dataclass

import numpy as np

# Instead of an object's index: the query of an image that has no object for it; and one that counts in no term at all.
BACKGROUND, IGNORED = -1, -2
EPSILON = 1e-5  # of the inverse sigmoid


@dataclass(frozen=True)
class Noise:
    """What is drawn for a batch of N images and D queries.

    Args:
        flips: (N, D) float32 in [0, 1): below half of the noise ratio, a label is replaced.
        labels: (N, D) int32, by which.
        signs: (N, D, 4) float32, 0 or 1: the direction in which a corner's coordinate moves.
        distances: (N, D, 4) float32 in [0, 1): how far.
    """

    flips: np.ndarray
    labels: np.ndarray
    signs: np.ndarray
    distances: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, images: int, queries: int, num_classes: int) -> "Noise":
        """Always as many numbers, in the reference's order."""
        return cls(
            flips=rng.random((images, queries), dtype=np.float32),
            labels=rng.integers(0, num_classes, (images, queries), dtype=np.int32),
            signs=rng.integers(0, 2, (images, queries, 4)).astype(np.float32),
            distances=rng.random((images, queries, 4), dtype=np.float32),
        )


@dataclass(frozen=True)
class Denoising:
    """The denoising part of a batch, D queries in front of Q others.

    Args:
        labels: (N, D) int32, ``num_classes`` for padding.
        references: (N, D, 4) float32, logits of the noisy boxes cx cy w h.
        matches: (N, D) int32, the object that a query restores; BACKGROUND for one that should find nothing, IGNORED
            for padding.
        blocked: (D + Q, D + Q) bool, True where the query of the row must not see that of the column.
        groups: () float32, how often every object is among the queries.
    """

    labels: np.ndarray
    references: np.ndarray
    matches: np.ndarray
    blocked: np.ndarray
    groups: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        """In the order in which batches hold them."""
        return self.labels, self.references, self.matches, self.blocked, self.groups


def denoise(
    labels: np.ndarray,
    boxes: np.ndarray,
    valid: np.ndarray,
    noise: Noise,
    *,
    num_classes: int,
    num_queries: int,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 1.0,
) -> Denoising:
    """Groups of queries, in each a positive and then a negative one for every object (RT-DETR's denoising training).

    There are as many groups as the noise has room for with the fullest image's objects; objects beyond half of the
    queries, if any, have none.

    Args:
        labels: (N, M) int32.
        boxes: (N, M, 4) float32, normalised cx cy w h.
        valid: (N, M) bool, the objects, in front of the padding.
        noise: its D is the number of queries.
        num_queries: Q, of the other queries.
        label_noise_ratio: half of it is the probability that a label is replaced, by any of the classes.
        box_noise_scale: how far, in halves of the sides, corners move at most in positive queries; in negative ones
            they move farther than that and at most twice as far.
    """
    images, queries = noise.flips.shape
    most = min(int(valid.sum(1).max(initial=0)), queries // 2)  # of an image's objects
    groups = queries // (2 * most) if most else 0
    slots, size = np.arange(queries), max(most, 1)
    objects, negative = slots % size, slots // size % 2 == 1
    of_group = np.minimum(slots // (2 * size), groups)  # padding is one more group, which nobody else sees either
    used = np.broadcast_to(of_group < groups, (images, queries))
    present = valid[:, objects] & used
    replaced = present & (noise.flips < label_noise_ratio * 0.5)
    noisy_labels = np.where(replaced, noise.labels, labels[:, objects])
    originals = np.where(present[..., None], boxes[:, objects], np.float32(0.0))
    return Denoising(
        labels=np.where(present, noisy_labels, num_classes).astype(np.int32),
        references=_inverse_sigmoid(_move(originals, noise, negative, box_noise_scale)),
        matches=np.where(used, np.where(present & ~negative, objects, BACKGROUND), IGNORED).astype(np.int32),
        blocked=_blocked(of_group, num_queries),
        groups=np.array(max(groups, 1), dtype=np.float32),
    )


def _move(boxes: np.ndarray, noise: Noise, negative: np.ndarray, scale: float) -> np.ndarray:
    """Boxes cx cy w h with every corner's coordinates moved, inside of the image; negative ones may turn inside out."""
    half = 0.5 * boxes[..., 2:]
    corners = np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
    reach = np.concatenate([half, half], axis=-1) * np.float32(scale)
    distances = noise.distances + negative[:, None].astype(np.float32)
    corners = np.clip(corners + (2.0 * noise.signs - 1.0) * distances * reach, 0.0, 1.0)
    return np.concatenate([0.5 * (corners[..., :2] + corners[..., 2:]), corners[..., 2:] - corners[..., :2]], axis=-1)


def _inverse_sigmoid(values: np.ndarray) -> np.ndarray:
    values = np.clip(values, 0.0, 1.0)
    return np.log(np.maximum(values, EPSILON) / np.maximum(1.0 - values, EPSILON)).astype(np.float32)


def _blocked(of_group: np.ndarray, num_queries: int) -> np.ndarray:
    """Denoising queries see their group and the others; the others see no denoising query."""
    queries = len(of_group)
    blocked = np.zeros((queries + num_queries,) * 2, dtype=bool)
    blocked[:queries, :queries] = of_group[:, None] != of_group
    blocked[queries:, :queries] = True
    return blocked
