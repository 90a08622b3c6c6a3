"""Predicted against the published figures of arXiv 2508.15884, under the host profile of its protocol."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.host import ENGINE, HF_EAGER
from hwsearch.costmodel.memory import memory_of
from hwsearch.costmodel.model import CostModel
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "published.py"


@pytest.fixture(scope="module")
def published() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["published"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def h100() -> CostModel:
    return load_builtin("h100-sxm")


def test_throughput_ranks_as_published(published: ModuleType, h100: CostModel) -> None:
    rows = published.table_3(h100)
    assert len(rows) == 7
    assert published.spearman(rows) >= 0.95


def test_decode_speed_ups_are_within_a_quarter_at_every_context(
    published: ModuleType, h100: CostModel
) -> None:
    rows = published.decode_speed_ups(h100)
    assert [row.name for row in rows] == ["4K", "8K", "16K", "32K", "64K", "128K", "256K"]
    for row in rows:
        assert abs(row.error) <= 0.25, row


def test_prefill_speed_ups_are_within_a_quarter_at_every_context(
    published: ModuleType, h100: CostModel
) -> None:
    for row in published.prefill_speed_ups(h100):
        assert abs(row.error) <= 0.25, row


def test_nine_shapes_of_equal_cache_have_equal_throughput(published: ModuleType, h100: CostModel) -> None:
    rows = published.table_2(h100)
    assert len(rows) == 9
    assert published.spread(rows) <= 0.015


def test_the_rule_gives_the_stated_batch_and_chunk_of_qwen3(published: ModuleType, h100: CostModel) -> None:
    """Table 3 states batch 8 and chunk 16384 at 64K."""
    assert published.rule(architecture_named("Qwen3-1.7B"), 65536, h100, HF_EAGER) == (8, 16384)


def test_the_stated_batches_and_chunks_of_jet_nemotron_fit(published: ModuleType, h100: CostModel) -> None:
    jet = architecture_named("jet-nemotron-2b")
    for context, ((batch, chunk), _, _) in published.SPEED_UPS.items():
        workload = Workload(phase="prefill", batch=batch, context=context * 1024, chunk=chunk)
        memory = memory_of(jet, workload, device_bytes=h100.device.memory_bytes, host=HF_EAGER)
        assert memory.max_batch >= batch, workload


def test_models_that_only_the_script_describes_have_the_published_cache(published: ModuleType) -> None:
    assert published.SMOLLM2.cache_bytes(65536) == 12288 * 2**20
    assert published.MINICPM.cache_bytes(65536) == 23040 * 2**20


def test_the_profiles_bracket_what_users_see(published: ModuleType, h100: CostModel) -> None:
    """The paper's host is 5 to 7 times slower than bandwidth allows on full-attention models."""
    for row in published.table_3(h100)[:3]:
        assert 4 <= row.engine / row.eager <= 8
    assert ENGINE.copy_share is None
