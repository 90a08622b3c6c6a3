"""A model of a noisy cost measured at several fidelities: a Gaussian process on genomes, noise learnt per fidelity.

The covariance of two genomes is additive_variance x (share of layers that agree) + joint_variance x exp(-4 x share of
layers that differ): the first term is a cost that adds up over layers, the second whatever does not, smooth in the
number of layers changed. The two variances and one noise variance per fidelity maximise the marginal likelihood
(Rasmussen and Williams, 2006, chapter 5). Unlike `learned`, which learns what a cost without noise is made of, this one
expects an evaluation to be off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from hwsearch.search.space import FloatArray, Genomes

__all__ = ["NoisyModel"]

_REACH = 4.0
_ROWS = 600  # the latest evaluations that a model is fitted to: its time grows with their cube
_LOWEST, _HIGHEST = np.log(1e-6), np.log(10.0)  # of variances, relative to that of the values
_DIGITS = 3  # of the logarithms of variances: below, they depend on how BLAS splits its work
_PREDICTED = 9  # digits of a prediction, for the same reason


@dataclass(frozen=True, eq=False)
class NoisyModel:
    """The posterior after genomes (n, layers) with their values; see `fit`."""

    genomes: Genomes
    variances: FloatArray  # additive, joint, then one of the noise per fidelity; relative to scale squared
    factor: tuple[FloatArray, bool]
    weights: FloatArray
    centre: float
    scale: float

    @classmethod
    def fit(cls, genomes: Genomes, values: FloatArray, *, fidelity: NDArray[np.int64]) -> NoisyModel:
        """From values (n,) of genomes (n, layers), each measured at the fidelity of that number, (n,)."""
        genomes, values, fidelity = genomes[-_ROWS:], values[-_ROWS:], fidelity[-_ROWS:]
        centre, scale = float(values.mean()), float(values.std()) or 1.0
        y = (values - centre) / scale
        agree = _agreement(genomes, genomes)
        noises = int(fidelity.max()) + 1

        def covariance(variances: FloatArray) -> FloatArray:
            return _covariance(agree, variances) + np.diag(variances[2 + fidelity])

        def unlikely(logs: FloatArray) -> float:
            try:
                factor = cho_factor(covariance(np.exp(logs)), lower=True)
            except LinAlgError:
                return 1e10
            return float(0.5 * y @ cho_solve(factor, y) + np.log(np.diag(factor[0])).sum())

        start = np.log(np.array([0.7, 0.2] + [0.1] * noises))
        bounds = [(_LOWEST, _HIGHEST)] * len(start)
        found = minimize(unlikely, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30})
        variances = np.exp(np.round(found.x, _DIGITS))
        factor = cho_factor(covariance(variances) + 1e-9 * np.eye(len(y)), lower=True)
        return cls(genomes, variances, factor, cho_solve(factor, y), centre, scale)

    def tables(self, num_choices: int) -> tuple[FloatArray, FloatArray]:
        """What adds up over layers: mean and, treating choices as independent, deviation, (layers, choices) each."""
        layers = self.genomes.shape[1]
        share = self.variances[0] / layers
        mean, seen = np.zeros((layers, num_choices)), np.zeros((layers, num_choices))
        for layer in range(layers):
            np.add.at(mean[layer], self.genomes[:, layer], share * self.weights)
            np.add.at(seen[layer], self.genomes[:, layer], 1.0)
        noise = self.variances[1] + self.variances[2:].min()
        deviation = np.sqrt(share / (1.0 + seen * share / noise))
        return np.round(mean, _PREDICTED) * self.scale, deviation * self.scale

    def predict(self, genomes: Genomes) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation, (n,) each, of the cost without noise of genomes (n, layers)."""
        cross = _covariance(_agreement(genomes, self.genomes), self.variances)
        mean = cross @ self.weights
        explained = solve_triangular(self.factor[0], cross.T, lower=True)
        left = self.variances[0] + self.variances[1] - (explained**2).sum(axis=0)
        deviation = np.sqrt(np.maximum(left, 0.0))
        return (
            np.round(mean, _PREDICTED) * self.scale + self.centre,
            np.round(deviation, _PREDICTED) * self.scale,
        )


def _agreement(one: Genomes, other: Genomes) -> FloatArray:
    """The share of layers in which genomes (n, layers) and (m, layers) agree, (n, m)."""
    agree = np.zeros((len(one), len(other)))
    for layer in range(one.shape[1]):
        agree += one[:, layer, None] == other[:, layer]
    agree /= one.shape[1]
    return agree


def _covariance(agree: FloatArray, variances: FloatArray) -> FloatArray:
    covariance: FloatArray = variances[0] * agree + variances[1] * np.exp(_REACH * (agree - 1.0))
    return covariance
