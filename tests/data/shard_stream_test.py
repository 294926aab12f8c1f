"""Streams of records from shards: complete, repeatable, well mixed, and never all in memory."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nsk import noise
from nsk.data import batch_blocks, parallel_map, pipeline, records, shards
from nsk.data.resident_images import resident_stream
from nsk.data.shard_stream import ShardStream
from nsk.distributed.batch_share import Share
from nsk.errors import UserError
from nsk.evaluation.prediction_files import make_stored_predictions

KEY = noise.key(0, "streams test")
NAMES = ["even", "odd"]
FIRST_PSEUDO = 5000  # The number of the first pseudo-labelled image.


def png(number):
    """A 2 x 2 image that encodes `number`, up to 65,535."""
    pixels = np.full((2, 2, 3), (number // 256, number % 256, 0), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def labeled_set(folder, count, images_per_shard, first=0):
    with shards.ShardWriter(folder, "images", NAMES, images_per_shard) as writer:
        for number in range(first, first + count):
            writer.write(records.image_example(f"{number}", png(number), number % 2))
    return shards.ShardSet.load(folder)


def pseudo_set(folder, copies, images_per_shard, first=FIRST_PSEUDO):
    with shards.ShardWriter(folder, "pseudo", NAMES, images_per_shard) as writer:
        for number, count in enumerate(copies, start=first):
            scores = np.log([0.25, 0.75])
            row = records.pseudo_example(f"{number}", png(number), 1, 0.75, scores, count)
            writer.write(row, count)
    return shards.ShardSet.load(folder)


def make_targets(parsed):
    """Class and kind of each record: (batch, 2)."""
    kind = tf.cast(parsed["is_pseudo"], tf.float32)
    return tf.stack([tf.cast(parsed["label"], tf.float32), kind], axis=1)


def make_stream(*shard_sets, batch_size=4, copies=None, window_bytes=2**30, name="labeled"):
    return ShardStream(name, shard_sets, make_targets, copies or {}, batch_size, window_bytes)


def bytes_of_records(shard_sets, count):
    """Bytes of a window of `count` records."""
    size = sum(path.stat().st_size for shard_set in shard_sets for path in shard_set.paths)
    return count * size // sum(shard_set.num_records for shard_set in shard_sets) + 1


def decoded(images, targets, key, batch_size, first_step):
    pixels = tf.map_fn(
        lambda image: tf.io.decode_png(image, channels=3), images, fn_output_signature=tf.uint8
    )
    return tf.ensure_shape(pixels, [None, 2, 2, 3]), targets


def image_numbers(stream, num_steps, first_step=0, key=KEY):
    """Numbers of the images in each step, int (steps, batch)."""
    batches = pipeline.training_batches((stream,), key, decoded, 2, first_step, num_steps)
    steps = []
    for (element,) in batches.as_numpy_iterator():
        pixels = element["image"][:, 0, 0].astype(int)
        steps.append(pixels[:, 0] * 256 + pixels[:, 1])
        np.testing.assert_array_equal(element["target"][:, 1], steps[-1] >= FIRST_PSEUDO)
        true = np.where(steps[-1] >= FIRST_PSEUDO, 1, steps[-1] % 2)
        np.testing.assert_array_equal(element["target"][:, 0], true)
    return np.array(steps)


@pytest.mark.parametrize("window", [1, 7, 50, 1000])
@pytest.mark.parametrize("images_per_shard", [1, 7, 200])
def test_every_epoch_has_all_copies_of_every_image(tmp_path, window, images_per_shard):
    copies = np.random.default_rng(0).integers(1, 5, 60)
    pseudo = pseudo_set(tmp_path, copies, images_per_shard)
    stream = make_stream(pseudo, batch_size=9, window_bytes=bytes_of_records([pseudo], window))
    assert (stream.epoch_size, stream.num_images) == (copies.sum(), 60)
    epochs = 3
    rows = image_numbers(stream, -(-epochs * copies.sum() // 9)).ravel()[: epochs * copies.sum()]
    for epoch in rows.reshape(epochs, -1):
        np.testing.assert_array_equal(np.bincount(epoch - FIRST_PSEUDO), copies)
    assert len({tuple(epoch) for epoch in rows.reshape(epochs, -1)}) == epochs


def test_a_stream_without_copies_is_refused(tmp_path):
    labeled = labeled_set(tmp_path, 2, 4)
    with pytest.raises(UserError, match="no image to train on"):
        make_stream(labeled, copies={"0": 0, "1": 0})


@pytest.mark.parametrize("window", [1, 3, 100])
def test_images_without_copies_are_left_out(tmp_path, window):
    labeled = labeled_set(tmp_path, 12, 1)
    copies = {str(number): number % 3 for number in range(12)}
    stream = make_stream(
        labeled, copies=copies, batch_size=12, window_bytes=bytes_of_records([labeled], window)
    )
    assert (stream.epoch_size, stream.num_images) == (12, 8)
    for epoch in image_numbers(stream, 3):
        np.testing.assert_array_equal(np.bincount(epoch), list(copies.values()))


def test_windows_have_different_orders(tmp_path):
    labeled = labeled_set(tmp_path, 64, 1)
    stream = make_stream(labeled, batch_size=64, window_bytes=bytes_of_records([labeled], 8))
    orders = []
    for epoch in (0, 1):
        dataset = stream._epoch(KEY, tf.constant(epoch, tf.int64), tf.constant(0, tf.int64))
        orders += [tuple(rows) for _, rows in dataset.as_numpy_iterator()]
    assert len(orders) == 16 and len(set(orders)) == 16


def test_labelled_images_have_the_copies_of_their_ids(tmp_path):
    labeled = labeled_set(tmp_path, 10, 4)
    stream = make_stream(labeled, copies={"3": 4, "9": 0, "0": 2}, batch_size=13)
    expected = [2, 1, 1, 4, 1, 1, 1, 1, 1]
    assert (stream.epoch_size, stream.num_images) == (13, 9)
    for epoch in image_numbers(stream, 3):
        np.testing.assert_array_equal(np.bincount(epoch), expected)


def test_union_draws_from_both_with_their_copies(tmp_path):
    labeled = labeled_set(tmp_path / "labeled", 10, 4)
    pseudo = pseudo_set(tmp_path / "pseudo", [3, 1, 2], 2)
    stream = make_stream(labeled, pseudo, copies={"3": 4}, batch_size=19, name="union")
    assert (stream.epoch_size, stream.num_images) == (19, 13)
    for epoch in image_numbers(stream, 3):
        counts = np.bincount(epoch, minlength=FIRST_PSEUDO + 3)
        np.testing.assert_array_equal(counts[:10], [1, 1, 1, 4, 1, 1, 1, 1, 1, 1])
        np.testing.assert_array_equal(counts[FIRST_PSEUDO:], [3, 1, 2])
    # Within an epoch the two kinds are mixed.
    assert 0 < np.mean(image_numbers(stream, 1)[0, :9] >= FIRST_PSEUDO) < 1


def test_an_image_with_copies_in_several_shards_is_counted_once(tmp_path):
    """As `nsk.stages.pseudo_shards` writes them: an image with many copies is in several shards."""
    rows = [(0, [(0, 2), (1, 1)], 2), (1, [(0, 1), (2, 1)], 1), (2, [], 0)]
    files = []
    for shard, images, first in rows:
        name = f"{shard:05d}.tfrecord"
        with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
            for number, copies in images:
                scores = np.log([0.25, 0.75])
                number += FIRST_PSEUDO
                writer.write(
                    records.pseudo_example(f"{number}", png(number), 1, 0.75, scores, copies)
                )
        copies = sum(copies for _, copies in images)
        files.append({"name": name, "records": len(images), "copies": copies, "images": first})
    shards.write_manifest(tmp_path, "pseudo", NAMES, files)
    pseudo = shards.ShardSet.load(tmp_path)
    for window_bytes in (1, 2**30):
        stream = make_stream(pseudo, batch_size=5, window_bytes=window_bytes)
        assert (stream.epoch_size, stream.num_images) == (5, 3)
        for epoch in image_numbers(stream, 4):
            np.testing.assert_array_equal(np.bincount(epoch - FIRST_PSEUDO), [3, 1, 1])
    resident = resident_stream("pseudo", [pseudo], make_targets, {}, 5, 2)
    assert (resident.epoch_size, resident.num_images) == (5, 3)


def test_a_resident_union_counts_the_images_with_copies(tmp_path):
    labeled = labeled_set(tmp_path / "labeled", 10, 4)
    pseudo = pseudo_set(tmp_path / "pseudo", [3, 1, 2], 2)
    stream = resident_stream("union", [labeled, pseudo], make_targets, {"3": 4, "5": 0}, 5, 2)
    assert (stream.epoch_size, stream.num_images) == (10 + 3 - 1 + 6, 9 + 3)


@pytest.mark.parametrize("top_k", [0, 2])
def test_targets_of_sparse_log_probabilities_equal_those_of_dense_ones(tmp_path, top_k):
    """A union of labelled images and of pseudo-labels with only the top k stored."""
    names = ["a", "b", "c", "d"]
    log_probabilities = np.log(np.random.default_rng(0).dirichlet(np.ones(4), 5))
    scores = make_stored_predictions(
        [f"{FIRST_PSEUDO + row}" for row in range(5)], log_probabilities.astype(np.float32), top_k
    )
    (tmp_path / "pseudo").mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / "pseudo" / "00000.tfrecord")) as writer:
        for row in range(5):
            writer.write(
                records.pseudo_example(
                    scores.ids[row],
                    png(FIRST_PSEUDO + row),
                    scores.labels[row],
                    scores.confidences[row],
                    scores.log_probabilities[row],
                    1,
                    scores.classes[row] if top_k else None,
                    scores.remaining[row] if top_k else None,
                )
            )
    files = [{"name": "00000.tfrecord", "records": 5, "copies": 5, "images": 5}]
    shards.write_manifest(tmp_path / "pseudo", "pseudo", names, files, top_k)
    pseudo = shards.ShardSet.load(tmp_path / "pseudo")
    assert pseudo.top_k == top_k
    with shards.ShardWriter(tmp_path / "labeled", "images", names, 10) as writer:
        for number in range(3):
            writer.write(records.image_example(f"{number}", png(number), number))
    labeled = shards.ShardSet.load(tmp_path / "labeled")

    def soft(parsed):
        labels = tf.one_hot(parsed["label"], 4)
        return tf.where(parsed["is_pseudo"][:, None], parsed["log_probabilities"], labels)

    expected = np.concatenate([np.eye(4)[:3], scores.all_log_probabilities(4)])
    for sets, wanted in (((labeled, pseudo), expected), ((pseudo,), expected[3:])):
        from_shards = ShardStream("union", sets, soft, {}, len(wanted), 2**30)
        resident = resident_stream("union", sets, soft, {}, len(wanted), 2)
        for stream in (from_shards, resident):
            (batch,) = pipeline.training_batches(
                (stream,),
                KEY,
                decoded if stream is from_shards else lambda images, targets, *_: (images, targets),
                2,
                0,
                1,
            ).as_numpy_iterator()
            pixels = batch[0]["image"][:, 0, 0].astype(int)
            number_order = np.argsort(pixels[:, 0] * 256 + pixels[:, 1])
            np.testing.assert_allclose(batch[0]["target"][number_order], wanted, rtol=1e-6)


def test_union_spreads_few_images_over_the_epoch_of_many(tmp_path):
    labeled = labeled_set(tmp_path / "labeled", 160, 5)
    pseudo = pseudo_set(tmp_path / "pseudo", [1] * 1440, 20)
    for sets in ((labeled, pseudo), (pseudo, labeled)):
        stream = make_stream(
            *sets, batch_size=200, window_bytes=bytes_of_records(sets, 200), name="union"
        )
        assert 8 <= stream.num_windows <= 9
        labelled = (image_numbers(stream, 16) < FIRST_PSEUDO).sum(axis=1)
        assert labelled.sum() == 2 * 160
        assert np.all((labelled >= 10) & (labelled <= 30))


@pytest.mark.parametrize(("window", "block_images"), [(5, 40), (37, 1), (37, 512), (10_000, 40)])
def test_a_stream_that_starts_at_a_step_equals_an_uninterrupted_one(
    tmp_path, monkeypatch, window, block_images
):
    monkeypatch.setattr(batch_blocks, "BLOCK_IMAGES", block_images)
    copies = np.random.default_rng(1).integers(1, 4, 200)
    pseudo = pseudo_set(tmp_path, copies, 6)
    stream = make_stream(pseudo, batch_size=11, window_bytes=bytes_of_records([pseudo], window))
    steps = 3 * copies.sum() // 11
    whole = image_numbers(stream, steps)
    for first_step in (1, 18, 50, steps - 1):
        np.testing.assert_array_equal(image_numbers(stream, steps, first_step), whole[first_step:])


def test_whole_windows_are_skipped_without_reading_them(tmp_path, monkeypatch):
    """The last steps of an epoch can be read even if its first shards are broken."""
    monkeypatch.setattr(batch_blocks, "BLOCK_IMAGES", 1)  # A block is one step.
    labeled = labeled_set(tmp_path, 400, 2)
    stream = make_stream(labeled, batch_size=10, window_bytes=bytes_of_records([labeled], 80))
    whole = image_numbers(stream, 40)  # 5 windows of 8 steps.
    kept = set(whole[32:].ravel() // 2)
    assert len(kept) == 40
    for number in set(range(200)) - kept:
        labeled.paths[number].write_bytes(labeled.paths[number].read_bytes()[:-9])
    np.testing.assert_array_equal(image_numbers(stream, 40, 35), whole[35:])
    with pytest.raises(tf.errors.DataLossError):
        image_numbers(stream, 40, 31)


def test_orders_differ_by_key_epoch_and_name(tmp_path):
    labeled = labeled_set(tmp_path, 30, 10)
    orders = [
        *image_numbers(make_stream(labeled, batch_size=30), 2),
        *image_numbers(make_stream(labeled, batch_size=30), 1, key=noise.key(1)),
        *image_numbers(make_stream(labeled, batch_size=30, name="pseudo"), 1),
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_parallelism_changes_nothing(tmp_path, monkeypatch):
    pseudo = pseudo_set(tmp_path, [1, 2] * 40, 5)
    outcomes = []
    monkeypatch.setattr(batch_blocks, "BLOCK_IMAGES", 1)  # A block is one step.
    for parallel in (1, 8):
        monkeypatch.setattr(parallel_map, "PARALLEL_CALLS", parallel)
        window = bytes_of_records([pseudo], 20)
        outcomes.append(image_numbers(make_stream(pseudo, batch_size=7, window_bytes=window), 40))
    np.testing.assert_array_equal(*outcomes)


@pytest.mark.parametrize("images_per_shard", [1280, 80, 20, 5])
def test_the_order_is_well_mixed_for_any_number_of_shards(tmp_path, images_per_shard):
    """1 to 256 shards: neighbours in the sorted source are as far apart as in a fair shuffle.

    In a random permutation of n, the places of two given images are (n + 1) / 3 apart on average.
    """
    count = 1280
    labeled = labeled_set(tmp_path, count, images_per_shard)
    rows = image_numbers(make_stream(labeled, batch_size=count), 1)[0]
    places = np.argsort(rows)
    distances = np.abs(np.diff(places))
    assert abs(distances.mean() / ((count + 1) / 3) - 1) < 0.1
    # And small distances: 2 (n - d) / n (n - 1) of all pairs are d apart.
    close = np.mean(distances <= 64)
    expected = sum(2 * (count - d) / (count * (count - 1)) for d in range(1, 65))
    assert abs(close - expected) < 4 * np.sqrt(expected / count)


@pytest.mark.parametrize("images_per_shard", [1, 4])
def test_every_epoch_has_new_windows(tmp_path, images_per_shard):
    """1,280 images in 20 windows: each epoch draws which images share a window, and their order."""
    labeled = labeled_set(tmp_path, 1280, images_per_shard)
    window = bytes_of_records([labeled], 64)
    rows = image_numbers(make_stream(labeled, batch_size=64, window_bytes=window), 40).reshape(
        2, 1280
    )
    places = np.argsort(rows, axis=1)
    assert abs(np.corrcoef(places)[0, 1]) < 0.2
    shared = [
        len(set(first) & set(second))
        for first, second in zip(*rows.reshape(2, 20, 64), strict=True)
    ]
    assert np.mean(shared) < 10  # 64 x 64 / 1,280 are 3.2.


def test_small_windows_mix_sorted_data(tmp_path):
    """Ten classes of 128 images, in order of class, in windows of 64."""
    labeled = labeled_set(tmp_path, 1280, 4)
    window = bytes_of_records([labeled], 64)
    rows = image_numbers(make_stream(labeled, batch_size=64, window_bytes=window), 20)
    counts = np.stack([np.bincount(part, minlength=10) for part in rows // 128])
    np.testing.assert_array_equal(counts.sum(axis=0), 128)
    assert np.all((counts > 0).sum(axis=1) >= 5)  # Of 16 shards in a window.
    # Neighbours have the same class as often as expected by chance: same shard, or two of a class.
    same = np.mean(rows[:, 1:] // 128 == rows[:, :-1] // 128)
    assert abs(same - (3 / 63 + 60 / 63 * 31 / 319)) < 0.04


def test_a_worker_reads_its_rows_of_a_stream(tmp_path):
    labeled = labeled_set(tmp_path, 40, 7)
    stream = make_stream(labeled, batch_size=6, window_bytes=bytes_of_records([labeled], 20))
    whole = image_numbers(stream, 8)
    for worker in range(2):
        batches = pipeline.training_batches(
            (stream,), KEY, decoded, 2, 0, 8, Share(worker, num_workers=2)
        )
        for step, (element,) in enumerate(batches.as_numpy_iterator()):
            rows = element["image"][:, 0, 0].astype(int)
            expected = whole[step][worker * 3 : worker * 3 + 3]
            np.testing.assert_array_equal(rows[:, 0] * 256 + rows[:, 1], expected)


def test_a_window_has_about_the_requested_bytes_or_one_shard(tmp_path):
    labeled = labeled_set(tmp_path, 100, 5)
    size = sum(path.stat().st_size for path in labeled.paths)
    sizes = {size: 1, size - 1: 2, size // 4 + 1: 4, size // 20 + 1: 20, 1: 20}
    for window_bytes, expected in sizes.items():
        stream = make_stream(labeled, window_bytes=window_bytes)
        assert stream.num_windows == expected
        dataset = stream._epoch(KEY, tf.constant(0, tf.int64), tf.constant(0, tf.int64))
        window_sizes = [len(window) for window, _ in dataset.as_numpy_iterator()]
        assert len(window_sizes) == expected and sum(window_sizes) == 100
        assert max(window_sizes) - min(window_sizes) <= 5
