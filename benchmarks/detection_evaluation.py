"""Compare the evaluation of detectors with pycocotools' own: seconds from every image's detections to COCO's numbers.

    python benchmarks/detection_evaluation.py [--images 5000] [--boxes 300]

Both get the same detections as a post-processor leaves them, arrays per image, and the annotations of a data set of
COCO's size in memory: 80 categories, 7 objects per image, some of them crowds. Half of the objects are found about
where they are; what else an image has is noise of low scores. pycocotools is called as its users do, RT-DETR's authors
among them: a dictionary per box, ``loadRes``, ``evaluate``, ``accumulate``, ``summarize``; "judging" are the last
three. One run of each in a process of its own, ours first; the twelve numbers have to be equal but for rounding.
Processor time is that of all threads.
"""

import argparse
import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from report import machine, markdown

from mindcv_reparam.data.decoder import Decoder
from mindcv_reparam.data.objects import AnnotatedFiles, Listing
from mindcv_reparam.distributed import Distributed
from mindcv_reparam.errors import Parser, UserError, run_script
from mindcv_reparam.labels import published
from mindcv_reparam.tasks.detection.evaluation import NAMES, CocoEvaluator
from mindcv_reparam.tasks.detection.postprocess import Detections, coco_box

OBJECTS = 7  # per image
HEADER = ("evaluation", "seconds", "processor seconds", "of them judging", "AP", "AP50", "ARl")
# Seconds, processor seconds, those of judging where they are known, COCO's numbers.
Result = tuple[float, float, float, list[float]]


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=300, help="detections per image")
    args = parser.parse_args()
    results: dict[str, Result] = {}
    for name, evaluate in (("ours", ours), ("pycocotools", pycocotools)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[name] = pool.apply(evaluate, (args.images, args.boxes))
    print(markdown(HEADER, [row(name, result) for name, result in results.items()]))
    (*_, mine), (*_, theirs) = results.values()
    if not np.allclose(mine, theirs, rtol=0, atol=1e-12):  # their means add in another order
        raise UserError(f"the numbers differ: {mine} here, {theirs} by pycocotools")
    print(json.dumps(machine("faster-coco-eval", "pycocotools", "numpy")), file=sys.stderr)
    return 0


def row(name: str, result: Result) -> list[str]:
    seconds, processor, judging, numbers = result
    shown = [f"{numbers[NAMES.index(number)]:.4f}" for number in HEADER[-3:]]
    return [name, f"{seconds:.1f}", f"{processor:.1f}", f"{judging:.1f}" if judging else "", *shown]


def ours(images: int, boxes: int) -> Result:
    source = annotated(images)
    found = detections(source, boxes)
    start, spent = time.perf_counter(), time.process_time()
    evaluator = CocoEvaluator(source)
    for index, one in enumerate(found):
        evaluator.add_found(index, one)
    result = evaluator.result(Distributed(), 1.0)
    spent = time.process_time() - spent
    return time.perf_counter() - start, spent, 0.0, [result.numbers[name] for name in NAMES]


def pycocotools(images: int, boxes: int) -> Result:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    source = annotated(images)
    found = detections(source, boxes)
    with contextlib.redirect_stdout(sys.stderr):
        truth = COCO()
        truth.dataset = source.annotations
        truth.createIndex()
        start, spent = time.perf_counter(), time.process_time()
        rows = [
            dict(
                image_id=source.image_id(index),
                category_id=source.category_ids[label],
                bbox=coco_box(*box),
                score=score,
            )
            for index, one in enumerate(found)
            for label, score, box in zip(one.labels.tolist(), one.scores.tolist(), one.boxes.tolist())
        ]
        judge = COCOeval(truth, truth.loadRes(rows), "bbox")
        judging = time.process_time()
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    now, end = time.perf_counter(), time.process_time()
    return now - start, end - spent, end - judging, judge.stats.tolist()


def annotated(images: int) -> AnnotatedFiles:
    """A data set of COCO's kind; there are no files."""
    names = published(80)
    assert names is not None
    assert names.category_ids is not None
    random, count = np.random.default_rng(0), OBJECTS * images
    rows, sizes = np.repeat(np.arange(images), OBJECTS), random.integers(400, 641, (images, 2))
    sides = sizes[rows] * random.uniform(0.02, 0.7, (count, 1)) * random.uniform(0.5, 1, (count, 2))
    places = random.uniform(0, 1, (count, 2)) * (sizes[rows] - sides)
    listing = Listing(
        files=[f"{image}.jpg" for image in range(images)],
        image_ids=np.arange(images) * 7 + 1,
        sizes=sizes,
        rows=rows,
        labels=(80 * random.uniform(0, 1, count) ** 3).astype(np.int64),  # a few classes have most objects
        boxes=np.concatenate([places, sides], axis=1),
        areas=0.6 * sides.prod(axis=1),
        crowds=random.random(count) < 0.01,
        names=str,
    )
    return AnnotatedFiles("generated", ".", listing, names.shown, names.category_ids, Decoder())


def detections(source: AnnotatedFiles, boxes: int) -> Sequence[Detections]:
    """Of every image: half of the objects, moved a little, and noise, from the best score down."""
    random, found = np.random.default_rng(1), []
    for index in range(len(source)):
        objects = source.target(index)
        half = random.random(len(objects.labels)) < 0.5
        true = objects.boxes[half] + random.normal(0, 3, (int(half.sum()), 4))
        corners = random.uniform(0, 640, (boxes - len(true), 2, 2))
        noise = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        scores = np.concatenate([random.uniform(0.3, 1, len(true)), random.uniform(0, 0.4, len(noise)) ** 2])
        labels = np.concatenate([objects.labels[half], random.integers(0, 80, len(noise))])
        order = np.argsort(-scores)
        of_image = np.concatenate([true, noise])[order].astype(np.float32)
        found.append(Detections(of_image, scores[order].astype(np.float32), labels[order].astype(np.int32)))
    return found


if __name__ == "__main__":
    run_script(main)
