"""hwsearch export: one architecture of a finished search as architecture JSON."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hwsearch.cli.output import console, emit_json, json_option
from hwsearch.errors import DataError, InputError, OutputError
from hwsearch.search.study import read_result
from hwsearch.searchspace.architecture import Architecture

__all__ = ["command"]


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--pick",
    default="best",
    show_default=True,
    help="best (least quality loss), knee, exact (the exact optimum), or a number of the front.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@json_option
def command(*, run: Path, pick: str, output: Path, as_json: bool) -> None:
    """Write an architecture that the search in RUN found. `hwsearch predict --arch FILE` reads it."""
    result = read_result(run)
    architecture = _architecture(result, pick, run)
    _write(output, architecture.to_json())
    if as_json:
        emit_json(
            {
                "output": str(output),
                "name": architecture.name,
                "mixers": dict(architecture.count()),
                "targets": list(architecture.targets),
            }
        )
        return
    targets = ", ".join(architecture.targets) or "none: no class of transformers holds these layers"
    console().print(
        f"{architecture.name}: {', '.join(f'{count} {kind}' for kind, count in architecture.count().items())}",
        markup=False,
    )
    console().print(f"native classes that can hold it: {targets}", markup=False)
    console().print(f"written to {output}", markup=False, soft_wrap=True)


def _architecture(result: Mapping[str, Any], pick: str, run: Path) -> Architecture:
    try:
        base, choices = result["settings"]["base"], result["settings"]["choices"]
        genome = _genome(result, pick)
        content = {
            "schema_version": 1,
            "name": f"{base['name']}-{run.resolve().name}-{pick}",
            "base": base,
            "layers": [choices[choice] for choice in genome],
        }
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{run} was not written by `hwsearch search` ({error!r} is missing)") from None
    return Architecture.from_content(content, source=str(run))


def _genome(result: Mapping[str, Any], pick: str) -> list[int]:
    front = result["front"]
    if pick == "exact":
        exact = result["exact"]
        if exact is None or exact["genome"] is None:
            raise InputError("--pick exact: this search has no exact optimum; pick best, knee or a number")
        genome: list[int] = exact["genome"]
        return genome
    row = result[pick] if pick in ("best", "knee") else int(pick) if pick.isdecimal() else -1
    if not 0 <= row < len(front):
        raise InputError(f"--pick {pick}: write best, knee, exact, or a number from 0 to {len(front) - 1}")
    chosen: list[int] = front[row]["genome"]
    return chosen


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, so that a failure leaves what was there."""
    if path.is_dir():
        raise OutputError(
            f"cannot write {path}: it is a folder; name a file in it, for example {path / 'arch.json'}"
        )
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place with -o") from None
