"""Training the alternatives of a supernet: stage A aligns all of them locally, stage B trains sampled paths.

A step is a function of the seed and its number: batches and paths are drawn from both, nothing else is random. So a
training that was interrupted goes on from its last saved state, and ends bit for bit where it would have ended on the
same machine. Started by torchrun, every process takes its own rows of each step and the same paths.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hwsearch.errors import DataError, InputError
from hwsearch.surrogate.distil import LossWeights, local_losses, path_losses
from hwsearch.surrogate.optimiser import Optimiser, learning_rate_at
from hwsearch.surrogate.processes import anywhere
from hwsearch.surrogate.sampling import Sampling, path_sampler
from hwsearch.surrogate.supernet import Supernet

__all__ = ["Batches", "Interrupted", "Progress", "Recipe", "Stage", "Trained", "train"]

Batches = Callable[[int], Tensor]
"""Rows (B, T) of tokens, int64, for the number of a batch."""

_SAVE_EVERY_S = 60.0
_STATE = "training.safetensors"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps, and the peak of their learning rate."""

    steps: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a supernet is trained.

    accumulate: batches of a step. paths: paths of a step in stage B, which share the teacher's pass. warmup: share of a
    stage's steps. recompute: save memory in stage B by computing layers twice.
    """

    a: Stage = field(default_factory=lambda: Stage(steps=100, learning_rate=2e-3))
    b: Stage = field(default_factory=lambda: Stage(steps=100, learning_rate=1e-3))
    losses: LossWeights = field(default_factory=LossWeights)
    sampling: Sampling = "feasible"
    paths: int = 1
    accumulate: int = 1
    warmup: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.01
    recompute: bool = False
    seed: int = 0

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Recipe:
        """From the JSON values of `asdict`."""
        stages = {name: Stage(**content[name]) for name in ("a", "b")}
        return cls(**{**content, **stages, "losses": LossWeights(**content["losses"])})

    def __post_init__(self) -> None:
        if min(self.a.steps, self.b.steps) < 0 or min(self.paths, self.accumulate) < 1:
            raise InputError(
                f"a recipe needs steps of 0 or more and at least 1 path and batch per step; got {self.a.steps} and "
                f"{self.b.steps} steps, {self.paths} paths, {self.accumulate} batches"
            )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """After a step. step counts within the stage; memory_bytes: peak of the device, or of the process on a CPU."""

    stage: Literal["a", "b"]
    step: int
    steps: int
    losses: Mapping[str, float]
    tokens_per_s: float
    eta_s: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training did, all its runs together. history: per step its stage, number and losses."""

    tokens: int
    seconds: float
    memory_bytes: int
    history: tuple[Mapping[str, Any], ...]


class Interrupted(KeyboardInterrupt):
    """The training was asked to stop; its state is saved."""


def train(
    supernet: Supernet,
    batches: Batches,
    recipe: Recipe,
    *,
    folder: Path | None = None,
    until: int | None = None,
    on_step: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train the alternatives in place.

    folder: keep the state there, once a minute and at the end, and go on from it. until: stop after so many steps of
    both stages together, as if interrupted there. stop: asked after each step; when true the state is saved and
    Interrupted raised. Raises DataError for a state of another training.
    """
    run = _Run(supernet, batches, recipe, folder)
    return run.go(until=until, on_step=on_step, stop=stop)


class _Run:
    def __init__(self, supernet: Supernet, batches: Batches, recipe: Recipe, folder: Path | None) -> None:
        self.supernet = supernet
        self.batches = batches
        self.recipe = recipe
        self.state = None if folder is None else folder / _STATE
        self.device = supernet.teacher.device
        self.began = 0.0
        self.done = 0
        self.tokens = 0
        self.seconds = 0.0  # of earlier runs
        self.history: list[Mapping[str, Any]] = []
        self.optimiser = self._optimiser()
        self.paths = path_sampler(supernet.space, recipe.sampling, seed=recipe.seed)
        self.world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.rank = dist.get_rank() if self.world > 1 else 0
        self._resume()

    def _optimiser(self) -> Optimiser:
        return Optimiser(self.supernet.trainable, weight_decay=self.recipe.weight_decay)

    def go(
        self,
        *,
        until: int | None,
        on_step: Callable[[Progress], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Trained:
        recipe = self.recipe
        total = recipe.a.steps + recipe.b.steps
        last = total if until is None else min(until, total)
        self.began = saved = time.perf_counter()
        first, at_first = self.done, self.tokens
        while self.done < last:
            stage: Literal["a", "b"] = "a" if self.done < recipe.a.steps else "b"
            of = recipe.a if stage == "a" else recipe.b
            step = self.done - (0 if stage == "a" else recipe.a.steps)
            if stage == "b" and step == 0:
                self.optimiser = self._optimiser()
            losses = self._local() if stage == "a" else self._sampled(step)
            rate = learning_rate_at(
                step, steps=of.steps, peak=of.learning_rate, warmup=recipe.warmup, final=0.1
            )
            losses["gradient_norm"] = self.optimiser.step(rate, clip=recipe.clip)
            self.done += 1
            self.history.append({"stage": stage, "step": step + 1, **losses})
            now = time.perf_counter()
            # Together: a process that stopped alone would leave the others waiting for its gradients.
            stopping = stop is not None and anywhere(stop(), device=self.device)
            if self.done == last or stopping or now - saved > _SAVE_EVERY_S:
                self._save()
                saved = now
            if on_step:
                spent = now - self.began
                on_step(
                    Progress(
                        stage=stage,
                        step=step + 1,
                        steps=of.steps,
                        losses=losses,
                        tokens_per_s=(self.tokens - at_first) / spent,
                        eta_s=spent / (self.done - first) * (last - self.done),
                        memory_bytes=self._memory(),
                    )
                )
            if stopping:
                raise Interrupted
        return Trained(
            tokens=self.tokens,
            seconds=self.seconds + time.perf_counter() - self.began,
            memory_bytes=self._memory(),
            history=tuple(self.history),
        )

    def _local(self) -> dict[str, float]:
        """Gradients of stage A; the mean loss over the alternatives."""
        losses = []
        for ids_BT in self._batches():
            teacher = self.supernet.teacher_pass(ids_BT)
            for _, _, loss in local_losses(self.supernet, teacher):
                (loss / self.recipe.accumulate).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
        return {"local": float(torch.stack(losses).mean())} if losses else {"local": 0.0}

    def _sampled(self, step: int) -> dict[str, float]:
        """Gradients of stage B; the mean of each loss over the paths."""
        recipe, found = self.recipe, []
        genomes = self.paths(step * recipe.paths, recipe.paths)
        for ids_BT in self._batches():
            teacher = self.supernet.teacher_pass(ids_BT)
            for genome in genomes:
                losses = path_losses(
                    self.supernet, genome, ids_BT, teacher, recipe.losses, recompute=recipe.recompute
                )
                if losses is not None:
                    (losses.total / (recipe.paths * recipe.accumulate)).backward()  # type: ignore[no-untyped-call]
                    found.append(torch.stack((losses.feature, losses.kl, losses.task)))
        means = torch.stack(found).mean(dim=0).tolist() if found else [0.0] * 3
        return dict(zip(("feature", "kl", "task"), means, strict=True))

    def _batches(self) -> list[Tensor]:
        """The batches of this step that are this process's."""
        first = (self.done * self.world + self.rank) * self.recipe.accumulate
        found = [self.batches(first + i).to(self.device) for i in range(self.recipe.accumulate)]
        self.tokens += self.world * sum(ids.numel() for ids in found)
        return found

    def _memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024)

    def _save(self) -> None:
        if self.state is None or self.rank:
            return
        about = {
            "recipe": json.dumps(asdict(self.recipe)),
            "done": str(self.done),
            "tokens": str(self.tokens),
            "seconds": str(self.seconds + time.perf_counter() - self.began),
            "history": json.dumps(self.history),
        }
        written = self.state.with_suffix(".part")
        save_file(self.optimiser.state(), written, metadata=about)
        written.replace(self.state)

    def _resume(self) -> None:
        if self.state is None or not self.state.exists():
            return
        with safe_open(str(self.state), framework="pt") as file:
            about = file.metadata()
        if json.loads(about["recipe"]) != asdict(self.recipe):
            raise DataError(
                f"{self.state} is the state of a training with another recipe: train in another folder, or give the "
                "options of the first time"
            )
        self.done, self.tokens, self.seconds = (
            int(about["done"]),
            int(about["tokens"]),
            float(about["seconds"]),
        )
        self.history = json.loads(about["history"])
        self.optimiser.load(load_file(str(self.state)))
