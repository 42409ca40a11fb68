"""Kernels of our own where MindSpore's CPU backend is many times slower than the processor.

Its GELU computes one element at a time, its convolutions ask oneDNN for layouts that it has no good kernels for
(depthwise ones multiply matrices of one row), its group normalisation is a dozen passes over the map, the gradients of
its softmax and layer normalisation as many, its products with a factor per channel or image keep 16 bytes for every
element, and what updates a network is launched and compiled for each of its tensors. The kernels compute the same in
float32, forwards and backwards; convolutions by MindSpore's own oneDNN, asked better. They are compiled at the first
use and replace Cells of a network about to run here: what is saved, re-parameterized or exported is the network as its
family says.
"""

from mindcv_reparam.cpu.cells import use_kernels

__all__ = ["use_kernels"]
