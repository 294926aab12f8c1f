"""See also the tests of `Predictor`, whose predictions are such a function."""

import numpy as np
import pytest
import tensorflow as tf

from nsk.distributed import strategy as strategies
from nsk.errors import UserError
from nsk.evaluation.batch_function import BatchFunction


def sums_and_products(values, factors):
    return tf.reduce_sum(values, axis=1), values * factors[:, tf.newaxis]


def make(batch_size, strategy=None, jit_compile="off", function=sums_and_products):
    strategy = strategy or tf.distribute.get_strategy()
    return BatchFunction(function, batch_size, strategy, jit_compile, "model", "multiply")


@pytest.mark.parametrize("kind", ["one device", "replicas", "compiled"])
def test_several_arrays_and_results(kind):
    strategy = strategies.make_strategy("mirrored") if kind == "replicas" else None
    function = make(70, strategy, "on" if kind == "compiled" else "off")
    rng = np.random.default_rng(0)
    for count in (1, 31, 33, 69, 70):
        values, factors = rng.normal(size=(count, 3)), rng.normal(size=count)
        sums, products = function(values, factors)
        np.testing.assert_allclose(sums, values.sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(products, values * factors[:, np.newaxis], rtol=1e-12)


@pytest.mark.parametrize(("mode", "expected"), [("off", {32, 64, 70}), ("on", {70})])
def test_few_sizes_are_traced(mode, expected):
    sizes = set()

    def identity(values):
        sizes.add(len(values))
        return values

    function = make(70, jit_compile=mode, function=identity)
    for count in (1, 5, 32, 33, 64, 65, 70):
        assert len(function(np.zeros((count, 2)))) == count
    assert sizes == expected


def test_the_batch_size_is_a_multiple_of_the_replicas():
    assert make(5, strategies.make_strategy("mirrored")).batch_size == 6
    with pytest.raises(ValueError, match="6 images: expected at most a batch of 5"):
        make(5)(np.zeros((6, 2)), np.zeros(6))


def test_a_full_memory_names_the_task_the_batch_and_the_flag(monkeypatch):
    """Without a real full memory, after which TensorFlow waits for 40 seconds."""
    function = make(64)

    def fail(*arrays):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor")

    monkeypatch.setattr(function, "_global_batch", fail)
    with pytest.raises(UserError, match="model cannot multiply 64 images at a time; lower --eval_"):
        function(np.zeros((3, 2)), np.zeros(3))
