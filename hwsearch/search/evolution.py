"""Evolution: constraint domination, duplicate elimination, adaptive operators, and guidance by a learnt model.

Two objectives are selected by front and crowding (Deb et al., NSGA-II, 2002), more by front and reference
directions (NSGA-III, see `reference`). Feasible genomes come before infeasible ones, those before others by their
violation, a sum of shares of each budget. Every genome is evaluated once at most. Where a model of the evaluations
so far predicts well, most of a generation comes from it (`guide`).

`ask` proposes genomes and `tell` takes their costs, so that who evaluates, and what is written down, is the
caller's business. All randomness is spent in `ask`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hwsearch.errors import InputError
from hwsearch.search.guide import Guide
from hwsearch.search.pareto import Archive, constrained_ranks, crowding_distance
from hwsearch.search.problem import Additive, Pairwise, Problem
from hwsearch.search.reference import directions, survivors
from hwsearch.search.rules import Rules
from hwsearch.search.space import BoolArray, FloatArray, Genomes
from hwsearch.search.thrift import Thrift
from hwsearch.search.variation import Rates, corners, vary

__all__ = ["Evolution"]

_ATTEMPTS = 4  # how often a generation is topped up where children turn out to be known already
_GUIDED = 0.75  # of a generation comes from the model, where there is one to trust
_SEEN_OFTEN = 5  # evaluations of a choice in a layer that are enough to judge it by
_INNER_POPULATION, _INNER_GENERATIONS = 100, 30


class Evolution:
    """The state of one run. The same seed and the same answers give the same questions.

    guided: whether a model may propose. start: genomes (s, layers) to begin with.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        population: int,
        seed: int,
        guided: bool = True,
        start: Genomes | None = None,
    ) -> None:
        if population < 4:
            raise InputError(f"a population needs at least 4 genomes, got {population}")
        space = problem.space
        self.problem = problem
        self.size = population
        self.generation = 0
        self.evaluations = 0
        self.failed = 0
        self.rules = Rules(space)
        self.rates = Rates(self.rules)
        self.guide = Guide(problem, rules=self.rules, spread=_spread) if guided else None
        self.archive = Archive(num_layers=space.num_layers, num_objectives=len(problem.objectives))
        self.population = np.empty(0, dtype=np.int64)  # numbers of evaluations that did not fail, best first
        known = [budget for budget in problem.budgets if isinstance(budget.cost, Additive | Pairwise)]
        # An evaluation that is free takes less time than a repair.
        self._thrift = Thrift(known, rules=self.rules) if known and problem.tier != "free" else None
        self._rng = np.random.default_rng(seed)
        self._start = start
        self._seen: set[bytes] = set()
        self._batches: list[tuple[Genomes, FloatArray]] = []
        self._genomes = np.empty((0, space.num_layers), dtype=np.int64)  # of the population
        self._costs = np.empty((0, len(problem.distinct)))
        self._used = np.empty((0, len(self.rates.names)), dtype=bool)  # by the children asked about last
        m = len(problem.objectives)
        self._towards = directions(m, at_most=population) if m > 2 else None

    def ask(self, *, at_most: int | None = None) -> Genomes:
        """The next generation, (n, layers): valid, all different, never asked before; n may be 0.

        at_most: how many genomes at the most, if less than the population.
        """
        size = self.size if at_most is None else min(self.size, at_most)
        batch: list[Genomes] = []
        marks: list[BoolArray] = []
        taken: set[bytes] = set()

        def take(candidates: Genomes, used: BoolArray | None) -> None:
            fresh = []
            for i, key in enumerate(_keys(candidates)):
                if key not in self._seen and key not in taken and len(taken) < size:
                    taken.add(key)
                    fresh.append(i)
            batch.append(candidates[fresh])
            blank = np.zeros((len(fresh), len(self.rates.names)), dtype=bool)
            marks.append(blank if used is None else used[fresh])

        if self.generation == 0:
            take(self._seeds(size), None)
        elif self.guide:
            take(self._guided(self.guide, size), None)
        for _ in range(_ATTEMPTS):
            missing = size - len(taken)
            if not missing:
                break
            if len(self._genomes):
                take(
                    *vary(
                        self._genomes,
                        missing + missing // 8,
                        rules=self.rules,
                        rates=self.rates,
                        rng=self._rng,
                    )
                )
            else:
                take(self.problem.space.sample(missing, rng=self._rng), None)
        self._used = np.concatenate(marks)
        return np.ascontiguousarray(np.concatenate(batch))

    def _seeds(self, n: int) -> Genomes:
        """What to start from: given genomes, corners, and genomes that cover every choice of every layer evenly."""
        spread = self._even(n)
        edges = corners(spread, rules=self.rules, rng=self._rng)[: n // 4]
        given = spread[:0] if self._start is None else self._start
        return np.concatenate((given, edges, spread))

    def _even(self, n: int) -> Genomes:
        """n random genomes, brought within the budgets that are known; without rules all choices equally often."""
        spread = self._uniform(n)
        if self._thrift is None:
            return spread
        return self._thrift.within(spread, loss=self._rng.random((n, *self.rules.allowed.shape)))

    def _uniform(self, n: int) -> Genomes:
        if not self.rules.free:
            return self.problem.space.sample(n, rng=self._rng)
        columns = []
        for allowed in self.rules.allowed:
            options = np.flatnonzero(allowed)
            repeated = np.tile(options, -(-n // len(options)))[:n]
            columns.append(self._rng.permutation(repeated))
        return np.stack(columns, axis=1)

    def _guided(self, guide: Guide, size: int) -> Genomes:
        """What the model proposes; before there is one, more genomes to learn it from.

        Where evaluations are free half of these are left to the evolution, and all as soon as every choice was seen
        often enough: alone it would leave choices unknown where there are many.
        """
        known = self.evaluations - self.failed
        if known < guide.models.first_fit:
            if guide.tier == "free" and self._rarest() >= _SEEN_OFTEN:
                return self._genomes[:0]
            share = size // 2 if guide.tier == "free" else size
            return self._even(min(share, guide.models.first_fit - known))
        if not guide.due(known):
            return self._genomes[:0]
        genomes = np.concatenate([genomes for genomes, _ in self._batches])
        costs = np.concatenate([costs for _, costs in self._batches])
        share = max(int(_GUIDED * size), 1)
        return guide.propose(genomes, costs, share, rng=self._rng)

    def _rarest(self) -> int:
        """How often the choice was evaluated, of all layers and choices allowed there, that was evaluated least."""
        genomes = np.concatenate([genomes for genomes, _ in self._batches])
        counts = [np.bincount(column, minlength=len(self.rules.allowed[0])) for column in genomes.T]
        return int(np.array(counts)[self.rules.allowed].min())

    def tell(self, genomes: Genomes, costs: FloatArray) -> None:
        """Takes the costs (n, k) of the genomes (n, layers) that `ask` proposed, and selects.

        A row that is not finite failed: it counts, is not asked for again, and takes part in nothing else.
        """
        first = self.evaluations - self.failed
        old = len(self._genomes)
        known = self._absorb(genomes, costs)
        used = self._used[known] if len(self._used) == len(genomes) else self._used[:0]
        genomes, costs = genomes[known], costs[known]
        numbers = np.concatenate((self.population, np.arange(first, first + len(genomes))))
        pool = np.concatenate((self._genomes, genomes))
        pool_costs = np.concatenate((self._costs, costs))
        kept = self._selected(pool_costs)
        self.population, self._genomes, self._costs = numbers[kept], pool[kept], pool_costs[kept]
        if old and len(used) == len(genomes):
            survived = np.zeros(len(pool), dtype=bool)
            survived[kept] = True
            made = used.any(axis=1)
            self.rates.learn(used[made], survived[old:][made])

    def _selected(self, costs: FloatArray) -> Genomes:
        """Which rows of costs (p, k) form the next population, best first."""
        objectives = costs[:, self.problem.objective_columns]
        ranks = constrained_ranks(objectives, self.problem.violations(costs))
        if self._towards is not None:
            return survivors(objectives, ranks, self.size, towards=self._towards)
        if objectives.shape[1] == 1:
            return np.argsort(ranks, kind="stable")[: self.size]
        crowding = crowding_distance(objectives, ranks)
        return np.lexsort((-crowding, ranks))[: self.size]

    def _absorb(self, genomes: Genomes, costs: FloatArray) -> BoolArray:
        """Everything that depends on the evaluations alone; a restored run goes through it again. Who did not fail."""
        known: BoolArray = np.all(np.isfinite(costs), axis=1)
        self._seen.update(_keys(genomes))
        self.generation += 1
        self.evaluations += len(genomes)
        self.failed += int((~known).sum())
        genomes, costs = genomes[known], costs[known]
        if self.guide:
            self._batches.append((genomes, costs))
        objectives = costs[:, self.problem.objective_columns]
        feasible = self.problem.violations(costs) <= 0
        if feasible.any():
            self.archive.add(genomes[feasible], objectives[feasible])
        return known

    def state(self) -> dict[str, Any]:
        """Random state, population and what was learnt, as JSON; with the evaluations it makes the run whole again."""
        return {
            "rng": self._rng.bit_generator.state,
            "population": self.population.tolist(),
            "rates": self.rates.state(),
            "guide": self.guide.state() if self.guide else None,
        }

    def restore(self, batches: list[tuple[Genomes, FloatArray]], state: Mapping[str, Any]) -> None:
        """Takes a new run to where another was: its genomes and costs by generation, and its last state."""
        assert self.generation == 0
        kept = [(genomes, costs, self._absorb(genomes, costs)) for genomes, costs in batches]
        self.population = np.array(state["population"], dtype=np.int64)
        self._genomes = np.concatenate([genomes[known] for genomes, _, known in kept])[self.population]
        self._costs = np.concatenate([costs[known] for _, costs, known in kept])[self.population]
        self._rng.bit_generator.state = state["rng"]
        self.rates.restore(state["rates"])
        if self.guide:
            self.guide.restore(state["guide"])


def _spread(problem: Problem, start: Genomes, seed: int) -> Genomes:
    """The front (f, layers) of a problem that costs next to nothing to evaluate, by a short evolution."""
    evolution = Evolution(problem, population=_INNER_POPULATION, seed=seed, guided=False, start=start)
    for _ in range(_INNER_GENERATIONS):
        genomes = evolution.ask()
        evolution.tell(genomes, problem.costs(genomes))
    return evolution.archive.genomes


def _keys(genomes: Genomes) -> list[bytes]:
    """A hashable value per genome."""
    data = np.ascontiguousarray(genomes).tobytes()
    width = genomes.shape[1] * genomes.itemsize
    return [data[i : i + width] for i in range(0, len(data), width)]
