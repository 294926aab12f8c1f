"""The processes that train together, and how they communicate.

Under MultiWorkerMirroredStrategy every process runs the same program. All of them train. Worker 0,
the chief, writes files, decides when to save, and builds the other stages, while the others wait
for it. Messages use collective operations, like gradients, so that no second network is needed and
a lost worker is detected in the same way: TensorFlow's coordination service aborts all collective
operations about ten seconds after the last heartbeat of a worker.

Reference: tf.distribute.MultiWorkerMirroredStrategy.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from nsk.distributed.batch_share import Share
from nsk.errors import GenerationFailedError, LostWorkerError, list_names

# Parts of TensorFlow's messages: another worker is lost, or runs other operations, which is a bug.
ABORTED, MISMATCH = "Collective ops is aborted by", "mismatch"
POLL_SECONDS = 0.1


class Workers:
    """The workers of a strategy; a single one unless it is a MultiWorkerMirroredStrategy.

    Attributes:
        index, count: ints, index of this process and number of workers.
        share: `Share`, this worker's part of every global batch.

    Args:
        strategy: a `tf.distribute.Strategy`.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self.index, self.count = 0, 1
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            self.index = resolver.task_id
            self.count = resolver.cluster_spec().num_tasks("worker")
        self.share = Share(self.index, self.count, strategy.num_replicas_in_sync // self.count)

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes files and decides."""
        return self.index == 0

    def call(self, function: Callable, *args: Any) -> Any:
        """Calls a function that waits for the other workers; signals are handled meanwhile.

        Raises:
            LostWorkerError: another worker is lost.
        """
        if self.count == 1:
            return function(*args)
        with self.detect_lost_workers():
            return call_interruptibly(function, *args)

    @contextlib.contextmanager
    def detect_lost_workers(self) -> Iterator[None]:
        """Turns TensorFlow's errors about another worker that is lost into LostWorkerError."""
        try:
            yield
        except tf.errors.OpError as error:
            is_lost = ABORTED in error.message or isinstance(error, tf.errors.UnavailableError)
            if self.count == 1 or not is_lost or MISMATCH in error.message:
                raise
            causes = error.message.partition("unhealthy")[2] or error.message
            named = set(re.findall(r"/job:worker/(?:replica:\d+/)?task:(\d+)", causes))
            others = sorted(map(int, named - {str(self.index)}))
            names = list_names([f"worker {number}" for number in others])
            raise LostWorkerError(names or "unknown which") from error

    @contextlib.contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Raises a GenerationFailedError of one worker on all workers, at the same time.

        Any other error ends its worker, and so the others.
        """
        error = None
        try:
            yield
        except GenerationFailedError as caught:
            error = caught
        (failures,) = self.sum(error is not None)
        if failures:
            raise error or GenerationFailedError(
                "The generation has failed on another worker, which reports why."
            )

    def sum(self, *values: int) -> list[int]:
        """The sums over all workers of the ints that each of them passes."""
        if self.count == 1:
            return [int(value) for value in values]
        given = tf.constant([int(value) for value in values], tf.int64)
        sums = self.call(lambda: self._sum(given).numpy())
        # Every replica of a worker has contributed the same values.
        return [int(total) // self.share.replicas for total in sums]

    def broadcast_from_chief(self, *values: int) -> list[int]:
        """The ints that the chief passes; those of other workers are ignored."""
        return self.sum(*(self.is_chief * int(value) for value in values))

    def wait(self) -> None:
        """Returns when every worker has called it."""
        self.sum(0)

    @tf.function
    def _sum(self, values):
        replica_values = self._strategy.run(tf.identity, args=(values,))
        return self._strategy.reduce("SUM", replica_values, axis=None)


def call_interruptibly(function: Callable, *args: Any) -> Any:
    """Calls a function that may wait for long outside Python; signals are handled meanwhile."""
    outcome = {}

    def work():
        try:
            outcome["result"] = function(*args)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)  # A stop does not wait for it.
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
