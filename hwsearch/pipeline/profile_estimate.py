"""What a profile would do and how long it would take, before it is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwsearch.costmodel.builtin_models import builtin_models, load_builtin
from hwsearch.costmodel.devices import device_reported_as
from hwsearch.costmodel.model import CostModel
from hwsearch.pipeline.profiling import Profile, spec_of
from hwsearch.profilers.plan_time import block_seconds, overhead_seconds, plan_seconds
from hwsearch.profilers.run import open_bench
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec, Measurement

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a profile would do. points: None where only an error or a time says when to stop.

    blocks: whole layers that a grid also measures and that are not measured yet; block_seconds: what they take. kinds:
    kind -> operators asked for that are not measured yet. seconds: of the points, or the time allowed to them, and the
    blocks; None where nobody can say. predicted_by: where the latencies come from, in words.
    """

    asked: int
    done: int
    too_large: int
    points: int | None
    blocks: int
    block_seconds: float
    kinds: Mapping[str, int]
    overhead_s: float
    seconds_per_point: float
    seconds: float | None
    predicted_by: str


def estimate(profile: Profile, path: Path | None) -> Estimate:
    """What running a profile into a store at `path` would do; the store is not touched, and need not exist or be named.

    Latencies are those of the source, else of the model that ships for the device, else its roofline. What a
    point costs besides is measured on the device by three of them, what blocks take by three of those.
    """
    with open_bench(profile.setup, timeout_s=profile.timeout_s) as bench:
        rows: list[Measurement] = []
        known: set[str] = set()
        spec = device_reported_as(bench.environment.device_name)
        if path is not None and path.exists():
            with Store.open(path) as store:
                rows, known = profile.done(store, bench), store.keys()
                spec = spec_of(store, bench) if store.devices() else spec
        spec = spec or bench.probe()
        demand, too_large = profile.demand(spec)
        left = demand.without({row.operator for row in rows})
        overhead = (
            overhead_seconds(left.operators, bench, spec=spec, visits=profile.visits) if len(left) else 0.0
        )
        blocks = [block for block in profile.layers(spec) if bench.pending(block).key not in known]
        on_blocks = block_seconds(blocks, bench, spec=spec, visits=profile.visits) if blocks else 0.0
    done = len(demand) - len(left)
    model, said = _predictor(profile, spec)
    latency = model.predict(left.operators).median_ms if len(left) else np.empty(0)
    whole = plan_seconds(latency, overhead=overhead, visits=profile.visits)
    each = whole / max(len(left), 1) / len(profile.devices)
    points = None
    if profile.plan == "grid" and profile.stop.error is None and profile.stop.seconds is None:
        points = len(left)
    if profile.stop.points is not None:
        points = min(len(left), max(0, int(profile.stop.points) - done))
    seconds = None if points is None else points * each
    if profile.stop.seconds is not None:
        seconds = profile.stop.seconds if seconds is None else min(seconds, profile.stop.seconds)
    return Estimate(
        asked=len(demand),
        done=done,
        too_large=too_large,
        points=points,
        blocks=len(blocks),
        block_seconds=on_blocks,
        kinds=dict(sorted(Counter(one.kind for one in left.operators).items())),
        overhead_s=overhead,
        seconds_per_point=each,
        seconds=None if seconds is None else seconds + on_blocks,
        predicted_by=said,
    )


def _predictor(profile: Profile, spec: DeviceSpec) -> tuple[CostModel, str]:
    if profile.source is not None:
        return profile.source, f"the cost model of {profile.source.device.name} ({profile.source.runtime})"
    for name in builtin_models():
        shipped = load_builtin(name)
        if shipped.device.device_name == spec.device_name:
            return shipped, f"the shipped cost model {name} ({shipped.runtime})"
    empty = CostModel(device=spec, runtime="", dtype=profile.dtype, source="", seed=profile.seed, families={})
    return empty, f"the roofline of {spec.name}: nothing measured, expect up to several times as long"
