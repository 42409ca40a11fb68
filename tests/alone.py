"""Ranks of a job that has only one, without MindSpore's communication."""

from collections.abc import Iterable

import numpy as np


class Alone:
    """What a rank of :mod:`mindcv_reparam.distributed` does, and the names that it was asked to compare."""

    rank, size, is_main = 0, 1, True

    def __init__(self) -> None:
        self.checked: list[str] = []

    def sum(self, values: Iterable[float]) -> np.ndarray:
        return np.asarray(values, np.float64)

    def gather(self, words: np.ndarray) -> np.ndarray:
        return words[None]

    def barrier(self) -> None:
        pass

    def ballot(self) -> None:
        pass

    def check_identical(self, parameters: Iterable[tuple[str, object]]) -> None:
        self.checked += [name for name, _ in parameters]
