"""A Gaussian process over genomes: what layers, pairs of layers and counts of choices are worth, from noisy scores.

The model is linear in indicators, so that its posterior mean is a cost of tables that solvers can use. With a_l = 1
where two genomes agree in layer l of L, r_l the relevance of layer l, and n_c how often a genome takes choice c, the
covariance is the sum of four parts, each with a variance of its own:

    layers   s = sum_l r_l a_l / L                      one indicator per layer and choice
    pairs    s^2 - sum_l (r_l a_l / L)^2                one per two layers and their choices; what matters alone is
                                                        likelier to matter together
    shared   c = sum_c n_c n'_c / L^2                   a choice is worth the same in every layer
    bent     c^2                                        the same with diminishing returns

Variances, relevances and one noise variance per fidelity maximise the marginal likelihood times a log-normal prior on
relevances and variances (Rasmussen and Williams 2006, chapter 5; relevances after MacKay 1994). Both the search with
few expensive evaluations and the accuracy predictor are built on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

__all__ = ["PARTS", "GenomeGP", "Tables"]

FloatArray = NDArray[np.float64]
Genomes = NDArray[np.int64]

PARTS = ("layers", "pairs", "shared", "bent")
"""The parts of the covariance, in the order of `GenomeGP.variances`."""

_START = (0.5, 0.1, 0.2, 0.02)  # variances before the fit, relative to that of the values
_NOISE = 0.1  # the same of the noise
_RELEVANCE_SD = 1.0  # of the logarithm of a relevance, a priori
_VARIANCE_SD = 3.0  # the same of a variance: so vague that it only keeps unidentified ones where they start
_ROWS = 600  # the latest evaluations that a model is fitted to: its time grows with their cube
_VARIANCE, _RELEVANCE = (float(np.log(1e-6)), float(np.log(30.0))), (-3.0, 3.0)  # bounds of the logarithms
_STEPS = 60
_DIGITS = 3  # of the logarithms of variances: below, they depend on how BLAS splits its work
_PREDICTED = 9  # digits of a prediction, for the same reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """A cost as constant + sum over layers of table[l, c] + sum over pairs of layers of together[p, c, d].

    table: (layers, choices). pairs: (p, 2) layers, the first before the second. together: (p, choices, choices).
    """

    table: FloatArray
    pairs: Genomes
    together: FloatArray
    constant: float


@dataclass(frozen=True, eq=False)
class GenomeGP:
    """The posterior after genomes (n, layers) with their values; see `fit`.

    variances: of the parts in the order of `PARTS`, then of the noise per fidelity, relative to scale squared.
    relevance: (layers,), with a geometric mean of about 1.
    """

    genomes: Genomes
    num_choices: int
    noise_of: NDArray[np.int64]
    variances: FloatArray
    relevance: FloatArray
    factor: tuple[FloatArray, bool]
    values: FloatArray  # centred and scaled
    centre: float
    scale: float

    @classmethod
    def fit(
        cls,
        genomes: Genomes,
        values: FloatArray,
        *,
        num_choices: int,
        fidelity: NDArray[np.int64] | None = None,
    ) -> GenomeGP:
        """From values (n,) of genomes (n, layers), each measured at the fidelity of that number, (n,)."""
        genomes, values = genomes[-_ROWS:], values[-_ROWS:]
        noise_of = np.zeros(len(genomes), dtype=np.int64) if fidelity is None else fidelity[-_ROWS:]
        centre, scale = float(values.mean()), float(values.std()) or 1.0
        y = (values - centre) / scale
        variances, relevance = _Likelihood(genomes, y, num_choices, noise_of).maximised()
        covariance = _Covariance(variances, relevance, num_choices)(genomes, genomes)
        covariance[np.diag_indices(len(y))] += variances[len(PARTS) + noise_of] + 1e-9
        factor = cho_factor(covariance, lower=True)
        return cls(genomes, num_choices, noise_of, variances, relevance, factor, y, centre, scale)

    @cached_property
    def _weights(self) -> FloatArray:
        found: FloatArray = cho_solve(self.factor, self.values)
        return found

    @property
    def _covariance(self) -> _Covariance:
        return _Covariance(self.variances, self.relevance, self.num_choices)

    @property
    def noise(self) -> FloatArray:
        """Standard deviation of the noise at each fidelity, in units of the values."""
        found: FloatArray = np.sqrt(self.variances[len(PARTS) :]) * self.scale
        return found

    def predict(self, genomes: Genomes) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation, (n,) each, of the value without noise of genomes (n, layers)."""
        covariance = self._covariance
        cross = covariance(genomes, self.genomes)
        explained = solve_triangular(self.factor[0], cross.T, lower=True)
        left = covariance.prior(genomes) - (explained**2).sum(axis=0)
        deviation = np.sqrt(np.maximum(left, 0.0))
        return (
            np.round(cross @ self._weights, _PREDICTED) * self.scale + self.centre,
            np.round(deviation, _PREDICTED) * self.scale,
        )

    def tables(self) -> Tables:
        """The posterior mean as tables, all pairs of layers among them; what `predict` gives, by other sums."""
        layers, choices = self.genomes.shape[1], self.num_choices
        hot = _one_hot(self.genomes, choices)
        counts = hot.reshape(len(hot), layers, choices).sum(axis=1)
        weights = self._weights * self.scale
        own, pair, shared, bent = self.variances[: len(PARTS)]
        by_layer = (weights @ hot).reshape(layers, choices)
        by_choice = shared * (weights @ counts) / layers**2
        first, second = np.triu_indices(layers, 1)
        moments = np.einsum("n,nlc,nmd->lmcd", weights, *(2 * (hot.reshape(-1, layers, choices),)))
        both = moments[first, second] * (
            2 * pair * self.relevance[first] * self.relevance[second] / layers**2
        ).reshape(-1, 1, 1)
        # The squared count is a sum over all ordered pairs of layers, a layer with itself among them.
        counted = bent * np.einsum("n,nc,nd->cd", weights, counts, counts) / layers**4
        table = own * self.relevance[:, None] * by_layer / layers + by_choice + np.diag(counted)
        return Tables(
            table=table,
            pairs=np.stack((first, second), axis=1),
            together=both + 2 * counted,
            constant=self.centre,
        )

    def layers(self) -> tuple[FloatArray, FloatArray]:
        """What each choice is worth in each layer of an average genome: mean and deviation, (layers, choices) each.

        Pairs are taken at the average of the evaluated genomes for the other layer; the deviation is of the parts
        that add up over layers only.
        """
        tables = self.tables()
        layers, choices = tables.table.shape
        share = _one_hot(self.genomes, choices).reshape(-1, layers, choices).mean(axis=0)
        mean = tables.table.copy()
        first, second = tables.pairs.T
        np.add.at(mean, first, np.einsum("pcd,pd->pc", tables.together, share[second]))
        np.add.at(mean, second, np.einsum("pcd,pc->pd", tables.together, share[first]))
        own, _, shared, _ = self.variances[: len(PARTS)]
        hot = _one_hot(self.genomes, choices)
        counts = hot.reshape(-1, layers, choices).sum(axis=1)
        cross = (
            own * np.repeat(self.relevance, choices) * hot / layers
            + shared * np.tile(counts, layers) / layers**2
        )
        explained = solve_triangular(self.factor[0], cross, lower=True)
        prior = own * np.repeat(self.relevance, choices) / layers + shared / layers**2
        deviation = np.sqrt(np.maximum(prior - (explained**2).sum(axis=0), 0.0)).reshape(layers, choices)
        return np.round(mean / self.scale, _PREDICTED) * self.scale, deviation * self.scale


def _one_hot(genomes: Genomes, num_choices: int) -> FloatArray:
    """(n, layers * choices)."""
    n, layers = genomes.shape
    hot = np.zeros((n, layers * num_choices))
    hot[np.arange(n)[:, None], np.arange(layers) * num_choices + genomes] = 1.0
    return hot


@dataclass(frozen=True, eq=False)
class _Covariance:
    variances: FloatArray
    relevance: FloatArray
    num_choices: int

    def __call__(self, one: Genomes, other: Genomes) -> FloatArray:
        """(n, m) of genomes (n, layers) and (m, layers)."""
        layers, choices = one.shape[1], self.num_choices
        left, right = _one_hot(one, choices), _one_hot(other, choices)
        weight = np.repeat(self.relevance / layers, choices)
        sums = (left * weight) @ right.T
        squares = (left * weight**2) @ right.T
        counts = [hot.reshape(len(hot), layers, choices).sum(axis=1) for hot in (left, right)]
        common = counts[0] @ counts[1].T / layers**2
        own, pair, shared, bent = self.variances[: len(PARTS)]
        total: FloatArray = own * sums + pair * (sums**2 - squares) + shared * common + bent * common**2
        return total

    def prior(self, genomes: Genomes) -> FloatArray:
        """The diagonal of the covariance of genomes (n, layers) with themselves, (n,)."""
        layers = genomes.shape[1]
        total, squares = self.relevance.sum() / layers, (self.relevance**2).sum() / layers**2
        counts = np.stack([(genomes == c).sum(axis=1) for c in range(self.num_choices)], axis=1)
        common = (counts.astype(np.float64) ** 2).sum(axis=1) / layers**2
        own, pair, shared, bent = self.variances[: len(PARTS)]
        found: FloatArray = own * total + pair * (total**2 - squares) + shared * common + bent * common**2
        return found


class _Likelihood:
    """The negative logarithm of the posterior of variances and relevances, with its gradient."""

    def __init__(
        self, genomes: Genomes, y: FloatArray, num_choices: int, noise_of: NDArray[np.int64]
    ) -> None:
        self.y = y
        self.noise_of = noise_of
        layers = genomes.shape[1]
        self.agree = np.stack([genomes[:, i, None] == genomes[:, i] for i in range(layers)]) / layers
        counts = np.stack([(genomes == c).sum(axis=1) for c in range(num_choices)], axis=1)
        self.common = counts.astype(np.float64) @ counts.T / layers**2
        self.start = np.log(
            np.concatenate((_START, np.full(int(noise_of.max()) + 1, _NOISE), np.ones(layers)))
        )

    def maximised(self) -> tuple[FloatArray, FloatArray]:
        """Variances (parts + fidelities,) and relevances (layers,)."""
        many = len(self.start) - len(self.agree)
        bounds = [_VARIANCE] * many + [_RELEVANCE] * len(self.agree)
        found = minimize(
            self._value, self.start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
        )
        rounded = np.exp(np.round(found.x, _DIGITS))
        return rounded[:many], rounded[many:]

    def _value(self, logs: FloatArray) -> tuple[float, FloatArray]:
        n, parts = len(self.y), len(PARTS)
        many = len(logs) - len(self.agree)
        variances, relevance = np.exp(logs[:many]), np.exp(logs[many:])
        own, pair, shared, bent = variances[:parts]
        noise = variances[parts + self.noise_of]
        sums = np.tensordot(relevance, self.agree, axes=1)
        squares = np.tensordot(relevance**2 / len(relevance), self.agree, axes=1)
        pieces = (sums, sums**2 - squares, self.common, self.common**2)
        covariance = sum(v * p for v, p in zip((own, pair, shared, bent), pieces, strict=True))
        covariance[np.diag_indices(n)] += noise + 1e-9
        try:
            factor = cho_factor(covariance, lower=True)
        except LinAlgError:
            return 1e10, np.zeros_like(logs)
        inverse = cho_solve(factor, np.eye(n))
        weights = inverse @ self.y
        prior = np.where(np.arange(len(logs)) < many, _VARIANCE_SD, _RELEVANCE_SD)
        away = (logs - self.start) / prior
        value = 0.5 * self.y @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * away @ away
        slope = 0.5 * (inverse - np.outer(weights, weights))  # of the likelihood, for each covariance
        gradient = away / prior
        gradient[:parts] += [
            v * (slope * p).sum() for v, p in zip((own, pair, shared, bent), pieces, strict=True)
        ]
        diagonal = np.diag(slope) * noise
        gradient[parts:many] += np.bincount(self.noise_of, weights=diagonal, minlength=many - parts)
        by_layer = np.tensordot(self.agree, slope * (own + 2 * pair * sums), axes=2)
        alone = np.tensordot(self.agree, slope, axes=2)
        gradient[many:] += relevance * (by_layer - 2 * pair * relevance * alone / len(relevance))
        return float(value), gradient
