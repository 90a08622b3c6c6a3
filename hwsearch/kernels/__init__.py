"""The operators that run: per operator a naive reference, a PyTorch implementation, and explicit dispatch.

The modules in here import torch; this file does not. Code that may run without torch calls `require_torch`
before it imports them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TypeVar

from hwsearch.errors import DependencyError, unknown_name

__all__ = ["choose", "require_torch"]

Implementation = TypeVar("Implementation")


def require_torch(*, purpose: str) -> None:
    """Raise DependencyError where torch is absent; `purpose` starts the message ("profiling")."""
    if importlib.util.find_spec("torch") is None:
        raise DependencyError("torch", extra="torch", purpose=purpose)


def choose(operation: str, *, backend: str, implementations: Mapping[str, Implementation]) -> Implementation:
    """The implementation called `backend`, never another one; InputError for a name that is not there."""
    if backend not in implementations:
        raise unknown_name(f"backend for {operation}", backend, implementations)
    return implementations[backend]
