"""Memory of this process on a CPU: kept between the calls that are timed, given back before its peak is read.

glibc hands large blocks back to the system when they are freed, and asks for them again, page by page, in the next
call. What is large it decides by what the process freed before (mallopt(3), M_MMAP_THRESHOLD), so that the same decode
step takes half as long again in a process with another past. Allocators in use beside torch (jemalloc, tcmalloc), and
torch's own on CUDA, keep freed memory; so does glibc once it is told to.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

__all__ = ["keep_freed_memory", "peak_resident"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt's parameters
_NEVER = -1


@cache
def keep_freed_memory() -> None:
    """From now on let this process keep what it frees and use it again; nothing where the C library is not glibc."""
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)


@contextmanager
def peak_resident() -> Iterator[list[int]]:
    """Bytes by which this process's resident memory rose at its peak inside; empty where the system is silent.

    Freed memory that was kept is given back first, as far as the C library can.
    """
    grown: list[int] = []
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        yield grown
        return
    before = _status_bytes(status, "VmRSS")
    try:
        reset.write_text("5")  # the peak starts again from what is resident now
    except OSError:
        yield grown
        return
    yield grown
    peak = _status_bytes(status, "VmHWM")
    if before is not None and peak is not None:
        grown.append(max(0, peak - before))


def _of_libc(name: str) -> Callable[..., int] | None:
    """A function of glibc's own; None in other C libraries."""
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found


def _status_bytes(path: Path, name: str) -> int | None:
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None
