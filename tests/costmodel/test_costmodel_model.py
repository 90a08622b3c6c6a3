"""The cost model as a user sees it: accuracy on a known law, provenance, intervals, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.evaluate import evaluate
from hwsearch.costmodel.model import EXTRAPOLATED, MEASURED, ROOFLINE, CostModel
from hwsearch.costmodel.tables import Table
from hwsearch.errors import DataError, InputError
from hwsearch.operators import Operator, operator


def test_predicts_unseen_rows_of_a_known_law(fitted: CostModel, tables: dict[str, Table]) -> None:
    errors = evaluate(fitted, tables, as_is=False, seed=3).operators
    assert errors["gemm"].mape < 6
    assert errors["short_conv_decode"].mape < 3
    assert errors["gemm"].coverage_90 > 75


def test_predictions_keep_the_order_of_mixed_operators(fitted: CostModel) -> None:
    gemm = operator("gemm", m=64, n=1024, k=1024)
    norm = operator("elementwise", rows=64, width=1024, reads=1, writes=1)
    mixed = fitted.predict([norm, gemm, norm])
    assert mixed.median_ms[1] == fitted.predict([gemm]).median_ms[0]
    assert mixed.median_ms[0] == mixed.median_ms[2] == fitted.predict([norm]).median_ms[0]
    assert (mixed.low_ms < mixed.median_ms).all()
    assert (mixed.median_ms < mixed.high_ms).all()


def test_says_what_is_measured_extrapolated_and_roofline(fitted: CostModel) -> None:
    prediction = fitted.predict(
        [
            operator("gemm", m=64, n=1024, k=1024),
            operator("gemm", m=64, n=151936, k=1024),
            operator("elementwise", rows=8, width=1024, reads=1, writes=1),
        ]
    )
    assert prediction.provenance.tolist() == [MEASURED, EXTRAPOLATED, ROOFLINE]
    assert "n up to 151936" in prediction.notes[0]
    assert "roofline" in prediction.notes[1]


def test_interval_widens_with_distance_from_the_measurements(fitted: CostModel) -> None:
    widths = []
    for n in (4096, 2**14, 2**16, 2**18):
        p = fitted.predict([operator("gemm", m=256, n=n, k=1024)])
        widths.append(float(np.log(p.high_ms[0] / p.low_ms[0])))
    assert widths[1] < widths[2] < widths[3]


def test_extrapolates_by_physics_not_by_the_last_leaf(fitted: CostModel) -> None:
    p = fitted.predict([operator("gemm", m=8192, n=2**14 * f, k=8192) for f in (1, 4, 16)])
    ratio = p.median_ms[1:] / p.median_ms[:-1]
    assert ((ratio > 3.2) & (ratio < 4.8)).all()


def test_empty_request_gives_empty_prediction(fitted: CostModel) -> None:
    assert len(fitted.predict([])) == 0
    assert len(fitted.predict_table("gemm", np.zeros((0, 3), dtype=np.int64))) == 0


def test_unknown_kind_suggests_the_nearest(fitted: CostModel) -> None:
    with pytest.raises(InputError, match="did you mean gemm"):
        fitted.predict([Operator("gem", (1, 1, 1))])


def test_wrong_shape_is_refused(fitted: CostModel) -> None:
    with pytest.raises(InputError, match=r"shape \(n, 3\)"):
        fitted.predict_table("gemm", np.ones((2, 4), dtype=np.int64))


def test_too_few_rows_are_refused(tables: dict[str, Table]) -> None:
    few = {"gemm": tables["gemm"].take(np.arange(5))}
    with pytest.raises(DataError, match="5 measured operators"):
        CostModel.fit(
            few, device=device_named("h100-sxm"), runtime="test", dtype="bfloat16", source="", seed=0
        )


def test_fit_is_deterministic(fitted: CostModel, tables: dict[str, Table]) -> None:
    small = {"short_conv_decode": tables["short_conv_decode"]}
    again = CostModel.fit(
        small, device=fitted.device, runtime="test 1.0", dtype="bfloat16", source="made up", seed=0
    )
    dims = small["short_conv_decode"].dims
    np.testing.assert_array_equal(
        again.predict_table("short_conv_decode", dims).median_ms,
        fitted.predict_table("short_conv_decode", dims).median_ms,
    )


def test_as_is_judges_only_unseen_operators(fitted: CostModel, tables: dict[str, Table]) -> None:
    seen = tables["gemm"].take(np.arange(40))
    fresh = Table("gemm", np.array([[77, 999, 333], [5, 640, 2000]]), np.array([0.0035, 0.0045]))
    both = Table(
        "gemm",
        np.concatenate([seen.dims, fresh.dims]),
        np.concatenate([seen.latency_ms, fresh.latency_ms]),
    )
    errors = evaluate(fitted, {"gemm": both}, as_is=True, seed=0).operators["gemm"]
    assert (errors.rows, errors.skipped_seen) == (2, 40)
    with pytest.raises(DataError, match="fitted on all 40 operators"):
        evaluate(fitted, {"gemm": seen}, as_is=True, seed=0)


def test_prediction_needs_no_optional_package(fitted: CostModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "m")
    code = (
        "import sys; from pathlib import Path\n"
        "from hwsearch.costmodel.model import CostModel\n"
        "from hwsearch.operators import operator\n"
        f"m = CostModel.load(Path({str(tmp_path / 'm')!r}))\n"
        "m.predict([operator('gemm', m=4, n=64, k=64)])\n"
        "print(sorted({'sklearn', 'torch', 'pyarrow', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
