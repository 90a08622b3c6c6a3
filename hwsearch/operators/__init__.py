"""The operators that a model lowers to, with their FLOPs and least bytes in closed form.

This is the shared vocabulary of the toolkit: block specs lower to operators, profilers measure operators, cost
models predict operators. An operator is a kind and a tuple of integer dimensions; the formulas of a kind work
on whole columns at once, so one definition serves a single operator and a table of a million.

FLOPs count a multiply-add as two. Bytes are the least traffic to device memory: every input read once, every
output written once. Recurrent states are held in fp32 whatever the dtype of the activations.

The closed forms follow from the algorithms; those of the recurrent operators stand in recurrent.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import InputError, unknown_name
from hwsearch.operators.kind import STATE_BYTES, Columns, FloatArray, OperatorKind
from hwsearch.operators.recurrent import CHUNK, RECURRENT_KINDS

__all__ = [
    "CHUNK",
    "DTYPE_BYTES",
    "KINDS",
    "STATE_BYTES",
    "Columns",
    "Operator",
    "OperatorKind",
    "attended_pairs",
    "columns",
    "dtype_bytes",
    "kind_named",
    "operator",
]

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

_MAY_BE_ZERO = frozenset({"window", "past_len"})


class Operator(NamedTuple):
    """One operator call: `kind` names an entry of KINDS, `dims` are its dimensions in that entry's order."""

    kind: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        names = KINDS[self.kind].dims
        return f"{self.kind}({', '.join(f'{n}={v}' for n, v in zip(names, self.dims, strict=True))})"


def attended_pairs(seq_len: FloatArray, past_len: FloatArray, window: FloatArray) -> FloatArray:
    """Query-key pairs of causal attention per head and sequence.

    seq_len queries follow past_len cached tokens; each sees itself and all before it, at most `window`
    tokens (0: no window).
    """
    total = seq_len + past_len
    reach = np.where(window > 0, np.minimum(window, total), total)
    # Query i (1-based position past_len + i) sees min(past_len + i, reach) tokens.
    growing = np.clip(reach - past_len, 0, seq_len)  # queries that still see everything before them
    return growing * past_len + growing * (growing + 1) / 2 + (seq_len - growing) * reach


def _context_attention_flops(c: Columns) -> FloatArray:
    pairs = attended_pairs(c["seq_len"], c["past_len"], c["window"])
    return 4 * c["batch"] * c["num_heads"] * c["head_dim"] * pairs


def _context_attention_bytes(c: Columns, size: int) -> FloatArray:
    queries = 2 * c["seq_len"] * c["num_heads"]  # queries in, outputs out
    span = np.where(
        c["window"] > 0, np.minimum(c["past_len"], c["window"]), c["past_len"]
    )  # cached tokens that some query still sees
    keys = 2 * (c["seq_len"] + span) * c["num_kv_heads"]
    return size * c["batch"] * c["head_dim"] * (queries + keys)


def _attended(c: Columns) -> FloatArray:
    return np.where(c["window"] > 0, np.minimum(c["window"], c["kv_len"]), c["kv_len"])


def _generation_attention_bytes(c: Columns, size: int) -> FloatArray:
    return size * c["batch"] * c["head_dim"] * 2 * (_attended(c) * c["num_kv_heads"] + c["num_heads"])


def _conv_prefill_bytes(c: Columns, size: int) -> FloatArray:
    return size * c["channels"] * (2 * c["batch"] * c["seq_len"] + c["width"])


def _conv_decode_bytes(c: Columns, size: int) -> FloatArray:
    # token in and out, window of width - 1 past tokens read and written, weights
    return size * c["channels"] * (c["batch"] * (2 + 2 * (c["width"] - 1)) + c["width"])


def _moe_bytes(c: Columns, size: int) -> FloatArray:
    rows = c["num_tokens"] * c["topk"]
    active = np.minimum(c["num_experts"], rows)
    weights = active * 3 * c["hidden_size"] * c["inter_size"]
    routed = rows * (2 * c["hidden_size"] + 3 * c["inter_size"])
    return size * (weights + routed)


KINDS: Mapping[str, OperatorKind] = {
    kind.name: kind
    for kind in (
        OperatorKind(
            "gemm",  # (m, k) x (k, n) -> (m, n)
            ("m", "n", "k"),
            lambda c: 2 * c["m"] * c["n"] * c["k"],
            lambda c, size: size * (c["m"] * c["k"] + c["k"] * c["n"] + c["m"] * c["n"]),
        ),
        OperatorKind(
            "context_attention",  # causal prefill; window 0: none
            ("batch", "seq_len", "past_len", "num_heads", "num_kv_heads", "head_dim", "window"),
            _context_attention_flops,
            _context_attention_bytes,
        ),
        OperatorKind(
            "generation_attention",  # one new token per sequence; kv_len counts it
            ("batch", "kv_len", "num_heads", "num_kv_heads", "head_dim", "window"),
            lambda c: 4 * c["batch"] * c["num_heads"] * c["head_dim"] * _attended(c),
            _generation_attention_bytes,
        ),
        OperatorKind(
            "short_conv_prefill",  # causal depthwise convolution
            ("batch", "seq_len", "channels", "width"),
            lambda c: 2 * c["batch"] * c["seq_len"] * c["channels"] * c["width"],
            _conv_prefill_bytes,
        ),
        OperatorKind(
            "short_conv_decode",
            ("batch", "channels", "width"),
            lambda c: 2 * c["batch"] * c["channels"] * c["width"],
            _conv_decode_bytes,
        ),
        OperatorKind(
            "elementwise",  # norms, gates, rotary embedding: `reads` rows in, `writes` rows out
            ("rows", "width", "reads", "writes"),
            lambda c: 4 * c["rows"] * c["width"] * c["reads"],
            lambda c, size: size * c["rows"] * c["width"] * (c["reads"] + c["writes"]),
        ),
        OperatorKind(
            "moe",  # gated experts, tokens spread evenly
            ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts"),
            lambda c: 6 * c["num_tokens"] * c["topk"] * c["hidden_size"] * c["inter_size"],
            _moe_bytes,
        ),
        *RECURRENT_KINDS,
    )
}


def kind_named(name: str) -> OperatorKind:
    """The entry of KINDS called `name`; InputError with the nearest name otherwise."""
    if name not in KINDS:
        raise unknown_name("operator", name, KINDS)
    return KINDS[name]


def operator(kind: str, /, **dims: int) -> Operator:
    """An operator from named dimensions, validated and in canonical form.

    A window at least as long as the sequence is the same work as no window and becomes 0.

    Raises InputError for a missing, unknown, negative or (where that makes no sense) zero dimension.
    """
    entry = kind_named(kind)
    if set(dims) != set(entry.dims):
        raise InputError(
            f"operator {kind} takes the dimensions {', '.join(entry.dims)}; got {', '.join(dims) or 'none'}"
        )
    for name, value in dims.items():
        least = 0 if name in _MAY_BE_ZERO else 1
        if value < least:
            raise InputError(f"operator {kind}: {name} must be at least {least}, got {value}")
    if "window" in dims:
        longest = dims["kv_len"] if "kv_len" in dims else dims["seq_len"] + dims["past_len"]
        if dims["window"] >= longest:
            dims["window"] = 0
    return Operator(kind, tuple(int(dims[name]) for name in entry.dims))


def columns(kind: str, dims: Sequence[Sequence[int]] | NDArray[np.int64]) -> dict[str, FloatArray]:
    """The dimensions of n operators of one kind, (n, d) in the kind's order, as named float columns (n,)."""
    names = kind_named(kind).dims
    table = np.asarray(dims, dtype=np.float64).reshape(-1, len(names))
    return {name: table[:, i] for i, name in enumerate(names)}


def dtype_bytes(dtype: str) -> int:
    """Bytes per element of a dtype name; InputError for one that is not supported."""
    if dtype not in DTYPE_BYTES:
        raise unknown_name("dtype", dtype, DTYPE_BYTES)
    return DTYPE_BYTES[dtype]
