"""Which rows of a store a cost model is fitted to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hwsearch.errors import DataError
from hwsearch.operators import columns, operator
from hwsearch.pipeline.models import fit_rows
from hwsearch.pipeline.rows import load_rows
from hwsearch.profilers.store import Store
from hwsearch.records import Conditions, Environment, Measurement
from tests.profilers.made_up import made_up_device


def _gemm(m: int, *, reference_ms: float | None = 0.05) -> Measurement:
    return Measurement(
        operator=operator("gemm", m=m, n=64, k=64),
        dtype="float32",
        environment=Environment(device_name="bench", runtime="torch 0.0", versions={}),
        samples_ms=(0.01 + m * 1e-3,),
        kernel="torch.linear",
        conditions=None
        if reference_ms is None
        else Conditions(
            visits=1, visit_ms=(0.01 + m * 1e-3,), calls=1, half_width=0.0, reference_ms=reference_ms
        ),
    )


def _stored(path: Path, *rows: Measurement) -> Path:
    with Store.open(path, create=True) as store:
        store.add_device(made_up_device("bench"))
        store.add(rows)
    return path


def test_rows_of_a_crawling_machine_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [_gemm(m) for m in range(1, 21)] + [_gemm(99, reference_ms=5.0), _gemm(98, reference_ms=None)]
    found = load_rows(_stored(tmp_path / "a.db", *rows))
    assert sorted(columns("gemm", found.tables["gemm"].dims)["m"].tolist()) == [*range(1, 21), 98]
    assert found.left_out == {"measured while the machine ran at less than half of its usual speed": 1}


def test_a_kind_with_few_rows_is_not_fitted_and_said_so(tmp_path: Path) -> None:
    few = [
        dataclasses.replace(_gemm(m), operator=operator("elementwise", rows=m, width=64, reads=1, writes=1))
        for m in range(1, 5)
    ]
    rows = load_rows(_stored(tmp_path / "a.db", *(_gemm(m) for m in range(1, 21)), *few))
    kept = rows.without_small(15)
    ((reason, count),) = kept.left_out.items()
    assert count == 4
    assert reason.startswith("elementwise: fewer than 15 operators")
    assert set(fit_rows(kept, seed=0).families) == {"gemm"}
    ((reason, _),) = rows.without_small(15, lent={"elementwise"}).left_out.items()
    assert "fewer than 12 operators" in reason
    assert "the source's" in reason
    thirteen = load_rows(_stored(tmp_path / "b.db", *(_gemm(m) for m in range(1, 14))))
    assert not thirteen.without_small(15, lent={"gemm"}).left_out


def test_a_store_without_enough_of_anything_names_the_command_that_measures_more(tmp_path: Path) -> None:
    rows = load_rows(_stored(tmp_path / "a.db", *(_gemm(m) for m in range(1, 5))))
    with pytest.raises(DataError, match=r"gemm has 4 measured operators.*at least 15.*hwsearch profile"):
        rows.without_small(15)


def test_a_device_file_does_not_make_a_gpu_of_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Store.open(path, create=True) as store:
        store.add_device(dataclasses.replace(made_up_device("bench"), kind="cpu"))
        store.add([_gemm(m) for m in range(1, 21)])
    stated = dataclasses.replace(made_up_device("stated"), peak_flops=3e11)
    found = load_rows(path, ceilings=stated).device
    assert (found.kind, found.peak_flops) == ("cpu", 3e11)
