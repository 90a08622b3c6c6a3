"""Reads the performance tables of NVIDIA AIConfigurator (parquet, csv or txt) of any of its GPUs and backends.

Source of the format: github.com/ai-dynamo/aiconfigurator. A folder is read with everything below it, as its data
directories are laid out (operator/backend/version/*.parquet, earlier backend/version/*_perf.txt). A model describes one
runtime, so of several the one with most rows is kept unless one is asked for; 16-bit rows are kept, of bfloat16 and
float16 the type with more rows. aiconfigurator_rows.py says what the columns mean. What is left out is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hwsearch.costmodel.importers.aiconfigurator_rows import (
    COLUMNS,
    COMMON,
    DTYPE_COLUMNS,
    HARMLESS,
    parts_of,
)
from hwsearch.costmodel.importers.imported import Imported, Part, checked
from hwsearch.costmodel.importers.reading import (
    Raw,
    Sieve,
    csv_columns,
    parquet_columns,
    require,
    single,
)
from hwsearch.errors import DataError, InputError
from hwsearch.records import DeviceSpec

__all__ = ["import_aiconfigurator"]

_DTYPES = ("bfloat16", "float16")
_ORIGIN = "NVIDIA AIConfigurator's performance tables (github.com/ai-dynamo/aiconfigurator, Apache-2.0)"


class _NotModelledError(DataError):
    """A table that is whole but holds nothing that a cost model is fitted to: fatal alone, left out of a folder."""

    def __init__(self, path: Path, reason: str, fix: str) -> None:
        super().__init__(f"{path}: {reason}: {fix}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class _File:
    name: str
    device_name: str
    runtime: str
    rows: int
    dtypes: dict[str, int]
    raw: Raw
    op_name: str


def import_aiconfigurator(
    path: Path, *, unit: str = "ms", runtime: str | None = None, device: DeviceSpec | None = None
) -> Imported:
    """Read one table, or every table in and below a folder.

    runtime: the framework, with or without its version, whose rows are wanted; that of most rows where None.
    device: the ceilings to judge speed by, for a device that is not built in.

    Raises DataError for a missing, empty, truncated or foreign file, for tables of two devices, and for bad data
    (see imported.checked); InputError for a runtime that is not there; DependencyError where parquet is asked for
    and pyarrow is absent.
    """
    files = _tables_below(path) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no .parquet or .csv table: give the folder of one GPU, or one file")
    unfit: dict[str, int] = {}
    read: list[_File] = []
    rows = 0
    for file in files:
        raw = _columns_of(file)
        held = len(next(iter(raw.values())))
        rows += held
        try:
            read.append(_opened(file, raw))
        except _NotModelledError as error:
            if len(files) == 1:
                raise
            _count(unfit, f"{file.name}: {error.reason}", held)
    if not read:
        raise DataError(f"{path}: no table that can be modelled; left out: {unfit}")
    devices = sorted({one.device_name for one in read})
    if len(devices) > 1:
        raise DataError(f"{path} mixes tables of {', '.join(devices)}: import each device on its own")
    kept, others = _of_one_runtime(read, runtime, path)
    for reason, count in others.items():
        _count(unfit, reason, count)
    dtype = max(_DTYPES, key=lambda name: sum(one.dtypes.get(name, 0) for one in kept))
    bad: dict[str, int] = {}
    parts: list[Part] = []
    for one in kept:
        sieve = Sieve(one.rows, name=one.name)
        parts += parts_of(one.raw, one.op_name, sieve, file=one.name, dtype=dtype)
        for reasons, total in ((sieve.unfit, unfit), (sieve.bad, bad)):
            for reason, count in reasons.items():
                _count(total, reason, count)
    return checked(
        parts,
        place=str(path),
        unit=unit,
        device=device,
        source=f"{_ORIGIN}: {', '.join(sorted({one.name for one in kept}))}",
        device_name=devices[0],
        runtime=_spelled(kept),
        dtype=dtype,
        rows=rows,
        unfit=unfit,
        bad=bad,
    )


def _tables_below(folder: Path) -> list[Path]:
    return sorted(
        found
        for found in folder.rglob("*")
        if found.suffix in {".parquet", ".csv"} or found.name.endswith("_perf.txt")
    )


def _columns_of(path: Path) -> Raw:
    if path.suffix in {".csv", ".txt"}:
        raw = csv_columns(path)
    elif path.suffix == ".parquet" or not path.exists():
        raw = parquet_columns(path)
    else:
        raise DataError(f"{path} is neither .parquet nor .csv: give an AIConfigurator table")
    return raw


def _opened(path: Path, raw: Raw) -> _File:
    """What a table says of itself. _NotModelledError for an operator or a column that is not known."""
    known = ", ".join(sorted(COLUMNS))
    if "op_name" not in raw:
        raise _NotModelledError(path, "no column op_name", "not an AIConfigurator table of one operator")
    names = sorted({str(name) for name in raw["op_name"]})
    if not set(names) & set(COLUMNS):
        raise _NotModelledError(
            path, f"op_name {', '.join(map(repr, names))} is not modelled", f"the known are {known}"
        )
    op_name = single(raw, "op_name", path)
    needed, allowed = COLUMNS[op_name]
    require(raw, COMMON | needed, path=path, what=f"a {op_name} table")
    unknown = sorted(set(raw) - needed - allowed - COMMON - HARMLESS)
    if unknown:
        raise _NotModelledError(
            path,
            f"unknown column(s) {', '.join(unknown)} in a {op_name} table",
            "whether they change the work is not known; remove them if they do not",
        )
    if "beam_width" in raw and {str(v) for v in raw["beam_width"]} != {"1"}:
        raise _NotModelledError(path, "beam_width other than 1 is not modelled", "remove those rows")
    named = [column for column in DTYPE_COLUMNS if column in raw]
    return _File(
        name=path.name,
        device_name=single(raw, "device", path),
        runtime=f"{single(raw, 'framework', path)} {single(raw, 'version', path)}",
        rows=len(raw["latency"]),
        dtypes={name: sum(value == name for value in raw[column]) for column in named for name in _DTYPES},
        raw=raw,
        op_name=op_name,
    )


def _spelled(files: Sequence[_File]) -> str:
    """Tables of one runtime spell its name differently; the spelling with lower-case letters is the project's."""
    return max(one.runtime for one in files)


def _of_one_runtime(
    read: Sequence[_File], wanted: str | None, path: Path
) -> tuple[list[_File], dict[str, int]]:
    """The files of one runtime, and why how many rows of others are left out."""
    by_runtime: dict[str, list[_File]] = {}
    for one in read:
        by_runtime.setdefault(one.runtime.casefold(), []).append(one)
    rows = {name: sum(one.rows for one in own) for name, own in by_runtime.items()}
    fits = [name for name in rows if wanted is None or f"{name} ".startswith(f"{wanted.casefold()} ")]
    if not fits:
        found = ", ".join(sorted(_spelled(own) for own in by_runtime.values()))
        raise InputError(f"{path} holds no rows measured with {wanted!r}: it has {found}")
    kept = max(fits, key=lambda name: (rows[name], name))
    chosen = _spelled(by_runtime[kept])
    return by_runtime[kept], {
        f"measured with {_spelled(own)}, the rows used with {chosen}": rows[name]
        for name, own in by_runtime.items()
        if name != kept
    }


def _count(counts: dict[str, int], reason: str, count: int) -> None:
    counts[reason] = counts.get(reason, 0) + count
