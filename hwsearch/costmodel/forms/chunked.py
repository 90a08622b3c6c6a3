"""Chunked recurrences of which no table is known: launch, then the slower of arithmetic, chain and traffic."""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.common import (
    BANDWIDTH,
    POWER,
    Constant,
    Constants,
    FloatArray,
    Form,
    pnorm,
)
from hwsearch.operators import CHUNK, KINDS, Columns
from hwsearch.records import DeviceSpec

__all__ = ["chunked"]

_CONSTANTS = (
    Constant("launch_us", 2.5, 0.5, 20.0),
    BANDWIDTH,
    POWER,
    Constant("compute", 0.3, 0.01, 1.0),
    Constant("chunk_us", 1.0, 0.05, 20.0),
)


def chunked(kind: str) -> Form:
    """The form of a kind that goes through `seq_len` tokens in chunks, one after another."""

    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        compute = KINDS[kind].flops(c) / (k["compute"] * device.peak_flops)
        memory = KINDS[kind].bytes(c, size) / (k["bandwidth"] * device.bandwidth)
        chain = np.ceil(c["seq_len"] / CHUNK) * k["chunk_us"] * 1e-6
        return k["launch_us"] * 1e-6 + pnorm(pnorm(compute, chain, k["power"]), memory, k["power"])

    return Form(_CONSTANTS, seconds)
