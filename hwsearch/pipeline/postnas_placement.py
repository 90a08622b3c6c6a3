"""The steps of PostNAS that a supernet answers: training it, layer importance, full attention and windows placed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.models.checkpoint import Checkpoint
from hwsearch.pipeline.postnas_plan import Plan
from hwsearch.pipeline.trials import score_content
from hwsearch.search.beam import BeamResult, beam_search
from hwsearch.search.problem import Objective, Problem
from hwsearch.searchspace.space import SearchSpace
from hwsearch.surrogate.layer_scores import LayerScores, layer_scores, linear_choice
from hwsearch.surrogate.scoring import Scorer
from hwsearch.surrogate.supernet_folder import SupernetFolder
from hwsearch.surrogate.training import Progress

__all__ = ["Placement", "grown", "rule_placements", "unbeaten"]

Genome = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """source: the folder of the supernet, which `supernet` makes. device: of PyTorch, where it trains and is scored."""

    plan: Plan
    checkpoint: Checkpoint
    space: SearchSpace
    source: SupernetFolder
    device: str

    def supernet(
        self, *, on_step: Callable[[Progress], None] | None, stop: Callable[[], bool] | None
    ) -> Mapping[str, Any]:
        """Make and train the supernet; what its last step said."""
        self.source.create(
            checkpoint=self.checkpoint,
            space=self.space,
            sources=self.plan.sources,
            tasks=self.plan.tasks,
            settings=self.plan.supernet,
        )
        trained = self.source.train(device=self.device, on_step=on_step, stop=stop)
        last = trained.history[-1] if trained.history else {}
        return {"tokens": trained.tokens, "last_step": dict(last)}

    def layer_scores(self) -> LayerScores:
        """What full attention in each layer is worth under the supernet; from the scores kept where there are some."""
        scorer = self._scorer()
        return layer_scores(scorer.supernet, scorer, linear=self.linear)

    def importance(self, *, csv: Path) -> Mapping[str, Any]:
        """The scores of both sweeps over layers, also as a file for `hwsearch search --quality`."""
        found = self.layer_scores()
        csv.write_text(found.csv(), encoding="utf-8")
        return {
            "teacher": score_content(found.teacher),
            "linear": score_content(found.linear),
            "kept": [score_content(score) for score in found.kept],
            "replaced": [score_content(score) for score in found.replaced],
        }

    def full(self) -> Mapping[str, Any]:
        """The layers that keep full attention, all others linear."""
        start = np.full(self.space.num_layers, self.linear)
        metric = self.plan.objective
        found = grown(
            start, kind="full_attention", count=self.plan.full, metric=metric, width=self.plan.width,
            scorer=self._scorer(), space=self.space,
        )  # fmt: skip
        return _content(found, metric)

    def windows(self, genome: Genome) -> Mapping[str, Any]:
        """The layers that get sliding window attention, full attention (layers,) kept where it is.

        Beside it what uniform, first and last full-attention layers come to, with windows searched for in the same way.
        """
        if not self.plan.windows:
            return {"genome": genome.tolist(), "metric": None, "evaluations": 0, "path": [], "compared": {}}
        metric, scorer = self.plan.window_objective, self._scorer()

        def searched(start: Genome) -> BeamResult:
            return grown(
                start, kind="sliding_window_attention", count=self.plan.windows, metric=metric,
                width=self.plan.width, scorer=scorer, space=self.space,
            )  # fmt: skip

        found = searched(genome)
        placements = {"searched": list(found.path[-1][0])}
        for name, layers in rule_placements(self.space.num_layers, self.plan.full).items():
            start = np.full(self.space.num_layers, self.linear)
            start[layers] = self.space.kinds.index("full_attention")
            placements[name] = list(searched(start).path[-1][0])
        chosen = placements["searched"]
        if self.plan.guarded:
            rules = [placement for name, placement in placements.items() if name != "searched"]
            chosen = placements["guarded"] = unbeaten(found, np.array(rules), scorer=scorer)
        scores = scorer.scores(np.array(list(placements.values())))
        compared = {
            name: {"genome": placement, "value": score.value(metric), "score": score_content(score)}
            for (name, placement), score in zip(placements.items(), scores, strict=True)
        }
        value = scores[list(placements.values()).index(chosen)].value(metric)
        return {**_content(found, metric), "genome": chosen, "value": value, "compared": compared}

    @property
    def linear(self) -> int:
        """The choice that stands for linear attention."""
        return linear_choice(self.space)

    def _scorer(self) -> Scorer:
        return self.source.scorer(
            self.source.supernet(device=self.device), items=self.plan.items, text_rows=self.plan.text_rows
        )


def grown(
    genome: Genome,
    *,
    kind: str,
    count: int,
    metric: str,
    width: int,
    scorer: Scorer,
    space: SearchSpace,
) -> BeamResult:
    """Beam search for the `count` linear layers of a genome (layers,) that get mixers of a kind; the others stay.

    metric: of `Score.value` under the scorer's supernet.
    """
    fixed = genome != linear_choice(space)
    mask = space.allowed_mask.copy()
    mask[fixed] = False
    mask[np.flatnonzero(fixed), genome[fixed]] = True
    inside = space.only(mask)

    def cost(genomes: Genome) -> NDArray[np.float64]:
        return scorer.objective(genomes, metric=metric)

    problem = Problem(inside, objectives=(Objective(metric, cost=cost, tier="expensive"),))
    return beam_search(problem, start=genome, choices=[space.kinds.index(kind)], steps=count, width=width)


def rule_placements(layers: int, count: int) -> dict[str, list[int]]:
    """Where rules of thumb put `count` full-attention layers: spread evenly, the first, the last."""
    return {
        "uniform": [round((i + 0.5) * layers / count - 0.5) for i in range(count)],
        "first": list(range(count)),
        "last": list(range(layers - count, layers)),
    }


def unbeaten(found: BeamResult, rivals: Genome, *, scorer: Scorer) -> list[int]:
    """Of the placements that a search ended with, the one that falls least short of the rivals (n, layers) on any task.

    Falling short is measured in accuracy under the scorer's supernet, against the best rival on each task; placements
    that do so equally, as those that never do, are told apart by what was searched for. A mean over tasks buys one
    task with another; this keeps it from paying with a task that a rule of thumb would have kept.
    """
    start, end = (np.array(found.path[at][0]) for at in (0, -1))
    ended = (found.genomes != start).sum(axis=1) == (end != start).sum()
    genomes, costs = found.genomes[ended], found.costs[ended, 0]
    own, best = _accuracies(scorer, genomes), _accuracies(scorer, rivals).max(axis=0)
    short = np.maximum(best - own, 0).max(axis=1, initial=0)
    chosen: list[int] = genomes[np.lexsort((costs, short))[0]].tolist()
    return chosen


def _accuracies(scorer: Scorer, genomes: Genome) -> NDArray[np.float64]:
    """(n, tasks)"""
    scores = scorer.scores(genomes)
    return np.array([[task.accuracy for task in s.tasks.values()] for s in scores]).reshape(len(scores), -1)


def _content(found: BeamResult, metric: str) -> Mapping[str, Any]:
    genome, value = found.path[-1]
    return {
        "genome": list(genome),
        "metric": metric,
        "value": value,
        "evaluations": found.evaluations,
        "path": [[list(g), v] for g, v in found.path],
        "best": [
            [g, c] for g, c in zip(found.genomes[:10].tolist(), found.costs[:10, 0].tolist(), strict=True)
        ],
    }
