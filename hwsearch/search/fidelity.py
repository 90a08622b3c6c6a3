"""Search with few expensive evaluations: a learnt model proposes, cheap fidelities filter, few are measured in full.

Each round a model of the expensive objective is fitted to everything measured so far (`GenomeGP`: a Gaussian
process that learns the noise of every fidelity). An evolution, which costs nothing, spreads along the trade-offs
between the model's lower confidence bound and the other objectives, within the budgets; of what it finds, the genomes
that would add most hypervolume to the front are measured, each chosen as if those before it came out as well as hoped
(hypervolume improvement of the confidence bound, in the manner of SMS-EGO: Ponweiser et al., 2008). They are measured
at the lowest fidelity first. The best of all that a fidelity has measured, in this round or an earlier one, go on to
the next (successive halving whose rungs stay open: Jamieson and Talwalkar, 2016; Li et al., 2020). What is best, the
model says after these measurements: a single cheap one is too rough to drop a genome for good. Measurements below full
fidelity enter the model after a straight line, fitted on genomes measured at both, has brought them to its scale.

Everything runs through `Evaluator`, so a study holds every evaluation with its fidelity; a resumed search takes the
same steps and finds them there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import InfeasibleError, InputError
from hwsearch.genome_gp import GenomeGP
from hwsearch.search.engine import SearchResult, summary
from hwsearch.search.evaluation import Evaluator, Measured
from hwsearch.search.evolution import Evolution
from hwsearch.search.exact import minimise
from hwsearch.search.executors import Executor
from hwsearch.search.hypervolume import hypervolume, reference_point
from hwsearch.search.infeasible import explain
from hwsearch.search.pareto import Archive, constrained_ranks, crowding_distance, knee
from hwsearch.search.problem import Additive, Objective, Pairwise, Problem
from hwsearch.search.pruning import pruned
from hwsearch.search.space import FloatArray, Genomes
from hwsearch.search.study import Study

__all__ = ["FidelityResult", "Round", "fidelity_search"]

_POPULATION, _GENERATIONS = (
    60,
    25,
)  # of the evolution on the model, which costs nothing but the engine's own time
_DRAWS = 6  # of the model's tables, each minimised exactly
_PRIORS = 4  # random objectives whose trade-offs make the first candidates
_CAUTION = 1.0  # standard deviations below the mean that are hoped for
_PROBED = 512  # genomes drawn to see whether a space is so small that all of it can be measured
_MODELLED = 2  # genomes measured for each layer before there is a model
_PAIRED = 4  # genomes measured at both fidelities before a line is drawn through them


@dataclass(frozen=True)
class Round:
    """Where a search stands after a round: full evaluations, those at every fidelity, and the best within budgets."""

    number: int
    full: int
    measured: int
    best: float | None
    hypervolume: float


@dataclass(frozen=True, eq=False)
class FidelityResult:
    """The front of what was measured in full: genomes (f, layers), objectives (f, m), the best first.

    full: evaluations at full fidelity; by_fidelity: evaluations at each; failed: those that failed among them.
    """

    genomes: Genomes
    objectives: FloatArray
    full: int
    by_fidelity: dict[float, int]
    failed: int


def fidelity_search(
    problem: Problem,
    *,
    seed: int,
    evaluations: int,
    batch: int = 8,
    halving: int = 3,
    executor: Executor | None = None,
    study: Study | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> FidelityResult:
    """The best trade-offs from `evaluations` measurements of the first objective at full fidelity.

    The problem's first objective has a `Measured` cost; all others, and the budgets, cost nothing. Each round takes
    `batch` full measurements, and `halving` times as many at each fidelity below.

    Raises InfeasibleError where nothing meets the budgets.
    """
    cost = problem.objectives[0].cost
    if not isinstance(cost, Measured) or problem.objectives[0].tier != "expensive":
        raise InputError(
            "the first objective must be expensive, with a Measured cost; for others use `search`"
        )
    if evaluations < 1 or batch < 1 or halving < 2:
        raise InputError(
            f"evaluations and batch must be at least 1 and halving 2, got {evaluations}, {batch} and {halving}"
        )
    if study:
        study.bind("engine", {"solver": "fidelity", "batch": batch, "halving": halving, "seed": seed})
        study.bind_problem(problem)
    run = _Run(pruned(problem), cost, seed, executor, study)
    number = spent = 0
    while spent < evaluations:
        finalists = min(batch, evaluations - spent)
        candidates = run.candidates(finalists * halving ** (len(cost.fidelities) - 1))
        if not len(candidates):
            break
        run.measure(candidates, finalists, halving)
        spent += finalists
        number += 1
        if on_round:
            on_round(run.progress(number))
    if not len(run.archive):
        raise InfeasibleError(explain(problem))
    if study:
        found = SearchResult(
            genomes=run.archive.genomes,
            objectives=run.archive.objectives,
            knee=knee(run.archive.objectives),
            evaluations=run.full,
            exact=None,
        )
        ran = {"solver": "fidelity", "seed": seed, "settings": study.recall("settings")}
        study.finish(summary(problem, found, ran))
    return FidelityResult(
        genomes=run.archive.genomes,
        objectives=run.archive.objectives,
        full=run.full,
        by_fidelity={fidelity: len(found) for fidelity, found in run.found.items()},
        failed=sum(not np.isfinite(costs).all() for found in run.found.values() for costs in found.values()),
    )


class _Run:
    def __init__(
        self, problem: Problem, cost: Measured, seed: int, executor: Executor | None, study: Study | None
    ) -> None:
        self.problem = problem
        self.fidelities = cost.fidelities
        self.evaluators = {
            fidelity: Evaluator(problem, seed=seed, executor=executor, study=study, fidelity=fidelity)
            for fidelity in cost.fidelities
        }
        self.found: dict[float, dict[tuple[int, ...], FloatArray]] = {f: {} for f in cost.fidelities}
        self.archive = Archive(num_layers=problem.space.num_layers, num_objectives=len(problem.objectives))
        self._column = problem.objective_columns[0]
        self._rng = np.random.default_rng(seed)
        self._reference: FloatArray | None = None

    @property
    def full(self) -> int:
        return len(self.found[1.0])

    def progress(self, number: int) -> Round:
        assert self._reference is not None
        return Round(
            number=number,
            full=self.full,
            measured=sum(map(len, self.found.values())),
            best=float(self.archive.objectives[0, 0]) if len(self.archive) else None,
            hypervolume=hypervolume(self.archive.objectives, self._reference),
        )

    def candidates(self, count: int) -> Genomes:
        """At most `count` genomes within the budgets that were not measured yet, (c, layers)."""
        genomes, values, rungs = self._known()
        if len(genomes) < _MODELLED * self.problem.space.num_layers:
            return self._first(count)
        model = self._model(genomes, values, rungs)

        def hoped(asked: Genomes) -> FloatArray:
            mean, deviation = model.predict(asked)
            return mean - _CAUTION * deviation

        pool, objectives = self._spread(hoped, count, self._optima(model))
        return pool[self._improving(objectives, count)]

    def _model(self, genomes: Genomes, values: FloatArray, rungs: NDArray[np.int64]) -> GenomeGP:
        choices = self.problem.space.allowed_mask.shape[1]
        return GenomeGP.fit(genomes, values, num_choices=choices, fidelity=rungs)

    def _optima(self, model: GenomeGP) -> Genomes:
        """The exact optima within the budgets of what the model says adds up over layers, and of draws around it."""
        if not all(isinstance(budget.cost, Additive | Pairwise) for budget in self.problem.budgets):
            return np.empty((0, self.problem.space.num_layers), dtype=np.int64)
        mean, deviation = model.layers()
        found = []
        for strength in np.repeat([0.0, 1.0], [1, _DRAWS]):
            table = Additive(mean + strength * deviation * self._rng.normal(size=mean.shape))
            best = minimise(self.problem.space, table, self.problem.budgets)
            if best is not None and best.genome is not None:
                found.append(best.genome)
        return np.array(found, dtype=np.int64).reshape(len(found), self.problem.space.num_layers)

    def _known(self) -> tuple[Genomes, FloatArray, NDArray[np.int64]]:
        """Every measurement: genomes (n, layers), values (n,) brought to the full scale, number of its fidelity."""
        genomes: list[tuple[int, ...]] = []
        values: list[float] = []
        rungs: list[int] = []
        for rung, fidelity in enumerate(self.fidelities):
            slope, offset = self._line(fidelity)
            for genome, costs in self.found[fidelity].items():
                if np.isfinite(costs).all():
                    genomes.append(genome)
                    values.append(slope * costs[self._column] + offset)
                    rungs.append(rung)
        array = np.array(genomes, dtype=np.int64).reshape(len(genomes), self.problem.space.num_layers)
        return array, np.array(values), np.array(rungs, dtype=np.int64)

    def _line(self, fidelity: float) -> tuple[float, float]:
        """Slope and offset from values at a fidelity to full ones; as they are where too few are known at both."""
        low, high, at = self.found[fidelity], self.found[1.0], self._column
        both = [(low[g][at], high[g][at]) for g in high if g in low and np.isfinite((low[g], high[g])).all()]
        if fidelity == 1 or len(both) < _PAIRED:
            return 1.0, 0.0
        x, y = np.array(both).T
        spread = float(np.var(x))
        slope = float(np.cov(x, y, bias=True)[0, 1]) / spread if spread > 0 else 1.0
        slope = (
            slope if slope > 0 else 1.0
        )  # a fidelity that ranks the wrong way round is no reason to follow it
        return slope, float(y.mean() - slope * x.mean())

    def _first(self, count: int) -> Genomes:
        """Candidates before there is a model: all where there are no more, else trade-offs of random objectives."""
        everything = self._small(count)
        if everything is not None:
            return everything
        parts = []
        for _ in range(_PRIORS):
            table = Additive(self._rng.normal(size=self.problem.space.allowed_mask.shape))
            pool, _ = self._spread(table, count)
            parts.append(self._rng.permutation(pool)[: -(-count // _PRIORS)])
        return np.unique(np.concatenate(parts), axis=0)[:count]

    def _small(self, count: int) -> Genomes | None:
        """Everything within the budgets that was not measured yet, where a sample shows no more than `count` of it."""
        space = self.problem.space
        found = np.unique(space.sample(_PROBED, rng=np.random.default_rng(0)), axis=0)
        if len(found) > _PROBED // 8:
            return None  # too many to be sure that the sample has them all
        known = {genome for measured in self.found.values() for genome in measured}
        fits = np.array([tuple(genome) not in known for genome in found.tolist()])
        for budget in self.problem.budgets:
            fits &= budget.cost(found) <= budget.at_most
        return found[fits] if fits.sum() <= count else None

    def _spread(
        self, cost: Callable[[Genomes], FloatArray], count: int, more: Genomes | None = None
    ) -> tuple[Genomes, FloatArray]:
        """The front and near-front of a stand-in for the expensive objective, without what was measured.

        more: genomes (n, layers) to consider beside what an evolution finds.
        """
        stand_in = Objective(self.problem.objectives[0].name, cost=cost, tier="free")
        problem = replace(self.problem, objectives=(stand_in, *self.problem.objectives[1:]))
        evolution = Evolution(
            problem, population=max(_POPULATION, 2 * count), seed=int(self._rng.integers(2**32))
        )
        asked: list[Genomes] = [] if more is None or not len(more) else [np.unique(more, axis=0)]
        costs: list[FloatArray] = [problem.costs(genomes) for genomes in asked]
        while evolution.generation < _GENERATIONS:
            genomes = evolution.ask()
            asked.append(genomes)
            costs.append(problem.costs(genomes))
            evolution.tell(genomes, costs[-1])
        genomes, first = np.unique(np.concatenate(asked), axis=0, return_index=True)
        values = np.concatenate(costs)[first]
        known = {genome for found in self.found.values() for genome in found}
        fresh = np.array([tuple(genome) not in known for genome in genomes.tolist()])
        fresh &= problem.violations(values) <= 0
        genomes, objectives = genomes[fresh], values[fresh][:, problem.objective_columns]
        if not len(genomes):
            return genomes, objectives
        ranks = constrained_ranks(objectives, np.zeros(len(objectives)))
        best = np.lexsort((-crowding_distance(objectives, ranks), ranks))[: 2 * count]
        return genomes[best], objectives[best]

    def _improving(self, objectives: FloatArray, count: int) -> list[int]:
        """Rows of objectives (n, m) that add most hypervolume to the front, each as if those before it came true.

        A quarter are those with the least first objective instead, because that is what decides the best.
        """
        assert self._reference is not None
        chosen: list[int] = np.argsort(objectives[:, 0], kind="stable")[: -(-count // 4)].tolist()
        front = np.concatenate((self.archive.objectives, objectives[chosen]))
        left = [i for i in range(len(objectives)) if i not in chosen]
        while left and len(chosen) < count:
            gains = [hypervolume(np.concatenate((front, objectives[[i]])), self._reference) for i in left]
            best = left[int(np.argmax(gains))]
            chosen.append(best)
            left.remove(best)
            front = np.concatenate((front, objectives[[best]]))
        return chosen

    def measure(self, candidates: Genomes, finalists: int, halving: int) -> None:
        """Measures candidates (c, layers) at rising fidelities, so that `finalists` reach the full one."""
        last = len(self.fidelities) - 1
        for rung, fidelity in enumerate(self.fidelities):
            costs = self.evaluators[fidelity](candidates)
            self.found[fidelity] |= dict(zip(map(tuple, candidates.tolist()), costs, strict=True))
            good = np.isfinite(costs).all(axis=1)
            candidates, costs = candidates[good], costs[good]
            if self._reference is None and len(candidates):
                self._reference = reference_point(costs[:, self.problem.objective_columns])
            if rung < last:
                candidates = self._promoted(rung, finalists * halving ** (last - rung - 1))
        feasible = self.problem.violations(costs) <= 0
        if feasible.any():
            self.archive.add(candidates[feasible], costs[feasible][:, self.problem.objective_columns])

    def _promoted(self, rung: int, count: int) -> Genomes:
        """What to measure at the next fidelity of all that was measured at this one, at most `count` genomes."""
        low, high = (self.found[fidelity] for fidelity in self.fidelities[rung : rung + 2])
        open_ = [genome for genome, costs in low.items() if genome not in high and np.isfinite(costs).all()]
        genomes = np.array(open_, dtype=np.int64).reshape(len(open_), self.problem.space.num_layers)
        if not open_:
            return genomes
        objectives = np.array([low[genome] for genome in open_])[:, self.problem.objective_columns]
        objectives[:, 0] = self._model(*self._known()).predict(genomes)[0]
        return genomes[self._improving(objectives, count)]
