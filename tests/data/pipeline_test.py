import dataclasses
import functools
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from nsk import noise
from nsk.data import perturb, pipeline, records, shards, streams
from nsk.distributed.batch_share import WHOLE, Share
from nsk.errors import UserError

KEY = noise.key(0, "pipeline test")
NAMES = [str(digit) for digit in range(10)]


def unchanged(images, targets, key, batch_size):
    return images, targets


def stream(copies, batch_size, name="labeled", first=0):
    """A stream whose image number i, counted from `first`, shows i in every pixel and target."""
    numbers = first + np.arange(len(copies))
    images = np.tile(numbers[:, np.newaxis, np.newaxis, np.newaxis], [1, 2, 2, 3]).astype(np.uint8)
    targets = np.tile(numbers[:, np.newaxis], [1, 2]).astype(np.float32)
    return streams.ResidentStream(
        name,
        tf.constant(images),
        tf.constant(targets),
        np.array(copies, np.int32),
        batch_size,
        np.count_nonzero(copies),
    )


def shown(all_streams, num_steps, first_step=0, key=KEY):
    """Which images each step shows: for each stream an array (steps, batch)."""
    batches = pipeline.training_batches(
        tuple(all_streams), key, unchanged, 2, first_step, num_steps
    )
    steps = []
    for element in batches.as_numpy_iterator():
        for one in element:
            np.testing.assert_array_equal(one["image"][:, 1, 1, 2], one["target"][:, 1])
            np.testing.assert_array_equal(one["weight"], 1.0)
        steps.append([one["target"][:, 0].astype(int) for one in element])
    return [np.stack(of_stream) for of_stream in zip(*steps, strict=True)]


# Order.


@pytest.mark.parametrize(
    ("copies", "batch_size"),
    [
        ([1] * 12, 4),
        ([1, 3, 2, 5, 1], 6),  # 12 rows in an epoch: two batches.
        ([2, 1, 1], 10),  # Several epochs in a batch.
        ([1] * 7, 5),  # Batches reach over the end of an epoch.
        ([4, 0, 3], 3),  # What has no copies is never shown.
        ([1], 3),
        ([2], 3),
        ([0, 1], 2),
    ],
)
def test_every_epoch_shows_every_image_as_often_as_it_has_copies(copies, batch_size):
    one = stream(copies, batch_size)
    epoch_size = sum(copies)
    assert one.epoch_size == epoch_size
    num_epochs = 6
    num_steps = -(-num_epochs * epoch_size // batch_size)
    rows = shown([one], num_steps)[0].ravel()
    epochs = rows[: num_epochs * epoch_size].reshape(num_epochs, epoch_size)
    for epoch in epochs:
        np.testing.assert_array_equal(np.bincount(epoch, minlength=len(copies)), copies)
    if epoch_size >= 12:
        assert len({tuple(epoch) for epoch in epochs}) == num_epochs


def test_the_order_of_an_epoch_is_well_mixed():
    """Over many epochs every image is about as often in each place, and next to each other one."""
    rows = shown([stream([1] * 8, 8)], 800)[0]
    counts = np.stack([np.bincount(place, minlength=8) for place in rows.T])
    assert np.all(np.abs(counts - 100) < 45)  # 4.8 standard deviations.
    neighbours = np.mean(np.diff(rows, axis=1) == 1)
    assert abs(neighbours - 7 / 56) < 0.02


def test_a_batch_is_a_function_of_its_step_alone():
    both = [stream([1, 2, 1, 4], 3), stream([1] * 9, 5, "pseudo", first=100)]
    whole = shown(both, 20)
    for first_step in (1, 7, 19):
        for all_of_it, rest in zip(whole, shown(both, 20, first_step), strict=True):
            np.testing.assert_array_equal(rest, all_of_it[first_step:])
    assert shown(both, 4000, 3999)[0].shape == (1, 3)  # Far steps cost nothing.


def test_far_steps_neither_repeat_nor_overflow():
    one = stream([1] * 35, 35)
    far = 2**31 - 3  # x 35 rows: beyond 32 bits.
    rows = shown([one], far + 3, far)[0]
    for epoch in rows:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(35))
    assert len({tuple(epoch) for epoch in rows}) == 3


def test_orders_differ_by_key_and_by_stream_name():
    orders = [
        shown([stream([1] * 30, 30)], 1)[0],
        shown([stream([1] * 30, 30)], 1, key=noise.key(1, "pipeline test"))[0],
        shown([stream([1] * 30, 30, "pseudo")], 1)[0],
    ]
    assert len({tuple(order.ravel()) for order in orders}) == 3
    # A second stream beside it changes nothing of the first.
    both = shown([stream([1] * 30, 30), stream([1] * 30, 7, "pseudo")], 1)
    np.testing.assert_array_equal(both[0], orders[0])
    assert both[1].shape == (1, 7)


# Augmentation.


@pytest.mark.parametrize("at_once", [1, 36, 1000])
def test_noise_depends_on_the_step_and_not_on_the_first_one(monkeypatch, at_once):
    """One step, three steps or all of them in a block: every image is perturbed anew."""
    monkeypatch.setattr(pipeline, "BLOCK_IMAGES", at_once)

    def mark(images, targets, key, batch_size):
        marks = noise.for_examples(
            lambda *args: noise.integers(*args, 256), key, tf.shape(images)[0], [1, 1, 1]
        )
        return tf.broadcast_to(tf.cast(marks, tf.uint8), tf.shape(images)), targets

    both = (stream([1] * 6, 6), stream([1] * 6, 6, "pseudo"))

    def marks(first_step):
        batches = pipeline.training_batches(both, KEY, mark, 2, first_step, 8)
        return [
            [one["image"][:, 0, 0, 0] for one in element] for element in batches.as_numpy_iterator()
        ]

    whole = marks(0)
    for first_step in (1, 3, 5, 7):
        for ours, theirs in zip(whole[first_step:], marks(first_step), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len({tuple(one) for element in whole for one in element}) == 16


@pytest.mark.parametrize("at_once", [1, 20, 1000])
def test_blocks_of_steps_change_no_order(monkeypatch, at_once):
    both = [stream([1, 2, 1, 4], 3), stream([1] * 9, 5, "pseudo", first=100)]
    expected = shown(both, 20)
    monkeypatch.setattr(pipeline, "BLOCK_IMAGES", at_once)
    for ours, theirs in zip(shown(both, 20), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_parallelism_changes_nothing(monkeypatch):
    """Slow first steps are handed out first all the same."""

    def slow_at_first(images, targets, key, batch_size):
        work = tf.linalg.matmul(tf.ones([600, 600]), tf.ones([600, 600]))
        again = tf.cond(images[0, 0, 0, 0] % 2 == 0, lambda: work @ work @ work, lambda: work)
        return images + tf.cast(0.0 * again[0, 0], tf.uint8), targets

    one = stream([1, 3, 1, 1, 2, 1, 1], 4)
    outcomes = []
    monkeypatch.setattr(pipeline, "BLOCK_IMAGES", 1)  # A block is one step.
    for parallel in (1, 8):
        monkeypatch.setattr(pipeline, "PARALLEL_CALLS", parallel)
        batches = pipeline.training_batches((one,), KEY, slow_at_first, 2, 0, 30)
        outcomes.append([element[0]["image"] for element in batches.as_numpy_iterator()])
    np.testing.assert_array_equal(*outcomes)


def test_pairs_are_mixed_within_a_step():
    """Image i has target i: what a mixed target is made of stands in the same step."""
    one = stream([1] * 24, 4)
    numbers = tf.constant(np.eye(24, dtype=np.float32))
    one = dataclasses.replace(one, targets=numbers)
    mix = functools.partial(perturb.perturb, image_size=2, mixup_alpha=1.0)
    plain = functools.partial(perturb.perturb, image_size=2)
    assert pipeline.steps_in_block(4, 2) > 6
    mixed, apart = (
        [element[0]["target"].numpy() for element in batches]
        for batches in (
            pipeline.training_batches((one,), KEY, noise_of, 2, 0, 6) for noise_of in (mix, plain)
        )
    )
    for ours, theirs in zip(mixed, apart, strict=True):
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
    """Order and noise of an image are those of its place in the global batch, whoever makes it, at
    once or in pieces."""
    monkeypatch.setattr(pipeline, "BLOCK_PIXELS", at_once * 8 * 8)
    random = np.random.default_rng(0)
    both = [stream([1] * 20, 4), stream([1, 2] * 20, 12, "pseudo", first=100)]
    both = [
        dataclasses.replace(
            one, images=tf.constant(random.integers(0, 256, (*one.copies.shape, 8, 8, 3), np.uint8))
        )
        for one in both
    ]
    noisy = functools.partial(
        perturb.perturb,
        image_size=8,
        crop_padding=1,
        flip=True,
        cutout_side=2,
        num_ops=2,
        magnitude=9.0,
        operations=("rotate", "brightness", "cutout"),
        magnitude_mode="uniform",
        **settings,
    )

    def make(share, first_step=0):
        """For each step from the first one on, stream and part: rows of all replicas."""
        dataset = pipeline.training_batches(
            tuple(both), KEY, noisy, 8, first_step, 14, share, mixes=bool(settings)
        )
        elements = list(dataset.as_numpy_iterator())
        assert len(elements) == (14 - first_step) * share.replicas
        sizes = [size // share.replicas for size in share.sizes([4, 12])]
        assert all([len(one["image"]) for one in element] == sizes for element in elements)
        steps = [elements[i :: share.replicas] for i in range(share.replicas)]
        return tf.nest.map_structure(
            lambda *of_replicas: np.concatenate(of_replicas), *map(list, steps)
        )

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "pieces_of_batch", lambda *_: 1)
        whole = make(WHOLE)
    parts = [make(Share(worker, workers, replicas)) for worker in range(workers)]
    together = tf.nest.map_structure(lambda *rows: np.concatenate(rows), *parts)
    tf.nest.map_structure(np.testing.assert_array_equal, together, whole)
    later = make(Share(workers - 1, workers, replicas), first_step=8)
    tf.nest.map_structure(np.testing.assert_array_equal, later, parts[-1][8:])


# Loading.


def digit_images(count):
    images = np.minimum(load_digits().images[:count] * 16, 255).astype(np.uint8)
    return np.repeat(images[..., np.newaxis], 3, axis=-1)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def labeled(tmp_path):
    """600 digits (more than the reader takes at once) in shards of 250."""
    pixels, labels = digit_images(600), load_digits().target[:600]
    with shards.ShardWriter(tmp_path / "labeled", "images", NAMES, 250) as writer:
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            writer.write(records.image_example(f"digit/{number}", png(image), label))
    return shards.ShardSet.load(tmp_path / "labeled")


def test_images_are_loaded_in_file_order(labeled):
    images = pipeline.load_images(labeled, 8)
    assert len(images) == 600
    assert images.ids == [f"digit/{number}" for number in range(600)]
    assert images.images.dtype == tf.uint8
    np.testing.assert_array_equal(images.images, digit_images(600))
    assert images.labels.dtype == np.int32
    np.testing.assert_array_equal(images.labels, load_digits().target[:600])
    assert images.log_probabilities is None
    np.testing.assert_array_equal(images.copies, np.ones(600))


def test_images_are_resized_or_stay_encoded(labeled):
    images = pipeline.load_images(labeled, 16)
    assert images.images.shape == (600, 16, 16, 3)
    expected = records.decode_image(tf.constant(png(digit_images(600)[250])), 16)
    np.testing.assert_array_equal(images.images[250], expected)
    encoded = pipeline.load_images(labeled, None)
    assert encoded.images.dtype == tf.string
    assert encoded.images[250].numpy() == png(digit_images(600)[250])


@pytest.mark.parametrize(
    ("batch_size", "at_once", "sizes"),
    [
        (250, 512, [250, 250, 100]),
        (256, 100, [250, 250, 100]),
        (1000, 7, [250, 250, 100]),
        (249, 512, [125, 125, 125, 125, 100]),  # As equal as may be: not 249 and 1.
        (100, 30, [83, 83, 84, 83, 83, 84, 100]),
        (1, 512, [1] * 600),
    ],
)
def test_clean_batches_show_every_image_once_in_order(
    labeled, monkeypatch, batch_size, at_once, sizes
):
    """And no batch shows images of two shards."""
    monkeypatch.setattr(pipeline, "BLOCK_IMAGES", at_once)
    batches = list(pipeline.clean_batches(labeled, 8, batch_size).as_numpy_iterator())
    assert [len(batch["id"]) for batch in batches] == sizes
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert whole["id"].tolist() == [f"digit/{number}".encode() for number in range(600)]
    np.testing.assert_array_equal(whole["image"], digit_images(600))
    np.testing.assert_array_equal(whole["label"], load_digits().target[:600])


@pytest.mark.parametrize("shards", [[1], [0, 2], [2, 0], [2], []])
def test_clean_batches_of_some_shards_are_what_they_are_among_all(labeled, shards):
    whole = list(pipeline.clean_batches(labeled, 8, 90).as_numpy_iterator())
    assert [len(batch["id"]) for batch in whole] == [83, 83, 84, 83, 83, 84, 50, 50]
    of_shard = [whole[:3], whole[3:6], whole[6:]]
    expected = [batch for shard in shards for batch in of_shard[shard]]
    some = list(pipeline.clean_batches(labeled, 8, 90, shards).as_numpy_iterator())
    for ours, theirs in zip(some, expected, strict=True):
        for name in ("id", "label", "image"):
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("largest", [1, 3, 7, 100])
def test_equal_parts_are_the_fewest_and_as_equal_as_may_be(largest):
    for count in range(50):
        parts = pipeline.equal_parts(count, largest)
        assert sum(parts) == count and len(parts) == -(-count // largest)
        assert all(0 < part <= largest for part in parts)
        assert not parts or max(parts) - min(parts) <= 1


def test_images_in_memory_take_their_pixels_or_their_files(labeled):
    assert pipeline.bytes_in_memory(labeled, 9) == 600 * 9 * 9 * 3
    files = sum(path.stat().st_size for path in labeled.paths)
    assert pipeline.bytes_in_memory(labeled, None) == files


@pytest.mark.parametrize(
    ("batch_size", "image_size", "expected"),
    [
        (128, 32, 4),
        (129, 32, 3),
        (1000, 32, 1),
        (512, 64, 1),
        (10, 224, 16),
        (23, 600, 1),
        (11, 600, 2),
    ],
)
def test_a_block_holds_few_images_and_fewer_large_ones(batch_size, image_size, expected):
    assert pipeline.steps_in_block(batch_size, image_size) == expected


@pytest.mark.parametrize(
    ("sizes", "image_size", "share", "expected"),
    [
        ([2048, 6144], 32, WHOLE, 1),
        ([64, 192], 224, WHOLE, 2),  # 167 images of so many pixels in a piece.
        ([64, 192], 224, Share(0, 1, 2), 2),
        ([64, 192], 224, Share(1, 2, 1), 1),
        ([256, 1024], 224, Share(0, 1, 8), 8),
        ([512, 2048], 224, Share(1, 2, 4), 8),
        ([512, 7168], 600, WHOLE, 256),  # 30 images each, 23 being the limit: 512 would have 15.
        ([24], 600, WHOLE, 1),
        ([173], 224, WHOLE, 1),
        ([400], 224, WHOLE, 2),
        ([1024, 1009], 224, WHOLE, 1),
    ],
)
def test_a_large_batch_is_made_in_equal_pieces(sizes, image_size, share, expected):
    assert pipeline.pieces_of_batch(sizes, image_size, share) == expected


def test_bytes_of_batches_are_those_of_a_worker():
    pixels, calls = 224 * 224 * 3, pipeline.PARALLEL_CALLS + pipeline.AHEAD
    told = [
        # Of 512 images a quarter is a replica's: 128 in one piece.
        (Share(1, 2, 2), False, calls * 128 + 4 * 256),
        (Share(1, 2, 2), True, calls * 512 + 2 * 256),
        (WHOLE, False, calls * 128 + 4 * 512),
    ]
    for share, mixes, images in told:
        assert pipeline.bytes_of_batches([128, 384], 224, share, mixes) == images * pixels
    small = 32 * 32 * 3 * 64 * 8  # Eight steps are made together.
    assert pipeline.bytes_of_batches([16, 48], 32) == (calls + 2) * small
    assert pipeline.bytes_of_batches([16, 48], 32, Share(0, 2, 1)) == (calls + 2) * small // 2


def test_images_without_labels_have_the_label_minus_one(tmp_path):
    with shards.ShardWriter(tmp_path, "images", NAMES, 5) as writer:
        writer.write(records.image_example("one", png(digit_images(1)[0])))
    assert pipeline.load_images(shards.ShardSet.load(tmp_path), 8).labels.tolist() == [-1]


def test_pseudo_labels_are_loaded_with_copies_and_log_probabilities(tmp_path):
    random = np.random.default_rng(0)
    log_probabilities = np.log(random.dirichlet(np.full(10, 0.1), 30)).astype(np.float16)
    copies = random.integers(1, 5, 30)
    labels = log_probabilities.argmax(axis=1)
    with shards.ShardWriter(tmp_path, "pseudo", NAMES, 20) as writer:
        for number, image in enumerate(digit_images(30)):
            confidence = np.exp(np.float32(log_probabilities[number].max()))
            writer.write(
                records.pseudo_example(
                    f"digit/{number}",
                    png(image),
                    labels[number],
                    confidence,
                    log_probabilities[number],
                    copies[number],
                )
            )
    images = pipeline.load_images(shards.ShardSet.load(tmp_path), 8)
    np.testing.assert_array_equal(images.images, digit_images(30))
    np.testing.assert_array_equal(images.labels, labels)
    assert images.log_probabilities.dtype == np.float32
    np.testing.assert_array_equal(images.log_probabilities, log_probabilities.astype(np.float32))
    np.testing.assert_array_equal(images.copies, copies)


def cut_bytes(path):
    path.write_bytes(path.read_bytes()[:-20])


def cut_last_record(path):
    kept = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())[:-1]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in kept:
            writer.write(record)


@pytest.mark.parametrize("damage", [cut_bytes, cut_last_record])
def test_a_truncated_shard_is_named(labeled, damage):
    damage(labeled.paths[1])
    with pytest.raises(UserError, match=r"00001\.tfrecord"):
        pipeline.load_images(labeled, 8)


def test_an_empty_shard_set_is_told(tmp_path):
    with shards.ShardWriter(tmp_path / "none", "images", NAMES, 5):
        pass
    with pytest.raises(UserError, match="none holds no images"):
        pipeline.load_images(shards.ShardSet.load(tmp_path / "none"), 8)
