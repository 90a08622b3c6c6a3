"""Pareto tools against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.search.pareto import (
    Archive,
    constrained_ranks,
    crowding_distance,
    knee,
    non_dominated,
    non_dominated_ranks,
)
from hwsearch.search.space import FloatArray


def brute_ranks(points: FloatArray) -> list[int]:
    ranks = [-1] * len(points)
    rank = 0
    while -1 in ranks:
        left = [i for i, r in enumerate(ranks) if r == -1]
        front = [
            i
            for i in left
            if not any((points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left)
        ]
        for i in front:
            ranks[i] = rank
        rank += 1
    return ranks


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 40), st.integers(2, 12))
@settings(max_examples=150, deadline=None)
def test_ranks_agree_with_brute_force(seed: int, m: int, n: int, values: int) -> None:
    # Few distinct values: equal coordinates and equal points are where sorting goes wrong.
    points = np.random.default_rng(seed).integers(0, values, size=(n, m)).astype(float)
    expected = brute_ranks(points)
    assert non_dominated_ranks(points).tolist() == expected
    assert non_dominated(points).tolist() == [rank == 0 for rank in expected]


def test_feasible_comes_first_and_the_rest_by_violation() -> None:
    points = np.array([[1.0, 1.0], [0.0, 0.0], [2.0, 2.0], [0.0, 0.0], [0.5, 3.0]])
    violations = np.array([0.0, 0.2, 0.0, 0.1, 0.0])
    assert constrained_ranks(points, violations).tolist() == [0, 3, 1, 2, 0]
    assert constrained_ranks(points, violations + 1).tolist() == [0, 2, 0, 1, 0]


def test_crowding_by_hand() -> None:
    points = np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0], [5.0, 5.0]])
    distance = crowding_distance(points, np.array([0, 0, 0, 1]))
    assert distance[1] == 2.0
    assert np.isinf(distance[[0, 2, 3]]).all()


def test_knee_is_farthest_below_the_line_between_the_ends() -> None:
    points = np.array([[0.0, 100.0], [1.0, 60.0], [2.0, 15.0], [6.0, 5.0], [10.0, 0.0]])
    assert knee(points) == 2
    assert knee(points[:1]) == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_archive_does_not_depend_on_the_order(seed: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    genomes = np.unique(rng.integers(0, 3, size=(60, 4)), axis=0)
    table = rng.integers(0, 4, size=(3**4, m)).astype(float)
    objectives = table[genomes @ (3 ** np.arange(4))]
    archives = []
    for _ in range(2):
        archive = Archive(num_layers=4, num_objectives=m)
        for part in np.array_split(rng.permutation(len(genomes)), 5):
            archive.add(genomes[part], objectives[part])
        archives.append(archive)
    one, other = archives
    np.testing.assert_array_equal(one.genomes, other.genomes)
    np.testing.assert_array_equal(one.objectives, other.objectives)
    front = {tuple(point) for point in objectives[non_dominated(objectives)].tolist()}
    assert {tuple(point) for point in one.objectives.tolist()} == front
    assert len(one) == len(front)
    assert one.objectives.tolist() == sorted(one.objectives.tolist())
