"""The benchmark of the input pipeline: its images, its clock and its table."""

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_images_are_as_large_as_those_of_imagenet(tmp_path, monkeypatch):
    import input_pipeline

    monkeypatch.setattr(input_pipeline, "DISTINCT", 4)
    input_pipeline.write_images(tmp_path, 8)
    files = sorted((tmp_path / "train").rglob("*.jpg"))
    assert len(files) == 8
    assert len({file.read_bytes() for file in files}) == 4
    assert np.mean([file.stat().st_size for file in files]) == pytest.approx(77_000, rel=0.03)
    for file in files:
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((500, 375), "RGB")
            assert image.layer[0][1:3] == (2, 2)  # chroma at half the resolution


def test_detectors_see_the_same_objects_on_both_sides(tmp_path, monkeypatch):
    import argparse

    import input_pipeline

    from mindcv_reparam.config import Config
    from mindcv_reparam.data import create_dataset

    monkeypatch.setattr(input_pipeline, "DISTINCT", 4)
    input_pipeline.write_objects(tmp_path, 8)
    source = create_dataset(Config(data_dir=str(tmp_path), **input_pipeline.DETECTION), train=True)
    assert (len(source), source.counts.tolist(), len(source.classes)) == (8, [7] * 8, 80)
    assert source.pixels(7).shape == (480, 640, 3)
    assert not any("boxes" in note for note in source.notes)
    monkeypatch.setattr(input_pipeline, "Pipeline", lambda name, python, *script: (name, python, script[0], script[-1]))
    monkeypatch.setattr(input_pipeline, "measure", lambda pipelines, rounds: [pipelines, rounds])
    monkeypatch.setattr(input_pipeline, "environment", lambda *how: "peer")
    compared = input_pipeline.with_boxes("folder", argparse.Namespace(workers=2, rounds=3))
    assert compared["RT-DETR"] == [
        [
            ("torchvision", "peer", "torchvision_detection.py", "2"),
            ("ours, threads", sys.executable, "ours.py", "threads"),
            ("ours, processes", sys.executable, "ours.py", "processes"),
        ],
        3,
    ]


def test_processor_time_counts_children():
    from peers import processor_seconds

    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        assert 0.28 < processor_seconds(process.pid) < 2.0
        process.communicate("\n")


def test_rows_are_medians_and_ratios_of_rounds():
    from input_pipeline import Epoch, rows

    peer = [Epoch(3.0, 1.0, 99.0), Epoch(0.1, 100.0, 8.0), Epoch(0.1, 50.0, 4.0), Epoch(0.1, 100.0, 8.0)]
    ours = [Epoch(2.0, 1.0, 99.0), Epoch(0.1, 300.0, 2.0), Epoch(0.1, 100.0, 1.0), Epoch(0.1, 200.0, 4.0)]
    header = rows("fastvit", {"MindCV": peer, "ours": ours})
    assert rows("fastvit", {"torchvision": peer, "ours": ours})[1] == header[1]
    assert header == [
        ["fastvit", "MindCV", "3.0", "100", "8.00", "125", "1.00", "1.00"],
        ["fastvit", "ours", "2.0", "200", "2.00", "500", "2.00", "4.00"],
    ]


def test_a_pipeline_that_ends_is_an_error():
    from input_pipeline import Pipeline

    from mindcv_reparam.errors import UserError

    with (
        Pipeline("broken", sys.executable, "ours.py", "{}", "/nowhere", "1", "threads") as pipeline,
        pytest.raises(UserError, match="'broken' ended"),
    ):
        pipeline.run()


def test_our_workers_meet_the_peers_on_every_recipe_and_mindspore_on_every_layout(monkeypatch, tmp_path):
    import argparse

    import input_pipeline

    monkeypatch.setattr(
        input_pipeline, "Pipeline", lambda name, python, script, *more: (name, script, more[-1], more[1])
    )
    monkeypatch.setattr(input_pipeline, "measure", lambda pipelines, rounds: [pipelines, rounds])
    monkeypatch.setattr(input_pipeline, "environment", lambda *how, **more: "python")
    monkeypatch.setattr(input_pipeline.os, "sched_getaffinity", lambda process: {0, 1})
    args = argparse.Namespace(mindcv="", workers=2, rounds=3, recipes=["fastvit"])
    peers = input_pipeline.against_peers("folder", args)
    assert list(peers) == ["decoding alone", "fastvit"]
    assert peers["fastvit"] == [
        [
            ("MindCV", "mindcv_recipe.py", "", "folder"),
            ("timm", "timm_recipe.py", "2", "folder"),
            ("ours, threads", "ours.py", "threads", "folder"),
            ("ours, processes", "ours.py", "processes", "folder"),
        ],
        3,
    ]
    folder, packed = str(tmp_path / "images"), str(tmp_path / "packed")
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "train" / "0.jpg").touch()
    assert input_pipeline.laid_out(folder, packed, [4], 2) == {
        "visformer": [
            [
                ("threads 4", "ours.py", "threads", folder),
                ("processes 4", "ours.py", "processes", folder),
                ("archive, threads 4", "ours.py", "threads", packed),
                ("archive, processes 4", "ours.py", "processes", packed),
                ("MindSpore's, fixed", "mindspore_dataset.py", "fixed", folder),
                ("MindSpore's, autotune", "mindspore_dataset.py", "autotune", folder),
            ],
            2,
        ],
        "crop and flip": [
            [
                ("threads 2", "ours.py", "threads", folder),
                ("MindSpore's operators", "mindspore_dataset.py", "operators", folder),
            ],
            2,
        ],
    }
    with tarfile.open(f"{packed}/train.tar") as archive:
        assert "./0.jpg" in archive.getnames()
