"""Variation and repair keep genomes inside the space; proposals of the refinement too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import InputError
from hwsearch.search.evolution import Evolution
from hwsearch.search.problem import Additive, Budget, Objective, Problem
from hwsearch.search.rules import Rules
from hwsearch.search.space import Genomes, GridSpace, Space
from hwsearch.search.thrift import Thrift
from hwsearch.search.variation import (
    Rates,
    corners,
    crossover,
    move,
    mutate,
    step,
    swap,
    switch_tie,
    vary,
)
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.constraints import CountLimit, Pattern
from hwsearch.searchspace.presets import preset_named
from tests.search.search_problems import everything, grid, hybrid, limited, random_problem

SPACES: dict[str, Space] = {
    "hybrid": hybrid(12),
    "limited": limited(12),
    "grid": GridSpace((3, 1, 5, 2, 4)),
    "unequal": hybrid(4).limit("jet_block", limited(4).limits["none"]),
    "patterned": replace(
        hybrid(9),
        groups={"linear": ("gated_delta_net", "jet_block")},
        ties=("linear",),
        patterns=(Pattern(kind="full_attention", every=4, limit=CountLimit(at_least=1, at_most=2)),),
    ),
    "ordered": replace(
        hybrid(9), orders=(("full_attention", "none"), ("jet_block", "sliding_window_attention"))
    ),
    "needy": replace(
        hybrid(9), needs=(("none", "full_attention"), ("sliding_window_attention", "jet_block"))
    ),
    "wide": preset_named("all", base_named("Qwen3-1.7B").replace(num_layers=5)),
}
RULES = {name: Rules(space) for name, space in SPACES.items()}
cases = given(name=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 2**32 - 1))


@cases
@settings(max_examples=60, deadline=None)
def test_children_belong_to_the_space(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = SPACES[name].sample(10, rng=rng)
    children, used = vary(parents, 40, rules=RULES[name], rates=Rates(RULES[name]), rng=rng)
    assert SPACES[name].valid(children).all()
    assert len(used) == len(children)
    assert len(children) >= 30  # repair may drop a few, not many


@cases
@settings(max_examples=60, deadline=None)
def test_repair_mends_noise_and_leaves_valid_genomes_alone(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    space, rules = SPACES[name], RULES[name]
    noise = rng.integers(0, rules.num_choices, size=(30, space.num_layers))
    assert space.valid(rules.repair(noise, rng=rng)).all()
    fine = space.sample(30, rng=rng)
    np.testing.assert_array_equal(rules.repair(fine, rng=rng), fine)


@cases
@settings(max_examples=40, deadline=None)
def test_options_are_exactly_the_valid_single_changes(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    space, rules = SPACES[name], RULES[name]
    genomes = space.sample(8, rng=rng)
    layers = rng.integers(0, space.num_layers, size=8)
    options = rules.options(genomes, layers)
    for choice in range(rules.num_choices):
        changed = genomes.copy()
        changed[np.arange(8), layers] = choice
        expected = space.valid(changed) & (genomes[np.arange(8), layers] != choice)
        np.testing.assert_array_equal(options[:, choice], expected)


@cases
@settings(max_examples=40, deadline=None)
def test_budget_repair_keeps_rules_and_comes_no_further_from_the_budgets(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    space, rules = SPACES[name], RULES[name]
    shape = space.allowed_mask.shape
    genomes = space.sample(20, rng=rng)
    costs = [Additive(rng.random(shape), constant=float(rng.normal())) for _ in range(2)]
    budgets = [
        Budget("b", text="b", cost=cost, at_most=float(np.quantile(cost(genomes), rng.random())))
        for cost in costs[: int(rng.integers(1, 3))]
    ]
    problem = Problem(space, objectives=(Objective("o", cost=costs[0]),), budgets=tuple(budgets))
    repaired = Thrift(budgets, rules=rules).within(genomes, loss=rng.random((20, *shape)))
    assert space.valid(repaired).all()
    before, after = problem.evaluate(genomes)[1], problem.evaluate(repaired)[1]
    assert np.all((after < before) | (repaired == genomes).all(axis=1))
    np.testing.assert_array_equal(repaired[before == 0], genomes[before == 0])
    if rules.free and len(budgets) == 1:
        assert after.max() <= 1e-12  # the cheapest genome is within a budget that one of them meets


def test_budget_repair_takes_the_best_ratio() -> None:
    budget = Budget("b", text="b", cost=Additive(np.array([[3.0, 2.0, 0.0], [3.0, 1.0, 0.0]])), at_most=4.0)
    thrift = Thrift([budget], rules=Rules(GridSpace((3, 3))))
    # From 6 down to 4: the first layer loses 4 for 2 or more, the second 1 for the 2 that count.
    loss = np.array([[0.0, 3.0, 4.0], [0.0, 1.0, 5.0]])
    assert thrift.within(np.array([[0, 0]]), loss=loss).tolist() == [[0, 1]]


def test_a_known_budget_is_met_from_the_first_expensive_evaluations_on() -> None:
    tight = random_problem(0, space=hybrid(12), tightness=0.1)
    hidden = Objective("loss", cost=lambda genomes: tight.objectives[0].cost(genomes), tier="expensive")
    evolution = Evolution(
        Problem(tight.space, objectives=(hidden,), budgets=tight.budgets[:1]), population=20, seed=0
    )
    inside = tight.budgets[0].cost(evolution.ask()) <= tight.budgets[0].at_most
    assert inside.mean() >= 0.5
    assert (
        tight.budgets[0].cost(tight.space.sample(100, rng=np.random.default_rng(0)))
        > tight.budgets[0].at_most
    ).all()


def test_crossover_takes_one_segment() -> None:
    rng = np.random.default_rng(0)
    children = crossover(np.zeros((200, 9), dtype=int), np.ones((200, 9), dtype=int), rng=rng)
    switches = np.abs(np.diff(children, axis=1)).sum(axis=1)
    assert switches.max() == 2
    assert 0 < children.mean() < 1


def test_swap_moves_a_choice_and_keeps_the_counts() -> None:
    rng = np.random.default_rng(0)
    parents = np.tile(np.arange(6), (100, 1))
    children = swap(parents, rules=Rules(grid(6, 6)), rng=rng)
    np.testing.assert_array_equal(np.sort(children, axis=1), parents)
    assert set((children != parents).sum(axis=1).tolist()) == {0, 2}


def test_mutation_changes_about_one_layer_to_an_allowed_choice() -> None:
    space = GridSpace((4, 1, 3, 2, 5, 5, 5, 5))
    rng = np.random.default_rng(0)
    parents = space.sample(2000, rng=rng)
    children = mutate(parents, rules=Rules(space), rng=rng)
    assert space.valid(children).all()
    assert 0.4 < (children != parents).sum(axis=1).mean() < 1.0


def test_switching_a_tie_changes_the_whole_group() -> None:
    space = hybrid(12)
    members = space.kind_mask("jet_block")
    rng = np.random.default_rng(0)
    parents = space.sample(300, rng=rng)
    children = switch_tie(parents, rules=Rules(space), rng=rng)
    assert space.valid(children).all()
    np.testing.assert_array_equal(members[children], members[parents])
    assert np.any(children != parents)


@cases
@settings(max_examples=60, deadline=None)
def test_every_operator_keeps_to_the_choices_of_each_layer(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    space, rules = SPACES[name], RULES[name]
    parents = space.sample(20, rng=rng)
    before = parents.copy()
    for operator in (mutate, swap, move, step, switch_tie):
        children = operator(parents, rules=rules, rng=rng)
        assert children.shape == parents.shape
        if operator is not switch_tie:  # a group may not be open to every layer: repair sees to that
            assert rules.allowed[np.arange(space.num_layers), children].all()
        assert space.valid(rules.repair(children, rng=rng)).all()
    np.testing.assert_array_equal(parents, before)
    assert space.valid(corners(parents, rules=rules, rng=rng)).all()


def test_a_move_shifts_what_is_between() -> None:
    rng = np.random.default_rng(0)
    parents = np.tile(np.arange(7), (300, 1))
    children = move(parents, rules=Rules(grid(7, 7)), rng=rng)
    np.testing.assert_array_equal(np.sort(children, axis=1), parents)
    for child in children:
        left = [
            i
            for i in range(7)
            if any((np.delete(child, j) == np.delete(np.arange(7), i)).all() for j in range(7))
        ]
        assert left  # taking one layer out of both leaves the same order


def test_a_step_goes_to_the_next_choice_of_one_layer() -> None:
    rng = np.random.default_rng(0)
    parents = np.full((200, 5), 2)
    changes = step(parents, rules=Rules(grid(5, 4)), rng=rng) - parents
    assert set(np.abs(changes).sum(axis=1).tolist()) == {1}
    assert {-1, 1} <= set(changes.ravel().tolist())


def test_rates_follow_survival_and_stay_within_bounds() -> None:
    rates = Rates(Rules(grid(6, 3)))
    rng = np.random.default_rng(0)
    for _ in range(60):
        used = rng.random((100, len(rates.names))) < 0.5
        rates.learn(used, used[:, 1])  # only what `swap` took part in survives
    assert rates.values[1] == pytest.approx(0.9)
    assert (rates.values[[0, 2, 3]] < 0.7).all()
    again = Rates(Rules(grid(6, 3)))
    again.restore(rates.state())
    np.testing.assert_array_equal(again.values, rates.values)


def test_repair_drops_what_no_change_can_mend() -> None:
    class Nothing(GridSpace):
        def valid(self, genomes: Genomes) -> np.ndarray:
            return np.zeros(len(genomes), dtype=bool)

    rng = np.random.default_rng(0)
    assert len(Rules(Nothing((2, 2))).repair(np.zeros((3, 2), dtype=int), rng=rng)) == 0


def test_a_grid_needs_cardinalities() -> None:
    with pytest.raises(InputError, match="at least 1"):
        GridSpace((3, 0))
    assert len(everything(GridSpace((3, 2)))) == 6
