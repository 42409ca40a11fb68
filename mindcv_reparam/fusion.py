"""The algebra of structural re-parameterization, in NumPy float64 and free of MindSpore.

Two objects are enough for every fold: a :class:`Linear` map (a convolution or a dense layer) and a per-channel
:class:`Affine` map (a normalisation with frozen statistics, a layer scale, an affine operator). Sources: RepVGG (Ding
et al., arXiv 2101.03697, section 3.3), FastViT (arXiv 2303.14189, equations 1-3), RIFormer (arXiv 2304.05659,
equation 5).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Linear(NamedTuple):
    """``y = weight ∗ x + bias``; weight (out, in / groups, kh, kw) or (out, in), bias (out,)."""

    weight: np.ndarray
    bias: np.ndarray


class Affine(NamedTuple):
    """``y = scale · x + shift`` per channel; both (channels,)."""

    scale: np.ndarray
    shift: np.ndarray


def linear(weight: np.ndarray, bias: np.ndarray | None = None) -> Linear:
    """A linear map in float64; a missing bias is zero."""
    weight = np.asarray(weight, np.float64)
    bias = np.zeros(weight.shape[0]) if bias is None else np.asarray(bias, np.float64)
    return Linear(weight, bias)


def affine(scale: np.ndarray, shift: np.ndarray | None = None) -> Affine:
    """An affine map in float64 from arrays of any shape with one entry per channel; a missing shift is zero."""
    scale = np.asarray(scale, np.float64).reshape(-1)
    shift = np.zeros_like(scale) if shift is None else np.asarray(shift, np.float64).reshape(-1)
    return Affine(scale, shift)


def batch_norm(gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float) -> Affine:
    """Batch normalisation with frozen statistics."""
    scale = np.asarray(gamma, np.float64) / np.sqrt(np.asarray(variance, np.float64) + eps)
    return Affine(scale, np.asarray(beta, np.float64) - np.asarray(mean, np.float64) * scale)


def compose(outer: Affine, inner: Affine) -> Affine:
    """``outer(inner(x))``."""
    return Affine(outer.scale * inner.scale, outer.scale * inner.shift + outer.shift)


def affine_after(affine: Affine, linear: Linear) -> Linear:
    """``affine(linear(x))`` as one linear map; exact for any kernel, stride, padding and grouping."""
    scale = affine.scale.reshape(-1, *[1] * (linear.weight.ndim - 1))
    return Linear(linear.weight * scale, affine.scale * linear.bias + affine.shift)


def affine_before(linear: Linear, affine: Affine, groups: int = 1) -> Linear:
    """``linear(affine(x))`` as one linear map.

    Exact only without zero padding: behind the padding of a k×k convolution the shift would be missing at the borders,
    so kernels larger than 1×1 are refused with a ValueError.
    """
    weight = linear.weight
    if weight[0, 0].size != 1:
        raise ValueError(f"an affine map in front of a {weight.shape[2:]} kernel does not fold exactly")
    in_per_group, out_per_group = weight.shape[1], weight.shape[0] // groups
    # Row o of a grouped kernel sees the channels of its own group: (out, in / groups) of the scale and of the shift.
    scale = np.repeat(affine.scale.reshape(groups, in_per_group), out_per_group, axis=0)
    shift = np.repeat(affine.shift.reshape(groups, in_per_group), out_per_group, axis=0)
    matrix = weight.reshape(weight.shape[:2])
    return Linear(weight * scale.reshape(weight.shape), linear.bias + (matrix * shift).sum(axis=1))


def pad_kernel(linear: Linear, size: tuple[int, int]) -> Linear:
    """The same map as a centred kernel of ``size`` (odd, not smaller), for "same" padding."""
    height, width = linear.weight.shape[2:]
    rows, columns = (size[0] - height) // 2, (size[1] - width) // 2
    if rows < 0 or columns < 0 or (size[0] - height) % 2 or (size[1] - width) % 2:
        raise ValueError(f"a {height}x{width} kernel has no centred place in a {size[0]}x{size[1]} one")
    return linear._replace(weight=np.pad(linear.weight, ((0, 0), (0, 0), (rows, rows), (columns, columns))))


def identity(channels: int, groups: int = 1, size: tuple[int, int] = (1, 1)) -> Linear:
    """The identity as a (grouped) convolution kernel of odd ``size``."""
    weight = np.zeros((channels, channels // groups, *size))
    outputs = np.arange(channels)
    weight[outputs, outputs % (channels // groups), size[0] // 2, size[1] // 2] = 1.0
    return Linear(weight, np.zeros(channels))


def parallel(*branches: Linear) -> Linear:
    """The sum of branches on the same input, stride and "same" padding, on the largest of their kernels."""
    height, width = (max(branch.weight.shape[axis] for branch in branches) for axis in (2, 3))
    padded = [pad_kernel(branch, (height, width)) for branch in branches]
    zero = np.zeros(())
    return Linear(sum((branch.weight for branch in padded), zero), sum((branch.bias for branch in padded), zero))


def on_pixels(linear: Linear, mean: Sequence[float], std: Sequence[float]) -> tuple[Linear, np.ndarray]:
    """A convolution of ``(pixel - mean) / std`` as one of the pixel, and the constant that is missing from each.

    Returns:
        The convolution on pixels, and -mean (channels,): to be added to the pixels before zero padding, which is not
        the same as a bias at the border, see :func:`padded_response`.
    """
    scale = 1.0 / np.asarray(std, np.float64)
    return linear._replace(weight=linear.weight * scale[:, None, None]), -np.asarray(mean, np.float64)


def padded_response(
    weight: np.ndarray,
    constant: np.ndarray,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> np.ndarray:
    """What a convolution makes of an image (H, W) of one colour behind zero padding: (out, h, w).

    Args:
        weight: (out, channels, kh, kw).
        constant: the colour, (channels,).
        padding: ((top, bottom), (left, right)).
    """
    taps = np.einsum("ochw,c->ohw", weight, constant)
    inside = []  # per axis: whether tap k of output position i lies in the image, (positions, taps)
    for kernel, side, step, (before, after) in zip(weight.shape[2:], size, stride, padding):
        positions = np.arange((side + before + after - kernel) // step + 1)
        pixels = positions[:, None] * step - before + np.arange(kernel)
        inside.append(((pixels >= 0) & (pixels < side)).astype(np.float64))
    return np.einsum("ih,ohw,jw->oij", inside[0], taps, inside[1])
