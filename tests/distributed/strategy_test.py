"""Strategies: the devices of one process, and what they demand of batch sizes."""

import pytest
import tensorflow as tf

from nsk.distributed.strategy import (
    check_divisible,
    local_strategy,
    make_strategy,
    prepare_gpus,
)
from nsk.errors import UserError


def test_one_is_a_single_device_and_mirrored_uses_all():
    assert make_strategy("one").num_replicas_in_sync == 1
    mirrored = make_strategy("mirrored")
    assert mirrored.num_replicas_in_sync == len(tf.config.list_logical_devices("CPU")) == 2
    assert make_strategy("mirrored") is mirrored


@pytest.mark.parametrize("name", ["one", "mirrored"])
def test_the_strategy_of_a_single_process_is_local(name):
    strategy = make_strategy(name)
    assert local_strategy(strategy) is strategy


@pytest.mark.parametrize(
    ("gpus", "expected"), [(0, "OneDevice"), (1, "OneDevice"), (2, "Mirrored")]
)
def test_auto_uses_all_gpus_if_there_are_several(monkeypatch, gpus, expected):
    cpus = tf.config.list_logical_devices("CPU")
    devices = {"GPU": cpus[:gpus], "CPU": cpus}
    monkeypatch.setattr(tf.config, "list_logical_devices", devices.__getitem__)
    strategy = make_strategy("auto")
    assert type(strategy).__name__.startswith(expected)
    assert strategy.num_replicas_in_sync == max(gpus, 1)


def test_a_batch_that_does_not_divide_over_the_replicas_is_refused():
    mirrored = make_strategy("mirrored")
    check_divisible(mirrored, labeled_batch=6, pseudo_batch=18)
    check_divisible(make_strategy("one"), labeled_batch=7)
    with pytest.raises(UserError, match=r"pseudo batch of 17 images .* 2 replicas: .* of 2"):
        check_divisible(mirrored, labeled_batch=6, pseudo_batch=17)
    with pytest.raises(
        UserError, match=r"pseudo batch of 17 .* by --labeled_batch_size or --ratio"
    ):
        check_divisible(mirrored, pseudo_batch=17)


def test_a_batch_that_does_not_divide_into_micro_batches_is_refused():
    check_divisible(make_strategy("mirrored"), 3, labeled_batch=12)
    expected = r"labeled batch of 8 images .* 2 replicas with --accumulation_steps=3: .* of 6 by "
    with pytest.raises(UserError, match=expected + r"--labeled_batch_size or a lower --accum"):
        check_divisible(make_strategy("mirrored"), 3, labeled_batch=8)


def test_a_machine_without_a_tpu_is_a_user_error():
    with pytest.raises(UserError, match=r"the TPU 'local' cannot be used \(TPUs not found"):
        make_strategy("tpu", "local")


def test_gpu_memory_grows_as_it_is_needed(monkeypatch):
    grown = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, on: grown.append((gpu, on))
    )
    prepare_gpus()
    assert grown == [("GPU:0", True), ("GPU:1", True)]
