"""Digests of arrays that are as long as memory takes to be read, to compare what ranks hold."""

import hashlib

import numpy as np
from numba import uint64

from mindcv_reparam.data.kernels import kernel

_LANES = 16  # words that are mixed side by side
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that multiplying loses nothing (2^64 by the golden ratio)


def digest(value: np.ndarray) -> bytes:
    """Sixteen bytes by which the bits of arrays of one shape and type are told apart, against chance, not against
    malice.

    Blake2b of what eight bytes after the other leave in sixteen lanes, each step of which is a bijection: another word
    always gives another digest, and more of them cancel as random numbers would. Blake2b of
    it all takes ten times as long.
    """
    content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    whole = len(content) // 8 * 8
    lanes = _mixed(content[:whole].view(np.uint64))
    return hashlib.blake2b(lanes.tobytes() + content[whole:].tobytes(), digest_size=16).digest()


@kernel
def _mixed(words):
    """What is left of uint64 (n,) in the lanes, uint64 (16,)."""
    lanes = np.arange(1, _LANES + 1).astype(np.uint64)
    whole = len(words) // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            mixed = (lanes[lane] ^ words[start + lane]) * uint64(_FACTOR)
            lanes[lane] = mixed ^ (mixed >> uint64(32))
    for index in range(whole, len(words)):
        mixed = (lanes[index - whole] ^ words[index]) * uint64(_FACTOR)
        lanes[index - whole] = mixed ^ (mixed >> uint64(32))
    return lanes
