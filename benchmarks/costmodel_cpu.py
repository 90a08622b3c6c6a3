"""How well a few rows of a CPU predict its other operators, beside simple learners on the same folds.

    hwsearch profile --device cpu --points 160 --visits 1 -o cpu.db
    python benchmarks/costmodel_cpu.py cpu.db
    python benchmarks/costmodel_cpu.py cpu.db --folds 2    # fitted on half of the rows

Every kind of operator is split at random; each part is predicted from the others by the cost model and by the peers: a
Gaussian process on the logarithms of the dimensions and a random forest on the dimensions (peers.py), and a forest and
gradient boosting on the logarithms of dimensions, FLOPs and bytes. Errors are of all rows of all stores named, each
store fitted on its own. `coverage`: rows within the 90% interval.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import peers
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hwsearch.costmodel.family import fit_family
from hwsearch.costmodel.model import LEAST_ROWS
from hwsearch.costmodel.tables import Table
from hwsearch.operators import KINDS, columns, dtype_bytes
from hwsearch.pipeline.rows import load_rows

FloatArray = NDArray[np.float64]
Learner = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="Of the folds.")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    for store in options.stores:
        for kind, errors in crossed(
            store, folds=options.folds, seed=options.seed, peered=not options.no_peers
        ):
            kept = found.setdefault(kind, defaultdict(list))
            for name, values in errors.items():
                kept[name] += values.tolist()
    names = list(next(iter(found.values())))
    print("|", " | ".join(["operator", "rows", *names, "median", "95th percentile"]), "|")
    print("|", " | ".join(["---"] * (len(names) + 4)), "|")
    for kind, kept in sorted(found.items()):
        own = kept["hwsearch"]
        cells = [f"{np.mean(kept[name]):.1f}" for name in names]
        spread = [f"{np.median(own):.1f}", f"{np.percentile(own, 95):.1f}"]
        print("|", " | ".join([kind, str(len(own)), *cells, *spread]), "|")


def crossed(
    store: Path, *, folds: int, seed: int, peered: bool
) -> list[tuple[str, Mapping[str, FloatArray]]]:
    """Of each kind: absolute errors in percent (n,) by method, and 100 or 0 (n,) for in or out of the interval.

    Kinds with too few rows to fit on all folds but one are left out."""
    rows = load_rows(store)
    size = dtype_bytes(rows.dtype)
    found: list[tuple[str, Mapping[str, FloatArray]]] = []
    for kind, table in sorted(rows.tables.items()):
        fold = np.random.default_rng(seed).permutation(len(table)) % folds
        if np.bincount(fold).max() > len(table) - LEAST_ROWS:
            continue
        errors: dict[str, list[FloatArray]] = defaultdict(list)
        for one in range(folds):
            out = fold == one
            known, asked = table.take(~out), table.take(out)
            if peered:
                predicted = {
                    "process": peers.process(known, asked.dims, rows.device, seed),
                    "forest": peers.forest(known, asked.dims, rows.device, seed),
                    "forest, logs": _learned(_forest, known, asked, size),
                    "boosting, logs": _learned(_boosting, known, asked, size),
                }
                for name, ms in predicted.items():
                    errors[name].append(_error(ms, asked))
            with threadpool_limits(limits=1):
                family = fit_family(known, device=rows.device, size=size, seed=seed)
            own = family.predict(asked.dims, device=rows.device, size=size)
            errors["hwsearch"].append(_error(own.median_ms, asked))
            within = np.abs(np.log(asked.latency_ms / own.median_ms)) <= own.half_width
            errors["coverage"].append(np.where(within, 100.0, 0.0))
        found.append((kind, {name: np.concatenate(parts) for name, parts in errors.items()}))
    return found


def _error(predicted_ms: FloatArray, asked: Table) -> FloatArray:
    return 100 * np.abs(predicted_ms / asked.latency_ms - 1)


def _learned(learner: Learner, known: Table, asked: Table, size: int) -> FloatArray:
    """Milliseconds of a learner of log latency on the logarithms of dimensions, FLOPs and bytes."""

    def inputs(table: Table) -> FloatArray:
        c = columns(table.kind, table.dims)
        totals = (KINDS[table.kind].flops(c), KINDS[table.kind].bytes(c, size))
        return np.log2(np.maximum(np.stack([*c.values(), *totals], axis=1), 0.5))

    return np.exp(learner(inputs(known), np.log(known.latency_ms), inputs(asked)))


def _forest(x: FloatArray, y: FloatArray, asked: FloatArray) -> FloatArray:
    from sklearn.ensemble import RandomForestRegressor

    predicted: FloatArray = RandomForestRegressor(n_estimators=250, random_state=0).fit(x, y).predict(asked)
    return predicted


def _boosting(x: FloatArray, y: FloatArray, asked: FloatArray) -> FloatArray:
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(n_estimators=200, learning_rate=0.05, subsample=0.7, random_state=0)
    predicted: FloatArray = model.fit(x, y).predict(asked)
    return predicted


if __name__ == "__main__":
    main()
