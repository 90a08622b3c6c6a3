"""Measuring the ceilings of a machine: its peak rate by a large matrix product, its bandwidth by a large copy.

Both are the best of several samples: a ceiling is what the machine can do, not what it does on average. A copy
of n bytes moves 2 n.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hwsearch.kernels import require_torch
from hwsearch.operators import dtype_bytes
from hwsearch.profilers.environment import cache_bytes, environment, memory_bytes
from hwsearch.profilers.timing import CpuTimer, CudaTimer, Timer, TimingRule, time_callable
from hwsearch.records import DeviceSpec

if TYPE_CHECKING:
    import torch

__all__ = ["probe_device", "timer_for"]

_ASSUMED_CACHE_PER_CORE = 1 << 20  # where the system does not tell; the source of the spec says so
_RULE = TimingRule(half_width=0.01, max_samples=40, max_seconds=1.0, warmup_seconds=0.2)


def timer_for(device: torch.device) -> Timer:
    """The timer of a torch device. A CUDA device becomes the current one: events and Triton's kernels go there."""
    import torch

    if device.type == "cpu":
        return CpuTimer(own_time=torch.get_num_threads() == 1)
    torch.cuda.set_device(device)
    return CudaTimer(device, l2_bytes=cache_bytes(device) or 0)


def probe_device(device: torch.device, *, dtype: str, name: str = "") -> DeviceSpec:
    """Measure the ceilings of `device` at `dtype`; a few seconds. `name` is the device's own where empty.

    num_sms of a CPU counts the threads that torch runs on, the ones the peak was measured with.
    """
    require_torch(purpose="measuring a device")
    import torch

    on_cpu = device.type == "cpu"
    cache = cache_bytes(device)
    with torch.inference_mode():
        timer = timer_for(device)
        side = 2048 if on_cpu else 8192
        a, b, out = torch.randn(3, side, side, device=device).to(getattr(torch, dtype)).unbind()
        product_ms = min(
            time_callable(lambda: torch.matmul(a, b, out=out), timer=timer, rule=_RULE).samples_ms
        )
        # Source and target together are twice the cache or more, an eighth of memory at most.
        copied_bytes = min(max(1 << 28 if on_cpu else 1 << 31, cache or 0), memory_bytes(device) // 16)
        source = torch.ones(copied_bytes // dtype_bytes(dtype), device=device, dtype=getattr(torch, dtype))
        target = torch.empty_like(source)
        copy_ms = min(time_callable(lambda: target.copy_(source), timer=timer, rule=_RULE).samples_ms)
    cores = torch.get_num_threads() if on_cpu else 0
    sms = cores or torch.cuda.get_device_properties(device).multi_processor_count
    device_name = environment(device).device_name
    return DeviceSpec(
        name=name or device_name,
        device_name=device_name,
        peak_flops=2 * side**3 / (product_ms / 1e3),
        bandwidth=2 * copied_bytes / (copy_ms / 1e3),
        memory_bytes=memory_bytes(device),
        num_sms=sms,
        l2_bytes=cache if cache is not None else _ASSUMED_CACHE_PER_CORE * (os.cpu_count() or 1),
        dtype=dtype,
        source="measured by hwsearch" + ("" if cache is not None else "; cache assumed at 1 MiB per core"),
        kind="cpu" if on_cpu else "gpu",
    )
