"""The command line: `python -m nsk.main [COMMAND] --flagfile=... --workdir=...`.

Commands:
  run       teacher, pseudo-labels, students, best model (the default)
  plan      what a run would do, without training
  score     only up to the scores for --generation; several processes may share the work
  select    what the settings keep of finished scores, class by class; trains nothing
  verify    whether all files in the workdir are as they were written

Exit codes: 0 done; 2 a flag, the data or a file is wrong; 75 stopped on request, or by the loss of
another worker; 141 nobody reads the output any more (as `| head`); 1 a bug.
"""

import contextlib
import importlib.util
import logging as python_logging
import os
import pathlib
import re
import sys

from absl import app, flags, logging

from nsk import stopping
from nsk.commands import verify
from nsk.config import config as config_module
from nsk.errors import LostWorkerError, UserError
from nsk.store import folders as stage

OK, WRONG_INPUT, STOPPED, UNREAD = 0, 2, 75, 141
COMMANDS = ("run", "plan", "score", "select", "verify")


def define_flags():
    """Makes a flag of every setting in `nsk.config.config`."""
    for field in config_module.settings():
        name, help_text = field.name, field.metadata["help"]
        if field.metadata["of"] is not None:
            flags.DEFINE_list(name, [str(one) for one in field.default], help_text)
        elif isinstance(field.default, bool):
            flags.DEFINE_bool(name, field.default, help_text)
        elif isinstance(field.default, int):
            flags.DEFINE_integer(name, field.default, help_text)
        elif isinstance(field.default, float):
            flags.DEFINE_float(name, field.default, help_text)
        else:
            flags.DEFINE_string(name, field.default, help_text)


def parse_flags(argv):
    """Parses flags; a wrong one is told in one line, exit code 2."""
    try:
        return flags.FLAGS(argv)
    except UnicodeDecodeError:
        tell("A file given as --flagfile holds no text: give a file of flags, one in each line.")
        sys.exit(WRONG_INPUT)
    except flags.Error as error:
        told = str(error).removeprefix("ERROR:: ").removeprefix("flag ").rstrip(".? ")
        told = re.sub(r"invalid literal for int\(\).*", "expected a whole number", told)
        told = re.sub(r"could not convert string to float.*", "expected a number", told)
        told = re.sub(r"\('Non-boolean argument.*", "expected true or false", told)
        tell(f"{told}: see --help.")
        sys.exit(WRONG_INPUT)
    except SystemExit:
        # absl has shown the --help that was asked for, and would exit with 1.
        sys.exit(OK)


def read_config():
    """The `Config` of the flags that were given."""
    return config_module.Config.from_values(
        {field.name: flags.FLAGS[field.name].value for field in config_module.settings()}
    )


def given_workdir():
    """The folder of `--workdir`; UserError where none was given."""
    if not flags.FLAGS.workdir:
        raise UserError(
            "--workdir is not given: name a folder for the run, as --workdir=runs/first."
        )
    if not flags.FLAGS.workdir.isprintable():
        raise UserError(
            f"--workdir={flags.FLAGS.workdir!a} is no text that can be printed: give another name."
        )
    return pathlib.Path(flags.FLAGS.workdir).expanduser()


def prepare(config):
    """Checks a `Config`, makes its workdir and loads TensorFlow.

    What is cheap to check is checked before TensorFlow is imported.
    """
    for line in config.unused_values():
        logging.warning("%s", line)
    given_workdir()
    if config.run.teacher and not os.path.isfile(config.teacher_path):
        raise UserError(f"--teacher={config.run.teacher} is not there: give the path of a model.")
    for path in config.init_paths:
        if not (os.path.exists(path) or os.path.exists(f"{path}.index")):
            raise UserError(
                f"--init_from={path} is not there: give scratch, teacher or the path of weights."
            )
    if config.pseudo.engine == "beam" and importlib.util.find_spec("apache_beam") is None:
        raise UserError(
            "--engine=beam: Apache Beam is not installed: pip install -c constraints.txt -r "
            "requirements-beam.txt, or leave the flag out."
        )
    if config.pseudo.engine == "beam":
        from nsk.pseudo import beam_engine as beam

        beam.check_options(config.pseudo.beam_options)
    stage.make_folder(config.workdir)
    # TensorFlow takes seconds to import, which --help and wrong flags should not wait for.
    with native_messages_hidden():
        import tensorflow as tf

        from nsk import models

        tf.config.list_physical_devices()
    # Each stage has functions of its own, which TensorFlow takes for retracing and warns of.
    python_logging.getLogger("tensorflow").setLevel(python_logging.ERROR)
    for name in config.model.models:  # Now, and not when a network's turn to train has come.
        models.check_name(name)
    if config.init_paths:
        from nsk.models import weights

        for path in config.init_paths:
            weights.files_of(path)


def main(argv):
    """Runs a command."""
    command, *rest = argv[1:] or ["run"]
    if command not in COMMANDS or rest:
        received = " ".join(argv[1:])
        raise UserError(
            f"Received the command {received!r}: expected {', '.join(COMMANDS[:-1])} or "
            f"{COMMANDS[-1]}; settings are given as --name=value."
        )
    if command == "verify":  # Needs no TensorFlow, and a run's workdir alone.
        verify.verify(given_workdir())
        return OK
    stated = flags.FLAGS.plan_images
    if stated and command != "plan":  # Before what a plan without images needs is missed.
        raise UserError(
            f"--plan_images={stated} is for the command plan: leave it out of {command}."
        )
    config = read_config()
    if command in ("score", "select"):
        config.check_generation()
    if config.run.num_shard_workers > 1 and command != "score":
        raise UserError(
            f"--num_shard_workers={config.run.num_shard_workers} is for the command score: leave "
            f"it out of {command}."
        )
    if config.run.num_shard_workers > 1 and config.run.strategy == "multi_worker":
        raise UserError(
            "--strategy=multi_worker shares the scoring already: leave out --num_shard_workers."
        )
    if config.run.num_shard_workers > 1 and config.pseudo.first_scores == "records":
        raise UserError(
            "--first_scores=records leaves nothing to score: leave out --num_shard_workers."
        )
    if command == "select" and not given_workdir().is_dir():
        raise UserError(f"--workdir={config.run.workdir} is not there: give that of a run.")
    prepare(config)
    from nsk import self_training

    getattr(self_training, command)(config)
    return OK


@contextlib.contextmanager
def native_messages_hidden():
    """Hides what TensorFlow's C++ libraries say while they are loaded and look for devices.

    They write of oneDNN, of missing CUDA and of absl's logging before TF_CPP_MIN_LOG_LEVEL counts,
    straight to file descriptor 2, so the descriptor itself points to nowhere meanwhile. Exceptions
    come through as ever, and TF_CPP_MIN_LOG_LEVEL=0 shows everything.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "0":
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def tell(message):
    """Writes one line to stderr, whatever the message holds."""
    # On a terminal a progress bar may stand in the line.
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    line = "".join(
        one if one.isprintable() else repr(one)[1:-1] for one in " ".join(message.split())
    )
    print(f"{start}nsk: {line}", file=sys.stderr)


def _is_ours_or_a_warning(record):
    """Whether a log line is shown: libraries say much at INFO through the same handler.

    Beam says much at every level, and raises its errors, too; what a library uses that is
    deprecated is not the user's to change: TF_CPP_MIN_LOG_LEVEL=0 shows both.
    """
    is_ours = record.pathname.startswith(os.path.dirname(__file__))
    hidden = "apache_beam" in record.pathname or "is deprecated" in str(record.msg)
    hidden &= os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0"
    return is_ours or (record.levelno >= python_logging.WARNING and not hidden)


def exit_at_once(code):
    """Ends the process without waiting for the threads of libraries, which may take a minute."""
    stopping.ignore()  # It is done.
    for stream in (logging, sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)


def run_main(argv, main=main):
    """Runs a `main` and turns what goes wrong into an exit code."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_ours_or_a_warning)
    stopping.install()
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return UNREAD
    except UserError as error:
        tell(str(error))
        return WRONG_INPUT
    except LostWorkerError as error:
        tell(
            f"another worker has ended or cannot be reached ({error}): start all workers again; "
            "training goes on from its last checkpoint."
        )
        return STOPPED
    except stopping.Stopped:
        stopping.ignore()  # Another signal would come between this line and the end.
        tell("stopped, everything is saved: run the same command again to go on.")
        return STOPPED
    except (Exception, KeyboardInterrupt) as error:
        # A library that is interrupted may raise anything, in the middle of its import above all.
        if not isinstance(error, KeyboardInterrupt) and not stopping.signals():
            raise
        stopping.ignore()
        logging.debug("Stopped here", exc_info=True)
        tell(
            "stopped. What is finished, and the last checkpoint, are kept: run the same command "
            "again to go on."
        )
        return STOPPED


def console():
    """Parses flags, runs the command and exits: `nsk` and `python -m nsk.main` alike."""
    define_flags()
    # absl shows as --help the docstring and the flags of the script that was started, which for the
    # installed command `nsk` is not this module.
    sys.modules["__main__"].__doc__ = __doc__
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(lambda argv: exit_at_once(run_main(argv)), flags_parser=parse_flags)


if __name__ == "__main__":
    console()
