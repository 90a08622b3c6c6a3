"""Devices: datasheet ceilings of the GPUs whose cost models ship with the package, and files of a user's own.

Rates are bf16 dense datasheet figures as AIConfigurator uses them (github.com/ai-dynamo/aiconfigurator);
streaming multiprocessors and L2 sizes are from NVIDIA's architecture white papers. They are ceilings: what a
kernel reaches of them is fitted (analytic.py) or documented (roofline.py).

A device file is JSON or TOML with the same six figures under the keys of DEVICE_FILE_KEYS, and `name`.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path

from hwsearch.errors import DataError, unknown_name
from hwsearch.records import DeviceSpec

__all__ = [
    "DEVICES",
    "DEVICE_FILE_KEYS",
    "device_named",
    "device_reported_as",
    "is_device_file",
    "read_device",
]

_GIB = 2**30
_MIB = 2**20

DEVICE_FILE_KEYS: Mapping[str, tuple[float, float]] = {
    "peak_bf16_tflops": (0.01, 1e5),
    "bandwidth_gbs": (1, 1e5),
    "memory_gib": (0.1, 1e5),
    "num_sms": (1, 1e5),
    "l2_mib": (0.1, 1e4),
}
"""The figures of a device file, and between what they lie on any device: outside, the unit is wrong."""


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


def is_device_file(path: Path) -> bool:
    """Whether a path is meant as a device file: an existing file that ends in .json or .toml."""
    return path.suffix in {".json", ".toml"} and path.is_file()


def read_device(path: Path) -> DeviceSpec:
    """The ceilings that a device file states. DataError with the fix where it is not one.

    `device_name`, what the device's driver reports, may be left out.
    """
    asked = f"a device file states name, {', '.join(DEVICE_FILE_KEYS)}, and device_name if it likes"
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the device file {path} ({error}); {asked}") from error
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path} is neither JSON nor TOML ({error}); {asked}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no table of figures; {asked}")
    missing = [key for key in ("name", *DEVICE_FILE_KEYS) if key not in content]
    unknown = sorted(set(content) - {"name", "device_name", *DEVICE_FILE_KEYS})
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [
            f"has unknown {', '.join(unknown)}"
        ] * bool(unknown)
        raise DataError(f"{path} {' and '.join(wrong)}; {asked}")
    for key in ("name", "device_name"):
        if key in content and not (isinstance(content[key], str) and content[key].strip()):
            raise DataError(f"{path}: {key} must be text, got {content[key]!r}")
    for key, (low, high) in DEVICE_FILE_KEYS.items():
        value = content[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{path}: {key} must be a number, got {value!r}")
        if not low <= value <= high:
            raise DataError(
                f"{path}: {key} is {value:g}, no device is outside {low:g} to {high:g}: check the unit"
            )
    if content["num_sms"] != int(content["num_sms"]):
        raise DataError(f"{path}: num_sms must be a whole number, got {content['num_sms']}")
    return DeviceSpec(
        name=content["name"],
        device_name=str(content.get("device_name", content["name"])),
        peak_flops=content["peak_bf16_tflops"] * 1e12,
        bandwidth=content["bandwidth_gbs"] * 1e9,
        memory_bytes=int(content["memory_gib"] * _GIB),
        num_sms=int(content["num_sms"]),
        l2_bytes=int(content["l2_mib"] * _MIB),
        dtype="bfloat16",
        source=f"device file {path.name}",
    )
