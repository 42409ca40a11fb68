"""The loop: order of steps and rates, records, log lines, failures."""

import logging

import mindspore as ms
import numpy as np
import pytest
from alone import Alone
from mindspore import Parameter, Tensor, nn, ops

from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.tasks.classification.losses import create_loss
from mindcv_reparam.tasks.classification.objective import ClassificationObjective
from mindcv_reparam.tasks.objective import Objective
from mindcv_reparam.training.ema import WeightAverage
from mindcv_reparam.training.loss_scale import LossScale
from mindcv_reparam.training.optimizer import create_optimizer
from mindcv_reparam.training.resume import Progress
from mindcv_reparam.training.schedule import learning_rates
from mindcv_reparam.training.step import TrainStep
from mindcv_reparam.training.trainer import SKIPPED_IN_A_ROW, Trainer

STEPS = 5


class Linear(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.random.default_rng(0).normal(size=(3, 4)), ms.float32), name="weight")

    def construct(self, x):
        return ops.matmul(x, self.weight)


class Rectified(Linear):
    """Turns NaN into 0 on a CPU, so that the loss stays finite."""

    def construct(self, x):
        return ops.relu(ops.matmul(x, self.weight))


class Loader:
    """The batch of (epoch, step) depends on these alone; `broken` names the ones with a NaN."""

    steps_per_epoch = STEPS
    skipped = 0
    bad_files: dict[int, str] = {}

    def __init__(self, broken: frozenset[tuple[int, int]] = frozenset()) -> None:
        self.broken = broken
        self.served: list[tuple[int, int]] = []

    def epoch(self, epoch: int, start_step: int = 0):
        for step in range(start_step, STEPS):
            self.served.append((epoch, step))
            rng = np.random.default_rng([epoch, step])
            images = rng.normal(size=(6, 3)).astype(np.float32)
            if (epoch, step) in self.broken:
                images[:] = np.nan
            yield images, rng.dirichlet(np.ones(4), size=6).astype(np.float32)

    def names(self, epoch: int, step: int, rank: int) -> list[str]:
        return [f"{epoch}/{step}/{rank}/{row}.png" for row in range(6)]


class Twin(Alone):
    """Rank 1 of two that do the same."""

    rank, size, is_main = 1, 2, False

    def sum(self, values):
        return 2.0 * np.asarray(values, np.float64)


def build(
    epochs: int = 2,
    ranks=None,
    broken=frozenset(),
    options=None,
    network_type=Linear,
    objective_type=None,
    average=False,
    **trainer_options,
) -> Trainer:
    ms.set_seed(3)
    network = network_type()
    optimizer = create_optimizer(network, "adamw", weight_decay=0.05)
    options = (options or {}) | ({"average": WeightAverage(network, 0.9, 0.0)} if average else {})
    objective = objective_type(network) if objective_type else ClassificationObjective(network, create_loss("CE"))
    step = TrainStep(objective, optimizer, **options)
    rates = learning_rates("cosine_decay", 0.1, epochs, STEPS, decay_epochs=epochs)
    metrics = TASKS["classification"].metrics
    return Trainer(step, Loader(broken), rates, ranks or Alone(), metrics=metrics, **trainer_options)


def test_ranks_meet_before_the_first_step_of_an_epoch_and_after_compiling(monkeypatch):
    """Else they would wait for one another in a collective, which MindSpore 2.9 and older give up after 30 s."""
    events = []

    class Watched(Alone):
        def barrier(self):
            events.append("meet")

    trainer = build(epochs=2, ranks=Watched())
    for name in ("compile", "compile_and_run"):
        done = getattr(TrainStep, name)
        monkeypatch.setattr(TrainStep, name, lambda *args, done=done, name=name: (events.append(name), done(*args))[1])
    trainer.run()
    runs = ["compile_and_run", "compile"]  # which looks the graph up
    assert events == ["meet", "compile", "meet", *(runs * STEPS), "meet", *(runs * STEPS)]


def test_records_validation_and_hooks():
    records, validated = [], []

    def validate():
        validated.append(len(records))
        trainer.step.network.set_train(False)
        return {"top1": 50.0 + len(records)}

    trainer = build(epochs=3, validate=validate, val_interval=2, on_epoch_end=[lambda record: records.append(record)])
    last = trainer.run()
    assert trainer.loader.served == [(epoch, step) for epoch in range(3) for step in range(STEPS)]
    assert trainer.ranks.checked == ["weight"]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 5), (2, 10), (3, 15)]
    assert [record.get("top1") for record in records] == [None, 51.0, 52.0]  # every second, and the last
    assert last == records[-1]
    assert [record["lr"] for record in records] == [trainer.rates[i] for i in (4, 9, 14)]
    assert all(record["img_per_s"] > 0 and 0 <= record["data_wait"] <= 1 for record in records)
    assert trainer.step.network.training


def test_one_line_per_interval(caplog):
    with caplog.at_level(logging.INFO, logger="mindcv_reparam"):
        build(epochs=2, log_interval=2).run()
    lines = [record.getMessage() for record in caplog.records]
    starts = [line.split(" loss ")[0] for line in lines if " loss " in line and " eta " in line]
    assert starts == [f"epoch {epoch}/2 step {step}/5" for epoch in (1, 2) for step in (2, 4, 5)]
    assert all(word in lines[2] for word in ("lr ", "img/s", "data wait", "eta 0:0"))
    assert sum("done: train loss" in line for line in lines) == 2
    assert sum("first step" in line for line in lines) == 1


def test_an_interval_that_only_compiles_has_no_rate(caplog):
    records = []
    with caplog.at_level(logging.INFO, logger="mindcv_reparam"):
        build(epochs=1, log_interval=1, on_interval=[records.append]).run()
    lines = [record.getMessage() for record in caplog.records if " loss " in record.getMessage()]
    assert ["img/s" in line for line in lines[:STEPS]] == [False, True, True, True, True]
    assert lines[0].startswith("epoch 1/1 step 1/5 loss ")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    assert [sorted(record) for record in records] == [["loss", "lr", "step"]] + [
        ["data_wait", "img_per_s", "loss", "lr", "step"]
    ] * 4
    assert all(record["img_per_s"] > 0 for record in records[1:])


def test_a_bad_image_is_named_by_one_rank_only(caplog):
    class First(Twin):
        """Makes this rank 1 of two, the other of which has met the images 5 and 8."""

        others = [5, 8]

        def sum(self, values):
            return values + np.array([np.add(self.others, 1), [0, 0]])

    trainer = build(epochs=1, ranks=First())
    trainer.loader.bad_files = {3: "3.png is cut", 5: "5.png is cut", 8: "8.png is cut"}
    with caplog.at_level(logging.WARNING, logger="mindcv_reparam"):
        trainer._name_bad_files([3, 5], 2)
        trainer._name_bad_files([8], 2)
    assert [record.getMessage() for record in caplog.records] == ["3.png is cut; replaced"]


def test_other_ranks_are_silent(caplog):
    called = []
    with caplog.at_level(logging.INFO, logger="mindcv_reparam"):
        record = build(epochs=1, ranks=Twin(), on_epoch_end=[called.append]).run()
    assert not called
    assert not caplog.records
    assert record["train_loss"] > 0.0


def test_train_loss_is_the_mean_over_steps_and_ranks():
    alone, twin = build(epochs=1, log_interval=2).run(), build(epochs=1, ranks=Twin()).run()
    assert alone["train_loss"] == pytest.approx(twin["train_loss"], rel=1e-12)


def test_two_runs_are_identical():
    runs = []
    for _ in range(2):
        trainer = build()
        runs.append((trainer.run()["train_loss"], trainer.step.network.weight.asnumpy()))
    assert runs[0][0] == runs[1][0]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    assert np.any(runs[0][1] != Linear().weight.asnumpy())


def test_starting_in_the_middle():
    trainer = build(epochs=3)
    trainer.run(Progress(epoch=1, step=3))
    assert trainer.loader.served == [(1, 3), (1, 4)] + [(2, step) for step in range(STEPS)]


def test_accumulation_updates_every_second_batch_across_epochs():
    trainer = build(options={"accumulation_steps": 2})
    trainer.run()
    assert trainer.step.optimizer.updates.asnumpy() == 5


def test_unreadable_images_are_told_per_epoch(caplog):
    trainer = build(epochs=2)
    served = trainer.loader.epoch

    def epoch(epoch: int, start_step: int = 0):
        trainer.loader.skipped += 3 if epoch == 1 else 0
        yield from served(epoch, start_step)

    trainer.loader.epoch = epoch
    with caplog.at_level(logging.INFO, logger="mindcv_reparam"):
        assert trainer.run()["unreadable_images"] == 3
    ends = [record.getMessage() for record in caplog.records if "done" in record.getMessage()]
    assert ["3 unreadable images replaced" in line for line in ends] == [False, True]


def test_a_nan_loss_stops_with_its_step():
    trainer = build(broken=frozenset({(1, 2)}), log_interval=100)
    with pytest.raises(UserError, match="nan at epoch 2, step 3 of 5"):
        trainer.run()


class Terms(Objective):
    """A loss of three terms, two of which see the images."""

    parts = ("first", "second", "third")

    def construct(self, inputs, targets):
        outputs = self.network(inputs)
        return ops.ones((), ms.float32), ops.square(outputs).mean(), 2.0 * ops.square(outputs - targets).mean()


def test_terms_of_the_loss_are_told_by_name(caplog):
    intervals = []
    with caplog.at_level(logging.INFO, logger="mindcv_reparam"):
        trainer = build(epochs=1, objective_type=Terms, log_interval=2, on_interval=[intervals.append])
        record = trainer.run()
    assert record["train_first"] == 1.0
    assert sum(record[f"train_{part}"] for part in Terms.parts) == pytest.approx(record["train_loss"], rel=1e-6)
    lines = [line.getMessage() for line in caplog.records if "second" in line.getMessage()]
    assert len(lines) == len(intervals) == 3
    for line, interval in zip(lines, intervals):
        assert line.split() == ["first", "1.0000,", "second", f"{interval['second']:.4f},", "third", line.split()[-1]]


def test_a_nan_stops_with_the_first_term_that_has_one():
    with pytest.raises(UserError, match=r"the loss is nan \(second and 1 more\) at epoch 1, step 3 of 5, rank 0"):
        build(broken=frozenset({(0, 2)}), objective_type=Terms, log_interval=100).run()


def test_a_nan_that_the_loss_hides_stops_with_its_update(caplog):
    options = {"accumulation_steps": 2}
    trainer = build(broken=frozenset({(0, 2)}), options=options, network_type=Rectified, ranks=Twin())
    with pytest.raises(
        UserError, match=r"gradients are not finite at epoch 1, step 4 of 5, images 0/2/0/0.png, .* 20 more"
    ):
        trainer.run()


def test_clipping_is_no_licence_to_go_on_with_nan():
    trainer = build(broken=frozenset({(0, 2)}), options={"clip_norm": 1.0}, network_type=Rectified)
    with pytest.raises(UserError, match="gradients are not finite at epoch 1, step 3 of 5"):
        trainer.run()


def test_a_skipped_overflow_goes_on_and_is_recorded():
    record = build(broken=frozenset({(1, 2)}), options={"loss_scale": LossScale(8.0, dynamic=True)}).run()
    assert record["skipped_updates"] == 1
    assert np.isfinite(record["train_loss"])


def test_skipped_updates_are_told_per_epoch_as_unreadable_images_are(caplog):
    records = []
    broken = frozenset({(0, 1), (0, 3), (2, 2)})
    trainer = build(epochs=3, broken=broken, options={"loss_scale": LossScale(8.0, dynamic=True)})
    trainer.on_epoch_end = [records.append]
    with caplog.at_level(logging.INFO, logger="mindcv_reparam"):
        trainer.run()
    assert [record["skipped_updates"] for record in records] == [2, 0, 1]
    ends = [record.getMessage() for record in caplog.records if "done" in record.getMessage()]
    assert [line.partition(" updates skipped")[0][-3:] for line in ends if "skipped" in line] == [", 2", ", 1"]


def test_endless_overflow_stops():
    epochs = SKIPPED_IN_A_ROW // STEPS + 1
    broken = frozenset((epoch, step) for epoch in range(1, epochs) for step in range(STEPS))
    trainer = build(epochs=epochs, broken=broken, options={"drop_overflow_update": True})
    with pytest.raises(UserError, match=f"{SKIPPED_IN_A_ROW} updates in a row"):
        trainer.run()


def test_overflows_with_updates_in_between_go_on():
    trainer = build(options={"drop_overflow_update": True})
    for index in range(3 * SKIPPED_IN_A_ROW):
        epoch, step = divmod(index, STEPS)
        trainer._check(np.array([[1.0]]), index % 3 == 0, epoch, step)
    assert trainer._skipped_in_a_row == 2


def test_rates_are_those_of_all_ranks():
    class First(Twin):
        rank, is_main = 0, True

    records = []
    trainer = build(epochs=1, ranks=First(), on_interval=[records.append])
    trainer._report(4, np.array([[1.0]]), np.array([60.0, 2.0, 0.5]), timed=5)
    assert records[0]["img_per_s"] == 60.0  # 60 images of each of two ranks in two seconds
    assert records[0]["data_wait"] == 0.25
    so_far = Progress(0, STEPS - 1, losses=(1.0,) * (STEPS - 1), measured=(1e6, 1000.0, 100.0))
    assert trainer.run(so_far)["img_per_s"] == pytest.approx(2000.0, rel=1e-2)


def test_statistics_of_the_averaged_weights_are_averaged_over_ranks():
    class Normalised(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, momentum=0.9, eps=1e-5)

        def construct(self, x):
            return super().construct(self.norm(x))

    class First(Twin):
        """The other rank's statistics are zeros."""

        def sum(self, values):
            return np.asarray(values, np.float64)

    trainer = build(epochs=1, network_type=Normalised, average=True, ranks=First())
    before = {}
    epoch = trainer._train_epoch

    def remember(*arguments):
        done = epoch(*arguments)
        before.update({p.name: p.asnumpy().copy() for p in trainer.step.get_parameters() if ".moving_" in p.name})
        return done

    trainer._train_epoch = remember
    trainer.run()
    after = {p.name: p.asnumpy() for p in trainer.step.get_parameters() if ".moving_" in p.name}
    assert len(after) == 4
    for name, value in before.items():
        assert np.any(value != 0)
        np.testing.assert_allclose(after[name], value / 2, rtol=1e-6, err_msg=name)
