"""Local refinement: exchange moves chosen by the main effects that the evaluations so far have shown.

NSGA-II spreads over the whole front, while the user wants the best genome at the edge of the budget, and there
the last percent is a matter of exchanges: spend a little more in one layer, a little less in another. Trying
exchanges blindly wastes evaluations (28 layers and 7 choices have 14,000), so `Effects` fits what every choice
of every layer adds to every cost, by ridge regression on the genomes evaluated so far, and `Effects.refine`
follows the best exchanges that this model predicts. What it proposes is evaluated like any other genome, so a
cost that does not add up over layers only makes the proposals poorer, never the result wrong. The model sees
evaluations only: neither a cost's tables nor the exact solver.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from hwsearch.search.rules import Rules
from hwsearch.search.space import BoolArray, FloatArray, Genomes

__all__ = ["Effects"]

_RIDGE = 1e-6
_DIGITS = 9  # below these the solution depends on how BLAS splits its work, and decides nothing
_MOST_MOVES = 128  # single moves considered at once, of which all pairs are formed
_PRICES, _PRICE_ROUNDS = 48, 5
_BLUR = 0.2
_TRIED = 8  # predicted best pairs per step that are checked against the rules and proposed


class Effects:
    """What each choice of each layer adds to each of k costs: tables (k, layers, choices)."""

    def __init__(self, *, num_layers: int, num_choices: int, num_costs: int) -> None:
        self.shape = (num_costs, num_layers, num_choices)
        width = num_layers * num_choices + 1
        self._offsets = np.arange(num_layers) * num_choices
        # Counts are whole numbers and the right side is summed row by row, so that batches leave no trace.
        self._counts = np.zeros((width, width))
        self._sums = np.zeros((width, num_costs))
        self._origin: FloatArray | None = None
        self.tables = np.zeros(self.shape)
        self._levels = np.zeros(num_costs)

    def add(self, genomes: Genomes, costs: FloatArray) -> None:
        """Takes in evaluations: genomes (n, layers), costs (n, k)."""
        if self._origin is None:
            self._origin = costs.mean(axis=0)
        width = len(self._counts)
        columns = np.concatenate((genomes + self._offsets, np.full((len(genomes), 1), width - 1)), axis=1)
        marks = np.zeros((len(genomes), width))
        np.put_along_axis(marks, columns, 1.0, axis=1)
        self._counts += marks.T @ marks
        for i, values in enumerate((costs - self._origin).T):
            np.add.at(self._sums[:, i], columns, values[:, None])

    def fit(self) -> None:
        """Solves for the tables; deviations of rarely seen choices shrink towards zero."""
        matrix = self._counts.copy()
        matrix[np.diag_indices_from(matrix)] += _RIDGE
        solution = solve(matrix, self._sums, assume_a="pos")
        scale = np.abs(solution).max(axis=0)
        scale[scale == 0] = 1.0
        solution = np.round(solution / scale, _DIGITS) * scale
        assert self._origin is not None
        self.tables = solution[:-1].T.reshape(self.shape)
        self._levels = solution[-1] + self._origin

    def predict(self, genome: Genomes, *, near: Genomes, costs: FloatArray) -> FloatArray:
        """Costs (k,) of a genome (layers,), from the known costs (k,) of a genome near it."""
        rows = np.arange(len(genome))
        change: FloatArray = (self.tables[:, rows, genome] - self.tables[:, rows, near]).sum(axis=1)
        return costs + change

    def construct(self, bounds: FloatArray, *, rules: Rules, rng: np.random.Generator) -> Genomes:
        """A genome (1, layers) close to the bounds (k,): the best found of the model's Lagrangian relaxation.

        With a price on each bounded cost and limited kind, and each tied group settled on a random member, the
        cheapest genome is a shortest path; the prices are found by random search that narrows around the best
        so far. No row where the genome cannot be mended to keep the rules.
        """
        tables = np.concatenate((self.tables, rules.limit_tables))
        levels = np.concatenate((self._levels, np.zeros(len(rules.limit_tables))))
        bounds = np.concatenate((bounds, rules.limit_bounds))
        score = _Score(bounds, unit=self._unit)
        bounded = score.bounded
        rows = np.arange(self.shape[1])
        spread = np.ptp(tables, axis=2).sum(axis=1)
        unit = spread[0] / np.where(spread > 0, spread, 1.0)[bounded]
        closed = np.where(rules.allowed, 0.0, np.inf)
        for tie in rules.ties:
            settled = tie.members & ~tie.same[rng.choice(np.flatnonzero(tie.members))]
            closed = np.where(settled & ~np.all(settled | ~rules.allowed, axis=1)[:, None], np.inf, closed)
        # The relaxation has few solutions, and the optimum is near, not among them: look at it a little askew.
        blur = _BLUR * rng.random() ** 4 * spread[0] / len(rows)
        first_table = tables[0] + blur * rng.standard_normal(tables[0].shape)
        centre, width = np.full(len(bounded), -0.5), 2.0
        best, least = self._cheapest((tables[0] + closed)[None], rules)[0], np.inf
        for _ in range(_PRICE_ROUNDS):
            exponents = centre + rng.uniform(-width, width, size=(_PRICES, len(bounded)))
            priced = first_table + np.tensordot(unit * 10.0**exponents, tables[bounded], axes=1)
            genomes = self._cheapest(priced + closed, rules)
            totals = levels[:, None] + tables[:, rows, genomes].sum(axis=2)
            scores = score.of(totals)
            first = int(np.argmin(scores))
            if scores[first] < least:
                best, least, centre = genomes[first], float(scores[first]), exponents[first]
            width /= 3
        return rules.repair(best[None], rng=rng)

    @staticmethod
    def _cheapest(priced: FloatArray, rules: Rules) -> Genomes:
        """The cheapest path through the layers for each of s price lists (s, layers, choices), (s, layers)."""
        if not rules.forbidden.any():
            cheapest: Genomes = np.argmin(priced, axis=2)
            return cheapest
        closed = np.where(rules.forbidden, np.inf, 0.0)
        prices = np.ascontiguousarray(priced.transpose(1, 2, 0))  # the longest axis last, three times as fast
        least = [prices[0]]  # of the paths that end in each choice, per layer
        for price in prices[1:]:
            least.append((least[-1][:, None, :] + closed[:, :, None]).min(axis=0) + price)
        path = [least[-1].argmin(axis=0)]
        for before in reversed(least[:-1]):
            path.append((before + closed[:, path[-1]]).argmin(axis=0))
        return np.stack(path[::-1], axis=1)

    def refine(
        self,
        genome: Genomes,
        *,
        costs: FloatArray,
        bounds: FloatArray,
        steps: int,
        rules: Rules,
        rng: np.random.Generator,
    ) -> Genomes:
        """`genome` (layers,) and genomes on the way down from it in the first cost, the best last.

        costs (k,) are those of the genome; bounds (k,) upper bounds on each, infinite where there is none.
        Each step takes the valid move of one or two layers that is predicted to break the bounds least, and
        among those that keep them to have the least first cost; it ends where no move is predicted to help.
        """
        score = _Score(bounds, unit=self._unit)
        proposals: list[Genomes] = [genome]
        here = float(score.of(costs[:, None])[0])
        for _ in range(steps):
            layers, choices = self._moves(genome, score.bounded, rules, rng)
            change = self.tables[:, layers, choices] - self.tables[:, layers, genome[layers]]
            scores = score.of_pairs(costs, change)
            scores[~rules.pairs(genome, layers, choices)] = np.inf
            found = self._best_valid(scores, genome, layers, choices, rules)
            if found is None:
                break
            children, pairs = found
            first, second = pairs[0]
            best = float(scores[first, second])
            if best >= here - 1e-9 * abs(here):
                break
            proposals.extend(children[::-1])
            moved = change[:, [first]] if first == second else change[:, [first, second]]
            genome, costs, here = children[0], costs + moved.sum(axis=1), best
        return np.array(proposals)

    @property
    def _unit(self) -> float:
        """More than all that can be gained in the first cost."""
        return float(1e3 * np.ptp(self.tables[0], axis=1).sum()) or 1.0

    def _moves(
        self, genome: Genomes, bounded: NDArray[np.int64], rules: Rules, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Layers (n,) and the new choices (n,) of single moves that lower some cost that matters.

        A random part of them where there are too many to form all pairs.
        """
        mask: BoolArray = rules.allowed.copy()
        mask[np.arange(len(genome)), genome] = False
        for tie in rules.ties:
            used = np.unique(genome[tie.members[genome]])
            if len(used):
                mask &= ~tie.members | tie.same[used].any(axis=0)
        relevant = self.tables[np.union1d(bounded, 0)]
        lower = relevant < relevant[:, np.arange(len(genome)), genome][:, :, None]
        layers, choices = np.nonzero(mask & lower.any(axis=0))
        if len(layers) > _MOST_MOVES:
            part = rng.choice(len(layers), size=_MOST_MOVES, replace=False)
            layers, choices = layers[part], choices[part]
        return layers, choices

    @staticmethod
    def _best_valid(
        scores: FloatArray,
        genome: Genomes,
        layers: NDArray[np.int64],
        choices: NDArray[np.int64],
        rules: Rules,
    ) -> tuple[Genomes, list[tuple[int, int]]] | None:
        """The valid ones among the best scored moves, best first, as genomes and pairs of move indices."""
        if not scores.size:
            return None
        # Every pair stands there twice.
        best = np.argpartition(scores.ravel(), min(2 * _TRIED, scores.size - 1))[: 2 * _TRIED]
        best = best[np.lexsort((best, scores.ravel()[best]))]
        first, second = np.divmod(best, len(scores))
        first, second = first[first <= second], second[first <= second]
        children = np.repeat(genome[None], len(first), axis=0)
        rows = np.arange(len(first))
        children[rows, layers[first]] = choices[first]
        children[rows, layers[second]] = choices[second]
        valid = rules.space.valid(children) & np.isfinite(scores[first, second])
        if not valid.any():
            return None
        pairs = list(zip(first[valid].tolist(), second[valid].tolist(), strict=True))
        return children[valid], pairs


class _Score:
    """The first cost, plus the excess over bounds (k,) at a price that no gain in the first cost pays."""

    def __init__(self, bounds: FloatArray, *, unit: float) -> None:
        self.bounded = np.flatnonzero(np.isfinite(bounds))
        limits = bounds[self.bounded]
        scale = np.where(limits == 0, 1.0, np.abs(limits))
        # A hair below the bound: a prediction is not exact, and one that is just above helps nobody.
        self.limits = limits - 1e-12 * scale
        self.weights = unit / scale

    def of(self, costs: FloatArray) -> FloatArray:
        """Scores (n,) of costs (k, n)."""
        excess = np.maximum(costs[self.bounded] - self.limits[:, None], 0.0)
        scores: FloatArray = costs[0] + (self.weights[:, None] * excess).sum(axis=0)
        return scores

    def of_pairs(self, costs: FloatArray, change: FloatArray) -> FloatArray:
        """Scores (n, n) after each pair of n moves that change costs (k,) by change (k, n); the diagonal: alone."""
        scores: FloatArray = np.add.outer(costs[0] + change[0], change[0])
        for weight, limit, column in zip(self.weights, self.limits, self.bounded, strict=True):
            over = weight * (costs[column] - limit + change[column])
            excess = np.add.outer(over, weight * change[column])
            scores += np.maximum(excess, 0.0, out=excess)
        np.fill_diagonal(scores, self.of(costs[:, None] + change))
        return scores
