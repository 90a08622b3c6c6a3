"""Non-dominated sorting, crowding distance, the archive of the best trade-offs, and its knee.

Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (2002); the sort of two objectives is
the sweep of Jensen (2003), n log n instead of n squared. All objectives are minimised.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from hwsearch.search.space import BoolArray, FloatArray, Genomes

__all__ = [
    "Archive",
    "constrained_ranks",
    "crowding_distance",
    "knee",
    "non_dominated",
    "non_dominated_ranks",
]

Ranks = NDArray[np.int64]


def non_dominated(objectives: FloatArray) -> BoolArray:
    """Which of the points (n, m) no other dominates, (n,); equal points do not dominate one another."""
    if objectives.shape[1] != 2:
        return np.logical_not(_dominating(objectives, objectives).any(axis=0))
    order = np.lexsort((objectives[:, 1], objectives[:, 0]))
    first, second = objectives[order, 0], objectives[order, 1]
    least_before = np.concatenate(([np.inf], np.minimum.accumulate(second)[:-1]))
    kept = second < least_before
    # An equal point shares the fate of the first of its kind, which comes right before it.
    leader = np.maximum.accumulate(np.where(_differs(first, second), np.arange(len(order)), 0))
    mask = np.empty(len(order), dtype=bool)
    mask[order] = kept[leader]
    return mask


def _differs(first: FloatArray, second: FloatArray) -> BoolArray:
    """Where a sorted point is not equal to the one before it."""
    different = np.ones(len(first), dtype=bool)
    different[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return different


def _dominating(these: FloatArray, those: FloatArray) -> BoolArray:
    """Which of these points (a, m) dominate which of those (b, m), (a, b)."""
    nowhere_worse = np.ones((len(these), len(those)), dtype=bool)
    better = np.zeros((len(these), len(those)), dtype=bool)
    for mine, other in zip(these.T, those.T, strict=True):
        nowhere_worse &= mine[:, None] <= other
        better |= mine[:, None] < other
    return nowhere_worse & better


def non_dominated_ranks(objectives: FloatArray) -> Ranks:
    """The front of each point (n, m), 0 for the non-dominated, 1 for what is left without those, ... (n,)."""
    n, m = objectives.shape
    ranks = np.empty(n, dtype=np.int64)
    if m == 1:
        return np.unique(objectives[:, 0], return_inverse=True)[1].reshape(n)
    if m > 2:
        dominating = _dominating(objectives, objectives)
        left = np.ones(n, dtype=bool)
        rank = 0
        while left.any():
            front = left & ~dominating[left].any(axis=0)
            ranks[front] = rank
            left &= ~front
            rank += 1
        return ranks
    order = np.lexsort((objectives[:, 1], objectives[:, 0]))
    tails: list[float] = []  # least second objective of each front so far; increasing from front to front
    swept = []
    previous: tuple[float, float] | None = None
    front_of_previous = 0
    for point in map(tuple, objectives[order].tolist()):
        if point != previous:
            front_of_previous = bisect_right(tails, point[1])
            tails[front_of_previous : front_of_previous + 1] = [point[1]]
            previous = point
        swept.append(front_of_previous)
    ranks[order] = swept
    return ranks


def constrained_ranks(objectives: FloatArray, violations: FloatArray) -> Ranks:
    """Fronts under constraint domination, (n,): feasible points first, the others by their violation alone."""
    feasible = violations <= 0
    ranks = np.empty(len(violations), dtype=np.int64)
    ranks[feasible] = non_dominated_ranks(objectives[feasible])
    behind = ranks[feasible].max() + 1 if feasible.any() else 0
    ranks[~feasible] = behind + np.unique(violations[~feasible], return_inverse=True)[1].reshape(-1)
    return ranks


def crowding_distance(objectives: FloatArray, ranks: Ranks) -> FloatArray:
    """How far the neighbours of each point (n, m) in its own front are apart, (n,); infinite at the ends."""
    n, m = objectives.shape
    distance = np.zeros(n)
    for i in range(m):
        order = np.lexsort((objectives[:, i], ranks))
        values, fronts = objectives[order, i], ranks[order]
        starts = np.flatnonzero(np.concatenate(([True], fronts[1:] != fronts[:-1])))
        ends = np.concatenate((starts[1:], [n])) - 1
        span = np.repeat(values[ends] - values[starts], ends - starts + 1)
        gap = np.zeros(n)
        gap[1:-1] = values[2:] - values[:-2]
        share = np.divide(gap, span, out=np.zeros(n), where=span > 0)
        share[starts] = share[ends] = np.inf
        distance[order] += share
    return distance


def knee(objectives: FloatArray) -> int:
    """The index of the knee of a front (n, m): the least sum of objectives, each scaled to 0..1 over the front.

    With two objectives this is the point farthest below the line that joins the two ends. The first wins a tie.
    """
    low, high = objectives.min(axis=0), objectives.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    return int(np.argmin(((objectives - low) / span).sum(axis=1)))


class Archive:
    """The feasible non-dominated genomes seen so far, sorted by objectives.

    Of genomes with equal objectives the lexicographically first is kept, so the content depends on what was
    seen and not on the order in which it was.
    """

    def __init__(self, *, num_layers: int, num_objectives: int) -> None:
        self.genomes: Genomes = np.empty((0, num_layers), dtype=np.int64)
        self.objectives: FloatArray = np.empty((0, num_objectives))

    def __len__(self) -> int:
        return len(self.genomes)

    def add(self, genomes: Genomes, objectives: FloatArray) -> None:
        """Takes in feasible genomes (n, layers) with their objectives (n, m)."""
        if objectives.shape[1] > 2 and len(self.genomes):
            # Every pair is compared here, so the many that are known not to dominate one another stay apart.
            fresh = ~_dominating(self.objectives, objectives).any(axis=0)
            genomes, objectives = genomes[fresh], objectives[fresh]
            stays = ~_dominating(objectives, self.objectives).any(axis=0)
            self.genomes, self.objectives = self.genomes[stays], self.objectives[stays]
            kept = np.concatenate((np.ones(len(self.genomes), dtype=bool), non_dominated(objectives)))
            genomes = np.concatenate((self.genomes, genomes))
            objectives = np.concatenate((self.objectives, objectives))
        else:
            genomes = np.concatenate((self.genomes, genomes))
            objectives = np.concatenate((self.objectives, objectives))
            kept = non_dominated(objectives)
        genomes, objectives = genomes[kept], objectives[kept]
        order = np.lexsort((*genomes.T[::-1], *objectives.T[::-1]))
        genomes, objectives = genomes[order], objectives[order]
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = np.any(objectives[1:] != objectives[:-1], axis=1)
        self.genomes, self.objectives = genomes[fresh], objectives[fresh]
