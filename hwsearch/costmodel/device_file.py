"""Device files: the ceilings of a GPU that is not built in, as its owner states them.

A device file is JSON or TOML with `name`, the figures of DEVICE_FILE_KEYS and, where they are known, `device_name`
(what the driver reports), `power_w` and `link_gbs` (between two devices, in one direction).
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path

from hwsearch.errors import DataError, plainly
from hwsearch.records import DeviceSpec

__all__ = ["DEVICE_FILE_KEYS", "is_device_file", "read_device"]

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

_OPTIONAL_KEYS: Mapping[str, tuple[float, float]] = {"power_w": (1, 1e5), "link_gbs": (0.1, 1e5)}


def is_device_file(path: Path) -> bool:
    """Whether a path is meant as a device file: an existing file that ends in .json or .toml."""
    return path.suffix in {".json", ".toml"} and path.is_file()


def read_device(path: Path) -> DeviceSpec:
    """The ceilings that a device file states. DataError with the fix where it is not one.

    Without power limit or link, energy and tensor parallelism are not predicted.
    """
    asked = (
        f"a device file states name, {', '.join(DEVICE_FILE_KEYS)} and, if known, device_name, "
        f"{', '.join(_OPTIONAL_KEYS)}"
    )
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the device file {path} ({plainly(error)}); {asked}") from error
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path} is neither JSON nor TOML ({error}); {asked}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no table of figures; {asked}")
    missing = [key for key in ("name", *DEVICE_FILE_KEYS) if key not in content]
    unknown = sorted(set(content) - {"name", "device_name", *DEVICE_FILE_KEYS, *_OPTIONAL_KEYS})
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [
            f"has unknown {', '.join(unknown)}"
        ] * bool(unknown)
        raise DataError(f"{path} {' and '.join(wrong)}; {asked}")
    for key in ("name", "device_name"):
        if key in content and not (isinstance(content[key], str) and content[key].strip()):
            raise DataError(f"{path}: {key} must be text, got {content[key]!r}")
    for key, (low, high) in {**DEVICE_FILE_KEYS, **_OPTIONAL_KEYS}.items():
        if key not in content:
            continue
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
        power_w=content.get("power_w"),
        link_bandwidth=content["link_gbs"] * 1e9 if "link_gbs" in content else None,
    )
