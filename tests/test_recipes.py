"""The recipes: one for every published result, with the published numbers, and trained for two updates each kind."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import SMALL

from mindcv_reparam import create_model
from mindcv_reparam.checkpoint import CheckpointInfo, read_checkpoint, save_checkpoint
from mindcv_reparam.config import Config, parse
from mindcv_reparam.registry import list_models, model_info
from mindcv_reparam.training.schedule import learning_rates

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
ASCEND = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*_ascend.yaml"))
DIGITS = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*_digits*_cpu.yaml"))


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


@pytest.mark.parametrize("name", ASCEND + DIGITS)
def test_header_gives_command_and_context(name):
    config, text = recipe(name), header(name)
    ranks = 8 if name in ASCEND else 2
    assert text.startswith(f"{config.model} ")
    assert f"mpirun -n {ranks} python train.py --config configs/{name}" in text
    batch = ranks * config.batch_size * config.gradient_accumulation_steps
    assert f", {batch} per {'update' if name in ASCEND else 'step'}" in text
    if name in ASCEND:
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
@pytest.mark.parametrize("name", ASCEND)
def test_two_updates_of_the_recipe(name, tmp_path, monkeypatch):
    """Through train.py, with small networks of its families on a few digits."""
    monkeypatch.syspath_prepend(ROOT)
    import train

    config = recipe(name)
    small = SMALL[config.model.split("_")[0]][1]
    monkeypatch.setattr(train, "create_model", lambda model, **options: create_model(model, **small, **options))
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
