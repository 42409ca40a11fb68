"""Data sets: digits, CIFAR-10 files, image folders and what is wrong in them."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindcv_reparam import data
from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset
from mindcv_reparam.data.decoder import Decoder
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.data.source import UnreadableImage
from mindcv_reparam.errors import UserError


def write_image(path, colour=(200, 30, 60), size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """train: two classes of three and two images, one of them in a sub-folder; val: one image of one class."""
    for name in ("train/cat/1.jpg", "train/cat/2.JPEG", "train/cat/deep/3.png", "train/dog/1.jpg", "train/dog/2.bmp"):
        write_image(tmp_path / name)
    write_image(tmp_path / "val/dog/1.jpg", (0, 0, 255))
    return tmp_path


def test_digits_are_the_uci_test_set_split_by_class():
    train, val = Digits(train=True), Digits(train=False)
    assert (len(train), len(val)) == (1437, 360)
    np.testing.assert_array_equal(np.bincount(train.labels), [142, 146, 141, 147, 144, 146, 145, 143, 139, 144])
    np.testing.assert_array_equal(np.bincount(val.labels), [36, 36, 36, 36, 37, 36, 36, 36, 35, 36])
    assert train.classes == tuple("0123456789")
    names = {s.name(i) for s in (train, val) for i in range(len(s))}
    assert len(names) == 1797


def test_digits_file_is_unchanged():
    with np.load(Path(data.__file__).parent / "assets" / "digits.npz") as arrays:
        rows = np.concatenate([arrays["images"].reshape(-1, 64), arrays["labels"][:, None]], axis=1)
    # of the rows of scikit-learn's digits.csv as bytes: 64 values and the label
    assert (
        hashlib.sha256(rows.tobytes()).hexdigest() == "68aea062d35a127749050fa0e52dca09d6569ac08092c925610e0954e172dde2"
    )


def test_a_digit_is_an_rgb_image_of_16_ink_levels():
    pixels = Digits(train=False).pixels(0)
    assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    # the first digit of the file, a 0: its first rows are 0 0 5 13 9 1 0 0 and 0 0 13 15 10 15 5 0
    rows = np.array([[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]])
    np.testing.assert_array_equal(pixels[:2, :, 0], np.rint(rows * 255 / 16))


def write_cifar(root, files, meta=None):
    root.mkdir(parents=True, exist_ok=True)
    for name, labels in files.items():
        records = [bytes([label]) + bytes([label] * 1024 + [100] * 1024 + list(range(256)) * 4) for label in labels]
        (root / name).write_bytes(b"".join(records))
    if meta:
        (root / "batches.meta.txt").write_text(meta)


def test_cifar_files(tmp_path):
    root = tmp_path / "cifar-10-batches-bin"
    write_cifar(root, {"data_batch_1.bin": [3, 1], "data_batch_2.bin": [0, 9, 5], "test_batch.bin": [2]})
    train = create_dataset(Config(dataset="cifar10", data_dir=str(tmp_path)), train=True)
    assert train.labels.tolist() == [3, 1, 0, 9, 5]
    assert train.classes[3] == "cat"
    for source in (train, pickle.loads(pickle.dumps(train))):
        pixels = source.pixels(3)
        assert pixels.shape == (32, 32, 3)
        assert pixels[0, 5].tolist() == [9, 100, 5]  # planes of red, green and blue, rows of 32
        assert pixels[1, 0].tolist() == [9, 100, 32]
        assert "record 1" in source.name(3)
        assert "data_batch_2.bin" in source.name(3)
    assert len(pickle.dumps(train)) < 2000
    val = create_dataset(Config(dataset="cifar10", data_dir=str(root)), train=False)
    assert val.labels.tolist() == [2]


def test_cifar_class_names_come_from_the_meta_file(tmp_path):
    write_cifar(tmp_path, {"data_batch_1.bin": [1]}, meta="plane\ncar\n\n")
    source = create_dataset(Config(dataset="cifar10", data_dir=str(tmp_path)), train=True)
    assert source.classes == ("plane", "car")


def test_damaged_cifar_is_refused(tmp_path):
    config = Config(dataset="cifar10", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"no data_batch_\*\.bin in"):
        create_dataset(config, train=True)
    write_cifar(tmp_path, {"data_batch_1.bin": [1, 2]})
    file = tmp_path / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"data_batch_1\.bin is truncated"):
        create_dataset(config, train=True)
    write_cifar(tmp_path, {"data_batch_1.bin": [77]})
    with pytest.raises(UserError, match="class index 77"):
        create_dataset(config, train=True)


def test_image_folder_lists_by_class(folder):
    source = create_dataset(Config(data_dir=str(folder)), train=True)
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.class_to_idx == {"cat": 0, "dog": 1}
    assert [source.name(i).rsplit("/train/")[1] for i in range(5)] == [
        "cat/1.jpg", "cat/2.JPEG", "cat/deep/3.png", "dog/1.jpg", "dog/2.bmp",
    ]  # fmt: skip
    assert source.pixels(4)[3, 3].tolist() == [200, 30, 60]
    assert source.problems == ()


def test_classes_of_a_checkpoint_are_imposed(folder):
    config = Config(data_dir=str(folder))
    source = create_dataset(config, train=False, classes=["bird", "cat", "dog"])
    assert source.labels.tolist() == [2]
    assert source.classes == ("bird", "cat", "dog")
    assert create_dataset(config, train=False).labels.tolist() == [0]
    with pytest.raises(UserError, match="class folder 'dog'"):
        create_dataset(config, train=False, classes=["cat"])
    with pytest.raises(UserError, match="the data set that it was trained on"):
        create_dataset(Config(dataset="digits"), train=False, classes=["cat"])
    assert len(create_dataset(Config(dataset="digits"), train=False, classes=list("0123456789"))) == 360


def test_a_single_split_serves_both(folder):
    config = Config(data_dir=str(folder / "train"))
    assert len(create_dataset(config, train=True)) == len(create_dataset(config, train=False)) == 5


def test_a_missing_split_beside_another_is_an_error(folder):
    with pytest.raises(UserError, match=r"no folder 'valid' but 'train'"):
        create_dataset(Config(data_dir=str(folder), val_split="valid"), train=False)
    with pytest.raises(UserError, match="is no folder"):
        create_dataset(Config(data_dir=str(folder / "nowhere")), train=True)


def test_empty_folders_are_errors(tmp_path):
    with pytest.raises(UserError, match="no class folders"):
        create_dataset(Config(data_dir=str(tmp_path)), train=True)
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="no images in the class folders"):
        create_dataset(Config(data_dir=str(tmp_path)), train=True)


def test_problems_are_named(folder):
    (folder / "train" / "ant").mkdir()
    (folder / "train" / "cat" / "notes.txt").write_text("hello")
    (folder / "train" / "cat" / ".DS_Store").write_text("ignored")
    (folder / "train" / "list.csv").write_text("ignored: beside the class folders")
    source = create_dataset(Config(data_dir=str(folder)), train=True)
    assert len(source) == 5
    assert source.classes == ("ant", "cat", "dog")
    assert [problem.rsplit("/train/")[1] for problem in source.problems] == [
        "ant has no images",
        "cat/notes.txt is no image file",
    ]


def test_any_mode_becomes_rgb(tmp_path):
    for index, mode in enumerate(["L", "P", "RGBA", "CMYK", "1", "I;16"]):
        suffix = "tiff" if mode in ("CMYK", "I;16") else "png"
        path = tmp_path / "x" / f"{index}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        Image.new(mode, (6, 5)).save(path)
    source = create_dataset(Config(data_dir=str(tmp_path)), train=True)
    assert {(source.load(index).mode, source.load(index).size) for index in range(6)} == {("RGB", (6, 5))}


def test_unreadable_files_say_which_and_why(folder):
    good = (folder / "train/cat/1.jpg").read_bytes()
    (folder / "train/cat/1.jpg").write_bytes(good[: len(good) // 2])
    (folder / "train/cat/2.JPEG").write_text("no image")
    (folder / "train/dog/1.jpg").write_bytes(b"")
    source = create_dataset(Config(data_dir=str(folder)), train=True)
    for index, name in ((0, "cat/1.jpg"), (1, "cat/2.JPEG"), (3, "dog/1.jpg")):
        with pytest.raises(UnreadableImage, match=f"{name} cannot be read"):
            source.load(index)


def decoded_by_pillow(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True, "quality": 40}])
def test_jpegs_have_the_pixels_of_pillow(tmp_path, mode, options):
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, len(mode))).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(noise.squeeze()).convert(mode).resize((211, 173), Image.Resampling.BICUBIC).save(path, **options)
    np.testing.assert_array_equal(Decoder().pixels(path.read_bytes()), decoded_by_pillow(path))


def test_a_jpeg_with_bytes_too_many_is_read_as_by_pillow(tmp_path):
    path = write_image(tmp_path / "a.jpg")
    data = path.read_bytes()
    table = data.index(b"\xff\xdb")
    path.write_bytes(data[:table] + b"\0\0\0" + data[table:])  # libjpeg warns and goes on
    np.testing.assert_array_equal(Decoder().pixels(path.read_bytes()), decoded_by_pillow(path))
