"""The engine: near the exact optimum, deterministic, no duplicates, any callable and any space."""

from __future__ import annotations

import numpy as np
import pytest

from hwsearch.errors import InfeasibleError, InputError
from hwsearch.search.engine import Progress, search
from hwsearch.search.evolution import Evolution
from hwsearch.search.pareto import non_dominated
from hwsearch.search.problem import Additive, Budget, Objective, Problem
from hwsearch.search.space import FloatArray, Genomes, Space
from tests.search.search_problems import everything, grid, hybrid, limited, random_problem

SPACES: dict[str, Space] = {"grid": grid(28, 7), "hybrid": hybrid(28), "limited": limited(28, at_most=4)}


@pytest.mark.parametrize(
    ("space", "tightness", "seed"),
    [
        ("grid", 0.1, 0),
        ("grid", 0.4, 1),
        ("grid", 0.8, 2),
        ("hybrid", 0.15, 1),
        ("hybrid", 0.4, 3),
        ("hybrid", 0.8, 4),
        ("limited", 0.5, 5),
    ],
)
def test_best_is_within_half_a_percent_of_the_optimum(space: str, tightness: float, seed: int) -> None:
    problem = random_problem(seed, space=SPACES[space], tightness=tightness)
    result = search(problem, seed=seed)
    assert result.exact is not None
    assert result.exact.proven
    assert result.gap is not None
    assert 0 <= result.gap <= 0.005
    assert (problem.evaluate(result.genomes)[1] == 0).all()


def test_a_larger_problem() -> None:
    result = search(random_problem(5, space=grid(64, 12), tightness=0.4), seed=0)
    assert result.gap is not None
    assert result.gap <= 0.005


def test_the_whole_front_of_a_small_space() -> None:
    space = limited(5)
    problem = random_problem(2, space=space, tightness=0.9)
    genomes = everything(space)
    objectives, violations = problem.evaluate(genomes)
    objectives = objectives[violations <= 0]
    result = search(problem, seed=0, population=100, generations=40)
    expected = np.unique(objectives[non_dominated(objectives)], axis=0)
    np.testing.assert_array_equal(result.objectives, expected)
    assert result.best == 0
    assert result.pick("best") == 0
    assert result.pick("knee") == result.knee
    assert result.pick("1") == 1
    for wrong in ("-1", "worst", str(len(expected))):
        with pytest.raises(InputError, match="from 0 to"):
            result.pick(wrong)


def test_same_seed_same_result_and_nothing_evaluated_twice() -> None:
    seen: list[Genomes] = []

    def run(seed: int) -> tuple[Genomes, FloatArray]:
        seen.clear()
        problem = random_problem(1, space=hybrid(16), tightness=0.3)
        evolution = Evolution(problem, population=40, seed=seed)
        for _ in range(25):
            genomes = evolution.ask()
            seen.append(genomes)
            evolution.tell(genomes, problem.costs(genomes))
        return np.concatenate(seen), evolution.archive.objectives

    first, front = run(7)
    again, same_front = run(7)
    other, _ = run(8)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(front, same_front)
    assert first.shape != other.shape or np.any(first != other)
    assert len(np.unique(first, axis=0)) == len(first)
    assert hybrid(16).valid(first).all()


def test_costs_that_do_not_add_up_three_objectives_and_a_foreign_space() -> None:
    calls = 0

    def hills(genomes: Genomes) -> FloatArray:
        nonlocal calls
        calls += len(genomes)
        total: FloatArray = 30 - np.abs(np.diff(genomes, axis=1)).sum(axis=1) + 0.1 * genomes[:, 0]
        return total

    problem = Problem(
        grid(10, 4),
        objectives=(
            Objective("hills", unit="", cost=hills),
            Objective("sum", unit="", cost=lambda g: g.sum(axis=1).astype(float)),
            Objective("top", unit="", cost=lambda g: g.max(axis=1).astype(float)),
        ),
        budgets=(Budget("hills", text="hills<=20", cost=hills, at_most=20.0, describe=str),),
    )
    result = search(problem, seed=0, population=60, generations=60)
    assert result.exact is None
    assert result.gap is None
    assert result.objectives[0, 0] <= 3.3 + 1e-9  # 0, 3, 0, 3, ... has 3.0, its mirror image 3.3
    assert calls == result.evaluations  # one call serves objective and budget


def test_progress_is_reported() -> None:
    reports: list[Progress] = []
    problem = random_problem(0, space=grid(8, 4), tightness=0.5)
    result = search(problem, seed=0, population=20, generations=10, on_generation=reports.append)
    assert [report.generation for report in reports] == list(range(1, 11))
    assert reports[-1].evaluations == result.evaluations
    assert reports[-1].best == result.objectives[0, 0]


def test_unreachable_budgets_raise_with_the_reason() -> None:
    with pytest.raises(InfeasibleError, match="no architecture meets latency"):
        search(random_problem(0, space=hybrid(8), tightness=-1.0), seed=0)
    problem = Problem(
        grid(4, 3),
        objectives=(Objective("a", unit="", cost=lambda g: g.sum(axis=1) + 1.0),),
        budgets=(Budget("b", text="b<=0", cost=lambda g: g.max(axis=1) + 1.0, at_most=0.0, describe=str),),
    )
    with pytest.raises(InfeasibleError, match=r"was found that meets b<=0.*evolution found is 1\.0"):
        search(problem, seed=0, population=10, generations=5)


def test_wrong_costs_and_settings_are_refused() -> None:
    space = grid(3, 3)
    genomes = space.sample(4, rng=np.random.default_rng(0))

    def single(cost: object) -> Problem:
        return Problem(space, objectives=(Objective("loss", unit="", cost=cost),))  # type: ignore[arg-type]

    with pytest.raises(InputError, match="one float per genome"):
        single(lambda g: 1.0).evaluate(genomes)
    with pytest.raises(InputError, match="loss is nan for genome"):
        single(Additive(np.full((3, 3), np.nan))).evaluate(genomes)
    with pytest.raises(InputError, match="at least one objective"):
        Problem(space, objectives=())
    with pytest.raises(InputError, match="finite"):
        Problem(
            space,
            objectives=single(len).objectives,
            budgets=(
                Budget("b", text="b<=x", cost=Additive(np.zeros((3, 3))), at_most=np.inf, describe=str),
            ),
        )
    with pytest.raises(InputError, match="peak"):
        Additive(np.zeros((3, 3)), peak=np.zeros((2, 3)))
    with pytest.raises(InputError, match="at least 4"):
        search(single(Additive(np.zeros((3, 3)))), seed=0, population=2)
    with pytest.raises(InputError, match="generation"):
        search(single(Additive(np.zeros((3, 3)))), seed=0, generations=0)


def test_violations_are_shares_of_each_budget_summed() -> None:
    cost = Additive(np.array([[0.0, 1.0, 2.0, 3.0]]), peak=np.array([[0.0, 0.0, 0.0, 10.0]]))
    budgets = tuple(
        Budget(name, text=name, cost=cost, at_most=bound, describe=str)
        for name, bound in (("a", 2.0), ("z", 0.0))
    )
    problem = Problem(grid(1, 4), objectives=(Objective("o", unit="", cost=cost),), budgets=budgets)
    objectives, violations = problem.evaluate(np.array([[0], [1], [2], [3]]))
    assert objectives[:, 0].tolist() == [0.0, 1.0, 2.0, 13.0]
    assert violations.tolist() == [0.0, 1.0, 2.0, 13.0 + 5.5]
