"""The graph space: counting against enumeration, uniform sampling, rules, codec."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hwsearch.errors import InputError
from hwsearch.searchspace.architecture import LayerSpec
from hwsearch.searchspace.bases import BASES, Base
from hwsearch.searchspace.mixers import JetBlock
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.space import CountLimit, SearchSpace


def _base(layers: int) -> Base:
    return BASES["Qwen3-0.6B"].replace(num_layers=layers)


def _space(layers: int, **rules: object) -> SearchSpace:
    preset = preset_named("postnas", _base(layers))
    fields = {
        "base": preset.base,
        "choices": preset.choices,
        "allowed": preset.allowed,
        "ties": preset.ties,
        "forbidden": preset.forbidden,
    }
    return SearchSpace(**{**fields, **rules})  # type: ignore[arg-type]


def _all_genomes(space: SearchSpace) -> np.ndarray:
    return np.array(list(itertools.product(range(len(space.choices)), repeat=space.num_layers)))


def _obeys(space: SearchSpace, genome: np.ndarray) -> bool:
    """The rules, read off their definition one genome at a time."""
    kinds = [space.kinds[c] for c in genome]
    return (
        all(c in options for c, options in zip(genome, space.allowed, strict=True))
        and all(len({c for c in genome if space.kinds[c] == tied}) <= 1 for tied in space.ties)
        and not any(pair in space.forbidden for pair in itertools.pairwise(kinds))
        and all(
            limit.at_least <= kinds.count(kind) <= (len(kinds) if limit.at_most is None else limit.at_most)
            for kind, limit in space.limits.items()
        )
    )


RULES = [
    {},
    {"ties": (), "forbidden": frozenset()},
    {"limits": {"full_attention": CountLimit(at_most=1)}},
    {"limits": {"full_attention": CountLimit(at_least=2), "none": CountLimit(at_most=1)}},
    {"allowed": ((0, 3), (4, 5, 6), (6,), (0, 1, 2, 3, 4, 5, 6))},
]


@pytest.mark.parametrize("rules", RULES)
def test_size_and_validity_agree_with_enumeration(rules: dict[str, object]) -> None:
    space = _space(4, **rules)
    genomes = _all_genomes(space)
    expected = np.array([_obeys(space, genome) for genome in genomes])
    np.testing.assert_array_equal(space.valid(genomes), expected)
    assert space.size == expected.sum()


@pytest.mark.parametrize("rules", RULES)
def test_sampling_is_uniform_over_architectures(rules: dict[str, object]) -> None:
    space = _space(3, **{**rules, **({"allowed": ((0, 3), (4, 5, 6), (6, 0))} if "allowed" in rules else {})})
    drawn = space.sample(40 * space.size, rng=np.random.default_rng(5))
    assert space.valid(drawn).all()
    counts = Counter(map(tuple, drawn.tolist()))
    assert len(counts) == space.size
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), at_most=st.integers(1, 4))
def test_genomes_survive_the_codec(seed: int, at_most: int) -> None:
    space = _space(8).limit("full_attention", CountLimit(at_least=1, at_most=at_most))
    for genome in space.sample(3, rng=np.random.default_rng(seed)):
        architecture = space.decode(genome, name="drawn")
        np.testing.assert_array_equal(space.encode(architecture), genome)
        assert 1 <= architecture.count()["full_attention"] <= at_most


def test_the_same_seed_draws_the_same_genomes() -> None:
    space = preset_named("postnas", BASES["Qwen3-1.7B"])
    first, second = (space.sample(16, rng=np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_out_of_range_genomes_are_invalid_not_an_index_error() -> None:
    space = _space(3)
    assert not space.valid(np.array([[-1, 0, 0], [0, 99, 0]])).any()


def test_an_empty_space_says_so() -> None:
    space = _space(2, limits={"none": CountLimit(at_least=2)})
    assert space.size == 0
    with pytest.raises(InputError, match="the space is empty"):
        space.sample(1, rng=np.random.default_rng(0))


def test_encoding_a_foreign_architecture_is_refused() -> None:
    space = preset_named("postnas", BASES["Qwen2.5-1.5B"])
    with pytest.raises(InputError, match="is not in the space"):
        space.encode(architecture_named("jet-nemotron-4b"))


def test_postnas_holds_the_published_model() -> None:
    base = BASES["Qwen2.5-1.5B"]
    space = preset_named("postnas", base)
    published = architecture_named("jet-nemotron-2b")
    np.testing.assert_equal(space.decode(space.encode(published), name=published.name) == published, True)


@pytest.mark.parametrize("name", list(BASES))
def test_the_grid_of_postnas_keeps_the_cache_fixed(name: str) -> None:
    space = preset_named("postnas", BASES[name])
    jets = [c.mixer for c in space.choices if isinstance(c.mixer, JetBlock)]
    assert len(jets) == 3
    assert len({jet.cache_bytes(1, 2) for jet in jets}) == 1


def test_restricting_keeps_the_rules_that_still_apply() -> None:
    space = _space(4).restrict([0, 2])
    assert set(space.kinds) == {"full_attention", "gated_delta_net"}
    assert space.size == 2**4
    with pytest.raises(InputError, match="layer 0 has no choices"):
        space.restrict([])


def test_a_layer_spec_is_hashable_and_equal_by_value() -> None:
    base = BASES["Qwen3-0.6B"]
    assert len({LayerSpec(mixer=base.mixer, ffn=base.ffn) for _ in range(3)}) == 1
