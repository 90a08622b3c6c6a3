"""Pruning by budgets never removes what a feasible architecture uses, and removes what it can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import InfeasibleError
from hwsearch.search.engine import search
from hwsearch.search.exact import minimise
from hwsearch.search.problem import Additive, Budget, Problem
from hwsearch.search.pruning import pruned, usable
from hwsearch.searchspace.constraints import CountLimit, Pattern
from hwsearch.searchspace.space import SearchSpace
from tests.search.search_problems import everything, grid, hybrid, limited, random_problem

SPACES: dict[str, SearchSpace] = {
    "hybrid": hybrid(4),
    "limited": limited(4),
    "patterned": replace(
        hybrid(5), patterns=(Pattern(kind="none", every=2, limit=CountLimit(at_least=1, at_most=1)),)
    ),
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SPACES)),
    seed=st.integers(0, 2**32 - 1),
    tightness=st.floats(0, 0.6),
    peak=st.booleans(),
)
def test_no_feasible_architecture_is_lost(name: str, seed: int, tightness: float, peak: bool) -> None:
    space = SPACES[name]
    problem = random_problem(seed, space=space, tightness=tightness, peak=peak)
    genomes = everything(space)
    feasible = genomes[problem.violations(problem.costs(genomes)) <= 0]
    mask = usable(problem, space)
    assert mask[np.arange(space.num_layers), feasible].all()
    narrow = pruned(problem)
    assert narrow.space.valid(feasible).all()
    if len(feasible):
        full = minimise(space, problem.objectives[0].cost, problem.budgets)
        part = minimise(narrow.space, narrow.objectives[0].cost, narrow.budgets)
        assert full is not None
        assert part is not None
        assert part.value == full.value


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 2**32 - 1), tightness=st.floats(0, 0.6))
def test_with_one_additive_budget_exactly_the_used_choices_stay(
    name: str, seed: int, tightness: float
) -> None:
    space = SPACES[name]
    problem = random_problem(seed, space=space, tightness=tightness)
    problem = replace(problem, budgets=problem.budgets[:1])
    genomes = everything(space)
    feasible = genomes[problem.violations(problem.costs(genomes)) <= 0]
    used = np.zeros(space.allowed_mask.shape, dtype=bool)
    used[np.arange(space.num_layers)[None], feasible] = True
    np.testing.assert_array_equal(usable(problem, space), used)


def test_a_tight_budget_prunes_and_the_message_speaks_of_the_whole_space() -> None:
    problem = random_problem(1, space=hybrid(10), tightness=0.05)
    assert usable(problem, hybrid(10)).sum() < 0.8 * hybrid(10).allowed_mask.sum()
    impossible = replace(problem, budgets=(replace(problem.budgets[0], at_most=0.0),))
    assert pruned(impossible) is impossible
    with pytest.raises(InfeasibleError, match="the best of this space is"):
        search(impossible, seed=0, population=8, generations=1)


def test_what_cannot_be_pruned_is_left_alone() -> None:
    black_box = Budget(
        "b", text="b<=1", cost=lambda g: g.sum(axis=1).astype(float), at_most=1, describe=lambda v: f"{v}"
    )
    problem = random_problem(0, space=hybrid(4), tightness=0.1)
    assert pruned(replace(problem, budgets=(black_box,))).space is problem.space
    somebody_elses = grid(4, 3)
    other = Problem(
        somebody_elses,
        objectives=problem.objectives[:1],
        budgets=(replace(black_box, cost=Additive(np.ones((4, 3)))),),
    )
    assert pruned(other) is other
