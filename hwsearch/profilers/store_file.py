"""The file behind a store: one SQLite database, one writer, safe against being killed at any moment.

Opened for writing it works in WAL mode, so that what is committed outlives the process, and goes back to a single plain
file when closed in order; reading never changes it. It carries an application id and a schema version, so that another
program's database, or a later hwsearch's, is refused by name. Files of earlier versions are read as they are, and
brought to the present schema when they are opened for writing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hwsearch.errors import DataError, HwsearchError, OutputError

__all__ = ["APPLICATION_ID", "COLUMNS", "SCHEMA_VERSION", "StoreFile", "columns_of"]

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
COLUMNS = (*_COLUMNS_1, *_ADDED_2)
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


class StoreFile:
    """An open file; close it after use."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, writable: bool) -> None:
        self.path = path
        self._connection = connection
        self._writable = writable

    @classmethod
    def open(cls, path: Path, *, create: bool) -> StoreFile:
        """Open the file at `path`: read-only, or with `create` for writing, made where there is none.

        Raises DataError for a missing, unreadable, foreign, damaged or newer file, and OutputError for a place
        that cannot be written to or that another process is writing to.
        """
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
        opened = cls(path, connection, writable=create)
        try:
            if create:
                opened._prepare_for_writing()
            (problem,) = opened.query("PRAGMA quick_check(1)")[0]
            if problem != "ok":
                raise DataError(f"{path} is damaged ({problem}): restore it from a copy, or measure again")
        except HwsearchError:
            connection.close()
            raise
        return opened

    def close(self) -> None:
        """Close the file; after writing it is one plain file again, unless another process still reads it."""
        if self._writable:
            # A reader keeps the write-ahead log in use: leave it there.
            with suppress(sqlite3.OperationalError):
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()

    @property
    def version(self) -> int:
        """The schema that the file has."""
        return int(self.query("PRAGMA user_version")[0][0])

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises OutputError where the file cannot be written."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise _unusable(self.path, error, writing=True) from error
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows that a statement finds. DataError where the file cannot be read."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise _unusable(self.path, error, writing=False) from error

    def _prepare_for_writing(self) -> None:
        with self.transaction() as connection:
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
            raise _unusable(self.path, error, writing=True) from error


def columns_of(version: int) -> list[str]:
    """The SQL of COLUMNS in a file of that schema: what came later is given as what its absence means."""
    return list(COLUMNS) if version >= 2 else [*_COLUMNS_1, *(absent for _, absent in _ADDED_2.values())]


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
