"""Ceilings, rooflines, regions and analytic forms: what must hold by physics, whatever was fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwsearch.costmodel.analytic import FORMS, analytic_ms
from hwsearch.costmodel.calibration import fit_constants
from hwsearch.costmodel.devices import device_named, device_reported_as
from hwsearch.costmodel.features import FEATURES
from hwsearch.costmodel.importers import import_aiconfigurator
from hwsearch.costmodel.region import Region, fit_region
from hwsearch.costmodel.roofline import roofline_bound, roofline_ms
from hwsearch.costmodel.tables import Table, split_table, tables_from_measurements
from hwsearch.errors import DataError, InputError
from hwsearch.operators import KINDS, columns, operator
from hwsearch.records import Environment, Measurement

H100 = device_named("h100-sxm")
START = {kind: {k.name: k.start for k in form.constants} for kind, form in FORMS.items()}
TYPICAL = {
    "gemm": (512, 4096, 4096),
    "context_attention": (2, 4096, 0, 16, 4, 128, 0),
    "generation_attention": (16, 8192, 16, 4, 128, 0),
    "delta_rule_prefill": (4, 4096, 16, 16, 128, 128),
    "delta_rule_decode": (64, 16, 16, 128, 128),
    "short_conv_prefill": (4, 4096, 6144, 4),
    "short_conv_decode": (512, 6144, 4),
    "elementwise": (65536, 4096, 1, 1),
    "linear_attention_prefill": (4, 4096, 16, 16, 128, 128, 128),
    "linear_attention_decode": (64, 16, 16, 128, 128, 128),
    "rwkv7_prefill": (4, 4096, 32, 64, 64),
    "rwkv7_decode": (64, 32, 64, 64),
    "diagonal_scan_prefill": (16, 4096, 4096),
    "diagonal_scan_decode": (512, 4096),
    "diagonal_ssm_prefill": (16, 4096, 4096, 16),
    "diagonal_ssm_decode": (512, 4096, 16),
    "moe": (512, 2048, 768, 8, 128),
}


def _analytic(kind: str, *dims: tuple[int, ...]) -> list[float]:
    latency = analytic_ms(kind, columns(kind, dims), device=H100, size=2, constants=START[kind])
    return [float(value) for value in latency]


def test_unknown_device_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean h100-sxm"):
        device_named("h100_sxm")
    assert device_reported_as("NVIDIA H200") == device_named("h200-sxm")
    assert device_reported_as("GeForce") is None


def test_roofline_of_known_cases() -> None:
    c = columns("gemm", [(1, 8192, 8192), (8192, 8192, 8192), (1, 16, 16)])
    assert roofline_bound("gemm", c, device=H100, size=2).tolist() == ["memory", "compute", "launch"]
    latency = roofline_ms("gemm", c, device=H100, size=2)
    # 134 MB of weights at 3.0 TB/s, and 1.1 TFLOP at 791 TFLOP/s, each after a 2.5 us launch.
    np.testing.assert_allclose(latency[:2], [0.0470, 1.392], rtol=0.01)


def test_every_kind_of_operator_can_be_fitted() -> None:
    assert set(FORMS) == set(FEATURES) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_never_faster_than_the_datasheet(kind: str) -> None:
    c = columns(kind, [TYPICAL[kind]])
    flops, moved = KINDS[kind].flops(c)[0], KINDS[kind].bytes(c, 2)[0]
    least = 1e3 * flops / H100.peak_flops
    if moved > 2 * H100.l2_bytes:
        least = max(least, 1e3 * moved / H100.bandwidth)
    assert _analytic(kind, TYPICAL[kind])[0] >= least


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_more_batch_takes_longer_and_a_larger_one_in_proportion(kind: str) -> None:
    base = TYPICAL[kind]
    once, twice, many, more = _analytic(kind, *((base[0] * f, *base[1:]) for f in (1, 2, 64, 128)))
    assert once <= twice < many < more
    assert 1.8 < more / many < 2.2


def test_delta_rule_scales_with_its_state() -> None:
    small, wide = _analytic("delta_rule_decode", (256, 12, 12, 128, 128), (256, 12, 12, 96, 256))
    assert 1.4 < wide / small < 1.6  # 96 x 256 is 1.5 times 128 x 128
    # Long prefill with more programs than multiprocessors: twice the value channels, twice the programs.
    one, two = _analytic("delta_rule_prefill", (64, 8192, 16, 16, 128, 128), (64, 8192, 16, 16, 128, 256))
    assert 1.5 < two / one < 2.1
    # One sequence leaves multiprocessors idle: more value channels come almost free.
    one, two = _analytic("delta_rule_prefill", (1, 8192, 16, 16, 128, 128), (1, 8192, 16, 16, 128, 256))
    assert 1.0 <= two / one < 1.1


def test_a_window_bounds_the_cost_of_long_contexts() -> None:
    dims = [(1, s, 0, 16, 4, 128, 1024) for s in (2**15, 2**16)]
    linear = _analytic("context_attention", *dims)
    assert 1.8 < linear[1] / linear[0] < 2.2
    windowed = _analytic("generation_attention", *((8, s, 16, 8, 128, 1024) for s in (2**13, 2**17)))
    assert windowed[0] == windowed[1]


def test_fitted_constants_stay_in_their_bounds_and_meet_made_up_truth() -> None:
    rng = np.random.default_rng(0)
    dims = np.exp2(rng.uniform(3, 13, (800, 3))).astype(np.int64)
    truth = START["gemm"] | {"launch_us": 4.0, "feed": 6.0, "compute": 0.6}
    latency = analytic_ms("gemm", columns("gemm", dims), device=H100, size=2, constants=truth)
    noisy = Table("gemm", dims, latency * np.exp(rng.normal(0, 0.02, len(latency))))
    found = fit_constants(noisy, device=H100, size=2, seed=0)
    assert found["launch_us"] == pytest.approx(4.0, rel=0.1)
    assert found["compute"] == pytest.approx(0.6, rel=0.1)
    for constant in FORMS["gemm"].constants:
        assert constant.low <= found[constant.name] <= constant.high * (1 + 1e-9)


def test_region_measures_octaves_outside() -> None:
    dims = np.array([(1, 64, 64), (64, 1024, 4096)])
    region = fit_region("gemm", columns("gemm", dims), size=2)
    c = columns("gemm", [(64, 1024, 4096), (256, 1024, 4096), (1, 32, 64)])
    excess = region.excess(c, size=2)
    assert excess[0].tolist() == [0] * 5
    assert excess[1, 0] == pytest.approx(2)
    assert Region.distance(excess)[1] == pytest.approx(2)
    assert region.describe(c, excess, size=2).startswith("m up to 256 (measured to 64), n down to 32")


def test_region_counts_total_work_beside_the_dimensions() -> None:
    # Large batches were measured with few channels only, so both together are new work.
    dims = np.array([(1, 8192, 4), (512, 64, 4)])
    region = fit_region("short_conv_decode", columns("short_conv_decode", dims), size=2)
    both = columns("short_conv_decode", [(512, 8192, 4)])
    assert Region.distance(region.excess(both, size=2))[0] > 3


def _measured(latency: float, *, runtime: str = "r", status: str = "ok") -> Measurement:
    return Measurement(
        operator=operator("gemm", m=1, n=2, k=3),
        dtype="bfloat16",
        environment=Environment(device_name="d", runtime=runtime),
        samples_ms=(latency,) if status == "ok" else (),
        kernel="k",
        status="ok" if status == "ok" else "oom",
    )


def test_tables_from_measurements_merge_replicates_and_skip_failures() -> None:
    tables = tables_from_measurements([_measured(1.0), _measured(3.0), _measured(0, status="oom")])
    assert tables["gemm"].latency_ms.tolist() == [2.0]
    with pytest.raises(DataError, match="2 set-ups"):
        tables_from_measurements([_measured(1.0), _measured(1.0, runtime="other")])
    with pytest.raises(DataError, match="positive"):
        tables_from_measurements([_measured(0.0)])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("kind", "most"), [("gemm", 9), ("generation_attention", 9), ("delta_rule_prefill", 6)]
)
def test_analytic_forms_alone_stay_close_to_the_real_tables(
    shared_data: Path, kind: str, most: float
) -> None:
    folder = "gdn" if kind.startswith("delta") else kind
    table = import_aiconfigurator(shared_data / "data" / "h100_sxm" / f"{folder}.parquet").tables[kind]
    judged, fitted = split_table(table, held_out=min(0.5, 1000 / len(table)), seed=0)
    constants = fit_constants(fitted, device=H100, size=2, seed=0)
    predicted = analytic_ms(kind, judged.columns, device=H100, size=2, constants=constants)
    assert 100 * np.abs(predicted / judged.latency_ms - 1).mean() < most
