"""What the attention kernels of FlashAttention 3 have in common: tiles, and how they split the keys.

The geometry (rows and keys of a tile per head size, packing of a group's query heads into rows, the number of
splits by the wave efficiency of a single sequence, their dynamic reduction by the work of the batch) follows
the public heuristics of the FlashAttention 3 sources for Hopper with a paged cache (Shah et al., arXiv
2407.08608). Other devices run other kernels; the same form with constants of their own still fits them better
than one without splits.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from hwsearch.costmodel.forms.common import FloatArray
from hwsearch.operators import Columns
from hwsearch.records import DeviceSpec

__all__ = ["active_window", "key_block", "reach", "static_splits", "tile_rows"]

_MOST_SPLITS = 128
_FULL_ENOUGH = 0.8  # of the multiprocessors busy: no split
_EFFICIENT = 0.85  # of the best wave efficiency: the smallest such split is taken


def key_block(head_dim: FloatArray) -> FloatArray:
    """Keys that a block takes at a time from a paged cache."""
    return np.select([head_dim <= 128, head_dim <= 192], [128.0, 96.0], 80.0)


def tile_rows(head_dim: FloatArray) -> FloatArray:
    """Rows (queries times packed heads) of a block."""
    return np.where(head_dim <= 64, 192.0, 128.0)


def _total(c: Columns) -> FloatArray:
    return c["kv_len"] if "kv_len" in c else c["seq_len"] + c["past_len"]


def active_window(c: Columns) -> FloatArray:
    """1 where a window hides keys, 0 elsewhere."""
    return ((c["window"] > 0) & (c["window"] < _total(c))).astype(np.float64)


def reach(c: Columns) -> FloatArray:
    """Keys that the last query sees."""
    return np.where(c["window"] > 0, np.minimum(c["window"], _total(c)), _total(c))


def static_splits(tiles: FloatArray, blocks: FloatArray, device: DeviceSpec, *, least: int = 4) -> FloatArray:
    """Splits of the keys of one sequence with so many row tiles (n,) and key blocks (n,): the smallest number
    whose waves are nearly as full as the fullest; 1 where the tiles fill the device or the key blocks are at most
    `least`."""
    table = _split_table(device.num_sms, least)
    row = np.minimum(tiles, len(table) - 1).astype(np.int64)
    column = np.minimum(blocks, table.shape[1] - 1).astype(np.int64)
    splits: FloatArray = table[row, column]
    return splits


@cache
def _split_table(num_sms: int, least: int) -> FloatArray:
    """static_splits by number of tiles and of key blocks; the last row and column stand for all larger numbers."""
    tiles = np.arange(np.ceil(_FULL_ENOUGH * num_sms))
    candidates = np.arange(1.0, _MOST_SPLITS + 1)
    waves = tiles[:, None] * candidates / num_sms
    efficiency = waves / np.maximum(np.ceil(waves), 1)
    splits = np.ones((len(tiles) + 1, _MOST_SPLITS + 1))
    for blocks in range(least + 1, _MOST_SPLITS + 1):
        allowed = np.where(candidates > min(num_sms, blocks), 0.0, efficiency)
        good = allowed >= _EFFICIENT * allowed.max(axis=1, keepdims=True)
        splits[:-1, blocks] = candidates[np.argmax(good, axis=1)]
    return splits
