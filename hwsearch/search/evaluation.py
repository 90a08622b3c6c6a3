"""Expensive costs: measured one genome at a time by an executor, written down one by one, never measured twice.

A cost is expensive where an objective says so (`tier="expensive"`). `Evaluator` answers as `Problem.costs` does, so
every solver takes it in its place: it looks up what the journal knows, hands the rest to the executor, and writes
each result to the journal the moment it arrives. Costs that are not expensive are computed here, all at once.

What is measured depends on the genome, the fidelity and a seed derived from both and the run's seed, and results are
returned in the order asked for; so the number of workers and their speed leave no trace in a run's result.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hwsearch.errors import HwsearchError, InputError
from hwsearch.search.executors import Executor, InlineExecutor
from hwsearch.search.problem import Cost, Problem
from hwsearch.search.space import FloatArray, Genomes
from hwsearch.search.study import Evaluation, Study

__all__ = ["Evaluator", "Measure", "Measured", "evaluation_seed"]


class Measure(Protocol):
    """What measures one genome: an importable function, so that workers can be told of it by name."""

    def __call__(self, genome: tuple[int, ...], *, fidelity: float, seed: int) -> float: ...


@dataclass(frozen=True, eq=False)
class Measured:
    """A cost given by measuring single genomes. fidelities: what can be asked for, rising to 1, the full one."""

    measure: Measure
    fidelities: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.fidelities, self.fidelities[1:], strict=False))
        if not self.fidelities or self.fidelities[-1] != 1 or self.fidelities[0] <= 0 or not rising:
            raise InputError(f"fidelities rise from above 0 to 1, got {list(self.fidelities)}")

    def __call__(self, genomes: Genomes) -> FloatArray:
        """At full fidelity, one after another, with the seeds of a run with seed 0."""
        return np.array(
            [self.at(genome, fidelity=1.0, seed=evaluation_seed(0, genome, 1.0)) for genome in genomes]
        )

    def at(self, genome: Genomes, *, fidelity: float, seed: int) -> float:
        return float(self.measure(tuple(genome.tolist()), fidelity=fidelity, seed=seed))


def evaluation_seed(run_seed: int, genome: Genomes, fidelity: float) -> int:
    """The seed of one evaluation, 63 bits: the same wherever and whenever it runs."""
    text = f"{run_seed} {fidelity!r} {','.join(map(str, genome.tolist()))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _measure(
    costs: tuple[Cost, ...], genome: Genomes, fidelity: float, seed: int
) -> tuple[list[float], float]:
    """In the worker: the values of each cost, and the seconds that took."""
    started = time.perf_counter()
    values = [
        cost.at(genome, fidelity=fidelity, seed=seed)
        if isinstance(cost, Measured)
        else float(np.asarray(cost(genome[None]))[0])
        for cost in costs
    ]
    return values, time.perf_counter() - started


class Evaluator:
    """Costs (n, k) of genomes (n, layers), as `Problem.costs` has them; rows of NaN where the evaluation failed.

    A failed evaluation (its worker died twice, `measure` raised, or the value is not finite) is remembered like any
    other and not tried again. on_evaluation is told of measured ones. Raises InputError where every evaluation of the
    first call failed, and whatever HwsearchError a cost raises.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        executor: Executor | None = None,
        study: Study | None = None,
        fidelity: float = 1.0,
        on_evaluation: Callable[[Evaluation], None] | None = None,
    ) -> None:
        self.problem = problem
        self.fidelity = fidelity
        self._seed = seed
        self._executor = executor or InlineExecutor()
        self._study = study
        self._on_evaluation = on_evaluation
        expensive = [o.cost for o in problem.objectives if o.tier == "expensive"]
        costs = [cost for _, cost in problem.distinct]
        self._columns = [i for i, cost in enumerate(costs) if any(cost is e for e in expensive)]
        self._costs = tuple(costs[i] for i in self._columns)
        self._known: dict[bytes, FloatArray] | None = None
        self.measured = 0

    def _journal(self) -> dict[bytes, FloatArray]:
        if self._known is None:
            self._known = self._study.known(self.fidelity) if self._study else {}
        return self._known

    def __call__(self, genomes: Genomes) -> FloatArray:
        known = self._journal()
        genomes = np.ascontiguousarray(genomes, dtype=np.int64)
        keys = [genome.tobytes() for genome in genomes]
        fresh = [i for i, key in enumerate(keys) if key not in known and key not in keys[:i]]
        if fresh:
            (self._measure_all if self._costs else self._look_up)(genomes[fresh], known)
        return np.array([known[key] for key in keys]).reshape(len(keys), len(self.problem.distinct))

    def _look_up(self, genomes: Genomes, known: dict[bytes, FloatArray]) -> None:
        """Where nothing is expensive: all at once, and one transaction."""
        started = time.perf_counter()
        costs = self.problem.costs(genomes)
        seconds = (time.perf_counter() - started) / len(genomes)
        violations = self.problem.violations(costs).tolist()
        if self._study:
            self._study.keep(
                *(
                    Evaluation(genome=genome, costs=row, violation=violation, seconds=seconds)
                    for genome, row, violation in zip(genomes, costs, violations, strict=True)
                )
            )
        known |= dict(zip((genome.tobytes() for genome in genomes), costs, strict=True))

    def _measure_all(self, genomes: Genomes, known: dict[bytes, FloatArray]) -> None:
        costs = np.full((len(genomes), len(self.problem.distinct)), np.nan)
        for i, (_, cost) in enumerate(self.problem.distinct):
            if i not in self._columns:
                costs[:, i] = cost(genomes)
        seeds = [evaluation_seed(self._seed, genome, self.fidelity) for genome in genomes]
        running: dict[Future[Any], int] = {}
        for i, genome in enumerate(genomes):
            running[self._executor.submit(_measure, self._costs, genome, self.fidelity, seeds[i])] = i
        errors = []
        for future in as_completed(running):
            i = running[future]
            error = future.exception()
            if isinstance(error, HwsearchError):
                raise error
            seconds, reason = 0.0, ""
            if error is None:
                costs[i, self._columns], seconds = future.result()
                if not np.isfinite(costs[i]).all():
                    reason = f"the costs are {costs[i].tolist()}; they must be finite"
            else:
                reason = f"{type(error).__name__}: {error}"
            if reason:
                costs[i] = np.nan
                errors.append(reason)
            self._keep(genomes[i], costs[i], seed=seeds[i], seconds=seconds, error=reason)
            known[genomes[i].tobytes()] = costs[i]
            self.measured += 1
        if len(errors) == len(genomes) == self.measured:
            raise InputError(
                f"all {len(errors)} evaluations failed; the first said: {errors[0]}. Mend that and start again in "
                "another directory"
            )

    def _keep(self, genome: Genomes, costs: FloatArray, *, seed: int, seconds: float, error: str) -> None:
        evaluation = Evaluation(
            genome=genome,
            costs=None if error else costs,
            violation=None if error else float(self.problem.violations(costs[None])[0]),
            fidelity=self.fidelity,
            seed=seed,
            seconds=seconds,
            error=error or None,
        )
        if self._study:
            self._study.keep(evaluation)
        if self._on_evaluation:
            self._on_evaluation(evaluation)
