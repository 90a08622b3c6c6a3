"""Blocks, CUDA graphs, memory and energy on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwsearch.operators import operator
from hwsearch.pipeline.bench import bench_architectures
from hwsearch.pipeline.blocks import BlockTable, asked_blocks
from hwsearch.profilers.bench import BenchSetup, LocalBench
from hwsearch.profilers.doctor import diagnose
from hwsearch.profilers.run import measure_all, profile
from hwsearch.profilers.store import Store
from hwsearch.profilers.worker import PROGRAM, Worker
from hwsearch.records import Execution
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import FullAttention
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.workload import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

_BASE = Base(
    name="small",
    family="qwen3",
    num_layers=4,
    hidden_size=1024,
    vocab_size=4096,
    mixer=FullAttention(num_heads=8, num_kv_heads=4, head_dim=128, qk_norm=True),
    ffn=SwiGLU(intermediate_size=3072),
    tie_word_embeddings=True,
    max_position_embeddings=32768,
)
_WORKLOADS = [
    Workload.from_text("prefill:batch=1,context=2k"),
    Workload.from_text("decode:batch=16,context=4k"),
]


@pytest.mark.parametrize("execution", ["eager", "cuda-graph"])
def test_layers_add_up_to_a_model(tmp_path: Path, execution: Execution) -> None:
    space = space_named("postnas", _BASE)
    with LocalBench(BenchSetup(device="cuda:0")) as bench:
        blocks = asked_blocks(space, _WORKLOADS, device=bench.probe())
    with Store.open(tmp_path / "gpu.db", create=True) as store:
        summary = profile(store, [], blocks=blocks, device="cuda:0", execution=execution, timeout_s=120)
        rows = store.blocks()
    assert summary.not_ok == 0, [row.reason for row in rows if row.status != "ok"]
    for row in rows:
        assert row.execution == execution
        assert row.conditions is not None
        assert row.conditions.clock_mhz
        assert row.peak_reserved_bytes
        assert row.workspace_bytes is not None
    table = BlockTable.of(rows, source="here")
    architecture = space.decode([0, 2, 3, 6], name="mixed")
    (rows_of_model,) = bench_architectures(
        [architecture], _WORKLOADS, device="cuda:0", blocks=table, execution=execution
    )
    for found in rows_of_model:
        assert found.error_percent is not None
        assert abs(found.error_percent) < 25, found  # a blunder, not a bar: the machine may be shared


def test_an_operator_of_many_kernels_is_faster_captured_than_eager() -> None:
    """A few launches hide behind the flush of the cache before them, two hundred do not."""
    many = operator("diagonal_scan_prefill", batch=1, seq_len=4096, channels=256)
    times = {}
    for execution in ("eager", "cuda-graph"):
        with LocalBench(BenchSetup(device="cuda:0", execution=execution)) as bench:
            row = bench.measure(many)
        assert row.status == "ok", row.reason
        times[execution] = row.median_ms
    assert times["cuda-graph"] < times["eager"]


def test_energy_is_between_idle_and_the_power_limit() -> None:
    large = operator("gemm", m=8192, n=8192, k=8192)
    with LocalBench(BenchSetup(device="cuda:0", energy=True)) as bench:
        row = bench.measure(large)
    if row.energy_j is None:
        pytest.skip("this GPU has no energy counter")
    assert row.conditions is not None
    assert row.conditions.power_limit_w
    watts = row.energy_j / (row.median_ms / 1e3)
    assert 20 < watts < 1.3 * row.conditions.power_limit_w


_TROUBLE = """
import torch
from hwsearch.profilers import tasks
from hwsearch.profilers.sampling import Runnable

def broken(dims, draw):
    x, index = draw(4), torch.full((4,), 1 << 40, device=draw.device)
    return Runnable(function=lambda: (x.index_select(0, index), torch.cuda.synchronize()), kernel=lambda: "broken")

tasks._BUILDERS = {**tasks._BUILDERS, "elementwise": broken}
"""


def test_a_kernel_that_breaks_the_device_costs_its_row_alone(tmp_path: Path) -> None:
    bad = operator("elementwise", rows=1, width=8, reads=1, writes=1)
    good = [operator("gemm", m=m, n=64, k=64) for m in (1, 2, 3)]
    with (
        Store.open(tmp_path / "gpu.db", create=True) as store,
        Worker(BenchSetup(device="cuda:0"), timeout_s=120, program=_TROUBLE + PROGRAM) as bench,
    ):
        measure_all(store, bench, [*good, bad])
        status = {row.operator: row.status for row in store.measurements()}
    assert {status[each] for each in good} == {"ok"}
    assert status[bad] in ("failed", "crashed")


def test_the_doctor_knows_the_gpu() -> None:
    facts = diagnose("cuda:0").facts
    assert facts["driver"]
    assert facts["clock_mhz"]
    assert facts["other_processes"] is not None
