"""What a machine is, and what would make measurements on it untrustworthy.

Findings are facts with a severity: "warning" for what moves results (load, a saving governor, throttling, other
processes on the GPU), "error" for what makes measuring impossible. A check that the system does not allow is left out,
not guessed.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hwsearch
from hwsearch.errors import HwsearchError
from hwsearch.profilers.environment import (
    available_bytes,
    cache_bytes,
    environment,
    memory_bytes,
    others_seconds,
    torch_device,
)

if TYPE_CHECKING:
    import torch

__all__ = ["Diagnosis", "Finding", "diagnose"]

_PACKAGES = ("torch", "triton", "flash-linear-attention", "fla-core", "transformers", "nvidia-ml-py", "numpy")
_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_NO_TURBO = Path("/sys/devices/system/cpu/intel_pstate/no_turbo")
_BOOST = Path("/sys/devices/system/cpu/cpufreq/boost")
_LOOK_S = 0.5
_BUSY = 0.15  # of a core that an idle system keeps busy
_LITTLE_MEMORY = 0.5
_HOT_C = 80
_REPEATS = 20
_SPREAD = 0.05  # of the reference within half a second, above which the machine is not steady


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What would make measurements untrustworthy or impossible, and what to do about it."""

    severity: Literal["warning", "error"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """facts: name -> value, JSON values; findings: the worst first."""

    device: str
    facts: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        return not self.findings


def diagnose(device: str) -> Diagnosis:
    """Look at a machine for about a second. A device that is not there is a finding, not an exception."""
    facts: dict[str, Any] = {
        "hwsearch": hwsearch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }
    found: list[Finding] = []
    if importlib.util.find_spec("torch") is None:
        found.append(
            Finding(severity="error", text="torch is not installed: pip install 'hwsearch[torch]' to measure")
        )
        return Diagnosis(device=device, facts=facts, findings=tuple(found))
    try:
        target = torch_device(device)
        place = environment(target)
    except HwsearchError as error:
        found.append(Finding(severity="error", text=str(error)))
        return Diagnosis(device=device, facts=facts, findings=tuple(found))
    facts |= {
        "device_name": place.device_name,
        "device_uuid": place.device_uuid,
        "driver": place.driver,
        "clocks": place.clocks,
        "runtime": place.runtime,
        "memory_bytes": memory_bytes(target),
        "available_bytes": available_bytes(target),
        "cache_bytes": cache_bytes(target),
    }
    if facts["available_bytes"] < _LITTLE_MEMORY * facts["memory_bytes"]:
        share = facts["available_bytes"] / facts["memory_bytes"]
        _warn(
            found,
            f"only {share:.0%} of the memory is free: large points will be out of memory, free it first",
        )
    _host(facts, found, on_cpu=target.type == "cpu")
    _steady(target, facts, found)
    if target.type == "cuda":
        _gpu(target, facts, found)
    return Diagnosis(device=device, facts=facts, findings=tuple(found))


def _warn(found: list[Finding], text: str) -> None:
    found.append(Finding(severity="warning", text=text))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _host(facts: dict[str, Any], found: list[Finding], *, on_cpu: bool) -> None:
    """Cores, load, governor, turbo, time taken by a hypervisor."""
    import torch

    cores, threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        0,
    )
    threads = torch.get_num_threads()
    before, stolen, started = others_seconds(), _stolen_seconds(), time.monotonic()
    time.sleep(_LOOK_S)
    seconds = time.monotonic() - started
    after, stolen_after = others_seconds(), _stolen_seconds()
    busy = None if before is None or after is None else max(0.0, (after - before) / seconds)
    steal = None if stolen is None or stolen_after is None else (stolen_after - stolen) / seconds
    governor = _text(_CPUFREQ / "scaling_governor")
    facts |= {
        "cores": cores,
        "threads": threads,
        "other_processes_cores": busy,
        "stolen_cores": steal,
        "governor": governor,
        "turbo": _turbo(),
    }
    if busy is not None and busy > _BUSY:
        _warn(
            found,
            f"other processes keep {busy:.1f} of {cores} cores busy: stop them, or measure with fewer threads "
            "(OMP_NUM_THREADS)",
        )
    if steal is not None and steal > _BUSY:
        _warn(found, f"the hypervisor takes {steal:.1f} of {cores} cores: this virtual machine shares them")
    if governor in ("powersave", "conservative", "ondemand") and on_cpu:
        _warn(found, f"the CPU frequency governor is {governor}: clocks follow the load; use performance")
    if on_cpu and threads > cores:
        _warn(found, f"torch runs {threads} threads on {cores} cores: set OMP_NUM_THREADS={cores}")
    if on_cpu and facts["turbo"]:
        _warn(found, "turbo is on: clocks depend on temperature and on the other cores' load")


def _steady(target: torch.device, facts: dict[str, Any], found: list[Finding]) -> None:
    """The drift reference, again and again."""
    from hwsearch.profilers.probe import timer_for
    from hwsearch.profilers.sampling import Reference

    reference = Reference(target, timer=timer_for(target))
    times = [reference.ms() for _ in range(_REPEATS)]
    spread = (max(times) - min(times)) / reference.usual_ms
    facts |= {"reference_ms": reference.usual_ms, "reference_spread": spread}
    if spread > _SPREAD:
        _warn(
            found,
            f"a fixed product varied by {spread:.0%} within a second: others use the machine, or its clocks change",
        )


def _gpu(target: torch.device, facts: dict[str, Any], found: list[Finding]) -> None:
    from hwsearch.profilers.monitor import CudaMonitor

    monitor = CudaMonitor(target)
    reading = monitor.reading()
    facts |= {
        "clock_mhz": reading.clock_mhz,
        "temperature_c": reading.temperature_c,
        "power_limit_w": reading.power_limit_w,
        "other_processes": reading.other_processes,
        "throttled": list(reading.throttled),
        "energy_counter": monitor.energy_j() is not None,
    }
    if reading.other_processes:
        _warn(
            found,
            f"{reading.other_processes} other processes compute on {target}: its times are not yours alone",
        )
    if reading.throttled:
        _warn(found, f"clocks are held down: {', '.join(reading.throttled)}")
    if reading.temperature_c is not None and reading.temperature_c >= _HOT_C:
        _warn(found, f"the GPU is at {reading.temperature_c} C: let it cool, or expect lower clocks")


def _stolen_seconds() -> float | None:
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    fields = stat.read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else None


def _turbo() -> bool | None:
    no_turbo, boost = _text(_NO_TURBO), _text(_BOOST)
    if no_turbo is not None:
        return no_turbo == "0"
    return None if boost is None else boost == "1"


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
