"""Profiling by a plan: which operators of a demand to measure next, and when to stop.

grid measures all of them, in an order that the seed decides; random lets the kinds take turns and draws within each;
active asks the cost model in batches which operators say most about the demand (costmodel/design.py), and fits it
again between batches. There is no state beside the rows that are measured: a run that was killed goes on from them,
and the same rows and seed give the same next batch.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hwsearch.costmodel.crossed import crossed_error, represented
from hwsearch.costmodel.design import FIRST, choose
from hwsearch.costmodel.family import Family
from hwsearch.costmodel.model import LEAST_ROWS, CostModel
from hwsearch.costmodel.tables import Table, Tables, tables_from_measurements
from hwsearch.costmodel.transfer import transfer_family
from hwsearch.costmodel.transferred import Source
from hwsearch.errors import InputError, unknown_name
from hwsearch.operators import KINDS, Operator, dtype_bytes
from hwsearch.pipeline.demand import Demand
from hwsearch.profilers.plan import plan
from hwsearch.records import DeviceSpec, Measurement

__all__ = [
    "PLANS",
    "CurvePoint",
    "Outcome",
    "Plan",
    "Stop",
    "batch_size",
    "check_stop",
    "next_batch",
    "run_plan",
]

Plan = Literal["grid", "random", "active"]
PLANS: tuple[Plan, ...] = ("grid", "random", "active")
_BATCH, _GROWTH = 24, 0.2  # a batch is that many operators, or that share of those measured
_PROBES = 4  # operators that tell a timed run its pace


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a plan ends, whichever comes first; None does not count.

    points: operators of the demand that are in the store. error: expected absolute error relative to the latency,
    cross-validated. seconds: of this call.
    """

    points: int | None = None
    error: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What is known after `points` operators: `error` over the demand, None while a kind has too few rows, and by
    kind; relative to the latency."""

    points: int
    error: float | None
    by_kind: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Why a plan ended, in words, and its errors from batch to batch.

    scarce: kinds of which the demand holds fewer operators than a fit takes.
    """

    reason: str
    curve: tuple[CurvePoint, ...]
    scarce: tuple[str, ...]


def run_plan(
    name: Plan,
    demand: Demand,
    *,
    read: Callable[[], Sequence[Measurement]],
    measure: Callable[[Sequence[Operator]], None],
    device: DeviceSpec,
    dtype: str,
    seed: int,
    stop: Stop,
    source: CostModel | None = None,
    on_curve: Callable[[CurvePoint], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Measure a demand by a plan until a rule of `stop` is met or every operator is measured.

    read: all rows of this device, runtime and dtype. measure: puts operators where `read` finds them, as rows that
    may say that they could not run. source: the cost model of another device to start from. Raises InputError for a
    plan that would not end and for rules that cannot be met.
    """
    check_stop(name, stop)
    size, started, here = dtype_bytes(dtype), clock(), 0
    order = _order(name, demand, seed)
    judge = _Judge(device=device, size=size, seed=seed, source=source)
    curve: list[CurvePoint] = []
    while True:
        rows = read()
        tables = tables_from_measurements(rows)
        done = {row.operator for row in rows}
        left = [each for each in order if each not in done]
        points = len(order) - len(left)
        possible = demand.without({row.operator for row in rows if row.status != "ok"})
        if name == "active" or stop.error is not None:
            curve.append(judge.point(points, tables, possible))
            if on_curve is not None:
                on_curve(curve[-1])
        spent = clock() - started
        reason = _met(stop, points, curve[-1].error if curve else None, spent)
        if reason or not left:
            return Outcome(
                reason=reason or "every operator is measured", curve=tuple(curve), scarce=_scarce(demand)
            )
        count = batch_size(points) if curve or stop.seconds else len(left)
        if name == "active":
            count = max(count, _missing(tables, possible))
        if stop.points is not None:
            count = min(count, stop.points - points)
        if stop.seconds is not None:
            # Before anything has been measured nobody knows the pace: a few operators tell it.
            affordable = int((stop.seconds - spent) * here / max(spent, 1e-9)) if here else _PROBES
            count = min(count, max(1, affordable))
        if name == "active":
            batch = next_batch(
                tables, possible, count=count, device=device, size=size, seed=seed, source=source
            )
        else:
            batch = left[:count]
        measure(batch)
        here += len(batch)


def batch_size(points: int) -> int:
    """How many operators to measure before the model is fitted again, after so many."""
    return max(_BATCH, int(_GROWTH * points))


def next_batch(
    tables: Tables,
    demand: Demand,
    *,
    count: int,
    device: DeviceSpec,
    size: int,
    seed: int,
    source: CostModel | None = None,
) -> list[Operator]:
    """At most `count` operators of the demand to measure next, none of those in `tables`, the most telling first.

    Every kind is first given the few rows that a fit takes, the kinds taking turns. From there on the next operator
    is the one whose measurement lowers the expected error of the whole demand most, whatever its kind. Depends on
    nothing but the arguments.
    """
    ranked: list[tuple[float, float, Operator]] = []
    for kind, (pool, share) in _pools(demand).items():
        table = tables.get(kind, _empty(kind))
        missing = FIRST - len(table)
        with threadpool_limits(limits=1):  # the same sums, and so the same choice, on any number of cores
            picks = choose(
                table,
                pool,
                share,
                count=min(count, missing) if missing > 0 else count,
                device=device,
                size=size,
                seed=seed,
                source=_lender(source, kind),
            )
        for rank, pick in enumerate(picks):
            turn = rank if missing > 0 else FIRST
            ranked.append((turn, -pick.gain, Operator(kind, tuple(pool[pick.row].tolist()))))
    return [each for _, _, each in sorted(ranked)[:count]]


class _Judge:
    """Cross-validated errors; those of kinds without new rows are remembered."""

    def __init__(self, *, device: DeviceSpec, size: int, seed: int, source: CostModel | None) -> None:
        self._device, self._size, self._seed, self._source = device, size, seed, source
        self._known: dict[tuple[str, int], float] = {}

    def point(self, points: int, tables: Tables, demand: Demand) -> CurvePoint:
        """The errors after `points` operators of the demand."""
        by_kind: dict[str, float] = {}
        total = asked = 0.0
        known = True
        for kind, (pool, share) in _pools(demand).items():
            if len(pool) < LEAST_ROWS:
                continue
            asked += float(share.sum())
            table = tables.get(kind, _empty(kind))
            if len(table) < LEAST_ROWS:
                known = False
                continue
            by_kind[kind] = self._error(table, pool, share)
            total += float(share.sum()) * by_kind[kind]
        return CurvePoint(points=points, error=total / asked if known and asked else None, by_kind=by_kind)

    def _error(self, table: Table, pool: NDArray[np.int64], share: NDArray[np.float64]) -> float:
        place = (table.kind, len(table))
        if place not in self._known:
            lender = _lender(self._source, table.kind)
            with threadpool_limits(limits=1):
                if lender is None:
                    self._known[place] = crossed_error(
                        table, pool, share, device=self._device, size=self._size, seed=self._seed
                    )
                else:
                    _, gate = transfer_family(
                        table, device=self._device, size=self._size, source=lender, seed=self._seed
                    )
                    weight = represented(
                        table, pool, share, device=self._device, size=self._size, seed=self._seed
                    )
                    self._known[place] = float(gate.by_row @ weight)
        return self._known[place]


def _pools(demand: Demand) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """By kind, dimensions (n, d) and shares (n,) of a demand."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, each in enumerate(demand.operators):
        rows[each.kind].append(row)
    return {
        kind: (np.array([demand.operators[row].dims for row in own], dtype=np.int64), demand.share[own])
        for kind, own in sorted(rows.items())
    }


def _scarce(demand: Demand) -> tuple[str, ...]:
    return tuple(kind for kind, (pool, _) in _pools(demand).items() if len(pool) < LEAST_ROWS)


def _missing(tables: Tables, demand: Demand) -> int:
    """Rows that are missing before every kind has the few that a fit takes."""
    return sum(
        max(0, min(FIRST, len(pool)) - len(tables.get(kind, ())))
        for kind, (pool, _) in _pools(demand).items()
    )


def _order(name: Plan, demand: Demand, seed: int) -> list[Operator]:
    """All operators of a demand in the order of grid or random; for active, only what there is."""
    shuffled = plan(demand.operators, seed=seed)
    if name != "random":
        return list(shuffled)
    turn: Counter[str] = Counter()
    turns = []
    for each in shuffled:
        turns.append((turn[each.kind], each))
        turn[each.kind] += 1
    return [each for _, each in sorted(turns, key=lambda entry: entry[0])]


def _empty(kind: str) -> Table:
    return Table(kind, np.empty((0, len(KINDS[kind].dims)), np.int64), np.empty(0))


def _lender(source: CostModel | None, kind: str) -> Source | None:
    """The source's measured family of a kind."""
    family = None if source is None else source.families.get(kind)
    if source is None or not isinstance(family, Family):
        return None
    return Source(family=family, device=source.device, runtime=source.runtime)


def check_stop(name: Plan, stop: Stop) -> None:
    """InputError for a plan that does not exist or would not end, and for rules that nothing can meet."""
    if name not in PLANS:
        raise unknown_name("plan", name, PLANS)
    if name != "grid" and stop == Stop():
        raise InputError(f"--plan {name} needs to know when to stop: give --points, --target-error or --time")
    for what, value in (("points", stop.points), ("target error", stop.error), ("time", stop.seconds)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{what}: must be above 0, got {value:g}")


def _met(stop: Stop, points: int, error: float | None, spent: float) -> str:
    """Which rule is met, in words; empty where none is."""
    if stop.error is not None and error is not None and error <= stop.error:
        return f"cross-validated error {100 * error:.1f}% is at most {100 * stop.error:g}%"
    if stop.points is not None and points >= stop.points:
        return f"{points} points are measured"
    if stop.seconds is not None and spent >= stop.seconds:
        return f"{spent:.0f} s have passed"
    return ""
