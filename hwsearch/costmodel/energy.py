"""Energy of a run, analytic: the power limit of the device times the time it works. An upper bound, not measured.

A device draws less than its limit where memory or latency bounds the time, so that the bound is loose for decode and
tight for a long compute-bound prefill. Limits are the datasheets' (NVIDIA H100, H200 and A100 SXM, L40S).
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["POWER_LIMIT_W", "energy_j"]

POWER_LIMIT_W: Mapping[str, float] = {"h100-sxm": 700.0, "h200-sxm": 700.0, "a100-sxm": 400.0, "l40s": 350.0}


def energy_j(device_name: str, *, latency_ms: float) -> float | None:
    """Joules at most; None for a device whose power limit is not known here."""
    limit = POWER_LIMIT_W.get(device_name)
    return None if limit is None else limit * latency_ms / 1e3
