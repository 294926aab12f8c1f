"""The runtime of a process: its devices and the workers that it computes with, created once."""

import dataclasses
import os
from pathlib import Path
from typing import Self

import tensorflow as tf
from absl import logging

from nsk.config.run import RunConfig
from nsk.distributed.compilation import describe_devices
from nsk.distributed.rendezvous import remove_presence_file, wait_for_workers
from nsk.distributed.strategy import local_strategy, make_strategy, prepare_gpus, split_cpu
from nsk.distributed.tf_config import check_hosts, check_port, read_tf_config
from nsk.distributed.workers import Workers


@dataclasses.dataclass(frozen=True)
class Runtime:
    """The devices and workers of a run.

    Attributes:
        strategy: over all devices of all workers.
        local_strategy: over the devices of this process alone, for work without the others.
        workers: the processes that train together.
    """

    strategy: tf.distribute.Strategy
    local_strategy: tf.distribute.Strategy
    workers: Workers

    @classmethod
    def from_strategy(cls, strategy: tf.distribute.Strategy) -> Self:
        """The runtime of a strategy whose workers are connected already."""
        return cls(strategy, local_strategy(strategy), Workers(strategy))


def start_runtime(run: RunConfig, workdir: Path, flags: str) -> Runtime:
    """Connects to all workers of a run and finds its devices.

    Args:
        run: which strategy, and on which devices.
        workdir: the run's folder, which all workers share.
        flags: text that must be the same for all workers.

    Raises:
        UserError: TF_CONFIG is missing or invalid, a worker was given other flags, or a device
            cannot be used.
    """
    if run.strategy == "multi_worker":
        cluster = read_tf_config(os.environ.get("TF_CONFIG", ""))
        check_port(cluster)
        wait_for_workers(workdir, cluster.index, cluster.count, flags)
        check_hosts(cluster)  # Not earlier: a host may get its name when it starts.
    if run.deterministic:
        tf.random.set_seed(run.seed)  # Required, although no operation here draws from it.
        tf.config.experimental.enable_op_determinism()
    split_cpu(run.logical_devices)
    prepare_gpus()
    runtime = Runtime.from_strategy(make_strategy(run.strategy, run.tpu))
    workers = runtime.workers
    if workers.count > 1:
        workers.wait()
        remove_presence_file(workdir, workers.index, workers.count)
    logging.info("%s", describe_devices(runtime.strategy, run.jit_compile))
    return runtime
