"""Profiling: measure operators and blocks into a store, going on where an earlier run stopped.

Every subject is visited several times, each round through all of them in another random order: a machine that drifts,
and memory that happens to lie well or badly, then show as disagreeing visits instead of as a wrong figure. Where visits
disagree by more than a few percent there are more of them. Mixes of layers are visited once, some in every round: what
they are measured for is how they scatter. Each visit is stored before the next one begins, and what the store already
holds is not measured again: a run that was interrupted or killed loses the visit it was at.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hwsearch.kernels import require_torch
from hwsearch.operators import Operator
from hwsearch.profilers.bench import Bench, BenchSetup, LocalBench
from hwsearch.profilers.environment import others_seconds
from hwsearch.profilers.lock import profiling
from hwsearch.profilers.plan import plan
from hwsearch.profilers.rows import Row, Subject, revisited
from hwsearch.profilers.store import Store
from hwsearch.profilers.timing import TimingRule
from hwsearch.profilers.worker import Worker
from hwsearch.records import Execution, Measurement
from hwsearch.searchspace.block import Block, BlockMeasurement

__all__ = ["Progress", "Summary", "contention", "measure_all", "open_bench", "profile", "visits_of"]

_SPARE_CORES = 0.15  # what an idle system does on the side
_DISAGREE = 0.06  # of the median: visits farther apart than this call for another one
_MORE_VISITS = 2


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`done` of `total` visits are in the store, `measurement` is the row of the latest."""

    done: int
    total: int
    measurement: Row


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run did: subjects that the store already held, that were measured, that could not run.

    `warning` is a sentence for the user where other processes competed for the cores, else empty.
    """

    skipped: int
    measured: int
    not_ok: int
    warning: str = ""


def open_bench(setup: BenchSetup, *, timeout_s: float | None) -> Bench:
    """What measures: a process of its own that is killed and replaced after `timeout_s`, or None: this process."""
    require_torch(purpose="profiling")
    return LocalBench(setup) if timeout_s is None else Worker(setup, timeout_s=timeout_s)


def profile(
    store: Store,
    operators: Iterable[Operator],
    *,
    blocks: Iterable[Block] = (),
    device: str = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    rule: TimingRule | None = None,
    visits: int = 1,
    backend: str = "torch",
    execution: Execution = "eager",
    energy: bool = False,
    timeout_s: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Measure `operators` and `blocks` on `device` and add them to `store`, in orders that `seed` decides.

    dtype: float32 on a CPU and bfloat16 on CUDA where None. timeout_s: see open_bench. The device's ceilings are
    measured first unless the store has them. A subject that cannot run is stored with its status and reason, and is not
    tried again.
    Raises DependencyError without torch, InputError for a device or dtype that cannot be used, OutputError where
    the store cannot be written or another process profiles into it, DataError where a failed operator has broken
    the device.
    """
    setup = BenchSetup(
        device=device,
        dtype=dtype,
        seed=seed,
        rule=rule or TimingRule(),
        backend=backend,
        execution=execution,
        energy=energy,
    )
    with profiling(store.path), open_bench(setup, timeout_s=timeout_s) as bench:
        return measure_all(
            store, bench, operators, blocks=blocks, seed=seed, visits=visits, on_progress=on_progress
        )


def measure_all(
    store: Store,
    bench: Bench,
    operators: Iterable[Operator],
    *,
    blocks: Iterable[Block] = (),
    seed: int = 0,
    visits: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Measure what `store` does not hold yet on an open bench; as `profile`, for callers that come back with more."""
    if bench.environment.device_name not in {spec.device_name for spec in store.devices()}:
        store.add_device(bench.probe())
    subjects: list[Subject] = [*plan(operators, seed=seed), *sorted(blocks, key=Block.to_json)]
    keys = {subject: bench.pending(subject).key for subject in subjects}
    known = store.keys()
    rows = {subject: store.row(keys[subject]) for subject in subjects if keys[subject] in known}
    rounds = _rounds(subjects, visits=visits)
    had = {subject: _visits(rows.get(subject), enough=len(rounds[subject])) for subject in subjects}
    done, total = sum(had.values()), sum(map(len, rounds.values()))
    started, others = time.monotonic(), _others(bench)

    for number in range(visits + (_MORE_VISITS if visits > 1 else 0)):
        missing = [
            subject
            for subject in subjects
            if _wants(rows.get(subject), number, had[subject], rounds[subject])
        ]
        for subject in _shuffled(missing, seed=seed, number=number):
            found = bench.measure(subject, visit=number)
            rows[subject] = stored = _joined(rows.get(subject), found)
            store.replace(stored)
            # A subject that cannot run is over and done with after its first visit.
            done = min(total, done + (1 if stored.status == "ok" else rounds[subject].stop - number))
            if on_progress is not None:
                on_progress(Progress(done=done, total=total, measurement=stored))
            bench.release()

    touched = [subject for subject in subjects if had[subject] < len(rounds[subject])]
    not_ok = sum(row.status != "ok" for subject in touched if (row := rows[subject]) is not None)
    warning, others_now = "", _others(bench)
    if touched and bench.threads and others is not None and others_now is not None:
        taken = (others_now - others) / (time.monotonic() - started)
        warning = contention(taken=taken, threads=bench.threads, cores=os.cpu_count() or 1)
    return Summary(
        skipped=len(subjects) - len(touched),
        measured=len(touched) - not_ok,
        not_ok=not_ok,
        warning=warning,
    )


def visits_of(subject: Subject, *, visits: int) -> int:
    """How often a subject is visited where most are visited so often."""
    return 1 if isinstance(subject, Block) and subject.mix else visits


def _rounds(subjects: Sequence[Subject], *, visits: int) -> dict[Subject, range]:
    """The rounds that each subject takes part in: all of them, or one after the other."""
    in_turn = itertools.cycle(range(visits))
    rounds = {}
    for subject in subjects:
        own = visits_of(subject, visits=visits)
        first = 0 if own == visits else next(in_turn)
        rounds[subject] = range(first, first + own)
    return rounds


def _visits(row: Row | None, *, enough: int) -> int:
    """Visits that count as done; a row that cannot run, or that an earlier version measured, has enough."""
    if row is None:
        return 0
    if row.status != "ok" or row.conditions is None:
        return enough
    return min(row.conditions.visits, enough)


def _wants(row: Row | None, number: int, had: int, rounds: range) -> bool:
    """Whether a subject takes part in round `number` (from 0)."""
    if row is None:
        return number >= rounds.start
    if row.status != "ok" or row.conditions is None or had >= len(rounds):
        return False
    if number < rounds.stop:
        return number >= rounds.start + had
    return len(rounds) > 1 and _disagree(row.conditions.visit_ms)


def _disagree(visit_ms: Sequence[float]) -> bool:
    return max(visit_ms) - min(visit_ms) > _DISAGREE * statistics.median(visit_ms)


def _joined(row: Row | None, visit: Row) -> Row:
    if isinstance(row, Measurement) and isinstance(visit, Measurement):
        return revisited(row, visit)
    if isinstance(row, BlockMeasurement) and isinstance(visit, BlockMeasurement):
        return revisited(row, visit)
    return visit


def _shuffled(subjects: Sequence[Subject], *, seed: int, number: int) -> list[Subject]:
    order = np.random.default_rng([seed, number]).permutation(len(subjects))
    return [subjects[i] for i in order]


def _others(bench: Bench) -> float | None:
    """CPU time of processes other than this one and the bench's own."""
    others = others_seconds()
    return None if others is None else others - bench.child_seconds


def contention(*, taken: float, threads: int, cores: int) -> str:
    """A warning where `threads` were timed while others kept `taken` of the `cores` busy; empty if all fitted.

    Threads that wait for each other at a barrier stall for a scheduler's turn when one of them has no core: small
    operators then look a hundred times slower, and all samples agree on it.
    """
    if taken <= cores - threads + _SPARE_CORES:
        return ""
    return (
        f"other processes kept {taken:.1f} of {cores} cores busy while {threads} threads were timed, so latencies "
        "may be far too long: measure again into a new store on an idle machine, or with fewer threads "
        "(OMP_NUM_THREADS)"
    )
