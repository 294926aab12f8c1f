"""Where work on many files is done: in this process, or on any runner of Apache Beam.

An engine calls functions of a *list* of items, file paths or numbers: it decides how many are
processed together.
"""

import concurrent.futures
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nsk.store.files import num_cores

LISTS_PER_THREAD = 8


class Engine(Protocol):
    """Processes lists of items."""

    def run(
        self, items: Sequence[Any], make_function: Callable[[], Callable[[list], None]]
    ) -> None:
        """Processes every item.

        Args:
            items: file paths or numbers.
            make_function: function without arguments that returns a function of a list of items. It
                is called once in every worker process, which so loads a model once.
        """

    def map_reduce(self, items: Sequence[Any], function: Callable[[list], Any]) -> Any:
        """Returns the sum (+) of a function of lists of items, over all items.

        Args:
            items: file paths or numbers, at least one.
            function: function of a list of items; its results may be added in any order.
        """


class LocalEngine:
    """Uses the threads of this process; methods as in `Engine`."""

    def run(
        self, items: Sequence[Any], make_function: Callable[[], Callable[[list], None]]
    ) -> None:
        """Processes all items as one list; see `Engine.run`."""
        if items:
            make_function()(items)

    def map_reduce(self, items: Sequence[Any], function: Callable[[list], Any]) -> Any:
        """Adds up the results of several threads; see `Engine.map_reduce`."""
        # Several lists for each thread, so that a stop request waits for little work.
        num_lists = min(len(items), LISTS_PER_THREAD * num_cores())
        with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
            parts = pool.map(function, (items[index::num_lists] for index in range(num_lists)))
            return functools.reduce(operator.add, parts)


LOCAL = LocalEngine()
