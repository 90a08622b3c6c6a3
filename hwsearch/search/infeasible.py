"""Why no architecture meets the budgets, and how far each would have to be relaxed.

A budget that cannot be met even alone is named with the least that can be reached. Otherwise budgets are left out
one after another for as long as the rest still cannot be met; what remains is a conflict in which every budget
takes part, and for each of them the message says what can be reached while the others are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hwsearch.search.evolution import Evolution
from hwsearch.search.exact import minimise
from hwsearch.search.problem import Additive, Budget, Objective, Pairwise, Problem

__all__ = ["Reach", "explain", "reachable"]

_POPULATION, _GENERATIONS = 100, 40


@dataclass(frozen=True)
class Reach:
    """The least of a budget's cost: proven to be the least, or only the best that evolution found."""

    value: float
    proven: bool


def reachable(problem: Problem, budget: Budget, *, within: Sequence[Budget] = ()) -> Reach | None:
    """The least cost that `budget` could be lowered to, alone or `within` others; None where those cannot be met.

    Exact where every cost involved adds up over layers, else the best of a short evolution.
    """
    if all(isinstance(part.cost, Additive | Pairwise) for part in (budget, *within)):
        found = minimise(problem.space, budget.cost, within)
        if found is None:
            return None
        if found.value is not None:
            return Reach(found.value, found.proven)
    alone = Problem(
        problem.space,
        objectives=(Objective(budget.name, unit="", cost=budget.cost),),
        budgets=tuple(within),
    )
    evolution = Evolution(alone, population=_POPULATION, seed=0)
    while evolution.generation < _GENERATIONS:
        genomes = evolution.ask()
        evolution.tell(genomes, alone.costs(genomes))
    if not len(evolution.archive):
        return None
    return Reach(float(evolution.archive.objectives[0, 0]), False)


def explain(problem: Problem) -> str:
    """One message for a problem that no genome meets: which budgets bind, and the best that can be reached."""
    alone = [(budget, reachable(problem, budget)) for budget in problem.budgets]
    if not alone or any(reach is None for _, reach in alone):
        return "the space is empty: its limits, ties and forbidden pairs leave no architecture"
    hopeless = [(b, reach) for b, reach in alone if reach is not None and reach.value > b.at_most]
    if hopeless:
        parts = [f"{b.text}: {_words(b, reach)}" for b, reach in hopeless]
        return (
            f"{_none(reach for _, reach in hopeless)} {'; nor '.join(parts)}; "
            f"relax {'it' if len(parts) == 1 else 'each'} to that or allow cheaper mixers"
        )
    conflict = _conflict(problem)
    reached = []
    for budget in conflict:
        others = [other for other in conflict if other is not budget]
        reach = reachable(problem, budget, within=others)
        if reach is not None:
            reached.append((budget, others, reach))
    together = " and ".join(budget.text for budget in conflict) + (" together" if len(conflict) > 1 else "")
    parts = [
        f"with {' and '.join(o.text for o in others) or 'nothing else asked'}, {_words(budget, reach)}"
        for budget, others, reach in reached
    ]
    return (
        f"{_none(reach for _, _, reach in reached)} {together}: {'; '.join(parts)}; "
        "relax one of them to that or allow cheaper mixers"
    )


def _conflict(problem: Problem) -> list[Budget]:
    """Budgets that cannot be met together, though without any one of them the others can."""
    conflict = list(problem.budgets)
    for budget in problem.budgets:
        rest = [other for other in conflict if other is not budget]
        if len(rest) > 1:
            reach = reachable(problem, rest[0], within=rest[1:])
            if reach is None or reach.value > rest[0].at_most:
                conflict = rest
    return conflict


def _none(reaches: Iterable[Reach]) -> str:
    proven = all(reach.proven for reach in reaches)
    return "no architecture meets" if proven else "no architecture was found that meets"


def _words(budget: Budget, reach: Reach) -> str:
    best = "the best of this space is" if reach.proven else "the best that evolution found is"
    return f"{best} {budget.describe(reach.value)}"
