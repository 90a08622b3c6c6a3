"""Hypervolume: how much of the objective space a set of trade-offs dominates, and how it grew over a run.

Zitzler and Thiele (1998). Two objectives by one sweep; more by slicing along the last one (HSO: While, Hingston,
Barone and Huband, 2006), which is meant for the few hundred points of a front. All objectives are minimised.
"""

from __future__ import annotations

import numpy as np

from hwsearch.search.pareto import non_dominated
from hwsearch.search.space import FloatArray

__all__ = ["hypervolume", "reference_point"]


def reference_point(objectives: FloatArray) -> FloatArray:
    """The worst value of each objective, (m,), among the first evaluations (n, m) of a run.

    Taken once, so that the hypervolumes of a run can be compared.
    """
    worst: FloatArray = objectives.max(axis=0)
    return worst


def hypervolume(objectives: FloatArray, reference: FloatArray) -> float:
    """The volume between the points (n, m) and the reference (m,) that the points dominate; 0 without a point."""
    inside = objectives[np.all(objectives < reference, axis=1)]
    if not len(inside):
        return 0.0
    return _volume(inside[non_dominated(inside)], reference)


def _volume(points: FloatArray, reference: FloatArray) -> float:
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    if points.shape[1] == 2:
        least = np.minimum.accumulate(points[:, 0])
        heights = np.diff(np.append(points[:, 1], reference[1]))
        return float(((reference[0] - least) * heights).sum())
    levels = np.append(points[:, -1], reference[-1])
    total = 0.0
    for i, height in enumerate(np.diff(levels)):
        if height > 0:
            below = points[: i + 1, :-1]
            total += float(height) * _volume(below[non_dominated(below)], reference[:-1])
    return total
