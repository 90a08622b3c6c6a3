"""hwsearch import: measurements of other tools into a store of ours."""

from __future__ import annotations

from pathlib import Path

import click

from hwsearch.cli.output import console, emit_json, json_option
from hwsearch.costmodel.importers import import_aiconfigurator
from hwsearch.profilers.store import Store

__all__ = ["command"]


@click.group("import")
def command() -> None:
    """Import measurements of other tools into a store that `hwsearch fit` and `evaluate` read."""


@command.command("aiconfigurator")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The store to add to.")
@json_option
def aiconfigurator(*, folder: Path, output: Path, as_json: bool) -> None:
    """Latency tables of NVIDIA AIConfigurator: the FOLDER of one GPU, or one .parquet or .csv file."""
    imported = import_aiconfigurator(folder)
    measurements = imported.measurements()
    with Store.open(output, create=True) as store:
        added = store.add(measurements)
    left_out = dict(imported.left_out)
    if as_json:
        emit_json(
            {
                "store": str(output),
                "device_name": imported.device_name,
                "runtime": imported.runtime,
                "rows": imported.rows,
                "measurements": len(measurements),
                "added": added,
                "left_out": left_out,
            }
        )
        return
    to = console()
    to.print(f"{imported.device_name}, {imported.runtime}: {imported.rows} rows read", markup=False)
    for reason, count in left_out.items():
        to.print(f"left out: {count} rows, {reason}", markup=False, soft_wrap=True)
    already = len(measurements) - added
    to.print(
        f"{added} measurements added to {output}, replicates as samples of one"
        + (f"; {already} were there already" if already else ""),
        markup=False,
        soft_wrap=True,
    )
