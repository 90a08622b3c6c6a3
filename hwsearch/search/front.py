"""The exact Pareto front of tabulated costs, by the epsilon-constraint method.

Haimes, Lasdon and Wismer (1971): the first objective is minimised with the second held below a bound, which then
moves below what was found, until nothing is left. With more objectives the bound on the last one moves below the most
that the front of the others has of it. Each point takes one exact solution per objective, each of which keeps what the
ones before it reached, so that every point is truly on the front.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hwsearch.search.exact import ExactResult, minimise
from hwsearch.search.problem import Budget, Cost, Objective, Problem
from hwsearch.search.space import FloatArray, Genomes

__all__ = ["ExactFront", "exact_front"]

_APART = 1e-9  # points closer than this share of an objective's size are one
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
    """The whole front; None where nothing meets the budgets.

    Points come from the best first objective onwards, and with three objectives or more from the worst last one, so
    that a time limit cuts off the far end. Each further objective multiplies the solutions by the levels it can take.

    Raises InputError where a cost does not come as tables.
    """
    sweep = _Sweep(problem, deadline=time.monotonic() + time_limit_s)
    for _ in sweep.points(len(problem.objectives), ()):
        pass
    if sweep.first is None:
        return None
    found = sorted(sweep.found.values(), key=lambda pair: pair[1])
    return ExactFront(
        genomes=np.array([genome for genome, _ in found], dtype=np.int64).reshape(
            -1, problem.space.num_layers
        ),
        objectives=np.array([point for _, point in found]).reshape(-1, len(problem.objectives)),
        best=sweep.first,
        complete=sweep.complete,
    )


class _Sweep:
    """found: what was met so far, each point once. first: the proof of the least first objective."""

    def __init__(self, problem: Problem, *, deadline: float) -> None:
        self.problem = problem
        self.deadline = deadline
        self.first: ExactResult | None = None
        self.complete = True
        self.found: dict[tuple[str, ...], tuple[tuple[int, ...], list[float]]] = {}

    def points(self, count: int, bounds: tuple[Budget, ...]) -> Iterator[list[float]]:
        """The front of the first `count` objectives under bounds on the others, its points in all of them.

        For each level of the last of them, the front of those before it: whoever is on the front and not among these
        has less of it than the most that they have.
        """
        if count == 1:
            point = self._least(bounds)
            if point is not None:
                yield point
            return
        last = self.problem.objectives[count - 1]
        below = bounds
        while True:
            level = -np.inf
            for point in self.points(count - 1, below):
                level = max(level, point[count - 1])
                yield point
            if not np.isfinite(level):
                return
            if time.monotonic() > self.deadline:
                self.complete = False
                return
            below = (*bounds, _below(last, level - _APART * max(abs(level), 1e-300)))

    def _least(self, bounds: tuple[Budget, ...]) -> list[float] | None:
        """The point of least first objective, among those of least second, and so on; None where there is none."""
        objectives = self.problem.objectives
        genome: tuple[int, ...] | None = None
        as_good: tuple[Budget, ...] = ()
        for objective in objectives:
            best = minimise(self.problem.space, objective.cost, (*self.problem.budgets, *bounds, *as_good))
            if best is None and genome is None:
                return None
            if self.first is None:
                self.first = best
            self.complete &= best is not None and best.proven
            if best is None or best.genome is None or best.value is None:
                break
            genome = best.genome
            # Costs of equal architectures differ in the last bit: what is as good but for rounding is as good.
            as_good = (*as_good, _below(objective, best.value + _APART * abs(best.value)))
        if genome is None:
            return None
        point = [float(objective.cost(np.array([genome]))[0]) for objective in objectives]
        self.found.setdefault(tuple(f"{value:.8e}" for value in point), (genome, point))
        return point


def _below(objective: Objective, value: float) -> Budget:
    cost: Cost = objective.cost
    return Budget(objective.name, text=f"{objective.name}<={value:.9g}", cost=cost, at_most=value)
