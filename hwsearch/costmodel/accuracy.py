"""How far predictions are from measurements: the error figures that every evaluation and every model reports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["OperatorErrors", "operator_errors"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class OperatorErrors:
    """Errors of one kind of operator on `rows` operators, in percent.

    mape: mean absolute error over the measured latency. coverage_90: how often the measurement lay in the 90%
    interval. summed_time: signed error of the predicted total over all rows. bias: mean signed error; None in models
    saved before it was kept. skipped_seen: rows that were not judged because the model had been fitted on them.
    """

    rows: int
    mape: float
    median_ape: float
    p95_ape: float
    coverage_90: float
    summed_time: float
    skipped_seen: int = 0
    bias: float | None = None


def operator_errors(
    measured_ms: FloatArray,
    *,
    median_ms: FloatArray,
    low_ms: FloatArray,
    high_ms: FloatArray,
    skipped_seen: int,
) -> OperatorErrors:
    """Errors of predictions with 90% intervals against measurements, (n,) each, n at least 1."""
    signed = median_ms / measured_ms - 1
    error = np.abs(signed)
    inside = (low_ms <= measured_ms) & (measured_ms <= high_ms)
    return OperatorErrors(
        rows=len(measured_ms),
        mape=100 * float(error.mean()),
        median_ape=100 * float(np.median(error)),
        p95_ape=100 * float(np.quantile(error, 0.95)),
        coverage_90=100 * float(inside.mean()),
        summed_time=100 * float(median_ms.sum() / measured_ms.sum() - 1),
        skipped_seen=skipped_seen,
        bias=100 * float(signed.mean()),
    )
