"""Stateless permutations."""

import tensorflow as tf

ROUNDS = 4  # Of the cipher that permutes indices; TensorFlow's own default.


def permuted(
    positions: tf.Tensor, size: int | tf.Tensor, key: tf.Tensor, numbers: tf.Tensor
) -> tf.Tensor:
    """Maps positions by permutations of 0..size-1.

    Args:
        positions: int64 (n,), each in 0..size-1.
        size: int or int64 scalar tensor.
        key: int64 (2,), a key of `nsk.noise`.
        numbers: int64 (n,): which of the key's permutations, such as the epoch, maps each position.

    Returns:
        int64 tensor (n,).
    """
    seeds = tf.stack(
        [tf.fill(tf.shape(positions), key[0]), tf.fill(tf.shape(positions), key[1]), numbers], 1
    )
    # The raw op, because `tf.random.experimental.index_shuffle` of TensorFlow 2.21 pads a batch of
    # seeds wrongly.
    return tf.raw_ops.RandomIndexShuffle(
        index=positions,
        seed=seeds,
        max_index=tf.cast(size, tf.int64) - 1,
        rounds=ROUNDS,
    )
