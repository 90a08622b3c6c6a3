"""The forms and features of a CPU: what they know of PyTorch's kernels, and what a fit makes of few rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwsearch.costmodel.analytic import FORMS, analytic_ms, form_with, forms_of
from hwsearch.costmodel.calibration import fit_constants, leverage
from hwsearch.costmodel.design import choose
from hwsearch.costmodel.devices import DEVICES, device_named
from hwsearch.costmodel.family import fit_family
from hwsearch.costmodel.features import feature_matrix
from hwsearch.costmodel.forms.cpu import CPU_FORMS
from hwsearch.costmodel.forms.cpu.attention import computed_pairs, masked
from hwsearch.costmodel.tables import Table
from hwsearch.operators import KINDS, columns, operator
from hwsearch.profilers.plan import default_plan
from hwsearch.records import DeviceSpec

CPU = DeviceSpec(
    name="cpu",
    device_name="cpu",
    peak_flops=2e11,
    bandwidth=1.4e10,
    memory_bytes=1 << 34,
    num_sms=1,
    l2_bytes=32 << 20,
    dtype="float32",
    source="made up",
    kind="cpu",
)
START = {kind: {k.name: k.start for k in form.constants} for kind, form in CPU_FORMS.items()}
TYPICAL = {
    "gemm": (64, 1024, 1024),
    "context_attention": (2, 600, 100, 8, 4, 64, 256),
    "generation_attention": (4, 1500, 8, 4, 64, 0),
    "delta_rule_prefill": (2, 600, 4, 8, 64, 64),
    "delta_rule_decode": (8, 4, 8, 64, 64),
    "short_conv_prefill": (2, 600, 512, 4),
    "short_conv_decode": (16, 1024, 4),
    "elementwise": (512, 1024, 2, 1),
    "linear_attention_prefill": (2, 600, 4, 4, 64, 64, 64),
    "linear_attention_decode": (8, 4, 4, 64, 64, 64),
    "rwkv7_prefill": (2, 600, 8, 64, 64),
    "rwkv7_decode": (8, 8, 64, 64),
    "diagonal_scan_prefill": (2, 600, 512),
    "diagonal_scan_decode": (16, 1024),
    "diagonal_ssm_prefill": (2, 600, 512, 16),
    "diagonal_ssm_decode": (16, 1024, 16),
    "moe": (64, 512, 256, 2, 8),
}


def _ms(kind: str, *dims: tuple[int, ...]) -> list[float]:
    return [
        float(ms) for ms in analytic_ms(kind, columns(kind, dims), device=CPU, size=4, constants=START[kind])
    ]


def _planned(kind: str, points: int, *, seed: int) -> np.ndarray:
    """Dimensions of the operators of a kind in a default plan of so many of each kind."""
    plan = default_plan("cpu", points=8 * points, seed=seed)
    return np.array([each.dims for each in plan if each.kind == kind])


def test_the_kind_of_device_decides_on_forms_and_features() -> None:
    assert set(CPU_FORMS) == set(KINDS)
    assert {spec.kind for spec in DEVICES.values()} == {"gpu"}
    for kind, form in CPU_FORMS.items():
        assert forms_of(kind, on="cpu") == (form,)
        assert forms_of(kind)[0] is FORMS[kind]
        # A saved family finds its form again by the names of its constants.
        assert form_with(kind, START[kind]) is form
        c = columns(kind, [TYPICAL[kind]])
        found = feature_matrix(kind, c, device=CPU, size=4)
        assert found.shape == (1, len(KINDS[kind].dims) + 2)
        assert np.isfinite(found).all()
    gpu = feature_matrix("gemm", columns("gemm", [(1, 64, 64)]), device=device_named("h100-sxm"), size=2)
    assert gpu.shape[1] > 30


@pytest.mark.parametrize("kind", sorted(CPU_FORMS))
def test_more_batch_takes_longer_and_a_larger_one_in_proportion(kind: str) -> None:
    base = TYPICAL[kind]
    once, twice, many, more = _ms(kind, *((base[0] * f, *base[1:]) for f in (1, 2, 256, 512)))
    assert once <= twice < many < more
    assert 1.8 < more / many < 2.2
    fastest = KINDS[kind].flops(columns(kind, [base]))[0] / (1.3 * CPU.peak_flops)
    assert once >= 1e3 * fastest


def test_few_rows_read_the_weights_row_by_row() -> None:
    packed, by_rows = _ms("gemm", (18, 928, 1632), (14, 928, 1632))
    assert by_rows > 1.3 * packed  # as measured: weights of 6 MB, beyond a core's own caches
    packed, by_rows = _ms("gemm", (18, 128, 256), (14, 128, 256))
    assert by_rows < packed


def _pairs_of_calls(queries: int, past: int, window: int) -> tuple[int, int]:
    """Pairs and calls of hwsearch.kernels.attention, gone through as it does."""
    from hwsearch.kernels.attention import _CAUSAL_BLOCK, _LEAST_BLOCK

    block = max(_LEAST_BLOCK, window // 2) if window else _CAUSAL_BLOCK
    pairs = calls = 0
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        first = max(0, past + start - window + 1) if window else 0
        pairs += (stop - start) * (past + stop - first)
        calls += 1
    return pairs, calls


def test_computed_pairs_are_those_of_the_kernels_calls() -> None:
    from hwsearch.kernels.attention import torch_path

    rng = np.random.default_rng(0)
    dims = []
    for _ in range(300):
        queries, past, window = (int(x) for x in np.exp(rng.uniform(0, 8, 3)))
        chosen = operator(
            "context_attention",
            batch=1,
            seq_len=queries,
            past_len=past if rng.random() < 0.5 else 0,
            num_heads=4,
            num_kv_heads=2,
            head_dim=64,
            window=window if rng.random() < 0.7 else 0,
        )
        dims.append(chosen.dims)
    c = columns("context_attention", dims)
    pairs, calls = computed_pairs(c)
    for i, (_, queries, past, _, _, _, window) in enumerate(dims):
        path = torch_path(queries=queries, keys=past + queries, window=window)
        assert masked(c)[i] == (path == "blocks")
        assert (pairs[i], calls[i]) == _pairs_of_calls(queries, past, window), dims[i]
    assert 0.1 < masked(c).mean() < 0.9  # both ways are among them


@pytest.mark.parametrize("kind", ["gemm", "generation_attention"])
def test_twenty_rows_of_a_cpu_are_enough_for_its_forms(kind: str) -> None:
    rng = np.random.default_rng(0)
    form = CPU_FORMS[kind]
    truth = {
        k.name: float(np.clip(k.start * np.exp(rng.normal(0, 0.4)), k.low, k.high)) for k in form.constants
    }
    if "compute" in truth:
        truth["compute"] = min(truth["compute"], 0.9)

    def table(points: int, seed: int, noise: float) -> Table:
        dims = _planned(kind, points, seed=seed)
        latency = analytic_ms(kind, columns(kind, dims), device=CPU, size=4, constants=truth)
        return Table(kind, dims, latency * np.exp(rng.normal(0, noise, len(dims))))

    few, asked = table(20, 0, 0.03), table(60, 1, 0.0)

    def error(device: DeviceSpec) -> float:
        family = fit_family(few, device=device, size=4, seed=0)
        predicted = family.predict(asked.dims, device=device, size=4).median_ms
        return float(np.abs(predicted / asked.latency_ms - 1).mean())

    own = error(CPU)
    assert own < 0.1
    if kind == "generation_attention":  # one of the two is enough, and products take longer
        assert error(replace(CPU, kind="gpu")) > 2 * own


def test_points_of_a_cpu_are_chosen_by_its_forms() -> None:
    pool = _planned("gemm", 60, seed=1)
    latency = analytic_ms("gemm", columns("gemm", pool), device=CPU, size=4, constants=START["gemm"])
    measured = Table("gemm", pool[:30], latency[:30])
    picks = choose(measured, pool, np.ones(len(pool)), count=5, device=CPU, size=4, seed=0)
    assert len({pick.row for pick in picks} - set(range(30))) == 5


def test_constants_of_a_cpu_stay_in_their_bounds() -> None:
    rng = np.random.default_rng(0)
    for kind in ("context_attention", "delta_rule_decode", "elementwise"):
        dims = _planned(kind, 20, seed=0)
        nonsense = Table(kind, dims, np.exp(rng.normal(0, 3, len(dims))))
        found = fit_constants(nonsense, device=CPU, size=4, seed=0, starts=1)
        for constant in CPU_FORMS[kind].constants:
            assert constant.low <= found[constant.name] * (1 + 1e-9)
            assert found[constant.name] <= constant.high * (1 + 1e-9)


def test_leverage_counts_the_constants_that_rows_decide() -> None:
    dims = _planned("generation_attention", 200, seed=0)
    c = columns("generation_attention", dims)
    latency = analytic_ms(
        "generation_attention", c, device=CPU, size=4, constants=START["generation_attention"]
    )

    def of(rows: int) -> np.ndarray:
        table = Table("generation_attention", dims[:rows], latency[:rows])
        return leverage(table, START["generation_attention"], device=CPU, size=4)

    few, many = of(15), of(200)
    assert (few > 0).all()
    assert (few < 1).all()
    # Their sum is the number of constants that are fitted rather than assumed.
    assert 3 < few.sum() <= many.sum() < len(START["generation_attention"])
    assert few.mean() > 5 * many.mean()


def test_intervals_after_few_rows_of_a_cpu_hold_what_they_say() -> None:
    """Forms whose constants must be learned from 20 noisy rows: without studentising, 78% are covered here."""
    rng = np.random.default_rng(1)
    truth = {name: value * float(np.exp(rng.normal(0, 0.5))) for name, value in START["gemm"].items()}
    truth["compute"] = 0.8
    dims = _planned("gemm", 120, seed=0)
    latency = analytic_ms("gemm", columns("gemm", dims), device=CPU, size=4, constants=truth)
    noisy = Table("gemm", dims, latency * np.exp(rng.normal(0, 0.08, len(dims))))
    inside = []
    for draw in range(3):
        order = np.random.default_rng(draw).permutation(len(dims))
        asked = noisy.take(order[20:])
        family = fit_family(noisy.take(order[:20]), device=CPU, size=4, seed=0)
        predicted = family.predict(asked.dims, device=CPU, size=4)
        inside.append(np.abs(np.log(asked.latency_ms / predicted.median_ms)) <= predicted.half_width)
    assert np.mean(inside) > 0.81
