"""What the benchmarks of PostNAS on the tiny teacher share: the teacher, its data, and what is trained from it.

Everything but the mixers is frozen. What scores choose by and what results are judged by share no task item and no
text. Stage A (local alignment) is run once per seed; all trainings of the seed start from its weights. Every step of a
seed is written to its folder as it ends, and goes on from there. Seconds are processor time: the machine may be busy.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from hwsearch.models.checkpoint import Checkpoint
from hwsearch.pipeline.steps import Steps
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.space import SearchSpace
from hwsearch.surrogate.corpus import PackedCorpus, pack
from hwsearch.surrogate.scoring import Score, Scorer
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.supernet_folder import tokenizer_of
from hwsearch.surrogate.synthetic import held_out_tasks
from hwsearch.surrogate.tasks import EncodedTasks
from hwsearch.surrogate.teacher import write_data
from hwsearch.surrogate.training import Recipe, Stage, train

Genome = tuple[int, ...]

STEPS_A = 120
BATCH, LENGTH, SAMPLES = 8, 128, 2500
RATE_A, RATE_B = 4e-3, 2e-3
METRICS = ("kl", "mean_loss", "mean_accuracy", "recall.loss", "recall.accuracy", "feature_mse")
_SHARED = {"a": STEPS_A, "batch": BATCH, "length": LENGTH, "samples": SAMPLES, "rate_a": RATE_A}


class Bench:
    """One seed of one target, kept in `work`/`target`/seedN.

    space_of: the rules of the target's space. choosing, judging: items of each task and rows of text. config: what else
    decides the results.
    """

    def __init__(
        self,
        work: Path,
        target: str,
        *,
        seed: int,
        teacher: Path,
        space_of: Callable[[SearchSpace], SearchSpace],
        choosing: tuple[int, int],
        judging: tuple[int, int],
        config: dict[str, Any],
    ) -> None:
        torch.set_num_threads(1)
        self.seed = seed
        self.checkpoint = Checkpoint(teacher)
        whole = preset_named("postnas-placement", self.checkpoint.base)
        self.space = space_of(whole)
        shared = {
            "seed": seed,
            "teacher": hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest(),
            "choices": [choice.model_dump(mode="json") for choice in whole.choices],
            **_SHARED,
        }
        own = {
            "rules": self.space.rules,
            "judging": judging,
            "choosing": choosing,
            "rate_b": RATE_B,
            **config,
        }
        self.shared = Steps.open(aligned_folder(work, seed), settings=shared)
        self.steps = Steps.open(target_folder(work, target, seed), settings={**shared, **own})
        tokenizer = tokenizer_of(self.checkpoint)
        self.corpus = packed_corpus(work / "data", tokenizer)
        self.tasks, self.text = {}, {}
        rows = self.corpus.validation.astype(np.int64)
        for chooses, (items, count) in ((True, choosing), (False, judging)):
            tasks = held_out_tasks(seed=100 * seed + chooses, items=items)
            self.tasks[chooses] = EncodedTasks.of(tasks, tokenizer, max_length=512)
            self.text[chooses] = torch.from_numpy(rows[:count] if chooses else rows[-count:])

    def untrained(self) -> Supernet:
        """Before stage A."""
        return Supernet.of(self.checkpoint, self.space, dtype=torch.float32, seed=self.seed)

    def aligned(self) -> Supernet:
        """After stage A."""
        net = self.untrained()
        seconds = self._train(net, self.recipe(a=STEPS_A), folder=self.shared.folder)
        self.shared.run("time", lambda: {"seconds": seconds})
        return net

    def supernet(self, aligned: Supernet, recipe: Recipe, *, name: str = "b") -> Supernet:
        """After further training, from a supernet after stage A."""
        net = copy.deepcopy(aligned)
        seconds = self._train(net, recipe, folder=self.steps.folder / name)
        self.steps.run(f"{name}-time", lambda: {"seconds": seconds})
        return net

    def recipe(self, *, a: int = 0, b: int = 0) -> Recipe:
        return Recipe(
            a=Stage(steps=a, learning_rate=RATE_A), b=Stage(steps=b, learning_rate=RATE_B), seed=self.seed
        )

    def _train(self, net: Supernet, recipe: Recipe, *, folder: Path | None = None) -> float:
        """Trains in place, or loads what a training before ended with; process seconds."""
        if folder is not None:
            folder.mkdir(exist_ok=True)
        began = time.process_time()
        train(
            net,
            lambda step: self.corpus.batch(step, batch=BATCH, seed=self.seed),
            recipe,
            folder=folder,
        )
        return time.process_time() - began

    def alone(self, start: Supernet, genome: Genome, *, steps: int, name: str) -> dict[str, Any]:
        """An architecture trained by itself from a supernet's weights: its score, and process seconds."""

        def trained() -> dict[str, Any]:
            net = start.only(genome)
            spent = self._train(net, self.recipe(b=steps))
            score = self.scorer(net, choosing=False).scores(np.array([genome]))[0]
            return {"genome": list(genome), "seconds": spent, "score": plain(score)}

        return self.steps.run(name, trained)

    def scorer(self, net: Supernet, *, choosing: bool) -> Scorer:
        cache = self.steps.folder / "scores.sqlite" if choosing else None
        return Scorer(net, self.tasks[choosing], self.text[choosing], cache=cache)

    def scores(self, net: Supernet, genomes: Sequence[Genome], *, name: str) -> dict[str, Any]:
        """Scores under a supernet, and process seconds for all."""

        def scored() -> dict[str, Any]:
            began = time.process_time()
            found = self.scorer(net, choosing=True).scores(np.array(genomes))
            spent = time.process_time() - began
            return {
                "genomes": [list(g) for g in genomes],
                "seconds": spent,
                "scores": [plain(s) for s in found],
            }

        return self.steps.run(name, scored)


def target_folder(work: Path, target: str, seed: int) -> Path:
    return work / target / f"seed{seed}"


def aligned_folder(work: Path, seed: int) -> Path:
    """Of stage A."""
    return target_folder(work, "aligned", seed)


def packed_corpus(folder: Path, tokenizer: Any) -> PackedCorpus:
    """The documentation of Python and samples of the abilities, as `hwsearch teacher data` writes them, packed."""
    if not (folder / "corpus").exists():
        if not (folder / "samples.jsonl").exists():
            write_data(folder, seed=7, samples=SAMPLES)
        sources = [folder / "text.jsonl", folder / "samples.jsonl"]
        pack(
            sources,
            tokenizer=tokenizer,
            folder=folder / "corpus",
            length=LENGTH,
            validation_share=0.05,
            seed=0,
        )
    corpus = PackedCorpus.open(folder / "corpus")
    corpus.check(tokenizer)
    return corpus


def plain(score: Score) -> dict[str, float]:
    """Every metric by name, and each task's standard error of its accuracy."""
    found = {metric: score.value(metric) for metric in METRICS}
    for task, of_task in score.tasks.items():
        found |= {f"{task}.accuracy": of_task.accuracy, f"{task}.loss": of_task.loss}
        found[f"{task}.error"] = of_task.standard_error
    return found


def better(metric: str) -> float:
    """Sign that makes a lower value better."""
    return -1.0 if metric.endswith("accuracy") else 1.0


class Unfinished(SystemExit):
    """A seed lacks a step."""


def need(steps: Steps, name: str) -> dict[str, Any]:
    """What a step found. Raises Unfinished where it has not run."""
    found = steps.result(name)
    if found is None:
        raise Unfinished(f"{steps.folder} lacks {name}: run that seed to its end first")
    return found
