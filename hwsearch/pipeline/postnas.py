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

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.compose import check_dtype, model_cost
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InfeasibleError, InputError
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.folder import new_folder
from hwsearch.pipeline.blocks import BlockTable, with_blocks
from hwsearch.pipeline.linear_blocks import block_named, grid_of, grid_space, with_block
from hwsearch.pipeline.search_task import cost_budget, latency_cost, memory_cost
from hwsearch.pipeline.steps import Steps
from hwsearch.pipeline.training_cost import path_training
from hwsearch.pipeline.trials import GridLoss, Trials, grid_name, judges, score_content, trial
from hwsearch.search.beam import beam_search
from hwsearch.search.evaluation import Measured
from hwsearch.search.executors import Executor
from hwsearch.search.fidelity import fidelity_search
from hwsearch.search.problem import Objective, Problem
from hwsearch.search.study import Study
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.budget import BudgetSpec
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.space import CountLimit, SearchSpace
from hwsearch.searchspace.workload import Workload
from hwsearch.surrogate.layer_scores import LayerScores, layer_scores, linear_choice
from hwsearch.surrogate.scoring import Scorer
from hwsearch.surrogate.supernet_folder import SupernetFolder, SupernetSettings, space_content
from hwsearch.surrogate.training import Progress, Recipe

__all__ = ["STEPS", "Plan", "Postnas"]

STEPS = ("supernet", "importance", "placement", "windows", "blocks", "grid", "export")

Genome = NDArray[np.int64]
Tell = Callable[[str], None]

_FIDELITIES = (0.25, 1.0)  # shares of a candidate's steps after which the grid is thinned out


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides the result.

    sources: text files, or one folder of a packed corpus. full, windows: how many layers get full attention and
    sliding window attention. objective, window_objective: metrics of `Score.value` that place them; metric: the one
    by which blocks and shapes are compared. candidate: how blocks and shapes are trained. items: of each task for
    every choice; the rest of the items judges the result. train: context and batch that training is priced at.
    """

    sources: tuple[Path, ...]
    tasks: Path
    full: int
    windows: int
    blocks: tuple[str, ...]
    objective: str
    window_objective: str
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


class Postnas:
    """One run.

    blocks: measured whole on the device, which predict latency where they cover it. executor: where candidates are
    trained, with so many threads each. stop: asked after each step of the supernet.
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
        tell: Tell = lambda _: None,
        on_step: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        self.run = run
        self.plan = plan
        self.checkpoint = checkpoint
        self.model = model
        self.workload = workload
        self.blocks = blocks
        self.executor = executor
        self.threads = threads
        self.tell = tell
        self.on_step = on_step
        self.stop = stop
        self.source = SupernetFolder(run / "supernet")
        self.space = self._placement_space()

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

        found = {
            "supernet": done("supernet", self._supernet),
            "importance": done("importance", self._importance),
        }
        found["placement"] = done("placement", self._placement)
        found["windows"] = done("windows", lambda: self._windows(_genome(found["placement"])))
        placed = _genome(found["windows"])
        found["blocks"] = done("blocks", lambda: self._blocks(placed))
        found["grid"] = done("grid", lambda: self._grid(placed, found["blocks"]["best"]))
        best = Architecture.from_content(found["grid"]["architecture"], source="grid")
        found["export"] = done("export", lambda: self._export(best, found["grid"]["best"]))
        return found

    def placed(self, genome: Sequence[int] | Genome, *, name: str) -> Architecture:
        """The architecture of a genome of the placement space."""
        return self.space.decode(genome, name=name)

    def _placement_space(self) -> SearchSpace:
        space = preset_named("postnas-placement", self.checkpoint.base)
        if not self.plan.windows:
            kept = [i for i, kind in enumerate(space.kinds) if kind != "sliding_window_attention"]
            space = space.restrict(kept)
        else:
            space = space.limit("sliding_window_attention", CountLimit(at_most=self.plan.windows))
        return space.limit("full_attention", CountLimit(at_most=self.plan.full))

    @property
    def _linear(self) -> int:
        """The choice that stands for linear attention."""
        return linear_choice(self.space)

    def _check_budgets(self) -> None:
        """Whether some block or shape meets the budgets with the softmax layers anywhere."""
        linear = self.space.num_layers - self.plan.full - self.plan.windows
        kinds = [self.space.kinds.index("full_attention")] * self.plan.full
        placed = self.placed([*kinds, *[1] * self.plan.windows, *[self._linear] * linear], name="placed")
        over = {block: self._over(placed, block) for block in self.plan.blocks}
        if all(over.values()):
            raise InfeasibleError(
                f"no block with {self.plan.full} full-attention and {self.plan.windows} sliding-window layers meets "
                f"the budgets on {self.model.device.name}: "
                + "; ".join(f"{block} {why}" for block, why in over.items())
                + ". Relax a budget or keep fewer such layers"
            )

    def _over(self, placed: Architecture, block: str) -> str:
        """Why no shape of a block meets the budgets; empty where one does."""
        space = grid_space(placed, grid_of(block_named(block, placed.base)))
        budgets = self._problem(space, cost=_nothing).budgets
        points = np.array([space.paths.unrank(i) for i in range(space.size)])
        if np.any(np.all([np.ones(len(points)), *(b.cost(points) <= b.at_most for b in budgets)], axis=0)):
            return ""
        best = [(b, float(b.cost(points).min())) for b in budgets]
        return next(
            (f"reaches {b.describe(value)} at best for {b.text}" for b, value in best if value > b.at_most),
            "has no shape that meets all of them at once",
        )

    def _problem(self, space: SearchSpace, *, cost: Callable[[Genome], NDArray[np.float64]]) -> Problem:
        latency = latency_cost(space, self.model, self.workload, blocks=self.blocks)
        memory = memory_cost(space, self.workload)
        return Problem(
            space,
            objectives=(
                Objective(self.plan.metric, cost=cost, tier="expensive"),
                Objective("latency", unit="ms", cost=latency),
            ),
            budgets=tuple(
                cost_budget(budget, latency=latency, memory=memory, tokens=self.workload.tokens)
                for budget in self.plan.budgets
            ),
        )

    def _supernet(self) -> Mapping[str, Any]:
        self.source.create(
            checkpoint=self.checkpoint,
            space=self.space,
            sources=self.plan.sources,
            tasks=self.plan.tasks,
            settings=self.plan.supernet,
        )
        trained = self.source.train(on_step=self.on_step, stop=self.stop)
        last = trained.history[-1] if trained.history else {}
        return {"tokens": trained.tokens, "last_step": dict(last)}

    def _scorer(self) -> Scorer:
        return self.source.scorer(
            self.source.supernet(), items=self.plan.items, text_rows=self.plan.text_rows
        )

    def layer_scores(self) -> LayerScores:
        """What full attention in each layer is worth under the supernet; from the scores kept where there are some."""
        scorer = self._scorer()
        return layer_scores(scorer.supernet, scorer, linear=self._linear)

    def _importance(self) -> Mapping[str, Any]:
        found = self.layer_scores()
        (self.run / "importance.csv").write_text(found.csv(), encoding="utf-8")
        return {
            "teacher": score_content(found.teacher),
            "linear": score_content(found.linear),
            "kept": [score_content(score) for score in found.kept],
            "replaced": [score_content(score) for score in found.replaced],
        }

    def _beam(
        self, space: SearchSpace, start: Genome, *, kind: str, steps: int, metric: str
    ) -> Mapping[str, Any]:
        scorer = self._scorer()

        def cost(genomes: Genome) -> NDArray[np.float64]:
            return scorer.objective(genomes, metric=metric)

        problem = Problem(space, objectives=(Objective(metric, cost=cost, tier="expensive"),))
        found = beam_search(
            problem, start=start, choices=[space.kinds.index(kind)], steps=steps, width=self.plan.width
        )
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

    def _placement(self) -> Mapping[str, Any]:
        start = np.full(self.space.num_layers, self._linear)
        return self._beam(
            self.space, start, kind="full_attention", steps=self.plan.full, metric=self.plan.objective
        )

    def _windows(self, genome: Genome) -> Mapping[str, Any]:
        if not self.plan.windows:
            return {"genome": genome.tolist(), "metric": None, "evaluations": 0, "path": []}
        fixed = genome != self._linear  # a layer with full attention keeps it
        mask = np.ones_like(self.space.allowed_mask)
        mask[fixed] = False
        mask[np.flatnonzero(fixed), genome[fixed]] = True
        return self._beam(
            self.space.only(mask),
            genome,
            kind="sliding_window_attention",
            steps=self.plan.windows,
            metric=self.plan.window_objective,
        )

    @property
    def _trials(self) -> Trials:
        return Trials(
            source=self.source.folder,
            folder=self.run / "trials",
            recipe=json.dumps(asdict(self.plan.candidate)),
            batch=self.plan.supernet.batch,
            items=self.plan.items,
            text_rows=self.plan.text_rows,
            metric=self.plan.metric,
            threads=self.threads,
        )

    def _blocks(self, genome: Genome) -> Mapping[str, Any]:
        """A row for each block, in the order asked for; the best by the metric of those that can meet the budgets."""
        placed = self.placed(genome, name="placed")
        candidates = {
            kind: with_block(placed, block_named(kind, placed.base), name=kind) for kind in self.plan.blocks
        }
        with self.executor() as executor:
            running = {
                kind: executor.submit(trial, self._trials, candidate.to_json(), f"block-{kind}", 1.0)
                for kind, candidate in candidates.items()
            }
            rows = [
                {"block": kind, **running[kind].result(), **self.priced(candidate)}
                for kind, candidate in candidates.items()
            ]
        able = [row for row in rows if not self._over(placed, row["block"])]
        best = min(able, key=lambda row: float(row["value"]))
        return {"rows": rows, "best": best["block"]}

    def _grid(self, genome: Genome, block: str) -> Mapping[str, Any]:
        """A row for each shape; the best of those trained to the end."""
        placed = self.placed(genome, name="placed")
        space = grid_space(placed, grid_of(block_named(block, placed.base)))
        loss = GridLoss(self._trials, json.dumps(space_content(space)))
        problem = self._problem(space, cost=Measured(loss, fidelities=_FIDELITIES))
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
            rows.append(
                {
                    "genome": point.tolist(),
                    "shape": space.choices[int(point[genome == self._linear][0])].mixer.label,
                    "values": {str(s): None if v is None else float(v[0]) for s, v in values.items()},
                    **self.priced(architecture),
                }
            )
        best = space.decode(found.genomes[0], name=f"{self.checkpoint.base.name}-postnas")
        return {"rows": rows, "best": found.genomes[0].tolist(), "architecture": best.model_dump(mode="json")}

    def _export(self, architecture: Architecture, genome: Sequence[int]) -> Mapping[str, Any]:
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
            "prediction": self.priced(architecture),
            "teacher_prediction": self.priced(Architecture.of_base(self.checkpoint.base)),
        }

    def priced(self, architecture: Architecture) -> dict[str, Any]:
        """What the cost model says of an architecture."""
        cost = with_blocks(model_cost(architecture, self.workload, model=self.model), self.blocks)
        length, batch = self.plan.supernet.length, self.plan.supernet.batch
        training = path_training(architecture, model=self.model, batch=batch, context=length)
        return {
            "parameters": architecture.parameters,
            "predicted_from": cost.predicted_from,
            "latency_ms": cost.latency.median_ms,
            "latency_ms_low": cost.latency.low_ms,
            "latency_ms_high": cost.latency.high_ms,
            "throughput_tokens_per_s": cost.throughput_tokens_per_s,
            "memory_bytes": cost.memory.total_bytes,
            "cache_bytes_per_sequence": architecture.cache_bytes(
                self.workload.context, self.workload.element_bytes
            ),
            "training_tokens_per_s": training.tokens_per_s,
        }


def _genome(found: Mapping[str, Any]) -> Genome:
    return np.array(found["genome"], dtype=np.int64)


def _nothing(genomes: Genome) -> NDArray[np.float64]:
    """For problems whose objective is not asked for."""
    return np.zeros(len(genomes))
