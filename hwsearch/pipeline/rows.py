"""Measurements of the profiler's stores, or of another tool's tables, as the rows that a cost model is fitted to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hwsearch.costmodel.devices import completed, device_reported_as
from hwsearch.costmodel.importers import import_tables
from hwsearch.costmodel.model import LEAST_ROWS
from hwsearch.costmodel.quality import refuse_too_many, suspicious
from hwsearch.costmodel.tables import Table, tables_from_measurements
from hwsearch.errors import DataError, InputError
from hwsearch.operators import dtype_bytes
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec, Measurement

__all__ = ["Rows", "load_rows"]

_SLOW = "measured while the machine ran at less than half of its usual speed"
_SQLITE_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Measurements read from a file or folder, of one device, runtime and dtype.

    left_out: reason -> rows that are not used. merged: how rows repeat an operator -> rows that merging took away.
    """

    tables: Mapping[str, Table]
    device: DeviceSpec
    runtime: str
    dtype: str
    source: str
    left_out: Mapping[str, int]
    merged: Mapping[str, int]

    def without_small(self, least: int, *, lent: Collection[str] = ()) -> Rows:
        """The kinds of operator with at least `least` rows; the others are left out, and counted there.

        lent: kinds that a source model knows: LEAST_ROWS are enough, and with fewer they are carried over from it.
        Raises DataError where no kind has as many.
        """
        enough = {kind: LEAST_ROWS if kind in lent else least for kind in self.tables}
        small = {kind: len(table) for kind, table in self.tables.items() if len(table) < enough[kind]}
        if len(small) == len(self.tables):
            kind = max(small, key=lambda name: small[name])
            raise DataError(
                f"{self.source}: {kind} has {small[kind]} measured operators and no other kind has more; to fit and to "
                f"judge takes at least {enough[kind]} of a kind: measure more (hwsearch profile --points)"
            )
        reasons = {
            f"{kind}: fewer than {enough[kind]} operators, so it is not fitted and its predictions are "
            + ("the source's" if kind in lent else "rooflines"): rows
            for kind, rows in small.items()
        }
        return replace(
            self,
            tables={kind: table for kind, table in self.tables.items() if kind not in small},
            left_out={**self.left_out, **reasons},
        )


def load_rows(path: Path, *, unit: str = "ms", ceilings: DeviceSpec | None = None) -> Rows:
    """Measurements of a store that `hwsearch profile` or `hwsearch import` wrote, or another tool's tables.

    A folder is read whole. `unit` is that of another tool's latencies. `ceilings` stand for those of the rows' device,
    where it is not a built-in one or they are better known. Raises DataError for anything else, where the rows come
    from two devices, and for bad data: rows that cannot be right are left out and counted, more than a third of them,
    or a wrong unit, are refused.
    """
    if not path.exists():
        raise DataError(
            f"{path} does not exist: give a measurement store, or tables of AIConfigurator or Vidur, a file or a folder"
        )
    stores = sorted(path.glob("*.db")) if path.is_dir() else [path] if _is_sqlite(path) else []
    if stores and unit != "ms":
        raise InputError(f"{path} is a store, whose latencies are in ms: leave --unit out")
    return _load_stores(stores, path, ceilings) if stores else _load_foreign(path, unit, ceilings)


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC or path.suffix == ".db"
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _load_stores(paths: Iterable[Path], source: Path, ceilings: DeviceSpec | None) -> Rows:
    measurements: list[Measurement] = []
    devices: dict[str, DeviceSpec] = {}
    for path in paths:
        with Store.open(path) as store:
            measurements += store.measurements()
            devices |= {spec.device_name: spec for spec in store.devices()}
    left_out: dict[str, int] = {}
    bad: dict[str, int] = {}
    usable = []
    slow = _slow(measurements)
    for measurement in measurements:
        if measurement.status != "ok":
            reason = f"{measurement.status}: {measurement.reason}"
            left_out[reason] = left_out.get(reason, 0) + 1
        elif slow(measurement):
            left_out[_SLOW] = left_out.get(_SLOW, 0) + 1
        elif not measurement.median_ms > 0:
            bad["latency is not positive"] = bad.get("latency is not positive", 0) + 1
        else:
            usable.append(measurement)
    tables = tables_from_measurements(usable)
    if not usable:
        raise DataError(
            f"{source} holds no successful measurement: profile first (hwsearch profile -o {source})"
        )
    first = usable[0]
    name = first.environment.device_name
    stored = devices.get(name)
    if ceilings is not None and stored is not None:
        ceilings = replace(ceilings, kind=stored.kind)
    device = _device(name, source, ceilings or stored)
    merged = _merged(len(usable), tables)
    for kind, table in tables.items():
        wrong = suspicious(kind, table.dims, table.latency_ms, device=device, size=dtype_bytes(first.dtype))
        for reason, where in wrong.items():
            if where.any():
                bad[f"{kind}: {reason}"] = int(where.sum())
        tables[kind] = table.take(~np.any([np.zeros(len(table), bool), *wrong.values()], axis=0))
    refuse_too_many(bad, len(measurements) - sum(left_out.values()), place=str(source))
    return Rows(
        tables={kind: table for kind, table in tables.items() if len(table)},
        device=completed(device),
        runtime=first.environment.runtime,
        dtype=first.dtype,
        source=f"measured by hwsearch on {name}, {first.environment.runtime}",
        left_out=left_out | bad,
        merged=merged,
    )


def _reference(measurement: Measurement) -> float | None:
    return None if measurement.conditions is None else measurement.conditions.reference_ms


def _slow(measurements: Sequence[Measurement]) -> Callable[[Measurement], bool]:
    """Whether a measurement's drift reference took more than twice as long as it usually did."""
    references = [at for m in measurements if (at := _reference(m)) is not None]
    limit = 2 * float(np.median(references)) if references else np.inf

    def slow(measurement: Measurement) -> bool:
        at = _reference(measurement)
        return at is not None and at > limit

    return slow


def _merged(rows: int, tables: Mapping[str, Table]) -> dict[str, int]:
    """What a store repeats: an operator measured by several kernels, or under several keys."""
    repeats = rows - sum(len(table) for table in tables.values())
    return {"repeats, merged by their median": repeats} if repeats else {}


def _device(name: str, source: Path, ceilings: DeviceSpec | None) -> DeviceSpec:
    """Ceilings of the device that reports itself as `name`. DataError where nobody states them."""
    if ceilings is not None:
        return replace(ceilings, device_name=name)
    device = device_reported_as(name)
    if device is None:
        raise DataError(
            f"{source}: the ceilings of {name!r} are not known; state them in a device file (fit --device-file)"
        )
    return device


def _load_foreign(path: Path, unit: str, ceilings: DeviceSpec | None) -> Rows:
    imported = import_tables(path, unit=unit, device=ceilings)
    return Rows(
        tables=imported.tables,
        device=_device(imported.device_name, path, ceilings),
        runtime=imported.runtime,
        dtype=imported.dtype,
        source=imported.source,
        left_out=imported.left_out,
        merged=imported.merged,
    )
