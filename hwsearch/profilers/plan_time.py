"""How long a plan will take: what a point costs besides its operator, measured, and the operators as predicted.

A point's inputs are drawn, warmed up and sampled for a while at every visit, whatever the operator's latency; on top
of that come the fewest calls that the protocol makes. The former is measured here on the smallest operators of the
plan, by the protocol itself, into a store that is thrown away. Whole layers cost more to make than to run, so that
what they take is measured alone.
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
from hwsearch.profilers.rows import Subject
from hwsearch.profilers.run import measure_all, visits_of
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec
from hwsearch.searchspace.block import Block

__all__ = ["CALLS", "block_seconds", "overhead_seconds", "plan_seconds"]

CALLS = 12  # of an operator that is slow, per visit: warm-up and the fewest samples that settle a median
_TRIAL = 3  # operators, or blocks


def overhead_seconds(operators: Sequence[Operator], bench: Bench, *, spec: DeviceSpec, visits: int) -> float:
    """Seconds of a point whose operator takes no time: the mean over the smallest of these operators."""
    size = dtype_bytes(bench.dtype)
    smallest = sorted(
        operators, key=lambda each: float(KINDS[each.kind].bytes(columns(each.kind, [each.dims]), size)[0])
    )[:_TRIAL]
    return _trial_seconds(smallest, bench, spec=spec, visits=visits)


def block_seconds(blocks: Sequence[Block], bench: Bench, *, spec: DeviceSpec, visits: int) -> float:
    """Seconds for all visits to these blocks: as many times the mean of one to a small, a middling and a large one.

    That holds whatever the time goes into: drawing weights and caches, compiling kernels, sampling.
    """
    by_size = sorted(blocks, key=lambda each: each.copies * (each.weight_bytes + each.state_bytes))
    places = {(2 * part + 1) * len(by_size) // (2 * _TRIAL) for part in range(_TRIAL)}
    each = _trial_seconds([by_size[place] for place in places], bench, spec=spec, visits=1)
    return each * sum(visits_of(block, visits=visits) for block in blocks)


def _trial_seconds(subjects: Sequence[Subject], bench: Bench, *, spec: DeviceSpec, visits: int) -> float:
    """Seconds that one of these takes, by the protocol, into a store that is thrown away; 0 for none."""
    if not subjects:
        return 0.0
    operators = [each for each in subjects if isinstance(each, Operator)]
    blocks = [each for each in subjects if isinstance(each, Block)]
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "trial.db", create=True) as store:
        store.add_device(spec)
        started = time.monotonic()
        measure_all(store, bench, operators, blocks=blocks, visits=visits)
        return (time.monotonic() - started) / len(subjects)


def plan_seconds(latency_ms: NDArray[np.float64], *, overhead: float, visits: int) -> float:
    """Seconds for operators of these latencies (n,), each with the same overhead."""
    return len(latency_ms) * overhead + visits * CALLS * float(latency_ms.sum()) / 1e3
