"""Budget repair by marginal ratio: layer after layer changes to what loses least per unit of violated budget saved.

The greedy of multiple-choice knapsacks (Sinha and Zoltners, 1979), from the other end: from a genome that costs too
much down to the budgets, whose tables it needs. Before anything is known of the loss, a random one for each genome
spreads what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwsearch.search.problem import Additive, Budget, Pairwise
from hwsearch.search.rules import Rules
from hwsearch.search.space import BoolArray, FloatArray, Genomes

__all__ = ["Thrift"]

_LEAST = 1e-12  # of a budget: what saves less saves nothing
_FREE = 1e9  # what a change that loses nothing ranks before


class Thrift:
    """Repair to b budgets whose costs come as tables; pairs and peaks are left out, as they only say what to try."""

    def __init__(self, budgets: Sequence[Budget], *, rules: Rules) -> None:
        self.rules = rules
        tables, at_most = [], []
        for budget in budgets:
            assert isinstance(budget.cost, Additive | Pairwise)
            tables.append(budget.cost.table / budget.scale)
            at_most.append((budget.at_most - budget.cost.constant) / budget.scale)
        self.tables: FloatArray = np.stack(tables)  # (b, L, C), shares of each budget
        self.at_most: FloatArray = np.array(at_most)

    def within(self, genomes: Genomes, *, loss: FloatArray) -> Genomes:
        """Genomes (n, L) brought within the budgets, or as near as single changes lead; loss: (L, C) or (n, L, C).

        What was within them stays as it is, and no rule is broken that was kept.
        """
        genomes = genomes.copy()
        loss = np.broadcast_to(loss, (len(genomes), *self.rules.allowed.shape))
        layers = np.arange(genomes.shape[1])
        left = np.arange(len(genomes))
        for _ in range(2 * len(layers)):
            spent = self.tables[:, layers, genomes[left]].sum(axis=2)  # (b, n)
            excess = np.maximum(spent - self.at_most[:, None], 0.0)
            over = excess.sum(axis=0) > _LEAST
            left, spent, excess = left[over], spent[:, over], excess[:, over]
            if not len(left):
                break
            here = genomes[left]
            change = self.tables[:, None] - self.tables[:, layers, here][..., None]  # (b, n, L, C)
            after = np.maximum(spent[..., None, None] + change - self.at_most[:, None, None, None], 0.0)
            saved = excess.sum(axis=0)[:, None, None] - after.sum(axis=0)
            lost = loss[left] - np.take_along_axis(loss[left], here[..., None], axis=2)
            ratio = np.where(lost > 0, lost / np.maximum(saved, _LEAST), -_FREE * saved)
            ratio[~self._options(here) | (saved <= _LEAST)] = np.inf
            best = ratio.reshape(len(left), -1).argmin(axis=1)
            layer, choice = np.unravel_index(best, self.rules.allowed.shape)
            rows = np.arange(len(left))
            possible = np.isfinite(ratio[rows, layer, choice])
            genomes[left[possible], layer[possible]] = choice[possible]
            left = left[possible]
        return genomes

    def _options(self, genomes: Genomes) -> BoolArray:
        """What each layer may change to, (n, L, C)."""
        n, layers = genomes.shape
        if self.rules.free:
            options: BoolArray = np.tile(self.rules.allowed, (n, 1, 1))
            return options
        each = np.tile(np.arange(layers), n)
        return self.rules.options(np.repeat(genomes, layers, axis=0), each).reshape(n, layers, -1)
