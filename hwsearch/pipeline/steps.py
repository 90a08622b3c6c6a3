"""A run in steps: each step's result is a JSON file, written whole; a step whose file is there is not run again.

    RUN/run.json          what decides the results; a run that goes on must be given the same
    RUN/steps/NAME.json   the result of a finished step
    RUN/...               what steps keep for themselves: checkpoints that a cut-short step goes on from

So after a kill at any moment the same call does what is left and ends with the same result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hwsearch.errors import DataError, InputError, OutputError, plainly

__all__ = ["Steps"]

_RUN, _STEPS = "run.json", "steps"


class Steps:
    """The finished steps of a run directory. Use `open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path, *, settings: Mapping[str, Any]) -> Steps:
        """Starts a run in a new or empty folder, or goes on with the one that is there.

        Raises InputError where the folder holds something else, or a run of other settings.
        """
        steps = cls(folder)
        given = json.loads(json.dumps(settings))
        if (folder / _RUN).is_file():
            stored = _read(folder / _RUN)
            changed = sorted(
                key for key in {*stored, *given} if stored.get(key, _MISSING) != given.get(key, _MISSING)
            )
            if changed:
                key = changed[0]
                raise InputError(
                    f"{folder} was started with {key} = {json.dumps(stored.get(key))}, not "
                    f"{json.dumps(given.get(key))}: go on with the same, or choose another folder"
                )
            return steps
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(path != _partial(folder / _RUN) for path in folder.iterdir()):
                raise InputError(f"{folder} is not empty and holds no run: choose another folder")
        except OSError as error:
            raise OutputError(f"cannot create {folder}: {error.strerror}; choose another folder") from None
        _write(folder / _RUN, given)
        return steps

    def result(self, name: str) -> dict[str, Any] | None:
        """What a finished step found; None where it has not finished."""
        path = self.folder / _STEPS / f"{name}.json"
        return _read(path) if path.is_file() else None

    def run(self, name: str, step: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The result of a step, from its file where it has finished before.

        It passes through JSON either way, so that a run that was interrupted sees what any other sees.
        """
        if self.result(name) is None:
            _write(self.folder / _STEPS / f"{name}.json", step())
        found = self.result(name)
        assert found is not None
        return found


_MISSING = object()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path} ({plainly(error)}): remove it, and its step runs again"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a JSON object: remove it, and its step runs again")
    return content


def _partial(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_suffix(".json.part")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """All of it or nothing."""
    partial = _partial(path)
    try:
        path.parent.mkdir(exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; the run can be gone on with") from None
