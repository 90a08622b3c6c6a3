"""90% prediction intervals: split-conformal on cross-fitted residuals, scaled by an estimate of their size.

The residuals are in log latency and come from models that had not seen their rows. A small ensemble learns how
large they are where (launch-bound shapes repeat to a percent, shapes near a switch of kernels do not); the
conformal quantile of residual over expected size then gives the coverage. Outside the measured region the
half-width grows with the distance, and for shapes not measured by a factor; stress.py fits both. Method:
Lei et al. 2018, "Distribution-free predictive inference for regression", locally weighted split conformal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.trees import Trees, TreesRecipe, fit_trees

__all__ = ["Spread", "fit_spread"]

COVERAGE = 0.9
_LEAST_LOG_SIZE = 1e-3  # residuals below a tenth of a percent count as that
_SIZE_RECIPE = TreesRecipe(trees=40, depth=4, rate=0.1, bins=32)
_FOLDS = 4
_LEARN_FROM = 400  # rows; with fewer, one size fits all
_BLIND = 0.15  # per octave along a dimension whose effect was never measured: a judgement, not a fit
_MOST_BLIND = 0.4
_WIDEST = 1.5  # natural-log half-width at most: a factor of 4.5 either way


@dataclass(frozen=True)
class Spread:
    """Half-width of the interval in natural-log units: quantile * size * (1 + growth * octaves outside), `alone`
    times that for a shape not measured, and more along dimensions that no measurement varied."""

    quantile: float
    centre: float
    growth: float
    alone: float
    size: Trees

    def half_width(
        self,
        features: NDArray[np.float32],
        outside: NDArray[np.float64],
        blind: NDArray[np.float64],
        alone: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """features (n, F), octaves outside the region and along never varied dimensions (n,), rows whose
        shape was not measured (n,) -> (n,)."""
        size = np.exp(self.centre + self.size.predict(features))
        width: NDArray[np.float64] = (
            self.quantile * size * np.maximum(1 + self.growth * outside, np.where(alone, self.alone, 1.0))
        )
        return np.minimum(width + np.minimum(_BLIND * blind, _MOST_BLIND), _WIDEST)

    def numbers(self) -> dict[str, float]:
        return {"quantile": self.quantile, "centre": self.centre, "growth": self.growth, "alone": self.alone}

    @classmethod
    def from_state(cls, numbers: Mapping[str, float], arrays: Mapping[str, NDArray[np.generic]]) -> Spread:
        return cls(
            numbers["quantile"],
            numbers["centre"],
            numbers["growth"],
            numbers["alone"],
            Trees.from_arrays(arrays),
        )


def fit_spread(
    features: NDArray[np.float32],
    residual: NDArray[np.float64],
    *,
    growth: float,
    alone: float,
    seed: int,
) -> Spread:
    """Spread of cross-fitted residuals (n,) in log latency at features (n, F)."""
    log_size = np.log(np.maximum(np.abs(residual), _LEAST_LOG_SIZE))
    centre = float(log_size.mean())
    recipe = _SIZE_RECIPE if len(residual) >= _LEARN_FROM else TreesRecipe(trees=0)
    size = fit_trees(features, log_size - centre, recipe=recipe, seed=seed)
    n = len(residual)
    # The quantile is taken on rows that the sizes were not learned from: on its own rows an ensemble is too sure.
    expected = np.empty(n)
    fold = np.random.default_rng(seed).permutation(n) % _FOLDS
    for one in range(_FOLDS):
        out = fold == one
        learned = fit_trees(features[~out], (log_size - centre)[~out], recipe=recipe, seed=seed)
        expected[out] = np.exp(centre + learned.predict(features[out]))
    level = min(1.0, np.ceil((n + 1) * COVERAGE) / n)
    quantile = float(np.quantile(np.abs(residual) / expected, level, method="higher"))
    return Spread(quantile, centre, growth, alone, size)
