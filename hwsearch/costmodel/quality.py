"""Checks of measured latencies before anything is fitted to them: unit, speed, repeats.

A row faster than 1.3 times the roofline is not a measurement of the operator it names. The roofline here is a bound,
not an estimate: datasheet rates without any loss; traffic that fits in the L2 cache may come from there, at no more
than ten times the rate of the memory; a mixture of experts is sure to read the experts of one token only. Nothing
finishes in less than half a microsecond. A row 200 times slower than an ordinary kernel (roofline.py) is as wrong:
the slowest sound one in the tables of H100, H200, A100 and L40S takes 90 times as long. Ceilings that were measured
are no bound, so that only datasheet ceilings judge speed.

A whole table that lies a factor of about a thousand off is in another unit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.roofline import roofline_ms
from hwsearch.costmodel.tables import merge_replicates
from hwsearch.errors import DataError
from hwsearch.operators import Columns, columns, kind_named
from hwsearch.records import DeviceSpec

__all__ = [
    "MOST_BAD",
    "check_unit",
    "disagreeing",
    "fastest_ms",
    "refuse_too_many",
    "repeated",
    "suspicious",
]

MOST_BAD = 1 / 3
"""The share of bad rows from which on a whole table is refused."""
_FASTER = 1.3
_SLOWER = 200.0
_LEAST_MS = 0.0005
_CACHE_SPEED = 10.0  # L40S: up to 5 times its memory (delta rule at batch 64 and below)
_APART = 1.5
_ENOUGH = 5  # rows that make a table's unit a question


def _least_bytes(kind: str, c: Columns, size: int) -> NDArray[np.float64]:
    if kind == "moe":
        c = {**c, "num_experts": np.minimum(c["num_experts"], c["topk"])}
    return kind_named(kind).bytes(c, size)


def fastest_ms(kind: str, c: Columns, *, device: DeviceSpec, size: int) -> NDArray[np.float64]:
    """Milliseconds (n,) under which no kernel can stay on a device with these ceilings."""
    compute = kind_named(kind).flops(c) / device.peak_flops
    moved = _least_bytes(kind, c, size)
    memory = np.maximum(moved - device.l2_bytes, 0) / device.bandwidth
    cache = moved / (_CACHE_SPEED * device.bandwidth)
    bound: NDArray[np.float64] = 1e3 * np.maximum.reduce([compute, memory, cache])
    return np.maximum(bound, _LEAST_MS * _FASTER)


def suspicious(
    kind: str, dims: NDArray[np.int64], latency_ms: NDArray[np.float64], *, device: DeviceSpec, size: int
) -> dict[str, NDArray[np.bool_]]:
    """Reason -> mask (n,) of rows that cannot be what they claim."""
    if not device.source.startswith("datasheet"):
        return {}
    c = columns(kind, dims)
    return {
        f"faster than {_FASTER} x the roofline of {device.name}": latency_ms
        < fastest_ms(kind, c, device=device, size=size) / _FASTER,
        f"more than {_SLOWER:g} x slower than the roofline of {device.name}": latency_ms
        > _SLOWER * roofline_ms(kind, c, device=device, size=size),
    }


def check_unit(
    kind: str,
    dims: NDArray[np.int64],
    latency_ms: NDArray[np.float64],
    *,
    device: DeviceSpec,
    size: int,
    place: str,
    unit: str,
) -> None:
    """DataError where the latencies, read as `unit`, lie about a power of a thousand off the roofline."""
    if len(latency_ms) < _ENOUGH:
        return
    ratio = float(np.median(latency_ms / roofline_ms(kind, columns(kind, dims), device=device, size=size)))
    # Tables in the right unit lie between a third and five times the roofline of roofline.py.
    powers = round(np.log10(ratio / 2) / 3)
    if not powers:
        return
    steps = ["ns", "us", "ms", "s"]
    place_of = steps.index(unit) - powers
    looks = steps[place_of] if 0 <= place_of < len(steps) else None
    fix = f"they look like {looks}: add --unit {looks}" if looks else "check the unit and the device"
    raise DataError(
        f"{place}: read as {unit}, the latencies of {kind} are at the median {ratio:.2g} times the roofline of "
        f"{device.name}; {fix}"
    )


def _groups(
    dims: NDArray[np.int64], latency_ms: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The operator (n,) every row belongs to, and the largest over the smallest latency (operators,)."""
    unique, _, group = merge_replicates(dims, latency_ms)
    largest, smallest = np.full(len(unique), -np.inf), np.full(len(unique), np.inf)
    np.maximum.at(largest, group, latency_ms)
    np.minimum.at(smallest, group, latency_ms)
    return group, largest / smallest


def disagreeing(dims: NDArray[np.int64], latency_ms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mask (n,) of the rows of operators that were measured several times with results more than 50% apart."""
    group, apart = _groups(dims, latency_ms)
    found: NDArray[np.bool_] = (apart > _APART)[group]
    return found


def repeated(dims: NDArray[np.int64], latency_ms: NDArray[np.float64]) -> dict[str, int]:
    """How rows repeat an operator -> rows that merging takes away."""
    group, _ = _groups(dims, latency_ms)
    distinct = len(np.unique(np.column_stack([group, latency_ms]), axis=0))
    counts = {
        "exact duplicates": len(group) - distinct,
        "repeats that agree within 50%, merged by their median": distinct - int(group.max(initial=-1)) - 1,
    }
    return {how: count for how, count in counts.items() if count}


def refuse_too_many(bad: Mapping[str, int], rows: int, *, place: str) -> None:
    """DataError where more than a third of `rows` are bad; `bad` maps reasons to rows."""
    count = sum(bad.values())
    if count > MOST_BAD * rows:
        listed = "; ".join(f"{number} rows, {reason}" for reason, number in bad.items())
        raise DataError(
            f"{place}: {count} of {rows} rows are bad, more than a third: nothing is fitted to it ({listed})"
        )
