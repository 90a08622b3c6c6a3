"""A profile by a plan: what spaces and workloads ask for, or the default plan, measured into a store.

Several devices of one model share a plan: each has a worker of its own through the executors of the search, and this
process alone writes to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hwsearch.costmodel.devices import completed
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.transfer import check_source
from hwsearch.errors import InputError
from hwsearch.operators import Operator
from hwsearch.pipeline.active import CurvePoint, Outcome, Plan, Stop, check_stop, run_plan
from hwsearch.pipeline.blocks import asked_blocks, check_standing_alone
from hwsearch.pipeline.demand import Demand, demand_of, spread_demand
from hwsearch.pipeline.profile_workers import Piecework, local_workers, share_out
from hwsearch.profilers.bench import Bench, BenchSetup
from hwsearch.profilers.lock import profiling
from hwsearch.profilers.plan import default_plan
from hwsearch.profilers.rows import Row
from hwsearch.profilers.run import Progress, Summary, measure_all, open_bench, visits_of
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec, Measurement
from hwsearch.search.executors import Executor
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.block import Block
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.workload import Workload
from hwsearch.searchspace.workload_range import read_workloads

__all__ = ["DEFAULT_POINTS", "Profile", "Profiled", "spec_of"]

DEFAULT_POINTS = 160
_SPREAD = 2048  # operators of the default plan that random and active choose from


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
class Profile:
    """A plan on one or more devices of the same model. Without a space, the default plan's ranges are asked for.

    devices: cpu or cuda:INDEX. setup: how to measure, for the first of them, its dtype stated. visits, timeout_s: as in
    profilers/run.py. workloads: texts that may hold ranges. blocks: a grid also measures the space's layers whole.
    source: a cost model to start from. workers: who shares the operators of every batch; None: the devices of this
    machine, where there are several.
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
    workers: Callable[[], Executor] | None = None

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
        for space in self._asked()[0]:
            if self._whole:
                check_standing_alone(space)
        if self.source is not None and self.plan != "active":
            raise InputError("--from tells an active plan where to start: add --plan active")
        if self.source is not None and self.source.dtype != self.dtype:
            raise InputError(
                f"the source model is for {self.source.dtype}, and {self.dtype} is to be measured: give "
                f"--dtype {self.source.dtype}, or leave --from out"
            )
        if self.source is not None:
            check_source(self.source)

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

    @property
    def _whole(self) -> bool:
        return self.blocks and self.plan == "grid"

    def layers(self, spec: DeviceSpec) -> list[Block]:
        """The blocks that a grid measures on a device."""
        if not self._whole:
            return []
        spaces, workloads = self._asked()
        own = [each.replace(dtype=self.dtype) for each in workloads]
        asked = (asked_blocks(space, own, device=spec) for space in spaces)
        return list(dict.fromkeys(block for blocks in asked for block in blocks))

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
        spec = completed(spec_of(store, bench))
        demand, too_large = self.demand(spec)
        layers = self.layers(spec)
        before = {row.operator for row in self.done(store, bench)} & set(demand.operators)
        points = min(len(demand), self.stop.points or len(demand))
        goal = self.visits * points + sum(visits_of(layer, visits=self.visits) for layer in layers)
        visits, warnings = self.visits * len(before), list[str]()

        def advance(row: Row) -> None:
            nonlocal visits
            visits += 1
            if on_progress is not None:
                on_progress(Progress(done=visits, total=max(goal, visits), measurement=row))

        def measure(batch: Sequence[Operator], blocks: Iterable[Block] = ()) -> Summary:
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
            if self.workers is None and len(self.devices) == 1:
                measure(batch)
                return
            work = Piecework(setup=self.setup, visits=self.visits, timeout_s=self.timeout_s, spec=spec)
            with self.workers() if self.workers else local_workers(self.devices) as executor:
                share_out(batch, work, executor, on_row=keep)

        def keep(row: Measurement) -> None:
            store.replace(row)
            advance(row)

        outcome = run_plan(
            self.plan,
            demand,
            read=lambda: self.done(store, bench),
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
        new = [row for row in self.done(store, bench) if row.operator in asked - before]
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

    def done(self, store: Store, bench: Bench) -> list[Measurement]:
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


def spec_of(store: Store, bench: Bench) -> DeviceSpec:
    """The ceilings in a store of a bench's device."""
    name = bench.environment.device_name
    return next(each for each in store.devices() if each.device_name == name)
