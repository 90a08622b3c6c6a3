"""Tensor parallelism and quantised weights: shards add up to the whole, exchanges follow the ring, all is labelled."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.compose import model_cost
from hwsearch.costmodel.cost import ANALYTIC
from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.host import HF_EAGER
from hwsearch.costmodel.memory import Memory, memory_of
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.parallel import all_gather_ms, all_reduce_ms, sharded
from hwsearch.costmodel.weights import quantised_share, weight_bytes
from hwsearch.errors import InputError
from hwsearch.operators import columns
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.mixers import GLA, RGLRU, FullAttention, GatedDeltaNet, JetBlock, MixerSpec
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload

DECODE = Workload(phase="decode", batch=16, context=8192)
LLAMA = architecture_named("Llama-3.1-8B")
JET = architecture_named("jet-nemotron-4b")
H100 = device_named("h100-sxm")


@pytest.fixture(scope="module")
def h100() -> CostModel:
    return load_builtin("h100-sxm")


def test_one_device_holds_the_architecture_itself() -> None:
    assert sharded(JET, 1) is JET


def test_products_of_all_shards_are_those_of_the_whole() -> None:
    """Weights are divided, not copied, where heads suffice."""
    whole, shard = weight_work(LLAMA), weight_work(sharded(LLAMA, 8))
    assert 8 * shard == whole


def weight_work(architecture: Architecture) -> int:
    hidden = architecture.base.hidden_size
    operators = [op for layer in architecture.layers for op in layer.lower(hidden, DECODE)]
    operators += architecture.lower_head(DECODE)
    return sum(op.dims[1] * op.dims[2] for op in operators if op.kind == "gemm")


def test_key_heads_that_are_fewer_than_the_devices_are_replicated() -> None:
    """Qwen2.5-3B has 2: four devices hold one each, so that the group's cache doubles."""
    four = sharded(architecture_named("Qwen2.5-3B"), 4)
    assert four.base.mixer == FullAttention(num_heads=4, num_kv_heads=1, head_dim=128, qkv_bias=True)
    assert 4 * four.cache_bytes(1024) == 2 * architecture_named("Qwen2.5-3B").cache_bytes(1024)


def test_linear_mixers_are_divided_by_heads() -> None:
    mixer = GatedDeltaNet(num_k_heads=4, num_v_heads=8, head_k_dim=128, head_v_dim=128)
    base = BASES["Qwen3-1.7B"]
    layers = (LayerSpec(mixer=mixer, ffn=base.ffn),) * base.num_layers
    shard = sharded(Architecture(name="x", base=base, layers=layers), 4)
    assert shard.layers[0].mixer == mixer.replace(num_k_heads=1, num_v_heads=2)
    assert 4 * shard.cache_bytes(1) == base.num_layers * mixer.cache_bytes(1, 2)


def test_the_generator_of_a_jet_block_keeps_its_narrow_width() -> None:
    def narrow(mixer: JetBlock) -> int:
        return mixer.num_heads * mixer.head_v_dim // mixer.generator_reduction

    whole, part = (architecture.layers[0].mixer for architecture in (JET, sharded(JET, 2)))
    assert isinstance(whole, JetBlock)
    assert isinstance(part, JetBlock)
    assert (part.num_heads, narrow(part)) == (whole.num_heads // 2, narrow(whole))


@pytest.mark.parametrize(("name", "tp"), [("Qwen2.5-1.5B", 8), ("Llama-3.1-8B", 5), ("jet-nemotron-2b", 16)])
def test_what_does_not_divide_is_refused_with_what_does(name: str, tp: int) -> None:
    with pytest.raises(InputError, match=rf"{name} does not divide over {tp} devices: .*; use 2 or"):
        sharded(architecture_named(name), tp)


def test_an_all_reduce_follows_the_ring() -> None:
    """Twice the payload crosses a link at many devices, in 2 (N - 1) steps; half of both for a gather."""
    big = all_reduce_ms(2**30, tp=8, device=H100)
    assert big == pytest.approx(1e3 * 2 * 7 / 8 * 2**30 / (0.7 * 450e9) + 14 * 0.0015 + 0.0025)
    assert all_gather_ms(2**30, tp=8, device=H100) - 0.0025 == pytest.approx((big - 0.0025) / 2)
    slow = replace(H100, link_bandwidth=32e9)
    assert all_reduce_ms(2**30, tp=8, device=slow) > 10 * big


@pytest.mark.parametrize(
    ("tp", "mib", "measured_ms"), [(2, 64, 0.245), (4, 64, 0.318), (8, 2, 0.039), (8, 1, 0.034)]
)
def test_public_all_reduces_of_an_h100_node_are_near(tp: int, mib: int, measured_ms: float) -> None:
    """github.com/microsoft/vidur, data/profiling/network/h100_dgx/all_reduce.csv (NCCL)."""
    assert all_reduce_ms(mib * 2**20, tp=tp, device=H100) == pytest.approx(measured_ms, rel=0.2)


def test_every_block_ends_in_an_all_reduce(h100: CostModel) -> None:
    cost = model_cost(LLAMA, DECODE, model=h100, tp=4)
    shares = cost.latency.shares
    assert (shares["all_reduce"].kernels, shares["all_gather"].kernels) == (2 * 32 + 1, 1)
    assert shares["all_reduce"].bound == "link"
    exchanged = shares["all_reduce"].latency_ms + shares["all_gather"].latency_ms
    assert cost.latency.by_provenance[ANALYTIC] == pytest.approx(exchanged)
    assert any("analytic, not measured" in text for text in cost.notes)
    parts = sum(layer.latency.median_ms for layer in cost.layers) + cost.embedding_ms + cost.head_ms
    assert parts == pytest.approx(cost.latency.median_ms)
    assert Counter(layer.layer for layer in cost.layers) == Counter(LLAMA.layers)


def test_chunks_of_a_prefill_exchange_one_by_one(h100: CostModel) -> None:
    whole = Workload(phase="prefill", batch=1, context=8192)
    once, often = (
        model_cost(LLAMA, w, model=h100, tp=2).latency.shares["all_reduce"]
        for w in (whole, whole.replace(chunk=1024))
    )
    assert often.kernels == 8 * once.kernels
    assert often.latency_ms > once.latency_ms


def test_more_devices_are_faster_and_hold_less(h100: CostModel) -> None:
    costs = [model_cost(LLAMA, DECODE, model=h100, tp=tp) for tp in (1, 2, 4, 8)]
    latencies = [cost.latency.median_ms for cost in costs]
    held = [cost.memory.total_bytes for cost in costs]
    assert latencies == sorted(latencies, reverse=True)
    assert held == sorted(held, reverse=True)
    assert latencies[0] / latencies[-1] < 8
    assert costs[1].memory.weight_bytes == pytest.approx(costs[0].memory.weight_bytes / 2, rel=0.001)
    assert costs[-1].memory.max_batch > 8 * costs[0].memory.max_batch


def test_the_largest_batch_of_a_shard_fits_and_one_more_does_not() -> None:
    def memory(batch: int, tp: int, weights: str | None) -> Memory:
        workload = Workload(phase="prefill", batch=batch, context=4096, chunk=512)
        return memory_of(JET, workload, device_bytes=H100.memory_bytes, tp=tp, weights=weights)

    for tp, weights in ((2, None), (1, "int8"), (4, "fp8")):
        most = memory(1, tp, weights).max_batch
        assert memory(most, tp, weights).fits
        assert not memory(most + 1, tp, weights).fits


def test_an_unknown_link_is_refused(h100: CostModel) -> None:
    model = replace(h100, device=replace(h100.device, link_bandwidth=None))
    assert model_cost(LLAMA, DECODE, model=model).tp == 1
    with pytest.raises(InputError, match="add link_gbs"):
        model_cost(LLAMA, DECODE, model=model, tp=2)


def test_quantised_weights_halve_the_projections_and_leave_the_rest() -> None:
    plain = weight_bytes(LLAMA, dtype="bfloat16", size=2, weights=None)
    small = weight_bytes(LLAMA, dtype="bfloat16", size=2, weights="int8")
    assert plain == {"bfloat16": 2 * LLAMA.parameters}
    assert small["int8"] + small["bfloat16"] // 2 == LLAMA.parameters
    ends = 2 * LLAMA.base.vocab_size * LLAMA.base.hidden_size
    assert ends < small["bfloat16"] // 2 < 1.001 * ends
    assert weight_bytes(LLAMA, dtype="bfloat16", size=2, weights="fp8")["fp8"] == small["int8"]


def test_only_products_bound_by_their_weights_get_faster() -> None:
    c = columns("gemm", [(1, 14336, 4096), (64, 14336, 4096), (8192, 14336, 4096)])
    share = quantised_share(c, weights="int8", device=H100, size=2)
    assert 0.5 < share[0] < 0.6
    assert share[0] < share[1] < 1
    assert share[2] == 1


def test_quantised_figures_are_labelled_and_their_interval_holds_the_unquantised(h100: CostModel) -> None:
    plain, small = (model_cost(LLAMA, DECODE, model=h100, weights=w) for w in (None, "int8"))
    assert small.latency.median_ms < plain.latency.median_ms < small.latency.high_ms * 1.01
    assert small.latency.by_provenance[ANALYTIC] > 0.9 * (small.latency.by_operator["gemm"] - small.head_ms)
    assert small.head_ms == plain.head_ms
    assert small.memory.max_batch > plain.memory.max_batch
    prefill = Workload(phase="prefill", batch=4, context=8192)
    assert ANALYTIC not in model_cost(LLAMA, prefill, model=h100, weights="fp8").latency.by_provenance


def test_both_work_under_hugging_face_eager(h100: CostModel) -> None:
    one = model_cost(LLAMA, DECODE, model=h100, host=HF_EAGER)
    both = model_cost(LLAMA, DECODE, model=h100, host=HF_EAGER, tp=2, weights="int8")
    assert both.host_ms > one.host_ms
    assert both.latency.by_operator["cache_copy"] == pytest.approx(one.latency.by_operator["cache_copy"] / 2)


def test_an_unknown_format_is_refused(h100: CostModel) -> None:
    with pytest.raises(InputError, match="unknown weight format 'int3'"):
        model_cost(LLAMA, DECODE, model=h100, weights="int3")


def test_time_to_first_token_is_the_prefill(h100: CostModel) -> None:
    cost = model_cost(LLAMA, Workload(phase="prefill", batch=1, context=4096, chunk=512), model=h100)
    assert cost.time_to_first_token_ms == cost.latency.median_ms
    assert model_cost(LLAMA, DECODE, model=h100).time_to_first_token_ms is None


def test_parts_of_memory_are_those_of_the_mixers(h100: CostModel) -> None:
    memory = model_cost(JET, DECODE, model=h100).memory
    heads = JET.base.mixer
    full = 3 * 2 * 8192 * heads.num_kv_heads * heads.head_dim * 2
    sliding = 7 * 2 * 2048 * heads.num_kv_heads * heads.head_dim * 2
    assert memory.kv_cache_bytes == 16 * (full + sliding)
    assert memory.recurrent_state_bytes == 16 * 26 * 4 * 16 * 128 * 256
    assert memory.logit_bytes == 16 * 4 * JET.base.vocab_size
    assert memory.reserve_bytes + memory.usable_bytes == H100.memory_bytes


def test_mixers_by_heads_are_sharded_and_others_refused(h100: CostModel) -> None:
    def of(mixer: MixerSpec) -> Architecture:
        layer = LLAMA.layers[0].replace(mixer=mixer)
        return Architecture(name="x", base=LLAMA.base, layers=(layer,) * LLAMA.base.num_layers)

    one = of(GLA(num_heads=8, head_k_dim=64, head_v_dim=128))
    (own,) = {layer.mixer for layer in sharded(one, 2).layers}
    assert isinstance(own, GLA)
    assert own.num_heads == 4
    scan = of(RGLRU(width=4096, num_heads=8))
    with pytest.raises(InputError, match="how rg_lru is sharded is not modelled"):
        model_cost(scan, DECODE, model=h100, tp=2)
