"""Where the work on many files is done: on this machine, or by `nsk.pseudo.beam_engine` on many.

An engine has two methods. Both are given functions of a *list* of items, so that it decides how
many are worked on together; the items are file paths or numbers.
"""

import concurrent.futures
import functools
import operator

from nsk.store.files import num_cores

LISTS_FOR_A_THREAD = 8


class Local:
    """This process and its threads."""

    def each(self, items, make):
        """Does the work of every item.

        Args:
            items: list.
            make: function without arguments that returns a function of a list of items. It is
                called once by every worker process: what it loads, it loads once.
        """
        if items:
            make()(items)

    def sum(self, items, function):
        """The sum (+) of a function of lists of items, over all items.

        Args:
            items: list, not empty.
            function: function of a list of items; its results can be added in any order.
        """
        # Several lists for each thread, so that a stop waits for little of the work.
        lists = min(len(items), LISTS_FOR_A_THREAD * num_cores())
        with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
            parts = pool.map(function, (items[number::lists] for number in range(lists)))
            return functools.reduce(operator.add, parts)


LOCAL = Local()
