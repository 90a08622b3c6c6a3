"""Two stores of the same things: what all rows share, and what is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from hwsearch.errors import DataError
from hwsearch.operators import operator
from hwsearch.profilers.compare import compare_stores
from hwsearch.profilers.rows import Row
from hwsearch.profilers.store import Store
from hwsearch.records import Conditions, Environment, Measurement
from hwsearch.searchspace.block import Block, BlockMeasurement
from hwsearch.searchspace.workload import Workload

_HERE = Environment(device_name="bench", runtime="torch 0.0", versions={"torch": "0"})
_FRAME = Block(
    hidden_size=8,
    workload=Workload(phase="decode", batch=1, context=16, dtype="float32"),
    vocab_size=16,
)


def _row(m: int, ms: float, reference_ms: float | None = 0.5) -> Measurement:
    return Measurement(
        operator=operator("gemm", m=m, n=2, k=3),
        dtype="float32",
        environment=_HERE,
        samples_ms=(ms, ms, ms),
        kernel="torch.linear",
        kernel_requested="torch",
        conditions=Conditions(reference_ms=reference_ms),
    )


def _store(path: Path, gemms: Mapping[int, float], *, frame_ms: float, **reference: float | None) -> Path:
    rows: list[Row] = [_row(m, ms, **reference) for m, ms in gemms.items()]
    rows.append(
        BlockMeasurement(
            block=_FRAME, dtype="float32", environment=_HERE, samples_ms=(frame_ms,), kernel="torch"
        )
    )
    with Store.open(path, create=True) as store:
        store.add(rows)
    return path


def test_a_shared_factor_is_told_from_the_rest(tmp_path: Path) -> None:
    first = _store(tmp_path / "a.db", {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}, frame_ms=1.0)
    # Everything 2% slower, one row 20%; a row is missing and another one new.
    second = _store(tmp_path / "b.db", {1: 1.02, 2: 2.04, 3: 3.6, 5: 1.0}, frame_ms=1.02, reference_ms=0.505)
    found = compare_stores(first, second)
    assert found.all.points == 4
    assert found.all.shift == pytest.approx(200 * 0.02 / 2.02)
    assert found.all.median == pytest.approx(found.all.shift)
    assert found.all.rest == pytest.approx(0, abs=1e-9)
    assert found.all.largest == pytest.approx(200 * 0.6 / 6.6)
    assert (found.only_first, found.only_second) == (1, 1)
    assert found.reference_percent == pytest.approx(1)
    assert {kind: spread.points for kind, spread in found.by_kind().items()} == {"block: frame": 1, "gemm": 3}
    (far,) = found.farthest(1)
    assert far.subject == operator("gemm", m=3, n=2, k=3)

    back = compare_stores(second, first)
    assert back.all.shift == pytest.approx(-found.all.shift)
    assert back.all.median == pytest.approx(found.all.median)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    first = _store(tmp_path / "a.db", {1: 1.0}, frame_ms=1.0)
    with Store.open(tmp_path / "other.db", create=True) as store:
        store.add([_row(9, 1.0, reference_ms=None)])
    with pytest.raises(DataError, match="nothing that ran in both"):
        compare_stores(first, tmp_path / "other.db")

    unknown = _store(tmp_path / "b.db", {1: 1.0}, frame_ms=1.0, reference_ms=None)
    assert compare_stores(first, unknown).reference_percent is None

    with Store.open(tmp_path / "other.db", create=True) as store:
        elsewhere = dataclasses.replace(_HERE, device_name="another")
        store.add([dataclasses.replace(_row(1, 1.0), environment=elsewhere)])
    with pytest.raises(DataError, match="one device and runtime each"):
        compare_stores(first, tmp_path / "other.db")
