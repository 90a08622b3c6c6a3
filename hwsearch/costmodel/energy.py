"""Energy of a run, analytic: the power limit of the devices times the time they work. An upper bound, not measured.

A device draws less than its limit where memory or latency bounds the time, so that the bound is loose for decode and
tight for a long compute-bound prefill. Limits are the datasheets' (devices.py), or those of a user's device file.
"""

from __future__ import annotations

from hwsearch.records import DeviceSpec

__all__ = ["energy_j"]


def energy_j(device: DeviceSpec, *, latency_ms: float, devices: int = 1) -> float | None:
    """Joules at most, of `devices` equal ones together; None where the power limit is not known."""
    return None if device.power_w is None else devices * device.power_w * latency_ms / 1e3
