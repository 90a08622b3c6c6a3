"""The learned residual of a family: a Gaussian process for what is smooth, boosted trees for what is not.

Few rows: the process carries the residual and trees learn what it leaves, or that is averaged with trees that
learned the residual itself; cross-validation decides on the shares. Many rows: trees alone, because by
then what is left is jumps between the library's kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.gp import GP, GPRecipe, fit_gp
from hwsearch.costmodel.trees import Trees, TreesRecipe, fit_trees

__all__ = ["Residual", "cross_fit", "fit_residual"]

FloatArray = NDArray[np.float64]
Features = NDArray[np.float32]

_MANY_ROWS = 2500
_MEDIUM_ROWS = 1000
_LARGE = TreesRecipe(trees=800, depth=8, rate=0.12, rows=0.4, features=0.5)
_MEDIUM = TreesRecipe(trees=300, depth=6, rate=0.06)
_SMALL = TreesRecipe(trees=200, depth=7, rate=0.06, features=0.4, smoothing=3.0)


@dataclass(frozen=True)
class Residual:
    """Trees, and `share` of a Gaussian process (none where share is 0)."""

    trees: Trees
    gp: GP | None
    share: float

    def predict(self, features: Features) -> FloatArray:
        """Log of latency over its analytic form (n,) at features (n, F)."""
        total = self.trees.predict(features).astype(np.float64)
        if self.gp is not None:
            total += self.share * self.gp.predict(features)
        return total

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        arrays = {f"trees.{name}": array for name, array in self.trees.arrays().items()}
        if self.gp is not None:
            arrays |= {f"gp.{name}": array for name, array in self.gp.arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]], *, share: float) -> Residual:
        trees = {k.removeprefix("trees."): a for k, a in arrays.items() if k.startswith("trees.")}
        gp = {k.removeprefix("gp."): a for k, a in arrays.items() if k.startswith("gp.")}
        return cls(Trees.from_arrays(trees), GP.from_arrays(gp) if share else None, share)


def fit_residual(features: Features, target: FloatArray, *, share: float, seed: int) -> Residual:
    """Fit on features (n, F) and target (n,).

    share 0: trees alone. share 1: a process, then trees on what it leaves. In between: the average of that and
    of trees alone, weighted by share.
    """
    if not share:
        return Residual(fit_trees(features, target, recipe=_recipe(len(target)), seed=seed), None, 0.0)
    gp, rest = _smooth_then_trees(features, target, seed)
    if share == 1:
        return Residual(rest, gp, 1.0)
    own = fit_trees(features, target, recipe=_recipe(len(target)), seed=seed + 1)
    both = Trees(
        np.concatenate([rest.feature, own.feature]),
        np.concatenate([rest.threshold, own.threshold]),
        np.concatenate([rest.leaf * np.float32(share), own.leaf * np.float32(1 - share)]),
    )
    return Residual(both, gp, share)


def _recipe(rows: int) -> TreesRecipe:
    return _LARGE if rows >= _MANY_ROWS else _MEDIUM if rows >= _MEDIUM_ROWS else _SMALL


def _smooth_then_trees(features: Features, target: FloatArray, seed: int) -> tuple[GP, Trees]:
    gp = fit_gp(features, target, recipe=GPRecipe(), seed=seed)
    rest = target - gp.predict(features)
    return gp, fit_trees(features, rest, recipe=_recipe(len(target)), seed=seed)


@dataclass(frozen=True)
class CrossFit:
    """The chosen share, the fold of every row (n,), and what a model fitted without that fold predicts of it (n,)."""

    share: float
    fold: NDArray[np.int64]
    predicted: FloatArray


def cross_fit(features: Features, target: FloatArray, *, folds: int, seed: int) -> CrossFit:
    """Fit without each fold in turn, for the share of the Gaussian process that errs least."""
    fold = np.random.default_rng(seed).permutation(len(target)) % folds
    shares = (0.0,) if len(target) >= _MANY_ROWS else (1.0, 0.75, 0.5)
    if len(target) < _MEDIUM_ROWS:
        shares = (*shares, 0.25)
    predicted = np.empty((len(shares), len(target)))
    for one in range(folds):
        kept, out = fold != one, fold == one
        there = target[kept]
        own = fit_trees(features[kept], there, recipe=_recipe(len(there)), seed=seed + 1).predict(
            features[out]
        )
        stacked: FloatArray = np.zeros(len(own))
        if shares != (0.0,):
            gp, rest = _smooth_then_trees(features[kept], there, seed)
            stacked = gp.predict(features[out]).astype(np.float64) + rest.predict(features[out])
        for i, share in enumerate(shares):
            predicted[i, out] = share * stacked + (1 - share) * own
    best = int(np.argmin(np.abs(target - predicted).mean(axis=1)))
    return CrossFit(shares[best], fold, predicted[best])
