"""The models of a problem's costs: which evaluations they are fitted to, and when they are fitted again.

Costs that are known as tables need none, others have a `Learner` each, or, where evaluations are free, one ridge
regression for all. A model that predicts all that came since its fit is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hwsearch.search.learned import Learner, Model, additive_models
from hwsearch.search.problem import Additive, Pairwise, Problem
from hwsearch.search.rules import Rules
from hwsearch.search.space import FloatArray, Genomes

__all__ = ["CostModels"]

_EXACT = 3e-4  # root mean square error, as a share of the spread, at which a model is not fitted again
_ROWS = 1500  # evaluations that a model is fitted to: half of them the best, half the latest
_SELECT = 1.6  # evaluations between choices of the form, as a factor
_ADAPT = 400  # below so many evaluations every refit adapts the prior, above every fourth
_HUB = 0.08  # share of some cost's variance that makes a layer dominate
_HUBS = 2


class CostModels:
    """Models of all costs of a problem. hubs: the few layers that dominate some cost, the most important first."""

    def __init__(self, problem: Problem, *, rules: Rules) -> None:
        self.problem = problem
        self.rules = rules
        self.tier = problem.tier
        # Tables serve only where nothing is proven by them: otherwise the gap to the proof would mean nothing.
        self._known = {
            i: cost
            for i, (_, cost) in enumerate(problem.distinct)
            if isinstance(cost, Additive | Pairwise) and not problem.tabulated
        }
        self._learners = {
            i: Learner(rules.allowed) for i in range(len(problem.distinct)) if i not in self._known
        }
        self.fitted_at = 0
        self.hubs: tuple[int, ...] = ()
        self._fits = 0
        self._selected_at = 0
        self._models: dict[int, Model] = {}
        self._models_at: dict[int, int] = {}  # evaluations at the last fit

    @property
    def first_fit(self) -> int:
        """Evaluations before the first fit."""
        if self.tier == "free":
            return max(int(1.3 * self.rules.allowed.sum()), 1000)
        return 2 * self.rules.space.num_layers + 20

    def fit(self, genomes: Genomes, costs: FloatArray) -> list[Model]:
        """A model of every cost. One that predicts all that came since its fit is kept as it is."""
        evaluations = len(genomes)
        rows = self._rows(costs)
        if self.tier == "free":
            self.fitted_at = evaluations
            return additive_models(genomes[rows], costs[rows], num_choices=self.rules.num_choices)
        select = evaluations >= _SELECT * self._selected_at
        if select:
            self._selected_at = evaluations
            self.hubs = self._dominating(genomes[rows], costs[rows])
        adapt = self._fits == 0 or evaluations <= _ADAPT or self._fits % 4 == 0
        self._fits += 1
        self.fitted_at = evaluations
        for i, learner in self._learners.items():
            if i in self._models_at and i not in self._models:
                before = self._rows(costs[: self._models_at[i]])
                self._models[i] = learner.again(genomes[before], costs[before, i])
            if i not in self._models or not self._holds(i, genomes, costs[:, i]):
                values = costs[rows, i]
                self._models[i] = learner.fit(
                    genomes[rows], values, hubs=self.hubs, select=select, adapt=adapt
                )
                self._models_at[i] = evaluations
        return [
            Model(tables=self._known[i]) if i in self._known else self._models[i]
            for i in range(costs.shape[1])
        ]

    def _rows(self, costs: FloatArray) -> Genomes:
        """Which evaluations (e, k) a model is fitted to."""
        rows = np.arange(len(costs))
        most = 10 * self.first_fit if self.tier == "free" else _ROWS
        if len(costs) <= most:
            return rows
        violations = self.problem.violations(costs)
        best = np.lexsort((costs[:, self.problem.objective_columns[0]], violations))[: most // 2]
        return np.union1d(best, rows[-(most - most // 2) :])

    def _holds(self, column: int, genomes: Genomes, values: FloatArray) -> bool:
        """Whether the model of a cost predicts what was evaluated since its fit."""
        since = self._models_at[column]
        if since >= len(values):
            return True
        missed = self._models[column].predict(genomes[since:]) - values[since:]
        return bool(np.sqrt(np.mean(missed**2)) <= _EXACT * np.std(values))

    def _dominating(self, genomes: Genomes, costs: FloatArray) -> tuple[int, ...]:
        """The few layers that account for most of some cost, the most important first."""
        shares = [learner.shares(genomes, costs[:, i]) for i, learner in self._learners.items()]
        top = np.max(shares, axis=0)
        order = np.argsort(-top, kind="stable")[:_HUBS]
        return tuple(int(i) for i in order if top[i] > max(_HUB, 3.0 / len(top)))

    def state(self) -> dict[str, Any]:
        """Everything but the evaluations, as JSON."""
        return {
            "fits": self._fits,
            "fitted_at": self.fitted_at,
            "selected_at": self._selected_at,
            "hubs": list(self.hubs),
            "models_at": {str(i): at for i, at in self._models_at.items()},
            "learners": {str(i): learner.state() for i, learner in self._learners.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self._fits, self.fitted_at = state["fits"], state["fitted_at"]
        self._selected_at = state["selected_at"]
        self.hubs = tuple(state["hubs"])
        self._models_at = {int(i): at for i, at in state["models_at"].items()}
        for key, learner in state["learners"].items():
            self._learners[int(key)].restore(learner)
