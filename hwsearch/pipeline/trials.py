"""Candidates of the pipeline trained alone: an architecture as a supernet of one path, from the checkpoint on.

Blocks and shapes that are to be compared must start alike, so every candidate starts from the conversion of the
teacher's attention, is aligned to it locally (stage A) and then trained end to end (stage B), as surrogate/candidate.py
trains. A trial depends on its arguments alone; a fidelity below 1 is the beginning of the same training, which a higher
one goes on from.
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
from hwsearch.surrogate.candidate import CandidateTraining
from hwsearch.surrogate.scoring import Score
from hwsearch.surrogate.space_json import space_from_content
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.supernet_folder import SupernetFolder, tokenizer_of
from hwsearch.surrogate.tasks import EncodedTasks
from hwsearch.surrogate.training import Trained

__all__ = ["GridLoss", "Trials", "grid_name", "judges", "score_content", "trial"]


@dataclass(frozen=True)
class Trials:
    """How candidates are trained and compared. Plain values, for it goes to worker processes.

    folder: where states are kept. metric: what candidates are compared by.
    """

    training: CandidateTraining
    folder: Path
    metric: str

    def trained(
        self, architecture: Architecture, *, name: str, share: float = 1.0
    ) -> tuple[Supernet, Trained]:
        """The candidate after a share of its steps, and what they did."""
        training = self.training
        recipe = training.recipe
        path = training.source.untrained(
            device=training.device, space=path_space(architecture), seed=recipe.seed
        )
        until = round(share * (recipe.a.steps + recipe.b.steps))
        return path, training.train(path, folder=self.folder / name, until=until)


def trial(trials: Trials, architecture: str, name: str, share: float) -> dict[str, Any]:
    """Train and score one candidate, given as JSON; what a worker process is asked to do."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # several workers share a terminal
    path, done = trials.trained(Architecture.from_json(architecture, source=name), name=name, share=share)
    score = trials.training.score(path)
    return {"value": score.cost(trials.metric), "score": score_content(score), "tokens": done.tokens}


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
        name = grid_name(genome)
        path, _ = self.trials.trained(_space(self.space).decode(genome, name=name), name=name, share=fidelity)
        return self.trials.training.score(path).cost(self.trials.metric)


@lru_cache(maxsize=4)
def _space(content: str) -> Any:
    return space_from_content(json.loads(content))
