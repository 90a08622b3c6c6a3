"""Plans: on a device whose latency is a known function, with a clock that is told the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hwsearch.costmodel.analytic import FORMS, Form, analytic_ms, forms_of
from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.design import FIRST, choose
from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.family import Family, fit_family
from hwsearch.costmodel.tables import Table, tables_from_measurements
from hwsearch.costmodel.transfer import Gate, transfer_family
from hwsearch.costmodel.transferred import Source, TransferredFamily
from hwsearch.errors import InputError
from hwsearch.operators import Operator, columns
from hwsearch.pipeline.active import CurvePoint, Outcome, Plan, Stop, next_batch, run_plan
from hwsearch.pipeline.demand import Demand, demand_of
from hwsearch.records import DeviceSpec, Environment, Measurement
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.workload_range import read_workloads

DEVICE = device_named("h100-sxm")
KINDS = ("gemm", "generation_attention")
_PLACE = Environment(device_name=DEVICE.device_name, runtime="made up")


def _demand() -> Demand:
    """Two kinds of what a space asks for, some hundred operators."""
    space = space_named("postnas", base_named("Qwen2.5-1.5B"))
    whole = demand_of([space], read_workloads("decode:batch=1..256,context=1k..64k"), device=DEVICE)
    return whole.without({each for each in whole.operators if each.kind not in KINDS})


DEMAND = _demand()
DECODE = DEMAND.without(
    {each for each in DEMAND.operators if each.kind == "gemm"}
)  # one kind is judged sooner


def _latency(each: Operator) -> float:
    """The analytic form with constants of its own, and a slow ripple over the sizes that no form knows."""
    c = columns(each.kind, [each.dims])
    form = FORMS[each.kind]
    constants = {k.name: float(np.clip(k.start * 1.2, k.low, k.high)) for k in form.constants}
    ripple = 0.05 * np.sin(np.log2(each.dims[0] + 1)) + 0.05 * np.cos(np.log2(each.dims[1]))
    return float(analytic_ms(each.kind, c, device=DEVICE, size=2, constants=constants)[0] * np.exp(ripple))


class _Bench:
    """A store and a device in one: an operator takes a second, `broken` ones fail, and it `lasts` so many."""

    def __init__(self, *, broken: Sequence[Operator] = (), lasts: int = 10**9) -> None:
        self.rows: list[Measurement] = []
        self.batches: list[list[Operator]] = []
        self.now = 0.0
        self.lasts = lasts
        self._broken = set(broken)

    def measure(self, batch: Sequence[Operator]) -> None:
        self.batches.append(list(batch))
        for each in batch:
            if len(self.rows) >= self.lasts:
                raise KeyboardInterrupt
            self.now += 1.0
            failed = each in self._broken
            self.rows.append(
                Measurement(
                    operator=each,
                    dtype="bfloat16",
                    environment=_PLACE,
                    samples_ms=() if failed else (_latency(each),),
                    kernel="made up",
                    status="failed" if failed else "ok",
                    reason="broken" if failed else "",
                )
            )

    def run(self, name: Plan, *, seed: int = 0, demand: Demand = DEMAND, stop: Stop) -> Outcome:
        return run_plan(
            name,
            demand,
            read=lambda: list(self.rows),
            measure=self.measure,
            device=DEVICE,
            dtype="bfloat16",
            seed=seed,
            stop=stop,
            clock=lambda: self.now,
        )

    @property
    def measured(self) -> list[Operator]:
        return [row.operator for row in self.rows]


def test_active_stops_at_the_target_error_and_the_rest_is_predicted_that_well() -> None:
    bench = _Bench()
    outcome = bench.run("active", demand=DECODE, stop=Stop(error=0.02, points=100))
    assert "cross-validated error" in outcome.reason
    errors = [point.error for point in outcome.curve]
    last = errors[-1]
    assert last is not None
    assert last <= 0.02
    assert all(error is None or error > 0.02 for error in errors[:-1])
    assert [point.points for point in outcome.curve] == [0, *np.cumsum([len(b) for b in bench.batches])]
    assert len(set(bench.measured)) == len(bench.measured)
    (table,) = tables_from_measurements(bench.rows).values()
    family = fit_family(table, device=DEVICE, size=2, seed=0)
    rest = [each for each in DECODE.operators if each not in set(bench.measured)]
    assert len(rest) > 20
    predicted = family.predict(np.array([each.dims for each in rest]), device=DEVICE, size=2).median_ms
    assert np.abs(predicted / [_latency(each) for each in rest] - 1).mean() < 0.04


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been() -> None:
    whole = _Bench()
    whole.run("active", demand=DECODE, stop=Stop(points=60))
    killed = _Bench(lasts=len(whole.batches[0]) + len(whole.batches[1]))
    with pytest.raises(KeyboardInterrupt):
        killed.run("active", demand=DECODE, stop=Stop(points=60))
    assert killed.batches[2] == whole.batches[2]
    killed.lasts = 10**9
    outcome = killed.run("active", demand=DECODE, stop=Stop(points=60))
    assert outcome.reason == "60 points are measured"
    assert set(killed.measured) == set(whole.measured)
    assert len(killed.measured) == 60


def test_the_next_batch_depends_on_rows_and_seed_alone() -> None:
    bench = _Bench()
    bench.run("random", stop=Stop(points=40))

    def batch(seed: int, rows: Sequence[Measurement]) -> list[Operator]:
        return next_batch(tables_from_measurements(rows), DEMAND, count=12, device=DEVICE, size=2, seed=seed)

    chosen = batch(0, bench.rows)
    assert chosen == batch(0, bench.rows[::-1])
    assert len(set(chosen)) == 12
    assert not set(chosen) & set(bench.measured)
    assert set(chosen) <= set(DEMAND.operators)


def test_a_source_changes_what_is_chosen_and_is_judged_by_its_transfer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = _Bench()
    fits: list[tuple[Family | TransferredFamily, Gate]] = []

    def fitted_once(
        table: Table, *, device: DeviceSpec, size: int, source: Source, seed: int
    ) -> tuple[Family | TransferredFamily, Gate]:
        if not fits:  # what is asked does not enter a fit, which takes seconds
            fits.append(transfer_family(table, device=device, size=size, source=source, seed=seed))
        return fits[0]

    monkeypatch.setattr("hwsearch.pipeline.active.transfer_family", fitted_once)

    def curve(demand: Demand) -> Sequence[CurvePoint]:
        return run_plan(
            "active",
            demand,
            read=lambda: list(bench.rows),
            measure=bench.measure,
            device=DEVICE,
            dtype="bfloat16",
            seed=0,
            stop=Stop(points=16),
            source=load_builtin("h200-sxm"),
            clock=lambda: bench.now,
        ).curve

    (before, after) = curve(DECODE)
    alone = next_batch({}, DECODE, count=16, device=DEVICE, size=2, seed=0)
    assert len(bench.measured) == 16
    assert set(bench.measured) != set(alone)
    assert before.error is None
    assert after.error is not None
    assert 0 < after.error < 0.2
    # The same rows say another error of another demand: each counts for what is asked near it.
    batch = np.array([each.dims[0] for each in DECODE.operators])
    few, many = (
        curve(replace(DECODE, share=np.where(there, DECODE.share, 0.0)))[0].error
        for there in (batch <= 16, batch > 16)
    )
    assert few is not None
    assert many is not None
    assert min(few, many) < after.error < max(few, many)


@pytest.mark.parametrize(("start", "cluster"), [(4097, 16), (4096, 60)])  # 16: the same tiles of every kernel
@pytest.mark.parametrize("known", [0, FIRST])
def test_near_duplicates_are_not_chosen_together(known: int, start: int, cluster: int) -> None:
    m = [*range(start, start + cluster), 1, 64, 512, 32768]
    pool = np.array([[rows, 2048, 2048] for rows in m])
    before = np.array([[rows, 1024, 3072] for rows in 7 + 61 * np.arange(known)], np.int64).reshape(-1, 3)
    table = Table("gemm", before, 0.005 + 1e-5 * before[:, 0].astype(np.float64))
    share = np.full(len(pool), 1 / len(pool))
    picks = choose(table, pool, share, count=5, device=DEVICE, size=2, seed=0)
    assert len({pick.row for pick in picks}) == 5
    assert (
        sum(pick.row < cluster for pick in picks) <= 3
    )  # of 5, where 80% of the pool is the cluster, or more
    assert choose(table, pool, share, count=100, device=DEVICE, size=2, seed=0)[:5] == picks
    full = Table("gemm", pool, np.ones(len(pool)))
    assert choose(full, pool, share, count=5, device=DEVICE, size=2, seed=0) == []


def test_first_rows_are_spread_and_later_ones_in_part() -> None:
    m = 2 ** np.arange(14)
    pool = np.array([[rows, 2048, 2048] for rows in m])
    share = np.full(len(pool), 1 / len(pool))
    none = Table("gemm", np.empty((0, 3), np.int64), np.empty(0))
    picks = choose(none, pool, share, count=3, device=DEVICE, size=2, seed=0)
    first, *others = (pick.row for pick in picks)
    assert first in (6, 7)  # the middle, then the middles of the halves
    assert {min(others), max(others)} <= {2, 3, 10, 11}
    # A region where nothing is measured is not forgotten, however little the form leaves to learn there.
    grid = np.array([[1 << i, 1 << j, 1 << k] for i in range(13) for j in range(7, 13) for k in range(7, 13)])
    taken, even = grid[grid[:, 0] < 256][: 4 * FIRST], np.full(len(grid), 1 / len(grid))
    here = choose(
        Table("gemm", taken, np.ones(len(taken))), grid, even, count=1, device=DEVICE, size=2, seed=0
    )
    assert grid[here[0].row, 0] >= 256


def _source(name: str, kind: str) -> Source:
    model = load_builtin(name)
    family = model.families[kind]
    assert isinstance(family, Family)
    return Source(family=family, device=model.device, runtime=model.runtime)


def _decode_rows(form: Form) -> tuple[Table, NDArray[np.int64], NDArray[np.float64]]:
    """30 of the operators of DECODE under a form as it begins, all of them, and what they are asked for."""
    pool = np.array([each.dims for each in DECODE.operators])
    few = pool[np.random.default_rng(0).permutation(len(pool))[:30]]
    seconds = form.seconds(
        columns("generation_attention", few), DEVICE, 2, {k.name: k.start for k in form.constants}
    )
    return Table("generation_attention", few, 1e3 * seconds), pool, DECODE.share


@pytest.mark.parametrize("known", [0, 30])
@pytest.mark.parametrize("lender", [None, "l40s"])
def test_points_are_chosen_for_kernels_of_every_form(known: int, lender: str | None) -> None:
    usual, other = forms_of("generation_attention")
    assert {k.name for k in usual.constants} - {k.name for k in other.constants}
    table, pool, share = _decode_rows(other)
    source = None if lender is None else _source(lender, table.kind)
    picks = choose(
        table.take(np.arange(known)), pool, share, count=5, device=DEVICE, size=2, seed=0, source=source
    )
    assert len({pick.row for pick in picks}) == 5


def test_what_takes_the_time_is_chosen_first() -> None:
    pool = np.array([[rows, 2048, 2048] for rows in (1, 2, 4, 8, 2048, 4096, 8192, 16384)])
    none = Table("gemm", np.empty((0, 3), np.int64), np.empty(0))
    small, large = (np.where(pool[:, 0] < 100, a, b) for a, b in ((0.24, 0.01), (0.01, 0.24)))
    first = [choose(none, pool, share, count=1, device=DEVICE, size=2, seed=0)[0] for share in (small, large)]
    assert pool[first[0].row, 0] < 100 < pool[first[1].row, 0]
    assert all(pick.gain > 0 for pick in first)


def test_every_kind_first_gets_the_rows_that_a_fit_takes() -> None:
    first = next_batch({}, DEMAND, count=32, device=DEVICE, size=2, seed=0)
    assert {kind: sum(each.kind == kind for each in first) for kind in KINDS} == dict.fromkeys(KINDS, 16)
    assert next_batch({}, DEMAND, count=5, device=DEVICE, size=2, seed=0) == first[:5]


def test_what_cannot_run_is_not_asked_again_and_does_not_hold_up_the_rest() -> None:
    bench = _Bench(broken=DECODE.operators[::2])
    outcome = bench.run("active", demand=DECODE, stop=Stop(points=40))
    assert len(set(bench.measured)) == len(bench.measured) == 40
    assert any(row.status == "failed" for row in bench.rows)
    assert outcome.curve[-1].error is not None


@pytest.mark.parametrize("name", ["grid", "random"])
def test_grid_and_random_measure_everything_in_the_order_of_the_seed(name: Plan) -> None:
    few = Demand(DEMAND.operators[::9], DEMAND.share[::9])
    orders = []
    for seed in (0, 0, 1):
        bench = _Bench()
        outcome = bench.run(name, seed=seed, demand=few, stop=Stop(points=len(few) + 5))
        assert outcome == Outcome(reason="every operator is measured", curve=(), scarce=outcome.scarce)
        assert set(bench.measured) == set(few.operators)
        orders.append(bench.measured)
    assert orders[0] == orders[1] != orders[2]


def test_random_lets_the_kinds_take_turns() -> None:
    bench = _Bench()
    bench.run("random", stop=Stop(points=20))
    assert {kind: sum(each.kind == kind for each in bench.measured) for kind in KINDS} == dict.fromkeys(
        KINDS, 10
    )


def test_time_ends_a_run_to_within_an_operator() -> None:
    bench = _Bench()
    outcome = bench.run("random", stop=Stop(seconds=31))
    assert outcome.reason == "31 s have passed"
    assert len(bench.rows) == 31


def test_the_first_rule_that_is_met_ends_a_plan() -> None:
    bench = _Bench()
    assert bench.run("random", stop=Stop(seconds=50, points=10)).reason == "10 points are measured"
    assert bench.run("random", demand=DECODE, stop=Stop(error=0.9, points=60)).reason.startswith(
        "cross-validated error"
    )


def test_refusals() -> None:
    for name in ("random", "active"):
        with pytest.raises(InputError, match=f"--plan {name} needs to know when to stop"):
            _Bench().run(name, stop=Stop())
    for stop in (Stop(points=0), Stop(error=-0.1), Stop(seconds=float("nan"))):
        with pytest.raises(InputError, match="must be above 0"):
            _Bench().run("active", stop=stop)
    with pytest.raises(InputError, match="unknown plan 'activ': did you mean active"):
        _Bench().run("activ", stop=Stop(points=3))  # type: ignore[arg-type]
