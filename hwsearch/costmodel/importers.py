"""Reads the performance tables of NVIDIA AIConfigurator (parquet or csv) into measurements and tables.

Source of the format: github.com/ai-dynamo/aiconfigurator. What its columns do not say is handled here:
rows that differ only in columns that never reach the kernel are replicates of one measurement; a window as
long as the sequence is no window; head_dim 512 runs another kernel and is left out; a model describes one
runtime, so of two runtimes in a folder the one with more rows is kept. Whatever is left out is counted.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.tables import Table, merge_replicates
from hwsearch.errors import DataError, DependencyError
from hwsearch.operators import KINDS, Operator
from hwsearch.records import Environment, Measurement

__all__ = ["Imported", "import_aiconfigurator"]

_Raw = Mapping[str, list[object]]
_Ints = dict[str, NDArray[np.int64]]

_COMMON = {"framework", "version", "device", "op_name", "kernel_source", "latency"}
_ATTENTION = {"batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size"}
_GDN = {
    "phase",
    "batch_size",
    "seq_len",
    "d_conv",
    "num_k_heads",
    "head_k_dim",
    "num_v_heads",
    "head_v_dim",
}
_COLUMNS = {  # what a table of each op_name must have, and may have besides
    "gemm": ({"m", "n", "k"}, {"gemm_dtype"}),
    "context_attention": (_ATTENTION, {"beam_width", "attn_dtype", "kv_cache_dtype"}),
    "generation_attention": (_ATTENTION, {"beam_width", "attn_dtype", "kv_cache_dtype"}),
    "gdn": (_GDN, {"num_tokens", "d_model", "model_name"}),
    "moe": (
        {"num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size"},
        {"moe_dtype", "moe_ep_size", "distribution"},
    ),
}
_DTYPE_COLUMNS = ("gemm_dtype", "attn_dtype", "kv_cache_dtype", "moe_dtype")
_LEFT_OUT_HEAD_DIM = 512
_ORIGIN = "NVIDIA AIConfigurator's performance tables (github.com/ai-dynamo/aiconfigurator, Apache-2.0)"


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Rows of one file that belong to one kind of operator."""

    kind: str
    dims: NDArray[np.int64]
    latency_ms: NDArray[np.float64]
    kernel: NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was read: `tables` to fit on, replicates merged; `left_out` maps each reason to a number of rows."""

    source: str
    device_name: str
    runtime: str
    dtype: str
    rows: int
    left_out: Mapping[str, int]
    parts: tuple[_Part, ...] = field(repr=False)

    @property
    def tables(self) -> dict[str, Table]:
        tables = {}
        for kind in sorted({part.kind for part in self.parts}):
            parts = [part for part in self.parts if part.kind == kind]
            dims = np.concatenate([part.dims for part in parts])
            unique, median, _ = merge_replicates(dims, np.concatenate([part.latency_ms for part in parts]))
            tables[kind] = Table(kind, unique, median)
        return tables

    def measurements(self) -> list[Measurement]:
        """One measurement per operator and kernel; its samples are the replicates."""
        environment = Environment(device_name=self.device_name, runtime=self.runtime)
        found = []
        for part in self.parts:
            for kernel in np.unique(part.kernel):
                own = part.kernel == kernel
                unique, _, group = merge_replicates(part.dims[own], part.latency_ms[own])
                samples: list[list[float]] = [[] for _ in unique]
                for index, latency in zip(group.tolist(), part.latency_ms[own].tolist(), strict=True):
                    samples[index].append(latency)
                found += [
                    Measurement(
                        operator=Operator(part.kind, tuple(dims)),
                        dtype=self.dtype,
                        environment=environment,
                        samples_ms=tuple(values),
                        kernel=str(kernel),
                    )
                    for dims, values in zip(unique.tolist(), samples, strict=True)
                ]
        return found


def import_aiconfigurator(path: Path) -> Imported:
    """Read one table, or every .parquet and .csv of a folder.

    Raises DataError for a missing, empty, truncated or foreign file, and for tables of two devices;
    DependencyError where parquet is asked for and pyarrow is absent.
    """
    files = sorted(p for p in path.iterdir() if p.suffix in {".parquet", ".csv"}) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no .parquet or .csv table: give the folder of one GPU, or one file")
    read = [_read_file(file) for file in files]
    devices = sorted({one.device_name for one in read})
    if len(devices) > 1:
        raise DataError(f"{path} mixes tables of {', '.join(devices)}: import each device on its own")
    rows_of: dict[str, int] = {}
    spelled: dict[str, str] = {}
    for one in read:
        key = one.runtime.lower()
        rows_of[key] = rows_of.get(key, 0) + one.rows
        # Tables of one runtime spell its name differently; the spelling with lower-case letters is the project's.
        spelled[key] = max(spelled.get(key, one.runtime), one.runtime)
    kept = max(rows_of, key=lambda key: (rows_of[key], key))
    left_out: dict[str, int] = {}
    for file, one in zip(files, read, strict=True):
        if one.runtime.lower() != kept:
            reason = f"{file.name}: measured with {one.runtime}, the other tables with {spelled[kept]}"
            left_out[reason] = one.rows
        else:
            for reason, count in one.left_out.items():
                left_out[reason] = left_out.get(reason, 0) + count
    used = [file for file, one in zip(files, read, strict=True) if one.runtime.lower() == kept]
    parts = tuple(part for one in read if one.runtime.lower() == kept for part in one.parts)
    if not any(len(part.latency_ms) for part in parts):
        raise DataError(f"{path}: no usable row; left out: {left_out or 'nothing, the tables are empty'}")
    return Imported(
        source=f"{_ORIGIN}: {', '.join(f.name for f in used)}",
        device_name=devices[0],
        runtime=spelled[kept],
        dtype="bfloat16",
        rows=sum(one.rows for one in read),
        left_out=left_out,
        parts=parts,
    )


def _read_raw(path: Path) -> _Raw:
    if not path.is_file():
        raise DataError(f"{path} does not exist: give an AIConfigurator table (.parquet or .csv)")
    if path.suffix == ".csv":
        try:
            with path.open(newline="", encoding="utf-8") as handle:
                header, *body = list(csv.reader(handle))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is not a csv table ({error}): download it again") from error
        except ValueError as error:
            raise DataError(f"{path} is empty: download it again") from error
        short = next((i for i, row in enumerate(body) if len(row) != len(header)), None)
        if short is not None:
            raise DataError(
                f"{path}: line {short + 2} has {len(body[short])} cells, the header {len(header)}"
            )
        return {name: [row[i] for row in body] for i, name in enumerate(header)}
    if path.suffix != ".parquet":
        raise DataError(f"{path} is neither .parquet nor .csv: give an AIConfigurator table")
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
    return columns


def _read_file(path: Path) -> Imported:
    raw = _read_raw(path)
    missing = sorted(_COMMON - set(raw))
    if missing:
        raise DataError(f"{path} lacks the column(s) {', '.join(missing)}: not an AIConfigurator table")
    op_name = _single(raw, "op_name", path)
    if op_name not in _COLUMNS:
        raise DataError(f"{path}: op_name {op_name!r} is not modelled; known: {', '.join(sorted(_COLUMNS))}")
    needed, allowed = _COLUMNS[op_name]
    missing = sorted(needed - set(raw))
    if missing:
        raise DataError(f"{path} lacks the column(s) {', '.join(missing)} of a {op_name} table")
    unknown = sorted(set(raw) - needed - allowed - _COMMON)
    if unknown:
        raise DataError(
            f"{path} has unknown column(s) {', '.join(unknown)}: whether they change the work is not known; "
            "remove them if they do not"
        )
    device = _single(raw, "device", path)
    runtime = f"{_single(raw, 'framework', path)} {_single(raw, 'version', path)}"
    if "beam_width" in raw and {str(v) for v in raw["beam_width"]} != {"1"}:
        raise DataError(f"{path}: beam_width other than 1 is not modelled; remove those rows")

    left_out: dict[str, int] = {}
    keep = np.ones(len(raw["latency"]), bool)

    def leave_out(where: NDArray[np.bool_], reason: str) -> None:
        count = int((keep & where).sum())
        if count:
            left_out[f"{path.name}: {reason}"] = count
            keep[where] = False

    latency = _numbers(raw["latency"])
    leave_out(~np.isfinite(latency), "latency is missing or not a number")
    leave_out(~(latency > 0), "latency is not positive")
    for name in _DTYPE_COLUMNS:
        if name in raw:
            leave_out(np.array([v != "bfloat16" for v in raw[name]], bool), f"{name} is not bfloat16")
    ints: _Ints = {}
    for name in sorted(needed - {"phase"}):
        values = _numbers(raw[name])
        least = 0 if name in {"step", "window_size"} else 1
        bad = ~np.isfinite(values) | (values != np.floor(values)) | (values < least)
        leave_out(bad, f"{name} is not a whole number of at least {least}")
        ints[name] = np.where(bad, least, values).astype(np.int64)
    if "head_dim" in ints:
        leave_out(ints["head_dim"] == _LEFT_OUT_HEAD_DIM, "head_dim 512 runs another kernel")
    if op_name == "moe":
        leave_out(ints["inter_size"] % ints["moe_tp_size"] != 0, "inter_size is not divisible by moe_tp_size")
        for name, only in (("moe_ep_size", "1"), ("distribution", "balanced")):
            if name in raw:
                leave_out(np.array([str(v) != only for v in raw[name]], bool), f"{name} is not {only}")

    kernel = np.array([str(value) for value in raw["kernel_source"]])
    parts = []
    for kind, (mask, dims) in _split(op_name, raw, ints, kernel, leave_out).items():
        own = keep & mask
        if own.any():
            table = np.stack([dims[name] for name in KINDS[kind].dims], axis=1)
            parts.append(_Part(kind=kind, dims=table[own], latency_ms=latency[own], kernel=kernel[own]))
    return Imported(
        source=path.name,
        device_name=device,
        runtime=runtime,
        dtype="bfloat16",
        rows=len(latency),
        left_out=left_out,
        parts=tuple(parts),
    )


def _split(
    op_name: str,
    raw: _Raw,
    ints: _Ints,
    kernel: NDArray[np.str_],
    leave_out: Callable[[NDArray[np.bool_], str], None],
) -> dict[str, tuple[NDArray[np.bool_], _Ints]]:
    """Kind of operator -> which rows are of that kind, and their dimensions by name."""
    every = np.ones(len(kernel), bool)
    if op_name == "gemm":
        return {"gemm": (every, ints)}
    if op_name == "moe":
        return {"moe": (every, {**ints, "inter_size": ints["inter_size"] // ints["moe_tp_size"]})}
    if op_name in {"context_attention", "generation_attention"}:
        context = op_name == "context_attention"
        total = ints["isl"] + ints["step"]
        dims = {
            "batch": ints["batch_size"],
            "seq_len": ints["isl"],
            "past_len": ints["step"],
            "kv_len": total,
            "num_heads": ints["num_heads"],
            "num_kv_heads": ints["num_key_value_heads"],
            "head_dim": ints["head_dim"],
            "window": np.where(ints["window_size"] >= total, 0, ints["window_size"]),
        }
        if not context:
            leave_out(ints["isl"] != 1, "generation with more than one new token")
        return {op_name: (every, dims)}
    return _split_gdn(raw, ints, kernel, leave_out)


def _split_gdn(
    raw: _Raw,
    ints: _Ints,
    kernel: NDArray[np.str_],
    leave_out: Callable[[NDArray[np.bool_], str], None],
) -> dict[str, tuple[NDArray[np.bool_], _Ints]]:
    context = np.array([value == "context" for value in raw["phase"]], bool)
    generation = np.array([value == "generation" for value in raw["phase"]], bool)
    leave_out(~(context | generation), "phase is neither context nor generation")
    conv = np.char.startswith(kernel, "causal_conv1d")
    delta = np.char.startswith(kernel, "chunk") | np.char.startswith(kernel, "fused_recurrent")
    leave_out(~(conv | delta), "kernel_source is neither a convolution nor a delta rule")
    leave_out(generation & (ints["seq_len"] != 1), "generation with more than one new token")
    dims = {
        **ints,
        "batch": ints["batch_size"],
        "channels": 2 * ints["num_k_heads"] * ints["head_k_dim"] + ints["num_v_heads"] * ints["head_v_dim"],
        "width": ints["d_conv"],
    }
    return {
        "short_conv_prefill": (conv & context, dims),
        "short_conv_decode": (conv & generation, dims),
        "delta_rule_prefill": (delta & context, dims),
        "delta_rule_decode": (delta & generation, dims),
    }


def _single(raw: _Raw, column: str, path: Path) -> str:
    values = sorted({str(value) for value in raw[column]})
    if not values:
        raise DataError(f"{path} has no rows")
    if len(values) > 1:
        raise DataError(f"{path} mixes the {column}s {', '.join(values)}: split it into one table for each")
    return values[0]


def _numbers(values: list[object]) -> NDArray[np.float64]:
    """Values as floats, NaN where one is not a number."""

    def number(value: object) -> float:
        try:
            return float(value) if isinstance(value, str | int | float) else float("nan")
        except ValueError:
            return float("nan")

    return np.fromiter((number(value) for value in values), np.float64, len(values))
