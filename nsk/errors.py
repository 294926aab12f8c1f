"""Errors that are the user's to mend, told in one line."""

import difflib


class UserError(Exception):
    """Flags, data or files are wrong: `main` prints the one line and exits with code 2.

    The message says what was received, what was expected and what to do.
    """


class CannotTeachError(UserError):
    """A teacher is no better than chance, a training diverged or no pseudo-label is kept.

    At the first generation this ends the run, as any `UserError`. Later it ends the chain alone:
    the generations before it stand.
    """


class LostWorkerError(Exception):
    """Another worker of the same training is gone: `main` exits with code 75.

    The strategy cannot take one in again: all workers are to be started anew.
    """


def similar_names(name, spellings):
    """Names that look like a wrong one, for a message: ` (nearest: NAME, ...)`, or nothing.

    Args:
        name: what was given.
        spellings: dict from what a user may write, in lower case, to the names that there are.
    """
    matches = difflib.get_close_matches(name.lower(), spellings, n=4)
    names = dict.fromkeys(name for one in matches for name in spellings[one])
    return f" (nearest: {', '.join(names)})" if names else ""
