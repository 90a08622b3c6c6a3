"""Do measured layers add up to whole models on this GPU?

    python benchmarks/gpu/end_to_end.py --device cuda:0 --base Qwen3-1.7B --work h100 -o end_to_end.json

Profiles the layers of a search space at the workloads, then builds random architectures of it, measures each whole and
compares with the sum of its layers. Every result is kept in --work as it comes: the command stops by itself after
--minutes and goes on when it is called again. The last line printed is the result as JSON, or what is left to do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from hwsearch.pipeline.bench import BenchRow, bench_architectures
from hwsearch.pipeline.blocks import BlockTable, asked_blocks, load_blocks
from hwsearch.profilers.bench import BenchSetup
from hwsearch.profilers.environment import default_dtype, torch_device
from hwsearch.profilers.lock import profiling
from hwsearch.profilers.run import Progress, measure_all, open_bench
from hwsearch.profilers.store import Store
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.workload import Workload

WORKLOADS = ("prefill:batch=1,context=8k", "decode:batch=16,context=16k")
_VISIT_S = 300.0  # longer than fla takes to tune its kernels for all layers of a mix
_TOGETHER = 5  # models between two looks at the mixes


class _TimeOverError(Exception):
    """The minutes of this call are over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--base", default="Qwen3-1.7B")
    parser.add_argument("--space", default="postnas")
    parser.add_argument("--workload", dest="workloads", action="append")
    parser.add_argument("--architectures", type=int, default=20)
    parser.add_argument("--execution", choices=["eager", "cuda-graph"], default="cuda-graph")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--visits", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="After which this call ends; call it again."
    )
    parser.add_argument("--work", type=Path, required=True, help="Where results are kept.")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    options.work.mkdir(parents=True, exist_ok=True)
    dtype = default_dtype(torch_device(options.device).type)
    workloads = [Workload.from_text(text, dtype=dtype) for text in options.workloads or WORKLOADS]
    space = space_named(options.space, base_named(options.base))
    store = options.work / f"{options.base}-{options.execution}.db"
    try:
        _profile(store, space, workloads, options, deadline=deadline)
        rows = _measured(store, space, workloads, options, deadline=deadline)
    except _TimeOverError as stopped:
        print(json.dumps({"left": str(stopped), "again": "call the same command again"}))
        return
    result = {
        "base": options.base,
        "execution": options.execution,
        "backend": options.backend,
        "workloads": {str(workload): _agreement(rows[str(workload)]) for workload in workloads},
        "rows": rows,
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def _profile(
    path: Path,
    space: SearchSpace,
    workloads: list[Workload],
    options: argparse.Namespace,
    *,
    deadline: float,
) -> None:
    def check(progress: Progress) -> None:
        if time.monotonic() > deadline and progress.done < progress.total:
            raise _TimeOverError(f"{progress.total - progress.done} of {progress.total} visits to layers")

    setup = BenchSetup(
        device=options.device,
        seed=options.seed,
        backend=options.backend,
        execution=options.execution,
    )
    # All of it in a process of its own: this one would otherwise keep its context on the device, as another user of it.
    with (
        Store.open(path, create=True) as store,
        profiling(path),
        open_bench(setup, timeout_s=_VISIT_S) as bench,
    ):
        measure_all(store, bench, [])  # the device's ceilings
        measure_all(
            store,
            bench,
            [],
            blocks=asked_blocks(space, workloads, device=store.device()),
            seed=options.seed,
            visits=options.visits,
            on_progress=check,
        )


def _measured(
    store: Path,
    space: SearchSpace,
    workloads: list[Workload],
    options: argparse.Namespace,
    *,
    deadline: float,
) -> dict[str, list[dict[str, Any]]]:
    blocks = load_blocks(store)
    assert isinstance(blocks, BlockTable), "no layer of the space could be measured"
    genomes = space.sample(options.architectures, rng=np.random.default_rng(options.seed + 1))
    kept = [store.with_name(f"{store.stem}-{number}.json") for number in range(len(genomes))]
    took = 0.0
    while left := [number for number in range(len(genomes)) if not kept[number].exists()][:_TOGETHER]:
        started = time.monotonic()
        if started + took > deadline:
            raise _TimeOverError(f"{sum(not path.exists() for path in kept)} of {len(genomes)} whole models")
        architectures = [space.decode(genomes[number], name=f"random-{number}") for number in left]
        found = bench_architectures(
            architectures,
            workloads,
            device=options.device,
            blocks=blocks,
            backend=options.backend,
            execution=options.execution,
            visits=options.visits,
            seed=options.seed,
        )
        for number, architecture, own in zip(left, architectures, found, strict=True):
            content = {str(row.workload): _content(row, architecture.count()) for row in own}
            kept[number].write_text(json.dumps(content), encoding="utf-8")
        took = time.monotonic() - started
    each = [json.loads(path.read_text(encoding="utf-8")) for path in kept]
    return {str(workload): [one[str(workload)] for one in each] for workload in workloads}


def _content(row: BenchRow, mixers: Mapping[str, int]) -> dict[str, Any]:
    return {
        "mixers": dict(mixers),
        "measured_ms": row.measured_ms,
        "predicted_ms": row.predicted and row.predicted.median_ms,
        "within_interval": row.within_interval,
        "marks": list(row.marks),
        "notes": list(row.notes),
    }


def _agreement(rows: list[dict[str, Any]]) -> dict[str, float | int]:
    known = [row for row in rows if row["predicted_ms"] is not None]
    measured, predicted = (np.array([row[name] for row in known]) for name in ("measured_ms", "predicted_ms"))
    error = 100 * (predicted / measured - 1)
    return {
        "architectures": len(known),
        "not_predicted": len(rows) - len(known),
        "mean_error_percent": float(np.abs(error).mean()),
        "bias_percent": float(error.mean()),
        "worst_percent": float(np.abs(error).max()),
        "rank_correlation": float(spearmanr(measured, predicted).statistic),
        "within_interval": sum(row["within_interval"] for row in known),
    }


if __name__ == "__main__":
    main()
