"""Matrix products: the best of many tile shapes and splits, beside the traffic of operands and result.

Libraries carry kernels of many tile shapes and pick by heuristics; a set of shapes stands for them. Hopper's come in
steps of 16 and finer, so that most problems find one that fills the device; earlier devices know powers of two, and
pay for whole waves. Long inner dimensions of small products are split over blocks, whose partial results are added
afterwards. Weights that the L2 holds between their turns cost neither device memory's latency nor its bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

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
# Constants that a search depends on.
_OF_KERNELS = ("compute", "feed", "overlap", "tail", "wave_us", "split_us")
_SEARCHES = 2 * len(_OF_KERNELS)  # kept: those of a step and of its derivatives
_Tiles = tuple[tuple[int, int], ...]
_Split = FloatArray | NDArray[np.int64] | int
_WEIGHTS_IN_FLIGHT = 6  # measurement loops take turns with as many weights


@dataclass(frozen=True)
class Kernel:
    """The cheapest kernel for each product: seconds, tile rows and columns, ways of splitting, (n,) each."""

    seconds: FloatArray
    rows: FloatArray
    columns: FloatArray
    split: FloatArray


def _tiles_seconds(
    blocks: FloatArray,
    depth: FloatArray,
    tile: tuple[FloatArray | int, FloatArray | int],
    *,
    device: DeviceSpec,
    size: int,
    k: Constants,
) -> FloatArray:
    """Seconds (n,) of so many blocks over so deep an inner dimension: waves of tiles, each bound by its FLOPs and by
    its operands."""
    step = _step_seconds(tile, device=device, size=size, k=k)
    seconds: FloatArray = waves_of(blocks, device, k) * (depth * step + k["wave_us"] * 1e-6)
    return seconds


def _step_seconds(
    tile: tuple[FloatArray | int, FloatArray | int], *, device: DeviceSpec, size: int, k: Constants
) -> FloatArray:
    """Seconds, as many as tiles, that a block takes for one of its inner dimension."""
    rate = k["compute"] * device.peak_flops / device.num_sms
    feed = k["feed"] * device.bandwidth / device.num_sms
    compute, operands = 2 * tile[0] * tile[1] / rate, size * (tile[0] + tile[1]) / feed
    overlap = k.get("overlap")
    if overlap is None:
        return np.maximum(compute, operands)
    step: FloatArray = (compute**overlap + operands**overlap) ** (1 / overlap)
    return step


def _joining_seconds(split: _Split, c: Columns, *, device: DeviceSpec, k: Constants) -> FloatArray:
    """Seconds (n,) to add up the partial results of a split product."""
    seconds: FloatArray = k["split_us"] * 1e-6 + 4 * split * c["m"] * c["n"] / (2 * device.bandwidth)
    return seconds


def _depth(split: _Split, c: Columns) -> FloatArray:
    """Inner dimension (n,) of a block of a split product, padded to whole steps."""
    depth: FloatArray = np.ceil(c["k"] / (64 * split)) * 64
    return depth


def _candidates(
    c: Columns, device: DeviceSpec, size: int, k: Constants, tiles: _Tiles
) -> Iterator[tuple[tuple[int, int, int], FloatArray]]:
    """Every kernel (tile rows, tile columns, split) and its seconds (n,)."""
    rows = {tm: np.ceil(c["m"] / tm) for tm in {tile[0] for tile in tiles}}
    columns = {tn: np.ceil(c["n"] / tn) for tn in {tile[1] for tile in tiles}}
    depth = {split: _depth(split, c) for split in _SPLITS}
    joining = {
        split: _joining_seconds(split, c, device=device, k=k) if split > 1 else 0.0 for split in _SPLITS
    }
    for tm, tn in tiles:
        for split in _SPLITS:
            blocks = rows[tm] * columns[tn] * split
            cost = _tiles_seconds(blocks, depth[split], (tm, tn), device=device, size=size, k=k)
            yield (tm, tn, split), cost + joining[split]


def _prepared(c: Columns, device: DeviceSpec, size: int, tiles: _Tiles) -> Callable[[Constants], FloatArray]:
    """Seconds (n,) by constants. Kernels are searched for all at once, and again only when a constant of theirs moves:
    derivatives to the others need no search."""
    split = np.array(_SPLITS)[:, None]
    blocks = np.stack([np.ceil(c["m"] / tm) * np.ceil(c["n"] / tn) * split for tm, tn in tiles])
    waves = np.maximum(blocks / device.num_sms, 1.0)
    unfilled, depth = np.ceil(waves) - waves, _depth(split, c)

    @lru_cache(maxsize=_SEARCHES)
    def least(*values: float | None) -> FloatArray:
        k = {name: value for name, value in zip(_OF_KERNELS, values, strict=True) if value is not None}
        step = np.array([_step_seconds(tile, device=device, size=size, k=k) for tile in tiles])
        cost = depth * step[:, None, None]
        cost += k["wave_us"] * 1e-6
        cost *= waves + unfilled * k["tail"]
        cost[:, 1:] += _joining_seconds(split[1:], c, device=device, k=k)
        found: FloatArray = cost.min(axis=(0, 1))
        return found

    def seconds(k: Constants) -> FloatArray:
        return _latency(least(*(k.get(name) for name in _OF_KERNELS)), c, device, size, k)

    return seconds


def _cheapest(c: Columns, device: DeviceSpec, size: int, k: Constants, tiles: _Tiles) -> Kernel:
    """The kernel that the form takes with constants `k`."""
    best = np.full(len(c["m"]), np.inf)
    which: NDArray[np.uint8] = np.zeros(len(best), np.uint8)
    kernels = []
    for index, (kernel, cost) in enumerate(_candidates(c, device, size, k, tiles)):
        better = cost < best
        np.copyto(best, cost, where=better)
        np.copyto(which, np.uint8(index), where=better)
        kernels.append(kernel)
    rows, columns, split = np.array(kernels, np.float64).T
    return Kernel(best, rows[which], columns[which], split[which])


def cheapest_kernel(c: Columns, *, device: DeviceSpec, size: int) -> Kernel:
    """The kernel that the form takes with the constants it begins with; columns (n,), `size` bytes per element."""
    start = {constant.name: constant.start for constant in GEMM.constants}
    return _cheapest(c, device, size, start, _TILES)


def _latency(busy: FloatArray, c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    """Seconds (n,) of products whose blocks take `busy` seconds: beside them goes the traffic."""
    m, n, inner = c["m"], c["n"], c["k"]
    working = size * (_WEIGHTS_IN_FLIGHT * n * inner + m * inner + m * n)
    outside = spilled(working, device, k)
    moved = size * (m * inner + n * inner + k["write"] * m * n)
    traffic = moved * (outside + (1 - outside) / k["l2_gain"]) / (k["bandwidth"] * device.bandwidth)
    memory = (k["ramp_us"] + k["far_us"] * outside) * 1e-6 + traffic
    return k["launch_us"] * 1e-6 + pnorm(heated(busy, k), memory, k["power"])


def _form(constants: tuple[Constant, ...], tiles: _Tiles) -> Form:
    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        best = np.full(len(c["m"]), np.inf)
        for _, cost in _candidates(c, device, size, k, tiles):
            np.minimum(best, cost, out=best)
        return _latency(best, c, device, size, k)

    def settled(c: Columns, device: DeviceSpec, size: int, k: Constants) -> Callable[[Constants], FloatArray]:
        kernel = _cheapest(c, device, size, k, tiles)
        blocks = np.ceil(c["m"] / kernel.rows) * np.ceil(c["n"] / kernel.columns) * kernel.split
        depth = _depth(kernel.split, c)

        def of(other: Constants) -> FloatArray:
            tile = (kernel.rows, kernel.columns)
            busy = _tiles_seconds(blocks, depth, tile, device=device, size=size, k=other)
            joining = _joining_seconds(kernel.split, c, device=device, k=other)
            return _latency(busy + np.where(kernel.split > 1, joining, 0.0), c, device, size, other)

        return of

    return Form(constants, seconds, settled, partial(_prepared, tiles=tiles))


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

GEMM = _form(_CONSTANTS, _TILES)
GEMM_POWERS_OF_TWO = _form((*_CONSTANTS, Constant("overlap", 3.0, 1.0, 10.0)), _POWERS_OF_TWO)
