"""What only a CUDA device can show: kernels agree with their references there, and profiling times them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwsearch.kernels.attention import attention
from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.operators import operator
from hwsearch.profilers.plan import default_plan
from hwsearch.profilers.run import profile
from hwsearch.profilers.store import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def _relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    difference = torch.linalg.vector_norm(ours.double() - reference)
    return float(difference / torch.linalg.vector_norm(reference))


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize(("queries", "keys"), [(1, 777), (300, 300), (65, 1000)])
def test_attention_in_bf16_on_the_device(queries: int, keys: int, window: int) -> None:
    torch.manual_seed(queries)
    q, k, v = (
        torch.randn(2, heads, length, 128, device="cuda", dtype=torch.bfloat16)
        for heads, length in ((8, queries), (2, keys), (2, keys))
    )
    reference = attention(q.double(), k.double(), v.double(), window=window, backend="reference")
    assert _relative_error(attention(q, k, v, window=window), reference) < 1e-2


@pytest.mark.parametrize("length", [1, 63, 65, 1000])
def test_delta_rule_in_bf16_on_the_device(length: int) -> None:
    torch.manual_seed(length)
    q, k, v = (
        torch.randn(2, length, heads, dim, device="cuda", dtype=torch.bfloat16)
        for heads, dim in ((2, 96), (2, 96), (4, 256))
    )
    g = -0.1 * torch.rand(2, length, 4, device="cuda", dtype=torch.float32)
    beta = torch.rand(2, length, 4, device="cuda", dtype=torch.bfloat16)
    out, state = delta_rule(q, k, v, g, beta)
    doubles = (x.double() for x in (q, k, v, g, beta))
    expected, expected_state = delta_rule(*doubles, backend="reference")
    assert _relative_error(out, expected) < 1e-2
    assert _relative_error(state, expected_state) < 1e-2


def test_profiling_measures_every_kind_at_believable_speed(tmp_path: Path) -> None:
    large = operator("gemm", m=8192, n=8192, k=8192)
    with Store.open(tmp_path / "gpu.db", create=True) as store:
        plan = [large, *default_plan("cuda", points=16, seed=0)]
        summary = profile(store, plan, device="cuda:0")
        rows = {m.operator: m for m in store.measurements()}
        device = store.device()
    assert summary.measured + summary.not_ok == len(set(plan))
    assert all(m.status != "failed" for m in rows.values()), [m.reason for m in rows.values()]
    # The probe's ceiling comes from the same product; a sample can only be slower, and not by much.
    rate = 2 * 8192**3 / (rows[large].median_ms / 1e3)
    assert 0.6 < rate / device.peak_flops < 1.02
    assert rows[large].environment.driver
