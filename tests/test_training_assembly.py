"""Every setting of a training arrives where it acts: one row per setting, a value that is not the default, a place.

A setting without a row fails the last test, so that none can be added without saying where it goes.
"""

import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from mindspore import nn
from networks import SMALL, small_network
from PIL import Image

from mindcv_reparam import stochastic, zoo
from mindcv_reparam.config import SETTINGS, Config
from mindcv_reparam.distributed import Distributed
from mindcv_reparam.errors import UserError
from mindcv_reparam.features import feature_network
from mindcv_reparam.stochastic import Stochastic
from mindcv_reparam.tasks import TASKS
from mindcv_reparam.training import assembly
from mindcv_reparam.training.data import open_data
from mindcv_reparam.training.resume import Progress
from mindcv_reparam.training.schedule import learning_rates
from mindcv_reparam.training.writer import Writer

TASK = TASKS["classification"]
BASE = dict(
    **dict(model="visformer_tiny_v2", dataset="digits", device_target="CPU", image_resize=32, batch_size=8),
    **dict(num_parallel_workers=1, epoch_size=2, warmup_epochs=0, drop_path_rate=0.1, lr=0.01),
)


class Built:
    """What a configuration becomes, as far as a test asks for it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
        values = {**BASE, "ckpt_save_dir": str(folder / "run"), **settings}
        self.config = Config(**values, given=frozenset(values))
        self.ranks = Distributed()
        self.created: dict[str, object] = {}

        def create_small(model: str, **options: object) -> nn.Cell:
            self.created = {"model": model, **options}
            small = SMALL[model.split("_")[0]][1]
            return zoo.create_model(model, **small, **options)

        monkeypatch.setattr(assembly, "create_model", create_small)

    @cached_property
    def data(self):
        with open_data(self.config, TASK, self.ranks) as data:
            self.config = self.config.with_defaults(num_classes=data.num_classes)
            return data

    @property
    def batches(self):
        return self.data.train.batches

    @property
    def sampler(self):
        return self.batches.sampler

    @property
    def transform(self):
        return self.batches.transform

    @cached_property
    def network(self) -> nn.Cell:
        assert self.data
        return assembly.build_network(self.config, "CPU", self.ranks)

    @cached_property
    def step(self):
        return assembly.build_step(self.config, TASK, self.network, "CPU", self.ranks, self.data)

    @property
    def optimizer(self):
        return self.step.optimizer

    @property
    def loss(self):
        return self.step.objective.loss

    @cached_property
    def records(self):
        return assembly.Records(
            *(self.config, TASK, self.step, self.data, assembly.hyper_parameters(self.config), Progress(), None),
            Writer(),
        )

    @cached_property
    def trainer(self):
        return assembly.build_trainer(self.config, TASK, self.step, self.ranks, self.data, None, self.records)

    @property
    def rates(self) -> np.ndarray:
        assert self.data
        return assembly.build_rates(self.config, 10, self.ranks)

    def schedule(self, name: str = "cosine_decay", lr: float = 0.01, **options: object) -> np.ndarray:
        """What build_rates gives with BASE, but for the options."""
        defaults = dict(min_lr=1e-6, warmup_epochs=0, warmup_factor=0.0, decay_epochs=100, decay_rate=0.9)
        return learning_rates(name, lr, 2, 10, **{**defaults, "milestones": (30, 60, 90), **options})


def drop_rates(network: nn.Cell) -> set[float]:
    return {cell.rate for _, cell in network.cells_and_names() if isinstance(cell, stochastic.Dropout)}


def path_rates(network: nn.Cell) -> float:
    return max(cell.rate for _, cell in network.cells_and_names() if isinstance(cell, Stochastic))


# setting → (a value, other settings that it needs, where it acts, what is there then)
ROWS = {
    "seed": (7, {}, lambda b: b.sampler.seed, 7),
    "log_interval": (13, {}, lambda b: b.trainer.log_interval, 13),
    "shuffle": (False, {}, lambda b: b.sampler.shuffle, False),
    "num_samples": (64, {}, lambda b: b.sampler.num_samples, 64),
    "batch_size": (16, {}, lambda b: b.sampler.shard.batch_size, 16),
    "drop_remainder": (False, {}, lambda b: b.sampler.drop_remainder, False),
    "allow_bad_images": (True, {"val_while_train": True}, lambda b: b.data.val._allow_unreadable, True),
    "eval_shuffle": (True, {"val_while_train": True}, lambda b: b.data.val.batches.sampler.shuffle, True),
    "image_resize": (
        (48, 64),
        {},
        lambda b: (b.transform.crop.size, b.network and b.created["img_size"]),
        2 * ((48, 64),),
    ),
    "scale": ((0.3, 0.9), {}, lambda b: b.transform.crop.scale, (0.3, 0.9)),
    "ratio": ((0.5, 1.5), {}, lambda b: b.transform.crop.ratio, (0.5, 1.5)),
    "hflip": (0.25, {}, lambda b: b.transform.hflip, 0.25),
    "vflip": (0.75, {}, lambda b: b.transform.vflip, 0.75),
    "color_jitter": (0.125, {}, lambda b: b.transform.jitter.strength, 0.125),
    "interpolation": ("bicubic", {}, lambda b: b.transform.crop.resampling, Image.Resampling.BICUBIC),
    "auto_augment": ("rand-m5", {}, lambda b: b.transform.policy is not None, True),
    "re_prob": (0.5, {}, lambda b: b.transform.erasing.probability, 0.5),
    "re_scale": ((0.1, 0.2), {"re_prob": 1.0}, lambda b: b.transform.erasing.scale, (0.1, 0.2)),
    "re_ratio": ((0.4, 0.5), {"re_prob": 1.0}, lambda b: b.transform.erasing.ratio, (0.4, 0.5)),
    "re_value": (0.5, {"re_prob": 1.0}, lambda b: b.transform.erasing.value, 0.5),
    "re_mode": ("pixel", {"re_prob": 1.0}, lambda b: b.transform.erasing.mode, "pixel"),
    "re_max_attempts": (3, {"re_prob": 1.0}, lambda b: b.transform.erasing.attempts, 3),
    "mean": ((1.0, 2.0, 3.0), {}, lambda b: b.transform.normalize.mean, (1.0, 2.0, 3.0)),
    "normalize_on_device": (
        True,
        {"val_while_train": True, "mean": (0.0, 0.0, 0.0), "std": (2.0, 2.0, 2.0), "re_prob": 0.1, "cutmix": 1.0},
        lambda b: (
            *(b.batches.image_type, b.data.val.batches.image_type, b.batches.in_graph),
            *(b.step.normalize.table[-1].item(), b.step.objective.augmentation.mixing.blends),
        ),
        (np.uint8, np.uint8, True, 127.5, False),
    ),
    "std": ((4.0, 5.0, 6.0), {}, lambda b: b.transform.normalize.std, (4.0, 5.0, 6.0)),
    "crop_pct": (0.75, {"val_while_train": True}, lambda b: b.data.val.batches.views.transform.crop_pct, 0.75),
    "mixup": (0.4, {}, lambda b: b.batches.mix.mixup_alpha, 0.4),
    "cutmix": (0.6, {}, lambda b: b.batches.mix.cutmix_alpha, 0.6),
    "cutmix_prob": (0.2, {}, lambda b: b.batches.mix.probability, 0.2),
    "switch_prob": (0.3, {}, lambda b: b.batches.mix.switch_probability, 0.3),
    "aug_repeats": (3, {}, lambda b: b.sampler.repeats, 3),
    "class_weights": (
        "balanced",
        {},
        lambda b: b.batches.class_weights is not None and b.batches.class_weights.argmin(),
        3,  # the digit of which there are most
    ),
    "balanced_sampling": (True, {}, lambda b: b.sampler.balance is not None and len(b.sampler.balance.labels), 1437),
    "label_smoothing": (0.2, {}, lambda b: b.batches.smoothing, 0.2),
    "model": ("riformer_s12", {}, lambda b: b.network and b.created["model"], "riformer_s12"),
    "num_classes": (12, {}, lambda b: (b.network and b.created["num_classes"], b.batches.num_classes), (12, 12)),
    "drop_rate": (0.3, {"model": "fastvit_t8"}, lambda b: 0.3 in drop_rates(b.network), True),
    "drop_path_rate": (0.4, {}, lambda b: path_rates(b.network), pytest.approx(0.4)),
    "gelu": ("exact", {}, lambda b: b.network and b.created["gelu"], "exact"),
    "ckpt_save_dir": (
        "elsewhere",
        {},
        lambda b: (b.records.keeper.directory, b.records.metrics.path.parent),
        2 * (Path("elsewhere"),),
    ),
    "ckpt_save_interval": (3, {}, lambda b: (b.records.keeper.interval, b.trainer.save_interval), (3, 3)),
    "ckpt_save_policy": (None, {}, lambda b: b.records.keeper.policy, None),
    "keep_checkpoint_max": (4, {}, lambda b: b.records.keeper.keep, 4),
    "ckpt_select": ("online", {"ema": True}, lambda b: b.records.keeper.selected, "online"),
    "epoch_size": (3, {}, lambda b: (len(b.rates), b.data.train._last_epoch), (30, 2)),
    "tensorboard": (True, {}, lambda b: len(b.records.interval_hooks), 1),
    "val_while_train": (True, {}, lambda b: b.trainer.validate is not None, True),
    "profile": (
        "2:5",
        {},
        lambda b: (
            b.trainer.profile and (b.trainer.profile.first, b.trainer.profile.last, b.trainer.profile.folder.name)
        ),
        (2, 5, "profile"),
    ),
    "val_interval": (2, {"val_while_train": True}, lambda b: b.trainer.val_interval, 2),
    "gradient_accumulation_steps": (4, {}, lambda b: b.step.accumulation_steps, 4),
    "clip_grad": (True, {}, lambda b: b.step.clip_norm, 15.0),
    "clip_value": (2.5, {"clip_grad": True}, lambda b: b.step.clip_norm, 2.5),
    "ema": (True, {}, lambda b: b.step.average is not None, True),
    "ema_decay": (0.5, {"ema": True}, lambda b: b.step.average.decay, 0.5),
    "ema_warmup": (11.0, {"ema": True}, lambda b: b.step.average.warmup, 11.0),
    "opt": ("lamb", {}, lambda b: type(b.optimizer).__name__, "Lamb"),
    "momentum": (0.5, {"opt": "sgd"}, lambda b: float(b.optimizer.momentum.asnumpy()), 0.5),
    "use_nesterov": (True, {"opt": "sgd"}, lambda b: b.optimizer.nesterov, True),
    "weight_decay": (0.25, {}, lambda b: set(b.optimizer.weight_decays), {0.25}),
    "backbone_lr_factor": (
        0.1,
        {},
        lambda b: b.network.update_parameters_name("backbone.") or set(b.optimizer.lr_factors),
        {0.1},
    ),
    "head_lr_factor": (10.0, {}, lambda b: set(b.optimizer.lr_factors), {1.0, 10.0}),
    "early_stopping": (3, {"val_while_train": True}, lambda b: b.trainer.enough.patience, 3),
    "freeze": (
        ("backbone",),
        {},
        lambda b: {p.name for p in b.network.trainable_params()},
        {"head.weight", "head.bias"},
    ),
    "weight_decay_filter": ("1d", {"weight_decay": 0.25}, lambda b: set(b.optimizer.weight_decays), {0.0, 0.25}),
    "layer_decay": (0.5, {}, lambda b: min(b.optimizer.lr_factors) < 0.5 < max(b.optimizer.lr_factors), True),
    "eps": (1e-3, {}, lambda b: float(b.optimizer.eps.asnumpy()), pytest.approx(1e-3)),
    "loss": ("BCE", {}, lambda b: type(b.loss).__name__, "BinaryCrossEntropy"),
    "reduction": ("sum", {}, lambda b: b.loss.reduction, "sum"),
    "loss_scale": (64.0, {}, lambda b: float(b.step.loss_scale.value.asnumpy()), 64.0),
    "loss_scale_type": ("dynamic", {}, lambda b: b.step.loss_scale.dynamic, True),
    "drop_overflow_update": (True, {}, lambda b: b.step.checks_overflow, True),
}
# setting → (a value, other settings, the rates that follow)
RATES = {
    "scheduler": ("constant", {}, lambda b: b.schedule("constant")),
    "lr": (0.5, {}, lambda b: b.schedule(lr=0.5)),
    "min_lr": (0.005, {"decay_epochs": 1}, lambda b: b.schedule(min_lr=0.005, decay_epochs=1)),
    "warmup_epochs": (1, {"warmup_factor": 0.1}, lambda b: b.schedule(warmup_epochs=1, warmup_factor=0.1)),
    "warmup_factor": (0.5, {"warmup_epochs": 1}, lambda b: b.schedule(warmup_epochs=1, warmup_factor=0.5)),
    "decay_epochs": (1, {}, lambda b: b.schedule(decay_epochs=1)),
    "decay_rate": (
        0.5,
        {"scheduler": "exponential_decay", "decay_epochs": 1},
        lambda b: b.schedule("exponential_decay", decay_rate=0.5, decay_epochs=1),
    ),
    "multi_step_decay_milestones": (
        (1,),
        {"scheduler": "multi_step_decay"},
        lambda b: b.schedule("multi_step_decay", milestones=(1,)),
    ),
    "lr_epoch_stair": (True, {"decay_epochs": 2}, lambda b: b.schedule(decay_epochs=2, lr_epoch_stair=True)),
    "warmup_prefix": (
        False,
        {"warmup_epochs": 1, "warmup_factor": 0.5, "decay_epochs": 2},
        lambda b: b.schedule(warmup_epochs=1, warmup_factor=0.5, decay_epochs=2, warmup_prefix=False),
    ),
    "lr_scale": ("linear", {"lr_base_batch": 2}, lambda b: b.schedule(lr=0.04, min_lr=4e-6)),
    "lr_base_batch": (4, {"lr_scale": "linear"}, lambda b: b.schedule(lr=0.02, min_lr=2e-6)),
}
# What other tests hold, through the scripts themselves.
ELSEWHERE = {
    "mode": "test_runtime",
    "jit_level": "test_runtime",
    "deterministic": "test_runtime",
    "allreduce_mb": "below",
    "transfer_ahead": "below",
    "distribute": "test_distributed",
    "device_target": "test_runtime",
    "dataset": "test_data_sources",
    "data_dir": "test_data_sources",
    "labels": "test_pairs",
    "train_split": "test_data_folders",
    "val_split": "test_data_folders",
    "fold": "test_data_folders",
    "num_parallel_workers": "test_data_loader",
    "image_background": "test_data_decoder",
    "exif_orientation": "test_data_decoder",
    "in_channels": "test_data_loader",
    "ckpt_path": "test_pairs",
    "resume": "test_resume",
    "stall_timeout": "test_watch",
    "allow_config_change": "test_resume",
    "dataset_sink_mode": "nothing reads it",
    "train_annotations": "test_detection_data",
    "val_annotations": "test_detection_data",
    **dict.fromkeys(
        ("max_boxes", "photometric", "zoom_out", "iou_crop", "plain_epochs", "denoising_queries", "label_noise"),
        "test_detection_data",
    ),
    "box_noise": "test_detection_data",
    "multi_scale": "test_detection_data",
    "class_loss": "test_detection_losses",
    "backbone_ckpt": "test_training_initial_weights",
    "frozen_stages": "below",
    "frozen_norms": "below",
    "amp_level": "below",
    "sync_bn": "below",
    **dict.fromkeys(("distill", "teacher", "teacher_ckpt", "distill_alpha", "distill_tau"), "test_training_teachers"),
    **dict.fromkeys(
        ("imitation_ckpt", "imitation_in", "imitation_out", "imitation_rel", "imitation_epochs"),
        "test_training_distillation",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_setting_arrives(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, others, where, expected = ROWS[name]
    assert where(Built(tmp_path, monkeypatch, **others, **{name: value})) == expected
    if value != BASE.get(name, SETTINGS[name].default):
        try:
            default = where(Built(tmp_path, monkeypatch, **others))
        except AttributeError:  # there is no such object without the setting
            return
        assert default != expected


@pytest.mark.parametrize("name", RATES)
def test_setting_moves_the_rate(name, tmp_path, monkeypatch):
    value, others, expected = RATES[name]
    built = Built(tmp_path, monkeypatch, **others, **{name: value})
    np.testing.assert_array_equal(built.rates, expected(built))
    assert not np.array_equal(built.rates, Built(tmp_path, monkeypatch).rates)


def test_the_seed_draws_weights_and_masks(tmp_path, monkeypatch):
    first, again, other = (Built(tmp_path, monkeypatch, seed=seed) for seed in (1, 1, 2))
    networks = []
    for built in (first, again, other):
        networks.append(
            {name: state.asnumpy().tolist() for name, state in stochastic.mask_states(built.network).items()}
        )
    assert networks[0] == networks[1] != networks[2]


def test_mixed_precision_and_synchronised_norms_are_asked_for_by_the_configuration(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(assembly, "mixed_precision", lambda network, level: asked.append(level) or network)
    monkeypatch.setattr(assembly, "supported_level", lambda level, device: f"{level} on {device}")
    assert Built(tmp_path, monkeypatch, amp_level="O2").step
    assert asked == ["O2 on CPU"]
    with pytest.raises(UserError, match="sync_bn needs Ascend"):
        assert Built(tmp_path, monkeypatch, sync_bn=True).network


def test_gradients_are_sent_together_as_configured(tmp_path, monkeypatch):
    """By a job of two ranks, which no process of this test joins."""
    asked = []
    monkeypatch.setattr(assembly, "TrainStep", lambda *arguments, **options: asked.append(options) or nn.Identity())
    for settings in ({}, {"allreduce_mb": 4}):
        assert Built(tmp_path, monkeypatch, **settings).step
    assert [options["allreduce_mb"] for options in asked] == [None, 4]


def test_batches_are_sent_ahead_as_configured(tmp_path, monkeypatch):
    """On a device that is no CPU, which is not here."""
    asked = []
    monkeypatch.setattr(assembly, "open_transfer", lambda *arguments: asked.append(arguments) or "the way")
    built = [Built(tmp_path, monkeypatch, **settings) for settings in ({}, {"transfer_ahead": True})]
    assert [one.trainer.transfer for one in built] == ["the way"] * 2
    assert asked == [(False, built[0].data.train), (True, built[1].data.train)]


class Detector(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = feature_network(small_network("fastvit"), norm_outputs=True)


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({}, lambda name: False),
        ({"frozen_stages": 0}, lambda name: name.startswith("backbone.stem.")),
        ({"frozen_stages": 1}, lambda name: name.startswith(("backbone.stem.", "backbone.stages.0."))),
        ({"frozen_norms": True}, lambda name: name.endswith((".gamma", ".beta")) and "layer_scale" not in name),
    ],
)
def test_a_backbone_is_frozen_as_configured(settings, frozen, monkeypatch):
    monkeypatch.setattr(assembly, "create_model", lambda model, **options: Detector())
    network = assembly.build_network(Config(**BASE, **settings), "CPU", Distributed())
    for parameter in network.get_parameters():
        if "moving_" not in parameter.name:
            assert parameter.requires_grad != frozen(parameter.name), parameter.name
    for name, cell in network.cells_and_names():
        if isinstance(cell, nn.BatchNorm2d):
            assert cell.use_batch_statistics is (False if frozen(f"{name}.gamma") else None)


def test_a_classifier_is_frozen_as_configured(tmp_path, monkeypatch):
    def learning(**settings):
        return {
            p.name for p in Built(tmp_path, monkeypatch, model="fastvit_sa12", **settings).network.trainable_params()
        }

    everything = learning()
    assert {name.partition(".")[0] for name in everything - learning(frozen_stages=0)} == {"stem"}
    assert {name.partition(".")[0] for name in learning(freeze=("backbone",))} == {"head"}
    assert {name.partition(".")[0] for name in learning(frozen_stages=4)} == {"final_conv", "head"}
    norms = everything - learning(frozen_norms=True)
    assert norms
    assert all(name.endswith((".gamma", ".beta")) for name in norms)
    assert everything - learning(freeze=("stages.1", "stem.0")) == {
        name for name in everything if name.startswith(("stages.1.", "stem.0."))
    }


def test_what_is_frozen_uses_neither_batch_statistics_nor_chance(tmp_path, monkeypatch):
    network = Built(tmp_path, monkeypatch, model="fastvit_sa12", freeze=("stages.2",)).network
    for name, cell in network.cells_and_names():
        if isinstance(cell, nn.BatchNorm2d):
            assert (cell.use_batch_statistics is False) == name.startswith("stages.2."), name
        if isinstance(cell, Stochastic) and name.startswith("stages.2."):
            assert cell.rate == 0.0


def test_what_cannot_be_frozen_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"freeze: the network has nothing called stage; the nearest is stage\d"):
        assert Built(tmp_path, monkeypatch, freeze=("stage",)).network
    with pytest.raises(UserError, match="everything is frozen, so that nothing would learn"):
        assert Built(tmp_path, monkeypatch, freeze=("backbone", "head")).network
    monkeypatch.setattr(assembly, "create_model", lambda model, **options: Detector())
    with pytest.raises(UserError, match="frozen_stages 5 is out of range: the network has 4 stages"):
        assembly.build_network(Config(**BASE, frozen_stages=5), "CPU", Distributed())


def test_the_number_of_ranks_reaches_rates_and_shards(tmp_path, monkeypatch):
    built = Built(tmp_path, monkeypatch, lr_scale="linear", lr_base_batch=8, gradient_accumulation_steps=2)
    built.ranks = dataclasses.replace(built.ranks, size=4, rank=3)
    np.testing.assert_array_equal(built.rates, built.schedule(lr=0.08, min_lr=8e-6))
    assert (built.sampler.shard.rank, built.sampler.shard.size) == (3, 4)


def test_every_setting_of_training_has_its_row():
    training = {name for name, item in SETTINGS.items() if "T" in item.metadata["scripts"]}
    assert training == set(ROWS) | set(RATES) | set(ELSEWHERE)
    assert not (set(ROWS) & set(RATES)) | (set(ROWS) & set(ELSEWHERE))
