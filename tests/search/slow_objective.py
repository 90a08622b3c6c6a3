"""A slow objective in other processes, which tells in a log what it was asked, and a search over it to kill.

`python -m tests.search.slow_objective RUN LOG EXECUTOR` starts the search, or goes on with it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hwsearch.search.database import JOURNAL
from hwsearch.search.engine import SearchResult, search
from hwsearch.search.evaluation import Evaluator, Measured
from hwsearch.search.executors import Executor, InlineExecutor, ProcessExecutor, RayExecutor
from hwsearch.search.problem import Objective, Problem
from hwsearch.search.study import Study
from hwsearch.searchspace.architecture import Architecture
from tests.search.search_problems import hybrid, random_problem

LAYERS = 8
_TABLE = np.random.default_rng(5).random((LAYERS, 7))


def loss(genome: tuple[int, ...], *, fidelity: float, seed: int) -> float:
    """Cheap guesses are further off: the seeded noise grows as the fidelity falls."""
    noise = np.random.default_rng(seed).normal() * (1 - fidelity)
    return float(_TABLE[np.arange(LAYERS), genome].sum() + 0.3 * noise)


@dataclass(frozen=True)
class SlowLoss:
    """`loss` after a while, told in a log."""

    log: Path

    def __call__(self, genome: tuple[int, ...], *, fidelity: float, seed: int) -> float:
        time.sleep(0.01)
        value = loss(genome, fidelity=fidelity, seed=seed)
        with self.log.open("a") as file:
            file.write(",".join(map(str, genome)) + "\n")
        return value


def fragile_loss(genome: tuple[int, ...], *, fidelity: float, seed: int) -> float:
    """Kills its worker for one genome in five, raises for another, and is not a number for a third."""
    fate = sum(genome) % 15
    if fate == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == 1:
        raise ValueError("this one cannot be trained")
    return float("nan") if fate == 2 else loss(genome, fidelity=fidelity, seed=seed)


def architecture_loss(architecture: Architecture, *, fidelity: float, seed: int) -> float:
    """What `hwsearch search --quality` takes: deeper attention is worth more; one architecture in ten fails."""
    if seed % 10 == 0:
        raise ValueError("this one cannot be trained")
    lost = [i for i, layer in enumerate(architecture.layers) if layer.mixer.kind != "full_attention"]
    return 0.1 * sum(lost) + 1e-3 * (seed % 7)


def on_a_device(architecture: Architecture, *, fidelity: float, seed: int) -> float:
    """`architecture_loss`, told in the file DEVICE_LOG with the GPU that the worker sees."""
    time.sleep(0.02)
    with Path(os.environ["DEVICE_LOG"]).open("a") as file:
        file.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()}\n")
    return architecture_loss(architecture, fidelity=fidelity, seed=seed)


def fail(architecture: Architecture, *, fidelity: float, seed: int) -> float:
    """Never works."""
    raise KeyError("weights")


def problem_with(measured: Measured) -> Problem:
    """`random_problem` with its first objective measured elsewhere."""
    problem = random_problem(2, space=hybrid(LAYERS), tightness=0.4)
    objectives = (Objective("loss", unit="points", cost=measured, tier="expensive"), problem.objectives[1])
    return replace(problem, objectives=objectives)


def executor_named(name: str) -> Executor:
    if name.startswith("ray"):
        return RayExecutor(2, address=name.partition("=")[2] or None)
    return InlineExecutor() if name == "inline" else ProcessExecutor(int(name))


def run(directory: Path, executor: Executor, *, measured: Measured, generations: int = 6) -> SearchResult:
    problem = problem_with(measured)
    resume = (directory / JOURNAL).exists()
    with Study.open(directory, settings={"test": 1}, resume=resume) as study:
        evaluator = Evaluator(problem, seed=3, executor=executor, study=study)
        return search(
            problem, seed=3, population=12, generations=generations, study=study, evaluate=evaluator
        )


if __name__ == "__main__":
    with executor_named(sys.argv[3]) as chosen:
        run(Path(sys.argv[1]), chosen, measured=Measured(SlowLoss(Path(sys.argv[2]))))
