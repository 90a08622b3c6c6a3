"""What each layer's full attention is worth under a supernet, in both directions, as the paper's heatmaps show it.

kept: layer i full, all others linear (arXiv 2508.15884, figure 4's heatmaps); what it gains over all linear. replaced:
layer i linear, all others full; what it loses against the teacher. The first asks what a layer can do alone, the second
what the others cannot do without it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import InputError, unknown_name
from hwsearch.searchspace.mixers import SOFTMAX_KINDS
from hwsearch.searchspace.space import SearchSpace
from hwsearch.surrogate.scoring import Score, Scorer
from hwsearch.surrogate.supernet import Supernet

__all__ = ["LayerScores", "layer_scores", "linear_choice"]

Genomes = NDArray[np.int64]

_NOT_LINEAR = (*SOFTMAX_KINDS, "none")
_UNTOUCHED = -1


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """Scores per layer. teacher and linear: of the two ends; kept and replaced: one for each layer."""

    model: str
    mixer: str
    teacher: Score
    linear: Score
    kept: tuple[Score, ...]
    replaced: tuple[Score, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.teacher.tasks)

    def drops(self, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How much worse without the layer's attention, (layers,) each: alone among linear ones, and among full ones.

        In the units of `Score.cost`; above zero where the attention helps.
        """
        kept = np.array([self.linear.cost(metric) - score.cost(metric) for score in self.kept])
        replaced = np.array([score.cost(metric) - self.teacher.cost(metric) for score in self.replaced])
        return kept, replaced

    def csv(self) -> str:
        """The rows model, layer, task, metric, value, stderr that `--quality FILE` of hwsearch search reads.

        Metric acc: the layer replaced, layer -1 being the teacher; acc_kept: it alone kept, layer -1 all linear.
        """
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["model", "layer", "task", "metric", "value", "stderr"])
        sweeps = (("acc", self.teacher, self.replaced), ("acc_kept", self.linear, self.kept))
        for task in self.tasks:
            for metric, untouched, layers in sweeps:
                for layer, score in enumerate((untouched, *layers), start=_UNTOUCHED):
                    found = score.tasks[task]
                    error = f"{found.standard_error:.6g}"
                    rows.writerow([self.model, layer, task, metric, f"{found.accuracy:.6g}", error])
        return out.getvalue()


def linear_choice(space: SearchSpace, kind: str | None = None) -> int:
    """The choice that stands for linear attention: the first of `kind`, or the first linear mixer of the space."""
    linear = [k for k in space.kinds if k not in _NOT_LINEAR]
    if kind is not None and kind not in space.kinds:
        raise unknown_name("mixer of the supernet", kind, dict.fromkeys(space.kinds))
    if kind is None and not linear:
        raise InputError(
            f"the supernet has no linear mixer, only {', '.join(dict.fromkeys(space.kinds))}: say with --linear "
            "which of them replaces full attention"
        )
    return space.kinds.index(kind or linear[0])


def layer_scores(supernet: Supernet, scorer: Scorer, *, linear: int) -> LayerScores:
    """Score both sweeps. A layer that may not take the choice `linear` keeps full attention throughout."""
    space, layers = supernet.space, supernet.num_layers
    full = supernet.teacher_genome
    may = np.array([linear in options for options in space.allowed])
    bottom = np.where(may, linear, full)
    kept: list[Genomes] = []
    replaced: list[Genomes] = []
    for layer in range(layers):
        own = np.arange(layers) == layer
        kept.append(np.where(own, full, bottom))
        replaced.append(np.where(own, bottom, full))
    scores: Sequence[Score] = scorer.scores(np.array([full, bottom, *kept, *replaced]))
    return LayerScores(
        model=space.base.name,
        mixer=space.kinds[linear],
        teacher=scores[0],
        linear=scores[1],
        kept=tuple(scores[2 : 2 + layers]),
        replaced=tuple(scores[2 + layers :]),
    )
