"""Runs commands in processes that kill themselves at a chosen moment, for the tests of resuming.

    python -m tests.cli.killable      one JSON object a line on stdin, one exit status a line on stdout

A line has the arguments of a command, and the number of the file event (a file opened for writing, renamed, a folder
made) before which the process gets SIGKILL; null lets it live. What stands on disk then is what a kill -9 leaves:
nothing is flushed, closed or removed. Each command runs in a fork of this process, which has imported everything and
computed nothing, so that a life costs no import. Candidates train in the process itself, and training keeps its state
at every step, so that there is something to interrupt.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch

from hwsearch.cli.main import run
from hwsearch.search import executors
from hwsearch.surrogate import training

_EVENTS = ("os.rename", "os.mkdir")
_WRITING = os.O_WRONLY | os.O_RDWR
_BEFORE = (
    "hwsearch.cli.postnas",
    "hwsearch.cli.supernet",
    "hwsearch.pipeline.postnas_report",
    "hwsearch.costmodel.builtin_models",
    "transformers.models.auto.tokenization_auto",
    "matplotlib.figure",
)


class _Here(executors.InlineExecutor):
    """Stands for worker processes."""

    def __init__(self, workers: int = 1) -> None:
        super().__init__()

    def __enter__(self) -> Self:
        return self


def _die_at(number: int) -> None:
    """SIGKILL for this process before its file event of that number, from 1."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if writing or event in _EVENTS:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _life(arguments: Sequence[str], *, kill_at: int | None, log: Path) -> int:
    """Exit status of the command, negative where a signal ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if kill_at is not None:
        _die_at(kill_at)
    os._exit(run(arguments))


def main() -> None:
    torch.set_num_threads(1)  # a fork has no threads of its parent
    for name in _BEFORE:
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)
    executors.ProcessExecutor = _Here  # type: ignore[assignment, misc]
    training._SAVE_EVERY_S = 0.0
    for line in sys.stdin:
        asked = json.loads(line)
        status = _life(asked["arguments"], kill_at=asked["kill_at"], log=Path(asked["log"]))
        print(status, flush=True)


if __name__ == "__main__":
    main()
