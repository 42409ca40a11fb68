"""AutoAugment, RandAugment, AugMix and TrivialAugment, named by the strings of timm and MindCV.

Papers: AutoAugment arXiv 1805.09501, RandAugment 1909.13719, AugMix 1912.02781, TrivialAugment 2103.10158,
3-Augment 2204.07118. Operations, policies, probabilities and magnitudes are those of timm's ``auto_augment.py``.

A string is a policy and options, joined by dashes (``rand-m9-mstd0.5-inc1``):

===================  ============================================================  ==================================
policy               what                                                          options
===================  ============================================================  ==================================
rand                 timm's RandAugment                                            m n p mstd mmax inc t (set or
                                                                                   "weights": tweights, t3a, t3aw)
randaug              MindCV's: no SolarizeAdd, mstd 0.5 unless given               m n p mstd mmax inc w (w0: weights)
original, originalr  AutoAugment's policy of the paper / increasing posterize      mstd
autoaug, autoaugr    MindCV's names for them, mstd 0.5 unless given                mstd
v0, v0r              the policy of EfficientNet on TPU                             mstd
3a                   one of solarize, grey, blur                                   mstd
augmix               AugMix                                                        m w d a mstd
trivialaugwide       TrivialAugment, wide ranges (MindCV's name)                   m
===================  ============================================================  ==================================

``m`` magnitude, ``n`` operations per image, ``p`` probability of each, ``mstd`` deviation of the magnitude (above 100:
uniform from 0), ``mmax`` its upper bound (10), ``inc1`` severity grows with the magnitude (``inc0``, unlike
in timm, is off).
"""

from mindcv_reparam.data.auto_augment.operations import Style, brightness, color, contrast
from mindcv_reparam.data.auto_augment.parser import parse_auto_augment
from mindcv_reparam.data.auto_augment.policies import AugMix, AutoAugment, Operation, Policy, RandAugment

__all__ = [
    "AugMix",
    "AutoAugment",
    "Operation",
    "Policy",
    "RandAugment",
    "Style",
    "brightness",
    "color",
    "contrast",
    "parse_auto_augment",
]
