"""How long a plan will take: what a point costs besides its operator, measured, and the operators as predicted.

A point's inputs are drawn, warmed up and sampled for a while at every visit, whatever the operator's latency; on top
of that come the fewest calls that the protocol makes. The former is measured here on the smallest operators of the
plan, by the protocol itself, into a store that is thrown away.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.operators import KINDS, Operator, columns, dtype_bytes
from hwsearch.profilers.bench import Bench
from hwsearch.profilers.run import measure_all
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec

__all__ = ["CALLS", "overhead_seconds", "plan_seconds"]

CALLS = 12  # of an operator that is slow, per visit: warm-up and the fewest samples that settle a median
_TRIAL = 3  # operators


def overhead_seconds(operators: Sequence[Operator], bench: Bench, *, spec: DeviceSpec, visits: int) -> float:
    """Seconds of a point whose operator takes no time: the mean over the smallest of these operators."""
    size = dtype_bytes(bench.dtype)
    smallest = sorted(
        operators, key=lambda each: float(KINDS[each.kind].bytes(columns(each.kind, [each.dims]), size)[0])
    )[:_TRIAL]
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "trial.db", create=True) as store:
        store.add_device(spec)
        started = time.monotonic()
        measure_all(store, bench, smallest, visits=visits)
        return (time.monotonic() - started) / len(smallest)


def plan_seconds(latency_ms: NDArray[np.float64], *, overhead: float, visits: int) -> float:
    """Seconds for operators of these latencies (n,), each with the same overhead."""
    return len(latency_ms) * overhead + visits * CALLS * float(latency_ms.sum()) / 1e3
