"""Kernels that stream: what they move through memory, or how fast their programs can be issued."""

from __future__ import annotations

from collections.abc import Callable

from hwsearch.costmodel.forms.common import (
    BANDWIDTH,
    L2,
    POWER,
    Constant,
    Constants,
    FloatArray,
    Form,
    memory_seconds,
    pnorm,
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


def streaming(kind: str, programs: Callable[[Columns], FloatArray]) -> Form:
    """The form of a kind whose kernel runs `programs` (n,) of its columns."""

    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        moved = KINDS[kind].bytes(c, size)
        memory = memory_seconds(moved, moved, device, k)
        issue = programs(c) * k["program_ns"] * 1e-9 / device.num_sms
        return k["launch_us"] * 1e-6 + pnorm(memory, issue, k["power"])

    return Form(_CONSTANTS, seconds)
