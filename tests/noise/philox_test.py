import numpy as np
import pytest
import tensorflow as tf

from nsk import noise
from nsk.noise import philox

# Random123's known-answer vectors (kat_vectors, philox4x32 10): counter, key, output.
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip
compiled_or_not = pytest.mark.parametrize("compiled", [False, True])


def words(text):
    return np.array([int(word, 16) for word in text.split()], np.int64)


def many_keys(count):
    random = np.random.default_rng(0)
    extremes = [[0, 0], [-1, -1], [2**63 - 1, -(2**63)], [1, 0], [0, 1], [2**32, 2**32 - 1]]
    return np.concatenate([extremes, random.integers(-(2**63), 2**63 - 1, (count, 2))])


@compiled_or_not
@pytest.mark.parametrize("counter, key, output", PUBLISHED)
def test_published_vectors(counter, key, output, compiled):
    philox_of = tf.function(philox.philox, jit_compile=compiled)
    received = philox_of(tf.constant(words(counter)), tf.constant(words(key)))
    np.testing.assert_array_equal(received, words(output))


@compiled_or_not
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 127, 1000])
def test_uniform_draws_are_those_of_tensorflow_on_the_cpu(count, compiled):
    keys = many_keys(50)
    draw = tf.function(philox.uniform, jit_compile=compiled)
    received = draw(tf.constant(keys), count).numpy()
    expected = [tf.random.stateless_uniform([count], key, alg="philox") for key in keys]
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("shape", [[], [3], [5, 7], [2, 3, 5], [33, 129]])
def test_draws_of_a_shape_are_those_of_its_number_of_elements(shape):
    for key in many_keys(3):
        received = noise.portable_uniform(tf.constant(key), shape)
        np.testing.assert_array_equal(received, noise.uniform(key, shape))


@compiled_or_not
def test_child_keys_are_those_of_tensorflow_on_the_cpu(compiled):
    numbers = np.array([0, 1, -1, 7, 2**31, 2**63 - 1, -(2**63)])
    fold_in = tf.function(philox.fold_in, jit_compile=compiled)
    for key in many_keys(20):
        received = fold_in(tf.constant(key), tf.constant(numbers)).numpy()
        expected = [
            tf.random.experimental.stateless_fold_in(key, number, alg="philox")
            for number in numbers
        ]
        np.testing.assert_array_equal(received, expected)
