"""The processes that train together, and what they tell each other.

Under MultiWorkerMirroredStrategy every process runs the same program. All of them train; worker 0,
the chief, alone writes, decides when to save, and makes the other stages, while the others wait for
its word. What is told goes the way of the gradients, by collective operations, so that there is no
other network and a lost worker is noticed in the same way: TensorFlow's coordination service ends
all collective operations about ten seconds after a worker was heard of last.

Reference: tf.distribute.MultiWorkerMirroredStrategy.
"""

import contextlib
import re
import threading

import tensorflow as tf

from nsk.distributed.batch_share import Share
from nsk.errors import CannotTeachError, LostWorkerError

LOST = "Collective ops is aborted by"  # In TensorFlow's message where another worker is gone.
NOT_LOST = "mismatch"  # Workers that do different things: a bug.
LOOKS = 0.1  # Seconds between two looks for signals.


class Workers:
    """The workers of a strategy; with any but MultiWorkerMirroredStrategy there is this one alone.

    Attributes:
        index, count: ints, which of how many this process is.

    Args:
        strategy: a `tf.distribute.Strategy`.
    """

    def __init__(self, strategy):
        self._strategy = strategy
        self.index, self.count = 0, 1
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            self.index = resolver.task_id
            self.count = resolver.cluster_spec().num_tasks("worker")
        self.share = Share(self.index, self.count, strategy.num_replicas_in_sync // self.count)

    @property
    def is_chief(self):
        """Whether this one writes and decides."""
        return self.index == 0

    def call(self, function, *args):
        """Calls a function that waits for the other workers; signals are handled meanwhile.

        Raises:
            LostWorkerError: another worker is gone.
        """
        if self.count == 1:
            return function(*args)
        with self.noticing_losses():
            return interruptible(function, *args)

    @contextlib.contextmanager
    def noticing_losses(self):
        """Turns what TensorFlow says within, where another worker is gone, into LostWorkerError."""
        try:
            yield
        except tf.errors.OpError as error:
            is_lost = LOST in error.message or isinstance(error, tf.errors.UnavailableError)
            if self.count == 1 or not is_lost or NOT_LOST in error.message:
                raise
            unhealthy = error.message.partition("unhealthy")[2] or error.message
            named = set(re.findall(r"/job:worker/(?:replica:\d+/)?task:(\d+)", unhealthy))
            others = sorted(map(int, named - {str(self.index)}))
            names = ", ".join(f"worker {number}" for number in others)
            raise LostWorkerError(names or "which one is not known") from error

    @contextlib.contextmanager
    def failing_together(self):
        """A CannotTeachError within is raised on every worker, whichever of them has met it.

        All come out of it at the same time. Any other error ends its worker, and so the others.
        """
        error = None
        try:
            yield
        except CannotTeachError as caught:
            error = caught
        (failed,) = self.sum(error is not None)
        if failed:
            raise error or CannotTeachError("Another worker tells why it cannot teach.")

    def sum(self, *values):
        """The sums over all workers of ints that each of them gives: list of ints."""
        if self.count == 1:
            return [int(one) for one in values]
        given = tf.constant([int(one) for one in values], tf.int64)
        sums = self.call(lambda: self._sum(given).numpy())
        # Each of a worker's replicas has given the same.
        return [int(one) // self.share.replicas for one in sums]

    def told_by_chief(self, *values):
        """The ints that the chief gives: list of ints. What the others give does not matter."""
        return self.sum(*(self.is_chief * int(one) for one in values))

    def wait(self):
        """Returns when every worker has come here."""
        self.sum(0)

    @tf.function
    def _sum(self, values):
        of_replicas = self._strategy.run(tf.identity, args=(values,))
        return self._strategy.reduce("SUM", of_replicas, axis=None)


def interruptible(function, *args):
    """Calls a function that may wait long outside of Python; signals are handled meanwhile."""
    outcome = {}

    def work():
        try:
            outcome["result"] = function(*args)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)  # A stop does not wait for it.
    thread.start()
    while thread.is_alive():
        thread.join(LOOKS)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
