"""Grids: a base configuration, named changes of it, and seeds.

A grid is a TOML file:

    title = "Label types"
    seeds = [0, 1, 2]
    compare_with = "hard"

    [cells.hard]
    pseudo_label = "hard"

    [cells.soft]
    pseudo_label = "soft"

    [axes.mixup]
    "no mixup" = {}
    mixup = { mixup_alpha = [0, 1] }

Each cell changes some settings of the base, that is of the flags of the command. With axes the
cells are all combinations of one choice of each, here "hard, no mixup" to "soft, mixup". In a list
with a value for each generation, "base" is the base's value of this generation.
"""

import dataclasses
import functools
import itertools
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsk.config.config import Config, settings
from nsk.config.fields import is_per_generation
from nsk.errors import UserError, list_names

CELLS_FOLDER = "cells"
# Chosen by the sweep for every run.
RESERVED = ("workdir", "seed", "run_name", "wait_for_locks")
KEYS = ("title", "seeds", "compare_with", "baseline", "generations", "flags", "cells", "axes")
GENERATIONS = ("last", "best", "all")
BASE_VALUE = "base"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: name of its row, which it shares with the runs with other seeds.
        seed: its seed.
        values: values of settings by name, as flags have them.
    """

    name: str
    seed: int
    values: Mapping[str, Any]

    @property
    def run_name(self) -> str:
        """Its folder inside the workdir, such as `cells/hard_no_mixup/seed-0`."""
        return f"{CELLS_FOLDER}/{folder_name(self.name)}/seed-{self.seed}"

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.name}, seed {self.seed}"

    @functools.cached_property
    def config(self) -> Config:
        """Its configuration; UserError if a value is not allowed."""
        try:
            return Config.from_values(self.values)
        except UserError as error:
            raise UserError(f"Cell {self.name!r}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid, as its file describes it.

    Attributes:
        title: of its table.
        seeds: seeds of every cell.
        compare_with: name of the cell that the others are compared with.
        baseline: name of the cell that errors under corruptions and flips are relative to.
        generations: whose results are shown: the last | the best on dev | all.
        changes: values of settings by name, by name of the cell, on top of the base.
    """

    title: str
    seeds: tuple[int, ...]
    compare_with: str
    baseline: str
    generations: str
    changes: Mapping[str, Mapping[str, Any]]

    @property
    def names(self) -> list[str]:
        """Names of the cells, in order."""
        return list(self.changes)

    def cells(self, base: Mapping[str, Any]) -> list[Cell]:
        """All runs: every cell with the first seed, then with the second, and so on.

        So the runs that share a teacher follow each other.

        Args:
            base: values of settings by name, as flags have them.

        Raises:
            UserError: a value is not allowed, or two cells have the same settings.
        """
        cells = [
            Cell(name, seed, {**base, **_resolve(changes, base), "seed": seed})
            for seed in self.seeds
            for name, changes in self.changes.items()
        ]
        seen = {}
        for cell in cells[: len(self.changes)]:
            equal = seen.setdefault(repr(cell.config), cell.name)
            if equal != cell.name:
                raise UserError(
                    f"The cells {equal!r} and {cell.name!r} have the same settings: expected "
                    "different ones; leave one out."
                )
        return cells


def read_grid(path: str, seeds: str = "") -> Grid:
    """Reads a grid.

    Args:
        path: the TOML file.
        seeds: comma list of seeds instead of those of the file; empty: those of the file.

    Raises:
        UserError: it cannot be read, or something in it is not allowed.
    """
    try:
        with open(Path(path).expanduser(), "rb") as file:
            given = tomllib.load(file)
    except OSError as error:
        raise UserError(f"--grid={path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--grid={path} is not a TOML file: {error}.") from None
    try:
        return _parse(given, Path(path).stem, seeds)
    except UserError as error:
        raise UserError(f"--grid={path}: {error}") from None


def _resolve(changes, base):
    """The changes with the base's values where lists ask for them."""
    defaults = {field.name: field.default for field in settings()}
    resolved = dict(changes)
    for name, values in changes.items():
        if isinstance(values, list):
            own = base.get(name, defaults[name])
            resolved[name] = [
                str(own[min(index, len(own) - 1)]) if value == BASE_VALUE else value
                for index, value in enumerate(values)
            ]
    return resolved


def _parse(given, default_title, seeds):
    _check_keys(given, KEYS, "the file")
    generations = given.get("generations", "last")
    if generations not in GENERATIONS:
        raise UserError(f"generations={generations!r}: expected {', '.join(GENERATIONS)}.")
    changes = _combine(given)
    named = {key: given.get(key, next(iter(changes))) for key in ("compare_with", "baseline")}
    for key, name in named.items():
        if name not in changes:
            raise UserError(f"{key}={name!r} is not a cell: expected one of {_names(changes)}.")
    return Grid(
        title=str(given.get("title", default_title)),
        seeds=_parse_seeds(seeds or given.get("seeds", [0])),
        generations=generations,
        changes=changes,
        **named,
    )


def _combine(given):
    """{name of a cell: values of settings by name}: all combinations of cells and axes."""
    tables = {"cells": given.get("cells"), **given.get("axes", {})}
    if tables["cells"] is None:
        del tables["cells"]
    if not tables:
        raise UserError("it has no cells: expected tables [cells.NAME] or [axes.NAME].")
    axes = []
    for axis, choices in tables.items():
        if not isinstance(choices, dict) or not choices:
            raise UserError(f"{axis} is not a table of cells: expected [{axis}.NAME].")
        axes.append([(name, _values(changes, name)) for name, changes in choices.items()])
    common = _values(given.get("flags", {}), "flags")
    combined, folders = {}, {}
    for choices in itertools.product(*axes):
        name = ", ".join(choice for choice, _ in choices)
        other = folders.setdefault(folder_name(name), name)
        if other != name or not folder_name(name):
            raise UserError(
                f"the cell {name!r} has no name of its own beside {other!r}: expected names that "
                "differ in letters or digits."
            )
        combined[name] = functools.reduce(lambda a, b: {**a, **b[1]}, choices, common)
    return combined


def _values(changes, owner):
    """Values of settings by name, as flags have them, from TOML's."""
    if not isinstance(changes, dict):
        raise UserError(f"{owner} is {changes!r}: expected a table of settings.")
    fields = {field.name: field for field in settings()}
    values = {}
    for name, value in changes.items():
        field = fields.get(name)
        if field is None:
            raise UserError(f"{owner}: {name} is not a setting: see --help.")
        if name in RESERVED or (field.metadata["commands"] not in ((), ("run",))):
            raise UserError(f"{owner}: {name} cannot differ between cells: leave it out.")
        values[name] = _value(field, value, owner)
    return values


def _value(field, value, owner):
    """A value as a flag has it: of the type of the setting, comma lists as lists of text."""
    if is_per_generation(field):
        parts = value if isinstance(value, list) else str(value).split(",")
        return [str(part) for part in parts]
    if isinstance(value, list):
        value = ",".join(map(str, value))
    expected = {bool: bool, int: int, float: (int, float), str: (str, int, float)}[field.type]
    if not isinstance(value, expected) or (isinstance(value, bool) and field.type is not bool):
        raise UserError(
            f"{owner}: {field.name}={value!r} has the wrong type: expected {field.type.__name__}."
        )
    return field.type(value)


def _parse_seeds(given: str | Sequence[int]) -> tuple[int, ...]:
    texts = given.split(",") if isinstance(given, str) else given
    texts = texts if isinstance(texts, list) else [texts]
    if not texts or not all(re.fullmatch("[0-9]{1,18}", str(text).strip()) for text in texts):
        raise UserError(f"seeds={given!r}: expected whole numbers, as 0,1,2.")
    seeds = tuple(int(text) for text in texts)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={given!r}: expected different numbers.")
    return seeds


def _check_keys(given, known, owner):
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(
            f"{owner} has {list_names(unknown)}: expected only {', '.join(known)}; settings of all "
            "cells go into [flags]."
        )


def _names(changes):
    return list_names(list(map(repr, changes)))


def folder_name(name: str) -> str:
    """A name as part of a path: letters, digits, dots, signs and underscores."""
    plain = unicodedata.normalize("NFC", name).casefold()
    return re.sub(r"[^\w.+=-]+", "_", plain).strip("_.")
