"""What models take and give: the form of a tensor, and how far two of them differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pydantic
from annotated_types import Ge, Le, Len

STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
Size = Annotated[int, Ge(1), Le(2**16)]
Name = Annotated[str, Len(1, 128)]

# NumPy's names of numbers → those of the Open Inference Protocol.
DATATYPES = {"float16": "FP16", "float32": "FP32", "uint8": "UINT8", "int32": "INT32", "int64": "INT64"}

# max|Δ| / max|output| in float32 up to which two programs of one network are taken for equal.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model takes or gives."""

    __pydantic_config__ = STRICT

    name: Name
    dtype: Literal["float32", "float16", "uint8", "int32", "int64"]  # NumPy's name
    shape: Annotated[tuple[Size | None, ...], Len(1, 8)]  # None where any size goes, the batch in front

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(own is None or own == size for own, size in zip(self.shape, shape))


def relative_difference(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """max|Δ| / max|expected| over all outputs; NaN where one of them has NaN, infinite where the shapes differ."""
    if [output.shape for output in expected] != [output.shape for output in actual]:
        return float("inf")
    return float(np.max([np.abs(a - e).max() / np.abs(e).max() for e, a in zip(expected, actual)]))  # NaN stays NaN
