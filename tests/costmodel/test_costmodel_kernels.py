"""Which kernels a device runs, told by the fit: FlashAttention 2 or 3 in decoding, coarse or fine tiles in products.

And what the forms know of kernels: splits and waves.
"""

from __future__ import annotations

import numpy as np
import pytest

from hwsearch.costmodel.analytic import analytic_ms, analytic_of, form_with, forms_of, sensitivities
from hwsearch.costmodel.calibration import fit_constants
from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.forms.attention import static_splits
from hwsearch.costmodel.forms.gemm import cheapest_kernel
from hwsearch.costmodel.gp import GPRecipe, fit_gp
from hwsearch.costmodel.tables import Table
from hwsearch.operators import columns

KIND = "generation_attention"
H100, L40S = device_named("h100-sxm"), device_named("l40s")
FORMS_3_AND_2 = forms_of(KIND)
STARTS = [{k.name: k.start for k in form.constants} for form in FORMS_3_AND_2]


def _operators(rng: np.random.Generator, n: int) -> np.ndarray:
    kv_heads = rng.choice([1, 2, 4, 8], n)
    heads = kv_heads * rng.choice([1, 2, 4, 8], n)
    window = rng.choice([0, 0, 128], n)
    return np.stack(
        [2 ** rng.integers(0, 9, n), 2 ** rng.integers(9, 15, n), heads, kv_heads, np.full(n, 128), window],
        axis=1,
    )


@pytest.mark.parametrize("truth", [0, 1], ids=["FlashAttention 3", "FlashAttention 2"])
def test_the_fit_tells_which_kernel_a_table_shows(truth: int) -> None:
    rng = np.random.default_rng(0)
    dims = _operators(rng, 200)
    latency = analytic_ms(KIND, columns(KIND, dims), device=L40S, size=2, constants=STARTS[truth])
    table = Table(KIND, dims, latency * np.exp(rng.normal(0, 0.03, len(dims))))
    found = fit_constants(table, device=L40S, size=2, seed=0, starts=1)
    assert form_with(KIND, found) is FORMS_3_AND_2[truth]
    # A prior of the other kernel's constants does not decide which one runs here.
    other = STARTS[1 - truth]
    found = fit_constants(table, device=L40S, size=2, seed=0, starts=1, prior=other, prior_sd=0.3)
    assert form_with(KIND, found) is FORMS_3_AND_2[truth]
    # Where a fit begins does: folds keep the kernel of the whole.
    found = fit_constants(table, device=L40S, size=2, seed=0, starts=1, steps=2, begin=other)
    assert form_with(KIND, found) is FORMS_3_AND_2[1 - truth]


def test_flash_attention_2_packs_and_splits_only_shared_keys_without_a_window() -> None:
    def decode(*dims: tuple[int, ...]) -> list[float]:
        c = columns(KIND, dims)
        return [float(ms) for ms in analytic_ms(KIND, c, device=L40S, size=2, constants=STARTS[1])]

    alone, shared, shared_by_more = decode(
        (1, 16384, 8, 8, 128, 0), (1, 16384, 16, 8, 128, 0), (1, 16384, 64, 8, 128, 0)
    )
    assert (
        alone > 3 * shared
    )  # one block per head walks the whole cache; shared keys are split over the device
    assert shared_by_more == pytest.approx(shared, rel=0.05)
    few, many = decode((32, 16384, 16, 8, 128, 128), (32, 16384, 64, 8, 128, 128))
    assert many > 2 * few  # under a window every query head is a block of its own


@pytest.mark.parametrize("truth", [0, 1], ids=["fine", "powers of two"])
def test_the_fit_tells_which_tiles_a_table_of_products_shows(truth: int) -> None:
    rng = np.random.default_rng(0)
    dims = np.stack([16 * rng.integers(1, 256, 150), *(64 * rng.integers(1, 128, (2, 150)))], axis=1)
    form = forms_of("gemm")[truth]
    constants = {k.name: k.start for k in form.constants}
    latency = analytic_ms("gemm", columns("gemm", dims), device=H100, size=2, constants=constants)
    table = Table("gemm", dims, latency * np.exp(rng.normal(0, 0.03, len(dims))))
    found = fit_constants(table, device=H100, size=2, seed=0, starts=1)
    assert form_with("gemm", found) is form
    # A handful of rows is no evidence against the usual kernels.
    few = fit_constants(table.take(np.arange(4)), device=H100, size=2, seed=0, starts=1)
    assert form_with("gemm", few) is forms_of("gemm")[0]


@pytest.mark.parametrize("kernels", [0, 1], ids=["fine", "powers of two"])
def test_a_form_made_ready_for_a_fit_says_the_same_wherever_its_constants_move(kernels: int) -> None:
    rng = np.random.default_rng(0)
    dims = np.stack([rng.integers(1, 8192, 300), *(64 * rng.integers(1, 128, (2, 300)))], axis=1)
    c, form = columns("gemm", dims), forms_of("gemm")[kernels]
    ready = analytic_of(form, c, device=L40S, size=2)
    start = {k.name: k.start for k in form.constants}
    moved = ({**start, k.name: value} for k in form.constants for value in (k.low, k.high, k.start))
    for constants in moved:
        plain = analytic_ms("gemm", c, device=L40S, size=2, constants=constants)
        np.testing.assert_array_equal(ready(constants), plain)


@pytest.mark.parametrize("kernels", [0, 1], ids=["fine", "powers of two"])
def test_sensitivities_are_derivatives_with_the_kernel_held(kernels: int) -> None:
    rng = np.random.default_rng(0)
    dims = np.stack([rng.integers(1, 8192, 400), *(64 * rng.integers(1, 128, (2, 400)))], axis=1)
    c = columns("gemm", dims)
    constants = {k.name: k.start for k in forms_of("gemm")[kernels].constants}
    found = dict(
        zip(constants, sensitivities("gemm", c, device=H100, size=2, constants=constants).T, strict=True)
    )

    def log_ms(**changed: float) -> np.ndarray:
        return np.log(analytic_ms("gemm", c, device=H100, size=2, constants={**constants, **changed}))

    for name, slope in found.items():
        step = 1e-5
        searched = (log_ms(**{name: constants[name] * np.exp(step)}) - log_ms()) / step
        # So small a step changes next to no kernel.
        assert np.mean(np.abs(searched - slope) < 0.01) > 0.99, name
    # All times twice as long make a latency twice as long, but for the traffic of partial results.
    times = ("launch_us", "ramp_us", "far_us", "wave_us", "split_us", "throttle_ms")
    rates = ("bandwidth", "compute", "feed")
    total = sum(found[name] for name in times) - sum(found[name] for name in rates)
    unsplit = found["split_us"] == 0
    assert 0 < unsplit.sum() < len(dims)
    assert total[unsplit] == pytest.approx(1, abs=0.01)


def test_a_form_without_kernels_has_sensitivities_too() -> None:
    constants = {k.name: k.start for k in forms_of("short_conv_decode")[0].constants}
    c = columns("short_conv_decode", [(1, 256, 4), (512, 8192, 4)])
    small, large = sensitivities("short_conv_decode", c, device=H100, size=2, constants=constants)
    names = list(constants)
    assert small[names.index("launch_us")] > large[names.index("launch_us")] > 0
    assert large[names.index("bandwidth")] < -0.5


def test_a_product_is_split_where_tiles_are_few_and_not_where_they_fill_the_device() -> None:
    c = columns("gemm", [(64, 256, 65536), (8192, 8192, 1024)])
    kernel = cheapest_kernel(c, device=H100, size=2)
    assert kernel.split[0] > 1 == kernel.split[1]
    area = kernel.rows * kernel.columns
    assert area[0] < area[1]


def test_a_decode_step_of_the_delta_rule_waits_for_its_last_wave() -> None:
    kind = "delta_rule_decode"
    heads_of_a_wave = 8 * H100.num_sms // 4  # eight programs to a multiprocessor, four to a head
    c = columns(kind, [(batch, 1, 1, 128, 128) for batch in (heads_of_a_wave, heads_of_a_wave + 1)])
    constants = {k.name: k.start for k in forms_of(kind)[0].constants}

    def step(tail: float) -> float:
        full, more = analytic_ms(kind, c, device=H100, size=2, constants=constants | {"tail": tail})
        return float(more / full)

    assert step(0.0) == pytest.approx(1, abs=0.01)
    assert step(1.0) > 1.4
    # Within the first wave nothing waits.
    few = columns(kind, [(16, 1, 1, 128, 128)])
    fluid, whole = (
        analytic_ms(kind, few, device=H100, size=2, constants=constants | {"tail": tail})
        for tail in (0.0, 1.0)
    )
    assert fluid == pytest.approx(whole)


def test_no_form_has_foreign_constants() -> None:
    assert form_with(KIND, ["launch_us"]) is None
    assert form_with("gemm", STARTS[0]) is None


def test_splits_fill_the_device_as_evenly_as_the_best() -> None:
    tiles, blocks = (
        np.array([1.0, 16.0, 66.0, 105.0, 106.0, 4.0]),
        np.array([64.0, 64.0, 64.0, 64.0, 64.0, 4.0]),
    )
    # 132 multiprocessors: 16 tiles by 7 splits keep just under 85% of them busy, 66 by 2 all; 4 blocks are not split.
    assert static_splits(tiles, blocks, H100).tolist() == [55.0, 8.0, 2.0, 5.0, 1.0, 1.0]


def test_a_process_on_fewer_inducing_rows_than_it_learned_from_stays_close() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (300, 3)).astype(np.float32)
    y = np.sin(4 * x[:, 0]) + x[:, 1] * x[:, 2] + rng.normal(0, 0.01, 300)
    asked = rng.uniform(0, 1, (200, 3)).astype(np.float32)
    whole = fit_gp(x, y, recipe=GPRecipe(), seed=0).predict(asked)
    few = fit_gp(x, y, recipe=GPRecipe(inducing=80), seed=0)
    assert len(few.weight) == 80
    assert len(np.unique(few.inducing, axis=0)) == 80
    assert np.abs(few.predict(asked) - whole).mean() < 0.02
