"""Stores of earlier versions, joined stores, stores as tables, and rows that were visited again."""

from __future__ import annotations

import csv
import dataclasses
import json
import sqlite3
from pathlib import Path

import pytest

from hwsearch.errors import DataError, InputError
from hwsearch.operators import operator
from hwsearch.profilers.merge import export_store, merge_stores
from hwsearch.profilers.rows import revisited, row_content, row_from_content
from hwsearch.profilers.store import Store
from hwsearch.profilers.store_file import APPLICATION_ID, SCHEMA_VERSION
from hwsearch.records import Conditions, Environment, Measurement
from hwsearch.searchspace.block import Block, BlockMeasurement
from hwsearch.searchspace.workload import Workload

_HERE = Environment(device_name="bench", runtime="torch 0.0", versions={"torch": "0"})
_CONDITIONS = Conditions(
    visits=2,
    visit_ms=(0.2, 0.21),
    calls=4,
    half_width=0.01,
    reference_ms=0.5,
    throttled=("software power cap",),
    marks=("shared",),
    tuned={"kernel": "BLOCK: 64"},
)


def _row(m: int) -> Measurement:
    return Measurement(
        operator=operator("gemm", m=m, n=2, k=3),
        dtype="float32",
        environment=_HERE,
        samples_ms=(0.1, 0.3, 9.0),
        flagged=(2,),
        kernel="torch.linear",
        kernel_requested="torch",
        execution="cuda-graph",
        peak_memory_bytes=5,
        peak_reserved_bytes=6,
        workspace_bytes=7,
        state_bytes=8,
        energy_j=0.5,
        conditions=_CONDITIONS,
    )


def _block_row(context: int) -> BlockMeasurement:
    workload = Workload(phase="decode", batch=1, context=context, dtype="float32")
    return BlockMeasurement(
        block=Block(hidden_size=8, workload=workload, vocab_size=16),
        dtype="float32",
        environment=_HERE,
        samples_ms=(0.4,),
        kernel="torch",
        kernel_requested="torch",
        conditions=_CONDITIONS,
    )


def _failed(row: Measurement) -> Measurement:
    return dataclasses.replace(
        row, status="timeout", reason="no result", samples_ms=(), flagged=(), conditions=None, kernel=""
    )


# What version 1 of the schema was, as the release that wrote it created it.
_VERSION_1 = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    "PRAGMA user_version = 1",
    "CREATE TABLE environments (id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE)",
    "CREATE TABLE devices (name TEXT PRIMARY KEY, content TEXT NOT NULL)",
    "CREATE TABLE measurements (key TEXT NOT NULL PRIMARY KEY, kind TEXT NOT NULL, dims TEXT NOT NULL, dtype TEXT NOT "
    "NULL, environment INTEGER NOT NULL REFERENCES environments (id), samples_ms TEXT NOT NULL, kernel TEXT NOT NULL, "
    "kernel_requested TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL, peak_memory_bytes INTEGER, "
    "energy_j REAL)",
    'INSERT INTO environments VALUES (1, \'{"device_name":"bench","runtime":"torch 0.0"}\')',
    'INSERT INTO measurements VALUES (\'["gemm",[1,2,3],"float32","bench","","torch 0.0","torch"]\', \'gemm\', '
    "'[1,2,3]', 'float32', 1, '[0.25,0.5]', 'torch.linear', 'torch', 'ok', '', 77, NULL)",
)


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in _VERSION_1:
        connection.execute(statement)
    connection.close()
    return path


def test_a_store_of_version_1_is_read_as_it_is_and_migrated_for_writing(version_1: Path) -> None:
    before = version_1.read_bytes()
    with Store.open(version_1) as store:
        (old,) = store.measurements()
        assert store.blocks() == []
        assert store.keys() == {old.key}
    assert version_1.read_bytes() == before
    assert (old.samples_ms, old.peak_memory_bytes, old.execution) == ((0.25, 0.5), 77, "eager")
    assert (old.flagged, old.conditions, old.state_bytes) == ((), None, None)
    with Store.open(version_1, create=True) as store:
        assert store.measurements() == [old]
        assert store.add([_row(4), _block_row(5)]) == 2
    with Store.open(version_1) as store:
        assert store.row(old.key) == old
        assert store.row(_row(4).key) == _row(4)
        assert store.row(_block_row(5).key) == _block_row(5)
        assert store.row("nothing") is None
    connection = sqlite3.connect(version_1)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    connection.close()


def test_a_key_of_version_1_is_still_the_key(version_1: Path) -> None:
    with Store.open(version_1) as store:
        (old,) = store.measurements()
    assert store.path == version_1
    assert old.key == '["gemm",[1,2,3],"float32","bench","","torch 0.0","torch"]'
    captured = dataclasses.replace(old, execution="cuda-graph")
    assert captured.key != old.key


@pytest.mark.parametrize("row", [_row(1), _block_row(9), _failed(_row(2))], ids=["ok", "block", "timeout"])
def test_rows_survive_the_way_between_processes(row: Measurement | BlockMeasurement) -> None:
    assert row_from_content(json.loads(json.dumps(row_content(row)))) == row


def test_merging_keeps_what_ran_and_refuses_a_mixture(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.db" for name in "abc")
    with Store.open(a, create=True) as store:
        store.add([_failed(_row(1)), _row(2)])
    with Store.open(b, create=True) as store:
        store.add([_row(1), _row(3), _block_row(4)])
    merged = merge_stores([a, b], c)
    assert (merged.rows, merged.added) == (5, 4)
    with Store.open(c) as store:
        assert store.measurements() == [_row(1), _row(2), _row(3)]
        assert store.blocks() == [_block_row(4)]
    assert merge_stores([a, b], c).added == 0
    with Store.open(a, create=True) as store:
        store.add([dataclasses.replace(_row(9), environment=dataclasses.replace(_HERE, runtime="torch 9"))])
    with pytest.raises(DataError, match="one store holds one device"):
        merge_stores([a, b], tmp_path / "d.db")


def test_merging_leaves_behind_what_is_to_be_measured_again(tmp_path: Path) -> None:
    a = tmp_path / "a.db"
    clean = dataclasses.replace(_row(2), conditions=dataclasses.replace(_CONDITIONS, marks=()))
    with Store.open(a, create=True) as store:
        store.add([_row(1), clean, _failed(_row(3)), _block_row(4)])
    for number, (without, kept) in enumerate(
        {("shared",): 2, ("failed",): 3, ("shared", "failed"): 1, ("throttled",): 4}.items()
    ):
        merged = merge_stores([a], tmp_path / f"{number}.db", without=without)
        assert (merged.rows, merged.left_out, merged.added) == (4, 4 - kept, kept)
    with Store.open(tmp_path / "2.db") as store:
        assert store.measurements() == [clean]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_export_writes_every_row(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / "a.db", tmp_path / f"table{suffix}"
    with Store.open(path, create=True) as store:
        store.add([_row(1), _failed(_row(2)), _block_row(3)])
    assert export_store(path, table) == 3
    if suffix == ".csv":
        with table.open(newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file))
    else:
        records = pytest.importorskip("pyarrow.parquet").read_table(table).to_pylist()
    first, second, third = records
    assert json.loads(first["dims"]) == {"m": 1, "n": 2, "k": 3}
    assert float(first["median_ms"]) == pytest.approx(0.2)  # the flagged sample is not counted
    assert json.loads(first["samples_ms"]) == [0.1, 0.3, 9.0]
    assert (second["status"], second["reason"], second["median_ms"] or None) == ("timeout", "no result", None)
    assert (third["kind"], third["marks"]) == ("block:frame", "shared")


def test_export_refusals(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db", create=True) as store:
        pass
    with pytest.raises(InputError, match=r"one of \.csv, \.parquet"):
        export_store(tmp_path / "a.db", tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="nothing to export"):
        export_store(tmp_path / "a.db", tmp_path / "a.csv")
    assert store.path == tmp_path / "a.db"


def test_another_visit_adds_samples_and_keeps_flags_in_place() -> None:
    visit = dataclasses.replace(
        _row(1),
        samples_ms=(0.4, 7.0),
        flagged=(1,),
        peak_memory_bytes=50,
        conditions=dataclasses.replace(_CONDITIONS, visits=1, visit_ms=(0.4,), marks=("drift",)),
    )
    both = revisited(_row(1), visit)
    assert both.samples_ms == (0.1, 0.3, 9.0, 0.4, 7.0)
    assert both.flagged == (2, 4)
    assert both.median_ms == 0.3
    assert both.peak_memory_bytes == 50
    assert both.conditions is not None
    assert (both.conditions.visits, both.conditions.visit_ms) == (3, (0.2, 0.21, 0.4))
    assert both.conditions.marks == ("drift", "shared")
    assert revisited(_row(1), _failed(_row(1))) == _row(1)
