"""The event files hold what the log tells, in TensorBoard's format."""

import struct
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.training.tensorboard import TensorBoard, require_tensorboard

METRICS = TASKS["classification"].metrics


def events(folder: Path) -> list[Event]:
    """Of all files, by TFRecord's framing: length, its checksum, the event, its checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        assert ".tfevents." in path.name  # or TensorBoard does not look into it
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            found.append(Event.FromString(content[start + 12 : start + 12 + length]))
            start += 12 + length + 4
        assert start == len(content)
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    return {(value.tag, event.step): value.simple_value for event in events(folder) for value in event.summary.value}


def test_records_become_scalars(tmp_path):
    board = TensorBoard(tmp_path, METRICS)
    board.interval_end({"step": 10, "loss": 1.5, "lr": 0.25})
    board.interval_end({"step": 20, "loss": 1.0, "lr": 0.5, "img_per_s": 64.0, "data_wait": 0.125})
    board.epoch_end({"epoch": 1, "step": 20, "train_loss": 1.25, "lr": 0.5, "top1": 75.0, "ema_top1": 50.0})
    board.epoch_end({"epoch": 2, "step": 40, "train_loss": 1.25, "lr": 0.5})  # without validation
    assert scalars(tmp_path) == {
        ("train/loss", 10): 1.5,
        ("train/lr", 10): 0.25,
        ("train/loss", 20): 1.0,
        ("train/lr", 20): 0.5,
        ("train/img_per_s", 20): 64.0,
        ("train/data_wait", 20): 0.125,
        ("val/top1", 20): 75.0,
        ("val/ema_top1", 20): 50.0,
    }


def test_a_resumed_run_takes_back_what_came_after_its_state(tmp_path):
    TensorBoard(tmp_path, METRICS, first_step=20)
    starts = [event.step for event in events(tmp_path) if event.session_log.status]
    assert starts == [21]


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="pip install tensorboardX"):
        require_tensorboard()
