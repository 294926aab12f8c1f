"""From shards to batches, with tf.data: for training, mixed and noisy; for scoring, clean.

What is trained on is a tuple of streams (`nsk.data.streams`), one over labelled and one over
pseudo-labelled images. Batch t of training is a pure function of (key, t): each stream's order is
stateless and its noise is keyed by the block of steps, so starting at step t gives the batches of a
run that has come that far.
"""

import contextlib
import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

from nsk import noise
from nsk.data import records, streams
from nsk.distributed.batch_share import WHOLE
from nsk.errors import UserError
from nsk.store.files import num_cores

MEBIBYTE = 2**20
# Blocks of steps, pieces of large batches or batches to be scored, that are made at the same time
# and made ahead.
PARALLEL_CALLS = num_cores()
AHEAD = 4
# Most images and pixels of a block of several steps.
BLOCK_IMAGES = 512
BLOCK_PIXELS = 2**23


@dataclasses.dataclass(frozen=True)
class Images:
    """Decoded images of a shard set, in file order.

    Attributes:
        ids: list of strings (n,).
        images: uint8 tensor (n, image_size, image_size, 3).
        labels: int32 array (n,); -1 where there is none.
        log_probabilities: float32 array (n, classes) of a pseudo-label shard set, else None.
        copies: int32 array (n,): how often an epoch shows each image; ones where nothing says
            otherwise.
    """

    ids: list
    images: tf.Tensor
    labels: np.ndarray
    log_probabilities: np.ndarray | None
    copies: np.ndarray

    def __len__(self):
        return len(self.ids)


def load_images(shard_set, image_size):
    """Reads a shard set into memory.

    Args:
        shard_set: a `shards.ShardSet` of kind `images` or `pseudo`.
        image_size: side of the decoded images, pixels; None: they stay encoded, `images` being a
            string tensor (n,).

    Returns:
        `Images`.
    """

    def parse(serialized):
        if shard_set.kind == "pseudo":
            parsed = records.parse_pseudo(serialized, shard_set.num_classes, shard_set.top_k)
        else:
            parsed = records.parse_images(serialized)
        encoded = parsed.pop("encoded")
        parsed["image"] = records.decode_images(encoded, image_size) if image_size else encoded
        return parsed

    # Batches first, so that parsing is one call for many records; then decoding, in parallel.
    dataset = made_ahead(shard_set.read().batch(256), parse)
    count, done, whole = shard_set.num_records, 0, {}
    with shard_set.naming_broken_shards():
        for batch in dataset.as_numpy_iterator():
            for name, value in batch.items():
                if name not in whole:  # Filled in place: lists of parts would be held twice.
                    whole[name] = np.empty([count, *value.shape[1:]], value.dtype)
                whole[name][done : done + len(value)] = value
            done += len(value)
    if not done:
        raise UserError(
            f"{shard_set.folder} holds no images: check the data that it was made from."
        )
    with tf.device("CPU"):  # Where tf.data works: they are not to fill a GPU's memory.
        images = tf.constant(whole["image"])
    return Images(
        ids=[one.decode() for one in whole["id"]],
        images=images,
        labels=whole["label"].astype(np.int32),
        log_probabilities=whole.get("log_probabilities"),
        copies=whole.get("copies", np.ones(count)).astype(np.int32),
    )


def clean_batches(shard_set, image_size, batch_size, shards=None):
    """Every image of a shard set once, in file order and without noise: for scoring.

    No batch has images of two shards, and a shard's batches are as equal in size as may be: what a
    shard's batches are does not depend on the other shards.

    Args:
        shard_set: a `shards.ShardSet`.
        image_size: side of the images, pixels.
        batch_size: most images in a batch.
        shards: sequence of the shards' indices; None: all.

    Returns:
        `tf.data.Dataset` of dicts `id` string (batch,), `label` int64 (batch,), -1 where there is
        none, and `image` uint8 (batch, image_size, image_size, 3).
    """
    shards = range(len(shard_set.names)) if shards is None else shards
    sizes = [size for shard in shards for size in equal_parts(shard_set.counts[shard], batch_size)]
    # Large images are decoded in smaller parts, several of which are held at a time.
    decoded = [part for size in sizes for part in equal_parts(size, images_in_block(image_size))]

    def parse(serialized):
        parsed = records.parse_images(serialized)
        parsed["image"] = records.decode_images(parsed.pop("encoded"), image_size)
        return parsed

    batches = made_ahead(_rebatch(shard_set.read(shards).batch(BLOCK_IMAGES), decoded), parse)
    return batches if decoded == sizes else _rebatch(batches, sizes)


def equal_parts(count, largest):
    """Sizes of the fewest parts, as equal as may be, of at most `largest` each: list of ints."""
    parts = -(-count // largest)
    return [(count + part) // parts for part in range(parts)]


def _rebatch(dataset, sizes):
    return dataset.rebatch(sizes) if sizes else dataset


def training_batches(
    all_streams,
    stage_key,
    perturb,
    image_size,
    first_step,
    num_steps,
    share=WHOLE,
    mixes=False,
):
    """The batches of steps first_step .. num_steps - 1, or one worker's share of them.

    Small batches are perturbed a block of steps at a time, all streams together: most of an
    operation's cost on a few small images is that of calling it. So the noise of an image is a
    function of the stage's key, the number of its block and its place in it. A worker decodes and
    perturbs its own rows alone, and a batch of large images in several pieces.

    Args:
        all_streams: tuple of streams.
        stage_key: int64 array (2,), the stage's key.
        perturb: function of (images, targets, key, batch_size): noise on the images of several
            batches. Images are uint8 (n, height, width, 3), or encoded, string (n,), as the streams
            hold them; targets are float32 (n, classes). It returns both, the images as uint8. What
            it draws for images it draws by `noise.for_examples`.
        image_size: side of the images that `perturb` returns, pixels.
        first_step, num_steps: ints.
        share: `Share`, whose rows are made.
        mixes: whether `perturb` mixes images of a batch with each other. A worker then perturbs the
            global batch, which its images' partners are in, and keeps its rows.

    Returns:
        `tf.data.Dataset` of tuples over streams of dicts `image` uint8 (batch, height, width, 3),
        `target` float32 (batch, classes) and `weight` float32 (batch,); the elements of a step are
        those of the worker's replicas, in their order.
    """
    sizes = [stream.batch_size for stream in all_streams]
    steps = steps_in_block(sum(sizes), image_size)
    pieces = 1 if mixes else pieces_of_batch(sizes, image_size, share)
    first_block, num_blocks = first_step // steps, -(-num_steps // steps)
    keys = [noise.named(tf.constant(stage_key), f"stream/{one.name}") for one in all_streams]
    elements = tf.data.Dataset.zip(
        tf.data.Dataset.range(first_block, num_blocks),
        *(
            stream.elements(key, first_block, num_blocks, steps)
            for stream, key in zip(all_streams, keys, strict=True)
        ),
    )

    def make(block, of_streams, of_share=share):
        return _make_block(
            all_streams, of_streams, steps, stage_key, block, perturb, share=of_share, mixes=mixes
        )

    if pieces == 1:
        batches = made_ahead(elements, lambda block, *of_streams: make(block, of_streams)).unbatch()
    else:
        made = made_ahead(
            elements.flat_map(functools.partial(_in_pieces, pieces)),
            lambda piece, block, *of_streams: make(block, of_streams, share.piece(piece, pieces)),
        )
        of_replica = pieces // share.replicas
        batches = made.unbatch().batch(of_replica, drop_remainder=True).map(_whole)
    skipped = first_step - first_block * steps
    batches = batches.skip(skipped * share.replicas)
    return batches.take((num_steps - first_step) * share.replicas).prefetch(steps * share.replicas)


def _in_pieces(pieces, *element):
    """A dataset of an element once for each of its pieces, with their numbers."""
    numbers = tf.data.Dataset.range(pieces, output_type=tf.int32)
    return numbers.map(lambda number: (number, *element))


def _whole(*of_streams):
    """A batch from its pieces: (pieces, rows, ...) as (pieces x rows, ...)."""
    return tf.nest.map_structure(_flat, of_streams)


def _make_block(all_streams, elements, steps, stage_key, block, perturb, *, share, mixes):
    """The batches of a block of steps, for each step and replica; see `training_batches`.

    Args:
        elements: each stream's images of the block, as its `elements` hold them.
        steps: int, steps in a block.
        block: int64 scalar tensor, its number.
    """
    sizes = [stream.batch_size for stream in all_streams]
    made = WHOLE if mixes else share
    made_sizes = made.sizes(sizes)
    replica_sizes = [size // share.replicas for size in share.sizes(sizes)]
    examples = [
        stream.examples(_flat(_part(_by_step(element, steps, stream.batch_size), made)))
        for stream, element in zip(all_streams, elements, strict=True)
    ]

    def joined(part):
        """The rows of all streams, step after step."""
        parts = [
            _by_step(example[part], steps, size)
            for example, size in zip(examples, made_sizes, strict=True)
        ]
        return _flat(tf.concat(parts, axis=1))

    def divided(rows):
        """What a replica gets of each stream, for each step and replica."""
        parts = tf.split(_by_step(rows, steps, sum(made_sizes)), made_sizes, axis=1)
        if mixes:
            parts = [_part(one, share) for one in parts]
        return [
            _by_step(_flat(one), steps * share.replicas, size)
            for one, size in zip(parts, replica_sizes, strict=True)
        ]

    key = noise.fold_in(noise.named(tf.constant(stage_key), "augment"), block)
    with _rows_of_block(key, sizes, steps, made):
        images, targets = perturb(joined("image"), joined("target"), key, sum(made_sizes))
    return tuple(
        {"image": image, "target": target, "weight": tf.ones(target.shape[:2])}
        for image, target in zip(divided(images), divided(targets), strict=True)
    )


def _rows_of_block(key, batch_sizes, steps, share):
    """A `noise.scope` of the rows that are a worker's share of every batch of a block."""
    if share.is_whole:
        return contextlib.nullcontext()
    of_batch = tf.concat(share.positions(batch_sizes), 0)
    positions = sum(batch_sizes) * tf.range(steps)[:, None] + of_batch
    return noise.scope(key, tf.reshape(positions, [-1]), steps * sum(batch_sizes))


def _by_step(rows, steps, size):
    """(steps x size, ...) as (steps, size, ...)."""
    return tf.reshape(rows, [steps, size, *rows.shape[1:]])


def _flat(rows):
    """(steps, batch, ...) as (steps x batch, ...)."""
    return tf.reshape(rows, [-1, *rows.shape[2:]])


def _part(rows, share):
    """A worker's part of each step's rows, (steps, batch, ...)."""
    steps, size, *shape = rows.shape
    of_workers = tf.reshape(rows, [steps, share.num_workers, size // share.num_workers, *shape])
    return of_workers[:, share.worker]


def steps_in_block(batch_size, image_size):
    """How many steps are perturbed together: few enough that a block's images take little memory.

    Args:
        batch_size: images of all streams in a step.
        image_size: side of the images, pixels.
    """
    return max(1, images_in_block(image_size) // batch_size)


def pieces_of_batch(batch_sizes, image_size, share=WHOLE):
    """In how many pieces a worker's part of a batch is perturbed, because its images are large.

    A piece belongs to one replica and has as many images of each stream as every other one. So the
    sizes have to divide; of the ways to divide them the one is taken whose pieces are nearest to
    the pixels that a block may have.

    Args:
        batch_sizes: list of ints, images of each stream in a step.
        image_size: side of the images, pixels.
        share: `Share`.

    Returns:
        int: 1, or a multiple of the worker's replicas.
    """
    of_replica = [size // share.replicas for size in share.sizes(batch_sizes)]
    most, largest = math.gcd(*of_replica), max(1, BLOCK_PIXELS // image_size**2)
    if sum(of_replica) * share.replicas <= largest:
        return 1
    divisors = [one for one in range(1, most + 1) if most % one == 0]

    def distance(pieces):
        return abs(math.log(sum(of_replica) / pieces / largest))

    return share.replicas * min(divisors, key=distance)


def bytes_of_batches(batch_sizes, image_size, share=WHOLE, mixes=False):
    """What the images that `training_batches` makes, and makes ahead, take of main memory, about.

    The work space of the noise comes on top.

    Args:
        batch_sizes: list of ints, images of each stream in a step.
        image_size: side of the images, pixels.
        share, mixes: see `training_batches`.
    """
    steps = steps_in_block(sum(batch_sizes), image_size)
    pieces = 1 if mixes else pieces_of_batch(batch_sizes, image_size, share)
    batch = sum(share.sizes(batch_sizes))
    made = (sum(batch_sizes) if mixes else batch) * steps // pieces
    # One is in use and one is ready; one in pieces is collected, and put together.
    held = 4 * batch if pieces > 1 else 2 * batch * steps
    return ((PARALLEL_CALLS + AHEAD) * made + held) * image_size**2 * 3


def images_in_block(image_size):
    """How many images are made at once where nothing asks for more, at least 1."""
    return max(1, min(BLOCK_IMAGES, BLOCK_PIXELS // image_size**2))


def made_ahead(dataset, function):
    """Maps elements in parallel but hands them out in order: parallelism changes nothing."""
    options = tf.data.Options()
    # The numbers are fixed: autotuning has a thread that may hold up the end of an iterator, and so
    # of a stage, for more than half a minute.
    options.autotune.enabled = False
    return (
        dataset.map(function, num_parallel_calls=PARALLEL_CALLS, deterministic=True)
        .prefetch(AHEAD)
        .with_options(options)
    )


def bytes_in_memory(shard_set, image_size):
    """What a shard set's images take in memory, decoded to squares (image_size None: encoded)."""
    if image_size:
        return shard_set.num_records * image_size**2 * 3
    return sum(path.stat().st_size for path in shard_set.paths)


def resident_stream(name, shard_sets, make_targets, labeled_copies, batch_size, image_size):
    """A `ResidentStream` over shard sets; arguments as of `ShardStream` and `load_images`."""
    parts, num_images = [], 0
    for shard_set in shard_sets:
        images = load_images(shard_set, image_size)
        copies = images.copies
        if shard_set.kind == "images":
            copies = np.array([labeled_copies.get(one, 1) for one in images.ids], np.int32)
        num_images += shard_set.num_images - int((copies == 0).sum())
        scores = images.log_probabilities
        targets = make_targets(
            {
                "label": tf.constant(images.labels),
                "is_pseudo": tf.fill([len(images)], shard_set.kind == "pseudo"),
                "log_probabilities": tf.zeros([len(images), shard_set.num_classes])
                if scores is None
                else tf.constant(scores),
            }
        )
        parts.append((images.images, targets, copies))
    images, targets, copies = zip(*parts, strict=True)
    with tf.device("CPU"):
        images, targets = tf.concat(images, 0), tf.concat(targets, 0)
    copies = np.concatenate(copies)
    return streams.ResidentStream(name, images, targets, copies, batch_size, num_images)
