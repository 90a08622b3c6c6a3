"""The exact front against brute force on spaces of up to a hundred thousand architectures, under every kind of rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.search.exact import minimise
from hwsearch.search.front import exact_front
from hwsearch.search.problem import Budget, Objective, Problem
from hwsearch.search.space import FloatArray, Genomes
from hwsearch.searchspace.constraints import CountLimit, Pattern
from hwsearch.searchspace.space import SearchSpace
from tests.search.search_problems import a_cost, everything, hybrid

MOST = 100_000
GROUPS = {
    "softmax": ("full_attention", "sliding_window_attention"),
    "linear": ("gated_delta_net", "jet_block"),
}


def ruled(rng: np.random.Generator) -> SearchSpace:
    """A space under random ties, limits, patterns, transitions and orders, of up to 400,000 genomes before them."""
    layers = int(rng.integers(2, 11))
    count = int(np.clip(np.floor(4e5 ** (1 / layers)), 2, 7))
    kept = np.sort(rng.choice(7, size=count, replace=False))
    space = hybrid(layers).restrict(kept.tolist())
    kinds = sorted(set(space.kinds))
    names = [name for name in (*kinds, *GROUPS) if set(GROUPS.get(name, (name,))) & set(kinds)]

    def pairs() -> list[tuple[str, str]]:
        found = [(str(a), str(b)) for a, b in rng.choice(names, size=(int(rng.integers(3)), 2))]
        return [pair for pair in found if pair[0] != pair[1] or rng.random() < 0.5]

    def limit(most: int) -> CountLimit:
        at_least = int(rng.integers(0, max(most // 3, 1)))
        return CountLimit(at_least=at_least, at_most=int(rng.integers(max(at_least, 1), most + 1)))

    every = int(rng.integers(1, layers + 1))
    return replace(
        space,
        groups=GROUPS,
        ties=tuple(name for name in ("jet_block", "linear") if name in names and rng.random() < 0.4),
        limits={str(name): limit(layers) for name in rng.choice(names, size=int(rng.integers(3)))},
        patterns=tuple(
            Pattern(kind=str(rng.choice(names)), every=every, limit=limit(every)) for _ in range(2)
        )
        if rng.random() < 0.3
        else (),
        forbidden=frozenset(pairs()),
        orders=tuple(pairs()) if rng.random() < 0.3 else (),
        needs=tuple(pairs()) if rng.random() < 0.3 else (),
    )


def a_problem(seed: int) -> tuple[Problem, Genomes]:
    """A problem over a space of 1 to 100,000 architectures, and all of these."""
    rng = np.random.default_rng(seed)
    while True:
        space = ruled(rng)
        if 0 < space.size <= MOST and (space.size > 5000 or rng.random() < 0.3):
            break
    genomes = everything(space)
    assert len(genomes) == space.size
    costs = [a_cost(rng, space.allowed_mask.shape, far=False) for _ in range(int(rng.integers(2, 5)))]
    budgets = []
    for i, cost in enumerate(costs[1:]):
        # Often exactly at a value that occurs, where rounding could decide.
        at_most = float(np.quantile(cost(genomes), rng.uniform(0, 1), method="nearest"))
        budgets.append(Budget(f"b{i}", text=f"b{i}<={at_most}", cost=cost, at_most=at_most))
    objectives = (Objective("first", cost=costs[0]), Objective("second", cost=costs[1]))
    return Problem(space, objectives=objectives, budgets=tuple(budgets)), genomes


def undercut(points: FloatArray, front: FloatArray) -> FloatArray:
    """By how much each of the points (n, 2) is better than all of a sorted front (f, 2) as good in the first."""
    slack = 1e-8 * max(float(np.abs(points).max()), 1.0)
    behind = np.searchsorted(front[:, 0], points[:, 0] + slack, side="right")
    least = np.concatenate(([np.inf], np.minimum.accumulate(front[:, 1])))
    better: FloatArray = least[behind] - points[:, 1] - slack
    return better


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_no_architecture_is_better_than_the_exact_front(seed: int) -> None:
    problem, genomes = a_problem(seed)
    objectives, violations = problem.evaluate(genomes)
    objectives = objectives[violations <= 0]
    found = exact_front(problem)
    if not len(objectives):
        assert found is None
        return
    assert found is not None
    assert found.complete
    assert undercut(objectives, found.objectives).max() <= 0
    assert problem.space.valid(found.genomes).all()
    values, excess = problem.evaluate(found.genomes)
    np.testing.assert_array_equal(values, found.objectives)
    assert excess.max() == 0
    assert found.objectives[0, 0] == pytest.approx(objectives[:, 0].min(), rel=1e-8, abs=1e-8)
    optimum = minimise(problem.space, problem.objectives[0].cost, problem.budgets)
    assert optimum is not None
    assert optimum.proven
    assert optimum.value == pytest.approx(objectives[:, 0].min(), rel=1e-9, abs=1e-9)
