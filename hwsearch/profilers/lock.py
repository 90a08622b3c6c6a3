"""One profiler at a time on a store: two would measure each other's load, and one another's points.

The lock is a file beside the store that its holder has locked (flock), so that it is free again the moment the holder
ends, killed or not; the file itself is removed when the holder ends in order. Readers and imports do not ask for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwsearch.errors import OutputError

__all__ = ["profiling"]


@contextmanager
def profiling(store: Path) -> Iterator[None]:
    """Hold the lock of `store`; OutputError where another process holds it, or no file can be made beside it.

    Windows has no such locks; there is none there.
    """
    if sys.platform == "win32":
        yield
        return
    path = store.with_name(f"{store.name}.lock")
    try:
        descriptor = _locked(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error.strerror}): profile into a folder you can write to"
        ) from error
    if descriptor is None:
        holder = path.read_text().strip() if path.exists() else ""
        raise OutputError(
            f"{store} is being profiled into by another process{f' ({holder})' if holder else ''}: wait for it to end, "
            "or profile into a store of its own and join the two with `hwsearch store merge`"
        )
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A locked descriptor of the file at `path`; None where another process holds it."""
    assert sys.platform != "win32"
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        # The holder before may have removed the file between the two calls: then this lock is on nothing.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)
