import threading

import numpy as np
import pytest
import tensorflow as tf

from nsk import noise

KEY = noise.key(0, "noise test")


def test_keys_and_draws_stay_what_they_are():
    """Frozen numbers: whoever changes them changes every run that was ever made."""
    key = noise.key(7, "gen1/student")
    np.testing.assert_array_equal(key, [-6700869522089555051, 5718699956775678972])
    step_key = noise.named(noise.fold_in(key, 1234), "dropout")
    np.testing.assert_array_equal(step_key, [6813197356385275694, -4523527386362802786])
    np.testing.assert_array_equal(
        noise.integers(step_key, [6], 1000), [945, 10, 668, 731, 305, 922]
    )
    received = noise.uniform(step_key, [3])
    np.testing.assert_allclose(received, [0.57086384, 0.75816083, 0.49819040], rtol=1e-6)
    assert noise.python_seed(7, "weights") == 1649446912


def test_keys_differ_by_seed_and_by_every_name():
    parts = [(0, "a", "b"), (1, "a", "b"), (0, "b", "a"), (0, "ab"), (0, "a"), (0, "a", "b", "")]
    keys = {tuple(noise.key(*part)) for part in parts}
    assert len(keys) == len(parts)
    children = {tuple(noise.fold_in(KEY, number).numpy()) for number in range(100)}
    children |= {tuple(noise.named(KEY, name).numpy()) for name in ("crop", "flip", "dropout")}
    assert len(children) == 103
    seeds = [noise.python_seed(seed, "weights") for seed in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_draws_do_not_depend_on_what_was_drawn_before_or_where():
    def draw(name):
        return noise.uniform(noise.named(KEY, name), [5]).numpy()

    first, second = draw("first"), draw("second")
    np.testing.assert_array_equal(draw("second"), second)
    np.testing.assert_array_equal(draw("first"), first)
    compiled = tf.function(lambda step: noise.uniform(noise.fold_in(KEY, step), [5]))
    for step in range(3):
        eager = noise.uniform(noise.fold_in(KEY, step), [5])
        np.testing.assert_array_equal(compiled(tf.constant(step)), eager)
        np.testing.assert_array_equal(compiled(tf.constant(step, tf.int64)), eager)


def test_draws_are_uniform_and_those_of_different_keys_are_independent():
    draws = np.stack([noise.uniform(noise.fold_in(KEY, step), [20_000]) for step in range(4)])
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=1), 0.5, atol=0.01)
    np.testing.assert_allclose(draws.var(axis=1), 1 / 12, atol=0.003)
    correlations = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlations).max() < 0.03
    counts = np.bincount(noise.integers(KEY, [16_000], 16))
    assert counts.shape == (16,)
    assert np.all(np.abs(counts - 1000) < 150)
    bounded = noise.uniform(KEY, [1000], minval=-2.0, maxval=3.0).numpy()
    assert -2 <= bounded.min() < -1.9
    assert 2.9 < bounded.max() < 3


def test_a_scope_gives_every_replica_its_rows_of_the_global_draw():
    with noise.scope(KEY, tf.range(12), 12):
        whole = noise.example_uniform("layer", 12, [3]).numpy()
    positions = [[0, 1, 6, 7, 8], [2, 3, 9, 10, 11]]  # Of two replicas and two streams.
    for mine in positions:
        with noise.scope(KEY, tf.constant(mine), tf.constant(12)):
            np.testing.assert_array_equal(
                noise.example_uniform("layer", len(mine), [3]), whole[mine]
            )
    assert len(np.unique(whole)) == whole.size


def test_draws_within_a_scope_differ_only_by_layer_and_step():
    def draw(key, name):
        with noise.scope(key, tf.range(4), 4):
            return tuple(noise.example_uniform(name, 4).numpy())

    assert draw(KEY, "one") == draw(KEY, "one")
    assert len({draw(KEY, "one"), draw(KEY, "two"), draw(noise.fold_in(KEY, 1), "one")}) == 3


def test_outside_of_a_scope_draws_come_from_the_global_generator():
    tf.random.set_seed(0)
    draws = [noise.example_uniform("layer", 4, [2]).numpy() for _ in range(2)]
    assert draws[0].shape == (4, 2)
    assert np.any(draws[0] != draws[1])
    tf.random.set_seed(0)
    np.testing.assert_array_equal(noise.example_uniform("layer", 4, [2]), draws[0])


def test_scopes_nest_and_end_with_an_error():
    def draw():
        return tuple(noise.example_uniform("layer", 2).numpy())

    with noise.scope(KEY, tf.range(2), 2):
        outer = draw()
        with noise.scope(noise.fold_in(KEY, 1), tf.range(2), 2):
            assert draw() != outer
        assert draw() == outer
        with pytest.raises(RuntimeError), noise.scope(noise.fold_in(KEY, 1), tf.range(2), 2):
            raise RuntimeError
        assert draw() == outer
    assert draw() != draw()


def test_a_scope_holds_for_its_own_thread_alone():
    """MirroredStrategy traces replicas in threads: none may draw by another's positions."""
    received = []

    def elsewhere():
        received.append(tuple(noise.example_uniform("layer", 2).numpy()))
        received.append(tuple(noise.example_uniform("layer", 2).numpy()))

    with noise.scope(KEY, tf.range(2), 2):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert received[0] != received[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_noise_of_a_step_is_that_of_native_operations_with_and_without_xla(compiled):
    """Of an odd global batch, drawn together and layer by layer."""
    positions = tf.constant([0, 3, 4, 12])

    def draw(step, layer_names):
        with noise.scope(noise.step_key(KEY, step), positions, 13, layer_names):
            draws = {name: noise.example_uniform(name, 4) for name in ("first", "second")}
            return {**draws, "dropout": noise.example_uniform("dropout", 4, [7])}

    for layer_names in ((), ("first", "second")):
        draw_step = tf.function(
            lambda step, names=layer_names: draw(step, names), jit_compile=compiled
        )
        for step in (0, 5, 2**31 - 1):
            for name, received in draw_step(tf.constant(step)).items():
                native_key = noise.named(noise.fold_in(KEY, step), name)
                whole = noise.uniform(native_key, [13, 7] if name == "dropout" else [13])
                np.testing.assert_array_equal(received, tf.gather(whole, positions))


def test_examples_with_keys_of_their_own_draw_what_each_key_draws():
    numbers = np.array([5, -3, 2**62, 0], np.int64)
    keys = noise.example_keys(KEY, tf.constant(numbers))
    single = [noise.fold_in(KEY, number) for number in numbers]
    np.testing.assert_array_equal(keys, single)
    named = [noise.named(key, "crop") for key in single]
    np.testing.assert_array_equal(noise.named(keys, "crop"), named)
    received = noise.for_examples(noise.uniform, noise.named(keys, "crop"), 4, [2, 3])
    np.testing.assert_array_equal(received, [noise.uniform(key, [2, 3]) for key in named])
    bounded = noise.uniform(keys, [4, 5], minval=-2.0, maxval=3.0)
    np.testing.assert_allclose(bounded, [noise.uniform(key, [5], -2.0, 3.0) for key in single])
    with noise.scope(keys):
        received = noise.example_uniform("layer", 4, [3])
        np.testing.assert_array_equal(
            received, [noise.uniform(noise.named(key, "layer"), [3]) for key in single]
        )
        assert noise.example_uniform("layer", 4).shape == (4,)


def test_integers_of_examples_are_uniform_and_in_range():
    keys = noise.example_keys(KEY, tf.range(4000, dtype=tf.int64))
    draws = noise.integers(keys, [4000, 4], 16).numpy()
    assert draws.shape == (4000, 4) and draws.dtype == np.int32
    counts = np.bincount(draws.ravel(), minlength=16)
    assert counts.shape == (16,) and np.all(np.abs(counts - 1000) < 150)
