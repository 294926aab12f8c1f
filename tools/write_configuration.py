"""Writes docs/configuration.md: every setting with its default, allowed values, effect and use.

    python -m tools.write_configuration            # after a setting was changed
    python -m tools.write_configuration --check    # exit code 1 if the document is out of date

Everything comes from the declarations in `nsk/config/` and the table of RandAugment's operations;
TensorFlow is not imported.
"""

import argparse
import dataclasses
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy

from nsk.config.config import Config
from nsk.config.fields import ALWAYS, PerGeneration, is_per_generation
from nsk.config.noise import NoiseConfig
from nsk.data.randaugment_table import amounts_as_markdown

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"
HEADER = ("setting", "default", "values", "what it does", "used if")
TYPES = {str: "text", int: "integer", float: "number"}

INTRODUCTION = """\
# Configuration

<!-- Written by `python -m tools.write_configuration` from nsk/config/: edit the settings there. -->

Every setting is a flag of `python -m nsk.main` (`nsk`): `--name=value`, or `--name` and `--noname`
for true and false. All commands accept the same flags; those in the last section are for single
commands.

- **Flagfiles.** `--flagfile=PATH` reads flags from a file, one on each line; `#` starts a comment,
  and a flagfile may include another one. The last value of a flag counts, so flags after
  `--flagfile` override those in the file. Paths in a flagfile are relative to the current folder,
  not to that of the flagfile. Complete examples are in `flags/`.
- **Lists.** A setting marked "list" has one value per generation, separated by commas: the
  teacher's first, or the first student's if only students have the setting. The last value applies
  to all later generations: `--survival_probability=1,0.8` disables stochastic depth for the teacher
  alone. With `--teacher`, no teacher is trained and `--models` lists the students only; all other
  lists keep the teacher's value in the first place.
- **Budgets.** Exactly one of `--train_images`, `--train_steps` and `--train_epochs` is required:
  the length of each training. 0 cancels the budget of a flagfile.
- **Used if.** A setting has an effect only if the condition in the last column holds; no condition
  means always. For lists it is evaluated in each generation. A value that is given and has no
  effect in any generation triggers a warning. A few combinations are errors, such as `--nesterov`
  with another optimizer than SGD, or `--calibrate` with `--first_scores=records`.
- **Rebuilding.** A stage depends only on the settings that have an effect on its result, so
  changing another one rebuilds nothing. No stage depends on these settings, which change only
  speed, memory, messages or when a chain ends:
"""
OPERATIONS_INTRODUCTION = """\
### RandAugment's operations

Amounts at shares of the largest magnitude, for images of 224 pixels and a positive sign.
"""


def main() -> None:
    """Writes the document, or with `--check` compares it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    written = document()
    if not parser.parse_args().check:
        DOCUMENT.write_text(written, encoding="utf-8")
    elif DOCUMENT.read_text(encoding="utf-8") != written:
        sys.exit(f"{DOCUMENT} is out of date: run python -m tools.write_configuration.")


def document() -> str:
    """The whole document, Markdown."""
    parts = [INTRODUCTION + _settings_without_stage()]
    for section in dataclasses.fields(Config):
        rows = [HEADER, ["---"] * len(HEADER), *map(_row, dataclasses.fields(section.type))]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
        title = section.type.__doc__.rstrip(".")
        parts.append(f"## {title}\n\n{table}\n")
        if section.type is NoiseConfig:
            amounts = "\n".join(amounts_as_markdown(numpy))
            parts.append(f"{OPERATIONS_INTRODUCTION}\n{amounts}\n")
    return "\n".join(parts)


def _settings_without_stage() -> str:
    """The settings that no stage depends on: a list item for each section that has some."""
    items = []
    for section in dataclasses.fields(Config):
        fields = dataclasses.fields(section.type)
        names = [f"`--{field.name}`" for field in fields if not field.metadata["changes_results"]]
        if names:
            title = re.split("[:;.]", section.type.__doc__)[0]
            item = f"- {title}: {', '.join(names)}."
            items.append(
                textwrap.fill(item, 100, initial_indent="  ", subsequent_indent="    ") + "\n"
            )
    return "".join(items)


def _row(field: dataclasses.Field) -> list[str]:
    """Cells of a setting's row."""
    rules = field.metadata
    help_text, _, _ = rules["help"].partition(" (list: ")  # The column of values says it.
    if rules["choices"] is not None:
        choices = "|".join(map(re.escape, rules["choices"]))
        help_text = re.sub(rf"(^|\| |: )({choices})(?=:| \(| \||\.|$)", r"\1`\2`", help_text)
    used_if = "" if rules["used_if"] is ALWAYS else rules["used_if"].text
    return [
        f"`--{field.name}`",
        _value(field.default),
        _allowed_values(field),
        _cell(help_text),
        _cell(used_if),
    ]


def _allowed_values(field: dataclasses.Field) -> str:
    """Type, choices or range of a setting."""
    rules = field.metadata
    if rules["choices"] is not None:
        allowed = ", ".join(map(_value, rules["choices"]))
    elif field.type is bool:
        allowed = "`true`, `false`"
    else:
        allowed = TYPES[field.type] + _range(rules["minimum"], rules["maximum"])
    if not is_per_generation(field):
        return allowed
    start = ", from the first student" if rules["first_generation"] else ""
    return f"{allowed}; list{start}"


def _range(minimum, maximum):
    if minimum is None and maximum is None:
        return ""
    if maximum is None:
        return f", at least {minimum:g}"
    if minimum is None:
        return f", at most {maximum:g}"
    return f", {minimum:g} to {maximum:g}"


def _value(value: Any) -> str:
    """A value as it is written on the command line."""
    text = ",".join(map(_plain, value)) if isinstance(value, PerGeneration) else _plain(value)
    return f"`{text}`" if text else "empty"


def _plain(value):
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """Text for a cell: flags as code, characters that Markdown would interpret escaped."""
    text = re.sub(r"--\w+(=(\w+:\.\.\.|[\w:]*\w))?", r"`\g<0>`", text)
    return re.sub(r"[|*<]", r"\\\g<0>", text)


if __name__ == "__main__":
    main()
