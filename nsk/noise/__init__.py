"""All random numbers of training are drawn here.

Every draw is a pure function of a key and of the example's position in the *global* batch. So
replicas draw different noise, one device draws the same as N replicas together, and a resumed run
draws the same as an uninterrupted one: there is no state that a checkpoint would have to hold.

A key is derived from the run's seed and names (`key(seed, "gen1/student")`), folded with the step
(`fold_in`), and then with the name of the layer or augmentation that draws (`named`). The generator
is Philox. The input pipeline, which always runs on the CPU, draws with TensorFlow's own operations
(`tf.random.stateless_uniform(alg="philox")`). Under XLA these return other numbers, so all draws of
a training step come from `nsk.noise.philox`: bit-identical numbers, by operations that have the
same result with and without XLA and on every device type.

Keras does not pass a key to the layers of a model. The trainer opens a `scope` around the forward
pass, and layers draw with `example_uniform`. If a worker prepares a part of a global batch, a scope
says which part, and augmentation draws with `for_examples`.

When a teacher labels images with noise, there is no global batch: every image has a key of its own
(`example_keys`). Keys of shape (n, 2) take the place of a key wherever something is drawn for n
examples.
"""

import contextlib
import dataclasses
import functools
import hashlib
import operator
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from nsk.noise import philox

ALGORITHM = "philox"
Key = np.ndarray | tf.Tensor  # int64 (2,); or (n, 2), one for each example.


def key(seed: int, *names: str | int) -> np.ndarray:
    """Derives a key from the run's seed and any names.

    Args:
        seed: int, the run's seed.
        *names: strings or ints that distinguish this use of the seed from all others.

    Returns:
        int64 array of shape (2,).
    """
    text = "\x1f".join(str(part) for part in (int(seed), *names))
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], np.int64).copy()


def python_seed(seed: int, *names: str | int) -> int:
    """An int in [0, 2**31) for libraries that take one integer (NumPy, Keras initializers)."""
    return int(key(seed, *names)[0] & 0x7FFFFFFF)


def fold_in(parent: Key, number: int | tf.Tensor) -> tf.Tensor:
    """A child key for a number (a step, an epoch), which may be a tensor; int64 as the parent."""
    if len(parent.shape) == 2:
        return philox.fold_in(parent, tf.cast(number, tf.int64))
    return tf.random.experimental.stateless_fold_in(
        parent, tf.cast(number, tf.int64), alg=ALGORITHM
    )


def named(parent: Key, name: str) -> tf.Tensor:
    """A child key for a name, of a layer or of a kind of augmentation; int64 as the parent."""
    return fold_in(parent, key(0, name)[0])


def example_keys(parent: Key, numbers: tf.Tensor) -> tf.Tensor:
    """Keys of examples that do not depend on their position in a batch.

    Args:
        parent: int64 (2,).
        numbers: int64 (n,), such as hashes of the examples' ids.

    Returns:
        int64 tensor (n, 2).
    """
    return philox.fold_in(tf.convert_to_tensor(parent), numbers)


def uniform(draw_key: Key, shape: Sequence, minval: float = 0.0, maxval: float = 1.0) -> tf.Tensor:
    """float32 tensor of `shape`, (n, ...) with the keys of n examples, in [minval, maxval)."""
    if len(draw_key.shape) == 2:
        draws = portable_uniform(draw_key, shape)
        return minval + (maxval - minval) * draws
    return tf.random.stateless_uniform(
        shape, seed=draw_key, minval=minval, maxval=maxval, dtype=tf.float32, alg=ALGORITHM
    )


def step_key(stage_key: Key, step: int | tf.Tensor) -> tf.Tensor:
    """`fold_in(stage_key, step)` for a training step, which XLA may compile: `nsk.noise.philox`."""
    return philox.fold_in(tf.convert_to_tensor(stage_key), tf.cast(step, tf.int64)[None])[0]


def portable_uniform(draw_key: tf.Tensor, shape: Sequence) -> tf.Tensor:
    """`uniform(draw_key, shape)` for a training step, which XLA may compile: `nsk.noise.philox`."""
    has_examples = len(draw_key.shape) == 2
    shape_of_draws = shape[1:] if has_examples else shape
    draws = philox.uniform(
        tf.reshape(draw_key, [-1, 2]), functools.reduce(operator.mul, shape_of_draws, 1)
    )
    return tf.reshape(draws, shape)


def integers(draw_key: Key, shape: Sequence, maxval: int | tf.Tensor) -> tf.Tensor:
    """int32 tensor of `shape`, (n, ...) with the keys of n examples, uniform over 0..maxval-1."""
    if len(draw_key.shape) == 2:
        draws = tf.cast(portable_uniform(draw_key, shape), tf.float64)
        return tf.cast(draws * tf.cast(maxval, tf.float64), tf.int32)
    return tf.random.stateless_uniform(
        shape, seed=draw_key, minval=0, maxval=maxval, dtype=tf.int32, alg=ALGORITHM
    )


def gamma(draw_key: Key, shape: Sequence, alpha: float) -> tf.Tensor:
    """float64 tensor of `shape` from the Gamma distribution of shape `alpha` > 0 and scale 1."""
    return tf.random.stateless_gamma(shape, draw_key, alpha, dtype=tf.float64)


@dataclasses.dataclass(frozen=True)
class _Scope:
    key: tf.Tensor
    positions: tf.Tensor
    global_batch_size: int | tf.Tensor
    example_draws: dict[str, tf.Tensor]  # By the name of a layer; float32 (local_batch,).


_active = threading.local()  # MirroredStrategy traces each replica in a thread of its own.


@contextlib.contextmanager
def scope(
    step_key: Key,
    positions: tf.Tensor | None = None,
    global_batch_size: int | tf.Tensor = 0,
    layer_names: Sequence[str] = (),
) -> Iterator[None]:
    """Context in which a step's noise is drawn for some rows of the global batch.

    Args:
        step_key: int64 tensor of shape (2,), a key already folded with the step; or (local_batch,
            2), a key for each example, and nothing else.
        positions: int tensor of shape (local_batch,): positions of the local rows in the global
            batch.
        global_batch_size: int or scalar tensor, rows in the global batch.
        layer_names: names of the layers that draw one number per example. Their numbers are drawn
            together: they are the same otherwise, but every layer would add some 150 small
            operations to the graph.
    """
    draws = _example_draws(step_key, positions, global_batch_size, layer_names)
    previous = getattr(_active, "scope", None)
    _active.scope = _Scope(step_key, positions, global_batch_size, draws)
    try:
        yield
    finally:
        _active.scope = previous


def _example_draws(step_key, positions, global_batch_size, names):
    """The results of `example_uniform(name, ...)` for several names, as a dict."""
    if not names:
        return {}
    numbers = tf.constant([key(0, name)[0] for name in names])
    keys = philox.fold_in(tf.convert_to_tensor(step_key), numbers)
    draws = tf.gather(philox.uniform(keys, global_batch_size), positions, axis=1)
    return dict(zip(names, tf.unstack(draws, len(names)), strict=True))


def for_examples(
    draw: Callable, draw_key: Key, count: int | tf.Tensor, shape: Sequence = ()
) -> tf.Tensor:
    """Draws for `count` examples; within a `scope`, for its rows of the global batch.

    Numbers are drawn for the whole global batch, and the local rows are gathered: cheap for a few
    numbers per example (a crop, stochastic depth) or one feature vector (dropout before the
    classifier).

    Args:
        draw: function of (key, shape), such as `uniform`.
        draw_key: int64 (2,).
        count: int or scalar tensor, number of local examples.
        shape: shape of one example's draws.

    Returns:
        tensor of shape (count, *shape).
    """
    active = getattr(_active, "scope", None)
    if active is None:
        return draw(draw_key, [count, *shape])
    return tf.gather(draw(draw_key, [active.global_batch_size, *shape]), active.positions)


def example_uniform(name: str, batch_size: int | tf.Tensor, shape: Sequence = ()) -> tf.Tensor:
    """Uniform draws in [0, 1) for every example of a layer's batch.

    Inside a `scope` they depend only on the scope's key, on `name` and on the example's position in
    the global batch: they are the same with and without XLA and on every device. Outside a scope
    (such as a model trained by `model.fit`) they come from TensorFlow's global generator and are
    not reproducible.

    Args:
        name: string, unique for the layer within its model.
        batch_size: int or scalar tensor, rows of the layer's batch.
        shape: shape of one example's draws.

    Returns:
        float32 tensor of shape (batch_size, *shape).
    """
    active = getattr(_active, "scope", None)
    if active is None:
        return tf.random.uniform([batch_size, *shape])
    if not shape and name in active.example_draws:
        return active.example_draws[name]
    if len(active.key.shape) == 2:
        return portable_uniform(named(active.key, name), [batch_size, *shape])
    number = tf.constant(key(0, name)[:1])
    (layer_key,) = tf.unstack(philox.fold_in(tf.convert_to_tensor(active.key), number), 1)
    return for_examples(portable_uniform, layer_key, batch_size, shape)
