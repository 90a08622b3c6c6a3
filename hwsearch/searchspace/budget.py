"""Budgets as a user writes them: latency<=12ms, memory<=70GiB, throughput>=5000, full_attention<=4."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hwsearch.errors import InputError, unknown_name

__all__ = ["COUNTED_KINDS", "BudgetSpec", "parse_budget"]

COUNTED_KINDS = (
    "full_attention",
    "sliding_window_attention",
    "shared_kv_attention",
    "gated_delta_net",
    "jet_block",
    "delta_net",
    "gla",
    "retnet",
    "mamba2",
    "rwkv7",
    "rg_lru",
    "h3",
    "none",
)

_UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "memory": {"MB": 1e6, "MiB": 2**20, "GB": 1e9, "GiB": 2**30},
    "throughput": {"": 1.0, "tokens/s": 1.0},
}
_SENSE = {"latency": "<=", "memory": "<=", "throughput": ">="}
_EXAMPLES = "latency<=12ms, memory<=70GiB, throughput>=5000, full_attention<=4"


@dataclass(frozen=True, kw_only=True)
class BudgetSpec:
    """One bound. `value` is in milliseconds, bytes, tokens per second, or layers, by `metric`."""

    text: str
    metric: str
    sense: Literal["<=", ">="]
    value: float


def parse_budget(text: str) -> BudgetSpec:
    """Raises InputError, with examples, for an unknown metric, a wrong sense or unit, or a value not above zero."""
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(-?[\d.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z/]*)\s*", text)
    if not match:
        raise InputError(f"cannot read the budget {text!r}; write for example {_EXAMPLES}")
    metric, sense, number, unit = match.groups()
    if metric not in _UNITS and metric not in COUNTED_KINDS:
        raise unknown_name(f"budget in {text!r}", metric, [*_UNITS, *COUNTED_KINDS])
    try:
        value = float(number)
    except ValueError:
        raise InputError(
            f"budget {text!r}: {number!r} is not a number; write for example {_EXAMPLES}"
        ) from None
    checked: Literal["<=", ">="] = "<=" if sense == "<=" else ">="
    if metric in COUNTED_KINDS:
        if unit or value != int(value) or value < 0:
            raise InputError(
                f"budget {text!r}: a number of layers must be whole and at least 0, without a unit"
            )
        return BudgetSpec(text=text.strip(), metric=metric, sense=checked, value=value)
    if sense != _SENSE[metric]:
        raise InputError(f"budget {text!r}: {metric} takes {_SENSE[metric]}")
    scale = _UNITS[metric].get(unit)
    if scale is None:
        known = ", ".join(name or "no unit" for name in _UNITS[metric])
        raise InputError(f"budget {text!r}: the unit {unit or '(none)'} does not fit {metric}; use {known}")
    if value <= 0:
        raise InputError(f"budget {text!r}: the value must be above 0; write for example {_EXAMPLES}")
    return BudgetSpec(text=text.strip(), metric=metric, sense=checked, value=value * scale)
