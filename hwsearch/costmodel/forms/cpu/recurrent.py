"""Recurrences on a CPU: many small calls, products for every chunk and head, and passes over states and tokens."""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.common import Constant, Constants, FloatArray, Form
from hwsearch.costmodel.forms.cpu.common import FAR, NEAR, PRIVATE, call_seconds, moved_seconds
from hwsearch.operators import CHUNK, KINDS, STATE_BYTES, Columns
from hwsearch.records import DeviceSpec

__all__ = ["DELTA_RULE_DECODE", "DELTA_RULE_PREFILL", "chunked", "stepped"]


def _delta_prefill(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    dk, dv = c["head_k_dim"], c["head_v_dim"]
    chunk = np.minimum(c["seq_len"], CHUNK)
    chunks = np.ceil(c["seq_len"] / chunk)
    pieces = chunks * c["batch"] * c["num_v_heads"]
    flops = 4 * chunk**2 * dk + 2 * chunk**2 * (dk + 2 * dv) + 6 * chunk * dk * dv
    # Copies, norms and decays of queries, keys and values in fp32.
    tokens = STATE_BYTES * chunk * (8 * dk + 3 * dv)
    piece = flops / (k["compute"] * device.peak_flops) + tokens / (k["tokens"] * device.bandwidth)
    # Decays between all tokens of a chunk: exponentials, masks, and the triangular system.
    piece += chunk**2 * k["score_ns"] * 1e-9
    return call_seconds(k) + chunks * k["chunk_us"] * 1e-6 + pieces * piece


DELTA_RULE_PREFILL = Form(
    (
        Constant("call_us", 300.0, 10.0, 5000.0),
        Constant("chunk_us", 15.0, 0.5, 500.0),
        Constant("compute", 0.7, 0.01, 1.3),
        Constant("tokens", 0.4, 0.02, 20.0),
        Constant("score_ns", 6.0, 0.1, 100.0),
    ),
    _delta_prefill,
)


def _delta_decode(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    heads = c["batch"] * c["num_v_heads"]
    state = STATE_BYTES * heads * c["head_k_dim"] * c["head_v_dim"]
    return call_seconds(k) + heads * k["head_us"] * 1e-6 + moved_seconds(state, state, device, k)


DELTA_RULE_DECODE = Form(
    (
        Constant("call_us", 60.0, 5.0, 2000.0),
        Constant("private_mib", 0.4, 0.02, 32.0),
        Constant("near", 1.5, 0.05, 50.0),
        Constant("far", 0.2, 0.01, 10.0),
        Constant("head_us", 0.4, 0.01, 50.0),
    ),
    _delta_decode,
)

_STEP = (
    Constant("call_us", 60.0, 2.0, 5000.0),
    PRIVATE,
    NEAR,
    FAR,
    Constant("compute", 0.1, 0.0005, 1.3),
)


def stepped(kind: str) -> Form:
    """The form of a kind that goes through one token, or through elements that wait for none other."""

    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        moved = KINDS[kind].bytes(c, size)
        arithmetic = KINDS[kind].flops(c) / (k["compute"] * device.peak_flops)
        return call_seconds(k) + arithmetic + moved_seconds(moved, moved, device, k)

    return Form(_STEP, seconds)


def chunked(kind: str) -> Form:
    """The form of a kind that goes through `seq_len` tokens in chunks, one after another."""
    step = stepped(kind)

    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        return step.seconds(c, device, size, k) + np.ceil(c["seq_len"] / CHUNK) * k["chunk_us"] * 1e-6

    return Form((*_STEP, Constant("chunk_us", 30.0, 0.5, 2000.0)), seconds)
