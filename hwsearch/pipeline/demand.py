"""What a search space asks of a device: the operators to measure."""

from __future__ import annotations

from collections.abc import Iterable

from hwsearch.operators import Operator
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.workload import Workload

__all__ = ["operators_of"]


def operators_of(space: SearchSpace, workloads: Iterable[Workload]) -> list[Operator]:
    """The distinct operators that the architectures of a space ask for at some workloads."""
    found: dict[Operator, None] = {}
    base = Architecture.of_base(space.base)
    for workload in workloads:
        for choice in space.choices:
            found |= dict.fromkeys(choice.lower(space.base.hidden_size, workload))
        found |= dict.fromkeys((*base.lower_embedding(workload), *base.lower_head(workload)))
    return list(found)
