"""The learned residual of a family: a Gaussian process for what is smooth, boosted trees for what is not.

Few rows: the process carries the residual and trees learn what it leaves, or that is averaged with trees that
learned the residual itself; cross-validation decides on the shares. Many rows: trees alone, because by
then what is left is jumps between the library's kernels.

Matrix products jump from few rows on, for their library picks among many kernels. There no share is best, and
cross-validation weighs them instead of choosing (as in Yao et al. 2018, arXiv 1704.02030), and trees learn nearer the
median, which jumps pull less: the mean of two ensembles, one nearer than the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.gp import GP, GPRecipe, fit_gp
from hwsearch.costmodel.trees import Trees, TreesRecipe, fit_trees

__all__ = ["CrossFit", "Residual", "cross_fit", "fit_residual", "learns_sensitivities"]

FloatArray = NDArray[np.float64]
Features = NDArray[np.float32]

_MANY_ROWS = 2500
_MEDIUM_ROWS = 1000
_LARGE = TreesRecipe(trees=800, depth=8, rate=0.12, rows=0.4, features=0.5)
_MEDIUM = TreesRecipe(trees=300, depth=6, rate=0.06)
_SMALL = TreesRecipe(trees=200, depth=7, rate=0.06, features=0.4, smoothing=3.0)
_JUMPING = frozenset({"gemm"})
_JUMPING_CLIPS = (0.85, 0.7)  # percentiles of the residuals where the Huber bounds lie
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
_SHARPNESS = 20  # power of one over its error by which a share weighs
_EXACT = 1e-9  # keeps weights finite where nothing errs


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


def fit_residual(features: Features, target: FloatArray, *, kind: str, share: float, seed: int) -> Residual:
    """Fit on features (n, F) of operators of a kind and target (n,).

    share 0: trees alone. share 1: a process, then trees on what it leaves. In between: the average of that and
    of trees alone, weighted by share.
    """
    if not share:
        return Residual(_grown(features, target, kind=kind, seed=seed), None, 0.0)
    gp, rest = _smooth_then_trees(features, target, kind=kind, seed=seed)
    if share == 1:
        return Residual(rest, gp, 1.0)
    own = _grown(features, target, kind=kind, seed=seed + 1)
    return Residual(_mixed((rest, own), (share, 1 - share)), gp, share)


def learns_sensitivities(kind: str, rows: int) -> bool:
    """Whether the form's sensitivities to its constants are inputs beside the features: they say what a kernel's time
    is made of, which few rows do not."""
    return kind in _JUMPING and rows < _MEDIUM_ROWS


def _recipes(kind: str, rows: int) -> tuple[TreesRecipe, ...]:
    """Of the ensembles whose mean is taken."""
    if rows >= _MEDIUM_ROWS:
        return (_LARGE if rows >= _MANY_ROWS else _MEDIUM,)
    if kind in _JUMPING:
        return tuple(replace(_SMALL, clip_quantile=clip) for clip in _JUMPING_CLIPS)
    return (_SMALL,)


def _grown(features: Features, target: FloatArray, *, kind: str, seed: int) -> Trees:
    recipes = _recipes(kind, len(target))
    grown = [fit_trees(features, target, recipe=recipe, seed=seed) for recipe in recipes]
    return _mixed(grown, [1 / len(grown)] * len(grown))


def _mixed(ensembles: Sequence[Trees], weights: Sequence[float]) -> Trees:
    """One ensemble that says the weighted sum of what these say."""
    return Trees(
        np.concatenate([own.feature for own in ensembles]),
        np.concatenate([own.threshold for own in ensembles]),
        np.concatenate([own.leaf * np.float32(w) for own, w in zip(ensembles, weights, strict=True)]),
    )


def _smooth_then_trees(features: Features, target: FloatArray, *, kind: str, seed: int) -> tuple[GP, Trees]:
    gp = fit_gp(features, target, recipe=GPRecipe(), seed=seed)
    return gp, _grown(features, target - gp.predict(features), kind=kind, seed=seed)


@dataclass(frozen=True)
class CrossFit:
    """The share, the fold of every row (n,), and what a model fitted without that fold predicts of it (n,)."""

    share: float
    fold: NDArray[np.int64]
    predicted: FloatArray


def cross_fit(features: Features, target: FloatArray, *, kind: str, folds: int, seed: int) -> CrossFit:
    """Fit without each fold in turn, for the share of the Gaussian process that errs least.

    Where latencies jump, the share is the mean of all, each weighted by how little it errs.
    """
    fold = np.random.default_rng(seed).permutation(len(target)) % folds
    jumps = kind in _JUMPING
    shares = np.array(_shares(len(target), jumps=jumps))
    predicted = np.empty((len(shares), len(target)))
    for one in range(folds):
        kept, out = fold != one, fold == one
        there = target[kept]
        own = _grown(features[kept], there, kind=kind, seed=seed + 1).predict(features[out])
        stacked: FloatArray = np.zeros(len(own))
        if shares.any():
            gp, rest = _smooth_then_trees(features[kept], there, kind=kind, seed=seed)
            stacked = gp.predict(features[out]).astype(np.float64) + rest.predict(features[out])
        for i, share in enumerate(shares):
            predicted[i, out] = share * stacked + (1 - share) * own
    error = np.abs(target - predicted).mean(axis=1)
    if jumps:
        weight = ((error.min() + _EXACT) / (error + _EXACT)) ** _SHARPNESS
        weight /= weight.sum()
    else:
        weight = np.eye(len(shares))[error.argmin()]
    return CrossFit(float(weight @ shares), fold, weight @ predicted)


def _shares(rows: int, *, jumps: bool) -> tuple[float, ...]:
    """Shares of the process to choose from, or to weigh."""
    if rows >= _MANY_ROWS:
        return (0.0,)
    if jumps:
        return _SHARES
    return _SHARES[:4] if rows < _MEDIUM_ROWS else _SHARES[:3]
