"""Candidates trained alone: an architecture as a supernet of one path, from the checkpoint on, for a given recipe.

Blocks and shapes that are to be compared must start alike, so every candidate starts from the conversion of the
teacher's attention, is aligned to it locally (stage A) and then trained end to end (stage B), with everything but its
mixers frozen. A trial depends on its arguments alone and keeps its state in a folder, so that it may run in any
process, be cut short, and go on; a fidelity below 1 is the beginning of the same training, which a higher one goes on
from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwsearch.pipeline.linear_blocks import path_space
from hwsearch.searchspace.architecture import Architecture
from hwsearch.surrogate.scoring import Score
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.supernet_folder import SupernetFolder, space_from_content, tokenizer_of
from hwsearch.surrogate.tasks import EncodedTasks
from hwsearch.surrogate.training import Recipe, train

__all__ = ["GridLoss", "Trials", "grid_name", "judges", "score_content", "trial"]


@dataclass(frozen=True)
class Trials:
    """How candidates are trained and scored. Its fields are plain values, for it goes to worker processes.

    source: the folder of the supernet, which has checkpoint, text and tasks. folder: where states are kept. recipe: as
    JSON. batch: rows. items: of each task, the first ones. text_rows: of the validation text. metric: what
    candidates are compared by. threads: that a candidate may use.
    """

    source: Path
    folder: Path
    recipe: str
    batch: int
    items: int
    text_rows: int
    metric: str
    threads: int

    def path(self, architecture: Architecture) -> Supernet:
        """The candidate before training."""
        source, recipe = SupernetFolder(self.source), Recipe.of(json.loads(self.recipe))
        return Supernet.of(
            source.checkpoint, path_space(architecture), dtype=_dtype(source.settings.dtype), seed=recipe.seed
        )

    def trained(self, architecture: Architecture, *, name: str, share: float = 1.0) -> tuple[Supernet, int]:
        """The candidate after a share of its steps, and the tokens it saw."""
        torch.set_num_threads(self.threads)
        source, recipe = SupernetFolder(self.source), Recipe.of(json.loads(self.recipe))
        net, corpus = self.path(architecture), source.corpus
        kept = self.folder / name
        kept.mkdir(parents=True, exist_ok=True)
        done = train(
            net,
            lambda number: corpus.batch(number, batch=self.batch, seed=recipe.seed),
            recipe,
            folder=kept,
            until=round(share * (recipe.a.steps + recipe.b.steps)),
        )
        return net, done.tokens

    def scored(self, net: Supernet) -> Score:
        """The score of the only path."""
        genome = np.array([[options[0] for options in net.space.allowed]])
        scorer = SupernetFolder(self.source).scorer(net, items=self.items, text_rows=self.text_rows)
        return scorer.scores(genome)[0]


def trial(trials: Trials, architecture: str, name: str, share: float) -> dict[str, Any]:
    """Train and score one candidate, given as JSON; what a worker process is asked to do."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # several workers share a terminal
    candidate = Architecture.from_json(architecture, source=name)
    net, tokens = trials.trained(candidate, name=name, share=share)
    score = trials.scored(net)
    return {"value": score.cost(trials.metric), "score": score_content(score), "tokens": tokens}


def grid_name(genome: Sequence[int]) -> str:
    """The name of the training of a genome of a grid, whose layers share one shape."""
    return "-".join(["grid", *(str(choice) for choice in sorted(set(genome)))])


def judges(source: SupernetFolder, *, first: int, text_rows: int) -> tuple[EncodedTasks, Tensor]:
    """Items and validation text behind those that candidates are chosen by; where there are no more, the same."""
    tasks = tuple(replace(task, items=task.items[first:] or task.items) for task in source.tasks())
    limit = source.checkpoint.base.max_position_embeddings
    encoded = EncodedTasks.of(tasks, tokenizer_of(source.checkpoint), max_length=limit)
    rows = source.corpus.validation
    text = rows[text_rows : 2 * text_rows] if len(rows) > text_rows else rows
    return encoded, torch.from_numpy(text.astype(np.int64))


def score_content(score: Score) -> dict[str, Any]:
    """A score as JSON values, without the time it took: what a run finds depends on no clock."""
    content = asdict(score)
    del content["seconds"]
    return content


@dataclass(frozen=True)
class GridLoss:
    """The cost of a genome of a grid, for `search.evaluation.Measured`: a metric after training it alone.

    space: as `space_content` gives it, in JSON.
    """

    trials: Trials
    space: str

    def __call__(self, genome: tuple[int, ...], *, fidelity: float, seed: int) -> float:
        space = _space(self.space)
        name = grid_name(genome)
        net, _ = self.trials.trained(space.decode(genome, name=name), name=name, share=fidelity)
        return self.trials.scored(net).cost(self.trials.metric)


@lru_cache(maxsize=4)
def _space(content: str) -> Any:
    return space_from_content(json.loads(content))


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    found: torch.dtype = getattr(torch, name)
    return found
