"""Teachers from files answer as the network that was saved, and are refused where they would not fit."""

import dataclasses
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from here import parse, restored
from mindspore import nn, ops
from networks import IMAGE_SIZE, NUM_CLASSES, SMALL, random_images, randomise

from mindcv_reparam import create_model
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.errors import UserError
from mindcv_reparam.reparam import reparameterize
from mindcv_reparam.tasks.classification.teachers import ExportedTeacher, load_imitated, load_teacher

CLASSES = tuple("abcde")
CONFIG = Config(model="riformer_s12", image_resize=IMAGE_SIZE)
MODEL, SIZES = SMALL["poolformer"]
HPARAMS = {"num_classes": NUM_CLASSES, "in_channels": 3, "img_size": IMAGE_SIZE, **SIZES}


@pytest.fixture(scope="module")
def network() -> nn.Cell:
    return randomise(create_model(MODEL, **HPARAMS), seed=1).set_train(False)


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory) -> str:
    return save(network, tmp_path_factory.mktemp("teachers") / "teacher.ckpt")


def save(network: nn.Cell, path, **changes) -> str:
    preprocessing = {"mean": list(CONFIG.mean), "std": list(CONFIG.std)}
    info = CheckpointInfo(model=MODEL, hparams=HPARAMS, classes=list(CLASSES), preprocessing=preprocessing)
    save_checkpoint(path, network, dataclasses.replace(info, **changes))
    return str(path)


def test_a_teacher_is_the_network_that_was_saved(network, checkpoint):
    for teacher in (
        load_teacher(checkpoint, MODEL, CONFIG, CLASSES, NUM_CLASSES),
        load_imitated(checkpoint, MODEL, CONFIG),
    ):
        assert not teacher.training
        expected = dict(network.parameters_and_names())
        for name, parameter in teacher.parameters_and_names():
            np.testing.assert_array_equal(parameter.asnumpy(), expected[name].asnumpy(), err_msg=name)


@pytest.mark.parametrize(
    ("model", "changes", "classes", "message"),
    [
        (MODEL, {}, "abcd", "tells 5 classes apart, the student 4"),
        (MODEL, {}, "abdce", "class 2 of the teacher .* is 'c', that of the data 'd'"),
        (MODEL, {"mean": (0.0, 0.0, 0.0)}, CLASSES, "expects images of mean 123.675, 116.28, 103.53, the training"),
        (MODEL, {"std": (1.0, 1.0, 1.0)}, CLASSES, "expects images of std"),
        (MODEL, {"in_channels": 1}, CLASSES, "images of 3 channels, the student of 1"),
        ("poolformer_s24", {}, CLASSES, "is a checkpoint of poolformer_s12, not of poolformer_s24"),
    ],
)
def test_a_teacher_of_something_else_is_refused(checkpoint, model, changes, classes, message):
    with pytest.raises(UserError, match=message):
        load_teacher(checkpoint, model, dataclasses.replace(CONFIG, **changes), classes, len(classes))


def test_a_fused_network_is_not_imitated(network, tmp_path):
    path = save(reparameterize(network), tmp_path / "fused.ckpt", state="full")
    with pytest.raises(UserError, match="is fused"):
        load_imitated(path, MODEL, CONFIG)
    assert not load_teacher(path, MODEL, CONFIG, CLASSES, NUM_CLASSES).training


class Linear(nn.Cell):
    """A classifier of all pixels, quick to export, for images of one size."""

    def __init__(self):
        super().__init__()
        self.head = randomise(nn.Dense(3 * IMAGE_SIZE[0] * IMAGE_SIZE[1], NUM_CLASSES, has_bias=True), seed=2)

    def construct(self, x):
        return self.head(x.reshape(x.shape[0], -1))


@pytest.fixture
def exported_digits(tmp_path) -> str:
    network = create_model(MODEL, **{**HPARAMS, "num_classes": 10, "img_size": (32, 32)}).set_train(False)
    example = ms.Tensor(shape=[None, 3, 32, 32], dtype=ms.float32)
    ms.export(network, example, file_name=str(tmp_path / "teacher"), file_format="MINDIR")
    return str(tmp_path / "teacher.mindir")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("exported")
    dynamic = ms.Tensor(shape=[None, 3, *IMAGE_SIZE], dtype=ms.float32)
    for name, example in (("dynamic", dynamic), ("one", ops.zeros((1, 3, *IMAGE_SIZE), ms.float32))):
        ms.export(Linear(), example, file_name=str(folder / name), file_format="MINDIR")
    (folder / "text.mindir").write_text("no graph")
    return {path.stem: str(path) for path in folder.glob("*.mindir")}


def test_an_exported_teacher_answers_as_its_network(exported):
    images = random_images()
    teacher = ExportedTeacher(exported["dynamic"], images.shape, NUM_CLASSES)
    np.testing.assert_allclose(teacher(images).asnumpy(), Linear()(images).asnumpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "classes", "message"),
    [
        ("dynamic", IMAGE_SIZE, 7, r"puts out \(2, 5\) for 2 images, the student has 7 classes"),
        ("one", IMAGE_SIZE, NUM_CLASSES, "does not take a batch of shape"),
        ("dynamic", (32, 32), NUM_CLASSES, "does not take a batch of shape"),
        ("text", IMAGE_SIZE, NUM_CLASSES, "is no MindIR file"),
    ],
)
def test_an_exported_teacher_that_does_not_fit_is_refused(exported, name, size, classes, message):
    with pytest.raises(UserError, match=message):
        ExportedTeacher(exported[name], (2, 3, *size), classes)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no teacher at"):
        ExportedTeacher(tmp_path / "none.mindir", (2, 3, *IMAGE_SIZE), NUM_CLASSES)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--distill soft", "distill soft needs a teacher"),
        ("--teacher gfnet_h_b --teacher_ckpt t.ckpt", "named but not asked"),
        ("--teacher gfnet_h_b --distill soft", "needs trained weights"),
        ("--teacher t.mindir --teacher_ckpt t.ckpt --distill hard", "checkpoint of a teacher that is named as a model"),
        ("--teacher_ckpt t.ckpt", "checkpoint of a teacher that is named as a model"),
        ("--teacher t.mindir --distill hard --reduction sum", "needs reduction mean"),
        ("--imitation_rel 1", "imitation_rel needs the network to imitate"),
        ("--teacher t.mindir --distill warm", "distill must be one of soft, hard or None"),
        ("--distill_alpha 1.5", "at most 1"),
        ("--distill_tau 0", "above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        parse(["--model", "riformer_s12", *flags.split()], "train")


@pytest.mark.slow
def test_training_asks_an_exported_teacher(exported_digits, tmp_path, monkeypatch):
    """Through train.py: two epochs, of which both ask the teacher before every step."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    import train
    from mindcv_reparam.training import assembly

    monkeypatch.setattr(assembly, "create_model", lambda model, **options: create_model(model, **SIZES, **options))
    settings = {
        **dict(model=MODEL, device_target="CPU", dataset="digits", num_parallel_workers=1, num_samples=8, batch_size=4),
        **dict(mode=1, image_resize=32, epoch_size=2, warmup_epochs=0, ckpt_save_dir=tmp_path / "run"),
        **dict(distill="soft", distill_alpha=1.0, teacher=exported_digits, label_smoothing=0.1),
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr("sys.argv", ["train.py", *flags])
    asked = []
    call = ExportedTeacher.__call__
    monkeypatch.setattr(ExportedTeacher, "__call__", lambda self, images: asked.append(1) or call(self, images))
    with restored():  # the mode
        train.main()
    assert len(asked) == 4
    arrays, _ = read_checkpoint(tmp_path / "run" / f"{MODEL}_final.ckpt")
    assert set(arrays) == {name for name, _ in create_model(MODEL, **SIZES).parameters_and_names()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model fastvit_t8 --imitation_ckpt p.ckpt", "is for the models riformer_.*, not fastvit_t8"),
        ("--model fastvit_t8 --distill hard --teacher regnety_16 --teacher_ckpt t.ckpt", "nearest is 'regnety_160'"),
    ],
)
def test_teachers_that_no_student_here_has_are_refused_at_once(flags, message, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    import train

    monkeypatch.setattr("sys.argv", ["train.py", *flags.split()])
    with pytest.raises(UserError, match=message):
        train.main()
