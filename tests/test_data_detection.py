"""Detection data sets: COCO's files, YOLO's, the embedded scenes, and what is wrong in them."""

import json
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image

from mindcv_reparam.data.coco import Coco
from mindcv_reparam.data.decoder import UnreadableImage
from mindcv_reparam.data.scenes import _PAINT, Scenes, _background, _Uniform
from mindcv_reparam.data.yolo import Yolo
from mindcv_reparam.errors import UserError

SIZES = {"a.png": (40, 30), "b.png": (20, 50), "deep/c.png": (64, 64), "d.png": (10, 10)}


def write_images(root):
    for name, size in SIZES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 30, 60)).save(root / name)


def annotation(number, image, category, bbox, **more):
    return dict(id=number, image_id=image, category_id=category, bbox=bbox, **more)


def content():
    """Ids with gaps, a crowd, an image without objects, a box without width, one outside, one that reaches out."""
    return dict(
        images=[
            dict(id=id, file_name=name, width=size[0], height=size[1], license=3)
            for id, (name, size) in zip((700, 9, 41, 3), SIZES.items())
        ],
        annotations=[
            annotation(5, 700, 90, [1, 2, 10.5, 20], area=123.0, segmentation=[[1, 2, 3]]),
            annotation(8, 41, 7, [0, 0, 64, 64], iscrowd=1, area=64.0, segmentation={"counts": "x", "size": [1, 2]}),
            annotation(2, 41, 13, [60, 60, 30, 2], area=60.0),
            annotation(11, 9, 7, [3, 3, 0, 5], area=0.0),
            annotation(12, 9, 7, [30, 3, 4, 5], area=20.0),
            annotation(13, 9, 7, [4, 5, 6, 7]),
            annotation(14, 700, 7, [0, 0, 40.4, 30], area=1.0),
        ],
        categories=[dict(id=90, name="owl"), dict(id=7, name="cat"), dict(id=13, name="dog", supercategory="x")],
    )


def coco(folder, changed=None, classes=None):
    whole = content()
    if changed:
        changed(whole)
    write_images(folder / "images")
    (folder / "objects.json").write_text(json.dumps(whole))
    return Coco(folder / "objects.json", folder / "images", classes)


def test_coco_files(tmp_path):
    source = coco(tmp_path)
    assert source.classes == ("cat", "dog", "owl")
    assert source.category_ids == (7, 13, 90)
    assert [source.image_id(index) for index in range(4)] == [3, 9, 41, 700]
    assert source.counts.tolist() == [0, 1, 1, 2]
    assert source.target(0).boxes.shape == (0, 4)
    np.testing.assert_array_equal(source.target(1).boxes, [[4, 5, 10, 12]])
    np.testing.assert_array_equal(source.target(2).boxes, [[60, 60, 64, 62]])
    np.testing.assert_array_equal(source.target(2).labels, [1])
    np.testing.assert_array_equal(source.target(3).boxes, [[1, 2, 11.5, 22], [0, 0, 40, 30]])
    assert source.target(3).labels.tolist() == [2, 0]
    assert source.target(3).boxes.dtype == np.float32
    assert source.target(3).labels.dtype == np.int32
    assert source.pixels(2).shape == (64, 64, 3)
    assert source.name(2).endswith("images/deep/c.png")


def test_what_coco_files_have_that_is_no_target_is_counted_and_named(tmp_path):
    flat, out, empty = (note.split(": ", 1)[1] for note in coco(tmp_path).notes)
    assert flat == "2 boxes without a width or height inside of the image: left out, the first: annotation 11"
    assert out == "1 boxes reaching out of the image by more than a pixel: clipped to it, the first: annotation 2"
    assert empty == "1 of 4 images have no objects; they stay as background"


def test_annotations_for_the_evaluation_are_those_of_the_file(tmp_path):
    annotations = coco(tmp_path).annotations
    given = content()
    assert [one["id"] for one in annotations["annotations"]] == list(range(1, 8))
    for one, of_file in zip(annotations["annotations"], given["annotations"]):
        box = of_file["bbox"]
        assert one["bbox"] == box
        assert (one["image_id"], one["category_id"]) == (of_file["image_id"], of_file["category_id"])
        assert one["iscrowd"] == of_file.get("iscrowd", 0)
        assert one["area"] == of_file.get("area", box[2] * box[3])
    assert {image["id"]: image["file_name"] for image in annotations["images"]} == dict(zip((700, 9, 41, 3), SIZES))
    assert annotations["categories"] == [dict(id=7, name="cat"), dict(id=13, name="dog"), dict(id=90, name="owl")]


def test_classes_of_a_checkpoint_in_another_order_and_with_one_more(tmp_path):
    source = coco(tmp_path, classes=("owl", "fox", "dog", "cat"))
    assert source.classes == ("owl", "fox", "dog", "cat")
    assert source.category_ids == (90, None, 13, 7)
    assert source.target(3).labels.tolist() == [0, 3]
    assert [one["category_id"] for one in source.annotations["annotations"]] == [90, 7, 13, 7, 7, 7, 7]
    assert len(source.annotations["categories"]) == 3
    (missing,) = (note for note in source.notes if "no category" in note)
    assert missing.endswith("has no category 'fox' (1 such of 4 classes), which is neither trained on nor measured")


def test_sources_go_to_workers_without_what_only_the_evaluation_needs(tmp_path):
    source = pickle.loads(pickle.dumps(coco(tmp_path)))
    np.testing.assert_array_equal(source.target(1).boxes, [[4, 5, 10, 12]])
    assert source.pixels(1).shape == (50, 20, 3)
    assert source._listing is None


def test_an_image_of_another_size_than_its_annotations_say(tmp_path):
    source = coco(tmp_path, lambda whole: whole["images"][0].update(width=41))
    with pytest.raises(UnreadableImage, match=r"a\.png has 40 x 30 pixels, where .*objects\.json says 41 x 30"):
        source.pixels(3)


def test_images_that_are_not_in_the_folder(tmp_path):
    source = coco(tmp_path, lambda whole: whole["images"][1].update(file_name="gone.png"))
    assert len(source) == 3
    assert source.problems[0].endswith("lists 1 images that " + str(tmp_path / "images") + " lacks, the first gone.png")
    assert [source.image_id(index) for index in range(3)] == [3, 41, 700]
    assert source.target(2).labels.tolist() == [2, 0]
    assert source.counts.tolist() == [0, 1, 2]
    assert not any("annotation 11" in note for note in source.notes)


BAD = {
    "an unknown image": (lambda w: w["annotations"][2].update(image_id=1), r"annotation 2 is of image 1, which"),
    "an unknown category": (lambda w: w["annotations"][0].update(category_id=1), r"annotation 5 is of category 1,"),
    "NaN": (lambda w: w["annotations"][3]["bbox"].__setitem__(0, float("nan")), r"annotation 11 has the bbox \[nan,"),
    "an infinite area": (lambda w: w["annotations"][4].update(area=float("inf")), "annotation 12 has the area inf"),
    "three numbers": (lambda w: w["annotations"][1]["bbox"].pop(), r"annotations\[1\]\.bbox: .*\(id 8\)"),
    "no box": (lambda w: w["annotations"][1].pop("bbox"), r"annotations\[1\]\.bbox: field required \(id 8\)"),
    "a word": (lambda w: w["annotations"][1].update(bbox="x"), r"annotations\[1\]\.bbox: .*'x'.*\(id 8\)"),
    "an id of text": (lambda w: w["images"][0].update(id="7"), r"images\[0\]\.id: input should be a valid integer"),
    "a huge id": (lambda w: w["images"][0].update(id=2**70), r"images\[0\]\.id"),
    "no size": (lambda w: w["images"][0].pop("width"), r"images\[0\]\.width: field required \(id 700\)"),
    "an image twice": (lambda w: w["images"][1].update(id=700), "two of image id 700"),
    "a category twice": (lambda w: w["categories"][1].update(id=90), "two of category id 90"),
    "a name twice": (lambda w: w["categories"][1].update(name="owl"), "two categories called 'owl'"),
    "no categories": (lambda w: w["categories"].clear(), "has no categories"),
    "no key": (lambda w: w.pop("annotations"), "annotations: field required"),
    "a path outside": (lambda w: w["images"][0].update(file_name="../a.png"), "image 700 has the file name"),
    "nothing there": (lambda w: [i.update(file_name="n.png") for i in w["images"]], "lists 4 images, .* none of them"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_coco_files_are_one_line(tmp_path, case):
    change, message = BAD[case]
    with pytest.raises(UserError, match=message) as error:
        coco(tmp_path, change)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"images": 3}', "\ud800".encode("utf-8", "surrogatepass")])
def test_files_that_are_no_such_json(tmp_path, text):
    path = tmp_path / "objects.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"objects\.json is damaged"):
        Coco(path, tmp_path)


def test_a_category_that_the_checkpoint_does_not_have(tmp_path):
    with pytest.raises(UserError, match=r"category 'owl' of .* \(1 such\) is not among the 2 classes"):
        coco(tmp_path, classes=("cat", "dog"))


def test_categories_without_an_annotation_are_classes_and_named(tmp_path):
    source = coco(
        tmp_path, lambda whole: whole["categories"].extend([dict(id=0, name="animals"), dict(id=4, name="fox")])
    )
    assert source.classes == ("animals", "fox", "cat", "dog", "owl")
    assert source.category_ids == (0, 4, 7, 13, 90)
    assert source.target(3).labels.tolist() == [4, 2]
    assert [one["id"] for one in source.annotations["categories"]] == [0, 4, 7, 13, 90]
    (note,) = (note for note in source.notes if "categories have" in note)
    assert note.endswith("objects.json: 2 of 5 categories have no annotation: 'animals' (id 0), 'fox' (id 4)")


@pytest.mark.parametrize(
    ("extra", "classes"),
    [
        (dict(id=0, name="cat", supercategory="none"), None),
        (dict(id=95, name="cat"), None),
        (dict(id=0, name="animals"), ("cat", "dog", "owl")),
    ],
    ids=["above one of its name", "below one of its name", "that the checkpoint does not have"],
)
def test_a_category_without_an_annotation_is_left_out(tmp_path, extra, classes):
    source = coco(tmp_path, lambda whole: whole["categories"].append(extra), classes)
    assert (source.classes, source.category_ids) == (("cat", "dog", "owl"), (7, 13, 90))
    assert source.target(3).labels.tolist() == [2, 0]
    (note,) = (note for note in source.notes if "categories have" in note)
    assert note.endswith(f"1 of 4 categories have no annotation: {extra['name']!r} (id {extra['id']}, left out)")


def test_of_two_categories_of_one_name_without_annotations_one_is_a_class(tmp_path):
    def unused(whole):
        whole["categories"] += [dict(id=95, name="fox"), dict(id=2, name="fox")]

    assert coco(tmp_path, unused).category_ids == (7, 13, 90, 95)


def test_id_0_is_a_category_as_any_other(tmp_path):
    def zero(whole):
        whole["categories"][1]["id"] = 0
        for one in whole["annotations"]:
            one["category_id"] = one["category_id"] % 7 and one["category_id"]

    source = coco(tmp_path, zero)
    assert (source.classes, source.category_ids) == (("cat", "dog", "owl"), (0, 13, 90))
    assert source.target(3).labels.tolist() == [2, 0]
    assert source.annotations["annotations"][-1]["category_id"] == 0


@pytest.mark.parametrize(
    ("before", "place"),
    [("images/", "images"), ("inner/images/", "inner/images"), ("./", "images"), ("images\\", "images")],
)
def test_file_names_may_begin_with_the_folder_s(tmp_path, before, place):
    whole = content()
    for image in whole["images"]:
        image["file_name"] = before + image["file_name"]
    write_images(tmp_path / place)
    (tmp_path / "objects.json").write_text(json.dumps(whole))
    source = Coco(tmp_path / "objects.json", tmp_path / place)
    assert len(source) == 4
    assert source.pixels(2).shape == (64, 64, 3)


def test_no_image_where_the_file_says(tmp_path):
    def other(whole):
        for image in whole["images"]:
            image["file_name"] = f"val/{image['file_name']}"

    with pytest.raises(
        UserError, match=r"objects\.json lists 4 images, the first val/d\.png: none of them lies in .*images"
    ):
        coco(tmp_path, other)


def yolo(folder, labels=None, split="train", classes=None, **changed):
    write_images(folder / "images" / "train")
    for name, text in (labels or {"a": "1 0.5 0.5 0.25 0.5\n\n0 .1 .1 .2 .2", "b": "", "deep/c": POLYGON}).items():
        path = folder / "labels" / "train" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    entries = {"train": "images/train", "names": "{0: cat, 1: dog}", **changed}
    (folder / "data.yaml").write_text("".join(f"{key}: {value}\n" for key, value in entries.items()))
    return Yolo(folder / "data.yaml", split, classes)


POLYGON = "0 0.25 0.25 0.5 0.75 0.75 0.5 0.5 0.3"


def test_yolo_folders(tmp_path):
    source = yolo(tmp_path)
    assert source.classes == ("cat", "dog")
    files = [source.name(index).removeprefix(f"{tmp_path}/images/train/") for index in range(4)]
    assert files == ["a.png", "b.png", "d.png", "deep/c.png"]
    np.testing.assert_allclose(source.target(0).boxes, [[15, 7.5, 25, 22.5], [0, 0, 8, 6]], atol=1e-5)
    assert source.target(0).labels.tolist() == [1, 0]
    np.testing.assert_allclose(source.target(3).boxes, [[16, 16, 48, 48]])
    assert source.counts.tolist() == [2, 0, 0, 1]
    assert source.category_ids == (0, 1)
    assert source.annotations["annotations"][0]["bbox"] == pytest.approx([15, 7.5, 10, 15])
    assert source.annotations["annotations"][0]["area"] == pytest.approx(150)
    assert [one["width"] for one in source.annotations["images"]] == [40, 20, 10, 64]
    assert pickle.loads(pickle.dumps(source)).pixels(3).shape == (64, 64, 3)


def test_yolo_paths_lists_and_imposed_classes(tmp_path):
    (tmp_path / "list.txt").write_text("images/train/a.png\n./images/train/deep/c.png\ngone.png\n")
    source = yolo(tmp_path, path=tmp_path, val="[list.txt]", names="[cat, dog]", split="val", classes=("dog", "cat"))
    assert source.counts.tolist() == [2, 1]
    assert source.target(0).labels.tolist() == [0, 1]
    assert source.category_ids == (1, 0)
    assert [one["category_id"] for one in source.annotations["annotations"]] == [1, 0, 0]
    assert "lists 1 images that are not there, the first gone.png" in source.problems[0]
    beside = yolo(tmp_path, train="../images/train")  # as Roboflow writes it
    assert len(beside) == 4
    assert len(yolo(tmp_path, path="/home/somebody/elsewhere")) == 4


def test_yolo_classes_may_be_written_as_fractions(tmp_path):
    assert yolo(tmp_path, {"a": "1.0 .5 .5 .25 .5"}).target(0).labels.tolist() == [1]


def test_a_yolo_image_that_cannot_be_read_is_left_out(tmp_path):
    yolo(tmp_path)
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no image")
    source = yolo_again(tmp_path)
    assert len(source) == 3
    assert "b.png cannot be read" in source.problems[0]


def yolo_again(folder):
    return Yolo(folder / "data.yaml", "train")


@pytest.mark.parametrize(
    ("labels", "changed", "message"),
    [
        ({"a": "0 .5 .5 .1"}, {}, r"labels/train/a\.txt:1: 3 numbers"),
        ({"a": "0 .5 .5 .1 .1\n2 .5 .5 .1 .1"}, {}, r"a\.txt:2: class 2 is none of the 2"),
        ({"a": "-1 .5 .5 .1 .1"}, {}, r"a\.txt:1: class -1"),
        ({"a": "cat .5 .5 .1 .1"}, {}, r"a\.txt:1: 'cat .5 .5 .1 .1' is not"),
        ({"a": "0.5 .5 .5 .1 .1"}, {}, r"a\.txt:1: '0.5 .5 .5 .1 .1' is not"),
        ({"a": "inf .5 .5 .1 .1"}, {}, r"a\.txt:1: 'inf .5 .5 .1 .1' is not"),
        ({"a": "0 20 20 10 10"}, {}, r"a\.txt:1: coordinates must be parts"),
        ({"a": "0 nan .5 .1 .1"}, {}, r"a\.txt:1: coordinates must be parts"),
        ({"z": ""}, {}, r"none of 4 images has a label file, such as .*labels/train/a\.txt"),
        (None, {"names": "[]"}, "has no names"),
        (None, {"names": "{0: cat, 2: dog}"}, r"data\.yaml:2: names must have the indices 0 to 1"),
        (None, {"nc": "3"}, "has 2 names, where nc is 3"),
        (None, {"train": "elsewhere"}, "where there is nothing"),
        (None, {"split": "val"}, "has no 'val'"),
        (None, {"train": "{a: b}"}, r"data\.yaml:1: a name or a path"),
    ],
)
def test_bad_yolo_files_are_one_line(tmp_path, labels, changed, message):
    with pytest.raises(UserError, match=message):
        yolo(tmp_path, labels, **changed)


@pytest.fixture(scope="module")
def scenes():
    return Scenes(train=False)


def test_scenes_are_the_same_everywhere(scenes):
    assert (len(scenes), scenes.counts.sum(), (scenes.counts == 0).sum()) == (512, 1694, 32)
    bits = b"".join(scenes.pixels(index).tobytes() + scenes.target(index).boxes.tobytes() for index in range(8))
    assert zlib.crc32(bits) == 3081512646


def test_scenes_have_digits_where_they_say(scenes):
    apart = []
    for index in range(16):
        pixels = scenes.pixels(index)
        assert (pixels.shape, pixels.dtype) == ((128, 128, 3), np.uint8)
        bare = np.floor(_background(_Uniform(_PAINT, False, index)) + 0.5)
        changed = np.abs(pixels.astype(int) - bare).max(axis=2) > 12
        for x1, y1, x2, y2 in scenes.target(index).boxes.astype(int):
            inside = changed[y1:y2, x1:x2]
            apart.append(inside.any(axis=1)[[0, -1]].all() and inside.any(axis=0)[[0, -1]].all())
            changed[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3] = False
        assert changed.sum() == 0
    assert np.mean(apart) > 0.9


def test_scenes_are_of_coco_form(scenes):
    annotations = scenes.annotations
    assert [one["name"] for one in annotations["categories"]] == list("0123456789")
    assert len(annotations["annotations"]) == scenes.counts.sum()
    one = annotations["annotations"][0]
    x, y, width, height = one["bbox"]
    first = scenes.target(one["image_id"] - 1)
    assert [x, y, x + width, y + height] == first.boxes[0].tolist()
    assert one["category_id"] == first.labels[0] + 1
    again = pickle.loads(pickle.dumps(scenes))
    np.testing.assert_array_equal(again.pixels(3), scenes.pixels(3))
