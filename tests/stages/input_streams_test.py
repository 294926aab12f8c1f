"""Streams over shard sets, their targets, and the noise on their images."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from nsk import noise
from nsk.data import augment, crops, mixup, pipeline
from nsk.data.augment import ImageNoise
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.shard_stream import ShardStream
from nsk.data.streams import ResidentStream
from nsk.stages import input_streams

PARTS = ("image", "target", "weight")


@pytest.fixture
def make_streams(shard_sets):
    """Function of hyperparameters that makes the streams of their stage."""

    def make(settings, labeled_copies=None):
        pseudo = shard_sets["pseudo"] if settings.is_student else None
        labeled = shard_sets["scored" if settings.distillation else "labeled"]
        return input_streams.make_streams(settings, labeled, pseudo, labeled_copies or {})

    return make


def test_a_teacher_has_one_stream_of_smoothed_labels(make_streams, make_settings, digits):
    (labeled,) = make_streams(make_settings(generation=0, label_smoothing=0.1))
    images, labels, _ = digits
    assert (labeled.name, labeled.batch_size, labeled.epoch_size) == ("labeled", 8, 60)
    np.testing.assert_array_equal(labeled.images, images[:60])
    expected = 0.9 * np.eye(10)[labels[:60]] + 0.01
    np.testing.assert_allclose(labeled.targets, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard", "smooth"])
def test_a_student_has_a_second_stream_of_pseudo_labels(
    make_streams, make_settings, digits, pseudo_scores, kind
):
    settings = make_settings(
        pseudo_label=kind, temperature=2.0, smooth_epsilon=0.18, label_smoothing=0.1
    )
    labeled, pseudo = make_streams(settings)
    log_probabilities, copies = pseudo_scores
    assert (labeled.batch_size, pseudo.batch_size) == (8, 24)
    assert (labeled.name, pseudo.name) == ("labeled", "pseudo")
    np.testing.assert_array_equal(pseudo.images, digits[0][60:150])
    np.testing.assert_array_equal(pseudo.copies, copies)
    most_probable = np.eye(10)[log_probabilities.argmax(axis=1)]
    roots = np.exp(log_probabilities.astype(np.float64) / 2)
    expected = {
        "soft": roots / roots.sum(axis=1, keepdims=True),
        "hard": 0.9 * most_probable + 0.01,
        "smooth": np.where(most_probable, 0.82, 0.02),
    }[kind]
    np.testing.assert_allclose(pseudo.targets, expected, rtol=1e-5)


def test_copies_of_labelled_images_are_found_by_id_and_lengthen_the_epoch(
    make_streams, make_settings
):
    labeled, _ = make_streams(make_settings(), labeled_copies={"0": 5, "59": 2})
    np.testing.assert_array_equal(labeled.copies, [5, *[1] * 58, 2])
    assert input_streams.describe_stream(labeled, 100) == {
        "images": 60,
        "epoch": 65,
        "epochs": round(100 * 8 / 65, 2),
    }


def test_a_union_is_one_stream_of_the_same_size(make_streams, make_settings, digits, pseudo_scores):
    settings = make_settings(mixing="union", loss_normalization="all")
    (union,) = make_streams(settings, labeled_copies={"7": 3})
    assert (union.name, union.batch_size) == ("union", 32)
    assert union.epoch_size == 62 + pseudo_scores[1].sum()
    np.testing.assert_array_equal(union.images, digits[0][:150])


def test_a_student_at_ratio_zero_has_only_labelled_images(make_streams, make_settings):
    (labeled,) = make_streams(make_settings(ratio=[0]))
    assert (labeled.name, labeled.batch_size) == ("labeled", 8)


def test_images_that_do_not_fit_in_memory_are_read_from_their_shards(make_streams, make_settings):
    def cache(**changes):
        return make_settings(**changes).train.cache

    assert cache() == cache(cache="memory", image_size=[1000]) == "memory"
    # 350 images of 100 x 100 x 3 bytes, including dev, are 10.01 MiB.
    assert cache(image_size=[100], cache_mebibytes=11) == "memory"
    assert cache(image_size=[100], cache_mebibytes=10) == cache(cache="none") == "none"
    # For random resized crops, training images stay encoded, which is smaller; dev's are 5.7 MiB.
    assert cache(image_size=[100], cache_mebibytes=6, min_crop_area=[0.5]) == "memory"
    assert cache(image_size=[100], cache_mebibytes=5, min_crop_area=[0.5]) == "none"
    for name, expected in (("memory", ResidentStream), ("none", ShardStream)):
        streams = make_streams(make_settings(cache=name))
        assert [type(stream) for stream in streams] == [expected] * 2


def test_windows_of_few_shards_trigger_a_warning(make_streams, make_settings, monkeypatch, caplog):
    """Each of two windows is one shard of pseudo-labelled images; a single window is fine."""
    for mebibyte, warns in ((2**20, False), (2000, True)):
        monkeypatch.setattr(pipeline, "MEBIBYTE", mebibyte)
        caplog.clear()
        make_streams(make_settings(cache="none", shuffle_mebibytes=1))
        assert ("pseudo: a shuffle window spans about 1.0 shards" in caplog.text) == warns


def softened(scores, temperature):
    powers = np.exp(scores.astype(np.float64) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("ratio", [0, 3])
def test_under_distillation_every_image_has_its_hard_label_and_its_teachers_probabilities(
    make_streams, make_settings, digits, pseudo_scores, labeled_scores, ratio
):
    settings = make_settings(
        distillation_alpha=[0.5],
        distillation_temperature=[3.0],
        label_smoothing=0.1,
        ratio=[ratio],
    )
    labels = [digits[1][:60], pseudo_scores[0].argmax(axis=1)]
    streams, scores = make_streams(settings), [labeled_scores, pseudo_scores[0]]
    assert len(streams) == (2 if ratio else 1)
    for stream, stream_labels, stream_scores in zip(streams, labels, scores, strict=False):
        assert stream.targets.shape[1:] == (2, 10)
        expected = 0.9 * np.eye(10)[stream_labels] + 0.01
        np.testing.assert_allclose(stream.targets[:, 0], expected, rtol=1e-6)
        np.testing.assert_allclose(stream.targets[:, 1], softened(stream_scores, 3), rtol=1e-5)


def test_mixup_and_class_weights_apply_to_both_targets_of_distillation(
    make_streams, make_settings, digits, expected_weights
):
    changes = {"distillation_alpha": [0.5], "mixup_alpha": [1.0], "ratio": [0]}
    batches = []
    for weights in ("none", "balanced"):
        settings = make_settings(**changes, class_weights=weights)
        streams = make_streams(settings)
        ((batch,),) = input_streams.make_batches(settings, streams)(0, 1)
        batches.append({name: rows.numpy() for name, rows in batch.items()})
    plain, weighted = batches
    np.testing.assert_array_equal(plain["image"], weighted["image"])
    assert plain["target"].shape == weighted["target"].shape == (8, 2, 10)
    for target in (plain["target"], weighted["target"]):
        np.testing.assert_allclose(target.sum(axis=-1), 1, rtol=1e-5)
    sums = streams[0].targets.numpy().sum(axis=-1)  # With balanced weights.
    np.testing.assert_allclose(sums[:, 0], expected_weights[digits[1][:60]], rtol=1e-5)
    np.testing.assert_allclose(sums[:, 1], sums[:, 0], rtol=1e-5)
    shares = plain["target"][:, 0]  # Of the two one-hot labels.
    assert (shares.max(axis=1) < 0.99).any()
    received = weighted["weight"][:, None] * weighted["target"][:, 0]
    np.testing.assert_allclose(received, shares * expected_weights, rtol=1e-5)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_batches_of_distillation_are_the_same_after_a_resume(make_streams, make_settings, cache):
    settings = make_settings(
        distillation_alpha=[0.5], cutmix_alpha=[1.0], mixup_alpha=[1.0], cache=cache
    )
    make_batches = input_streams.make_batches(settings, make_streams(settings))
    whole, resumed = (list(make_batches(first, 12).as_numpy_iterator()) for first in (0, 9))
    for expected, received in zip(whole[9:], resumed, strict=True):
        for stream, resumed_stream in zip(expected, received, strict=True):
            for name in PARTS:
                np.testing.assert_array_equal(resumed_stream[name], stream[name])


@pytest.mark.parametrize("alpha", [0, 0.5])
@pytest.mark.parametrize("mixing", ["ratio", "union"])
def test_streams_from_shards_equal_streams_in_memory(make_streams, make_settings, mixing, alpha):
    """An epoch of each has the same images with the same targets, equally often."""

    def epoch(cache):
        settings = make_settings(
            mixing=mixing,
            loss_normalization="all",
            label_smoothing=0.2,
            cache=cache,
            distillation_alpha=[alpha],
        )
        epochs = []
        for stream in make_streams(settings, labeled_copies={"7": 3}):
            whole_epoch = dataclasses.replace(stream, batch_size=stream.epoch_size)
            batches = pipeline.training_batches(
                (whole_epoch,),
                settings.noise_key,
                input_streams.make_perturbation(settings),
                8,
                0,
                1,
            )
            (batch,) = batches.as_numpy_iterator()
            rows = [np.reshape(batch[0][part], [stream.epoch_size, -1]) for part in PARTS]
            epochs.append(sorted(map(tuple, np.concatenate(rows, axis=1))))
        return epochs

    for from_shards, in_memory in zip(epoch("none"), epoch("memory"), strict=True):
        np.testing.assert_allclose(from_shards, in_memory, rtol=1e-6)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_perturbation_uses_every_setting(make_settings, digits, kind):
    settings = make_settings(
        **{f"{kind}_alpha": [0.7]},
        flip="on",
        min_crop_area=[0.3],
        crop_padding=[2],
        crop_mode="reflect",
        cutout_side=[3],
        randaugment_num_ops=[3],
        randaugment_magnitude=[7],
        randaugment_max_level=10.0,
        randaugment_profile="reference",
        randaugment_operations="rotate,invert,cutout",
        magnitude_mode="uniform",
        translate_share=0.2,
        fill=9,
    )
    targets, key = tf.one_hot(tf.range(40) % 10, 10), noise.key(0)
    encoded = tf.constant(digits[2][:40])
    augmented = augment.augment(
        crops.random_resized_crop(encoded, key, 8, 0.3),
        key,
        ImageNoise(
            crop_padding=2,
            crop_mode="reflect",
            flip=True,
            cutout_side=3,
            rand_augment=RandAugmentOptions(
                num_ops=3,
                magnitude=7.0,
                max_level=10.0,
                profile="reference",
                operations=("rotate", "invert", "cutout"),
                magnitude_mode="uniform",
                translate_share=0.2,
                fill=9,
            ),
        ),
    )
    expected = getattr(mixup, kind)(augmented, targets, key, 0.7)
    received = input_streams.make_perturbation(settings)(encoded, targets, key)
    for received_part, expected_part in zip(received, expected, strict=True):
        np.testing.assert_array_equal(received_part, expected_part)
    assert np.any(received[0] != augmented)


# Weights of classes.


@pytest.fixture
def expected_weights(digits):
    """Weight of each class's labelled images by scikit-learn, float (10,)."""
    return compute_class_weight("balanced", classes=np.arange(10), y=digits[1][:60])


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_labelled_images_have_the_weights_of_their_classes(
    make_streams, make_settings, expected_weights, cache
):
    """Pseudo-labelled images have the weight 1; images, order and targets stay the same."""
    weights = []
    for class_weights in ("none", "balanced"):
        settings = make_settings(class_weights=class_weights, label_smoothing=0.1, cache=cache)
        streams = make_streams(settings)
        batches = input_streams.make_batches(settings, streams)(0, 15)
        weights.append(list(batches.as_numpy_iterator()))
    for plain, weighted in zip(*weights, strict=True):
        for stream, weighted_stream in zip(plain, weighted, strict=True):
            np.testing.assert_array_equal(stream["image"], weighted_stream["image"])
            np.testing.assert_allclose(stream["target"], weighted_stream["target"], rtol=1e-5)
            np.testing.assert_array_equal(stream["weight"], 1)
        labeled, pseudo = weighted
        expected = expected_weights[labeled["target"].argmax(axis=1)]
        np.testing.assert_allclose(labeled["weight"], expected, rtol=1e-5)
        np.testing.assert_allclose(pseudo["weight"], 1, rtol=1e-5)
    # Two epochs over the 60 labelled images: their mean weight is 1.
    assert np.mean([labeled["weight"] for labeled, _ in weights[1]]) == pytest.approx(1)


def test_in_a_union_only_labelled_images_are_weighted(make_streams, make_settings):
    settings = make_settings(
        class_weights="balanced", mixing="union", loss_normalization="all", pseudo_label="hard"
    )
    (union,) = make_streams(settings)
    weights = union.targets.numpy().sum(axis=1)
    np.testing.assert_allclose(weights[60:], 1, rtol=1e-6)
    assert weights[:60].mean() == pytest.approx(1) and weights[:60].std() > 0.05


def test_copies_of_labelled_images_count(make_streams, make_settings, digits, shard_sets):
    labels = digits[1][:60]
    copies = {str(number): 7 for number in np.flatnonzero(labels == 3)} | {"0": 0}
    counts = input_streams.count_labeled_rows(shard_sets["labeled"], copies)
    rows = [copies.get(str(number), 1) for number in range(60)]
    np.testing.assert_array_equal(counts, np.bincount(labels, rows, 10))
    labeled, _ = make_streams(make_settings(class_weights="balanced"), copies)
    weights = labeled.targets.numpy().sum(axis=1)
    expected = compute_class_weight("balanced", classes=np.arange(10), y=np.repeat(labels, rows))
    np.testing.assert_allclose(weights, expected[labels], rtol=1e-6)


def test_mixup_mixes_weighted_losses(make_streams, make_settings, expected_weights):
    """The loss of a mixed image is the mixture of the weighted losses of both of its labels."""
    batches = [
        next(iter(input_streams.make_batches(settings, make_streams(settings))(0, 1)))
        for settings in (
            make_settings(generation=0, mixup_alpha=[1.0], class_weights=class_weights)
            for class_weights in ("none", "balanced")
        )
    ]
    ((plain,), (weighted,)) = batches
    mixed = plain["target"].numpy()
    assert (mixed.max(axis=1) < 0.99).any()
    received = weighted["weight"].numpy()[:, None] * weighted["target"].numpy()
    np.testing.assert_allclose(received, mixed * expected_weights, rtol=1e-5)
    np.testing.assert_allclose(weighted["target"].numpy().sum(axis=1), 1, rtol=1e-6)


def test_a_growing_magnitude_grows_over_the_whole_budget(make_settings):
    settings = make_settings(
        magnitude_mode="growing", randaugment_num_ops=[1], train_images=[32 * 7], ratio=[3]
    )
    options = input_streams.make_perturbation(settings).keywords["image_noise"].rand_augment
    assert options.grows and options.growth_steps == 7
