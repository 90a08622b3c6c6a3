"""The model that ships with the package: its promises on size, speed and sanity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwsearch.costmodel import builtin_models as builtin
from hwsearch.costmodel.builtin_models import builtin_models, load_builtin
from hwsearch.costmodel.evaluate import evaluate
from hwsearch.costmodel.importers import import_aiconfigurator
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InputError
from hwsearch.operators import operator
from hwsearch.pipeline.models import fit_rows
from hwsearch.pipeline.rows import load_rows


@pytest.fixture(scope="module")
def h100() -> CostModel:
    return load_builtin("h100-sxm")


def test_names() -> None:
    assert "h100-sxm" in builtin_models()
    with pytest.raises(InputError, match="did you mean h100-sxm"):
        load_builtin("h100")


def test_small_on_disk() -> None:
    home = Path(builtin.__file__).parent / "builtin" / "h100-sxm"
    assert sum(file.stat().st_size for file in home.iterdir()) < 2e6


def test_identity(h100: CostModel) -> None:
    assert (h100.device.name, h100.runtime, h100.dtype) == ("h100-sxm", "vLLM 0.24.0", "bfloat16")
    assert "AIConfigurator" in h100.source


@pytest.mark.parametrize(("batch", "heads", "kv_heads"), [(128, 12, 2), (8, 16, 8), (64, 16, 2)])
def test_long_decode_attention_runs_near_the_bandwidth(
    h100: CostModel, batch: int, heads: int, kv_heads: int
) -> None:
    p = h100.predict(
        [
            operator(
                "generation_attention",
                batch=batch,
                kv_len=65536,
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=128,
                window=0,
            )
        ]
    )
    cache = batch * 65536 * kv_heads * 128 * 2 * 2
    assert 2.6e9 < cache / p.median_ms[0] < 3.35e9


def test_lm_head_extrapolates_with_its_weights(h100: CostModel) -> None:
    p = h100.predict([operator("gemm", m=m, n=151936, k=1536) for m in (1, 64, 4096)])
    weights = 2 * 151936 * 1536
    assert ((weights / p.median_ms[:2] > 2.3e9) & (weights / p.median_ms[:2] < 3.35e9)).all()
    assert 550e9 < 2 * 4096 * 151936 * 1536 / p.median_ms[2] < 850e9


def test_jetblock_state_is_extrapolated_by_its_size_and_with_doubt(h100: CostModel) -> None:
    narrow, jet = (
        operator("delta_rule_decode", batch=128, num_k_heads=12, num_v_heads=12, head_k_dim=dk, head_v_dim=dv)
        for dk, dv in ((128, 128), (96, 256))
    )
    p = h100.predict([narrow, jet])
    assert 1.35 < p.median_ms[1] / p.median_ms[0] < 1.6
    assert p.provenance.tolist() == [0, 1]
    spread = p.high_ms / p.low_ms
    assert spread[1] > 1.3 > spread[0]


def test_a_fresh_copy_predicts_the_same(h100: CostModel, tmp_path: Path) -> None:
    h100.save(tmp_path / "copy")
    copy = CostModel.load(tmp_path / "copy")
    dims = np.array([[77, 1536, 1536], [2048, 8960, 1536]])
    np.testing.assert_array_equal(
        copy.predict_table("gemm", dims).median_ms, h100.predict_table("gemm", dims).median_ms
    )


@pytest.mark.shared
def test_recipe_on_small_real_families_keeps_its_accuracy(shared_data: Path, h100: CostModel) -> None:
    tables = import_aiconfigurator(shared_data / "data" / "h100_sxm" / "gdn.parquet").tables
    errors = evaluate(h100, tables, as_is=False, seed=5).operators
    assert errors["delta_rule_prefill"].mape < 1.0
    assert 85 < errors["delta_rule_prefill"].coverage_90 < 97
    assert errors["delta_rule_decode"].mape < 3.0
    assert errors["short_conv_prefill"].mape < 1.5


@pytest.mark.shared
def test_the_shipped_model_can_be_rebuilt(shared_data: Path, h100: CostModel) -> None:
    """Families are fitted apart from one another, so a few small ones stand for all."""
    rows = load_rows(shared_data / "data" / "h100_sxm" / "gdn.parquet")
    rebuilt = fit_rows(rows, seed=h100.seed)
    assert (rebuilt.device, rebuilt.runtime) == (h100.device, h100.runtime)
    for kind, table in rows.tables.items():
        np.testing.assert_allclose(
            rebuilt.predict_table(kind, table.dims).median_ms,
            h100.predict_table(kind, table.dims).median_ms,
            rtol=5e-3,  # BLAS libraries differ in the last bits, and trees may split elsewhere for it
        )
        assert h100.families[kind].seen(table.dims).all()
