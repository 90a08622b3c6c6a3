"""Hypervolume against counting cells."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.search.hypervolume import hypervolume, reference_point

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
