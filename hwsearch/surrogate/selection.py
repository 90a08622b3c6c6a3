"""Rules that pick the layers to keep softmax attention in, from a sweep that replaces one layer at a time.

- `recall_drop`: the mean drop on recall tasks; what importance under a retrieval objective amounts to in PostNAS
  (arXiv 2508.15884) where nothing is trained after the swap.
- `recall_per_commonsense`: recall drop over commonsense drop, both measured from the best replaced layer and the ratio
  cut at 50, as HALO's published code has it (arXiv 2601.22156): a layer that everything depends on is no retrieval
  layer.
- `recall_signal`: ours. Each recall task's drop in units of its sampling error, averaged: tasks count by what they can
  tell, not by how far their scores happen to swing.

`replicas` draws what the sweep might have shown with other samples of items, so that any rule's noise can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hwsearch.surrogate.importance import LayerSweep

__all__ = [
    "COMMONSENSE",
    "RECALL",
    "RULES",
    "Rule",
    "at_depths",
    "overlap",
    "recall_drop",
    "recall_per_commonsense",
    "recall_signal",
    "replicas",
]

FloatArray = NDArray[np.float64]
Rule = Callable[[LayerSweep], FloatArray]
"""From a sweep to the importance of its layers, (layers,)."""

RECALL = ("fda", "swde", "ruler_qa_squad")
COMMONSENSE = ("arc_challenge", "arc_easy", "hellaswag")

_CUT = 50.0
_NOTHING = 1e-10


def _mean(sweep: LayerSweep, tasks: tuple[str, ...]) -> FloatArray:
    mean: FloatArray = sweep.only([task for task in tasks if task in sweep.tasks]).drops.mean(axis=1)
    return mean


def recall_drop(sweep: LayerSweep) -> FloatArray:
    """Mean drop on the recall tasks, points."""
    return _mean(sweep, RECALL)


def recall_per_commonsense(sweep: LayerSweep) -> FloatArray:
    """Recall drop over commonsense drop, each from the layer that loses least."""
    recall, commonsense = _mean(sweep, RECALL), _mean(sweep, COMMONSENSE)
    ratio = (recall - recall.min()) / (commonsense - commonsense.min() + _NOTHING)
    cut: FloatArray = np.minimum(_CUT, ratio)
    return cut


def recall_signal(sweep: LayerSweep) -> FloatArray:
    """Mean over the recall tasks of the drop in standard errors."""
    recall = sweep.only([task for task in RECALL if task in sweep.tasks])
    signal: FloatArray = (recall.drops / recall.layer_error).mean(axis=1)
    return signal


RULES: Mapping[str, Rule] = {
    "recall drop": recall_drop,
    "recall drop per commonsense drop": recall_per_commonsense,
    "recall drop in standard errors": recall_signal,
}


def replicas(sweep: LayerSweep, count: int, *, seed: int) -> list[LayerSweep]:
    """What the sweep might have shown with other items: `count` parametric bootstrap draws.

    The drops as measured spread more than the true ones, by the sampling error. So the truth that is drawn around is
    the measured drops, shrunk towards their mean until their variance is what is left without that error.
    """
    rng = np.random.default_rng(seed)
    centre, spread = sweep.drops.mean(axis=0), sweep.drops.var(axis=0)
    kept = np.sqrt(np.maximum(1 - (sweep.layer_error**2).mean(axis=0) / np.maximum(spread, _NOTHING), 0.0))
    truth = centre + kept * (sweep.drops - centre)
    return [
        replace(
            sweep,
            drops=truth
            + sweep.layer_error * rng.standard_normal(truth.shape)
            + sweep.base_error * rng.standard_normal(len(centre)),
        )
        for _ in range(count)
    ]


def overlap(one: FloatArray, other: FloatArray, *, k: int) -> float:
    """The share of the k most important layers (layers,) that two rankings have in common."""
    first, second = (set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (one, other))
    return len(first & second) / k


def at_depths(importance: FloatArray, count: int) -> FloatArray:
    """Importances (layers,) at `count` relative depths, by straight lines between the middles of layers."""
    own = (np.arange(len(importance)) + 0.5) / len(importance)
    found: FloatArray = np.interp((np.arange(count) + 0.5) / count, own, importance)
    return found
