"""The store of measurements: one SQLite file, one writer, safe against being killed at any moment.

A file opened for writing works in WAL mode, so each committed measurement outlives the process, and goes back to
a single plain file when closed in order; reading never changes it. Measurements are unique by
Measurement.key: adding one again does nothing. The file carries an application id and a schema version, so that
another program's database, or a later hwsearch's, is refused by name. Stores that earlier versions wrote are read as
they are, and brought to the present schema when they are opened for writing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from hwsearch.errors import DataError, HwsearchError, OutputError
from hwsearch.profilers.rows import Row, operator_from, sampled_content, sampled_fields
from hwsearch.records import DeviceSpec, Environment, Measurement
from hwsearch.searchspace.block import Block, BlockMeasurement

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "Store"]

APPLICATION_ID = 0x68777331  # "hws1"
SCHEMA_VERSION = 2
_BUSY_SECONDS = 5.0  # how long to wait for another writer

# What a row holds beside its key, subject and environment: columns of version 1, then those of version 2 with the SQL
# that declares them and what a row of version 1 means by their absence.
_COLUMNS_1 = (
    "dtype",
    "samples_ms",
    "kernel",
    "kernel_requested",
    "status",
    "reason",
    "peak_memory_bytes",
    "energy_j",
)
_ADDED_2 = {
    "execution": ("TEXT NOT NULL DEFAULT 'eager'", "'eager'"),
    "flagged": ("TEXT NOT NULL DEFAULT '[]'", "'[]'"),
    "peak_reserved_bytes": ("INTEGER", "NULL"),
    "workspace_bytes": ("INTEGER", "NULL"),
    "state_bytes": ("INTEGER", "NULL"),
    "conditions": ("TEXT NOT NULL DEFAULT 'null'", "'null'"),
}
_COLUMNS = (*_COLUMNS_1, *_ADDED_2)
_JSON_COLUMNS = ("samples_ms", "flagged", "conditions")
_OUTCOME_1 = """
        samples_ms TEXT NOT NULL,
        kernel TEXT NOT NULL,
        kernel_requested TEXT NOT NULL,
        status TEXT NOT NULL,
        reason TEXT NOT NULL,
        peak_memory_bytes INTEGER,
        energy_j REAL"""
_SCHEMA_1 = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    "CREATE TABLE environments (id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE)",
    "CREATE TABLE devices (name TEXT PRIMARY KEY, content TEXT NOT NULL)",
    f"""CREATE TABLE measurements (
        key TEXT NOT NULL PRIMARY KEY,
        kind TEXT NOT NULL,
        dims TEXT NOT NULL,
        dtype TEXT NOT NULL,
        environment INTEGER NOT NULL REFERENCES environments (id),{_OUTCOME_1}
    )""",
)
_TO_SCHEMA_2 = (
    f"""CREATE TABLE blocks (
        key TEXT NOT NULL PRIMARY KEY,
        block TEXT NOT NULL,
        dtype TEXT NOT NULL,
        environment INTEGER NOT NULL REFERENCES environments (id),{_OUTCOME_1}
    )""",
    *(
        f"ALTER TABLE {table} ADD COLUMN {name} {declared}"
        for table in ("measurements", "blocks")
        for name, (declared, _) in _ADDED_2.items()
    ),
    "PRAGMA user_version = 2",
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

    @property
    def path(self) -> Path:
        return self._path

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

    def add(self, rows: Iterable[Row]) -> int:
        """Store rows in one transaction; those whose key is there already are left as they are.

        Returns how many were new. Raises OutputError where they cannot be written.
        """
        return self._insert(rows, on_conflict="ON CONFLICT DO NOTHING")

    def replace(self, row: Row) -> None:
        """Store a row in the place of the one with its key. Raises OutputError where it cannot be written."""
        updates = ", ".join(f"{name} = excluded.{name}" for name in ("environment", *_COLUMNS))
        self._insert([row], on_conflict=f"ON CONFLICT (key) DO UPDATE SET {updates}")

    def _insert(self, rows: Iterable[Row], *, on_conflict: str) -> int:
        # Most rows share one environment object, and turning it into text takes longer than all of the row.
        texts: dict[int, str] = {}
        placed = []
        for row in rows:
            if id(row.environment) not in texts:
                texts[id(row.environment)] = _to_json(asdict(row.environment))
            placed.append((row, texts[id(row.environment)]))
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO environments (content) VALUES (?) ON CONFLICT DO NOTHING",
                [(content,) for content in sorted({content for _, content in placed})],
            )
            numbers = dict(connection.execute("SELECT content, id FROM environments"))
            before = connection.total_changes
            for table, subject, kind in (
                ("measurements", ("kind", "dims"), Measurement),
                ("blocks", ("block",), BlockMeasurement),
            ):
                names = ("key", *subject, "environment", *_COLUMNS)
                connection.executemany(
                    f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) {on_conflict}",
                    [_to_row(row, numbers[content]) for row, content in placed if isinstance(row, kind)],
                )
            return connection.total_changes - before

    def add_device(self, device: DeviceSpec) -> None:
        """Store a device's ceilings; those of a device of the same name that are there already are kept."""
        with self._transaction() as connection:
            row = (device.name, _to_json(asdict(device)))
            connection.execute("INSERT INTO devices VALUES (?, ?) ON CONFLICT DO NOTHING", row)

    def keys(self) -> set[str]:
        """The keys of all rows."""
        keys = {key for (key,) in self._query("SELECT key FROM measurements")}
        if self._version() >= 2:
            keys |= {key for (key,) in self._query("SELECT key FROM blocks")}
        return keys

    def row(self, key: str) -> Row | None:
        """The row with a key; None where there is none."""
        found = self._measurements("WHERE key = ?", (key,)) or self._blocks("WHERE key = ?", (key,))
        return found[0] if found else None

    def measurements(self) -> list[Measurement]:
        """All measured operators in the order of their keys; DataError for a row that is not one."""
        return self._measurements("ORDER BY key")

    def blocks(self) -> list[BlockMeasurement]:
        """All measured blocks in the order of their keys; DataError for a row that is not one."""
        return self._blocks("ORDER BY key")

    def _measurements(self, clause: str, values: Sequence[object] = ()) -> list[Measurement]:
        environments = self._environments()
        found = []
        for key, kind, dims, environment, *rest in self._rows("measurements", "kind, dims", clause, values):
            with self._parsing(f"measurement {key}"):
                found.append(
                    Measurement(
                        operator=operator_from(kind, json.loads(dims)),
                        environment=environments[environment],
                        **_fields(rest),
                    )
                )
        return found

    def _blocks(self, clause: str, values: Sequence[object] = ()) -> list[BlockMeasurement]:
        if self._version() < 2:
            return []
        environments = self._environments()
        found = []
        for key, block, environment, *rest in self._rows("blocks", "block", clause, values):
            with self._parsing(f"measurement {key}"):
                found.append(
                    BlockMeasurement(
                        block=Block.from_json(block, source=str(self._path)),
                        environment=environments[environment],
                        **_fields(rest),
                    )
                )
        return found

    def _rows(self, table: str, subject: str, clause: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        if self._version() >= 2:
            columns = list(_COLUMNS)
        else:
            columns = [*_COLUMNS_1, *(absent for _, absent in _ADDED_2.values())]
        return self._query(
            f"SELECT key, {subject}, environment, {', '.join(columns)} FROM {table} {clause}", values
        )

    def _environments(self) -> dict[int, Environment]:
        environments = {}
        for number, content in self._query("SELECT id, content FROM environments"):
            with self._parsing(f"environment {number}"):
                environments[number] = Environment(**json.loads(content))
        return environments

    def _version(self) -> int:
        return int(self._query("PRAGMA user_version")[0][0])

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
            statements: tuple[str, ...] = ()
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                statements = (*_SCHEMA_1, *_TO_SCHEMA_2)
            elif connection.execute("PRAGMA user_version").fetchone()[0] == 1:
                statements = _TO_SCHEMA_2
            for statement in statements:
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

    def _query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, values).fetchall()
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


def _to_row(row: Row, environment: int) -> tuple[object, ...]:
    content = sampled_content(row)
    content |= {name: _to_json(content[name]) for name in _JSON_COLUMNS}
    if isinstance(row, Measurement):
        subject: tuple[str, ...] = (row.operator.kind, _to_json(row.operator.dims))
    else:
        subject = (row.block.to_json(),)
    return (row.key, *subject, environment, *(content[name] for name in _COLUMNS))


def _fields(values: Sequence[Any]) -> dict[str, Any]:
    content = dict(zip(_COLUMNS, values, strict=True))
    return sampled_fields(content | {name: json.loads(content[name]) for name in _JSON_COLUMNS})
