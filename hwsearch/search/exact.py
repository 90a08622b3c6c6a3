"""The exact optimum of a cost that adds up over layers, as a multiple-choice integer programme.

One binary variable per layer and allowed choice, one per member of a tied group, one continuous variable per
cost with a peak; budgets, limits and forbidden transitions are linear rows. Solved by HiGHS through
scipy.optimize.milp (Huangfu and Hall, 2018). The form is that of Puzzle (arXiv 2411.19146), with ties, limits,
transitions and peaks added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from hwsearch.errors import InputError
from hwsearch.search.problem import Additive, Budget, Cost
from hwsearch.search.space import FloatArray, Genomes, Space

__all__ = ["ExactResult", "minimise"]

_SCALED = 1e3  # objective range given to HiGHS, whose absolute gap is 1e-6
_ROUNDING_RETRIES = 6

Columns = NDArray[np.int64]


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

    Raises InputError where a cost does not add up over layers.
    """
    programme = _Programme(space, cost, budgets)
    first: tuple[float, bool] | None = None
    slack = np.zeros(len(budgets))
    for _ in range(_ROUNDING_RETRIES):
        outcome = programme.solve(slack, time_limit_s)
        if outcome is None:
            return None
        genome, bound, proven = outcome
        first = first or (bound, proven)
        if genome is None:
            break
        used = np.array([float(budget.cost(genome[None])[0]) for budget in budgets])
        excess = used - np.array([budget.at_most for budget in budgets])
        if np.all(excess <= 0):
            value = float(cost(genome[None])[0])
            return ExactResult(
                genome=tuple(genome.tolist()), value=value, bound=min(first[0], value), proven=proven
            )
        # HiGHS keeps rows to a tolerance, the search keeps budgets to the last bit: ask for a little more.
        slack += np.where(excess > 0, 2 * excess, 0)
    assert first is not None
    return ExactResult(genome=None, value=None, bound=first[0], proven=False)


class _Programme:
    """Variables: x[layer, choice] where allowed, then tie members, then one peak per cost that has one."""

    def __init__(self, space: Space, cost: Cost, budgets: Sequence[Budget]) -> None:
        self.space = space
        allowed = space.allowed_mask
        self.index = np.full(allowed.shape, -1, dtype=np.int64)
        self.index[allowed] = np.arange(allowed.sum())
        self.binaries = int(allowed.sum())
        self.variables = self.binaries
        self._peaks: list[tuple[float, float]] = []  # the range of each, in the order of their variables
        self._rows: list[tuple[Columns, FloatArray, float, float]] = []
        for layer in range(space.num_layers):
            self._row(self._of(layer, allowed[layer]), 1.0, 1.0, 1.0)
        self._ties()
        self.binaries = self.variables
        self._limits()
        self._transitions()
        self.budgets = tuple(budgets)
        self._budget_rows: list[int] = []
        for budget in self.budgets:
            coefficients = self._linear(_additive(budget.cost, space, budget.name))
            self._budget_rows.append(len(self._rows))
            columns = np.array(sorted(coefficients), dtype=np.int64)
            values = np.array([coefficients[column] for column in columns.tolist()])
            self._row(columns, values / budget.scale, -np.inf, 0.0)
        self.cost = _additive(cost, space, "the objective")
        self._objective = self._linear(self.cost)

    def _of(self, layer: int, choices: NDArray[np.bool_]) -> Columns:
        columns = self.index[layer, choices]
        inside: Columns = columns[columns >= 0]
        return inside

    def _row(self, columns: Columns, values: float | FloatArray, low: float, high: float) -> None:
        self._rows.append((columns, np.broadcast_to(np.float64(values), columns.shape), low, high))

    def _ties(self) -> None:
        """A class may stand in a layer only where its group has settled on it, and on one class only."""
        for classes in self.space.tie_classes:
            chosen = self.variables + np.arange(classes.max() + 1)
            self.variables += len(chosen)
            self._row(chosen, 1.0, 0.0, 1.0)
            for number, variable in enumerate(chosen):
                for layer in range(self.space.num_layers):
                    columns = self._of(layer, classes == number)
                    if len(columns):
                        values = np.append(np.ones(len(columns)), -1.0)
                        self._row(np.append(columns, variable), values, -np.inf, 0.0)

    def _limits(self) -> None:
        for rule in self.space.count_rules:
            columns = self.index[rule.members]
            self._row(columns[columns >= 0], 1.0, float(rule.at_least), float(rule.at_most))
        for first, later in self.space.order_masks:
            for layer in range(1, self.space.num_layers):
                for before in range(layer):
                    columns = np.concatenate((self._of(layer, first), self._of(before, later)))
                    self._row(columns, 1.0, -np.inf, 1.0)

    def _transitions(self) -> None:
        """Choices with the same forbidden successors share a row per pair of layers."""
        forbidden = self.space.transition_mask
        for successors in np.unique(forbidden[forbidden.any(axis=1)], axis=0):
            choices = np.all(forbidden == successors, axis=1)
            for layer in range(self.space.num_layers - 1):
                columns = np.concatenate((self._of(layer, choices), self._of(layer + 1, successors)))
                self._row(columns, 1.0, -np.inf, 1.0)

    def _linear(self, cost: Additive) -> Mapping[int, float]:
        """A cost without its constant as coefficients of variables, its peak as one more variable."""
        inside = self.index >= 0
        coefficients = dict(zip(self.index[inside].tolist(), cost.table[inside].tolist(), strict=True))
        if cost.peak is not None:
            top = self.variables
            self.variables += 1
            self._peaks.append((float(cost.peak[inside].min()), float(cost.peak[inside].max())))
            coefficients[top] = 1.0
            for layer in range(self.space.num_layers):
                columns = self._of(layer, inside[layer])
                values = np.append(cost.peak[layer, inside[layer]], -1.0)
                self._row(np.append(columns, top), values, -np.inf, 0.0)
        return coefficients

    def solve(self, slack: FloatArray, time_limit_s: float) -> tuple[Genomes | None, float, bool] | None:
        """(genome or None, bound, proven); None where there is provably no genome."""
        inside = self.index >= 0
        # Only differences within a layer matter; without the rest the tolerances apply to what matters.
        base = np.where(inside, self.cost.table, np.inf).min(axis=1)
        spread = float((np.where(inside, self.cost.table, -np.inf).max(axis=1) - base).sum())
        if self.cost.peak is not None:
            spread += float(np.ptp(self.cost.peak[inside]))
        scale = _SCALED / (spread or 1.0)
        objective = np.zeros(self.variables)
        for column, value in self._objective.items():
            objective[column] = value
        objective[: int(inside.sum())] -= np.broadcast_to(base[:, None], inside.shape)[inside]
        low = np.array([row[2] for row in self._rows])
        high = np.array([row[3] for row in self._rows])
        for row, budget, tighter in zip(self._budget_rows, self.budgets, slack, strict=True):
            assert isinstance(budget.cost, Additive)
            high[row] = (budget.at_most - budget.cost.constant - tighter) / budget.scale
        lengths = [len(row[0]) for row in self._rows]
        matrix = csr_array(
            (
                np.concatenate([row[1] for row in self._rows]),
                (np.repeat(np.arange(len(lengths)), lengths), np.concatenate([row[0] for row in self._rows])),
            ),
            shape=(len(lengths), self.variables),
        )
        integral = np.arange(self.variables) < self.binaries
        outcome = milp(
            objective * scale,
            integrality=integral.astype(np.int64),
            bounds=Bounds(*np.array([(0.0, 1.0)] * self.binaries + self._peaks).T),
            constraints=LinearConstraint(matrix, low, high),
            options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
        )
        if outcome.status == 2:
            return None
        offset = float(base.sum()) + self.cost.constant
        dual = outcome.mip_dual_bound
        bound = -np.inf if dual is None or not np.isfinite(dual) else float(dual) / scale + offset
        if outcome.x is None:
            return None, bound, False
        chosen = np.where(inside, outcome.x[np.maximum(self.index, 0)], -1.0)
        return np.argmax(chosen, axis=1), bound, outcome.status == 0


def _additive(cost: Cost, space: Space, name: str) -> Additive:
    if not isinstance(cost, Additive):
        raise InputError(
            f"{name} does not add up over layers, so it has no exact optimum: search by evolution"
        )
    if cost.table.shape != space.allowed_mask.shape:
        raise InputError(
            f"{name} has a table of {cost.table.shape} for a space of {space.allowed_mask.shape} (layers, choices)"
        )
    return cost
