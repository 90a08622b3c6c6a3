"""Layers that read an earlier layer's keys and values: what they cost and where they may stand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwsearch.costmodel.parallel import sharded
from hwsearch.errors import DataError, InputError
from hwsearch.search.exact import minimise
from hwsearch.search.problem import Additive, Budget
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.eager import eager_mixer
from hwsearch.searchspace.mixers import (
    FullAttention,
    GatedDeltaNet,
    MixerSpec,
    SharedKVAttention,
    SlidingWindowAttention,
)
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.spacefile import SpaceSpec
from hwsearch.searchspace.workload import Workload

FULL = FullAttention(num_heads=16, num_kv_heads=8, head_dim=128, qk_norm=True)
FEW = FULL.replace(num_kv_heads=2)
WINDOW = SlidingWindowAttention(window=512, **FULL.model_dump(exclude={"kind"}))
DELTA = GatedDeltaNet(num_k_heads=2, num_v_heads=2, head_k_dim=64, head_v_dim=64)
BASE = BASES["Qwen3-1.7B"]


def reading(spec: FullAttention | SlidingWindowAttention) -> SharedKVAttention:
    return SharedKVAttention(**spec.model_dump(exclude={"kind"}))


def architecture(*mixers: MixerSpec) -> Architecture:
    base = BASE.replace(num_layers=len(mixers))
    return Architecture(
        name="x", base=base, layers=tuple(LayerSpec(mixer=mixer, ffn=base.ffn) for mixer in mixers)
    )


@pytest.mark.parametrize("own", [FULL, WINDOW, FULL.replace(qk_norm=False, qkv_bias=True, sinks=True)])
def test_it_costs_an_attention_layer_less_keys_values_and_cache(
    own: FullAttention | SlidingWindowAttention,
) -> None:
    shared, keys = reading(own), own.num_kv_heads * own.head_dim
    norm, bias = (own.head_dim if own.qk_norm else 0), (2 * keys if own.qkv_bias else 0)
    assert own.parameters(2048) - shared.parameters(2048) == 2 * 2048 * keys + norm + bias
    assert shared.cache_bytes(32768, 2) == 0
    assert shared.layer_type == own.layer_type
    for phase in ("prefill", "decode"):
        workload = Workload(phase=phase, batch=2, context=4096)
        theirs, ours = own.lower(2048, workload), shared.lower(2048, workload)
        assert [op.kind for op in ours] == [op.kind for op in theirs]
        assert [op for op in ours if "attention" in op.kind] == [
            op for op in theirs if "attention" in op.kind
        ]
        assert ours[-1] == theirs[-1]
        assert theirs[0].dims[1] - ours[0].dims[1] == 2 * keys


def test_eager_kernels_and_shards_lack_keys_and_values_too() -> None:
    workload = Workload(phase="decode", batch=2, context=4096)
    own, shared = (
        eager_mixer(LayerSpec(mixer=mixer, ffn=BASE.ffn), 2048, workload) for mixer in (FULL, reading(FULL))
    )
    assert len(own) - len(shared) == 2 + 8 + 5, "two projections, the keys' norm, their rotary embedding"
    shard = sharded(architecture(FULL, reading(FULL)), 4)
    assert shard.kv_sources == (None, 0)
    assert shard.layers[1].mixer == reading(FULL).replace(num_heads=4, num_kv_heads=2)


def test_it_reads_the_nearest_layer_of_its_layout() -> None:
    found = architecture(FULL, WINDOW, FEW, reading(FULL), FULL, reading(FULL), DELTA, reading(WINDOW))
    assert found.kv_sources == (None, None, None, 0, None, 4, None, 1)
    assert Architecture.from_json(found.to_json(), source="x") == found


@pytest.mark.parametrize(
    "mixers", [(reading(FULL), FULL), (WINDOW, reading(FULL)), (FEW, reading(FULL)), (FULL, reading(WINDOW))]
)
def test_an_architecture_without_keys_to_read_is_refused(mixers: tuple[MixerSpec, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"layers\[\d\]: shared_kv_attention has nothing to read: no earlier"
    ):
        architecture(*mixers)
    content = architecture(FULL, FULL).model_dump(mode="json")
    content["layers"][0]["mixer"]["kind"] = "shared_kv_attention"
    with pytest.raises(DataError, match="8 key/value heads of 128 channels"):
        Architecture.from_content(content, source="x")


def space(layers: int, *mixers: MixerSpec) -> SearchSpace:
    base = BASE.replace(num_layers=layers)
    choices = tuple(LayerSpec(mixer=mixer, ffn=base.ffn) for mixer in mixers)
    return SearchSpace(base=base, choices=choices, allowed=(tuple(range(len(choices))),) * layers)


def test_the_graph_holds_what_can_be_built_and_no_more() -> None:
    found = space(4, FULL, FEW, WINDOW, reading(FULL), reading(FEW), reading(WINDOW), DELTA)

    def builds(genome: tuple[int, ...]) -> bool:
        try:
            found.decode(genome, name="x")
        except ValueError:
            return False
        return True

    genomes = list(itertools.product(range(7), repeat=4))
    expected = {genome for genome in genomes if builds(genome)}
    assert 0 < len(expected) < len(genomes)
    assert found.size == len(expected)
    assert {tuple(found.paths.unrank(rank)) for rank in range(found.size)} == expected
    assert {g for g, ok in zip(genomes, found.valid(np.array(genomes)), strict=True) if ok} == expected
    without = found.restrict([3, 5, 6])
    assert without.size == 1, "nothing lends: only delta nets are left"


def test_a_budget_on_the_cache_is_met_by_reading() -> None:
    """The exact optimum of a problem in which every attention layer is worth as much and only the cache is scarce."""
    layers = 8
    found = space(layers, FULL, reading(FULL), DELTA)
    loss = Additive(np.tile([0.0, 0.1, 1.0], (layers, 1)))
    cache = Additive(np.tile([float(c.mixer.cache_bytes(65536, 2)) for c in found.choices], (layers, 1)))
    at_most = 2.5 * FULL.cache_bytes(65536, 2)
    best = minimise(found, loss, [Budget("cache", text="cache<=X", cost=cache, at_most=at_most)])
    assert best is not None
    assert best.proven
    assert best.genome is not None
    chosen = found.decode(best.genome, name="best")
    assert chosen.count() == {"full_attention": 2, "shared_kv_attention": 6}
    assert chosen.cache_bytes(65536) <= at_most < Architecture.of_base(chosen.base).cache_bytes(65536) / 3


def test_a_space_file_with_nothing_to_read_is_refused() -> None:
    content = {"mixers": [{"kind": "shared_kv_attention", "window": 512}, {"kind": "full_attention"}]}
    with pytest.raises(InputError, match="add sliding_window_attention of window 512 with 8 key/value heads"):
        SpaceSpec.model_validate(content).build(BASE)
