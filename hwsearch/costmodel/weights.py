"""Weight-only quantisation, analytic: how many bytes the weights take, and what that saves a matrix product.

The projections of all layers are stored in 8 bits (int8 or fp8, the same traffic) and multiplied in the activations'
type; embedding, LM head, norms, biases and convolutions keep theirs, as serving engines leave them. Scales, one for
each output channel, are not counted. A product whose weights bound its time gets faster by the ratio of its roofline
times; one that compute bounds does not, and unpacking is taken to cost nothing, so that the figure is a lower bound.
The 90% interval therefore reaches up to the time without quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.roofline import roofline_ms
from hwsearch.errors import unknown_name
from hwsearch.operators import Columns
from hwsearch.records import DeviceSpec
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.workload import Workload

__all__ = ["WEIGHT_BYTES", "check_weights", "quantised_share", "weight_bytes"]

WEIGHT_BYTES: Mapping[str, int] = {"int8": 1, "fp8": 1}
"""Formats of quantised weights, and bytes per weight."""


def check_weights(weights: str | None) -> None:
    """InputError for a format that does not exist; None stands for weights in the workload's dtype."""
    if weights is not None and weights not in WEIGHT_BYTES:
        raise unknown_name("weight format", weights, WEIGHT_BYTES)


def _projections(layer: LayerSpec, hidden_size: int) -> int:
    """Weights of a layer's matrix products."""
    step = Workload(phase="decode", batch=1, context=1)
    return sum(op.dims[1] * op.dims[2] for op in layer.lower(hidden_size, step) if op.kind == "gemm")


def weight_bytes(architecture: Architecture, *, dtype: str, size: int, weights: str | None) -> dict[str, int]:
    """Bytes of all parameters by the type they are stored in; `size` is the bytes per element of `dtype`."""
    check_weights(weights)
    if weights is None:
        return {dtype: architecture.parameters * size}
    hidden = architecture.base.hidden_size
    of_layer = {layer: _projections(layer, hidden) for layer in dict.fromkeys(architecture.layers)}
    quantised = sum(of_layer[layer] for layer in architecture.layers)
    return {
        weights: quantised * WEIGHT_BYTES[weights],
        dtype: (architecture.parameters - quantised) * size,
    }


def quantised_share(c: Columns, *, weights: str, device: DeviceSpec, size: int) -> NDArray[np.float64]:
    """Time of matrix products (n,) with quantised weights over that without, at most 1."""
    saved = (size - WEIGHT_BYTES[weights]) * c["n"] * c["k"]
    whole, less = (
        roofline_ms("gemm", c, device=device, size=size, unmoved=unmoved) for unmoved in (0.0, saved)
    )
    return less / whole
