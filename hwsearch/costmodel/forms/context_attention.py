"""Attention over a prompt: row blocks and their keys in waves, splits of long rows, the write to the cache."""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.attention import active_window, key_block, reach, static_splits, tile_rows
from hwsearch.costmodel.forms.common import (
    COMPUTE,
    HOT,
    L2,
    TAIL,
    Constant,
    Constants,
    FloatArray,
    Form,
    heated,
    pnorm,
    spilled,
)
from hwsearch.operators import Columns, attended_pairs
from hwsearch.records import DeviceSpec

__all__ = ["CONTEXT_ATTENTION", "context_blocks", "context_splits"]

_COPY_THREADS = 512  # of a block of the kernel that writes a token's keys and values to the cache
_ONE_GROUP_ROWS = 64  # rows up to which a tile of head size 128 takes one warp group


def context_blocks(c: Columns) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Row blocks with a group's heads packed, their rows, their mean key blocks, (n,) each."""
    rows = tile_rows(c["head_dim"])
    group = c["num_heads"] / c["num_kv_heads"]
    blocks = c["batch"] * c["num_kv_heads"] * np.ceil(c["seq_len"] * group / rows)
    pairs = attended_pairs(c["seq_len"], c["past_len"], c["window"])
    span = np.minimum(rows / group, c["seq_len"])
    step = key_block(c["head_dim"])
    # A block starts and ends inside key blocks: half a step more on average at each masked end.
    ends = 0.5 + 0.5 * active_window(c)
    whole = np.ceil((c["seq_len"] + c["past_len"]) / step)
    keys = np.minimum((pairs / c["seq_len"] + span / 2) / step + ends, whole)
    return blocks, rows, np.maximum(keys, 1.0)


def context_splits(c: Columns, device: DeviceSpec) -> FloatArray:
    """Blocks (n,) among which the keys of a row block are split."""
    rows = tile_rows(c["head_dim"])
    total = c["seq_len"] + c["past_len"]
    loaded = np.where(active_window(c) > 0, np.minimum(total, c["window"] + rows), total)
    blocks = np.ceil(loaded / key_block(c["head_dim"]))
    tiles = c["num_kv_heads"] * np.ceil(c["seq_len"] * c["num_heads"] / c["num_kv_heads"] / rows)
    share = np.ceil(1.1 * c["batch"] * tiles * blocks / device.num_sms)
    return np.clip(np.ceil(blocks / share), 1.0, static_splits(tiles, blocks, device))


def _context_attention(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    d, group = c["head_dim"], c["num_heads"] / c["num_kv_heads"]
    blocks, rows, keys = context_blocks(c)
    splits = context_splits(c, device)
    step = key_block(d)
    rate = device.peak_flops / device.num_sms
    computed = np.where((c["seq_len"] * group <= _ONE_GROUP_ROWS) & (d == 128), _ONE_GROUP_ROWS, rows)
    # Softmax costs an exponential per score, whatever the head size.
    per_keys = computed * step * (4 * d / (k["compute"] * rate) + k["softmax"] * 256 / rate)
    octaves = np.log2(group)
    # Packing a group that is no power of two, or a large one, costs address arithmetic for every row.
    awkward = (np.abs(octaves - np.round(octaves)) > 1e-6) | (group > 16)
    filled = c["seq_len"] * group / (np.ceil(c["seq_len"] * group / rows) * rows)
    start = 1e-6 * (k["block_us"] + filled * (k["row_us"] * rows / 128 * d / 128 + awkward * k["awkward_us"]))
    waves = blocks * splits / device.num_sms
    mean = (start + keys / splits * per_keys) * np.where(
        waves > 1, waves + (np.ceil(waves) - waves) * k["tail"], waves + (1 - waves) * k["tail"]
    )
    last = np.minimum(reach(c) / step + 0.5, np.ceil(reach(c) / step) + 1)
    longest = start + last / splits * per_keys * k["longest"]
    compute = pnorm(mean, longest, 6.0)

    tokens = c["batch"] * c["seq_len"]
    queries = size * tokens * d * 2 * c["num_heads"]
    cache = size * tokens * d * 2 * c["num_kv_heads"]
    past = size * c["batch"] * c["past_len"] * d * 2 * c["num_kv_heads"]
    outside = spilled(queries + 2 * cache + past, device, k)
    traffic = (outside + (1 - outside) / k["l2_gain"]) / device.bandwidth
    attention = pnorm(compute, (queries + cache + past) * traffic / k["query_share"], 8.0)
    # One block of threads writes one token to the cache, whether or not it has work for all threads.
    busy = np.minimum(c["num_kv_heads"] * d, _COPY_THREADS) / _COPY_THREADS
    copy = pnorm(tokens * busy * k["token_ns"] * 1e-9, 2 * cache * traffic / k["cache_share"], 4.0)
    partial = 4 * splits * queries / size * traffic
    combine = np.where(splits > 1, k["combine_us"] * 1e-6 + partial, 0.0)
    launch = 1e-6 * (k["launch_us"] + k["dim_us"] * d / 128)
    return launch + heated(attention, k) + copy + combine


CONTEXT_ATTENTION = Form(
    (
        Constant("launch_us", 9.0, 0.5, 30.0),
        Constant("dim_us", 0.6, 0.01, 5.0),
        COMPUTE,
        Constant("softmax", 0.3, 0.01, 3.0),
        Constant("block_us", 1.0, 0.05, 10.0),
        Constant("row_us", 1.0, 0.05, 10.0),
        Constant("awkward_us", 0.4, 0.01, 5.0),
        Constant("longest", 0.8, 0.1, 1.5),
        TAIL,
        *HOT,
        Constant("query_share", 0.5, 0.1, 1.0),
        Constant("token_ns", 5.0, 0.1, 50.0),
        Constant("cache_share", 0.6, 0.1, 1.0),
        *L2,
        Constant("combine_us", 3.0, 0.1, 10.0),
    ),
    _context_attention,
)
