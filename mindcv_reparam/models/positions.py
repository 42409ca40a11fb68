"""Position embeddings, which families share."""

import numpy as np
from PIL import Image


def resize_position_embedding(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Position embeddings (1, C, h, w) for another grid, by antialiased bicubic interpolation as timm does it."""
    if value.ndim != 4 or value.shape[:2] != shape[:2]:
        return value
    height, width = shape[2:]
    channels = [Image.fromarray(channel, mode="F") for channel in value[0].astype(np.float32)]
    return np.stack([np.asarray(c.resize((width, height), Image.Resampling.BICUBIC)) for c in channels])[None]
