"""hwsearch store: join measurement stores, and hand them to other programs."""

from __future__ import annotations

from pathlib import Path

import click

from hwsearch.cli.output import console, emit_json, json_option
from hwsearch.profilers.merge import DOUBTS, export_store, merge_stores

__all__ = ["command"]


@click.group("store")
def command() -> None:
    """Measurement stores: join several into one, or write one as a table."""


@command.command("merge")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The store to add to.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(DOUBTS),
    help="Leave out rows that did not run or carry this mark, for a profile into the new store to measure again.",
)
@json_option
def merge(*, files: tuple[Path, ...], output: Path, without: tuple[str, ...], as_json: bool) -> None:
    """Join FILES of one device, runtime and dtype; of the same thing measured twice one that ran is kept."""
    merged = merge_stores(files, output, without=without)
    if as_json:
        emit_json(
            {
                "store": str(output),
                "device_name": merged.device_name,
                "runtime": merged.runtime,
                "rows": merged.rows,
                "left_out": merged.left_out,
                "added": merged.added,
            }
        )
        return
    left_out = f", {merged.left_out} left out" if without else ""
    console().print(
        f"{merged.device_name}, {merged.runtime}: {merged.rows} rows read{left_out}, {merged.added} new in {output}",
        markup=False,
    )


@command.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A .csv or .parquet file, one row for each measurement.",
)
@json_option
def export(*, file: Path, output: Path, as_json: bool) -> None:
    """Write the store FILE as a table: what was measured where, medians, status, conditions, raw samples."""
    rows = export_store(file, output)
    if as_json:
        emit_json({"table": str(output), "rows": rows})
        return
    console().print(f"{rows} rows written to {output}", markup=False)
