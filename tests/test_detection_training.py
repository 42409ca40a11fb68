"""A detector's training against the reference's: losses and gradients of the decoder."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from goldens import images
from mindspore import ParameterTuple, Tensor, nn, ops
from recipe_rtdetr import Fixture, denoising_noise
from test_detection_losses import close, noise_of, padded
from test_rtdetr import feature_maps, fill, r18_decoder

from mindcv_reparam import create_model
from mindcv_reparam.config import Config
from mindcv_reparam.convert import table_for
from mindcv_reparam.distributed import Distributed
from mindcv_reparam.tasks.detection.denoising import Noise, denoise
from mindcv_reparam.tasks.detection.objective import DetectionObjective
from mindcv_reparam.tasks.detection.task import Detection
from mindcv_reparam.training.assembly import build_step, build_trainer

# The steps of test_detection_resume.py are compiled, the criterion in test_detection_losses.py.
pytestmark = pytest.mark.usefixtures("pynative")
QUERIES, CLASSES = 300, 80


class Decoder(nn.Cell):
    """A detector whose images are maps already."""

    def __init__(self, decoder: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.decoder = decoder

    def forward_training(self, maps, labels, references, blocked):
        return self.decoder.forward_training(maps, labels, references, blocked)


class Total(nn.Cell):
    def __init__(self, objective: DetectionObjective, targets) -> None:
        super().__init__(auto_prefix=False)
        self.objective, self.targets = objective, targets

    def construct(self, fine, middle, coarse):
        parts = self.objective((fine, middle, coarse), self.targets)
        return ops.addn(parts), parts


def official(name: str) -> str:
    """The reference's name of a parameter."""
    module, _, leaf = name.rpartition(".")
    leaves = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    return f"{module}.{leaves.get(leaf, leaf)}"


def targets_of(golden: dict[str, np.ndarray], noise: Noise, images: int) -> tuple[np.ndarray, ...]:
    """A batch's arrays, as the data set makes them."""
    objects = padded(golden, images)
    return *objects, *denoise(*objects, noise, num_classes=CLASSES, num_queries=QUERIES).arrays()


@pytest.fixture(scope="module")
def decoder() -> nn.Cell:
    return fill(r18_decoder(), Fixture("decoder_train").state, "decoder.").set_train(True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoder_train", "decoder_train_empty"])
def test_losses_and_gradients_are_the_reference_s(decoder, name):
    golden = Fixture(name).results
    objects = Fixture("decoder_train").results if name == "decoder_train" else {}
    noise = noise_of(objects) if objects else Noise.draw(np.random.default_rng(0), 3, 200, CLASSES)
    objective = DetectionObjective(Decoder(decoder), layers=3)
    weights = ParameterTuple(decoder.trainable_params())
    total = Total(objective, tuple(map(Tensor, targets_of(objects, noise, 3))))
    run = ms.value_and_grad(total, (0, 1, 2), weights, has_aux=True)
    (_, parts), (by_map, by_weight) = run(*feature_maps("decoder", "train", (128, 160), (256, 256, 256), batch=3))

    losses = dict(zip(objective.parts, (float(part.asnumpy()) for part in parts)))
    wanted = dict(zip(golden["loss_names"].tolist(), golden["losses"].tolist()))
    assert losses == pytest.approx({part: wanted.get(part, 0.0) for part in losses}, rel=1e-5)
    assert wanted.keys() <= losses.keys()
    norms = {
        f"decoder.{official(weight.name)}": float(ops.norm(gradient).asnumpy())
        for weight, gradient in zip(weights, by_weight)
    }
    wanted = dict(zip(golden["grad_norm_names"].tolist(), golden["grad_norms"].tolist()))
    assert norms == pytest.approx({part: wanted.get(part, 0.0) for part in norms}, rel=1e-4)
    assert wanted.keys() <= norms.keys()
    if objects:
        found = [float(ops.norm(gradient).asnumpy()) for gradient in by_map]
        assert found == pytest.approx(golden["input_grad_norms"].tolist(), rel=1e-4)


# --- steps of RIFormer-S12 under RT-DETR, by the trainer ---

# In front of a BatchNorm with batch statistics, whose gradient is nothing but rounding.
VANISHING = (
    *("encoder.input_proj.0.1.bias", "encoder.input_proj.1.1.bias", "encoder.encoder.0.layers.0.norm2.bias"),
    *("backbone.norm2.bias", "backbone.norm4.bias", "backbone.norm6.bias"),
)
RECIPE = dict(
    **dict(model="rtdetr_riformer_s12", opt="adamw", lr=1e-4, scheduler="constant", warmup_epochs=0, epoch_size=1),
    **dict(weight_decay=1e-4, weight_decay_filter="by_name", backbone_lr_factor=0.1, clip_grad=True, clip_value=0.1),
    **dict(ema=True, ema_decay=0.9999, ema_warmup=2000.0, log_interval=1),
)


class Loader:
    """The fixture's batch up to three times, with the noise of each step."""

    skipped, bad_files = 0, {}

    def __init__(self, golden: dict[str, np.ndarray], salt: int, steps: int) -> None:
        self.golden, self.salt, self.steps_per_epoch = golden, salt, steps

    def epoch(self, epoch: int, start_step: int = 0):
        for step in range(start_step, self.steps_per_epoch):
            drawn = denoising_noise(f"riformer {step}", 2, 200, CLASSES, self.salt)
            noise = Noise(*(drawn[key] for key in ("flip_uniform", "new_label", "box_sign", "box_uniform")))
            yield images((160, 160), 2, self.salt), *targets_of(self.golden, noise, 2)


def train(steps: int) -> SimpleNamespace:
    """A record per step, the optimizer's moments after the first one, weights and averages after the last."""
    fixture = Fixture("riformer_s12_train")
    network = create_model(RECIPE["model"], drop_path_rate=0.0)
    table = table_for(RECIPE["model"], "rt-detr", "train")
    names = {name: table.to_theirs(name) for name, _ in network.parameters_and_names()}
    assert set(names.values()) == {name for name in fixture.state if not name.endswith("num_batches_tracked")}
    for name, parameter in network.parameters_and_names():
        parameter.set_data(Tensor(fixture.state[names[name]].reshape(parameter.shape)))
    config, ranks = Config(**RECIPE), Distributed()
    data = SimpleNamespace(classes=(), train=Loader(fixture.results, fixture.salt, steps), val=None)
    step = build_step(config, Detection(), network, "CPU", ranks, data)
    trainer = build_trainer(config, Detection(), step, ranks, data, None, None)
    records, moments = [], []

    def keep(record: dict[str, float]) -> None:
        records.append(record)
        if not moments:
            moments.extend(moment.asnumpy().copy() for moment in step.optimizer.moment1)

    trainer.on_interval = [keep]
    trainer.run()
    return SimpleNamespace(fixture=fixture, step=step, names=names, records=records, moments=moments)


@pytest.fixture(scope="module")
def trained(pynative) -> SimpleNamespace:
    return train(1)


@pytest.mark.slow
def test_what_decays_and_how_fast_it_learns_are_the_reference_s(trained):
    optimizer = trained.step.optimizer
    groups: dict[tuple[float, float], list[str]] = {}
    for parameter, decay, factor in zip(optimizer.parameters, optimizer.weight_decays, optimizer.lr_factors):
        groups.setdefault((round(1e-4 * factor, 9), decay), []).append(trained.names[parameter.name])
    for group in trained.fixture.spec["config"]["groups"]:
        found = groups.pop((group["lr"], group["weight_decay"]))
        assert len(found) == group["parameters"]
        assert {*group["first"], *group["one_dimensional"]} <= set(found)
    assert not groups


@pytest.mark.slow
def test_the_first_step_is_the_reference_s(trained):
    golden, first = trained.fixture.results, trained.records[0]
    for part, value in zip(golden["loss_names"].tolist(), golden["losses"].tolist()):
        assert first[part] == pytest.approx(value, rel=1e-5), part
    # The moment is a tenth of the gradient, which was clipped to a norm of a tenth.
    norms = np.array([np.linalg.norm(moment.astype(np.float64)) for moment in trained.moments])
    clipped = float(np.sqrt(np.square(norms).sum()))
    assert clipped == pytest.approx(0.01, rel=1e-3)
    wanted = dict(zip(golden["grad_norm_names"].tolist(), golden["grad_norms"].tolist()))
    scale = float(np.sqrt(np.square(golden["grad_norms"]).sum())) / clipped
    found = {trained.names[p.name]: scale * norm for p, norm in zip(trained.step.optimizer.parameters, norms)}
    assert found.keys() == wanted.keys()
    for name, norm in wanted.items():
        bound = {"abs": 1e-5} if name.endswith(VANISHING) else {"rel": 1e-3, "abs": 0.0}
        assert found[name] == pytest.approx(norm, **bound), name


@pytest.mark.slow
@pytest.mark.exhaustive  # a minute and a half for two steps more
def test_three_steps_and_the_averages_are_the_reference_s():
    trained = train(3)
    golden = trained.fixture.results
    losses = [record["loss"] for record in trained.records]
    assert losses == pytest.approx(golden["total_losses"].tolist(), rel=1e-3)
    average = trained.step.average
    moved = {
        trained.names[online.name]: np.linalg.norm(online.asnumpy() - shadow.asnumpy().astype(np.float64))
        for online, shadow in zip(average.online, average.shadow)
    }
    for name, distance in zip(golden["ema_distance_names"].tolist(), golden["ema_distances"].tolist()):
        assert moved[name] == pytest.approx(distance, rel=3e-2, abs=1e-6), name
    logits, boxes = trained.step.network.set_train(False)(Tensor(images((160, 160), 2, trained.fixture.salt)))
    close(np.sort(boxes.asnumpy(), 1)[:, ::6], golden["eval_boxes_sorted"], 1e-3)
    close(np.sort(logits.asnumpy().reshape(2, -1), 1)[:, ::200], golden["eval_logits_sorted"], 1e-3)
