"""The tables of docs/solvers.md from the results of search_vs_peers.py.

python benchmarks/search_report.py benchmarks/results/search_vs_peers.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def _percent(values: Sequence[float]) -> str:
    """The mean over seeds, and the worst where they differ; seeds without a feasible genome counted apart."""
    found = [100 * value for value in values if np.isfinite(value)]
    if not found:
        return "nothing feasible"
    text = f"{np.mean(found):.2f}%" if max(found) < 10 else f"{np.mean(found):.0f}%"
    if len(found) > 1 and max(found) - min(found) > 0.005:
        text += f" (worst {max(found):.2f}%)" if max(found) < 10 else f" (worst {max(found):.0f}%)"
    missing = len(values) - len(found)
    return f"{text}, {missing} of {len(values)} seeds found nothing feasible" if missing else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _sizes(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((row["layers"], row["choices"]) for row in rows))


def _by_size(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    sizes = _sizes(rows)
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    found = {(row["solver"], row["layers"], row["choices"]): cell(row) for row in rows}
    return _table(
        ["solver", *(f"{layers} layers, {choices} choices" for layers, choices in sizes)],
        [[solver, *(found.get((solver, *size), "") for size in sizes)] for solver in solvers],
    )


def report(results: dict[str, list[Row]]) -> str:
    """Markdown with one section per row of the comparison."""
    parts = []
    for name, title in (("known_additive", "additive"), ("known_neighbours", "with neighbour interactions")):
        if name in results:
            rows = [
                [
                    f"{row['layers']} layers, {row['choices']} choices",
                    f"{np.mean(row['seconds']):.2f} s (worst {max(row['seconds']):.2f} s)",
                    f"{sum(row['proven'])} of {len(row['proven'])}",
                    *([_percent(row["additive_only_loss"])] if "additive_only_loss" in row else []),
                ]
                for row in results[name]
            ]
            head = ["problem", "time to the proven optimum", "proven"]
            head += ["loss of the additive-only optimum"] if "additive_only_loss" in results[name][0] else []
            parts.append(f"### Tables known, {title}\n\n{_table(head, rows)}")
    for name, title in (
        ("unknown_additive", "additive underneath, loss above the optimum"),
        ("unknown_neighbours", "neighbour interactions underneath, loss above the optimum"),
        ("unknown_neighbours_long", "neighbour interactions underneath, loss above the optimum"),
    ):
        if name in results:
            (calls,) = results[name][0]["loss"]
            text = _by_size(results[name], lambda row: _percent(next(iter(row["loss"].values()))))
            parts.append(f"### Black box, {int(calls):,} calls: {title}\n\n{text}")
    if "own_time" in results:
        text = _by_size(results["own_time"], lambda row: f"{np.mean(row['own_us']):.0f} us")
        parts.append(
            f"### Own processor time per evaluation, objective a table look-up, population 200\n\n{text}"
        )
    if "two_objectives" in results:
        shares = results["two_objectives"]
        counts = list(shares[0]["share"])
        text = _table(
            ["solver", *(f"{int(n):,} calls" for n in counts)],
            [
                [
                    row["solver"],
                    *(f"{100 * np.mean(v):.1f}% (worst {100 * min(v):.1f}%)" for v in row["share"].values()),
                ]
                for row in shares
            ],
        )
        parts.append(f"### Two objectives, GPT family: share of the best known hypervolume\n\n{text}")
    if "basins" in results:
        text = _table(
            ["solver", "seeds in the right basin", "loss above the optimum"],
            [
                [row["solver"], f"{sum(row['right'])} of {len(row['right'])}", _percent(row["loss"])]
                for row in results["basins"]
            ],
        )
        parts.append(f"### One objective, deceptive, 5,000 calls\n\n{text}")
    return "\n".join(parts)


if __name__ == "__main__":
    print(report(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
