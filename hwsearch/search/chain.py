"""The exact optimum of costs that add up over layers and neighbours, as a shortest path with resources.

An architecture is a path through the layers. A price on every bounded cost makes the problem a plain shortest
path, solved by dynamic programming; the best prices (the Lagrangian dual, by Kelley's cutting planes) give a lower
bound, and with the costs-to-go at those prices a bound for every partial path (Beasley and Christofides, 1989).
Partial paths are then grown layer by layer (`labels`), all whose bound lies below a threshold and that can still meet
every limit; the threshold is raised until the best path found lies below it, which proves it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from hwsearch.search.labels import Labels
from hwsearch.search.memory import Memory
from hwsearch.search.problem import Additive, Pairwise
from hwsearch.search.rules import Rules
from hwsearch.search.space import BoolArray, FloatArray, Genomes

__all__ = ["Chain", "Paths", "is_chain"]

_CUTS = 60
_DEAREST = 1e4  # times the price at which one unit of a bounded cost outweighs the whole range of the first
_PRICED = 5  # price lists whose bounds are checked for every label
_START = 1e-5  # first threshold above the bound, as a share of the range of the first cost
_LABELS = 200_000
_ROUNDING = 1e-9
_SETTLED = 512  # combinations of tied members that are tried one by one
_NODES = 1024  # choices, times what their paths may have seen

Check = Callable[[Genomes], tuple[FloatArray, BoolArray]]


def is_chain(cost: object) -> bool:
    """Whether a cost comes as tables over layers and neighbouring layers."""
    return isinstance(cost, Additive) or (isinstance(cost, Pairwise) and cost.adjacent is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Paths:
    """The cheapest genomes found (n, layers), cheapest first, with their values (n,); n may be 0.

    No genome within the bounds is below `bound`, which is infinite where there provably is none. proven: the
    first is the cheapest there is, or there is none. prices (R,): of the bounded costs and limits, in the part
    `closed` (L, C) of the space in which the first genome lies; None where the rules leave nothing.
    """

    genomes: Genomes
    values: FloatArray
    bound: float
    proven: bool
    prices: FloatArray | None = None
    closed: BoolArray | None = None


class Chain:
    """Costs along the layers: the first is minimised, the others are bounded."""

    def __init__(self, costs: Sequence[Additive | Pairwise], *, rules: Rules) -> None:
        self.rules = rules
        self.num_costs = len(costs)
        self.memory = Memory(rules.num_choices, orders=rules.orders, needs=rules.needs)
        unary = [cost.table for cost in costs]
        self.unary: FloatArray = self.memory.unfold(np.concatenate((np.stack(unary), rules.limit_tables)))
        layers, nodes = self.unary.shape[1:]
        self.between: FloatArray | None = None
        if any(isinstance(cost, Pairwise) for cost in costs):
            self.between = np.zeros((len(self.unary), layers - 1, nodes, nodes))
            for i, cost in enumerate(costs):
                if isinstance(cost, Pairwise):
                    assert cost.adjacent is not None
                    self.between[i] = self.memory.unfold(cost.adjacent, axes=2)
        blocked = self.memory.blocked(rules.forbidden)
        self.blocked = np.where(blocked, np.inf, 0.0) if blocked.any() else None
        self.constants = np.zeros(len(self.unary))
        self.constants[: len(costs)] = [cost.constant for cost in costs]
        peaks = [(i, cost.peak) for i, cost in enumerate(costs) if isinstance(cost, Additive)]
        self.peaked = [i for i, peak in peaks if peak is not None]
        self.peaks = [self.memory.unfold(peak) for _, peak in peaks if peak is not None]

    def cheapest(
        self,
        at_most: FloatArray,
        *,
        check: Check,
        count: int = 1,
        deadline: float = np.inf,
        labels: int = _LABELS,
        closed: BoolArray | None = None,
    ) -> Paths:
        """The `count` cheapest genomes whose other costs are within at_most (k - 1,).

        check: the values (n,) and feasibility (n,) of genomes (n, layers), the last word on both. deadline: a
        time.monotonic() after which the best so far is returned. The first genome is the cheapest where proven;
        the others were met on the way to it. closed: what each layer may not take beside the rules, (L, C).
        """
        limits = np.concatenate((at_most, self.rules.limit_bounds))
        best = Paths(genomes=np.empty((0, self.unary.shape[1]), np.int64), values=np.empty(0), bound=np.inf,
                     proven=True)  # fmt: skip
        parts: list[_Part] = []
        for settled in self._settled():
            near = parts[0].prices[0] if parts else None
            part = _Part(self, settled if closed is None else settled | closed, limits, near=near)
            if part.open and not parts:
                part.tighten()
            if part.open:
                parts.append(part)
        parts.sort(key=lambda part: part.bound)
        priced = parts[0] if parts else None
        for part in parts:
            upper = float(best.values[0]) if len(best.values) else np.inf
            if part.bound < upper and not part.tight:
                part.tighten()
            if not part.open or part.bound >= upper:
                continue  # what is not searched is no worse than what is known
            found = part.search(upper, check=check, deadline=deadline, labels=labels)
            best = _merged(best, found, count)
            if len(best.values) and float(best.values[0]) < upper:
                priced = part
        bound = min(best.bound, float(best.values[0])) if len(best.values) else best.bound
        return Paths(
            genomes=best.genomes,
            values=best.values,
            bound=bound,
            proven=best.proven,
            prices=None if priced is None else priced.prices[0],
            closed=None if priced is None else self.memory.opened(np.isinf(priced.closed)),
        )

    def _settled(self) -> Iterator[BoolArray]:
        """What is closed to each layer, (L, C), for every way to settle the tied groups on a class."""
        for settled in itertools.product(*(tie.leaders for tie in self.rules.ties)):
            closed = ~self.rules.allowed
            for tie, leader in zip(self.rules.ties, settled, strict=True):
                closed = closed | (tie.members & ~tie.same[leader])
            yield closed

    def togo(
        self, unary: FloatArray, between: FloatArray | None, closed: FloatArray
    ) -> tuple[FloatArray, float]:
        """Least cost after each (layer, node), (L, N), and of a whole path; see `Memory` for nodes."""
        layers, nodes = unary.shape
        open_unary = unary + closed
        togo = np.zeros((layers, nodes))
        blocked = self.blocked
        for layer in range(layers - 2, -1, -1):
            after = (open_unary[layer + 1] + togo[layer + 1])[None]
            if between is not None:
                after = after + between[layer]
            if blocked is not None:
                after = after + blocked
            togo[layer] = after.min(axis=1)
        return togo, float((open_unary[0] + togo[0]).min())

    def priced(self, prices: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        """One table (L, C), and one between neighbours, of the first cost plus the others at prices (R,)."""
        weights = np.concatenate(([1.0], prices))
        unary = np.tensordot(weights, self.unary, axes=1)
        between = self.between
        return unary, None if between is None else np.tensordot(weights, between, axes=1)

    def follow(
        self, unary: FloatArray, between: FloatArray | None, closed: FloatArray, togo: FloatArray
    ) -> Genomes:
        """The cheapest genome (L,), from the costs-to-go (L, C)."""
        total = unary + closed + togo
        genome = np.empty(len(unary), dtype=np.int64)
        genome[0] = np.argmin(total[0])
        for layer in range(1, len(unary)):
            here = total[layer]
            if between is not None:
                here = here + between[layer - 1, genome[layer - 1]]
            if self.blocked is not None:
                here = here + self.blocked[genome[layer - 1]]
            genome[layer] = np.argmin(here)
        return genome

    def cheapest_at(self, prices: FloatArray, *, closed: BoolArray) -> Genomes:
        """The genome (L,) of least first cost plus the other costs and limits at prices (R,), bounds aside.

        closed: what each layer may not take, (L, C).
        """
        unary, between = self.priced(prices)
        shut = np.where(self.memory.closed(closed), np.inf, 0.0)
        return self.memory.fold(self.follow(unary, between, shut, self.togo(unary, between, shut)[0]))

    @property
    def combinations(self) -> int:
        """How many ways there are to settle the tied groups."""
        return int(np.prod([len(tie.leaders) for tie in self.rules.ties], dtype=np.int64))

    @property
    def tractable(self) -> bool:
        """Whether `cheapest` is in reach: ties are tried one by one, and rules on what came before double the nodes."""
        return self.combinations <= _SETTLED and self.unary.shape[2] <= _NODES


def _merged(one: Paths, other: Paths, count: int) -> Paths:
    genomes = np.concatenate((one.genomes, other.genomes))
    values = np.concatenate((one.values, other.values))
    order = np.argsort(values, kind="stable")[:count]
    return Paths(
        genomes=genomes[order],
        values=values[order],
        bound=min(one.bound, other.bound),
        proven=one.proven and other.proven,
    )


class _Part:
    """The problem with every tied group settled. near: prices of another part, which give a first bound."""

    def __init__(
        self, chain: Chain, closed: BoolArray, limits: FloatArray, *, near: FloatArray | None
    ) -> None:
        self.chain = chain
        closed = chain.memory.closed(closed)
        self.closed = np.where(closed, np.inf, 0.0)
        self.offset = chain.constants.copy()
        self.floors = np.zeros(len(chain.peaks))
        self.open = not closed.all(axis=1).any()
        if not self.open:
            return
        for i, (cost, peak) in enumerate(zip(chain.peaked, chain.peaks, strict=True)):
            self.floors[i] = np.where(closed, np.inf, peak).min(axis=1).max()
            self.offset[cost] += self.floors[i]
        self.limits = limits - self.offset[1:]
        self.ranges = self._range()
        self.spread = self.ranges[0] or 1.0
        self.slack = _ROUNDING * np.maximum(self.ranges, np.abs(np.concatenate(([0.0], self.limits))))
        between = None if chain.between is None else -chain.between[0]
        # No genome costs more than this: what is bounded from below by more does not exist.
        self.dearest = float(self.offset[0]) - self.chain.togo(-chain.unary[0], between, self.closed)[1]
        if 0 in chain.peaked:
            self.dearest += float(np.ptp(chain.peaks[chain.peaked.index(0)]))
        self.prices = [np.zeros(len(self.limits)) if near is None else near]
        self.bound = self._value(self.prices[0])[0] + float(self.offset[0])
        self.tight = False
        self.open = self._possible

    @property
    def _possible(self) -> bool:
        return bool(np.isfinite(self.bound) and self.bound <= self.dearest + self.slack[0])

    def _range(self) -> FloatArray:
        """Upper estimate of by how much each cost can differ, (k,)."""
        unary, between = self.chain.unary, self.chain.between
        closed = np.isinf(self.closed)
        high = np.where(closed, -np.inf, unary).max(axis=2) - np.where(closed, np.inf, unary).min(axis=2)
        total: FloatArray = high.sum(axis=1)
        if between is not None:
            total = total + np.ptp(between, axis=(2, 3)).sum(axis=1)
        return total

    def _totals(self, genome: Genomes) -> FloatArray:
        rows = np.arange(len(genome))
        totals: FloatArray = self.chain.unary[:, rows, genome].sum(axis=1)
        if self.chain.between is not None:
            totals = totals + self.chain.between[:, rows[:-1], genome[:-1], genome[1:]].sum(axis=1)
        return totals

    def _value(self, prices: FloatArray) -> tuple[float, FloatArray | None]:
        """The Lagrangian bound, constants aside, at prices (R,), and the costs (k,) of the path that attains it."""
        unary, between = self.chain.priced(prices)
        togo, least = self.chain.togo(unary, between, self.closed)
        if not np.isfinite(least):
            return np.inf, None
        totals = self._totals(self.chain.follow(unary, between, self.closed, togo))
        return least - float(prices @ self.limits), totals

    def tighten(self) -> None:
        """Finds the prices that give the best bound."""
        size = len(self.limits)
        unit = self.spread / np.where(self.ranges[1:] > 0, self.ranges[1:], 1.0)
        tried: list[tuple[float, FloatArray]] = []
        rows, sides = [], []
        prices = self.prices[0]
        for _ in range(_CUTS):
            value, totals = self._value(prices)
            assert totals is not None
            tried.append((value, prices))
            if not size:
                break
            excess = (totals[1:] - self.limits) * unit
            rows.append(np.concatenate(([1.0], -excess)))
            sides.append(totals[0])
            master = linprog(
                np.concatenate(([-1.0], np.zeros(size))),
                A_ub=np.array(rows),
                b_ub=np.array(sides),
                bounds=[(None, None), *[(0.0, _DEAREST)] * size],
                method="highs",
            )
            best, centre = max(tried, key=lambda pair: pair[0])
            if (
                master.x is None
                or -float(master.fun or 0.0) - best <= _START * self.spread
                or best + self.offset[0] > self.dearest + self.spread
            ):
                break
            # Halfway to the best so far: plain cutting planes swing from one end to the other.
            prices = 0.6 * master.x[1:] * unit + 0.4 * centre
        tried.sort(key=lambda pair: -pair[0])
        kept = [tried[0][1], np.zeros(size)]
        kept += [prices for _, prices in tried[3 :: max(len(tried) // _PRICED, 1)]]
        self.prices, self.bound = kept[:_PRICED], tried[0][0] + float(self.offset[0])
        self.tight = True
        self.open = self._possible

    def search(self, upper: float, *, check: Check, deadline: float, labels: int) -> Paths:
        """The cheapest genomes of this part, as far as they matter where one of value `upper` is known."""
        genomes = np.empty((0, len(self.closed)), dtype=np.int64)
        values = np.empty(0)
        grow = Labels(self, labels)
        step = _START * self.spread
        while True:
            threshold = min(self.bound + step, upper)
            nodes, complete = grow.below(threshold)
            drafts = self.chain.memory.fold(nodes)
            drafts_values, fits = check(drafts)
            if fits.any():
                order = np.argsort(drafts_values[fits], kind="stable")
                genomes, values = drafts[fits][order], drafts_values[fits][order]
                upper = min(upper, float(values[0]))
            proven = complete >= min(upper, self.dearest) - self.slack[0]
            if proven or complete < threshold or time.monotonic() > deadline:
                bound = np.inf if proven and not len(values) else complete
                return Paths(genomes=genomes, values=values, bound=bound, proven=proven)
            step *= 2 if grow.most > labels // 50 else 4
