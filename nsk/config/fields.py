"""What a setting is: a dataclass field with its help text, its check and its value by generation.

`nsk.config.sections` holds the settings themselves.
"""

import dataclasses
import math

from nsk.errors import UserError


class PerGeneration(tuple):
    """One value for each generation; the last one goes on for the generations after it."""

    def at(self, generation):
        return self[min(generation, len(self) - 1)]


def setting(default, help, *, choices=None, minimum=None, maximum=None, of=None, first=0):
    """A dataclass field with the help text and the check of one setting.

    Args:
        default: the default; a tuple of values makes a `PerGeneration` setting.
        help: what it does, with its unit.
        choices: the allowed values.
        minimum, maximum: the allowed range, both ends included.
        of: int, float or str, the type of a `PerGeneration` setting's values.
        first: the generation that a list begins with: 0, the teacher, or 1 where only students have
            it.
    """
    if of is not None:
        default = PerGeneration(default)
        begins = "the first student" if first else "the teacher"
        help = f"{help} (list: {begins} first)"
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "of": of,
        "first": first,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _check(field, value):
    values = value if isinstance(value, PerGeneration) else (value,)
    allowed = field.metadata
    if not values:
        raise UserError(f"--{field.name} is empty: give at least one value.")
    for one in values:
        if allowed["choices"] is not None and one not in allowed["choices"]:
            raise UserError(
                f"--{field.name}={one!r} is not known: expected one of "
                f"{', '.join(map(str, allowed['choices']))}."
            )
        if isinstance(one, float) and not math.isfinite(one):
            raise UserError(f"--{field.name}={one} is not a number: give a finite one.")
        if allowed["minimum"] is not None and one < allowed["minimum"]:
            raise UserError(f"--{field.name}={one} is too small: at least {allowed['minimum']}.")
        if allowed["maximum"] is not None and one > allowed["maximum"]:
            raise UserError(f"--{field.name}={one} is too large: at most {allowed['maximum']}.")


class Section:
    """A part of the configuration; its fields are checked when it is made."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    def at(self, generation):
        """All values of one generation (0: the teacher), as a dict of JSON-like values."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, PerGeneration):
                value = value.at(max(0, generation - field.metadata["first"]))
            values[field.name] = value
        return values


def convert(field, value):
    """The value of a field from what a flag gave: a list of strings for a `PerGeneration` one."""
    kind = field.metadata["of"]
    if kind is None:
        return value
    try:
        return PerGeneration(kind(one) for one in value)
    except ValueError:
        raise UserError(
            f"--{field.name}={','.join(map(str, value))} is not understood: expected a "
            f"{'whole number' if kind is int else 'number'}, or a comma list of them."
        ) from None
