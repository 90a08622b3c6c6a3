"""Chosen points against random ones: measured H100 latencies replayed as if they were measured now.

Of every table a random fifth is held out; the rest is the pool. Random points are drawn from the pool; active ones are
chosen by `next_batch`, the code of `hwsearch profile --plan active`, which is told the latencies of what it chose and
nothing else. Both are fitted by the same family fit, and judged on the same held-out rows. The figure is the number of
active points that reach the error of 300 random ones, by linear interpolation of the mean curves over seeds.

With --from, both methods know another device's shipped model: active points are chosen by it, and both end in the
transfer of `hwsearch fit --from`. No point at all is the source under this device's ceilings.

Seeds 0 to 4 are reported; the method was developed on seeds from 100 up. Needs a folder of AIConfigurator tables, by
default shared/data/h100_sxm beside the repository or under $HWSEARCH_SHARED, and the `parquet` extra.

--output keeps every figure as JSON and takes from there what it holds already; --report only prints. Its keys are
`operator/seed`, with --from `operator/seed/source`. Each holds held-out errors in percent by the number of points, of
`random` and `active` points, and the `cross_validated` error that an active plan would stop by; with --from also
`kept`, the weight of the source in the fit of each method, 0 where cross-validation dropped it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from hwsearch.costmodel.builtin_models import builtin_models, load_builtin
from hwsearch.costmodel.crossed import crossed_error, represented
from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.family import Family, fit_family
from hwsearch.costmodel.importers import import_aiconfigurator
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.tables import Table
from hwsearch.costmodel.transfer import Gate, transfer_model
from hwsearch.costmodel.transferred import TransferredFamily
from hwsearch.operators import Operator
from hwsearch.pipeline.active import batch_size, next_batch
from hwsearch.pipeline.demand import Demand

RANDOM_POINTS = 300
DEVICE = device_named("h100-sxm")
SIZE = 2  # bytes of bf16
FEW = (20, 50, 100)  # points where there is a source, beside those of the bar
_JUDGED = 4000


@dataclass(frozen=True)
class Bar:
    """The most active points, as a share of the random ones, that the project aims at, and sizes to judge at."""

    share: float
    sizes: tuple[int, ...]

    @property
    def points(self) -> int:
        return round(self.share * RANDOM_POINTS)


BARS: Mapping[str, Bar] = {
    "gemm": Bar(0.55, (120, 165, 210)),
    "context_attention": Bar(0.75, (225, 260, 300)),
    "generation_attention": Bar(0.75, (225, 260, 300)),
}


def split(table: Table, seed: int) -> tuple[Table, Table]:
    """The pool, and a fifth of the rows to judge on, at most 4000 of them."""
    order = np.random.default_rng([seed, 7]).permutation(len(table))
    cut = len(table) // 5
    return table.take(np.sort(order[cut:])), table.take(np.sort(order[:cut][:_JUDGED]))


def judged(
    fitted: Table, held: Table, *, seed: int, source: CostModel | None = None
) -> tuple[float, Gate | None]:
    """Mean absolute percentage error on `held` of the family fitted on the other rows, none of them being enough with
    a source; and what cross-validation said of that source."""
    gates: dict[str, Gate] = {}
    family: Family | TransferredFamily
    if source is None:
        family = fit_family(fitted, device=DEVICE, size=SIZE, seed=seed)
    else:
        tables = {fitted.kind: fitted} if len(fitted) else {}
        model, gates = transfer_model(
            source, tables, device=DEVICE, runtime="replayed", measured="replayed", seed=seed
        )
        family = model.families[fitted.kind]
    median_ms = family.predict(held.dims, device=DEVICE, size=SIZE).median_ms
    return 100 * float(np.abs(median_ms / held.latency_ms - 1).mean()), gates.get(fitted.kind)


def choose_actively(pool: Table, *, points: int, seed: int, source: CostModel | None = None) -> list[int]:
    """Rows of the pool in the order that an active profile measures them."""
    row_of = {Operator(pool.kind, tuple(dims)): row for row, dims in enumerate(pool.dims.tolist())}
    demand = Demand(tuple(row_of), np.full(len(pool), 1 / len(pool)))
    rows: list[int] = []
    while len(rows) < points:
        batch = next_batch(
            {pool.kind: pool.take(np.array(rows, np.int64))},
            demand,
            count=min(batch_size(len(rows)), points - len(rows)),
            device=DEVICE,
            size=SIZE,
            seed=seed,
            source=source,
        )
        rows += [row_of[each] for each in batch]
    return rows


def run(
    table: Table, *, seed: int, sizes: Sequence[int], known: dict[str, Any], source: CostModel | None = None
) -> None:
    """Fill `known` with errors of random and active points by number, where they are missing."""
    pool, held = split(table, seed)
    asked = np.full(len(pool), 1 / len(pool))
    random, active = known.setdefault("random", {}), known.setdefault("active", {})

    def judge(method: str, chosen: Sequence[int]) -> None:
        n, rows = str(len(chosen)), pool.take(np.array(chosen, np.int64))
        known[method][n], gate = judged(rows, held, seed=seed, source=source)
        if gate is not None:
            known.setdefault("kept", {}).setdefault(method, {})[n] = gate.source_weight
        if method == "active":
            crossed = known.setdefault("cross_validated", {})
            if gate is not None:
                weight = represented(rows, pool.dims, asked, device=DEVICE, size=SIZE, seed=seed)
                crossed[n] = 100 * float(gate.by_row @ weight)
            elif len(chosen) == BARS[table.kind].points:
                crossed[n] = 100 * crossed_error(rows, pool.dims, asked, device=DEVICE, size=SIZE, seed=seed)

    drawn = np.random.default_rng([seed, 11]).permutation(len(pool))
    for points in (RANDOM_POINTS, *sizes, *(() if source is None else (0,))):
        if str(points) not in random:
            judge("random", np.sort(drawn[:points]).tolist())
    if all(str(points) in active for points in sizes):
        return
    chosen = choose_actively(pool, points=max(sizes), seed=seed, source=source)
    for points in sizes:
        judge("active", chosen[:points])


def reaches(curve: Mapping[int, float], goal: float) -> float | None:
    """How many points the curve needs for an error of `goal`, between its points; None where it never gets there."""
    sizes = sorted(curve)
    if curve[sizes[0]] <= goal:
        return float(sizes[0])
    for low, high in itertools.pairwise(sizes):
        if curve[high] <= goal:
            return low + (high - low) * (curve[low] - goal) / (curve[low] - curve[high])
    return None


def key_of(kind: str, seed: int, source: str | None) -> str:
    """Where the results of a kind and seed stand."""
    return f"{kind}/{seed}" if source is None else f"{kind}/{seed}/{source}"


def sizes_of(kind: str, source: str | None) -> tuple[int, ...]:
    """How many active points to judge at."""
    return BARS[kind].sizes if source is None else (*FEW, BARS[kind].points)


def report(results: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], source: str | None = None) -> None:
    """Mean curves over the seeds that are complete, and the number of points that reach the goal."""
    console = Console(width=140, highlight=False)
    shown = RichTable(title="Held-out error in percent, mean over seeds")
    columns = ("operator", "points", "random", "active", "by seed", "cross-validated")
    for name in columns if source is None else (*columns, "source kept: random", "active"):
        shown.add_column(name, justify="left" if name == "operator" else "right")
    said = []
    for kind, bar in BARS.items():
        sizes = sizes_of(kind, source)
        entries = {seed: results.get(key_of(kind, seed, source), {}) for seed in seeds}
        complete = [seed for seed in seeds if all(str(n) in entries[seed].get("active", {}) for n in sizes)]
        if not complete:
            continue
        own = [entries[seed] for seed in complete]
        for n in sizes if source is None else (0, *sizes, RANDOM_POINTS):
            cells = [mean_of(own, "random", n), mean_of(own, "active", n)]
            cells += [
                ", ".join(f"{one[what][str(n)]:.2f}" for one in own if str(n) in one[what])
                for what in ("active", "cross_validated")
            ]
            if source is not None:
                cells += [mean_of([one["kept"] for one in own], method, n) for method in ("random", "active")]
            shown.add_row(kind, str(n), *cells)
        curve = {n: float(np.mean([one["active"][str(n)] for one in own])) for n in sizes}
        goals = {f"from {source}" if source else "": own}
        if source is not None:
            goals["without a source"] = [results.get(key_of(kind, seed, None), {}) for seed in complete]
        for name, those in goals.items():
            if not all(str(RANDOM_POINTS) in one.get("random", {}) for one in those):
                continue
            goal = float(np.mean([one["random"][str(RANDOM_POINTS)] for one in those]))
            needed = reaches(curve, goal)
            share = (
                "not reached"
                if needed is None
                else f"{needed:.0f} points, {100 * needed / RANDOM_POINTS:.0f}%"
            )
            said.append(
                f"{kind}: {' '.join(filter(None, (str(RANDOM_POINTS), 'random points', name)))} err by {goal:.2f}; "
                f"active: {share} (bar {100 * bar.share:.0f}%), {len(own)} seeds"
            )
    console.print(shown)
    for line in said:
        console.print(line)


def mean_of(entries: Sequence[Mapping[str, Any]], method: str, points: int) -> str:
    """A mean over seeds, empty where there is none."""
    found = [one[method][str(points)] for one in entries if str(points) in one.get(method, {})]
    return f"{np.mean(found):.2f}" if found else ""


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    root = Path(os.environ.get("HWSEARCH_SHARED", Path(__file__).parents[1] / "shared"))
    parser.add_argument("--data", type=Path, default=root / "data" / "h100_sxm")
    parser.add_argument(
        "--from", dest="source", choices=builtin_models(), help="a shipped model to start from"
    )
    parser.add_argument("--kinds", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    if options.output is not None and options.output.exists():
        results = json.loads(options.output.read_text())
    source = None if options.source is None else load_builtin(options.source)
    for seed in () if options.report else options.seeds:
        for kind in options.kinds:
            table = import_aiconfigurator(options.data / f"{kind}.parquet").tables[kind]
            known = results.setdefault(key_of(kind, seed, options.source), {})
            run(table, seed=seed, sizes=sizes_of(kind, options.source), known=known, source=source)
            if options.output is not None:
                options.output.write_text(json.dumps(results, indent=1))
    report(results, options.seeds, options.source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
