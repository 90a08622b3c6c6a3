"""The store of measurements: one SQLite file, one writer, safe against being killed at any moment.

A file opened for writing works in WAL mode, so each committed measurement outlives the process, and goes back to
a single plain file when closed in order; reading never changes it. Measurements are unique by
Measurement.key: adding one again does nothing. The file carries an application id and a schema version, so that
another program's database, or a later hwsearch's, is refused by name.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from hwsearch.errors import DataError, HwsearchError, OutputError
from hwsearch.operators import KINDS, Operator
from hwsearch.records import DeviceSpec, Environment, Measurement, Status

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "Store"]

APPLICATION_ID = 0x68777331  # "hws1"
SCHEMA_VERSION = 1
_BUSY_SECONDS = 5.0  # how long to wait for another writer

_SCHEMA = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
    "CREATE TABLE environments (id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE)",
    "CREATE TABLE devices (name TEXT PRIMARY KEY, content TEXT NOT NULL)",
    """CREATE TABLE measurements (
        key TEXT NOT NULL PRIMARY KEY,
        kind TEXT NOT NULL,
        dims TEXT NOT NULL,
        dtype TEXT NOT NULL,
        environment INTEGER NOT NULL REFERENCES environments (id),
        samples_ms TEXT NOT NULL,
        kernel TEXT NOT NULL,
        kernel_requested TEXT NOT NULL,
        status TEXT NOT NULL,
        reason TEXT NOT NULL,
        peak_memory_bytes INTEGER,
        energy_j REAL
    )""",
)


class Store:
    """An open store; use it as a context manager, or close it."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, writable: bool) -> None:
        self._path = path
        self._connection = connection
        self._writable = writable

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """Open the store at `path`: read-only, or with `create` for writing, made where there is none.

        Raises DataError for a missing, unreadable, foreign, damaged or newer file, and OutputError for a place
        that cannot be written to or that another process is writing to.
        """
        path = Path(path)
        _check_header(path, may_be_new=create)
        try:
            mode = "rwc" if create else "ro"
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
            )
        except sqlite3.OperationalError as error:
            raise _unusable(path, error, writing=create) from error
        store = cls(path, connection, writable=create)
        try:
            if create:
                store._prepare_for_writing()
            (problem,) = store._query("PRAGMA quick_check(1)")[0]
            if problem != "ok":
                raise DataError(f"{path} is damaged ({problem}): restore it from a copy, or measure again")
        except HwsearchError:
            connection.close()
            raise
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; after writing it is one plain file again, unless another process still reads it."""
        if self._writable:
            with suppress(
                sqlite3.OperationalError
            ):  # a reader keeps the write-ahead log in use: leave it there
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()

    def add(self, measurements: Iterable[Measurement]) -> int:
        """Store `measurements` in one transaction; those whose key is there already are left as they are.

        Returns how many were new. Raises OutputError where they cannot be written.
        """
        rows = [(m, _to_json(asdict(m.environment))) for m in measurements]
        environments = sorted({content for _, content in rows})
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO environments (content) VALUES (?) ON CONFLICT DO NOTHING",
                [(content,) for content in environments],
            )
            numbers = dict(connection.execute("SELECT content, id FROM environments"))
            before = connection.total_changes
            connection.executemany(
                f"INSERT INTO measurements VALUES ({', '.join('?' * 12)}) ON CONFLICT DO NOTHING",
                [_to_row(m, numbers[content]) for m, content in rows],
            )
            return connection.total_changes - before

    def add_device(self, device: DeviceSpec) -> None:
        """Store a device's ceilings; those of a device of the same name that are there already are kept."""
        with self._transaction() as connection:
            row = (device.name, _to_json(asdict(device)))
            connection.execute("INSERT INTO devices VALUES (?, ?) ON CONFLICT DO NOTHING", row)

    def keys(self) -> set[str]:
        """The keys of all measurements."""
        return {key for (key,) in self._query("SELECT key FROM measurements")}

    def measurements(self) -> list[Measurement]:
        """All measurements in the order of their keys; DataError for a row that is not one."""
        environments = {}
        for number, content in self._query("SELECT id, content FROM environments"):
            with self._parsing(f"environment {number}"):
                environments[number] = Environment(**json.loads(content))
        measurements = []
        for row in self._query("SELECT * FROM measurements ORDER BY key"):
            with self._parsing(f"measurement {row[0]}"):
                measurements.append(_from_row(row, environments))
        return measurements

    def devices(self) -> list[DeviceSpec]:
        """All device ceilings in the order of their names; DataError for a row that is not one."""
        devices = []
        for name, content in self._query("SELECT name, content FROM devices ORDER BY name"):
            with self._parsing(f"device {name}"):
                devices.append(DeviceSpec(**json.loads(content)))
        return devices

    def device(self) -> DeviceSpec:
        """The ceilings of the store's one device; DataError where there is none or more than one."""
        devices = self.devices()
        if len(devices) != 1:
            names = ", ".join(device.name for device in devices) or "none"
            raise DataError(f"{self._path} should hold the ceilings of one device; it holds: {names}")
        return devices[0]

    def _prepare_for_writing(self) -> None:
        with self._transaction() as connection:
            # Also after a kill in the middle of these statements: SQLite has rolled them back by now.
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in _SCHEMA:
                    connection.execute(statement)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.DatabaseError as error:
            raise _unusable(self._path, error, writing=True) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise _unusable(self._path, error, writing=True) from error
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _query(self, statement: str) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement).fetchall()
        except sqlite3.DatabaseError as error:
            raise _unusable(self._path, error, writing=False) from error

    @contextmanager
    def _parsing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self._path}: {what} cannot be understood: {error}") from error


def _check_header(path: Path, *, may_be_new: bool) -> None:
    """Refuse what is not a store, by its first bytes: SQLite would already leave files beside it."""
    if not path.exists():
        if not may_be_new:
            raise DataError(f"{path} does not exist: measure with `hwsearch profile -o {path}`")
        if not path.parent.is_dir():
            raise OutputError(f"cannot create {path}: {path.parent} is not a folder; create it first")
        return
    if path.is_dir():
        raise DataError(f"{path} is a folder: name the file of a measurement store")
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if not header and may_be_new:
        return
    # https://www.sqlite.org/fileformat.html: page count at byte 28, user version at 60, application id at 68.
    pages, version, application = (int.from_bytes(header[at : at + 4]) for at in (28, 60, 68))
    if not header.startswith(b"SQLite format 3\0") or application != APPLICATION_ID:
        raise DataError(f"{path} is not a measurement store of hwsearch: give another path")
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema {version}, written by a later hwsearch; this one knows up to {SCHEMA_VERSION}: "
            "upgrade hwsearch"
        )
    # A log beside the file may hold the rest of it; without one, SQLite would read missing bytes as zeros.
    logged = any(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-journal"))
    expected = pages * (int.from_bytes(header[16:18]) or 1)
    if not logged and path.stat().st_size < expected:
        raise DataError(
            f"{path} is truncated to {path.stat().st_size} of {expected} bytes: restore it from a copy, or "
            "measure again"
        )


def _unusable(path: Path, error: sqlite3.Error, *, writing: bool) -> HwsearchError:
    if writing and isinstance(error, sqlite3.OperationalError):
        busy = ": another process is writing to it; wait for it to end" if "locked" in str(error) else ""
        return OutputError(f"cannot write to {path} ({error}){busy}")
    if not writing and path.with_name(path.name + "-journal").exists():
        return DataError(
            f"{path} was left in the middle of a write ({error}): `hwsearch profile -o {path}` mends it by opening "
            "it for writing"
        )
    return DataError(f"{path} cannot be read ({error}): restore it from a copy, or measure again")


def _to_json(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _to_row(m: Measurement, environment: int) -> tuple[object, ...]:
    return (
        m.key,
        m.operator.kind,
        _to_json(m.operator.dims),
        m.dtype,
        environment,
        _to_json(m.samples_ms),
        m.kernel,
        m.kernel_requested,
        m.status,
        m.reason,
        m.peak_memory_bytes,
        m.energy_j,
    )


def _from_row(row: tuple[Any, ...], environments: Mapping[int, Environment]) -> Measurement:
    _, kind, dims, dtype, environment, samples_ms, kernel, requested, status, reason, memory, energy = row
    operator = Operator(kind, tuple(int(size) for size in json.loads(dims)))
    samples = tuple(float(sample) for sample in json.loads(samples_ms))
    if len(operator.dims) != len(KINDS[kind].dims):
        raise ValueError(f"{kind} has the dimensions {', '.join(KINDS[kind].dims)}, not {dims}")
    if status not in get_args(Status) or (status == "ok") != bool(samples):
        raise ValueError(f"status {status!r} with {len(samples)} samples")
    return Measurement(
        operator=operator,
        dtype=dtype,
        environment=environments[environment],
        samples_ms=samples,
        kernel=kernel,
        kernel_requested=requested,
        status=status,
        reason=reason,
        peak_memory_bytes=memory,
        energy_j=energy,
    )
