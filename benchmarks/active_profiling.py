"""Chosen points against random ones: measured H100 latencies replayed as if they were measured now.

Of every table a random fifth is held out; the rest is the pool. Random points are drawn from the pool; active ones are
chosen by `next_batch`, the code of `hwsearch profile --plan active`, which is told the latencies of what it chose and
nothing else. Both are fitted by the same family fit, and judged on the same held-out rows. The figure is the number of
active points that reach the error of 300 random ones, by linear interpolation of the mean curves over seeds.

Seeds 0 to 4 are reported; the method was developed on seeds from 100 up. Needs a folder of AIConfigurator tables, by
default shared/data/h100_sxm beside the repository or under $HWSEARCH_SHARED, and the `parquet` extra.

--output keeps every figure as JSON and takes from there what it holds already; --report only prints.
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

from hwsearch.costmodel.crossed import crossed_error
from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.family import fit_family
from hwsearch.costmodel.importers import import_aiconfigurator
from hwsearch.costmodel.tables import Table
from hwsearch.operators import Operator
from hwsearch.pipeline.active import batch_size, next_batch
from hwsearch.pipeline.demand import Demand

RANDOM_POINTS = 300
DEVICE = device_named("h100-sxm")
SIZE = 2  # bytes of bf16
_JUDGED = 4000


@dataclass(frozen=True)
class Bar:
    """The most active points, as a share of the random ones, that the project aims at, and sizes to judge at."""

    share: float
    sizes: tuple[int, ...]


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


def judged(fitted: Table, held: Table, *, seed: int) -> float:
    """Mean absolute percentage error on `held` of the family fitted on the other rows."""
    family = fit_family(fitted, device=DEVICE, size=SIZE, seed=seed)
    median_ms = family.predict(held.dims, device=DEVICE, size=SIZE).median_ms
    return 100 * float(np.abs(median_ms / held.latency_ms - 1).mean())


def choose_actively(pool: Table, *, points: int, seed: int) -> list[int]:
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
        )
        rows += [row_of[each] for each in batch]
    return rows


def run(table: Table, *, seed: int, sizes: Sequence[int], known: dict[str, Any]) -> None:
    """Fill `known` with errors of random and active points by number, where they are missing."""
    pool, held = split(table, seed)
    drawn = np.random.default_rng([seed, 11]).permutation(len(pool))
    random, active = known.setdefault("random", {}), known.setdefault("active", {})
    for points in (RANDOM_POINTS, *sizes):
        if str(points) not in random:
            random[str(points)] = judged(pool.take(np.sort(drawn[:points])), held, seed=seed)
    if all(str(points) in active for points in sizes):
        return
    chosen = choose_actively(pool, points=max(sizes), seed=seed)
    crossed = known.setdefault("cross_validated", {})
    for points in sizes:
        rows = pool.take(np.array(chosen[:points]))
        active[str(points)] = judged(rows, held, seed=seed)
        if points == round(BARS[table.kind].share * RANDOM_POINTS):
            asked = np.full(len(pool), 1 / len(pool))
            crossed[str(points)] = 100 * crossed_error(
                rows, pool.dims, asked, device=DEVICE, size=SIZE, seed=seed
            )


def reaches(curve: Mapping[int, float], goal: float) -> float | None:
    """How many points the curve needs for an error of `goal`, between its points; None where it never gets there."""
    sizes = sorted(curve)
    if curve[sizes[0]] <= goal:
        return float(sizes[0])
    for low, high in itertools.pairwise(sizes):
        if curve[high] <= goal:
            return low + (high - low) * (curve[low] - goal) / (curve[low] - curve[high])
    return None


def report(results: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> None:
    """Mean curves over the seeds that are complete, and the number of points that reach the goal."""
    console = Console(width=140, highlight=False)
    shown = RichTable(title="Held-out error in percent, mean over seeds")
    for name in ("operator", "points", "random", "active", "by seed", "cross-validated"):
        shown.add_column(name, justify="left" if name == "operator" else "right")
    said = []
    for kind, bar in BARS.items():
        own = [results[f"{kind}/{seed}"] for seed in seeds if "active" in results.get(f"{kind}/{seed}", {})]
        own = [one for one in own if all(str(points) in one["active"] for points in bar.sizes)]
        if not own:
            continue
        goal = float(np.mean([one["random"][str(RANDOM_POINTS)] for one in own]))
        curve = {n: float(np.mean([one["active"][str(n)] for one in own])) for n in bar.sizes}
        for n in bar.sizes:
            shown.add_row(
                kind,
                str(n),
                f"{np.mean([one['random'][str(n)] for one in own]):.2f}",
                f"{curve[n]:.2f}",
                ", ".join(f"{one['active'][str(n)]:.2f}" for one in own),
                ", ".join(
                    f"{one['cross_validated'][str(n)]:.2f}" for one in own if str(n) in one["cross_validated"]
                ),
            )
        needed = reaches(curve, goal)
        share = (
            "not reached" if needed is None else f"{needed:.0f} points, {100 * needed / RANDOM_POINTS:.0f}%"
        )
        said.append(
            f"{kind}: {RANDOM_POINTS} random points err by {goal:.2f}; active: {share} "
            f"(bar {100 * bar.share:.0f}%), {len(own)} seeds"
        )
    console.print(shown)
    for line in said:
        console.print(line)


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    root = Path(os.environ.get("HWSEARCH_SHARED", Path(__file__).parents[1] / "shared"))
    parser.add_argument("--data", type=Path, default=root / "data" / "h100_sxm")
    parser.add_argument("--kinds", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    if options.output is not None and options.output.exists():
        results = json.loads(options.output.read_text())
    for seed in () if options.report else options.seeds:
        for kind in options.kinds:
            table = import_aiconfigurator(options.data / f"{kind}.parquet").tables[kind]
            run(table, seed=seed, sizes=BARS[kind].sizes, known=results.setdefault(f"{kind}/{seed}", {}))
            if options.output is not None:
                options.output.write_text(json.dumps(results, indent=1))
    report(results, options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
