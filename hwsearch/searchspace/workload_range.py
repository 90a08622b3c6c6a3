"""Workloads over a range of batches and contexts: what a device is asked for over a deployment's life.

A range is written like one workload with `LOW..HIGH` for a number, and stands for LOW doubled until HIGH, both ends
included: latency is close to a power law between octaves, so a finer grid asks little that is new.
"""

from __future__ import annotations

import itertools
import re

from hwsearch.errors import InputError
from hwsearch.searchspace.workload import Workload, read_size

__all__ = ["octaves", "read_workloads"]

_MOST = 4096
_EXAMPLE = "decode:batch=1..256,context=1k..128k"
_RANGE = re.compile(r"(batch|context|chunk)\s*=\s*([^,=]*?)\s*\.\.\s*([^,=]*)")


def octaves(low: int, high: int) -> list[int]:
    """`low` doubled until `high`, which ends the list. `low` is at least 1 and not above `high`."""
    values = [low]
    while values[-1] * 2 < high:
        values.append(values[-1] * 2)
    return values if values[-1] == high else [*values, high]


def read_workloads(text: str) -> list[Workload]:
    """The workloads of a text such as `decode:batch=1..256,context=1k..128k`; one where nothing in it is a range.

    Raises InputError with an example where a range or a workload cannot be read, and for thousands of workloads.
    """
    values = []
    for name, *bounds in _RANGE.findall(text):
        low, high = (read_size(bound.strip()) for bound in bounds)
        if low is None or high is None or not 1 <= low <= high:
            raise InputError(
                f"workload {text!r}: cannot read the range of {name}; from a low to a higher number, "
                f"for example {_EXAMPLE}"
            )
        values.append(octaves(low, high))
    template = _RANGE.sub(r"\1={}", text.replace("{", "{{").replace("}", "}}"))
    count = 1
    for own in values:
        count *= len(own)
    if count > _MOST:
        raise InputError(
            f"workload {text!r} stands for {count} workloads, more than {_MOST}: narrow its ranges"
        )
    return [Workload.from_text(template.format(*chosen)) for chosen in itertools.product(*values)]
