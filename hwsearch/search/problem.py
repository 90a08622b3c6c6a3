"""What is searched for: objectives to minimise over a space, within budgets.

A cost is any callable from genomes (n, layers) to n floats. `Additive` is the cost that adds up over layers and
`Pairwise` the one that adds up over layers and pairs of layers: their tables are what the exact solver needs. The
evolution takes any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Self, get_args

import numpy as np

from hwsearch.errors import InputError
from hwsearch.search.space import FloatArray, Genomes, Space

__all__ = ["Additive", "Budget", "Cost", "Objective", "Pairwise", "Problem", "Tier"]

Cost = Callable[[Genomes], FloatArray]
Tier = Literal["free", "cheap", "expensive"]


@dataclass(frozen=True, eq=False)
class Additive:
    """constant + sum over layers of table[layer, choice] + the largest peak[layer, choice] over layers.

    table, peak: (layers, choices). The peak is for what is needed by one layer at a time, such as activations.
    """

    table: FloatArray
    constant: float = field(default=0.0, kw_only=True)
    peak: FloatArray | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.table.ndim != 2 or (self.peak is not None and self.peak.shape != self.table.shape):
            peak = "" if self.peak is None else f" and {self.peak.shape} for the peak"
            raise InputError(f"an additive cost takes (layers, choices) tables, got {self.table.shape}{peak}")

    @cached_property
    def _rows(self) -> Genomes:
        return np.arange(self.table.shape[0])

    def __call__(self, genomes: Genomes) -> FloatArray:
        """Costs (n,) of genomes (n, layers)."""
        # Contiguous and sorted, so that neither the caller nor the order of the layers decides the last bit:
        # genomes whose layers cost the same in another order must tie, not dominate one another.
        parts = np.sort(self.table[self._rows, np.ascontiguousarray(genomes)], axis=1)
        total: FloatArray = parts.sum(axis=1) + self.constant
        if self.peak is not None:
            total += self.peak[self._rows, genomes].max(axis=1)
        return total


@dataclass(frozen=True, eq=False)
class Pairwise:
    """constant + sum over layers of table[layer, choice] + sum over pairs of what their two choices cost together.

    table: (layers, choices). pairs: (p, 2) layers, the first before the second. together: (p, choices, choices).
    """

    table: FloatArray
    pairs: Genomes = field(kw_only=True)
    together: FloatArray = field(kw_only=True)
    constant: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        layers, choices = self.table.shape if self.table.ndim == 2 else (0, 0)
        p = len(self.pairs)
        if not layers or self.pairs.shape != (p, 2) or self.together.shape != (p, choices, choices):
            raise InputError(
                "a pairwise cost takes a (layers, choices) table, (p, 2) pairs and (p, choices, choices) tables, "
                f"got {self.table.shape}, {self.pairs.shape} and {self.together.shape}"
            )
        first, second = self.pairs.T
        if np.any((first < 0) | (first >= second) | (second >= layers)):
            raise InputError(f"each pair names two layers of 0..{layers - 1}, the smaller first")

    @classmethod
    def neighbours(cls, table: FloatArray, together: FloatArray, *, constant: float = 0.0) -> Self:
        """Every two adjacent layers cost something together: table (L, C), together (L - 1, C, C)."""
        first = np.arange(len(table) - 1)
        pairs = np.stack((first, first + 1), axis=1)
        return cls(table, pairs=pairs, together=together, constant=constant)

    @cached_property
    def adjacent(self) -> FloatArray | None:
        """What neighbours cost together, (L - 1, C, C); None where a pair is not of neighbours."""
        first, second = self.pairs.T
        if np.any(second - first != 1):
            return None
        layers, choices = self.table.shape
        total = np.zeros((layers - 1, choices, choices))
        np.add.at(total, first, self.together)
        return total

    def __call__(self, genomes: Genomes) -> FloatArray:
        """Costs (n,) of genomes (n, layers)."""
        genomes = np.ascontiguousarray(genomes)
        total: FloatArray = self.table[np.arange(len(self.table)), genomes].sum(axis=1) + self.constant
        first, second = self.pairs.T
        both = self.together[np.arange(len(self.pairs)), genomes[:, first], genomes[:, second]]
        total += np.ascontiguousarray(both).sum(axis=1)
        return total


@dataclass(frozen=True, eq=False)
class Objective:
    """A cost to minimise.

    tier: what an evaluation costs beside the engine's own time. The engine thinks a little about where to look
    next if evaluations are "cheap" or "expensive", and not at all if they are "free" (a table look-up).
    """

    name: str
    unit: str = field(default="", kw_only=True)
    cost: Cost = field(kw_only=True)
    tier: Tier = field(default="cheap", kw_only=True)

    def __post_init__(self) -> None:
        if self.tier not in get_args(Tier):
            raise InputError(f"objective {self.name}: the tier is one of {get_args(Tier)}, not {self.tier!r}")


@dataclass(frozen=True, eq=False)
class Budget:
    """An upper bound on a cost.

    text: the budget as the user wrote it, for example "throughput>=5000".
    describe: a value of `cost` in the user's terms, for example "5321 tokens/s".
    """

    name: str
    text: str = field(kw_only=True)
    cost: Cost = field(kw_only=True)
    at_most: float = field(kw_only=True)
    describe: Callable[[float], str] = field(default="{:.6g}".format, kw_only=True)

    @property
    def scale(self) -> float:
        """What an excess is divided by, so that budgets of different units weigh the same."""
        return abs(self.at_most) or 1.0


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise `objectives` over `space` within `budgets`. The first objective decides what is best.

    A cost that serves as objective and in a budget, or in two budgets, is called once per genome if it is the
    same object.
    """

    space: Space
    objectives: tuple[Objective, ...] = field(kw_only=True)
    budgets: tuple[Budget, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not self.objectives:
            raise InputError("a problem needs at least one objective")
        for budget in self.budgets:
            if not np.isfinite(budget.at_most):
                raise InputError(f"budget {budget.text}: the bound must be finite, got {budget.at_most}")

    @cached_property
    def distinct(self) -> tuple[tuple[str, Cost], ...]:
        """The k different costs with a name each: the objectives in their order, then what budgets add."""
        found: list[tuple[str, Cost]] = []
        parts: list[Objective | Budget] = [*self.objectives, *self.budgets]
        for part in parts:
            if not any(part.cost is cost for _, cost in found):
                found.append((part.name, part.cost))
        return tuple(found)

    def _column(self, cost: Cost) -> int:
        return next(i for i, (_, known) in enumerate(self.distinct) if known is cost)

    @cached_property
    def objective_columns(self) -> tuple[int, ...]:
        return tuple(self._column(objective.cost) for objective in self.objectives)

    @cached_property
    def budget_columns(self) -> tuple[int, ...]:
        return tuple(self._column(budget.cost) for budget in self.budgets)

    @property
    def tabulated(self) -> bool:
        """Whether the first objective and every budget come as tables, so that an exact solver applies."""
        costs = (self.objectives[0].cost, *(budget.cost for budget in self.budgets))
        return all(isinstance(cost, Additive | Pairwise) for cost in costs)

    @property
    def tier(self) -> Tier:
        """The dearest tier of an objective that does not come as tables; "free" where all do."""
        tiers = [o.tier for o in self.objectives if not isinstance(o.cost, Additive | Pairwise)]
        return max(tiers, key=get_args(Tier).index, default="free")

    def costs(self, genomes: Genomes) -> FloatArray:
        """Every distinct cost of genomes (n, layers), (n, k).

        Raises InputError where a cost does not return n finite floats.
        """
        columns = np.empty((len(genomes), len(self.distinct)))
        if not len(genomes):
            return columns
        for i, (name, cost) in enumerate(self.distinct):
            values = np.asarray(cost(genomes), dtype=np.float64)
            if values.shape != (len(genomes),):
                raise InputError(
                    f"cost {name} must return one float per genome, ({len(genomes)},); got {values.shape}"
                )
            if not np.isfinite(values).all():
                first = int(np.flatnonzero(~np.isfinite(values))[0])
                raise InputError(
                    f"cost {name} is {values[first]} for genome {genomes[first].tolist()}; costs must be finite"
                )
            columns[:, i] = values
        return columns

    def violations(self, costs: FloatArray) -> FloatArray:
        """By how much the budgets are exceeded in sum, as shares of each, (n,), from costs (n, k)."""
        if not self.budgets:
            return np.zeros(len(costs))
        at_most = np.array([budget.at_most for budget in self.budgets])
        scale = np.array([budget.scale for budget in self.budgets])
        excess = np.maximum(costs[:, self.budget_columns] - at_most, 0.0) / scale
        total: FloatArray = excess.sum(axis=1)
        return total

    def evaluate(self, genomes: Genomes) -> tuple[FloatArray, FloatArray]:
        """Objectives (n, m) and violations (n,), 0 where every budget is met, of genomes (n, layers)."""
        costs = self.costs(genomes)
        return costs[:, self.objective_columns], self.violations(costs)
