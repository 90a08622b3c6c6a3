"""Evolution: NSGA-II with constraint domination, duplicate elimination, and refinement at the budget.

Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (2002). Feasible genomes come before
infeasible ones, those before others by their front and crowding, infeasible ones by their violation. Added to
it: every genome is evaluated once at most, and an eighth of each generation comes from `Effects.refine`.

`ask` proposes genomes and `tell` takes their costs, so that who evaluates, and what is written down, is the
caller's business. All randomness is spent in `ask`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hwsearch.errors import InputError
from hwsearch.search.effects import Effects
from hwsearch.search.pareto import Archive, constrained_ranks, crowding_distance
from hwsearch.search.problem import Problem
from hwsearch.search.rules import Rules
from hwsearch.search.space import FloatArray, Genomes
from hwsearch.search.variation import mutate, vary

__all__ = ["Evolution"]

_ATTEMPTS = 4  # how often a generation is topped up where children turn out to be known already
_STEPS = 3
_SHAKES = 2
_LEARNT = 8  # the effects are learnt from the first so many generations, then from every so many-th


class Evolution:
    """The state of one run. The same seed and the same answers give the same questions."""

    def __init__(self, problem: Problem, *, population: int, seed: int) -> None:
        if population < 4:
            raise InputError(f"a population needs at least 4 genomes, got {population}")
        space = problem.space
        self.problem = problem
        self.size = population
        self.generation = 0
        self.evaluations = 0
        self.rules = Rules(space)
        self.archive = Archive(num_layers=space.num_layers, num_objectives=len(problem.objectives))
        self.population = np.empty(0, dtype=np.int64)  # evaluation numbers, best first
        self._rng = np.random.default_rng(seed)
        self._seen: set[bytes] = set()
        self._batches: list[tuple[Genomes, FloatArray]] = []
        self._genomes = np.empty((0, space.num_layers), dtype=np.int64)  # of the population
        self._costs = np.empty((0, len(problem.distinct)))
        self._effects = Effects(
            num_layers=space.num_layers,
            num_choices=space.allowed_mask.shape[1],
            num_costs=len(problem.distinct),
        )

    def ask(self) -> Genomes:
        """The next generation, (n, layers): valid, all different, never asked before; n may be 0."""
        batch: list[Genomes] = []
        taken: set[bytes] = set()
        count = 0
        for attempt in range(_ATTEMPTS):
            missing = self.size - count
            if not missing:
                break
            if self.generation == 0:
                candidates = self._seeds(missing, corners=attempt == 0)
            else:
                candidates = vary(self._genomes, missing, rules=self.rules, rng=self._rng)
                if attempt == 0:
                    candidates = np.concatenate((self._refined(), candidates))
            fresh = []
            for i, key in enumerate(_keys(candidates)):
                if key not in self._seen and key not in taken and count < self.size:
                    taken.add(key)
                    fresh.append(i)
                    count += 1
            batch.append(candidates[fresh])
        return np.ascontiguousarray(np.concatenate(batch))

    def _seeds(self, n: int, *, corners: bool) -> Genomes:
        """Random genomes, after one per choice that has it wherever it may stand."""
        genomes = self.problem.space.sample(n, rng=self._rng)
        if corners:
            repeated = [
                np.where(self.rules.allowed[:, choice], choice, genomes[choice % n])
                for choice in range(self.rules.num_choices)
            ]
            genomes = np.concatenate((self.rules.repair(np.array(repeated), rng=self._rng), genomes))
        return genomes

    def _refined(self) -> Genomes:
        """What the effects learnt so far suggest, at most an eighth of a generation.

        In turns: the best genome, and a copy with a few layers or a tied group changed; then a genome built
        from the effects at the budgets, and one that must also be no worse in the second objective than a
        member of the population, which sharpens the rest of the front. All are refined by exchange moves.
        """
        problem, rng = self.problem, self._rng
        bounds = np.full(len(problem.distinct), np.inf)
        for budget, column in zip(problem.budgets, problem.budget_columns, strict=True):
            bounds[column] = min(bounds[column], budget.at_most)
        best = self._best_row()
        if self.generation % 2:
            starts = [(self._genomes[best], self._costs[best], bounds)]
            shaken = self._switched(self._genomes[[best]])
            for _ in range(_SHAKES):
                shaken = mutate(shaken, rules=self.rules, rng=rng)
            drafts = [(shaken, bounds)]
        else:
            starts = []
            drafts = [(self._effects.construct(bounds, rules=self.rules, rng=rng), bounds)]
            if len(problem.objectives) > 1:
                column = problem.objective_columns[1]
                tighter = bounds.copy()
                row = int(rng.integers(len(self._genomes)))
                tighter[column] = min(tighter[column], self._costs[row, column])
                drafts.append((self._effects.construct(tighter, rules=self.rules, rng=rng), tighter))
        for draft, limits in drafts:
            for genome in self.rules.repair(draft, rng=rng):
                costs = self._effects.predict(genome, near=self._genomes[best], costs=self._costs[best])
                starts.append((genome, costs, limits))
        found = [self._genomes[:0]]
        for genome, costs, limits in starts:
            path = self._effects.refine(
                genome, costs=costs, bounds=limits, steps=_STEPS, rules=self.rules, rng=rng
            )
            found.append(path[::-1][: max(self.size // 16, 1)])
        return np.concatenate(found)

    def _switched(self, genomes: Genomes) -> Genomes:
        """Genomes (n, layers) with one tied group changed to one of its members."""
        if self.rules.ties:
            tie = self.rules.ties[int(self._rng.integers(len(self.rules.ties)))]
            target = self._rng.choice(np.flatnonzero(tie.members))
            genomes = np.where(tie.members[genomes], tie.partner[genomes, target], genomes)
        return genomes

    def _best_row(self) -> int:
        """The row of the population with the least violation, and among those the least first objective."""
        violations = self.problem.violations(self._costs)
        return int(np.lexsort((self._costs[:, self.problem.objective_columns[0]], violations))[0])

    def tell(self, genomes: Genomes, costs: FloatArray) -> None:
        """Takes the costs (n, k) of the genomes (n, layers) that `ask` proposed, and selects."""
        first = self.evaluations
        self._absorb(genomes, costs)
        numbers = np.concatenate((self.population, np.arange(first, first + len(genomes))))
        pool = np.concatenate((self._genomes, genomes))
        pool_costs = np.concatenate((self._costs, costs))
        objectives = pool_costs[:, self.problem.objective_columns]
        ranks = constrained_ranks(objectives, self.problem.violations(pool_costs))
        crowding = crowding_distance(objectives, ranks)
        kept = np.lexsort((-crowding, ranks))[: self.size]
        self.population, self._genomes, self._costs = numbers[kept], pool[kept], pool_costs[kept]

    def _absorb(self, genomes: Genomes, costs: FloatArray) -> None:
        """Everything that depends on the evaluations alone; a restored run goes through it again."""
        self._seen.update(_keys(genomes))
        objectives = costs[:, self.problem.objective_columns]
        violations = self.problem.violations(costs)
        feasible = violations <= 0
        if feasible.any():
            self.archive.add(genomes[feasible], objectives[feasible])
        self.generation += 1
        self.evaluations += len(genomes)
        if len(genomes) and (self.generation <= _LEARNT or self.generation % _LEARNT == 0):
            self._effects.add(genomes, costs)
            self._effects.fit()

    def state(self) -> dict[str, Any]:
        """The random state and the population, as JSON; with the evaluations it makes the run whole again."""
        return {"rng": self._rng.bit_generator.state, "population": self.population.tolist()}

    def restore(self, batches: list[tuple[Genomes, FloatArray]], state: Mapping[str, Any]) -> None:
        """Takes a new run to where another was: its genomes and costs by generation, and its last state."""
        assert self.generation == 0
        for genomes, costs in batches:
            self._absorb(genomes, costs)
        self.population = np.array(state["population"], dtype=np.int64)
        self._genomes = np.concatenate([genomes for genomes, _ in batches])[self.population]
        self._costs = np.concatenate([costs for _, costs in batches])[self.population]
        self._rng.bit_generator.state = state["rng"]


def _keys(genomes: Genomes) -> list[bytes]:
    """A hashable value per genome."""
    data = np.ascontiguousarray(genomes).tobytes()
    width = genomes.shape[1] * genomes.itemsize
    return [data[i : i + width] for i in range(0, len(data), width)]
