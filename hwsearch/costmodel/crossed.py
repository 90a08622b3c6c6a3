"""How far a model of the rows at hand errs on what will be asked, judged by the rows themselves.

Each fold is predicted by a fit on the others, constants included. Rows that were chosen where a model is unsure are no
fair sample of what is asked, so that each row's error counts for the share of the pool that lies nearest to it: the
pool is divided among the rows as by their Voronoi cells in the space of features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.analytic import analytic_ms
from hwsearch.costmodel.calibration import fit_constants
from hwsearch.costmodel.features import feature_matrix
from hwsearch.costmodel.residual import fit_residual
from hwsearch.costmodel.tables import Table
from hwsearch.operators import columns
from hwsearch.records import DeviceSpec

__all__ = ["crossed_error", "represented"]

FloatArray = NDArray[np.float64]
_FOLDS = 5
_GP_SHARE = 0.75  # of a residual's mix of process and trees: what cross-validation chooses most often
_STEPS = 8  # of a fold's calibration, which begins at the constants of all rows
_MOST = 2000  # rows of the pool that are divided among the measured ones


def crossed_error(
    table: Table, pool: NDArray[np.int64], share: FloatArray, *, device: DeviceSpec, size: int, seed: int
) -> float:
    """Expected absolute error relative to the measured latency, over a pool (N, d) of shares (N,), from the table."""
    fold = np.random.default_rng(seed).permutation(len(table)) % _FOLDS
    features = feature_matrix(table.kind, table.columns, device=device, size=size)
    whole = fit_constants(table, device=device, size=size, seed=0, starts=1)
    error = np.empty(len(table))
    for one in range(_FOLDS):
        out = fold == one
        own = fit_constants(
            table.take(~out), device=device, size=size, seed=0, starts=1, steps=_STEPS, begin=whole
        )
        form = analytic_ms(table.kind, table.columns, device=device, size=size, constants=own)
        left = np.log(table.latency_ms / form)
        residual = fit_residual(features[~out], left[~out], kind=table.kind, share=_GP_SHARE, seed=seed)
        error[out] = np.abs(np.exp(residual.predict(features[out]) - left[out]) - 1)
    return float(error @ represented(table, pool, share, device=device, size=size, seed=seed))


def represented(
    table: Table, pool: NDArray[np.int64], share: FloatArray, *, device: DeviceSpec, size: int, seed: int
) -> FloatArray:
    """The share (n,) of the pool that lies nearest to each row of the table; together 1."""
    if len(pool) > _MOST:
        drawn = np.random.default_rng(seed).choice(len(pool), _MOST, p=share / share.sum())
        pool, share = pool[drawn], np.ones(_MOST)
    asked = feature_matrix(table.kind, columns(table.kind, pool), device=device, size=size).astype(np.float64)
    known = feature_matrix(table.kind, table.columns, device=device, size=size).astype(np.float64)
    scale = np.maximum(asked.std(axis=0), 1e-6)
    asked, known = asked / scale, known / scale
    distance = (known**2).sum(axis=1) - 2 * asked @ known.T
    weight = np.bincount(distance.argmin(axis=1), weights=share, minlength=len(known))
    return np.asarray(weight / weight.sum(), np.float64)
