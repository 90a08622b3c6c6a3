"""Errors a user can cause or mend.

Every message says what failed, the value that was given, and the fix. The command line prints the message
alone and exits with a non-zero status; a traceback means a defect in hwsearch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError",
    "DependencyError",
    "HwsearchError",
    "InfeasibleError",
    "InputError",
    "OutputError",
    "plainly",
    "unknown_name",
]


class HwsearchError(ValueError):
    """Base of every error that the user, not the programmer, has to act on."""


class InputError(HwsearchError):
    """A name, number or option that cannot be used as given."""


class DataError(HwsearchError):
    """A file whose content is missing, truncated, or not what it claims to be."""


class OutputError(HwsearchError):
    """A place that cannot be written to."""


class DependencyError(HwsearchError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'hwsearch[{extra}]'"
        )


class InfeasibleError(HwsearchError):
    """No architecture of the space meets the budgets."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> InputError:
    """An InputError for a name that is not among `known`, suggesting the nearest one."""
    names = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"did you mean {lowered[near[0]]}? " if near else ""
    return InputError(f"unknown {what} {name!r}: {hint}known: {', '.join(names)}")


def plainly(error: Exception) -> str:
    """What an exception of the system or a library says, without error numbers, codecs and the path once more."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
