"""Held-out error of the cost model beside its peers, on measured H100 latencies.

For every row (operator and split) and seed, each method is fitted on the same rows and judged on the same others;
the figure is the mean absolute percentage error, averaged over seeds. Replicated configurations are merged before
splitting (the importer does), because a random split of replicates leaks. Needs the `dev` extra and a folder of
AIConfigurator tables, by default shared/data/h100_sxm beside the repository or under $HWSEARCH_SHARED.

--output keeps the figures as JSON, --results takes them from there instead of running anything, and --readme writes the
table into README.md between its two markers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peers import PEERS
from rich.console import Console
from rich.table import Table as RichTable

from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.importers import import_aiconfigurator
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.tables import Table
from hwsearch.operators import KINDS

Split = Callable[[Table, np.random.Generator], tuple[NDArray[np.bool_], NDArray[np.bool_]]]
METHODS = (*PEERS, "hwsearch")
TITLES = {
    "roofline": "roofline",
    "forest": "random forest, raw inputs (Vidur)",
    "interpolation": "interpolation with utilisation (AIConfigurator)",
    "process": "GP, log inputs, no physics",
    "hwsearch": "hwsearch",
}
README = Path(__file__).parents[1] / "README.md"
MARKERS = ("<!-- costmodel_vs_peers begin -->", "<!-- costmodel_vs_peers end -->")
_MOST_JUDGED = 6000  # rows; a random draw of more adds time, not accuracy


def _column(table: Table, name: str) -> NDArray[np.int64]:
    return table.dims[:, KINDS[table.kind].dims.index(name)]


def few(rows: int) -> Split:
    """That many random rows to fit on, all others to judge on."""

    def split(table: Table, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        chosen = np.zeros(len(table), bool)
        chosen[rng.permutation(len(table))[:rows]] = True
        return chosen, ~chosen

    return split


def most(table: Table, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A random 80% of the rows."""
    return few(len(table) - len(table) // 5)(table, rng)


def unseen(*names: str) -> Split:
    """A fifth of the combinations of these dimensions is held out whole."""

    def split(table: Table, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        group = np.unique(np.stack([_column(table, n) for n in names], axis=1), axis=0, return_inverse=True)[
            1
        ].reshape(-1)
        order = rng.permutation(group.max() + 1)
        held = np.isin(group, order[: max(1, len(order) // 5)])
        return ~held, held

    return split


def beyond(name: str, known: int, asked: int) -> Split:
    """Fitted up to `known` along a dimension, judged from `asked` on; nothing is random but the models' seeds."""

    def split(table: Table, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        value = _column(table, name)
        return value <= known, value >= asked

    return split


@dataclass(frozen=True)
class Row:
    """One row of the comparison; `bar` is the error the project aims at, in percent."""

    name: str
    kind: str
    training: str
    split: Split
    bar: float


ROWS = (
    Row("gemm-80", "gemm", "80% of rows", most, 2.7),
    Row("gemm-500", "gemm", "500", few(500), 4.8),
    Row("gemm-200", "gemm", "200", few(200), 5.4),
    Row("gemm-unseen", "gemm", "unseen 20% of (n, k)", unseen("n", "k"), 3.5),
    Row("gemm-beyond", "gemm", "m <= 2304, test m >= 8192", beyond("m", 2304, 8192), 7.0),
    Row("context-80", "context_attention", "80%", most, 1.4),
    Row("context-500", "context_attention", "500", few(500), 4.0),
    Row("context-unseen", "context_attention", "unseen 20% of (heads, KV heads)",
        unseen("num_heads", "num_kv_heads"), 2.8),
    Row("context-beyond", "context_attention", "isl <= 4096, test above", beyond("seq_len", 4096, 4097), 4.0),
    Row("generation-80", "generation_attention", "80%", most, 1.0),
    Row("generation-500", "generation_attention", "500", few(500), 2.7),
    Row("generation-kv", "generation_attention", "KV <= 16k, test 32k to 128k",
        beyond("kv_len", 16384, 32768), 2.5),
    Row("generation-batch", "generation_attention", "batch <= 64, test >= 256", beyond("batch", 64, 256), 9.0),
    Row("delta-prefill-80", "delta_rule_prefill", "80%", most, 0.5),
    Row("delta-prefill-200", "delta_rule_prefill", "200", few(200), 1.2),
    Row("delta-prefill-beyond", "delta_rule_prefill", "seq <= 2048, test >= 8192",
        beyond("seq_len", 2048, 8192), 2.2),
    Row("delta-decode-100", "delta_rule_decode", "100", few(100), 0.7),
    Row("moe-500", "moe", "500", few(500), 6.0),
)  # fmt: skip
BY_NAME = {row.name: row for row in ROWS}
_QUICK = ("gemm-200", "context-500", "generation-500", "delta-prefill-200", "delta-decode-100", "moe-500")
_FILES = {"delta_rule_prefill": "gdn", "delta_rule_decode": "gdn"}


@dataclass(frozen=True)
class Outcome:
    """One method on one row and seed: error in percent, coverage of its 90% interval if it gives one, seconds."""

    row: str
    seed: int
    method: str
    mape: float
    p95: float
    coverage: float | None
    seconds: float


def run(name: str, seed: int, methods: Sequence[str], folder: Path) -> list[Outcome]:
    """Fit and judge every method on one row with one seed."""
    row = BY_NAME[name]
    path = folder / f"{_FILES.get(row.kind, row.kind)}.parquet"
    table = import_aiconfigurator(path).tables[row.kind]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    known, held = row.split(table, rng)
    fitted, judged = table.take(known), table.take(held)
    if len(judged) > _MOST_JUDGED:
        judged = judged.take(np.sort(rng.choice(len(judged), _MOST_JUDGED, replace=False)))
    device = device_named("h100-sxm")
    found = []
    for method in methods:
        start, coverage = time.perf_counter(), None
        if method == "hwsearch":
            model = CostModel.fit(
                {row.kind: fitted}, device=device, runtime="", dtype="bfloat16", source="", seed=seed
            )
            answer = model.predict_table(row.kind, judged.dims)
            latency = answer.median_ms
            inside = (answer.low_ms <= judged.latency_ms) & (judged.latency_ms <= answer.high_ms)
            coverage = 100 * float(inside.mean())
        else:
            latency = PEERS[method](fitted, judged.dims, device, seed)
        seconds = time.perf_counter() - start
        error = 100 * np.abs(latency / judged.latency_ms - 1)
        found.append(
            Outcome(
                name, seed, method, float(error.mean()), float(np.quantile(error, 0.95)), coverage, seconds
            )
        )
    return found


def summary(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Cells of the table: operator, training rows, every method, coverage, bar."""
    lines = []
    for row in ROWS:
        own = [o for o in outcomes if o.row == row.name]
        if not own:
            continue
        mean = {m: [o.mape for o in own if o.method == m] for m in METHODS}
        cells = [f"{np.mean(v):.2f}" if v else "" for v in mean.values()]
        inside = [o.coverage for o in own if o.coverage is not None]
        lines.append(
            [row.kind, row.training, *cells, f"{np.mean(inside):.0f}" if inside else "", f"{row.bar:g}"]
        )
    return lines


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table as Markdown, with a line under it that says what it shows."""
    header = ["operator", "training rows", *(TITLES[m] for m in METHODS), "coverage of 90%", "bar"]
    table = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *summary(outcomes))]
    seeds = ", ".join(map(str, sorted({o.seed for o in outcomes})))
    return "\n".join(
        [*table, "", f"Mean absolute percentage error on rows held back, mean of seeds {seeds}.", ""]
    )


def loaded(paths: Sequence[Path]) -> list[Outcome]:
    """Figures that --output wrote; of the same row, seed and method those of the last file."""
    found: dict[tuple[str, int, str], Outcome] = {}
    for path in paths:
        for content in json.loads(path.read_text(encoding="utf-8"))["outcomes"]:
            outcome = Outcome(**content)
            found[outcome.row, outcome.seed, outcome.method] = outcome
    return list(found.values())


def write_readme(table: str, path: Path) -> None:
    """Put the table between the markers of a README. ValueError where it has not both."""
    text = path.read_text(encoding="utf-8")
    begin, end = MARKERS
    if not 0 <= text.find(begin) < text.find(end):
        raise ValueError(f"{path} must hold the lines {begin} and {end}, in this order, around the table")
    before, rest = text.split(begin, 1)
    _, after = rest.split(end, 1)
    path.write_text(f"{before}{begin}\n{table}{end}{after}", encoding="utf-8")


def measured(
    rows: Sequence[str],
    seeds: Sequence[int],
    methods: Sequence[str],
    folder: Path,
    *,
    workers: int,
    to: Console,
) -> list[Outcome]:
    """Run every row with every seed, several at a time."""
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(run, row, seed, methods, folder): (row, seed) for row in rows for seed in seeds
        }
        for done in as_completed(waiting):
            outcomes += done.result()
            row, seed = waiting[done]
            said = ", ".join(f"{o.method} {o.mape:.2f}" for o in done.result())
            to.print(f"[dim]{row} seed {seed}: {said}[/dim]", highlight=False)
    return outcomes


def main(arguments: Sequence[str]) -> None:
    shared = os.environ.get("HWSEARCH_SHARED", str(Path(__file__).parents[2] / "shared"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(shared) / "data" / "h100_sxm")
    parser.add_argument("--rows", nargs="+", choices=list(BY_NAME), default=list(BY_NAME), metavar="ROW",
                        help=f"rows to run, of: {', '.join(BY_NAME)}")  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="the rows with few training points, one seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--results", nargs="+", type=Path, metavar="JSON",
                        help="run nothing: take figures of earlier runs, of the last file that has them")  # fmt: skip
    parser.add_argument("--readme", nargs="?", const=README, type=Path, metavar="FILE",
                        help="write the table between the markers of README.md, or of FILE")  # fmt: skip
    chosen = parser.parse_args(arguments)
    if not chosen.results and not chosen.data.is_dir():
        parser.error(f"{chosen.data} is not a folder: give the AIConfigurator tables of an H100 with --data")
    rows, seeds = (_QUICK, chosen.seeds[:1]) if chosen.quick else (chosen.rows, chosen.seeds)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers: one core each
    console = Console(width=None if sys.stdout.isatty() else 150)
    start = time.perf_counter()
    if chosen.results:
        outcomes = loaded(chosen.results)
        rows = [row for row in BY_NAME if any(o.row == row for o in outcomes)]
        seeds = sorted({o.seed for o in outcomes})
    else:
        outcomes = measured(rows, seeds, chosen.methods, chosen.data, workers=chosen.workers, to=console)
    outcomes.sort(key=lambda o: (list(BY_NAME).index(o.row), o.seed, METHODS.index(o.method)))
    shown = RichTable(
        "operator",
        "training rows",
        *METHODS,
        "coverage",
        "bar",
        title=f"MAPE in percent, mean of seeds {', '.join(map(str, seeds))}",
    )
    for line in summary(outcomes):
        shown.add_row(*line)
    console.print(shown)
    elapsed = time.perf_counter() - start
    if not chosen.results:
        console.print(f"{elapsed:.0f} s with {chosen.workers} workers")
    if chosen.readme:
        try:
            write_readme(markdown(outcomes), chosen.readme)
        except ValueError as error:
            parser.error(str(error))
    if chosen.output:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.with_suffix(".md").write_text(markdown(outcomes), encoding="utf-8")
        document = {
            "seeds": list(seeds),
            "elapsed_s": round(elapsed, 1),
            "bars_mape": {row: BY_NAME[row].bar for row in rows},
            "outcomes": [vars(o) for o in outcomes],
        }
        chosen.output.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
