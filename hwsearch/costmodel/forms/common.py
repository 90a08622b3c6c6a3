"""What analytic forms of latency are made of: bounded constants, a smooth maximum, traffic through the L2.

latency = launch + p-norm(compute, memory) + what the family cannot hide. The constants are bounded (no fitted
efficiency exceeds the datasheet) and pulled towards a prior, so a form extrapolates where a learned residual
cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.operators import Columns
from hwsearch.records import DeviceSpec

__all__ = [
    "BANDWIDTH",
    "COMPUTE",
    "FEED",
    "HOT",
    "L2",
    "POWER",
    "TAIL",
    "Constant",
    "Constants",
    "FloatArray",
    "Form",
    "heated",
    "memory_seconds",
    "pnorm",
    "spilled",
    "waves_of",
]

FloatArray = NDArray[np.float64]
Constants = Mapping[str, float]


@dataclass(frozen=True)
class Constant:
    """A positive constant: where the fit starts (also the centre of its prior) and the bounds it stays in."""

    name: str
    start: float
    low: float
    high: float


@dataclass(frozen=True)
class Form:
    """The analytic form of a family: columns (n,), device, bytes per element, constants -> seconds (n,).

    settled: the same, up to the constants, with every kernel held that those given choose; None where a form chooses
    no kernels. prepared: the same, up to the constants, with all worked out that no constant changes, which a fit asks
    for again and again; None where that is little.
    """

    constants: tuple[Constant, ...]
    seconds: Callable[[Columns, DeviceSpec, int, Constants], FloatArray]
    settled: Callable[[Columns, DeviceSpec, int, Constants], Callable[[Constants], FloatArray]] | None = None
    prepared: Callable[[Columns, DeviceSpec, int], Callable[[Constants], FloatArray]] | None = None


def pnorm(a: FloatArray, b: FloatArray, p: float) -> FloatArray:
    """The smooth maximum of two positive times; the sum at p = 1."""
    larger = np.maximum(a, b)
    ratio = np.minimum(a, b) / larger
    return larger * np.exp(np.log1p(ratio**p) / p)


def spilled(working_set: FloatArray, device: DeviceSpec, k: Constants) -> FloatArray:
    """Share of the traffic that the L2 cannot keep."""
    share: FloatArray = 1 / (1 + (working_set / (k["l2_fill"] * device.l2_bytes)) ** -k["l2_edge"])
    return share


def memory_seconds(
    working_set: FloatArray, moved: FloatArray, device: DeviceSpec, k: Constants
) -> FloatArray:
    """Seconds to move bytes: slower from device memory, up to `l2_gain` times faster where L2 still holds them."""
    outside = spilled(working_set, device, k)
    return moved * (outside + (1 - outside) / k["l2_gain"]) / (k["bandwidth"] * device.bandwidth)


def waves_of(blocks: FloatArray, device: DeviceSpec, k: Constants) -> FloatArray:
    """Waves of equal blocks: a last partial wave costs at least `tail` of a full one, a first one a full one."""
    waves = blocks / device.num_sms
    return np.where(waves > 1, waves + (np.ceil(waves) - waves) * k["tail"], 1.0)


def heated(seconds: FloatArray, k: Constants, *, busy: FloatArray | float = 1.0) -> FloatArray:
    """Compute that lasts long runs at a lower clock: up to `throttle` slower well beyond `throttle_ms`, in
    proportion to the `busy` share of the multiprocessors."""
    return seconds * (1 + busy * k["throttle"] / (1 + (seconds / (k["throttle_ms"] * 1e-3)) ** -2.0))


BANDWIDTH = Constant("bandwidth", 0.88, 0.5, 1.0)
L2 = (
    Constant("l2_fill", 0.8, 0.2, 2.0),
    Constant("l2_gain", 2.0, 1.0, 6.0),
    Constant("l2_edge", 4.0, 1.0, 20.0),
)
POWER = Constant("power", 3.0, 1.2, 10.0)
TAIL = Constant("tail", 0.6, 0.02, 1.0)
COMPUTE = Constant("compute", 0.75, 0.3, 1.0)
FEED = Constant("feed", 4.0, 0.5, 8.0)
HOT = (Constant("throttle", 0.07, 0.005, 0.4), Constant("throttle_ms", 3.0, 0.1, 30.0))
