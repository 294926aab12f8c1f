"""Errors with an exit code of their own."""

import difflib
from collections.abc import Mapping, Sequence

MAX_NAMES = 10  # Listed in a message.


class UserError(Exception):
    """Flags, data or files are wrong: `main` prints the message and exits with code 2.

    The message is one line: what was received, what was expected and what to do.
    """


class GenerationFailedError(UserError):
    """A teacher is no better than chance, a training diverged or too few pseudo-labels are kept.

    In the first generation this ends the run, as any `UserError` does. In a later one it ends the
    chain only: the results of the generations before it are kept.
    """


class LostWorkerError(Exception):
    """Another worker of the same training is lost: `main` exits with code 75.

    The distribution strategy cannot readmit a worker: all of them have to be restarted.
    """


def suggest_names(name: str, spellings: Mapping[str, Sequence[str]]) -> str:
    """Suggests valid names for an unknown one.

    Args:
        name: the unknown name.
        spellings: from what a user may write, in lower case, to the valid names that it may mean.

    Returns:
        A fragment of an error message, ` (similar: NAME, ...)`; "" if no name is similar.
    """
    matches = difflib.get_close_matches(name.lower(), spellings, n=4)
    names = dict.fromkeys(valid for spelling in matches for valid in spellings[spelling])
    return f" (similar: {', '.join(names)})" if names else ""


def printable(name: str) -> str:
    """The name in one line of text: characters that are not printable or not UTF-8 are escaped."""
    if name.isprintable():
        return name
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in name
    )


def list_names(names: Sequence[str]) -> str:
    """The first ten names, and how many there are if there are more."""
    shown = ", ".join(map(printable, names[:MAX_NAMES]))
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES} more"


def list_counts(counts: Mapping[str, int]) -> str:
    """`list_names` of names with their numbers, as `.txt 1,200, .csv 3`."""
    return list_names([f"{name} {number:,}" for name, number in counts.items()])
