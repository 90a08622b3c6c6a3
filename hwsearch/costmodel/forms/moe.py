"""Mixture of experts: two grouped products over the experts that get a row, and the routing around them."""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.common import (
    BANDWIDTH,
    COMPUTE,
    FEED,
    L2,
    POWER,
    TAIL,
    Constant,
    Constants,
    FloatArray,
    Form,
    memory_seconds,
    pnorm,
)
from hwsearch.operators import Columns
from hwsearch.records import DeviceSpec

__all__ = ["MOE"]


def _moe(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    rows = c["num_tokens"] * c["topk"]
    active = np.minimum(c["num_experts"], rows)
    per_expert = np.ceil(rows / active)
    rate = k["compute"] * device.peak_flops / device.num_sms
    feed = k["feed"] * device.bandwidth / device.num_sms
    compute = np.zeros(len(rows))
    for width, inner in ((2 * c["inter_size"], c["hidden_size"]), (c["hidden_size"], c["inter_size"])):
        best = np.full(len(rows), np.inf)
        for tm in (16, 32, 64, 128):
            tiles = active * np.ceil(per_expert / tm) * np.ceil(width / 128)
            waves = tiles / device.num_sms
            waves = waves + (np.ceil(waves) - waves) * k["tail"]
            tile = np.maximum(2 * max(tm, 64) * 128 * inner / rate, size * (tm + 128) * inner / feed)
            np.minimum(best, waves * (tile + k["wave_us"] * 1e-6), out=best)
        compute = compute + best
    weights = size * active * 3 * c["hidden_size"] * c["inter_size"]
    routed = size * rows * (2 * c["hidden_size"] + 3 * c["inter_size"])
    memory = memory_seconds(weights + routed, weights, device, k)
    around = k["rows"] * routed / device.bandwidth
    return k["launch_us"] * 1e-6 + pnorm(compute, memory, k["power"]) + around


MOE = Form(
    (
        Constant("launch_us", 20.0, 1.0, 80.0),
        BANDWIDTH,
        *L2,
        POWER,
        COMPUTE,
        FEED,
        TAIL,
        Constant("wave_us", 1.0, 0.05, 10.0),
        Constant("rows", 1.0, 0.2, 5.0),
    ),
    _moe,
)
