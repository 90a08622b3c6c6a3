"""The operators that run: per operator a naive reference, a PyTorch implementation, GPU backends, explicit dispatch.

The modules in here import torch; this file does not. Code that may run without torch calls `require_torch`
before it imports them. Triton and fla are imported by the backend that runs on them, never before it runs.

Backends: "reference" is the definition, token by token, in fp64 where its inputs are; "torch" runs everywhere;
"triton" holds this package's own kernels; "fla" those of flash-linear-attention. "auto" takes the first of triton,
fla and torch that the operator has, the device runs and the environment holds; any other name runs or raises.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

from hwsearch.errors import DependencyError, InputError, unknown_name

__all__ = ["choose", "kernel_name", "require_torch", "resolve", "resolve_each"]

Implementation = TypeVar("Implementation")

_DISTRIBUTION = {"triton": "triton", "fla": "flash-linear-attention"}  # GPU backends, best first


def require_torch(*, purpose: str) -> None:
    """Raise DependencyError where torch is absent; `purpose` starts the message ("profiling")."""
    if importlib.util.find_spec("torch") is None:
        raise DependencyError("torch", extra="torch", purpose=purpose)


@cache
def _installed(package: str) -> bool:
    """Looked up once: to search every folder for what is not there takes longer than a step's kernels to launch."""
    return importlib.util.find_spec(package) is not None


def choose(operation: str, *, backend: str, implementations: Mapping[str, Implementation]) -> Implementation:
    """The implementation called `backend`, never another one; InputError for a name that is not there."""
    if backend not in implementations:
        raise unknown_name(f"backend for {operation}", backend, implementations)
    return implementations[backend]


def resolve(operation: str, *, backend: str, device_type: str, implementations: Mapping[str, object]) -> str:
    """The name of the backend that runs on a type of device: `backend` itself, or what "auto" stands for there.

    Raises InputError for a backend that the operation lacks or the device does not run, DependencyError for one
    whose package is missing.
    """
    if backend == "auto":
        return next(
            (
                name
                for name in _DISTRIBUTION
                if device_type == "cuda" and name in implementations and _installed(name)
            ),
            "torch",
        )
    choose(operation, backend=backend, implementations={"auto": None, **implementations})
    if backend in _DISTRIBUTION:
        interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        if device_type != "cuda" and not interpreted:
            raise InputError(
                f"{operation}: backend {backend} runs on CUDA devices, and the tensors are on {device_type}: "
                "use backend auto or torch"
            )
        if not _installed(backend):
            raise DependencyError(
                _DISTRIBUTION[backend], extra="gpu", purpose=f"{operation} on backend {backend}"
            )
    return backend


def resolve_each(
    operations: Mapping[str, Mapping[str, object]], *, backend: str, device_type: str
) -> dict[str, str]:
    """The backend of each of the operations that a block is made of.

    The backend asked for runs every operation that has it; those that lack it take what "auto" stands for. Raises as
    `resolve` does, and InputError where none of the operations has it.
    """
    have = {name for name, known in operations.items() if backend in known}
    if not have and backend != "auto":
        known = {name for implementations in operations.values() for name in implementations}
        raise unknown_name(f"backend for {' and '.join(operations)}", backend, known)
    return {
        name: resolve(
            name.replace("_", " "),
            backend=backend if name in have else "auto",
            device_type=device_type,
            implementations=implementations,
        )
        for name, implementations in operations.items()
    }


def kernel_name(operation: str, *, backend: str, length: int) -> str:
    """What a record calls the kernel that ran: backend, operation, and whether for one token or for a sequence."""
    if backend == "reference":
        return f"reference.{operation}"
    return f"{backend}.{operation}_{'step' if length == 1 else 'chunked'}"
