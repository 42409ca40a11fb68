"""Mixup and CutMix: what they do to a batch, and how often."""

import numpy as np
import pytest

from mindcv_reparam.tasks.classification.mixup import BatchMix, cutmix_box, soft_labels


def rng(*key):
    return np.random.default_rng(key)


def batch(n=6, classes=5, side=8):
    images = rng(1).normal(size=(n, 3, side, side)).astype(np.float32)
    return images, soft_labels(np.arange(n) % classes, classes, 0.1)


def test_soft_labels_by_hand():
    targets = soft_labels(np.array([2, 0]), 4, 0.1)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6)


@pytest.mark.parametrize("n", [6, 7])
def test_mixup_blends_with_the_reversed_batch(n):
    images, targets = batch(n)
    mix = BatchMix(mixup_alpha=0.8)
    lam, use_cutmix = mix.draw(rng(4))
    expected_images = lam * images + (1 - lam) * images[::-1]
    expected_targets = lam * targets + (1 - lam) * targets[::-1]
    mix(images, targets, rng(4))
    assert not use_cutmix
    assert 0.02 < lam < 0.98
    np.testing.assert_allclose(images, expected_images, atol=1e-6)
    np.testing.assert_allclose(targets, expected_targets, atol=1e-6)


def test_cutmix_swaps_one_box_and_weighs_labels_by_its_area():
    for seed in range(20):
        images, targets = batch(side=16)
        before, labels = images.copy(), targets.copy()
        BatchMix(cutmix_alpha=1.0)(images, targets, rng(seed))
        swapped = (images != before).any(axis=(0, 1))
        rows, columns = np.flatnonzero(swapped.any(axis=1)), np.flatnonzero(swapped.any(axis=0))
        box = np.zeros_like(swapped)
        if rows.size:
            box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert (swapped == box).all()
        assert (images == np.where(box, before[::-1], before)).all()
        share = box.mean()
        np.testing.assert_allclose(targets, (1 - share) * labels + share * labels[::-1], atol=1e-6)


def test_lambda_follows_beta_and_the_kinds_alternate():
    mix = BatchMix(mixup_alpha=0.8, cutmix_alpha=1.0, probability=0.9, switch_probability=0.3)
    draws = [mix.draw(rng(seed)) for seed in range(6000)]
    mixed = [(lam, cut) for lam, cut in draws if lam != 1.0]
    assert len(mixed) / len(draws) == pytest.approx(0.9, abs=0.015)
    assert np.mean([cut for _, cut in mixed]) == pytest.approx(0.3, abs=0.025)
    mixup = np.array([lam for lam, cut in mixed if not cut])
    cutmix = np.array([lam for lam, cut in mixed if cut])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1))
    assert mixup.mean() == pytest.approx(0.5, abs=0.02)
    assert mixup.var() == pytest.approx(1 / (4 * 2.6), abs=0.005)
    assert cutmix.mean() == pytest.approx(0.5, abs=0.03)
    assert cutmix.var() == pytest.approx(1 / 12, abs=0.006)


@pytest.mark.parametrize(("mixup", "cutmix", "kind"), [(0.2, 0.0, False), (0.0, 1.0, True)])
def test_one_kind_alone_ignores_the_switch(mixup, cutmix, kind):
    mix = BatchMix(mixup, cutmix, switch_probability=0.5)
    assert {mix.draw(rng(seed))[1] for seed in range(50)} == {kind}


def test_without_either_the_batch_stays():
    images, targets = batch()
    before = images.copy()
    BatchMix()(images, targets, rng(0))
    assert (images == before).all()


def test_boxes_have_the_side_of_lambda_and_stay_inside():
    boxes = np.array([cutmix_box(40, 80, 0.75, rng(seed)) for seed in range(2000)])
    top, bottom, left, right = boxes.T
    assert top.min() == 0
    assert left.min() == 0
    assert bottom.max() == 40
    assert right.max() == 80
    assert (bottom - top).max() == 20  # √(1 − 0.75) of the side
    assert (right - left).max() == 40
    # centres are uniform over the image, so half of the boxes of half the side are clipped
    assert ((bottom - top) == 20).mean() == pytest.approx(0.525, abs=0.05)
