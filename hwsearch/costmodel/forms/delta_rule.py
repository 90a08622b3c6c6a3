"""The gated delta rule over a sequence: a chain of chunks per head, beside the traffic of tokens and states."""

from __future__ import annotations

import numpy as np

from hwsearch.costmodel.forms.common import (
    BANDWIDTH,
    COMPUTE,
    HOT,
    TAIL,
    Constant,
    Constants,
    FloatArray,
    Form,
    heated,
    pnorm,
    waves_of,
)
from hwsearch.operators import CHUNK, KINDS, STATE_BYTES, Columns
from hwsearch.records import DeviceSpec

__all__ = ["DELTA_RULE_PREFILL", "delta_lanes"]


def delta_lanes(c: Columns) -> FloatArray:
    """Programs of the delta rule: one per sequence, value head and slice of 128 value channels."""
    return c["batch"] * c["num_v_heads"] * np.ceil(c["head_v_dim"] / 128)


def _delta_prefill(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    dk, dv = c["head_k_dim"], np.minimum(c["head_v_dim"], 128)
    programs = delta_lanes(c)
    chunks = np.ceil(c["seq_len"] / CHUNK)
    flops = 4 * CHUNK**2 * dk + 4 / 3 * CHUNK**3 + 2 * CHUNK**2 * (dk + 2 * dv) + 6 * CHUNK * dk * dv
    rate = k["compute"] * device.peak_flops / device.num_sms
    chunk = k["chunk_us"] * 1e-6 + flops / rate
    chain = waves_of(programs, device, k) * (chunks * chunk + k["program_us"] * 1e-6)
    chain = heated(chain, k, busy=np.minimum(programs / device.num_sms, 1.0))
    moved = KINDS["delta_rule_prefill"].bytes(c, size)
    # Tokens stream while the chunks run; the final state is written when a program has nothing else to do.
    state = STATE_BYTES * c["batch"] * c["num_v_heads"] * c["head_k_dim"] * c["head_v_dim"]
    streamed = (moved - state) / (k["bandwidth"] * device.bandwidth)
    written = state / (k["state_share"] * device.bandwidth)
    return k["launch_us"] * 1e-6 + pnorm(chain, streamed, k["power"]) + written


DELTA_RULE_PREFILL = Form(
    (
        Constant("launch_us", 4.0, 0.5, 40.0),
        BANDWIDTH,
        Constant("power", 4.0, 1.2, 12.0),
        COMPUTE,
        *HOT,
        Constant("chunk_us", 1.0, 0.05, 20.0),
        Constant("program_us", 5.0, 0.05, 20.0),
        Constant("state_share", 0.7, 0.1, 1.0),
        TAIL,
    ),
    _delta_prefill,
)
