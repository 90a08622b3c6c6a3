"""Matrix products: the best of many tile shapes and splits, beside the traffic of operands and result.

Libraries carry kernels of many tile shapes and pick by heuristics; a set in steps of 32 rows stands for them.
Long inner dimensions of small products are split over blocks, whose partial results are added afterwards.
"""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.common import (
    BANDWIDTH,
    COMPUTE,
    FEED,
    HOT,
    L2,
    POWER,
    TAIL,
    Constant,
    Constants,
    FloatArray,
    Form,
    heated,
    memory_seconds,
    pnorm,
    waves_of,
)
from hwsearch.operators import KINDS, Columns
from hwsearch.records import DeviceSpec

__all__ = ["GEMM"]

# Tile shapes (rows, columns) and the ways the inner dimension is split.
_TILES = tuple((tm, tn) for tm in range(64, 257, 32) for tn in (64, 128, 256) if tm * tn <= 128 * 256)
_SPLITS = (1, 3, 8, 24)
_WEIGHTS_IN_FLIGHT = 6  # measurement loops take turns with as many weights


def _tiles_seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    """Seconds of the best tile shape and split: waves of tiles, each bound by its FLOPs or by its operands."""
    m, n, inner = c["m"], c["n"], c["k"]
    rate = k["compute"] * device.peak_flops / device.num_sms
    feed = k["feed"] * device.bandwidth / device.num_sms
    best = np.full(len(m), np.inf)
    for tm, tn in _TILES:
        tiles = np.ceil(m / tm) * np.ceil(n / tn)
        step = max(2 * tm * tn / rate, size * (tm + tn) / feed)
        for split in _SPLITS:
            depth = np.ceil(inner / (64 * split)) * 64
            cost = waves_of(tiles * split, device, k) * (depth * step + k["wave_us"] * 1e-6)
            if split > 1:
                cost = cost + k["split_us"] * 1e-6 + 4 * split * m * n / (2 * device.bandwidth)
            np.minimum(best, cost, out=best)
    return best


def _gemm(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    m, n, inner = c["m"], c["n"], c["k"]
    moved = KINDS["gemm"].bytes(c, size)
    working = size * (_WEIGHTS_IN_FLIGHT * n * inner + m * inner + m * n)
    memory = k["ramp_us"] * 1e-6 + memory_seconds(working, moved, device, k)
    compute = heated(_tiles_seconds(c, device, size, k), k)
    return k["launch_us"] * 1e-6 + pnorm(compute, memory, k["power"])


GEMM = Form(
    (
        Constant("launch_us", 0.6, 0.1, 20.0),
        Constant("ramp_us", 1.5, 0.05, 10.0),
        BANDWIDTH,
        *L2,
        POWER,
        COMPUTE,
        FEED,
        TAIL,
        *HOT,
        Constant("wave_us", 1.0, 0.05, 10.0),
        Constant("split_us", 1.5, 0.1, 10.0),
    ),
    _gemm,
)
