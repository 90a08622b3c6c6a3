"""Selection for three objectives and more: reference directions, as in NSGA-III.

Deb and Jain, An evolutionary many-objective optimization algorithm using reference-point-based nondominated
sorting (2014): directions spread evenly over the simplex (Das and Dennis, 1998); every point belongs to the direction
that it is closest to, and the last front that fits is filled from the directions with the fewest points. Objectives
are scaled between the best and the worst of the first front, not by the paper's hyperplane, which often degenerates.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

from hwsearch.search.space import FloatArray

__all__ = ["directions", "survivors"]

Indices = NDArray[np.int64]


def directions(num_objectives: int, *, at_most: int) -> FloatArray:
    """The finest even lattice of at most so many directions (d, m) that sum to 1; the corners at the least."""
    steps = 1
    while comb(num_objectives + steps, steps + 1) <= at_most:
        steps += 1

    def parts(left: int, places: int) -> list[list[int]]:
        if places == 1:
            return [[left]]
        return [[first, *rest] for first in range(left + 1) for rest in parts(left - first, places - 1)]

    return np.array(parts(steps, num_objectives), dtype=np.float64) / steps


def survivors(objectives: FloatArray, ranks: Indices, n: int, *, towards: FloatArray) -> Indices:
    """The n points (p, m) to keep, best front first, in the last front those in thinly held directions (d, m)."""
    order = np.argsort(ranks, kind="stable")
    if len(order) <= n:
        return order.astype(np.int64)
    last = ranks[order[n]]
    kept = order[ranks[order] < last]
    fringe = order[ranks[order] == last]
    pool = np.concatenate((kept, fringe))
    front = objectives[ranks == ranks.min()]
    low, high = front.min(axis=0), front.max(axis=0)
    scaled = (objectives[pool] - low) / np.where(high > low, high - low, 1.0)
    unit = towards / np.linalg.norm(towards, axis=1, keepdims=True)
    along = scaled @ unit.T
    away: FloatArray = np.sqrt(np.maximum((scaled**2).sum(axis=1)[:, None] - along**2, 0.0))
    niche: Indices = np.argmin(away, axis=1)
    distance = away[np.arange(len(pool)), niche]
    held = np.bincount(niche[: len(kept)], minlength=len(towards))
    # The k-th closest of a direction comes when the direction holds k more than now.
    candidates = np.arange(len(kept), len(pool))
    candidates = candidates[np.lexsort((distance[candidates], niche[candidates]))]
    starts = np.searchsorted(niche[candidates], niche[candidates], side="left")
    place = held[niche[candidates]] + np.arange(len(candidates)) - starts
    chosen = candidates[np.lexsort((distance[candidates], place))[: n - len(kept)]]
    best: Indices = np.concatenate((kept, pool[chosen]))
    return best
