"""Closing the loop: architectures built with random weights and measured, beside what is predicted of them.

Two predictions, where there is something to predict from: the sum of its measured blocks, and the cost model's sum over
operators. Both know nothing of the measurement that they are compared with.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from hwsearch.costmodel.compose import model_cost
from hwsearch.costmodel.host import ENGINE, ENGINE_EAGER
from hwsearch.costmodel.memory import memory_of
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InputError
from hwsearch.pipeline.blocks import BlockTable, BlockTime
from hwsearch.records import Execution
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.block import Block, pass_bytes_of
from hwsearch.searchspace.workload import Workload

if TYPE_CHECKING:
    from hwsearch.models.mixers.base import Backend
    from hwsearch.profilers.whole import WholeBench, WholeTime

__all__ = ["BenchRow", "LargestBatch", "bench_architectures", "bench_largest_batch"]

_ANOTHER_MACHINE = 0.05  # relative difference of the drift reference
_ANOTHER_MIX = 0.1  # of a mix, of which either side was visited a few times


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """A workload measured and predicted, in milliseconds; None where there is nothing to predict from.

    low_ms, high_ms: the fastest and the slowest visit. predicted: from measured blocks where they cover the
    architecture, else from operators; `predicted_from` says which. machine: what mixes of measured layers take now over
    what they took when the blocks were measured; None where the blocks hold none.
    """

    workload: Workload
    measured_ms: float
    low_ms: float
    high_ms: float
    from_blocks: BlockTime | None
    from_operators: BlockTime | None
    peak_memory_bytes: int | None
    state_bytes: int
    kernel: str
    marks: tuple[str, ...]
    reference_ms: float | None
    machine: float | None
    notes: tuple[str, ...]

    @property
    def predicted_from(self) -> str | None:
        if self.from_blocks is not None:
            return "blocks"
        return None if self.from_operators is None else "operators"

    @property
    def predicted(self) -> BlockTime | None:
        return self.from_blocks or self.from_operators

    @property
    def within_interval(self) -> bool | None:
        """Whether what was measured lies in the prediction's 90% interval."""
        found = self.predicted
        return None if found is None else found.low_ms <= self.measured_ms <= found.high_ms

    @property
    def error_percent(self) -> float | None:
        """Of the prediction, relative to what was measured."""
        return None if self.predicted is None else 100 * (self.predicted.median_ms / self.measured_ms - 1)


@dataclass(frozen=True, kw_only=True)
class LargestBatch:
    """The largest batch that ran within a memory, and the one that the closed form of memory says."""

    workload: Workload
    memory_bytes: int
    measured: int
    predicted: int


def bench_architectures(
    architectures: Sequence[Architecture],
    workloads: Sequence[Workload],
    *,
    device: str,
    model: CostModel | None = None,
    blocks: BlockTable | None = None,
    backend: str = "torch",
    execution: Execution = "eager",
    visits: int = 3,
    seed: int = 0,
    on_visit: Callable[[Architecture, Workload], None] | None = None,
) -> list[list[BenchRow]]:
    """Measure architectures at workloads of one dtype and compare: for each architecture its rows, one a workload.

    Rounds go through all of them, each in another random order: what the machine does to some of the visits, it does to
    every architecture alike. A model is built anew for each round, so that only one is in memory. Mixes of layers that
    the blocks hold are measured again among them, one a round: how far the machine has changed since.
    Raises InputError for a device that is not there, workloads of several dtypes, a mixer without a module, and a model
    that needs more memory than is free; DataError for one that cannot run all the same.
    """
    from hwsearch.profilers.environment import available_bytes, torch_device
    from hwsearch.profilers.whole import WholeBench

    target = torch_device(device)
    dtype = _one_dtype(workloads)
    for architecture in architectures:
        for workload in workloads:
            _check_memory(architecture, workload, available_bytes(target))
    bench = WholeBench(target, dtype=dtype, backend=cast("Backend", backend), execution=execution)
    comparable = blocks is not None and (blocks.backend, blocks.execution) == (backend, execution)
    mixes = _mixes(blocks, architectures, workloads) if blocks is not None and comparable else {}
    found: list[dict[Workload, list[WholeTime]]] = [{w: [] for w in workloads} for _ in architectures]
    changed: dict[Workload, list[float]] = {w: [] for w in mixes}
    for number in range(visits):
        for place in np.random.default_rng([seed, number]).permutation(len(architectures)):
            _visit(bench, architectures[place], found[place], seed=seed + number, on_visit=on_visit)
            bench.release()
        for workload, known in mixes.items():
            mix, then_ms = known[number % len(known)]
            changed[workload].append(bench.visit(mix, seed=seed + number).median_ms / then_ms)
            bench.release()
    eager = target.type == "cuda" and execution == "eager"
    other = "" if blocks is None or comparable else f"{blocks.backend}, {blocks.execution}"
    return [
        [
            _row(
                architecture,
                workload,
                taken,
                model,
                blocks,
                machine=statistics.median(changed[workload]) if workload in changed else None,
                other_setup=other,
                eager=eager,
            )
            for workload, taken in times.items()
        ]
        for architecture, times in zip(architectures, found, strict=True)
    ]


def _check_memory(architecture: Architecture, workload: Workload, available_bytes: int) -> None:
    """InputError for a model that memory cannot hold, before it is built: a CPU's system would kill the process."""
    needed = memory_of(architecture, workload, device_bytes=available_bytes, host=ENGINE).total_bytes
    if needed > available_bytes:
        raise InputError(
            f"{architecture.name} at {workload} needs about {needed / 2**30:.1f} GiB, and "
            f"{available_bytes / 2**30:.1f} are free: give a smaller batch or context"
        )


def _mixes(
    blocks: BlockTable, architectures: Sequence[Architecture], workloads: Sequence[Workload]
) -> dict[Workload, list[tuple[Block, float]]]:
    """Measured mixes as large as the architectures are, and their milliseconds, for each workload that has any."""
    hidden_size = architectures[0].base.hidden_size
    found = {}
    for workload in workloads:
        through = statistics.geometric_mean(pass_bytes_of(each, workload) for each in architectures)
        mixes = blocks.mixes(hidden_size, workload, near_bytes=round(through))
        if mixes:
            found[workload] = [(mix, blocks.times[mix].median_ms) for mix in mixes]
    return found


def _visit(
    bench: WholeBench,
    architecture: Architecture,
    found: dict[Workload, list[WholeTime]],
    *,
    seed: int,
    on_visit: Callable[[Architecture, Workload], None] | None,
) -> None:
    """Add a visit to each workload; a function of its own, so that nobody holds the model afterwards."""
    whole = bench.open(architecture, seed=seed)
    for workload, times in found.items():
        times.append(whole.visit(workload))
        if on_visit is not None:
            on_visit(architecture, workload)


def _row(
    architecture: Architecture,
    workload: Workload,
    times: Sequence[WholeTime],
    model: CostModel | None,
    blocks: BlockTable | None,
    *,
    machine: float | None,
    other_setup: str,
    eager: bool,
) -> BenchRow:
    notes: list[str] = []
    if other_setup:
        notes.append(f"the blocks were measured with another backend or execution ({other_setup}) than this")
    if machine is not None and abs(machine - 1) > _ANOTHER_MIX:
        notes.append(
            f"{workload}: mixes of the measured layers take {machine:.2f} times what they took when the blocks were "
            "measured: the machine has changed, and predictions may miss by as much; measure both in one go"
        )
    medians = [time.median_ms for time in times]
    return BenchRow(
        workload=workload,
        measured_ms=statistics.median(medians),
        low_ms=min(medians),
        high_ms=max(medians),
        from_blocks=_from_blocks(architecture, workload, blocks, notes),
        from_operators=_from_operators(architecture, workload, model, notes, eager=eager),
        peak_memory_bytes=max((t.peak_memory_bytes or 0 for t in times), default=0) or None,
        state_bytes=times[0].state_bytes,
        kernel=times[0].kernel,
        marks=tuple(sorted({mark for time in times for mark in time.marks})),
        reference_ms=_reference(times, None if machine else blocks, notes),
        machine=machine,
        notes=tuple(notes),
    )


def bench_largest_batch(
    architecture: Architecture,
    workload: Workload,
    *,
    device: str,
    memory_bytes: int | None,
    backend: str = "torch",
    seed: int = 0,
    on_try: Callable[[int, bool], None] | None = None,
) -> LargestBatch:
    """Find the largest batch by running it, beside the predicted one; memory_bytes as `--memory` gives it."""
    from hwsearch.profilers.environment import memory_bytes as all_bytes
    from hwsearch.profilers.environment import torch_device
    from hwsearch.profilers.whole import WholeBench

    target = torch_device(device)
    bench = WholeBench(target, dtype=workload.dtype, backend=cast("Backend", backend))
    whole = bench.open(architecture, seed=seed)
    measured = whole.largest_batch(workload, cap_bytes=memory_bytes, on_try=on_try)
    limit = memory_bytes or all_bytes(target)
    # The closed form keeps a reserve for the runtime; what ran had none to keep, so it gets the whole limit.
    predicted = memory_of(
        architecture, workload.replace(batch=1), device_bytes=int(limit / ENGINE.usable_share), host=ENGINE
    ).max_batch
    return LargestBatch(workload=workload, memory_bytes=limit, measured=measured, predicted=predicted)


def _reference(times: Sequence[WholeTime], blocks: BlockTable | None, notes: list[str]) -> float | None:
    """The drift reference of the visits; a note where the machine was another one when the blocks were measured."""
    seen = [time.reference_ms for time in times if time.reference_ms]
    if not seen:
        return None
    now = statistics.median(seen)
    if blocks is not None and blocks.reference_ms and abs(now / blocks.reference_ms - 1) > _ANOTHER_MACHINE:
        notes.append(
            f"a fixed product takes {now:.4f} ms now and took {blocks.reference_ms:.4f} when the blocks were measured: "
            "the machine's speed has changed, measure both again in one go"
        )
    return now


def _one_dtype(workloads: Sequence[Workload]) -> str:
    dtypes = sorted({workload.dtype for workload in workloads})
    if len(dtypes) != 1:
        raise InputError(f"the workloads ask for {' and '.join(dtypes) or 'nothing'}: give them one dtype")
    return dtypes[0]


def _from_blocks(
    architecture: Architecture, workload: Workload, blocks: BlockTable | None, notes: list[str]
) -> BlockTime | None:
    if blocks is None:
        return None
    missing = blocks.missing(architecture, workload)
    if missing:
        notes.append(f"{workload}: {len(missing)} blocks are not measured, the first is {missing[0]}")
        return None
    return blocks.predict(architecture, workload)


def _from_operators(
    architecture: Architecture, workload: Workload, model: CostModel | None, notes: list[str], *, eager: bool
) -> BlockTime | None:
    if model is None:
        return None
    cost = model_cost(architecture, workload, model=model, host=ENGINE_EAGER if eager else ENGINE)
    notes += cost.notes
    found = cost.latency
    return BlockTime(median_ms=found.median_ms, low_ms=found.low_ms, high_ms=found.high_ms)
