"""What measured neighbours say of the operator between them.

Libraries switch kernels between shapes, which no smooth model foresees, but the tables lie on grids: next to an
operator there are often measured ones that differ in a single dimension. How their latencies depart from what
the residual model predicts here, and how far away they are, are inputs of a second ensemble of trees, which
learns on cross-fitted predictions how much of it to believe. Where no neighbour is within an octave, or where
cross-validation finds no use in them, there is no correction. Where a library switches kernels often, what is left has
a long tail on one side: cross-validation then prefers an ensemble that learns the median rather than nearly the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.trees import Trees, TreesRecipe, fit_trees

__all__ = ["Neighbours", "Surroundings", "fit_neighbours", "row_keys", "support"]

FloatArray = NDArray[np.float64]
_SIDES = 2  # along each dimension: the nearest smaller and the nearest larger
_NONE = 30.0  # octaves: the distance of a neighbour that does not exist
_REACH = 1.01  # octaves: a neighbour farther away says nothing
_MANY_ROWS = 1000
_WORTH = 0.98  # of the error must be left at most, or neighbours are not asked; nor the median learned
_MANY = TreesRecipe(trees=200, depth=7, rate=0.06, rows=0.5, features=0.5)
_MEDIAN = TreesRecipe(trees=200, depth=8, rate=0.12, rows=0.5, features=0.5, clip_quantile=0.7)
_FEW = TreesRecipe(trees=100, depth=4, rate=0.05)
_NOTHING = TreesRecipe(trees=0)
_SPARSE = 16  # places of the table of hashes for each known row
_RANK_BITS = np.uint64(20)  # half a million different values along a dimension
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class _Axis:
    """Known rows ordered along one dimension: its distinct values, and per row in order a key, log2 and residual.

    `taken` tells by the last bits of a row's other dimensions, hashed, whether any known row may share them: most
    rows that are asked for share them with none, and need no search.
    """

    values: NDArray[np.int64]
    key: NDArray[np.uint64]
    log_value: FloatArray
    left: FloatArray
    taken: NDArray[np.bool_]

    def candidates(self, group: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows of hashed other dimensions (n,) that may have neighbours along this one."""
        last = (group & np.uint64(len(self.taken) - 1)).astype(np.int64)
        return np.flatnonzero(self.taken[last])


@dataclass(frozen=True)
class Surroundings:
    """Known rows (u, d) and their residuals (u,), indexed for looking up what is measured next to a row."""

    width: int
    axes: Mapping[int, _Axis]

    @classmethod
    def of(cls, known: NDArray[np.int64], left: FloatArray) -> Surroundings:
        scrambled = _scramble(known)
        axes = {}
        for axis in range(known.shape[1]):
            values = np.unique(known[:, axis])
            if len(values) < 2:
                continue
            # A key orders rows by all other dimensions, then by their rank along this one; ranks are even, so
            # that a value between two measured ones has an odd rank of its own.
            rank = 2 * np.searchsorted(values, known[:, axis]).astype(np.uint64) + np.uint64(2)
            group = scrambled.sum(axis=1, dtype=np.uint64) - scrambled[:, axis]
            key = (group << _RANK_BITS) | rank
            order = np.argsort(key)
            log_value = np.log2(np.maximum(known[order, axis], 0.5))
            taken = np.zeros(1 << (_SPARSE * len(known)).bit_length(), np.bool_)
            taken[(group & np.uint64(len(taken) - 1)).astype(np.int64)] = True
            axes[axis] = _Axis(values, key[order], log_value, left[order], taken)
        return cls(known.shape[1], axes)

    def near(self, asked: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Residuals and distances in octaves (n, d, 2) of the known rows that differ from an asked row (n, d) in
        one dimension only, the nearest on each side."""
        # One contiguous column for each dimension and side: they are written, compared and reduced as columns.
        shape = (asked.shape[1], _SIDES, len(asked))
        residual = np.zeros(shape).transpose(2, 0, 1)
        octaves = np.full(shape, _NONE).transpose(2, 0, 1)
        scrambled = _scramble(asked)
        every = scrambled.sum(axis=1, dtype=np.uint64)
        for axis, known in self.axes.items():
            group = every - scrambled[:, axis]
            rows = known.candidates(group)
            value = asked[rows, axis]
            place = np.searchsorted(known.values, value)
            inside = np.minimum(place, len(known.values) - 1)
            rank = (2 * place + 2 - (known.values[inside] != value)).astype(np.uint64)
            key = (group[rows] << _RANK_BITS) | rank
            below = np.searchsorted(known.key, key)
            here = (below < len(known.key)) & (known.key[np.minimum(below, len(known.key) - 1)] == key)
            log_asked = np.log2(np.maximum(value, 0.5))
            for side, at in enumerate((below - 1, below + here)):
                valid = (at >= 0) & (at < len(known.key))
                at = np.clip(at, 0, len(known.key) - 1)
                valid &= (known.key[at] >> _RANK_BITS) == (key >> _RANK_BITS)
                found, at = rows[valid], at[valid]
                residual[found, axis, side] = known.left[at]
                octaves[found, axis, side] = np.abs(known.log_value[at] - log_asked[valid])
        return residual, octaves


def _scramble(dims: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of every value, different for every column: sums of them tell rows apart."""
    salt = (np.arange(1, dims.shape[1] + 1).astype(np.uint64)) * np.uint64(0xD1B54A32D192ED03)
    mixed = (dims.astype(np.uint64) + salt) * _MIX
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return mixed


def support(octaves: FloatArray) -> NDArray[np.float32]:
    """How well measured the surroundings are: dimensions along which a neighbour was found, and the octaves to
    the nearest one, (n, 2), from distances (n, d, 2)."""
    nearest = octaves.min(axis=2)
    return np.stack([(nearest < _NONE).sum(axis=1), nearest.min(axis=1)], axis=1).astype(np.float32)


def row_keys(dims: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash (n,) of every row of dims (n, d)."""
    keys: NDArray[np.uint64] = _scramble(dims).sum(axis=1, dtype=np.uint64)
    return keys


def _inputs(
    features: NDArray[np.float32], around: tuple[FloatArray, FloatArray], predicted: FloatArray
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Inputs (n, F + 4d + 1) of the second ensemble, and which rows (n,) have a neighbour within reach."""
    # By columns, as they are found and as trees ask for them.
    width, sides = features.shape[1], around[0].shape[1] * _SIDES
    found, octaves = (values.transpose(1, 2, 0).reshape(sides, len(features)) for values in around)
    rows = np.empty((width + 2 * sides + 1, len(features)), np.float32)
    rows[:width] = features.T
    rows[-1] = predicted
    any_close = np.zeros(len(features), np.bool_)
    departs, distance = rows[width : width + sides], rows[width + sides : -1]
    for side in range(sides):
        close = octaves[side] <= _REACH
        departs[side] = np.where(close, found[side] - predicted, 0.0)
        distance[side] = np.where(close, octaves[side], _NONE)
        any_close |= close
    return rows.T, any_close


@dataclass(frozen=True)
class Neighbours:
    """Measured operators (u, d), the log of latency over its analytic form at each (u,), and the ensemble."""

    dims: NDArray[np.int64]
    target: NDArray[np.float32]
    trees: Trees

    @cached_property
    def _surroundings(self) -> Surroundings:
        return Surroundings.of(self.dims, self.target.astype(np.float64))

    def around(
        self, dims: NDArray[np.int64], features: NDArray[np.float32], predicted: FloatArray
    ) -> tuple[FloatArray, NDArray[np.float32]]:
        """Correction (n,) of a predicted residual (n,) at features (n, F), and `support` (n, 2), for dims (n, d)."""
        found = self._surroundings.near(dims)
        rows, close = _inputs(features, found, predicted)
        return np.where(close, self.trees.predict(rows), 0.0), support(found[1])

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "dims": self.dims.T.astype(np.int32),
            "target": self.target.astype(np.float16),
            **{f"trees.{name}": array for name, array in self.trees.arrays().items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Neighbours:
        trees = {k.removeprefix("trees."): a for k, a in arrays.items() if k.startswith("trees.")}
        return cls(
            np.ascontiguousarray(arrays["dims"].T).astype(np.int64),
            arrays["target"].astype(np.float32),
            Trees.from_arrays(trees),
        )


def fit_neighbours(
    dims: NDArray[np.int64],
    features: NDArray[np.float32],
    target: FloatArray,
    predicted: FloatArray,
    *,
    fold: NDArray[np.int64],
    seed: int,
) -> tuple[Neighbours, FloatArray, NDArray[np.float32]]:
    """Learn from rows (n, d), their target (n,) and what models that had not seen them predicted (n,).

    Also returns what is left of every row (n,) by ensembles that had not seen its `fold` either, and the support
    (n, 2) of every row.
    """
    found = Surroundings.of(dims, target).near(dims)
    rows, close = _inputs(features, found, predicted)
    left = target - predicted

    def learn(on: NDArray[np.bool_], recipe: TreesRecipe) -> Trees:
        on = on & close
        if not on.any():
            return fit_trees(rows[:1], left[:1], recipe=_NOTHING, seed=seed)
        return fit_trees(rows[on], left[on], recipe=recipe, seed=seed)

    after, chosen = left, _NOTHING
    for recipe in (_MANY, _MEDIAN) if len(target) >= _MANY_ROWS else (_FEW,):
        crossed = left.copy()
        for one in np.unique(fold):
            out = (fold == one) & close
            crossed[out] -= learn(fold != one, recipe).predict(rows[out])
        if np.abs(crossed).mean() < _WORTH * np.abs(after).mean():
            after, chosen = crossed, recipe
    whole = learn(np.ones(len(target), bool), chosen)
    return Neighbours(dims, target.astype(np.float32), whole), after, support(found[1])
