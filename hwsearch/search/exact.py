"""The exact optimum of costs that come as tables, by whichever solver proves it.

Costs that add up over layers and neighbouring layers are a resource-constrained shortest path (`chain`), which is
proven in well under a second for any depth in use; pairs of layers that are not neighbours, and the rare chain that
needs too many labels, go to the integer programme (`programme`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwsearch.errors import InputError
from hwsearch.search.chain import Chain, is_chain
from hwsearch.search.problem import Additive, Budget, Cost, Pairwise
from hwsearch.search.programme import Programme
from hwsearch.search.rules import Rules
from hwsearch.search.space import BoolArray, FloatArray, Genomes, Space

__all__ = ["ExactResult", "minimise"]

_ROUNDING_RETRIES = 30


@dataclass(frozen=True, kw_only=True)
class ExactResult:
    """genome and value: the best found, None where time ran out first. No genome is below `bound`."""

    genome: tuple[int, ...] | None
    value: float | None
    bound: float
    proven: bool


def minimise(
    space: Space, cost: Cost, budgets: Sequence[Budget], *, time_limit_s: float = 20.0
) -> ExactResult | None:
    """The genome of the space with the least cost within the budgets; None where the budgets leave no genome.

    Raises InputError where a cost does not come as tables.
    """
    objective = _tables(cost, space, "the objective")
    bounded = [(budget, _tables(budget.cost, space, budget.name)) for budget in budgets]
    started = time.monotonic()
    first: ExactResult | None = None
    if is_chain(objective) and all(is_chain(tables) for _, tables in bounded):
        chain = Chain([objective, *(tables for _, tables in bounded)], rules=Rules(space))
        if chain.tractable:
            first = _by_chain(chain, space, cost, budgets, deadline=started + time_limit_s / 2)
            if first is None or first.proven:
                return first
    left = max(time_limit_s - (time.monotonic() - started), time_limit_s / 2)
    second = _by_programme(Programme(space, objective, bounded), cost, budgets, time_limit_s=left)
    if first is None or second is None:
        return second
    return _better(first, second)


def _by_chain(
    chain: Chain, space: Space, cost: Cost, budgets: Sequence[Budget], *, deadline: float
) -> ExactResult | None:
    def check(genomes: Genomes) -> tuple[FloatArray, BoolArray]:
        fits = space.valid(genomes)
        for budget in budgets:
            fits &= budget.cost(genomes) <= budget.at_most
        return cost(genomes), fits

    at_most = np.array([budget.at_most for budget in budgets], dtype=np.float64)
    paths = chain.cheapest(at_most, check=check, deadline=deadline)
    if len(paths.values):
        return ExactResult(
            genome=tuple(paths.genomes[0].tolist()),
            value=float(paths.values[0]),
            bound=float(paths.bound),
            proven=bool(paths.proven),
        )
    return None if paths.proven else ExactResult(genome=None, value=None, bound=paths.bound, proven=False)


def _by_programme(
    programme: Programme, cost: Cost, budgets: Sequence[Budget], *, time_limit_s: float
) -> ExactResult | None:
    """HiGHS keeps budgets to a tolerance, the search to the last bit: what is off by rounding is cut off."""
    deadline = time.monotonic() + time_limit_s
    bound = -np.inf
    for _ in range(_ROUNDING_RETRIES):
        outcome = programme.solve(max(deadline - time.monotonic(), 0.1))
        if outcome is None:
            return None
        genome, bound, proven = outcome
        if genome is None:
            break
        if all(float(budget.cost(genome[None])[0]) <= budget.at_most for budget in budgets):
            value = float(cost(genome[None])[0])
            return ExactResult(
                genome=tuple(genome.tolist()), value=value, bound=min(bound, value), proven=proven
            )
        programme.exclude(genome)
    return ExactResult(genome=None, value=None, bound=bound, proven=False)


def _better(one: ExactResult, other: ExactResult) -> ExactResult:
    """The better genome of two results for the same problem, and the better bound."""
    best = min((one, other), key=lambda result: np.inf if result.value is None else result.value)
    bound = max(one.bound, other.bound)
    if best.value is not None:
        bound = min(bound, best.value)
    return ExactResult(genome=best.genome, value=best.value, bound=bound, proven=one.proven or other.proven)


def _tables(cost: Cost, space: Space, name: str) -> Additive | Pairwise:
    if not isinstance(cost, Additive | Pairwise):
        raise InputError(
            f"{name} does not add up over layers, so it has no exact optimum: search by evolution"
        )
    if cost.table.shape != space.allowed_mask.shape:
        raise InputError(
            f"{name} has a table of {cost.table.shape} for a space of {space.allowed_mask.shape} (layers, choices)"
        )
    return cost
