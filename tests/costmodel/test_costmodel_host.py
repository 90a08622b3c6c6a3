"""Host profiles: what Hugging Face eager adds to the kernels of a serving engine, and what it does not change."""

from __future__ import annotations

import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.compose import CACHE_COPY, HOST_WAIT, model_cost
from hwsearch.costmodel.host import ENGINE, ENGINE_EAGER, HF_EAGER, HOSTS, Host, host_named
from hwsearch.costmodel.memory import memory_of
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InputError
from hwsearch.operators import columns, kind_named
from hwsearch.pipeline.linear_blocks import block_named
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.mixers import RGLRU, GatedDeltaNet, Mixer
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload

GDN = Architecture(
    name="gdn",
    base=BASES["Qwen3-1.7B"],
    layers=(
        LayerSpec(
            mixer=GatedDeltaNet(num_k_heads=8, num_v_heads=16, head_k_dim=128, head_v_dim=128),
            ffn=BASES["Qwen3-1.7B"].ffn,
        ),
    )
    * 28,
)


@pytest.fixture(scope="module")
def h100() -> CostModel:
    return load_builtin("h100-sxm")


def _layer_of(mixer: Mixer) -> LayerSpec:
    return LayerSpec.model_validate({"mixer": mixer.model_dump(), "ffn": BASES["Qwen3-1.7B"].ffn})


def _flops(host: Host, architecture: Architecture, workload: Workload) -> dict[str, float]:
    total: dict[str, float] = {}
    hidden = architecture.base.hidden_size
    for layer in architecture.layers:
        for op in host.mixer(layer, hidden, workload) + host.ffn(layer, hidden, workload):
            added = kind_named(op.kind).flops(columns(op.kind, [op.dims]))
            total[op.kind] = total.get(op.kind, 0.0) + float(added[0])
    return {kind: value for kind, value in total.items() if kind != "elementwise"}


@pytest.mark.parametrize("text", ["decode:batch=4,context=8k", "prefill:batch=2,context=6k,chunk=2k"])
@pytest.mark.parametrize("name", ["Qwen3-1.7B", "Qwen2.5-1.5B", "jet-nemotron-2b", "gdn"])
def test_eager_launches_more_kernels_for_the_same_arithmetic(name: str, text: str) -> None:
    architecture = GDN if name == "gdn" else architecture_named(name)
    workload = Workload.from_text(text)
    assert _flops(HF_EAGER, architecture, workload) == pytest.approx(_flops(ENGINE, architecture, workload))
    layer, hidden = architecture.layers[0], architecture.base.hidden_size
    assert len(HF_EAGER.mixer(layer, hidden, workload)) > 2 * len(ENGINE.mixer(layer, hidden, workload))


@pytest.mark.parametrize("text", ["decode:batch=4,context=8k", "prefill:batch=2,context=6k,chunk=2k"])
@pytest.mark.parametrize("kind", ["delta_net", "gla", "retnet", "mamba2", "rwkv7"])
def test_every_linear_mixer_of_fla_has_an_eager_kernel_list(kind: str, text: str) -> None:
    """The same arithmetic and weights whichever host; eager never launches fewer kernels."""
    layer = _layer_of(block_named(kind, BASES["Qwen3-1.7B"]))
    one = Architecture(name=kind, base=BASES["Qwen3-1.7B"], layers=(layer,) * 28)
    workload, hidden = Workload.from_text(text), one.base.hidden_size
    assert _flops(HF_EAGER, one, workload) == pytest.approx(_flops(ENGINE, one, workload))
    assert len(HF_EAGER.mixer(layer, hidden, workload)) >= len(ENGINE.mixer(layer, hidden, workload))


def test_a_mixer_without_an_eager_module_is_refused_by_name() -> None:
    layer = _layer_of(RGLRU(width=2048, num_heads=16))
    with pytest.raises(InputError, match="hf-eager has no kernel list for the mixer rg_lru"):
        HF_EAGER.mixer(
            layer, BASES["Qwen3-1.7B"].hidden_size, Workload.from_text("decode:batch=1,context=1k")
        )


def test_a_decode_step_reads_and_writes_the_whole_kv_cache(h100: CostModel) -> None:
    """All layers of Qwen3 keep keys and values; in the hybrid only the softmax layers do."""
    workload = Workload.from_text("decode:batch=8,context=64k")
    full = architecture_named("Qwen3-1.7B")
    copied = sum(HF_EAGER.copied_bytes(layer, workload) for layer in full.layers)
    assert copied == 2 * 8 * full.cache_bytes(65536)
    hybrid = architecture_named("jet-nemotron-2b")
    assert HF_EAGER.copied_bytes(hybrid.layers[0], workload) == 0
    assert all(ENGINE.copied_bytes(layer, workload) == 0 for layer in full.layers)
    cost = model_cost(full, workload, model=h100, host=HF_EAGER)
    assert HF_EAGER.copy_share is not None
    bandwidth = HF_EAGER.copy_share * h100.device.bandwidth
    assert cost.latency.by_operator[CACHE_COPY] == pytest.approx(1e3 * copied / bandwidth)


def test_a_chunked_prefill_copies_what_earlier_chunks_left() -> None:
    layer = architecture_named("Qwen3-1.7B").layers[0]
    token = layer.mixer.cache_bytes(1, 2)
    whole, cut = (Workload.from_text(f"prefill:batch=3,context=6k{chunk}") for chunk in ("", ",chunk=2k"))
    assert HF_EAGER.copied_bytes(layer, whole) == 0
    # Read 2k and write 4k tokens, then read 4k and write 6k.
    assert HF_EAGER.copied_bytes(layer, cut) == 3 * token * (2048 + 4096 + 4096 + 6144)


def test_a_short_step_waits_for_the_host_and_a_long_one_does_not(h100: CostModel) -> None:
    architecture = architecture_named("Qwen3-1.7B")
    short, long = (
        model_cost(architecture, Workload.from_text(text), model=h100, host=HF_EAGER)
        for text in ("decode:batch=1,context=1k", "decode:batch=8,context=64k")
    )
    assert short.latency.median_ms == pytest.approx(short.host_ms)
    assert short.latency.by_operator[HOST_WAIT] > 0
    assert sum(short.latency.by_operator.values()) == pytest.approx(short.latency.median_ms)
    assert short.latency.shares[HOST_WAIT].bound == "host"
    assert HOST_WAIT not in long.latency.by_operator
    assert long.latency.median_ms > long.host_ms


def test_without_a_graph_the_same_kernels_wait_for_the_host(h100: CostModel) -> None:
    """Small hybrids launch more kernels than a device needs time for; a long context hides the launches."""
    jet = architecture_named("jet-nemotron-2b")
    for text, hidden in (("decode:batch=1,context=1k", False), ("decode:batch=512,context=64k", True)):
        graph, eager = (
            model_cost(jet, Workload.from_text(text), model=h100, host=host)
            for host in (ENGINE, ENGINE_EAGER)
        )
        kernels = sum(share.kernels for share in graph.latency.shares.values())
        assert eager.host_ms == pytest.approx(0.010 * kernels)
        assert (eager.latency.median_ms == graph.latency.median_ms) is hidden
        assert eager.latency.median_ms >= graph.latency.median_ms


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("text", ["decode:batch=16,context=16k", "prefill:batch=16,context=16k,chunk=1k"])
def test_the_largest_batch_is_the_last_that_fits(h100: CostModel, host: Host, text: str) -> None:
    architecture, workload = architecture_named("jet-nemotron-2b"), Workload.from_text(text)

    def total(batch: int) -> int:
        at = workload.replace(batch=batch)
        return memory_of(architecture, at, device_bytes=h100.device.memory_bytes, host=host).total_bytes

    largest = memory_of(architecture, workload, device_bytes=h100.device.memory_bytes, host=host).max_batch
    room = host.usable_share * h100.device.memory_bytes
    assert total(largest) <= room < total(largest + 1)


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_smaller_chunks_leave_room_for_larger_batches(h100: CostModel, host: Host) -> None:
    architecture = architecture_named("Qwen3-1.7B")
    batches = [
        memory_of(
            architecture,
            Workload.from_text(f"prefill:batch=1,context=16k,chunk={chunk}"),
            device_bytes=h100.device.memory_bytes,
            host=host,
        ).max_batch
        for chunk in ("16k", "4k", "1k")
    ]
    assert batches == sorted(batches)
    assert batches[0] < batches[-1]


def test_an_unknown_host_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean hf-eager"):
        host_named("hf-eagre")


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_shares_add_up_and_name_what_bounds_the_time(h100: CostModel, host: Host) -> None:
    workload = Workload.from_text("decode:batch=64,context=64k")
    latency = model_cost(architecture_named("jet-nemotron-2b"), workload, model=h100, host=host).latency
    for kind, share in latency.shares.items():
        assert share.latency_ms == pytest.approx(latency.by_operator[kind])
        assert sum(share.ms_by_bound.values()) == pytest.approx(share.latency_ms)
        assert 0 < share.roofline_share < 1.5
    assert latency.shares["generation_attention"].bound == "memory"
    prefill = model_cost(
        architecture_named("Qwen3-1.7B"),
        Workload.from_text("prefill:batch=8,context=4k"),
        model=h100,
        host=host,
    )
    assert prefill.latency.shares["gemm"].bound == "compute"
