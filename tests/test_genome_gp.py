"""The Gaussian process over genomes against what generated its data, its tables against its predictions."""

from __future__ import annotations

import numpy as np
import pytest

from hwsearch.genome_gp import GenomeGP


def _data(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    table = np.random.default_rng(9).normal(size=(10, 4))
    genomes = rng.integers(0, 4, size=(n, 10))
    return genomes, table[np.arange(10), genomes].sum(axis=1)


def test_the_model_learns_the_cost_and_the_noise_of_each_fidelity() -> None:
    rng = np.random.default_rng(0)
    genomes, values = _data(rng, 300)
    fidelity = np.arange(300) % 2
    noise = np.where(fidelity == 0, 1.0, 0.1)
    model = GenomeGP.fit(genomes, values + noise * rng.normal(size=300), num_choices=4, fidelity=fidelity)
    assert model.noise[0] == pytest.approx(1.0, rel=0.25)
    assert model.noise[1] < 0.35
    asked, truth = _data(rng, 400)
    mean, deviation = model.predict(asked)
    assert np.corrcoef(mean, truth)[0, 1] > 0.98
    # Deviations mean what they say: about two thirds of the truth within one of them.
    assert 0.55 < (np.abs(mean - truth) <= deviation).mean() < 0.95


def test_what_was_never_seen_is_more_uncertain() -> None:
    rng = np.random.default_rng(1)
    genomes, values = _data(rng, 120)
    genomes = np.minimum(genomes, 2)
    model = GenomeGP.fit(genomes, values, num_choices=4)
    _, known = model.predict(genomes)
    _, unknown = model.predict(np.full((5, 10), 3))
    assert unknown.min() > 2 * known.max()
    mean, deviation = model.layers()
    assert (deviation[:, 3] > deviation[:, :3].max(axis=1)).all()
    assert np.corrcoef(mean[:, 0] - mean[:, 1], _table_difference())[0, 1] > 0.8


def _table_difference() -> np.ndarray:
    table = np.random.default_rng(9).normal(size=(10, 4))
    return table[:, 0] - table[:, 1]


def _pairs_and_counts(genomes: np.ndarray) -> np.ndarray:
    """Layers 2 and 7 help only together, and choice 0 with diminishing returns."""
    zero = (genomes == 0).astype(np.float64)
    total: np.ndarray = (
        3.0 * zero[:, 2] * zero[:, 7] + np.sqrt(zero.sum(axis=1)) + zero @ np.linspace(0, 0.5, 10)
    )
    return total


def test_pairs_and_counts_are_learnt_and_the_tables_say_what_the_model_says() -> None:
    rng = np.random.default_rng(2)
    genomes, asked = rng.integers(0, 3, size=(200, 10)), rng.integers(0, 3, size=(300, 10))
    model = GenomeGP.fit(genomes, _pairs_and_counts(genomes), num_choices=3)
    mean, deviation = model.predict(asked)
    truth = _pairs_and_counts(asked)
    assert np.mean((mean - truth) ** 2) < 0.15 * truth.var()
    additive, _ = model.layers()
    assert (
        np.corrcoef(mean, truth)[0, 1] > np.corrcoef(additive[np.arange(10), asked].sum(axis=1), truth)[0, 1]
    )
    assert (deviation > 0).all()
    tables = model.tables()
    first, second = tables.pairs.T
    both = tables.together[np.arange(len(tables.pairs)), asked[:, first], asked[:, second]].sum(axis=1)
    np.testing.assert_allclose(
        tables.constant + tables.table[np.arange(10), asked].sum(axis=1) + both, mean, atol=1e-6
    )
    strongest = tables.pairs[np.abs(tables.together - tables.together.mean(axis=0)).max(axis=(1, 2)).argmax()]
    assert strongest.tolist() == [2, 7]


def test_constant_values_and_two_rows_do_no_harm() -> None:
    flat = GenomeGP.fit(np.zeros((5, 4), dtype=np.int64), np.full(5, 2.0), num_choices=3)
    mean, deviation = flat.predict(np.ones((2, 4), dtype=np.int64))
    assert np.isfinite(mean).all()
    assert np.isfinite(deviation).all()
    two = GenomeGP.fit(np.array([[0, 1], [1, 0]]), np.array([1.0, 3.0]), num_choices=2)
    assert np.argsort(two.predict(np.array([[0, 1], [1, 0]]))[0]).tolist() == [0, 1]
