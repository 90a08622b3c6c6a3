"""A model's latency from measured blocks: at its own size, between those that were measured, and its layers' mix."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.model import CostModel
from hwsearch.pipeline.block_sizes import block_latencies, typical_bytes
from hwsearch.pipeline.blocks import BlockTable, BlockTime, asked_blocks
from hwsearch.pipeline.search_task import latency_cost
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.block import Block, blocks_of, mixes_of_space, pass_bytes_of, pass_bytes_of_space
from hwsearch.searchspace.budget import parse_budget
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import FullAttention, NoMixer
from hwsearch.searchspace.space import CountLimit, SearchSpace
from hwsearch.searchspace.workload import Workload

_DECODE = Workload(phase="decode", batch=8, context=4096, dtype="bfloat16")
_BASE = Base(
    name="one",
    family="qwen3",
    num_layers=4,
    hidden_size=256,
    vocab_size=1024,
    mixer=FullAttention(num_heads=4, num_kv_heads=4, head_dim=64, qk_norm=True),
    ffn=SwiGLU(intermediate_size=512),
    tie_word_embeddings=True,
    max_position_embeddings=8192,
)
_ATTENTION = LayerSpec(mixer=_BASE.mixer, ffn=_BASE.ffn)
_EMPTY = LayerSpec(mixer=NoMixer(), ffn=_BASE.ffn)
_SPACE = SearchSpace(base=_BASE, choices=(_ATTENTION, _EMPTY), allowed=((0, 1),) * 4)
_DEVICE = device_named("h100-sxm")


def _architecture(*layers: LayerSpec) -> Architecture:
    return Architecture(name="made", base=_BASE, layers=layers)


def _table(times: dict[Block, float]) -> BlockTable:
    return BlockTable(
        device_name="bench",
        runtime="torch",
        backend="torch",
        execution="eager",
        reference_ms=None,
        times={
            block: BlockTime(median_ms=ms, low_ms=0.9 * ms, high_ms=2 * ms) for block, ms in times.items()
        },
    )


def _blocks() -> tuple[Block, Block, Block]:
    """The frame, attention and the empty layer, their pass_bytes not said."""
    by_part = {
        block.part: block for block in blocks_of(_architecture(_ATTENTION, _EMPTY, _EMPTY, _EMPTY), _DECODE)
    }
    return by_part["frame"], by_part["full_attention"], by_part["none"]


def test_blocks_are_asked_for_at_the_sizes_of_the_space_and_no_larger_than_a_device_tells_apart() -> None:
    sizes = pass_bytes_of_space(_SPACE, _DECODE)
    assert len(sizes) == 3
    asked = asked_blocks(_SPACE, [_DECODE], device=_DEVICE)
    assert {block.pass_bytes for block in asked if block.part == "frame"} == set(sizes)
    assert all(block.pass_bytes for block in asked)
    small = dataclasses.replace(_DEVICE, l2_bytes=1 << 19)
    cut = {
        block.pass_bytes for block in asked_blocks(_SPACE, [_DECODE], device=small) if block.part == "frame"
    }
    assert max(size for size in cut if size is not None) <= 4 << 20 < sizes[-1]


def test_a_layer_larger_than_most_models_is_asked_for_among_its_own_kind() -> None:
    def copies(space: SearchSpace, l2_bytes: int = _DEVICE.l2_bytes) -> set[int]:
        device = dataclasses.replace(_DEVICE, l2_bytes=l2_bytes)
        return {b.copies for b in asked_blocks(space, [_DECODE], device=device) if b.part == "full_attention"}

    rare = _SPACE.limit("full_attention", CountLimit(at_most=1))
    assert copies(rare) == {1, 2, 4}
    _, attention, _ = _blocks()
    usual = {attention.among(size).copies for size in pass_bytes_of_space(_SPACE, _DECODE)}
    assert copies(_SPACE) == usual  # among two it is in models of the space anyway
    assert copies(rare, l2_bytes=1 << 20) == {1}  # one copy is far beyond the cache


def test_a_model_is_predicted_at_what_it_goes_through() -> None:
    frame, attention, empty = _blocks()
    model = _architecture(_ATTENTION, _ATTENTION, _ATTENTION, _ATTENTION)
    through = pass_bytes_of(model, _DECODE)
    low, high = through // 4, through * 4
    times = {frame: 1.0, empty: 0.5}
    for size, ms in ((low, 2.0), (high, 4.0)):
        times[attention.replace(pass_bytes=size)] = ms
    found = _table(times).predict(model, _DECODE)
    assert found.median_ms == pytest.approx(1.0 + 4 * 3.0, rel=1e-6)  # half way along the logarithm
    table = _table(times)
    assert table.at(attention, 1).median_ms == 2.0
    assert table.at(attention, 1 << 40).median_ms == 4.0


def test_unequal_layers_cost_what_the_mix_says() -> None:
    frame, attention, empty = _blocks()
    mix = Block(hidden_size=256, workload=_DECODE, mix=(_ATTENTION, _EMPTY)).among(1)
    table = _table({frame: 1.0, attention: 2.0, empty: 0.5, mix: 3.0})
    unequal = _architecture(_ATTENTION, _EMPTY, _EMPTY, _EMPTY)
    assert table.predict(unequal, _DECODE).median_ms == pytest.approx(1.0 + 1.2 * (2.0 + 3 * 0.5))
    equal = _architecture(_EMPTY, _EMPTY, _EMPTY, _EMPTY)
    assert table.predict(equal, _DECODE).median_ms == pytest.approx(1.0 + 4 * 0.5)
    (cost,) = latency_cost(_SPACE, _nothing(), _DECODE, blocks=table)(np.array([[0, 1, 1, 1]]))
    assert cost == pytest.approx(1.0 + 1.2 * 3.5)


def test_mixes_are_models_of_the_space_from_the_smallest_to_the_largest() -> None:
    mixes = mixes_of_space(_SPACE, _DECODE)
    sizes = [mix.pass_bytes or 0 for mix in mixes]
    assert len(mixes) == 6
    assert sizes == sorted(sizes)
    assert all(len(set(mix.layers)) > 1 for mix in mixes)
    assert len({mix.layers for mix in mixes}) == 6
    assert [mixes[place].layers.count(_ATTENTION) for place in (0, -1)] == [1, 3]
    assert {mix.copies for mix in mixes} == {1}
    long = dataclasses.replace(_SPACE, base=_BASE.replace(num_layers=24), allowed=((0, 1),) * 24)
    for mix in mixes_of_space(long, _DECODE):
        assert len(mix.layers) == 12
        assert mix.copies in (1, 2, 3)
    assert {mix.copies for mix in mixes_of_space(long, _DECODE, most_bytes=1)} == {1}
    fixed = dataclasses.replace(_SPACE, allowed=((0,),) * 4)
    assert mixes_of_space(fixed, _DECODE) == []


def test_only_mixes_that_a_device_holds_are_asked_for() -> None:
    """At 128 x 64K most models of a space do not fit, and a mix that does not says nothing of how layers add up."""
    mixes = [block for block in asked_blocks(_SPACE, [_DECODE], device=_DEVICE) if block.mix]
    smallest = min(mix.weight_bytes + mix.state_bytes for mix in mixes)
    small = dataclasses.replace(_DEVICE, memory_bytes=2 * smallest)
    asked = [block for block in asked_blocks(_SPACE, [_DECODE], device=small) if block.mix]
    assert len(asked) >= 3
    assert all(mix.weight_bytes + mix.state_bytes < 2 * smallest for mix in asked)


def test_the_interval_is_as_wide_as_mixes_scatter() -> None:
    frame, attention, empty = _blocks()
    times = {frame: 1.0, attention: 2.0, empty: 0.5}
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        scatter = np.exp(rng.normal(0.1, 0.05, size=7))  # six mixes, and the model that is asked for
        mixes = {
            Block(hidden_size=256, workload=_DECODE, mix=(_ATTENTION, *[_EMPTY] * n)).among(1): ratio
            * (2 + n / 2)
            for n, ratio in enumerate(scatter[:6], start=1)
        }
        visited = {
            block: BlockTime(median_ms=ms, low_ms=ms, high_ms=ms) for block, ms in (times | mixes).items()
        }
        table = dataclasses.replace(_table({}), times=visited)
        adding_up = table.composition(256, _DECODE)
        assert adding_up.mixes == 6
        assert adding_up.known
        found = table.predict(_architecture(_ATTENTION, _EMPTY, _EMPTY, _EMPTY), _DECODE)
        measured = found.median_ms / adding_up.factor * scatter[6]
        inside.append(found.low_ms <= measured <= found.high_ms)
    assert 0.86 < np.mean(inside) < 0.95


def test_without_mixes_the_interval_is_assumed_or_that_of_visits() -> None:
    frame, attention, empty = _blocks()
    table = _table({frame: 1.0, attention: 2.0, empty: 0.5})  # visits of 0.9, 1 and 2
    adding_up = table.composition(256, _DECODE)
    spread = float(np.std(np.log([0.9, 1.0, 2.0]), ddof=1))
    assert (adding_up.factor, adding_up.mixes, adding_up.known) == (1.0, 0, False)
    assert adding_up.half_width == pytest.approx(1.6449 * (4 / 3) ** 0.5 * spread, rel=1e-4)
    found = table.predict(_architecture(*[_ATTENTION] * 4), _DECODE)
    assert found.low_ms * found.high_ms == pytest.approx(found.median_ms**2)
    # Visits that scatter more than the mixes do are not left out of account.
    mixes = {
        Block(hidden_size=256, workload=_DECODE, mix=(_ATTENTION, *[_EMPTY] * n)).among(1): BlockTime(
            median_ms=2 + n / 2, low_ms=2 + n / 2, high_ms=2 + n / 2
        )
        for n in range(1, 7)
    }
    mixed = dataclasses.replace(table, times={**table.times, **mixes}).composition(256, _DECODE)
    assert mixed.known
    assert mixed.half_width > adding_up.half_width
    assert table.composition(512, _DECODE).half_width == pytest.approx(
        np.log(1.1)
    )  # nothing was measured there


def _nothing() -> CostModel:
    return CostModel(device=_DEVICE, runtime="", dtype="bfloat16", source="", seed=0, families={})


def test_layers_are_priced_as_in_models_that_come_near_the_budget() -> None:
    frame, attention, empty = _blocks()
    mix = Block(hidden_size=256, workload=_DECODE, mix=(_ATTENTION, _EMPTY)).among(1)
    times = {frame: 1.0, mix: 3.0}
    small, *_, large = pass_bytes_of_space(_SPACE, _DECODE)
    for block, ms in ((attention, 2.0), (empty, 0.5)):
        times |= {block.replace(pass_bytes=small): ms, block.replace(pass_bytes=large): 2 * ms}
    table = _table(times)
    genomes = _SPACE.sample(20, rng=np.random.default_rng(1))
    found, through = block_latencies(table, _SPACE, _DECODE, genomes)
    models = [_SPACE.decode(genome, name="model") for genome in genomes]
    assert found == pytest.approx([table.predict(model, _DECODE).median_ms for model in models], rel=0.01)
    assert through == pytest.approx([pass_bytes_of(model, _DECODE) for model in models])
    tight, loose = (
        typical_bytes(table, _SPACE, _DECODE, near_ms=near_ms) for near_ms in (found.min(), found.max())
    )
    assert through.min() <= tight < typical_bytes(table, _SPACE, _DECODE) < loose <= through.max()
    # Of two budgets the tighter one decides where a sum over layers is right.
    genome = np.array([[0, 0, 1, 0]])
    ((own_ms,), _) = block_latencies(table, _SPACE, _DECODE, genome)
    budget = [parse_budget(f"latency<={own_ms}ms"), parse_budget("latency<=1000ms")]
    cost = latency_cost(_SPACE, _nothing(), _DECODE, blocks=table, budgets=budget)
    assert cost(genome)[0] == pytest.approx(own_ms, rel=0.01)
    assert latency_cost(_SPACE, _nothing(), _DECODE, blocks=table)(genome)[0] < 0.96 * own_ms
