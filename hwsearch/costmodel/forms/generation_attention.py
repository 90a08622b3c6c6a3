"""Attention of one new token per sequence: splits of the cache in waves, its traffic, the plan and the merge."""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.attention import active_window, key_block, reach
from hwsearch.costmodel.forms.common import (
    BANDWIDTH,
    FEED,
    L2,
    POWER,
    TAIL,
    Constant,
    Constants,
    FloatArray,
    Form,
    memory_seconds,
    pnorm,
    spilled,
    waves_of,
)
from hwsearch.operators import KINDS, Columns
from hwsearch.records import DeviceSpec

__all__ = ["GENERATION_ATTENTION", "generation_split", "planned"]

_MOST_SPLITS = 32  # serving engines fix it, so that a captured graph fits every length
_MOST_PLANNED = 992  # sequences: 31 warps of the planning kernel
_PACKED = 64  # query heads of a group in one tile


def generation_split(c: Columns, device: DeviceSpec) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Key blocks per sequence, its split over thread blocks, and waves of thread blocks, (n,) each.

    The scheduler cuts all key blocks of the batch into equal shares per multiprocessor, with a tenth to spare.
    """
    blocks = np.ceil(reach(c) / key_block(c["head_dim"])) + active_window(c)
    tiles = c["batch"] * c["num_kv_heads"] * np.ceil(c["num_heads"] / c["num_kv_heads"] / _PACKED)
    share = np.ceil(1.1 * tiles * blocks / device.num_sms)
    split = np.minimum(np.ceil(blocks / share), _MOST_SPLITS)
    return blocks, split, tiles * split / device.num_sms


def planned(c: Columns) -> FloatArray:
    """1 where a kernel of its own plans the splits of every sequence (n,), 0 where there are too many for it."""
    return (c["batch"] <= _MOST_PLANNED).astype(np.float64)


def _generation_attention(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    d, step = c["head_dim"], key_block(c["head_dim"])
    blocks, split, waves = generation_split(c, device)
    moved = KINDS["generation_attention"].bytes(c, size)
    memory = memory_seconds(moved, moved, device, k) + k["ramp_us"] * 1e-6 * spilled(moved, device, k)
    feed = k["feed"] * device.bandwidth / device.num_sms
    own = np.ceil(blocks / split)
    # A block that is not full brings only the keys that there are.
    keys = np.minimum(own * step, np.maximum(reach(c), 1.0))
    # A masked block computes all rows of its tile: 192 for heads of 64, one warp group's 64 for heads of 128.
    masked = active_window(c) * np.select([d <= 64, d == 128], [1.0, 1 / 9], 4 / 9)
    wave = k["wave_us"] + k["wave_dim_us"] * d / 128 + k["window_us"] * masked + k["block_us"] * own
    chain = waves_of(waves * device.num_sms, device, k) * (size * 2 * keys * d / feed + wave * 1e-6)
    rows = c["batch"] * c["num_heads"]
    partial = 8 * rows * split * d / device.bandwidth
    merge = np.where(split > 1, 1e-6 * (k["combine_us"] + k["split_us"] * split) + partial, 0.0)
    # With a plan the merging kernel visits every row, split or not; every block searches the plan.
    visit = planned(c) * (rows * np.ceil(d / 64) * k["combine_ns"] + c["batch"] * k["plan_ns"])
    sequences = 1e-9 * (c["batch"] * k["sequence_ns"] + visit)
    launch = 1e-6 * (k["launch_us"] + k["dim_us"] * d / 128)
    return launch + pnorm(chain, memory, k["power"]) + merge + sequences


GENERATION_ATTENTION = Form(
    (
        Constant("launch_us", 8.0, 0.5, 30.0),
        Constant("dim_us", 0.6, 0.01, 5.0),
        BANDWIDTH,
        *L2,
        POWER,
        FEED,
        Constant("block_us", 0.5, 0.02, 10.0),
        Constant("wave_us", 1.5, 0.05, 10.0),
        Constant("wave_dim_us", 1.5, 0.05, 10.0),
        Constant("window_us", 0.8, 0.02, 5.0),
        Constant("combine_us", 1.0, 0.05, 10.0),
        Constant("split_us", 0.05, 0.001, 1.0),
        Constant("combine_ns", 0.2, 0.01, 10.0),
        Constant("plan_ns", 6.0, 0.01, 100.0),
        Constant("sequence_ns", 6.0, 0.01, 100.0),
        Constant("ramp_us", 5.0, 0.1, 60.0),
        TAIL,
    ),
    _generation_attention,
)
