"""What bounds the time of a group of operators, and how far it is from the roofline.

An operator is bound by compute, by memory, or by latency where both are shorter than a kernel launch; what devices of
a tensor-parallel group tell one another is bound by their link, and its own analytic figure is its roofline. The
roofline time of all else is what the reachable ceilings of the device allow (see roofline.py), so that a share of 1
means: no faster kernel is to be expected, only less work. Shares above 1 occur where the L2 cache serves part of the
traffic, which the roofline counts as coming from memory, and where a launch takes less than the roofline assumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.roofline import roofline_bound, roofline_ms
from hwsearch.operators import Operator, columns
from hwsearch.records import DeviceSpec

__all__ = ["BOUNDS", "Share", "ceilings", "joined"]

BOUNDS = ("compute", "memory", "latency", "link", "host")


@dataclass(kw_only=True)
class Share:
    """Kernels of one kind: their number, predicted and roofline milliseconds, and the time by what bounds it."""

    kernels: int = 0
    latency_ms: float = 0.0
    roofline_ms: float = 0.0
    ms_by_bound: dict[str, float] = field(default_factory=dict)

    @property
    def bound(self) -> str:
        """What bounds most of the time."""
        return max(self.ms_by_bound, key=lambda bound: self.ms_by_bound[bound])

    @property
    def roofline_share(self) -> float:
        """Roofline time over predicted time."""
        return self.roofline_ms / self.latency_ms

    def add(self, *, latency_ms: float, roofline_ms: float, bound: str, kernels: int = 1) -> None:
        self.kernels += kernels
        self.latency_ms += latency_ms
        self.roofline_ms += roofline_ms
        self.ms_by_bound[bound] = self.ms_by_bound.get(bound, 0.0) + latency_ms


def joined(shares: Iterable[Share]) -> Share:
    """Several kinds as one."""
    whole = Share()
    for share in shares:
        whole.kernels += share.kernels
        whole.latency_ms += share.latency_ms
        whole.roofline_ms += share.roofline_ms
        for bound, ms in share.ms_by_bound.items():
            whole.ms_by_bound[bound] = whole.ms_by_bound.get(bound, 0.0) + ms
    return whole


def ceilings(
    operators: Sequence[Operator], *, device: DeviceSpec, size: int
) -> tuple[NDArray[np.float64], list[str]]:
    """Roofline milliseconds (n,) of n operators and what bounds each; `size` is the bytes per element."""
    times = np.empty(len(operators))
    bounds = [""] * len(operators)
    rows_of: dict[str, list[int]] = {}
    for row, op in enumerate(operators):
        rows_of.setdefault(op.kind, []).append(row)
    for kind, rows in rows_of.items():
        c = columns(kind, [operators[row].dims for row in rows])
        times[rows] = roofline_ms(kind, c, device=device, size=size)
        for row, bound in zip(rows, roofline_bound(kind, c, device=device, size=size), strict=True):
            bounds[row] = "latency" if bound == "launch" else str(bound)
    return times, bounds
