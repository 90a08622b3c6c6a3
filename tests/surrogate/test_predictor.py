"""The accuracy predictor on scores made up of layers, pairs and counts: ranks, calibration, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from hwsearch.errors import InputError
from hwsearch.surrogate.predictor import Predictor

LAYERS, CHOICES = 12, 3


def _truth(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A few layers matter much; two of them more together."""
    rng = np.random.default_rng(seed)
    worth = np.exp(1.2 * rng.normal(size=LAYERS))
    pair = np.triu(rng.normal(size=(LAYERS, LAYERS)) * np.sqrt(np.outer(worth, worth)), 1) / 3
    return worth, pair


def _score(genomes: np.ndarray, truth: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    full = (genomes == 0).astype(np.float64)
    total: np.ndarray = (
        full @ truth[0] + np.einsum("nl,nm,lm->n", full, full, truth[1]) + 0.2 * (genomes == 1).sum(1)
    )
    return total


def _case(seed: int, *, noise: float, n: int = 60) -> tuple[Predictor, np.ndarray, np.ndarray, float]:
    """A predictor from n noisy scores, genomes it has not seen with their true scores, and the noise in their units."""
    rng = np.random.default_rng(100 + seed)
    truth = _truth(seed)
    genomes, asked = rng.integers(0, CHOICES, (n, LAYERS)), rng.integers(0, CHOICES, (200, LAYERS))
    true = _score(asked, truth)
    sd = noise * float(true.std())
    scores = _score(genomes, truth) + sd * rng.normal(size=n)
    return Predictor.fit(genomes, scores, num_choices=CHOICES, seed=0), asked, true, sd


def test_ranks_hold_on_unseen_architectures_and_fall_with_the_noise() -> None:
    taus = {
        noise: np.mean([kendalltau(p.predict(asked)[0], true).statistic for p, asked, true, _ in cases])
        for noise in (0.0, 0.3, 1.0)
        for cases in [[_case(seed, noise=noise) for seed in range(4)]]
    }
    assert taus[0.0] > taus[0.3] > taus[1.0] > 0.2
    assert taus[0.0] > 0.75
    assert taus[0.3] > 0.65


def test_nine_of_ten_new_scores_lie_in_the_ninety_percent_interval() -> None:
    inside = []
    for seed in range(8):
        predictor, asked, true, sd = _case(seed, noise=0.3)
        new = true + sd * np.random.default_rng(seed).normal(size=len(true))
        mean, deviation = predictor.predict(asked)
        inside.append(float((np.abs(mean - new) <= 1.645 * deviation).mean()))
        assert predictor.stretch >= 1
    assert 0.85 < np.mean(inside) < 0.97


def test_cross_validation_foresees_the_rank_correlation() -> None:
    pairs = [(p.tau, kendalltau(p.predict(asked)[0], true).statistic)
             for p, asked, true, _ in (_case(seed, noise=0.1) for seed in range(4))]  # fmt: skip
    foreseen, seen = np.mean(pairs, axis=0)
    assert abs(foreseen - seen) < 0.15


def test_important_layers_stand_out_in_the_layer_table() -> None:
    predictor, _, _, _ = _case(3, noise=0.1)
    mean, deviation = predictor.layers()
    assert mean.shape == deviation.shape == (LAYERS, CHOICES)
    gain = mean[:, 0] - mean[:, 2]
    worth, _ = _truth(3)
    assert np.argmax(gain) == np.argmax(worth)


def test_too_few_or_broken_scores_are_refused() -> None:
    genomes = np.zeros((5, LAYERS), dtype=np.int64)
    with pytest.raises(InputError, match="at least 10"):
        Predictor.fit(genomes, np.zeros(5), num_choices=CHOICES, seed=0)
    with pytest.raises(InputError, match="2 of 12 scores are not finite"):
        Predictor.fit(
            np.zeros((12, LAYERS), dtype=np.int64),
            np.array([np.nan, np.inf, *range(10)]),
            num_choices=3,
            seed=0,
        )
