"""What a finished search shows: trade-offs, the best one in detail, and the exact optimum beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hwsearch.cli.output import milliseconds, size, table
from hwsearch.cli.report import model_cost_json, print_model_cost
from hwsearch.pipeline.search_task import SearchTask, Verdict
from hwsearch.search.engine import SearchResult
from hwsearch.surrogate.importance import LayerSweep

__all__ = ["Found"]

_APART = 0.01  # from where two latencies of one architecture are worth a word
_ROWS = 12  # of the front, in the table; the run's result.json has all


class Found:
    """A finished search, ready to be shown."""

    def __init__(self, task: SearchTask, result: SearchResult) -> None:
        self.task = task
        self.result = result
        base, exact = task.space.base.name, result.exact
        best = float(result.objectives[result.best, 0])
        self.best = task.verdict(result.genomes[result.best].tolist(), name=f"{base}-best", points=best)
        self.exact: Verdict | None = None
        if exact is not None and exact.genome is not None and exact.value is not None:
            self.exact = task.verdict(exact.genome, name=f"{base}-exact", points=exact.value)

    def json(self) -> dict[str, Any]:
        """The public keys of a search; docs/json.md describes them."""
        task, result = self.task, self.result
        exact = None
        if result.exact is not None and self.exact is not None:
            exact = {"proven": result.exact.proven, **_verdict_json(self.exact)}
        return {
            "base": task.space.base.name,
            "device": task.model.device.name,
            "runtime": task.model.runtime,
            "workload": str(task.workload),
            "budgets": [budget.text for budget in task.problem.budgets],
            "space_size": str(task.space.size),
            "evaluations": result.evaluations,
            "gap": result.gap,
            "exact": exact,
            "best": {**_verdict_json(self.best), "prediction": model_cost_json(self.best.cost, task.model)},
            "knee": result.knee,
            "front": [
                {
                    "pick": i,
                    "quality_loss": float(values[0]),
                    "latency_ms": float(values[1]),
                    "mixers": dict(Counter(task.space.kinds[choice] for choice in genome)),
                }
                for i, (genome, values) in enumerate(zip(result.genomes, result.objectives, strict=True))
            ],
            "notes": list(task.notes),
        }

    def show(self, run: Path, *, to: Console) -> None:
        task, result = self.task, self.result
        shown = table(
            f"Trade-offs within the budgets: {len(result.genomes)} of {task.space.size:.3g} architectures",
            "pick",
            "mixers",
            "quality loss, points",
            "latency ms",
            left=2,
        )
        for i in _spread(len(result.genomes), keep=(result.best, result.knee)):
            kinds = Counter(task.space.kinds[choice] for choice in result.genomes[i])
            loss, latency = result.objectives[i]
            names = [name for name, row in (("best", result.best), ("knee", result.knee)) if row == i]
            shown.add_row(
                " ".join([str(i), *names]),
                ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
                f"{loss:.2f}",
                milliseconds(latency),
            )
        to.print(shown)
        print_model_cost(self.best.cost, task.model, to=to)
        to.print(
            f"{'quality loss':<20}{_loss(self.best)}; {self._basis}",
            markup=False,
            soft_wrap=True,
        )
        if self.best.quality:
            tasks = ", ".join(f"{name} {points:+.2f}" for name, points in self.best.quality.tasks.items())
            to.print(f"{'by task':<20}{tasks}", markup=False, soft_wrap=True)
        to.print(f"{'exact optimum':<20}{self._exact_text()}", markup=False, soft_wrap=True)
        own, searched = self.best.cost.latency.median_ms, self.best.searched_ms
        if abs(own / searched - 1) > _APART:
            to.print(
                f"{'latency':<20}{milliseconds(own)} ms at the best's own size; the search counted "
                f"{milliseconds(searched)}, as in a large model near the budgets: compare budgets with the first",
                markup=False,
                soft_wrap=True,
            )
        to.print(f"{'run':<20}{run}: {result.evaluations} evaluations", markup=False, soft_wrap=True)

    @property
    def _basis(self) -> str:
        quality = self.task.quality
        if isinstance(quality, LayerSweep):
            return (
                f"sum of measured single-layer drops of {quality.model}, mean of {len(quality.tasks)} tasks"
            )
        return f"measured by {quality.source}"

    def _exact_text(self) -> str:
        exact, verdict = self.result.exact, self.exact
        if exact is None or verdict is None or self.result.gap is None:
            return "not known: not asked for, not a sum over layers, or the solver ran out of time"
        latency, memory = verdict.cost.latency, verdict.cost.memory
        return (
            f"{_loss(verdict)} at "
            f"{milliseconds(latency.median_ms, latency.low_ms, latency.high_ms)} ms and {size(memory.total_bytes)}, "
            f"{'proven' if exact.proven else 'not proven'}; the search is {self.result.gap:.2%} above it"
        )


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    quality = verdict.quality
    return {
        "quality_loss": verdict.points,
        "quality_loss_low": quality.low if quality else None,
        "quality_loss_high": quality.high if quality else None,
        "quality_loss_by_task": dict(quality.tasks) if quality else {},
        "latency_ms": verdict.cost.latency.median_ms,
        "searched_latency_ms": verdict.searched_ms,
        "memory_bytes": verdict.cost.memory.total_bytes,
        "mixers": dict(verdict.architecture.count()),
        "layer_types": list(verdict.architecture.layer_types),
    }


def _loss(verdict: Verdict) -> str:
    if verdict.quality is None:
        return f"{verdict.points:.2f} points"
    low, high = verdict.quality.low, verdict.quality.high
    return f"{verdict.points:.2f} points ({low:.2f} to {high:.2f}, 90% interval)"


def _spread(count: int, *, keep: Sequence[int]) -> list[int]:
    """Rows of the front to show: evenly spread, the ends and `keep` among them."""
    evenly = (
        {round(i * (count - 1) / (_ROWS - 1)) for i in range(_ROWS)} if count > _ROWS else set(range(count))
    )
    return sorted(evenly | set(keep))
