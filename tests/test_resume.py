"""Interrupted at any step and resumed, training ends with the bits of an uninterrupted run."""

import contextlib
import functools
import gc
import json
import os
import re
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import fault_injection
import mindspore as ms
import numpy as np
import pytest
from alone import Alone
from mindspore import Tensor, nn, ops

from mindcv_reparam.config import Config
from mindcv_reparam.errors import Interrupted, UserError, run_script
from mindcv_reparam.layers import batch_norm, conv2d, dense, drop_path, dropout
from mindcv_reparam.stochastic import mask_states, seed_masks
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.objective import ClassificationObjective
from mindcv_reparam.training import interruption
from mindcv_reparam.training.digest import digest
from mindcv_reparam.training.ema import WeightAverage
from mindcv_reparam.training.interruption import Interruption
from mindcv_reparam.training.loss_scale import LossScale
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.resume import Progress, TrainingState, changed_settings, resume_path, state_path
from mindcv_reparam.training.schedule import learning_rates
from mindcv_reparam.training.step import TrainStep
from mindcv_reparam.training.trainer import Trainer

EPOCHS, STEPS, CLASSES = 2, 5, 4


class Network(nn.Cell):
    """A residual branch with all that has a state."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv2d(3, 8, 3)
        self.norm = batch_norm(8)
        self.branch = conv2d(8, 8)
        self.drop_path = drop_path(0.4)
        self.dropout = dropout(0.3)
        self.head = dense(8, CLASSES)

    def construct(self, x):
        x = self.norm(self.stem(x))
        x = x + self.drop_path(self.branch(x))
        return self.head(self.dropout(x.mean((2, 3))))


class Loader:
    """The batch of (epoch, step) depends on these alone; a signal arrives while batch number `signal_at` is made."""

    steps_per_epoch = STEPS
    skipped = 0
    bad_files: dict[int, str] = {}

    def __init__(
        self, signal_at: int | None = None, number: signal.Signals = signal.SIGTERM, nan: bool = False
    ) -> None:
        self.signal_at = signal_at
        self.number = number
        self.nan = nan

    def epoch(self, epoch: int, start_step: int = 0):
        for step in range(start_step, STEPS):
            rng = np.random.default_rng([epoch, step])
            images = rng.normal(size=(6, 3, 8, 8)).astype(np.float32)
            if epoch * STEPS + step == self.signal_at:
                if self.nan:
                    images[:] = np.nan
                else:
                    os.kill(os.getpid(), self.number)
            yield images, rng.dirichlet(np.ones(CLASSES), size=6).astype(np.float32)

    def names(self, epoch: int, step: int, rank: int) -> list[str]:
        return [f"image{row}.png" for row in range(6)]


class Run:
    """What train.py builds, as if in a new process."""

    def __init__(self, folder: Path, loader: Loader | None = None, config: Config | None = None, **options) -> None:
        ms.set_seed(3)
        network = Network()
        seed_masks(network, seed=0)
        step = TrainStep(
            ClassificationObjective(network, create_loss("CE")),
            create_optimizer(network, "adamw", weight_decay=0.05),
            average=WeightAverage(network, 0.9, 0.0),
            accumulation_steps=2,
            loss_scale=LossScale(8.0, dynamic=True, window=2),
        )
        self.parameters = {parameter.name: parameter for parameter in step.get_parameters()} | mask_states(network)
        self.state = TrainingState(
            state_path(folder, "small"), self.parameters, Alone(), config or Config(model="small"), STEPS
        )
        self.records = []
        rates = learning_rates("cosine_decay", 0.05, EPOCHS, STEPS, decay_epochs=EPOCHS)
        self.trainer = Trainer(
            step,
            loader or Loader(),
            rates,
            Alone(),
            validate=self.validate,
            on_epoch_end=[self.records.append],
            state=self.state,
            **{"log_interval": 3, **options},
        )

    def validate(self) -> dict[str, float]:
        average = self.trainer.step.average
        with average.applied():
            return {"top1": float(average.online[0].asnumpy().sum())}

    def values(self) -> dict[str, np.ndarray]:
        return {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}

    def results(self) -> list[dict[str, float]]:
        return [{k: v for k, v in record.items() if k not in ("img_per_s", "data_wait")} for record in self.records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    run = Run(tmp_path_factory.mktemp("whole"))
    run.trainer.run()
    return run


def assert_same(run: Run, expected: Run) -> None:
    found, wanted = run.values(), expected.values()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("at", [0, pytest.param(3, marks=pytest.mark.exhaustive), 4, 7])
def test_resumed_training_is_bit_identical(tmp_path, whole, at, monkeypatch):
    """Between two updates, in the middle and at the end of an epoch, between two log lines."""
    monkeypatch.setattr(interruption, "_PATIENCE", 600.0)  # with a compilation on a machine that is busy
    interrupted = Run(tmp_path, Loader(signal_at=at))
    with pytest.raises(Interrupted, match=f"SIGTERM after epoch {at // STEPS + 1}, step {at % STEPS + 1} of 5") as stop:
        interrupted.trainer.run()
    assert stop.value.number == signal.SIGTERM
    resumed = Run(tmp_path)
    start = resumed.state.restore(resumed.state.path)
    assert (start.epoch, start.step, len(start.losses)) == (at // STEPS, at % STEPS + 1, at % STEPS + 1)
    assert_same(resumed, interrupted)
    resumed.trainer.run(start)
    assert_same(resumed, whole)
    assert resumed.results() == whole.results()[start.epoch :]
    assert any(np.any(whole.values()[name] != value) for name, value in interrupted.values().items())


def test_the_end_of_an_epoch_is_saved_before_its_validation(tmp_path, whole):
    """A run that dies there repeats the validation, and nothing else."""
    run = Run(tmp_path)
    run.trainer.validate = lambda: (_ for _ in ()).throw(RuntimeError("killed"))
    with pytest.raises(RuntimeError, match="killed"):
        run.trainer.run()
    resumed = Run(tmp_path)
    start = resumed.state.restore(resumed.state.path)
    assert (start.epoch, start.step) == (0, STEPS)
    resumed.trainer.run(start)
    assert_same(resumed, whole)
    assert resumed.results() == whole.results()


def test_a_full_disk_is_one_line_and_leaves_the_last_state(tmp_path, capfd):
    run = Run(tmp_path)
    run.state.save(Progress(0, 1))
    run.state.parameters["large"] = ms.Parameter(Tensor(np.zeros(100_000), ms.float32), name="large")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*small_resume.npz: File too large"):
            run.state.save(Progress(0, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["small_resume.npz"]
    assert Run(tmp_path).state.restore(run.state.path) == Progress(0, 1)


def test_states_are_saved_at_intervals(tmp_path):
    saved = []
    run = Run(tmp_path, save_interval=2)
    run.state.prepared = lambda progress: functools.partial(saved.append, progress)
    run.trainer.run()
    assert [(done.epoch, done.step) for done in saved] == [(1, STEPS)]


def test_a_state_is_what_it_was_when_it_was_prepared(tmp_path):
    """Whatever the next steps make of the parameters, in place, until it is written."""
    run = Run(tmp_path)
    before = run.values()
    write = run.state.prepared(Progress(0, 1))
    for parameter in run.parameters.values():
        ops.assign(parameter, parameter + 1)
    write()
    assert Run(tmp_path).state.restore(run.state.path) == Progress(0, 1)
    restored = Run(tmp_path)
    restored.state.restore(run.state.path)
    for name, value in before.items():
        np.testing.assert_array_equal(restored.values()[name], value, err_msg=name)


def test_training_goes_on_while_files_are_written(tmp_path):
    """Else the first job would wait in vain for the second epoch."""
    reached, waited = threading.Event(), []

    class Second(Loader):
        def epoch(self, epoch, start_step=0):
            if epoch == 1:
                reached.set()
            yield from super().epoch(epoch, start_step)

    run = Run(tmp_path, Second())
    run.trainer.writer.submit(lambda: waited.append(reached.wait(60)))
    run.trainer.run()
    assert waited == [True]
    assert Run(tmp_path).state.restore(run.state.path).epoch == EPOCHS - 1


def test_a_nan_names_the_images_and_the_last_good_state(tmp_path):
    run = Run(tmp_path, Loader(signal_at=7, nan=True))
    run.trainer.step.checks_overflow = False  # or the update would be skipped
    with pytest.raises(UserError) as error:
        run.trainer.run()
    message = str(error.value)
    assert "nan at epoch 2, step 3 of 5, rank 0, images image0.png, image1.png" in message
    assert "and 2 more" in message
    assert f"the last good state is {run.state.path}" in message
    assert Run(tmp_path).state.restore(run.state.path).epoch == 0


def test_what_is_not_finite_is_not_saved(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(UserError, match="no state is saved yet"):
        spoil(run).state.save(Progress(0, 1))
    Run(tmp_path).state.save(Progress(0, 1))
    message = r"norm.moving_mean is not finite after epoch 2, step 3 of 5; the last good state is .*small_resume.npz"
    with pytest.raises(UserError, match=message):
        run.state.save(Progress(1, 3))
    assert Run(tmp_path).state.restore(run.state.path) == Progress(0, 1)


def spoil(run: Run) -> Run:
    run.parameters["norm.moving_mean"].set_data(Tensor(np.full(8, np.nan), ms.float32))
    return run


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interruption(Alone()) as interruption:
        assert interruption.agreed(0, waited=True) is None
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.agreed(1, waited=True) is signal.SIGINT  # the first
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_ranks_that_cannot_connect_ask_where_they_wait_anyway():
    class Two(Alone):
        size = 2
        asked = 0

        def sum(self, values):
            self.asked += 1
            return np.asarray(values) + np.array([0.0, 1.0, 0.0])  # the other has heard SIGINT

    ranks = Two()
    with Interruption(ranks) as interruption:
        assert [interruption.agreed(step, waited=step == 4) for step in range(5)] == [None] * 4 + [signal.SIGINT]
    assert ranks.asked == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_exit_status_is_128_and_the_signal(number, capsys):
    def main():
        raise Interrupted("stopped", number)

    with pytest.raises(SystemExit) as left:
        run_script(main)
    assert left.value.code == 128 + number
    assert capsys.readouterr().err == "stopped\n"


def test_changed_settings_are_refused_by_name(tmp_path):
    Run(tmp_path).state.save(Progress(1, 2))
    free = Config(model="small", log_interval=7, num_parallel_workers=1, data_dir="/elsewhere", resume="auto")
    assert Run(tmp_path, config=free).state.restore(state_path(tmp_path, "small")) == Progress(1, 2)
    other = dict(model="small", lr=0.5, mixup=0.8)
    with pytest.raises(UserError, match=r"mixup 0.0 instead of 0.8; lr 0.001 instead of 0.5: .*--allow_config_change"):
        Run(tmp_path, config=Config(**other)).state.restore(state_path(tmp_path, "small"))
    allowed = Run(tmp_path, config=Config(**other, allow_config_change=True))
    assert allowed.state.restore(allowed.state.path) == Progress(1, 2)


def test_settings_that_a_file_does_not_know_had_their_default():
    current = {name: value for name, value in vars(Config()).items() if name != "given"}
    current = json.loads(json.dumps(current))
    assert changed_settings({}, current) == []
    assert changed_settings({}, current | {"opt": "lamb"}) == ["opt adam instead of lamb"]


def test_what_does_not_fit_is_refused(tmp_path):
    run = Run(tmp_path)
    run.state.save(Progress(0, 2))
    path = run.state.path
    run.state.steps_per_epoch = 9
    with pytest.raises(UserError, match="in the middle of an epoch of 5 steps, which now has 9"):
        run.state.restore(path)
    run.state.steps_per_epoch = STEPS
    name, parameter = run.state.parameters.popitem()
    with pytest.raises(UserError, match=f"unknown here: {name}"):
        run.state.restore(path)
    run.state.parameters |= {name: parameter, "new": ms.Parameter(Tensor([1.0]), name="new")}
    with pytest.raises(UserError, match="it lacks new"):
        run.state.restore(path)
    run.state.ranks = type("Three", (Alone,), {"size": 3})()
    with pytest.raises(UserError, match="run on 1 ranks, here are 3"):
        run.state.restore(path)
    content = path.read_bytes()
    for damaged in (content[:-1000], b"", content[:5000] + b"x" + content[5001:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="no whole file"):
            Run(tmp_path).state.restore(path)


def test_where_to_resume_from(tmp_path):
    assert resume_path("", tmp_path, "small", Alone()) is None
    assert resume_path("auto", tmp_path, "small", Alone()) is None
    with pytest.raises(UserError, match="nothing to resume"):
        resume_path(str(tmp_path), tmp_path, "small", Alone())
    path = tmp_path / "small_resume.npz"
    path.touch()
    assert resume_path("", tmp_path, "small", Alone()) is None
    for resume in ("auto", str(tmp_path), str(path)):
        assert resume_path(resume, tmp_path, "small", Alone()) == path
    blind = type("Blind", (Alone,), {"size": 2})()
    with pytest.raises(UserError, match="1 of 2 ranks see"):
        resume_path("auto", tmp_path, "small", blind)


def test_what_differs_between_ranks_is_saved_for_each(tmp_path):
    """Rank 1's view of a state that rank 0 has written."""

    class Second(Alone):
        rank, size = 1, 2
        others: list[np.ndarray] = []

        def gather(self, words):
            return np.stack([self.others.pop(0) if self.others and len(words) > 1 else words, words])

    parameters = {name: ms.Parameter(Tensor(np.arange(4.0) + 1, ms.float32), name=name) for name in ("own", "shared")}
    state = TrainingState(tmp_path / "small_resume.npz", parameters, Second(), Config(model="small"), STEPS)
    first = np.array([9.0, 8.0, 7.0, 6.0], np.float32)
    values = first, parameters["shared"].asnumpy()
    state.ranks.others = [np.frombuffer(b"".join(map(digest, values)), np.int32), first.view(np.int32)]
    state.save(Progress())
    with np.load(state.path) as entries:
        assert set(entries.files) == {"run", "each/own", "all/shared"}
        np.testing.assert_array_equal(entries["each/own"], [first, [1, 2, 3, 4]])
    for rank, expected in ((1, [1, 2, 3, 4]), (0, first)):
        state.ranks = type("Ranks", (Second,), {"rank": rank})()
        parameters["own"].set_data(Tensor(np.zeros(4, np.float32)))
        state.restore(state.path)
        np.testing.assert_array_equal(parameters["own"].asnumpy(), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("known_tiny")
def test_two_ranks_killed_and_resumed(tmp_path, capfd):
    """A signal to one of two ranks through the fault injection, which compares with the uninterrupted run."""
    assert fault_injection.interrupt(tmp_path, 0, 2, fault_injection.FAULTS[0]), capfd.readouterr()
    assert re.search(r"^\| 2 \| SIGTERM to a rank \| \d+ \| 143 \| .* \| True \| True \|$", capfd.readouterr().out)


@pytest.mark.slow
def test_a_nan_on_two_ranks_is_one_line_and_status_2(tmp_path):
    """NaN images, which ReLU hides from the loss."""
    fault_injection.make_images(tmp_path / "images", damaged=False)
    job = fault_injection.Job(tmp_path / "run", tmp_path / "images" / "2", ranks=2)
    process = job.start(FAULT_NAN="images 3")
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert errors.count("error: ") == 1
    assert fault_injection.names_batch(errors, spoiled=3)
    assert "rank 1: " not in errors
    assert "Traceback" not in errors


def read_until(process: subprocess.Popen, text: str) -> None:
    """Read the job's log as far as a line with the text."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"the job ended before {text!r}:\n{''.join(lines)}")


@pytest.mark.slow
def test_sigterm_while_the_step_compiles_ends_at_once_and_says_so(tmp_path):
    fault_injection.make_images(tmp_path / "images", damaged=False)
    job = fault_injection.Job(tmp_path / "run", tmp_path / "images" / "1", ranks=1)
    process = job.start()
    read_until(process, "compiling the training step")
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == (
        "stopped by SIGTERM during the compilation of the training step: "
        "nothing was trained since the last saved state\n"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("known_tiny")
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_impatient_signals_neither_cut_the_saving_short_nor_show_a_traceback(tmp_path, ranks):
    fault_injection.make_images(tmp_path / "images", damaged=False)
    job = fault_injection.Job(tmp_path / "run", tmp_path / "images" / str(ranks), ranks)
    process = job.start()
    read_until(process, "step 2/6 loss")
    target = job.rank_processes()[0]
    while process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, number)
        time.sleep(0.05)
    errors = process.communicate(timeout=60)[1]
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)
    assert fault_injection.load_all(job.folder)[0] == fault_injection.load_all(job.folder)[1] == 1
