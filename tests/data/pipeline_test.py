"""Batches of training and scoring: order, noise, blocks of steps, and shares of workers."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from nsk import noise
from nsk.data import batch_blocks, parallel_map, perturb, pipeline
from nsk.data.augment import ImageNoise
from nsk.data.image_operations import RandAugmentOptions
from nsk.data.streams import ResidentStream
from nsk.distributed.batch_share import WHOLE, Share

KEY = noise.key(0, "pipeline test")


def unchanged(images, targets, key, batch_size, first_step):
    return images, targets


def stream(copies, batch_size, name="labeled", first=0):
    """A stream of images numbered from `first`; every pixel and target is the image's number."""
    numbers = first + np.arange(len(copies))
    images = np.tile(numbers[:, np.newaxis, np.newaxis, np.newaxis], [1, 2, 2, 3]).astype(np.uint8)
    targets = np.tile(numbers[:, np.newaxis], [1, 2]).astype(np.float32)
    return ResidentStream(
        name,
        tf.constant(images),
        tf.constant(targets),
        np.array(copies, np.int32),
        batch_size,
        np.count_nonzero(copies),
    )


def image_numbers(all_streams, num_steps, first_step=0, key=KEY):
    """Numbers of the images in each step: for each stream an array (steps, batch)."""
    batches = pipeline.training_batches(
        tuple(all_streams), key, unchanged, 2, first_step, num_steps
    )
    steps = []
    for element in batches.as_numpy_iterator():
        for batch in element:
            np.testing.assert_array_equal(batch["image"][:, 1, 1, 2], batch["target"][:, 1])
            np.testing.assert_array_equal(batch["weight"], 1.0)
        steps.append([batch["target"][:, 0].astype(int) for batch in element])
    return [np.stack(numbers) for numbers in zip(*steps, strict=True)]


# Order.


@pytest.mark.parametrize(
    ("copies", "batch_size"),
    [
        ([1] * 12, 4),
        ([1, 3, 2, 5, 1], 6),  # 12 rows in an epoch: two batches.
        ([2, 1, 1], 10),  # Several epochs in a batch.
        ([1] * 7, 5),  # Batches span the end of an epoch.
        ([4, 0, 3], 3),  # An image with 0 copies never occurs.
        ([1], 3),
        ([2], 3),
        ([0, 1], 2),
    ],
)
def test_every_epoch_has_all_copies_of_every_image(copies, batch_size):
    resident = stream(copies, batch_size)
    epoch_size = sum(copies)
    assert resident.epoch_size == epoch_size
    num_epochs = 6
    num_steps = -(-num_epochs * epoch_size // batch_size)
    rows = image_numbers([resident], num_steps)[0].ravel()
    epochs = rows[: num_epochs * epoch_size].reshape(num_epochs, epoch_size)
    for epoch in epochs:
        np.testing.assert_array_equal(np.bincount(epoch, minlength=len(copies)), copies)
    if epoch_size >= 12:
        assert len({tuple(epoch) for epoch in epochs}) == num_epochs


def test_the_order_of_an_epoch_is_well_mixed():
    """Every image is about as often in each position, and next to each other image."""
    rows = image_numbers([stream([1] * 8, 8)], 800)[0]
    counts = np.stack([np.bincount(place, minlength=8) for place in rows.T])
    assert np.all(np.abs(counts - 100) < 45)  # 4.8 standard deviations.
    neighbours = np.mean(np.diff(rows, axis=1) == 1)
    assert abs(neighbours - 7 / 56) < 0.02


def test_a_batch_depends_only_on_its_step():
    both = [stream([1, 2, 1, 4], 3), stream([1] * 9, 5, "pseudo", first=100)]
    whole = image_numbers(both, 20)
    for first_step in (1, 7, 19):
        for uninterrupted, resumed in zip(whole, image_numbers(both, 20, first_step), strict=True):
            np.testing.assert_array_equal(resumed, uninterrupted[first_step:])
    assert image_numbers(both, 4000, 3999)[0].shape == (1, 3)  # Far steps cost nothing.


def test_far_steps_neither_repeat_nor_overflow():
    resident = stream([1] * 35, 35)
    far = 2**31 - 3  # x 35 rows: beyond 32 bits.
    rows = image_numbers([resident], far + 3, far)[0]
    for epoch in rows:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(35))
    assert len({tuple(epoch) for epoch in rows}) == 3


def test_orders_differ_by_key_and_by_stream_name():
    orders = [
        image_numbers([stream([1] * 30, 30)], 1)[0],
        image_numbers([stream([1] * 30, 30)], 1, key=noise.key(1, "pipeline test"))[0],
        image_numbers([stream([1] * 30, 30, "pseudo")], 1)[0],
    ]
    assert len({tuple(order.ravel()) for order in orders}) == 3
    # A second stream does not change the first.
    both = image_numbers([stream([1] * 30, 30), stream([1] * 30, 7, "pseudo")], 1)
    np.testing.assert_array_equal(both[0], orders[0])
    assert both[1].shape == (1, 7)


# Augmentation.


@pytest.mark.parametrize("at_once", [1, 36, 1000])
def test_noise_depends_on_the_step_and_not_on_the_first_one(monkeypatch, at_once):
    """One step, three steps or all of them in a block: every image draws new noise."""
    monkeypatch.setattr(batch_blocks, "BLOCK_IMAGES", at_once)

    def mark(images, targets, key, batch_size, first_step):
        marks = noise.for_examples(
            lambda *args: noise.integers(*args, 256), key, tf.shape(images)[0], [1, 1, 1]
        )
        return tf.broadcast_to(tf.cast(marks, tf.uint8), tf.shape(images)), targets

    both = (stream([1] * 6, 6), stream([1] * 6, 6, "pseudo"))

    def marks(first_step):
        batches = pipeline.training_batches(both, KEY, mark, 2, first_step, 8)
        return [
            [batch["image"][:, 0, 0, 0] for batch in element]
            for element in batches.as_numpy_iterator()
        ]

    whole = marks(0)
    for first_step in (1, 3, 5, 7):
        for ours, theirs in zip(whole[first_step:], marks(first_step), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len({tuple(step_marks) for element in whole for step_marks in element}) == 16


@pytest.mark.parametrize("at_once", [1, 20, 1000])
def test_blocks_of_steps_do_not_change_the_order(monkeypatch, at_once):
    both = [stream([1, 2, 1, 4], 3), stream([1] * 9, 5, "pseudo", first=100)]
    expected = image_numbers(both, 20)
    monkeypatch.setattr(batch_blocks, "BLOCK_IMAGES", at_once)
    for ours, theirs in zip(image_numbers(both, 20), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_parallelism_changes_nothing(monkeypatch):
    """Slow first steps are still yielded first."""

    def slow_at_first(images, targets, key, batch_size, first_step):
        work = tf.linalg.matmul(tf.ones([600, 600]), tf.ones([600, 600]))
        again = tf.cond(images[0, 0, 0, 0] % 2 == 0, lambda: work @ work @ work, lambda: work)
        return images + tf.cast(0.0 * again[0, 0], tf.uint8), targets

    resident = stream([1, 3, 1, 1, 2, 1, 1], 4)
    outcomes = []
    monkeypatch.setattr(batch_blocks, "BLOCK_IMAGES", 1)  # A block is one step.
    for parallel in (1, 8):
        monkeypatch.setattr(parallel_map, "PARALLEL_CALLS", parallel)
        batches = pipeline.training_batches((resident,), KEY, slow_at_first, 2, 0, 30)
        outcomes.append([element[0]["image"] for element in batches.as_numpy_iterator()])
    np.testing.assert_array_equal(*outcomes)


def test_pairs_are_mixed_within_a_step():
    """Image i has target i: a mixed target only has classes of its own step."""
    numbers = tf.constant(np.eye(24, dtype=np.float32))
    resident = dataclasses.replace(stream([1] * 24, 4), targets=numbers)
    mix, plain = (
        functools.partial(perturb.perturb, image_size=2, image_noise=image_noise)
        for image_noise in (ImageNoise(mixup_alpha=1.0), ImageNoise())
    )
    assert batch_blocks.steps_in_block(4, 2) > 6
    mixed, unmixed = (
        [element[0]["target"].numpy() for element in batches]
        for batches in (
            pipeline.training_batches((resident,), KEY, function, 2, 0, 6)
            for function in (mix, plain)
        )
    )
    for ours, theirs in zip(mixed, unmixed, strict=True):
        assert np.any(ours != theirs)
        assert set(np.flatnonzero(ours.any(axis=0))) <= set(np.flatnonzero(theirs.any(axis=0)))


# Distribution.

MIXED = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}


@pytest.mark.parametrize(
    ("workers", "replicas", "at_once", "settings"),
    [
        *((2, 2, 99, {}), (4, 1, 99, {}), (2, 2, 99, MIXED)),  # At once, six steps in a block.
        *((1, 1, 4, {}), (1, 2, 12, {}), (2, 2, 2, {})),  # In pieces.
    ],
)
def test_shares_together_are_the_global_batches(monkeypatch, settings, workers, replicas, at_once):
    """Order and noise of an image depend on its position in the global batch, not on the worker or
    on pieces."""
    monkeypatch.setattr(batch_blocks, "BLOCK_PIXELS", at_once * 8 * 8)
    random = np.random.default_rng(0)
    both = [stream([1] * 20, 4), stream([1, 2] * 20, 12, "pseudo", first=100)]
    both = [
        dataclasses.replace(
            resident,
            images=tf.constant(
                random.integers(0, 256, (*resident.copies.shape, 8, 8, 3), np.uint8)
            ),
        )
        for resident in both
    ]
    options = RandAugmentOptions(
        num_ops=2,
        magnitude=9.0,
        operations=("rotate", "brightness", "cutout"),
        magnitude_mode="uniform",
    )
    image_noise = ImageNoise(
        crop_padding=1, flip=True, cutout_side=2, rand_augment=options, **settings
    )
    noisy = functools.partial(perturb.perturb, image_size=8, image_noise=image_noise)

    def make(share, first_step=0):
        """For each step from `first_step` on, stream and part: rows of all replicas."""
        dataset = pipeline.training_batches(
            tuple(both), KEY, noisy, 8, first_step, 14, share, mixes=bool(settings)
        )
        elements = list(dataset.as_numpy_iterator())
        assert len(elements) == (14 - first_step) * share.replicas
        sizes = [size // share.replicas for size in share.sizes([4, 12])]
        assert all([len(batch["image"]) for batch in element] == sizes for element in elements)
        steps = [elements[i :: share.replicas] for i in range(share.replicas)]
        return tf.nest.map_structure(lambda *replicas: np.concatenate(replicas), *map(list, steps))

    with monkeypatch.context() as patched:
        patched.setattr(batch_blocks, "pieces_of_batch", lambda *_: 1)
        whole = make(WHOLE)
    parts = [make(Share(worker, workers, replicas)) for worker in range(workers)]
    together = tf.nest.map_structure(lambda *rows: np.concatenate(rows), *parts)
    tf.nest.map_structure(np.testing.assert_array_equal, together, whole)
    later = make(Share(workers - 1, workers, replicas), first_step=8)
    tf.nest.map_structure(np.testing.assert_array_equal, later, parts[-1][8:])


@pytest.mark.parametrize("kind", ["", "uniform"])
@pytest.mark.parametrize("at_once", [16, 1000])
def test_growing_noise_is_that_of_the_magnitude_of_each_step(monkeypatch, kind, at_once):
    """Equal to constant magnitudes; in blocks of two or all steps, resumed, and for two workers."""
    monkeypatch.setattr(batch_blocks, "BLOCK_IMAGES", at_once)
    random, num_steps = np.random.default_rng(0), 5
    resident = dataclasses.replace(
        stream([1] * 8, 8), images=tf.constant(random.integers(0, 256, (8, 4, 4, 3), np.uint8))
    )

    def make(mode, magnitude, first_step=0, share=WHOLE):
        options = RandAugmentOptions(
            num_ops=1,
            magnitude=magnitude,
            operations=("solarize_add",),
            magnitude_mode=mode,
            growth_steps=num_steps,
        )
        image_noise = ImageNoise(rand_augment=options)
        noisy = functools.partial(perturb.perturb, image_size=4, image_noise=image_noise)
        dataset = pipeline.training_batches(
            (resident,), KEY, noisy, 4, first_step, num_steps, share
        )
        return np.stack([batch[0]["image"] for batch in dataset.as_numpy_iterator()])

    mode = f"growing_{kind}".rstrip("_")
    received = make(mode, 20.0)
    for step in range(num_steps):
        expected = make(kind or "constant", 20.0 * step / (num_steps - 1))[step]
        np.testing.assert_array_equal(received[step], expected)
    assert len({rows.tobytes() for rows in received}) == num_steps
    resumed = make(mode, 20.0, first_step=3)
    np.testing.assert_array_equal(resumed, received[3:])
    shares = [make(mode, 20.0, share=Share(worker, 2)) for worker in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), received)


# Scoring.


@pytest.mark.parametrize(
    ("batch_size", "at_once", "sizes"),
    [
        (250, 512, [250, 250, 100]),
        (256, 100, [250, 250, 100]),
        (1000, 7, [250, 250, 100]),
        (249, 512, [125, 125, 125, 125, 100]),  # Of nearly equal size: not 249 and 1.
        (100, 30, [83, 83, 84, 83, 83, 84, 100]),
        (1, 512, [1] * 600),
    ],
)
def test_clean_batches_have_every_image_once_in_order(
    labeled, digit_images, monkeypatch, batch_size, at_once, sizes
):
    """And no batch has images of two shards."""
    monkeypatch.setattr(batch_blocks, "BLOCK_IMAGES", at_once)
    batches = list(pipeline.clean_batches(labeled, 8, batch_size).as_numpy_iterator())
    assert [len(batch["id"]) for batch in batches] == sizes
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert whole["id"].tolist() == [f"digit/{number}".encode() for number in range(600)]
    np.testing.assert_array_equal(whole["image"], digit_images)
    np.testing.assert_array_equal(whole["label"], load_digits().target[:600])


@pytest.mark.parametrize("shards", [[1], [0, 2], [2, 0], [2], []])
def test_clean_batches_of_a_shard_do_not_depend_on_the_other_shards(labeled, shards):
    whole = list(pipeline.clean_batches(labeled, 8, 90).as_numpy_iterator())
    assert [len(batch["id"]) for batch in whole] == [83, 83, 84, 83, 83, 84, 50, 50]
    by_shard = [whole[:3], whole[3:6], whole[6:]]
    expected = [batch for shard in shards for batch in by_shard[shard]]
    some = list(pipeline.clean_batches(labeled, 8, 90, shards).as_numpy_iterator())
    for ours, theirs in zip(some, expected, strict=True):
        for name in ("id", "label", "image"):
            np.testing.assert_array_equal(ours[name], theirs[name])
