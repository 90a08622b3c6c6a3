"""Patterns, orders, groups and ties over wide choices; ranks; bounds through every node."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hwsearch.errors import InputError
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.constraints import CountLimit, Pattern
from hwsearch.searchspace.presets import PRESETS, preset_named
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.space import SearchSpace

GROUPS = {
    "softmax": ("full_attention", "sliding_window_attention"),
    "linear": ("gated_delta_net", "jet_block"),
}
RULES: dict[str, dict[str, Any]] = {
    "pattern": {
        "patterns": (Pattern(kind="full_attention", every=2, limit=CountLimit(at_least=1, at_most=1)),)
    },
    "cut block": {"patterns": (Pattern(kind="softmax", every=3, limit=CountLimit(at_least=2)),)},
    "order": {"orders": (("linear", "softmax"),)},
    "need": {"needs": (("linear", "softmax"), ("none", "full_attention"))},
    "need itself": {"needs": (("jet_block", "linear"), ("softmax", "none"))},
    "group tie": {"ties": ("linear",), "limits": {"softmax": CountLimit(at_most=2)}},
    "together": {
        "ties": ("jet_block",),
        "patterns": (Pattern(kind="softmax", every=2, limit=CountLimit(at_most=1)),),
        "orders": (("none", "full_attention"),),
        "needs": (("sliding_window_attention", "full_attention"),),
        "limits": {"linear": CountLimit(at_least=1)},
    },
}


def space_with(name: str, *, layers: int = 4) -> SearchSpace:
    plain = preset_named("postnas", BASES["Qwen3-0.6B"].replace(num_layers=layers))
    return replace(plain, **{"ties": (), "groups": GROUPS, **RULES[name]})


def everything(space: SearchSpace) -> np.ndarray:
    genomes = np.array(list(itertools.product(range(len(space.choices)), repeat=space.num_layers)))
    return genomes[space.valid(genomes)]


def obeys(space: SearchSpace, genome: tuple[int, ...]) -> bool:
    """The rules, read off their definition one genome at a time."""

    def inside(kind: str) -> list[bool]:
        return [space.kinds[c] in space.groups.get(kind, (kind,)) for c in genome]

    for kind, limit in space.limits.items():
        most = len(genome) if limit.at_most is None else limit.at_most
        if not limit.at_least <= sum(inside(kind)) <= most:
            return False
    for pattern in space.patterns:
        for first in range(0, len(genome), pattern.every):
            block = inside(pattern.kind)[first : first + pattern.every]
            if pattern.limit.at_most is not None and sum(block) > pattern.limit.at_most:
                return False
            if len(block) == pattern.every and sum(block) < pattern.limit.at_least:
                return False
    for first_kind, later in space.orders:
        firsts, laters = inside(first_kind), inside(later)
        if any(laters[i] and any(firsts[i + 1 :]) for i in range(len(genome))):
            return False
    for what, earlier in space.needs:
        needy, had = inside(what), inside(earlier)
        if any(needy[i] and not any(had[:i]) for i in range(len(genome))):
            return False
    for tie in space.ties:
        mixers = {space.choices[c].mixer for c, tied in zip(genome, inside(tie), strict=True) if tied}
        if len(mixers) > 1:
            return False
    kinds = [space.kinds[c] for c in genome]
    return not any(pair in space.forbidden for pair in itertools.pairwise(kinds))


@pytest.mark.parametrize("name", sorted(RULES))
def test_size_validity_and_ranks_agree_with_enumeration(name: str) -> None:
    space = space_with(name)
    expected = {
        genome for genome in itertools.product(range(len(space.choices)), repeat=4) if obeys(space, genome)
    }
    assert {tuple(genome) for genome in everything(space).tolist()} == expected
    assert space.size == len(expected)
    assert {tuple(space.paths.unrank(rank)) for rank in range(space.size)} == expected


@pytest.mark.parametrize("name", sorted(RULES))
def test_sampling_is_uniform(name: str) -> None:
    space = space_with(name, layers=3)
    drawn = space.sample(30 * space.size, rng=np.random.default_rng(1))
    counts = Counter(map(tuple, drawn.tolist()))
    assert len(counts) == space.size
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_a_tie_binds_the_mixer_and_leaves_the_ffn() -> None:
    space = preset_named("all", BASES["Qwen3-0.6B"].replace(num_layers=2))
    rng = np.random.default_rng(0)
    layers = [space.decode(genome, name="x").layers for genome in space.sample(3000, rng=rng)]
    both = [pair for pair in layers if {layer.mixer.kind for layer in pair} == {"jet_block"}]
    assert both
    assert all(len({layer.mixer for layer in pair}) == 1 for pair in both)
    assert any(len({layer.ffn for layer in pair}) == 2 for pair in both)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(RULES)), seed=st.integers(0, 2**32 - 1))
def test_the_least_cost_through_every_choice_is_that_of_enumeration(name: str, seed: int) -> None:
    space = space_with(name, layers=3)
    table = np.random.default_rng(seed).normal(size=space.allowed_mask.shape)
    genomes = everything(space)
    totals = table[np.arange(3), genomes].sum(axis=1)
    expected = np.full(table.shape, np.inf)
    for genome, total in zip(genomes, totals, strict=True):
        expected[np.arange(3), genome] = np.minimum(expected[np.arange(3), genome], total)
    np.testing.assert_allclose(space.paths.least_through(table), expected, rtol=1e-12, atol=1e-12)


def test_the_graph_is_a_networkx_graph_from_source_to_sink() -> None:
    graph = space_with("together").graph
    assert isinstance(graph, nx.DiGraph)
    assert nx.is_directed_acyclic_graph(graph)
    assert all(nx.has_path(graph, "source", node) and nx.has_path(graph, node, "sink") for node in graph)


def test_an_impossible_pattern_is_refused() -> None:
    with pytest.raises(InputError, match="at least 3 and at most 2 of 2 layers is impossible"):
        Pattern(kind="none", every=2, limit=CountLimit(at_least=3))


def test_a_placement_is_kept() -> None:
    placed = architecture_named("jet-nemotron-2b")
    space = preset_named("postnas-grid-jet", BASES["Qwen2.5-1.5B"]).placed_as(placed)
    points = {choice.mixer for choice in space.choices if choice.mixer.kind == "jet_block"}
    assert space.size == len(points) == 9
    np.testing.assert_equal(space.decode(space.encode(placed), name=placed.name) == placed, True)
    with pytest.raises(InputError, match="28 layers and the space 36"):
        preset_named("postnas-grid-jet", BASES["Qwen2.5-3B"]).placed_as(placed)
    without_window = preset_named("puzzle", BASES["Qwen2.5-1.5B"])
    with pytest.raises(InputError, match="sliding_window_attention in layer 20"):
        without_window.placed_as(placed)


@pytest.mark.parametrize("base", ["Qwen2.5-0.5B", "Qwen3-1.7B", "Llama-3.1-8B"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_fits_every_base(name: str, base: str) -> None:
    space = preset_named(name, BASES[base])
    assert space.size > 1
    drawn = space.sample(5, rng=np.random.default_rng(0))
    assert space.valid(drawn).all()
    assert space.decode(drawn[0], name="drawn").parameters > 0
