"""Whatever goes wrong while measuring: nothing that was measured is lost, and there is one clear message."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwsearch.errors import InputError, OutputError
from hwsearch.operators import Operator, operator
from hwsearch.profilers.bench import BenchSetup
from hwsearch.profilers.environment import environment, torch_device
from hwsearch.profilers.lock import profiling
from hwsearch.profilers.run import measure_all
from hwsearch.profilers.store import Store
from hwsearch.profilers.timing import TimingRule
from hwsearch.profilers.worker import PROGRAM, Worker
from hwsearch.records import DeviceSpec
from tests.profilers.made_up import made_up_device

_RULE = TimingRule(max_samples=3, min_seconds=0, warmup_seconds=0)
_SETUP = BenchSetup(rule=_RULE)
_GEMMS = [operator("gemm", m=m, n=8, k=8) for m in range(1, 6)]

# A worker in which some kinds of operators do what kernels in trouble do.
_TROUBLE = """
import ctypes, os, time
from hwsearch.profilers import tasks

def segfault(dims, draw):
    ctypes.string_at(0)

def hang(dims, draw):
    print("a library prints to standard output")
    time.sleep(600)

def leave(dims, draw):
    os._exit(3)

tasks._BUILDERS = {
    **tasks._BUILDERS, "short_conv_decode": segfault, "elementwise": hang, "rwkv7_decode": leave
}
"""
_SEGFAULT = operator("short_conv_decode", batch=1, channels=8, width=4)
_HANG = operator("elementwise", rows=1, width=8, reads=1, writes=1)
_LEAVE = operator("rwkv7_decode", batch=1, num_heads=1, head_k_dim=8, head_v_dim=8)


def _device() -> DeviceSpec:
    """This machine's, so that nothing waits for the probe."""
    name = environment(torch_device("cpu")).device_name
    return made_up_device(name)


def _prepared(path: Path) -> Path:
    with Store.open(path, create=True) as store:
        store.add_device(_device())
    return path


def _command(path: Path, *more: str) -> list[str]:
    command = ["profile", "--device", "cpu", "--points", "8", "--visits", "1", "-o", str(path), *more]
    return [sys.executable, "-m", "hwsearch", *command]


def test_a_worker_that_dies_or_hangs_costs_one_row_each(tmp_path: Path) -> None:
    plan: list[Operator] = [*_GEMMS, _SEGFAULT, _HANG, _LEAVE]
    with (
        Store.open(_prepared(tmp_path / "a.db"), create=True) as store,
        Worker(_SETUP, timeout_s=4, program=_TROUBLE + PROGRAM) as bench,
    ):
        summary = measure_all(store, bench, plan, visits=2)
        rows = {row.operator: row for row in store.measurements()}
        again = measure_all(store, bench, plan, visits=2)
    assert (summary.measured, summary.not_ok, summary.skipped) == (5, 3, 0)
    assert (again.measured, again.not_ok, again.skipped) == (0, 0, 8)
    assert {rows[gemm].status for gemm in _GEMMS} == {"ok"}
    assert {rows[gemm].conditions.visits for gemm in _GEMMS if rows[gemm].conditions} <= {2, 3, 4}  # type: ignore[union-attr]
    assert rows[_SEGFAULT].status == "crashed"
    assert rows[_SEGFAULT].reason == "the measuring process died (signal SIGSEGV)"
    assert rows[_HANG].status == "timeout"
    assert rows[_HANG].reason.startswith("no result within 4 s")
    assert rows[_LEAVE].status == "crashed"
    assert "exit status 3" in rows[_LEAVE].reason


def test_what_a_worker_refuses_is_an_error_of_the_user() -> None:
    with (
        Worker(BenchSetup(dtype="int8"), timeout_s=60) as bench,
        pytest.raises(InputError, match="unknown dtype 'int8'"),
    ):
        bench.measure(_GEMMS[0])


def test_a_worker_and_this_process_speak_of_the_same_row(tmp_path: Path) -> None:
    from hwsearch.profilers.bench import LocalBench

    with Worker(_SETUP, timeout_s=60) as there, LocalBench(_SETUP) as here:
        measured = there.measure(_GEMMS[0])
        assert measured.status == "ok"
        assert measured.key == here.pending(_GEMMS[0]).key == there.pending(_GEMMS[0]).key
        assert measured.environment == here.environment


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the worker outlives a killed parent elsewhere"
)
def test_a_killed_profiler_leaves_no_worker_and_no_lock(tmp_path: Path) -> None:
    path = _prepared(tmp_path / "killed.db")
    child = subprocess.Popen(_command(path, "--points", "200"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(_stored(path)) < 3:
        time.sleep(0.2)
    workers = _children(child.pid)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = _stored(path)
    assert len(kept) >= 3
    assert workers
    while time.monotonic() < deadline and any(Path(f"/proc/{worker}/stat").exists() for worker in workers):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}/stat").exists() for worker in workers)
    with profiling(path):  # the lock died with its holder
        pass
    with Store.open(path, create=True) as store:
        assert _stored(path) >= kept
        assert store.measurements()


def _stored(path: Path) -> set[str]:
    with Store.open(path) as store:
        return store.keys()


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def test_a_second_profiler_is_refused_and_reading_is_not(tmp_path: Path) -> None:
    path = _prepared(tmp_path / "a.db")
    with profiling(path):
        second = subprocess.run(_command(path), capture_output=True, text=True, timeout=120)
        with Store.open(path) as store:
            assert store.keys() == set()
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert f"is being profiled into by another process (process {os.getpid()})" in second.stderr
    assert "hwsearch store merge" in second.stderr
    assert not path.with_name("a.db.lock").exists()


def test_out_of_memory_is_a_row_and_the_run_goes_on(tmp_path: Path) -> None:
    """An address-space limit that the parts of the small point fit in and those of the large one do not."""
    path = _prepared(tmp_path / "a.db")
    large = operator("gemm", m=1, n=32000, k=32000)  # 4 GB of weights
    program = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n" + PROGRAM
    with Store.open(path, create=True) as store, Worker(_SETUP, timeout_s=60, program=program) as bench:
        measure_all(store, bench, [large, *_GEMMS[:2]])
        rows = {row.operator: row for row in store.measurements()}
    assert rows[large].status == "oom"
    assert "\n" not in rows[large].reason
    assert {rows[gemm].status for gemm in _GEMMS[:2]} == {"ok"}


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    path = _prepared(tmp_path / "full.db")

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk the write fails; nobody is killed
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    done = subprocess.run(
        _command(path, "--points", "80"), capture_output=True, text=True, timeout=120, preexec_fn=little_room
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write to" in done.stderr
    kept = _stored(path)
    assert kept
    with Store.open(path, create=True) as store:
        assert {row.key for row in store.measurements()} == kept


def test_a_store_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    path = _prepared(tmp_path / "readonly.db")
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    for folder in tmp_path.parents:
        if folder.owner() == tmp_path.owner() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)  # pytest keeps its folders to their owner
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(OutputError, match="cannot write"):
            Store.open(path, create=True)
        with Store.open(path) as store:
            assert store.keys() == set()
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)
