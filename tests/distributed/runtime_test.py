"""The runtime: which devices and workers a process computes with."""

import socket
import subprocess
import sys

import pytest

from nsk.config.run import RunConfig
from nsk.distributed import runtime as runtimes
from nsk.distributed.runtime import Runtime, start_runtime
from nsk.distributed.strategy import make_strategy
from nsk.errors import UserError


def test_the_runtime_of_a_single_process():
    for name, replicas in (("one", 1), ("mirrored", 2)):  # The tests split the CPU into two.
        runtime = Runtime.from_strategy(make_strategy(name))
        assert runtime.local_strategy is runtime.strategy
        assert (runtime.workers.index, runtime.workers.count) == (0, 1)
        assert runtime.workers.share.replicas == replicas
        assert runtime.strategy.num_replicas_in_sync == replicas


def test_a_single_process_does_not_wait_for_others(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "not JSON")
    runtime = start_runtime(RunConfig(strategy="one"), tmp_path, "")
    assert runtime.workers.count == 1 and not list(tmp_path.iterdir())


START = """
import tensorflow as tf
from nsk.config.run import RunConfig
from nsk.distributed.runtime import start_runtime
"""


def printed_by(script):
    """What a script prints that starts a runtime in a process of its own."""
    process = subprocess.run([sys.executable, "-c", START + script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_the_cpu_is_split_before_it_is_used():
    script = """
run = RunConfig(strategy="mirrored", logical_devices=3)
print(start_runtime(run, None, "").strategy.num_replicas_in_sync)
"""
    assert printed_by(script) == "3"


def test_a_deterministic_runtime_refuses_operations_that_do_not_repeat():
    script = """
start_runtime(RunConfig(strategy="one", deterministic=True), None, "")
try:
    tf.raw_ops.RandomUniform(shape=[1], dtype=tf.float32)
except (RuntimeError, tf.errors.OpError) as error:
    print("determinism" in str(error).lower())
"""
    assert printed_by(script) == "True"


def test_multi_worker_checks_its_cluster_before_tensorflow_connects(tmp_path, monkeypatch):
    """In order: TF_CONFIG, its own port, the other workers' flags, their addresses."""
    run = RunConfig(strategy="multi_worker")
    steps = []
    monkeypatch.setattr(
        runtimes,
        "wait_for_workers",
        lambda workdir, index, count, flags: steps.append((workdir, index, count, flags)),
    )
    monkeypatch.setattr(runtimes, "make_strategy", lambda *_: steps.append("connected"))

    def set_tf_config(*addresses):
        workers = ", ".join(f'"{address}"' for address in addresses)
        task = '"task": {"type": "worker", "index": 0}'
        monkeypatch.setenv("TF_CONFIG", f'{{"cluster": {{"worker": [{workers}]}}, {task}}}')

    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="without TF_CONFIG"):
        start_runtime(run, tmp_path, "flags")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        set_tf_config(f"localhost:{port}", "localhost:1")
        with pytest.raises(UserError, match=f"port {port} of worker 0"):
            start_runtime(run, tmp_path, "flags")
    assert steps == []
    set_tf_config(f"localhost:{port}", "nosuchhost.invalid:1")
    with pytest.raises(UserError, match=r"nosuchhost.invalid:1.* cannot be resolved"):
        start_runtime(run, tmp_path, "flags")
    assert steps == [(tmp_path, 0, 2, "flags")]
