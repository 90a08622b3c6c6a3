"""What a fitted residual still misses at measured neighbours, carried over to the operator between them.

Libraries switch kernels between shapes, which no smooth model foresees, but the tables lie on grids: next to an
operator there are often measured ones that differ in a single dimension. Their remaining residuals, weighted by
the distance in octaves along each dimension and shrunk towards zero, correct the prediction. Where there is no
such neighbour there is no correction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Neighbours", "Weights", "fit_weights", "near", "row_keys", "support"]

FloatArray = NDArray[np.float64]
_SIDES = 2  # along each dimension: the nearest smaller and the nearest larger
_NONE = 30.0  # octaves: the distance of a neighbour that does not exist
_RANK_BITS = np.uint64(20)  # half a million different values along a dimension
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Weights:
    """Per dimension: log weight of a neighbour at no distance, and log rate of decay per octave, (d,) each."""

    log_weight: FloatArray
    log_decay: FloatArray

    def correction(self, left: FloatArray, octaves: FloatArray) -> FloatArray:
        """Weighted mean (n,) of the neighbours' residuals and distances (n, d, 2), shrunk towards zero."""
        exponent = self.log_weight[:, None] - octaves * np.exp(self.log_decay)[:, None]
        weight = np.where(octaves < _NONE, np.exp(exponent), 0.0)
        shrunk: FloatArray = (weight * left).sum(axis=(1, 2)) / (1 + weight.sum(axis=(1, 2)))
        return shrunk


def near(
    known: NDArray[np.int64], left: FloatArray, asked: NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    """Residuals and distances in octaves (n, d, 2) of the known rows (u, d) that differ from an asked
    row (n, d) in one dimension only, the nearest on each side. `left` (u,) are the known rows' residuals."""
    n, width = asked.shape
    residual = np.zeros((n, width, _SIDES))
    octaves = np.full((n, width, _SIDES), _NONE)
    scrambled = _scramble(known)
    scrambled_asked = _scramble(asked)
    for axis in range(width):
        values = np.unique(known[:, axis])
        if len(values) < 2:
            continue
        # A key orders rows by all other dimensions, then by their rank along this one; ranks are even, so that
        # a value between two measured ones has an odd rank of its own.
        rank = 2 * np.searchsorted(values, known[:, axis]).astype(np.uint64) + np.uint64(2)
        place = np.searchsorted(values, asked[:, axis])
        inside = np.minimum(place, len(values) - 1)
        rank_asked = (2 * place + 2 - (values[inside] != asked[:, axis])).astype(np.uint64)
        group = scrambled.sum(axis=1, dtype=np.uint64) - scrambled[:, axis]
        group_asked = scrambled_asked.sum(axis=1, dtype=np.uint64) - scrambled_asked[:, axis]
        key = (group << _RANK_BITS) | rank
        order = np.argsort(key)
        key = key[order]
        key_asked = (group_asked << _RANK_BITS) | rank_asked
        below = np.searchsorted(key, key_asked)
        here = (below < len(key)) & (key[np.minimum(below, len(key) - 1)] == key_asked)
        log_known = np.log2(np.maximum(known[order, axis], 0.5))
        log_asked = np.log2(np.maximum(asked[:, axis], 0.5))
        ordered = left[order]
        for side, at in enumerate((below - 1, below + here)):
            valid = (at >= 0) & (at < len(key))
            at = np.clip(at, 0, len(key) - 1)
            valid &= (key[at] >> _RANK_BITS) == (key_asked >> _RANK_BITS)
            residual[:, axis, side] = np.where(valid, ordered[at], 0.0)
            octaves[:, axis, side] = np.where(valid, np.abs(log_known[at] - log_asked), _NONE)
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


def fit_weights(left: FloatArray, octaves: FloatArray, target: FloatArray) -> Weights:
    """Weights under which the correction from neighbours (n, d, 2) best meets target (n,)."""
    from scipy.optimize import minimize

    width = left.shape[1]

    def loss(theta: FloatArray) -> float:
        gap = target - Weights(theta[:width], theta[width:]).correction(left, octaves)
        return float(np.sqrt(gap**2 + 1e-6).mean() + 1e-5 * (theta**2).mean())

    start = np.concatenate([np.full(width, -1.0), np.zeros(width)])
    bounds = [(-8.0, 3.0)] * width + [(-2.0, 3.0)] * width
    best = minimize(loss, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30}).x
    return Weights(best[:width], best[width:])


@dataclass(frozen=True)
class Neighbours:
    """Measured operators (u, d), what the residual model misses at each (u,), and the weights."""

    dims: NDArray[np.int64]
    left: NDArray[np.float32]
    weights: Weights

    def around(self, dims: NDArray[np.int64]) -> tuple[FloatArray, NDArray[np.float32]]:
        """Correction in natural-log units (n,), and `support` (n, 2), for dims (n, d)."""
        left, octaves = near(self.dims, self.left.astype(np.float64), dims)
        return self.weights.correction(left, octaves), support(octaves)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "dims": self.dims.T.astype(np.int32),
            "left": self.left.astype(np.float16),
            "weights": np.stack([self.weights.log_weight, self.weights.log_decay]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Neighbours:
        log_weight, log_decay = arrays["weights"].astype(np.float64)
        return cls(
            np.ascontiguousarray(arrays["dims"].T).astype(np.int64),
            arrays["left"].astype(np.float32),
            Weights(log_weight, log_decay),
        )
