"""How far a model's latency may lie from the sum of its layers: what mixes of layers, measured whole, say of it.

Mixes are layers of models of the space, run one after the other (searchspace/block.py). Over the sum of their layers,
each measured alone, they take a factor, the same for every model, and they scatter around it: layers do not add up
exactly, and no visit to the machine is like the next. One more model, visited once, scatters likewise, so that with n
mixes its 90% interval is that of one more draw from a normal distribution whose spread n draws have told (Student's t
with n - 1 degrees of freedom times sqrt(1 + 1/n); Hahn and Meeker, Statistical Intervals, section 4.7), in logarithms.
The fastest and slowest of three visits would hold the next one every second time only. What another day changes on the
machine is in none of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

__all__ = ["Composition", "compose"]

_LEAST_MIXES = 3
# Half-width where too few mixes say how layers add up: the error that whole models are held to.
_ASSUMED = math.log(1.1)
_QUANTILE = 0.95  # of both ends: 90% lie between

Visits = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Composition:
    """factor: of layers among others over layers among their like. half_width: of the 90% interval, in logarithms.

    mixes: how many say so; with fewer than three of them 10% are assumed, or more where visits scatter more.
    """

    factor: float
    half_width: float
    mixes: int

    @property
    def known(self) -> bool:
        """Whether the interval says how well layers add up."""
        return self.mixes >= _LEAST_MIXES


def compose(mixes: Sequence[Visits], layers: Sequence[Visits]) -> Composition:
    """From the fastest, the middle and the slowest visit of each mix and of each layer.

    mixes: over the sum of their layers' middle ones. layers: milliseconds; those visited once say nothing.
    """
    factor = float(np.median([middle for _, middle, _ in mixes])) if mixes else 1.0
    visited = np.log([visits for visits in layers if visits[0] < visits[2]] or [(1.0, 1.0, 1.0)])
    between_visits = float(visited.var(axis=1, ddof=1).mean())
    known = len(mixes)
    if known < _LEAST_MIXES:
        # Three visits stand behind each layer, and as many layers behind their spread that it is as good as known.
        half_width = float(stdtrit(math.inf, _QUANTILE)) * math.sqrt(between_visits * (1 + 1 / 3))
        return Composition(factor=factor, half_width=max(_ASSUMED, half_width), mixes=known)
    scatter = float((np.log(np.array(mixes) / factor) ** 2).mean(axis=1).sum()) / (known - 1)
    quantile = float(stdtrit(known - 1, _QUANTILE)) * math.sqrt(1 + 1 / known)
    return Composition(
        factor=factor, half_width=quantile * math.sqrt(max(scatter, between_visits)), mixes=known
    )
