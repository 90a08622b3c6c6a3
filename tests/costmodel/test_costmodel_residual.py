"""How few rows are shared out between the Gaussian process and the trees."""

from __future__ import annotations

import numpy as np
import pytest

from hwsearch.costmodel.residual import cross_fit, fit_residual


def test_the_share_follows_what_the_target_is_like() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(240, 3)).astype(np.float32)
    smooth = np.sin(x[:, 0]) + 0.3 * x[:, 1]
    jumps = 0.5 * (x[:, 0] > 0.3) * (x[:, 1] > -0.5) - 0.5 * (x[:, 2] > 0.9)
    noise = rng.normal(0, 0.02, 240)
    for kind in ("gemm", "moe"):
        found = cross_fit(x, smooth + noise, kind=kind, folds=3, seed=0)
        assert found.share > 0.99
        assert np.abs(found.predicted - smooth).mean() < 0.1
    # Products weigh the shares, others choose one of a few.
    assert cross_fit(x, jumps + noise, kind="moe", folds=3, seed=0).share in (1.0, 0.75, 0.5, 0.25)
    weighed = cross_fit(x, jumps + noise, kind="gemm", folds=3, seed=0).share
    assert 0 < weighed < 0.95
    assert weighed not in (0.75, 0.5, 0.25)


def test_products_learn_from_few_rows_what_outliers_pull_less() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, size=(300, 3)).astype(np.float32)
    outliers = np.where(rng.uniform(size=300) < 0.12, 0.4, 0.0)
    target = 0.1 * (x[:, 0] > 0) + rng.normal(0, 0.01, 300) + outliers
    error = {
        kind: np.abs(
            fit_residual(x, target, kind=kind, share=0.0, seed=0).predict(x) - 0.1 * (x[:, 0] > 0)
        ).mean()
        for kind in ("gemm", "moe")
    }
    assert error["gemm"] < 0.8 * error["moe"]


def test_a_target_that_nothing_errs_on_has_a_share() -> None:
    x = np.random.default_rng(1).normal(size=(60, 2)).astype(np.float32)
    for kind in ("gemm", "moe"):
        crossed = cross_fit(x, np.zeros(60), kind=kind, folds=3, seed=0)
        assert 0 <= crossed.share <= 1
        assert crossed.predicted == pytest.approx(np.zeros(60))


def test_products_mean_ensembles_of_two_bounds_where_rows_are_few() -> None:
    rng = np.random.default_rng(2)
    few, many = (rng.uniform(-2, 2, size=(rows, 3)).astype(np.float32) for rows in (200, 1000))

    def trees(x: np.ndarray, kind: str) -> int:
        target = np.sin(x[:, 0]) + rng.normal(0, 0.1, len(x))
        return len(fit_residual(x, target, kind=kind, share=0.0, seed=0).trees.leaf)

    assert trees(few, "gemm") == 2 * trees(few, "moe")
    assert trees(many, "gemm") == trees(many, "moe")
    # A mean, not a sum: what both say is said once.
    found = fit_residual(few, np.full(200, 0.3), kind="gemm", share=0.0, seed=0)
    assert np.median(found.predict(few)) == pytest.approx(0.3, abs=0.01)
