"""What changed between two stores: the same things measured twice, side by side.

Two profiles of one machine differ by the speed it happened to have, one factor that all rows share, and by what is left
beside it. Differences are relative to the mean of the two figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwsearch.errors import DataError
from hwsearch.operators import Operator
from hwsearch.profilers.rows import Row, Subject, subject_of
from hwsearch.profilers.store import Store
from hwsearch.records import Execution

__all__ = ["Comparison", "Difference", "Spread", "compare_stores"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Medians of one thing in both stores, in milliseconds."""

    subject: Subject
    first_ms: float
    second_ms: float

    @property
    def percent(self) -> float:
        """Of their mean; positive where the second is slower."""
        return 200 * (self.second_ms - self.first_ms) / (self.first_ms + self.second_ms)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far apart rows are, in percent.

    median, p95, largest: of the absolute differences. shift: the median difference with its sign, what all rows share;
    rest: the median absolute difference from it.
    """

    points: int
    median: float
    p95: float
    largest: float
    shift: float
    rest: float

    @classmethod
    def of(cls, differences: Sequence[Difference]) -> Spread:
        signed = np.array([difference.percent for difference in differences])
        apart, shift = np.abs(signed), float(np.median(signed))
        return cls(
            points=len(signed),
            median=float(np.median(apart)),
            p95=float(np.percentile(apart, 95)),
            largest=float(apart.max()),
            shift=shift,
            rest=float(np.median(np.abs(signed - shift))),
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """first, second: device and runtime. only_first, only_second: rows that ran and have no partner.

    reference_percent: how much slower the drift reference was in the second; None where a store has none.
    """

    first: str
    second: str
    differences: tuple[Difference, ...]
    only_first: int
    only_second: int
    reference_percent: float | None

    @property
    def all(self) -> Spread:
        return Spread.of(self.differences)

    def by_kind(self) -> dict[str, Spread]:
        """Operators by kind, whole layers by part."""
        kinds = sorted({_kind(difference.subject) for difference in self.differences})
        return {k: Spread.of([d for d in self.differences if _kind(d.subject) == k]) for k in kinds}

    def farthest(self, count: int) -> list[Difference]:
        return sorted(self.differences, key=lambda difference: -abs(difference.percent))[:count]


def compare_stores(first: Path, second: Path) -> Comparison:
    """Rows of the same subject, dtype, backend and execution; devices and runtimes may differ.

    Raises DataError where a store holds several devices or runtimes, or the two have nothing in common.
    """
    (one, here), (two, there) = (_rows(path) for path in (first, second))
    common = sorted(one.keys() & two.keys(), key=str)
    if not common:
        raise DataError(f"{first} and {second} hold nothing that ran in both: nothing to compare")
    slower = [ref for ref in (_reference_ms(rows[key] for key in common) for rows in (one, two)) if ref]
    return Comparison(
        first=here,
        second=there,
        differences=tuple(
            Difference(subject=key[0], first_ms=one[key].median_ms, second_ms=two[key].median_ms)
            for key in common
        ),
        only_first=len(one) - len(common),
        only_second=len(two) - len(common),
        reference_percent=100 * (slower[1] / slower[0] - 1) if len(slower) == 2 else None,
    )


_Key = tuple[Subject, str, str, Execution]


def _rows(path: Path) -> tuple[dict[_Key, Row], str]:
    """Rows that ran, and the device and runtime of all."""
    with Store.open(path) as store:
        rows: list[Row] = [*store.measurements(), *store.blocks()]
    places = sorted({f"{row.environment.device_name}, {row.environment.runtime}" for row in rows})
    if len(places) != 1:
        listed = "; ".join(places) or "no measurement at all"
        raise DataError(f"{path} holds {listed}: compare stores of one device and runtime each")
    found = {
        (subject_of(row), row.dtype, row.kernel_requested, row.execution): row
        for row in rows
        if row.status == "ok"
    }
    return found, places[0]


def _reference_ms(rows: Iterable[Row]) -> float | None:
    seen = [row.conditions.reference_ms for row in rows if row.conditions and row.conditions.reference_ms]
    return statistics.median(seen) if seen else None


def _kind(subject: Subject) -> str:
    return subject.kind if isinstance(subject, Operator) else f"block: {subject.part}"
