"""Reads the performance tables of NVIDIA AIConfigurator (parquet, csv or txt) of any of its GPUs and backends.

Source of the format: github.com/ai-dynamo/aiconfigurator. A folder is read with everything below it, as its data
directories are laid out (operator/backend/version/*.parquet, earlier backend/version/*_perf.txt). What the columns
do not say is handled here: rows that differ only in columns that never reach the kernel are replicates of one
measurement; a window as long as the sequence is no window; head_dim 512 runs another kernel and is left out; tables
from before windows were measured have none; a model describes one runtime, so of several the one with most rows is
kept unless one is asked for; 16-bit rows are kept, of bfloat16 and float16 the type with more rows. Whatever is left
out is counted.

On some devices a window that reaches past the sequence runs another kernel than no window (FlashAttention 2 on an
L40S: at the median 1.6 times as long in decode, up to 50 times). Where more than a twentieth of the operators that
were measured both ways disagree, rows with such an idle window are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.importers.imported import Imported, Part, checked
from hwsearch.costmodel.importers.reading import (
    Raw,
    Sieve,
    csv_columns,
    naturals,
    parquet_columns,
    require,
    single,
)
from hwsearch.costmodel.quality import disagreeing
from hwsearch.errors import DataError, InputError
from hwsearch.operators import KINDS
from hwsearch.records import DeviceSpec

__all__ = ["import_aiconfigurator"]

_Ints = dict[str, NDArray[np.int64]]

_COMMON = {"framework", "version", "device", "op_name", "latency"}
_HARMLESS = {"kernel_source", "power"}  # say nothing of the work
_ATTENTION = {"batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim"}
_ATTENTION_MORE = {"window_size", "beam_width", "attn_dtype", "kv_cache_dtype"}
_GDN = {
    "phase",
    "batch_size",
    "seq_len",
    "d_conv",
    "num_k_heads",
    "head_k_dim",
    "num_v_heads",
    "head_v_dim",
    "kernel_source",
}
_COLUMNS = {  # what a table of each op_name must have, and may have besides
    "gemm": ({"m", "n", "k"}, {"gemm_dtype"}),
    "context_attention": (_ATTENTION, _ATTENTION_MORE),
    "generation_attention": (_ATTENTION, _ATTENTION_MORE),
    "gdn": (_GDN, {"num_tokens", "d_model", "model_name"}),
    "moe": (
        {"num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size"},
        {"moe_dtype", "moe_ep_size", "distribution"},
    ),
}
_TEXTS = {"phase", "kernel_source"}
_DTYPE_COLUMNS = ("gemm_dtype", "attn_dtype", "kv_cache_dtype", "moe_dtype")
_DTYPES = ("bfloat16", "float16")
_LEFT_OUT_HEAD_DIM = 512
_IDLE_WINDOWS_AT_ODDS = 0.05
_ORIGIN = "NVIDIA AIConfigurator's performance tables (github.com/ai-dynamo/aiconfigurator, Apache-2.0)"


class _NotModelledError(DataError):
    """A table that is whole but holds nothing that a cost model is fitted to."""


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
        rows += len(raw["latency"])
        try:
            read.append(_opened(file, raw))
        except _NotModelledError as error:
            if len(files) == 1:
                raise
            _count(unfit, str(error).removeprefix(f"{file}: ").split(":")[0], len(raw["latency"]))
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
        parts += _parts(one, sieve, dtype=dtype)
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
    missing = sorted(_COMMON - set(raw))
    if missing:
        raise DataError(f"{path} lacks the column(s) {', '.join(missing)}: not an AIConfigurator table")
    return raw


def _opened(path: Path, raw: Raw) -> _File:
    """What a table says of itself. _NotModelledError for an operator or a column that is not known."""
    op_name = single(raw, "op_name", path)
    if op_name not in _COLUMNS:
        raise _NotModelledError(
            f"{path}: op_name {op_name!r} is not modelled: the known are {', '.join(sorted(_COLUMNS))}"
        )
    needed, allowed = _COLUMNS[op_name]
    require(raw, needed, path=path, what=f"a {op_name} table")
    unknown = sorted(set(raw) - needed - allowed - _COMMON - _HARMLESS)
    if unknown:
        raise _NotModelledError(
            f"{path}: unknown column(s) {', '.join(unknown)} in a {op_name} table: whether they change the work is "
            "not known; remove them if they do not"
        )
    if "beam_width" in raw and {str(v) for v in raw["beam_width"]} != {"1"}:
        raise _NotModelledError(f"{path}: beam_width other than 1 is not modelled: remove those rows")
    named = [column for column in _DTYPE_COLUMNS if column in raw]
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


def _parts(one: _File, sieve: Sieve, *, dtype: str) -> list[Part]:
    """The rows of a table that can be used, by kind of operator."""
    raw = one.raw
    needed, _ = _COLUMNS[one.op_name]
    latency = sieve.latency(raw["latency"])
    for name in _DTYPE_COLUMNS:
        if name in raw:
            sieve.leave_out(np.array([v != dtype for v in raw[name]], bool), f"{name} is not {dtype}")
    names = sorted(needed - _TEXTS | ({"window_size"} & set(raw)))
    ints = naturals(raw, names, may_be_zero=("step", "window_size"), leave_out=sieve.leave_out)
    if "head_dim" in ints:
        sieve.leave_out(ints["head_dim"] == _LEFT_OUT_HEAD_DIM, "head_dim 512 runs another kernel")
    if one.op_name == "moe":
        sieve.leave_out(
            ints["inter_size"] % ints["moe_tp_size"] != 0,
            "inter_size is not divisible by moe_tp_size",
            bad=True,
        )
        for name, only in (("moe_ep_size", "1"), ("distribution", "balanced")):
            if name in raw:
                sieve.leave_out(np.array([str(v) != only for v in raw[name]], bool), f"{name} is not {only}")
    kernel = np.array([str(v) for v in raw["kernel_source"]] if "kernel_source" in raw else [""] * one.rows)
    parts = []
    for kind, (mask, dims) in _split(one.op_name, raw, ints, kernel, latency, sieve).items():
        own = sieve.keep & mask
        if own.any():
            table = np.stack([dims[name] for name in KINDS[kind].dims], axis=1)
            parts.append(
                Part(file=one.name, kind=kind, dims=table[own], latency_ms=latency[own], kernel=kernel[own])
            )
    return parts


def _split(
    op_name: str,
    raw: Raw,
    ints: _Ints,
    kernel: NDArray[np.str_],
    latency: NDArray[np.float64],
    sieve: Sieve,
) -> dict[str, tuple[NDArray[np.bool_], _Ints]]:
    """Kind of operator -> which rows are of that kind, and their dimensions by name."""
    every = np.ones(len(kernel), bool)
    if op_name == "gemm":
        return {"gemm": (every, ints)}
    if op_name == "moe":
        return {"moe": (every, {**ints, "inter_size": ints["inter_size"] // ints["moe_tp_size"]})}
    if op_name == "gdn":
        return _split_gdn(raw, ints, kernel, sieve.leave_out)
    total = ints["isl"] + ints["step"]
    window = ints.get("window_size", np.zeros_like(total))
    dims = {
        "batch": ints["batch_size"],
        "seq_len": ints["isl"],
        "past_len": ints["step"],
        "kv_len": total,
        "num_heads": ints["num_heads"],
        "num_kv_heads": ints["num_key_value_heads"],
        "head_dim": ints["head_dim"],
        "window": np.where(window >= total, 0, window),
    }
    sieve.leave_out(
        dims["num_heads"] % dims["num_kv_heads"] != 0,
        "num_heads is not a multiple of num_key_value_heads",
        bad=True,
    )
    if op_name == "generation_attention":
        sieve.leave_out(ints["isl"] != 1, "generation with more than one new token")
    _leave_out_idle_windows(op_name, dims, (window > 0) & (window >= total), latency, sieve)
    return {op_name: (every, dims)}


def _leave_out_idle_windows(
    op_name: str, dims: _Ints, idle: NDArray[np.bool_], latency: NDArray[np.float64], sieve: Sieve
) -> None:
    table = np.stack([dims[name] for name in KINDS[op_name].dims], axis=1)
    plain = dims["window"] == 0
    rows = np.flatnonzero(sieve.keep & plain)
    if not idle[rows].any():
        return
    _, group = np.unique(table[rows], axis=0, return_inverse=True)
    group = group.reshape(-1)
    none = ~idle[rows]

    def operators(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.bincount(group, where, minlength=group.max() + 1) > 0

    def at_odds(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
        found = np.zeros(len(rows), bool)
        found[where] = disagreeing(table[rows[where]], latency[rows[where]])
        return operators(found)

    both = operators(idle[rows]) & operators(none)
    by_window = both & at_odds(np.ones(len(rows), bool)) & ~at_odds(none)
    if by_window.sum() > _IDLE_WINDOWS_AT_ODDS * max(1, both.sum()):
        sieve.leave_out(idle, "a window past the sequence ran another kernel than no window")


def _split_gdn(
    raw: Raw, ints: _Ints, kernel: NDArray[np.str_], leave_out: Callable[..., None]
) -> dict[str, tuple[NDArray[np.bool_], _Ints]]:
    context = np.array([value == "context" for value in raw["phase"]], bool)
    generation = np.array([value == "generation" for value in raw["phase"]], bool)
    leave_out(~(context | generation), "phase is neither context nor generation", bad=True)
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


def _count(counts: dict[str, int], reason: str, count: int) -> None:
    counts[reason] = counts.get(reason, 0) + count
