"""The policies' operations, probabilities, magnitudes and weights, as timm and MindCV have them."""

POSTERIZE = "Posterize*"  # stands for the policy's kind of posterize

_V0 = """
Equalize 0.8 1, ShearY 0.8 4; Color 0.4 9, Equalize 0.6 3; Color 0.4 1, Rotate 0.6 8; Solarize 0.8 3, Equalize 0.4 7;
Solarize 0.4 2, Solarize 0.6 2; Color 0.2 0, Equalize 0.8 8; Equalize 0.4 8, SolarizeAdd 0.8 3;
ShearX 0.2 9, Rotate 0.6 8; Color 0.6 1, Equalize 1.0 2; Invert 0.4 9, Rotate 0.6 0; Equalize 1.0 9, ShearY 0.6 3;
Color 0.4 7, Equalize 0.6 0; Posterize* 0.4 6, AutoContrast 0.4 7; Solarize 0.6 8, Color 0.6 9;
Solarize 0.2 4, Rotate 0.8 9; Rotate 1.0 7, TranslateYRel 0.8 9; ShearX 0.0 0, Solarize 0.8 4;
ShearY 0.8 0, Color 0.6 4; Color 1.0 0, Rotate 0.6 2; Equalize 0.8 4, Equalize 0.0 8;
Equalize 1.0 4, AutoContrast 0.6 2; ShearY 0.4 7, SolarizeAdd 0.6 7; Posterize* 0.8 2, Solarize 0.6 10;
Solarize 0.6 8, Equalize 0.6 1; Color 0.8 6, Rotate 0.4 5
"""

_ORIGINAL = """
Posterize* 0.4 8, Rotate 0.6 9; Solarize 0.6 5, AutoContrast 0.6 5; Equalize 0.8 8, Equalize 0.6 3;
Posterize* 0.6 7, Posterize* 0.6 6; Equalize 0.4 7, Solarize 0.2 4; Equalize 0.4 4, Rotate 0.8 8;
Solarize 0.6 3, Equalize 0.6 7; Posterize* 0.8 5, Equalize 1.0 2; Rotate 0.2 3, Solarize 0.6 8;
Equalize 0.6 8, Posterize* 0.4 6; Rotate 0.8 8, Color 0.4 0; Rotate 0.4 9, Equalize 0.6 2;
Equalize 0.0 7, Equalize 0.8 8; Invert 0.6 4, Equalize 1.0 8; Color 0.6 4, Contrast 1.0 8; Rotate 0.8 8, Color 1.0 2;
Color 0.8 8, Solarize 0.8 7; Sharpness 0.4 7, Invert 0.6 8; ShearX 0.6 5, Equalize 1.0 9; Color 0.4 0, Equalize 0.6 3;
Equalize 0.4 7, Solarize 0.2 4; Solarize 0.6 5, AutoContrast 0.6 5; Invert 0.6 4, Equalize 1.0 8;
Color 0.6 4, Contrast 1.0 8; Equalize 0.8 8, Equalize 0.6 3
"""

_THREE_AUGMENT = "Solarize 1.0 5; Desaturate 1.0 10; GaussianBlurRand 1.0 10"

# Policy → sub-policies, kind of posterize, deviation of the magnitude unless the string gives one
AUTO_POLICIES = {
    "v0": (_V0, "Posterize", 0.0),
    "v0r": (_V0, "PosterizeIncreasing", 0.0),
    "original": (_ORIGINAL, "PosterizeOriginal", 0.0),
    "originalr": (_ORIGINAL, "PosterizeIncreasing", 0.0),
    "autoaug": (_ORIGINAL, "PosterizeOriginal", 0.5),
    "autoaugr": (_ORIGINAL, "PosterizeIncreasing", 0.5),
    "3a": (_THREE_AUGMENT, "Posterize", 0.0),
}

PLAIN = ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
          "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")  # fmt: skip
GROWING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
MINDCV_PLAIN = tuple(name for name in PLAIN if name != "SolarizeAdd")
AUGMIX = ("AutoContrast", "Color", "Contrast", "Brightness", "Sharpness", "Equalize", "Rotate", "Posterize",
           "Solarize", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")  # fmt: skip

TIMM_WEIGHTS = {
    "Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "TranslateXRel": 1.0, "TranslateYRel": 1.0, "ColorIncreasing": 0.25,
    "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
    "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05, "PosterizeIncreasing": 0.05,
    "Invert": 0.05,
}  # fmt: skip
TIMM_3A_WEIGHTS = {
    "SolarizeIncreasing": 6.0, "Desaturate": 6.0, "GaussianBlur": 6.0, "Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0,
    "PosterizeIncreasing": 1.0, "AutoContrast": 1.0, "ColorIncreasing": 1.0, "SharpnessIncreasing": 1.0,
    "ContrastIncreasing": 1.0, "BrightnessIncreasing": 1.0, "Equalize": 1.0, "Invert": 1.0,
}  # fmt: skip
MINDCV_WEIGHTS = {
    "Rotate": 0.3, "ShearX": 0.2, "ShearY": 0.2, "TranslateXRel": 0.1, "TranslateYRel": 0.1, "Color": 0.025,
    "Sharpness": 0.025, "AutoContrast": 0.025, "Solarize": 0.005, "Contrast": 0.005, "Brightness": 0.005,
    "Equalize": 0.005, "Posterize": 0.005, "Invert": 0.0,
}  # fmt: skip
