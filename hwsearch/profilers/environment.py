"""Where measurements are taken: the machine's name, identity, clocks and software, and its memory.

CPU facts come from the standard library and from /proc and /sys where the system has them; NVIDIA facts from
NVML through pynvml.
"""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import hwsearch
from hwsearch.errors import InputError
from hwsearch.kernels import require_torch
from hwsearch.profilers.monitor import nvml_handle
from hwsearch.records import Environment

if TYPE_CHECKING:
    import torch

__all__ = [
    "available_bytes",
    "cache_bytes",
    "default_dtype",
    "environment",
    "memory_bytes",
    "others_seconds",
    "torch_device",
]

_CGROUP = Path("/sys/fs/cgroup")


def torch_device(name: str) -> torch.device:
    """The torch device called `name` ("cpu", "cuda", "cuda:1"); InputError where this machine lacks it."""
    require_torch(purpose="profiling")
    import torch

    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise InputError(f"unknown device {name!r}: give cpu, cuda or cuda:INDEX")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise InputError(
            f"device {name}: torch {torch.__version__} sees {count} CUDA devices; use --device cpu"
        )
    return torch.device("cuda", index)


def default_dtype(device_type: str) -> str:
    """The dtype that operators run in unless asked otherwise."""
    return "float32" if device_type == "cpu" else "bfloat16"


def environment(device: torch.device) -> Environment:
    """The environment of measurements on `device`; it is the same on every call in one process."""
    require_torch(purpose="profiling")
    import torch

    version = torch.__version__.partition("+")[0]
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hwsearch": hwsearch.__version__,
    }
    if device.type == "cpu":
        return Environment(
            device_name=_cpu_name(),
            runtime=f"torch {version}, {torch.get_num_threads()} threads",
            clocks=_cpu_clocks(),
            versions=versions,
        )
    uuid, driver, clocks = _nvml_facts(device)
    return Environment(
        device_name=torch.cuda.get_device_name(device),
        device_uuid=uuid,
        driver=driver,
        clocks=clocks,
        runtime=f"torch {version}, CUDA {torch.version.cuda}",
        versions=versions,
    )


def memory_bytes(device: torch.device) -> int:
    """All memory of the device; on a CPU the machine's, or the container's limit where that is less."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number(_CGROUP / "memory.max")
    return physical if limit is None else min(physical, limit)


def available_bytes(device: torch.device) -> int:
    """Memory that can be taken now; half of all on a CPU whose system does not tell."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    free = int(found[1]) * 1024 if found else memory_bytes(device) // 2
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    return free if limit is None or used is None else max(0, min(free, limit - used))


def cache_bytes(device: torch.device) -> int | None:
    """The last cache before memory: L2 of a GPU, the largest cache of a CPU; None where the system is silent."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
        if found:
            sizes.append(int(found[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[found[2]])
    return max(sizes, default=None)


def others_seconds() -> float | None:
    """CPU time that other processes of the machine have used since it started; None without /proc/stat."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, *interrupts = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    busy = user + nice + system + sum(interrupts)  # the two left out are idle time
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cpu_clocks() -> str:
    # The current frequency changes from call to call; the highest is part of the machine.
    highest = _number(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"))
    return "" if highest is None else f"at most {highest // 1000} MHz"


def _nvml_facts(device: torch.device) -> tuple[str, str, str]:
    """UUID, driver version and highest clocks of a CUDA device."""
    nvml, handle, uuid = nvml_handle(device)
    sm = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
    memory = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
    return uuid, str(nvml.nvmlSystemGetDriverVersion()), f"at most {sm} MHz, memory {memory} MHz"


def _number(path: Path) -> int | None:
    """The integer a system file holds; None where there is no such file or it says "max"."""
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else None
