"""Transfer from another device: few points suffice, a useless source is dropped, the unmeasured is flagged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.importers import import_aiconfigurator
from hwsearch.costmodel.model import EXTRAPOLATED, TRANSFERRED, UNMEASURED, CostModel
from hwsearch.costmodel.tables import Table
from hwsearch.costmodel.transfer import Gate, transfer_model
from hwsearch.errors import DataError, InputError
from hwsearch.operators import operator
from tests.costmodel.conftest import gemm_table

H200 = device_named("h200-sxm")
ROWS = 24


def _faster(table: Table) -> Table:
    """The law of conftest on a device with a third more bandwidth and the same jumps: a fifth less at most."""
    c = table.columns
    memory = 2 * (c["m"] * c["k"] + c["n"] * c["k"] + c["m"] * c["n"]) / 2.9e9
    compute = 2 * c["m"] * c["n"] * c["k"] / 700e9
    before, after = np.maximum(compute, memory), np.maximum(compute, memory / 1.33)
    return Table(table.kind, table.dims, 0.003 + (table.latency_ms - 0.003) * after / before)


@pytest.fixture(scope="module")
def few() -> Table:
    return _faster(gemm_table(ROWS, seed=7))


@pytest.fixture(scope="module")
def asked(few: Table) -> Table:
    fresh = _faster(gemm_table(400, seed=8))
    return fresh.take(~(fresh.dims[:, None] == few.dims).all(axis=2).any(axis=1))


def _transfer(source: CostModel, table: Table) -> tuple[CostModel, dict[str, Gate]]:
    return transfer_model(
        source, {table.kind: table}, device=H200, runtime="test 2.0", measured="made up anew", seed=0
    )


@pytest.fixture(scope="module")
def transferred(fitted: CostModel, few: Table) -> tuple[CostModel, dict[str, Gate]]:
    return _transfer(fitted, few)


def _mape(model: CostModel, table: Table) -> float:
    predicted = model.predict_table(table.kind, table.dims).median_ms
    return 100 * float(np.abs(predicted / table.latency_ms - 1).mean())


def _alone(table: Table) -> CostModel:
    return CostModel.fit(
        {table.kind: table}, device=H200, runtime="test 2.0", dtype="bfloat16", source="", seed=0
    )


@pytest.fixture(scope="module")
def alone(few: Table) -> CostModel:
    return _alone(few)


def test_few_points_and_a_source_beat_few_points(
    transferred: tuple[CostModel, dict[str, Gate]], alone: CostModel, asked: Table
) -> None:
    model, gates = transferred
    assert _mape(model, asked) < 0.8 * _mape(alone, asked)
    assert gates["gemm"].source_weight > 0.5
    assert gates["gemm"].errors.rows == ROWS
    answer = model.predict_table("gemm", asked.dims)
    inside = (answer.low_ms <= asked.latency_ms) & (asked.latency_ms <= answer.high_ms)
    assert inside.mean() > 0.75


def test_identity_and_provenance_name_target_and_source(
    transferred: tuple[CostModel, dict[str, Gate]],
) -> None:
    model, _ = transferred
    assert (model.device, model.runtime) == (H200, "test 2.0")
    assert "made up anew" in model.source
    assert "h100-sxm (test 1.0)" in model.source
    gemm = operator("gemm", m=64, n=1024, k=1024)
    answer = model.predict([gemm, operator("gemm", m=64, n=2**18, k=1024)])
    assert answer.provenance.tolist() == [TRANSFERRED, EXTRAPOLATED]
    assert (
        f"transferred from h100-sxm (test 1.0) by {ROWS} operators measured on h200-sxm (test 2.0)"
        in answer.notes[0]
    )
    assert "n up to 262144" in answer.notes[1]
    near, far = np.log(answer.high_ms / answer.low_ms)
    assert far > near


def test_kinds_without_rows_are_carried_over_and_flagged(
    fitted: CostModel, transferred: tuple[CostModel, dict[str, Gate]]
) -> None:
    model, gates = transferred
    assert "short_conv_decode" not in gates
    assert "short_conv_decode" not in model.held_out
    large = operator("short_conv_decode", batch=256, channels=2560, width=4)
    beyond = operator("short_conv_decode", batch=2**14, channels=2560, width=4)
    answer = model.predict([large, beyond])
    assert answer.provenance.tolist() == [UNMEASURED, UNMEASURED]
    assert "from h100-sxm (test 1.0), nothing measured on h200-sxm (test 2.0)" in answer.notes[0]
    assert answer.median_ms[0] < fitted.predict([large]).median_ms[0]
    assert (answer.high_ms / answer.median_ms >= 2 - 1e-9).all()


def test_a_source_of_nonsense_costs_little(alone: CostModel, few: Table, asked: Table) -> None:
    noise = np.random.default_rng(0)
    table = gemm_table(100, seed=3)
    nonsense = Table("gemm", table.dims, table.latency_ms * np.exp(noise.normal(0, 1.5, len(table))))
    source = CostModel.fit(
        {"gemm": nonsense},
        device=device_named("h100-sxm"),
        runtime="test 1.0",
        dtype="bfloat16",
        source="",
        seed=0,
    )
    model, gates = _transfer(source, few)
    assert _mape(model, asked) < 1.25 * _mape(alone, asked)
    assert gates["gemm"].errors.mape < 1.1 * gates["gemm"].alone_mape


def test_round_trip(
    transferred: tuple[CostModel, dict[str, Gate]], few: Table, asked: Table, tmp_path: Path
) -> None:
    model, _ = transferred
    model.save(tmp_path / "m")
    loaded = CostModel.load(tmp_path / "m")
    for kind, dims in (("gemm", asked.dims), ("short_conv_decode", np.array([[8, 1024, 4]]))):
        before, after = model.predict_table(kind, dims), loaded.predict_table(kind, dims)
        np.testing.assert_allclose(after.median_ms, before.median_ms, rtol=2e-3)
        np.testing.assert_allclose(after.high_ms, before.high_ms, rtol=5e-3)
        assert (after.provenance == before.provenance).all()
    assert loaded.held_out == model.held_out
    assert loaded.families["gemm"].seen(few.dims).all()


def test_transfer_is_deterministic(
    fitted: CostModel, transferred: tuple[CostModel, dict[str, Gate]], few: Table, asked: Table
) -> None:
    again, _ = _transfer(fitted, few)
    np.testing.assert_array_equal(
        again.predict_table("gemm", asked.dims).median_ms,
        transferred[0].predict_table("gemm", asked.dims).median_ms,
    )


def test_kinds_that_the_source_lacks_are_fitted_alone(
    fitted: CostModel, alone: CostModel, few: Table, asked: Table
) -> None:
    without = replace(fitted, families={"short_conv_decode": fitted.families["short_conv_decode"]})
    model, gates = _transfer(without, few)
    assert not gates
    assert _mape(model, asked) == _mape(alone, asked)


def test_too_few_rows_and_a_transferred_source_are_refused(
    fitted: CostModel, transferred: tuple[CostModel, dict[str, Gate]], few: Table
) -> None:
    with pytest.raises(DataError, match="gemm: 5 measured operators"):
        _transfer(fitted, few.take(np.arange(5)))
    with pytest.raises(InputError, match="itself transferred from h100-sxm"):
        _transfer(transferred[0], few)
    with pytest.raises(InputError, match="holds no measured operator"):
        _transfer(replace(fitted, families={}), few)


@pytest.mark.shared
def test_twenty_real_points_take_h100_to_h200(shared_data: Path) -> None:
    path = shared_data / "data" / "h200_sxm" / "generation_attention.parquet"
    table = import_aiconfigurator(path).tables["generation_attention"]
    order = np.random.default_rng(1).permutation(len(table))
    source = load_builtin("h100-sxm")
    one = replace(source, families={"generation_attention": source.families["generation_attention"]})
    model, _ = _transfer(one, table.take(order[:20]))
    judged = table.take(order[20:1020])
    assert _mape(model, judged) < 4
    assert _mape(_alone(table.take(order[:20])), judged) > 6
