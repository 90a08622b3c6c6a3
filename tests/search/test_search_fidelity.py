"""Few expensive evaluations: better than evolution with the same number, all in the journal, resumable."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import InfeasibleError, InputError
from hwsearch.search.database import JOURNAL
from hwsearch.search.engine import search
from hwsearch.search.evaluation import Measured
from hwsearch.search.exact import minimise
from hwsearch.search.executors import InlineExecutor, ProcessExecutor
from hwsearch.search.fidelity import FidelityResult, Round, fidelity_search
from hwsearch.search.problem import Additive, Budget, Objective, Problem
from hwsearch.search.space import GridSpace
from hwsearch.search.study import Study
from tests.search.slow_objective import _TABLE, fragile_loss, loss, problem_with

FIDELITIES = (0.2, 0.5, 1.0)


def run(problem: Problem, *, evaluations: int, seed: int = 0) -> FidelityResult:
    with InlineExecutor() as inline:
        return fidelity_search(problem, seed=seed, evaluations=evaluations, executor=inline)


def optimum() -> float:
    problem = problem_with(Measured(loss))
    exact = minimise(problem.space, Additive(_TABLE), problem.budgets)
    assert exact is not None
    assert exact.value is not None
    return exact.value


def test_few_full_evaluations_come_close_to_the_optimum_where_evolution_does_not() -> None:
    problem = problem_with(Measured(loss, fidelities=FIDELITIES))
    found = run(problem, evaluations=32)
    assert found.full == 32
    assert found.by_fidelity[0.5] == 32 * 3
    assert 32 * 8 < found.by_fidelity[0.2] <= 32 * 9
    assert (problem.violations(problem.costs(found.genomes)) <= 0).all()
    gap = found.objectives[0, 0] / optimum() - 1
    assert gap <= 0.05
    evolved = search(problem_with(Measured(loss)), seed=0, population=12, generations=4)
    assert gap < evolved.objectives[0, 0] / optimum() - 1


def test_one_fidelity_and_one_objective() -> None:
    problem = problem_with(Measured(loss))
    found = run(replace(problem, objectives=problem.objectives[:1]), evaluations=40)
    assert found.objectives.shape == (1, 1)
    assert found.objectives[0, 0] / optimum() - 1 <= 0.1


def test_cheap_fidelities_help_when_full_evaluations_are_few() -> None:
    with_cheap = run(problem_with(Measured(loss, fidelities=FIDELITIES)), evaluations=16)
    without = run(problem_with(Measured(loss)), evaluations=16)
    assert with_cheap.objectives[0, 0] < without.objectives[0, 0]


@dataclass(frozen=True)
class Unlucky:
    """`loss`, but one genome looks bad at the lowest fidelity."""

    genome: tuple[int, ...]

    def __call__(self, genome: tuple[int, ...], *, fidelity: float, seed: int) -> float:
        return loss(genome, fidelity=fidelity, seed=seed) + 0.4 * (fidelity == 0.2 and genome == self.genome)


def test_a_bad_cheap_measurement_does_not_drop_the_best_for_good() -> None:
    problem = problem_with(Measured(loss))
    exact = minimise(problem.space, Additive(_TABLE), problem.budgets)
    assert exact is not None
    assert exact.genome is not None
    best = tuple(int(choice) for choice in exact.genome)
    found = run(problem_with(Measured(Unlucky(best), fidelities=FIDELITIES)), evaluations=32)
    assert tuple(found.genomes[0].tolist()) == best


def _rows(directory: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(directory / JOURNAL) as connection:
        return connection.execute(
            "SELECT genome, fidelity, seed, status, costs FROM evaluation ORDER BY fidelity, genome"
        ).fetchall()


def test_every_fidelity_is_in_one_journal_and_a_stopped_search_goes_on(tmp_path: Path) -> None:
    problem = problem_with(Measured(loss, fidelities=FIDELITIES))

    def stop(at: Round) -> None:
        if at.number == 1:
            raise KeyboardInterrupt

    results = []
    for name, stopping in (("whole", False), ("stopped", True)):
        directory = tmp_path / name
        for resume in (False, True):
            with ProcessExecutor(2) as executor, Study.open(directory, settings={}, resume=resume) as study:
                try:
                    results.append(
                        fidelity_search(
                            problem,
                            seed=1,
                            evaluations=16,
                            executor=executor,
                            study=study,
                            on_round=stop if stopping and not resume else None,
                        )
                    )
                except KeyboardInterrupt:
                    assert 0 < len(_rows(directory)) < 16 * 12
    assert len(results) == 3
    for other in results[1:]:
        np.testing.assert_array_equal(other.genomes, results[0].genomes)
        np.testing.assert_array_equal(other.objectives, results[0].objectives)
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "stopped")
    assert len(_rows(tmp_path / "whole")) == sum(results[0].by_fidelity.values())


def test_failures_do_not_stop_it() -> None:
    problem = problem_with(Measured(fragile_loss, fidelities=(0.5, 1.0)))
    with ProcessExecutor(2) as executor:
        found = fidelity_search(problem, seed=0, evaluations=6, batch=6, executor=executor)
    assert len(found.genomes)
    assert not any(sum(genome) % 15 < 3 for genome in found.genomes.tolist())


def test_wrong_problems_are_refused() -> None:
    problem = problem_with(Measured(loss))
    with pytest.raises(InputError, match="for others use `search`"):
        fidelity_search(replace(problem, objectives=problem.objectives[1:]), seed=0, evaluations=8)
    with pytest.raises(InputError, match="halving 2, got 0"):
        fidelity_search(problem, seed=0, evaluations=0)
    impossible = replace(problem, budgets=(replace(problem.budgets[0], at_most=0.0),))
    with pytest.raises(InfeasibleError, match="the best"):
        fidelity_search(impossible, seed=0, evaluations=8)


def test_a_small_space_is_measured_whole_at_the_lowest_fidelity() -> None:
    space = GridSpace((2, 3))
    table = np.array([[0.0, 1.0, 0.0], [5.0, 3.0, 4.0]])

    def measure(genome: tuple[int, ...], *, fidelity: float, seed: int) -> float:
        return float(table[np.arange(2), list(genome)].sum())

    problem = Problem(
        space,
        objectives=(
            Objective("loss", cost=Measured(measure, fidelities=(0.25, 1.0)), tier="expensive"),
            Objective("price", cost=Additive(-table)),
        ),
        budgets=(Budget("price", text="price<=-3.5", cost=Additive(-table), at_most=-3.5),),
    )
    found = run(problem, evaluations=2)
    assert found.by_fidelity == {0.25: 5, 1.0: 2}
    assert found.objectives[0].tolist() == [4.0, -4.0]
