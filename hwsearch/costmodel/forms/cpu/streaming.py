"""Elementwise operators and short convolutions on a CPU: one pass over memory after another.

PyTorch runs an addition, a product or an activation as a pass of its own, over temporaries that the next one reads:
what is moved is several times the operator's least traffic, and so is the working set.
"""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.common import Constant, Constants, FloatArray, Form
from hwsearch.costmodel.forms.cpu.common import FAR, PRIVATE, call_seconds, moved_seconds
from hwsearch.operators import Columns
from hwsearch.records import DeviceSpec

__all__ = ["ELEMENTWISE", "SHORT_CONV_DECODE", "SHORT_CONV_PREFILL"]


def _elementwise(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    elements = c["rows"] * c["width"]
    additions, activations = c["reads"] - 1, np.maximum(c["writes"] - 1, 1)
    # An addition reads two and writes one; an activation or a multiple reads one and writes one.
    passes = 3 * additions + 2 * activations
    held = c["reads"] + additions + activations
    calls = call_seconds(k) + (additions + activations) * k["op_us"] * 1e-6
    moved = moved_seconds(size * elements * passes, size * elements * held, device, k)
    return calls + elements * k["silu_ns"] * 1e-9 + moved


ELEMENTWISE = Form(
    (
        Constant("call_us", 1.0, 0.1, 100.0),
        Constant("op_us", 1.2, 0.1, 100.0),
        PRIVATE,
        Constant("near", 5.0, 0.3, 100.0),
        Constant("far", 1.5, 0.1, 20.0),
        Constant("silu_ns", 0.3, 0.01, 10.0),
    ),
    _elementwise,
)


def _conv_prefill(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    tokens = size * c["batch"] * c["seq_len"] * c["channels"]
    return call_seconds(k) + moved_seconds(tokens * (c["width"] + 1), 3 * tokens, device, k)


SHORT_CONV_PREFILL = Form(
    (Constant("call_us", 40.0, 1.0, 1000.0), PRIVATE, Constant("near", 3.0, 0.1, 50.0), FAR), _conv_prefill
)


def _conv_decode(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    # States of a batch are small: where they lie makes no difference that measurements show.
    state = size * c["batch"] * c["channels"] * c["width"]
    return call_seconds(k) + c["batch"] * k["sequence_us"] * 1e-6 + state / (k["state"] * device.bandwidth)


SHORT_CONV_DECODE = Form(
    (
        Constant("call_us", 6.0, 0.5, 200.0),
        Constant("sequence_us", 0.1, 0.005, 10.0),
        Constant("state", 0.4, 0.02, 20.0),
    ),
    _conv_decode,
)
