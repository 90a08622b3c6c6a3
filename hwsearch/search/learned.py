"""What a cost is made of, learnt from its evaluations: layers, neighbours, and a few dominating layers.

The model is a Gaussian process that is linear in indicators: the choice of each layer, and the pairs of choices of
some pairs of layers. Every layer and every pair has a prior variance of its own, learnt by expectation maximisation
(automatic relevance determination; MacKay 1994, Tipping 2001), so that pairs which do not matter shrink to nothing.
Which pairs there are (none, neighbours, all pairs with the dominating layers, or both), whether the cost or its
logarithm is modelled, and how much noise is assumed, is decided by the leave-one-out error, which a Gaussian process
has in closed form (Rasmussen and Williams 2006, equation 5.12). The posterior mean is a `Pairwise` cost, which the
chain solver can minimise; posterior draws are too (Matheron's rule).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve
from scipy.sparse import csr_array

from hwsearch.search.problem import Additive, Pairwise
from hwsearch.search.space import BoolArray, FloatArray, Genomes

__all__ = ["Learner", "Model", "additive_models"]

FORMS = ("layers", "neighbours", "hubs", "both")
_NOISE = (1e-8, 1e-2)  # assumed variances of the noise, as shares of the mean prior variance
_RIDGE = 1e-6
_PAIR = 0.3  # first guess of a pair's standard deviation, relative to a layer's
_SELECT = 500  # rows at most on which forms are compared
_FLAT = 10.0  # prior variance of the constant, relative to the rest
_DIGITS = 8  # below these the solution depends on how BLAS splits its work, and decides nothing
_FAINT = 1e-4  # a layer's or pair's relative standard deviation is never less


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """One cost: tables of it, or of its logarithm. trust: the share of variance explained, leaving one out."""

    tables: Additive | Pairwise
    log: bool = False
    trust: float = 1.0
    posterior: _Posterior | None = None

    def predict(self, genomes: Genomes) -> FloatArray:
        """The cost (n,) of genomes (n, layers)."""
        values = self.tables(genomes)
        return np.exp(values) if self.log else values

    def bound(self, at_most: float) -> float:
        """The upper bound on the tables that stands for one on the cost."""
        if not self.log:
            return at_most
        return float(np.log(at_most)) if at_most > 0 else -np.inf

    def draw(self, rng: np.random.Generator) -> Additive | Pairwise:
        """Tables that the evaluations allow as well, drawn from the posterior."""
        return self.tables if self.posterior is None else self.posterior.draw(rng)


@dataclass(frozen=True)
class _Prior:
    """The form of a model and its hyperparameters: relative standard deviations of layers (L,) and pairs (p,)."""

    form: str
    log: bool
    noise: float
    pairs: Genomes
    layer_sd: FloatArray
    pair_sd: FloatArray

    def weights(self, num_choices: int) -> FloatArray:
        """Standard deviation of every indicator."""
        return np.concatenate(
            (np.repeat(self.layer_sd, num_choices), np.repeat(self.pair_sd, num_choices**2))
        )

    def state(self) -> dict[str, Any]:
        """As JSON."""
        arrays = {"pairs": self.pairs, "layer_sd": self.layer_sd, "pair_sd": self.pair_sd}
        return {
            "form": self.form,
            "log": self.log,
            "noise": self.noise,
            **{key: array.tolist() for key, array in arrays.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(
            form=state["form"],
            log=state["log"],
            noise=state["noise"],
            pairs=np.array(state["pairs"], dtype=np.int64).reshape(-1, 2),
            layer_sd=np.array(state["layer_sd"]),
            pair_sd=np.array(state["pair_sd"]),
        )


@dataclass(frozen=True, eq=False)
class _Posterior:
    design: csr_array  # (n, indicators), each column times its standard deviation
    factor: tuple[FloatArray, bool]
    values: FloatArray
    prior: _Prior
    shape: tuple[int, int]
    scale: float
    offset: float

    def mean(self) -> Pairwise:
        return self._tables(np.zeros(self.design.shape[1]), self.values)

    def draw(self, rng: np.random.Generator) -> Pairwise:
        start = rng.standard_normal(self.design.shape[1]) * self.scale
        return self._tables(start, self.values - self.design @ start)

    def _tables(self, start: FloatArray, left: FloatArray) -> Pairwise:
        """The tables that start from given coefficients and explain what these leave."""
        layers, choices = self.shape
        solved = cho_solve(self.factor, left)
        weights = self.prior.weights(choices)
        found = weights * (start + self.design.T @ solved)
        top = float(np.abs(found).max()) or 1.0
        found = np.round(found / top, _DIGITS) * top
        constant = self.offset + float(_FLAT * solved.sum())
        cut = layers * choices
        return Pairwise(
            found[:cut].reshape(layers, choices),
            pairs=self.prior.pairs,
            together=found[cut:].reshape(-1, choices, choices),
            constant=constant,
        )


def additive_models(genomes: Genomes, costs: FloatArray, *, num_choices: int) -> list[Model]:
    """Additive models of costs (n, k) by ridge regression: a hundredth of the time of a `Learner`, and no posterior.

    trust is measured on the last tenth of the genomes (n, layers), which is not fitted.
    """
    n, layers = genomes.shape
    width = layers * num_choices
    held = max(n // 10, 1)
    columns = (np.arange(layers) * num_choices + genomes)[:-held]
    design = csr_array(
        (np.ones(columns.size), columns.ravel(), np.arange(len(columns) + 1) * layers),
        shape=(len(columns), width),
    )
    offsets = costs[:-held].mean(axis=0)
    scales = np.where(np.ptp(costs, axis=0) > 0, np.ptp(costs, axis=0), 1.0)
    matrix = (design.T @ design).toarray()
    matrix[np.diag_indices(width)] += _RIDGE
    found = solve(matrix, design.T @ ((costs[:-held] - offsets) / scales), assume_a="pos")
    top = np.abs(found).max(axis=0)
    top[top == 0] = 1.0
    found = np.round(found / top, _DIGITS) * top * scales
    models = []
    for i, offset in enumerate(offsets.tolist()):
        tables = Additive(found[:, i].reshape(layers, num_choices), constant=offset)
        missed = np.mean((tables(genomes[-held:]) - costs[-held:, i]) ** 2)
        trust = 1.0 - float(missed / (np.var(costs[:, i]) or 1.0))
        models.append(Model(tables=tables, trust=trust))
    return models


class Learner:
    """Learns one cost of a space with allowed choices (L, C)."""

    def __init__(self, allowed: BoolArray) -> None:
        self.allowed = allowed
        self._prior: _Prior | None = None  # for the next fit
        self._fitted: _Prior | None = None  # of the last one
        self._trust = 0.0

    def fit(
        self, genomes: Genomes, values: FloatArray, *, hubs: tuple[int, ...], select: bool, adapt: bool
    ) -> Model:
        """The model after evaluations: genomes (n, L), values (n,).

        hubs: layers whose pairs with all others may matter. select: choose the form anew. adapt: learn the prior
        variances and the trust, which takes the most time; otherwise those of the last time stay.
        """
        if select or self._prior is None:
            self._select(genomes[-_SELECT:], values[-_SELECT:], hubs)
        assert self._prior is not None
        if self._prior.log and values.min() <= 0:
            self._prior = replace(self._prior, log=False)
        posterior, inverse = self._solve(self._prior, genomes, values, invert=adapt)
        self._fitted = self._prior
        if inverse is not None:
            self._trust = 1.0 - _left_out(posterior, inverse)
            self._prior = self._adapted(self._prior, posterior, inverse)
        return self._model(posterior)

    def again(self, genomes: Genomes, values: FloatArray) -> Model:
        """The model of the last fit, from the same evaluations, after `restore`."""
        assert self._fitted is not None
        return self._model(self._solve(self._fitted, genomes, values, invert=False)[0])

    def _model(self, posterior: _Posterior) -> Model:
        return Model(tables=posterior.mean(), log=posterior.prior.log, trust=self._trust, posterior=posterior)

    def shares(self, genomes: Genomes, values: FloatArray) -> FloatArray:
        """How much of the variance each layer accounts for by itself, (L,), in a plain additive fit."""
        prior = self._start("layers", (), log=False)
        model = self._solve(prior, genomes[-_SELECT:], values[-_SELECT:], invert=False)[0].mean()
        table = np.where(self.allowed, model.table, np.nan)
        spread = np.nanvar(table, axis=1)
        total: FloatArray = spread / (spread.sum() or 1.0)
        return total

    def _start(self, form: str, hubs: tuple[int, ...], *, log: bool) -> _Prior:
        layers = len(self.allowed)
        pairs = set()
        if form in ("neighbours", "both"):
            pairs |= {(i, i + 1) for i in range(layers - 1)}
        if form in ("hubs", "both"):
            pairs |= {(min(h, i), max(h, i)) for h, i in itertools.product(hubs, range(layers)) if h != i}
        return _Prior(
            form=form,
            log=log,
            noise=_NOISE[0],
            pairs=np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2),
            layer_sd=np.ones(layers),
            pair_sd=np.full(len(pairs), _PAIR),
        )

    def _select(self, genomes: Genomes, values: FloatArray, hubs: tuple[int, ...]) -> None:
        """Takes the logarithm, the form and the noise that predict left-out evaluations best."""
        best: tuple[float, _Prior] | None = None

        def attempt(prior: _Prior, rounds: int) -> None:
            nonlocal best
            for _ in range(rounds):
                posterior, inverse = self._solve(prior, genomes, values, invert=True)
                assert inverse is not None
                prior = self._adapted(prior, posterior, inverse)
            posterior, inverse = self._solve(prior, genomes, values, invert=True)
            assert inverse is not None
            error = _left_out(posterior, inverse)
            if best is None or error < 0.98 * best[0]:  # the simpler one, if there is little in it
                best = error, prior

        for log in (False, True):
            if not log or values.min() > 0:
                attempt(self._start("layers", (), log=log), 1)
        assert best is not None
        log = best[1].log
        for form in FORMS[1:]:
            if hubs or form == "neighbours":
                attempt(self._start(form, hubs, log=log), 2)
        for noise in _NOISE[1:]:
            attempt(replace(best[1], noise=noise), 1)
        old = self._prior
        chosen = best[1]
        if old is not None and old.log == chosen.log and np.array_equal(old.pairs, chosen.pairs):
            chosen = replace(old, noise=chosen.noise)
        self._prior = chosen

    def _solve(
        self, prior: _Prior, genomes: Genomes, values: FloatArray, *, invert: bool
    ) -> tuple[_Posterior, FloatArray | None]:
        """The posterior, and the inverse (n, n) of the covariance of the values."""
        n, layers = genomes.shape
        choices = self.allowed.shape[1]
        weights = prior.weights(choices)
        first, second = prior.pairs.T
        both = np.arange(len(first)) * choices**2 + genomes[:, first] * choices + genomes[:, second]
        columns = np.concatenate((np.arange(layers) * choices + genomes, layers * choices + both), axis=1)
        starts = np.arange(n + 1) * columns.shape[1]
        design = csr_array((weights[columns].ravel(), columns.ravel(), starts), shape=(n, len(weights)))
        covariance = (design @ design.T).toarray()
        mean_variance = float(np.trace(covariance)) / n
        covariance += _FLAT
        covariance[np.diag_indices(n)] += prior.noise * mean_variance
        targets = np.log(values) if prior.log else values
        offset = float(targets.mean())
        factor = cho_factor(covariance, lower=True)
        centred = targets - offset
        scale = float(np.sqrt(max(centred @ cho_solve(factor, centred), 0.0) / n))
        posterior = _Posterior(design, factor, centred, prior, (layers, choices), scale=scale, offset=offset)
        return posterior, cho_solve(factor, np.eye(n)) if invert else None

    def _adapted(self, prior: _Prior, posterior: _Posterior, inverse: FloatArray) -> _Prior:
        """One step of expectation maximisation for the prior variances."""
        layers, choices = posterior.shape
        design = posterior.design
        solved = inverse @ posterior.values
        # In units of each indicator's own prior: posterior mean squared plus posterior variance.
        means = design.T @ solved
        explained = np.asarray(design.multiply((design.T @ inverse).T).sum(axis=0)).ravel()
        scale = posterior.scale**2 or 1.0
        squares = means**2 / scale + np.maximum(1.0 - explained, 0.0)
        seen = np.zeros(design.shape[1])
        seen[design.indices] = 1.0
        cut = layers * choices

        def factor(part: FloatArray, marks: FloatArray, width: int) -> FloatArray:
            total = (part * marks).reshape(-1, width).sum(axis=1)
            count = marks.reshape(-1, width).sum(axis=1)
            ratio: FloatArray = np.sqrt(np.divide(total, count, out=np.ones(len(total)), where=count > 0))
            return ratio

        layer_sd = prior.layer_sd * factor(squares[:cut], seen[:cut], choices)
        pair_sd = prior.pair_sd * factor(squares[cut:], seen[cut:], choices**2)
        top = float(layer_sd.max())
        rounded = [np.maximum(np.round(sd / top, _DIGITS), _FAINT) for sd in (layer_sd, pair_sd)]
        return replace(prior, layer_sd=rounded[0], pair_sd=rounded[1])

    def state(self) -> dict[str, Any] | None:
        """What was learnt beside the evaluations, as JSON; None before the first fit."""
        if self._prior is None or self._fitted is None:
            return None
        return {"trust": self._trust, "next": self._prior.state(), "fitted": self._fitted.state()}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Takes over what `state` gave."""
        if state is None:
            return
        self._trust = float(state["trust"])
        self._prior, self._fitted = _Prior.from_state(state["next"]), _Prior.from_state(state["fitted"])

    @property
    def form(self) -> str | None:
        return None if self._prior is None else self._prior.form


def _left_out(posterior: _Posterior, inverse: FloatArray) -> float:
    """The share of the variance that is not explained where each evaluation is predicted from all others."""
    misses = inverse @ posterior.values / np.diag(inverse)
    values, predicted = posterior.values, posterior.values - misses
    if posterior.prior.log:
        values, predicted = np.exp(values), np.exp(np.minimum(predicted, values.max() + 1.0))
    return float(np.mean((predicted - values) ** 2) / (np.var(values) or 1.0))
