"""Exact optima and fronts of additive and pairwise tables against brute force, on random rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import InputError
from hwsearch.search.chain import Chain
from hwsearch.search.exact import minimise
from hwsearch.search.front import exact_front
from hwsearch.search.pareto import non_dominated
from hwsearch.search.problem import Additive, Budget, Objective, Pairwise, Problem
from hwsearch.search.programme import Programme
from hwsearch.search.rules import Rules
from hwsearch.search.space import GridSpace, Space
from hwsearch.searchspace.space import CountLimit
from tests.search.search_problems import a_cost, everything, hybrid


def a_space(rng: np.random.Generator) -> Space:
    """A small space with random ties, limits and transitions, or without any."""
    layers = int(rng.integers(1, 6))
    if rng.random() < 0.3:
        return GridSpace(tuple(rng.integers(1, 6, size=layers).tolist()))
    space = hybrid(layers)
    for kind in ("full_attention", "jet_block", "none"):
        if rng.random() < 0.5:
            at_least = int(rng.integers(0, max(layers // 2, 1)))
            space = space.limit(
                kind, CountLimit(at_least=at_least, at_most=int(rng.integers(at_least, layers + 1)))
            )
    return space


def a_problem(seed: int, *, far: bool = False) -> Problem:
    rng = np.random.default_rng(seed)
    space = a_space(rng)
    shape = space.allowed_mask.shape
    costs = [a_cost(rng, shape, far=far) for _ in range(int(rng.integers(2, 5)))]
    genomes = everything(space)
    budgets = []
    for i, cost in enumerate(costs[1:]):
        values = cost(genomes) if len(genomes) else np.zeros(1)
        # Often exactly at a value that occurs, where rounding could decide.
        at_most = float(np.quantile(values, rng.uniform(0, 1), method="nearest"))
        budgets.append(Budget(f"b{i}", text=f"b{i}<={at_most}", cost=cost, at_most=at_most))
    second = costs[1] if rng.random() < 0.7 else a_cost(rng, shape, far=far)
    objectives = (Objective("first", cost=costs[0]), Objective("second", cost=second))
    return Problem(space, objectives=objectives, budgets=tuple(budgets))


@given(seed=st.integers(0, 2**32 - 1), far=st.booleans())
@settings(max_examples=120, deadline=None)
def test_the_optimum_equals_brute_force(seed: int, far: bool) -> None:
    problem = a_problem(seed, far=far)
    objectives, violations = problem.evaluate(everything(problem.space))
    feasible = objectives[violations <= 0, 0]
    found = minimise(problem.space, problem.objectives[0].cost, problem.budgets)
    if not len(feasible):
        assert found is None
        return
    assert found is not None
    assert found.proven
    assert found.value == pytest.approx(feasible.min(), rel=1e-9, abs=1e-9)
    assert found.bound <= feasible.min() + 1e-6
    assert problem.evaluate(np.array([found.genome]))[1][0] == 0
    assert problem.space.valid(np.array([found.genome]))[0]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_front_equals_brute_force(seed: int) -> None:
    problem = a_problem(seed)
    objectives, violations = problem.evaluate(everything(problem.space))
    objectives = objectives[violations <= 0]
    found = exact_front(problem)
    if not len(objectives):
        assert found is None
        return
    assert found is not None
    assert found.complete
    expected = np.unique(objectives[non_dominated(objectives)], axis=0)
    # Points that differ by rounding alone in one objective are two to brute force; the better one in the other
    # objective is the one to find.
    kept: list[list[float]] = []
    for first, second in expected.tolist():
        if kept and first - kept[-1][0] <= 1e-8 * abs(first):
            kept.pop()
        elif kept and kept[-1][1] - second <= 1e-8 * abs(second):
            continue
        kept.append([first, second])
    rounded = np.array(kept)
    np.testing.assert_allclose(found.objectives, rounded, rtol=1e-7, atol=1e-7)
    assert problem.evaluate(found.genomes)[1].max() == 0
    assert found.best.proven
    assert found.best.bound <= expected[0, 0] + 1e-6


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
def test_the_front_of_three_objectives_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = hybrid(int(rng.integers(1, 3)))
    shape = space.allowed_mask.shape
    # Whole numbers, so that what rounding could tell apart is truly apart.
    costs = [Additive(rng.integers(0, 4, size=shape).astype(np.float64)) for _ in range(4)]
    at_most = float(rng.integers(2 * shape[0], 4 * shape[0]))
    problem = Problem(
        space,
        objectives=tuple(Objective(f"o{i}", cost=cost) for i, cost in enumerate(costs[:3])),
        budgets=(Budget("b", text="b", cost=costs[3], at_most=at_most),),
    )
    objectives, violations = problem.evaluate(everything(space))
    objectives = objectives[violations <= 0]
    found = exact_front(problem)
    assert found is not None
    assert found.complete
    expected = np.unique(objectives[non_dominated(objectives)], axis=0)
    np.testing.assert_array_equal(found.objectives, expected)
    np.testing.assert_array_equal(problem.evaluate(found.genomes)[0], expected)


def test_a_front_cut_off_by_time_holds_only_points_of_the_front() -> None:
    rng = np.random.default_rng(1)
    space = hybrid(2)
    costs = [Additive(rng.integers(0, 5, size=space.allowed_mask.shape).astype(np.float64)) for _ in range(3)]
    problem = Problem(space, objectives=tuple(Objective(f"o{i}", cost=cost) for i, cost in enumerate(costs)))
    whole, cut = exact_front(problem), exact_front(problem, time_limit_s=0.0)
    assert whole is not None
    assert cut is not None
    assert whole.complete
    assert not cut.complete
    assert 0 < len(cut.genomes) < len(whole.genomes)
    assert {tuple(p) for p in cut.objectives.tolist()} <= {tuple(p) for p in whole.objectives.tolist()}


@pytest.mark.parametrize("seed", range(6))
def test_chain_and_programme_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = GridSpace((4,) * 9)
    shape = space.allowed_mask.shape
    cost = Pairwise.neighbours(rng.random(shape), rng.random((8, 4, 4)))
    time = Pairwise.neighbours(rng.random(shape), 0.2 * rng.random((8, 4, 4)))
    budget = Budget("time", text="time<=3.5", cost=time, at_most=3.5)
    found = minimise(space, cost, (budget,))
    assert found is not None
    assert found.value is not None
    outcome = Programme(space, cost, [(budget, time)]).solve(20.0)
    assert outcome is not None
    genome, bound, proven = outcome
    assert proven
    assert genome is not None
    assert cost(genome[None])[0] == pytest.approx(found.value)
    assert bound == pytest.approx(found.value, rel=1e-5)


def test_too_few_labels_give_an_honest_bound() -> None:
    rng = np.random.default_rng(0)
    space = GridSpace((6,) * 20)
    costs = [Additive(rng.random(space.allowed_mask.shape)) for _ in range(4)]
    at_most = np.full(3, 8.0)

    def check(genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fits = np.ones(len(genomes), dtype=bool)
        for cost in costs[1:]:
            fits &= cost(genomes) <= 8.0
        return costs[0](genomes), fits

    chain = Chain(costs, rules=Rules(space))
    whole = chain.cheapest(at_most, check=check)
    assert whole.proven
    cut = chain.cheapest(at_most, check=check, labels=3)
    assert cut.bound <= whole.values[0] + 1e-9
    assert not len(cut.values) or cut.values[0] >= whole.values[0]
    assert not cut.proven or cut.values[0] == whole.values[0]


def test_pairwise_costs_are_checked_and_add_up() -> None:
    table, together = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.arange(8.0).reshape(2, 2, 2)
    cost = Pairwise.neighbours(table, together, constant=10.0)
    assert cost(np.array([[0, 1, 0]])).tolist() == [10 + 1 + 4 + 5 + 1 + 6]
    far = Pairwise(table, pairs=np.array([[0, 2]]), together=together[:1])
    assert far.adjacent is None
    assert far(np.array([[1, 0, 1]])).tolist() == [2 + 3 + 6 + 3]
    with pytest.raises(InputError, match="pairs"):
        Pairwise(table, pairs=np.array([[0, 2]]), together=together)
    with pytest.raises(InputError, match="smaller first"):
        Pairwise(table, pairs=np.array([[2, 0]]), together=together[:1])
    with pytest.raises(InputError, match="tier"):
        Objective("a", cost=cost, tier="dear")  # type: ignore[arg-type]
