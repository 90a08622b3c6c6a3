"""Architectures side by side at one workload: the first is what the others are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from hwsearch.cli.output import milliseconds, size, table
from hwsearch.cli.report import model_cost_json, setting, setting_json
from hwsearch.costmodel.cost import ModelCost
from hwsearch.costmodel.model import CostModel

__all__ = ["comparison_json", "print_comparison"]


def _ratios(cost: ModelCost, first: ModelCost) -> dict[str, float]:
    return {
        "latency_ratio": cost.latency.median_ms / first.latency.median_ms,
        "throughput_ratio": cost.throughput_tokens_per_s / first.throughput_tokens_per_s,
        "memory_ratio": cost.memory.total_bytes / first.memory.total_bytes,
    }


def comparison_json(costs: Sequence[ModelCost], model: CostModel) -> dict[str, Any]:
    """The public keys of a comparison; docs/json.md describes them."""
    return {
        "device": model.device.name,
        "runtime": model.runtime,
        **setting_json(costs[0]),
        "predictions": [model_cost_json(cost, model) for cost in costs],
        "ratios": [{"architecture": cost.architecture.name, **_ratios(cost, costs[0])} for cost in costs[1:]],
    }


def print_comparison(costs: Sequence[ModelCost], model: CostModel, *, to: Console) -> None:
    """One column for each architecture; ratios to the first in brackets."""
    first = costs[0]
    shown = table(
        f"{setting(first, model)}; in brackets: times the first",
        "",
        *(cost.architecture.name for cost in costs),
    )
    kinds = sorted(
        {kind for cost in costs for kind in cost.latency.by_operator},
        key=lambda kind: -max(cost.latency.by_operator.get(kind, 0.0) for cost in costs),
    )

    def ratio(cost: ModelCost, key: str) -> str:
        return "" if cost is first else f" ({_ratios(cost, first)[key]:.2f}x)"

    def row(name: str, *cells: str) -> None:
        shown.add_row(name, *cells)

    row("workload", *(str(cost.workload) for cost in costs))
    row("parameters", *(f"{cost.architecture.parameters / 1e9:.3f} B" for cost in costs))
    row("latency, ms", *(milliseconds(c.latency.median_ms) + ratio(c, "latency_ratio") for c in costs))
    row("90% interval", *(_interval(cost) for cost in costs))
    row("tokens/s", *(f"{c.throughput_tokens_per_s:,.0f}" + ratio(c, "throughput_ratio") for c in costs))
    row(
        "memory of one device" if first.tp > 1 else "memory",
        *(size(c.memory.total_bytes) + ratio(c, "memory_ratio") for c in costs),
    )
    row("cache per sequence", *(size(c.memory.cache_bytes / c.workload.batch) for c in costs))
    row("largest batch", *(f"{cost.memory.max_batch}" for cost in costs))
    for kind in kinds:
        row(f"{kind}, ms", *(_time(cost, kind) for cost in costs))
    to.print(shown)
    for cost in costs:
        for text in cost.notes:
            to.print(f"note: {cost.architecture.name}: {text}", markup=False, style="dim", soft_wrap=True)


def _interval(cost: ModelCost) -> str:
    return f"{milliseconds(cost.latency.low_ms)} to {milliseconds(cost.latency.high_ms)}"


def _time(cost: ModelCost, kind: str) -> str:
    ms = cost.latency.by_operator.get(kind)
    return "" if ms is None else f"{milliseconds(ms)} ({cost.latency.shares[kind].bound})"
