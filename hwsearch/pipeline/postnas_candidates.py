"""The steps of PostNAS that train candidates alone: blocks compared, shapes compared, the best of them written out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.folder import new_folder
from hwsearch.pipeline.linear_blocks import block_named, grid_of, grid_space, with_block
from hwsearch.pipeline.postnas_plan import Plan
from hwsearch.pipeline.pricing import Pricing
from hwsearch.pipeline.trials import GridLoss, Trials, grid_name, judges, score_content, trial
from hwsearch.search.evaluation import Measured
from hwsearch.search.executors import Executor
from hwsearch.search.fidelity import fidelity_search
from hwsearch.search.problem import Objective
from hwsearch.search.study import Study
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.space import SearchSpace
from hwsearch.surrogate.candidate import CandidateTraining
from hwsearch.surrogate.scoring import Scorer
from hwsearch.surrogate.space_json import space_content
from hwsearch.surrogate.supernet_folder import SupernetFolder

__all__ = ["Candidates"]

_FIDELITIES = (0.25, 1.0)  # shares of a candidate's steps after which the grid is thinned out


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """run: the run directory. source: the folder of the supernet. executor: where candidates are trained, with so many
    threads each; device: of PyTorch, for each of them.
    """

    run: Path
    plan: Plan
    checkpoint: Checkpoint
    source: SupernetFolder
    pricing: Pricing
    executor: Callable[[], Executor]
    threads: int
    device: str

    def blocks(self, placed: Architecture) -> Mapping[str, Any]:
        """A row for each block, in the order asked for; the best by the metric of those that can meet the budgets."""
        candidates = {
            kind: with_block(placed, block_named(kind, placed.base), name=kind) for kind in self.plan.blocks
        }
        with self.executor() as executor:
            running = {
                kind: executor.submit(trial, self._trials, candidate.to_json(), f"block-{kind}", 1.0)
                for kind, candidate in candidates.items()
            }
            rows = [
                {"block": kind, **running[kind].result(), **self._priced(candidate)}
                for kind, candidate in candidates.items()
            ]
        able = [row for row in rows if not self.over(placed, row["block"])]
        best = min(able, key=lambda row: float(row["value"]))
        return {"rows": rows, "best": best["block"]}

    def over(self, placed: Architecture, block: str) -> str:
        """Why no shape of a block meets the budgets; empty where one does."""
        return self.pricing.over(_shapes(placed, block))

    def grid(self, placed: Architecture, block: str) -> Mapping[str, Any]:
        """A row for each shape; the best of those trained to the end."""
        space = _shapes(placed, block)
        loss = GridLoss(self._trials, json.dumps(space_content(space)))
        cost = Measured(loss, fidelities=_FIDELITIES)
        problem = self.pricing.problem(
            space, quality=Objective(self.plan.metric, cost=cost, tier="expensive")
        )
        finalists = -(-space.size // 3)
        folder = self.run / "grid"
        settings = {"space": space_content(space), "recipe": asdict(self.plan.candidate)}
        with (
            Study.open(folder, settings=settings, resume=(folder / "journal.sqlite").exists()) as study,
            self.executor() as executor,
        ):
            found = fidelity_search(
                problem,
                seed=self.plan.seed,
                evaluations=finalists,
                batch=finalists,
                executor=executor,
                study=study,
            )
            known = {share: study.known(share) for share in _FIDELITIES}
        rows = []
        for rank in range(space.size):
            point = np.array(space.paths.unrank(rank))
            values = {share: known[share].get(point.tobytes()) for share in _FIDELITIES}
            architecture = space.decode(point, name=f"{block}-{rank}")
            mixers = (layer.mixer for layer in architecture.layers)
            rows.append(
                {
                    "genome": point.tolist(),
                    "shape": next(mixer.label for mixer in mixers if mixer.kind == block),
                    "values": {str(s): None if v is None else float(v[0]) for s, v in values.items()},
                    **self._priced(architecture),
                }
            )
        best = space.decode(found.genomes[0], name=f"{self.checkpoint.base.name}-postnas")
        return {"rows": rows, "best": found.genomes[0].tolist(), "architecture": best.model_dump(mode="json")}

    def export(self, architecture: Architecture, genome: Sequence[int]) -> Mapping[str, Any]:
        """Architecture and model of the best shape; its scores and the teacher's on the items that chose nothing."""
        net, _ = self._trials.trained(architecture, name=grid_name(genome))
        path = np.array([options[0] for options in net.space.allowed])
        model = self.run / "model"
        if model.exists():
            shutil.rmtree(model)  # of an export that was cut short behind this point
        with new_folder(model) as folder:
            net.model_of(path, name=architecture.name).save_pretrained(folder, max_shard_size="5GB")
            for file in self.checkpoint.extra_files:
                shutil.copyfile(file, folder / file.name)
        (self.run / "arch.json").write_text(architecture.to_json(), encoding="utf-8")
        tasks, text = judges(self.source, first=self.plan.items, text_rows=self.plan.text_rows)
        scores = Scorer(net, tasks, text).scores(np.stack((net.teacher_genome, path)))
        return {
            "teacher": score_content(scores[0]),
            "model": score_content(scores[1]),
            "prediction": self._priced(architecture),
            "teacher_prediction": self._priced(Architecture.of_base(self.checkpoint.base)),
        }

    @property
    def _trials(self) -> Trials:
        training = CandidateTraining(
            supernet=self.source.folder,
            recipe=self.plan.candidate,
            items=self.plan.items,
            text_rows=self.plan.text_rows,
            device=self.device,
            threads=self.threads,
        )
        return Trials(training, self.run / "trials", self.plan.metric)

    def _priced(self, architecture: Architecture) -> dict[str, Any]:
        settings = self.plan.supernet
        return self.pricing.price(architecture, batch=settings.batch, context=settings.length)


def _shapes(placed: Architecture, block: str) -> SearchSpace:
    return grid_space(placed, grid_of(block_named(block, placed.base)))
