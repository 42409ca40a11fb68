"""What a training says before it begins, and the log in its folder."""

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
from networks import SMALL
from PIL import Image

from mindcv_reparam import zoo
from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset
from mindcv_reparam.data.image_folder import ImageFolder
from mindcv_reparam.data.outline import block, data_doubts, described
from mindcv_reparam.data.scenes import Scenes
from mindcv_reparam.data.source import uneven
from mindcv_reparam.distributed import Distributed
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.training import assembly
from mindcv_reparam.training.data import open_data
from mindcv_reparam.training.initial_weights import load_initial
from mindcv_reparam.training.outline import announce
from mindcv_reparam.training.run_log import RunLog

TASK = TASKS["classification"]
PACKAGE = logging.getLogger("mindcv_reparam.test")


@pytest.fixture
def folder(tmp_path):
    """Makes class folders with so many images."""

    def make(**counts: int):
        for name, count in counts.items():
            (tmp_path / "data" / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (4, 4)).save(tmp_path / "data" / name / f"{number}.png")
        return tmp_path / "data"

    return make


def test_a_folder_is_described_by_its_smallest_and_largest_class(folder):
    root = folder(cat=3, dog=5, horse=4)
    (root / "dog/notes.doc").write_text("no image")
    text = "12 images, 3 classes of 3 (cat) to 5 (dog) images; left out: 1, named above"
    assert described(ImageFolder(root)) == text


def test_classes_of_one_size_are_one_number(folder):
    assert described(ImageFolder(folder(cat=3, dog=3))) == "6 images, 2 classes of 3 images"


def test_a_detector_s_classes_are_counted_in_objects():
    scenes = Scenes(train=False)
    counts = scenes.class_counts
    assert counts.sum() == scenes.counts.sum()
    least, most = (f"{counts[index]} ({index})" for index in (np.argmin(counts), np.argmax(counts)))
    assert described(scenes) == f"512 images, 10 classes of {least} to {most} objects"


@pytest.mark.parametrize(
    ("counts", "lines"),
    [
        ({"a": 20, "b": 999}, []),
        ({"a": 20, "b": 1000}, ["the classes are uneven: b has 1000 images, a 20"]),
        ({"a": 19, "b": 20}, ["1 of 2 classes have fewer than 20 images: a (19)"]),
        ({"a": 0, "b": 40}, ["1 of 2 classes have fewer than 20 images: a (0)"]),
        (
            dict(zip("abcdef", (1, 2, 3, 4, 5, 20))),
            ["5 of 6 classes have fewer than 20 images: a (1), b (2), c (3), d (4) and 1 more"],
        ),
        (
            {"a": 1, "b": 50},
            ["1 of 2 classes have fewer than 20 images: a (1)", "the classes are uneven: b has 50 images, a 1"],
        ),
    ],
)
def test_small_and_uneven_classes_are_a_line_each(counts, lines):
    assert uneven(tuple(counts), np.array(list(counts.values())), "images") == lines


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        (("Testing", "cat"), "the class folders Testing of .* look like parts or versions of a data set"),
        (("v1", "V2.1"), r"the class folders V2.1, v1 of .* look like parts or versions"),
        (("v1", "cat"), None),
        (("0", "1"), None),
        (("cat",), "there is one class only, cat: nothing can be told apart"),
    ],
)
def test_folders_that_may_be_no_classes(folder, classes, line):
    lines = data_doubts(Config(), ImageFolder(folder(**dict.fromkeys(classes, 20))))
    assert len(lines) == (line is not None)
    assert line is None or re.match(line, lines[0])


def test_classes_that_the_validation_lacks_and_a_folder_that_nobody_reads(folder):
    root = folder(cat=20, dog=20)
    half = ImageFolder(root)
    half = half.part(np.flatnonzero(half.labels == 0), None)
    config = Config(data_dir=str(root), dataset="folder", given=frozenset({"data_dir"}))
    assert data_doubts(config, create_dataset(config, True), half) == ["the validation lacks 1 of 2 classes: dog"]
    none = SimpleNamespace(class_counts=np.zeros(2, np.int64), counted="objects")
    assert data_doubts(config, create_dataset(config, True), none) == [
        "the validation has no objects: it measures nothing, and there is no best checkpoint"
    ]
    config = Config(dataset="digits", data_dir="there", given=frozenset({"data_dir"}))
    assert data_doubts(config, create_dataset(config, True)) == [
        "data_dir there is not read: the data set digits comes along"
    ]
    assert data_doubts(Config(dataset="digits"), create_dataset(config, True)) == []
    written = Config(dataset="digits", given=frozenset({"data_dir"}))  # as a run leaves its configuration
    assert data_doubts(written, create_dataset(config, True)) == []


def test_rows_are_aligned():
    assert block([("a", "b"), ("long", "c")]) == "  a     b\n  long  c"


def announced(caplog, tmp_path, **settings):
    name, small = SMALL["riformer"]
    values = dict(model=name, dataset="digits", device_target="CPU", image_resize=32, batch_size=8)
    values |= dict(epoch_size=4, warmup_epochs=1, num_parallel_workers=1, ckpt_save_dir=str(tmp_path / "run"))
    config = Config(**values | settings)
    with open_data(config, TASK, Distributed()) as data:
        config = config.with_defaults(num_classes=data.num_classes)
        network = zoo.create_model(name, num_classes=config.num_classes, **small)
        rates = assembly.build_rates(config, data.train.steps_per_epoch, Distributed())
        weights = load_initial(config, network, data.classes)
        caplog.clear()
        announce(config, TASK, data, network, weights, rates, Distributed())
    return network, caplog.messages


@pytest.mark.parametrize(("given", "said"), [({"dataset_sink_mode"}, True), (set(), False)])
def test_a_sink_that_is_asked_for_is_a_line(given, said, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    _, messages = announced(caplog, tmp_path, dataset_sink_mode=True, given=frozenset(given))
    line = "dataset_sink_mode is not used: batches are fed step by step, for which no step waits"
    assert (line in messages) == said


def test_the_block_says_what_will_happen(caplog, tmp_path):
    caplog.set_level("INFO", "mindcv_reparam")
    more = dict(gradient_accumulation_steps=2, val_while_train=True, label_smoothing=0.1)
    network, (told,) = announced(caplog, tmp_path, **more)
    count = sum(parameter.size for parameter in network.trainable_params())
    assert told.splitlines() == [
        "this training:",
        "  data        digits: 1437 images, 10 classes of 139 (8) to 147 (3) images",
        "  validation  360 images, 10 classes of 35 (8) to 37 (4) images; after every epoch",
        "  batch       8 images x 1 rank x 2 accumulated = 16 images an update; 179 steps an epoch, epochs: 4",
        "  model       riformer_s12 for classification, 10 classes, images of 32x32; "
        f"{count / 1e6:.3f} M parameters, all of them learn",
        "  weights     at random by the seed 42",
        "  rate        adam, warm-up of 1 epochs, cosine_decay: 0 at first, 0.001 in epoch 2, 0.000998 at the end",
        "  objective   CE, label smoothing 0.1; mixup 0, cutmix 0, no auto_augment",
        f"  output      {tmp_path / 'run'}",
    ]


def test_weights_of_other_classes_and_a_run_without_validation(caplog, tmp_path):
    caplog.set_level("INFO", "mindcv_reparam")
    name, small = SMALL["riformer"]
    theirs = zoo.create_model(name, num_classes=3, **small)
    info = CheckpointInfo(name, {"num_classes": 3, **small}, classes=["7", "letter", "2"])
    save_checkpoint(tmp_path / "w.ckpt", theirs, info)
    _, (told, warned) = announced(caplog, tmp_path, ckpt_path=str(tmp_path / "w.ckpt"))
    line = "but for head.weight, head.bias, of other classes: new but for the rows of 2 classes"
    assert f"  weights    {tmp_path / 'w.ckpt'}, {line}\n" in told
    assert warned.startswith("no validation: there will be no best checkpoint")


def lines_of(folder):
    return [line.split(" ", 3)[2:] for line in (folder / "run.log").read_text().splitlines()]


def test_the_log_goes_to_the_folder_with_what_was_said_before_it_was_open(tmp_path):
    PACKAGE.setLevel("INFO")

    def fails():
        with RunLog() as log:
            PACKAGE.info("read %d images", 3)
            log.open(tmp_path)
            PACKAGE.warning("one is dark")
            raise UserError("the loss is nan")

    with pytest.raises(UserError):
        fails()
    PACKAGE.info("later")
    expected = [["INFO", "read 3 images"], ["WARNING", "one is dark"], ["ERROR", "the loss is nan"]]
    assert lines_of(tmp_path) == expected
    with RunLog() as log:
        log.open(tmp_path)
        PACKAGE.info("goes on")
    assert lines_of(tmp_path) == [*expected, ["INFO", "goes on"]]


def test_other_ranks_write_no_log_and_a_folder_that_refuses_is_one_line(tmp_path):
    with RunLog(active=False) as log:
        log.open(tmp_path)
        PACKAGE.warning("of rank 1")
        assert log not in logging.getLogger("mindcv_reparam").handlers
    assert not (tmp_path / "run.log").exists()
    with RunLog() as log, pytest.raises(UserError, match=r"run.log cannot be written: No such file"):
        log.open(tmp_path / "nowhere")
