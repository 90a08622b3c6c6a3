"""From operators to measurements: every kind runs, and what cannot run is a row that says why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from hwsearch.operators import KINDS, Operator, operator
from hwsearch.profilers import tasks
from hwsearch.profilers.environment import environment
from hwsearch.profilers.tasks import needed_bytes
from hwsearch.profilers.timing import CpuTimer, TimingRule
from hwsearch.profilers.workbench import Workbench

_CPU = torch.device("cpu")
_BENCH = Workbench(
    device=_CPU,
    dtype="float32",
    environment=environment(_CPU),
    timer=CpuTimer(),
    rule=TimingRule(max_samples=3, min_seconds=0, warmup_seconds=0),
    seed=0,
)
_GEMM = operator("gemm", m=3, n=5, k=7)

_CASES = {
    "torch.linear": _GEMM,
    "torch.sdpa_causal": operator(
        "context_attention", batch=2, seq_len=9, past_len=0, num_heads=4, num_kv_heads=2, head_dim=8, window=0
    ),
    "torch.sdpa_blocks": operator(
        "context_attention", batch=2, seq_len=9, past_len=6, num_heads=4, num_kv_heads=2, head_dim=8, window=4
    ),
    "torch.sdpa_packed": operator(
        "generation_attention", batch=2, kv_len=20, num_heads=4, num_kv_heads=2, head_dim=8, window=5
    ),
    "torch.delta_rule_chunked": operator(
        "delta_rule_prefill", batch=2, seq_len=70, num_k_heads=2, num_v_heads=4, head_k_dim=8, head_v_dim=12
    ),
    "torch.delta_rule_step": operator(
        "delta_rule_decode", batch=2, num_k_heads=2, num_v_heads=4, head_k_dim=8, head_v_dim=12
    ),
    "torch.linear_attention_chunked": operator(
        "linear_attention_prefill",
        batch=2,
        seq_len=70,
        num_k_heads=2,
        num_v_heads=4,
        head_k_dim=8,
        head_v_dim=12,
        gate_dim=8,
    ),
    "torch.linear_attention_step": operator(
        "linear_attention_decode",
        batch=2,
        num_k_heads=2,
        num_v_heads=4,
        head_k_dim=8,
        head_v_dim=12,
        gate_dim=1,
    ),
    "torch.rwkv7_chunked": operator(
        "rwkv7_prefill", batch=2, seq_len=70, num_heads=3, head_k_dim=8, head_v_dim=8
    ),
    "torch.rwkv7_step": operator("rwkv7_decode", batch=2, num_heads=3, head_k_dim=8, head_v_dim=8),
    "torch.diagonal_scan_chunked": operator("diagonal_scan_prefill", batch=2, seq_len=70, channels=6),
    "torch.diagonal_scan_step": operator("diagonal_scan_decode", batch=2, channels=6),
    "torch.diagonal_ssm_chunked": operator(
        "diagonal_ssm_prefill", batch=2, seq_len=70, channels=6, state_size=4
    ),
    "torch.diagonal_ssm_step": operator("diagonal_ssm_decode", batch=2, channels=6, state_size=4),
    "torch.short_conv": operator("short_conv_prefill", batch=2, seq_len=9, channels=6, width=4),
    "torch.short_conv_step": operator("short_conv_decode", batch=2, channels=6, width=4),
    "torch.elementwise": operator("elementwise", rows=4, width=6, reads=2, writes=2),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", list(_CASES))
def test_every_kind_is_measured(kernel: str, dtype: str) -> None:
    bench = dataclasses.replace(_BENCH, dtype=dtype)
    row = bench.measure(_CASES[kernel])
    assert (row.status, row.reason, row.kernel, row.kernel_requested) == ("ok", "", kernel, "torch")
    assert len(row.samples_ms) == 3
    assert min(row.samples_ms) > 0
    assert row.key == bench.pending(_CASES[kernel]).key


def test_the_cases_are_all_kinds() -> None:
    assert {case.kind for case in _CASES.values()} == set(KINDS) - {"moe"}


def test_one_query_is_a_decode_step() -> None:
    one = operator(
        "context_attention", batch=1, seq_len=1, past_len=8, num_heads=2, num_kv_heads=2, head_dim=8, window=0
    )
    assert _BENCH.measure(one).kernel == "torch.sdpa_packed"


def test_moe_is_a_failed_row() -> None:
    moe = operator("moe", num_tokens=4, hidden_size=8, inter_size=8, topk=2, num_experts=4)
    row = _BENCH.measure(moe)
    assert (row.status, row.samples_ms) == ("failed", ())
    assert row.reason == "moe is not measured: there is no torch kernel for it"


def test_too_large_is_an_oom_row_and_nothing_is_allocated() -> None:
    row = _BENCH.measure(operator("gemm", m=1 << 24, n=1 << 14, k=1 << 14))
    assert (row.status, row.samples_ms, row.kernel) == ("oom", (), "")
    assert "needs about 20" in row.reason  # 2049 GiB
    assert "are available" in row.reason


def _raising(error: BaseException) -> Callable[[object, object], object]:
    def build(dims: object, draw: object) -> object:
        raise error

    return build


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("shapes do not fit\nat line 3"), "failed", "shapes do not fit"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "oom", "DefaultCPUAllocator"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom", "CUDA out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "oom", "CUDA error"),
        (RuntimeError("CUDA error: an illegal memory access"), "failed", "CUDA error"),
        (MemoryError(), "oom", "MemoryError"),
    ],
)
def test_failures_become_rows(
    error: Exception, status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_BUILDERS", {"gemm": _raising(error)})
    row = _BENCH.measure(_GEMM)
    assert (row.status, row.samples_ms) == (status, ())
    assert row.reason.startswith(reason)
    assert "\n" not in row.reason


def test_what_triton_cannot_run_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors are no RuntimeErrors: they would end a worker, and with it what its kernels were tuned to."""
    errors = pytest.importorskip("triton.runtime.errors")
    error = errors.OutOfResources(270000, 232448, "shared memory")
    monkeypatch.setattr(tasks, "_BUILDERS", {"gemm": _raising(error)})
    row = _BENCH.measure(_GEMM)
    assert (row.status, row.reason[:15]) == ("failed", "out of resource")


@pytest.mark.parametrize("error", [KeyError("defect"), KeyboardInterrupt()])
def test_defects_and_interrupts_are_not_rows(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_BUILDERS", {"gemm": _raising(error)})
    with pytest.raises(type(error)):
        _BENCH.measure(_GEMM)


@pytest.mark.parametrize(
    ("small", "least"),
    [
        (_CASES["torch.linear"], 4 * (3 * 7 + 7 * 5 + 3 * 5)),
        # The cache behind the window is allocated too.
        (_CASES["torch.sdpa_packed"], 4 * 2 * 2 * 20 * 2 * 8),
        (_CASES["torch.delta_rule_step"], 2 * 4 * 2 * 4 * 8 * 12),
    ],
)
def test_needed_bytes_covers_the_tensors(small: Operator, least: int) -> None:
    assert needed_bytes(small, "float32") >= least
    assert needed_bytes(small, "bfloat16") <= needed_bytes(small, "float32")
