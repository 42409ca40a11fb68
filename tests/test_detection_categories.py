"""The numbers of categories go with a detector: from its training annotations to its checkpoint, bundle and results."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from networks import arrays
from PIL import Image

from mindcv_reparam.checkpoint_info import read_info
from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset
from mindcv_reparam.distributed import Distributed
from mindcv_reparam.errors import UserError
from mindcv_reparam.export.bundle import Candidate, _manifest
from mindcv_reparam.export.graph import Interface
from mindcv_reparam.run.fused import fused_model
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.tasks.detection.postprocess import Detections
from mindcv_reparam.tensors import TensorSpec
from mindcv_reparam.training.assembly import hyper_parameters
from mindcv_reparam.training.data import open_data
from mindcv_reparam.training.records import Records
from mindcv_reparam.zoo import create_model

pytestmark = pytest.mark.usefixtures("pynative")
TRAINED = [dict(id=7, name="cat"), dict(id=90, name="owl")]
MEASURED = [dict(id=3, name="owl"), dict(id=40, name="cat")]


def annotate(folder, split, categories):
    """An image with an object of every category, side by side in their order."""
    (folder / split).mkdir(parents=True)
    Image.new("RGB", (64, 32)).save(folder / split / "a.png")
    objects = [
        dict(image_id=1, category_id=one["id"], bbox=[32 * place, 0, 32, 32]) for place, one in enumerate(categories)
    ]
    images = [dict(id=1, file_name="a.png", width=64, height=32)]
    path = folder / f"{split}.json"
    path.write_text(json.dumps(dict(images=images, annotations=objects, categories=categories)))
    return {"data_dir": str(folder), f"{split}_annotations": f"{split}.json"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    settings = dict(model="rtdetr_riformer_xs", dataset="coco", image_resize=64, batch_size=1, num_parallel_workers=1)
    settings |= dict(denoising_queries=20, **annotate(folder, "train", TRAINED))
    config = Config(**settings, num_classes=2, given=frozenset(settings))
    network = create_model(config.model, **hyper_parameters(config))
    with open_data(config, TASKS["detection"], Distributed()) as data:
        run = SimpleNamespace(
            **dict(config=config, model=config.model, hyper_parameters=hyper_parameters(config), data=data),
            **dict(_copies=lambda weights, step: arrays(network), writer=SimpleNamespace(submit=lambda job: job())),
        )
        Records.save(run, folder / "net.ckpt", {"epoch": 1, "step": 1}, "online")
    return folder / "net.ckpt"


def test_a_checkpoint_has_the_ids_of_its_training_annotations(checkpoint):
    info = read_info(checkpoint)
    assert (info.classes, info.category_ids) == (["cat", "owl"], (7, 90))
    assert re.fullmatch(r"coco run\d+: 1 images, 2 classes of 1 objects", info.data)
    manifest, _ = fused_model(checkpoint, 1)
    assert [manifest.number(index) for index in range(2)] == [7, 90]


def test_a_bundle_has_them(checkpoint):
    info = read_info(checkpoint)
    outputs = (TensorSpec("logits", "float32", (1, 30, 2)), TensorSpec("boxes", "float32", (1, 30, 4)))
    deployment = SimpleNamespace(
        **dict(interface=Interface(), input=TensorSpec("images", "float32", (1, 3, 64, 64)), sizes=None),
        **dict(outputs=outputs, output_kind="logits", task=TASKS["detection"]),
    )
    candidate = Candidate(None, info, "full", str(checkpoint))
    assert _manifest(candidate, deployment, ["ONNX"], ("cat", "owl"), {}).category_ids == (7, 90)


def test_a_file_of_other_numbers_and_order_is_measured_by_name(checkpoint, tmp_path):
    config = Config(dataset="coco", **annotate(tmp_path, "val", MEASURED))
    source = create_dataset(config, train=False, classes=read_info(checkpoint).classes)
    evaluator = TASKS["detection"].evaluator(source)
    boxes = np.array([[0, 0, 32, 32], [32, 0, 64, 32]], np.float32)  # an owl, which is class 1 here, and a cat
    evaluator.add_found(0, Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([1, 0], np.int32)))
    result = evaluator.result(Distributed(), 1.0)
    assert result.numbers["AP"] == pytest.approx(1.0)
    assert [one["category_id"] for one in result.documents()["detections"]] == [3, 40]


def test_a_file_of_other_names_is_refused_in_a_line(checkpoint, tmp_path):
    config = Config(dataset="coco", **annotate(tmp_path, "val", [dict(id=7, name="cat"), dict(id=90, name="fox")]))
    with pytest.raises(UserError, match=r"category 'fox' of .*val\.json \(1 such\) is not among the 2 classes") as told:
        create_dataset(config, train=False, classes=read_info(checkpoint).classes)
    assert "\n" not in str(told.value)
