"""Leaving out choices that no architecture within the budgets can use.

For every (layer, choice) dynamic programming over the space's graph gives the least additive cost of any
architecture that uses it there (`PathGraph.least_through`). Where that exceeds a budget, the choice can go; with
fewer choices the bounds of the others may rise, so this is repeated until nothing goes. An architecture within all
budgets never uses a choice that is left out, so neither the optimum nor the front changes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwsearch.search.problem import Additive, Budget, Problem
from hwsearch.search.space import BoolArray, FloatArray
from hwsearch.searchspace.space import SearchSpace

__all__ = ["pruned", "usable"]

_ROUNDING = 1e-9  # of the magnitudes summed; sums in another order differ in the last digits


def usable(problem: Problem, space: SearchSpace) -> BoolArray:
    """Which choices (layers, choices) of the problem's space some architecture within each budget uses.

    Budgets whose cost does not add up over layers leave every choice. All False where one cannot be met.
    """
    budgets = [budget for budget in problem.budgets if isinstance(budget.cost, Additive)]
    mask = space.allowed_mask
    while True:
        before = mask
        for budget in budgets:
            mask = mask & _within(budget, space.only(mask))
            if not mask.any(axis=1).all():
                return np.zeros_like(mask)
        if np.array_equal(before, mask):
            return mask


def _within(budget: Budget, space: SearchSpace) -> BoolArray:
    cost = budget.cost
    assert isinstance(cost, Additive)
    least = space.paths.least_through(cost.table) + cost.constant
    if cost.peak is not None:
        # At least the choice's own peak, and the least peak that some other layer cannot do without.
        lowest = np.where(space.allowed_mask, cost.peak, np.inf).min(axis=1).max()
        least = least + np.maximum(cost.peak, lowest)
    within: BoolArray = least <= budget.at_most + _ROUNDING * _magnitude(cost, budget)
    return within


def _magnitude(cost: Additive, budget: Budget) -> FloatArray:
    """An upper bound on the sums of absolute values involved."""
    size: FloatArray = np.abs(cost.table).max(axis=1).sum() + abs(cost.constant) + abs(budget.at_most)
    return size


def pruned(problem: Problem) -> Problem:
    """The problem over a space without the choices that no architecture within the budgets can use.

    The problem itself where nothing can go, where no architecture is left (the solver then says why), and where its
    space is no `SearchSpace`.
    """
    space = problem.space
    if not isinstance(space, SearchSpace) or not problem.budgets:
        return problem
    mask = usable(problem, space)
    if not mask.any() or np.array_equal(mask, space.allowed_mask):
        return problem
    return replace(problem, space=space.only(mask))
