"""Short proxy training: a candidate by itself, from its supernet weights, with everything but its mixers frozen.

It is trained with the losses of stage B for a number of tokens (candidate.py). Between candidates, successive halving
(Jamieson and Talwalkar, 2016): all train for a part of the tokens, the best share of them goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hwsearch.errors import InputError
from hwsearch.surrogate.candidate import CandidateTraining
from hwsearch.surrogate.scoring import Score
from hwsearch.surrogate.supernet_folder import SupernetFolder
from hwsearch.surrogate.training import Recipe, Stage

__all__ = ["ProxyJob", "ProxyResult", "Submits", "proxy_recipe", "proxy_training", "run_proxy", "rungs"]


class Submits(Protocol):
    """Where candidates are trained: an executor of `search`, or of concurrent.futures."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Runs fn(*args) somewhere."""
        ...


class _Here:
    """Runs a task at once, in this thread, so that Ctrl-C reaches it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args))
        return done


@dataclass(frozen=True, kw_only=True)
class ProxyJob:
    """A candidate, by the genome (layers,) in the space of a supernet folder, and how far to train it.

    steps: of the recipe. output: where candidates keep their weights and scores.
    """

    training: CandidateTraining
    genome: tuple[int, ...]
    steps: int
    output: Path


@dataclass(frozen=True, kw_only=True)
class ProxyResult:
    """steps and tokens: trained since the supernet. seconds: of training. score: after it."""

    genome: tuple[int, ...]
    steps: int
    tokens: int
    seconds: float
    score: Score
    folder: Path


def proxy_recipe(recipe: Recipe, *, steps: int, learning_rate: float | None = None, seed: int = 0) -> Recipe:
    """The recipe of a candidate for so many steps: as stage B of its supernet, one path, no stage A."""
    return replace(
        recipe,
        a=replace(recipe.a, steps=0),
        b=Stage(steps=steps, learning_rate=learning_rate or recipe.b.learning_rate),
        paths=1,
        seed=seed,
    )


def run_proxy(job: ProxyJob) -> ProxyResult:
    """Train a candidate up to the job's steps, from wherever it is, and score it."""
    training, source = job.training, job.training.source
    path = source.supernet(device=training.device).only(job.genome)
    # By what decides the outcome: the same candidate goes on where it was, another supernet's starts anew.
    identity = json.dumps([source.weights_hash, job.genome, asdict(training.recipe)])
    folder = job.output / hashlib.sha256(identity.encode()).hexdigest()[:16]
    trained = training.train(path, folder=folder, until=job.steps)
    score = training.score(path)
    SupernetFolder(folder).write_path(path, trained, source=source)
    return ProxyResult(
        genome=job.genome,
        steps=job.steps,
        tokens=trained.tokens,
        seconds=trained.seconds,
        score=score,
        folder=folder,
    )


def rungs(steps: int, *, candidates: int, halving: int) -> tuple[tuple[int, int], ...]:
    """Per rung of successive halving how many candidates train, and up to which step; one rung if halving is 1."""
    if halving < 1 or steps < 1:
        raise InputError(f"halving {halving} over {steps} steps: both must be at least 1")
    counts = [candidates]
    while halving > 1 and counts[-1] > 1:
        counts.append(-(-counts[-1] // halving))
    parts = [halving ** (len(counts) - 1 - i) for i in range(len(counts))]
    return tuple((count, max(steps // part, 1)) for count, part in zip(counts, parts, strict=True))


def proxy_training(
    jobs: Sequence[ProxyJob],
    *,
    executor: Submits | None = None,
    metric: str,
    halving: int = 1,
    on_result: Callable[[ProxyResult], None] | None = None,
) -> Mapping[tuple[int, ...], ProxyResult]:
    """Train candidates, the best share 1 / halving of them at every rung further; the last result of each.

    executor: where; None for one after the other in this process.
    metric: of `Score.value`, by which they are compared: accuracies high, others low. Deterministic: results are waited
    for in the order of the jobs.
    """
    found: dict[tuple[int, ...], ProxyResult] = {}
    place: Submits = executor or _Here()
    alive = list(jobs)
    for count, steps in rungs(jobs[0].training.recipe.b.steps, candidates=len(jobs), halving=halving):
        if found:
            alive.sort(key=lambda job: found[job.genome].score.cost(metric))
        alive = alive[:count]
        running = [place.submit(run_proxy, replace(job, steps=min(steps, job.steps))) for job in alive]
        for job, future in zip(alive, running, strict=True):
            result = future.result()
            found[job.genome] = result
            if on_result:
                on_result(result)
    return found
