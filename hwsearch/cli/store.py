"""hwsearch store: join and compare measurement stores, and hand them to other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from hwsearch.cli.output import console, emit_json, json_option, milliseconds, table
from hwsearch.profilers.compare import Comparison, Spread, compare_stores
from hwsearch.profilers.merge import DOUBTS, export_store, merge_stores

__all__ = ["command"]


@click.group("store")
def command() -> None:
    """Measurement stores: join several into one, compare two, or write one as a table."""


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


@command.command("compare")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--worst", default=5, show_default=True, type=click.IntRange(min=0), help="Rows to list.")
@json_option
def compare(*, first: Path, second: Path, worst: int, as_json: bool) -> None:
    """How far two measurements of the same things are apart: another day, another driver, another machine."""
    found = compare_stores(first, second)
    if as_json:
        emit_json(
            {
                "first": found.first,
                "second": found.second,
                "only_first": found.only_first,
                "only_second": found.only_second,
                "reference_percent": found.reference_percent,
                "all": asdict(found.all),
                "kinds": {kind: asdict(spread) for kind, spread in found.by_kind().items()},
                "farthest": [
                    {
                        "subject": str(far.subject),
                        "first_ms": far.first_ms,
                        "second_ms": far.second_ms,
                        "percent": far.percent,
                    }
                    for far in found.farthest(worst)
                ],
            }
        )
        return
    _print(found, worst)


def _print(found: Comparison, worst: int) -> None:
    to = console()
    to.print(f"first: {found.first}", f"second: {found.second}", sep="\n", markup=False)
    shown = table(
        "differences in percent",
        "rows of",
        "rows",
        "median",
        "95th percentile",
        "largest",
        "all shifted by",
        "rest",
    )

    def add(name: str, spread: Spread) -> None:
        figures = (spread.median, spread.p95, spread.largest)
        shown.add_row(
            name,
            str(spread.points),
            *(f"{x:.1f}" for x in figures),
            f"{spread.shift:+.1f}",
            f"{spread.rest:.1f}",
        )

    for kind, spread in found.by_kind().items():
        add(kind, spread)
    add("all", found.all)
    to.print(shown)
    for far in found.farthest(worst):
        to.print(
            f"{far.subject}: {milliseconds(far.first_ms)} and {milliseconds(far.second_ms)} ms ({far.percent:+.1f}%)",
            markup=False,
        )
    if found.reference_percent is not None:
        to.print(f"the drift reference took {found.reference_percent:+.1f}% in the second", markup=False)
    if found.only_first or found.only_second:
        to.print(
            f"not compared: {found.only_first} rows of the first and {found.only_second} of the second alone",
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
