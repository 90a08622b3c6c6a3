"""hwsearch import: measurements of other tools into a store of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from hwsearch.cli.options import unit_option
from hwsearch.cli.output import console, emit_json, json_option, note, print_counts
from hwsearch.costmodel.devices import device_named, device_reported_as
from hwsearch.costmodel.importers import Imported, import_aiconfigurator, import_vidur
from hwsearch.profilers.merge import merge_stores
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec, Measurement

__all__ = ["command"]

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]
_output_option: _Decorator = click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The store to add to."
)


@click.group("import")
def command() -> None:
    """Import measurements of other tools into a store that `hwsearch fit` and `evaluate` read.

    Rows that cannot be right, or that are not modelled, are left out and counted.
    """


@command.command("aiconfigurator")
@click.argument("folder", type=click.Path(path_type=Path))
@_output_option
@click.option(
    "--runtime",
    help="Whose rows to take where there are several, for example 'vLLM' or 'vLLM 0.24.0'. "
    "Default: that of most rows.",
)
@unit_option
@json_option
def aiconfigurator(*, folder: Path, output: Path, runtime: str | None, unit: str, as_json: bool) -> None:
    """Latency tables of NVIDIA AIConfigurator: the FOLDER of one GPU with all below it, or one table."""
    _store(import_aiconfigurator(folder, unit=unit, runtime=runtime), output, None, as_json=as_json)


@command.command("vidur")
@click.argument("folder", type=click.Path(path_type=Path))
@_output_option
@click.option(
    "--device", help="A name from `hwsearch devices`, where no folder is named after a GPU (a100, h100, a40)."
)
@unit_option
@json_option
def vidur(*, folder: Path, output: Path, device: str | None, unit: str, as_json: bool) -> None:
    """Profiles of Vidur: a FOLDER with mlp.csv and attention.csv, such as its compute/a100, or one of the two."""
    spec = None if device is None else device_named(device)
    _store(import_vidur(folder, unit=unit, device=spec), output, spec, as_json=as_json)


@command.command("store")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_output_option
@json_option
def store(*, files: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Other stores of hwsearch: FILES of one device, runtime and dtype become one."""
    merged = merge_stores(files, output)
    _report(
        output,
        device_name=merged.device_name,
        runtime=merged.runtime,
        rows=merged.rows,
        measurements=merged.rows,
        added=merged.added,
        left_out={},
        merged={},
        as_json=as_json,
    )


def _store(imported: Imported, output: Path, device: DeviceSpec | None, *, as_json: bool) -> None:
    if device is None and device_reported_as(imported.device_name) is None:
        note(
            f"the ceilings of {imported.device_name} are not known: no row was judged by its speed or unit, and "
            "hwsearch fit needs them"
        )
    measurements = imported.measurements()
    added = _add(measurements, [] if device is None else [device], output)
    _report(
        output,
        device_name=imported.device_name,
        runtime=imported.runtime,
        rows=imported.rows,
        measurements=len(measurements),
        added=added,
        left_out=dict(imported.left_out),
        merged=dict(imported.merged),
        as_json=as_json,
    )


def _add(measurements: Sequence[Measurement], devices: Sequence[DeviceSpec], output: Path) -> int:
    with Store.open(output, create=True) as opened:
        for spec in devices:
            opened.add_device(spec)
        return opened.add(measurements)


def _report(
    output: Path,
    *,
    device_name: str,
    runtime: str,
    rows: int,
    measurements: int,
    added: int,
    left_out: dict[str, int],
    merged: dict[str, int],
    as_json: bool,
) -> None:
    if as_json:
        emit_json(
            {
                "store": str(output),
                "device_name": device_name,
                "runtime": runtime,
                "rows": rows,
                "measurements": measurements,
                "added": added,
                "left_out": left_out,
                "merged": merged,
            }
        )
        return
    to = console()
    to.print(f"{device_name}, {runtime}: {rows} rows read", markup=False)
    print_counts(left_out, merged, to=to)
    already = measurements - added
    to.print(
        f"{added} measurements added to {output}, replicates as samples of one"
        + (f"; {already} were there already" if already else ""),
        markup=False,
        soft_wrap=True,
    )
