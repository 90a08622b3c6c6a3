"""Built-in devices: datasheet ceilings of the GPUs whose cost models ship with the package.

Rates are bf16 dense datasheet figures as AIConfigurator uses them (github.com/ai-dynamo/aiconfigurator);
streaming multiprocessors and L2 sizes are from NVIDIA's architecture white papers. They are ceilings: what a
kernel reaches of them is fitted (analytic.py) or documented (roofline.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from hwsearch.errors import unknown_name
from hwsearch.records import DeviceSpec

__all__ = ["DEVICES", "device_named", "device_reported_as"]

_GIB = 2**30
_MIB = 2**20


def _spec(
    name: str, device_name: str, *, tflops: float, gbps: float, gib: int, sms: int, l2_mib: int
) -> DeviceSpec:
    return DeviceSpec(
        name=name,
        device_name=device_name,
        peak_flops=tflops * 1e12,
        bandwidth=gbps * 1e9,
        memory_bytes=gib * _GIB,
        num_sms=sms,
        l2_bytes=l2_mib * _MIB,
        dtype="bfloat16",
        source="datasheet, dense bf16",
    )


DEVICES: Mapping[str, DeviceSpec] = {
    spec.name: spec
    for spec in (
        _spec("h100-sxm", "NVIDIA H100 80GB HBM3", tflops=989, gbps=3350, gib=80, sms=132, l2_mib=50),
        _spec("h200-sxm", "NVIDIA H200", tflops=989, gbps=4800, gib=141, sms=132, l2_mib=50),
        _spec("a100-sxm", "NVIDIA A100-SXM4-80GB", tflops=312, gbps=2039, gib=80, sms=108, l2_mib=40),
        _spec("l40s", "NVIDIA L40S", tflops=362, gbps=864, gib=45, sms=142, l2_mib=96),
    )
}


def device_named(name: str) -> DeviceSpec:
    """The built-in device called `name`; InputError with the nearest name otherwise."""
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    return DEVICES[name]


def device_reported_as(device_name: str) -> DeviceSpec | None:
    """The built-in device whose driver reports itself as `device_name`, or None."""
    return next((spec for spec in DEVICES.values() if spec.device_name == device_name), None)
