"""Profiling into a store: resume, interrupts, and a kill in the middle."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwsearch.errors import InputError
from hwsearch.operators import Operator, operator
from hwsearch.profilers.environment import environment, torch_device
from hwsearch.profilers.run import Progress, Summary, contention, profile
from hwsearch.profilers.store import Store
from hwsearch.profilers.timing import TimingRule
from hwsearch.records import Measurement
from tests.profilers.made_up import made_up_device

_RULE = TimingRule(max_samples=3, min_seconds=0, warmup_seconds=0)
_OPERATORS = [operator("gemm", m=m, n=8, k=8) for m in range(1, 13)]

_CHILD = """
import sys
from hwsearch.operators import operator
from hwsearch.profilers.run import profile
from hwsearch.profilers.store import Store
from hwsearch.profilers.timing import TimingRule

rule = TimingRule(half_width=0, max_seconds=0.05, warmup_seconds=0)  # every operator takes its 50 ms
operators = [operator("gemm", m=m, n=8, k=8) for m in range(1, 13)]
with Store.open(sys.argv[1], create=True) as store:
    profile(store, operators, rule=rule, on_progress=lambda p: print(p.measurement.key, flush=True))
"""


def _with_device(path: Path) -> Store:
    """A store for writing that knows this machine's ceilings, so that no test waits for the probe."""
    store = Store.open(path, create=True)
    name = environment(torch_device("cpu")).device_name
    store.add_device(made_up_device(name))
    return store


def _counts(summary: Summary) -> tuple[int, int, int]:
    return summary.skipped, summary.measured, summary.not_ok


def test_profile_measures_what_is_missing(tmp_path: Path) -> None:
    seen: list[Progress] = []
    moe = operator("moe", num_tokens=4, hidden_size=8, inter_size=8, topk=2, num_experts=4)
    huge = operator("gemm", m=1 << 24, n=1 << 14, k=1 << 14)
    with _with_device(tmp_path / "a.db") as store:
        first = profile(store, _OPERATORS[:5], rule=_RULE)
        second = profile(store, [*_OPERATORS, moe, huge], rule=_RULE, on_progress=seen.append)
        third = profile(store, [*_OPERATORS, moe, huge], rule=_RULE, seed=9)
        rows = store.measurements()
    assert _counts(first) == (0, 5, 0)
    assert _counts(second) == (5, 7, 2)
    assert third == Summary(skipped=14, measured=0, not_ok=0)  # nothing was timed, nothing to warn of
    assert [(p.done, p.total) for p in seen] == [(done, 14) for done in range(6, 15)]
    assert {row.operator: row.status for row in rows} == {
        **dict.fromkeys(_OPERATORS, "ok"),
        moe: "failed",
        huge: "oom",
    }


def test_contention_is_named() -> None:
    assert contention(taken=0.1, threads=2, cores=2) == ""
    assert contention(taken=6.0, threads=2, cores=8) == ""
    assert "kept 1.0 of 2 cores busy while 2 threads were timed" in contention(taken=0.98, threads=2, cores=2)


def test_another_dtype_is_another_measurement(tmp_path: Path) -> None:
    with _with_device(tmp_path / "a.db") as store:
        profile(store, _OPERATORS[:2], rule=_RULE)
        assert profile(store, _OPERATORS[:2], dtype="bfloat16", rule=_RULE).measured == 2
        with pytest.raises(InputError, match="unknown dtype 'int8'"):
            profile(store, _OPERATORS[:2], dtype="int8", rule=_RULE)
        assert len(store.keys()) == 4


def test_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    done: list[Operator] = []

    def interrupt(progress: Progress) -> None:
        assert isinstance(progress.measurement, Measurement)
        done.append(progress.measurement.operator)
        if len(done) == 4:
            raise KeyboardInterrupt

    path = tmp_path / "a.db"
    with pytest.raises(KeyboardInterrupt), _with_device(path) as store:
        profile(store, _OPERATORS, rule=_RULE, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == [path]
    with Store.open(path, create=True) as store:
        assert {row.operator for row in store.measurements()} == set(done)
        assert _counts(profile(store, _OPERATORS, rule=_RULE)) == (4, 8, 0)


def _start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, text=True)


def test_kill_and_restart(tmp_path: Path) -> None:
    path = tmp_path / "killed.db"
    _with_device(path).close()
    child = _start(path)
    assert child.stdout is not None
    first = [child.stdout.readline().strip() for _ in range(4)]
    time.sleep(0.02)  # into the next measurement
    child.send_signal(signal.SIGKILL)
    first += child.stdout.read().split("\n")[:-1]
    assert child.wait() == -signal.SIGKILL
    assert 4 <= len(first) < len(_OPERATORS)

    # What the killed run left is whole, readable, and not changed by reading.
    before = path.read_bytes()
    with Store.open(path) as store:
        kept = {row.key: row for row in store.measurements()}
    assert set(first) <= set(kept)
    assert len(kept) <= len(first) + 1  # killed between the commit and its announcement
    assert path.read_bytes() == before

    child = _start(path)
    assert child.stdout is not None
    second = child.stdout.read().splitlines()
    assert child.wait() == 0
    assert not set(second) & set(kept)  # nothing is measured twice
    with Store.open(path) as store:
        rows = {row.key: row for row in store.measurements()}
    assert {row.operator for row in rows.values()} == set(_OPERATORS)
    assert {key: rows[key] for key in kept} == kept  # nothing is lost or changed
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert list(tmp_path.iterdir()) == [path]
