"""Search with a trained supernet as the judge: its scores are the expensive objective, the cost model's are free.

The search fits the accuracy predictor to every score so far, asks the supernet about what the predictor finds worth
asking, and so on (`search.fidelity`); the supernet never scores most of the space. Every score is in the run's journal
and in the supernet's own cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.costmodel.compose import check_dtype, model_cost
from hwsearch.costmodel.cost import ModelCost
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InputError
from hwsearch.pipeline.blocks import BlockTable, uncovered, with_blocks
from hwsearch.pipeline.search_task import cost_budgets, count_limits, latency_cost, memory_cost
from hwsearch.search.evaluation import Measured
from hwsearch.search.executors import Executor
from hwsearch.search.fidelity import FidelityResult, Round, fidelity_search
from hwsearch.search.problem import Additive, Objective, Problem
from hwsearch.search.study import Study
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.budget import BudgetSpec
from hwsearch.searchspace.space import Genomes, SearchSpace
from hwsearch.searchspace.workload import Workload
from hwsearch.surrogate.predictor import LEAST_SCORES, Predictor
from hwsearch.surrogate.processes import device_named
from hwsearch.surrogate.scoring import Score, Scorer
from hwsearch.surrogate.space_json import space_content
from hwsearch.surrogate.supernet_folder import SupernetFolder

__all__ = ["SupernetLoss", "SupernetSearch", "supernet_search"]

_TEXT_ROWS = 16


@dataclass(frozen=True)
class SupernetLoss:
    """The cost of a genome under the supernet in a folder, for `search.evaluation.Measured`. Plain values only, for it
    goes to worker processes, which open the supernet once each."""

    folder: Path
    metric: str
    items: int
    device: str = "cpu"

    def __call__(self, genome: tuple[int, ...], *, fidelity: float, seed: int) -> float:
        return self.score(genome).cost(self.metric)

    def score(self, genome: Sequence[int]) -> Score:
        """The whole score of a genome (layers,)."""
        return _scorer(self.folder, self.items, self.device).scores(np.array([genome]))[0]


@lru_cache(maxsize=1)
def _scorer(folder: Path, items: int, device: str) -> Scorer:
    opened = SupernetFolder(folder)
    return opened.scorer(opened.supernet(device=device_named(device)), items=items, text_rows=_TEXT_ROWS)


@dataclass(frozen=True, kw_only=True)
class SupernetSearch:
    """A search problem over the space of a supernet, and what explains its answers.

    blocks: measured whole on the device, which predict latency where they cover the space. notes: where they do not.
    """

    problem: Problem
    space: SearchSpace
    model: CostModel
    workload: Workload
    blocks: BlockTable | None
    loss: SupernetLoss
    fingerprint: str
    notes: tuple[str, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the costs, as JSON values; a resumed run must have the same."""
        latency = self.problem.objectives[1].cost
        assert isinstance(latency, Additive)
        return {
            "base": self.space.base.model_dump(mode="json"),
            "choices": [choice.model_dump(mode="json") for choice in self.space.choices],
            "space": space_content(self.space),
            "device": self.model.device.name,
            "runtime": self.model.runtime,
            "workload": str(self.workload),
            "layer_latency_ms": latency.table[0].tolist(),
            "supernet": self.fingerprint,
            "metric": self.loss.metric,
            "items": self.loss.items,
            "budgets": [budget.text for budget in self.problem.budgets],
        }

    def architecture(self, genome: Sequence[int], *, name: str) -> Architecture:
        """What a genome (layers,) stands for."""
        return self.space.decode(genome, name=name)

    def cost(self, genome: Sequence[int]) -> ModelCost:
        """The prediction in full, from blocks measured whole where they cover the architecture."""
        cost = model_cost(self.architecture(genome, name="candidate"), self.workload, model=self.model)
        return with_blocks(cost, self.blocks)

    def go(
        self,
        *,
        study: Study,
        executor: Executor,
        evaluations: int,
        batch: int,
        seed: int,
        on_round: Callable[[Round], None] | None = None,
    ) -> FidelityResult:
        """The best trade-offs of loss and latency from so many scores. Raises InfeasibleError where nothing fits."""
        return fidelity_search(
            self.problem,
            seed=seed,
            evaluations=evaluations,
            batch=batch,
            executor=executor,
            study=study,
            on_round=on_round,
        )

    def predictor(self, study: Study) -> Predictor | None:
        """The accuracy predictor on every score of a run; None after too few."""
        known = {genome: costs for genome, costs in study.known().items() if np.isfinite(costs).all()}
        if len(known) < LEAST_SCORES:
            return None
        genomes: Genomes = np.array([np.frombuffer(genome, np.int64) for genome in sorted(known)])
        losses = np.array([known[genome][0] for genome in sorted(known)])
        return Predictor.fit(genomes, losses, num_choices=len(self.space.choices), seed=0)


def supernet_search(
    folder: Path,
    *,
    model: CostModel,
    workload: Workload,
    budgets: Sequence[BudgetSpec],
    metric: str,
    items: int,
    blocks: BlockTable | None = None,
    worker_device: str = "cpu",
) -> SupernetSearch:
    """A search over the space that a supernet was trained for, within budgets; those on counts limit the space.

    metric: of `Score.value`. items: of each task. blocks: measured whole on the model's device. worker_device: where
    workers score; this process does it on the CPU. Raises DataError for a folder without a trained supernet,
    InputError for a metric that it does not have.
    """
    check_dtype(model, workload)
    opened = SupernetFolder(folder)
    space = opened.space
    for kind, limit in count_limits(budgets).items():
        if limit.at_least and kind not in space.kinds:
            raise InputError(
                f"{kind}>={limit.at_least}: the supernet has only {', '.join(dict.fromkeys(space.kinds))}"
            )
        space = space.limit(kind, limit)
    loss = SupernetLoss(folder, metric, items)
    supernet = opened.supernet()
    loss.score(supernet.teacher_genome.tolist()).value(
        metric
    )  # an unknown metric is refused before the run begins
    latency = latency_cost(space, model, workload, blocks=blocks, budgets=budgets)
    memory = memory_cost(space, workload)
    problem = Problem(
        space=space,
        objectives=(
            Objective(metric, cost=Measured(replace(loss, device=worker_device)), tier="expensive"),
            Objective("latency", unit="ms", cost=latency),
        ),
        budgets=cost_budgets(budgets, latency=latency, memory=memory, tokens=workload.tokens),
    )
    return SupernetSearch(
        problem=problem,
        space=space,
        model=model,
        workload=workload,
        blocks=blocks,
        loss=loss,
        fingerprint=supernet.fingerprint(),
        notes=uncovered(blocks, space, workload),
    )
