"""Score, select and write as Apache Beam pipelines, on any runner, by Beam's own options.

The same functions run as on one machine, so that the files are the same to the byte. They and the
workdir must be reachable by every worker under the same path, as on a shared file system. Files
appear whole or not at all, so that a task which is done twice does no harm, and what is finished is
kept when a pipeline fails.

Apache Beam comes with `requirements-beam.txt`.
"""

import dataclasses
import functools
import operator
import shlex
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from nsk.errors import UserError

# Items of one task: neighbours, since an output shard needs what the one before it has read.
TASK_ITEMS = 32


class Engine:
    """An engine as `nsk.pseudo.engine` describes it.

    Args:
        options: Beam's options as on its command line, such as "--runner=FlinkRunner
            --flink_master=localhost:8081".
        folder: an existing folder that all workers reach, for what goes back to this process.
        task_items: int, most items of one task.
    """

    def __init__(self, options, folder, task_items=TASK_ITEMS):
        self.options, self.folder, self.task_items = options, Path(folder), task_items

    def each(self, items, make):
        """Does the work of every item; see `engine.Local.each`."""
        if items:
            self._run(items, lambda tasks: tasks | "work" >> beam.ParDo(_Work(make)))

    def sum(self, items, function):
        """The sum of a function of lists of items; see `engine.Local.sum`."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder) / "sum.npz"

            def add_up(tasks):
                of_tasks = tasks | "map" >> beam.Map(function)
                total = of_tasks | "add" >> beam.CombineGlobally(_add).without_defaults()
                total | "keep" >> beam.Map(functools.partial(_save, path))

            self._run(items, add_up)
            return _load(path)

    def _run(self, items, build):
        """Runs a pipeline over tasks of neighbouring items."""
        size = self.task_items
        tasks = [items[first : first + size] for first in range(0, len(items), size)]
        try:
            with beam.Pipeline(options=PipelineOptions(shlex.split(self.options))) as pipeline:
                build(pipeline | "tasks" >> beam.Create(tasks) | beam.Reshuffle())
        except Exception as error:
            # Runners wrap what a worker has raised, each in its own way, as text.
            told = [line for line in str(error).splitlines() if "UserError: " in line]
            if not told:
                raise
            reason = told[-1].rpartition("UserError: ")[2].partition(" [while running")[0]
            raise UserError(
                f"A Beam worker says: {reason} What is finished is kept: run the same command "
                "again to go on."
            ) from error


class _Work(beam.DoFn):
    """Does the work of tasks; what it needs is loaded once in every worker."""

    def __init__(self, make):
        self._make = make

    def setup(self):
        self._function = self._make()

    def process(self, items):
        self._function(items)


def _add(values):
    return functools.reduce(operator.add, values)


def _save(path, value):
    """Keeps a dataclass of arrays, with the name of its class, in a file without pickles."""
    kind = type(value)
    arrays = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    np.savez(path, allow_pickle=False, kind=f"{kind.__module__}:{kind.__qualname__}", **arrays)


def _load(path):
    from nsk.pseudo import ranking

    with np.load(path, allow_pickle=False) as arrays:
        module, _, name = str(arrays["kind"]).partition(":")
        if module != ranking.__name__:
            raise ValueError(f"{path} holds a {module}.{name}: expected one of {ranking.__name__}.")
        return getattr(ranking, name)(**{key: arrays[key] for key in arrays if key != "kind"})
