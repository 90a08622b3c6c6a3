"""Gaussian process on few hundred inducing points: the smooth part of a residual, in numpy.

ARD Matern-5/2 kernel, hyperparameters by maximum a posteriori on a subset of rows, prediction by the subset of
regressors over inducing rows, so its cost does not grow with the table. The inducing rows are those that the others
say least of: a pivoted Cholesky factorisation picks them one by one (Burt et al. 2020, arXiv 2008.00323). Away from
all data the prediction falls back to zero, which leaves the analytic form. Method: Rasmussen and Williams 2006,
chapters 5 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GP", "LEAST_LEARNED", "Covariance", "GPRecipe", "fit_covariance", "fit_gp"]

FloatArray = NDArray[np.float64]

_ROOT5 = float(np.sqrt(5.0))
_CLIP = 6.0  # standard deviations: keeps a far extrapolation finite
_BLOCK = 4096
_CACHED = 16384  # numbers that stay in a core's cache through several operations
_JITTER = 1e-6
_ROUNDS = 3
_REFINE = 15  # iterations on the hyperparameters in each round of reweighting
_NOISE_SHARE = 0.3  # of the signal, where points are chosen
LEAST_LEARNED = 24  # rows, for a covariance that is not the prior's
_OUTLYING = 3.0  # median residuals: a row this far off is trusted half


@dataclass(frozen=True, kw_only=True)
class GPRecipe:
    """`inducing` rows carry the prediction; hyperparameters are learned on `learn` rows."""

    inducing: int = 500
    learn: int = 700
    iterations: int = 60


@dataclass(frozen=True)
class GP:
    """Inducing inputs (m, F) in units of the length scales, weights (m,), and the scaling of raw features (F,)."""

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    inverse_length: NDArray[np.float32]
    inducing: NDArray[np.float32]
    weight: NDArray[np.float32]

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Posterior mean (n,) at features (n, F)."""
        out = np.empty(len(features), np.float32)
        square = (self.inducing**2).sum(axis=1)
        for start in range(0, len(features), _BLOCK):
            raw = features[start : start + _BLOCK]
            x = np.clip((raw - self.mean) / self.sd, -_CLIP, _CLIP) * self.inverse_length
            distance = (x**2).sum(axis=1)[:, None] + square - 2 * (x @ self.inducing.T)
            np.maximum(distance, 0, out=distance)
            distance *= 5
            root = np.sqrt(distance)
            distance /= 3
            distance += root
            distance += 1
            np.negative(root, out=root)
            np.exp(root, out=root)
            distance *= root
            out[start : start + _BLOCK] = distance @ self.weight
        return out

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "mean": self.mean,
            "sd": self.sd,
            "inverse_length": self.inverse_length,
            "inducing": self.inducing,
            "weight": self.weight,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> GP:
        names = ("mean", "sd", "inverse_length", "inducing", "weight")
        return cls(*(arrays[name].astype(np.float32) for name in names))


def _correlation(
    a: FloatArray, b: FloatArray, out: tuple[FloatArray, FloatArray] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Matern-5/2 correlation of scaled inputs (p, F), (q, F), and -d(correlation)/d(squared distance) times two."""
    correlation, slope = out or (np.empty((len(a), len(b))), np.empty((len(a), len(b))))
    np.matmul(a, b.T, out=slope)
    aa, bb = (a**2).sum(axis=1)[:, None], (b**2).sum(axis=1)
    # A few rows at a time, in place: whole matrices would go through memory once for every operation.
    rows = max(1, _CACHED // max(1, len(b)))
    for begin in range(0, len(a), rows):
        root, found = slope[begin : begin + rows], correlation[begin : begin + rows]
        root *= -2
        root += aa[begin : begin + rows] + bb
        np.maximum(root, 0, out=root)
        np.sqrt(root, out=root)
        root *= _ROOT5
        decay = np.exp(-root)
        np.multiply(root, root, out=found)
        found /= 3
        root += 1
        found += root
        found *= decay
        root *= 5 / 3
        root *= decay
    return correlation, slope


def fit_gp(features: NDArray[np.float32], target: FloatArray, *, recipe: GPRecipe, seed: int) -> GP:
    """Fit on features (n, F) and target (n,).

    Kernel switches of a library show as outliers that a smooth function cannot follow and should not try to:
    rows that are far from what the others say of them are trusted less, in rounds of refitting (iteratively
    reweighted noise with Cauchy weights, the scale from the median of the leave-one-out residuals).
    """
    rng = np.random.default_rng(seed)
    mean = features.mean(axis=0, dtype=np.float64)
    sd = np.maximum(features.std(axis=0, dtype=np.float64), 1e-6)
    x = np.clip((features - mean) / sd, -_CLIP, _CLIP)
    learn = rng.permutation(len(x))[: recipe.learn]
    scale = float(np.std(target[learn])) + 1e-9
    y = target / scale
    trust = np.ones(len(y))
    theta = _learn(x[learn], y[learn], trust[learn], start=None, iterations=recipe.iterations)
    for _ in range(_ROUNDS):
        left = _solve(x, y, trust, _inducing(x, theta, recipe.inducing), theta)[1]
        trust = 1 / (1 + (left / (_OUTLYING * np.median(np.abs(left)) + 1e-12)) ** 2)
        theta = _learn(x[learn], y[learn], trust[learn], start=theta, iterations=_REFINE)
    chosen = _inducing(x, theta, recipe.inducing)
    weight = scale * _solve(x, y, trust, chosen, theta)[0]
    inverse_length = np.exp(-theta[:-2])
    z = x[chosen] * inverse_length
    return GP(*(np.asarray(a, np.float32) for a in (mean, sd, inverse_length, z, weight)))


def _prior(width: int) -> FloatArray:
    """Where the logarithms of length scales (F), signal and noise are expected, one standard deviation each way."""
    return np.concatenate([np.full(width, np.log(1.5 * np.sqrt(width))), [0.0, np.log(0.2)]])


def _learn(
    x: FloatArray, y: FloatArray, trust: FloatArray, *, start: FloatArray | None, iterations: int
) -> FloatArray:
    """Logarithms of length scales (F), signal and noise by maximum a posteriori, from rows (n, F) and (n,)."""
    from scipy.linalg import lapack
    from scipy.optimize import minimize

    width = x.shape[1]
    prior = _prior(width)
    below = np.tri(len(x), k=-1, dtype=np.bool_)
    # Matrices are kept from one evaluation to the next: new memory costs as much as what is done with it.
    correlation, slope, kernel, outer = (np.empty((len(x), len(x))) for _ in range(4))

    def negative_log_posterior(theta: FloatArray) -> tuple[float, FloatArray]:
        scaled = x * np.exp(-theta[:width])
        _correlation(scaled, scaled, out=(correlation, slope))
        signal, noise = np.exp(2 * theta[width]), np.exp(2 * theta[width + 1]) / trust
        np.multiply(signal, correlation, out=kernel)
        kernel[np.diag_indices_from(kernel)] += noise + _JITTER
        # The transpose is the same matrix in LAPACK's order of memory, so that all is done in place.
        factor, failed = lapack.dpotrf(kernel.T, lower=True, clean=False, overwrite_a=True)
        if failed:
            raise np.linalg.LinAlgError("the covariance is not positive definite")
        alpha = lapack.dpotrs(factor, y, lower=True)[0]
        value = 0.5 * y @ alpha + np.log(np.diag(factor)).sum()
        inverse = lapack.dpotri(factor, lower=True, overwrite_c=True)[0].T
        np.multiply(alpha[:, None], alpha, out=outer)
        np.subtract(outer, inverse, out=outer)
        np.copyto(outer, outer.T, where=below)
        weighted = np.multiply(outer, slope, out=slope)
        weighted *= signal
        # Sum over pairs of weighted * (x_i - x_j)^2, for every input at once.
        pairs = 2 * (weighted.sum(axis=1) @ scaled**2) - 2 * (scaled * (weighted @ scaled)).sum(axis=0)
        gradient = np.empty(width + 2)
        gradient[:width] = -0.5 * pairs
        gradient[width] = -np.multiply(outer, correlation, out=correlation).sum() * signal
        gradient[width + 1] = -(np.diag(outer) * noise).sum()
        value += 0.5 * float(((theta - prior) ** 2).sum())
        return float(value), gradient + theta - prior

    best: FloatArray = minimize(
        negative_log_posterior,
        prior if start is None else start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-2.0, 6.0)] * width + [(-4.0, 3.0), (-5.0, 1.0)],
        options={"maxiter": iterations},
    ).x
    return best


def _inducing(x: FloatArray, theta: FloatArray, most: int) -> NDArray[np.int64]:
    """Indices of at most so many rows (n, F), each the one that those before it say least of."""
    n = len(x)
    if n <= most:
        return np.arange(n)
    scaled = x * np.exp(-theta[:-2])
    factor, unsaid = np.zeros((n, most)), np.ones(n)
    chosen = np.empty(most, np.int64)
    for i in range(most):
        chosen[i] = pivot = int(np.argmax(unsaid))
        column = _correlation(scaled, scaled[pivot : pivot + 1])[0][:, 0] - factor[:, :i] @ factor[pivot, :i]
        factor[:, i] = column / np.sqrt(max(unsaid[pivot], _JITTER))
        unsaid = np.maximum(unsaid - factor[:, i] ** 2, 0.0)
        unsaid[pivot] = -1.0  # never twice, even where all is said
    return np.sort(chosen)


def _solve(
    x: FloatArray, y: FloatArray, trust: FloatArray, chosen: NDArray[np.int64], theta: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weights (m,) of the inducing rows `chosen`, and leave-one-out residuals (n,) of rows (n, F), (n,)."""
    from scipy.linalg import cho_factor, cho_solve, solve_triangular

    scaled = x * np.exp(-theta[:-2])
    signal, noise = np.exp(2 * theta[-2]), np.exp(2 * theta[-1])
    z = scaled[chosen]
    total = noise * signal * _correlation(z, z)[0]
    total[np.diag_indices_from(total)] += _JITTER * noise * signal
    right = np.zeros(len(z))
    blocks = []
    for begin in range(0, len(x), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        kzx = signal * _correlation(z, scaled[part])[0]
        blocks.append(kzx)
        total += (kzx * trust[part]) @ kzx.T
        right += kzx @ (trust[part] * y[part])
    total[np.diag_indices_from(total)] += 1e-8 * np.trace(total) / len(total)
    factor = cho_factor(total, lower=True)
    solution = cho_solve(factor, right)
    left = []
    for begin, kzx in zip(range(0, len(x), _BLOCK), blocks, strict=True):
        part = slice(begin, begin + _BLOCK)
        leverage = trust[part] * (solve_triangular(factor[0], kzx, lower=True) ** 2).sum(axis=0)
        left.append((y[part] - kzx.T @ solution) / np.maximum(1 - leverage, 1e-3))
    return signal * solution, np.concatenate(left)


@dataclass(frozen=True)
class Covariance:
    """What a process expects of a target before it knows the values: the mean of kernels with different length scales.

    mean, sd (F,): of raw features. inverse_lengths: (F,) each. signal, noise: standard deviations.
    """

    mean: FloatArray
    sd: FloatArray
    inverse_lengths: tuple[FloatArray, ...]
    signal: float
    noise: float

    def between(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> FloatArray:
        """Covariance (p, q) of the noiseless target at features (p, F) and (q, F)."""
        x, y = (np.clip((rows - self.mean) / self.sd, -_CLIP, _CLIP) for rows in (a, b))
        kernels = [_correlation(x * inverse, y * inverse)[0] for inverse in self.inverse_lengths]
        total: FloatArray = self.signal**2 / len(kernels) * np.sum(kernels, axis=0)
        return total


def fit_covariance(
    features: NDArray[np.float32], target: FloatArray, *, like: NDArray[np.float32], guess: float
) -> Covariance:
    """The covariance to choose points by, from features (n, F) and target (n,), outlying rows trusted less.

    Features are scaled by those of `like` (N, F), which stand for all that will be asked. Few rows often look like
    noise alone, or like a function of one feature, and points chosen by that go astray: half of the kernel keeps the
    prior's length scales, and signal and noise keep a fixed ratio. With fewer than LEAST_LEARNED rows all is the
    prior's, and `guess` the signal.
    """
    mean, sd = like.mean(axis=0, dtype=np.float64), np.maximum(like.std(axis=0, dtype=np.float64), 1e-6)
    prior = _prior(features.shape[1])
    scale, inverse_lengths = guess, [np.exp(-prior[:-2])]
    if len(target) >= LEAST_LEARNED:
        x = np.clip((features - mean) / sd, -_CLIP, _CLIP)
        scale = float(np.std(target)) + 1e-9
        y, everything, trust = target / scale, np.arange(len(target)), np.ones(len(target))
        theta = _learn(x, y, trust, start=None, iterations=_REFINE)
        for _ in range(_ROUNDS):
            left = _solve(x, y, trust, everything, theta)[1]
            trust = 1 / (1 + (left / (_OUTLYING * np.median(np.abs(left)) + 1e-12)) ** 2)
            theta = _learn(x, y, trust, start=theta, iterations=_REFINE)
        inverse_lengths.append(np.exp(-theta[:-2]))
    return Covariance(mean, sd, tuple(inverse_lengths), signal=scale, noise=_NOISE_SHARE * scale)
