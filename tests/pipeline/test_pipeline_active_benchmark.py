"""The benchmark of chosen points: what it fits, keeps and reports where both methods start from a source."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.tables import Table
from hwsearch.pipeline.models import carry_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "active_profiling.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("active_profiling", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["active_profiling"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _table(rows: int) -> Table:
    dims = np.array([[m, n, 1024] for m in range(1, 41) for n in range(128, 128 * 26, 128)][:rows])
    return Table("gemm", dims, 0.004 + 1e-9 * dims.prod(axis=1))


def test_no_points_are_the_source_under_the_devices_ceilings(benchmark: ModuleType) -> None:
    source, held = load_builtin("a100-sxm"), _table(50)
    error, gate = benchmark.judged(held.take(np.arange(0)), held, seed=0, source=source)
    carried = carry_model(source, device=device_named("h100-sxm")).predict_table("gemm", held.dims).median_ms
    as_it_is = source.predict_table("gemm", held.dims).median_ms
    assert gate is None
    assert error == pytest.approx(100 * np.abs(carried / held.latency_ms - 1).mean())
    assert np.abs(as_it_is / carried - 1).mean() > 0.1


def test_what_is_known_is_not_fitted_again(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []

    def judged(table: Table, held: Table, *, seed: int, source: object) -> tuple[float, None]:
        assert not {tuple(row) for row in table.dims} & {tuple(row) for row in held.dims}
        fitted.append(len(table))
        return float(len(table)), None

    monkeypatch.setattr(benchmark, "judged", judged)
    monkeypatch.setattr(benchmark, "choose_actively", lambda pool, *, points, **_: list(range(points)))
    known: dict[str, Any] = {"random": {"20": 1.0}}
    source = load_builtin("a100-sxm")
    for _ in range(2):
        benchmark.run(_table(800), seed=0, sizes=(20, 50), known=known, source=source)
    assert sorted(fitted) == [0, 20, 50, 50, 300]
    assert known["random"] == {"0": 0.0, "20": 1.0, "50": 50.0, "300": 300.0}
    assert known["active"] == {"20": 20.0, "50": 50.0}


def test_active_points_are_counted_against_random_ones_with_the_source_and_without(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [str(n) for n in benchmark.sizes_of("gemm", "a100-sxm")]
    assert sizes == ["20", "50", "100", "165"]
    entry = {
        "random": dict(zip(["0", *sizes, "300"], (40.0, 12.0, 8.0, 7.0, 6.0, 5.0), strict=True)),
        "active": dict(zip(sizes, (9.0, 7.0, 4.0, 3.5), strict=True)),
        "cross_validated": dict(zip(sizes, (9.5, 7.5, 4.5, 3.5), strict=True)),
        "kept": {"random": dict.fromkeys((*sizes, "300"), 0.0), "active": dict.fromkeys(sizes, 1.0)},
    }
    held = tmp_path / "active.json"
    held.write_text(json.dumps({"gemm/0/a100-sxm": entry, "gemm/0": {"random": {"300": 8.0}}}))
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--from", "a100-sxm", "--output", str(held), "--report"])
    assert benchmark.main() == 0
    said = capsys.readouterr().out
    assert "gemm: 300 random points from a100-sxm err by 5.00; active: 83 points, 28%" in said
    assert "gemm: 300 random points without a source err by 8.00; active: 35 points, 12%" in said
    assert "40.00" in said
    assert json.loads(held.read_text())["gemm/0/a100-sxm"] == entry
