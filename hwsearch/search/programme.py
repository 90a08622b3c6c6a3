"""The exact optimum of tabulated costs as an integer programme: what the chain solver cannot settle.

One binary variable per layer and allowed choice, one per member of a tied group, one continuous variable per
cost with a peak; budgets, limits and forbidden transitions are linear rows. Two layers that cost something together
have one continuous variable per pair of choices, whose sums over either choice are the binaries of the other: for
neighbours this is a unit flow through the layers, the tightest linearisation there is. Solved by HiGHS through
scipy.optimize.milp (Huangfu and Hall, 2018). The form is that of Puzzle (arXiv 2411.19146), with ties, limits,
transitions, peaks and pairs added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from hwsearch.search.problem import Additive, Budget, Pairwise
from hwsearch.search.space import FloatArray, Genomes, Space

__all__ = ["Programme"]

_SCALED = 1e3  # objective range given to HiGHS, whose absolute gap is 1e-6

Columns = NDArray[np.int64]


class Programme:
    """Variables: x[layer, choice] where allowed, then tie members, then one peak per cost that has one."""

    def __init__(
        self, space: Space, cost: Additive | Pairwise, budgets: Sequence[tuple[Budget, Additive | Pairwise]]
    ) -> None:
        self.space = space
        allowed = space.allowed_mask
        self.index = np.full(allowed.shape, -1, dtype=np.int64)
        self.index[allowed] = np.arange(allowed.sum())
        self.binaries = int(allowed.sum())
        self.variables = self.binaries
        self._ranges: list[tuple[float, float]] = []  # of the continuous variables, in their order
        self._together: dict[tuple[int, int], NDArray[np.int64]] = {}  # of each pair of layers, (C, C)
        self._rows: list[tuple[Columns, FloatArray, float, float]] = []
        for layer in range(space.num_layers):
            self._row(self._of(layer, allowed[layer]), 1.0, 1.0, 1.0)
        self._ties()
        self.binaries = self.variables
        self._limits()
        self._transitions()
        self.budgets = tuple(budgets)
        self._budget_rows: list[int] = []
        for budget, tables in self.budgets:
            coefficients = self._linear(tables)
            self._budget_rows.append(len(self._rows))
            columns = np.array(sorted(coefficients), dtype=np.int64)
            values = np.array([coefficients[column] for column in columns.tolist()])
            self._row(columns, values / budget.scale, -np.inf, 0.0)
        self.cost = cost
        self._objective = self._linear(cost)

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
        for what, earlier in self.space.need_masks:
            for layer in range(self.space.num_layers):
                needy = self._of(layer, what)
                had = [self._of(before, earlier) for before in range(layer)]
                columns = np.concatenate((needy, *had))
                values = np.repeat([1.0, -1.0], [len(needy), len(columns) - len(needy)])
                self._row(columns, values, -np.inf, 0.0)

    def _transitions(self) -> None:
        """Choices with the same forbidden successors share a row per pair of layers."""
        forbidden = self.space.transition_mask
        for successors in np.unique(forbidden[forbidden.any(axis=1)], axis=0):
            choices = np.all(forbidden == successors, axis=1)
            for layer in range(self.space.num_layers - 1):
                columns = np.concatenate((self._of(layer, choices), self._of(layer + 1, successors)))
                self._row(columns, 1.0, -np.inf, 1.0)

    def _linear(self, cost: Additive | Pairwise) -> Mapping[int, float]:
        """A cost without its constant as coefficients of variables, its peak and its pairs as further variables."""
        inside = self.index >= 0
        coefficients = dict(zip(self.index[inside].tolist(), cost.table[inside].tolist(), strict=True))
        if isinstance(cost, Pairwise):
            for (first, second), table in zip(cost.pairs.tolist(), cost.together, strict=True):
                variables = self._pair(first, second)
                for column, value in zip(variables[variables >= 0], table[variables >= 0], strict=True):
                    coefficients[int(column)] = coefficients.get(int(column), 0.0) + float(value)
        elif cost.peak is not None:
            top = self.variables
            self.variables += 1
            self._ranges.append((float(cost.peak[inside].min()), float(cost.peak[inside].max())))
            coefficients[top] = 1.0
            for layer in range(self.space.num_layers):
                columns = self._of(layer, inside[layer])
                values = np.append(cost.peak[layer, inside[layer]], -1.0)
                self._row(np.append(columns, top), values, -np.inf, 0.0)
        return coefficients

    def _pair(self, first: int, second: int) -> NDArray[np.int64]:
        """Variables (C, C) that are 1 where both choices are taken, -1 where one is not allowed."""
        if (first, second) not in self._together:
            both = (self.index[first] >= 0)[:, None] & (self.index[second] >= 0)
            variables = np.full(both.shape, -1, dtype=np.int64)
            variables[both] = self.variables + np.arange(both.sum())
            self.variables += int(both.sum())
            self._ranges += [(0.0, 1.0)] * int(both.sum())
            for layer, rows in ((first, variables), (second, variables.T)):
                for choice in np.flatnonzero(self.index[layer] >= 0).tolist():
                    columns = np.append(rows[choice][rows[choice] >= 0], self.index[layer, choice])
                    self._row(columns, np.append(np.ones(len(columns) - 1), -1.0), 0.0, 0.0)
            self._together[first, second] = variables
        return self._together[first, second]

    def exclude(self, genome: Genomes) -> None:
        """Cuts one genome (layers,) off."""
        columns = self.index[np.arange(len(genome)), genome]
        self._row(columns, 1.0, -np.inf, len(genome) - 1.0)

    def solve(self, time_limit_s: float) -> tuple[Genomes | None, float, bool] | None:
        """(genome or None, bound, proven); None where there is provably no genome.

        HiGHS keeps rows to a tolerance: the genome may exceed a budget by some 1e-7 of it.
        """
        inside = self.index >= 0
        # Only differences within a layer matter; without the rest the tolerances apply to what matters.
        base = np.where(inside, self.cost.table, np.inf).min(axis=1)
        spread = float((np.where(inside, self.cost.table, -np.inf).max(axis=1) - base).sum())
        if isinstance(self.cost, Pairwise):
            spread += float(np.ptp(self.cost.together, axis=(1, 2)).sum())
        elif self.cost.peak is not None:
            spread += float(np.ptp(self.cost.peak[inside]))
        scale = _SCALED / (spread or 1.0)
        objective = np.zeros(self.variables)
        for column, value in self._objective.items():
            objective[column] = value
        objective[: int(inside.sum())] -= np.broadcast_to(base[:, None], inside.shape)[inside]
        low = np.array([row[2] for row in self._rows])
        high = np.array([row[3] for row in self._rows])
        for row, (budget, tables) in zip(self._budget_rows, self.budgets, strict=True):
            high[row] = (budget.at_most - tables.constant) / budget.scale
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
            bounds=Bounds(*np.array([(0.0, 1.0)] * self.binaries + self._ranges).T),
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
