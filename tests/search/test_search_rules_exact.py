"""Both exact solvers keep patterns, orders, group ties and ties over wide layers: against brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.search.engine import search
from hwsearch.search.exact import minimise
from hwsearch.search.programme import Programme
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.constraints import CountLimit, Pattern
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.space import SearchSpace
from tests.search.search_problems import everything, hybrid, random_problem

GROUPS = {
    "softmax": ("full_attention", "sliding_window_attention"),
    "linear": ("gated_delta_net", "jet_block"),
}
PLAIN = replace(hybrid(5), groups=GROUPS)
WIDE = preset_named("all", base_named("Qwen3-1.7B").replace(num_layers=3))
SPACES: dict[str, SearchSpace] = {
    "patterned": replace(
        PLAIN, patterns=(Pattern(kind="softmax", every=2, limit=CountLimit(at_least=1, at_most=1)),)
    ),
    "ordered": replace(PLAIN, orders=(("full_attention", "none"), ("linear", "softmax"))),
    "needy": replace(
        PLAIN, needs=(("softmax", "linear"), ("none", "full_attention")), orders=(("jet_block", "none"),)
    ),
    "group tied": replace(PLAIN, ties=("linear",), limits={"softmax": CountLimit(at_most=3)}),
    "wide": WIDE.restrict([i for i in range(len(WIDE.choices)) if i % 3 != 1]),
}


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 2**32 - 1), tightness=st.floats(0.1, 0.8))
def test_both_exact_solvers_equal_brute_force(name: str, seed: int, tightness: float) -> None:
    space = SPACES[name]
    problem = random_problem(seed, space=space, tightness=tightness, peak=False)
    genomes = everything(space)
    costs = problem.costs(genomes)
    values = costs[problem.violations(costs) <= 0, 0]
    found = minimise(space, problem.objectives[0].cost, problem.budgets)
    tables = [(budget, budget.cost) for budget in problem.budgets]
    programme = Programme(space, problem.objectives[0].cost, tables)  # type: ignore[arg-type]
    outcome = programme.solve(20.0)
    if not len(values):
        assert found is None
        assert outcome is None
        return
    assert found is not None
    assert found.proven
    assert found.value == pytest.approx(values.min(), rel=1e-9)
    assert outcome is not None
    genome, bound, proven = outcome
    assert proven
    assert genome is not None
    assert space.valid(genome[None]).all()
    assert bound == pytest.approx(values.min(), rel=1e-5)


@pytest.mark.parametrize("name", sorted(SPACES))
def test_the_search_ends_at_the_optimum(name: str) -> None:
    problem = random_problem(7, space=SPACES[name], tightness=0.5)
    result = search(problem, seed=0, population=40, generations=30)
    assert SPACES[name].valid(result.genomes).all()
    assert result.gap is not None
    assert result.gap <= 0.02
