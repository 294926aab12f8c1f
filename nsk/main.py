"""The command line: `python -m nsk.main [COMMAND] --flagfile=... --workdir=...`.

Commands:
  run       teacher, pseudo-labels, students, best model (the default)
  plan      what a run would do, without training
"""

import logging as python_logging
import os
import signal
import sys

from absl import app, flags, logging

from nsk import config as config_module
from nsk.errors import UserError

OK, BUG, WRONG_INPUT, STOPPED = 0, 1, 2, 75
COMMANDS = ("run", "plan")


def define_flags():
    """Makes a flag of every setting in `nsk.config`."""
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


def read_config():
    """The `Config` of the flags that were given."""
    return config_module.Config.from_values(
        {field.name: flags.FLAGS[field.name].value for field in config_module.settings()}
    )


def main(argv):
    command, *rest = argv[1:] or ["run"]
    if command not in COMMANDS or rest:
        received = " ".join(argv[1:])
        raise UserError(f"Received the command {received!r}: expected one of {', '.join(COMMANDS)}.")
    config = read_config()
    if not config.run.workdir:
        raise UserError("--workdir is not given: name a folder for the run, as --workdir=runs/first.")
    # TensorFlow is imported only now: it takes seconds, and --help and wrong flags should not.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from nsk import self_training

    if command == "plan":
        self_training.plan(config)
    else:
        self_training.run(config)
    return OK


def _stop(*_):
    raise KeyboardInterrupt


def run_main(argv):
    """Runs `main` and turns what goes wrong into an exit code."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    # TensorFlow says its own things at INFO; warnings and errors are enough.
    python_logging.getLogger("tensorflow").setLevel(python_logging.WARNING)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return main(argv)
    except UserError as error:
        print(f"nsk: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print(
            "nsk: stopped. Every finished stage is kept: run the same command again to go on.",
            file=sys.stderr,
        )
        return STOPPED


def parse_flags(argv):
    """Parses flags; a wrong one is told in one line, exit code 2."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"nsk: {error} See --help.".replace("\n", " "), file=sys.stderr)
        sys.exit(WRONG_INPUT)


if __name__ == "__main__":
    define_flags()
    app.run(run_main, flags_parser=parse_flags)
