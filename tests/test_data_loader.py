"""The loader: batches that depend on (seed, epoch, step, rank) alone, bad files, and workers that come and go."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset, loader
from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS, open_loader
from mindcv_reparam.tasks.classification.mixup import soft_labels

ROOT = Path(__file__).parents[1]
TRAIN = Config(
    dataset="imagenet", image_resize=24, batch_size=4, epoch_size=3, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5,
    re_mode="pixel", mixup=0.8, cutmix=1.0, label_smoothing=0.1, num_parallel_workers=1, num_classes=7,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Eleven noisy images per split in three classes."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(11):
            path = tmp_path / split / "abc"[index % 3] / f"{index:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(path)
    return tmp_path


def make_loader(folder, train=True, rank=0, size=1, **kwargs):
    config = dataclasses.replace(TRAIN, data_dir=str(folder), **kwargs)
    return open_loader(TASKS["classification"], create_dataset(config, train), config, train, rank, size)


def epoch_of(*args, epoch=0, start_step=0, **kwargs):
    with make_loader(*args, **kwargs) as batches:
        return list(batches.epoch(epoch, start_step))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        for a, b in zip(one, other):
            np.testing.assert_array_equal(a, b)


def test_training_batches(folder):
    with make_loader(folder) as batches:
        assert (batches.steps_per_epoch, batches.num_classes) == (2, 7)
        epoch = list(batches.epoch(0))
    assert len(epoch) == 2
    for images, labels in epoch:
        assert (images.shape, images.dtype) == ((4, 3, 24, 24), np.float32)
        assert (labels.shape, labels.dtype) == ((4, 7), np.float32)
        np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
        assert np.isfinite(images).all()


def test_plain_training_labels_are_smoothed_one_hot(folder):
    kwargs = {"mixup": 0.0, "cutmix": 0.0, "shuffle": False}
    (_, labels), _ = epoch_of(folder, **kwargs)
    np.testing.assert_array_equal(labels, soft_labels(np.array([0, 0, 0, 0]), 7, 0.1))


@pytest.mark.slow
def test_batches_do_not_depend_on_the_workers(folder, monkeypatch):
    def run():
        with make_loader(folder, num_parallel_workers=3) as batches:
            assert len(list(batches.epoch(0))) == 2
            return list(batches.epoch(1))

    one_thread = epoch_of(folder, epoch=1)
    monkeypatch.setattr(loader, "_usable_cores", lambda: 8)
    processes = run()
    monkeypatch.setattr(loader, "_MOST_THREADS", 3)
    threads = run()
    assert_same(one_thread, processes)
    assert_same(one_thread, threads)


def test_epochs_differ_and_repeat(folder):
    with make_loader(folder) as batches:
        first, second, again = (list(batches.epoch(epoch)) for epoch in (0, 1, 0))
    assert_same(first, again)
    assert (first[0][0] != second[0][0]).any()
    assert (first[0][0] != epoch_of(folder, seed=7)[0][0]).any()


def test_resuming_is_starting_at_a_step(folder):
    whole = epoch_of(folder, epoch=2, batch_size=2)
    assert_same(whole[3:], epoch_of(folder, epoch=2, batch_size=2, start_step=3))


def test_an_epoch_beyond_the_configured_ones_and_a_dropped_one_work(folder):
    with make_loader(folder, epoch_size=1) as batches:
        next(batches.epoch(0))
        assert len(list(batches.epoch(5))) == 2


def test_ranks_share_the_images_and_augment_them_as_one_would(folder):
    plain = {"mixup": 0.0, "cutmix": 0.0}
    whole = epoch_of(folder, batch_size=4, **plain)
    halves = [epoch_of(folder, batch_size=2, rank=rank, size=2, **plain) for rank in range(2)]
    for step, (images, labels) in enumerate(whole):
        for rank in range(2):
            np.testing.assert_array_equal(images[rank::2], halves[rank][step][0])
            np.testing.assert_array_equal(labels[rank::2], halves[rank][step][1])


def test_ranks_mix_differently(folder):
    targets = [
        np.concatenate([labels for _, labels in epoch_of(folder, batch_size=2, rank=rank, size=2)]) for rank in (0, 1)
    ]
    assert len(np.unique(targets[0].max(axis=1).round(4))) > 1
    assert not np.isin(targets[0].max(axis=1).round(4), targets[1].max(axis=1).round(4)).all()


@pytest.mark.parametrize(("size", "batch_size"), [(1, 4), (2, 3), (3, 8)])
def test_validation_weighs_each_image_once(folder, size, batch_size):
    seen = []
    for rank in range(size):
        batches = epoch_of(folder, train=False, rank=rank, size=size, batch_size=batch_size)
        assert len(batches) == -(-11 // (size * batch_size))
        for images, labels, weights in batches:
            assert images.shape == (batch_size, 3, 24, 24)
            assert (labels.dtype, weights.dtype) == (np.int32, np.float32)
            assert (images[weights == 0] == 0).all()
            seen += [(label, image.tobytes()) for image, label, weight in zip(images, labels, weights) if weight == 1]
    assert len(seen) == len(set(seen)) == 11
    assert np.bincount([label for label, _ in seen]).tolist() == [4, 4, 3]


def spoil(folder, split):
    """Truncate one image and replace another by text; their indices."""
    files = sorted((folder / split).rglob("*.jpg"))
    files[2].write_bytes(files[2].read_bytes()[:700])
    files[7].write_text("no image")
    return [str(files[2]), str(files[7])]


def test_bad_images_in_training_are_replaced_counted_and_named_once(folder, caplog):
    bad = spoil(folder, "train")
    (folder / "train" / "empty").mkdir()
    with caplog.at_level(logging.WARNING), make_loader(folder, batch_size=11) as batches:
        epochs = [list(batches.epoch(epoch)) for epoch in range(3)]
        assert batches.skipped >= 6  # two per epoch, and a replacement may be bad, too
        assert sorted(batches.bad_files) == [2, 7]
    assert all(images.shape == (11, 3, 24, 24) for epoch in epochs for images, _ in epoch)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "empty has no images" in messages[0]
    assert all(sum(name in message for message in messages) == 1 for name in bad)
    assert_same(epochs[1], epoch_of(folder, batch_size=11, epoch=1))


def test_a_replacement_has_its_own_label(tmp_path):
    """Every class has a colour of its own and images that cannot be read: label and colour go together."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for label, colour in enumerate(colours):
        for number in range(6):
            path = tmp_path / f"train/{label}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 30), colour).save(path)
            if number % 2:
                path.write_bytes(b"no image")
    config = Config(
        data_dir=str(tmp_path), image_resize=8, batch_size=18, num_parallel_workers=1, seed=1,
        color_jitter=0.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
    )  # fmt: skip
    with open_loader(TASKS["classification"], create_dataset(config, True), config, True) as batches:
        ((images, labels),) = batches.epoch(0)
    assert batches.skipped >= 9
    np.testing.assert_array_equal(images[:, :, 4, 4], np.array(colours)[labels.argmax(axis=1)])


@pytest.mark.parametrize("size", [1, 2])
def test_names_of_any_ranks_batch(folder, size):
    loader = make_loader(folder, shuffle=False, size=size, batch_size=2)
    for rank in range(size):
        names = loader.names(0, 1, rank)
        assert names == [loader.batches.source.name((2 + row) * size + rank) for row in range(2)]


def test_a_data_set_of_bad_images_ends_the_training(folder):
    for file in (folder / "train").rglob("*.jpg"):
        file.write_text("no image")
    with pytest.raises(UserError, match="20 unreadable images in a row"):
        epoch_of(folder)


def test_bad_images_in_validation_are_an_error_unless_allowed(folder, caplog):
    bad = spoil(folder, "val")
    with pytest.raises(UserError, match=f"{bad[0]} cannot be read: .*allow_bad_images"):
        epoch_of(folder, train=False)
    with make_loader(folder, train=False, allow_bad_images=True) as batches:
        weights = np.concatenate([weights for *_, weights in batches.epoch(0)])
        assert batches.skipped == 2
    assert weights.tolist() == [1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0]
    assert sum(name in record.getMessage() for name in bad for record in caplog.records) == 2


def test_files_that_are_no_images_are_an_error_in_validation_unless_allowed(folder, caplog):
    (folder / "val" / "b" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt is no image file.*allow_bad_images"):
        make_loader(folder, train=False)
    make_loader(folder, train=False, allow_bad_images=True)
    make_loader(folder, train=False, allow_bad_images=True, rank=1, size=2)
    assert sum("notes.txt" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 2}, "num_classes 2 is less than the 3 classes"),
        ({"in_channels": 1}, "in_channels must be 3"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean and std three numbers"),
        ({"batch_size": 12}, "lower --batch_size"),
        ({"auto_augment": "rnd-m9"}, "nearest is 'rand'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, settings, message):
    with pytest.raises(UserError, match=message):
        make_loader(folder, **settings)


def test_number_of_workers(folder, monkeypatch):
    monkeypatch.setattr(loader, "_usable_cores", lambda: 4)
    for wanted, expected in ((1, 1), (3, 3), (64, 4)):
        assert make_loader(folder, num_parallel_workers=wanted)._worker_count == expected
    digits = dataclasses.replace(TRAIN, dataset="digits", num_classes=None, num_parallel_workers=64)
    assert open_loader(TASKS["classification"], create_dataset(digits, True), digits, True)._worker_count == 1


def test_batches_are_made_ahead_of_their_use(folder):
    with make_loader(folder) as batches:
        epoch = batches.epoch(0)
        next(epoch)
        (place, future), *_ = batches._ahead
        assert place == (0, 1)
        assert future.result(timeout=60)[0].shape == (4, 3, 24, 24)  # nobody has asked for it


def test_the_next_batch_is_shown_but_not_taken(folder):
    whole = epoch_of(folder, batch_size=2)
    for path in sorted((folder / "train").glob("*/*.jpg"))[:7]:
        path.write_bytes(b"no image")
    with make_loader(folder, batch_size=2, epoch_size=1) as batches:
        assert batches.ready() is None  # nobody has asked for any
        epoch = batches.epoch(0)
        next(epoch)
        seen = batches.skipped, dict(batches.bad_files)
        batches._ahead[0][1].result(timeout=60)
        shown = batches.ready()
        assert (batches.skipped, batches.bad_files) == seen  # though the batch has others
        taken = next(epoch)
        assert batches.skipped > seen[0]
        assert all(one is other for one, other in zip(shown, taken, strict=True))
        assert len(list(epoch)) == len(whole) - 2
        assert batches.ready() is None  # there is no other epoch


def test_what_is_not_made_is_not_shown(folder):
    with make_loader(folder) as batches:
        for future in (Future(), Future(), Future()):
            batches._ahead.append(((0, 0), future))
        assert batches.ready() is None
        batches._ahead.popleft()
        batches._ahead[0][1].set_exception(UserError("a worker died"))
        assert batches.ready() is None  # who takes it is told
        batches._ahead.popleft()
        assert batches._ahead[0][1].cancel()
        assert batches.ready() is None


def test_digits_through_the_loader():
    config = dataclasses.replace(TRAIN, dataset="digits", num_classes=None, batch_size=64)
    with open_loader(TASKS["classification"], create_dataset(config, False), config, False) as batches:
        assert (batches.steps_per_epoch, batches.num_classes) == (6, 10)
        assert sum(weights.sum() for *_, weights in batches.epoch(0)) == 360


@pytest.mark.parametrize("threads", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_what_is_kept_of_a_batch_stays_as_it_is(folder, monkeypatch, threads):
    """Memory is used again, but not while anything refers to it."""
    monkeypatch.setattr(loader, "_MOST_THREADS", threads)
    monkeypatch.setattr(loader, "_usable_cores", lambda: 2)
    with make_loader(folder, num_parallel_workers=2, batch_size=1, epoch_size=1) as batches:
        views = [images[0, :, 3:20].transpose(1, 2, 0) for images, _ in batches.epoch(0)]
        kept = [images for images, _ in batches.epoch(0)]
        addresses = {images.ctypes.data for images in kept}
        assert len(addresses) == 11
        copies = [images.copy() for images in kept]
        del kept
        again = [(images.ctypes.data in addresses, images.copy()) for images, _ in batches.epoch(0)]
    assert sum(used for used, _ in again) > 5
    for view, copy, (_, repeated) in zip(views, copies, again):
        np.testing.assert_array_equal(view, copy[0, :, 3:20].transpose(1, 2, 0))
        np.testing.assert_array_equal(copy, repeated)


def process_ids(batches):
    return [worker._process.pid for worker in batches._workers._workers]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def two_processes(folder, monkeypatch):
    monkeypatch.setattr(loader, "_usable_cores", lambda: 2)
    monkeypatch.setattr(loader, "_MOST_THREADS", 0)
    with make_loader(folder, num_parallel_workers=2, batch_size=1, epoch_size=50) as batches:
        yield batches


@pytest.mark.slow
def test_processes_leave_signals_to_their_parent(two_processes):
    list(two_processes.epoch(0))
    for pid in process_ids(two_processes):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)
    assert len(list(two_processes.epoch(1))) == 11


@pytest.mark.slow
def test_processes_outlive_an_epoch_and_end_with_the_loader(two_processes):
    list(two_processes.epoch(0))
    first = process_ids(two_processes)
    list(two_processes.epoch(1))
    assert process_ids(two_processes) == first
    assert all(alive(pid) for pid in first)
    two_processes.close()
    assert not any(alive(pid) for pid in first)
    assert len(list(two_processes.epoch(2))) == 11  # a closed loader starts again


@pytest.mark.slow
def test_a_killed_worker_is_reported(two_processes):
    epoch = two_processes.epoch(0)
    next(epoch)
    for pid in process_ids(two_processes):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a data worker died \(signal SIGKILL\)"):
        list(epoch)


@pytest.mark.slow
def test_errors_of_a_process_reach_the_training(folder, monkeypatch):
    for file in (folder / "train").rglob("*.jpg"):
        file.write_text("no image")
    monkeypatch.setattr(loader, "_MOST_THREADS", 0)
    with pytest.raises(UserError, match="20 unreadable images in a row"):
        epoch_of(folder)


@pytest.mark.slow
def test_processes_end_when_their_parent_is_killed(folder):
    script = f"""
import dataclasses, sys
from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset, loader
from mindcv_reparam.tasks import TASKS, open_loader
loader._MOST_THREADS = 0
loader._usable_cores = lambda: 2
config = Config(data_dir={str(folder)!r}, image_resize=24, batch_size=2, num_parallel_workers=2, epoch_size=1000)
batches = open_loader(TASKS["classification"], create_dataset(config, True), config, True)
next(batches.epoch(0))
assert "mindspore" not in sys.modules
print(*[worker._process.pid for worker in batches._workers._workers], flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(alive(pid) for pid in workers)
        parent.kill()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
