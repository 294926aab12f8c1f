import numpy as np
import tensorflow as tf

from nsk import noise
from nsk.data.permutation import permuted

KEY = noise.key(0, "permutation test")


def test_permuted_is_a_permutation_for_each_number():
    positions = tf.tile(tf.range(7, dtype=tf.int64), [3])
    numbers = tf.repeat(tf.constant([0, 1, 2], tf.int64), 7)
    rows = permuted(positions, 7, KEY, numbers).numpy().reshape(3, 7)
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(7), [3, 1]))
    assert len({tuple(row) for row in rows}) == 3
