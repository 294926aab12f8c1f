"""All noise on training images in order, and pairs within their batch."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nsk import noise
from nsk.data import augment, crops, mixup
from nsk.data.augment import ImageNoise
from nsk.data.decoding import decode_images
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.perturb import perturb

KEY = noise.key(0, "perturb test")
SIDE = 8
BATCH, NUM_BATCHES = 6, 8
COUNT = BATCH * NUM_BATCHES
AUGMENTATION = {
    "crop_padding": 2,
    "flip": True,
    "rand_augment": RandAugmentOptions(num_ops=1, magnitude=9.0),
}


def pixels(count=COUNT, side=SIDE):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def targets(count=COUNT):
    return np.random.default_rng(1).dirichlet(np.ones(3), count).astype(np.float32)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def perturbed(images, targets, key=KEY, batch_size=None, **noises):
    image_noise = ImageNoise(**noises)
    return perturb(images, targets, key, batch_size, image_size=SIDE, image_noise=image_noise)


def mixed_batches(**alphas):
    """Which batches each image's mixed target comes from: bool (images, batches).

    The targets of batch b are class b.
    """
    batch_targets = np.repeat(np.eye(NUM_BATCHES, dtype=np.float32), BATCH, axis=0)
    _, mixed = perturbed(pixels(), batch_targets, KEY, BATCH, **alphas)
    return mixed.numpy() > 0


def test_without_noise_images_and_targets_are_unchanged():
    images, given = pixels(), targets()
    received = perturbed(images, given)
    np.testing.assert_array_equal(received[0], images)
    np.testing.assert_array_equal(received[1], given)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_augmented_images_are_mixed(kind):
    images, given = pixels(), targets()
    options = {f"{kind}_alpha": 0.7, **AUGMENTATION}
    received = perturbed(images, given, KEY, BATCH, **options)
    augmented = augment.augment(images, KEY, ImageNoise(**AUGMENTATION))
    expected = getattr(mixup, kind)(augmented, given, KEY, 0.7, BATCH)
    for ours, theirs in zip(received, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.any(received[0] != augmented)


def test_encoded_images_are_decoded_or_cropped_at_random():
    encoded = tf.constant([png(image) for image in pixels(4, 20)])
    whole, _ = perturbed(encoded, targets(4))
    np.testing.assert_array_equal(whole, decode_images(encoded, SIDE))
    cropped, _ = perturbed(encoded, targets(4), min_crop_area=0.3)
    np.testing.assert_array_equal(cropped, crops.random_resized_crop(encoded, KEY, SIDE, 0.3))
    assert np.any(whole != cropped)


@pytest.mark.parametrize(
    "alphas", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 1.0, "cutmix_alpha": 1}]
)
def test_pairs_stay_within_their_batch(alphas):
    own = np.repeat(np.eye(NUM_BATCHES, dtype=bool), BATCH, axis=0)
    np.testing.assert_array_equal(mixed_batches(**alphas), own)


def test_if_both_are_on_every_batch_draws_mixup_or_cutmix():
    images, given = pixels(), targets()
    both = perturbed(images, given, KEY, BATCH, mixup_alpha=0.7, cutmix_alpha=0.4)
    alternatives = [
        mixup.mixup(images, given, KEY, 0.7, BATCH),
        mixup.cutmix(images, given, KEY, 0.4, BATCH),
    ]

    def by_batch(rows):
        return np.reshape(rows, [NUM_BATCHES, -1])

    chosen = []
    for batch in range(NUM_BATCHES):
        equal = [
            all(
                np.array_equal(by_batch(ours)[batch], by_batch(theirs)[batch])
                for ours, theirs in zip(both, mixed, strict=True)
            )
            for mixed in alternatives
        ]
        assert sum(equal) == 1
        chosen.append(equal.index(True))
    assert set(chosen) == {0, 1}


def test_mixup_and_cutmix_are_equally_likely():
    given = np.tile(np.eye(2, dtype=np.float32), [400, 1])  # Batches of two images.
    images = np.tile(np.array([0, 200], np.uint8)[:, None, None, None], [400, SIDE, SIDE, 3])
    mixed, _ = perturbed(images, given, KEY, 2, mixup_alpha=1.0, cutmix_alpha=1.0)
    levels = mixed.numpy().reshape(400, -1)
    by_cutmix = np.mean([set(np.unique(row)) <= {0, 200} for row in levels])
    assert abs(by_cutmix - 0.5) < 5 * np.sqrt(0.25 / 400)


def test_a_pure_function_of_its_arguments_in_map_as_in_eager_mode():
    options = {"mixup_alpha": 0.7, "cutmix_alpha": 0.4, **AUGMENTATION}
    eager = perturbed(pixels(), targets(), KEY, BATCH, **options)
    dataset = tf.data.Dataset.from_tensors((pixels(), targets())).unbatch().batch(COUNT)
    mapped = dataset.map(lambda x, y: perturbed(x, y, tf.constant(KEY), BATCH, **options))
    different = perturbed(pixels(), targets(), noise.key(1), BATCH, **options)
    for first, again, other in zip(eager, next(iter(mapped)), different, strict=True):
        np.testing.assert_array_equal(first, again)
        assert np.any(first != other)


@pytest.mark.parametrize(
    ("num_steps", "first_step", "magnitudes"),
    [(11, 3, [9.0, 12.0]), (5, 3, [22.5, 30.0]), (5, 4, [30.0, 30.0]), (1, 0, [30.0, 30.0])],
)
def test_a_growing_magnitude_is_that_of_the_step_of_each_batch(num_steps, first_step, magnitudes):
    """Of two batches in a call, the second may be after the last step, and is not used then."""
    images = np.full([6, SIDE, SIDE, 3], 10, np.uint8)
    options = RandAugmentOptions(
        num_ops=1,
        magnitude=30.0,
        operations=("solarize_add",),
        magnitude_mode="growing",
        growth_steps=num_steps,
    )
    image_noise = ImageNoise(rand_augment=options)
    arguments = {"image_size": SIDE, "image_noise": image_noise}
    targets = np.ones([6, 2], np.float32)
    received, _ = perturb(images, targets, KEY, 3, first_step, **arguments)
    expected = 10 + np.floor(110 * np.repeat(magnitudes, 3) / 30)
    np.testing.assert_array_equal(received[:, 0, 0, 0], expected)
    whole, _ = perturb(images, targets, KEY, 3, **arguments)  # Without a step: full strength.
    np.testing.assert_array_equal(whole[:, 0, 0, 0], 120)
