"""The tests run as the scripts do: MindSpore set up by ``prepare``, on CPU, in strict graph mode."""

from mindcv_reparam.runtime import prepare

prepare("CPU", seed=0)
