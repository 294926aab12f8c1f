"""Score, select and write as Apache Beam pipelines, on any runner, by Beam's own options.

The same functions run as on one machine, so that the files are the same to the byte. They and the
workdir must be reachable by every worker under the same path, as on a shared file system. Files
appear whole or not at all, so that a task which is done twice does no harm, and what is finished is
kept when a pipeline fails.

Apache Beam comes with `requirements-beam.txt`.
"""

import contextlib
import dataclasses
import functools
import io
import operator
import os
import re
import shlex
import sys
import tempfile
import threading
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners import create_runner
from apache_beam.runners.portability.portable_runner import PortableRunner

from nsk import stopping
from nsk.errors import UserError

# Items of one task: neighbours, since an output shard needs what the one before it has read.
TASK_ITEMS = 32
# Lines of Beam and of TensorFlow's C++ libraries in worker processes of this machine.
NOISE = re.compile(rb"(DEBUG|INFO|WARNING):|[IW]\d{4} \d\d:\d\d:\d\d")


def check_options(options):
    """Reads `--beam_options` and makes the runner that they name: (PipelineOptions, runner).

    Nothing is run, and what only the runner's machines can tell is not checked.

    Raises:
        UserError: they cannot be read, name an unknown option or runner, or lack an option.
    """
    try:
        given = shlex.split(options)
    except ValueError as error:
        raise _wrong(options, f"{error}: close every quotation mark") from None
    parsers = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            _, unknown = parsers[0].parse_known_args(given)
            made = PipelineOptions(given)
    except SystemExit:  # argparse has told the usage of everything, and then what is wrong.
        raise _wrong(options, told.getvalue().strip().rpartition("error: ")[2]) from None
    name = made.view_as(StandardOptions).runner or StandardOptions.DEFAULT_RUNNER
    try:
        runner = create_runner(name)
    except Exception as error:  # A name may lead to any module.
        raise _wrong(options, f"the runner {name!r} cannot be made ({error})") from None
    # A job server may know options that are unknown here.
    is_portable = isinstance(runner, PortableRunner)
    unknown = [one for one in unknown if not (is_portable and one.startswith("--"))]
    if unknown:
        raise _wrong(
            options, f"{' '.join(unknown)} is unknown: give options of Beam's, as --name=value"
        )
    try:
        missing = PipelineOptionsValidator(made, runner).validate()
        if is_portable and not made.view_as(PortableOptions).job_endpoint:
            runner.default_job_server(PipelineOptions(given))
    except Exception as error:
        missing = [str(error)]
    if missing:
        raise _wrong(options, " ".join(missing))
    return made, runner


def _wrong(options, reason):
    reason = " ".join(reason.split()).rstrip(".")
    return UserError(f"--beam_options={options!r}: {reason}.")


class Engine:
    """An engine as `nsk.pseudo.engine` describes it.

    Args:
        options: Beam's options as on its command line, such as "--runner=FlinkRunner
            --flink_master=localhost:8081"; see `check_options`.
        folder: an existing folder that all workers reach, for what goes back to this process.
        task_items: int, most items of one task.
    """

    def __init__(self, options, folder, task_items=TASK_ITEMS):
        check_options(options)
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
        options, runner = check_options(self.options)
        has_processes = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
        signals, result = stopping.signals(), None
        try:
            with _noise_hidden() if has_processes else contextlib.nullcontext():
                pipeline = beam.Pipeline(runner, options)
                build(pipeline | "tasks" >> beam.Create(tasks) | beam.Reshuffle())
                result = pipeline.run()
                result.wait_until_finish()
        except Exception as error:
            if stopping.signals() > signals:
                raise KeyboardInterrupt from error
            # Runners wrap what a worker has raised, each in its own way, as text.
            told = [line for line in str(error).splitlines() if "UserError: " in line]
            if not told and result is None and isinstance(runner, PortableRunner):
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                raise _wrong(self.options, f"the runner does not start ({reason})") from error
            if not told:
                raise
            reason = told[-1].rpartition("UserError: ")[2].partition(" [while running")[0]
            raise UserError(
                f"A Beam worker says: {reason} What is finished is kept: run the same command "
                "again to go on."
            ) from error


@contextlib.contextmanager
def _noise_hidden():
    """Hides what Beam and TensorFlow say in worker processes, which write to this one's stderr.

    TF_CPP_MIN_LOG_LEVEL=0 shows everything.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)

    def pass_on():
        with open(read, "rb") as lines:
            for line in lines:
                if not NOISE.match(line):
                    os.write(saved, line)

    passing = threading.Thread(target=pass_on, daemon=True)
    passing.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        passing.join(1)  # A lost worker may hold the other end for ever.
        if not passing.is_alive():
            os.close(saved)


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
    from nsk.pseudo import radix_selection as ranking

    with np.load(path, allow_pickle=False) as arrays:
        module, _, name = str(arrays["kind"]).partition(":")
        if module != ranking.__name__:
            raise ValueError(f"{path} holds a {module}.{name}: expected one of {ranking.__name__}.")
        return getattr(ranking, name)(**{key: arrays[key] for key in arrays if key != "kind"})
