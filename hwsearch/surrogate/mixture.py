"""Which mixture of data sources to train on: a regression of scores on mixture weights, from many small runs.

After RegMix (arXiv 2407.01492): train many small models on random mixtures, fit score = f(weights), draw many
mixtures, and propose the average of those with the best predicted scores. The regression here is ridge on the weights
alone, on weights and their square roots (the first of a source helps most), or on weights and their pairs; form and
penalty are those with the least leave-one-out error, which ridge has in closed form. Mixtures are drawn from the
Dirichlet distribution that fits the runs' own weights, and none beyond the runs' range is proposed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hwsearch.errors import DataError, InputError, plainly, unknown_name

__all__ = ["FORMS", "Mixture", "MixtureRuns", "propose_mixture", "read_runs"]

FloatArray = NDArray[np.float64]

FORMS = ("linear", "root", "pairs")

_PENALTIES = np.logspace(-4, 3, 15)
_DRAWN = 20_000
_BEST = 200  # of the drawn, averaged


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureRuns:
    """Small runs: weights (runs, sources), each row summing to 1, and their scores (runs,)."""

    sources: tuple[str, ...]
    weights: FloatArray
    scores: FloatArray


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A proposed mixture.

    weights: source -> share of the training tokens. score: predicted there; error: root mean square leave-one-out
    error of the regression, in units of the score; rank_correlation: Spearman's, leaving one out; form: see FORMS.
    best_run, best_score: the best mixture among the runs.
    """

    weights: dict[str, float]
    score: float
    error: float
    rank_correlation: float
    form: str
    best_run: dict[str, float]
    best_score: float


def read_runs(path: Path, *, score: str) -> MixtureRuns:
    """From a CSV with a column of scores and one of weights per source, which need not sum to 1.

    Raises DataError for a file that holds no such table, InputError where it has no column `score`.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as a CSV of runs: {plainly(error)}") from None
    columns = list(rows[0]) if rows else []
    if score not in columns:
        raise unknown_name(f"score column in {path}", score, columns)
    sources = tuple(name for name in columns if name != score)
    try:
        table = np.array([[float(row[name]) for name in (*sources, score)] for row in rows])
    except (TypeError, ValueError):
        raise DataError(
            f"{path}: every column must hold numbers: {score} the score, the others the weights of the sources"
        ) from None
    weights, total = table[:, :-1], table[:, :-1].sum(axis=1, keepdims=True)
    if not np.isfinite(table).all() or (weights < 0).any() or (total <= 0).any():
        raise DataError(
            f"{path}: weights must be finite, not negative, and not all 0 in a row; scores finite"
        )
    return MixtureRuns(sources=sources, weights=weights / total, scores=table[:, -1])


def propose_mixture(runs: MixtureRuns, *, maximise: bool, seed: int) -> Mixture:
    """The mixture to train on. maximise: whether a higher score is better. seed: of the drawn mixtures.

    Raises InputError for fewer than two sources, or for too few runs to tell their effects apart.
    """
    count, sources = runs.weights.shape
    if sources < 2 or count < sources + 3:
        raise InputError(
            f"{count} runs over {sources} sources: a mixture needs at least 2 sources and {sources + 3} runs"
        )
    sign = -1.0 if maximise else 1.0
    fits = [_Ridge.fit(form, runs.weights, sign * runs.scores) for form in FORMS]
    chosen = min(fits, key=lambda fit: float(np.mean(fit.misses**2)))
    drawn = _drawn(runs.weights, seed=seed)
    order = np.argsort(chosen.predict(drawn), kind="stable")
    proposed = drawn[order[:_BEST]].mean(axis=0)
    best = int(np.argmin(sign * runs.scores))
    left_out = sign * runs.scores - chosen.misses
    return Mixture(
        weights=_named(runs.sources, proposed),
        score=sign * float(chosen.predict(proposed[None])[0]),
        error=float(np.sqrt(np.mean(chosen.misses**2))),
        rank_correlation=float(spearmanr(left_out, sign * runs.scores).statistic),
        form=chosen.form,
        best_run=_named(runs.sources, runs.weights[best]),
        best_score=float(runs.scores[best]),
    )


def _named(sources: Sequence[str], weights: FloatArray) -> dict[str, float]:
    return dict(zip(sources, weights.tolist(), strict=True))


def _drawn(weights: FloatArray, *, seed: int) -> FloatArray:
    """Mixtures (n, sources) like those of the runs, and none with more or less of a source than any run had."""
    mean, variance = weights.mean(axis=0), weights.var(axis=0)
    # A Dirichlet distribution has variance m (1 - m) / (a + 1) for each share of mean m.
    concentration = float((mean * (1 - mean)).sum() / max(float(variance.sum()), 1e-9)) - 1
    rng = np.random.default_rng(seed)
    drawn = rng.dirichlet(np.maximum(mean * max(concentration, 0.5), 1e-3), size=_DRAWN)
    inside = np.all((drawn >= weights.min(axis=0)) & (drawn <= weights.max(axis=0)), axis=1)
    kept: FloatArray = np.concatenate((drawn[inside], weights))
    return kept


@dataclass(frozen=True, eq=False)
class _Ridge:
    form: str
    coefficients: FloatArray
    centre: FloatArray
    scale: FloatArray
    offset: float
    misses: FloatArray  # (runs,): score less its prediction from the other runs

    @classmethod
    def fit(cls, form: str, weights: FloatArray, scores: FloatArray) -> _Ridge:
        """The penalty with the least leave-one-out error."""
        features = _features(form, weights)
        centre, scale = features.mean(axis=0), np.where(features.std(axis=0) > 0, features.std(axis=0), 1.0)
        left, values, right = np.linalg.svd((features - centre) / scale, full_matrices=False)
        offset = float(scores.mean())
        best: tuple[float, _Ridge] | None = None
        for penalty in _PENALTIES * len(scores):
            shrunk = values**2 / (values**2 + penalty)
            fitted = left @ (shrunk * (left.T @ (scores - offset)))
            leverage = (left**2) @ shrunk + 1 / len(scores)
            misses = (scores - offset - fitted) / np.maximum(1 - leverage, 1e-6)
            error = float(np.mean(misses**2))
            if best is None or error < best[0]:
                inverted = np.divide(shrunk, values, out=np.zeros_like(values), where=values > 0)
                coefficients = right.T @ (inverted * (left.T @ (scores - offset)))
                best = error, cls(form, coefficients, centre, scale, offset, misses)
        assert best is not None
        return best[1]

    def predict(self, weights: FloatArray) -> FloatArray:
        """(n,) of mixtures (n, sources)."""
        scaled = (_features(self.form, weights) - self.centre) / self.scale
        found: FloatArray = scaled @ self.coefficients + self.offset
        return found


def _features(form: str, weights: FloatArray) -> FloatArray:
    if form == "linear":
        return weights
    if form == "root":
        return np.concatenate((weights, np.sqrt(weights)), axis=1)
    first, second = np.triu_indices(weights.shape[1])
    return np.concatenate((weights, weights[:, first] * weights[:, second]), axis=1)
