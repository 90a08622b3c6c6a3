"""Softmax attention on a CPU, as hwsearch.kernels.attention calls PyTorch's fused kernel.

The kernel (cpu_flash_attention) takes tiles of 32, 64 or 256 query rows, by how many there are, against blocks of 512
keys, one sequence and head after another. It computes whole blocks, masked or not, so that a causal prompt of up to 512
tokens costs all pairs. After cached tokens, or with a window, queries go in blocks of their own with the heads of a
group packed, each with a mask over the keys that it can see: made, repeated for the group and turned into numbers at
every call.
"""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.attention import reach
from hwsearch.costmodel.forms.common import Constant, Constants, FloatArray, Form
from hwsearch.costmodel.forms.cpu.common import FAR, NEAR, PRIVATE, call_seconds, moved_seconds
from hwsearch.operators import Columns
from hwsearch.records import DeviceSpec

__all__ = ["CONTEXT_ATTENTION", "GENERATION_ATTENTION", "computed_pairs", "masked"]

_KEYS = 512  # of a block of the kernel, and queries of a block after cached tokens
_LEAST_QUERIES = 128  # of a block with a window


def masked(c: Columns) -> FloatArray:
    """1 where queries go in blocks under masks (n,), 0 where one causal call does, or a single query needs no mask."""
    causal = (c["past_len"] == 0) & ((c["window"] == 0) | (c["window"] >= c["seq_len"]))
    blocks: FloatArray = 1.0 - (causal | (c["seq_len"] == 1))
    return blocks


def computed_pairs(c: Columns) -> tuple[FloatArray, FloatArray]:
    """Query-key pairs that are computed per head and sequence (n,), and calls into which they are cut (n,)."""
    queries, past, window = c["seq_len"], c["past_len"], c["window"]
    block = np.where(window > 0, np.maximum(_LEAST_QUERIES, window // 2), float(_KEYS))
    full = queries // block
    rest = queries - full * block
    # Full blocks that still see all before them; the others see the window and what the block itself spans.
    growing = np.where(window > 0, np.clip((window - 1 - past) // block + 1, 0, full), full)
    pairs = block * growing * (past + block * (growing + 1) / 2)
    pairs += (full - growing) * block * (block + window - 1)
    last = np.where(window > 0, np.minimum(past + queries, rest + window - 1), past + queries)
    return pairs + rest * last, full + (rest > 0)


def _context(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    batch, heads, d = c["batch"], c["num_heads"], c["head_dim"]
    blocks = masked(c)
    pairs, calls = computed_pairs(c)
    group = heads / c["num_kv_heads"]
    rows = c["seq_len"] * np.where(blocks > 0, group / calls, 1.0)
    tile = np.minimum(np.select([rows >= 768, rows >= 192], [256.0, 64.0], 32.0), rows)
    scores = batch * heads * pairs
    # A mask is added in a pass of its own; without one, scores are scaled while their largest is looked for.
    per_score = k["score_ns"] + blocks * k["add_ns"]
    arithmetic = scores * (4 * d / (k["compute"] * device.peak_flops) + per_score * 1e-9)
    # Every tile of rows packs its keys and values anew.
    passes = np.ceil(rows / tile) / rows
    packed = scores * passes * 2 * size * d / (k["pack"] * device.bandwidth)
    tokens = batch * c["seq_len"] * heads
    copied = blocks * size * tokens * d / (k["copy"] * device.bandwidth)
    masks = blocks * (calls * k["mask_us"] * 1e-6 + group * pairs * k["mask_ns"] * 1e-9)
    seconds: FloatArray = call_seconds(k) + arithmetic + packed + tokens * k["row_ns"] * 1e-9 + copied + masks
    return seconds


CONTEXT_ATTENTION = Form(
    (
        Constant("call_us", 6.0, 0.5, 500.0),
        Constant("compute", 0.85, 0.02, 1.3),
        Constant("score_ns", 0.25, 0.01, 50.0),
        Constant("add_ns", 0.25, 0.01, 50.0),
        Constant("pack", 2.5, 0.1, 50.0),
        Constant("row_ns", 90.0, 2.0, 2000.0),
        Constant("copy", 0.25, 0.02, 50.0),
        Constant("mask_us", 40.0, 1.0, 2000.0),
        Constant("mask_ns", 1.5, 0.02, 50.0),
    ),
    _context,
)


def _generation(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    seen, d = reach(c), c["head_dim"]
    sequences = c["batch"] * c["num_kv_heads"]
    cache = 2 * size * sequences * seen * d
    scores = c["batch"] * c["num_heads"] * seen
    arithmetic = scores * (4 * d / (k["compute"] * device.peak_flops) + k["score_ns"] * 1e-9)
    blocks = sequences * np.ceil(seen / _KEYS) * k["block_us"] * 1e-6
    return call_seconds(k) + arithmetic + blocks + moved_seconds(cache, cache, device, k)


GENERATION_ATTENTION = Form(
    (
        Constant("call_us", 15.0, 0.5, 500.0),
        PRIVATE,
        NEAR,
        FAR,
        Constant("compute", 0.5, 0.01, 1.3),
        Constant("score_ns", 2.0, 0.02, 50.0),
        Constant("block_us", 0.7, 0.02, 50.0),
    ),
    _generation,
)
