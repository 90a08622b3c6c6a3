"""The store of measurements: rows of operators and blocks, environments and device ceilings in one file.

Measurements are unique by their key: adding one again does nothing. How the file survives kills, and what it refuses,
is store_file.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from hwsearch.errors import DataError
from hwsearch.profilers.rows import Row, operator_from, sampled_content, sampled_fields
from hwsearch.profilers.store_file import COLUMNS, StoreFile, columns_of
from hwsearch.records import DeviceSpec, Environment, Measurement
from hwsearch.searchspace.block import Block, BlockMeasurement

__all__ = ["Store"]

_JSON_COLUMNS = ("samples_ms", "flagged", "conditions")


class Store:
    """An open store; use it as a context manager, or close it."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """Open the store at `path`: read-only, or with `create` for writing, made where there is none.

        Raises DataError for a missing, unreadable, foreign, damaged or newer file, and OutputError for a place
        that cannot be written to or that another process is writing to.
        """
        return cls(StoreFile.open(Path(path), create=create))

    @property
    def path(self) -> Path:
        return self._file.path

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; after writing it is one plain file again, unless another process still reads it."""
        self._file.close()

    def add(self, rows: Iterable[Row]) -> int:
        """Store rows in one transaction; those whose key is there already are left as they are.

        Returns how many were new. Raises OutputError where they cannot be written.
        """
        return self._insert(rows, on_conflict="ON CONFLICT DO NOTHING")

    def replace(self, row: Row) -> None:
        """Store a row in the place of the one with its key. Raises OutputError where it cannot be written."""
        updates = ", ".join(f"{name} = excluded.{name}" for name in ("environment", *COLUMNS))
        self._insert([row], on_conflict=f"ON CONFLICT (key) DO UPDATE SET {updates}")

    def _insert(self, rows: Iterable[Row], *, on_conflict: str) -> int:
        # Most rows share one environment object, and turning it into text takes longer than all of the row.
        texts: dict[int, str] = {}
        placed = []
        for row in rows:
            if id(row.environment) not in texts:
                texts[id(row.environment)] = _to_json(asdict(row.environment))
            placed.append((row, texts[id(row.environment)]))
        with self._file.transaction() as connection:
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
                names = ("key", *subject, "environment", *COLUMNS)
                connection.executemany(
                    f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) {on_conflict}",
                    [_to_row(row, numbers[content]) for row, content in placed if isinstance(row, kind)],
                )
            return connection.total_changes - before

    def add_device(self, device: DeviceSpec) -> None:
        """Store a device's ceilings; those of a device of the same name that are there already are kept."""
        with self._file.transaction() as connection:
            row = (device.name, _to_json(asdict(device)))
            connection.execute("INSERT INTO devices VALUES (?, ?) ON CONFLICT DO NOTHING", row)

    def keys(self) -> set[str]:
        """The keys of all rows."""
        keys = {key for (key,) in self._file.query("SELECT key FROM measurements")}
        if self._file.version >= 2:
            keys |= {key for (key,) in self._file.query("SELECT key FROM blocks")}
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
        if self._file.version < 2:
            return []
        environments = self._environments()
        found = []
        for key, block, environment, *rest in self._rows("blocks", "block", clause, values):
            with self._parsing(f"measurement {key}"):
                found.append(
                    BlockMeasurement(
                        block=Block.from_json(block, source=str(self.path)),
                        environment=environments[environment],
                        **_fields(rest),
                    )
                )
        return found

    def _rows(self, table: str, subject: str, clause: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        columns = columns_of(self._file.version)
        return self._file.query(
            f"SELECT key, {subject}, environment, {', '.join(columns)} FROM {table} {clause}", values
        )

    def _environments(self) -> dict[int, Environment]:
        environments = {}
        for number, content in self._file.query("SELECT id, content FROM environments"):
            with self._parsing(f"environment {number}"):
                environments[number] = Environment(**json.loads(content))
        return environments

    def devices(self) -> list[DeviceSpec]:
        """All device ceilings in the order of their names; DataError for a row that is not one."""
        # Stores of earlier versions do not say what kind of device it is; only the runtime of a CPU counts threads.
        on_threads = {e.device_name for e in self._environments().values() if e.runtime.endswith(" threads")}
        devices = []
        for name, text in self._file.query("SELECT name, content FROM devices ORDER BY name"):
            with self._parsing(f"device {name}"):
                content = json.loads(text)
                content.setdefault("kind", "cpu" if content["device_name"] in on_threads else "gpu")
                devices.append(DeviceSpec(**content))
        return devices

    def device(self) -> DeviceSpec:
        """The ceilings of the store's one device; DataError where there is none or more than one."""
        devices = self.devices()
        if len(devices) != 1:
            names = ", ".join(device.name for device in devices) or "none"
            raise DataError(f"{self.path} should hold the ceilings of one device; it holds: {names}")
        return devices[0]

    @contextmanager
    def _parsing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.path}: {what} cannot be understood: {error}") from error


def _to_json(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _to_row(row: Row, environment: int) -> tuple[object, ...]:
    content = sampled_content(row)
    content |= {name: _to_json(content[name]) for name in _JSON_COLUMNS}
    if isinstance(row, Measurement):
        subject: tuple[str, ...] = (row.operator.kind, _to_json(row.operator.dims))
    else:
        subject = (row.block.to_json(),)
    return (row.key, *subject, environment, *(content[name] for name in COLUMNS))


def _fields(values: Sequence[Any]) -> dict[str, Any]:
    content = dict(zip(COLUMNS, values, strict=True))
    return sampled_fields(content | {name: json.loads(content[name]) for name in _JSON_COLUMNS})
