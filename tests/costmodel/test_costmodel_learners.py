"""The numpy learners and the pieces around them, each against what it should do on its own."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hwsearch.costmodel.gp import GP, GPRecipe, fit_gp
from hwsearch.costmodel.intervals import fit_spread
from hwsearch.costmodel.neighbours import Surroundings, fit_neighbours
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


@pytest.mark.parametrize("rows", [5, 40, 700])
def test_a_tree_asks_what_gains_most_over_all_of_its_leaves(rows: int) -> None:
    rng = np.random.default_rng(rows)
    x = np.round(rng.normal(size=(rows, 4)), 1).astype(np.float32)
    target = np.sin(2 * x[:, 0].astype(float)) + np.abs(x[:, 1]) + 0.1 * rng.normal(size=rows)
    recipe = TreesRecipe(trees=1, depth=6, rows=1.0, features=1.0, clip_quantile=1.0)
    trees = fit_trees(x, target, recipe=recipe, seed=0)

    def gain(leaf_of: NDArray[np.int64]) -> float:
        total, count = np.bincount(leaf_of, weights=target), np.bincount(leaf_of)
        return float((total**2 / (count + recipe.smoothing)).sum())

    leaf_of = np.zeros(rows, np.int64)
    for feature, threshold in zip(trees.feature[0], trees.threshold[0], strict=True):
        found = gain(2 * leaf_of + (x[:, feature] > threshold))
        best = max(
            gain(2 * leaf_of + (x[:, f] > value)) for f in range(4) for value in np.unique(x[:, f])[:-1]
        )
        assert found == pytest.approx(best, rel=1e-5)
        leaf_of = 2 * leaf_of + (x[:, feature] > threshold)
    expected = [recipe.rate * target[leaf_of == one].sum() / ((leaf_of == one).sum() + 1) for one in leaf_of]
    np.testing.assert_allclose(trees.predict(x), expected, rtol=2e-3, atol=1e-6)


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
    residual, octaves = Surroundings.of(known, left).near(np.array([[4, 4], [2, 4], [7, 7]]))
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
    residual, _ = Surroundings.of(known, left).near(asked)
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


def _grid(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    dims = np.array([(a, b) for a in 2 ** np.arange(28) for b in 2 ** np.arange(28)], dtype=np.int64)
    return rng.permutation(dims), rng.normal(size=(len(dims), 1)).astype(np.float32)


def test_neighbours_carry_over_what_no_feature_tells() -> None:
    rng = np.random.default_rng(0)
    dims, features = _grid(rng)
    jump = np.where((np.log2(dims[:, 0]) // 7 + np.log2(dims[:, 1]) // 7) % 2 == 0, 0.1, -0.1)
    target = jump + rng.normal(0, 0.01, len(dims))
    fold = np.arange(600) % 3
    nothing = np.zeros(600)
    known, left, support = fit_neighbours(
        dims[:600], features[:600], target[:600], nothing, fold=fold, seed=0
    )
    correction, _ = known.around(dims[600:], features[600:], np.zeros(184))
    after = np.abs(target[600:] - correction).mean()
    assert after < 0.04
    assert np.abs(left).mean() == pytest.approx(after, rel=0.3)
    assert support.shape == (600, 2)
    far = np.array([[3 * 2**44, 5 * 2**44]])
    assert known.around(far, features[:1], np.zeros(1))[0].tolist() == [0]


def test_neighbours_that_only_repeat_noise_are_not_asked() -> None:
    rng = np.random.default_rng(1)
    dims, features = _grid(rng)
    noise = rng.normal(0, 0.05, len(dims))
    known, left, _ = fit_neighbours(
        dims, features, noise, np.zeros(len(dims)), fold=np.arange(len(dims)) % 3, seed=0
    )
    assert (known.around(dims, features, np.zeros(len(dims)))[0] == 0).all()
    np.testing.assert_array_equal(left, noise)


def test_many_neighbours_teach_the_median_where_the_rest_has_a_tail_on_one_side() -> None:
    rng = np.random.default_rng(2)
    dims = np.array([(a, b) for a in 2 ** np.arange(40) for b in 2 ** np.arange(40)], dtype=np.int64)
    dims, features = rng.permutation(dims), rng.normal(size=(1600, 1)).astype(np.float32)
    steps = 0.1 * ((np.log2(dims[:, 0]) // 5 + np.log2(dims[:, 1]) // 5) % 2)
    tail = np.where(rng.uniform(size=1600) < 0.2, rng.exponential(0.2, 1600), 0.0)
    target = steps + tail + rng.normal(0, 0.01, 1600)
    known, left, _ = fit_neighbours(
        dims[:1200], features[:1200], target[:1200], np.zeros(1200), fold=np.arange(1200) % 3, seed=0
    )
    correction, _ = known.around(dims[1200:], features[1200:], np.zeros(400))
    assert abs(np.median(target[1200:] - correction)) < 0.01  # the mean of the tail is 0.04
    assert abs(np.median(left)) < 0.01


def test_spread_covers_ninety_percent_where_noise_differs() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(4000, 2)).astype(np.float32)
    residual = rng.normal(0, 0.01 + 0.05 * (x[:, 0] > 0.5))
    spread = fit_spread(x[:2000], residual[:2000], growth=0.5, alone=1.5, seed=0)
    none = np.zeros(2000)
    width = spread.half_width(x[2000:], none, none, none > 0)
    covered = np.abs(residual[2000:]) <= width
    noisy = x[2000:, 0] > 0.5
    assert 0.87 < covered.mean() < 0.93
    assert 0.84 < covered[noisy].mean() < 0.96
    assert 0.84 < covered[~noisy].mean() < 0.96
    inside, outside, blind, alone = (
        spread.half_width(x[:5], np.full(5, octaves), np.full(5, unknown), np.full(5, lonely))
        for octaves, unknown, lonely in (
            (0.0, 0.0, False),
            (2.0, 0.0, False),
            (2.0, 2.0, False),
            (0.0, 0.0, True),
        )
    )
    np.testing.assert_allclose(alone, 1.5 * inside)
    np.testing.assert_allclose(outside, 2 * inside)
    np.testing.assert_allclose(blind, outside + 0.3)


def test_trees_answer_the_same_by_rows_by_columns_and_one_by_one() -> None:
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    trees = fit_trees(x, np.sign(x[:, 1]) + x[:, 3], recipe=TreesRecipe(trees=12, depth=3), seed=0)
    by_rows = trees.predict(x)
    np.testing.assert_array_equal(by_rows, trees.predict(np.asfortranarray(x)))
    np.testing.assert_array_equal(by_rows, np.concatenate([trees.predict(row[None]) for row in x]))
