"""Plans: the same for a seed, whatever the process; spread; without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from hwsearch.errors import InputError
from hwsearch.operators import KINDS, columns, operator
from hwsearch.profilers.plan import default_plan, plan


def test_plan_is_a_shuffle_without_repeats() -> None:
    operators = [operator("gemm", m=m, n=64, k=64) for m in range(1, 40)]
    planned = plan([*operators, *operators[:7]], seed=3)
    assert sorted(planned) == operators
    assert planned != tuple(operators)
    assert planned == plan(reversed(operators), seed=3)
    assert planned != plan(operators, seed=4)
    assert plan([], seed=0) == ()


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_default_plan_spreads_over_the_kinds(device_type: str) -> None:
    points = default_plan(device_type, points=203, seed=1)
    assert len(set(points)) == 203
    counts = Counter(point.kind for point in points)
    # The presets' kinds; operators of other mixers are measured when a profiled architecture has them.
    assert not set(counts) - set(KINDS)
    assert len(counts) == 8
    assert set(counts.values()) == {25, 26}
    for point in points:
        named = dict(zip(KINDS[point.kind].dims, point.dims, strict=True))
        assert operator(point.kind, **named) == point  # canonical and valid
        if "num_v_heads" in named:
            assert named["num_v_heads"] % named["num_k_heads"] == 0
    rows = [point.dims[0] for point in points if point.kind == "gemm"]
    assert min(rows) <= 4
    assert max(rows) >= (128 if device_type == "cpu" else 8192)
    attention = [point.dims for point in points if point.kind == "context_attention"]
    assert any(dims[2] for dims in attention)
    assert any(dims[6] for dims in attention)


def test_cpu_points_are_small() -> None:
    for point in default_plan("cpu", points=80, seed=0):
        assert KINDS[point.kind].flops(columns(point.kind, [point.dims]))[0] <= 1e9


def test_default_plan_is_the_same_in_every_process_and_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "from hwsearch.profilers.plan import default_plan\n"
        "import hwsearch.profilers.store, hwsearch.profilers.run\n"
        "print(*default_plan('cpu', points=40, seed=5), sep='\\n')\n"
        "assert 'torch' not in sys.modules\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (1, 2)
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].splitlines() == [str(point) for point in default_plan("cpu", points=40, seed=5)]
    assert default_plan("cpu", points=40, seed=5) != default_plan("cpu", points=40, seed=6)


def test_refusals() -> None:
    with pytest.raises(InputError, match="unknown device type 'tpu'"):
        default_plan("tpu", points=8, seed=0)
    with pytest.raises(InputError, match="at least one point, got 0"):
        default_plan("cpu", points=0, seed=0)
    with pytest.raises(InputError, match="ask for fewer points"):
        default_plan("cpu", points=8000, seed=0)
