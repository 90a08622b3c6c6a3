"""Hypervolume against counting cells; the noisy model against what generated its data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.search.hypervolume import hypervolume, reference_point
from hwsearch.search.noisy_model import NoisyModel

SIDE = 6


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 9), m=st.integers(1, 4))
def test_the_volume_is_the_number_of_dominated_cells(seed: int, n: int, m: int) -> None:
    points = np.random.default_rng(seed).integers(0, SIDE + 2, size=(n, m)).astype(float)
    cells = np.array(list(itertools.product(range(SIDE), repeat=m)), dtype=float)
    dominated = sum(any(np.all(point <= cell) for point in points) for cell in cells)
    assert hypervolume(points, np.full(m, float(SIDE))) == pytest.approx(dominated)


def test_the_reference_is_the_worst_of_each_objective() -> None:
    np.testing.assert_array_equal(reference_point(np.array([[1.0, 5.0], [3.0, 2.0]])), [3.0, 5.0])


def _data(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    table = np.random.default_rng(9).normal(size=(10, 4))
    genomes = rng.integers(0, 4, size=(n, 10))
    return genomes, table[np.arange(10), genomes].sum(axis=1)


def test_the_model_learns_the_cost_and_the_noise_of_each_fidelity() -> None:
    rng = np.random.default_rng(0)
    genomes, values = _data(rng, 300)
    fidelity = np.arange(300) % 2
    noise = np.where(fidelity == 0, 1.0, 0.1)
    model = NoisyModel.fit(genomes, values + noise * rng.normal(size=300), fidelity=fidelity)
    learnt = np.sqrt(model.variances[2:]) * model.scale
    assert learnt[0] == pytest.approx(1.0, rel=0.25)
    assert learnt[1] < 0.35
    asked, truth = _data(rng, 400)
    mean, deviation = model.predict(asked)
    assert np.corrcoef(mean, truth)[0, 1] > 0.98
    # Deviations mean what they say: about two thirds of the truth within one of them.
    assert 0.55 < (np.abs(mean - truth) <= deviation).mean() < 0.95


def test_what_was_never_seen_is_more_uncertain() -> None:
    rng = np.random.default_rng(1)
    genomes, values = _data(rng, 120)
    genomes = np.minimum(genomes, 2)
    model = NoisyModel.fit(genomes, values, fidelity=np.zeros(120, dtype=np.int64))
    _, known = model.predict(genomes)
    _, unknown = model.predict(np.full((5, 10), 3))
    assert unknown.min() > 2 * known.max()
    mean, deviation = model.tables(4)
    assert (deviation[:, 3] > deviation[:, :3].max(axis=1)).all()
    assert np.corrcoef(mean[:, 0] - mean[:, 1], _table_difference())[0, 1] > 0.8


def _table_difference() -> np.ndarray:
    table = np.random.default_rng(9).normal(size=(10, 4))
    return table[:, 0] - table[:, 1]
