"""Decode attention by FlashAttention 2, which devices before and after Hopper run.

By its public heuristics (Dao, arXiv 2307.08691, and the split of keys added for decoding) the query heads of a group
are packed into one tile, and the keys of a tile split so that two blocks per multiprocessor would be busy, only where
query heads share keys and no window is asked for. Packing costs a copy of the queries and of the result, for which
a single sequence or a single key-value head needs none. Elsewhere every query head walks all of its keys in one block.
One block at a time fits on a multiprocessor.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwsearch.costmodel.forms.attention import active_window, reach, static_splits
from hwsearch.costmodel.forms.common import (
    BANDWIDTH,
    L2,
    POWER,
    TAIL,
    Constant,
    Constants,
    FloatArray,
    Form,
    memory_seconds,
    pnorm,
    waves_of,
)
from hwsearch.operators import KINDS, Columns
from hwsearch.records import DeviceSpec

__all__ = ["FLASH_ATTENTION_2_DECODE"]

_TILE_ROWS = 64  # query heads of a group in one tile
_ASSUMED_PER_SM = 2  # blocks, by the heuristic that chooses the split


def _decode(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    d, group, kv_heads = c["head_dim"], c["num_heads"] / c["num_kv_heads"], c["num_kv_heads"]
    packed = (group > 1) & (c["window"] == 0)
    step = np.select([d <= 64, d <= 128], [256.0, 128.0], 64.0)
    blocks = np.ceil(reach(c) / step) + active_window(c)
    tiles = c["batch"] * np.where(packed, kv_heads * np.ceil(group / _TILE_ROWS), c["num_heads"])
    slots = replace(device, num_sms=_ASSUMED_PER_SM * device.num_sms)
    split = np.where(packed, static_splits(tiles, blocks, slots, least=1), 1.0)
    # A split that does not shorten the longest share is not considered; the smallest that is as short stands for it.
    split = np.ceil(blocks / np.ceil(blocks / split))
    own = np.ceil(blocks / split)

    moved = KINDS["generation_attention"].bytes(c, size)
    memory = memory_seconds(moved, moved, device, k)
    feed = k["feed"] * device.bandwidth / device.num_sms
    # A block that is not full brings only the keys that there are.
    keys = np.minimum(own * step, np.maximum(reach(c), 1.0))
    wave = 1e-6 * (k["wave_us"] + k["wave_dim_us"] * d / 128 + k["block_us"] * own)
    chain = waves_of(tiles * split, device, k) * (size * 2 * keys * d / feed + wave)
    rows = c["batch"] * c["num_heads"]
    copied = packed & (c["batch"] > 1) & (kv_heads > 1)
    copy = np.where(copied, 1e-6 * k["copy_us"] + 4 * size * rows * d / device.bandwidth, 0.0)
    partial = 8 * rows * split * d / device.bandwidth
    merge = np.where(split > 1, 1e-6 * (k["combine_us"] + k["split_us"] * split) + partial, 0.0)
    launch = 1e-6 * (k["launch_us"] + k["dim_us"] * d / 128) + 1e-9 * c["batch"] * k["sequence_ns"]
    return launch + pnorm(chain, memory, k["power"]) + copy + merge


FLASH_ATTENTION_2_DECODE = Form(
    (
        Constant("launch_us", 4.0, 0.5, 30.0),
        Constant("dim_us", 0.6, 0.01, 5.0),
        BANDWIDTH,
        *L2,
        POWER,
        Constant("feed", 8.0, 0.5, 24.0),
        Constant("block_us", 0.5, 0.02, 10.0),
        Constant("wave_us", 1.5, 0.05, 10.0),
        Constant("wave_dim_us", 1.5, 0.05, 10.0),
        Constant("copy_us", 3.0, 0.1, 20.0),
        Constant("combine_us", 2.0, 0.05, 10.0),
        Constant("split_us", 0.05, 0.001, 1.0),
        Constant("sequence_ns", 2.0, 0.01, 100.0),
        TAIL,
    ),
    _decode,
)
