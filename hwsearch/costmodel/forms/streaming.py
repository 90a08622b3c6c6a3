"""Kernels that stream: what they move through memory, or how fast their programs can be issued.

Where a multiprocessor holds only so many programs at a time, the rest wait: just beyond a full wave the time steps up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwsearch.costmodel.forms.common import (
    BANDWIDTH,
    L2,
    POWER,
    TAIL,
    Constant,
    Constants,
    FloatArray,
    Form,
    memory_seconds,
    pnorm,
    waves_of,
)
from hwsearch.operators import KINDS, Columns
from hwsearch.records import DeviceSpec

__all__ = ["streaming"]

_CONSTANTS = (
    Constant("launch_us", 2.5, 0.5, 20.0),
    BANDWIDTH,
    *L2,
    POWER,
    Constant("program_ns", 100.0, 1.0, 5000.0),
)


def streaming(kind: str, programs: Callable[[Columns], FloatArray], *, resident: int | None = None) -> Form:
    """The form of a kind whose kernel runs `programs` (n,) of its columns, at most `resident` on a multiprocessor."""

    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        moved = KINDS[kind].bytes(c, size)
        run = programs(c)
        memory = memory_seconds(moved, moved, device, k)
        issue = run * k["program_ns"] * 1e-9 / device.num_sms
        busy = pnorm(memory, issue, k["power"])
        if resident is not None:
            busy *= waves_of(run / resident, device, k) / np.maximum(run / resident / device.num_sms, 1.0)
        return k["launch_us"] * 1e-6 + busy

    return Form(_CONSTANTS if resident is None else (*_CONSTANTS, TAIL), seconds)
