"""By the digests of their arrays ranks see what differs between them."""

import numpy as np
import pytest

from mindcv_reparam.training.digest import digest

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 7, 32, 33, 1001])
def test_another_bit_anywhere_is_another_digest(count):
    value = RNG.normal(size=count).astype(np.float32)
    digests = {digest(value)}
    assert digest(value.copy()) in digests
    places = range(count) if count < 100 else (0, 1, 500, 998, 999, 1000)
    for place in places:
        for bit in (0, 12, 23, 31):
            other = value.copy()
            other.view(np.uint32)[place] ^= np.uint32(1 << bit)
            digests.add(digest(other))
    assert len(digests) == 1 + 4 * len(places)


def test_changes_do_not_cancel():
    """As they would in a sum, or in one that multiplies by constants: signs are the highest bits."""
    value = RNG.normal(size=64).astype(np.float32)
    digests = {digest(value), digest(value[::-1]), digest(np.roll(value, 32)), digest(np.roll(value, 2))}
    for first in range(64):
        for second in range(first):
            other = value.copy()
            other[[first, second]] *= -1
            digests.add(digest(other))
            other = value.copy()
            other[[first, second]] = other[[second, first]]
            digests.add(digest(other))
    assert len(digests) == 4 + 2 * (64 * 63 // 2)


def test_any_shape_of_four_bytes_has_one():
    image = RNG.normal(size=(3, 5, 7)).astype(np.float32)
    assert digest(image) == digest(image.reshape(-1)) == digest(np.asfortranarray(image))
    assert len(digest(np.array(7, np.int32))) == 16
    assert digest(np.array(7, np.int32)) != digest(np.array(8, np.int32))
    assert digest(np.zeros(0, np.float32)) != digest(np.zeros(1, np.float32))
