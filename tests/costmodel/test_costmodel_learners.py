"""The numpy learners and the pieces around them, each against what it should do on its own."""

from __future__ import annotations

import numpy as np
import pytest

from hwsearch.costmodel.gp import GP, GPRecipe, fit_gp
from hwsearch.costmodel.intervals import fit_spread
from hwsearch.costmodel.neighbours import fit_weights, near
from hwsearch.costmodel.trees import Trees, TreesRecipe, fit_trees


def test_trees_agree_with_walking_each_tree() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)).astype(np.float32)
    trees = fit_trees(x, np.sin(2 * x[:, 0]) + (x[:, 1] > 0), recipe=TreesRecipe(trees=20, depth=3), seed=0)
    for row in x[:20]:
        total = 0.0
        for feature, threshold, leaf in zip(trees.feature, trees.threshold, trees.leaf, strict=True):
            place = 0
            for f, t in zip(feature, threshold, strict=True):
                place = 2 * place + int(row[f] > t)
            total += float(leaf[place])
        assert trees.predict(row[None])[0] == pytest.approx(total, abs=1e-5)


def test_trees_learn_a_step_and_ignore_outliers() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(2000, 3)).astype(np.float32)
    truth = (x[:, 0] > 0.5) * (x[:, 2] > 0.3)
    target = truth.astype(float)
    target[rng.choice(2000, 20)] += 50
    trees = fit_trees(x, target, recipe=TreesRecipe(trees=200, depth=4), seed=0)
    assert np.median(np.abs(trees.predict(x) - truth)) < 0.05
    assert np.abs(trees.predict(x) - truth).mean() < 0.2


def test_trees_of_constant_features_or_no_trees_predict_zero() -> None:
    x = np.ones((50, 2), np.float32)
    for recipe in (TreesRecipe(trees=3), TreesRecipe(trees=0)):
        assert (fit_trees(x, np.arange(50.0), recipe=recipe, seed=0).predict(x) == 0).all()


def test_trees_survive_the_file() -> None:
    x = np.random.default_rng(2).normal(size=(300, 3)).astype(np.float32)
    trees = fit_trees(x, x[:, 0].astype(float), recipe=TreesRecipe(trees=10), seed=0)
    np.testing.assert_array_equal(Trees.from_arrays(trees.arrays()).predict(x), trees.predict(x))


def test_gp_interpolates_a_smooth_function_and_stays_in_range_far_away() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(300, 2)).astype(np.float32)
    target = np.sin(x[:, 0]) * np.cos(x[:, 1]) + rng.normal(0, 0.01, 300)
    gp = fit_gp(x, target, recipe=GPRecipe(inducing=150, learn=200), seed=0)
    fresh = rng.uniform(-1.8, 1.8, size=(200, 2)).astype(np.float32)
    truth = np.sin(fresh[:, 0]) * np.cos(fresh[:, 1])
    assert np.abs(gp.predict(fresh) - truth).max() < 0.05
    far = np.array([[1000.0, 1000.0]], np.float32)
    assert abs(float(gp.predict(far)[0])) < np.abs(target).max()
    np.testing.assert_array_equal(GP.from_arrays(gp.arrays()).predict(fresh), gp.predict(fresh))


def test_gp_hyperparameters_find_the_irrelevant_input() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 2)).astype(np.float32)
    gp = fit_gp(x, np.sin(2 * x[:, 0].astype(float)), recipe=GPRecipe(), seed=0)
    assert gp.inverse_length[0] > 3 * gp.inverse_length[1]


def test_near_finds_the_rows_that_differ_in_one_dimension() -> None:
    known = np.array([[1, 4], [2, 4], [8, 4], [2, 16], [3, 5]])
    left = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    residual, octaves = near(known, left, np.array([[4, 4], [2, 4], [7, 7]]))
    # Between 2 and 8 along the first dimension: one octave either way.
    assert residual[0, 0].tolist() == [0.2, 0.3]
    np.testing.assert_allclose(octaves[0, 0], [1, 1])
    # A known row is not its own neighbour.
    assert residual[1].tolist() == [[0.1, 0.3], [0.0, 0.4]]
    assert (octaves[2] == 30).all()


def test_near_agrees_with_a_search_by_hand() -> None:
    rng = np.random.default_rng(0)
    known = np.unique(rng.integers(1, 5, (60, 3)), axis=0)
    left = rng.normal(size=len(known))
    asked = rng.integers(0, 6, (40, 3))
    residual, _ = near(known, left, asked)
    for row, found in zip(asked, residual, strict=True):
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            same = (known[:, others] == row[others]).all(axis=1)
            below = np.flatnonzero(same & (known[:, axis] < row[axis])).tolist()
            nearest = max(below, key=lambda i: known[i, axis]) if below else None
            assert found[axis, 0] == (0.0 if nearest is None else left[nearest])
            above = np.flatnonzero(same & (known[:, axis] > row[axis])).tolist()
            nearest = min(above, key=lambda i: known[i, axis]) if above else None
            assert found[axis, 1] == (0.0 if nearest is None else left[nearest])


def test_weights_shrink_noise_and_keep_signal() -> None:
    rng = np.random.default_rng(0)
    n = 2000
    shared = rng.normal(0, 0.05, n)
    left = np.zeros((n, 2, 2))
    octaves = np.full((n, 2, 2), 30.0)
    left[:, 0] = shared[:, None] + rng.normal(0, 0.01, (n, 2))
    left[:, 1] = rng.normal(0, 0.05, (n, 2))
    octaves[:] = 0.5
    weights = fit_weights(left, octaves, shared)
    after = shared - weights.correction(left, octaves)
    assert np.abs(after).mean() < 0.4 * np.abs(shared).mean()
    assert weights.correction(np.zeros((3, 2, 2)), np.full((3, 2, 2), 30.0)).tolist() == [0, 0, 0]


def test_spread_covers_ninety_percent_where_noise_differs() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(4000, 2)).astype(np.float32)
    residual = rng.normal(0, 0.01 + 0.05 * (x[:, 0] > 0.5))
    spread = fit_spread(x[:2000], residual[:2000], growth=0.5, seed=0)
    none = np.zeros(2000)
    width = spread.half_width(x[2000:], none, none)
    covered = np.abs(residual[2000:]) <= width
    noisy = x[2000:, 0] > 0.5
    assert 0.87 < covered.mean() < 0.93
    assert 0.84 < covered[noisy].mean() < 0.96
    assert 0.84 < covered[~noisy].mean() < 0.96
    inside, outside, blind = (
        spread.half_width(x[:5], np.full(5, octaves), np.full(5, unknown))
        for octaves, unknown in ((0.0, 0.0), (2.0, 0.0), (2.0, 2.0))
    )
    np.testing.assert_allclose(outside, 2 * inside)
    np.testing.assert_allclose(blind, outside + 0.3)
