"""Few-point transfer between devices and runtimes: error against number of points, every ordered pair of tables.

For every target table, number of points and seed, the points are drawn at random and every method is judged on the
same random rows among the others (at most 2000):

- transfer: hwsearch/costmodel/transfer.py, from the shipped model of the source;
- alone: the same package fitted on the points, no source;
- zero-shot: the source under the target's ceilings, no point used;
- process: a Gaussian process on the logarithms of the dimensions, no physics (peers.py).

The shipped models are fitted on the source's whole table and know nothing of the target's. Needs the `dev` extra and
the folders of AIConfigurator tables h100_sxm, h200_sxm, a100_sxm and l40s, by default in shared/data beside the
repository or under $HWSEARCH_SHARED. h100_sxm/gdn_sglang is the same H100 under another runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peers import process

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.family import Family, fit_family
from hwsearch.costmodel.importers import import_aiconfigurator
from hwsearch.costmodel.tables import Table
from hwsearch.costmodel.transfer import carry_family, transfer_family
from hwsearch.costmodel.transferred import Source, TransferredFamily

KINDS = ("gemm", "context_attention", "generation_attention", "delta_rule_prefill")
DEVICES = ("h100-sxm", "h200-sxm", "a100-sxm", "l40s")
SGLANG = "h100-sxm SGLang"
POINTS = (20, 50, 100, 200)
BARS = {
    ("h100-sxm", "h200-sxm", 20, "gemm"): 5.3,
    ("h100-sxm", "h200-sxm", 20, "generation_attention"): 2.5,
    ("h100-sxm", "h200-sxm", 20, "context_attention"): 3.0,
    ("h100-sxm", "a100-sxm", 100, "gemm"): 7.5,
    ("h100-sxm", "a100-sxm", 100, "generation_attention"): 7.5,
    ("h100-sxm", "a100-sxm", 100, "context_attention"): 7.0,
}
_JUDGED = 2000
_SIZE = 2  # bytes of bf16


@dataclass(frozen=True)
class Outcome:
    """One method on one draw: errors in percent, coverage of its 90% interval and the gate where it has them."""

    source: str
    target: str
    kind: str
    points: int
    seed: int
    method: str
    mape: float
    p95: float
    coverage: float | None
    source_weight: float | None
    seconds: float


@dataclass(frozen=True)
class Job:
    """All methods and sources for one target, kind, number of points and seed."""

    target: str
    kind: str
    points: int
    seed: int
    sources: tuple[str, ...]
    data: Path


@cache
def _table(data: Path, target: str, kind: str) -> Table | None:
    name = target.removesuffix(" SGLang")
    file = {"delta_rule_prefill": "gdn"}.get(kind, kind) + ("_sglang" if target == SGLANG else "")
    path = data / name.replace("-", "_") / f"{file}.parquet"
    return import_aiconfigurator(path).tables.get(kind) if path.exists() else None


@cache
def _source(name: str, kind: str) -> Source | None:
    model = load_builtin(name)
    family = model.families.get(kind)
    if not isinstance(family, Family):
        return None
    return Source(family=family, device=model.device, runtime=model.runtime)


def run(job: Job) -> list[Outcome]:
    """Every method and source on one draw of points."""
    table = _table(job.data, job.target, job.kind)
    assert table is not None
    rng = np.random.default_rng([job.seed, job.points, zlib.crc32(f"{job.target}/{job.kind}".encode())])
    order = rng.permutation(len(table))
    few, judged = table.take(order[: job.points]), table.take(order[job.points :][:_JUDGED])
    device = device_named(job.target.removesuffix(" SGLang"))
    found: list[Outcome] = []

    def judge(
        source: str,
        method: str,
        family: Family | TransferredFamily,
        start: float,
        weight: float | None = None,
    ) -> None:
        seconds = time.perf_counter() - start
        answer = family.predict(judged.dims, device=device, size=_SIZE)
        error = np.log(judged.latency_ms / answer.median_ms)
        inside = 100 * float((np.abs(error) <= answer.half_width).mean())
        record(source, method, answer.median_ms, inside, weight, seconds)

    def record(
        source: str,
        method: str,
        median: NDArray[np.float64],
        inside: float | None,
        weight: float | None,
        seconds: float,
    ) -> None:
        ape = 100 * np.abs(median / judged.latency_ms - 1)
        found.append(
            Outcome(source, job.target, job.kind, job.points, job.seed, method,
                    float(ape.mean()), float(np.quantile(ape, 0.95)), inside, weight, seconds)
        )  # fmt: skip

    start = time.perf_counter()
    judge("", "alone", fit_family(few, device=device, size=_SIZE, seed=job.seed), start)
    start = time.perf_counter()
    record(
        "", "process", process(few, judged.dims, device, job.seed), None, None, time.perf_counter() - start
    )
    for name in job.sources:
        source = _source(name, job.kind)
        if source is None:
            continue
        start = time.perf_counter()
        judge(name, "zero-shot", carry_family(source), start)
        start = time.perf_counter()
        family, gate = transfer_family(few, device=device, size=_SIZE, source=source, seed=job.seed)
        judge(name, "transfer", family, start, gate.source_weight)
    return found


def jobs(
    data: Path,
    *,
    targets: Sequence[str],
    sources: Sequence[str],
    kinds: Sequence[str],
    points: Sequence[int],
    seeds: Sequence[int],
) -> Iterator[Job]:
    """The work: every target with every other device as a source; another runtime of a device is a target too."""
    for seed in seeds:
        for count in points:
            for target in targets:
                lenders = tuple(
                    name for name in sources if (name == "h100-sxm" if target == SGLANG else name != target)
                )
                for kind in kinds:
                    if lenders and _table(data, target, kind) is not None:
                        yield Job(target, kind, count, seed, lenders, data)


def bar_jobs(data: Path, *, seeds: Sequence[int]) -> Iterator[Job]:
    """Only what has a bar."""
    for seed in seeds:
        for source, target, count, kind in BARS:
            yield Job(target, kind, count, seed, (source,), data)


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """One entry for each source, target, kind, number of points and method: means over seeds, the errors of each."""
    groups: dict[tuple[str, str, str, int, str], list[Outcome]] = {}
    for o in sorted(outcomes, key=lambda o: o.seed):
        groups.setdefault((o.source, o.target, o.kind, o.points, o.method), []).append(o)

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return round(float(np.mean(known)), 3) if known else None

    return [
        {
            **dict(zip(("source", "target", "kind", "points", "method"), key, strict=True)),
            "seeds": [o.seed for o in own],
            "mape_by_seed": [round(o.mape, 3) for o in own],
            "mape": mean([o.mape for o in own]),
            "p95": mean([o.p95 for o in own]),
            "coverage": mean([o.coverage for o in own]),
            "source_weight": mean([o.source_weight for o in own]),
            "seconds": mean([o.seconds for o in own]),
        }
        for key, own in sorted(groups.items())
    ]


def markdown(entries: Sequence[dict[str, object]]) -> str:
    """A table of errors: a row for each source, target and kind; transfer / alone / process by number of points."""
    found = {tuple(e[k] for k in ("source", "target", "kind", "points", "method")): e for e in entries}
    counts = sorted({int(str(e["points"])) for e in entries})
    header = [
        "source",
        "target",
        "operator",
        "zero-shot",
        *(f"{n} points" for n in counts),
        "bar",
        "coverage",
    ]
    lines = [header, ["---"] * len(header)]
    for source, target, kind in dict.fromkeys(
        (e["source"], e["target"], e["kind"]) for e in entries if e["method"] == "transfer"
    ):
        cells: list[str] = []
        inside: list[float] = []
        zero = [
            float(str(e["mape"]))
            for e in entries
            if (e["source"], e["target"], e["kind"], e["method"]) == (source, target, kind, "zero-shot")
        ]
        for n in counts:
            own = found.get((source, target, kind, n, "transfer"))
            if own is None:
                cells.append("")
                continue
            others = (found[("", target, kind, n, method)]["mape"] for method in ("alone", "process"))
            cells.append(f"**{own['mape']:.1f}** / " + " / ".join(f"{value:.1f}" for value in others))
            inside.append(float(str(own["coverage"])))
        bars = [
            f"{bar:g} at {n}" for (s, t, n, k), bar in BARS.items() if (s, t, k) == (source, target, kind)
        ]
        mean_zero = f"{np.mean(zero):.1f}"
        lines.append(
            [str(source), str(target), str(kind), mean_zero, *cells, "".join(bars), f"{np.mean(inside):.0f}"]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str]) -> None:
    shared = os.environ.get("HWSEARCH_SHARED", str(Path(__file__).parents[2] / "shared"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(shared) / "data")
    parser.add_argument("--targets", nargs="+", choices=(*DEVICES, SGLANG), default=[*DEVICES, SGLANG])
    parser.add_argument("--sources", nargs="+", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--points", nargs="+", type=int, default=list(POINTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--bars", action="store_true", help="only what has a bar")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "transfer",
                        help="write OUTPUT.json and OUTPUT.md, anew after every draw")  # fmt: skip
    chosen = parser.parse_args(arguments)
    if not chosen.data.is_dir():
        parser.error(
            f"{chosen.data} is not a folder: give the folder of the AIConfigurator tables with --data"
        )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers: one core each
    if chosen.bars:
        work = list(bar_jobs(chosen.data, seeds=chosen.seeds))
    else:
        work = list(
            jobs(chosen.data, targets=chosen.targets, sources=chosen.sources, kinds=chosen.kinds,
                 points=chosen.points, seeds=chosen.seeds)
        )  # fmt: skip
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, job) for job in work]):
            outcomes += done.result()
            entries = summary(outcomes)
            chosen.output.with_suffix(".md").write_text(markdown(entries), encoding="utf-8")
            lines = ",\n".join(json.dumps(entry) for entry in entries)
            chosen.output.with_suffix(".json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
            for o in done.result():
                print(
                    f"{o.source or '-'} -> {o.target} {o.kind} {o.points} seed {o.seed}: {o.method} {o.mape:.2f}"
                )
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
