"""One visit to one thing to measure: build it, run it once, time it, and say under what conditions.

Before and after the samples a fixed matrix product is timed, the drift reference. Where it is slower than it usually is
in this run, or most samples were disturbed, the samples are taken again, within a share of the run's time; of several
attempts the one with the fastest reference stands, and what still speaks against it is marked.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from hwsearch.profilers.monitor import Monitor, Reading
from hwsearch.profilers.resident import keep_freed_memory, peak_resident
from hwsearch.profilers.timing import CpuTimer, CudaTimer, Timer, Timing, TimingRule, time_callable
from hwsearch.profilers.tuning import tuned, tuned_since
from hwsearch.records import MARKS, Conditions, Execution

__all__ = ["Outcome", "Reference", "Runnable", "Sampler"]

_ATTEMPTS = 3
_RETRY_SHARE = 0.3  # of the time spent on samples that may be spent on taking some again
_RETRY_START_S = 2.0
_DRIFT = 1.1  # times the usual reference
_WAITED = 0.05  # share of the time without a core from which a measurement is called shared
_REFERENCE_CALLS = 5
_REFERENCE_KEPT = 50
_REFERENCE_SIDE = {"cpu": 192, "cuda": 4096}
_ENERGY_S, _ENERGY_MOST_S = 0.4, 1.2  # the energy counter of a GPU moves some ten times a second, or slower
_ENERGY_LOOK_MS = 5.0  # of calls between two looks at it


@dataclass(frozen=True, kw_only=True)
class Runnable:
    """`function` does the work of `copies` of what is measured. `kernel` names what runs, known after the first call.

    state_bytes: what one block or model keeps between calls; None for an operator.
    """

    function: Callable[[], object]
    kernel: Callable[[], str]
    copies: int = 1
    state_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The part of a `records.Sampled` that sampling decides."""

    kernel: str
    samples_ms: tuple[float, ...]
    flagged: tuple[int, ...]
    conditions: Conditions
    peak_memory_bytes: int | None
    peak_reserved_bytes: int | None
    workspace_bytes: int | None
    state_bytes: int | None
    energy_j: float | None


class Reference:
    """A fixed product, timed again and again: how fast the machine is at the moment."""

    def __init__(self, device: torch.device, *, timer: Timer) -> None:
        side = _REFERENCE_SIDE[device.type]
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        a, b = torch.randn(2, side, side, device=device).to(dtype).unbind()
        out = torch.empty_like(a)
        self._function = lambda: torch.matmul(a, b, out=out)
        self._timer = timer
        self._seen: deque[float] = deque(maxlen=_REFERENCE_KEPT)

    def ms(self) -> float:
        """The fastest of a few calls, now."""
        with torch.inference_mode():
            now = min(self._timer.sample_ms(self._function, calls=1) for _ in range(_REFERENCE_CALLS))
        self._seen.append(now)
        return now

    @property
    def usual_ms(self) -> float:
        """The lower quartile of the latest ones: what a machine that others share does when they leave it alone."""
        return float(np.percentile(self._seen, 25))


class Sampler:
    """Takes samples on one device.

    broken: a CUDA graph could not be captured. Its stream stays the current one then, and the allocator goes on as if
    it were being captured (pytorch 180395 and 190348, mended after 2.12).
    """

    def __init__(
        self,
        device: torch.device,
        *,
        timer: Timer,
        rule: TimingRule,
        execution: Execution = "eager",
        monitor: Monitor | None = None,
        reference: Reference | None = None,
        energy: bool = False,
    ) -> None:
        self._device = device
        self._timer = timer
        self._rule = rule
        self._execution = execution
        self._monitor = monitor
        self._reference = reference
        self._energy = energy
        self._sampled_s = 0.0
        self._retried_s = 0.0
        self.broken = False

    def visit(self, build: Callable[[], Runnable], *, flush_bytes: int = 0) -> Outcome:
        """Build something and sample it. What building or running raises passes through.

        flush_bytes: memory that is read between two calls on a CPU, where a single call is a sample then.
        """
        with torch.inference_mode():
            if self._device.type == "cpu":
                keep_freed_memory()
                with peak_resident() as grown:
                    built = build()
                    built.function()
                timer = self._timer
                if flush_bytes and isinstance(timer, CpuTimer):
                    timer = timer.flushing(flush_bytes)
                return self._sampled(built, built.function, timer, peak=grown[0] if grown else None)
            return self._visit_cuda(build)

    def _visit_cuda(self, build: Callable[[], Runnable]) -> Outcome:
        before = torch.cuda.memory_allocated(self._device)
        kernels = tuned()
        built = build()
        built.function()  # compiles and tunes, with memory of its own
        choice = tuned_since(kernels)
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        held = torch.cuda.memory_allocated(self._device)
        built.function()
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device)
        function, timer = built.function, self._timer
        if self._execution == "cuda-graph":
            function = self._captured(function)
        elif built.state_bytes is not None and isinstance(timer, CudaTimer):
            timer = timer.settled()
        outcome = self._sampled(built, function, timer, peak=peak - before)
        return replace(
            outcome,
            conditions=replace(outcome.conditions, tuned=choice),
            workspace_bytes=peak - held,
            peak_reserved_bytes=torch.cuda.max_memory_reserved(self._device),
        )

    def _captured(self, function: Callable[[], object]) -> Callable[[], object]:
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(3):  # as torch.cuda.graphs asks: lazy initialisation must not be captured
                function()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.broken = True
        with torch.cuda.graph(graph):
            function()
        self.broken = False
        return graph.replay

    def _sampled(
        self, built: Runnable, function: Callable[[], object], timer: Timer, *, peak: int | None
    ) -> Outcome:
        best: tuple[float, Timing, Reading] | None = None
        for attempt in range(_ATTEMPTS):
            started = time.monotonic()
            drift, timing, reading = self._attempt(function, timer)
            spent = time.monotonic() - started
            if attempt:
                self._retried_s += spent
            else:
                self._sampled_s += spent
            if best is None or drift < best[0]:
                best = (drift, timing, reading)
            calm = drift <= _DRIFT and 2 * len(timing.flagged) <= len(timing.samples_ms)
            if calm or self._retried_s > _RETRY_START_S + _RETRY_SHARE * self._sampled_s:
                break
        assert best is not None
        drift, timing, reading = best
        share = 1 / built.copies
        samples = tuple(sample * share for sample in timing.samples_ms)
        return Outcome(
            kernel=built.kernel(),
            samples_ms=samples,
            flagged=timing.flagged,
            conditions=self._conditions(samples, timing, reading, drift),
            peak_memory_bytes=peak,
            peak_reserved_bytes=None,
            workspace_bytes=None,
            state_bytes=built.state_bytes,
            energy_j=self._energy_j(function, statistics.median(timing.samples_ms), share)
            if self._energy
            else None,
        )

    def _attempt(self, function: Callable[[], object], timer: Timer) -> tuple[float, Timing, Reading]:
        """The reference's ratio to its usual value, the samples, and what the monitor saw."""
        before = self._reference.ms() if self._reference else 0.0
        if self._monitor is not None:
            self._monitor.start()
        timing = time_callable(function, timer=timer, rule=self._rule, watch=self._monitor)
        reading = self._monitor.reading() if self._monitor is not None else Reading()
        if self._reference is None:
            return 1.0, timing, reading
        return max(before, self._reference.ms()) / self._reference.usual_ms, timing, reading

    def _conditions(
        self, samples: tuple[float, ...], timing: Timing, reading: Reading, drift: float
    ) -> Conditions:
        flagged = frozenset(timing.flagged)
        counted = [sample for i, sample in enumerate(samples) if i not in flagged] or list(samples)
        marks = {
            "drift": drift > _DRIFT,
            "shared": (reading.waited or 0.0) > _WAITED or bool(reading.other_processes),
            "throttled": "slowdown" in " ".join(reading.throttled),
            "unstable": timing.half_width > self._rule.half_width,
        }
        return Conditions(
            visit_ms=(statistics.median(counted),),
            calls=timing.calls,
            half_width=timing.half_width if timing.half_width < 1e9 else None,
            reference_ms=self._reference.usual_ms * drift if self._reference else None,
            waited=reading.waited,
            clock_mhz=reading.clock_mhz,
            temperature_c=reading.temperature_c,
            power_limit_w=reading.power_limit_w,
            other_processes=reading.other_processes,
            throttled=reading.throttled,
            marks=tuple(name for name in MARKS if marks[name]),
        )

    def _energy_j(self, function: Callable[[], object], call_ms: float, share: float) -> float | None:
        """Joules of one call, between the first and the last move of the counter seen in _ENERGY_S; None without one.

        Read at any other time it lags by what it has not counted yet, a quarter of all where it moves every 0.1 s.
        """
        if self._monitor is None or (joules := self._monitor.energy_j()) is None:
            return None
        batch = max(1, round(_ENERGY_LOOK_MS / call_ms))
        moves: list[tuple[int, float]] = []  # calls until then, and what the counter says
        calls, started = 0, time.monotonic()
        while (spent := time.monotonic() - started) < _ENERGY_S or (
            len(moves) < 2 and spent < _ENERGY_MOST_S
        ):
            for _ in range(batch):
                function()
            torch.cuda.synchronize(self._device)
            calls += batch
            now = self._monitor.energy_j()
            if now is not None and now != joules:
                joules = now
                moves.append((calls, now))
        if len(moves) < 2:
            return None
        (first, before), (last, after) = moves[0], moves[-1]
        return (after - before) / (last - first) * share
