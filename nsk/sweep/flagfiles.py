"""Configurations as files of flags."""

from collections.abc import Mapping
from typing import Any

from nsk.config.config import settings
from nsk.errors import UserError


def flagfile_text(values: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    """A flagfile with the settings that differ from their defaults, a line each.

    Args:
        values: values of settings by name, as flags have them.
        without: settings that are left out.

    Raises:
        UserError: a value cannot be written in one line.
    """
    lines = []
    for field in settings():
        value = values.get(field.name, field.default)
        text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        default = field.default
        if field.name in without or value == default:
            continue
        if isinstance(value, list) and text == ",".join(map(str, default)):
            continue
        if not text.isprintable() or text != text.strip():
            raise UserError(
                f"--{field.name}={text!r} cannot be written into a flagfile: expected printable "
                "text without spaces around it."
            )
        lines.append(f"--{field.name}={text.lower() if field.type is bool else text}\n")
    return "".join(lines)
