"""Several stores into one, and a store as a table for other programs."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwsearch.errors import DataError, DependencyError, InputError, OutputError
from hwsearch.operators import KINDS
from hwsearch.profilers.rows import Row, sampled_content
from hwsearch.profilers.store import Store
from hwsearch.records import MARKS, DeviceSpec, Measurement

__all__ = ["DOUBTS", "Merged", "export_store", "merge_stores", "table_of"]

FAILED = "failed"
DOUBTS = (FAILED, *MARKS)  # why a row may be left out of a merged store

_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Merged:
    """rows: read from all files; left_out: of them, as asked for; added: new to the store."""

    device_name: str
    runtime: str
    rows: int
    left_out: int
    added: int


def merge_stores(files: Sequence[Path], output: Path, *, without: Collection[str] = ()) -> Merged:
    """Stores of one device, runtime and dtype become one. Of the same thing measured twice, one that ran is kept.

    without: of DOUBTS; rows that did not run, or that carry such a mark, are left out.
    Raises DataError where the stores are not of one device, runtime and dtype.
    """
    rows: list[Row] = []
    devices: list[DeviceSpec] = []
    for file in files:
        with Store.open(file) as opened:
            rows += [*opened.measurements(), *opened.blocks()]
            devices += opened.devices()
    setups = sorted({(row.environment.device_name, row.environment.runtime, row.dtype) for row in rows})
    if len(setups) != 1:
        listed = "; ".join(", ".join(setup) for setup in setups) or "no measurement at all"
        raise DataError(
            f"the stores hold {listed}: one store holds one device, runtime and dtype, keep the others apart"
        )
    with Store.open(output, create=True) as opened:
        for spec in devices:
            opened.add_device(spec)
        kept = [row for row in rows if not _doubts(row) & set(without)]
        added = opened.add(sorted(kept, key=lambda row: row.status != "ok"))
    ((device_name, runtime, _),) = setups
    return Merged(
        device_name=device_name, runtime=runtime, rows=len(rows), left_out=len(rows) - len(kept), added=added
    )


def _doubts(row: Row) -> set[str]:
    marks = set() if row.conditions is None else set(row.conditions.marks)
    return marks | ({FAILED} if row.status != "ok" else set())


def table_of(store: Store) -> list[dict[str, Any]]:
    """One flat record for each row: what was measured, where, the figures, and the raw samples as JSON text."""
    rows: list[Row] = [*store.measurements(), *store.blocks()]
    return [_record(row) for row in rows]


def export_store(file: Path, output: Path) -> int:
    """Write a store as CSV or parquet, by the ending of `output`; the number of rows.

    Raises InputError for another ending, DependencyError for parquet without pyarrow, OutputError where it cannot be
    written.
    """
    if output.suffix not in _SUFFIXES:
        raise InputError(f"{output}: the ending says how to write it, give one of {', '.join(_SUFFIXES)}")
    if output.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise DependencyError("pyarrow", extra="parquet", purpose="writing parquet")
    with Store.open(file) as store:
        records = table_of(store)
    if not records:
        raise DataError(f"{file} holds no measurement: nothing to export")
    try:
        if output.suffix == ".csv":
            _write_csv(records, output)
        else:
            _write_parquet(records, output)
    except OSError as error:
        raise OutputError(f"cannot write {output} ({error.strerror or error})") from error
    return len(records)


def _record(row: Row) -> dict[str, Any]:
    content = sampled_content(row)
    conditions = content.pop("conditions") or {}
    ok = row.status == "ok"
    if isinstance(row, Measurement):
        kind, dims = (
            row.operator.kind,
            dict(zip(KINDS[row.operator.kind].dims, row.operator.dims, strict=True)),
        )
    else:
        kind, dims = f"block:{row.block.part}", row.block.model_dump(mode="json", exclude_none=True)
    return {
        "kind": kind,
        "dims": json.dumps(dims, separators=(",", ":")),
        "device_name": row.environment.device_name,
        "device_uuid": row.environment.device_uuid,
        "driver": row.environment.driver,
        "runtime": row.environment.runtime,
        "versions": json.dumps(dict(row.environment.versions), sort_keys=True),
        "median_ms": row.median_ms if ok else None,
        "p20_ms": row.p20_ms if ok else None,
        "p80_ms": row.p80_ms if ok else None,
        **{name: json.dumps(value) if isinstance(value, list) else value for name, value in content.items()},
        "visits": conditions.get("visits"),
        "reference_ms": conditions.get("reference_ms"),
        "marks": ",".join(conditions.get("marks", ())),
        "conditions": json.dumps(conditions, sort_keys=True),
    }


def _write_csv(records: Sequence[dict[str, Any]], output: Path) -> None:
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _write_parquet(records: list[dict[str, Any]], output: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(records), output)
