"""Augmentation of images with boxes against its definition, and the pixels against Pillow's."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mindcv_reparam.data import kernels
from mindcv_reparam.data.objects import Objects
from mindcv_reparam.data.picture import Picture
from mindcv_reparam.data.transforms import Normalize
from mindcv_reparam.tasks.detection.transforms import (
    IouCrop,
    PhotometricDistortion,
    TrainTransform,
    View,
    ZoomOut,
    centres_within,
    clipped,
    large_enough,
    overlaps_with,
)

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def turned_by_pillow(pixels, shift):
    """torchvision's adjust_hue of a Pillow image."""
    hue, saturation, value = Image.fromarray(pixels).convert("HSV").split()
    hue = Image.fromarray(np.asarray(hue) + np.int32(shift).astype(np.uint8))
    return np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))


@pytest.mark.parametrize("shift", [0, 1, 12, -12, 127])
def test_hues_turn_as_pillow_turns_them(shift):
    levels = np.arange(32) * 255 // 31
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(128, 256, 3).astype(np.uint8)
    for pixels in (colours, noise(300, 400), noise(300, 400) // 16):
        np.testing.assert_array_equal(kernels.turn_hue(pixels, shift), turned_by_pillow(pixels, shift))


def test_crops_that_reach_out_of_the_picture_are_pillows():
    rng = np.random.default_rng(1)
    for _ in range(150):
        height, width, crop_height, crop_width = rng.integers(1, 70, 4).tolist()
        top = int(rng.integers(-crop_height - 5, height + 5))
        left = int(rng.integers(-crop_width - 5, width + 5))
        size = tuple(rng.integers(2, 50, 2).tolist())
        flips = bool(rng.integers(2)), bool(rng.integers(2))
        resampling = (BILINEAR, BICUBIC, Image.Resampling.NEAREST)[int(rng.integers(3))]
        pixels = noise(height, width, int(rng.integers(99)))
        crop = Image.fromarray(pixels).crop((left, top, left + crop_width, top + crop_height))
        wanted = np.asarray(crop.resize(size[::-1], resampling))[:: 1 - 2 * flips[1], :: 1 - 2 * flips[0]]
        picture = Picture(pixels).cropped((top, left, crop_height, crop_width), size, flips, resampling)
        np.testing.assert_array_equal(picture.pixels(), wanted)


class Script:
    """Plays a random generator that draws what a test says."""

    def __init__(self, uniforms, numbers=()):
        self.uniforms, self.numbers = list(uniforms), list(numbers)

    def random(self, size=None):
        return self.uniforms.pop(0) if size is None else np.array([self.uniforms.pop(0) for _ in range(size)])

    def uniform(self, low, high, size=None):
        return low + (high - low) * self.random(size)

    def integers(self, high):
        return self.numbers.pop(0)

    def permutation(self, length):
        return np.array(self.numbers.pop(0))


def enhanced(image, contrast_first):
    """Brightness 0.875 + 0.25 · 0.2, contrast 0.5 + 0.9, saturation 0.5 + 0.3, hue −0.05 + 0.08."""
    image = ImageEnhance.Brightness(image).enhance(0.925)
    if contrast_first:
        image = ImageEnhance.Contrast(image).enhance(1.4)
    image = ImageEnhance.Color(image).enhance(0.8)
    image = Image.fromarray(turned_by_pillow(np.asarray(image), int(0.03 * 255)))
    return image if contrast_first else ImageEnhance.Contrast(image).enhance(1.4)


@pytest.mark.parametrize("contrast_first", [True, False])
def test_distortions_follow_one_another_as_defined(contrast_first):
    pixels = noise()
    draws = [0.4, 0.2, 0.4, 0.9, 0.4, 0.3, 0.4, 0.8, 0.4 if contrast_first else 0.6, 0.4]
    rng = Script(draws, [[2, 0, 1]])
    picture = PhotometricDistortion(0.5)(Picture(pixels), rng)
    wanted = np.asarray(enhanced(Image.fromarray(pixels), contrast_first))[:, :, [2, 0, 1]]
    np.testing.assert_array_equal(picture.pixels(), wanted)
    assert rng.uniforms == rng.numbers == []


def test_no_distortion_leaves_the_pixels():
    pixels = noise()
    for probability, draws in ((0.5, [0.5] * 6), (0.0, [0.0] * 6)):
        picture = PhotometricDistortion(probability)(Picture(pixels), Script(draws))
        np.testing.assert_array_equal(picture.pixels(), pixels)


def test_channels_change_places_behind_tables_too():
    picture = Picture(noise()).through(255 - np.arange(256)[None].repeat(3, 0) * np.array([[1], [0], [1]]))
    np.testing.assert_array_equal(picture.permuted((1, 2, 0)).pixels(), picture.pixels()[:, :, [1, 2, 0]])


def test_zooming_out_puts_the_image_on_a_canvas():
    assert ZoomOut(0.5).draw(30, 41, Script([0.5])) == View(0, 0, 30, 41)
    # side 1 + 3 · 0.5; the canvas 75 × 102, the place 61 · 0.25 from the left, 45 · 0.75 from the top
    assert ZoomOut(0.5).draw(30, 41, Script([0.49, 0.5, 0.25, 0.75])) == View(-33, -15, 75, 102)


BOXES = np.array([[10.0, 10.0, 30.0, 20.0], [50.0, 30.0, 58.0, 38.0], [0.0, 0.0, 60.0, 40.0]])


def test_an_iou_crop_is_drawn_until_it_suits():
    # a least overlap of .1; trials: too flat; no centre inside; too little overlap; then one that suits
    trials = [(1.0, 0.0, 0, 0), (0.1, 0.1, 1.0, 0.0), (0.6, 0.6, 0.95, 0.95), (0.3, 0.4, 0.0, 0.1)]
    boxes = BOXES[:2]
    sizes = [(int(60 * (0.3 + 0.7 * w)), int(40 * (0.3 + 0.7 * h))) for w, h, _, _ in trials]
    assert [width / height > 2.0 for width, height in sizes] == [True, False, False, False]
    draws = [0.0]
    for (w, h, x, y), (width, height) in zip(trials, sizes):
        draws += [w, h] if width / height > 2.0 else [w, h, x, y]
    rng = Script(draws, [1])
    crop = IouCrop(0.8).draw(boxes, 40, 60, rng)
    assert rng.uniforms == []
    width, height = sizes[3]
    assert crop == View(int((40 - height) * 0.1), 0, height, width)


def test_iou_crops_keep_what_they_promise():
    rng = np.random.default_rng(5)
    whole = cropped = 0
    for overlap in (0.0, 0.3, 0.9):
        crops = IouCrop(1.0, overlaps=(overlap, 1.0))
        for _ in range(60):
            crop = crops.draw(BOXES, 40, 60, rng)
            if crop is None:
                whole += 1
                continue
            cropped += 1
            inside = centres_within(BOXES, crop)
            assert 0 <= crop.top <= crop.top + crop.height <= 40
            assert 0 <= crop.left <= crop.left + crop.width <= 60
            assert 0.5 <= crop.width / crop.height <= 2.0
            assert crop.width >= 18
            assert crop.height >= 12
            assert overlaps_with(BOXES[inside], crop).max() >= overlap
    assert whole > 20
    assert cropped > 20


def test_without_objects_or_luck_nothing_is_cropped():
    assert IouCrop(0.8).draw(BOXES[:0], 40, 60, np.random.default_rng(0)) is None
    assert IouCrop(0.8).draw(BOXES, 40, 60, Script([0.8])) is None
    assert IouCrop(0.8).draw(BOXES, 40, 60, Script([0.1], [6])) is None


def test_overlaps_and_limits():
    view = View(top=5, left=10, height=20, width=30)
    boxes = np.array([[10.0, 5.0, 40.0, 25.0], [0.0, 0.0, 20.0, 10.0], [50.0, 0.0, 60.0, 9.0], [39.5, 5.0, 70.0, 9.0]])
    np.testing.assert_allclose(overlaps_with(boxes, view), [1.0, 50 / 750, 0.0, 2 / 720])
    np.testing.assert_array_equal(clipped(boxes, view)[1], [10, 5, 20, 10])
    np.testing.assert_array_equal(large_enough(clipped(boxes, view)), [True, True, False, False])
    on_the_edge = np.array([[0.0, 5.0, 20.0, 15.0], [0.0, 5.0, 20.2, 15.0]])
    np.testing.assert_array_equal(centres_within(on_the_edge, view), [False, True])


def test_a_crop_of_a_zoomed_out_image_lies_on_its_canvas():
    # the canvas is 75 × 102, 33 above and 15 left of the image; the crop of it 48 × 66, at 20 and 9
    boxes = np.array([[2.0, 1.0, 10.0, 9.0], [30.0, 20.0, 40.0, 29.0], [0.0, 0.0, 40.0, 1.5], [0.0, 0.0, 41.0, 30.0]])
    draws = [0.0, 0.5, 0.25, 0.75, 0.0, 0.5, 0.5, 0.25, 0.75]
    view, kept = transform().view(View(0, 0, 30, 41), boxes, Script(draws, [0]))
    assert view == View(-33 + 20, -15 + 9, 48, 66)
    assert kept.tolist() == [True, True, True, True]
    # a crop of the image's rows -45 to 3 and columns 18 to 84
    draws[-4:] = [0.5, 0.5, 0.5, 0.0]
    draws[1:4] = [0.5, 0.0, 1.0]
    view, kept = transform().view(View(0, 0, 30, 41), boxes, Script(draws, [0]))
    assert view == View(-45, 18, 48, 66)
    assert kept.tolist() == [False, False, True, False]


def transform(**changed):
    settings = dict(
        distortion=PhotometricDistortion(0.5),
        zoom_out=ZoomOut(0.5),
        iou_crop=IouCrop(0.8),
        hflip=0.5,
        vflip=0.0,
        size=(96, 128),
        resampling=BILINEAR,
        normalize=Normalize((0.0,) * 3, (1.0,) * 3),
    )
    return TrainTransform(**{**settings, **changed})


def marked(boxes, height=90, width=120):
    """Grey with one bright patch per box, in a channel of its own."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        pixels[y1:y2, x1:x2, channel] = 200
    return pixels


@pytest.mark.parametrize("seed", range(24))
def test_boxes_lie_where_the_augmented_image_has_their_pixels(seed):
    boxes = np.array([[10, 12, 50, 60], [70, 30, 100, 80]], np.float32)
    steps = transform(distortion=PhotometricDistortion(0.0))
    output = np.empty((3, 96, 128), np.float32)
    found = steps(marked(boxes), Objects(boxes, np.array([0, 1], np.int32)), np.random.default_rng(seed), output)
    assert found.boxes.dtype == np.float32
    for box, label in zip(found.boxes, found.labels):
        rows, columns = np.nonzero(output[label] > 100)
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, around, atol=1.0)
    gone = set(range(2)) - set(found.labels.tolist())
    for label in gone:  # less than half of it is left
        assert (output[label] > 100).sum() < 0.8 * 96 * 128


def test_plain_augmentation_flips_and_resizes_alone():
    boxes, labels = np.array([[10, 12, 50, 60]], np.float32), np.array([3], np.int32)
    pixels, output = noise(90, 120), np.empty((3, 96, 128), np.float32)
    steps = transform(distortion=PhotometricDistortion(1.0), zoom_out=ZoomOut(1.0), iou_crop=IouCrop(1.0), hflip=1.0)
    found = steps(pixels, Objects(boxes, labels), np.random.default_rng(0), output, strong=False)
    resized = Image.fromarray(pixels[:, ::-1]).resize((128, 96), BILINEAR)
    np.testing.assert_allclose(output.transpose(1, 2, 0), np.asarray(resized), atol=1)  # weights are rounded mirrored
    np.testing.assert_allclose(found.boxes, [[70 * 128 / 120, 12 * 96 / 90, 110 * 128 / 120, 64]], rtol=1e-6)
    strong = np.empty_like(output)
    steps(pixels, Objects(boxes, labels), np.random.default_rng(0), strong)
    assert np.abs(strong - output).max() > 50


def test_a_box_of_less_than_a_pixel_is_no_object():
    boxes = np.array([[10, 10, 10.9, 40], [20, 10, 21.1, 40], [5, 5, 40, 5.5]], np.float32)
    output = np.empty((3, 96, 128), np.float32)
    steps = transform(zoom_out=ZoomOut(0.0), iou_crop=IouCrop(0.0), hflip=0.0)
    found = steps(noise(96, 128), Objects(boxes, np.arange(3, dtype=np.int32)), np.random.default_rng(0), output)
    assert found.labels.tolist() == [1]


def test_the_same_draws_give_the_same_image():
    boxes = BOXES.astype(np.float32)
    outputs = [np.empty((3, 96, 128), np.float32) for _ in range(3)]
    for seed, output in zip((7, 7, 8), outputs):
        transform()(noise(), Objects(boxes, np.arange(3, dtype=np.int32)), np.random.default_rng(seed), output)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != outputs[2]).any()
