"""FLOPs and bytes of the recurrent operators: delta rule, gated linear attention, RWKV-7, diagonal recurrences.

Prefill counts the chunked forms, decode one step. Sources of the algorithms: gated delta rule, arXiv 2412.06464;
gated linear attention, arXiv 2312.06635; RWKV-7, arXiv 2503.14456; RG-LRU, arXiv 2402.19427; diagonal SSM, arXiv
2206.11893.
"""

from __future__ import annotations

import numpy as np

from hwsearch.operators.kind import STATE_BYTES, Columns, FloatArray, OperatorKind

__all__ = ["CHUNK", "RECURRENT_KINDS"]

CHUNK = 64  # chunk length of the chunked forms


def _delta_prefill_flops(c: Columns) -> FloatArray:
    dk, dv = c["head_k_dim"], c["head_v_dim"]
    chunks = np.ceil(c["seq_len"] / CHUNK)
    scores = 2 * (2 * CHUNK * CHUNK * dk)  # key-key and query-key products
    inverse = 4 / 3 * CHUNK**3  # triangular inverse of the key-key system
    apply_inverse = 2 * CHUNK * CHUNK * (dk + dv)
    state = 6 * CHUNK * dk * dv  # read for values, read for queries, update
    within = 2 * CHUNK * CHUNK * dv
    return c["batch"] * c["num_v_heads"] * chunks * (scores + inverse + apply_inverse + state + within)


def _delta_token_elements(c: Columns) -> FloatArray:
    """Elements of q, k, v, the output and the two gates per token."""
    return (
        2 * c["num_k_heads"] * c["head_k_dim"] + 2 * c["num_v_heads"] * c["head_v_dim"] + 2 * c["num_v_heads"]
    )


def _delta_state_bytes(c: Columns) -> FloatArray:
    return STATE_BYTES * c["num_v_heads"] * c["head_k_dim"] * c["head_v_dim"]


def _delta_prefill_bytes(c: Columns, size: int) -> FloatArray:
    return c["batch"] * (size * c["seq_len"] * _delta_token_elements(c) + _delta_state_bytes(c))


def _delta_decode_bytes(c: Columns, size: int) -> FloatArray:
    return c["batch"] * (size * _delta_token_elements(c) + 2 * _delta_state_bytes(c))


def _linear_prefill_flops(c: Columns) -> FloatArray:
    dk, dv = c["head_k_dim"], c["head_v_dim"]
    chunks = np.ceil(c["seq_len"] / CHUNK)
    within = 2 * CHUNK * CHUNK * (dk + dv)  # scores, and their product with the values
    state = 4 * CHUNK * dk * dv  # read for queries, update
    return c["batch"] * c["num_v_heads"] * chunks * (within + state)


def _linear_token_elements(c: Columns) -> FloatArray:
    """Elements of q, k, v, the output and the gates per token."""
    values = 2 * c["head_v_dim"] + c["gate_dim"]
    return 2 * c["num_k_heads"] * c["head_k_dim"] + c["num_v_heads"] * values


def _linear_prefill_bytes(c: Columns, size: int) -> FloatArray:
    return c["batch"] * (size * c["seq_len"] * _linear_token_elements(c) + _delta_state_bytes(c))


def _linear_decode_bytes(c: Columns, size: int) -> FloatArray:
    return c["batch"] * (size * _linear_token_elements(c) + 2 * _delta_state_bytes(c))


def _rwkv7_prefill_flops(c: Columns) -> FloatArray:
    dk, dv = c["head_k_dim"], c["head_v_dim"]
    chunks = np.ceil(c["seq_len"] / CHUNK)
    scores = 4 * (2 * CHUNK * CHUNK * dk)  # removal keys and queries against keys and replacement keys
    system = 4 / 3 * CHUNK**3 + 2 * CHUNK * CHUNK * (dk + 2 * dv)
    state = 8 * CHUNK * dk * dv  # read for removal, read for queries, two updates
    within = 2 * (2 * CHUNK * CHUNK * dv)
    return c["batch"] * c["num_heads"] * chunks * (scores + system + state + within)


def _rwkv7_token_elements(c: Columns) -> FloatArray:
    """Elements of r, w, k, a, b, v and the output per token."""
    return c["num_heads"] * (5 * c["head_k_dim"] + 2 * c["head_v_dim"])


def _rwkv7_state_bytes(c: Columns) -> FloatArray:
    return STATE_BYTES * c["num_heads"] * c["head_k_dim"] * c["head_v_dim"]


_HEADS = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")

RECURRENT_KINDS = (
    OperatorKind(
        "delta_rule_prefill",
        ("batch", "seq_len", "num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim"),
        _delta_prefill_flops,
        _delta_prefill_bytes,
    ),
    OperatorKind(
        "delta_rule_decode",
        ("batch", "num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim"),
        lambda c: 8 * c["batch"] * c["num_v_heads"] * c["head_k_dim"] * c["head_v_dim"],
        _delta_decode_bytes,
    ),
    OperatorKind(
        "linear_attention_prefill",  # gate_dim decays per head: 1, or head_k_dim
        ("batch", "seq_len", *_HEADS, "gate_dim"),
        _linear_prefill_flops,
        _linear_prefill_bytes,
    ),
    OperatorKind(
        "linear_attention_decode",
        ("batch", *_HEADS, "gate_dim"),
        lambda c: 5 * c["batch"] * c["num_v_heads"] * c["head_k_dim"] * c["head_v_dim"],
        _linear_decode_bytes,
    ),
    OperatorKind(
        "rwkv7_prefill",
        ("batch", "seq_len", "num_heads", "head_k_dim", "head_v_dim"),
        _rwkv7_prefill_flops,
        lambda c, size: c["batch"] * (size * c["seq_len"] * _rwkv7_token_elements(c) + _rwkv7_state_bytes(c)),
    ),
    OperatorKind(
        "rwkv7_decode",
        ("batch", "num_heads", "head_k_dim", "head_v_dim"),
        lambda c: 9 * c["batch"] * c["num_heads"] * c["head_k_dim"] * c["head_v_dim"],
        lambda c, size: c["batch"] * (size * _rwkv7_token_elements(c) + 2 * _rwkv7_state_bytes(c)),
    ),
    OperatorKind(
        "diagonal_scan_prefill",  # a decay and an input per token and channel
        ("batch", "seq_len", "channels"),
        lambda c: 2 * c["batch"] * c["seq_len"] * c["channels"],
        lambda c, size: c["batch"] * c["channels"] * (3 * size * c["seq_len"] + STATE_BYTES),
    ),
    OperatorKind(
        "diagonal_scan_decode",
        ("batch", "channels"),
        lambda c: 2 * c["batch"] * c["channels"],
        lambda c, size: c["batch"] * c["channels"] * (3 * size + 2 * STATE_BYTES),
    ),
    OperatorKind(
        "diagonal_ssm_prefill",  # fixed decays, inputs and outputs: three fp32 parameters per state
        ("batch", "seq_len", "channels", "state_size"),
        lambda c: c["batch"] * c["seq_len"] * c["channels"] * (2 * CHUNK + 4 * c["state_size"]),
        lambda c, size: (
            2 * size * c["batch"] * c["seq_len"] * c["channels"]
            + (3 + c["batch"]) * STATE_BYTES * c["channels"] * c["state_size"]
        ),
    ),
    OperatorKind(
        "diagonal_ssm_decode",
        ("batch", "channels", "state_size"),
        lambda c: 5 * c["batch"] * c["channels"] * c["state_size"],
        lambda c, size: (
            2 * size * c["batch"] * c["channels"]
            + (3 + 2 * c["batch"]) * STATE_BYTES * c["channels"] * c["state_size"]
        ),
    ),
)
