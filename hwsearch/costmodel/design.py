"""Which operators to measure next: those that say most about all that will be asked.

Log latency is taken to be the analytic form, whose constants are uncertain, plus a Gaussian process plus noise; the
form enters by its derivatives to its constants, so that the covariance of any two operators is known before either is
measured. The next operator is the one that lowers the expected absolute error most, summed over a sample of what will
be asked in proportion to its share (active learning Cohn: Cohn, Ghahramani and Jordan, JAIR 4, 1996; for processes Seo
et al. 2000). A posterior covariance does not depend on outcomes, so a batch is chosen one by one, each as if those
before it had been measured: that keeps a batch from being many times the same question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.analytic import Constant, analytic_ms, form_with, forms_of
from hwsearch.costmodel.calibration import fit_constants
from hwsearch.costmodel.features import feature_matrix
from hwsearch.costmodel.gp import LEAST_LEARNED, fit_covariance
from hwsearch.costmodel.neighbours import row_keys
from hwsearch.costmodel.tables import Table
from hwsearch.costmodel.transferred import Source
from hwsearch.operators import columns
from hwsearch.records import DeviceSpec

__all__ = ["FIRST", "Pick", "choose"]

FIRST = 16  # rows of a kind that are spread before the model is asked; a fit takes LEAST_ROWS

FloatArray = NDArray[np.float64]
_ASKED, _CANDIDATES = 600, 1200  # rows that stand for a larger pool
_STEPS = 25  # of calibration
_PRIOR_SD, _PRIOR_SD_NEAR = 1.0, 0.3  # of a constant's logarithm; around those of another device's family
_GUESS, _GUESS_NEAR = 0.1, 0.05  # of what the form leaves, before anything is measured
_STEP = 0.05  # of a constant's logarithm, for the derivatives
_LEAST_NOISE = 0.01
_LEAST_VARIANCE = 1e-9
_SPREAD_EVERY = 4  # rows, one of which is spread, after the first


@dataclass(frozen=True)
class Pick:
    """A row of the pool, and the most by which measuring a row instead could lower the expected absolute error of log
    latency, weighted by the shares: what a row that is spread gains is not known, so its turn counts as the best."""

    row: int
    gain: float


def choose(
    table: Table,
    pool: NDArray[np.int64],
    share: FloatArray,
    *,
    count: int,
    device: DeviceSpec,
    size: int,
    seed: int,
    source: Source | None = None,
) -> list[Pick]:
    """The `count` rows of a pool (N, d) to measure next, beside those of `table` (any number), best first.

    share (N,): of the time asked of the device. `size` is the bytes per element. With a `source` the device is taken
    to be like that one but for small differences, and no row is spread. The choice depends on nothing but the
    arguments. Fewer rows come back where the pool holds no more that are not measured yet.
    """
    rng = np.random.default_rng([seed, len(table)])
    free = np.flatnonzero(~np.isin(row_keys(pool), row_keys(table.dims)))
    if not len(free) or count < 1:
        return []
    asked, weight = _sample(share, rng)
    most = max(_CANDIDATES, 4 * count)
    if len(free) > most:
        free = np.sort(rng.choice(free, most, replace=False, p=share[free] / share[free].sum()))
    greedy = _posterior(table, pool[asked], pool[free], weight, device=device, size=size, source=source)
    spread = _Spread.of(table.dims, pool[asked], pool[free], weight)
    picks = []
    for turn in range(len(table), len(table) + min(count, len(free))):
        best, gain = greedy.best()
        if source is None and (turn < FIRST or turn % _SPREAD_EVERY == 0):
            best = spread.best(greedy.taken)
        greedy.take(best)
        spread.take(best)
        picks.append(Pick(int(free[best]), gain))
    return picks


def _sample(share: FloatArray, rng: np.random.Generator) -> tuple[NDArray[np.int64], FloatArray]:
    """Rows that stand for the whole pool, and the share of it that each stands for."""
    if len(share) <= _ASKED:
        return np.arange(len(share)), share
    drawn = rng.choice(len(share), _ASKED, p=share / share.sum())
    rows, often = np.unique(drawn, return_counts=True)
    return rows, often * (share.sum() / _ASKED)


@dataclass
class _Greedy:
    """Covariances of what is asked (R,) and of candidates (C,), given all that was taken so far."""

    cross: NDArray[np.float32]  # (R, C)
    own: NDArray[np.float32]  # (C, C)
    asked: FloatArray  # (R,) variances
    candidate: FloatArray  # (C,) variances
    weight: FloatArray  # (R,)
    noise: float  # variance of a measurement
    taken: NDArray[np.bool_]

    def best(self) -> tuple[int, float]:
        """The best candidate and its gain."""
        # sqrt(v) - sqrt(v - f) without the difference of nearly equal numbers: f / (sqrt(v) + sqrt(v - f)).
        falls = self.cross**2
        falls /= (self.candidate + self.noise).astype(np.float32)
        roots = self.asked.astype(np.float32)[:, None] - falls
        np.sqrt(np.maximum(roots, 0, out=roots), out=roots)
        roots += np.sqrt(self.asked).astype(np.float32)[:, None]
        falls /= roots
        gain = self.weight.astype(np.float32) @ falls
        gain[self.taken] = -1.0
        best = int(np.argmax(gain))
        return best, float(gain[best])

    def take(self, row: int) -> None:
        """Condition what is left on a candidate."""
        self.taken[row] = True
        scale = np.float32(1 / np.sqrt(self.candidate[row] + self.noise))
        on_asked, on_own = self.cross[:, row] * scale, self.own[:, row] * scale
        self.cross -= on_asked[:, None] * on_own
        self.own -= on_own[:, None] * on_own
        self.asked = np.maximum(self.asked - on_asked.astype(np.float64) ** 2, _LEAST_VARIANCE)
        self.candidate = np.maximum(self.candidate - on_own.astype(np.float64) ** 2, _LEAST_VARIANCE)


@dataclass
class _Spread:
    """Distances over the logarithms of the dimensions, each in units of its own deviation over what is asked."""

    near: FloatArray  # (R,) of what is asked to its nearest row that is measured or taken
    between: FloatArray  # (R, C) to the candidates
    weight: FloatArray  # (R,)

    @classmethod
    def of(
        cls,
        measured: NDArray[np.int64],
        asked: NDArray[np.int64],
        candidates: NDArray[np.int64],
        weight: FloatArray,
    ) -> _Spread:
        """Of dimensions (n, d), (R, d) and (C, d)."""
        from scipy.spatial.distance import cdist

        logs = np.log1p(asked)
        deviation = logs.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
        between = cdist(logs / scale, np.log1p(candidates) / scale)
        # Nothing is measured: all is equally far, farther than any candidate.
        far = np.full((len(asked), 1), 2 * between.max() + 1)
        near = np.hstack([far, cdist(logs / scale, np.log1p(measured) / scale)]).min(axis=1)
        return cls(near, between, weight)

    def best(self, taken: NDArray[np.bool_]) -> int:
        """The candidate that lowers the mean distance most."""
        mean = self.weight @ np.minimum(self.near[:, None], self.between)
        mean[taken] = np.inf
        return int(np.argmin(mean))

    def take(self, row: int) -> None:
        """A candidate is measured."""
        self.near = np.minimum(self.near, self.between[:, row])


def _posterior(
    table: Table,
    asked: NDArray[np.int64],
    candidates: NDArray[np.int64],
    weight: FloatArray,
    *,
    device: DeviceSpec,
    size: int,
    source: Source | None,
) -> _Greedy:
    """Covariances after the rows of the table."""
    from scipy.linalg import cholesky, solve_triangular

    dims = np.concatenate([table.dims, asked, candidates])
    lent = None if source is None else source.lend(dims, size=size).learned
    constants = _constants(table, device=device, size=size, source=source, lent=lent)
    form, slopes = _form(table.kind, dims, constants, device=device, size=size)
    slopes *= _PRIOR_SD if source is None else _PRIOR_SD_NEAR
    features = feature_matrix(table.kind, columns(table.kind, dims), device=device, size=size)
    n, m = len(table), len(table) + len(asked)
    base = form[:n] if lent is None else form[:n] + lent[:n]
    process = fit_covariance(
        features[:n],
        np.log(table.latency_ms) - base,
        like=features[n:m],
        guess=_GUESS if source is None else _GUESS_NEAR,
    )
    known, here, there = slice(0, n), slice(n, m), slice(m, None)
    noise = max(process.noise, _LEAST_NOISE) ** 2

    def prior(a: slice, b: slice) -> FloatArray:
        return process.between(features[a], features[b]) + slopes[a] @ slopes[b].T

    every = process.signal**2 + (slopes**2).sum(axis=1)
    cross, own = prior(here, there), prior(there, there)
    variance = every[n:].copy()
    if n:
        factor = cholesky(prior(known, known) + noise * np.eye(n), lower=True)
        on_asked = solve_triangular(factor, prior(known, here), lower=True)
        on_own = solve_triangular(factor, prior(known, there), lower=True)
        cross -= on_asked.T @ on_own
        own -= on_own.T @ on_own
        variance -= np.concatenate([(on_asked**2).sum(axis=0), (on_own**2).sum(axis=0)])
    variance = np.maximum(variance, _LEAST_VARIANCE)
    return _Greedy(
        cross=cross.astype(np.float32),
        own=own.astype(np.float32),
        asked=variance[: m - n],
        candidate=variance[m - n :],
        weight=weight,
        noise=noise,
        taken=np.zeros(len(candidates), bool),
    )


def _constants(
    table: Table, *, device: DeviceSpec, size: int, source: Source | None, lent: FloatArray | None
) -> Mapping[str, float]:
    """Constants of the form: fitted where there are rows for it, else those to begin with."""
    prior = None if source is None else source.family.constants
    if len(table) < LEAST_LEARNED:
        usual = forms_of(table.kind, on=device.kind)[0]
        return prior or {constant.name: constant.start for constant in usual.constants}
    return fit_constants(
        table,
        device=device,
        size=size,
        seed=0,
        starts=1,
        steps=_STEPS,
        prior=prior,
        prior_sd=_PRIOR_SD if source is None else _PRIOR_SD_NEAR,
        beside=None if lent is None else lent[: len(table)],
    )


def _form(
    kind: str, dims: NDArray[np.int64], constants: Mapping[str, float], *, device: DeviceSpec, size: int
) -> tuple[FloatArray, FloatArray]:
    """Log latency of the form (n,), and its derivatives to the logarithms of the constants (n, constants)."""
    c = columns(kind, dims)

    def log_ms(at: Mapping[str, float]) -> FloatArray:
        return np.log(analytic_ms(kind, c, device=device, size=size, constants=at))

    base = log_ms(constants)
    slopes = []
    for constant in _varied(kind, constants, device=device):
        value = constants[constant.name]
        step = _STEP if value * np.exp(_STEP) <= constant.high else -_STEP
        slopes.append((log_ms({**constants, constant.name: value * float(np.exp(step))}) - base) / step)
    return base, np.stack(slopes, axis=1)


def _varied(kind: str, constants: Mapping[str, float], *, device: DeviceSpec) -> tuple[Constant, ...]:
    """The constants taken as uncertain: those of the usual form, or of the other kernel's that a table or source shows.

    Coarse tiles of products have the usual constants and one more, which choices were compared without.
    """
    usual = forms_of(kind, on=device.kind)[0]
    if all(constant.name in constants for constant in usual.constants):
        return usual.constants
    shown = form_with(kind, constants)
    assert shown is not None
    return shown.constants
