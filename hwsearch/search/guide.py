"""What to evaluate next, by the model of the evaluations so far.

Each refit gives tables (`cost_models`). Under the budgets these are minimised exactly (`chain`): once as they are, once
within a trust radius of the best genome known (a bound on the number of layers that differ), and, where a few layers
dominate, once for each of the likely values of these, so that a basin that looks poor on average is still looked
into. The rest of a guided generation are draws from the posterior, each minimised at the prices of the budgets
(Thompson sampling). With several objectives the first is also minimised at levels of the others, and a short
evolution on the models spreads along the predicted front.

A model that does not predict evaluations it was not fitted on proposes nothing: the evolution goes on alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hwsearch.search.chain import Chain, is_chain
from hwsearch.search.cost_models import CostModels
from hwsearch.search.learned import Model
from hwsearch.search.problem import Additive, Pairwise, Problem
from hwsearch.search.rules import Rules
from hwsearch.search.space import BoolArray, FloatArray, Genomes

__all__ = ["Guide", "conditioned"]

_TRUSTED = 0.3  # share of variance explained below which a model is not asked
_CERTAIN = 1 - 1e-9
_GROWTH = {"expensive": 1.0, "cheap": 1.15, "free": 4.0}  # evaluations between refits, as a factor
_PATIENT = 1000  # below so many evaluations every generation is a refit unless evaluations are free
_STRATA = 6
_RADIUS = 8
_LEVELS = 4  # of another objective at which the first is minimised
_LABELS = 2000
_JITTER = 0.15

Tables = Additive | Pairwise
Spread = Callable[[Problem, Genomes, int], Genomes]


class Guide:
    """Learns from the evaluations of one problem and proposes genomes.

    spread: the front (f, layers) of a problem that is cheap to evaluate, from genomes to start with and a seed.
    """

    def __init__(self, problem: Problem, *, rules: Rules, spread: Spread) -> None:
        self._spread = spread
        self.problem = problem
        self.rules = rules
        self.tier = problem.tier
        self.models = CostModels(problem, rules=rules)
        self.trust = 0.0

    def due(self, evaluations: int) -> bool:
        """Whether the next generation should be guided."""
        if evaluations < self.models.first_fit:
            return False
        if self.tier != "free" and evaluations <= _PATIENT:
            return True
        if self.tier == "free" and self.trust > _CERTAIN:
            return False  # nothing left to learn
        return evaluations >= _GROWTH[self.tier] * self.models.fitted_at

    def propose(self, genomes: Genomes, costs: FloatArray, n: int, *, rng: np.random.Generator) -> Genomes:
        """At most n valid genomes worth evaluating, the most promising first, (p, layers).

        genomes (e, layers) and costs (e, k) are all evaluations so far.
        """
        models = self.models.fit(genomes, costs)
        self.trust = min(model.trust for model in models)
        if self.trust < _TRUSTED:
            return genomes[:0]
        seen = {genome.tobytes() for genome in genomes}
        found: list[Genomes] = []

        def take(drafts: Genomes, most: int) -> None:
            for genome in drafts:
                if most > 0 and genome.tobytes() not in seen:
                    seen.add(genome.tobytes())
                    found.append(genome)
                    most -= 1

        violations = self.problem.violations(costs)
        order = np.lexsort((costs[:, self.problem.objective_columns[0]], violations))
        several = len(self.problem.objectives) > 1
        share = n // 4 if several else n // 2
        strata = self._strata(genomes[order], models, rng)
        prices: tuple[FloatArray, BoolArray] | None = None
        for stratum in strata:
            layers, choices = list(stratum.keys()), list(stratum.values())
            inside = order[np.all(genomes[order][:, layers] == np.array(choices, dtype=np.int64), axis=1)]
            centre = genomes[inside[0]] if len(inside) else None
            for radius in (None,) if self.tier == "free" else (None, _RADIUS):
                if radius is None or centre is not None:
                    drafts, priced = self._best(models, stratum, near=centre if radius else None)
                    prices = prices or priced
                    take(drafts, max(share // (2 * len(strata)), 1))
        if several:
            for drafts in self._along(models, strata, costs[order[: len(order) // 2 + 1]], rng):
                take(drafts, max(share // (2 * _LEVELS), 1))
        if self.tier == "free":
            return self._valid(found)
        if several:
            take(self._front(models, genomes[order[: 4 * n]], rng), n - len(found))
        tries = 2 * (n - len(found))
        while prices and len(found) < n and tries:
            tries -= 1
            take(self._drawn(models, prices, strata, rng), 1)
        return self._valid(found)

    def _valid(self, found: list[Genomes]) -> Genomes:
        proposed = np.array(found, dtype=np.int64).reshape(-1, self.rules.space.num_layers)
        return proposed[self.problem.space.valid(proposed)]

    def _strata(self, ranked: Genomes, models: list[Model], rng: np.random.Generator) -> list[dict[int, int]]:
        """Settings of the dominating layers to look into: the best genomes' first, then others at random."""
        pairs = [model.tables.pairs for model in models if isinstance(model.tables, Pairwise)]
        far = any(np.any(p[:, 1] - p[:, 0] != 1) for p in pairs)
        if not self.models.hubs or not far:
            return [{}]
        options = [np.flatnonzero(self.rules.allowed[hub]).tolist() for hub in self.models.hubs]
        settings = [tuple(genome) for genome in ranked[:, list(self.models.hubs)].tolist()]
        leading = list(dict.fromkeys(settings))[: _STRATA // 2]
        others = [setting for setting in itertools.product(*options) if setting not in leading]
        drawn = rng.permutation(len(others))[: _STRATA - len(leading)]
        return [
            dict(zip(self.models.hubs, setting, strict=True))
            for setting in leading + [others[i] for i in drawn]
        ]

    def _bounds(self, models: list[Model]) -> list[tuple[int, float]]:
        """The column and the tables' upper bound of each budget."""
        return [
            (column, models[column].bound(budget.at_most))
            for budget, column in zip(self.problem.budgets, self.problem.budget_columns, strict=True)
        ]

    def _along(
        self, models: list[Model], strata: list[dict[int, int]], costs: FloatArray, rng: np.random.Generator
    ) -> Iterator[Genomes]:
        """The ends of the front but the first, and the best first objective at levels of the others seen so far."""
        others = self.problem.objective_columns[1:]
        for column in others:
            yield self._best(models, strata[int(rng.integers(len(strata)))], first=column)[0]
        for _ in range(_LEVELS):
            column = others[int(rng.integers(len(others)))]
            level = models[column].bound(float(costs[int(rng.integers(len(costs))), column]))
            stratum = strata[int(rng.integers(len(strata)))]
            yield self._best(models, stratum, level=(column, level))[0]

    def _best(
        self,
        models: list[Model],
        stratum: Mapping[int, int],
        *,
        first: int | None = None,
        near: Genomes | None = None,
        level: tuple[int, float] | None = None,
    ) -> tuple[Genomes, tuple[FloatArray, BoolArray] | None]:
        """The cheapest genomes by the models in a stratum, and the prices of the budgets there.

        first: the column to minimise, by default that of the first objective. near: a genome that they may differ
        from in a few layers. level: a column and one more bound on its tables.
        """
        column = self.problem.objective_columns[0] if first is None else first
        bounds = self._bounds(models) + ([] if level is None else [level])
        tables = [conditioned(models[i].tables, stratum) for i in (column, *(i for i, _ in bounds))]
        if not all(is_chain(table) for table in tables):
            return np.empty((0, self.rules.space.num_layers), dtype=np.int64), None
        at_most = [bound for _, bound in bounds]
        if near is not None:
            differs = np.ones(self.rules.allowed.shape)
            differs[np.arange(len(near)), near] = 0.0
            tables.append(Additive(differs))
            at_most.append(float(_RADIUS))
        space = self.problem.space

        def check(genomes: Genomes) -> tuple[FloatArray, BoolArray]:
            fits = space.valid(genomes)
            for cost, bound in zip(tables[1:], at_most, strict=True):
                fits &= cost(genomes) <= bound
            return tables[0](genomes), fits

        paths = Chain(tables, rules=self.rules).cheapest(
            np.array(at_most, dtype=np.float64),
            check=check,
            count=_LABELS,
            labels=_LABELS,
            closed=self._closed(stratum),
        )
        plain = first is None and near is None and level is None
        if not plain or paths.prices is None or paths.closed is None:
            return paths.genomes, None
        return paths.genomes, (paths.prices, paths.closed)

    def _closed(self, stratum: Mapping[int, int]) -> BoolArray:
        closed = np.zeros(self.rules.allowed.shape, dtype=bool)
        for layer, choice in stratum.items():
            closed[layer] = True
            closed[layer, choice] = False
        return closed

    def _drawn(
        self,
        models: list[Model],
        prices: tuple[FloatArray, BoolArray],
        strata: list[dict[int, int]],
        rng: np.random.Generator,
    ) -> Genomes:
        """The cheapest genome (1, L) of a draw from the posterior, at prices near those of the budgets."""
        first = self.problem.objective_columns[0]
        stratum = strata[int(rng.integers(len(strata)))]
        draws = {i: models[i].draw(rng) for i in {first, *self.problem.budget_columns}}
        tables = [conditioned(draws[i], stratum) for i in (first, *self.problem.budget_columns)]
        chain = Chain(tables, rules=self.rules)
        paid, closed = prices
        jittered = paid * np.exp(_JITTER * rng.standard_normal(len(paid)))
        if stratum:
            closed = ~self.rules.allowed | self._closed(stratum)
        return self.rules.repair(chain.cheapest_at(jittered, closed=closed)[None], rng=rng)

    def _front(self, models: list[Model], start: Genomes, rng: np.random.Generator) -> Genomes:
        """Genomes spread over the front that the models predict."""
        problem = self.problem
        predicted = {i: models[i].predict for i in range(len(models))}
        inner = Problem(
            problem.space,
            objectives=tuple(
                replace(objective, cost=predicted[i], tier="free")
                for objective, i in zip(problem.objectives, problem.objective_columns, strict=True)
            ),
            budgets=tuple(
                replace(budget, cost=predicted[i])
                for budget, i in zip(problem.budgets, problem.budget_columns, strict=True)
            ),
        )
        front = self._spread(inner, start, int(rng.integers(2**31)))
        return front[_evenly(len(front))]

    def state(self) -> dict[str, Any]:
        """Everything but the evaluations, as JSON."""
        return {"trust": self.trust, **self.models.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.trust = state["trust"]
        self.models.restore(state)


def conditioned(tables: Tables, fixed: Mapping[int, int]) -> Tables:
    """The same cost where some layers are fixed: their pairs become part of the other layer's table."""
    if not fixed or not isinstance(tables, Pairwise):
        return tables
    table = tables.table.copy()
    kept = np.ones(len(tables.pairs), dtype=bool)
    for i, (first, second) in enumerate(tables.pairs.tolist()):
        if first in fixed:
            table[second] += tables.together[i, fixed[first]]
        elif second in fixed:
            table[first] += tables.together[i, :, fixed[second]]
        else:
            continue
        kept[i] = False
    return Pairwise(table, pairs=tables.pairs[kept], together=tables.together[kept], constant=tables.constant)


def _evenly(n: int) -> Genomes:
    """0..n-1 such that every beginning of the order is spread over the whole: ends first, then halves."""
    order = np.argsort([int(f"{i:b}"[::-1].ljust(24, "0"), 2) for i in range(max(n - 1, 0))], kind="stable")
    return np.concatenate(([n - 1], order))[:n].astype(np.int64) if n else np.empty(0, dtype=np.int64)
