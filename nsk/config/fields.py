"""What a setting is: a dataclass field with its default, help text, check and condition of use.

Each module beside this file declares the settings of one section. A setting that may differ between
generations is declared by `per_generation` and written as a comma list on the command line: the
teacher's value first, then each student's (a setting that only students have starts with the first
student's). The last value applies to all later generations, so `--survival_probability=1,0.8` is a
teacher without stochastic depth and students with it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from nsk.errors import UserError, list_names


class PerGeneration(tuple):
    """One value per generation; the last value applies to all later generations."""

    def at(self, index: int) -> Any:
        """The value of generation `index`, 0 or more."""
        return self[min(index, len(self) - 1)]


@dataclasses.dataclass(frozen=True)
class Condition:
    """When a setting has an effect.

    Attributes:
        text: what must hold, for the documentation and for warnings, such as `--policy=gap`.
        holds: function of a mapping from names of settings to their values at one generation.
    """

    text: str
    holds: Callable[[Mapping[str, Any]], bool]

    def __and__(self, other: "Condition") -> "Condition":
        return Condition(
            " and ".join(_in_parentheses(part.text) for part in (self, other)),
            lambda values: self.holds(values) and other.holds(values),
        )

    def __or__(self, other: "Condition") -> "Condition":
        return Condition(
            f"{self.text} or {other.text}",
            lambda values: self.holds(values) or other.holds(values),
        )


def _in_parentheses(text):
    """A part of a condition with `and`: clear if it has an `or` of its own."""
    return f"({text})" if " or " in text else text


ALWAYS = Condition("always", lambda values: True)


def equals(name: str, *allowed: Any) -> Condition:
    """The setting `name` has one of the values."""
    text = " or ".join(f"--{name}={value}" for value in allowed)
    return Condition(text, lambda values: values[name] in allowed)


def above_zero(name: str) -> Condition:
    """The number of the setting `name` is above 0."""
    return Condition(f"--{name} above 0", lambda values: values[name] > 0)


def starts_with(name: str, prefix: str) -> Condition:
    """The text of the setting `name` starts with `prefix`."""
    return Condition(f"--{name}={prefix}...", lambda values: values[name].startswith(prefix))


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    used_if: Condition = ALWAYS,
    changes_results: bool = True,
    commands: tuple[str, ...] = (),
) -> Any:
    """Declares a setting.

    Args:
        default: the default value.
        help: what it does, with its unit.
        choices: the allowed values.
        minimum: the smallest allowed number; None: no limit.
        maximum: the largest allowed number; None: no limit.
        used_if: when the setting has an effect. If it has none, a value that was given triggers a
            warning, and stages do not depend on it.
        changes_results: False if no stage depends on it, since it changes only speed, memory, what
            is displayed, or when a chain ends.
        commands: the commands that it is for; (): all of them.

    Returns:
        A dataclass field.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "used_if": used_if,
        "changes_results": changes_results,
        "commands": commands,
        "first_generation": 0,
    }
    return dataclasses.field(default=default, metadata=metadata)


def per_generation(*defaults: Any, help: str, students_only: bool = False, **options: Any) -> Any:
    """Declares a setting with one value per generation.

    Args:
        *defaults: default values, the teacher's first; or the first student's.
        help: what it does, with its unit.
        students_only: whether the list starts with the first student.
        **options: of `setting`.

    Returns:
        A dataclass field. Its annotation is the type of one value; a `Config` holds a
        `PerGeneration`, and `Section.at` gives the value of a generation.
    """
    first = "the first student" if students_only else "the teacher"
    field = setting(PerGeneration(defaults), f"{help} (list: {first} first)", **options)
    metadata = {**field.metadata, "first_generation": int(students_only)}
    return dataclasses.field(default=field.default, metadata=metadata)


def is_per_generation(field: dataclasses.Field) -> bool:
    """Whether a setting has one value per generation."""
    return isinstance(field.default, PerGeneration)


class Section:
    """A group of settings; its values are checked when it is created."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    def at(self, generation: int) -> Self:
        """The section with the values of one generation (0: the teacher)."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, PerGeneration):
                index = generation - field.metadata["first_generation"]
                values[field.name] = value.at(max(0, index))
        return self.with_values(**values)

    def with_values(self, **values: Any) -> Self:
        """A copy with other values, which are not checked against their ranges.

        Raises:
            ValueError: there is no such setting.
        """
        known = self.values()
        unknown = set(values) - set(known)
        if unknown:
            raise ValueError(f"No such settings: {list_names(sorted(unknown))}.")
        copy = object.__new__(type(self))
        for name, value in {**known, **values}.items():
            object.__setattr__(copy, name, value)
        return copy

    def values(self) -> dict[str, Any]:
        """All values by the names of their settings."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def used_values(sections: Iterable[Section], **context: Any) -> dict[str, Any]:
    """The settings that have an effect on results, by name, for a stage's fingerprint.

    Changing a setting that has no effect, such as one of another schedule, rebuilds nothing.

    Args:
        sections: sections with the values of one generation.
        **context: other values that conditions may ask for.

    Returns:
        dict of JSON values.
    """
    sections = list(sections)
    known = dict(context)
    for section in sections:
        known |= section.values()
    return {
        field.name: known[field.name]
        for section in sections
        for field in dataclasses.fields(section)
        if field.metadata["changes_results"] and field.metadata["used_if"].holds(known)
    }


def convert(field: dataclasses.Field, value: Any) -> Any:
    """The value of a setting from that of its flag: a list of strings for a comma list."""
    if not is_per_generation(field):
        return value
    try:
        return PerGeneration(field.type(text) for text in value)
    except ValueError:
        expected = "whole number" if field.type is int else "number"
        raise UserError(
            f"--{field.name}={','.join(map(str, value))}: expected a {expected}, or a comma list "
            "of them."
        ) from None


def _check(field, value):
    """UserError if a value is not allowed."""
    values = value if isinstance(value, PerGeneration) else (value,)
    rules = field.metadata
    if not values:
        raise UserError(f"--{field.name} is empty: give at least one value.")
    for value in values:
        if rules["choices"] is not None and value not in rules["choices"]:
            raise UserError(
                f"--{field.name}={value!r} is not known: expected one of "
                f"{', '.join(map(str, rules['choices']))}."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{field.name}={value} is not a number: give a finite number.")
        if rules["minimum"] is not None and value < rules["minimum"]:
            raise UserError(f"--{field.name}={value} is too small: at least {rules['minimum']}.")
        if rules["maximum"] is not None and value > rules["maximum"]:
            raise UserError(f"--{field.name}={value} is too large: at most {rules['maximum']}.")
