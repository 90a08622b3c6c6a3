"""The exact Pareto front of tabulated costs, by the epsilon-constraint method.

Haimes, Lasdon and Wismer (1971): the first objective is minimised with the second held below a bound, which then
moves below what was found, until nothing is left. Each point takes two exact solutions, the second of which pushes
the second objective down while the first stays, so that every point is truly on the front.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from hwsearch.errors import InputError
from hwsearch.search.exact import ExactResult, minimise
from hwsearch.search.problem import Budget, Cost, Objective, Problem
from hwsearch.search.space import FloatArray, Genomes

__all__ = ["ExactFront", "exact_front"]

_APART = 1e-9  # points closer than this share of the second objective's size are one
_TIME_LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactFront:
    """Genomes (f, layers) and objectives (f, m), sorted by the first objective.

    complete: every point of the front is there, and each is proven. best: the first point's proof.
    """

    genomes: Genomes
    objectives: FloatArray
    best: ExactResult
    complete: bool


def exact_front(problem: Problem, *, time_limit_s: float = _TIME_LIMIT_S) -> ExactFront | None:
    """The whole front of one or two objectives; None where nothing meets the budgets.

    Points come from the best first objective onwards, so that a time limit cuts off the far end.

    Raises InputError where a cost does not come as tables, or there are more than two objectives.
    """
    objectives = problem.objectives
    if len(objectives) > 2:
        raise InputError(
            f"the exact front is for one or two objectives, not {len(objectives)}: search by evolution"
        )
    deadline = time.monotonic() + time_limit_s
    genomes: list[tuple[int, ...]] = []
    points: list[list[float]] = []
    complete = True
    first: ExactResult | None = None
    below: tuple[Budget, ...] = ()
    while True:
        best = minimise(problem.space, objectives[0].cost, (*problem.budgets, *below))
        if best is None:
            break
        complete &= best.proven
        first = first or best
        if best.genome is None or best.value is None:
            complete = False
            break
        if len(objectives) == 1:
            genomes, points = [best.genome], [[best.value]]
            break
        as_good = _below(objectives[0], best.value)
        other = minimise(problem.space, objectives[1].cost, (*problem.budgets, as_good))
        genome = best.genome if other is None or other.genome is None else other.genome
        complete &= other is not None and other.proven
        point = [float(objective.cost(np.array([genome]))[0]) for objective in objectives]
        genomes.append(genome)
        points.append(point)
        below = (_below(objectives[1], point[1] - _APART * max(abs(point[1]), 1e-300)),)
        if time.monotonic() > deadline:
            complete = False
            break
    if first is None:
        return None
    return ExactFront(
        genomes=np.array(genomes, dtype=np.int64).reshape(-1, problem.space.num_layers),
        objectives=np.array(points).reshape(-1, len(objectives)),
        best=first,
        complete=complete,
    )


def _below(objective: Objective, value: float) -> Budget:
    cost: Cost = objective.cost
    return Budget(objective.name, text=f"{objective.name}<={value:.9g}", cost=cost, at_most=value)
