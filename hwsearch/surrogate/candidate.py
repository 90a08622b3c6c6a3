"""A candidate trained by itself and scored: one path, on the data of a supernet, everything but its mixers frozen.

A candidate is a supernet of one path. Where its weights come from is the caller's: from the supernet (proxy.py), or
from the checkpoint, where candidates are compared that no supernet holds together. It is trained end to end by a
recipe, up to a step of it: stopped early it keeps the schedule of the whole length, so it is continued later, not
started again, and candidates that stop at the same step are compared at the same point. Its state is kept in a folder
of its own, so that it may run in any process, be cut short, and go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hwsearch.surrogate.scoring import Score
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.supernet_folder import SupernetFolder
from hwsearch.surrogate.training import Recipe, Trained, train

__all__ = ["CandidateTraining"]


@dataclass(frozen=True, kw_only=True)
class CandidateTraining:
    """How candidates are trained and scored. Plain values, for it goes to worker processes.

    supernet: the folder whose checkpoint, text and tasks serve. checkpoint: where the teacher is now; None: where it
    was. items: of each task, the first ones; None for all. text_rows: of the validation text. threads: of PyTorch for
    one candidate; None leaves them as they are.
    """

    supernet: Path
    recipe: Recipe
    items: int | None = None
    text_rows: int = 16
    device: str = "cpu"
    checkpoint: Path | None = None
    threads: int | None = None

    @property
    def source(self) -> SupernetFolder:
        return SupernetFolder(self.supernet, checkpoint=self.checkpoint)

    def train(self, path: Supernet, *, folder: Path, until: int) -> Trained:
        """Train a supernet of one path in place, up to a step of the recipe, from where its folder says it is."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        folder.mkdir(parents=True, exist_ok=True)
        return train(
            path, self.source.batches(seed=self.recipe.seed), self.recipe, folder=folder, until=until
        )

    def score(self, path: Supernet) -> Score:
        """The score of a supernet of one path."""
        scorer = self.source.scorer(path, items=self.items, text_rows=self.text_rows)
        return scorer.scores(np.array([[options[0] for options in path.space.allowed]]))[0]
