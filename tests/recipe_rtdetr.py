"""The RT-DETR fixtures of tests/data/rtdetr, and the recipe of their weights and inputs: the same name, shape, salt and
nonce give the same array everywhere."""

import json
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
from goldens import tensor

FOLDER = Path(__file__).parent / "data" / "rtdetr"


class Fixture:
    """``rtdetr-NAME.json`` tells the reference's configuration and parameters, ``.npz`` its results in fp32."""

    def __init__(self, name: str):
        self.spec = json.loads((FOLDER / f"rtdetr-{name}.json").read_text())
        self.salt = self.spec["salt"]
        with np.load(FOLDER / f"rtdetr-{name}.npz") as arrays:
            self.results = dict(arrays)

    @cached_property
    def state(self) -> dict[str, np.ndarray]:
        """The reference's weights under its own names."""
        nonces = self.spec.get("nonces", {})
        return {
            name: tensor(name, shape, self.salt)
            if name.startswith("backbone.")
            else rtdetr_tensor(name, shape, self.salt, nonces.get(name, 0))
            for name, shape in self.spec["state_dict"].items()
        }


def _rng(name, salt, nonce=0):
    return np.random.default_rng([zlib.crc32(name.encode()), salt] + ([nonce] if nonce else []))


def rtdetr_tensor(name, shape, salt=0, nonce=0):
    """One entry of the state dict. ``name`` is that of the whole detector: backbone.*, encoder.*, decoder.*.

    backbone.* follows goldens.tensor's rule. Nonces (per file, in the json) exist for score heads only: they were
    chosen so that no two scores that the top-k compares are close.
    """
    shape = tuple(shape)
    rng, leaf = _rng(name, salt, nonce), name.rsplit(".", 1)[-1]
    fan_in = max(1, int(np.prod(shape[1:])))
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        value = rng.normal(0.0, 0.05, shape)
    elif "score_head" in name and leaf == "bias":
        value = rng.normal(-3.0, 0.05, shape)
    elif name.endswith("sampling_offsets.bias"):
        value = rng.normal(0.0, 1.5, shape)
    elif leaf in ("bias", "in_proj_bias"):
        value = rng.normal(0.0, 0.05, shape)
    elif "layer_scale" in name:
        value = rng.uniform(0.05, 0.4, shape)
    elif len(shape) == 1:
        value = rng.uniform(0.7, 1.3, shape)
    elif name.endswith("denoising_class_embed.weight"):
        value = rng.normal(0.0, 0.5, shape)
        value[-1] = 0.0  # the padding row
    else:
        gain = 0.6
        if "score_head" in name:
            gain = 2.4
        elif name.startswith("encoder.") and len(shape) == 4:
            gain = (0.5 if ".conv2." in name else 1.1) if "bottlenecks" in name else 1.7
        elif name.startswith("decoder.input_proj"):
            gain = 1.5
        value = rng.normal(0.0, (gain / fan_in) ** 0.5, shape)
    return value.astype(np.float32)


def feature_input(name, shape, salt=0):
    """A feature map (N, C, H, W): blocks of a 4x4 random field plus noise."""
    n, c, h, w = shape
    rng = _rng("feature " + name, salt)
    low = rng.standard_normal((n, c, 4, 4))
    rows, cols = np.arange(h) * 4 // h, np.arange(w) * 4 // w
    return (low[:, :, rows][..., cols] + 0.5 * rng.standard_normal(shape)).astype(np.float32)


def targets_input(name, counts, classes, salt=0):
    """Per image: labels (n,) int64, boxes (n, 4) float32 normalised cx cy w h inside the image."""
    rng, out = _rng("targets " + name, salt), []
    for n in counts:
        wh = rng.uniform(0.08, 0.5, (n, 2))
        centre = wh / 2 + rng.uniform(0, 1, (n, 2)) * (1 - wh)
        out.append((rng.integers(0, classes, n).astype(np.int64), np.concatenate([centre, wh], 1).astype(np.float32)))
    return out


def denoising_noise(name, batch, queries, classes, salt=0):
    """What denoising draws, in order: uniforms of the label flips, new labels, box signs (0/1), magnitudes."""
    rng = _rng("noise " + name, salt)
    return {
        "flip_uniform": rng.uniform(0, 1, (batch, queries)).astype(np.float32),
        "new_label": rng.integers(0, classes, (batch, queries)).astype(np.int32),
        "box_sign": rng.integers(0, 2, (batch, queries, 4)).astype(np.float32),
        "box_uniform": rng.uniform(0, 1, (batch, queries, 4)).astype(np.float32),
    }


def cotangent(name, shape, salt=0):
    """What a scalar loss multiplies an output by: loss = sum(output * cotangent)."""
    return (_rng("cotangent " + name, salt).standard_normal(shape) / np.prod(shape) ** 0.5).astype(np.float32)
