"""PostNAS from a checkpoint to an architecture with weights, in steps that survive a kill (arXiv 2508.15884).

    supernet     one linear mixer and sliding window attention beside the attention of every layer, trained
    importance   every layer's worth to every task: it alone with full attention, and it alone without
    placement    beam search for the layers that keep full attention, under a task objective
    windows      beam search for the layers that get sliding window attention, full attention kept
    blocks       every linear block trained for a short while in that placement; the best within the budgets
    grid         the block's shapes of equal cache by the search engine: budgets kept, the worst dropped after a quarter
                 of the training
    export       the best within the budgets: architecture JSON, model folder, scores on items that chose nothing

What the paper leaves open and what is chosen here stands in docs/postnas.md. Before anything is trained, it is checked
that the budgets can be met at all: latency and memory depend on how many layers have what, not on which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.compose import check_dtype
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InfeasibleError, InputError
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.pipeline.blocks import BlockTable
from hwsearch.pipeline.postnas_candidates import Candidates
from hwsearch.pipeline.postnas_placement import Placement
from hwsearch.pipeline.postnas_plan import Plan
from hwsearch.pipeline.pricing import Pricing
from hwsearch.pipeline.steps import Steps
from hwsearch.search.executors import Executor
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.workload import Workload
from hwsearch.surrogate.layer_scores import LayerScores
from hwsearch.surrogate.supernet_folder import SupernetFolder
from hwsearch.surrogate.training import Progress

__all__ = ["Postnas"]

Genome = NDArray[np.int64]
Tell = Callable[[str], None]


class Postnas:
    """One run.

    blocks: measured whole on the device, which predict latency where they cover it. executor: where candidates are
    trained, with so many threads each. train_device: of PyTorch, where everything is trained and scored. stop: asked
    after each step of the supernet.
    """

    def __init__(
        self,
        run: Path,
        plan: Plan,
        *,
        checkpoint: Checkpoint,
        model: CostModel,
        workload: Workload,
        blocks: BlockTable | None = None,
        executor: Callable[[], Executor],
        threads: int = 1,
        train_device: str = "cpu",
        tell: Tell = lambda _: None,
        on_step: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        self.run = run
        self.plan = plan
        self.checkpoint = checkpoint
        self.model = model
        self.workload = workload
        self.tell = tell
        self.on_step = on_step
        self.stop = stop
        self.space = plan.space(checkpoint)
        source = SupernetFolder(run / "supernet")
        self._placement = Placement(
            plan=plan, checkpoint=checkpoint, space=self.space, source=source, device=train_device
        )
        self._candidates = Candidates(
            run=run,
            plan=plan,
            checkpoint=checkpoint,
            source=source,
            pricing=Pricing(model=model, workload=workload, blocks=blocks, budgets=plan.budgets),
            executor=executor,
            threads=threads,
            device=train_device,
        )

    def go(self) -> dict[str, Any]:
        """Every step that is not done yet; what all of them found, by name.

        Raises InfeasibleError, before anything is trained, where no block or shape can meet the budgets.
        """
        check_dtype(self.model, self.workload)
        if self.plan.full + self.plan.windows > self.space.num_layers:
            raise InputError(
                f"{self.plan.full} full-attention and {self.plan.windows} sliding-window layers do not fit into "
                f"{self.space.num_layers}: ask for fewer"
            )
        self._check_budgets()
        settings = {
            "plan": self.plan.content(),
            "checkpoint": self.checkpoint.folder.name,
            "device": self.model.device.name,
            "runtime": self.model.runtime,
            "workload": str(self.workload),
        }
        steps = Steps.open(self.run, settings=settings)

        def done(name: str, step: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
            self.tell(name)
            return steps.run(name, step)

        place, train = self._placement, self._candidates
        found = {
            "supernet": done("supernet", lambda: place.supernet(on_step=self.on_step, stop=self.stop)),
            "importance": done("importance", lambda: place.importance(csv=self.run / "importance.csv")),
            "placement": done("placement", place.full),
        }
        found["windows"] = done("windows", lambda: place.windows(_genome(found["placement"])))
        placed = self.placed(_genome(found["windows"]), name="placed")
        found["blocks"] = done("blocks", lambda: train.blocks(placed))
        found["grid"] = done("grid", lambda: train.grid(placed, found["blocks"]["best"]))
        best = Architecture.from_content(found["grid"]["architecture"], source="grid")
        found["export"] = done("export", lambda: train.export(best, found["grid"]["best"]))
        return found

    def layer_scores(self) -> LayerScores:
        """What full attention in each layer is worth under the supernet; from the scores kept where there are some."""
        return self._placement.layer_scores()

    def placed(self, genome: Sequence[int] | Genome, *, name: str) -> Architecture:
        """The architecture of a genome of the placement space."""
        return self.space.decode(genome, name=name)

    def _check_budgets(self) -> None:
        """Whether some block or shape meets the budgets with the softmax layers anywhere."""
        full, windows, kinds = self.plan.full, self.plan.windows, self.space.kinds
        choices = [kinds.index("full_attention")] * full
        choices += [kinds.index("sliding_window_attention")] * windows if windows else []
        choices += [self._placement.linear] * (self.space.num_layers - len(choices))
        placed = self.placed(choices, name="placed")
        over = {block: self._candidates.over(placed, block) for block in self.plan.blocks}
        if all(over.values()):
            raise InfeasibleError(
                f"no block with {full} full-attention and {windows} sliding-window layers meets the budgets on "
                f"{self.model.device.name}: "
                + "; ".join(f"{block} {why}" for block, why in over.items())
                + ". Relax a budget or keep fewer such layers"
            )


def _genome(found: Mapping[str, Any]) -> Genome:
    return np.array(found["genome"], dtype=np.int64)
