"""The stopping rule and the two things a sample can be."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
import pytest

from hwsearch.profilers.timing import (
    LOOP_MS,
    CpuTimer,
    Function,
    TimingRule,
    median_interval,
    time_callable,
)

_RULE = TimingRule(min_seconds=0, warmup_seconds=0)


class _Script:
    """A timer whose samples are scripted; it calls nothing but the function."""

    def __init__(self, samples: Iterator[float], *, loops: bool = False) -> None:
        self.loops = loops
        self.calls: list[int] = []
        self._samples = samples

    def sample_ms(self, function: Function, /, *, calls: int) -> float:
        function()
        self.calls.append(calls)
        return next(self._samples)


def test_median_interval_by_hand() -> None:
    # 16 samples: ranks 8 -+ 3.92, so the 5th and the 12th in order around a median of 8.5.
    assert median_interval([float(x) for x in range(16, 0, -1)]) == pytest.approx((12 - 5) / 2 / 8.5)
    assert median_interval([1.0] * 7) == math.inf


def test_median_interval_covers() -> None:
    """On log-normal noise the interval holds the true median about 95 times in a hundred."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        samples = rng.lognormal(0.0, 0.1, size=40)
        # Symmetrised by the relative half-width, so slightly off the nominal level.
        held += bool(abs(1 - np.median(samples)) <= median_interval(list(samples)) * np.median(samples))
    assert 900 < held < 990


def test_quiet_samples_end_early_and_noisy_ones_do_not() -> None:
    quiet = time_callable(int, timer=_Script(itertools.repeat(2.0)), rule=_RULE)
    assert quiet.samples_ms == (2.0,) * 8
    assert quiet.half_width == 0
    noisy = time_callable(int, timer=_Script(itertools.cycle([1.0, 3.0])), rule=_RULE)
    assert len(noisy.samples_ms) == _RULE.max_samples
    assert noisy.half_width > _RULE.half_width


def test_slow_calls_end_at_the_time_cap() -> None:
    rule = TimingRule(max_seconds=0.02, warmup_seconds=0)
    timing = time_callable(lambda: time.sleep(0.015), timer=CpuTimer(), rule=rule)
    assert len(timing.samples_ms) == 3
    assert timing.half_width == math.inf
    assert min(timing.samples_ms) >= 15


def test_short_calls_are_looped_on_a_cpu_only() -> None:
    script = _Script(itertools.repeat(LOOP_MS / 40), loops=True)
    assert time_callable(int, timer=script, rule=_RULE).calls == 40
    assert script.calls == [1, *[40] * 8]
    assert time_callable(int, timer=_Script(itertools.repeat(LOOP_MS / 40)), rule=_RULE).calls == 1
    count = itertools.count()
    timing = time_callable(lambda: next(count), timer=CpuTimer(), rule=_RULE)
    assert timing.calls > 100
    assert timing.samples_ms[0] < LOOP_MS


def test_a_stall_in_the_warm_up_does_not_shrink_the_loop() -> None:
    rule = TimingRule(min_seconds=0, warmup_seconds=0.005)
    script = _Script(itertools.chain([50.0], itertools.repeat(LOOP_MS / 10)), loops=True)
    assert time_callable(lambda: time.sleep(0.001), timer=script, rule=rule).calls == 10


def test_failures_pass_through() -> None:
    def fail() -> None:
        raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"):
        time_callable(fail, timer=CpuTimer(), rule=_RULE)
