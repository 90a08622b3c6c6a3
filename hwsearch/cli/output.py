"""What commands print: tables for people, JSON for programs, progress on standard error.

Colour and progress bars appear on terminals only, and NO_COLOR is respected (both by rich).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = [
    "console",
    "emit_json",
    "json_option",
    "milliseconds",
    "note",
    "print_counts",
    "progress",
    "quiet_transformers",
    "size",
    "table",
    "working",
]

_WIDTH_OFF_TERMINAL = 200  # files and pipes: wide enough that no table is cut

json_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of tables."
)


def console(*, err: bool = False) -> Console:
    """A console on standard output, or standard error."""
    made = Console(stderr=err, highlight=False)
    return made if made.is_terminal else Console(stderr=err, highlight=False, width=_WIDTH_OFF_TERMINAL)


def emit_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object. NaN is refused: it would not be JSON."""
    click.echo(json.dumps(content, indent=2, allow_nan=False))


def note(text: str) -> None:
    """A remark for the person at the terminal, on standard error, so that JSON on standard output stays JSON."""
    console(err=True).print(text, markup=False, style="dim", soft_wrap=True)


def print_counts(left_out: Mapping[str, int], merged: Mapping[str, int], *, to: Console) -> None:
    """How many rows of measurements are not used as they stand, one line for each reason."""
    for what, counts in (("left out", left_out), ("merged", merged)):
        for reason, count in counts.items():
            to.print(f"{what}: {count} rows, {reason}", markup=False, soft_wrap=True)


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text and the others figures."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, column in enumerate(columns):
        # A figure is never broken; names break between words where the terminal is narrow.
        made.add_column(column, justify="left" if i < left else "right", no_wrap=i >= left, overflow="fold")
    return made


def progress() -> Progress:
    """A progress bar on standard error; nothing where that is no terminal."""
    to = console(err=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=to,
        transient=True,
        disable=not to.is_terminal,
    )


def quiet_transformers() -> None:
    """Leave reporting to our own tables and bars; what transformers says of missing weights stands there too."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def working(text: str) -> AbstractContextManager[object]:
    """A spinner on standard error while something of unknown length runs; nothing where that is no terminal."""
    to = console(err=True)
    return to.status(text) if to.is_terminal else nullcontext()


def size(number: float) -> str:
    """Bytes in the largest binary unit that keeps the number above one."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(number) >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number:.0f} B"


def milliseconds(value: float, low: float | None = None, high: float | None = None) -> str:
    """Milliseconds with three or more significant digits, and the interval where there is one."""

    def text(ms: float) -> str:
        return f"{ms:.1f}" if ms >= 100 else f"{ms:.2f}" if ms >= 10 else f"{ms:.3f}"

    if low is None or high is None:
        return text(value)
    return f"{text(value)} ({text(low)} to {text(high)})"
