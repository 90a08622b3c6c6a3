"""Ceilings that no probe measured, so that no test waits for one."""

from __future__ import annotations

from hwsearch.records import DeviceSpec


def made_up_device(name: str) -> DeviceSpec:
    """A device of that name."""
    return DeviceSpec(
        name=name,
        device_name=name,
        peak_flops=1e11,
        bandwidth=1e10,
        memory_bytes=1,
        num_sms=1,
        l2_bytes=1,
        dtype="float32",
        source="made up",
    )
