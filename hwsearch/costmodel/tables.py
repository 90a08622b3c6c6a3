"""Columnar measurements of one kind of operator: what a cost model is fitted on and judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import DataError
from hwsearch.operators import KINDS, Columns, columns
from hwsearch.records import Measurement

__all__ = [
    "Table",
    "Tables",
    "merge_replicates",
    "split_table",
    "tables_from_measurements",
]


@dataclass(frozen=True)
class Table:
    """n measured operators of one kind, each once: dims (n, d) in the kind's order, latency_ms (n,)."""

    kind: str
    dims: NDArray[np.int64]
    latency_ms: NDArray[np.float64]

    def __post_init__(self) -> None:
        expected = (len(self.latency_ms), len(KINDS[self.kind].dims))
        if self.dims.shape != expected:
            raise DataError(f"table {self.kind}: dims must have shape {expected}, got {self.dims.shape}")
        if not (np.isfinite(self.latency_ms).all() and (self.latency_ms > 0).all()):
            raise DataError(f"table {self.kind}: every latency must be a positive number of milliseconds")

    def __len__(self) -> int:
        return len(self.latency_ms)

    @property
    def columns(self) -> Columns:
        return columns(self.kind, self.dims)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Table:
        """The rows at these indices, or where this mask (n,) holds."""
        return Table(self.kind, self.dims[rows], self.latency_ms[rows])


Tables = Mapping[str, Table]


def merge_replicates(
    dims: NDArray[np.int64], latency_ms: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Unique rows of dims (u, d), the median latency of each (u,), and the group (n,) every row went to."""
    unique, group = np.unique(dims, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.lexsort((latency_ms, group))
    ordered = latency_ms[order]
    size = np.bincount(group, minlength=len(unique))
    start = np.cumsum(size) - size
    median = (ordered[start + (size - 1) // 2] + ordered[start + size // 2]) / 2
    return unique, median, group


def tables_from_measurements(measurements: Iterable[Measurement]) -> dict[str, Table]:
    """Tables of all successful measurements, replicates merged by their median.

    Rows whose status is not "ok" carry no latency and are skipped. Raises DataError where the measurements come
    from more than one device, runtime or dtype: a cost model describes one.
    """
    rows: dict[str, list[tuple[tuple[int, ...], float]]] = {}
    seen: set[tuple[str, str, str]] = set()
    for measurement in measurements:
        if measurement.status != "ok":
            continue
        environment = measurement.environment
        seen.add((environment.device_name, environment.runtime, measurement.dtype))
        rows.setdefault(measurement.operator.kind, []).append(
            (measurement.operator.dims, measurement.median_ms)
        )
    if len(seen) > 1:
        listed = "; ".join(", ".join(identity) for identity in sorted(seen))
        raise DataError(f"measurements of {len(seen)} set-ups in one fit: {listed}. Fit one model for each.")
    tables = {}
    for kind, entries in rows.items():
        dims = np.array([entry[0] for entry in entries], dtype=np.int64)
        unique, median, _ = merge_replicates(dims, np.array([entry[1] for entry in entries]))
        tables[kind] = Table(kind, unique, median)
    return tables


def split_table(table: Table, *, held_out: float, seed: int) -> tuple[Table, Table]:
    """A random split into rows to fit on and the fraction `held_out` to judge on."""
    order = np.random.default_rng(seed).permutation(len(table))
    cut = round(held_out * len(table))
    return table.take(np.sort(order[cut:])), table.take(np.sort(order[:cut]))
