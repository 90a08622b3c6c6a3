"""Writing model folders: all of it or nothing, and never over something that is there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwsearch.errors import OutputError

__all__ = ["check_absent", "new_folder"]


def check_absent(folder: Path) -> None:
    """OutputError where there is something at `folder` already, or no folder to put it in; cheap, to call first."""
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder} exists already: name a new folder with -o, or remove it")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"cannot write {folder}: {folder.absolute().parent} is no folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`; it takes its place when the block ends well and vanishes when it does not."""
    check_absent(folder)
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors are written readable by their owner only
        check_absent(folder)
        temporary.rename(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}; choose another place with -o"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
