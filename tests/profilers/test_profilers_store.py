"""The store: round trips, resume, and every file that is not one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from hwsearch.errors import DataError, OutputError
from hwsearch.operators import operator
from hwsearch.profilers.store import Store
from hwsearch.profilers.store_file import APPLICATION_ID, SCHEMA_VERSION
from hwsearch.records import DeviceKind, DeviceSpec, Environment, Measurement

_HERE = Environment(
    device_name="bench", runtime="torch 0.0, 1 threads", versions={"python": "3", "torch": "0"}
)
_DEVICE = DeviceSpec(
    name="bench",
    device_name="bench",
    peak_flops=1.5e12,
    bandwidth=2e10,
    memory_bytes=1 << 34,
    num_sms=4,
    l2_bytes=1 << 20,
    dtype="float32",
    source="made up",
)


def _measured(m: int, *, environment: Environment = _HERE) -> Measurement:
    return Measurement(
        operator=operator("gemm", m=m, n=2, k=3),
        dtype="float32",
        environment=environment,
        samples_ms=(0.1 * m, 1 / 3, 5e-324),
        kernel="torch.linear",
        kernel_requested="torch",
        peak_memory_bytes=m,
        energy_j=0.5,
    )


def _failed(m: int) -> Measurement:
    return dataclasses.replace(
        _measured(m), samples_ms=(), kernel="", status="oom", reason="needs more", peak_memory_bytes=None
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store with two measurements and a device."""
    path = tmp_path / "bench #1?.db"
    with Store.open(path, create=True) as store:
        assert store.add([_measured(2), _failed(1)]) == 2
        store.add_device(_DEVICE)
    return path


def test_round_trip_in_a_fixed_order(path: Path, tmp_path: Path) -> None:
    with Store.open(path) as store:
        assert store.measurements() == [_failed(1), _measured(2)]
        assert store.keys() == {_failed(1).key, _measured(2).key}
        assert store.device() == _DEVICE
        assert store.measurements()[0].peak_memory_bytes is None
    with Store.open(tmp_path / "other.db", create=True) as store:
        store.add([_failed(1), _measured(2)])
        assert store.measurements() == [_failed(1), _measured(2)]


def test_the_first_measurement_of_a_key_stays(path: Path) -> None:
    elsewhere = dataclasses.replace(_HERE, runtime="torch 9.9, 1 threads")
    with Store.open(path, create=True) as store:
        again = dataclasses.replace(_measured(2), samples_ms=(9.0,))
        assert store.add([again, _measured(3), _measured(3), _measured(2, environment=elsewhere)]) == 2
        store.add_device(dataclasses.replace(_DEVICE, bandwidth=1.0))
        assert store.device() == _DEVICE
        assert len(store.measurements()) == 4
        assert _measured(2) in store.measurements()
        assert _measured(2, environment=elsewhere) in store.measurements()


def test_one_device_is_asked_for(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.add_device(dataclasses.replace(_DEVICE, name="another"))
        with pytest.raises(DataError, match="one device; it holds: another, bench"):
            store.device()


@pytest.mark.parametrize(
    ("runtime", "kind"), [("torch 0.0, 2 threads", "cpu"), ("torch 0.0, CUDA 13", "gpu")]
)
def test_earlier_stores_do_not_say_what_kind_of_device_it_is(
    tmp_path: Path, runtime: str, kind: DeviceKind
) -> None:
    path = tmp_path / "earlier.db"
    with Store.open(path, create=True) as store:
        store.add([_measured(1, environment=dataclasses.replace(_HERE, runtime=runtime))])
        store.add_device(_DEVICE)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE devices SET content = json_remove(content, '$.kind')")
    connection.close()
    with Store.open(path) as store:
        assert store.device() == dataclasses.replace(_DEVICE, kind=kind)


def test_tens_of_thousands_of_rows_are_quick(tmp_path: Path) -> None:
    rows = [_measured(m) for m in range(1, 30_001)]
    started = time.perf_counter()
    with Store.open(tmp_path / "big.db", create=True) as store:
        assert store.add(rows) == 30_000
        assert store.add(rows) == 0
        assert len(store.measurements()) == 30_000
    assert time.perf_counter() - started < 20  # about 2 s on an idle core


def test_nothing_of_a_failed_transaction_stays(path: Path) -> None:
    broken = dataclasses.replace(_measured(7), samples_ms=(float("nan"),))
    with Store.open(path, create=True) as store:
        with pytest.raises(ValueError, match="JSON"):
            store.add([_measured(6), broken])
        assert len(store.keys()) == 2
        assert store.add([_measured(6)]) == 1


def test_reading_changes_nothing_and_a_closed_store_is_one_file(path: Path) -> None:
    before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
    with Store.open(path) as store:
        store.measurements()
        with pytest.raises(OutputError, match="readonly"):
            store.add([_measured(5)])
    assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before
    assert list(path.parent.iterdir()) == [path]


def test_reading_beside_a_writer(path: Path) -> None:
    with Store.open(path, create=True) as writer:
        writer.add([_measured(5)])
        with Store.open(path) as reader:
            assert _measured(5).key in reader.keys()  # noqa: SIM118
            writer.add([_measured(6)])
            assert _measured(6).key in reader.keys()  # noqa: SIM118


def test_a_write_cut_short_is_undone_by_the_next_writer(path: Path) -> None:
    rows = [_measured(m) for m in range(3, 800)]
    with Store.open(path, create=True) as store:
        store.add(rows)
    torn = path.with_name("torn.db")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA cache_size = 5")  # pages spill into the file before the commit
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE measurements SET samples_ms = '[1.0]'")
    shutil.copy(path, torn)
    shutil.copy(f"{path}-journal", f"{torn}-journal")
    writer.execute("ROLLBACK")
    writer.close()
    assert torn.read_bytes() != path.read_bytes()
    with pytest.raises(DataError, match="in the middle of a write"):
        Store.open(torn)
    with Store.open(path) as store, Store.open(torn, create=True) as mended:
        assert mended.measurements() == store.measurements()


def test_two_writers_take_turns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.profilers.store_file._BUSY_SECONDS", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OutputError, match="another process is writing"):
        Store.open(path, create=True)
    other.execute("COMMIT")
    other.close()
    Store.open(path, create=True).close()


def test_missing_and_impossible_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist: measure with"):
        Store.open(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(OutputError, match="is not a folder"):
        Store.open(tmp_path / "none" / "a.db", create=True)
    for create in (False, True):
        with pytest.raises(DataError, match="is a folder"):
            Store.open(tmp_path, create=create)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder where nobody can create a file")
def test_a_folder_that_takes_no_files() -> None:
    with pytest.raises(
        OutputError, match=r"cannot write to /proc/bench\.db \(unable to open database file\)"
    ):
        Store.open("/proc/bench.db", create=True)


def test_a_full_disk_is_named_and_loses_nothing(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store._file._connection.execute("PRAGMA max_page_count = 12")
        with pytest.raises(OutputError, match="disk is full"):
            store.add([_measured(m) for m in range(3, 1000)])
        assert store.keys() == {_failed(1).key, _measured(2).key}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(path: Path) -> None:
    path.chmod(0o400)
    with pytest.raises(OutputError, match="cannot write"):
        Store.open(path, create=True)
    path.chmod(0o000)
    with pytest.raises(DataError, match="cannot read"):
        Store.open(path)


@pytest.mark.parametrize("create", [False, True])
def test_foreign_files_are_refused_and_left_alone(tmp_path: Path, create: bool) -> None:
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE notes (text)")
    connection.commit()
    connection.close()
    text = tmp_path / "text.db"
    text.write_text("m,n,k\n" * 100)
    for path in (foreign, text):
        before = path.read_bytes()
        with pytest.raises(DataError, match="is not a measurement store"):
            Store.open(path, create=create)
        assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_an_empty_file_is_no_store_but_can_become_one(tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(DataError, match="is not a measurement store"):
        Store.open(empty)
    with Store.open(empty, create=True) as store:
        assert store.add([_measured(1)]) == 1


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("keep", [60, 100, 4096, 9000, -1])
def test_truncated_stores_are_refused(path: Path, keep: int, create: bool) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"restore it from a copy|not a measurement store"):
        Store.open(path, create=create)


@pytest.mark.parametrize("create", [False, True])
def test_corrupt_pages_are_refused(path: Path, create: bool) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(DataError, match="restore it from a copy"):
        Store.open(path, create=create)


@pytest.mark.parametrize("create", [False, True])
def test_newer_schema_is_refused(path: Path, create: bool) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(DataError, match="written by a later hwsearch"):
        Store.open(path, create=create)


@pytest.mark.parametrize(
    "change",
    [
        "kind = 'gemv'",
        "dims = '[1,2]'",
        "dims = '[1,2'",
        "samples_ms = '[\"fast\"]'",
        "status = 'fine'",
        "status = 'ok', samples_ms = '[]'",
        "environment = 77",
    ],
)
def test_rows_that_make_no_sense_are_named(path: Path, change: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE measurements SET {change} WHERE status = 'ok'")
    connection.commit()
    connection.close()
    with Store.open(path) as store, pytest.raises(DataError, match=r'measurement \["gemm",\[2,2,3\]'):
        store.measurements()


def test_a_store_without_its_tables_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE measurements")
    connection.commit()
    connection.close()
    with Store.open(path) as store, pytest.raises(DataError, match="no such table"):
        store.keys()
