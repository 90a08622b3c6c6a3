"""How much more a family errs beyond its measurements: it is fitted on less and judged beyond that.

Cross-fitted residuals say how a model errs between measured rows. A user also asks for a batch above the largest
one, or for a head layout that was never measured. Each probe holds out such rows whole: the upper end of one
dimension, or a quarter of the shapes (the dimensions that a model's weights decide). A quick fit on the rest,
constants included, errs there by some multiple of the ordinary interval, which the interval then grows by.
Method: calibration on held-out groups, as in Dunn, Wasserman and Ramdas, arXiv 1809.07441.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.analytic import analytic_ms
from hwsearch.costmodel.calibration import fit_constants
from hwsearch.costmodel.features import feature_matrix
from hwsearch.costmodel.intervals import COVERAGE, Spread
from hwsearch.costmodel.neighbours import Surroundings, row_keys, support
from hwsearch.costmodel.region import Region, fit_region, shape_axes
from hwsearch.costmodel.residual import fit_residual
from hwsearch.costmodel.tables import Table
from hwsearch.operators import KINDS
from hwsearch.records import DeviceSpec

__all__ = ["widened"]

FloatArray = NDArray[np.float64]
_LEAST_FITTED, _LEAST_HELD = 60, 20
_MOST_FITTED, _MOST_HELD = 2400, 2000  # rows of a probe
_KEPT_VALUES = 0.7  # of a dimension's values, from below
_GROUPS, _LEAST_GROUPS = 4, 8


def _probes(table: Table, rng: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
    """Masks (n,) of the rows that a probe holds out."""
    names = KINDS[table.kind].dims
    for axis in range(len(names)):
        values = np.unique(table.dims[:, axis])
        if len(values) >= 4 and names[axis] != "window":
            yield table.dims[:, axis] > values[int(_KEPT_VALUES * len(values)) - 1]
    shape = shape_axes(table.kind)
    group = np.unique(table.dims[:, shape], axis=0, return_inverse=True)[1].reshape(-1)
    if group.max() + 1 >= _LEAST_GROUPS:
        yield (rng.permutation(group.max() + 1) % _GROUPS == 0)[group]


def widened(spread: Spread, table: Table, *, device: DeviceSpec, size: int, seed: int) -> Spread:
    """The spread with its growth per octave outside, and its factor for shapes not measured, from probes."""
    rng = np.random.default_rng(seed)
    growth: list[FloatArray] = []
    alone: list[FloatArray] = []
    for held in _probes(table, rng):
        if (~held).sum() < _LEAST_FITTED or held.sum() < _LEAST_HELD:
            continue
        known = table.take(rng.permutation(np.flatnonzero(~held))[:_MOST_FITTED])
        asked = table.take(rng.permutation(np.flatnonzero(held))[:_MOST_HELD])
        ratio, outside, lonely = _errors(spread, known, asked, device=device, size=size, seed=seed)
        beyond = outside > 0
        growth.append((ratio[beyond] - 1) / outside[beyond])
        alone.append(ratio[~beyond & lonely])
    return replace(
        spread, growth=_upper(growth, least=spread.growth), alone=_upper(alone, least=spread.alone)
    )


def _upper(found: list[FloatArray], *, least: float) -> float:
    pooled = np.concatenate([np.empty(0), *found])
    return max(least, float(np.quantile(pooled, COVERAGE))) if len(pooled) >= _LEAST_HELD else least


def _errors(
    spread: Spread, known: Table, asked: Table, *, device: DeviceSpec, size: int, seed: int
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Error over ordinary half-width (n,), octaves outside (n,), and whose shape was not measured (n,)."""
    constants = fit_constants(known, device=device, size=size, seed=seed, starts=1)

    def described(table: Table) -> tuple[NDArray[np.float32], FloatArray]:
        form = analytic_ms(table.kind, table.columns, device=device, size=size, constants=constants)
        features = feature_matrix(table.kind, table.columns, device=device, size=size)
        return features, np.log(table.latency_ms / form)

    features, target = described(known)
    model = fit_residual(features, target, kind=known.kind, share=0.0, seed=seed)
    features, target = described(asked)
    surroundings = support(Surroundings.of(known.dims, np.zeros(len(known))).near(asked.dims)[1])
    none = np.zeros(len(asked))
    shape = shape_axes(known.kind)
    inputs = np.hstack([features, surroundings])
    ordinary = spread.half_width(inputs, none, none, none > 0)
    excess = fit_region(known.kind, known.columns, size=size).excess(asked.columns, size=size)
    return (
        np.abs(target - model.predict(features)) / ordinary,
        Region.distance(excess),
        ~np.isin(row_keys(asked.dims[:, shape]), row_keys(known.dims[:, shape])),
    )
