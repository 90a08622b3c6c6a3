"""Tables as columns: csv and parquet files, and what can be wrong with them before their meaning is looked at."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import DataError, DependencyError, InputError

__all__ = [
    "MILLISECONDS",
    "Raw",
    "Sieve",
    "csv_columns",
    "milliseconds",
    "naturals",
    "numbers",
    "parquet_columns",
    "require",
    "single",
]

Raw = Mapping[str, list[object]]
"""Column name -> one value for each row, as the file spells it."""

MILLISECONDS: Mapping[str, float] = {"ms": 1.0, "us": 1e-3, "s": 1e3, "ns": 1e-6}
"""Units of latency that a table may be in, in milliseconds."""

_MOST = 2**40  # of a dimension: beyond, products of dimensions overflow


def milliseconds(unit: str) -> float:
    """How many milliseconds a unit is; InputError for one that is not known."""
    if unit not in MILLISECONDS:
        raise InputError(f"unknown unit {unit!r}: a table is in one of {', '.join(MILLISECONDS)}")
    return MILLISECONDS[unit]


def csv_columns(path: Path) -> Raw:
    """Columns of a csv file. DataError where it is missing, empty, not text, or its lines are of unequal length."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: give a table, or a folder of tables")
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            lines = [line for line in csv.reader(handle) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a csv table ({error}): download it again") from error
    if not lines:
        raise DataError(f"{path} is empty: download it again")
    header, *body = lines
    _refuse_pointer(path, ",".join(header))
    short = next((i for i, row in enumerate(body) if len(row) != len(header)), None)
    if short is not None:
        raise DataError(
            f"{path}: row {short + 1} has {len(body[short])} cells, the header {len(header)}: it is cut short or "
            "damaged; download it again"
        )
    if not body:
        raise DataError(f"{path} has no rows: download it again")
    return {name: [row[i] for row in body] for i, name in enumerate(header)}


def parquet_columns(path: Path) -> Raw:
    """Columns of a parquet file. DataError where it is missing, truncated or no parquet, DependencyError without
    pyarrow.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: give a table, or a folder of tables")
    with path.open("rb") as handle:
        _refuse_pointer(path, handle.read(64).decode("latin-1"))
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError("pyarrow", extra="parquet", purpose="reading parquet tables") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise DataError(f"{path} is damaged or not parquet ({first_line}): download it again") from error
    columns: dict[str, list[object]] = table.to_pydict()
    if not table.num_rows:
        raise DataError(f"{path} has no rows: download it again")
    return columns


def _refuse_pointer(path: Path, start: str) -> None:
    if start.startswith("version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, not the table: run git lfs pull where it was cloned")


def require(raw: Raw, columns: Iterable[str], *, path: Path, what: str) -> None:
    """DataError where a column is missing."""
    missing = sorted(set(columns) - set(raw))
    if missing:
        raise DataError(f"{path} lacks the column(s) {', '.join(missing)} of {what}")


def single(raw: Raw, column: str, path: Path) -> str:
    """The one value of a column; DataError where it has several, or rows without one."""
    blank = sum(value is None or not str(value).strip() for value in raw[column])
    if blank:
        raise DataError(
            f"{path}: {blank} of {len(raw[column])} rows have no {column}: fill it in, or leave these rows out"
        )
    values = sorted({str(value) for value in raw[column]})
    if len(values) > 1:
        raise DataError(f"{path} mixes the {column}s {', '.join(values)}: split it into one table for each")
    return values[0]


def numbers(values: list[object]) -> NDArray[np.float64]:
    """Values as floats, NaN where one is not a number; a truth value is none."""

    def number(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return float("nan")
        try:
            return float(value)
        except ValueError:
            return float("nan")

    return np.fromiter((number(value) for value in values), np.float64, len(values))


class Sieve:
    """Which rows of one table are kept, and why others are left out: `unfit` are not modelled, `bad` are wrong."""

    def __init__(self, rows: int, *, name: str) -> None:
        self.keep = np.ones(rows, bool)
        self.unfit: dict[str, int] = {}
        self.bad: dict[str, int] = {}
        self._name = name

    def leave_out(self, where: NDArray[np.bool_], reason: str, *, bad: bool = False) -> None:
        """Leave out the kept rows where a mask (n,) holds, and count them."""
        count = int((self.keep & where).sum())
        if count:
            counts = self.bad if bad else self.unfit
            counts[f"{self._name}: {reason}"] = count
            self.keep[where] = False

    def latency(self, values: list[object]) -> NDArray[np.float64]:
        """Latencies as numbers; rows without a positive one are bad."""
        latency = numbers(values)
        self.leave_out(~np.isfinite(latency), "latency is missing or not a number", bad=True)
        self.leave_out(~(latency > 0), "latency is not positive", bad=True)
        return latency


def naturals(
    raw: Raw, names: Iterable[str], *, may_be_zero: Iterable[str], leave_out: Callable[..., None]
) -> dict[str, NDArray[np.int64]]:
    """Columns of dimensions as integers; rows where one is not a whole number of at least 1 (or 0), or absurdly
    large, are bad."""
    zero = set(may_be_zero)
    found = {}
    for name in names:
        values = numbers(raw[name])
        least = 0 if name in zero else 1
        bad = ~np.isfinite(values) | (values != np.floor(values)) | (values < least)
        leave_out(bad, f"{name} is not a whole number of at least {least}", bad=True)
        absurd = ~bad & (values > _MOST)
        leave_out(absurd, f"{name} is above {_MOST}", bad=True)
        found[name] = np.where(bad | absurd, least, values).astype(np.int64)
    return found
