"""The SQLite file behind a run: its tables, the one right to write, and the checks before anything is read from it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwsearch.errors import DataError, OutputError

__all__ = ["JOURNAL", "LOCK", "check_journal", "connect", "damaged", "lock", "writing"]

JOURNAL = "journal.sqlite"
LOCK = "writer.lock"
_APPLICATION_ID = 0x68777372  # "hwsr"
_VERSION = 2

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- genome: little-endian int16 per layer; costs: little-endian float64 in the order of meta 'costs', the objectives
-- first; null, with the reason in error, where the evaluation failed. generation and position: where the search asked
-- for it, null until the generation ended and for evaluations outside generations. seed: null where costs are tables.
CREATE TABLE evaluation (
    id INTEGER PRIMARY KEY, generation INTEGER, position INTEGER, genome BLOB NOT NULL, fidelity REAL NOT NULL,
    seed INTEGER, status TEXT NOT NULL CHECK (status IN ('ok', 'failed')), costs BLOB, violation REAL,
    seconds REAL NOT NULL, ended REAL NOT NULL, error TEXT, UNIQUE (genome, fidelity));
CREATE TABLE generation (number INTEGER PRIMARY KEY, evaluations INTEGER NOT NULL);
CREATE TABLE state (only INTEGER PRIMARY KEY CHECK (only = 0), generation INTEGER NOT NULL, json TEXT NOT NULL);
"""


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turns SQLite's complaints about a full or read-only disk into one OutputError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OutputError(
            f"cannot write to the journal in {directory}: {error}; mend that and go on by --resume"
        ) from None


def lock(directory: Path) -> sqlite3.Connection:
    """An exclusive lock that the operating system gives up with the process, however it ends."""
    # SQLite's own locks, because they are the same on every platform; the journal itself stays readable.
    path = directory / LOCK
    try:
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise OutputError(
                f"another process writes to {directory}: wait for it, or choose another directory"
            ) from None
        raise OutputError(f"cannot write to {directory}: {error}; choose another directory") from None
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"{path} is not hwsearch's ({error}): remove it or choose another directory"
        ) from None
    return connection


def connect(journal: Path) -> sqlite3.Connection:
    """The journal, created where it is absent or empty, checked where it is not."""
    connection = sqlite3.connect(journal)
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == 0 and tables == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            pragmas = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION};"
            connection.executescript(f"BEGIN; {pragmas} {_SCHEMA} COMMIT;")
        else:
            check_journal(connection, journal)
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.OperationalError as error:
        connection.close()
        raise OutputError(f"cannot write {journal}: {error}; choose another directory") from None
    except sqlite3.DatabaseError as error:
        connection.close()
        raise damaged(journal, str(error)) from None
    except DataError:
        connection.close()
        raise
    return connection


def check_journal(connection: sqlite3.Connection, journal: Path) -> None:
    """Raises DataError where a database is not a whole search journal of this version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise DataError(f"{journal} is not a search journal: move it away or choose another directory")
    if version != _VERSION:
        raise DataError(
            f"{journal} has version {version} and this hwsearch reads {_VERSION}: use the hwsearch it "
            "was written with, or choose another directory"
        )
    (report,) = connection.execute("PRAGMA quick_check").fetchone()
    if report != "ok":
        raise damaged(journal, report)


def damaged(journal: Path, reason: str) -> DataError:
    reason = " ".join(reason.split())
    return DataError(f"{journal} is damaged ({reason}): start again in another directory")
