"""Matrix products on a CPU: few rows pass over the weights one by one, more rows pack them first.

With fewer than 16 rows PyTorch's single-precision product (MKL) behaves as if it read the weights for every row anew:
measured, 14 rows take longer than 18 once the weights outgrow the private caches of a core. From 16 rows on operands
are packed into blocks of the caches, which costs a pass over each, and the rest is arithmetic (Goto and van de Geijn,
ACM TOMS 34(3), 2008). A single row is a matrix by a vector, another kernel again.
"""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.common import Constant, Constants, FloatArray, Form
from hwsearch.costmodel.forms.cpu.common import PRIVATE, call_seconds, outside
from hwsearch.operators import Columns
from hwsearch.records import DeviceSpec

__all__ = ["GEMM"]

_PACKED_FROM = 16  # rows
_VECTOR = 16  # columns


def _seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    m, n, inner = c["m"], c["n"], c["k"]
    weights = size * n * inner
    share = outside(weights, k)
    within = np.where(m > 1, m / k["near"], 1 / k["single"])
    passes = weights * ((1 - share) * within + share * m / k["far"]) / device.bandwidth
    row_by_row = passes + m * n * k["dot_ns"] * 1e-9
    arithmetic = 2 * m * _whole(n) * inner / (k["compute"] * device.peak_flops)
    operands = weights / k["pack"] + size * m * inner / k["input"] + size * m * n / k["output"]
    packed = arithmetic + operands / device.bandwidth
    fetched = share * weights / (k["once"] * device.bandwidth)
    return call_seconds(k) + fetched + np.where(m < _PACKED_FROM, row_by_row, packed)


def _whole(n: FloatArray) -> FloatArray:
    """Columns (n,) in whole vectors."""
    whole: FloatArray = np.ceil(n / _VECTOR) * _VECTOR
    return whole


GEMM = Form(
    (
        Constant("call_us", 2.0, 0.2, 200.0),
        PRIVATE,
        Constant("near", 18.0, 0.5, 500.0),
        Constant("far", 5.5, 0.2, 100.0),
        Constant("single", 5.0, 0.2, 100.0),
        Constant("once", 2.5, 0.1, 200.0),
        Constant("dot_ns", 0.8, 0.02, 50.0),
        Constant("compute", 0.95, 0.02, 1.3),
        Constant("pack", 1.7, 0.1, 50.0),
        Constant("input", 2.0, 0.1, 100.0),
        Constant("output", 10.0, 0.1, 200.0),
    ),
    _seconds,
)
