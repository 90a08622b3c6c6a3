"""What decides the result of a PostNAS run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwsearch.models.checkpoint import Checkpoint
from hwsearch.searchspace.budget import BudgetSpec
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.space import CountLimit, SearchSpace
from hwsearch.surrogate.supernet_settings import SupernetSettings
from hwsearch.surrogate.training import Recipe

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides the result.

    sources: text files, or one folder of a packed corpus. full, windows: how many layers get full attention and
    sliding window attention. objective, window_objective: metrics of `Score.value` that place them; metric: the one
    by which blocks and shapes are compared. guarded: whether windows must not fall behind rules of thumb on any task,
    see `postnas_placement.unbeaten`. candidate: how blocks and shapes are trained. items: of each task for
    every choice; the rest of the items judges the result.
    """

    sources: tuple[Path, ...]
    tasks: Path
    full: int
    windows: int
    blocks: tuple[str, ...]
    objective: str
    window_objective: str
    guarded: bool
    metric: str
    width: int
    supernet: SupernetSettings
    candidate: Recipe
    items: int
    text_rows: int
    budgets: tuple[BudgetSpec, ...]
    seed: int

    def content(self) -> dict[str, Any]:
        """As JSON values; files by their names."""
        content = asdict(self)
        content["sources"] = [source.name for source in self.sources]
        content["tasks"] = self.tasks.name
        content["budgets"] = [budget.text for budget in self.budgets]
        return content

    def space(self, checkpoint: Checkpoint) -> SearchSpace:
        """Where full attention and windows may be placed, one linear mixer elsewhere."""
        space = preset_named("postnas-placement", checkpoint.base)
        if not self.windows:
            kept = [i for i, kind in enumerate(space.kinds) if kind != "sliding_window_attention"]
            space = space.restrict(kept)
        else:
            space = space.limit("sliding_window_attention", CountLimit(at_most=self.windows))
        return space.limit("full_attention", CountLimit(at_most=self.full))
