"""A profile by a plan: what spaces and workloads ask for, or the default plan, measured into a store.

Several devices of one model share a plan: each has a worker of its own through the executors of the search, and this
process alone writes to the store.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from hwsearch.costmodel.builtin_models import builtin_models, load_builtin
from hwsearch.costmodel.devices import completed, device_reported_as
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import DataError, InputError
from hwsearch.operators import Operator
from hwsearch.pipeline.active import CurvePoint, Outcome, Plan, Stop, check_stop, run_plan
from hwsearch.pipeline.blocks import asked_blocks
from hwsearch.pipeline.demand import Demand, demand_of, spread_demand
from hwsearch.profilers.bench import Bench, BenchSetup
from hwsearch.profilers.lock import profiling
from hwsearch.profilers.plan import default_plan
from hwsearch.profilers.plan_time import overhead_seconds, plan_seconds
from hwsearch.profilers.rows import Row
from hwsearch.profilers.run import Progress, Summary, measure_all, open_bench
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec, Measurement
from hwsearch.search.executors import ProcessExecutor, WorkerLostError, visible_devices
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.block import Block
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.workload import Workload
from hwsearch.searchspace.workload_range import read_workloads

__all__ = ["DEFAULT_POINTS", "Estimate", "Profile", "Profiled"]

DEFAULT_POINTS = 160
_SPREAD = 2048  # operators of the default plan that random and active choose from
_PIECE = 4  # operators that a worker is handed at a time, and loses where it dies


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """What a profile did: operators asked for, measured in this call, there already, that could not run, left out
    because they do not fit into memory; how the plan ended; a warning about the machine, or an empty string."""

    asked: int
    measured: int
    skipped: int
    not_ok: int
    too_large: int
    outcome: Outcome
    warning: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a profile would do. points: None where only an error or a time says when to stop.

    blocks: whole layers that a grid also measures. kinds: kind -> operators asked for that are not measured yet.
    seconds: of the points, or of the time allowed; None where nobody can say. predicted_by: where the latencies come
    from, in words.
    """

    asked: int
    done: int
    too_large: int
    points: int | None
    blocks: int
    kinds: Mapping[str, int]
    overhead_s: float
    seconds_per_point: float
    seconds: float | None
    predicted_by: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A plan on one or more devices of the same model. Without a space, the default plan's ranges are asked for.

    devices: cpu or cuda:INDEX. setup: how to measure, for the first of them, its dtype stated. visits, timeout_s: as in
    profilers/run.py. workloads: texts that may hold ranges. blocks: a grid also measures the space's layers whole.
    source: a cost model to start from.
    """

    devices: tuple[str, ...]
    setup: BenchSetup
    plan: Plan
    stop: Stop
    visits: int = 1
    timeout_s: float | None = None
    space: str | None = None
    bases: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    blocks: bool = False
    source: CostModel | None = None

    @property
    def seed(self) -> int:
        return self.setup.seed

    @property
    def dtype(self) -> str:
        assert self.setup.dtype is not None
        return self.setup.dtype

    def check(self) -> None:
        """InputError for what does not go together, before anything is opened or measured."""
        if len({name.partition(":")[0] for name in self.devices}) > 1:
            raise InputError(f"--device {', '.join(self.devices)}: several devices must be of one model")
        if self.space is None and (self.bases or self.workloads):
            raise InputError("--base and --workload belong to a search space: add --space postnas")
        if self.space is not None and not (self.bases and self.workloads):
            raise InputError(
                "--space needs --base and at least one --workload, for example decode:batch=1..64,context=1k..32k"
            )
        check_stop(self.plan, self.stop)
        self._asked()
        self.layers()
        if self.source is not None and self.plan != "active":
            raise InputError("--from tells an active plan where to start: add --plan active")
        if self.source is not None and self.source.dtype != self.dtype:
            raise InputError(
                f"the source model is for {self.source.dtype}, and {self.dtype} is to be measured"
            )

    def demand(self, spec: DeviceSpec) -> tuple[Demand, int]:
        """What is asked of a device, and how many operators were left out because they do not fit into its memory."""
        if self.space is None:
            points = (self.stop.points or DEFAULT_POINTS) if self.plan == "grid" else _SPREAD
            device_type = self.devices[0].partition(":")[0]
            return spread_demand(default_plan(device_type, points=int(points), seed=self.seed)), 0
        whole = demand_of(*self._asked(), device=spec)
        large = whole.too_large(spec)
        return whole.without(large), len(large)

    def _asked(self) -> tuple[list[SearchSpace], list[Workload]]:
        if self.space is None:
            return [], []
        spaces = [space_named(self.space, base_named(base)) for base in self.bases]
        workloads = [each for text in self.workloads for each in read_workloads(text)]
        return spaces, list(dict.fromkeys(workloads))

    def layers(self) -> dict[Block, int]:
        """The blocks that a grid measures, with the memory that their models go through."""
        found: dict[Block, int] = {}
        if not self.blocks or self.plan != "grid":
            return found
        spaces, workloads = self._asked()
        own = [each.replace(dtype=self.dtype) for each in workloads]
        for space in spaces:
            for block, rotated in asked_blocks(space, own).items():
                found[block] = max(rotated, found.get(block, 0))
        return found

    def run(
        self,
        store: Store,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_curve: Callable[[CurvePoint], None] | None = None,
    ) -> Profiled:
        """Measure into `store` until the plan ends. Raises what `profile` and `run_plan` raise."""
        with profiling(store.path), open_bench(self.setup, timeout_s=self.timeout_s) as bench:
            return self._run(store, bench, on_progress, on_curve)

    def _run(
        self,
        store: Store,
        bench: Bench,
        on_progress: Callable[[Progress], None] | None,
        on_curve: Callable[[CurvePoint], None] | None,
    ) -> Profiled:
        measure_all(store, bench, ())  # the device's ceilings
        spec = completed(self._spec(store, bench))
        demand, too_large = self.demand(spec)
        layers = self.layers()
        before = {row.operator for row in self._done(store, bench)} & set(demand.operators)
        goal = min(len(demand), self.stop.points or len(demand)) + len(layers)
        visits, warnings = self.visits * len(before), list[str]()

        def advance(row: Row) -> None:
            nonlocal visits
            visits += 1
            if on_progress is not None:
                total = max(self.visits * goal, visits)
                on_progress(Progress(done=visits, total=total, measurement=row))

        def measure(batch: Sequence[Operator], blocks: Mapping[Block, int] | None = None) -> Summary:
            summary = measure_all(
                store,
                bench,
                batch,
                blocks=blocks,
                seed=self.seed,
                visits=self.visits,
                on_progress=lambda progress: advance(progress.measurement),
            )
            warnings.append(summary.warning)
            return summary

        def on_all(batch: Sequence[Operator]) -> None:
            if len(self.devices) > 1:
                self._share_out(store, batch, spec, advance)
            else:
                measure(batch)

        outcome = run_plan(
            self.plan,
            demand,
            read=lambda: self._done(store, bench),
            measure=on_all,
            device=spec,
            dtype=self.dtype,
            seed=self.seed,
            stop=self.stop,
            source=self.source,
            on_curve=on_curve,
        )
        whole = measure((), layers)
        asked = set(demand.operators)
        new = [row for row in self._done(store, bench) if row.operator in asked - before]
        failed = sum(row.status != "ok" for row in new)
        return Profiled(
            asked=len(demand),
            measured=len(new) - failed + whole.measured,
            skipped=len(before) + whole.skipped,
            not_ok=failed + whole.not_ok,
            too_large=too_large,
            outcome=outcome,
            warning=next(filter(None, warnings), ""),
        )

    def _done(self, store: Store, bench: Bench) -> list[Measurement]:
        """Rows that one cost model is fitted on: of this model of device, measured this way, all visits made."""
        place = bench.environment
        return [
            row
            for row in store.measurements()
            if (row.dtype, row.execution, row.kernel_requested)
            == (bench.dtype, self.setup.execution, self.setup.backend)
            and (row.environment.device_name, row.environment.runtime) == (place.device_name, place.runtime)
            and (row.status != "ok" or row.conditions is None or row.conditions.visits >= self.visits)
        ]

    @staticmethod
    def _spec(store: Store, bench: Bench) -> DeviceSpec:
        name = bench.environment.device_name
        return next(each for each in store.devices() if each.device_name == name)

    def _share_out(
        self,
        store: Store,
        batch: Sequence[Operator],
        spec: DeviceSpec,
        advance: Callable[[Row], None],
    ) -> None:
        """Measure a batch on all devices, in pieces that go to whichever worker is free."""
        pieces = [batch[at : at + _PIECE] for at in range(0, len(batch), _PIECE)]
        on_cpu = self.devices[0] == "cpu"
        visible = () if on_cpu else visible_devices(self.devices)
        with ProcessExecutor(len(self.devices), devices=visible) as executor:
            setup = replace(self.setup, device="cpu" if on_cpu else "cuda:0")
            running = [
                executor.submit(_measure_piece, setup, self.visits, self.timeout_s, spec, piece)
                for piece in pieces
            ]
            try:
                for future in as_completed(running):
                    for row in future.result():
                        store.replace(row)
                        advance(row)
            except WorkerLostError as error:
                raise DataError(
                    f"{error}; what was measured is stored: run the same command again"
                ) from error

    def estimate(self, path: Path) -> Estimate:
        """What `run` into a store at `path` would do; the store is not touched, and need not exist.

        Latencies are those of the source, else of the model that ships for the device, else its roofline. What a
        point costs besides is measured on the device by three of them.
        """
        with open_bench(self.setup, timeout_s=self.timeout_s) as bench:
            rows: list[Measurement] = []
            spec = device_reported_as(bench.environment.device_name)
            if path.exists():
                with Store.open(path) as store:
                    rows = self._done(store, bench)
                    spec = self._spec(store, bench) if store.devices() else spec
            spec = spec or bench.probe()
            demand, too_large = self.demand(spec)
            left = demand.without({row.operator for row in rows})
            overhead = (
                overhead_seconds(left.operators, bench, spec=spec, visits=self.visits) if len(left) else 0.0
            )
        done = len(demand) - len(left)
        model, said = self._predictor(spec)
        latency = model.predict(left.operators).median_ms if len(left) else np.empty(0)
        whole = plan_seconds(latency, overhead=overhead, visits=self.visits)
        each = whole / max(len(left), 1) / len(self.devices)
        points = None
        if self.plan == "grid" and self.stop.error is None and self.stop.seconds is None:
            points = len(left)
        if self.stop.points is not None:
            points = min(len(left), max(0, int(self.stop.points) - done))
        seconds = None if points is None else points * each
        if self.stop.seconds is not None:
            seconds = self.stop.seconds if seconds is None else min(seconds, self.stop.seconds)
        return Estimate(
            asked=len(demand),
            done=done,
            too_large=too_large,
            points=points,
            blocks=len(self.layers()),
            kinds=dict(sorted(Counter(one.kind for one in left.operators).items())),
            overhead_s=overhead,
            seconds_per_point=each,
            seconds=seconds,
            predicted_by=said,
        )

    def _predictor(self, spec: DeviceSpec) -> tuple[CostModel, str]:
        if self.source is not None:
            return self.source, f"the cost model of {self.source.device.name} ({self.source.runtime})"
        for name in builtin_models():
            shipped = load_builtin(name)
            if shipped.device.device_name == spec.device_name:
                return shipped, f"the shipped cost model {name} ({shipped.runtime})"
        empty = CostModel(device=spec, runtime="", dtype=self.dtype, source="", seed=self.seed, families={})
        return empty, f"the roofline of {spec.name}: nothing measured, expect up to several times as long"


@cache
def _bench(setup: BenchSetup, timeout_s: float | None) -> Bench:
    """A worker's bench: opened once, and gone with the worker."""
    return open_bench(setup, timeout_s=timeout_s).__enter__()


def _measure_piece(
    setup: BenchSetup, visits: int, timeout_s: float | None, spec: DeviceSpec, operators: Sequence[Operator]
) -> list[Measurement]:
    """In a worker: measure a few operators and hand the rows back."""
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "piece.db", create=True) as store:
        store.add_device(spec)
        measure_all(store, _bench(setup, timeout_s), operators, seed=setup.seed, visits=visits)
        return store.measurements()
