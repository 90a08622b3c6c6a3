"""Variation and repair keep genomes inside the space; proposals of the refinement too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import InputError
from hwsearch.search.effects import Effects
from hwsearch.search.problem import Additive
from hwsearch.search.rules import Rules
from hwsearch.search.space import Genomes, GridSpace, Space
from hwsearch.search.variation import crossover, mutate, swap, switch_tie, vary
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.constraints import CountLimit, Pattern
from hwsearch.searchspace.presets import preset_named
from tests.search.search_problems import everything, grid, hybrid, limited

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
    "wide": preset_named("all", base_named("Qwen3-1.7B").replace(num_layers=5)),
}
RULES = {name: Rules(space) for name, space in SPACES.items()}
cases = given(name=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 2**32 - 1))


@cases
@settings(max_examples=60, deadline=None)
def test_children_belong_to_the_space(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = SPACES[name].sample(10, rng=rng)
    children = vary(parents, 40, rules=RULES[name], rng=rng)
    assert SPACES[name].valid(children).all()
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
def test_pairs_are_exactly_the_valid_double_changes(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    space, rules = SPACES[name], RULES[name]
    genome = space.sample(1, rng=rng)[0]
    mask = space.allowed_mask.copy()
    mask[np.arange(space.num_layers), genome] = False
    for members in (tie.members for tie in rules.ties):
        used = np.unique(genome[members[genome]])
        if len(used):
            mask &= ~members | rules.ties[0].same[used].any(axis=0)
    layers, choices = np.nonzero(mask)
    pairs = rules.pairs(genome, layers, choices)
    first, second = np.meshgrid(np.arange(len(layers)), np.arange(len(layers)), indexing="ij")
    changed = np.repeat(genome[None], first.size, axis=0)
    rows = np.arange(first.size)
    changed[rows, layers[first.ravel()]] = choices[first.ravel()]
    changed[rows, layers[second.ravel()]] = choices[second.ravel()]
    different = (layers[first] != layers[second]) | (first == second)
    np.testing.assert_array_equal(pairs, space.valid(changed).reshape(pairs.shape) & different)


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
    assert 10 < np.any(children != parents, axis=1).sum() < 60


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


@pytest.mark.parametrize("name", sorted(SPACES))
def test_effects_learn_an_additive_cost_and_propose_valid_genomes(name: str) -> None:
    space, rules = SPACES[name], RULES[name]
    rng = np.random.default_rng(0)
    costs = [Additive(rng.random(space.allowed_mask.shape), constant=3.0) for _ in range(2)]

    def evaluate(genomes: Genomes) -> np.ndarray:
        return np.stack([cost(genomes) for cost in costs], axis=1)

    effects = Effects(num_layers=space.num_layers, num_choices=rules.num_choices, num_costs=2)
    genomes = space.sample(400, rng=rng)
    effects.add(genomes, evaluate(genomes))
    effects.fit()
    one, other = space.sample(2, rng=rng)
    known, wanted = evaluate(np.stack((one, other)))
    np.testing.assert_allclose(effects.predict(other, near=one, costs=known), wanted, rtol=1e-5)
    bounds = np.array([np.inf, known[1]])
    found = effects.refine(one, costs=known, bounds=bounds, steps=5, rules=rules, rng=rng)
    assert space.valid(found).all()
    np.testing.assert_array_equal(found[0], one)
    if len(found) > 1:
        last = evaluate(found)[-1]
        assert last[0] < known[0]
        assert last[1] <= known[1] * (1 + 1e-6)
    assert space.valid(effects.construct(bounds, rules=rules, rng=rng)).all()


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
