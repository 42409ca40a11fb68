"""The recipes: one for every published result, with the published numbers, and trained for two updates each kind."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from here import parse, restored
from networks import SMALL, SMALL_DETECTOR

from mindcv_reparam import create_model
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.registry import list_models, model_info
from mindcv_reparam.training.schedule import learning_rates
from mindcv_reparam.zoo import family_variants

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
ALL = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml"))
DETECTORS = [name for name in ALL if name.startswith("rtdetr/") and name.endswith("_ascend.yaml")]
ASCEND = [name for name in ALL if name.endswith("_ascend.yaml") and name not in DETECTORS]
DIGITS = [name for name in ALL if "_digits" in name]
SCENES = [name for name in ALL if "_scenes" in name]


def recipe(name: str) -> Config:
    return parse(["-c", str(CONFIGS / name)], "train")


def header(name: str) -> str:
    """The comment at the top, on one line."""
    text = (CONFIGS / name).read_text(encoding="utf-8").split("\n\n")[0]
    return " ".join(line.removeprefix("#").strip() for line in text.splitlines()).replace("  ", " ")


def test_there_is_a_recipe_for_every_published_result():
    fine_tuned = ["fastvit_sa36", "fastvit_ma36", *list_models("riformer_*")]
    assert (
        sorted(
            [f"visformer/{model}_ascend.yaml" for model in list_models("visformer_*")]
            + [
                f"fastvit/{model}{kind}_ascend.yaml"
                for model in list_models("fastvit_*")
                for kind in ("", "_distilled")
            ]
            + [f"riformer/{model}_ascend.yaml" for model in list_models("riformer_*")]
            + [f"{model_info(model).family}/{model}_384_ascend.yaml" for model in fine_tuned]
        )
        == ASCEND
    )
    assert {Path(name).parent.name for name in DIGITS} == {"fastvit", "poolformer", "riformer", "visformer"}


def test_the_recipe_for_own_images_is_for_every_classifier():
    words = ["-c", str(CONFIGS / "finetune.yaml"), "--model", "fastvit_t8"]
    config = parse(words, "train")
    assert "--model fastvit_t8" in header("finetune.yaml")
    assert config.warmup_epochs + config.decay_epochs == config.epoch_size
    assert (config.mixup, config.cutmix, config.aug_repeats, config.drop_remainder) == (0, 0, 0, False)
    assert (config.head_lr_factor, config.early_stopping, config.val_while_train) == (10, 8, True)
    # It says nothing of what a model is fed with, which is the checkpoint's.
    assert not {"image_resize", "mean", "std", "crop_pct", "interpolation"} & config.given


@pytest.mark.parametrize("name", ALL)
def test_header_gives_command_and_context(name):
    config, text = recipe(name), header(name)
    ascend = name.endswith("_ascend.yaml")
    ranks = 8 if ascend else 2
    assert text.startswith(f"{config.model} ")
    assert f"mpirun -n {ranks} python train.py --config configs/{name}" in text
    batch = ranks * config.batch_size * config.gradient_accumulation_steps
    assert f", {batch} per {'update' if ascend else 'step'}" in text
    if ascend:
        assert "Context: D910x8-G" in text
        assert text.endswith("Not run on Ascend here.")
        assert (config.lr_scale, config.lr_base_batch) == ("linear", batch)
        for flag in re.findall(r"--(\w+) /path", text):
            assert getattr(config, flag).startswith("/path/to/")


@pytest.mark.parametrize("name", [name for name in ASCEND if "fastvit_sa36_384" not in name])
def test_header_gives_the_published_result(name):
    config, text = recipe(name), header(name)
    top1, top5 = re.search(r"top-1(?: / top-5)? ([\d.]+)(?: / ([\d.]+))? %", text).groups()
    distilled = "distilled" in name
    found = [
        (one.top1, one.top5)
        for one in model_info(config.model).published
        if one.input_size == config.image_resize and one.source.endswith("distilled") == distilled
    ]
    if name == "fastvit/fastvit_ma36_384_ascend.yaml":
        found = [(84.9, None)]  # the paper tells it in section 4.1; no weights are published for it
    assert found == [(float(top1), top5 and float(top5))]


@pytest.mark.parametrize("name", ASCEND)
def test_input_is_the_models_own(name):
    config = recipe(name)
    own = model_info(config.model).preprocessing
    assert {key: getattr(config, key) for key in own} == own | {
        "image_resize": 384 if "_384" in name else own["image_resize"]
    }


def test_there_is_a_recipe_for_every_kind_of_detector():
    backbones = [f"riformer_{size}" for size in ("s12", "s24", "s36", "m36")]
    backbones += ["fastvit_sa12", "fastvit_sa24", "fastvit_sa36", "visformer_small_v2", "r18vd", "r50vd"]
    assert sorted(f"rtdetr/rtdetr_{backbone}_ascend.yaml" for backbone in backbones) == DETECTORS
    assert [recipe(name).model for name in SCENES] == ["rtdetr_fastvit_t8", "rtdetr_riformer_xs"]
    assert sorted([*ASCEND, *DETECTORS, *DIGITS, *SCENES]) == ALL


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detectors_header_gives_what_is_published(name):
    config, text = recipe(name), header(name)
    info = model_info(config.model)
    if not info.published:
        assert "Published: none published." in text
        assert "AP" not in text
        return
    entry = next(one for one in info.published if one.source == "lyuwenyu/RT-DETR")
    assert f"Published for this recipe by lyuwenyu/RT-DETR (README of rtdetr_pytorch): AP {entry.ap}, " in text
    assert f", AP50 {entry.ap50}," in text


def test_detectors_recipes_are_the_references():
    """Of rtdetr_pytorch's configuration files; the zoo's backbones add half precision, plain last epochs."""
    base = recipe("rtdetr/rtdetr_r18vd_ascend.yaml")
    optimizer = (
        base.opt,
        base.lr,
        base.weight_decay,
        base.backbone_lr_factor,
        base.weight_decay_filter,
        base.clip_value,
    )
    assert optimizer == ("adamw", 1e-4, 1e-4, 0.1, "by_name", 0.1)
    assert (base.scheduler, base.epoch_size, base.ema_decay, base.ema_warmup) == ("constant", 72, 0.9999, 2000)
    assert (base.photometric, base.zoom_out, base.iou_crop, base.hflip, base.plain_epochs) == (0.5, 0.5, 0.8, 0.5, 0)
    assert (base.denoising_queries, base.label_noise, base.box_noise, base.class_loss) == (200, 0.5, 1.0, "vfl")
    assert (base.clip_grad, base.ema, base.sync_bn) == (True, True, True)
    frozen = dict(frozen_stages=0, frozen_norms=True)
    own = dict(amp_level="O2", loss_scale_type="dynamic", loss_scale=65536.0, drop_overflow_update=True, plain_epochs=3)
    for name in DETECTORS:
        config = recipe(name)
        pixels = model_info(config.model).preprocessing
        assert (config.image_resize, config.interpolation) == (pixels["image_resize"], pixels["interpolation"])
        assert (config.mean, config.std) == (pytest.approx(pixels["mean"]), pytest.approx(pixels["std"])), name
        official = config.model in ("rtdetr_r18vd", "rtdetr_r50vd")
        backbone = family_variants("rtdetr")[config.model]["backbone"]
        differs = {} if official else own
        differs = frozen if config.model == "rtdetr_r50vd" else differs
        assert config.backbone_ckpt == f"/path/to/{backbone}.ckpt"
        names = dict(NAMES, backbone_ckpt="", mean=(0.0,), std=(1.0,))
        assert replace(config, **names) == replace(base, **differs, **names), name


# Facts of the papers and of Apple's commands by variant: stochastic depth and mixup, plain and distilled.
FASTVIT = {
    "fastvit_t8": ((0.0, 0.2), (0.0, 0.2)),
    "fastvit_t12": ((0.0, 0.2), (0.0, 0.2)),
    "fastvit_s12": ((0.0, 0.2), (0.0, 0.2)),
    "fastvit_sa12": ((0.1, 0.2), (0.0, 0.8)),
    "fastvit_sa24": ((0.1, 0.2), (0.05, 0.8)),
    "fastvit_sa36": ((0.2, 0.2), (0.1, 0.8)),
    "fastvit_ma36": ((0.35, 0.8), (0.2, 0.8)),
}
NAMES = dict(model="", ckpt_save_dir="")


@pytest.mark.parametrize("model", FASTVIT)
def test_fastvit_recipes_differ_by_stochastic_depth_mixup_and_teacher(model):
    base = recipe("fastvit/fastvit_t8_ascend.yaml")
    plain, distilled = (recipe(f"fastvit/{model}{kind}_ascend.yaml") for kind in ("", "_distilled"))
    assert ((plain.drop_path_rate, plain.mixup), (distilled.drop_path_rate, distilled.mixup)) == FASTVIT[model]
    common = dict(NAMES, drop_path_rate=0.0, mixup=0.2, crop_pct=0.9)
    assert replace(plain, **common) == replace(base, **common)
    teacher = ("regnety_160", "/path/to/regnety_160.ckpt", "hard", 0.5, 1.0)
    keys = ("teacher", "teacher_ckpt", "distill", "distill_alpha", "distill_tau")
    assert tuple(getattr(distilled, key) for key in keys) == teacher
    without = {key: getattr(base, key) for key in keys}
    assert replace(distilled, **common, **without) == replace(base, **common)


def test_fastvits_rates_are_timms():
    """310 epochs, 10 of them cool-down; the epoch's rate is 1e-5 + (1e-3 - 1e-5)/2·(1 + cos(πt/300)) from 5 to 300."""
    config = recipe("fastvit/fastvit_t8_ascend.yaml")
    shared = ("min_lr", "warmup_epochs", "warmup_factor", "decay_epochs", "lr_epoch_stair", "warmup_prefix")
    options = {key: getattr(config, key) for key in shared}
    rates = learning_rates(config.scheduler, config.lr, config.epoch_size, 2, **options).reshape(-1, 2)
    np.testing.assert_array_equal(rates[:, 0], rates[:, 1])
    expected = {0: 1e-6, 1: 2.008e-4, 4: 8.002e-4, 5: 9.9932e-4, 150: 5.05e-4, 200: 2.575e-4, 299: 1.00271e-5}
    expected |= {300: 1e-5, 309: 1e-5}
    assert len(rates) == 310
    np.testing.assert_allclose(rates[[*expected], 0], [*expected.values()], rtol=1e-5)


@pytest.mark.parametrize("model", ["fastvit_sa36", "fastvit_ma36"])
def test_fastvit_fine_tuning_is_the_papers(model):
    tuned = recipe(f"fastvit/{model}_384_ascend.yaml")
    assert (tuned.epoch_size, tuned.lr, tuned.weight_decay, 8 * tuned.batch_size) == (30, 5e-5, 1e-8, 512)
    assert tuned.ckpt_path == f"/path/to/{model}_best.ckpt"


# λ1, λ2, λ3 of table 10 of the paper, each times the batch.
RIFORMER = {
    "riformer_s12": (1e-4, 1e-3, 1.0),
    "riformer_s24": (3e-4, 5e-3, 4.0),
    "riformer_s36": (1e-4, 1e-3, 1.0),
    "riformer_m36": (1e-4, 1e-3, 1.0),
    "riformer_m48": (1e-4, 1e-3, 1.0),
}


@pytest.mark.parametrize("model", RIFORMER)
def test_riformer_recipes_differ_by_imitation_and_batch(model):
    base, config = recipe("riformer/riformer_s12_ascend.yaml"), recipe(f"riformer/{model}_ascend.yaml")
    factors = np.array([config.imitation_in, config.imitation_out, config.imitation_rel])
    np.testing.assert_allclose(factors * config.lr_base_batch, RIFORMER[model], rtol=1e-12)
    assert config.imitation_ckpt == f"/path/to/{model.replace('riformer', 'poolformer')}.ckpt"
    assert (config.teacher, config.distill, config.distill_alpha, config.distill_tau) == ("gfnet_h_b", "soft", 1.0, 1.0)
    assert (config.lr, config.epoch_size, tuple(config.imitation_epochs)) == (1e-3, 600, (400, 100))
    common = dict(NAMES, crop_pct=0.9, batch_size=128, lr_base_batch=1024)
    common |= dict(imitation_ckpt="", imitation_in=0.0, imitation_out=0.0, imitation_rel=0.0)
    assert replace(config, **common) == replace(base, **common)


@pytest.mark.parametrize("model", RIFORMER)
def test_riformer_fine_tuning_recipes_differ_by_passes(model):
    base, config = (recipe(f"riformer/{name}_384_ascend.yaml") for name in ("riformer_s12", model))
    assert (config.epoch_size, config.scheduler, config.lr, config.mixup, config.cutmix) == (30, "constant", 5e-5, 0, 0)
    common = dict(NAMES, ckpt_path="", crop_pct=0.9, batch_size=128, gradient_accumulation_steps=1)
    assert replace(config, **common) == replace(base, **common)


def small_checkpoint(path: Path, model: str) -> Path:
    """A file of a small random network that calls itself by that name."""
    hparams = dict(SMALL[model.split("_")[0].rstrip("y")][1], num_classes=10, img_size=[32, 32])
    save_checkpoint(path, create_model(model, **hparams), CheckpointInfo(model, hparams))
    return path


# One of each kind is compiled; in the others, only numbers differ.
COMPILED = [
    "visformer/visformer_tiny_v2_ascend.yaml",
    "fastvit/fastvit_sa12_ascend.yaml",
    "fastvit/fastvit_t8_distilled_ascend.yaml",
    "riformer/riformer_s12_ascend.yaml",
    "riformer/riformer_s36_384_ascend.yaml",
]


@pytest.mark.slow
def test_two_updates_of_a_detectors_recipe(tmp_path, monkeypatch):
    """Through train.py, with a small head on a small backbone that starts from a classifier, on scenes of digits."""
    monkeypatch.syspath_prepend(ROOT)
    import train
    from mindcv_reparam.training import assembly

    sizes = {name: SMALL_DETECTOR[name] for name in ("depths", "embed_dims")}
    monkeypatch.setattr(
        assembly, "create_model", lambda name, **options: create_model(name, **options | SMALL_DETECTOR)
    )
    save_checkpoint(tmp_path / "c.ckpt", create_model("riformer_s12", **sizes), CheckpointInfo("riformer_s12", {}))
    settings = {
        **dict(device_target="CPU", distribute=None, dataset="scenes", num_parallel_workers=1, image_resize=64),
        **dict(batch_size=2, num_samples=4, num_classes=10, epoch_size=1, plain_epochs=0, sync_bn=False),
        **dict(val_while_train=False, ckpt_save_policy="latest_k", ckpt_save_dir=tmp_path / "run"),
        **dict(backbone_ckpt=tmp_path / "c.ckpt", model="rtdetr_riformer_xs", denoising_queries=20),
        **dict(mode=1),  # test_detection_resume.py compiles
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    path = CONFIGS / "rtdetr" / "rtdetr_riformer_s12_ascend.yaml"
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(path), *flags])
    with restored():  # the mode
        train.main()
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert int(row["step"]) == 2
    assert np.isfinite(float(row["train_loss"]))
    assert float(row["lr"]) == pytest.approx(1e-4 * 2 / 16)


def smallest_first(name: str) -> object:
    """Recipes of larger networks of a family differ by numbers, which the tests above compare."""
    kept = re.search(r"fastvit_t8_ascend|visformer_tiny_v2", name)
    return name if kept else pytest.param(name, marks=pytest.mark.exhaustive)


@pytest.mark.slow
@pytest.mark.parametrize("name", [smallest_first(name) for name in ASCEND])
def test_two_updates_of_the_recipe(name, tmp_path, monkeypatch):
    """Through train.py, with small networks of its families on a few digits."""
    monkeypatch.syspath_prepend(ROOT)
    import train
    from mindcv_reparam.training import assembly

    config = recipe(name)
    small = SMALL[config.model.split("_")[0]][1]
    monkeypatch.setattr(assembly, "create_model", lambda model, **options: create_model(model, **small, **options))
    accumulated = config.gradient_accumulation_steps
    settings = {
        **dict(device_target="CPU", distribute=None, dataset="digits", num_parallel_workers=1, ckpt_path=""),
        **dict(batch_size=2, num_samples=4 * accumulated, image_resize=32, num_classes=10, epoch_size=1),
        **dict(val_while_train=False, ckpt_save_policy="latest_k", ckpt_save_dir=tmp_path / "run"),
        **dict(mode=0 if name in COMPILED else 1),
    }
    if config.teacher:
        settings["teacher_ckpt"] = small_checkpoint(tmp_path / "teacher.ckpt", config.teacher)
    if config.imitation_ckpt:
        imitated = config.model.replace("riformer", "poolformer")
        settings["imitation_ckpt"] = small_checkpoint(tmp_path / "imitated.ckpt", imitated)
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(CONFIGS / name), *flags])
    with restored():  # the mode
        train.main()

    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert int(row["step"]) == 2 * accumulated
    assert np.isfinite(float(row["train_loss"]))
    start = config.lr * (config.warmup_factor if config.warmup_epochs else 1.0)
    assert float(row["lr"]) == pytest.approx(start * 2 * accumulated / config.lr_base_batch)
    arrays, info = read_checkpoint(tmp_path / "run" / f"{config.model}_final.ckpt")
    assert info.model == config.model
    assert set(arrays) == {name for name, _ in create_model(config.model, **small).parameters_and_names()}
    assert all(np.isfinite(array).all() for array in arrays.values())
