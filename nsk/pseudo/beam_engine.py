"""Scoring, selection and writing of pseudo-labels as Apache Beam pipelines, on any runner.

The functions are those that run on one machine, so the files are bit-identical. The code and
the workdir must be reachable by every worker under the same path, as on a shared file system. Files
appear completely or not at all: a task that runs twice does no harm, and finished files are kept if
a pipeline fails.

Apache Beam is installed by `requirements-beam.txt`.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners import PipelineRunner, create_runner
from apache_beam.runners.portability.portable_runner import PortableRunner

from nsk import stopping
from nsk.errors import UserError
from nsk.pseudo import pool_comparison, radix_selection

# Items of a task: neighbouring shards, since an output shard needs images that the one before it
# has read.
ITEMS_PER_TASK = 32
# Modules with classes that `map_reduce` may add up: dataclasses of arrays.
REDUCED = {module.__name__: module for module in (radix_selection, pool_comparison)}
# Log lines of Beam and of TensorFlow's C++ libraries in worker processes of this machine.
LIBRARY_LOG_LINE = re.compile(rb"(DEBUG|INFO|WARNING):|[IW]\d{4} \d\d:\d\d:\d\d")


def parse_beam_options(options: str) -> tuple[PipelineOptions, PipelineRunner]:
    """Parses `--beam_options` and creates the runner that they name.

    Nothing is run: options that only the runner's machines can check are not checked.

    Raises:
        UserError: the options cannot be parsed, an option or the runner is unknown, or a required
            option is missing.
    """
    try:
        arguments = shlex.split(options)
    except ValueError as error:
        raise _options_error(options, f"{error}: close every quotation mark") from None
    parsers = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    parser_output = io.StringIO()
    try:
        with contextlib.redirect_stderr(parser_output):
            _, unknown = parsers[0].parse_known_args(arguments)
            parsed = PipelineOptions(arguments)
    except SystemExit:  # argparse prints its usage and then, last, what is wrong.
        reason = parser_output.getvalue().strip().rpartition("error: ")[2]
        raise _options_error(options, reason) from None
    name = parsed.view_as(StandardOptions).runner or StandardOptions.DEFAULT_RUNNER
    try:
        runner = create_runner(name)
    except Exception as error:  # The name may import any module.
        reason = f"the runner {name!r} cannot be created ({error})"
        raise _options_error(options, reason) from None
    # A job server may accept options that are unknown here.
    is_portable = isinstance(runner, PortableRunner)
    unknown = [option for option in unknown if not (is_portable and option.startswith("--"))]
    if unknown:
        reason = f"{' '.join(unknown)} is unknown: give Beam's options, as --name=value"
        raise _options_error(options, reason)
    try:
        missing = PipelineOptionsValidator(parsed, runner).validate()
        if is_portable and not parsed.view_as(PortableOptions).job_endpoint:
            runner.default_job_server(PipelineOptions(arguments))
    except Exception as error:
        missing = [str(error)]
    if missing:
        raise _options_error(options, " ".join(missing))
    return parsed, runner


def _options_error(options, reason):
    reason = " ".join(reason.split()).rstrip(".")
    return UserError(f"--beam_options={options!r}: {reason}.")


class BeamEngine:
    """Runs the work as Beam pipelines; an `Engine` as in `nsk.pseudo.engine`.

    Args:
        options: Beam's options as on its command line, such as "--runner=FlinkRunner
            --flink_master=localhost:8081"; see `parse_beam_options`.
        folder: an existing folder that all workers reach, for results that return to this process.
        items_per_task: int, maximum number of items of a task.
    """

    def __init__(self, options: str, folder: str | Path, items_per_task: int = ITEMS_PER_TASK):
        parse_beam_options(options)
        self.options, self.folder, self.items_per_task = options, Path(folder), items_per_task

    def run(
        self, items: Sequence[Any], make_function: Callable[[], Callable[[list], None]]
    ) -> None:
        """Processes every item; see `engine.Engine.run`."""
        if items:
            do_fn = _ProcessTasks(make_function)
            self._run_pipeline(items, lambda tasks: tasks | "work" >> beam.ParDo(do_fn))

    def map_reduce(self, items: Sequence[Any], function: Callable[[list], Any]) -> Any:
        """Adds up the results of all tasks; see `engine.Engine.map_reduce`."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder) / "sum.npz"

            def add_up(tasks):
                results = tasks | "map" >> beam.Map(function)
                total = results | "add" >> beam.CombineGlobally(_add).without_defaults()
                total | "save" >> beam.Map(functools.partial(_save, path))

            self._run_pipeline(items, add_up)
            return _load(path)

    def _run_pipeline(self, items, build):
        """Runs the pipeline that `build` makes of tasks, lists of neighbouring items."""
        size = self.items_per_task
        tasks = [items[first : first + size] for first in range(0, len(items), size)]
        options, runner = parse_beam_options(self.options)
        has_processes = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
        signals_before, result = stopping.signal_count(), None
        try:
            with _hide_library_logs() if has_processes else contextlib.nullcontext():
                pipeline = beam.Pipeline(runner, options)
                build(pipeline | "tasks" >> beam.Create(tasks) | beam.Reshuffle())
                result = pipeline.run()
                result.wait_until_finish()
        except Exception as error:
            if stopping.signal_count() > signals_before:
                raise KeyboardInterrupt from error
            # Runners wrap the errors of workers as text, each in its own format.
            messages = [line for line in str(error).splitlines() if "UserError: " in line]
            if not messages and result is None and isinstance(runner, PortableRunner):
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                reason = f"the runner does not start ({reason})"
                raise _options_error(self.options, reason) from error
            if not messages:
                raise
            reason = messages[-1].rpartition("UserError: ")[2].partition(" [while running")[0]
            raise UserError(
                f"A Beam worker failed: {reason} Finished files are kept: run the same command "
                "again to resume."
            ) from error


@contextlib.contextmanager
def _hide_library_logs():
    """Hides log lines of Beam and TensorFlow in worker processes, which share this one's stderr.

    TF_CPP_MIN_LOG_LEVEL=0 shows everything.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    sys.stderr.flush()
    original_stderr = os.dup(2)
    read_end, write_end = os.pipe()
    os.dup2(write_end, 2)
    os.close(write_end)

    def forward_lines():
        with open(read_end, "rb") as lines:
            for line in lines:
                if not LIBRARY_LOG_LINE.match(line):
                    os.write(original_stderr, line)

    thread = threading.Thread(target=forward_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original_stderr, 2)
        thread.join(1)  # A lost worker may keep the other end open forever.
        if not thread.is_alive():
            os.close(original_stderr)


class _ProcessTasks(beam.DoFn):
    """Processes tasks; `make_function` is called once in every worker."""

    def __init__(self, make_function):
        self._make_function = make_function

    def setup(self):
        self._function = self._make_function()

    def process(self, items):
        self._function(items)


def _add(values):
    return functools.reduce(operator.add, values)


def _save(path, value):
    """Saves a dataclass of arrays, with the name of its class, in a file without pickles."""
    kind = type(value)
    arrays = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    np.savez(path, allow_pickle=False, kind=f"{kind.__module__}:{kind.__qualname__}", **arrays)


def _load(path):
    with np.load(path, allow_pickle=False) as arrays:
        module, _, name = str(arrays["kind"]).partition(":")
        if module not in REDUCED:
            raise ValueError(
                f"{path} holds a {module}.{name}: expected a class of {' or '.join(REDUCED)}."
            )
        fields = {key: arrays[key] for key in arrays if key != "kind"}
        return getattr(REDUCED[module], name)(**fields)
