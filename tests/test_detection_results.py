"""What detectors tell: from logits and boxes to pixels, text, files and pictures; how far two of them differ."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from mindcv_reparam.data.digits import Digits
from mindcv_reparam.data.scenes import Scenes
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import task_named
from mindcv_reparam.tasks.detection.drawing import colour_of, marked
from mindcv_reparam.tasks.detection.postprocess import sigmoid
from mindcv_reparam.tasks.detection.results import DetectionResults
from mindcv_reparam.tensors import TOLERANCE, TensorSpec

RESULTS = DetectionResults()
SIZES = np.array([[200, 100]], np.int32)
# Two queries of three classes: the second is surest of class 2, and tells class 0, too.
LOGITS = np.array([[[-2.0, 0.5, -3.0], [1.0, -4.0, 3.0]]], np.float32)
BOXES = np.array([[[0.5, 0.5, 0.2, 0.4], [0.05, 0.9, 0.2, 0.2]]], np.float32)
IN_PIXELS = np.array([[[80.0, 30.0, 120.0, 70.0], [0.0, 80.0, 30.0, 100.0]]], np.float32)  # the second one is cut
LABELS = np.array([[2, 0, 1]], np.int32)
SCORES = sigmoid(np.array([[3.0, 1.0, 0.5]], np.float32))


def name(index):
    return ("cat", "dog", "fire hydrant")[index]


def best(most=3):
    return LABELS[:, :most], IN_PIXELS[:, [1, 1, 0]][:, :most], SCORES[:, :most]


@pytest.fixture
def found():
    return RESULTS.find("topk", best(), SIZES, 300, 0.7)[0]


@pytest.mark.parametrize(("kind", "outputs"), [("topk", best()), ("logits", (LOGITS, BOXES))])
def test_known_logits_and_boxes_become_pixels(kind, outputs):
    (one,) = RESULTS.find(kind, outputs, SIZES, 300, 0.6)
    assert one.size == (200, 100)
    assert one.objects.labels.tolist() == [2, 0, 1]
    np.testing.assert_allclose(one.objects.scores, [0.952574, 0.731059, 0.622459], atol=1e-6)
    np.testing.assert_allclose(one.objects.boxes, [[0, 80, 30, 100]] * 2 + [[80, 30, 120, 70]], atol=1e-4)
    (fewer,) = RESULTS.find(kind, outputs, SIZES, 300, 0.7)
    assert fewer.objects.labels.tolist() == [2, 0]
    (first,) = RESULTS.find(kind, outputs, SIZES, 1, 0.0)
    assert first.objects.labels.tolist() == [2]
    outputs = [output.copy() for output in outputs]
    outputs[1][0, 0, 0] = np.nan
    assert RESULTS.find(kind, outputs, SIZES, 300, 0.6) == [None]


def test_what_is_found_is_told_in_a_line_a_record_and_a_caption(found):
    assert RESULTS.line(found, name) == "fire hydrant 0.95 at 0 80 30 100; cat 0.73 at 0 80 30 100"
    record = RESULTS.record(found, name, (13, None, None).__getitem__)
    assert RESULTS.answer(model_name="n", model_version="1", **record).objects[1].category_id == 13
    assert (record["width"], record["height"], len(record["objects"])) == (200, 100, 2)
    box = pytest.approx([0, 80, 30, 100], abs=1e-4)
    assert record["objects"][0] == {
        **{"index": 2, "label": "fire hydrant", "category_id": None},
        **{"score": pytest.approx(0.952574, abs=1e-6), "box": box},
    }
    assert RESULTS.caption(found, name) == ("2 objects", "fire hydrant 0.95, cat 0.73")
    (nothing,) = RESULTS.find("topk", best(), SIZES, 300, 0.99)
    assert RESULTS.line(nothing, name) == "nothing"
    assert RESULTS.caption(nothing, name) == ("0 objects", "")


def test_files_are_of_cocos_form_and_a_row_per_object(found):
    document = RESULTS.document(
        [("a.png", found), ("b.png", found)], [("c.png", "is no image")], name, (13, 90, 7).__getitem__
    )
    assert document["images"][1] == {"id": 2, "file_name": "b.png", "width": 200, "height": 100}
    assert document["categories"] == [{"id": 13, "name": "cat"}, {"id": 7, "name": "fire hydrant"}]
    assert document["annotations"][2] == {
        **{"id": 3, "image_id": 2, "category_id": 7, "bbox": [0.0, 80.0, 30.0, 20.0], "area": 600.0},
        **{"iscrowd": 0, "score": 0.9526},
    }
    assert document["skipped"] == [{"file": "c.png", "reason": "is no image"}]
    text = io.StringIO()
    csv.writer(text).writerows(RESULTS.table([("a.png", found)], name))
    assert list(csv.reader(io.StringIO(text.getvalue()))) == [
        ["file", "index", "label", "score", "x1", "y1", "x2", "y2"],
        ["a.png", "2", "fire hydrant", "0.9526", "0.00", "80.00", "30.00", "100.00"],
        ["a.png", "0", "cat", "0.7311", "0.00", "80.00", "30.00", "100.00"],
    ]


def test_forms_of_outputs_tell_the_kinds_apart():
    def specs(*shapes):
        return tuple(TensorSpec("output", "float32", shape) for shape in shapes)

    kind, plain = RESULTS.plain({"num_classes": 3}, 4)
    assert [spec.shape for spec in plain] == [(4, None, 3), (4, None, 4)]
    assert RESULTS.fits(kind, plain)
    assert RESULTS.classes(kind, plain) == 3
    assert RESULTS.fits("topk", specs((1, 9), (1, 9, 4), (1, 9)))
    assert not RESULTS.fits("topk", specs((1, 9), (1, 8, 4), (1, 9)))
    assert not RESULTS.fits("topk", specs((1, 9), (1, 9, 4)))
    assert not RESULTS.fits("logits", specs((1, 9, 3), (1, 9, 5)))
    for kind in RESULTS.kinds:
        inputs = {"sizes"} if kind == "topk" else set()
        assert inputs | set({"topk": ("labels", "boxes", "scores")}.get(kind, ("logits", "boxes"))) == set(
            RESULTS.meanings(kind)
        )


# how far two detectors differ


@pytest.fixture
def queries():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 20, 3)).astype(np.float32), rng.random((2, 20, 4), np.float32)


def test_queries_are_compared_in_any_order(queries):
    logits, boxes = queries
    order = np.random.default_rng(1).permutation(20)
    assert RESULTS.difference("logits", queries, queries) == 0
    assert RESULTS.difference("logits", queries, (logits[:, order], boxes[:, order])) == 0
    assert RESULTS.difference("logits", queries, (logits[:, order], boxes)) > 0.01
    nudged = boxes.copy()
    nudged[1, 7, 2] += 1e-3
    assert RESULTS.difference("logits", queries, (logits, nudged)) == pytest.approx(1e-3 / boxes.max(), rel=1e-3)
    twice = logits.copy(), boxes.copy()
    for one in twice:
        one[0, 3] = one[0, 4]  # of which one is lost
    assert RESULTS.difference("logits", queries, twice) > 0.01
    assert np.isnan(RESULTS.difference("logits", queries, (logits * np.nan, boxes)))
    assert RESULTS.difference("logits", queries, (logits[:, :9], boxes[:, :9])) == np.inf


def test_detections_are_held_to_what_the_queries_say():
    expected = LOGITS, IN_PIXELS
    labels, boxes, scores = best()
    assert RESULTS.difference("topk", expected, best()) < 1e-7
    faults = {
        "box": (labels, boxes + [0, 0, 0, 1], scores),
        "swapped": (labels, boxes[..., [1, 0, 3, 2]], scores),
        "score": (labels, boxes, scores * 1.01),
        "label": (labels[:, ::-1], boxes, scores),
        "order": tuple(one[:, ::-1] for one in best()),
    }
    assert min(RESULTS.difference("topk", expected, fault) for fault in faults.values()) > 100 * TOLERANCE
    assert RESULTS.difference("topk", expected, (labels + 1, boxes, scores)) == np.inf  # no such class
    assert RESULTS.difference("topk", expected, (labels, boxes, scores[:, :2])) == np.inf
    assert np.isnan(RESULTS.difference("topk", expected, (labels, boxes * np.nan, scores)))


def test_ties_are_no_difference():
    logits = np.zeros((1, 4, 1), np.float32)
    places = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    tied = np.zeros((1, 2), np.int32), places[:, [3, 1]], np.full((1, 2), 0.5, np.float32)
    assert RESULTS.difference("topk", (logits, places), tied) == 0


def test_a_sample_has_the_forms_it_is_compared_in(queries):
    logits, boxes = queries
    outputs = [
        TensorSpec(n, "float32", shape) for n, shape in (("a", (None, 60)), ("b", (None, 60, 4)), ("c", (None, 60)))
    ]
    assert RESULTS.expected_fits("topk", outputs, queries)
    assert not RESULTS.expected_fits("topk", outputs, (logits[:, :9], boxes[:, :9]))  # 27 of 60
    assert not RESULTS.expected_fits("topk", outputs, (logits, boxes[..., :3]))
    assert not RESULTS.expected_fits("topk", outputs, (logits,))
    assert not RESULTS.expected_fits("topk", outputs, (logits.astype(np.float64), boxes))


# pictures


@pytest.mark.parametrize("scale", [0.5, 1, 4])
def test_boxes_lie_where_they_are_in_pictures_of_any_size(scale):
    """Here of 200 × 100 pixels; a thumbnail is smaller than what was decoded."""
    box = np.array([[[60.0, 40.0, 160.0, 90.0]]], np.float32)
    (found,) = RESULTS.find("topk", (LABELS[:, :1], box, SCORES[:, :1]), SIZES, 1, 0.5)
    drawn = RESULTS.drawn(Image.new("RGB", (round(200 * scale), round(100 * scale)), "white"), found, name)
    coloured = (np.asarray(drawn) == colour_of(2)).all(axis=2)
    left, top, right, bottom = (round(value * scale) for value in (60, 40, 160, 90))
    middle = (top + bottom) // 2
    assert np.flatnonzero(coloured[middle])[[0, -1]].tolist() == [left, right - 1]
    assert np.flatnonzero(coloured[:, right - 2])[-1] == bottom - 1
    assert not coloured[middle, left + 5 : right - 5].any()  # what was found is seen
    rows, columns = np.nonzero(coloured[:top])
    assert (rows.max(), columns.min() <= left, len(rows) > 100) == (top - 1, True, True)  # its name, above


def test_a_plate_is_in_the_picture_and_on_no_other_one():
    boxes = np.array([[40, 0, 60, 20], [40, 1, 60, 21], [90, 60, 100, 70]], np.float64)
    image = Image.new("RGB", (100, 80), "white")
    drawn = np.asarray(marked(image, boxes, [0, 1, 2], ["a 0.90", "b 0.80", "a long name 0.70"]))
    assert np.asarray(image).min() == 255  # a copy is drawn on
    areas = [(drawn == colour_of(index)).all(axis=2).sum() for index in range(3)]
    assert min(areas) > 200  # with its text, no plate hides another
    assert len({colour_of(index) for index in range(80)}) == 80


# the comparison of exported models


def test_average_precision_of_an_exported_model_beside_its_checkpoint():
    source = Scenes(train=False)
    compared = task_named("detection").comparison("topk", source)
    indices = np.arange(16)
    sizes = np.full((16, 2), 128, np.int32)
    labels, boxes = np.zeros((16, 6), np.int32), np.zeros((16, 6, 4), np.float32)
    scores, logits = np.zeros((16, 6), np.float32), np.full((16, 6, 10), -9, np.float32)
    for index in indices:
        objects = source.target(index)
        count = len(objects.labels)
        labels[index, :count], boxes[index, :count], scores[index, :count] = objects.labels, objects.boxes, 0.9
        logits[index, np.arange(count), objects.labels] = 9
    corners = boxes / 128
    centred = np.concatenate([corners[..., :2] + corners[..., 2:], 2 * (corners[..., 2:] - corners[..., :2])], -1) / 2
    valid = indices < 12
    boxes[:6, :, :2] = 0  # the exported one gets half of the images wrong
    compared.add((labels, boxes, scores), (logits, centred), indices, valid, sizes)
    found = compared.result()
    assert (found.images, found.checkpoint) == (12, pytest.approx(1.0))
    assert 0.1 < found.exported < 0.8
    assert str(found) == f"AP {found.exported:.4f} on 12 images, the checkpoint 1.0000"
    assert found.apart == pytest.approx(1 - found.exported)
    alone = task_named("detection").comparison("topk", source)
    alone.add((labels, boxes, scores), None, indices, valid, sizes)
    assert (str(alone.result()), alone.result().apart) == (f"AP {found.exported:.4f} on 12 images", 0.0)
    with pytest.raises(UserError, match="these images have no boxes of objects"):
        task_named("detection").comparison("topk", Digits(train=False))
