"""What a search space asks of a device: the operators to measure, and how much of the time each will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.roofline import roofline_ms
from hwsearch.operators import KINDS, Operator, columns, dtype_bytes
from hwsearch.records import DeviceSpec
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.workload import Workload

__all__ = ["Demand", "demand_of", "operators_of", "spread_demand"]


@dataclass(frozen=True)
class Demand:
    """n distinct operators of any kinds, and the share (n,) of the time asked of a device that each takes."""

    operators: tuple[Operator, ...]
    share: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.operators)

    def without(self, operators: Collection[Operator]) -> Demand:
        """The rest of the demand; its shares stay as they are."""
        rows = [row for row, each in enumerate(self.operators) if each not in operators]
        return Demand(tuple(self.operators[row] for row in rows), self.share[rows])

    def too_large(self, device: DeviceSpec) -> set[Operator]:
        """The operators whose operands alone do not fit into the device's memory."""
        size = dtype_bytes(device.dtype)
        return {each for each in self.operators if _bytes(each, size) > device.memory_bytes}


def operators_of(space: SearchSpace, workloads: Iterable[Workload]) -> list[Operator]:
    """The distinct operators that the architectures of a space ask for at some workloads."""
    found: dict[Operator, None] = {}
    for workload in workloads:
        found |= dict.fromkeys(_calls(space, workload))
    return list(found)


def demand_of(spaces: Sequence[SearchSpace], workloads: Sequence[Workload], *, device: DeviceSpec) -> Demand:
    """What the architectures of some spaces ask of `device` at some workloads, all workloads counting the same.

    Calls are counted with every layer taking each of its choices equally often, whatever the rules between layers,
    and each call is taken to last as long as the device's roofline says: a first guess, the same whenever it is
    asked for, of where an error would hurt.
    """
    size = dtype_bytes(device.dtype)
    share: dict[Operator, float] = {}
    for space in spaces:
        for workload in workloads:
            calls = _calls(space, workload)
            times = {each: count * _roofline(each, device, size) for each, count in calls.items()}
            whole = sum(times.values()) * len(spaces) * len(workloads)
            for each, time in times.items():
                share[each] = share.get(each, 0.0) + time / whole
    ordered = sorted(share)
    return Demand(tuple(ordered), np.array([share[each] for each in ordered]))


def spread_demand(operators: Iterable[Operator]) -> Demand:
    """A demand of which every kind takes the same share, and within a kind every operator."""
    ordered = sorted(set(operators))
    kinds = Counter(each.kind for each in ordered)
    share = [1 / (len(kinds) * kinds[each.kind]) for each in ordered]
    return Demand(tuple(ordered), np.array(share))


def _calls(space: SearchSpace, workload: Workload) -> dict[Operator, float]:
    """How often an average architecture calls each operator."""
    uses = (space.allowed_mask / space.allowed_mask.sum(axis=1, keepdims=True)).sum(axis=0)
    base = Architecture.of_base(space.base)
    calls: dict[Operator, float] = {}
    for choice, often in zip(space.choices, uses, strict=True):
        for each in choice.lower(space.base.hidden_size, workload):
            calls[each] = calls.get(each, 0.0) + float(often)
    for each in (*base.lower_embedding(workload), *base.lower_head(workload)):
        calls[each] = calls.get(each, 0.0) + 1.0
    return calls


def _roofline(each: Operator, device: DeviceSpec, size: int) -> float:
    return float(roofline_ms(each.kind, columns(each.kind, [each.dims]), device=device, size=size)[0])


def _bytes(each: Operator, size: int) -> float:
    return float(KINDS[each.kind].bytes(columns(each.kind, [each.dims]), size)[0])
