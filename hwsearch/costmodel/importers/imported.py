"""What every importer gives: rows of one device and runtime, checked, with what was left out and merged counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.devices import device_reported_as
from hwsearch.costmodel.importers.reading import milliseconds
from hwsearch.costmodel.quality import check_unit, disagreeing, refuse_too_many, repeated, suspicious
from hwsearch.costmodel.tables import Table, merge_replicates
from hwsearch.errors import DataError
from hwsearch.operators import Operator, dtype_bytes
from hwsearch.records import DeviceSpec, Environment, Measurement

__all__ = ["Imported", "Part", "checked"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of one file that belong to one kind of operator."""

    file: str
    kind: str
    dims: NDArray[np.int64]
    latency_ms: NDArray[np.float64]
    kernel: NDArray[np.str_]

    def take(self, rows: NDArray[np.bool_]) -> Part:
        """The rows where a mask (n,) holds."""
        return replace(self, dims=self.dims[rows], latency_ms=self.latency_ms[rows], kernel=self.kernel[rows])


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was read, replicates merged in `tables`.

    left_out: reason -> rows that are not used, whether they are wrong or not modelled. merged: how rows repeat an
    operator -> rows that have become part of another.
    """

    source: str
    device_name: str
    runtime: str
    dtype: str
    rows: int
    left_out: Mapping[str, int]
    merged: Mapping[str, int]
    parts: tuple[Part, ...] = field(repr=False)

    @property
    def tables(self) -> dict[str, Table]:
        tables = {}
        for kind in sorted({part.kind for part in self.parts}):
            dims, latency = _together(self.parts, kind)
            unique, median, _ = merge_replicates(dims, latency)
            tables[kind] = Table(kind, unique, median)
        return tables

    def measurements(self) -> list[Measurement]:
        """One measurement per operator and kernel; its samples are the replicates."""
        environment = Environment(device_name=self.device_name, runtime=self.runtime)
        found = []
        for part in self.parts:
            for kernel in np.unique(part.kernel):
                own = part.kernel == kernel
                unique, _, group = merge_replicates(part.dims[own], part.latency_ms[own])
                samples: list[list[float]] = [[] for _ in unique]
                for index, latency in zip(group.tolist(), part.latency_ms[own].tolist(), strict=True):
                    samples[index].append(latency)
                found += [
                    Measurement(
                        operator=Operator(part.kind, tuple(dims)),
                        dtype=self.dtype,
                        environment=environment,
                        samples_ms=tuple(values),
                        kernel=str(kernel),
                    )
                    for dims, values in zip(unique.tolist(), samples, strict=True)
                ]
        return found


def _together(parts: Sequence[Part], kind: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    own = [part for part in parts if part.kind == kind]
    return np.concatenate([part.dims for part in own]), np.concatenate([part.latency_ms for part in own])


def checked(
    parts: Sequence[Part],
    *,
    place: str,
    unit: str,
    device: DeviceSpec | None,
    source: str,
    device_name: str,
    runtime: str,
    dtype: str,
    rows: int,
    unfit: Mapping[str, int],
    bad: Mapping[str, int],
) -> Imported:
    """Put what was read into milliseconds and check it: unit, speed against the roofline, repeats that disagree.

    `place` names what was read in messages. `device`: the ceilings to judge by; the built-in device that reports
    itself as `device_name` where None. Without any, neither unit nor speed is judged.

    Raises DataError where the unit is wrong, where more than a third of the rows are bad, or where none is left.
    """
    scale = milliseconds(unit)
    spec = device or device_reported_as(device_name)
    unfit, bad = dict(unfit), dict(bad)
    kept = [replace(part, latency_ms=part.latency_ms * scale) for part in parts]
    if spec is not None:
        size = dtype_bytes(dtype)
        for part in kept:
            check_unit(
                part.kind, part.dims, part.latency_ms, device=spec, size=size, place=part.file, unit=unit
            )
        for i, part in enumerate(kept):
            fine = np.ones(len(part.latency_ms), bool)
            wrong = suspicious(part.kind, part.dims, part.latency_ms, device=spec, size=size)
            for reason, where in wrong.items():
                _count(bad, f"{part.file}: {reason}", int(where.sum()))
                fine &= ~where
            kept[i] = part.take(fine)
    merged: dict[str, int] = {}
    for kind in sorted({part.kind for part in kept}):
        dims, latency = _together(kept, kind)
        at_odds = disagreeing(dims, latency)
        _count(bad, f"{kind}: measured more than once, more than 50% apart", int(at_odds.sum()))
        start = 0
        for i, part in enumerate(kept):
            if part.kind == kind:
                kept[i] = part.take(~at_odds[start : start + len(part.latency_ms)])
                start += len(part.latency_ms)
        for how, count in repeated(dims[~at_odds], latency[~at_odds]).items():
            _count(merged, how, count)
    refuse_too_many(bad, rows - sum(unfit.values()), place=place)
    left_out = unfit | bad
    kept = [part for part in kept if len(part.latency_ms)]
    if not kept:
        counts = "; ".join(f"{count} rows, {reason}" for reason, count in left_out.items())
        raise DataError(f"{place}: no usable row; left out: {counts or 'nothing, the tables are empty'}")
    return Imported(
        source=source,
        device_name=device_name,
        runtime=runtime,
        dtype=dtype,
        rows=rows,
        left_out=left_out,
        merged=merged,
        parts=tuple(kept),
    )


def _count(counts: dict[str, int], reason: str, count: int) -> None:
    if count:
        counts[reason] = counts.get(reason, 0) + count
