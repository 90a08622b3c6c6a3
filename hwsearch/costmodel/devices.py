"""Built-in devices: datasheet ceilings of the GPUs whose measurements or cost models are known.

Rates are dense bf16 datasheet figures, bandwidths and capacities as AIConfigurator's system files give them
(github.com/ai-dynamo/aiconfigurator, systems/*.yaml) or, where those files are not public text, as NVIDIA's
datasheets and the driver do (B200, B300, GB200, GB300, H20, A40); streaming multiprocessors and L2 sizes are from
the vendors' architecture papers. Power limits are the datasheets'. Links: bytes per second and direction between two
GPUs of a node, half of what datasheets print for both directions (NVLink 3: 600 GB/s, NVLink 4: 900, NVLink 5: 1800,
H800: 400; PCIe 4.0 x16: 64, 5.0 x16: 128, B60 5.0 x8: 64). All are ceilings: what a kernel reaches of them is fitted
(analytic.py) or documented (roofline.py, parallel.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hwsearch.errors import unknown_name
from hwsearch.records import DeviceSpec

__all__ = ["DEVICES", "completed", "device_named", "device_reported_as"]

_GIB = 2**30
_MIB = 2**20


def _spec(
    name: str,
    device_name: str,
    *,
    tflops: float,
    gbps: float,
    gib: float,
    sms: int,
    l2_mib: float,
    watt: float,
    link_gbps: float | None,
) -> DeviceSpec:
    return DeviceSpec(
        name=name,
        device_name=device_name,
        peak_flops=tflops * 1e12,
        bandwidth=gbps * 1e9,
        memory_bytes=int(gib * _GIB),
        num_sms=sms,
        l2_bytes=int(l2_mib * _MIB),
        dtype="bfloat16",
        source="datasheet, dense bf16",
        power_w=watt,
        link_bandwidth=None if link_gbps is None else link_gbps * 1e9,
    )


DEVICES: Mapping[str, DeviceSpec] = {
    spec.name: spec
    for spec in (
        _spec("h100-sxm", "NVIDIA H100 80GB HBM3",
              tflops=989, gbps=3350, gib=80, sms=132, l2_mib=50, watt=700, link_gbps=450),
        _spec("h200-sxm", "NVIDIA H200",
              tflops=989, gbps=4800, gib=141, sms=132, l2_mib=50, watt=700, link_gbps=450),
        _spec("a100-sxm", "NVIDIA A100-SXM4-80GB",
              tflops=312, gbps=2039, gib=80, sms=108, l2_mib=40, watt=400, link_gbps=300),
        _spec("l40s", "NVIDIA L40S",
              tflops=362, gbps=864, gib=45, sms=142, l2_mib=96, watt=350, link_gbps=32),
        _spec("b200-sxm", "NVIDIA B200",
              tflops=2250, gbps=8000, gib=178, sms=148, l2_mib=126.5, watt=1000, link_gbps=900),
        _spec("gb200", "NVIDIA GB200",
              tflops=2500, gbps=8000, gib=185, sms=152, l2_mib=126.5, watt=1200, link_gbps=900),
        _spec("b300-sxm", "NVIDIA B300 SXM6 AC",
              tflops=2250, gbps=8000, gib=268, sms=148, l2_mib=126.5, watt=1100, link_gbps=900),
        _spec("gb300", "NVIDIA GB300",
              tflops=2500, gbps=8000, gib=277, sms=152, l2_mib=126.5, watt=1400, link_gbps=900),
        _spec("h20-sxm", "NVIDIA H20",
              tflops=148, gbps=4000, gib=96, sms=78, l2_mib=60, watt=400, link_gbps=450),
        _spec("h20-3e", "NVIDIA H20-3e",
              tflops=148, gbps=4800, gib=141, sms=78, l2_mib=60, watt=400, link_gbps=450),
        _spec("h800-sxm", "NVIDIA H800",
              tflops=989, gbps=3350, gib=80, sms=132, l2_mib=50, watt=700, link_gbps=200),
        _spec("rtx-pro-6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition",
              tflops=467.8, gbps=1792, gib=95.5, sms=188, l2_mib=128, watt=600, link_gbps=64),
        _spec("rtx-5090", "NVIDIA GeForce RTX 5090",
              tflops=419, gbps=1792, gib=31.8, sms=170, l2_mib=96, watt=575, link_gbps=64),
        _spec("gb10", "NVIDIA GB10",
              tflops=213, gbps=273, gib=119.7, sms=48, l2_mib=24, watt=140, link_gbps=None),
        _spec("a40", "NVIDIA A40",
              tflops=149.7, gbps=696, gib=45, sms=84, l2_mib=6, watt=300, link_gbps=32),
        _spec("b60", "Intel(R) Graphics [0xe211]",
              tflops=98.3, gbps=456, gib=24, sms=20, l2_mib=18, watt=200, link_gbps=32),
    )
}  # fmt: skip


def device_named(name: str) -> DeviceSpec:
    """The built-in device called `name`; InputError with the nearest name otherwise."""
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    return DEVICES[name]


def device_reported_as(device_name: str) -> DeviceSpec | None:
    """The built-in device whose driver reports itself as `device_name`, or None."""
    return next((spec for spec in DEVICES.values() if spec.device_name == device_name), None)


def completed(spec: DeviceSpec) -> DeviceSpec:
    """`spec` with what it leaves open, power limit and link, taken from the built-in device that reports the same name.

    Neither enters a fit, so that models and stores written before these were known stay as they are.
    """
    known = device_reported_as(spec.device_name)
    if known is None:
        return spec
    return replace(
        spec,
        power_w=known.power_w if spec.power_w is None else spec.power_w,
        link_bandwidth=known.link_bandwidth if spec.link_bandwidth is None else spec.link_bandwidth,
    )
