"""Roofline latency: what the ceilings of a device allow, for operators that no measurement covers.

A kernel is taken to launch in 2.5 microseconds and to reach 90% of the datasheet bandwidth and 80% of the
datasheet FLOP rate: on an H100 SXM a device copy reaches about 3.0 of 3.35 TB/s and an 8192-cube bf16 product
about 798 of 989 TFLOP/s. Method: Williams, Waterman and Patterson 2009.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwsearch.operators import Columns, kind_named
from hwsearch.records import DeviceSpec

__all__ = ["BANDWIDTH_SHARE", "ROOFLINE_FACTOR", "roofline_bound", "roofline_ms"]

LAUNCH_MS = 0.0025
BANDWIDTH_SHARE = 0.9
COMPUTE_SHARE = 0.8
ROOFLINE_FACTOR = 2.0
"""Half-width of the interval around a roofline figure, as a factor: no data stand behind it."""


def _times(
    kind: str, c: Columns, device: DeviceSpec, size: int, unmoved: NDArray[np.float64] | float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    entry = kind_named(kind)
    compute = 1e3 * entry.flops(c) / (COMPUTE_SHARE * device.peak_flops)
    memory = 1e3 * (entry.bytes(c, size) - unmoved) / (BANDWIDTH_SHARE * device.bandwidth)
    return compute, memory


def roofline_ms(
    kind: str,
    c: Columns,
    *,
    device: DeviceSpec,
    size: int,
    unmoved: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    """Milliseconds (n,): launch, then the slower of arithmetic and traffic.

    size: bytes per element. unmoved: bytes (n,) that need not be moved, because weights are stored in fewer.
    """
    compute, memory = _times(kind, c, device, size, unmoved)
    return LAUNCH_MS + np.maximum(compute, memory)


def roofline_bound(kind: str, c: Columns, *, device: DeviceSpec, size: int) -> NDArray[np.str_]:
    """What limits each operator (n,): "compute", "memory", or "launch" where both are shorter than a launch."""
    compute, memory = _times(kind, c, device, size)
    bound = np.where(compute > memory, "compute", "memory")
    return np.where(np.maximum(compute, memory) < LAUNCH_MS, "launch", bound)
