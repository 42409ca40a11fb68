"""Stateless randomness: every random decision is a function of what it decides about, not of what was drawn before.

A generator is made from (seed, purpose, epoch, …) whenever a decision is due. So the data of an epoch does not depend
on the number of workers or on their timing, and a run resumes at any step by naming that step.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Separates the streams that share a seed, an epoch and a position."""

    ORDER = 0
    AUGMENT = 1
    MIX = 2
    REPLACE = 3
    SPLIT = 4
    DENOISE = 5
    SCALE = 6


def stream(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """A generator that depends on ``seed``, ``purpose`` and ``key`` (integers ≥ 0) and on nothing else."""
    return np.random.default_rng([seed, int(purpose), *key])
