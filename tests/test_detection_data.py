"""From a configuration to the batches of a detector, and from its outputs to COCO's numbers."""

import contextlib
import dataclasses
import io
import json
import logging
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_data_detection import content, write_images

from mindcv_reparam import registry
from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset, loader
from mindcv_reparam.data.objects import DetectionSource, Objects, coco_form
from mindcv_reparam.data.randomness import Purpose, stream
from mindcv_reparam.data.sampler import Shard
from mindcv_reparam.data.scenes import SIZE
from mindcv_reparam.distributed import Distributed
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS, check_dataset, open_loader
from mindcv_reparam.tasks.detection.batches import joined, padded
from mindcv_reparam.tasks.detection.denoising import Noise, denoise
from mindcv_reparam.tasks.detection.evaluation import NAMES, CocoEvaluator, average_precision
from mindcv_reparam.tasks.detection.postprocess import detections
from mindcv_reparam.tasks.detection.task import Detection

TASK = Detection()
QUERIES = 7


@pytest.fixture(autouse=True)
def detector(monkeypatch):
    """A model that finds objects, whatever the zoo has."""
    info = registry.ModelInfo("finder", "finders", 64, 1.0, (), task="detection", queries=QUERIES)
    monkeypatch.setattr(registry, "models", lambda: {"finder": info})


def configuration(**settings):
    usual = dict(model="finder", dataset="scenes", image_resize=(48, 64), batch_size=4, num_parallel_workers=1)
    values = {**usual, **dict(epoch_size=3, denoising_queries=20), **settings}
    return Config(**values, given=frozenset(values))


def train_batches(source=None, rank=0, size=1, **settings):
    config = configuration(**settings)
    source = source or create_dataset(config, train=True)
    return TASK.batches(config, source, True, Shard(config.batch_size, rank, size))


def made(batches, epoch=0, step=0):
    images = np.empty(batches.image_shape, np.float32)
    return images, batches.make(epoch, step, images).arrays


# --- data sets by their names ---


def write_coco(folder, annotations="annotations/instances_train2017.json", images="train2017", changed=None):
    whole = content()
    if changed:
        changed(whole)
    write_images(folder / images)
    (folder / annotations).parent.mkdir(exist_ok=True, parents=True)
    (folder / annotations).write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        (("annotations/instances_train2017.json", "train2017"), {}),
        (("annotations/instances_train.json", "images/train"), {}),
        (("annotations/instances_mine.json", "mine"), {"train_split": "mine"}),
        (("train/_annotations.coco.json", "train"), {}),
        (("elsewhere.json", "train"), {"train_annotations": "elsewhere.json"}),
        (("elsewhere.json", "."), {"train_annotations": "{folder}/elsewhere.json"}),
    ],
)
def test_layouts_of_coco_files(tmp_path, layout, settings):
    write_coco(tmp_path, *layout)
    settings = {name: value.format(folder=tmp_path) for name, value in settings.items()}
    source = create_dataset(configuration(dataset="coco", data_dir=str(tmp_path), **settings), train=True)
    assert len(source) == 4
    assert source.pixels(0).shape == (10, 10, 3)


def test_validation_images_have_files_of_their_own(tmp_path):
    write_coco(tmp_path, "annotations/instances_val2017.json", "val2017", lambda w: w["images"].pop(2))
    config = configuration(dataset="coco", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="annotation 8 is of image 41"):
        create_dataset(config, train=False)
    write_coco(tmp_path, "annotations/instances_val2017.json", "val2017")
    assert len(create_dataset(config, train=False)) == 4
    write_coco(tmp_path, "valid/_annotations.coco.json", "valid")
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    assert "valid" in create_dataset(config, train=False).name(0)
    write_coco(tmp_path, "a.json", "valid")
    named = configuration(dataset="coco", data_dir=str(tmp_path), val_annotations="a.json", val_split="valid")
    assert create_dataset(named, train=False).place == tmp_path / "a.json"
    with pytest.raises(UserError, match=r"neither annotations/instances_train2017\.json .* --train_annotations"):
        create_dataset(config, train=True)
    with pytest.raises(UserError, match=r"data_dir nowhere is no folder"):
        create_dataset(configuration(dataset="coco", data_dir="nowhere"), train=True)


def test_yolo_and_scenes_by_name(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat]")
    for place in (tmp_path, tmp_path / "data.yaml"):
        source = create_dataset(configuration(dataset="yolo", data_dir=str(place)), train=False)
        assert (len(source), source.counts.sum()) == (4, 1)
    with pytest.raises(UserError, match="the checkpoint has 2 classes"):
        create_dataset(configuration(), train=False, classes=("0", "1"))


def held_out(config, run=None):
    """What a run trains on and what it holds out, each with its files and boxes by image id."""
    parts = [create_dataset(config, train, run=run) for train in (True, False)]
    return parts, [
        {part.image_id(index): (part.name(index), part.target(index).boxes.tolist()) for index in range(len(part))}
        for part in parts
    ]


@pytest.mark.parametrize("dataset", ["coco", "yolo"])
def test_a_part_of_the_images_is_held_out(tmp_path, dataset):
    """Images with their annotations, at random by the seed; the run's own file keeps the division."""
    folder = tmp_path / "data"
    for number in range(20):
        (folder / "train2017").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / "train2017" / f"{number}.png")
        (folder / "train2017" / f"{number}.txt").write_text("0 .5 .5 .5 .5\n" * (number % 3))
    (folder / "data.yaml").write_text("train: train2017\nnames: [cat]")
    boxes = [dict(image_id=n, category_id=5, bbox=[n, n, 9, 9]) for n in range(20) for _ in range(n % 3)]
    images = [dict(id=n, file_name=f"{n}.png", width=40, height=30) for n in range(20)]
    content = dict(images=images, annotations=boxes, categories=[dict(id=5, name="cat")])
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    config = configuration(dataset=dataset, data_dir=str(folder), val_split="0.25")
    whole = create_dataset(configuration(dataset=dataset, data_dir=str(folder), val_split="val"), train=True)
    parts, (train, val) = held_out(config)
    assert (len(train), len(val), len({*train, *val})) == (15, 5, 20)
    for index in range(20):
        expected = whole.name(index), whole.target(index).boxes.tolist()
        assert (train | val)[whole.image_id(index)] == expected
    annotations = parts[1].annotations
    assert {one["id"] for one in annotations["images"]} == set(val)
    assert len(annotations["annotations"]) == sum(len(boxes) for _, boxes in val.values()) == parts[1].counts.sum()
    assert {one["image_id"] for one in annotations["annotations"]} <= set(val)
    assert held_out(config)[1] == [train, val]
    assert held_out(dataclasses.replace(config, seed=7))[1] != [train, val]
    parts[0].write_split(tmp_path)
    other = dataclasses.replace(config, seed=7, val_split="0.5")
    assert held_out(other, tmp_path)[1] == [train, val]
    assert pickle.loads(pickle.dumps(parts[1])).target(0).boxes.tolist() == next(iter(val.values()))[1]


def test_an_only_image_is_not_held_out(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "list.txt").write_text("images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cat]")
    with pytest.raises(UserError, match=r"val_split 0\.5 holds no image out: of 1, none can be spared"):
        create_dataset(configuration(dataset="yolo", data_dir=str(tmp_path), val_split="0.5"), train=True)
    with pytest.raises(UserError, match=r"val_split 0\.5: scenes has validation images of its own"):
        create_dataset(configuration(val_split="0.5"), train=True)


def test_a_task_takes_its_own_data_sets():
    check_dataset(TASK, configuration())
    with pytest.raises(UserError, match=r"dataset digits is not for detection, .* take coco, yolo or scenes"):
        check_dataset(TASK, configuration(dataset="digits"))
    with pytest.raises(UserError, match="dataset coco is not for classification"):
        check_dataset(TASKS["classification"], configuration(dataset="coco"))


def test_settings_of_classification_are_refused():
    TASK.check(configuration(hflip=0.0, mixup=0.0))
    for name, value in (("mixup", 0.2), ("auto_augment", "autoaug"), ("label_smoothing", 0.1), ("scale", (0.5, 1.0))):
        with pytest.raises(UserError, match=f"{name} is for classification: finder"):
            TASK.check(configuration(**{name: value}))
    with pytest.raises(UserError, match="multi_scale is for square images, and image_resize is 48x64"):
        TASK.check(configuration(multi_scale=(32, 64)))
    with pytest.raises(UserError, match="plain_epochs 4 is more than epoch_size 3"):
        TASK.check(configuration(plain_epochs=4))


# --- batches ---


def test_settings_arrive_in_the_batches():
    batches = train_batches(
        **dict(max_boxes=9, plain_epochs=2, denoising_queries=12, label_noise=0.25, box_noise=0.75),
        **dict(photometric=0.1, zoom_out=0.2, iou_crop=0.3, hflip=0.4, vflip=0.6, interpolation="bicubic"),
        **dict(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), num_classes=12, aug_repeats=2, seed=9, num_samples=None),
        multi_scale=(32, 64),
    )
    steps = batches.transform
    assert (batches.max_boxes, batches.strong_epochs, batches.denoising_queries) == (9, 1, 12)
    assert (batches.label_noise, batches.box_noise, batches.num_queries) == (0.25, 0.75, QUERIES)
    assert (steps.distortion.probability, steps.zoom_out.probability, steps.iou_crop.probability) == (0.1, 0.2, 0.3)
    assert (steps.hflip, steps.vflip, steps.resampling) == (0.4, 0.6, Image.Resampling.BICUBIC)
    assert (steps.normalize.mean, steps.normalize.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert (batches.num_classes, batches.sampler.repeats, batches.sampler.seed) == (12, 2, 9)
    assert (batches.sides, batches.image_shape) == ((32, 64), (4, 3, 64, 64))
    assert train_batches().image_shape == (4, 3, 48, 64)
    with pytest.raises(UserError, match="num_classes 9 is less than the 10 classes"):
        train_batches(num_classes=9)


def test_a_batch_has_fixed_shapes_and_what_its_parts_compute():
    batches = train_batches(max_boxes=6)
    images, arrays = made(batches, epoch=1, step=3)
    labels, boxes, valid, *denoising = arrays
    shapes = [(4, 6), (4, 6, 4), (4, 6), (4, 20), (4, 20, 4), (4, 20), (20 + QUERIES,) * 2, ()]
    assert [array.shape for array in arrays] == shapes
    kinds = ["int32", "float32", "bool", "int32", "float32", "int32", "bool", "float32"]
    assert [array.dtype.name for array in arrays] == kinds
    draw, noises = batches.sampler.draw(1, 3), []
    for row, (position, index) in enumerate(zip(draw.positions.tolist(), draw.indices.tolist())):
        image, source = np.empty_like(images[0]), batches.source
        rng = stream(42, Purpose.AUGMENT, 1, position)
        found = batches.transform(source.pixels(index), source.target(index), rng, image)
        np.testing.assert_array_equal(images[row], image)
        count = int(valid[row].sum())
        assert valid[row, :count].all()
        assert labels[row, :count].tolist() == found.labels.tolist()
        corners = np.concatenate(
            [boxes[row, :, :2] - boxes[row, :, 2:] / 2, boxes[row, :, :2] + boxes[row, :, 2:] / 2], 1
        )
        np.testing.assert_allclose(corners[:count] * [64, 48, 64, 48], found.boxes, atol=1e-4)
        noises.append(Noise.draw(stream(42, Purpose.DENOISE, 1, position), 1, 20, 10))
    wanted = denoise(labels, boxes, valid, joined(noises), num_classes=10, num_queries=QUERIES).arrays()
    for got, array in zip(denoising, wanted):
        np.testing.assert_array_equal(got, array)
    assert valid.any()
    assert (denoising[2] >= 0).any()


def test_batches_are_the_same_in_a_worker_and_on_several_ranks():
    whole = train_batches(batch_size=4)
    images, arrays = made(whole, 1, 2)
    again = made(pickle.loads(pickle.dumps(whole)), 1, 2)
    np.testing.assert_array_equal(images, again[0])
    for first, second in zip(arrays, again[1]):
        np.testing.assert_array_equal(first, second)
    for rank in range(2):
        part = made(train_batches(batch_size=2, rank=rank, size=2), 1, 2)
        np.testing.assert_array_equal(part[0], images[rank::2])
        for array, of_whole in zip(part[1][:3], arrays):
            np.testing.assert_array_equal(array, of_whole[rank::2])


def test_strong_augmentation_ends_early():
    batches = train_batches(plain_epochs=1, hflip=0.0, shuffle=False, photometric=1.0)
    plain = made(batches, epoch=2)[0]
    resized = [batches.source.load(index).resize((64, 48), Image.Resampling.BILINEAR) for index in range(4)]
    np.testing.assert_array_equal(plain, np.stack([batches.transform.normalize(image) for image in resized]))
    assert (made(batches, epoch=1)[0] != plain).mean() > 0.5


def scaled_batches(**settings):
    return train_batches(image_resize=64, multi_scale=(32, 64, 64, 96), plain_epochs=1, **settings)


def test_sizes_are_drawn_by_step_for_all_ranks_and_end_with_strong_augmentation():
    batches = scaled_batches()
    drawn = [batches.shape(epoch, step)[2:] for epoch in range(2) for step in range(60)]
    counts = {side: drawn.count((side, side)) for side in (32, 64, 96)}
    assert sum(counts.values()) == 120
    assert all(counts[side] > 15 for side in (32, 96))
    assert counts[64] > 45
    assert drawn[:60] != drawn[60:]
    assert {batches.shape(2, step)[2:] for step in range(60)} == {(64, 64)}
    other = scaled_batches(batch_size=2, rank=1, size=2)
    assert [other.shape(1, step) for step in range(60)] == [(2, 3, *size) for size in drawn[60:]]
    assert [scaled_batches(seed=7).shape(0, step)[2:] for step in range(60)] != drawn[:60]


@pytest.mark.parametrize("workers", [1, 3])
def test_images_and_boxes_have_the_size_of_their_step(workers, monkeypatch):
    monkeypatch.setattr(loader, "_usable_cores", lambda: workers)
    batches = scaled_batches(max_boxes=6, photometric=0.0, zoom_out=0.0, iou_crop=0.0, hflip=0.0)
    with loader.create_loader(batches, configuration(num_parallel_workers=workers), train=True) as batch_loader:
        assert batch_loader._workers is None
        for step, (images, _, boxes, valid, *_) in enumerate(batch_loader.epoch(0)):
            shape = batches.shape(0, step)
            assert images.shape == shape
            alone = np.empty(shape, np.float32)
            arrays = batches.make(0, step, alone).arrays
            np.testing.assert_array_equal(images, alone)
            np.testing.assert_array_equal(boxes, arrays[1])
            scenes = [batches.source.target(index).boxes for index in batches.sampler.draw(0, step).indices.tolist()]
            corners = np.concatenate(scenes) / SIZE  # parts of the image, whatever the size
            np.testing.assert_allclose(boxes[valid][:, :2], (corners[:, :2] + corners[:, 2:]) / 2, atol=1e-6)
            if step == 5:
                break
    assert len({batches.shape(0, step) for step in range(6)}) > 1


def test_of_too_many_objects_the_largest_are_kept_in_their_order():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 9, 9], [1, 1, 3, 3], [10, 10, 14, 16]], np.float32)
    objects = Objects(boxes, np.array([5, 6, 7, 8], np.int32)), Objects(boxes[:0], np.zeros(0, np.int32))
    labels, centred, valid = padded(objects, 2, (20, 40))
    assert labels.tolist() == [[6, 8], [0, 0]]
    assert valid.tolist() == [[True, True], [False, False]]
    np.testing.assert_allclose(centred[0], [[4.5 / 40, 4.5 / 20, 9 / 40, 9 / 20], [12 / 40, 13 / 20, 4 / 40, 6 / 20]])
    assert not centred[1].any()


def test_images_of_too_many_objects_are_told(caplog):
    with caplog.at_level(logging.WARNING, "mindcv_reparam"):
        train_batches(max_boxes=5)
        train_batches(max_boxes=5, rank=1, size=2)
        train_batches(max_boxes=6)
    assert [record.getMessage() for record in caplog.records if "max_boxes" in record.msg] == [
        f"{SIXES} images have more than max_boxes 5 objects, the most training scene {FIRST_SIX} with 6: the smallest "
        "beyond that are not trained on"
    ]


SIXES, FIRST_SIX = 298, 0


def test_a_training_of_few_steps_is_told(caplog):
    with caplog.at_level(logging.WARNING, "mindcv_reparam"):
        train_batches(num_samples=40, epoch_size=199)
        train_batches(num_samples=40, epoch_size=199, rank=1, size=2)
        train_batches(num_samples=40, epoch_size=200)
    (record,) = caplog.records
    assert record.getMessage().startswith("1990 steps in all, 199 epochs of 10: of fewer than some 2000 a detector")


class Empty(DetectionSource):
    """Three grey images without objects."""

    classes, category_ids, counts, in_memory = ("cat",), (4,), np.zeros(3, np.int64), True
    annotations = coco_form([(1, 8, 6, "a"), (2, 8, 6, "b"), (3, 8, 6, "c")], [], classes, category_ids)

    def target(self, index):
        return Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))

    def image_id(self, index):
        return index + 1

    def pixels(self, index):
        return np.full((6, 8, 3), 128, np.uint8)

    def name(self, index):
        return f"grey {index}"


def test_a_batch_without_any_object():
    labels, _, valid, dn_labels, _, matches, blocked, groups = made(train_batches(Empty(), batch_size=3))[1]
    assert not labels.any()
    assert not valid.any()
    assert (dn_labels == 1).all()
    assert (matches < 0).all()
    assert not blocked[-QUERIES:, -QUERIES:].any()
    assert groups == 1.0


# --- from outputs to detections ---


def test_post_processing_is_the_references():
    with np.load(Path(__file__).parent / "data" / "rtdetr" / "rtdetr-criterion.npz") as file:
        golden = dict(file)
    images = detections(golden["main_logits"], golden["main_boxes"], golden["post_sizes_wh"], most=30)
    for index, found in enumerate(images):
        np.testing.assert_array_equal(found.labels, golden["post_labels"][index])
        np.testing.assert_allclose(found.scores, golden["post_scores"][index], rtol=1e-6)
        limits = np.tile(golden["post_sizes_wh"][index], 2)
        np.testing.assert_allclose(found.boxes, np.clip(golden["post_boxes"][index], 0, limits), atol=1e-3)


def test_ties_few_queries_and_numbers_that_are_none():
    logits = np.array([[[0.0, 1.0], [1.0, np.nan]], [[np.inf, -np.inf], [-200.0, 200.0]]], np.float32)
    boxes = np.array([[[0.5, 0.5, 2.0, 0.5], [np.nan, 0.5, 1.0, np.inf]]] * 2, np.float32)
    first, second = detections(logits, boxes, np.array([[10, 20], [1, 1]]))
    assert first.labels.tolist() == [1, 0, 0, 1]
    np.testing.assert_allclose(first.scores, [0.7310586, 0.7310586, 0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(first.boxes[0], [0, 5, 10, 15])
    assert np.isfinite(first.boxes).all()
    assert second.scores.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert len(first.above(0.6).labels) == 2


# --- COCO's numbers ---


class Sketches(DetectionSource):
    """Random boxes of five categories with gaps on 40 images, crowds and empty images among them."""

    classes, category_ids = ("a", "b", "c", "d", "e", "absent"), (3, 11, 12, 40, 90, None)

    def __init__(self, images=40):
        rng = np.random.default_rng(3)
        self.sizes = rng.integers(150, 400, (images, 2))
        self.truth = []
        for index in range(images):
            for _ in range(0 if index % 7 == 3 else rng.integers(1, 9)):
                side = rng.uniform(4, 140, 2)
                place = rng.uniform(0, 1, 2) * np.maximum(self.sizes[index] - side, 1)
                box = [*place.tolist(), *side.tolist()]
                category = int(rng.choice(self.category_ids[:4]))
                area = float(side.prod() * rng.uniform(0.5, 1))
                crowd = int(rng.random() < 0.1)
                self.truth.append(
                    dict(image_id=self.image_id(index), category_id=category, bbox=box, area=area, iscrowd=crowd)
                )
        self.counts = np.bincount([(one["image_id"] - 5) // 3 for one in self.truth], minlength=images)

    @property
    def annotations(self):
        images = [(self.image_id(index), *size, "x") for index, size in enumerate(self.sizes.tolist())]
        return coco_form(images, self.truth, self.classes, self.category_ids)

    def target(self, index):
        return Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))

    def image_id(self, index):
        return 5 + 3 * index

    def pixels(self, index):
        raise NotImplementedError

    def name(self, index):
        return str(index)


@pytest.fixture(scope="module")
def sketches():
    return Sketches()


def outputs(source, queries=30):
    """What a fair detector says of every image: objects, moved a little and sometimes of another class, and noise."""
    rng = np.random.default_rng(4)
    logits = rng.normal(-3, 1.5, (len(source), queries, len(source.classes))).astype(np.float32)
    boxes = rng.uniform(0.05, 0.6, (len(source), queries, 4)).astype(np.float32)
    place = np.zeros(len(source), int)
    for one in source.truth:
        index = (one["image_id"] - 5) // 3
        x, y, width, height = np.array(one["bbox"]) * rng.uniform(0.93, 1.07, 4)
        query, label = place[index], source.category_ids.index(one["category_id"])
        boxes[index, query] = np.array([x + width / 2, y + height / 2, width, height]) / np.tile(source.sizes[index], 2)
        logits[index, query, label if rng.random() < 0.9 else 5] = rng.normal(1, 2)
        place[index] += 1
    return logits, boxes


def by_pycocotools(source, rows, image_ids=None):
    truth = COCO()
    truth.dataset = source.annotations
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(rows), "bbox")
        if image_ids is not None:
            judge.params.imgIds = image_ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def feed(evaluator, source, indices, batch=6):
    logits, boxes = outputs(source)
    counted = 0
    for start in range(0, len(indices), batch):
        rows = np.array(indices[start : start + batch])
        rows, weights = np.resize(rows, batch), (np.arange(batch) < len(rows)).astype(np.float32)
        targets = rows.astype(np.int32), source.sizes[rows].astype(np.int32), weights
        counted += evaluator.add((logits[rows], boxes[rows]), targets)
    return counted


@pytest.fixture(scope="module")
def evaluation(sketches):
    evaluator = CocoEvaluator(sketches)
    assert feed(evaluator, sketches, range(40)) == 40
    return evaluator.result(Distributed(), 12.5)


def as_results(source, evaluation):
    rows = evaluation.found[evaluation.found[:, 1] < 5]
    return np.stack(
        [
            [source.image_id(int(row[0])) for row in rows],
            *(rows[:, 3], rows[:, 4], rows[:, 5] - rows[:, 3], rows[:, 6] - rows[:, 4], rows[:, 2]),
            [source.category_ids[int(row[1])] for row in rows],
        ],
        axis=1,
    )


def test_the_numbers_are_pycocotools(sketches, evaluation):
    judge = by_pycocotools(sketches, as_results(sketches, evaluation))
    np.testing.assert_array_equal([evaluation.numbers[name] for name in NAMES], judge.stats)
    assert 0.2 < evaluation.numbers["AP"] < evaluation.numbers["AP50"] < 0.95
    for column, name in enumerate("abcd"):
        wanted = judge.eval["precision"][:, :, column, 0, 2].mean()
        assert evaluation.of_classes[name] == pytest.approx(wanted, rel=1e-12)
    assert np.isnan(evaluation.of_classes["e"])  # a category without an object
    assert np.isnan(evaluation.of_classes["absent"])
    assert (evaluation.samples, evaluation.images_per_second) == (40, 12.5)
    assert list(evaluation.metrics("ema_")) == [f"ema_{name}" for name in NAMES]
    assert evaluation.metrics()[TASK.selects] == evaluation.numbers["AP"]
    assert f"AP {judge.stats[0]:.4f}, AP50 {judge.stats[1]:.4f}" in evaluation.line()


def test_the_detections_in_a_file_give_the_numbers_again(sketches, evaluation):
    documents = json.loads(json.dumps(evaluation.documents(), allow_nan=False))
    rows = documents["detections"]
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score"}
    np.testing.assert_allclose(by_pycocotools(sketches, rows).stats, list(evaluation.numbers.values()), atol=5e-3)
    record = json.loads(json.dumps(evaluation.record(), allow_nan=False))
    assert record["AP_of_classes"]["e"] is None
    assert record["AP75"] == evaluation.numbers["AP75"]


def test_a_part_of_the_images_is_measured_on_that_part(sketches):
    evaluator, seen = CocoEvaluator(sketches), list(range(1, 40, 3))
    feed(evaluator, sketches, seen)
    part = evaluator.result(Distributed(), 1.0)
    judge = by_pycocotools(sketches, as_results(sketches, part), [sketches.image_id(index) for index in seen])
    np.testing.assert_array_equal(list(part.numbers.values()), judge.stats)
    assert part.samples == 13


class Thread(Distributed):
    """One of several ranks that are threads of this process."""

    def __new__(cls, *arguments, **options):
        return super().__new__(cls)

    def __init__(self, rank, size, shared):
        super().__init__(rank=rank, size=size)
        object.__setattr__(self, "shared", shared)

    def gather(self, words):
        board, barrier = self.shared
        board[self.rank] = words
        barrier.wait(60)
        gathered = np.stack([board[rank] for rank in range(self.size)])
        barrier.wait(60)
        return gathered


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_together_find_what_one_finds(sketches, evaluation, size):
    shared, results = ({}, threading.Barrier(size)), {}

    def work(rank):
        evaluator = CocoEvaluator(sketches)
        feed(evaluator, sketches, list(range(rank, 40, size)))
        results[rank] = evaluator.result(Thread(rank, size, shared), 10.0)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for rank in range(size):
        assert results[rank].numbers == evaluation.numbers
        assert results[rank].samples == 40
        assert results[rank].images_per_second == 10.0 * size
        np.testing.assert_array_equal(results[rank].found, evaluation.found)


def test_nothing_found_and_nothing_to_find(sketches):
    numbers, of_classes = average_precision(sketches, range(40), np.empty((0, 7)))
    assert numbers["AP"] == 0.0
    assert of_classes["a"] == 0.0
    empty = Empty()
    found = np.array([[0, 0, 0.9, 1, 1, 5, 5]], np.float64)
    numbers, of_classes = average_precision(empty, range(3), found)
    assert np.isnan(list(numbers.values())).all()
    assert np.isnan(of_classes["cat"])
    assert CocoEvaluator(empty).result(Distributed(), 0.0).samples == 0


def test_validation_batches_lead_every_image_to_its_own_size(tmp_path):
    write_coco(tmp_path, "annotations/instances_val2017.json", "val2017")
    config = configuration(dataset="coco", data_dir=str(tmp_path), batch_size=3)
    source = create_dataset(config, train=False)
    (tmp_path / "val2017" / "b.png").write_bytes(b"gone bad")
    found = []
    config = configuration(dataset="coco", data_dir=str(tmp_path), batch_size=3, allow_bad_images=True)
    with open_loader(TASK, source, config, train=False) as loader:
        for images, indices, sizes, weights in loader.epoch(0):
            assert images.shape == (3, 3, 48, 64)
            found += [(int(i), tuple(s), float(w)) for i, s, w in zip(indices, sizes.tolist(), weights)]
            assert not images[weights == 0].any()
    assert found[:4] == [(0, (10, 10), 1.0), (1, (1, 1), 0.0), (2, (64, 64), 1.0), (3, (40, 30), 1.0)]
    assert [weight for _, _, weight in found[4:]] == [0.0, 0.0]
    assert "b.png cannot be read" in loader.bad_files[1]
