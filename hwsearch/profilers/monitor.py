"""Watching the machine while it is measured: what slowed it down, and the conditions a row is stored with.

CPU: how long this process's threads were ready to run and had no core (/proc/self/task/*/schedstat, Linux), which is
what other processes cost it; time that a hypervisor took shows in /proc/stat as steal. NVIDIA: NVML's clocks,
temperature, power limit, other processes, total energy, and the reasons for which clocks are held down; thermal and
hardware slowdowns mark a sample, the power cap is how the card works under load and is only recorded.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from hwsearch.errors import DependencyError, InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "CpuMonitor",
    "CudaMonitor",
    "Monitor",
    "Reading",
    "monitor_of",
    "nvml_handle",
    "waited_ns",
]

_WAITED_SHARE = 0.02  # of a sample's time; shorter waits do not move it beyond what is resolved
_LOOK_EVERY_S = 0.02  # between two looks at NVML: one costs some tens of microseconds
_TASKS = Path("/proc/self/task")

# Names of nvmlClocksThrottleReason..., and whether one makes a sample unusable.
_REASONS = {
    0x04: ("software power cap", False),
    0x08: ("hardware slowdown", True),
    0x10: ("sync boost", False),
    0x20: ("software thermal slowdown", True),
    0x40: ("hardware thermal slowdown", True),
    0x80: ("hardware power brake", True),
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a monitor saw since `start`; None where the machine does not tell. Fields as in records.Conditions."""

    waited: float | None = None
    clock_mhz: int | None = None
    temperature_c: int | None = None
    power_limit_w: float | None = None
    other_processes: int | None = None
    throttled: tuple[str, ...] = ()


class Monitor(Protocol):
    """A `timing.Watch` with a beginning and a reading."""

    def start(self) -> None: ...

    def disturbed(self) -> bool: ...

    def reading(self) -> Reading: ...

    def energy_j(self) -> float | None:
        """The device's energy counter in joules; None where there is none."""
        ...


def waited_ns() -> int | None:
    """Nanoseconds for which threads of this process were ready and had no core; None where the system is silent."""
    total = 0
    try:
        for task in _TASKS.iterdir():
            total += int((task / "schedstat").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        # No Linux, or a thread that ended while it was looked at: the next look is whole again.
        return None if not _TASKS.exists() else total
    return total


class CpuMonitor:
    """Waiting for a core."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._begun = self._last = (time.monotonic_ns(), waited_ns())

    def disturbed(self) -> bool:
        before, self._last = self._last, (time.monotonic_ns(), waited_ns())
        share = _share(before, self._last)
        return share is not None and share > _WAITED_SHARE

    def reading(self) -> Reading:
        return Reading(waited=_share(self._begun, (time.monotonic_ns(), waited_ns())))

    def energy_j(self) -> float | None:
        return None


def _share(before: tuple[int, int | None], after: tuple[int, int | None]) -> float | None:
    if before[1] is None or after[1] is None or after[0] == before[0]:
        return None
    return max(0.0, (after[1] - before[1]) / (after[0] - before[0]))


class CudaMonitor:
    """NVML of one device."""

    def __init__(self, device: torch.device) -> None:
        self._nvml, self._handle, _ = nvml_handle(device)
        self.start()

    def start(self) -> None:
        self._looked = 0.0
        self._bad = False
        self._seen: set[str] = set()

    def disturbed(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            held = self._reasons()
            self._seen |= {name for name, _ in held}
            self._bad = any(bad for _, bad in held)
        return self._bad

    def reading(self) -> Reading:
        nvml, handle = self._nvml, self._handle
        self._seen |= {name for name, _ in self._reasons()}
        running = _asked(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        limit_mw = _asked(nvml, lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle))
        return Reading(
            clock_mhz=_asked(nvml, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            temperature_c=_asked(
                nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            power_limit_w=None if limit_mw is None else limit_mw / 1e3,
            # Not told apart by process id: in a container NVML gives those of the host. One of them is this one.
            other_processes=None if running is None else max(0, len(running) - 1),
            throttled=tuple(sorted(self._seen)),
        )

    def energy_j(self) -> float | None:
        nvml, handle = self._nvml, self._handle
        millijoules = _asked(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        return None if millijoules is None else millijoules / 1e3

    def _reasons(self) -> list[tuple[str, bool]]:
        nvml, handle = self._nvml, self._handle
        bits = _asked(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
        return [reason for bit, reason in _REASONS.items() if bits & bit]


def nvml_handle(device: torch.device) -> tuple[ModuleType, Any, str]:
    """NVML, initialised, its handle of a CUDA device, and the device's UUID.

    DependencyError without nvidia-ml-py, InputError where NVML does not know the device (a part of one under MIG).
    """
    if importlib.util.find_spec("pynvml") is None:
        raise DependencyError("nvidia-ml-py", extra="gpu", purpose="profiling on an NVIDIA GPU")
    import pynvml
    import torch

    # NVML counts all GPUs, torch only the visible ones: the UUID is what both know.
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid), uuid
    except pynvml.NVMLError as error:
        raise InputError(
            f"NVML does not know {device} ({uuid}: {error}): clocks and other processes cannot be watched; see "
            "whether nvidia-smi lists it, and profile a whole GPU"
        ) from error


def _asked(nvml: ModuleType, question: Any) -> Any:
    """The answer of NVML; None where this card or its settings give none."""
    try:
        return question()
    except nvml.NVMLError:
        return None


def monitor_of(device: torch.device) -> Monitor:
    """The monitor of a torch device."""
    return CpuMonitor() if device.type == "cpu" else CudaMonitor(device)
