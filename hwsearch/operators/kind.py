"""What is known of a kind of operator from its shape alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["STATE_BYTES", "Columns", "FloatArray", "OperatorKind"]

FloatArray = NDArray[np.float64]
Columns = Mapping[str, FloatArray]

STATE_BYTES = 4  # recurrent states are fp32


@dataclass(frozen=True)
class OperatorKind:
    """What is known of a kind of operator from its shape alone.

    flops: columns (n,) each -> FLOPs (n,).
    bytes: columns (n,) each and the bytes per element of activations and weights -> bytes (n,).
    """

    name: str
    dims: tuple[str, ...]
    flops: Callable[[Columns], FloatArray]
    bytes: Callable[[Columns, int], FloatArray]
