"""Regimes of a workload: how many tokens or sequences an operator works on at once, and over how long a context."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hwsearch.operators import KINDS

__all__ = ["regimes"]

_EDGES = {  # dimension -> what it is called, and the upper ends of all regimes but the last
    "m": ("tokens", (64, 1024)),
    "num_tokens": ("tokens", (64, 1024)),
    "rows": ("tokens", (64, 1024)),
    "batch": ("batch", (8, 64)),
    "kv_len": ("context", (2048, 16384)),
    "seq_len": ("context", (1024, 8192)),
}


def regimes(kind: str, dims: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Name and mask (n,) of every regime that some of the operators (n, d) are in, dimension by dimension."""
    for place, dimension in enumerate(KINDS[kind].dims):
        if dimension not in _EDGES:
            continue
        called, edges = _EDGES[dimension]
        regime = np.searchsorted(edges, dims[:, place])
        names = (
            f"{called} up to {edges[0]}",
            *(f"{called} {low + 1} to {high}" for low, high in pairwise(edges)),
            f"{called} over {edges[-1]}",
        )
        for i, name in enumerate(names):
            mask = regime == i
            if mask.any():
                yield name, mask
