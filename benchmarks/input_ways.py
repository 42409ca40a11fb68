"""The steps of the input pipeline, each in all the ways that ``input_steps.py`` compares."""

import io
import sys
import sysconfig
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np
import simplejpeg
from environments import environment
from input_mixing import mixing
from mindspore.dataset import vision
from partial_decoding import decoder
from PIL import Image, ImageOps
from way import MEAN, NORMALIZE, STD, Way

from mindcv_reparam.data import kernels
from mindcv_reparam.data.auto_augment import Operation, Style
from mindcv_reparam.data.image_folder import decode
from mindcv_reparam.data.picture import BICUBIC, Picture
from mindcv_reparam.errors import UserError

OPENCV = "opencv-python-headless==4.11.0.86"
TOP, LEFT, HEIGHT, WIDTH = BOX = 50, 60, 280, 370
CORNERS = 60, 50, 430, 330
SIZE = 224, 224
SHEAR = 1.0, 0.27, 0.0, 0.0, 1.0, 0.0
FILL = 124, 116, 104
# Draws crops of the size of BOX, which then need no resizing.
BOX_DRAWS = {"scale": (0.5525, 0.5526), "ratio": (WIDTH / HEIGHT, WIDTH / HEIGHT)}


class Samples:
    """Images as the steps meet them: files, decoded, and cropped to 224 pixels."""

    def __init__(self, files: Sequence[bytes], folder: Path) -> None:
        self.files, self.folder = files, folder
        self.bytes = [np.frombuffer(file, np.uint8) for file in files]
        self.pixels = [simplejpeg.decode_jpeg(file) for file in files]
        self.images = [Image.fromarray(one) for one in self.pixels]
        self.crops = [one[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH].copy() for one in self.pixels]
        self.small = [kernels.resize_crop(one, BOX, SIZE, (False, False), kernels.BICUBIC) for one in self.pixels]
        self.small_images = [Image.fromarray(one) for one in self.small]

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def decoded_files(self) -> list[Path]:
        files = [self.folder / f"{index}.raw" for index in range(len(self))]
        for file, pixels in zip(files, self.pixels):
            pixels.tofile(file)
        return files


def opencv() -> ModuleType | None:
    """OpenCV on one thread, from an environment of its own; None, and a line that says so, where pip cannot get it."""
    try:
        folder = environment("opencv", [OPENCV], beside_project=True).parents[1]
    except UserError as error:
        print(f"without OpenCV: {error}", file=sys.stderr)
        return None
    sys.path.append(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    import cv2

    cv2.setNumThreads(1)
    return cv2


def all_ways(samples: Samples) -> list[Way]:
    cv2 = opencv()
    return [
        *decoding(samples, cv2),
        *decoding_of_crops(samples),
        *resizing(samples, cv2),
        *flipping(samples, cv2),
        *moving(samples, cv2),
        *upsizing(samples),
        *equalizing(samples),
        *normalizing(samples, cv2),
        *mixing(samples.small),
    ]


def decoding(samples: Samples, cv2: ModuleType | None) -> list[Way]:
    files, memory, to_pixels = samples.files, np.empty_like(samples.pixels[0]), vision.Decode()

    def opened(index: int) -> Image.Image:
        return Image.open(io.BytesIO(files[index]))

    def loaded(index: int) -> Image.Image:
        image = opened(index)
        image.load()
        return image

    def scaled(index: int) -> Image.Image:
        image = opened(index)
        image.draft("RGB", (250, 187))  # half the sides, by the discrete cosine transform
        image.load()
        return image

    found = [
        Way("decode", "Pillow, convert to RGB", lambda i: opened(i).convert("RGB")),
        Way("decode", "Pillow", loaded),
        Way("decode", "simplejpeg, header first (used)", lambda i: decode(files[i])),
        Way("decode", "simplejpeg", lambda i: simplejpeg.decode_jpeg(files[i])),
        Way("decode", "simplejpeg, into memory used before",
            lambda i: simplejpeg.decode_jpeg(files[i], buffer=memory)),
        Way("decode", "simplejpeg, fast DCT and upsampling",
            lambda i: simplejpeg.decode_jpeg(files[i], fastdct=True, fastupsample=True)),
        Way("decode", "Pillow, draft to half the size", scaled),
        Way("decode", "simplejpeg, half the size",
            lambda i: simplejpeg.decode_jpeg(files[i], min_height=187, min_width=250)),
        Way("decode", "MindSpore", lambda i: to_pixels(samples.bytes[i])),
        Way("decode", "none: decoded before, read from a file",
            lambda i: np.fromfile(samples.decoded_files[i], np.uint8).reshape(samples.pixels[i].shape)),
    ]  # fmt: skip
    if cv2:
        found.append(
            Way("decode", "OpenCV", lambda i: cv2.cvtColor(cv2.imdecode(samples.bytes[i], 1), cv2.COLOR_BGR2RGB))
        )
    return found


def decoding_of_crops(samples: Samples) -> list[Way]:
    """A crop of 55 % of the area, near the mean of the recipes' draws. MindSpore draws the place of its crop itself."""
    to_pixels, crop = vision.Decode(), vision.Crop((TOP, LEFT), (HEIGHT, WIDTH))
    partial = vision.RandomCropDecodeResize((HEIGHT, WIDTH), **BOX_DRAWS)
    found = [
        Way("decode a crop", "simplejpeg, all of it (used)",
            lambda i: decode(samples.files[i])[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]),
        Way("decode a crop", "MindSpore, all of it", lambda i: crop(to_pixels(samples.bytes[i]))),
        Way("decode a crop", "MindSpore, the crop alone", lambda i: partial(samples.bytes[i]), compared=False),
    ]  # fmt: skip
    if decode_part := decoder(samples.folder):
        all_of_it = 0, 0, *samples.pixels[0].shape[:2]
        found += [
            Way("decode a crop", "libjpeg-turbo from C, all of it",
                lambda i: decode_part(samples.files[i], all_of_it)[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]),
            Way("decode a crop", "libjpeg-turbo from C, the crop alone",
                lambda i: decode_part(samples.files[i], BOX)),
        ]  # fmt: skip
    return found


def resizing(samples: Samples, cv2: ModuleType | None) -> list[Way]:
    step, images, pixels = "crop, resize", samples.images, samples.pixels
    crop = vision.Crop((TOP, LEFT), (HEIGHT, WIDTH))
    bicubic, like_pillow = (vision.Resize(SIZE, inter) for inter in (vision.Inter.BICUBIC, vision.Inter.PILCUBIC))
    found = [
        Way(step, "Pillow, crop and resize", lambda i: images[i].crop(CORNERS).resize(SIZE, BICUBIC)),
        Way(step, "Pillow, resize with a box", lambda i: images[i].resize(SIZE, BICUBIC, CORNERS)),
        Way(step, "kernel (used)", lambda i: kernels.resize_crop(pixels[i], BOX, SIZE, (False, False), 1)),
        Way(step, "MindSpore, PILCUBIC", lambda i: like_pillow(crop(pixels[i]))),
        Way(step, "MindSpore, BICUBIC: no antialiasing", lambda i: bicubic(crop(pixels[i]))),
    ]
    if cv2:
        views = [one[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH] for one in pixels]
        found += [
            Way(step, "OpenCV, INTER_CUBIC: no antialiasing", lambda i: cv2.resize(views[i], SIZE, None, 0, 0, 2)),
            Way(step, "OpenCV, INTER_AREA", lambda i: cv2.resize(views[i], SIZE, None, 0, 0, 3)),
        ]
    return found


def flipping(samples: Samples, cv2: ModuleType | None) -> list[Way]:
    """What the kernel takes longer than without a flip is what its flip costs."""
    step, flip = "crop, resize, flip", vision.HorizontalFlip()

    def resized(index: int, flipped: bool) -> np.ndarray:
        return kernels.resize_crop(samples.pixels[index], BOX, SIZE, (flipped, False), kernels.BICUBIC)

    found = [
        Way(step, "kernel, then NumPy", lambda i: resized(i, False)[:, ::-1].copy()),
        Way(step, "kernel, weights in reverse order (used)", lambda i: resized(i, True)),
        Way(step, "kernel, then MindSpore", lambda i: flip(resized(i, False))),
    ]
    if cv2:
        found.append(Way(step, "kernel, then OpenCV", lambda i: cv2.flip(resized(i, False), 1)))
    return found


def moving(samples: Samples, cv2: ModuleType | None) -> list[Way]:
    small, images = samples.small, samples.small_images
    rotate, affine = Operation("Rotate", 1.0, 9), Image.Transform.AFFINE
    degrees = rotate.argument(np.random.default_rng(0))[1]
    in_mindspore = vision.Rotate(degrees, vision.Inter.BICUBIC, fill_value=FILL)
    found = [
        Way("rotate", "Pillow", lambda i: images[i].rotate(degrees, BICUBIC, fillcolor=FILL)),
        Way("rotate", "kernel (used)",
            lambda i: rotate(Picture(small[i]), np.random.default_rng(0), Style(FILL, BICUBIC)).pixels()),
        Way("rotate", "MindSpore, BICUBIC", lambda i: in_mindspore(small[i])),
        Way("shear", "Pillow", lambda i: images[i].transform(SIZE, affine, SHEAR, BICUBIC, fillcolor=FILL)),
        Way("shear", "kernel (used)", lambda i: kernels.affine(small[i], SHEAR, FILL)),
    ]  # fmt: skip
    if cv2:
        matrix, how = np.array(SHEAR).reshape(2, 3), {"flags": cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP}
        found.append(Way("shear", "OpenCV", lambda i: cv2.warpAffine(small[i], matrix, SIZE, **how, borderValue=FILL)))
    return found


def upsizing(samples: Samples) -> list[Way]:
    """What small images (CIFAR, digits, tight crops) could save: to augment them before they grow."""
    step, tiny, whole = "shear and upsize 96²", [image.resize((96, 96)) for image in samples.images], (0, 0, 96, 96)
    pixels = [np.array(image) for image in tiny]

    def grown(image: np.ndarray) -> np.ndarray:
        return kernels.resize_crop(image, whole, SIZE, (False, False), kernels.BICUBIC)

    return [
        Way(step, "upsize first (used)", lambda i: kernels.affine(grown(pixels[i]), SHEAR, FILL)),
        Way(step, "shear first", lambda i: grown(kernels.affine(pixels[i], SHEAR, FILL))),
    ]


def equalizing(samples: Samples) -> list[Way]:
    small, images = samples.small, samples.small_images
    equalize, in_mindspore = Operation("Equalize", 1.0, 5), vision.Equalize()

    def equalized(index: int) -> Picture:
        return equalize(Picture(small[index]), np.random.default_rng(0), Style())

    return [
        Way("equalize", "Pillow", lambda i: ImageOps.equalize(images[i])),
        Way("equalize", "table, then applied", lambda i: equalized(i).pixels()),
        Way("equalize", "table, composed with the next (used)", lambda i: equalized(i).tables, compared=False),
        Way("equalize", "MindSpore", lambda i: in_mindspore(small[i])),
    ]


def normalizing(samples: Samples, cv2: ModuleType | None) -> list[Way]:
    small, images = samples.small, samples.small_images
    mean, std, planes = np.float32(MEAN), np.float32(STD), np.empty((3, *SIZE), np.float32)
    normalize, to_planes = vision.Normalize(MEAN, STD), vision.HWC2CHW()

    def through_planes(index: int) -> np.ndarray:
        NORMALIZE.fill(planes, Picture(small[index]))
        return planes

    found = [
        Way("normalise", "table, by NumPy", lambda i: NORMALIZE(images[i])),
        Way("normalise", "arithmetic, by NumPy",
            lambda i: np.ascontiguousarray(((small[i] - mean) / std).transpose(2, 0, 1))),
        Way("normalise", "table, kernel (used)", through_planes),
        Way("normalise", "MindSpore, Normalize and HWC2CHW", lambda i: to_planes(normalize(small[i]))),
    ]  # fmt: skip
    if cv2:
        levels = np.ascontiguousarray(((np.arange(256)[:, None, None] - MEAN) / STD).astype(np.float32))
        split = [planes[channel] for channel in range(3)]
        found.append(
            Way("normalise", "table, OpenCV", lambda i: cv2.split(cv2.LUT(small[i], levels), split) and planes)
        )
    return found
