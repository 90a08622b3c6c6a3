"""Timing a callable: warm-up until stable, then samples until their median is known well enough; every one is kept.

Stopping rule: the 95% confidence interval of the median from order statistics (ranks n/2 -+ 0.98 sqrt(n), the
normal approximation of the binomial; Conover, Practical Nonparametric Statistics, section 3.2) must be
narrower than a few percent of the median on either side, or a cap on samples or time ends it. The median and
this interval make no assumption on the shape of the noise, which on shared machines has a long right tail. Samples
during which a watch saw the machine disturbed do not count towards it; they and outliers are flagged and kept.

What one sample is depends on the device. On a CPU it is the mean of as many calls as fill LOOP_MS, so that the
clock's resolution and the cost of a call into Python do not show; such short operators therefore find their
operands in the caches. Where torch computes with one thread, its time is that for which it had a core. On CUDA it is
one call between two events with the L2 cache overwritten before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "LOOP_MS",
    "CpuTimer",
    "CudaTimer",
    "Timer",
    "Timing",
    "TimingRule",
    "Watch",
    "median_interval",
    "outliers",
    "time_callable",
]

LOOP_MS = 1.0  # on a CPU a sample lasts at least this long
_LEAST_SAMPLES = 8  # below, the interval's ranks fall outside of the sample
_FEWEST_SAMPLES = 3  # taken however long they last
_CHECK_EVERY = 4  # samples between two looks at the interval
_STABLE = 1.05  # the last three warm-up calls must come this close to the fastest
_PATIENCE = 8  # times the rule's warm-up, after which an unstable function is timed as it is
_FLUSH_BYTES = 1 << 30  # at 3.35 TB/s 0.3 ms, in which a host launches some fifty kernels
_FAR = 5 * 1.4826  # median absolute deviations: five standard deviations of normal noise

Function = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class TimingRule:
    """When to stop sampling: half-width of the median's 95% interval relative to it, or a cap.

    Samples span at least `min_seconds`, unless `max_samples` come first: what comes and goes on a machine lasts
    longer than a few short samples, which would agree with each other and not with the next run.
    """

    half_width: float = 0.03
    min_seconds: float = 0.1
    max_samples: int = 100
    max_seconds: float = 0.6
    warmup_seconds: float = 0.05


class Watch(Protocol):
    """Looks at the machine while samples are taken."""

    def disturbed(self) -> bool:
        """Whether something that is not the function slowed the machine down since the last call of this."""
        ...


@dataclass(frozen=True, kw_only=True)
class Timing:
    """samples_ms: milliseconds per call; calls: calls per sample; half_width: reached, relative to the median.

    flagged: places of the samples that were disturbed or are outliers.
    """

    samples_ms: tuple[float, ...]
    calls: int
    half_width: float
    flagged: tuple[int, ...] = ()


class Timer(Protocol):
    """How one device times calls. `loops`: whether a sample may be the mean of several calls."""

    loops: bool

    def sample_ms(self, function: Function, /, *, calls: int) -> float:
        """Milliseconds per call over `calls` calls back to back."""
        ...


class CpuTimer:
    """Wall clock, or with `own_time` the time for which the calling thread had a core.

    The two are the same on an idle machine; on a shared one the second leaves out what others used the core for. It
    is right only where the function computes in the calling thread alone. With flush_bytes so much memory is read
    before every call, outside of the time taken.
    """

    def __init__(self, *, own_time: bool = False, flush_bytes: int = 0) -> None:
        self.loops = not flush_bytes
        self._own_time = own_time
        self._clock = time.thread_time_ns if own_time else time.perf_counter_ns
        self._flush = np.ones(flush_bytes // 8)

    def flushing(self, flush_bytes: int) -> CpuTimer:
        """The same clock, with memory read before every call."""
        return CpuTimer(own_time=self._own_time, flush_bytes=flush_bytes)

    def sample_ms(self, function: Function, /, *, calls: int) -> float:
        if not self.loops:
            self._flush.sum()
        start = self._clock()
        for _ in range(calls):
            function()
        return (self._clock() - start) / calls / 1e6


class CudaTimer:
    """CUDA events around the call, after the L2 cache has been overwritten.

    The overwrite also keeps the device busy while the host enqueues the call, so that an operator of some dozens of
    kernels is timed on the device and not at the pace of its launches. A timer that has settled waits for its end: of a
    model that runs eagerly the launches are a part, and no part of them may hide.
    """

    loops = False
    _settled = False

    def __init__(self, device: torch.device, *, l2_bytes: int) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._flush = torch.empty(max(4 * l2_bytes, _FLUSH_BYTES), dtype=torch.int8, device=device)

    def settled(self) -> CudaTimer:
        """The same, each call beginning on an idle device."""
        other = copy(self)
        other._settled = True
        return other

    def sample_ms(self, function: Function, /, *, calls: int) -> float:
        total = 0.0
        for _ in range(calls):
            start = self._torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = self._torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._flush.zero_()
            if self._settled:
                self._torch.cuda.synchronize(self._device)
            start.record()
            function()
            end.record()
            self._torch.cuda.synchronize(self._device)
            total += start.elapsed_time(end)
        return total / calls


def time_callable(
    function: Function, *, timer: Timer, rule: TimingRule | None = None, watch: Watch | None = None
) -> Timing:
    """Time `function` until `rule` is met. What `function` raises passes through."""
    rule = rule or TimingRule()
    fastest_ms = _warm_up(function, timer, rule)
    # The clock itself ticks in nanoseconds: a call faster than that would divide by zero.
    calls = max(1, math.ceil(LOOP_MS / max(fastest_ms, 1e-6))) if timer.loops else 1

    samples: list[float] = []
    disturbed: list[int] = []
    if watch is not None:
        watch.disturbed()
    started = time.monotonic()
    while len(samples) < rule.max_samples:
        samples.append(timer.sample_ms(function, calls=calls))
        if watch is not None and watch.disturbed():
            disturbed.append(len(samples) - 1)
        seconds = time.monotonic() - started
        if len(samples) >= _FEWEST_SAMPLES and seconds > rule.max_seconds:
            break
        checked = len(samples) % _CHECK_EVERY == 0 and seconds >= rule.min_seconds
        if checked and median_interval(_without(samples, disturbed)) <= rule.half_width:
            break
    flagged = sorted({*disturbed, *outliers(samples)})
    counted = _without(samples, flagged) or samples
    return Timing(
        samples_ms=tuple(samples), calls=calls, half_width=median_interval(counted), flagged=tuple(flagged)
    )


def _warm_up(function: Function, timer: Timer, rule: TimingRule) -> float:
    """Call until the rule's time is over and the last calls are as fast as the fastest, whose ms are returned."""
    started = time.monotonic()
    times = [timer.sample_ms(function, calls=1)]
    while (elapsed := time.monotonic() - started) < _PATIENCE * rule.warmup_seconds:
        if elapsed >= rule.warmup_seconds and len(times) > 2 and min(times[-3:]) <= _STABLE * min(times):
            break
        times.append(timer.sample_ms(function, calls=1))
    return min(times)


def _without(samples: list[float], places: Sequence[int]) -> list[float]:
    out = set(places)
    return [sample for i, sample in enumerate(samples) if i not in out]


def outliers(samples: Sequence[float]) -> list[int]:
    """Places of samples farther from the median than noise takes them, and than a tenth of it; needs eight."""
    if len(samples) < _LEAST_SAMPLES:
        return []
    values = np.asarray(samples)
    middle = np.median(values)
    away = np.abs(values - middle)
    return [int(i) for i in np.flatnonzero(away > max(_FAR * float(np.median(away)), 0.1 * middle))]


def median_interval(samples: list[float]) -> float:
    """Half-width of the 95% interval of the median, relative to it; infinite for fewer than eight samples."""
    count = len(samples)
    if count < _LEAST_SAMPLES:
        return math.inf
    ordered = sorted(samples)
    reach = 0.98 * math.sqrt(count)
    low = ordered[max(0, math.floor(count / 2 - reach))]
    high = ordered[min(count - 1, math.ceil(count / 2 + reach) - 1)]
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return (high - low) / 2 / middle
