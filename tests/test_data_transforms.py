"""Transforms against Pillow, hand-derived numbers and their distributions."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data.erasing import noise, places
from mindcv_reparam.data.picture import Picture
from mindcv_reparam.data.transforms import (
    ColorJitter,
    EvalTransform,
    Normalize,
    RandomErasing,
    RandomResizedCrop,
    eval_transform,
    train_transform,
)
from mindcv_reparam.errors import UserError

BICUBIC = Image.Resampling.BICUBIC
IDENTITY = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PLAIN = Config(image_resize=16, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, color_jitter=0.0)


def rng(*key):
    return np.random.default_rng(key)


def picture(height, width):
    return Image.fromarray(rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


def transformed(config, image, seed=0):
    """What the training transform of ``config`` makes of ``image``."""
    transform = train_transform(config)
    output = np.full((3, *transform.crop.size), np.nan, dtype=np.float32)
    transform(np.asarray(image), rng(seed), output)
    return output


def log_uniform_quantiles(low, high, points):
    return np.exp(np.log(low) + (np.log(high) - np.log(low)) * np.array(points))


def test_normalize_by_hand():
    image = Image.new("RGB", (5, 4), (0, 100, 255))
    output = Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))(image)
    assert output.shape == (3, 4, 5)
    assert output.dtype == np.float32
    expected = [-123.675 / 58.395, (100 - 116.28) / 57.12, (255 - 103.53) / 57.375]
    np.testing.assert_allclose(output[:, 2, 2], expected, rtol=1e-7)


def test_normalize_keeps_rows_columns_and_channels():
    image = picture(7, 9)
    np.testing.assert_array_equal(IDENTITY(image), np.asarray(image).transpose(2, 0, 1))


def test_crop_area_is_uniform_and_aspect_log_uniform():
    # A scale small enough that every draw fits.
    crop = RandomResizedCrop((8, 8), scale=(0.1, 0.4), ratio=(0.5, 2.0), resampling=BICUBIC)
    boxes = np.array([crop.draw(600, 600, rng(seed)) for seed in range(3000)])
    top, left, height, width = boxes.T
    assert (top + height).max() <= 600
    assert (left + width).max() <= 600
    area = height * width / 360000
    np.testing.assert_allclose(np.quantile(area, [0.1, 0.5, 0.9]), [0.13, 0.25, 0.37], atol=0.012)
    quantiles = np.quantile(width / height, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, log_uniform_quantiles(0.5, 2.0, [0.1, 0.5, 0.9]), rtol=0.06)
    assert np.mean(top / (600 - height)) == pytest.approx(0.5, abs=0.02)


def test_crop_that_never_fits_falls_back_to_the_centre():
    crop = RandomResizedCrop((8, 8), scale=(1.0, 1.0), ratio=(0.75, 4 / 3), resampling=BICUBIC)
    assert crop.draw(100, 400, rng(0)) == (0, 133, 100, 133)
    assert crop.draw(400, 100, rng(0)) == (133, 0, 133, 100)
    whole = RandomResizedCrop((8, 8), scale=(2.0, 2.0), ratio=(0.75, 4 / 3), resampling=BICUBIC)
    assert whole.draw(100, 110, rng(0)) == (0, 0, 100, 110)


@pytest.mark.parametrize("resampling", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, BICUBIC])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
def test_crops_are_resized_and_flipped_as_by_pillow(resampling, flips):
    pixels = rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    sizes = rng(2)
    for _ in range(60):  # larger and smaller, and in both orders of the two passes
        height, width = (int(sizes.integers(1, side, endpoint=True)) for side in (90, 120))
        top, left = int(sizes.integers(90 - height, endpoint=True)), int(sizes.integers(120 - width, endpoint=True))
        size = int(sizes.integers(1, 80)), int(sizes.integers(1, 80))
        crop = Image.fromarray(pixels[top : top + height, left : left + width])
        expected = np.asarray(crop.resize(size[::-1], resampling))[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
        output = Picture(pixels).cropped((top, left, height, width), size, flips, resampling).pixels()
        np.testing.assert_array_equal(output, expected)


def test_crop_is_antialiased():
    noise = Picture(np.asarray(picture(400, 400))).cropped((0, 0, 400, 400), (20, 14), (False, False), BICUBIC)
    assert noise.pixels().std() < 12  # averaging 20 × 30 pixels; without antialiasing it stays near 74


@pytest.mark.parametrize(("flag", "axis"), [("hflip", 1), ("vflip", 0)])
def test_flips(flag, axis):
    image = picture(16, 16)
    always = transformed(dataclasses.replace(PLAIN, **{flag: 1.0}), image)
    never = transformed(PLAIN, image)
    np.testing.assert_array_equal(always, np.flip(never, axis + 1))
    half = dataclasses.replace(PLAIN, **{flag: 0.5})
    flipped = [(transformed(half, image, seed) == always).all() for seed in range(600)]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.07)


def test_jitter_of_grey_is_brightness_alone():
    grey = Picture(np.full((4, 4, 3), 100, np.uint8))
    values = [ColorJitter(0.4)(grey, rng(seed)).pixels().astype(int) for seed in range(3000)]
    assert all((value == value[0, 0, 0]).all() for value in values)
    levels = np.array([value[0, 0, 0] for value in values]) / 100
    np.testing.assert_allclose(np.quantile(levels, [0, 0.25, 0.5, 0.75, 1]), [0.6, 0.8, 1.0, 1.2, 1.4], atol=0.03)


def test_jitter_moves_contrast_and_saturation_in_random_order():
    image = picture(8, 8)
    outputs = [ColorJitter(0.4)(Picture.of(image), rng(seed)).pixels().astype(float) for seed in range(300)]
    spread = np.array([output.std() / output.mean() for output in outputs])
    original = np.asarray(image).std() / np.asarray(image).mean()
    assert spread.min() < 0.75 * original
    assert spread.max() > 1.1 * original
    grey = np.array([output.std(axis=2).mean() / output.mean() for output in outputs])
    assert grey.max() / grey.min() > 1.8


@pytest.mark.parametrize(
    ("auto_augment", "jittered"), [(None, True), ("autoaug", False), ("rand-m9", False), ("3a", True)]
)
def test_auto_augment_switches_jitter_off_except_three_augment(auto_augment, jittered):
    transform = train_transform(Config(auto_augment=auto_augment, color_jitter=0.4))
    assert (transform.jitter is not None) is jittered
    assert (transform.policy is not None) is (auto_augment is not None)


def test_augmentation_fills_with_the_mean_colour():
    transform = train_transform(Config(auto_augment="autoaug", interpolation="bicubic", mean=(123.675, 116.28, 300.0)))
    assert transform.style.fill == (124, 116, 255)
    assert transform.style.resampling is BICUBIC


def test_bad_policy_is_refused_when_the_transform_is_made():
    with pytest.raises(UserError, match="autoaug"):
        train_transform(Config(auto_augment="autoag"))


def test_erasing_area_is_uniform_and_aspect_log_uniform():
    erasing = RandomErasing(1.0, scale=(0.02, 0.2), ratio=(0.3, 3.3))
    boxes = np.array([erasing.draw(400, 400, rng(seed)) for seed in range(4000)])
    top, left, height, width = boxes.T
    area = height * width / 160000
    np.testing.assert_allclose(np.quantile(area, [0.1, 0.5, 0.9]), [0.038, 0.11, 0.182], atol=0.006)
    points = [0.1, 0.25, 0.5, 0.75, 0.9]
    quantiles = np.quantile(height / width, points)
    np.testing.assert_allclose(quantiles, log_uniform_quantiles(0.3, 3.3, points), rtol=0.08)
    assert (top + height).max() <= 400
    assert np.mean(left / (400 - width)) == pytest.approx(0.5, abs=0.02)


def test_erasing_happens_with_its_probability_and_only_where_it_fits():
    erasing = RandomErasing(0.25, scale=(0.1, 0.2), ratio=(0.5, 2.0), value=7.0)
    erased = [(erasing(np.zeros((3, 16, 16), np.float32), rng(seed)) == 7.0).any() for seed in range(2000)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.035)
    never = RandomErasing(1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), value=7.0, attempts=3)
    assert not never(np.zeros((3, 16, 16), np.float32), rng(0)).any()


def erase(**kwargs):
    image = np.full((3, 64, 64), 9.0, np.float32)
    output = RandomErasing(1.0, scale=(0.2, 0.3), ratio=(0.5, 2.0), **kwargs)(image, rng(2))
    top, left, height, width = RandomErasing(1.0, (0.2, 0.3), (0.5, 2.0)).draw(64, 64, _after_one(rng(2)))
    box = output[:, top : top + height, left : left + width].copy()
    output[:, top : top + height, left : left + width] = 9.0
    assert (output == 9.0).all()
    return box


def _after_one(generator):
    generator.random()  # the draw whether to erase
    return generator


def test_erasing_modes():
    assert (erase(mode="const") == 0.0).all()
    np.testing.assert_array_equal(erase(mode="const", value=(1.0, 2.0, 3.0))[:, 5, 5], [1.0, 2.0, 3.0])
    colour = erase(mode="rand")
    assert (colour == colour[:, :1, :1]).all()
    assert len(np.unique(colour)) == 3
    noise = erase(mode="pixel")
    assert len(np.unique(noise)) > 0.99 * noise.size
    assert noise.mean() == pytest.approx(0, abs=0.06)
    assert noise.std() == pytest.approx(1, abs=0.06)


def test_noise_is_normal_and_tells_nothing_of_that_of_a_key_that_differs_by_a_bit():
    """In standard deviations, of which 192 values of chance stay below 4.5 but once in 700 times."""
    numbers = places((3, 64, 64))
    assert len(np.unique(numbers)) == numbers.size
    for bit in range(32):
        first, second = (noise(np.array(key).astype(np.int32), numbers) for key in (12345, 12345 ^ 1 << bit))
        products = {
            "mean": first,
            "variance": (first**2 - 1) / np.sqrt(2),
            "keys": first * second,
            "squares": (first**2 - 1) * (second**2 - 1) / 2,
            "to the right": first[..., 1:] * first[..., :-1],
            "down": first[:, 1:] * first[:, :-1],
        }
        apart = {name: abs(values.mean()) * np.sqrt(values.size) for name, values in products.items()}
        assert max(apart.values()) < 4.5, apart


def test_erasing_of_the_config_is_after_normalising():
    config = dataclasses.replace(PLAIN, re_prob=1.0, re_scale=(0.3, 0.3), re_ratio=(1.0, 1.0))
    output = transformed(config, Image.new("RGB", (16, 16), (255, 255, 255)))
    assert (output == 0.0).sum() == 3 * 9 * 9  # √0.3 of 16 is 8.8


@pytest.mark.parametrize(
    ("size", "crop_pct", "source", "resized"),
    [
        ((224, 224), 0.875, (375, 500), (256, 341)),
        ((224, 224), 0.875, (500, 375), (341, 256)),
        ((224, 224), 0.9, (375, 500), (248, 330)),  # 224 / 0.9 = 248.9: down
        ((256, 256), 0.95, (300, 300), (269, 269)),
        ((224, 224), 1.0, (8, 8), (224, 224)),
        ((192, 256), 1.0, (300, 600), (192, 384)),  # non-square: the tighter side meets its target
        ((192, 256), 0.9, (600, 300), (568, 284)),
    ],
)
def test_eval_sizes(size, crop_pct, source, resized):
    assert EvalTransform(size, crop_pct, BICUBIC, IDENTITY).resized(*source) == resized


def test_eval_is_resize_centre_crop_normalise():
    image = picture(60, 91)
    config = Config(image_resize=32, crop_pct=0.8, interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)
    expected = np.asarray(image.resize((60, 40), BICUBIC))[4:36, 14:46]  # 91 · 40 / 60 = 60.7: down
    np.testing.assert_array_equal(eval_transform(config)(image), expected.transpose(2, 0, 1))


def test_eval_of_a_non_square_size():
    config = Config(image_resize=(24, 40), crop_pct=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = picture(48, 120)
    expected = np.asarray(image.resize((60, 24), Image.Resampling.BILINEAR))[:, 10:50]
    np.testing.assert_array_equal(eval_transform(config)(image), expected.transpose(2, 0, 1))


def test_only_training_waits_for_numba():
    """Half a second that validation, serving and --help do not need."""
    script = """
import sys
from PIL import Image
from mindcv_reparam.config import Config
from mindcv_reparam.data.transforms import eval_transform, train_transform
config = Config(auto_augment="rand-m9")
train_transform(config)
eval_transform(config)(Image.new("RGB", (300, 300)))
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
