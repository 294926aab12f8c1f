"""Maps a function over a dataset in parallel, in order and ahead of use.

Reference: [tf.data performance](https://www.tensorflow.org/guide/data_performance_analysis)
"""

from collections.abc import Callable

import tensorflow as tf

from nsk.store.files import num_cores

# Elements (blocks of steps, pieces of large batches or batches to score) that are computed at the
# same time, and that are kept ready.
PARALLEL_CALLS = num_cores()
PREFETCHED = 4


def map_in_parallel(dataset: tf.data.Dataset, function: Callable) -> tf.data.Dataset:
    """Maps elements in parallel but in order, so that parallelism does not change the result."""
    options = tf.data.Options()
    # The numbers are fixed: autotuning has a thread that can delay the end of an iterator, and so
    # of a stage, by more than half a minute.
    options.autotune.enabled = False
    # Threads of its own: in TensorFlow's common pool the operations of a training step would wait
    # behind those that prepare the batches after the next.
    options.threading.private_threadpool_size = PARALLEL_CALLS
    return (
        dataset.map(function, num_parallel_calls=PARALLEL_CALLS, deterministic=True)
        .prefetch(PREFETCHED)
        .with_options(options)
    )
