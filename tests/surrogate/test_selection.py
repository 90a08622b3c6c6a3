"""Selection rules on sweeps whose important layers are known, and the noise of picks."""

from __future__ import annotations

import numpy as np
import pytest

from hwsearch.surrogate.importance import LayerSweep, load_sweep
from hwsearch.surrogate.selection import (
    COMMONSENSE,
    RECALL,
    RULES,
    at_depths,
    overlap,
    recall_drop,
    recall_per_commonsense,
    recall_signal,
    replicas,
)

LAYERS = 20


def _sweep(*, error: float = 0.5) -> LayerSweep:
    """Layers 3 and 11 hold recall, layer 0 everything."""
    drops = np.zeros((LAYERS, 6))
    drops[[3, 11], :3] = 8.0
    drops[0] = 9.0
    drops[:, 3:] += np.linspace(0.1, 0.2, LAYERS)[:, None]
    return LayerSweep(
        model="made up",
        tasks=(*RECALL, *COMMONSENSE),
        drops=drops,
        layer_error=np.full((LAYERS, 6), error),
        base_error=np.full(6, error),
    )


def test_the_rules_rank_as_they_say() -> None:
    sweep = _sweep()
    assert set(np.argsort(-recall_drop(sweep))[:3]) == {0, 3, 11}
    assert set(np.argsort(-recall_per_commonsense(sweep))[:2]) == {3, 11}
    np.testing.assert_allclose(recall_signal(sweep), recall_drop(sweep) / 0.5)
    assert recall_per_commonsense(sweep).max() <= 50


def test_a_noisy_task_counts_less_in_standard_errors() -> None:
    sweep = _sweep()
    drops, error = sweep.drops.copy(), sweep.layer_error.copy()
    drops[7, RECALL.index("ruler_qa_squad")] = 60.0
    error[:, RECALL.index("ruler_qa_squad")] = 20.0
    noisy = LayerSweep(
        model="", tasks=sweep.tasks, drops=drops, layer_error=error, base_error=sweep.base_error
    )
    assert np.argmax(recall_drop(noisy)) == 7
    assert np.argmax(recall_signal(noisy)) != 7


def test_draws_spread_by_the_sampling_error_around_a_shrunk_truth() -> None:
    sweep = load_sweep("qwen3-1.7b-sweep", base="Qwen3-1.7B", num_layers=28)
    drawn = np.array([again.drops for again in replicas(sweep, 400, seed=0)])
    # Around the truth by layer, with the untouched model's error common to all layers of a task.
    by_layer = np.sqrt((drawn - drawn.mean(axis=0)).var(axis=0).mean(axis=0))
    np.testing.assert_allclose(by_layer, np.hypot(sweep.layer_error.mean(axis=0), sweep.base_error), rtol=0.1)
    # A draw varies over layers as much as the measured sweep does, not more.
    np.testing.assert_allclose(drawn.var(axis=1).mean(axis=0), sweep.drops.var(axis=0), rtol=0.1)


def test_picks_are_stable_without_noise_and_random_without_signal() -> None:
    rng = np.random.default_rng(0)
    quiet = replicas(_sweep(error=0.01), 2, seed=0)
    assert overlap(recall_drop(quiet[0]), recall_drop(quiet[1]), k=3) == 1
    shares = [overlap(rng.random(LAYERS), rng.random(LAYERS), k=5) for _ in range(300)]
    assert np.mean(shares) == pytest.approx(5 / LAYERS, abs=0.05)


def test_depths_keep_a_straight_line_and_the_order_of_layers() -> None:
    line = np.arange(36, dtype=np.float64)
    found = at_depths(line, 28)
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(found[[0, -1]], [36 / 56 - 0.5, 36 - 36 / 56 - 0.5])
    np.testing.assert_array_equal(at_depths(line, 36), line)


def test_every_rule_scores_the_shipped_sweeps() -> None:
    for name, base, layers in (("qwen3-1.7b-sweep", "Qwen3-1.7B", 28), ("qwen3-4b-sweep", "Qwen3-4B", 36)):
        sweep = load_sweep(name, base=base, num_layers=layers)
        for rule in RULES.values():
            assert np.isfinite(rule(sweep)).all()
            assert rule(sweep).shape == (layers,)
