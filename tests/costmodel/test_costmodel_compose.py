"""Whole models: parts add up, memory inverts to the largest batch, published speed-ups are met."""

from __future__ import annotations

import numpy as np
import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.compose import model_cost
from hwsearch.costmodel.memory import USABLE_SHARE, memory_of
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InputError
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload


@pytest.fixture(scope="module")
def h100() -> CostModel:
    return load_builtin("h100-sxm")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_layers_embedding_and_head_add_up_to_the_model(h100: CostModel, phase: str) -> None:
    workload = Workload.from_text(f"{phase}:batch=2,context=4096")
    cost = model_cost(architecture_named("jet-nemotron-4b"), workload, model=h100)
    parts = sum(layer.latency.median_ms for layer in cost.layers) + cost.embedding_ms + cost.head_ms
    assert cost.latency.median_ms == pytest.approx(parts)
    for split in (cost.latency.by_operator, cost.latency.by_provenance):
        assert sum(split.values()) == pytest.approx(cost.latency.median_ms)
    for layer in cost.layers:
        assert layer.mixer_ms + layer.ffn_ms == pytest.approx(layer.latency.median_ms)
    assert 0 < cost.latency.low_ms < cost.latency.median_ms < cost.latency.high_ms
    assert cost.throughput_tokens_per_s == pytest.approx(workload.tokens / cost.latency.median_ms * 1e3)


def test_a_plain_operator_is_priced_as_the_model_prices_it(h100: CostModel) -> None:
    workload = Workload.from_text("decode:batch=4,context=2048")
    architecture = architecture_named("Qwen3-1.7B")
    operators = [
        op for layer in architecture.layers for op in layer.lower(architecture.base.hidden_size, workload)
    ]
    operators += [*architecture.lower_embedding(workload), *architecture.lower_head(workload)]
    expected = float(h100.predict(operators).median_ms.sum())
    assert model_cost(architecture, workload, model=h100).latency.median_ms == pytest.approx(expected)


@pytest.mark.parametrize("name", ["Qwen3-1.7B", "jet-nemotron-2b", "Llama-3.1-8B"])
@pytest.mark.parametrize("text", ["decode:batch=3,context=65536", "prefill:batch=2,context=2048"])
def test_the_largest_batch_fits_and_one_more_does_not(h100: CostModel, name: str, text: str) -> None:
    architecture, workload = architecture_named(name), Workload.from_text(text)
    room = USABLE_SHARE * h100.device.memory_bytes

    def total(batch: int) -> int:
        at = workload.replace(batch=batch)
        return memory_of(architecture, at, device_bytes=h100.device.memory_bytes).total_bytes

    largest = memory_of(architecture, workload, device_bytes=h100.device.memory_bytes).max_batch
    assert largest > 1
    assert total(largest) <= room < total(largest + 1)


def test_weights_that_do_not_fit_leave_no_batch(h100: CostModel) -> None:
    workload = Workload.from_text("decode:batch=1,context=1024")
    memory = memory_of(architecture_named("Qwen3-8B"), workload, device_bytes=2**33)
    assert memory.max_batch == 0


def test_decode_speed_up_over_the_full_attention_model(h100: CostModel) -> None:
    """arXiv 2508.15884, table 3: 47x at 64K tokens at batches 128 and 8, measured in eager mode with cache copies."""
    jet, full = (
        model_cost(
            architecture_named(name), Workload.from_text(f"decode:batch={batch},context=64k"), model=h100
        )
        for name, batch in (("jet-nemotron-2b", 128), ("Qwen3-1.7B", 8))
    )
    assert 30 <= jet.throughput_tokens_per_s / full.throughput_tokens_per_s <= 70


def test_latency_grows_with_context_and_batch(h100: CostModel) -> None:
    architecture = architecture_named("Qwen3-1.7B")
    latencies = [
        model_cost(
            architecture, Workload(phase="decode", batch=batch, context=context), model=h100
        ).latency.median_ms
        for batch, context in ((1, 1024), (1, 32768), (16, 32768), (64, 65536))
    ]
    assert np.all(np.diff(latencies) > 0)


def test_a_workload_in_another_dtype_is_refused(h100: CostModel) -> None:
    with pytest.raises(InputError, match="fitted for bfloat16 and the workload asks for float32"):
        model_cost(
            architecture_named("Qwen3-1.7B"),
            Workload.from_text("decode:batch=1,context=1k,dtype=float32"),
            model=h100,
        )


def test_a_context_beyond_the_models_positions_is_priced_and_said(h100: CostModel) -> None:
    said = [
        any(
            "max_position_embeddings" in text
            for text in model_cost(
                architecture_named("Qwen3-1.7B"),
                Workload(phase="decode", batch=1, context=context),
                model=h100,
            ).notes
        )
        for context in (32768, 32769)
    ]
    assert said == [False, True]
