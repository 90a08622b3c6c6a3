"""Sensitivity of a prediction to context or batch, doubled from a low to a high value; as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hwsearch.cli.output import milliseconds, size, table
from hwsearch.cli.report import setting, setting_json
from hwsearch.costmodel.cost import ModelCost
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import DependencyError, InputError, OutputError
from hwsearch.searchspace.workload import read_size

__all__ = ["plot_sweep", "print_sweep", "read_sweep", "sweep_json"]

_EXAMPLE = "write for example context=4k..256k or batch=1..64"

Series = Sequence[Sequence[ModelCost]]
"""For each architecture, its cost at each value."""


def read_sweep(text: str) -> tuple[str, list[int]]:
    """What is swept ("context" or "batch") and its values: the low one doubled until the high one.

    Raises InputError with an example where the text does not fit.
    """
    name, _, bounds = (part.strip() for part in text.partition("="))
    low, high = (read_size(part.strip()) for part in (*bounds.split("..", 1), "")[:2])
    if name not in ("context", "batch") or low is None or high is None:
        raise InputError(f"cannot read the sweep {text!r}: {_EXAMPLE}")
    if not 1 <= low <= high:
        raise InputError(
            f"sweep {text!r}: the low value must be at least 1 and not above the high one; {_EXAMPLE}"
        )
    values = [low]
    while values[-1] * 2 <= high:
        values.append(values[-1] * 2)
    return name, values


def sweep_json(series: Series, swept: str, values: Sequence[int], *, model: CostModel) -> dict[str, Any]:
    """The public keys of a sweep; docs/json.md describes them."""
    return {
        "device": model.device.name,
        "runtime": model.runtime,
        **setting_json(series[0][0]),
        "swept": swept,
        "values": list(values),
        "series": [
            {
                "architecture": costs[0].architecture.name,
                "points": [_point(cost) for cost in costs],
            }
            for costs in series
        ],
    }


def _point(cost: ModelCost) -> dict[str, Any]:
    return {
        "workload": str(cost.workload),
        "latency_ms": cost.latency.median_ms,
        "latency_ms_low": cost.latency.low_ms,
        "latency_ms_high": cost.latency.high_ms,
        "predicted_from": cost.predicted_from,
        "throughput_tokens_per_s": cost.throughput_tokens_per_s,
        "memory_bytes": cost.memory.total_bytes,
        "max_batch": cost.memory.max_batch,
        "fits": cost.memory.fits,
        "latency_ms_by_operator": cost.latency.by_operator,
    }


def print_sweep(series: Series, swept: str, values: Sequence[int], *, model: CostModel, to: Console) -> None:
    """One line for each value, architecture by architecture, with what takes most of the time."""
    shown = table(
        f"{setting(series[0][0], model)}: {swept} from {values[0]} to {values[-1]}",
        "architecture",
        "workload",
        "latency, 90% interval, ms",
        "tokens/s",
        "memory",
        "largest batch",
        "most time",
        left=2,
    )
    for costs in series:
        for cost in costs:
            latency = cost.latency
            kind, ms = max(latency.by_operator.items(), key=lambda item: item[1])
            shown.add_row(
                cost.architecture.name,
                str(cost.workload),
                milliseconds(latency.median_ms, latency.low_ms, latency.high_ms),
                f"{cost.throughput_tokens_per_s:,.0f}",
                size(cost.memory.total_bytes) + ("" if cost.memory.fits else " does not fit"),
                str(cost.memory.max_batch),
                f"{kind} {ms / cost.operators_ms:.0%}",
            )
    to.print(shown)


def plot_sweep(series: Series, swept: str, values: Sequence[int], *, model: CostModel, path: Path) -> None:
    """Latency with its 90% interval and throughput over the swept value; crosses where memory does not suffice.

    Raises DependencyError without matplotlib, OutputError where the file cannot be written, InputError for an
    ending that names no format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError("matplotlib", extra="report", purpose="--plot") from None
    figure = Figure(figsize=(9, 4), layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    for i, costs in enumerate(series):
        colour, name = f"C{i}", costs[0].architecture.name
        medians = [cost.latency.median_ms for cost in costs]
        rates = [cost.throughput_tokens_per_s for cost in costs]
        latency.plot(values, medians, color=colour, marker="o", label=name)
        latency.fill_between(
            values,
            [cost.latency.low_ms for cost in costs],
            [cost.latency.high_ms for cost in costs],
            color=colour,
            alpha=0.2,
        )
        throughput.plot(values, rates, color=colour, marker="o", label=name)
        for axes, figures in ((latency, medians), (throughput, rates)):
            outside = [
                (value, y)
                for value, y, cost in zip(values, figures, costs, strict=True)
                if not cost.memory.fits
            ]
            if outside:
                axes.plot(*zip(*outside, strict=True), "x", color="black", markersize=9)
    for axes, label in ((latency, "latency, ms (90% interval)"), (throughput, "tokens/s")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(f"{swept} (crosses: does not fit)")
        axes.set_ylabel(label)
        axes.grid(visible=True, alpha=0.3)
    latency.legend()
    first = series[0][0]
    figure.suptitle(f"{first.workload.phase} on {setting(first, model)}; predicted", fontsize=10)
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    except ValueError as error:  # matplotlib names the formats it knows
        raise InputError(f"cannot draw {path}: {error}; end the file in .png, .svg or .pdf") from None
