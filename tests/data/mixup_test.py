"""Mixup and CutMix: pixels and targets in the same proportion, drawn for each image."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from nsk import noise
from nsk.data import mixup

KEY = noise.key(0, "mixup test")
MIXES = (mixup.mixup, mixup.cutmix)


def gray_levels(batch, height=6, width=9):
    """Image i of a batch has level 3 i everywhere; its target is the level, as a share of 255."""
    levels = 3 * np.arange(batch)
    images = np.tile(levels[:, None, None, None], [1, height, width, 3]).astype(np.uint8)
    return tf.constant(images), tf.constant(
        np.stack([levels / 255, 1 - levels / 255], 1), "float32"
    )


@pytest.mark.parametrize("batch", [2, 3, 50])
def test_partners_are_a_permutation_without_fixed_points(batch):
    for number in range(20):
        partners = mixup.draw_partners(noise.fold_in(KEY, number), batch).numpy()
        np.testing.assert_array_equal(np.sort(partners), np.arange(batch))
        assert np.all(partners != np.arange(batch))


def test_partners_are_in_the_same_batch_and_every_batch_draws_new_ones():
    partners = mixup.draw_partners(KEY, 60, 6).numpy()
    np.testing.assert_array_equal(np.sort(partners), np.arange(60))
    np.testing.assert_array_equal(partners // 6, np.arange(60) // 6)
    assert np.all(partners != np.arange(60))
    assert len({tuple(batch) for batch in partners.reshape(10, 6) % 6}) > 5


def test_all_other_images_are_equally_likely_partners():
    draw = tf.function(lambda number: mixup.draw_partners(noise.fold_in(KEY, number), 5)[0])
    counts = np.bincount([draw(tf.constant(number)).numpy() for number in range(800)], minlength=5)
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 200) < 5 * np.sqrt(150))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_beta_distributed(alpha):
    shares = mixup.draw_beta(KEY, 4000, alpha).numpy()
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_tiny_alphas_keep_a_single_image_of_a_pair():
    shares = mixup.draw_beta(KEY, 1000, 1e-6).numpy()
    assert np.all((shares == 0) | (shares == 1))
    assert abs(shares.mean() - 0.5) < 0.08
    others = mixup.draw_beta(noise.key(1), 1000, 1e-6).numpy()
    assert abs(np.mean(shares == others) - 0.5) < 0.08


def test_a_share_depends_on_its_position_and_not_on_the_batch():
    shares = mixup.draw_beta(KEY, 9, 0.5)
    np.testing.assert_array_equal(mixup.draw_beta(KEY, 5, 0.5), shares[:5])
    assert len(set(shares.numpy())) == 9


@pytest.mark.parametrize("mix", MIXES)
def test_targets_are_mixed_in_the_proportion_of_the_pixels(mix):
    """The mean level of a mixed image equals that of its target, up to the rounding of pixels."""
    images, targets = gray_levels(60)
    mixed, mixed_targets = mix(images, targets, KEY, 1.0)
    assert mixed.dtype == tf.uint8
    mean = mixed.numpy().mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(mixed_targets[:, 0], mean, atol=0.51 / 255)
    np.testing.assert_allclose(tf.reduce_sum(mixed_targets, axis=1), 1.0, rtol=1e-5)
    assert np.mean(mean != images.numpy().mean(axis=(1, 2, 3)) / 255) > 0.8


def test_mixup_agrees_with_its_formula():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 5, 4, 3)).astype(np.uint8)
    targets = random.dirichlet(np.ones(3), 12).astype(np.float32)
    mixed, mixed_targets = mixup.mixup(images, targets, KEY, 0.6)
    key = noise.named(KEY, "mixup")
    other = mixup.draw_partners(key, 12).numpy()
    share = mixup.draw_beta(key, 12, 0.6).numpy()
    for i in range(12):
        pixels = share[i] * images[i].astype(float) + (1 - share[i]) * images[other[i]]
        np.testing.assert_allclose(mixed[i], pixels, atol=0.501)
        expected = share[i] * targets[i] + (1 - share[i]) * targets[other[i]]
        np.testing.assert_allclose(mixed_targets[i], expected, rtol=1e-5)
    assert len(set(share.tolist())) == 12


def test_cutmix_agrees_with_its_formula():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 9, 14, 3)).astype(np.uint8)
    targets = random.dirichlet(np.ones(3), 40).astype(np.float32)
    mixed, mixed_targets = mixup.cutmix(images, targets, KEY, 0.6)
    key = noise.named(KEY, "cutmix")
    other = mixup.draw_partners(key, 40).numpy()
    cut = np.sqrt(1 - mixup.draw_beta(key, 40, 0.6).numpy())
    centers = noise.uniform(noise.named(key, "center"), [40, 2]).numpy()
    for i in range(40):
        box = []
        for length, center in zip((9, 14), centers[i], strict=True):
            side = round(cut[i] * length)
            first = int(center * length) - side // 2
            box.append(slice(max(first, 0), max(first + side, 0)))
        expected = images[i].copy()
        expected[tuple(box)] = images[other[i]][tuple(box)]
        np.testing.assert_array_equal(mixed[i], expected)
        share = 1 - images[i][tuple(box)].size / images[i].size
        expected = share * targets[i] + (1 - share) * targets[other[i]]
        np.testing.assert_allclose(mixed_targets[i], expected, rtol=1e-5)


def test_cutmix_pastes_a_box_with_the_aspect_ratio_of_the_image():
    """Unless the border cuts it, the box has the image's aspect ratio, up to a pixel."""
    images, targets = gray_levels(60, 20, 40)
    mixed, mixed_targets = mixup.cutmix(images, targets, KEY, 1.0)
    inner = 0
    for image, mix, share in zip(images.numpy(), mixed.numpy(), mixed_targets[:, 0], strict=True):
        changed = np.any(mix != image, axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        if not len(rows):
            continue
        top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
        assert changed[top : bottom + 1, left : right + 1].all()
        assert len(np.unique(mix[changed])) == 1
        expected = (image.mean() * (~changed).sum() + mix[changed].mean() * changed.sum()) / 800
        assert float(share) == pytest.approx(expected / 255, abs=1e-5)
        if top > 0 and left > 0 and bottom < 19 and right < 39:
            inner += 1
            assert abs((right - left + 1) - 2 * (bottom - top + 1)) <= 2
    assert inner > 5


@pytest.mark.parametrize("mix", MIXES)
def test_a_pure_function_of_its_arguments_in_map_as_in_eager_mode(mix):
    images, targets = gray_levels(7)
    first = mix(images, targets, KEY, 1.0)
    dataset = tf.data.Dataset.from_tensors((images, targets)).unbatch().batch(7)  # Unknown batch.
    again = next(iter(dataset.map(lambda x, y: mix(x, y, tf.constant(KEY), 1.0))))
    other = mix(images, targets, noise.key(1), 1.0)
    for expected, received, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(expected, received)
        assert np.any(expected != different)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_a_single_image_or_none_are_unchanged(mix, batch):
    images, targets = gray_levels(3)
    mixed, mixed_targets = mix(images[2 : 2 + batch], targets[2 : 2 + batch], KEY, 1.0)
    np.testing.assert_array_equal(mixed, images[2 : 2 + batch])
    np.testing.assert_allclose(mixed_targets, targets[2 : 2 + batch], rtol=1e-6)


@pytest.mark.parametrize("mix", MIXES)
def test_several_targets_of_an_image_are_mixed_in_the_same_proportion(mix):
    """Distillation: each of two targets is mixed as it would be alone."""
    images, first = gray_levels(30)
    second = tf.constant(np.random.default_rng(0).dirichlet(np.ones(2), 30), tf.float32)
    mixed, targets = mix(images, tf.stack([first, second], axis=1), KEY, 0.7, 10)
    for number, alone in enumerate((first, second)):
        mixed_alone, expected = mix(images, alone, KEY, 0.7, 10)
        np.testing.assert_array_equal(mixed, mixed_alone)
        np.testing.assert_array_equal(targets[:, number], expected)
