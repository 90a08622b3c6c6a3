"""The exact solver and the explanation of infeasible budgets against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwsearch.errors import InputError
from hwsearch.search.exact import minimise
from hwsearch.search.infeasible import explain, reachable
from hwsearch.search.problem import Additive, Budget, Problem
from hwsearch.search.space import GridSpace, Space
from hwsearch.searchspace.space import CountLimit
from tests.search.search_problems import everything, grid, hybrid, limited, random_problem

SPACES: dict[str, Space] = {
    "hybrid": hybrid(5),
    "limited": limited(5),
    "counted": hybrid(5).limit("jet_block", CountLimit(at_least=2, at_most=3)),
    "grid": GridSpace((4, 2, 5, 1, 3, 4)),
}


@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize("tightness", [0.05, 0.4, 0.8])
def test_optimum_equals_brute_force(name: str, tightness: float) -> None:
    space = SPACES[name]
    genomes = everything(space)
    for seed in range(4):
        problem = random_problem(seed, space=space, tightness=tightness)
        objectives, violations = problem.evaluate(genomes)
        feasible = objectives[violations <= 0, 0]
        found = minimise(space, problem.objectives[0].cost, problem.budgets)
        if not len(feasible):
            assert found is None
            continue
        assert found is not None
        assert found.proven
        assert found.value == pytest.approx(feasible.min(), rel=1e-9)
        assert found.bound == pytest.approx(feasible.min(), rel=1e-6)
        assert problem.evaluate(np.array([found.genome]))[1][0] == 0
        assert space.valid(np.array([found.genome]))[0]


def test_a_peak_in_the_objective_counts_once() -> None:
    space = hybrid(4)
    rng = np.random.default_rng(0)
    cost = Additive(rng.random((4, 7)), peak=5 * rng.random((4, 7)), constant=-2.0)
    found = minimise(space, cost, ())
    assert found is not None
    assert found.value == pytest.approx(cost(everything(space)).min())


def test_a_budget_exactly_at_a_reachable_cost_is_met() -> None:
    space = grid(20, 5)
    problem = random_problem(3, space=space, tightness=0.5)
    for genome in space.sample(10, rng=np.random.default_rng(0)):
        budget = replace(problem.budgets[0], at_most=float(problem.budgets[0].cost(genome[None])[0]))
        found = minimise(space, problem.objectives[0].cost, (budget,))
        assert found is not None
        assert found.genome is not None
        assert found.value is not None
        assert budget.cost(np.array([found.genome]))[0] <= budget.at_most
        assert found.value <= problem.objectives[0].cost(genome[None])[0]


def test_only_additive_costs_have_an_exact_optimum() -> None:
    space = grid(3, 3)
    with pytest.raises(InputError, match="does not add up"):
        minimise(space, lambda genomes: genomes.sum(axis=1) ** 2.0, ())
    with pytest.raises(InputError, match=r"\(2, 3\)"):
        minimise(space, Additive(np.zeros((2, 3))), ())


def _with(problem: Problem, **bounds: float) -> Problem:
    budgets = tuple(
        replace(b, at_most=bounds[b.name], text=f"{b.name}<={bounds[b.name]:.4g}") for b in problem.budgets
    )
    return Problem(problem.space, objectives=problem.objectives, budgets=budgets)


@pytest.mark.parametrize("additive", [True, False])
def test_a_hopeless_budget_is_named_with_what_can_be_reached(additive: bool) -> None:
    space = limited(5)
    problem = _with(random_problem(1, space=space, tightness=0.5), latency=0.1, memory=100.0)
    if not additive:
        exact = problem.budgets[0].cost
        problem = Problem(
            space,
            objectives=problem.objectives,
            budgets=(replace(problem.budgets[0], cost=lambda g: exact(g)), problem.budgets[1]),
        )
    least = problem.budgets[0].cost(everything(space)).min()
    message = explain(problem)
    assert "latency<=0.1" in message
    assert "memory" not in message
    assert f"{least:.3f} ms" in message
    assert ("found" in message) is not additive


def test_budgets_in_conflict_are_told_apart_from_those_that_are_not() -> None:
    space = grid(2, 2)
    fast = Additive(np.array([[0.0, 1.0], [0.0, 1.0]]))
    small = Additive(np.array([[1.0, 0.0], [1.0, 0.0]]))
    loose = Additive(np.ones((2, 2)))
    budgets = tuple(
        Budget(name, text=f"{name}<=x", cost=cost, at_most=bound, describe=lambda v: f"<{v:g}>")
        for name, cost, bound in (("fast", fast, 0.5), ("loose", loose, 5.0), ("small", small, 0.5))
    )
    problem = Problem(
        space, objectives=random_problem(0, space=space, tightness=0).objectives, budgets=budgets
    )
    message = explain(problem)
    assert "fast<=x and small<=x together" in message
    assert "loose" not in message
    assert "with small<=x, the best of this space is <2>" in message
    reach = reachable(problem, budgets[0], within=budgets[1:])
    assert reach is not None
    assert reach.value == 2.0


def test_an_empty_space_is_said_to_be_empty() -> None:
    space = hybrid(3).limit("none", CountLimit(at_least=3))
    assert "space is empty" in explain(random_problem(0, space=space, tightness=1))
