"""The one walk: what counts, links, names, special files; and images held out for validation."""

import csv
import json
import logging
import os
import pickle
import re
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import DIGITS, MODEL, finish, mpirun_command, start

from mindcv_reparam.checkpoint import read_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset, run_to_resume
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.data.folders import walk
from mindcv_reparam.data.image_folder import ImageFolder
from mindcv_reparam.data.splits import SPLIT, hold_out
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.image_files import find_images
from mindcv_reparam.tasks import TASKS, open_loader

pytestmark = pytest.mark.usefixtures("known_tiny")
ROOT = Path(__file__).parents[1]
LITTER = (
    "cat/.ipynb_checkpoints/1-checkpoint.jpg", "cat/._1.jpg", "cat/.DS_Store", "cat/Thumbs.db", "cat/desktop.ini",
    "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/cat/1.jpg", "cat/__MACOSX/1.jpg", ".git/1.jpg",
)  # fmt: skip


def write_image(path, colour=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path, {".jfif": "JPEG", ".jpe": "JPEG"}.get(path.suffix))
    return path


def names(source):
    return [os.fsdecode(file) for file in source.files.tolist()]


@pytest.fixture
def folder(tmp_path):
    """Two classes of three and two images, with every suffix in some case."""
    for name in ("cat/1.jpg", "cat/2.JPE", "cat/deep/3.jfif", "dog/1.WebP", "dog/2.avif"):
        path = write_image(tmp_path / "data" / name.lower())
        path.rename(tmp_path / "data" / name)
    return tmp_path / "data"


IMAGES = ["cat/1.jpg", "cat/2.JPE", "cat/deep/3.jfif", "dog/1.WebP", "dog/2.avif"]


def test_what_systems_leave_never_counts(folder):
    for name in LITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "cat/1.jpg", folder / name)
    source = ImageFolder(folder)
    assert source.classes == ("cat", "dog")
    assert names(source) == IMAGES
    assert source.problems == ()
    assert [source.pixels(index).shape for index in range(5)] == [(6, 8, 3)] * 5
    found = [folder / name for name in IMAGES]
    assert find_images([str(folder)]) == found
    assert find_images([f"{folder}/**"]) == found
    assert find_images([f"{folder}/*/*"]) == found
    assert find_images([f"{folder}/*"]) == found
    assert find_images([f"{folder}/**/[12].*"]) == [file for file in found if file.stem in "12"]
    assert find_images([f"{folder}/cat/**/*.jf?f"]) == [folder / "cat/deep/3.jfif"]


def test_links_are_followed_and_circles_are_not(folder, tmp_path):
    write_image(tmp_path / "elsewhere/far/9.png")
    (folder / "cat/4.png").symlink_to(tmp_path / "elsewhere/far/9.png")
    (folder / "cat/more").symlink_to(tmp_path / "elsewhere")
    (folder / "bird").symlink_to(tmp_path / "elsewhere/far")
    (folder / "cat/again").symlink_to(".")
    (folder / "cat/deep/up").symlink_to("..")
    (folder / "cat/all").symlink_to("..")
    (folder / "dog/self").symlink_to("self")
    source = ImageFolder(folder)
    assert Counter(os.path.dirname(name).split("/")[0] for name in names(source)) == {"bird": 1, "cat": 5, "dog": 2}
    assert names(source)[1:6] == ["cat/1.jpg", "cat/2.JPE", "cat/4.png", "cat/deep/3.jfif", "cat/more/far/9.png"]
    assert len(find_images([str(folder / "dog"), f"{folder}/dog/**/*"])) == 3  # with the link to itself
    for name in (str(folder), f"{folder}/**/*.*"):
        assert len(find_images([name])) == 7, "the folder far is entered once"


def test_two_circles_end(folder):
    for number in range(3):
        (folder / f"cat/{number}").symlink_to("..")
    assert [str(file.relative_to(folder)) for file in find_images([f"{folder}/cat/**/*.jpg"])] == ["cat/1.jpg"]
    assert names(ImageFolder(folder)) == IMAGES


def test_what_cannot_be_an_image_is_named_and_not_opened(folder):
    (folder / "cat/lost.jpg").symlink_to("nowhere")
    (folder / "bird").symlink_to("nowhere")
    os.mkfifo(folder / "cat/pipe.jpg")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "dog/socket.png"))
        source = ImageFolder(folder)
    assert names(source) == IMAGES
    assert source.problems == (
        f"{folder}/bird is a link to nothing",
        f"{folder}/cat/lost.jpg is a link to nothing",
        f"{folder}/cat/pipe.jpg is no regular file",
        f"{folder}/dog/socket.png is no regular file",
    )
    files = find_images([str(folder)])
    assert len(files) == 8, "infer names them as skipped"
    with pytest.raises(UserError, match="no file or folder"):
        find_images([str(folder / "cat/pipe.jpg")])


def test_images_of_other_formats_are_counted_in_one_line(folder, caplog):
    for name in ("cat/8.HEIC", "dog/8.heic", "dog/9.jxl"):
        (folder / name).write_bytes(b"\0")
    line = (
        "3 images of formats that are not read here (.heic, .jxl) are left out, the first: cat/8.HEIC; convert them to "
        "JPEG or PNG"
    )
    assert ImageFolder(folder).problems == (f"{folder}: {line}",)
    assert len(find_images([str(folder)])) == 5
    assert caplog.messages == [f"{folder}: {line}"]
    for name in IMAGES:
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"no images in the class folders .*3 images of formats that are not read here"):
        ImageFolder(folder)


@pytest.mark.parametrize("name", [b"caf\xe9", b"cat/caf\xe9.jpg", b"dog/\xff\xfe"])
def test_names_that_are_not_utf8_are_told_at_listing(folder, name):
    path = os.path.join(os.fsencode(folder), name)
    if name.endswith(b".jpg"):
        shutil.copy(folder / "cat/1.jpg", path)
    else:
        os.mkdir(path)
    message = re.escape(f"the name {name.split(b'/')[-1]!r}")
    for attempt in (lambda: ImageFolder(folder), lambda: find_images([str(folder)])):
        with pytest.raises(UserError, match=f"{message} in .* is not UTF-8: rename it"):
            attempt()


def test_training_validation_export_and_infer_take_the_same_images(folder):
    for name in LITTER:
        write_image((folder / name).with_suffix(".jpg"))
    (folder / "cat/again").symlink_to("..")
    everything = set(find_images([str(folder)]))
    for train in (True, False):
        source = create_dataset(Config(data_dir=str(folder)), train=train)
        assert {Path(source.name(index)) for index in range(len(source))} == everything


def test_a_folder_that_cannot_be_read_is_told(folder):
    with pytest.raises(UserError, match="nowhere cannot be read: No such file or directory"):
        walk(folder / "nowhere")


# held out


def numbered(folder, counts):
    for label, count in counts.items():
        for number in range(count):
            write_image(folder / label / f"{number:02}.png", (10 * number, 0, 0))
    return folder


def parts(config, **options):
    train = create_dataset(config, True, **options)
    return train, create_dataset(config, False, train.classes, beside=train, **options)


def test_a_fraction_is_held_out_of_every_class_by_the_seed(tmp_path):
    numbered(tmp_path / "data", {"a": 20, "b": 10, "c": 3, "d": 1, "e": 2})
    config = Config(data_dir=str(tmp_path / "data"), val_split="0.2", seed=3)
    train, val = parts(config)
    assert np.bincount(val.labels, minlength=5).tolist() == [4, 2, 1, 0, 1]
    assert np.bincount(train.labels, minlength=5).tolist() == [16, 8, 2, 1, 1]
    assert not set(names(train)) & set(names(val))
    assert sorted(names(train) + names(val)) == names(ImageFolder(tmp_path / "data"))
    again, other = parts(config)[1], parts(Config(data_dir=str(tmp_path / "data"), val_split="0.2", seed=4))[1]
    assert names(again) == names(val) != names(other)
    assert [train.pixels(index)[0, 0, 0] for index in range(16)] == [10 * int(n[2:4]) for n in names(train)[:16]]
    copied = pickle.loads(pickle.dumps(train))
    assert (names(copied), copied.split) == (names(train), None)


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 1), (0.5, 5), (0.25, 3), (0.99, 9)])
def test_some_are_left_on_both_sides(fraction, expected):
    assert hold_out(np.zeros(10, np.int32), fraction, 0).sum() == expected


def test_a_fraction_is_held_out_of_the_folder_train_and_a_folder_of_that_name_goes_before(tmp_path):
    numbered(tmp_path / "train", {"a": 10})
    config = Config(data_dir=str(tmp_path), val_split="0.2")
    train, val = parts(config)
    assert (len(train), len(val), val.root) == (8, 2, tmp_path / "train")
    numbered(tmp_path / "0.2", {"a": 3})
    assert [len(one) for one in parts(config)] == [10, 3]


def test_folds_take_every_image_once_and_of_every_class_as_many(tmp_path):
    numbered(tmp_path / "data", {"a": 20, "b": 7, "c": 4, "d": 1})
    folds = [parts(Config(data_dir=str(tmp_path / "data"), fold=f"{k}/5", seed=3)) for k in range(1, 6)]
    assert sorted(name for _, val in folds for name in names(val)) == names(ImageFolder(tmp_path / "data"))
    for train, val in folds:
        assert sorted(names(train) + names(val)) == names(ImageFolder(tmp_path / "data"))
    counts = np.array([np.bincount(val.labels, minlength=4) for _, val in folds])
    assert np.ptp(counts, axis=0).max() <= 1
    assert sorted(counts.sum(1)) == [6, 6, 6, 7, 7]
    other = parts(Config(data_dir=str(tmp_path / "data"), fold="1/5", seed=4))[1]
    assert (
        names(folds[0][1])
        == names(parts(Config(data_dir=str(tmp_path / "data"), fold="1/5", seed=3))[1])
        != names(other)
    )


def test_a_fold_is_a_file_of_the_run_as_a_fraction_is(tmp_path):
    numbered(tmp_path / "data", {"a": 10, "b": 5})
    train, val = parts(Config(data_dir=str(tmp_path / "data"), fold="2/3"))
    train.write_split(tmp_path / "run")
    alone = create_dataset(Config(data_dir=str(tmp_path / "data")), train=False, run=tmp_path / "run")
    assert names(alone) == names(val)


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "1", "a/b", "1/5/2", "1/-5"])
def test_what_is_no_fold_is_refused(text):
    with pytest.raises(UserError, match="fold must be k/n with k from 1 to n and n of at least 2, such as 1/5"):
        Config(fold=text)


def test_a_fold_beside_a_fraction_and_of_data_that_is_divided_are_refused(tmp_path):
    numbered(tmp_path, {"a": 3})
    with pytest.raises(UserError, match=r"fold 1/5 and val_split 0\.2 both hold images out"):
        create_dataset(Config(data_dir=str(tmp_path), val_split="0.2", fold="1/5"), train=True)
    with pytest.raises(UserError, match="fold 1/5: digits has validation images of its own"):
        create_dataset(Config(dataset="digits", fold="1/5"), train=True)
    with pytest.raises(UserError, match="fold 5/5 holds no image out: of 3, none can be spared"):
        create_dataset(Config(data_dir=str(tmp_path), fold="5/5"), train=True)


@pytest.mark.parametrize("text", ["0", "1", "1.5", "20", "-0.1", "nan"])
def test_a_number_that_is_no_part_is_refused(tmp_path, text):
    numbered(tmp_path, {"a": 3})
    with pytest.raises(UserError, match=f"val_split {text} is no part of the images: give a number between 0 and 1"):
        create_dataset(Config(data_dir=str(tmp_path), val_split=text), train=True)


def test_data_sets_with_splits_of_their_own_hold_nothing_out():
    with pytest.raises(UserError, match=r"val_split 0\.2: digits has validation images of its own"):
        create_dataset(Config(dataset="digits", val_split="0.2"), train=True)


def test_the_split_is_a_file_of_the_run_and_used_again(tmp_path, caplog):
    data = numbered(tmp_path / "data", {"a": 10, "b, c": 5})
    run = tmp_path / "run"
    config = Config(data_dir=str(data), val_split="0.2", ckpt_save_dir=str(run))
    train, val = parts(config)
    train.write_split(run)
    rows = list(csv.DictReader((run / SPLIT).open(encoding="utf-8", newline="")))
    assert Counter(row["split"] for row in rows) == {"train": 12, "val": 3}
    assert {row["path"] for row in rows if row["split"] == "val"} == set(names(val))

    other = Config(data_dir=str(data), val_split="0.2", seed=99)
    assert [names(one) for one in parts(other, run=run)] == [names(train), names(val)]
    caplog.set_level(logging.INFO, "mindcv_reparam")
    alone = create_dataset(Config(data_dir=str(data)), train=False, run=run)
    assert names(alone) == names(val), "validate.py without the recipe finds the split beside the checkpoint"
    assert caplog.messages == [f"the validation images are those of {run / SPLIT}"]

    write_image(data / "a/new.png")
    assert [names(one) for one in parts(other, run=run)] == [names(train), names(val)]
    assert "does not list a/new.png (1 such): left out" in caplog.text
    (data / names(val)[0]).unlink()
    assert names(create_dataset(other, True, run=run)) == names(train)
    with pytest.raises(UserError, match=f"lists {names(val)[0]}"):
        create_dataset(other, False, run=run)
    for damaged in ("", "path\n", "path,split\na,b\n", "a,b\nx,train\n", "path,split\nx\n"):
        (run / SPLIT).write_text(damaged)
        with pytest.raises(UserError, match="has not the lines path,split"):
            create_dataset(other, True, run=run)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_has_the_batches_of_before_when_a_run_is_resumed(tmp_path, rank):
    data, run = numbered(tmp_path / "data", {"a": 10, "b": 9}), tmp_path / "run"
    config = Config(data_dir=str(data), val_split="0.3", batch_size=3, image_resize=8, num_parallel_workers=1)

    def batches(**options):
        found = []
        for train, source in zip((True, False), parts(config, **options)):
            with open_loader(TASKS["classification"], source, config, train, rank, 2) as loader:
                found += [array for epoch in range(1 + train) for batch in loader.epoch(epoch) for array in batch]
        return found

    before = batches()
    assert len(before) == 2 * 2 * 2 + 3 * 1
    create_dataset(config, train=True).write_split(run)
    for array, other in zip(batches(run=run), before, strict=True):
        np.testing.assert_array_equal(array, other)


def test_a_run_is_resumed_with_its_split(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert run_to_resume(Config(ckpt_save_dir=str(run))) is None
    assert run_to_resume(Config(ckpt_save_dir=str(run), resume="auto")) is None
    (run / "visformer_tiny_resume.npz").touch()
    assert run_to_resume(Config(ckpt_save_dir=str(run))) is None
    assert run_to_resume(Config(ckpt_save_dir=str(run), resume="auto")) == run
    for resume in (run, run / "visformer_tiny_resume.npz"):
        assert run_to_resume(Config(ckpt_save_dir="elsewhere", resume=str(resume))) == run


def test_training_images_are_validated_only_where_asked_for(tmp_path, caplog):
    data = numbered(tmp_path, {"a": 3, "b": 3})
    caplog.set_level(logging.INFO, "mindcv_reparam")
    with pytest.raises(UserError) as raised:
        parts(Config(data_dir=str(data)))
    assert str(raised.value) == (
        f"{data} has no folder 'val' of validation images: hold out a part of the training images with --val_split "
        f"0.1, or validate on all of them with --val_split train"
    )
    assert [len(one) for one in parts(Config(data_dir=str(data), val_split="train"))] == [6, 6]
    assert caplog.messages.pop() == "validation runs on the training images, as val_split train says"
    # validate.py is told the images to validate
    assert len(create_dataset(Config(data_dir=str(data)), train=False)) == 6
    assert caplog.messages.pop() == f"{data} has no splits: all of its images are validated"


def test_a_named_split_that_is_missing_is_an_error(tmp_path):
    numbered(tmp_path, {"a": 3, "b": 3})
    for settings in ({"val_split": "held"}, {"train_split": "held"}):
        with pytest.raises(UserError, match="has no folder 'held', only a, b: name a split that is there"):
            create_dataset(Config(data_dir=str(tmp_path), **settings), train="train_split" in settings)


def script(name, *arguments, ranks=1):
    command = [ROOT / name, *arguments]
    return start(mpirun_command(ranks, *command) if ranks > 1 else [sys.executable, *map(str, command)])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_ranks_train_on_a_split_and_validate_py_finds_it(tmp_path):
    source, data, run = Digits(train=False), tmp_path / "data", tmp_path / "run"
    for index in range(60):
        path = data / str(source.labels[index]) / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.load(index).save(path)
    settings = (*DIGITS, "--dataset", "imagenet", "--data_dir")
    settings += (data, "--val_split", "0.25", "--batch_size", 20, "--epoch_size", 2, "--decay_epochs", 1)
    settings += ("--warmup_epochs", 1, "--image_background", 1, 2, 3, "--ckpt_save_dir", run)
    status, _, log = finish(script("train.py", *settings, ranks=2), 600)
    assert status == 0, log
    rows = list(csv.DictReader((run / SPLIT).open(encoding="utf-8", newline="")))
    held_out = sum(row["split"] == "val" for row in rows)
    assert (len(rows), held_out) == (60, 20)
    _, info = read_checkpoint(run / f"{MODEL}_final.ckpt")
    assert tuple(info.preprocessing["image_background"]) == (1, 2, 3)

    report = tmp_path / "report.json"
    arguments = ("--ckpt_path", run / f"{MODEL}_final.ckpt", "--data_dir", data, "--output", report)
    status, _, log = finish(script("validate.py", *arguments), 600)
    assert status == 0, log
    assert f"the validation images are those of {run / SPLIT}" in log
    result = json.loads(report.read_text())
    last = list(csv.DictReader((run / "metrics.csv").open()))[-1]
    assert (result["samples"], result["top1"]) == (held_out, pytest.approx(float(last["top1"])))
