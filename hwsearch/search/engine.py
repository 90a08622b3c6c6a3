"""The search: evolution, and where everything adds up over layers the exact optimum that it is measured by.

The exact optimum is found first, because an unreachable budget should be reported at once; the evolution never
sees it, so the gap between the two says how far evolution would be off where no exact solver applies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from hwsearch.errors import InfeasibleError, InputError
from hwsearch.search.beam import beam_search
from hwsearch.search.evaluation import Evaluator
from hwsearch.search.evolution import Evolution
from hwsearch.search.exact import ExactResult, minimise
from hwsearch.search.front import exact_front
from hwsearch.search.hypervolume import hypervolume, reference_point
from hwsearch.search.infeasible import explain
from hwsearch.search.pareto import Archive, knee
from hwsearch.search.problem import Additive, Pairwise, Problem
from hwsearch.search.pruning import pruned
from hwsearch.search.space import FloatArray, Genomes
from hwsearch.search.study import Study

__all__ = ["GENERATIONS", "POPULATION", "Progress", "SearchResult", "Solver", "search", "summary"]

Solver = Literal["auto", "exact", "evolve", "beam"]
POPULATION = 200
GENERATIONS = 200


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a search stands after a generation; best is the least first objective within the budgets so far.

    objectives: of the front, (f, m). reference: the worst values of the first generation, (m,).
    """

    generation: int
    generations: int
    evaluations: int
    front: int
    best: float | None
    exact: ExactResult | None
    objectives: FloatArray
    reference: FloatArray | None

    @property
    def hypervolume(self) -> float:
        """That of the front, against the worst values of the first generation."""
        return 0.0 if self.reference is None else hypervolume(self.objectives, self.reference)

    @property
    def gap(self) -> float | None:
        """By how much the best exceeds the exact bound so far, as a share of it."""
        return None if self.best is None else _gap(self.best, self.exact)


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The front found, (f, layers) genomes with (f, m) objectives, sorted by objectives: the best comes first.

    best: least first objective, ties broken by the next ones, then by genome. knee: see `pareto.knee`.
    gap: by how much the best exceeds the exact bound, as a share of it; None where there is no exact solver.
    """

    genomes: Genomes
    objectives: FloatArray
    knee: int
    evaluations: int
    exact: ExactResult | None

    best: int = 0

    @property
    def gap(self) -> float | None:
        return _gap(float(self.objectives[self.best, 0]), self.exact)

    def pick(self, which: str) -> int:
        """The row of the front that "best", "knee" or a number names. Raises InputError for anything else."""
        if which in ("best", "knee"):
            return self.best if which == "best" else self.knee
        if not which.isdecimal() or int(which) >= len(self.genomes):
            raise InputError(
                f"cannot pick {which!r}: write best, knee, or a number from 0 to {len(self.genomes) - 1}"
            )
        return int(which)


def _gap(value: float, exact: ExactResult | None) -> float | None:
    if exact is None or not np.isfinite(exact.bound):
        return None
    return (value - exact.bound) / (abs(exact.bound) or abs(value)) if value > exact.bound else 0.0


def search(
    problem: Problem,
    *,
    seed: int,
    solver: Solver = "auto",
    population: int | None = None,
    generations: int = GENERATIONS,
    evaluations: int | None = None,
    study: Study | None = None,
    evaluate: Callable[[Genomes], FloatArray] | None = None,
    on_generation: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """The best trade-offs of a problem within its budgets.

    solver: "exact" gives the whole exact front where everything comes as tables, "evolve" the evolution alone,
    "beam" a beam search; "auto" the evolution, with the exact optimum beside it, or a lower bound on it where only
    the objective and some budgets come as tables. See docs/solvers.md.
    evaluations: at most so many, in place of generations; the population is then a fortieth of it by default, at
    least 20, else 200. A study that is gone on with keeps its population.

    With a study every generation is written down as it ends; a study that holds generations is gone on with,
    and one that is finished gives its result at once, or goes on where more generations are asked for than it has.
    An interruption (Ctrl-C) leaves it resumable. evaluate: costs (n, k) of genomes in place of `problem.costs`, for
    example an `Evaluator`; genomes with a row that is not finite are left out of the search.

    Raises InfeasibleError, saying which budget binds and what can be reached, where nothing meets the budgets.
    """
    if solver not in get_args(Solver):
        raise InputError(f"the solver is one of {', '.join(get_args(Solver))}, not {solver!r}")
    if generations < 1 or (evaluations is not None and evaluations < 1):
        raise InputError(
            f"a search needs at least 1 generation and evaluation, got {generations}, {evaluations}"
        )
    begun = (study.recall("engine") if study else None) or {}
    population = population or begun.get("population")
    if population is None:
        population = POPULATION if evaluations is None else min(max(evaluations // 40, 20), POPULATION)
    engine: dict[str, int | str] = {"solver": solver, "population": population, "seed": seed}
    evaluate = evaluate or problem.costs
    if study:
        study.bind("engine", engine)
        study.bind_problem(problem)
    narrowed = pruned(problem)
    exact = _exact(narrowed, study, asked=problem) if solver != "evolve" else None
    if solver in ("exact", "beam"):
        if study and evaluate == problem.costs:
            evaluate = Evaluator(problem, seed=seed, study=study)
        result = (
            _front(narrowed, asked=problem) if solver == "exact" else _beam(narrowed, evaluate, seed, exact)
        )
        if study:
            evaluate(result.genomes)  # for the journal: the exact solver evaluates nothing
            study.finish(summary(problem, result, {**engine, "settings": study.recall("settings")}))
        return result
    evolution = Evolution(narrowed, population=population, seed=seed)
    reference: FloatArray | None = None
    if study:
        history = study.history()
        if history.state is not None:
            if len(history.batches) > generations and not evaluations:
                raise InputError(
                    f"{study.directory} holds {len(history.batches)} generations: ask for at least as many, not "
                    f"{generations}"
                )
            evolution.restore(history.batches, history.state)
            reference = _reference(problem, history.batches[0][1])
    while evolution.evaluations < evaluations if evaluations else evolution.generation < generations:
        genomes = evolution.ask(at_most=evaluations - evolution.evaluations if evaluations else None)
        if evaluations and not len(genomes):
            break  # the whole space is known
        started = time.perf_counter()
        costs = evaluate(genomes)
        seconds = time.perf_counter() - started
        evolution.tell(genomes, costs)
        if study:
            violations = problem.violations(costs)
            study.record(evolution.generation, genomes, costs, violations, evolution.state(), seconds=seconds)
        if reference is None:
            reference = _reference(problem, costs)
        if on_generation:
            archive = evolution.archive
            best = float(archive.objectives[0, 0]) if len(archive) else None
            on_generation(
                Progress(
                    evolution.generation,
                    generations,
                    evolution.evaluations,
                    len(archive),
                    best,
                    exact,
                    archive.objectives,
                    reference,
                )
            )
    archive = evolution.archive
    if not len(archive):
        _nothing_found(problem, evolution, exact)
    result = SearchResult(
        genomes=archive.genomes,
        objectives=archive.objectives,
        knee=knee(archive.objectives),
        evaluations=evolution.evaluations,
        exact=exact,
    )
    if study:
        run = {**engine, "generations": generations, "settings": study.recall("settings")}
        study.finish(summary(problem, result, run))
    return result


def _reference(problem: Problem, costs: FloatArray) -> FloatArray | None:
    """None where every evaluation failed."""
    known = costs[np.isfinite(costs).all(axis=1)]
    return reference_point(known[:, problem.objective_columns]) if len(known) else None


def _exact(problem: Problem, study: Study | None, *, asked: Problem) -> ExactResult | None:
    """The exact optimum, from the study where a run before found it: a time limit is no reason to differ.

    Where budgets do not come as tables, the optimum without them is a lower bound; None where the objective does not.
    """
    if not isinstance(problem.objectives[0].cost, Additive | Pairwise):
        return None
    stored = study.recall("exact") if study else None
    if stored:
        genome = None if stored["genome"] is None else tuple(stored["genome"])
        return ExactResult(**{**stored, "genome": genome})
    budgets = [budget for budget in problem.budgets if isinstance(budget.cost, Additive | Pairwise)]
    found = minimise(problem.space, problem.objectives[0].cost, budgets)
    if found is None:
        raise InfeasibleError(explain(asked))
    if len(budgets) < len(problem.budgets):
        found = ExactResult(genome=None, value=None, bound=found.bound, proven=False)
    if study:
        study.remember("exact", asdict(found))
    return found


def _front(problem: Problem, *, asked: Problem) -> SearchResult:
    """The exact front. Raises InputError where a cost does not come as tables."""
    front = exact_front(problem)
    if front is None:
        raise InfeasibleError(explain(asked))
    if not len(front.genomes):
        raise InfeasibleError("no architecture within the budgets was found in time: search by evolution")
    return SearchResult(
        genomes=front.genomes,
        objectives=front.objectives,
        knee=knee(front.objectives),
        evaluations=0,
        exact=front.best,
    )


def _beam(
    problem: Problem, evaluate: Callable[[Genomes], FloatArray], seed: int, exact: ExactResult | None
) -> SearchResult:
    """The non-dominated ones of what a beam search keeps."""
    found = beam_search(problem, evaluate=evaluate, seed=seed)
    archive = Archive(num_layers=problem.space.num_layers, num_objectives=len(problem.objectives))
    archive.add(found.genomes, found.costs[:, problem.objective_columns])
    return SearchResult(
        genomes=archive.genomes,
        objectives=archive.objectives,
        knee=knee(archive.objectives),
        evaluations=found.evaluations,
        exact=exact,
    )


def _nothing_found(problem: Problem, evolution: Evolution, exact: ExactResult | None) -> None:
    if exact is None:
        raise InfeasibleError(explain(problem))
    known = "" if exact.value is None else f", while the exact solver has one at {exact.value:.6g}"
    raise InfeasibleError(
        f"evolution found no architecture within the budgets in {evolution.evaluations} evaluations{known}: "
        "raise the population or the generations, or relax a budget"
    )


def summary(problem: Problem, result: SearchResult, run: dict[str, Any]) -> dict[str, Any]:
    """result.json. The caller writes architectures; here stand genomes and objective values."""
    front = [
        {"genome": genome, "objectives": values}
        for genome, values in zip(result.genomes.tolist(), result.objectives.tolist(), strict=True)
    ]
    return {
        "schema_version": 1,
        **run,
        "objectives": [{"name": o.name, "unit": o.unit} for o in problem.objectives],
        "budgets": [{"name": b.name, "text": b.text, "at_most": b.at_most} for b in problem.budgets],
        "evaluations": result.evaluations,
        "best": result.best,
        "knee": result.knee,
        "exact": None if result.exact is None else _finite(asdict(result.exact)),
        "gap": result.gap,
        "front": front,
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity; a bound that was not found is null."""
    return {key: None if value in (np.inf, -np.inf) else value for key, value in values.items()}
