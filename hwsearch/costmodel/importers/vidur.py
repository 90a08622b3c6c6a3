"""Reads the profiles of Vidur: mlp.csv and attention.csv of a GPU, one folder for each model.

Source of the format: github.com/microsoft/vidur, data/profiling/compute/GPU/MODEL/ (its profiler runs the layers of
Sarathi-Serve in float16, one process as one worker of a tensor-parallel group). Every row of mlp.csv times the
kernels of one layer at `num_tokens` tokens; medians over the samples are taken, in milliseconds:

* attn_pre_proj, attn_post_proj, mlp_up_proj, mlp_down_proj: gemm, heads and the inner width divided by
  num_tensor_parallel_workers;
* input_layernorm, post_attention_layernorm, attn_rope, mlp_act, add: elementwise.

attention.csv: attn_prefill is one chunk after kv_cache_size tokens, attn_decode one new token per sequence.
The embedding look-up, reshapes and cache writes have no counterpart here and are not read. The profiler's clock
counts whole microseconds, so that times of a few of them are coarse.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.devices import DEVICES, device_reported_as
from hwsearch.costmodel.importers.imported import Imported, Part, checked
from hwsearch.costmodel.importers.reading import Raw, Sieve, csv_columns, naturals, numbers, require
from hwsearch.errors import DataError
from hwsearch.operators import KINDS
from hwsearch.records import DeviceSpec

__all__ = ["import_vidur", "is_vidur"]

_Ints = dict[str, NDArray[np.int64]]
_Sizes = Mapping[str, NDArray[np.int64] | int]
_Width = Callable[[_Ints], NDArray[np.int64]]

_WORKERS = "num_tensor_parallel_workers"
_GPUS = {"a100": "a100-sxm", "h100": "h100-sxm", "a40": "a40"}  # Vidur's folder -> our name
_MLP = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "num_tokens", _WORKERS)
_ATTENTION = (
    "n_embd",
    "n_q_head",
    "n_kv_head",
    "batch_size",
    "prefill_chunk_size",
    "kv_cache_size",
    _WORKERS,
)
_ORIGIN = "profiles of Vidur (github.com/microsoft/vidur, MIT)"
RUNTIME = "Sarathi-Serve as profiled by Vidur"


def is_vidur(path: Path) -> bool:
    """Whether a file, or a file below a folder, looks like a profile of Vidur."""
    files = _profiles_below(path) if path.is_dir() else [path]
    return any(_WORKERS in _header(file) for file in files[:1])


def _header(path: Path) -> list[str]:
    if path.suffix != ".csv" or not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            return next(csv.reader(handle), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []  # whoever reads the table says what is wrong with it


def _profiles_below(folder: Path) -> list[Path]:
    return sorted(found for found in folder.rglob("*.csv") if found.name in {"mlp.csv", "attention.csv"})


def import_vidur(path: Path, *, unit: str = "ms", device: DeviceSpec | None = None) -> Imported:
    """Read one profile, or every mlp.csv and attention.csv in and below a folder.

    device: what was measured, where no folder of the path is named after one of Vidur's GPUs.

    Raises DataError for a missing, empty, truncated or foreign file, for a GPU that neither the path nor `device`
    tells, and for bad data (see imported.checked).
    """
    files = _profiles_below(path) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no mlp.csv or attention.csv of Vidur")
    found = {gpu for file in files if (gpu := _gpu(file))}
    if device is None and len(found) > 1:
        raise DataError(f"{path} mixes profiles of {', '.join(sorted(found))}: import each GPU on its own")
    if device is None and not found:
        raise DataError(
            f"{path}: no folder in the path is named after a GPU of Vidur ({', '.join(_GPUS)}): say which it is with "
            "--device"
        )
    spec = device or DEVICES[found.pop()]
    rows = 0
    unfit: dict[str, int] = {}
    bad: dict[str, int] = {}
    parts: list[Part] = []
    for file in files:
        raw = csv_columns(file)
        name = "/".join(file.parts[-3:]) if path.is_dir() else file.name
        read = _attention if "is_prefill" in raw else _mlp
        for part, sieve in read(raw, file, name):
            rows += len(sieve.keep)
            parts.append(part)
            unfit |= sieve.unfit
            bad |= sieve.bad
    return checked(
        [part for part in parts if len(part.latency_ms)],
        place=str(path),
        unit=unit,
        device=None if device_reported_as(spec.device_name) else spec,
        source=f"{_ORIGIN}: {len(files)} tables",
        device_name=spec.device_name,
        runtime=RUNTIME,
        dtype="float16",
        rows=rows,
        unfit=unfit,
        bad=bad,
    )


def _gpu(path: Path) -> str | None:
    return next((_GPUS[p] for p in map(str.lower, reversed(path.resolve().parts)) if p in _GPUS), None)


def _timed(
    raw: Raw,
    timer: str,
    kind: str,
    columns: tuple[str, ...],
    dims_of: Callable[[_Ints], _Sizes],
    name: str,
    *,
    only: NDArray[np.bool_] | None = None,
) -> tuple[Part, Sieve]:
    """The times of one kernel as rows of a kind of operator; `only` masks the rows that the kernel ran in."""
    times = raw[f"time_stats.{timer}.median"]
    if only is not None:
        times = [value for value, wanted in zip(times, only, strict=True) if wanted]
        raw = {
            column: [value for value, wanted in zip(raw[column], only, strict=True) if wanted]
            for column in columns
        }
    sieve = Sieve(len(times), name=f"{name} {timer}")
    latency = sieve.latency(times)
    ints = naturals(
        raw, columns, may_be_zero=("prefill_chunk_size", "kv_cache_size"), leave_out=sieve.leave_out
    )
    heads = "n_q_head" if "n_q_head" in ints else "n_head"
    shares = [heads, "n_kv_head", *(["n_expanded_embd"] if "n_expanded_embd" in ints else [])]
    for column in shares:
        sieve.leave_out(ints[column] % ints[_WORKERS] != 0, f"{column} is not divisible by the workers")
    head_dim = ints["n_embd"] // ints[heads]
    own = {**ints, **{column: ints[column] // ints[_WORKERS] for column in shares}}
    own |= {"heads": own[heads], "head_dim": head_dim}
    dims = dims_of(own)
    table = np.stack([np.broadcast_to(dims[d], latency.shape) for d in KINDS[kind].dims], axis=1)
    keep = sieve.keep & (table >= 0).all(axis=1)
    part = Part(
        file=name,
        kind=kind,
        dims=table[keep].astype(np.int64),
        latency_ms=latency[keep],
        kernel=np.full(int(keep.sum()), timer),
    )
    return part, sieve


def _mlp(raw: Raw, path: Path, name: str) -> list[tuple[Part, Sieve]]:
    require(raw, (*_MLP, "use_gated_mlp"), path=path, what="an mlp profile of Vidur")
    gated = np.array([1 + (str(value) == "True") for value in raw["use_gated_mlp"]], np.int64)

    def product(n: _Width, k: _Width) -> Callable[[_Ints], _Sizes]:
        return lambda c: {"m": c["num_tokens"], "n": n(c), "k": k(c)}

    def rows(width: _Width, reads: NDArray[np.int64] | int, writes: int) -> Callable[[_Ints], _Sizes]:
        return lambda c: {"rows": c["num_tokens"], "width": width(c), "reads": reads, "writes": writes}

    def hidden(c: _Ints) -> NDArray[np.int64]:
        return c["n_embd"]

    timers: dict[str, tuple[str, Callable[[_Ints], _Sizes]]] = {
        "attn_pre_proj": (
            "gemm",
            product(lambda c: (c["heads"] + 2 * c["n_kv_head"]) * c["head_dim"], hidden),
        ),
        "attn_post_proj": ("gemm", product(hidden, lambda c: c["heads"] * c["head_dim"])),
        "mlp_up_proj": ("gemm", product(lambda c: gated * c["n_expanded_embd"], hidden)),
        "mlp_down_proj": ("gemm", product(hidden, lambda c: c["n_expanded_embd"])),
        "input_layernorm": ("elementwise", rows(hidden, 1, 1)),
        "post_attention_layernorm": ("elementwise", rows(hidden, 1, 1)),
        "attn_rope": ("elementwise", rows(lambda c: (c["heads"] + c["n_kv_head"]) * c["head_dim"], 1, 1)),
        "mlp_act": ("elementwise", rows(lambda c: c["n_expanded_embd"], gated, 1)),
        "add": ("elementwise", rows(hidden, 2, 1)),
    }
    return [
        _timed(raw, timer, kind, _MLP, dims, name)
        for timer, (kind, dims) in timers.items()
        # Models without a second norm, or without rotary embedding, have empty columns or none.
        if f"time_stats.{timer}.median" in raw
        and np.isfinite(numbers(raw[f"time_stats.{timer}.median"])).any()
    ]


def _attention(raw: Raw, path: Path, name: str) -> list[tuple[Part, Sieve]]:
    timers = ("attn_prefill", "attn_decode")
    wanted = (*_ATTENTION, *(f"time_stats.{timer}.median" for timer in timers))
    require(raw, wanted, path=path, what="an attention profile of Vidur")
    prefill = np.array([str(value) == "True" for value in raw["is_prefill"]], bool)

    def heads(c: _Ints) -> _Ints:
        return {
            "batch": c["batch_size"],
            "num_heads": c["heads"],
            "num_kv_heads": c["n_kv_head"],
            "head_dim": c["head_dim"],
            "window": np.zeros_like(c["heads"]),
        }

    found = []
    if prefill.any():
        found.append(
            _timed(
                raw,
                "attn_prefill",
                "context_attention",
                _ATTENTION,
                lambda c: {**heads(c), "seq_len": c["prefill_chunk_size"], "past_len": c["kv_cache_size"]},
                name,
                only=prefill,
            )
        )
    if not prefill.all():
        found.append(
            _timed(
                raw,
                "attn_decode",
                "generation_attention",
                _ATTENTION,
                lambda c: {**heads(c), "kv_len": c["kv_cache_size"] + 1},
                name,
                only=~prefill,
            )
        )
    return found
