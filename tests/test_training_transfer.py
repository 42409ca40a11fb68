"""The next batch is sent to the device while a step runs: in which order, and what memory lives until when."""

import collections
import contextlib
import gc
import logging
import random
import types
import weakref

import numpy as np
import pytest
from mindspore import Tensor
from test_training_trainer import Loader as TrainLoader
from test_training_trainer import build

from mindcv_reparam.private import values
from mindcv_reparam.training import transfer
from mindcv_reparam.training.transfer import Ahead, Transfer, open_transfer

STEPS, SIZE = 12, 8


class Pool:
    """Memory that goes to whoever asks next as soon as Python has let it go, as MindSpore's pools do."""

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []
        self.made = 0

    def take(self, owner: object) -> np.ndarray:
        if not self.free:
            self.made += 1
            self.free.append(np.full(SIZE, -1.0))
        memory = self.free.pop()
        weakref.finalize(owner, self.free.append, memory)
        return memory


class Device:
    """Stands in for MindSpore and a device whose streams run late, in any order that events allow."""

    __version__ = "2.7.0"

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.host, self.memory = Pool(), Pool()
        self.streams: dict[str, collections.deque] = {"steps": collections.deque(), "copies": collections.deque()}
        self.current = "steps"
        self.runtime = types.SimpleNamespace(
            Stream=lambda: Stream(self, "copies"),
            default_stream=lambda: Stream(self, "steps"),
            StreamCtx=lambda stream: Within(self, stream.name),
        )

    def get_context(self, name: str) -> str:
        assert name == "device_target"
        return "Ascend"

    def from_numpy(self, array: np.ndarray) -> "Pageable":
        return Pageable(self, array)

    def put(self, work) -> None:
        """On the current stream: what is to be done, which is None until its time has come."""
        self.streams[self.current].append(work)

    def pass_by(self, most: int) -> None:
        """Let some work be done."""
        for _ in range(self.random.randint(0, most)):
            self.work()

    def work(self) -> bool:
        names = list(self.streams)
        self.random.shuffle(names)
        for name in names:
            if self.streams[name] and self.streams[name][0]() is not None:
                self.streams[name].popleft()
                return True
        return False


class Stream:
    def __init__(self, device: Device, name: str) -> None:
        self.device, self.name = device, name

    def record_event(self) -> "Event":
        event = Event(self.device)
        with Within(self.device, self.name):
            self.device.put(lambda: setattr(event, "happened", True) or True)
        return event

    def wait_event(self, event: "Event") -> None:
        with Within(self.device, self.name):
            self.device.put(lambda: event.happened or None)


class Within:
    def __init__(self, device: Device, name: str) -> None:
        self.device, self.name = device, name

    def __enter__(self) -> None:
        self.before, self.device.current = self.device.current, self.name

    def __exit__(self, *exception: object) -> None:
        self.device.current = self.before


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.happened = device, False

    def query(self) -> bool:
        self.device.pass_by(3)
        return self.happened


class Pageable:
    def __init__(self, device: Device, array: np.ndarray) -> None:
        self.device, self.array = device, array

    def pin_memory(self) -> "Pinned":
        return Pinned(self.device, self.array)


class Pinned:
    def __init__(self, device: Device, array: np.ndarray) -> None:
        self.device = device
        self.numbers = device.host.take(self)
        self.numbers[:] = array

    def move_to(self, to: str, blocking: bool = True) -> "Moved":
        assert (to, blocking) == ("Ascend", False)
        moved = Moved(self.device)
        target, source = moved.numbers, self.numbers  # of which the device knows the addresses alone
        self.device.put(lambda: np.copyto(target, source) or True)
        return moved


class Moved:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.numbers = device.memory.take(self)

    def asnumpy(self) -> np.ndarray:
        while self.device.work():
            pass
        return self.numbers


class Loader:
    """Batch k is (k, k), made in the same memory again and again, and made in time by chance."""

    def __init__(self, device: Device, in_time: float = 0.8) -> None:
        self.device, self.in_time = device, in_time
        self.step = 0
        self.batch: tuple[np.ndarray, ...] | None = None

    def ready(self) -> tuple[np.ndarray, ...] | None:
        if self.batch is None and self.step < STEPS and self.device.random.random() < self.in_time:
            self.batch = (np.full(SIZE, float(self.step)),)
        return self.batch

    def next(self) -> tuple[np.ndarray, ...]:
        batch, self.batch = self.batch or (np.full(SIZE, float(self.step)),), None
        self.step += 1
        return batch


def on(device: Device, monkeypatch) -> Device:
    """The module works with this device from now on."""
    monkeypatch.setattr(transfer, "ms", device)
    monkeypatch.setattr(transfer, "Tensor", Pageable)
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    return device


@pytest.mark.parametrize("in_time", [0.0, 0.8, 1.0])
def test_every_step_reads_its_own_batch_however_late_the_device_is(in_time, monkeypatch):
    gc.disable()  # what is let go of is let go of at once: a double has no cycles
    try:
        for seed in range(100):
            device = on(Device(seed), monkeypatch)
            loader = Loader(device, in_time)
            ahead, read = Ahead("Ascend", loader), []
            for _ in range(STEPS):
                arrays = loader.next()
                numbers = ahead.take(arrays)[0].numbers
                arrays[0][:] = np.nan  # the loader's memory is used again
                del arrays
                device.put(lambda numbers=numbers, read=read: read.append(numbers.copy()) or True)
                del numbers
                ahead.queued()
                device.pass_by(6)
            while device.work():
                pass
            assert not any(device.streams.values())
            np.testing.assert_array_equal(read, np.repeat(np.arange(STEPS), SIZE).reshape(STEPS, SIZE))
            # Of the two last steps and the next one, so that neither host nor device gathers batches.
            assert device.memory.made == device.host.made <= 3
    finally:
        gc.enable()


def test_a_batch_is_copied_while_the_step_before_it_runs(monkeypatch):
    device = on(Device(), monkeypatch)
    ahead = Ahead("Ascend", loader := Loader(device, in_time=1.0))
    ahead.take(loader.next())
    device.put(lambda: None)  # a step that does not end
    ahead.queued()
    while device.work():
        pass
    assert len(device.streams["steps"]) == 2  # it, and the event after it
    assert not device.streams["copies"]
    assert ahead.take(loader.next())[0].numbers.tolist() == [1.0] * SIZE


def test_a_batch_that_is_not_the_one_sent_ahead_is_sent_itself(monkeypatch):
    """Where an epoch ends early, or another one is asked for."""
    device = on(Device(), monkeypatch)
    ahead = Ahead("Ascend", loader := Loader(device, in_time=1.0))
    ahead.take(loader.next())
    ahead.queued()
    (tensor,) = ahead.take((np.full(SIZE, 7.0),))
    assert tensor.asnumpy().tolist() == [7.0] * SIZE


class Told(Transfer):
    """Notes what it is asked."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def take(self, arrays):
        self.events.append("taken")
        return super().take(arrays)

    def queued(self):
        self.events.append("next begun")


class Recording(contextlib.nullcontext):
    """Stands in for a profile, whose end waits for the device."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def before(self, step):
        self.events.append("step")

    def after(self, step):
        self.events.append("profiled")


def test_the_next_copy_begins_before_the_host_waits_for_anything_of_a_step(monkeypatch):
    events: list[str] = []
    trainer = build(epochs=2, log_interval=1, transfer=Told(events), profile=Recording(events))
    asnumpy = values().asnumpy
    monkeypatch.setattr(values(), "asnumpy", lambda tensor: (events.append("value"), asnumpy(tensor))[1])
    trainer.run()
    steps = " ".join(events).split("taken ")[1:]
    assert len(steps) == 10
    assert "step next begun profiled value" in steps[0]  # which compiles
    assert steps[6:9] == ["step next begun profiled value "] * 3


class Always:
    """A stream, and an event that has happened."""

    def __enter__(self) -> None: ...
    def __exit__(self, *exception: object) -> None: ...
    def wait_event(self, event) -> None: ...

    def record_event(self):
        return Always()

    def query(self) -> bool:
        return True


class Shown(TrainLoader):
    """Shows the next batch, but not the first one of an epoch."""

    following: tuple[np.ndarray, ...] | None = None

    def epoch(self, epoch: int, start_step: int = 0):
        batches = list(super().epoch(epoch, start_step))
        for batch, self.following in zip(batches, [*batches[1:], None]):
            yield batch

    def ready(self):
        return self.following


def test_a_run_has_the_same_weights_with_and_without(monkeypatch):
    """By doubles of what MindSpore offers on Ascend: a copy is one to a new Tensor."""
    sent = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: Tensor(tensor.asnumpy().copy()), raising=False)
    monkeypatch.setattr(Tensor, "move_to", lambda tensor, to, blocking: (sent.append(to), tensor)[1])
    for name in ("Stream", "StreamCtx", "default_stream"):
        monkeypatch.setattr(transfer.ms.runtime, name, lambda *arguments: Always())
    found = []
    for ahead in (False, True):
        trainer = build(epochs=2)
        trainer.loader = Shown()
        if ahead:
            trainer.transfer = Ahead("Ascend", trainer.loader)
        trainer.run()
        found.append(trainer.step.network.weight.asnumpy().tolist())
        assert len(trainer.loader.served) == 10
    assert found[0] == found[1]
    assert sent == ["Ascend"] * 2 * 10  # images and labels, once each


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == transfer.log.name]


def test_it_is_off_unless_asked_for(caplog):
    assert type(open_transfer(False, Loader(Device()))) is Transfer
    assert not lines(caplog)


def test_a_cpu_computes_on_a_batch_where_it_lies(caplog):
    caplog.set_level(logging.INFO, "mindcv_reparam")
    assert type(open_transfer(True, Loader(Device()))) is Transfer
    assert lines(caplog) == ["transfer_ahead is not used: a CPU computes on a batch where it lies"]
    given = np.ones((2, 3), np.float32)
    (tensor,) = Transfer().take((given,))
    given[0, 0] = 5.0
    assert tensor.asnumpy()[0, 0] == 5.0  # no copy


class Unpinned:
    """A Tensor of MindSpore 2.7.0."""


def refuse(tensor):
    raise RuntimeError("\nno memory to pin\n- C++ Call Stack: ...")


def nothing_arrives(tensor, to, blocking=True):
    return Moved(tensor.device)


@pytest.mark.parametrize(
    ("owner", "name", "fault", "reason"),
    [
        (transfer, "Tensor", Unpinned, "MindSpore 2.7.0 has no Tensor.pin_memory"),
        (Pageable, "pin_memory", refuse, "no memory to pin"),
        (Pinned, "move_to", nothing_arrives, "other numbers arrived at the device than were sent"),
    ],
)
def test_where_nothing_can_be_sent_ahead_a_line_says_so(owner, name, fault, reason, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "mindcv_reparam")
    device = on(Device(), monkeypatch)
    monkeypatch.setattr(owner, name, fault)
    assert type(open_transfer(True, Loader(device))) is Transfer
    assert lines(caplog) == [f"transfer_ahead is not used: {reason}"]


def test_where_it_can_be_it_is(monkeypatch, caplog):
    device = on(Device(), monkeypatch)
    ahead = open_transfer(True, loader := Loader(device, in_time=1.0))
    assert isinstance(ahead, Ahead)
    assert ahead.take(loader.next())[0].asnumpy().tolist() == [0.0] * SIZE
    assert not lines(caplog)
