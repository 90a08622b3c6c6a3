"""What the cost model says of architectures that are about to be trained, and whether any can meet the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwsearch.costmodel.compose import model_cost
from hwsearch.costmodel.model import CostModel
from hwsearch.pipeline.blocks import BlockTable, with_blocks
from hwsearch.pipeline.search_task import cost_budgets, latency_cost, memory_cost
from hwsearch.pipeline.training_cost import path_training
from hwsearch.search.problem import Budget, Objective, Problem
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.budget import BudgetSpec
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.workload import Workload

__all__ = ["Pricing"]


@dataclass(frozen=True, kw_only=True)
class Pricing:
    """A cost model at a workload, with budgets.

    blocks: measured whole on the device, which predict latency where they cover it.
    """

    model: CostModel
    workload: Workload
    blocks: BlockTable | None
    budgets: Sequence[BudgetSpec]

    def problem(self, space: SearchSpace, *, quality: Objective) -> Problem:
        """Quality against latency over a space, within the budgets."""
        latency, budgets = self._costs(space)
        return Problem(space, objectives=(quality, latency), budgets=budgets)

    def over(self, space: SearchSpace) -> str:
        """Why no architecture of a small space meets the budgets; empty where one does."""
        budgets = self._costs(space)[1]
        points = np.array([space.paths.unrank(i) for i in range(space.size)])
        if np.any(np.all([np.ones(len(points)), *(b.cost(points) <= b.at_most for b in budgets)], axis=0)):
            return ""
        best = [(b, float(b.cost(points).min())) for b in budgets]
        return next(
            (f"reaches {b.describe(value)} at best for {b.text}" for b, value in best if value > b.at_most),
            "has no shape that meets all of them at once",
        )

    def price(self, architecture: Architecture, *, batch: int, context: int) -> dict[str, Any]:
        """Predicted costs as JSON values; batch and context: what training is priced at."""
        cost = with_blocks(model_cost(architecture, self.workload, model=self.model), self.blocks)
        training = path_training(architecture, model=self.model, batch=batch, context=context)
        return {
            "parameters": architecture.parameters,
            "predicted_from": cost.predicted_from,
            "latency_ms": cost.latency.median_ms,
            "latency_ms_low": cost.latency.low_ms,
            "latency_ms_high": cost.latency.high_ms,
            "throughput_tokens_per_s": cost.throughput_tokens_per_s,
            "memory_bytes": cost.memory.total_bytes,
            "cache_bytes_per_sequence": architecture.cache_bytes(
                self.workload.context, self.workload.element_bytes
            ),
            "training_tokens_per_s": training.tokens_per_s,
        }

    def _costs(self, space: SearchSpace) -> tuple[Objective, tuple[Budget, ...]]:
        latency = latency_cost(space, self.model, self.workload, blocks=self.blocks, budgets=self.budgets)
        memory = memory_cost(space, self.workload)
        budgets = cost_budgets(self.budgets, latency=latency, memory=memory, tokens=self.workload.tokens)
        return Objective("latency", unit="ms", cost=latency), budgets
