"""What the columns of AIConfigurator's tables mean: rows to operators, and the traps in them.

Rows that differ only in columns that never reach the kernel are replicates of one measurement; a window as long as the
sequence is no window; head_dim 512 runs another kernel and is left out; tables from before windows were measured have
none.

On some devices a window that reaches past the sequence runs another kernel than no window (FlashAttention 2 on an L40S:
at the median 1.6 times as long in decode, up to 50 times). Where more than a twentieth of the operators that were
measured both ways disagree, rows with such an idle window are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.importers.imported import Part
from hwsearch.costmodel.importers.reading import Raw, Sieve, naturals
from hwsearch.costmodel.quality import disagreeing
from hwsearch.operators import KINDS

__all__ = ["COLUMNS", "COMMON", "DTYPE_COLUMNS", "HARMLESS", "parts_of"]

_Ints = dict[str, NDArray[np.int64]]

COMMON = {"framework", "version", "device", "op_name", "latency"}
HARMLESS = {"kernel_source", "power"}  # say nothing of the work
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
COLUMNS = {  # what a table of each op_name must have, and may have besides
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
DTYPE_COLUMNS = ("gemm_dtype", "attn_dtype", "kv_cache_dtype", "moe_dtype")
_LEFT_OUT_HEAD_DIM = 512
_IDLE_WINDOWS_AT_ODDS = 0.05


def parts_of(raw: Raw, op_name: str, sieve: Sieve, *, file: str, dtype: str) -> list[Part]:
    """The rows of a table that can be used, by kind of operator; the others pass into the sieve."""
    needed, _ = COLUMNS[op_name]
    latency = sieve.latency(raw["latency"])
    for name in DTYPE_COLUMNS:
        if name in raw:
            sieve.leave_out(np.array([v != dtype for v in raw[name]], bool), f"{name} is not {dtype}")
    names = sorted(needed - _TEXTS | ({"window_size"} & set(raw)))
    ints = naturals(raw, names, may_be_zero=("step", "window_size"), leave_out=sieve.leave_out)
    if "head_dim" in ints:
        sieve.leave_out(ints["head_dim"] == _LEFT_OUT_HEAD_DIM, "head_dim 512 runs another kernel")
    if op_name == "moe":
        sieve.leave_out(
            ints["inter_size"] % ints["moe_tp_size"] != 0,
            "inter_size is not divisible by moe_tp_size",
            bad=True,
        )
        for name, only in (("moe_ep_size", "1"), ("distribution", "balanced")):
            if name in raw:
                sieve.leave_out(np.array([str(v) != only for v in raw[name]], bool), f"{name} is not {only}")
    kernel = np.array(
        [str(v) for v in raw["kernel_source"]] if "kernel_source" in raw else [""] * len(latency)
    )
    parts = []
    for kind, (mask, dims) in _split(op_name, raw, ints, kernel, latency, sieve).items():
        own = sieve.keep & mask
        if own.any():
            table = np.stack([dims[name] for name in KINDS[kind].dims], axis=1)
            parts.append(
                Part(file=file, kind=kind, dims=table[own], latency_ms=latency[own], kernel=kernel[own])
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
