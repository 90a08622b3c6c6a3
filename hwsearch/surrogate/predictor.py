"""The accuracy predictor: supernet scores of a few architectures in, scores of all others out, with uncertainty.

A Gaussian process on the genome (per-layer choices, pairs of layers, counts of choices; `genome_gp`) whose variances
are chosen by marginal likelihood. These are themselves uncertain after a few dozen scores, which makes the
posterior's own deviations too narrow; five-fold cross-validation with everything refitted in each fold says by how
much, and the deviations are stretched by it. The same folds give the rank correlation to expect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from hwsearch.errors import InputError
from hwsearch.genome_gp import GenomeGP, Tables

__all__ = ["LEAST_SCORES", "Predictor"]

FloatArray = NDArray[np.float64]
Genomes = NDArray[np.int64]

LEAST_SCORES = 10
"""Fewer scores are not worth a model."""

_FOLDS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A fitted predictor of one score.

    tau: Kendall rank correlation of scores with their predictions from the other folds. stretch: what the posterior's
    deviations are multiplied by. gp: what it is built on.
    """

    gp: GenomeGP
    stretch: float
    tau: float

    @classmethod
    def fit(cls, genomes: Genomes, scores: FloatArray, *, num_choices: int, seed: int) -> Predictor:
        """From scores (n,) of different genomes (n, layers). seed: decides the folds.

        Raises InputError for too few scores, or ones that are not finite.
        """
        if len(genomes) < LEAST_SCORES or scores.shape != (len(genomes),):
            raise InputError(
                f"a predictor needs one score for each of at least {LEAST_SCORES} architectures, got {scores.shape} "
                f"scores of {len(genomes)}: score more architectures"
            )
        if not np.isfinite(scores).all():
            raise InputError(
                f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite: leave these out"
            )
        fold = np.random.default_rng(seed).permutation(len(scores)) % _FOLDS
        mean, deviation = np.empty(len(scores)), np.empty(len(scores))
        for held in range(_FOLDS):
            out = fold == held
            model = GenomeGP.fit(genomes[~out], scores[~out], num_choices=num_choices)
            mean[out], clean = model.predict(genomes[out])
            deviation[out] = np.hypot(clean, model.noise[0])
        misses = (scores - mean) / np.maximum(deviation, 1e-12 * (1 + np.abs(scores)))
        tau = float(kendalltau(mean, scores).statistic) if np.ptp(mean) and np.ptp(scores) else 0.0
        return cls(
            gp=GenomeGP.fit(genomes, scores, num_choices=num_choices),
            stretch=max(1.0, float(np.sqrt(np.mean(misses**2)))),
            tau=tau,
        )

    def predict(self, genomes: Genomes) -> tuple[FloatArray, FloatArray]:
        """The score to expect of genomes (n, layers) and the standard deviation of a new score around it, (n,) each."""
        mean, clean = self.gp.predict(genomes)
        return mean, self.stretch * np.hypot(clean, self.gp.noise[0])

    def tables(self) -> Tables:
        """The predicted mean as tables of layers and pairs of layers, for solvers."""
        return self.gp.tables()

    def layers(self) -> tuple[FloatArray, FloatArray]:
        """What each choice is worth in each layer of an average architecture, and its deviation, (layers, choices)."""
        mean, deviation = self.gp.layers()
        return mean, self.stretch * deviation
