"""Import this before timm: it lets a PyTorch for CPUs bear PyPI's torchvision, which is built for GPUs."""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # Its compiled operators do not load, and are not used here; they only have to have a name.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
