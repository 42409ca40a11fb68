"""Schedules against numbers worked out by hand."""

import numpy as np
import pytest

from mindcv_reparam.errors import UserError
from mindcv_reparam.training.schedule import learning_rates, scaled_rates


def test_cosine_with_warmup_per_step():
    rates = learning_rates("cosine_decay", 1.0, 8, 2, min_lr=0.1, warmup_epochs=2, warmup_factor=0.2, decay_epochs=4)
    # warm-up: 0.2 + 0.8·(0, ¼, ½, ¾); cosine at 0, ⅛, … of the half period: 0.55 + 0.45·cos; then min_lr
    cosine = 0.55 + 0.45 * np.cos(np.pi * np.arange(8) / 8)
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, *cosine, 0.1, 0.1, 0.1, 0.1], rtol=1e-12)
    assert rates[8] == pytest.approx(0.55)


def test_cosine_with_warmup_per_epoch():
    rates = learning_rates(
        "cosine_decay", 1.0, 5, 3, min_lr=0.0, warmup_epochs=2, warmup_factor=0.5, decay_epochs=2, lr_epoch_stair=True
    )
    np.testing.assert_allclose(rates, np.repeat([0.5, 0.75, 1.0, 0.5, 0.0], 3), atol=1e-12)


def test_a_visformer_recipe():
    """visformer_tiny: 5 epochs of warm-up from 0.002·lr, then 295 of cosine, stepped per epoch."""
    rates = learning_rates(
        "cosine_decay",
        5e-4,
        300,
        10,
        min_lr=1e-5,
        warmup_epochs=5,
        warmup_factor=0.002,
        decay_epochs=295,
        lr_epoch_stair=True,
    )
    assert rates.shape == (3000,)
    assert rates[0] == rates[9] == pytest.approx(1e-6)
    assert rates[10] == pytest.approx(1e-6 + (5e-4 - 1e-6) / 5)
    assert rates[50] == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(1e-5 + 2.45e-4 * (1 + np.cos(np.pi * 294 / 295)))


def test_timms_cosine_with_warmup_and_cooldown_per_epoch():
    """timm 0.5.4's CosineLRScheduler(t_initial=6, lr_min=0.1, warmup_t=2, warmup_lr_init=0.2), 2 cool-down epochs.

    Its cosine starts under the warm-up: epoch t has 0.1 + 0.45·(1 + cos(πt/6)), written out here; from 6 on 0.1.
    """
    rates = learning_rates(
        *("cosine_decay", 1.0, 8, 2),
        **dict(min_lr=0.1, warmup_epochs=2, warmup_factor=0.2, decay_epochs=6),
        **dict(lr_epoch_stair=True, warmup_prefix=False),
    )
    root3 = np.sqrt(3.0)
    by_epoch = [0.2, 0.6, 0.775, 0.55, 0.325, 0.55 - 0.225 * root3, 0.1, 0.1]
    np.testing.assert_allclose(rates, np.repeat(by_epoch, 2), rtol=1e-12)


def test_timms_cosine_per_step():
    rates = learning_rates(
        "cosine_decay", 1.0, 3, 2, warmup_epochs=1, warmup_factor=0.5, decay_epochs=3, warmup_prefix=False
    )
    np.testing.assert_allclose(rates, [0.5, 0.75, 0.75, 0.5, 0.25, 0.5 - 0.25 * np.sqrt(3.0)], rtol=1e-12)


def test_rates_scale_with_the_images_per_update(caplog):
    caplog.set_level("INFO")
    assert scaled_rates(1e-3, 1e-5, batch=2048, base_batch=1024) == pytest.approx((2e-3, 2e-5), rel=1e-12)
    assert scaled_rates(1e-3, 0.0, batch=64, base_batch=1024) == pytest.approx((6.25e-5, 0.0), rel=1e-12)
    assert caplog.messages[0] == "lr_scale linear: 2048 images per update instead of 1024: lr 0.002, min_lr 2e-05"
    assert len(caplog.messages) == 2


def test_step_and_multi_step_change_at_epochs_after_the_warmup():
    step = learning_rates("step_decay", 1.0, 6, 2, warmup_epochs=1, warmup_factor=0.0, decay_epochs=2, decay_rate=0.1)
    np.testing.assert_allclose(step, [0.0, 0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01], rtol=1e-12)
    multi = learning_rates("multi_step_decay", 1.0, 5, 2, decay_rate=0.1, milestones=(3, 1))
    np.testing.assert_allclose(multi, [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01], rtol=1e-12)


def test_exponential_and_constant():
    smooth = learning_rates("exponential_decay", 2.0, 2, 2, decay_rate=0.25)
    np.testing.assert_allclose(smooth, [2.0, 1.0, 0.5, 0.25], rtol=1e-12)
    stair = learning_rates("exponential_decay", 2.0, 2, 2, decay_rate=0.25, lr_epoch_stair=True)
    np.testing.assert_allclose(stair, [2.0, 2.0, 0.5, 0.5], rtol=1e-12)
    np.testing.assert_array_equal(learning_rates("constant", 0.3, 2, 2), [0.3] * 4)


@pytest.mark.parametrize(
    ("scheduler", "epochs", "message"),
    [("one_cycle", 3, "cosine_decay"), ("cosine_decay", 3, "decay_epochs"), ("constant", 0, "epoch_size")],
)
def test_impossible_schedules_are_refused(scheduler, epochs, message):
    with pytest.raises(UserError, match=message):
        learning_rates(scheduler, 1.0, epochs, 2)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            dict(warmup_epochs=2, lr_epoch_stair=True),
            "the learning rate is 0 in epoch 1 of 6: set warmup_factor above 0 or lr_epoch_stair to False",
        ),
        (
            dict(decay_epochs=2, min_lr=0.0),
            "the learning rate is 0 in epochs 3 to 6 of 6: set min_lr or decay_rate above 0, or a smaller epoch_size",
        ),
        (
            dict(decay_epochs=2, warmup_epochs=1, lr_epoch_stair=True, min_lr=0.0),
            "the learning rate is 0 in epochs 1, 4 to 6 of 6: set warmup_factor above 0 or lr_epoch_stair to False, "
            "and set min_lr or decay_rate above 0, or a smaller epoch_size",
        ),
        (
            dict(scheduler="multi_step_decay", milestones=(5,), decay_rate=0.0),
            "the learning rate is 0 in epoch 6 of 6: set min_lr or decay_rate above 0, or a smaller epoch_size",
        ),
        (
            dict(warmup_epochs=6),
            "the warm-up takes all epochs, so the learning rate never reaches lr: warmup_epochs is 6, epoch_size 6",
        ),
        (dict(warmup_epochs=2), None),
        (dict(warmup_epochs=2, warmup_factor=0.01, lr_epoch_stair=True), None),
    ],
)
def test_epochs_without_a_rate_are_one_line(options, line, caplog):
    given = dict(scheduler="cosine_decay", lr=0.1, epochs=6, steps_per_epoch=3, decay_epochs=6, min_lr=1e-6)
    with caplog.at_level("INFO", logger="mindcv_reparam"):
        learning_rates(**{**given, **options})
    assert [record.getMessage() for record in caplog.records] == ([line] if line else [])


def test_no_epoch_with_a_rate_is_an_error():
    with pytest.raises(UserError, match="the learning rate is 0 in epoch 1 of 1: set warmup_factor above 0"):
        learning_rates("constant", 0.1, 1, 4, warmup_epochs=3, lr_epoch_stair=True)
