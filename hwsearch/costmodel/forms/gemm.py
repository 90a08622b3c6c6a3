"""Matrix products: the best of many tile shapes and splits, beside the traffic of operands and result.

Libraries carry kernels of many tile shapes and pick by heuristics; a set of shapes stands for them. Hopper's come in
steps of 16 and finer, so that most problems find one that fills the device; earlier devices know powers of two, and
pay for whole waves. Long inner dimensions of small products are split over blocks, whose partial results are added
afterwards. Weights that the L2 holds between their turns cost neither device memory's latency nor its bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    pnorm,
    spilled,
    waves_of,
)
from hwsearch.operators import Columns
from hwsearch.records import DeviceSpec

__all__ = ["GEMM", "GEMM_POWERS_OF_TWO", "Kernel", "cheapest_kernel"]

# Tile shapes (rows, columns) and the ways the inner dimension is split.
_TILES = (
    (64, 64),
    (48, 80),
    (160, 48),
    (48, 256),
    (112, 128),
    (64, 256),
    (160, 128),
    (96, 256),
    (112, 256),
    (96, 320),
    (128, 256),
)
_POWERS_OF_TWO = tuple((tm, tn) for tm in (64, 128, 256) for tn in (64, 128, 256) if tm * tn <= 128 * 256)
_SPLITS = (1, 3, 8, 24)
_WEIGHTS_IN_FLIGHT = 6  # measurement loops take turns with as many weights


@dataclass(frozen=True)
class Kernel:
    """The cheapest kernel for each product: seconds, tile rows and columns, ways of splitting, (n,) each."""

    seconds: FloatArray
    rows: FloatArray
    columns: FloatArray
    split: FloatArray


def _candidates(
    c: Columns, device: DeviceSpec, size: int, k: Constants, tiles: tuple[tuple[int, int], ...]
) -> Callable[[int, int, int], FloatArray]:
    """Seconds (n,) of one tile shape and split: waves of tiles, each bound by its FLOPs and by its operands."""
    m, n, inner = c["m"], c["n"], c["k"]
    rate = k["compute"] * device.peak_flops / device.num_sms
    feed = k["feed"] * device.bandwidth / device.num_sms
    rows = {tm: np.ceil(m / tm) for tm in {tile[0] for tile in tiles}}
    columns = {tn: np.ceil(n / tn) for tn in {tile[1] for tile in tiles}}
    depth = {split: np.ceil(inner / (64 * split)) * 64 for split in _SPLITS}
    joined = {
        split: k["split_us"] * 1e-6 + 4 * split * m * n / (2 * device.bandwidth) if split > 1 else 0.0
        for split in _SPLITS
    }

    def seconds(tm: int, tn: int, split: int) -> FloatArray:
        compute, operands = 2 * tm * tn / rate, size * (tm + tn) / feed
        overlap = k.get("overlap")
        if overlap is None:
            step = max(compute, operands)
        else:
            step = float((compute**overlap + operands**overlap) ** (1 / overlap))
        waves = waves_of(rows[tm] * columns[tn] * split, device, k)
        cost: FloatArray = waves * (depth[split] * step + k["wave_us"] * 1e-6) + joined[split]
        return cost

    return seconds


def cheapest_kernel(c: Columns, *, device: DeviceSpec, size: int) -> Kernel:
    """The kernel that the form takes with the constants it begins with; columns (n,), `size` bytes per element."""
    start = {constant.name: constant.start for constant in GEMM.constants}
    seconds = _candidates(c, device, size, start, _TILES)
    best = np.full(len(c["m"]), np.inf)
    which: NDArray[np.uint8] = np.zeros(len(best), np.uint8)
    kernels = [(tm, tn, split) for tm, tn in _TILES for split in _SPLITS]
    for index, kernel in enumerate(kernels):
        cost = seconds(*kernel)
        better = cost < best
        np.copyto(best, cost, where=better)
        np.copyto(which, np.uint8(index), where=better)
    rows, columns, split = np.array(kernels, np.float64).T
    return Kernel(best, rows[which], columns[which], split[which])


def _form(tiles: tuple[tuple[int, int], ...]) -> Callable[[Columns, DeviceSpec, int, Constants], FloatArray]:
    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        m, n, inner = c["m"], c["n"], c["k"]
        cost = _candidates(c, device, size, k, tiles)
        best = np.full(len(m), np.inf)
        for tm, tn in tiles:
            for split in _SPLITS:
                np.minimum(best, cost(tm, tn, split), out=best)
        working = size * (_WEIGHTS_IN_FLIGHT * n * inner + m * inner + m * n)
        outside = spilled(working, device, k)
        moved = size * (m * inner + n * inner + k["write"] * m * n)
        traffic = moved * (outside + (1 - outside) / k["l2_gain"]) / (k["bandwidth"] * device.bandwidth)
        memory = (k["ramp_us"] + k["far_us"] * outside) * 1e-6 + traffic
        return k["launch_us"] * 1e-6 + pnorm(heated(best, k), memory, k["power"])

    return seconds


_CONSTANTS = (
    Constant("launch_us", 0.6, 0.1, 20.0),
    Constant("ramp_us", 1.5, 0.05, 10.0),
    Constant("far_us", 0.8, 0.05, 5.0),
    BANDWIDTH,
    *L2[:2],
    Constant("l2_edge", 10.0, 1.0, 60.0),
    Constant("write", 1.0, 0.3, 3.0),
    POWER,
    COMPUTE,
    FEED,
    TAIL,
    *HOT,
    Constant("wave_us", 1.0, 0.05, 10.0),
    Constant("split_us", 1.5, 0.1, 10.0),
)

GEMM = Form(_CONSTANTS, _form(_TILES))
GEMM_POWERS_OF_TWO = Form((*_CONSTANTS, Constant("overlap", 3.0, 1.0, 10.0)), _form(_POWERS_OF_TWO))
