"""From shards to batches, with tf.data: with noise for training, without for scoring.

Training uses a tuple of streams (`nsk.data.streams`), one over labelled and one over
pseudo-labelled images. Batch t of training is a pure function of (key, t): each stream's order is
stateless and its noise depends on the block of steps, so that starting at step t gives the same
batches as an uninterrupted run.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from nsk import noise
from nsk.data import batch_blocks, records
from nsk.data.decoding import decode_images
from nsk.data.image_subset import ShardSubset
from nsk.data.label_noise import LabelNoise
from nsk.data.parallel_map import map_in_parallel
from nsk.data.shards import ShardSet
from nsk.data.streams import Stream
from nsk.distributed.batch_share import WHOLE, Share

MEBIBYTE = 2**20

Perturbation = Callable[
    [tf.Tensor, tf.Tensor, tf.Tensor, int, tf.Tensor], tuple[tf.Tensor, tf.Tensor]
]


def clean_batches(
    shard_set: ShardSet | ShardSubset,
    image_size: int,
    batch_size: int,
    shards: Sequence[int] | None = None,
    decode: Callable[[tf.Tensor], tf.Tensor] | None = None,
    resize_mode: str = "crop",
    label_noise: LabelNoise | None = None,
) -> tf.data.Dataset:
    """Every image of a shard set once, in file order and (usually) without noise: for scoring.

    No batch has images of two shards, and the sizes of a shard's batches differ by at most 1: so a
    shard's batches do not depend on the other shards.

    Args:
        shard_set: of kind `images`.
        image_size: side of the images, pixels.
        batch_size: largest number of images in a batch.
        shards: the shards' indices; None: all, of a `ShardSet`.
        decode: function of one encoded image, a scalar string tensor, that returns uint8
            (image_size, image_size, 3); None: `decoding.decode_image`.
        resize_mode: of `decoding.decode_image`.
        label_noise: noise on the images; None: none. `decode` is not used with it.

    Returns:
        `tf.data.Dataset` of dicts `id` string (batch,), `label` int64 (batch,), -1 if there is
        none, and `image` uint8 (batch, image_size, image_size, 3); with noise also `noise_key`
        int64 (batch, 2), the images' keys of it.
    """
    shards = range(len(shard_set.names)) if shards is None else shards
    equal_parts = batch_blocks.equal_parts
    sizes = [size for shard in shards for size in equal_parts(shard_set.counts[shard], batch_size)]
    # Large images are decoded in smaller parts, as several parts are in memory at a time.
    max_decoded = batch_blocks.images_in_block(image_size)
    decoded_sizes = [part for size in sizes for part in equal_parts(size, max_decoded)]

    def parse(serialized):
        parsed = records.parse_images(serialized)
        encoded = parsed.pop("encoded")
        if label_noise is None:
            parsed["image"] = decode_images(encoded, image_size, decode, resize_mode)
        else:
            keys = parsed["noise_key"] = label_noise.keys(parsed["id"])
            parsed["image"] = label_noise.apply(encoded, keys, image_size, resize_mode)
        return parsed

    serialized = shard_set.read(shards).batch(batch_blocks.BLOCK_IMAGES)
    batches = map_in_parallel(_rebatch(serialized, decoded_sizes), parse)
    return batches if decoded_sizes == sizes else _rebatch(batches, sizes)


def encoded_batches(shard_set: ShardSet, batch_size: int) -> tf.data.Dataset:
    """Every image of a shard set once, in file order, as it is stored.

    Args:
        shard_set: of kind `images`.
        batch_size: largest number of images in a batch.

    Returns:
        `tf.data.Dataset` of dicts `id` string (batch,), `label` int64 (batch,), -1 if there is
        none, and `image` string (batch,), JPEG or PNG files.
    """

    def parse(serialized):
        parsed = records.parse_images(serialized)
        parsed["image"] = parsed.pop("encoded")
        return parsed

    return shard_set.read().batch(batch_size).map(parse)


def _rebatch(dataset: tf.data.Dataset, sizes: list[int]) -> tf.data.Dataset:
    return dataset.rebatch(sizes) if sizes else dataset


def training_batches(
    streams: tuple[Stream, ...],
    stage_key: tf.Tensor,
    perturb: Perturbation,
    image_size: int,
    first_step: int,
    num_steps: int,
    share: Share = WHOLE,
    mixes: bool = False,
) -> tf.data.Dataset:
    """The batches of steps first_step .. num_steps - 1, or one worker's share of them.

    Small batches are perturbed a block of steps at a time, all streams together, see
    `nsk.data.batch_blocks`. So the noise of an image is a function of the stage's key, the number
    of its block and its position in the block. A worker decodes and perturbs only its own rows, and
    a batch of large images in several pieces.

    Args:
        streams: tuple of streams.
        stage_key: int64 array (2,), the stage's key.
        perturb: function of (images, targets, key, batch_size, first_step): noise on the images of
            several batches, the first of them of step `first_step`. Images are uint8 (n, height,
            width, 3), or encoded, string (n,), as the streams hold them; targets are float32 (n,
            ...). It returns both, the images as uint8. It draws the noise of images with
            `noise.for_examples`.
        image_size: side of the images that `perturb` returns, pixels.
        first_step: number of the first step, from 0.
        num_steps: number of the step after the last.
        share: the worker's part of a batch; only its rows are made.
        mixes: whether `perturb` mixes images of a batch with each other. A worker then perturbs the
            global batch, which contains its images' partners, and keeps its rows.

    Returns:
        `tf.data.Dataset` of tuples over streams of dicts `image` uint8 (batch, height, width, 3),
        `target` float32 (batch, ...) and `weight` float32 (batch,); a step has one element for
        each of the worker's replicas, in their order.
    """
    sizes = [stream.batch_size for stream in streams]
    steps = batch_blocks.steps_in_block(sum(sizes), image_size)
    pieces = 1 if mixes else batch_blocks.pieces_of_batch(sizes, image_size, share)
    first_block, num_blocks = first_step // steps, -(-num_steps // steps)
    keys = [noise.named(tf.constant(stage_key), f"stream/{stream.name}") for stream in streams]
    elements = tf.data.Dataset.zip(
        tf.data.Dataset.range(first_block, num_blocks),
        *(
            stream.elements(key, first_block, num_blocks, steps)
            for stream, key in zip(streams, keys, strict=True)
        ),
    )

    def make(block, stream_elements, block_share=share):
        return _make_block(
            streams, stream_elements, steps, stage_key, block, perturb, block_share, mixes
        )

    if pieces == 1:
        batches = map_in_parallel(elements, lambda block, *rest: make(block, rest)).unbatch()
    else:
        pieces_of_batches = map_in_parallel(
            elements.flat_map(functools.partial(_repeat_for_pieces, pieces)),
            lambda piece, block, *rest: make(block, rest, share.piece(piece, pieces)),
        )
        pieces_of_replica = pieces // share.replicas
        batches = (
            pieces_of_batches.unbatch()
            .batch(pieces_of_replica, drop_remainder=True)
            .map(_join_pieces)
        )
    skipped = first_step - first_block * steps
    batches = batches.skip(skipped * share.replicas)
    return batches.take((num_steps - first_step) * share.replicas).prefetch(steps * share.replicas)


def _repeat_for_pieces(pieces: int, *element: tf.Tensor) -> tf.data.Dataset:
    """A dataset of (number of the piece, element), once for each piece."""
    numbers = tf.data.Dataset.range(pieces, output_type=tf.int32)
    return numbers.map(lambda number: (number, *element))


def _join_pieces(*batches: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], ...]:
    """A batch from its pieces: (pieces, rows, ...) to (pieces x rows, ...)."""
    return tf.nest.map_structure(_flat, batches)


def _make_block(
    streams: tuple[Stream, ...],
    elements: tuple[tf.Tensor, ...],
    steps: int,
    stage_key: tf.Tensor,
    block: tf.Tensor,
    perturb: Perturbation,
    share: Share,
    mixes: bool,
) -> tuple[dict[str, tf.Tensor], ...]:
    """The batches of a block of steps, for each step and replica; see `training_batches`.

    `elements` are the block's element of each stream, `steps` the number of steps in a block, and
    `block` its number, an int64 scalar tensor.
    """
    sizes = [stream.batch_size for stream in streams]
    share_to_perturb = WHOLE if mixes else share
    sizes_to_perturb = share_to_perturb.sizes(sizes)
    replica_sizes = [size // share.replicas for size in share.sizes(sizes)]
    examples = [
        stream.examples(
            _flat(_share_of_rows(_by_step(element, steps, stream.batch_size), share_to_perturb))
        )
        for stream, element in zip(streams, elements, strict=True)
    ]

    def join(name):
        """The rows of all streams, step by step."""
        rows = [
            _by_step(example[name], steps, size)
            for example, size in zip(examples, sizes_to_perturb, strict=True)
        ]
        return _flat(tf.concat(rows, axis=1))

    def divide(rows):
        """The rows of each stream, for each step and replica."""
        parts = tf.split(_by_step(rows, steps, sum(sizes_to_perturb)), sizes_to_perturb, axis=1)
        if mixes:
            parts = [_share_of_rows(part, share) for part in parts]
        return [
            _by_step(_flat(part), steps * share.replicas, size)
            for part, size in zip(parts, replica_sizes, strict=True)
        ]

    key = noise.fold_in(noise.named(tf.constant(stage_key), "augment"), block)
    with _noise_scope(key, sizes, steps, share_to_perturb):
        images, targets = perturb(
            join("image"), join("target"), key, sum(sizes_to_perturb), block * steps
        )
    return tuple(
        {"image": image, "target": target, "weight": tf.ones(target.shape[:2])}
        for image, target in zip(divide(images), divide(targets), strict=True)
    )


def _noise_scope(
    key: tf.Tensor, batch_sizes: list[int], steps: int, share: Share
) -> contextlib.AbstractContextManager:
    """A `noise.scope` of the rows that are a worker's share of every batch of a block."""
    if share.is_whole:
        return contextlib.nullcontext()
    positions_in_batch = tf.concat(share.positions(batch_sizes), 0)
    positions = sum(batch_sizes) * tf.range(steps)[:, None] + positions_in_batch
    return noise.scope(key, tf.reshape(positions, [-1]), steps * sum(batch_sizes))


def _by_step(rows: tf.Tensor, steps: int, size: int) -> tf.Tensor:
    """(steps x size, ...) as (steps, size, ...)."""
    return tf.reshape(rows, [steps, size, *rows.shape[1:]])


def _flat(rows: tf.Tensor) -> tf.Tensor:
    """(steps, batch, ...) as (steps x batch, ...)."""
    return tf.reshape(rows, [-1, *rows.shape[2:]])


def _share_of_rows(rows: tf.Tensor, share: Share) -> tf.Tensor:
    """A worker's share of each step's rows, (steps, batch, ...)."""
    steps, size, *shape = rows.shape
    by_worker = tf.reshape(rows, [steps, share.num_workers, size // share.num_workers, *shape])
    return by_worker[:, share.worker]
