"""Why something could not run, as a row of the store and a message say it."""

from __future__ import annotations

import sys

import torch

from hwsearch.records import Status

__all__ = ["failure_of", "running_errors"]

# torch.OutOfMemoryError is that of CUDA's allocator alone; the CPU's and cuBLAS's are RuntimeErrors that say so. An
# illegal access to memory is something else.
_SAYINGS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


def failure_of(error: Exception) -> tuple[Status, str]:
    """The status of a row that an error ended, oom or failed, and the reason in one line."""
    text = str(error)
    ran_out = isinstance(error, MemoryError | torch.OutOfMemoryError)
    ran_out = ran_out or any(saying in text for saying in _SAYINGS)
    return "oom" if ran_out else "failed", (text.splitlines() or [type(error).__name__])[0]


def running_errors(*also: type[Exception]) -> tuple[type[Exception], ...]:
    """What running a kernel raises. Triton's errors are among it: a kernel does not compile or asks too much."""
    triton = sys.modules.get("triton.errors")
    return (*also, RuntimeError, MemoryError, *(() if triton is None else (triton.TritonError,)))
