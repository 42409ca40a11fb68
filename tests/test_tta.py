"""Test-time augmentation: the views of an image, and the mean of their probabilities."""

import json
from pathlib import Path

import numpy as np
import pytest
from alone import Alone
from here import parse, restored, run_here
from mindspore import Tensor
from networks import randomise
from PIL import Image
from test_new_family import outside

import validate
from mindcv_reparam import create_model, eval_transform
from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.data.sampler import Shard
from mindcv_reparam.data.transforms import eval_transform as transform_of
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.tasks.classification.batches import create_batches
from mindcv_reparam.tasks.classification.evaluation import AccuracyEvaluator
from mindcv_reparam.tasks.classification.examination import ClassificationExaminer
from mindcv_reparam.tasks.classification.views import Views, average
from mindcv_reparam.training.data import open_data
from mindcv_reparam.zoo import model_from_checkpoint

HPARAMS = {"num_classes": 10, "in_channels": 3, "img_size": [16, 16]}


def test_the_views_are_the_image_its_mirror_and_crops():
    transform = transform_of(Config(image_resize=16, crop_pct=0.8))
    rows, columns = np.mgrid[0:40, 0:60]
    image = Image.fromarray(np.stack([rows * 6, columns * 4, rows + columns], -1).astype(np.uint8))
    plain, resized = transform(image), np.asarray(transform.resize(image))
    assert resized.shape == (20, 30, 3)
    (one,) = Views(transform)(image)
    assert one.tobytes() == plain.tobytes()
    one, mirrored = Views(transform, "flip")(image)
    assert one.tobytes() == plain.tobytes()
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    assert np.any(mirrored != plain)
    ten = Views(transform, "ten_crop")(image)
    places = [(0, 0), (0, 14), (4, 0), (4, 14), (2, 7)]
    for view, (top, left) in zip(ten, places):
        expected = transform.normalize(Image.fromarray(resized[top : top + 16, left : left + 16]))
        np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(ten[5:], ten[:5, :, :, ::-1])
    np.testing.assert_array_equal(Views(transform, "five_crop")(image), ten[:5])


def test_probabilities_are_averaged():
    logits = np.random.default_rng(0).normal(size=(6, 4)) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = probabilities.reshape(3, 2, 4).mean(1)
    np.testing.assert_allclose(np.exp(average(logits, 2)), expected, rtol=1e-12)
    assert average(logits, 1) is logits
    # Means of probabilities, not of logits: one sure view outweighs two that are a little for another class.
    views = np.array([[9.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0]])
    assert average(views, 3)[0].argmax() == 0
    assert views[1:].mean(0).argmax() == 1
    # Far apart logits are no infinities, which would rank last.
    assert np.isfinite(average(np.array([[0.0, 2000.0], [0.0, 3000.0]]), 2)).all()
    broken = average(np.array([[np.nan, 1.0], [1.0, 2.0], [0.0, 1.0], [1.0, 0.0]]), 2)
    assert np.isnan(broken[0]).any()
    assert np.isfinite(broken[1]).all()


@pytest.mark.parametrize("tta", ["none", "flip", "five_crop"])
def test_every_image_counts_once_on_any_number_of_ranks(tta):
    """By a network that sums over the left half of an image, which a mirror image changes."""
    config = Config(dataset="digits", image_resize=8, crop_pct=0.8, num_samples=29, tta=tta)
    source, weight = Digits(train=False), np.random.default_rng(0).normal(size=(96, 10))

    def measured(size):
        sums = 0
        for rank in range(size):
            batches = create_batches(config, source, False, Shard(4, rank, size))
            evaluator, examiner = AccuracyEvaluator(), ClassificationExaminer(batches)
            for step in range(batches.sampler.steps_per_epoch):
                images = np.full(batches.shape(0, step), np.nan, np.float32)
                labels, weights = batches.make(0, step, images).arrays
                assert (len(images), len(labels)) == (4 * {"none": 1, "flip": 2, "five_crop": 5}[tta], 4)
                logits = images[:, :, :, :4].reshape(len(images), -1) @ weight
                evaluator.add((logits,), (labels, weights))
                examiner.add((logits,), (labels, weights))
            sums = sums + evaluator.sums
            told = examiner.findings(Alone()).told
            assert (len(told.labels), told.right.sum()) == tuple(evaluator.sums[:2])
            assert -np.log(told.truth).sum() == pytest.approx(evaluator.sums[3], rel=1e-6)
        return sums

    one, two, three = measured(1), measured(2), measured(3)
    assert one[0] == two[0] == three[0] == 29
    np.testing.assert_array_equal(one[:3], two[:3])
    np.testing.assert_array_equal(one[:3], three[:3])
    np.testing.assert_allclose(one[3], [two[3], three[3]], rtol=1e-9)


def test_validate_averages_over_the_mirror_image(tmp_path, caplog):
    with outside(Path(__file__).parent / "data/plain.py"):
        net = randomise(create_model("plain_a", **HPARAMS)).set_train(False)
        path, output = tmp_path / "plain.ckpt", tmp_path / "result.json"
        save_checkpoint(path, net, CheckpointInfo("plain_a", HPARAMS, classes=[*"0123456789"]))
        words = ("--ckpt_path", path, "--dataset", "digits", "--num_samples", 40, "--batch_size", 20)
        with restored():
            run_here(validate, *words, "--tta", "flip", "--output", output)
        measured = json.loads(output.read_text())
        net, _ = model_from_checkpoint(path)
        transform, source = eval_transform(net), Digits(train=False)
        rows = np.arange(40) * len(source) // 40
        images = np.stack([transform(source.pixels(row)) for row in rows])
        probabilities = []
        for view in (images, np.ascontiguousarray(images[..., ::-1])):
            logits = net(Tensor(view)).asnumpy().astype(np.float64)
            probabilities.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        labels = source.labels[rows]
        mean = (probabilities[0] + probabilities[1]) / 2
        losses = [-np.log(each[np.arange(40), labels]).mean() for each in (mean, probabilities[0])]
        assert measured["samples"] == 40
        assert measured["tta"] == "flip"
        assert measured["loss"] == pytest.approx(losses[0], rel=1e-5)
        assert abs(losses[1] - losses[0]) > 1e-3
        assert measured["correct1"] == (mean.argmax(1) == labels).sum()


def test_it_is_for_classifiers_and_for_validate():
    with pytest.raises(UserError, match="tta flip is for classification: rtdetr_r18vd finds objects"):
        TASKS["detection"].batches(Config(model="rtdetr_r18vd", dataset="scenes", tta="flip"), None, False, Shard(2))
    assert parse(["--ckpt_path", "a.ckpt", "--tta", "ten_crop"], "validate").tta == "ten_crop"
    with pytest.raises(UserError, match="has no flag --tta"):
        parse(["--model", "fastvit_t8", "--tta", "flip"], "train")
    recipe = Config(model="fastvit_t8", dataset="digits", val_while_train=True, num_parallel_workers=1, tta="flip")
    with open_data(recipe, TASKS["classification"], Alone()) as data:
        assert data.val.batches.views.kind == "none"
