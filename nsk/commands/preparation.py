"""Preparation of a command: from the values of settings to a runner of stages.

Cheap checks come before TensorFlow is imported, which takes seconds.
"""

import contextlib
import dataclasses
import importlib.util
import json
import logging as python_logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from nsk.config.config import Config
from nsk.data.class_names import read_class_descriptions
from nsk.data.native_output import captured_stderr
from nsk.errors import UserError
from nsk.store.disk_errors import make_folder

if TYPE_CHECKING:  # Imported in functions, since it imports TensorFlow.
    from nsk.stages.runner import StageRunner

# A configuration needs a budget, even if nothing is trained.
NO_TRAINING = {"train_images": [0], "train_epochs": [0], "train_steps": [1]}
# Autotuning would choose kernels by their measured times, which differ between processes.
# Reference: https://openxla.org/xla/determinism
DETERMINISTIC_XLA = (
    "--xla_gpu_exclude_nondeterministic_ops=true",
    "--xla_gpu_deterministic_ops=true",
    "--xla_gpu_autotune_level=0",
)


def prepare(
    values: Mapping[str, Any], check: Callable[[Config], None] | None = None
) -> "StageRunner":
    """Checks all settings, creates the workdir, loads TensorFlow and connects to the workers.

    Args:
        values: values of settings by name.
        check: more checks of the configuration, before TensorFlow is loaded.

    Returns:
        The runner of stages.

    Raises:
        UserError: a setting is wrong.
    """
    config = Config.from_values(values)
    if check is not None:
        check(config)
    prepare_config(config)
    from nsk.distributed.runtime import start_runtime
    from nsk.stages.runner import StageRunner

    flags = dataclasses.asdict(config)
    del flags["run"]["workdir"]  # The folder may have another name on another machine.
    runtime = start_runtime(config.run, config.workdir, json.dumps(flags, sort_keys=True))
    runner = StageRunner(config, runtime)
    runner.warn_of_other_formats()
    return runner


def prepare_config(config: Config) -> None:
    """Checks a configuration, creates its workdir and loads TensorFlow.

    Raises:
        UserError: a file or package is missing, or the workdir cannot be used.
    """
    for line in config.unused_settings():
        logging.warning("%s", line)
    require_workdir(config.run.workdir)
    _check_files(config)
    _check_engine(config)
    make_folder(config.workdir, "output" if config.evaluation.output else "workdir")
    make_folder(config.run_folder, "run_name")
    cache = config.run.compilation_cache and Path(config.run.compilation_cache).expanduser()
    if config.run.deterministic:
        _add_options("XLA_FLAGS", *DETERMINISTIC_XLA)
        # XLA does not compare the options that a stored program was compiled with.
        cache = cache and cache / "deterministic"
    if cache:
        keep_compiled_programs(cache)
    load_tensorflow()
    from nsk import models
    from nsk.models import weights

    for name in config.chain.models:  # Now, not when a network is about to be trained.
        models.check_name(name)
    for path in config.init_paths:
        weights.weight_files(path)


def require_workdir(workdir: str) -> Path:
    """The folder of `--workdir`; UserError if none was given."""
    if not workdir:
        raise UserError(
            "--workdir is not given: name a folder for the run, as --workdir=runs/first."
        )
    if not workdir.isprintable():
        raise UserError(f"--workdir={workdir!a} is not printable text: give another name.")
    return Path(workdir).expanduser()


def require_output(command: str, values: Mapping[str, Any]) -> Path:
    """The folder of `--output`, in which a command works that is not part of a run.

    Raises:
        UserError: none was given, or a workdir was.
    """
    if values.get("workdir"):
        raise UserError(f"--workdir is for runs: {command} writes to the folder given as --output.")
    if not values.get("output"):
        raise UserError(
            f"--output is not given: name a folder for the results of {command}, as "
            "--output=results/first."
        )
    return Path(values["output"]).expanduser()


def _check_files(config):
    """UserError if a given file does not exist, or cannot be read."""
    if config.chain.teacher and not _exists(config.teacher_path):
        raise UserError(
            f"--teacher={config.chain.teacher} does not exist: give the path of a model."
        )
    read_class_descriptions(config.data)
    for path in config.init_paths:
        if not _exists(path):
            raise UserError(
                f"--init_from={path} does not exist: give scratch, teacher or the path of weights."
            )
    for name, path in config.evaluation.used_paths():
        if not os.path.exists(path):
            raise UserError(
                f"--{name}: {path} does not exist: give the path of a published set or file."
            )


def _exists(path):
    """Whether there is a file or folder, or a TensorFlow 1 checkpoint with this prefix."""
    return os.path.exists(path) or os.path.exists(f"{path}.index")


def _check_engine(config):
    """UserError if Apache Beam is needed and missing, or its options are wrong."""
    if config.run.engine != "beam":
        return
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError(
            "--engine=beam: Apache Beam is not installed: pip install -c constraints.txt -r "
            "requirements-beam.txt, or leave the flag out."
        )
    from nsk.pseudo import beam_engine

    beam_engine.parse_beam_options(config.run.beam_options)


def keep_compiled_programs(folder: Path) -> None:
    """Has XLA keep compiled programs and autotuning results in a folder for later processes.

    XLA reads these variables once, when TensorFlow is imported. It compares a stored program with
    the requested one, but not the machine that it was compiled on.
    """
    if any(character.isspace() for character in str(folder.absolute())):
        raise UserError(
            f"--compilation_cache={folder}: XLA cannot use a path with spaces: give another folder."
        )
    autotuning = folder / "autotuning"
    make_folder(autotuning, "compilation_cache")
    _add_options("TF_XLA_FLAGS", f"--tf_xla_persistent_cache_directory={folder.absolute()}")
    _add_options("XLA_FLAGS", f"--xla_gpu_per_fusion_autotune_cache_dir={autotuning.absolute()}")


def _add_options(variable, *options):
    """Adds options to an environment variable."""
    os.environ[variable] = " ".join([os.environ.get(variable, ""), *options]).strip()


def load_tensorflow() -> None:
    """Imports TensorFlow without its messages."""
    with hide_native_messages():
        import tensorflow as tf

        from nsk import models  # noqa: F401 -- imports Keras as well.

        tf.config.list_physical_devices()
    # Every stage creates functions of its own, which TensorFlow takes for retracing and warns of.
    python_logging.getLogger("tensorflow").setLevel(python_logging.ERROR)


@contextlib.contextmanager
def hide_native_messages() -> Iterator[None]:
    """Hides what TensorFlow's C++ libraries print while they are loaded and look for devices.

    They print about oneDNN, missing CUDA and absl's logging before TF_CPP_MIN_LOG_LEVEL has an
    effect, straight to file descriptor 2, so the descriptor itself is redirected meanwhile.
    Exceptions pass through, and TF_CPP_MIN_LOG_LEVEL=0 shows everything.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "0":
        yield
        return
    with captured_stderr():
        yield
