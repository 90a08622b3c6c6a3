"""The region of shapes a family was measured in, and how far outside of it an operator lies.

The region is a box over the logarithms of the dimensions and of the operator's total FLOPs and bytes: an
operator may keep within every dimension and still ask for more work than any measured one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.operators import KINDS, Columns

__all__ = ["Region", "axis_names", "fit_region", "octaves_of", "shape_axes"]

_TOTALS = ("FLOPs", "bytes")
_RUN_TIME = frozenset({"batch", "seq_len", "past_len", "kv_len", "window", "m", "num_tokens", "rows"})
_SLACK = 1e-6  # octaves: rounding of the logarithms


def axis_names(kind: str) -> tuple[str, ...]:
    """Axes of the region of a kind: its dimensions, then total FLOPs and bytes."""
    return (*KINDS[kind].dims, *_TOTALS)


def shape_axes(kind: str) -> list[int]:
    """Places of the dimensions that a model's weights decide, not the workload."""
    return [i for i, name in enumerate(KINDS[kind].dims) if name not in _RUN_TIME]


def octaves_of(kind: str, c: Columns, *, size: int) -> NDArray[np.float64]:
    """Octaves along every axis of the region, (n, axes)."""
    axes = []
    for name in KINDS[kind].dims:
        value = c[name]
        if name == "window":  # 0 means all there is
            total = c["kv_len"] if "kv_len" in c else c["seq_len"] + c["past_len"]
            value = np.where(value > 0, np.minimum(value, total), total)
        elif name == "past_len":  # in units of the new tokens, so that 0 is the edge of the scale
            value = 1 + value / c["seq_len"]
        axes.append(np.log2(value))
    axes += [np.log2(KINDS[kind].flops(c)), np.log2(KINDS[kind].bytes(c, size))]
    return np.stack(axes).T


@dataclass(frozen=True)
class Region:
    """Lowest and highest octave measured along every axis, (axes,) each."""

    kind: str
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def excess(self, c: Columns, *, size: int) -> NDArray[np.float64]:
        """Octaves by which operators leave the region along every axis, (n, axes); 0 inside."""
        axes = octaves_of(self.kind, c, size=size)
        beyond = np.maximum(self.low - axes, axes - self.high)
        return np.where(beyond > _SLACK, beyond, 0.0)

    @staticmethod
    def distance(excess: NDArray[np.float64]) -> NDArray[np.float64]:
        """Octaves (n,) outside: the sum over the dimensions of an excess (n, axes), or a total's if larger."""
        totals = len(_TOTALS)
        far: NDArray[np.float64] = np.maximum(
            excess[:, :-totals].sum(axis=1), excess[:, -totals:].max(axis=1)
        )
        return far

    def blind(self, excess: NDArray[np.float64]) -> NDArray[np.float64]:
        """Octaves (n,) outside along dimensions that never varied: nothing is known of their effect."""
        totals = len(_TOTALS)
        fixed = (self.high - self.low)[:-totals] < _SLACK
        octaves: NDArray[np.float64] = excess[:, :-totals][:, fixed].sum(axis=1)
        return octaves

    def describe(self, c: Columns, excess: NDArray[np.float64], *, size: int) -> str:
        """Which axes the outside rows leave by and how far, for example "n up to 151936 (measured to 65536)"."""
        axes = octaves_of(self.kind, c, size=size)
        said = []
        for i, name in enumerate(axis_names(self.kind)):
            outside = excess[:, i] > 0
            if not outside.any():
                continue
            if name == "window":
                name = "window (or whole length)"
            elif name == "past_len":
                name = "1 + past_len / seq_len"
            above = outside & (axes[:, i] > self.high[i])
            below = outside & ~above
            if above.any():
                said.append(
                    f"{name} up to {_number(axes[above, i].max())} (measured to {_number(self.high[i])})"
                )
            if below.any():
                said.append(
                    f"{name} down to {_number(axes[below, i].min())} (measured from {_number(self.low[i])})"
                )
        return ", ".join(said)


def _number(octaves: float) -> str:
    value = 2.0**octaves
    return f"{value:.0f}" if value < 1e7 and abs(value - round(value)) < 1e-6 * value else f"{value:.3g}"


def fit_region(kind: str, c: Columns, *, size: int) -> Region:
    """The box around measured operators."""
    axes = octaves_of(kind, c, size=size)
    return Region(kind, axes.min(axis=0), axes.max(axis=0))
