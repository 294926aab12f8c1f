"""Philox4x32-10 in integer operations: the same bits with and without XLA and on every device.

TensorFlow's own stateless operations return different numbers when compiled by XLA. The functions
here return exactly what `tf.random.stateless_uniform(alg="philox")` and
`stateless_fold_in(alg="philox")` return on the CPU without XLA, from operations that have the same
result everywhere. The native operations are faster if many numbers are drawn.

All 32-bit words are held in int64 tensors: TensorFlow keeps int32 in the host's memory even on a
GPU, and has no uint32 arithmetic on some devices. A product of two words wraps around in int64, but
its 64 bits are those of the unsigned product.

Reference: [Salmon et al., 2011](https://doi.org/10.1145/2063384.2063405)
"""

import numpy as np
import tensorflow as tf

ROUNDS = 10
WORD = 0xFFFFFFFF
WORDS_PER_BLOCK = 4
# Of counter words 2 and 0: the order in which a round uses them.
MULTIPLIERS = np.array([0xCD9E8D57, 0xD2511F53], np.int64)
KEY_INCREMENTS = np.array([0x9E3779B9, 0xBB67AE85], np.int64)
# The key with which TensorFlow turns a seed into a key and a counter.
SEED_KEY = np.array([0x3EC8F720, 0x02461E29], np.int64)
MANTISSA_BITS = 23


def philox(counters: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Computes the block of random words of each counter.

    Args:
        counters: int64 tensor (4, ...), 32-bit words, the least significant first.
        keys: int64 tensor (2, ...) of 32-bit words that broadcasts to a row of `counters`.

    Returns:
        int64 tensor (4, ...) of 32-bit words.
    """
    trailing = [1] * (keys.shape.rank - 1)
    rounds = np.arange(ROUNDS).reshape(ROUNDS, 1, *trailing)
    round_keys = tf.unstack((keys + rounds * KEY_INCREMENTS.reshape(2, *trailing)) & WORD)
    multipliers = MULTIPLIERS.reshape(2, *[1] * (counters.shape.rank - 1))
    even, odd = tf.stack([counters[0], counters[2]]), tf.stack([counters[1], counters[3]])
    for round_key in round_keys:
        products = tf.reverse(even, [0]) * multipliers
        high = tf.bitwise.right_shift(products, np.int64(32)) & WORD
        even, odd = high ^ odd ^ round_key, products & WORD
    return tf.stack([even[0], odd[0], even[1], odd[1]])


def _words(numbers):
    """int64 (n, ...) as 32-bit words, the lower one first: int64 (2 n, ...)."""
    low, high = numbers & WORD, tf.bitwise.right_shift(numbers, np.int64(32)) & WORD
    # Rows of an unknown length occur in the input pipeline, which XLA does not compile.
    is_known = numbers.shape[1:].is_fully_defined()
    row_shape = numbers.shape[1:] if is_known else tf.unstack(tf.shape(numbers)[1:])
    return tf.reshape(tf.stack([low, high], axis=1), [-1, *row_shape])


def _blocks(keys, count):
    """The first `count` blocks of each key as TensorFlow draws them.

    Args:
        keys: int64 tensor (2, n), a key in each column.
        count: int or scalar tensor.

    Returns:
        int64 tensor (4, n, count) of 32-bit words.
    """
    # TensorFlow encrypts the seed: two words of the result are the key, two the upper half of the
    # counter, whose lower half is the number of the block.
    mixed = philox(_words(keys), tf.constant(SEED_KEY[:, None]))[:, :, None]
    blocks = tf.range(tf.cast(count, tf.int64))[None, None]
    low = blocks + tf.zeros_like(mixed[:2])  # Broadcasts over the keys.
    high = mixed[2:] + tf.zeros_like(low)
    return philox(tf.concat([low[:1], tf.zeros_like(low[:1]), high], axis=0), mixed[:2])


def uniform(keys: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Draws in [0, 1) for several keys: `tf.random.stateless_uniform([count], key)` of each.

    Args:
        keys: int64 tensor (n, 2).
        count: int or scalar tensor, draws of each key.

    Returns:
        float32 tensor (n, count); multiples of 2^-23.
    """
    words = _blocks(tf.transpose(keys), -(-count // WORDS_PER_BLOCK))
    mantissas = words & (2**MANTISSA_BITS - 1)
    draws = tf.cast(mantissas, tf.float32) * np.float32(2.0**-MANTISSA_BITS)
    num_keys = tf.shape(keys)[0]
    return tf.reshape(tf.transpose(draws, [1, 2, 0]), [num_keys, -1])[:, :count]


def fold_in(key: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Child keys of a key: `stateless_fold_in(key, number)` for each number.

    Args:
        key: int64 tensor (2,), or (n, 2): one for each number.
        numbers: int64 tensor (n,), or a scalar: the same for each key.

    Returns:
        int64 tensor (n, 2).
    """
    low, high = tf.unstack(_blocks(tf.transpose(tf.reshape(key, [-1, 2])), 1)[:2, :, 0])
    # Only the first half of a child depends on the key, and the second one is the number.
    first = low | tf.bitwise.left_shift(high, np.int64(32))
    return tf.stack([first + tf.zeros_like(numbers), numbers + tf.zeros_like(first)], axis=1)
