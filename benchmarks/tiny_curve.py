"""Accuracy against the number of full-attention layers, searched beside rules: as figure 5 of arXiv 2508.15884.

A point is what tiny_placement.py finds for so many full-attention layers and the curve's number of windows. The paper
places full attention for a task and compares with uniform; here all rules and all tasks are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tiny_placement import RULES, SEARCHED

Curve = Mapping[int, Mapping[str, Mapping[str, Any]]]
"""What `tiny_placement.summary` says, by the number of full-attention layers and by seed."""

_COLORS = {SEARCHED: "C3", "uniform": "C0", "first": "C2", "last": "C1", "random, mean": "0.6"}


def show(curve: Curve) -> None:
    """What the searched placement has more than uniform, in points; each the seeds' values."""
    metrics = _metrics(curve)
    print(f"\n| full-attention layers | searched minus uniform: {' | '.join(metrics)} | seeds |")
    print("|---|" + "---|" * (len(metrics) + 1))
    for full, seeds in curve.items():
        gaps = [
            ", ".join(f"{_value(s, SEARCHED, m) - _value(s, 'uniform', m):+.0f}" for s in seeds.values())
            for m in metrics.values()
        ]
        names = ", ".join(name.removeprefix("seed") for name in seeds)
        print(f"| {full} | {' | '.join(gaps)} | {names} |")


def plot(curve: Curve, path: Path) -> None:
    """A panel for each task and one for the mean; a dot for each seed, lines through their means."""
    from matplotlib.figure import Figure

    metrics = _metrics(curve)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True).flat
    for axes, (title, metric) in zip(panels, metrics.items(), strict=True):
        for name in (*reversed(RULES), SEARCHED):
            values = {
                full: [_value(seed, name, metric) for seed in seeds.values()] for full, seeds in curve.items()
            }
            label = "searched" if name == SEARCHED else name
            means = [float(np.mean(of_seeds)) for of_seeds in values.values()]
            axes.plot(list(values), means, "-", color=_COLORS[name], label=label, clip_on=False)
            for full, of_seeds in values.items():
                axes.plot(
                    [full] * len(of_seeds), of_seeds, "o", color=_COLORS[name], markersize=4, clip_on=False
                )
        axes.set_title(title, fontsize=10)
        axes.set_xticks(list(curve))
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", reverse=True, frameon=False)
    figure.supxlabel("layers with full attention, of 8", fontsize=10)
    figure.supylabel("accuracy after equal training, %", fontsize=10)
    figure.savefig(path, dpi=150)


def _metrics(curve: Curve) -> dict[str, str]:
    """The metrics that are shown, by the panel's title."""
    scores = next(iter(next(iter(curve.values())).values()))["scores"][SEARCHED]
    tasks = [m.removesuffix(".error") for m in scores if m.endswith(".error")]
    return {task: f"{task}.accuracy" for task in tasks} | {"mean": "mean_accuracy"}


def _value(seed: Mapping[str, Any], name: str, metric: str) -> float:
    return 100 * float(seed["scores"][name][metric])
