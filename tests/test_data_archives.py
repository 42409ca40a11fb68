"""Images read from tar archives by offset: the data set of the same files unpacked, and archives that are not whole."""

import dataclasses
import io
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset, tar_index
from mindcv_reparam.data.decoder import UnreadableImage
from mindcv_reparam.data.image_archive import ImageArchive
from mindcv_reparam.data.image_folder import ImageFolder
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS, open_loader

TRAIN = Config(
    dataset="imagenet", image_resize=24, batch_size=4, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5, mixup=0.8,
    num_parallel_workers=1, num_classes=3,
)  # fmt: skip
FILES = (
    *(f"{'abc'[index % 3]}/{index:02}.jpg" for index in range(11)),
    *("a/b/03.PNG", "a/b.png", "b/._1.jpg", "b/notes.txt", "c/raw.heic", "c/ü.jpg", f"c/{'x' * 120}.jpg"),
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Splits of noisy images, with what does not count beside them."""
    root, draw = tmp_path_factory.mktemp("unpacked"), np.random.default_rng(0)
    for name in (f"{split}/{file}" for split in ("train", "val") for file in FILES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".txt", ".heic")):
            (root / name).write_text("x")
        else:
            Image.fromarray(draw.integers(0, 256, (30, 40, 3), np.uint8)).save(root / name)
    return root


def pack(path, folder, names=None, top="", form=tarfile.GNU_FORMAT):
    """An archive of these files of a folder, in an order that is not theirs."""
    names = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()] if names is None else names
    with tarfile.open(path, "w", format=form) as archive:
        for name in sorted(names, reverse=True):
            archive.add(folder / name, f"{top}{name}")
    return path


def pack_by_class(path, folder):
    """An archive of one archive a class, as ILSVRC2012_img_train.tar is."""
    with tarfile.open(path, "w") as outer:
        for label in sorted(os.listdir(folder)):
            inner = pack(path.with_name(f"{label}.tar"), folder / label)
            outer.add(inner, inner.name)
            inner.unlink()
    return path


def shards(root, folder):
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    return [pack(root / f"train-{part}.tar", folder, names[part::3]) for part in range(3)]


SHAPES = {
    "class folders": lambda root, source: pack(root / "train.tar", source / "train"),
    "as tar c . has them": lambda root, source: pack(root / "train.tar", source / "train", top="./"),
    "in a folder": lambda root, source: pack(root / "train.tar", source / "train", top="ImageNet/data/"),
    "POSIX": lambda root, source: pack(root / "train.tar", source / "train", form=tarfile.PAX_FORMAT),
    "shards": lambda root, source: shards(root, source / "train"),
    "classes packed": lambda root, source: pack_by_class(root / "ILSVRC2012_img_train.tar", source / "train"),
}


def assert_same(archive, folder, root):
    np.testing.assert_array_equal(archive.files, folder.files)
    np.testing.assert_array_equal(archive.labels, folder.labels)
    assert archive.classes == folder.classes
    assert len(archive.problems) == len(folder.problems)
    for index in range(len(folder)):
        np.testing.assert_array_equal(archive.pixels(index), folder.pixels(index))
        assert archive.name(index).startswith(f"{root}/")


@pytest.mark.parametrize("shape", SHAPES)
def test_an_archive_is_the_data_set_of_its_files_unpacked(unpacked, tmp_path, shape):
    SHAPES[shape](tmp_path, unpacked)
    archive = create_dataset(Config(data_dir=str(tmp_path)), train=True)
    folder = create_dataset(Config(data_dir=str(unpacked)), train=True)
    assert isinstance(archive, ImageArchive)
    assert isinstance(folder, ImageFolder)
    assert len(folder) == 15
    assert_same(archive, folder, tmp_path)
    assert_same(pickle.loads(pickle.dumps(archive)), folder, tmp_path)


@pytest.mark.parametrize("top", ["", "data/", "größe/图片/"])
def test_splits_within_one_archive(unpacked, tmp_path, top):
    path = pack(tmp_path / "all.tar", unpacked, top=top)
    for train in (True, False):
        archive = create_dataset(Config(data_dir=str(path)), train)
        assert_same(archive, create_dataset(Config(data_dir=str(unpacked)), train), tmp_path)
    with pytest.raises(UserError, match="has no folder 'test' but 'train': name the split"):
        create_dataset(Config(data_dir=str(path), val_split="test"), train=False)


def test_batches_are_those_of_folders_bit_for_bit(unpacked, tmp_path):
    """Through worker processes, which open the archive themselves."""
    pack(tmp_path / "train.tar", unpacked / "train")
    batches = []
    for root in (tmp_path, unpacked):
        config = dataclasses.replace(TRAIN, data_dir=str(root))
        with open_loader(TASKS["classification"], create_dataset(config, True), config, True) as loader:
            batches.append([[array.copy() for array in batch] for batch in loader.epoch(1)])
    assert len(batches[0]) == len(batches[1]) == 3
    for one, other in zip(*batches, strict=True):
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("told", ["classes", "names", "kit", "packed kit"])
def test_imagenets_validation_images_have_their_classes_told(unpacked, tmp_path, told):
    folder = ImageFolder(unpacked / "val")
    names = [Path(os.fsdecode(file)) for file in folder.files.tolist()]
    flat = {f"{row * 7 % 16:03}{path.suffix}": path for row, path in enumerate(names)}
    archive = tmp_path / "ILSVRC2012_img_val.tar"
    with tarfile.open(archive, "w") as packed:
        for name, path in flat.items():
            packed.add(unpacked / "val" / path, name)
    classes = [flat[name].parts[0] for name in sorted(flat)]
    if told == "classes":
        archive.with_suffix(".txt").write_text("".join(f"{one}\n" for one in classes))
    elif told == "names":
        rows = [f"{name} {path.parts[0]}\n" for name, path in flat.items()]
        archive.with_suffix(".txt").write_text("".join(rows))
    else:
        kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
        kit.mkdir(parents=True)
        numbers = {"b": 1, "c": 2, "a": 3}
        rows = np.array([(n, c) for c, n in numbers.items()], [("ILSVRC2012_ID", "O"), ("WNID", "O")])
        savemat(kit / "meta.mat", {"synsets": rows})
        text = "".join(f"{numbers[one]}\n" for one in classes)
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(text)
        if told == "packed kit":
            with tarfile.open(f"{kit.parent}.tar.gz", "w:gz") as packed:
                packed.add(kit.parent, kit.parent.name)
            (kit / "meta.mat").unlink()
            (kit / "ILSVRC2012_validation_ground_truth.txt").unlink()
            kit.rmdir()
            kit.parent.rmdir()
    source = create_dataset(Config(data_dir=str(tmp_path)), train=False)
    assert source.classes == ("a", "b", "c")
    assert len(source) == len(flat)
    for index in range(len(source)):
        path = flat[source.name(index).rpartition(":")[2]]
        assert source.classes[source.target(index)] == path.parts[0]
        with Image.open(unpacked / "val" / path) as image:
            np.testing.assert_array_equal(source.pixels(index), np.asarray(image.convert("RGB")))


def flat_archive(path, count=3):
    with tarfile.open(path, "w") as packed:
        for number in range(count):
            data = io.BytesIO()
            Image.new("RGB", (8, 6)).save(data, "PNG")
            member = tarfile.TarInfo(f"{number}.png")
            member.size = data.tell()
            packed.addfile(member, io.BytesIO(data.getvalue()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "stand in no class folders: put ILSVRC2012_devkit_t12.tar.gz beside it, or val.txt"),
        ("a\nb\n", "tells the classes of 2 images, its archive has 3"),
        ("0.png a\n1.png a\n", "has no line for 2.png"),
        ("0.png a b\n", "lines that are neither"),
        ("a\nb\nc\nd\n", "tells the classes of 4 images"),
    ],
)
def test_classes_that_are_not_told(tmp_path, text, message):
    flat_archive(tmp_path / "val.tar")
    if text is not None:
        (tmp_path / "val.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        create_dataset(Config(data_dir=str(tmp_path)), train=False)


def test_what_is_no_kit_is_one_line(tmp_path):
    flat_archive(tmp_path / "val.tar")
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not ImageNet's development kit of 2012"):
        create_dataset(Config(data_dir=str(tmp_path)), train=False)


def test_a_cut_archive_is_one_line_wherever_it_is_cut(unpacked, tmp_path):
    """In a header, in an image, between two members, before the mark of its end; in an inner archive too."""
    whole = pack(tmp_path / "train.tar", unpacked / "train", names=["a/00.jpg", "b/01.jpg", "c/02.jpg"]).read_bytes()
    nested = pack_by_class(tmp_path / "nested.tar", unpacked / "val").read_bytes()
    end = len(whole.rstrip(b"\0"))
    end += -end % 512
    for content, sizes in (
        (whole, (*range(0, end, 700), *range(0, end + 512, 512))),
        (nested, range(100, 30_000, 3333)),
    ):
        for size in sizes:
            path = tmp_path / "cut.tar"
            path.write_bytes(content[:size])
            with pytest.raises(UserError, match=r"cut|no class folders|stand in no class") as error:
                ImageArchive([path])
            assert "\n" not in str(error.value)
            assert not list(tmp_path.glob(".cut*.npz"))


def test_a_damaged_header_does_not_end_the_list(unpacked, tmp_path):
    """Of which Python's tarfile says nothing."""
    path = pack(tmp_path / "train.tar", unpacked / "train", names=["a/00.jpg", "b/01.jpg", "c/02.jpg"])
    content = bytearray(path.read_bytes())
    at = content.index(b"b/01.jpg")
    content[at + 100 : at + 108] = b"garbage!"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train.tar is cut or damaged: no end of an archive at byte"):
        ImageArchive([path])


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_archive_is_one_line(unpacked, tmp_path, kind):
    with tarfile.open(tmp_path / "train.tar", f"w:{kind}") as archive:
        archive.add(unpacked / "train", ".")
    with pytest.raises(UserError, match=r"train.tar is compressed \((gzip|bzip2|xz)\)"):
        create_dataset(Config(data_dir=str(tmp_path)), train=True)


def test_archives_within_archives_within_archives_are_one_line(unpacked, tmp_path):
    inner = pack_by_class(tmp_path / "inner.tar", unpacked / "train")
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        archive.add(inner, inner.name)
    with pytest.raises(UserError, match=r"inner.tar in .*train.tar holds the archive [abc].tar: unpack one"):
        create_dataset(Config(data_dir=str(tmp_path)), train=True)


def test_links_and_devices_in_an_archive_are_named(tmp_path):
    flat_archive(tmp_path / "flat.tar", 1)
    with tarfile.open(tmp_path / "flat.tar") as flat, tarfile.open(tmp_path / "train.tar", "w") as packed:
        member = flat.getmembers()[0]
        member.name = "a/0.png"
        packed.addfile(member, flat.extractfile(member))
        for name, kind, target in (
            ("link", tarfile.SYMTYPE, "a/0.png"),
            ("hard", tarfile.LNKTYPE, "a/none.png"),
            ("f", tarfile.FIFOTYPE, ""),
            ("same", tarfile.LNKTYPE, "./a/0.png"),
        ):
            special = tarfile.TarInfo(f"a/{name}.png")
            special.type, special.linkname = kind, target
            packed.addfile(special)
    source = create_dataset(Config(data_dir=str(tmp_path)), train=True)
    assert source.files.tolist() == [b"a/0.png", b"a/same.png"]
    np.testing.assert_array_equal(source.pixels(0), source.pixels(1))
    assert sorted(line.rpartition(":")[2] for line in source.problems) == [
        f"a/{name}.png is no regular file" for name in ("f", "hard", "link")
    ]


def test_an_archive_is_listed_once_and_anew_when_it_changes(unpacked, tmp_path, monkeypatch):
    path = pack(tmp_path / "train.tar", unpacked / "train", names=["a/00.jpg", "b/01.jpg"])
    listed = []
    make = tar_index._listed
    monkeypatch.setattr(tar_index, "_listed", lambda *given: listed.append(given[0]) or make(*given))
    with ThreadPoolExecutor(4) as processes:
        sources = list(processes.map(lambda _: ImageArchive([path]), range(4)))
    assert [len(source) for source in sources] == [2] * 4
    assert listed == [path]
    pack(path, unpacked / "train", names=["a/00.jpg", "b/01.jpg", "c/02.jpg"])
    with pytest.raises(UnreadableImage, match=r"train.tar:a/00.jpg cannot be read: its archive is another one than"):
        sources[0].pixels(0)
    assert len(ImageArchive([path])) == 3
    assert listed == [path] * 2
    kept = tmp_path / ".train.tar.index.npz"
    kept.write_bytes(kept.read_bytes()[:-100])
    assert len(ImageArchive([path])) == 3
    assert listed == [path] * 3


def test_an_index_goes_to_the_cache_where_nothing_can_be_written_beside(unpacked, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    path = pack(tmp_path / "train.tar", unpacked / "train", names=["a/00.jpg", "b/01.jpg"])
    assert len(ImageArchive([path])) == 2
    assert not list(tmp_path.glob(".train*"))
    assert len(list((tmp_path / "cache" / "mindcv_reparam").glob("tar-*.npz"))) == 1


def test_a_part_of_an_archive_is_held_out(unpacked, tmp_path):
    path = pack(tmp_path / "photos.tar", unpacked / "train")
    config = Config(data_dir=str(path), val_split="0.3", seed=2)
    train = create_dataset(config, True)
    val = create_dataset(config, False, train.classes, beside=train)
    folder = create_dataset(Config(data_dir=str(unpacked / "train"), val_split="0.3", seed=2), False)
    assert_same(val, folder, tmp_path)
    (tmp_path / "run").mkdir()
    train.write_split(tmp_path / "run")
    again = create_dataset(config, False, run=tmp_path / "run")
    np.testing.assert_array_equal(again.files, val.files)


def test_an_archive_that_is_named_and_not_there(tmp_path):
    with pytest.raises(UserError, match=r"has no archive mine\*.tar: name one that is there"):
        create_dataset(Config(data_dir=str(tmp_path), train_split="mine*.tar"), train=True)
