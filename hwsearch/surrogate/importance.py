"""Layer importance: what replacing one layer's softmax attention costs in accuracy, from a measured sweep.

A sweep replaces the attention of one layer at a time by linear attention and evaluates the model on tasks, without
further training. The drop of a set of layers is predicted as the sum of their single drops. That is a proxy: it
knows nothing of interactions between layers, nor of the training that follows, and the sweep separates softmax
from linear attention only. Other kinds of mixer have no data; they take part only under an assumption that the
user states, as a share of the linear drop.

Shipped sweeps: Qwen3-1.7B and Qwen3-4B, github.com/thunlp/hybrid-linear-attention, arXiv 2601.22156.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import DataError, InputError, plainly, unknown_name

__all__ = ["BUILTIN_SWEEPS", "LINEAR_KINDS", "LayerSweep", "QualityLoss", "linear_shares", "load_sweep"]

FloatArray = NDArray[np.float64]

BUILTIN_SWEEPS = {"qwen3-1.7b-sweep": "Qwen3-1.7B", "qwen3-4b-sweep": "Qwen3-4B"}
LINEAR_KINDS = ("gated_delta_net", "jet_block")  # the sweep's "replaced by linear attention"

_COLUMNS = ("model", "layer", "task", "metric", "value", "stderr")
_UNTOUCHED = -1
_Z90 = 1.6449  # half-width of a 90% interval in standard errors


@dataclass(frozen=True, kw_only=True)
class QualityLoss:
    """Predicted drop of an architecture in accuracy points (percent): mean over tasks, its 90% interval, and each
    task by itself. The interval holds the sweep's sampling noise only, not the error of adding drops up."""

    points: float
    low: float
    high: float
    tasks: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LayerSweep:
    """drops: (layers, tasks) accuracy points lost by replacing that layer. layer_error and base_error, (layers,
    tasks) and (tasks,): standard errors in points of the replaced and of the untouched model's score."""

    model: str
    tasks: tuple[str, ...]
    drops: FloatArray
    layer_error: FloatArray
    base_error: FloatArray

    @property
    def num_layers(self) -> int:
        return len(self.drops)

    def only(self, tasks: Sequence[str]) -> LayerSweep:
        """The same sweep on some of its tasks. Raises InputError for a task that it does not have."""
        for task in tasks:
            if task not in self.tasks:
                raise unknown_name("task", task, self.tasks)
        kept = [self.tasks.index(task) for task in tasks]
        return LayerSweep(
            model=self.model,
            tasks=tuple(tasks),
            drops=self.drops[:, kept],
            layer_error=self.layer_error[:, kept],
            base_error=self.base_error[kept],
        )

    def table(self, shares: Sequence[float] | FloatArray) -> FloatArray:
        """Mean drop over the tasks in points, (layers, choices), for choices that cost `shares` of the linear drop."""
        return np.outer(self.drops.mean(axis=1), np.asarray(shares, dtype=np.float64))

    def loss(self, shares: Sequence[float] | FloatArray) -> QualityLoss:
        """The predicted drop of an architecture whose layers, in order, cost `shares` of the linear drop."""
        share = np.asarray(shares, dtype=np.float64)
        by_task = share @ self.drops
        # The untouched model's score enters every drop, so its error adds up linearly over layers.
        variance = (share**2) @ self.layer_error**2 + share.sum() ** 2 * self.base_error**2
        points = float(by_task.mean())
        margin = _Z90 * float(np.sqrt(variance.sum())) / len(self.tasks)
        return QualityLoss(
            points=points,
            low=points - margin,
            high=points + margin,
            tasks=dict(zip(self.tasks, by_task.tolist(), strict=True)),
        )


def linear_shares(
    kinds: Iterable[str], assumptions: Mapping[str, float]
) -> tuple[dict[str, float], list[str]]:
    """Per kind of mixer its share of the linear drop, and the kinds for which there is neither data nor assumption.

    Raises InputError for an assumption about a kind that is measured, or a negative share.
    """
    measured = {"full_attention": 0.0, **dict.fromkeys(LINEAR_KINDS, 1.0)}
    for kind, share in assumptions.items():
        if kind in measured:
            raise InputError(
                f"--assume {kind}={share:g}: this kind has measured importance; leave the assumption out"
            )
        if not 0 <= share < float("inf"):
            raise InputError(
                f"--assume {kind}={share:g}: the share must be 0 or more, 1 being the linear drop"
            )
    known = {**measured, **assumptions}
    wanted = list(dict.fromkeys(kinds))
    for kind in assumptions:
        if kind not in wanted:
            raise unknown_name("mixer in --assume", kind, [k for k in wanted if k not in measured])
    return {kind: known[kind] for kind in wanted if kind in known}, [
        kind for kind in wanted if kind not in known
    ]


def load_sweep(source: str, *, base: str, num_layers: int) -> LayerSweep:
    """A built-in sweep by name, or a CSV file with the columns model, layer, task, metric, value, stderr.

    A file with several models must have one called `base`. Where a task has several metrics, acc_norm is used.
    Raises InputError for an unknown name, DataError for a file that does not hold a whole sweep of `num_layers`.
    """
    if source in BUILTIN_SWEEPS:
        text = resources.files("hwsearch.surrogate").joinpath("builtin/layer_sweeps.csv").read_text("utf-8")
        model: str | None = BUILTIN_SWEEPS[source]
    else:
        path = Path(source)
        if not path.exists():
            raise unknown_name("quality source (and no such file)", source, BUILTIN_SWEEPS)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path} as a CSV of layer scores: {plainly(error)}") from None
        model = None
    scores = _read(text, source)
    if model is None:
        model = base if base in scores or len(scores) != 1 else next(iter(scores))
    if model not in scores:
        raise DataError(f"{source} has no sweep of {base}; it has {', '.join(sorted(scores)) or 'no rows'}")
    sweep = _sweep(model, scores[model], source)
    if sweep.num_layers != num_layers:
        raise InputError(
            f"{source} was measured on {sweep.model} with {sweep.num_layers} layers; {base} has {num_layers}: "
            "give a sweep of the base model"
        )
    return sweep


_Scores = dict[
    tuple[str, str], dict[int, tuple[float, float | None]]
]  # (task, metric) -> layer -> value, stderr


def _read(text: str, source: str) -> dict[str, _Scores]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rows = csv.DictReader(lines)
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise DataError(f"{source}: column {missing[0]!r} is missing; expected {', '.join(_COLUMNS)}")
    models: dict[str, _Scores] = defaultdict(lambda: defaultdict(dict))
    for number, row in enumerate(rows, start=1):
        try:
            value = float(row["value"])
            error = float(row["stderr"]) if row["stderr"] else None
            layer = int(row["layer"])
        except (TypeError, ValueError):
            raise DataError(f"{source}: row {number} is not numeric where it must be: {dict(row)}") from None
        if not 0 <= value <= 1 or (error is not None and not 0 <= error <= 1):
            raise DataError(
                f"{source}: row {number}: value and stderr must lie in 0..1, got {value:g} and {error}"
            )
        layers = models[row["model"]][row["task"], row["metric"]]
        if layer in layers:
            raise DataError(f"{source}: row {number} repeats layer {layer} of {row['model']}, {row['task']}")
        layers[layer] = (value, error)
    return models


def _sweep(model: str, scores: _Scores, source: str) -> LayerSweep:
    metrics: dict[str, str] = {}
    for task, metric in scores:
        if task not in metrics or metric == "acc_norm":
            metrics[task] = metric
    layers = sorted({layer for values in scores.values() for layer in values} - {_UNTOUCHED})
    drops, layer_error, base_error = [], [], []
    for task, metric in metrics.items():
        values = scores[task, metric]
        gaps = [layer for layer in (_UNTOUCHED, *range(len(layers))) if layer not in values]
        if gaps or not layers:
            raise DataError(
                f"{source}: {model}, task {task}: no score for layer {gaps[0] if gaps else 0}; a sweep needs every "
                "layer from 0, and -1 for the untouched model"
            )
        drop = np.array([values[_UNTOUCHED][0] - values[layer][0] for layer in layers])
        known = [error for _, error in values.values() if error is not None]
        if len(known) == len(values):
            own = np.array([values[layer][1] for layer in layers], dtype=np.float64)
            untouched = float(values[_UNTOUCHED][1] or 0.0)
        else:
            # No stated error: the robust scatter of the drops over layers, most of which do not matter, bounds it.
            scatter = 1.4826 * float(np.median(np.abs(drop - np.median(drop)))) / np.sqrt(2)
            own, untouched = np.full(len(layers), scatter), scatter
        drops.append(100 * drop)
        layer_error.append(100 * own)
        base_error.append(100 * untouched)
    return LayerSweep(
        model=model,
        tasks=tuple(metrics),
        drops=np.array(drops).T,
        layer_error=np.array(layer_error).T,
        base_error=np.array(base_error),
    )
