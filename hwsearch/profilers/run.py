"""Profiling: measure a plan of operators into a store, going on where an earlier run stopped.

Each measurement is stored before the next one begins, and what the store already holds is not measured again: a
run that was interrupted or killed loses the operator it was at, nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hwsearch.kernels import require_torch
from hwsearch.operators import Operator, dtype_bytes
from hwsearch.profilers.plan import plan
from hwsearch.profilers.store import Store
from hwsearch.profilers.timing import TimingRule
from hwsearch.records import Measurement

__all__ = ["Progress", "Summary", "contention", "profile"]

_SPARE_CORES = 0.15  # what an idle system does on the side


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`done` of `total` operators are in the store, `measurement` the latest of them."""

    done: int
    total: int
    measurement: Measurement


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run did: operators that the store already held, that were measured, that could not run.

    `warning` is a sentence for the user where other processes competed for the cores, else empty.
    """

    skipped: int
    measured: int
    not_ok: int
    warning: str = ""


def profile(
    store: Store,
    operators: Iterable[Operator],
    *,
    device: str = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    rule: TimingRule | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Measure `operators` on `device` and add them to `store`, in an order that `seed` decides.

    dtype: float32 on a CPU and bfloat16 on CUDA where None. The device's ceilings are measured first unless the
    store has them. An operator that cannot run is stored with its status and reason, and is not tried again.
    Raises DependencyError without torch, InputError for a device or dtype that cannot be used, OutputError where
    the store cannot be written, DataError where a failed operator has broken the device.
    """
    require_torch(purpose="profiling")
    import torch

    from hwsearch.profilers.environment import default_dtype, environment, others_seconds, torch_device
    from hwsearch.profilers.probe import probe_device, timer_for
    from hwsearch.profilers.workbench import Workbench

    target = torch_device(device)
    dtype = dtype or default_dtype(target.type)
    dtype_bytes(dtype)  # refuses an unknown one before anything is measured
    place = environment(target)
    if place.device_name not in {spec.device_name for spec in store.devices()}:
        store.add_device(probe_device(target, dtype=dtype))
    bench = Workbench(
        device=target,
        dtype=dtype,
        environment=place,
        timer=timer_for(target),
        rule=rule or TimingRule(),
        seed=seed,
    )

    started, others = time.monotonic(), others_seconds()
    wanted = plan(operators, seed=seed)
    known = store.keys()
    missing = [operator for operator in wanted if bench.pending(operator).key not in known]
    skipped = len(wanted) - len(missing)
    not_ok = 0
    for done, operator in enumerate(missing, start=skipped + 1):
        measurement = bench.measure(operator)
        store.add([measurement])
        not_ok += measurement.status != "ok"
        if on_progress is not None:
            on_progress(Progress(done=done, total=len(wanted), measurement=measurement))
        bench.release()
    warning = ""
    others_now = others_seconds()
    if target.type == "cpu" and missing and others is not None and others_now is not None:
        taken = (others_now - others) / (time.monotonic() - started)
        warning = contention(taken=taken, threads=torch.get_num_threads(), cores=os.cpu_count() or 1)
    return Summary(skipped=skipped, measured=len(missing) - not_ok, not_ok=not_ok, warning=warning)


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
