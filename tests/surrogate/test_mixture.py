"""The mixture helper on scores whose best mixture is known, and on files that hold none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import DataError, InputError
from hwsearch.surrogate.mixture import MixtureRuns, propose_mixture, read_runs

SOURCES = ("web", "books", "code", "noise")
BEST = np.array([0.5, 0.3, 0.2, 0.0])


def _loss(weights: np.ndarray) -> np.ndarray:
    total: np.ndarray = 2.0 + 3.0 * ((weights - BEST) ** 2).sum(axis=1)
    return total


def _runs(n: int, *, noise: float, seed: int = 0) -> MixtureRuns:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(4, 1.0), size=n)
    return MixtureRuns(sources=SOURCES, weights=weights, scores=_loss(weights) + noise * rng.normal(size=n))


@pytest.mark.parametrize("maximise", [False, True])
def test_the_proposal_is_near_the_best_mixture_and_better_than_any_run(maximise: bool) -> None:
    runs = _runs(60, noise=0.02)
    if maximise:
        runs = MixtureRuns(sources=SOURCES, weights=runs.weights, scores=-runs.scores)
    found = propose_mixture(runs, maximise=maximise, seed=0)
    proposed = np.array([found.weights[source] for source in SOURCES])
    assert proposed.sum() == pytest.approx(1.0)
    assert np.abs(proposed - BEST).max() < 0.08
    assert found.form == "pairs"
    assert found.rank_correlation > 0.9
    assert found.error == pytest.approx(0.02, rel=0.5)
    # The runs' best as measured, judged by the truth.
    best_run = np.array([[found.best_run[source] for source in SOURCES]])
    assert _loss(proposed[None])[0] < _loss(best_run)[0]


def test_the_same_seed_gives_the_same_proposal_and_ranges_are_kept() -> None:
    runs = _runs(30, noise=0.05)
    narrow = MixtureRuns(sources=SOURCES, weights=0.5 * runs.weights + 0.125, scores=runs.scores)
    found = propose_mixture(narrow, maximise=False, seed=3)
    assert found == propose_mixture(narrow, maximise=False, seed=3)
    for source, lowest, highest in zip(
        SOURCES, narrow.weights.min(axis=0), narrow.weights.max(axis=0), strict=True
    ):
        assert lowest <= found.weights[source] <= highest


def test_diminishing_returns_are_recognised() -> None:
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.ones(3), size=80)
    scores = 3 - np.sqrt(weights[:, 0]) - 0.5 * np.sqrt(weights[:, 1])
    runs = MixtureRuns(sources=("a", "b", "c"), weights=weights, scores=scores)
    found = propose_mixture(runs, maximise=False, seed=0)
    assert found.form == "root"
    assert found.weights["a"] > found.weights["b"] > found.weights["c"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b,loss\n0.5,x,1\n", "must hold numbers"),
        ("a,b,loss\n0.5,-0.5,1\n", "not negative"),
        ("a,b,loss\n0,0,1\n", "not all 0"),
        ("a,b\n1,1\n", "unknown score column"),
        ("", "unknown score column"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises((DataError, InputError), match=told):
        read_runs(path, score="loss")


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(InputError, match="6 runs over 4 sources"):
        propose_mixture(_runs(6, noise=0.0), maximise=False, seed=0)
