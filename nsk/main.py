"""The command line: `nsk [COMMAND] --flagfile=... --workdir=...`, or `python -m nsk.main`.

Exit codes: 0: done; 2: a flag, the data or a file is wrong; 75: stopped on request or by the loss
of another worker, run the command again to resume; 141: the reader of the output has gone, as with
`| head`; 1: a bug.
"""

import contextlib
import logging as python_logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from nsk import __version__, stopping
from nsk.commands import COMMANDS, temporary_files
from nsk.config.config import check_command, settings
from nsk.config.fields import is_per_generation
from nsk.errors import LostWorkerError, UserError, list_names, suggest_names

OK, WRONG_INPUT, STOPPED, UNREAD = 0, 2, 75, 141


def define_flags(given: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for every setting in `nsk.config`."""
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in settings():
        name, help_text = field.name, field.metadata["help"]
        if is_per_generation(field):
            default = [str(value) for value in field.default]
            flags.DEFINE_list(name, default, help_text, flag_values=given)
        else:
            define[field.type](name, field.default, help_text, flag_values=given)


def flag_values(given: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The values of all settings by name, as they were given."""
    return {field.name: given[field.name].value for field in settings()}


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a wrong flag is reported in one line, with exit code 2."""
    try:
        return flags.FLAGS(argv)
    except BrokenPipeError:  # As of `--help | head`.
        exit_at_once(UNREAD)
    except UnicodeDecodeError:
        print_error(
            "A file given as --flagfile is not text: give a file of flags, one on each line."
        )
        sys.exit(WRONG_INPUT)
    except flags.Error as error:
        print_error(f"{_describe_flag_error(error)}: see --help.")
        sys.exit(WRONG_INPUT)
    except SystemExit:
        # absl has printed the --help that was asked for, and would exit with 1.
        sys.exit(OK)


def _describe_flag_error(error):
    """What is wrong with a flag, in one line: absl's message in our words."""
    reason = str(error).removeprefix("ERROR:: ").removeprefix("flag ").rstrip(".? ")
    for pattern, replacement in (
        (r"invalid literal for int\(\).*", "expected a whole number"),
        (r"could not convert string to float.*", "expected a number"),
        (r"\('Non-boolean argument.*", "expected true or false"),
        (r"Missing value for flag (--\w+)", r"\1 has no value, write \1=VALUE"),
        (
            r"Unknown command line flag '(.*?)'\. Did you mean: (.*)",
            r"--\1 is not a setting (similar: --\2)",
        ),
        (r"Unknown command line flag '(.*?)'", r"--\1 is not a setting"),
        (r"(Unable to open flagfile: .*)", r"\1 (paths are relative to the current folder)"),
    ):
        reason = re.sub(pattern, replacement, reason)
    return reason


def main(argv: list[str]) -> int:
    """Runs a command and returns its exit code."""
    _check_words(argv[1:])
    command = argv[1] if argv[1:] else "run"
    values = flag_values()
    check_command(command, values)
    COMMANDS[command].execute(values)
    return OK


def _check_words(words: list[str]) -> None:
    """UserError if the words beside the flags are not one command."""
    if not words and not any(flags.FLAGS[field.name].present for field in settings()):
        raise UserError(
            "Received neither a command nor a setting: see --help, or try "
            "--flagfile=flags/quickstart.flags --workdir=runs/quickstart."
        )
    if len(words) == 1 and words[0] not in COMMANDS:
        spellings = {name: [name] for name in COMMANDS}
        *names, last = COMMANDS
        raise UserError(
            f"Received the command {words[0]!r}{suggest_names(words[0], spellings)}: expected "
            f"{', '.join(names)} or {last}; settings are given as --name=value."
        )
    if len(words) > 1:
        others = [word for word in words if word not in COMMANDS]
        raise UserError(
            f"Received {list_names([repr(word) for word in others or words])} beside the settings: "
            "expected one command, and settings as --name=value. If it is what the shell made of a "
            "pattern, quote the pattern, as --images='photos/*.jpg'."
        )


def print_error(message: str) -> None:
    """Prints a message to stderr in one line."""
    # On a terminal a progress bar may be in the line.
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    line = "".join(
        character if character.isprintable() else repr(character)[1:-1]
        for character in " ".join(message.split())
    )
    print(f"{start}nsk: {line}", file=sys.stderr)


def _is_shown(record):
    """Whether a log line is shown: ours, and warnings of libraries.

    Libraries log much at INFO through the same handler. Beam logs much at every level, and raises
    its errors as well; deprecations inside libraries are not the user's to fix.
    TF_CPP_MIN_LOG_LEVEL=0 shows both.
    """
    is_ours = record.pathname.startswith(os.path.dirname(__file__))
    hidden = "apache_beam" in record.pathname or "is deprecated" in str(record.msg)
    hidden &= os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0"
    return is_ours or (record.levelno >= python_logging.WARNING and not hidden)


def exit_at_once(code: int) -> None:
    """Ends the process without waiting for the threads of libraries, which may take a minute."""
    stopping.ignore_signals()  # The work is done.
    for stream in (logging, sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    temporary_files.delete()
    os._exit(code)


def run_main(argv: list[str], main: Callable[[list[str]], int] = main) -> int:
    """Runs a `main` function and turns errors into exit codes."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_shown)
    stopping.install_handlers()
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return UNREAD
    except UserError as error:
        print_error(str(error))
        return WRONG_INPUT
    except LostWorkerError as error:
        print_error(
            f"another worker has ended or cannot be reached ({error}): start all workers again; "
            "training resumes from its last checkpoint."
        )
        return STOPPED
    except stopping.Stopped:
        stopping.ignore_signals()  # Another signal could interrupt these last lines.
        print_error("stopped, everything is saved: run the same command again to resume.")
        return STOPPED
    except (Exception, KeyboardInterrupt) as error:
        # A library that is interrupted may raise anything, above all during its import.
        if not isinstance(error, KeyboardInterrupt) and not stopping.signal_count():
            raise
        stopping.ignore_signals()
        logging.debug("Stopped here", exc_info=True)
        print_error(
            "stopped. Finished stages and the last checkpoint are kept: run the same command again "
            "to resume."
        )
        return STOPPED


def _describe_help():
    """Makes --help list all commands and flags, also for the installed command `nsk`.

    absl shows the docstring and the flags of the script that was started, which for `nsk` is not
    this module.
    """
    lines = [f"  {name:<10}{command.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()]
    sys.modules["__main__"].__doc__ = "\n".join([__doc__, "Commands:", *lines])
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def console() -> None:
    """Parses flags, runs the command and exits: entry point of `nsk` and `python -m nsk.main`."""
    for stream in (sys.stdout, sys.stderr):  # Names may have characters that it has not.
        stream.reconfigure(errors="backslashreplace")
    if "--version" in sys.argv[1:]:
        print(f"nsk {__version__}")
        return
    if "-h" in sys.argv[1:] or sys.argv[1:2] == ["help"]:
        sys.argv[1:] = ["--help"]
    define_flags()
    _describe_help()
    app.run(_run_and_exit, flags_parser=parse_flags)


def _run_and_exit(argv):
    temporary_files.use_private_folder()
    exit_at_once(run_main(argv))


if __name__ == "__main__":
    console()
