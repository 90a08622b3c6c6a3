"""The CUDA path with torch.cuda made up: what is called in which order. That it measures, only a GPU can show."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from hwsearch.errors import DataError, InputError
from hwsearch.operators import operator
from hwsearch.profilers import probe, sampling, tasks, timing
from hwsearch.profilers.environment import environment
from hwsearch.profilers.monitor import CudaMonitor, Reading
from hwsearch.profilers.sampling import Runnable, Sampler
from hwsearch.profilers.timing import CpuTimer, CudaTimer, TimingRule
from hwsearch.profilers.workbench import Workbench
from hwsearch.records import Execution

_GPU = torch.device("cuda", 1)
_RULE = TimingRule(max_samples=3, min_seconds=0, warmup_seconds=0)
_GEMM = operator("gemm", m=3, n=5, k=7)


class _Graph:
    """Replays what was called while it was captured."""

    calls = 0

    def replay(self) -> None:
        _Graph.calls += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.cuda without a device; `capturing` says whether a graph is being captured."""
    seen = SimpleNamespace(capturing=False, device=None, synchronized=0)
    stream = SimpleNamespace(wait_stream=lambda other: None)

    @contextmanager
    def capture(graph: object) -> Iterator[None]:
        seen.capturing = True
        try:
            yield
        finally:
            seen.capturing = False

    def synchronize(device: object = None) -> None:
        seen.synchronized += 1

    made_up = {
        "set_device": lambda device: setattr(seen, "device", device),
        "synchronize": synchronize,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (1 << 40, 1 << 40),
        "current_stream": lambda device=None: stream,
        "Stream": lambda device=None: stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": _Graph,
        "graph": capture,
    }
    for name, value in made_up.items():
        monkeypatch.setattr(torch.cuda, name, value)
    _Graph.calls = 0
    return seen


def _bench(execution: Execution) -> Workbench:
    return Workbench(
        device=_GPU,
        dtype="bfloat16",
        environment=environment(torch.device("cpu")),
        timer=CpuTimer(),
        rule=_RULE,
        seed=0,
        execution=execution,
    )


def test_a_graph_is_captured_after_the_function_has_run_and_replayed_from_then_on(
    cuda: SimpleNamespace,
) -> None:
    calls: list[bool] = []
    sampler = Sampler(_GPU, timer=CpuTimer(), rule=_RULE, execution="cuda-graph")
    built = Runnable(function=lambda: calls.append(cuda.capturing), kernel=lambda: "made up")
    sampler.visit(lambda: built)
    assert calls == [False] * 5 + [True]  # compiles; counts memory; three on the side; captured
    assert _Graph.calls >= 3
    assert not sampler.broken


def test_a_graph_that_cannot_be_captured_is_a_row_and_the_end_of_its_process(
    cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synchronizes() -> None:
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    built = Runnable(function=synchronizes, kernel=lambda: "made up")
    monkeypatch.setattr(tasks, "_BUILDERS", {"gemm": lambda dims, draw: built})
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    bench = _bench("eager")
    assert bench.measure(_GEMM).status == "ok"
    bench.release()
    bench = _bench("cuda-graph")
    row = bench.measure(_GEMM)
    assert (row.status, row.reason) == ("failed", "operation not permitted when stream is capturing")
    with pytest.raises(DataError, match=r"cuda:1 unusable in this process.*run the same command again"):
        bench.release()


def test_events_and_kernels_go_to_the_device_that_is_timed(
    cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole models and the doctor time through it too, on cuda:1 as on cuda:0."""
    monkeypatch.setattr(probe, "cache_bytes", lambda device: 0)
    monkeypatch.setattr(probe, "CudaTimer", lambda device, l2_bytes: device)
    probe.timer_for(_GPU)
    assert cuda.device == _GPU


class _Event:
    def __init__(self, *, enable_timing: bool) -> None: ...

    def record(self) -> None:
        _CALLS.append("event")

    def elapsed_time(self, other: object) -> float:
        return 1.0


_CALLS: list[str] = []


@pytest.mark.parametrize(
    ("execution", "state_bytes", "expected"),
    [
        (
            "eager",
            None,
            ["event", "call", "event", "wait"],
        ),  # an operator: launches hide behind the overwrite
        ("eager", 0, ["wait", "event", "call", "event", "wait"]),  # a layer or a model
        ("cuda-graph", 0, ["event", "event", "wait"]),
    ],
)
def test_launches_count_in_what_runs_eagerly(
    cuda: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    execution: Execution,
    state_bytes: int | None,
    expected: list[str],
) -> None:
    """The same time that hides is half of a stack of four layers and little of a model of twenty-eight."""
    monkeypatch.setattr(timing, "_FLUSH_BYTES", 8)
    timer = CudaTimer(torch.device("cpu"), l2_bytes=0)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: _CALLS.append("wait"))
    rule = dataclasses.replace(_RULE, max_samples=1)
    sampler = Sampler(_GPU, timer=timer, rule=rule, execution=execution)
    built = Runnable(function=lambda: _CALLS.append("call"), kernel=lambda: "", state_bytes=state_bytes)
    _CALLS.clear()
    sampler.visit(lambda: built)
    assert _CALLS[-len(expected) :] == expected
    assert _CALLS[-len(expected) - 1] == "wait"  # of the warm-up


@dataclasses.dataclass
class _Counter:
    """A device of 300 W whose counter moves every 0.1 s; a call takes `call_s`."""

    call_s: float
    now_s: float = 0.07
    moves: bool = True

    def monotonic(self) -> float:
        return self.now_s

    def call(self) -> None:
        self.now_s += self.call_s

    def energy_j(self) -> float:
        return 30.0 * int(self.now_s / 0.1) if self.moves else 0.0

    def start(self) -> None: ...

    def disturbed(self) -> bool:
        return False

    def reading(self) -> Reading:
        return Reading()


@pytest.mark.parametrize("call_s", [2e-5, 1e-3, 0.03, 0.5])
def test_energy_is_counted_between_two_moves_of_the_counter(
    cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, call_s: float
) -> None:
    counter = _Counter(call_s)
    monkeypatch.setattr(sampling, "time", counter)
    sampler = Sampler(_GPU, timer=CpuTimer(), rule=_RULE, monitor=counter)
    found = sampler._energy_j(counter.call, 1e3 * call_s, 0.5)
    # A look comes up to 5 ms, or a call, after the counter has moved.
    assert found == pytest.approx(0.5 * 300 * call_s, rel=0.02 if call_s < 0.03 else 0.25)
    assert counter.now_s < 1.8


def test_a_counter_that_stands_still_tells_nothing(
    cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = _Counter(1e-3, moves=False)
    monkeypatch.setattr(sampling, "time", counter)
    sampler = Sampler(_GPU, timer=CpuTimer(), rule=_RULE, monitor=counter)
    assert sampler._energy_j(counter.call, 1.0, 1.0) is None
    assert counter.now_s < 1.4


class _NVMLError(Exception):
    pass


def _nvml(**functions: object) -> ModuleType:
    """nvidia-ml-py of one H100; what is not given here is not permitted."""

    def refused(*asked: object) -> object:
        raise _NVMLError("Insufficient Permissions")

    module = ModuleType("pynvml")
    module.__spec__ = ModuleSpec("pynvml", None)
    names = "CurrentClocksThrottleReasons ComputeRunningProcesses PowerManagementLimit ClockInfo Temperature"
    for name in (*names.split(), "TotalEnergyConsumption", "MaxClockInfo", "HandleByUUID"):
        setattr(module, f"nvmlDeviceGet{name}", refused)
    given = {"NVMLError": _NVMLError, "nvmlInit": lambda: None, "nvmlSystemGetDriverVersion": lambda: "580.1"}
    constants = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
    for name, value in {**given, **constants, **functions}.items():
        setattr(module, name, value)
    return module


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="0f-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")


def test_a_gpu_is_matched_by_its_uuid_and_watched(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _nvml(
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
        nvmlDeviceGetMaxClockInfo=lambda handle, clock: {1: 1980, 2: 2619}[clock],
        nvmlDeviceGetClockInfo=lambda handle, clock: 1755,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: ["this one", "another"],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x24,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 5000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    place = environment(_GPU)
    assert (place.device_uuid, place.driver) == ("GPU-0f-1", "580.1")
    assert place.clocks == "at most 1980 MHz, memory 2619 MHz"
    monitor = CudaMonitor(_GPU)
    assert monitor.disturbed()
    assert monitor.energy_j() == 5.0
    reading = monitor.reading()
    assert (reading.clock_mhz, reading.other_processes, reading.power_limit_w) == (1755, 1, None)
    assert reading.throttled == ("software power cap", "software thermal slowdown")


def test_what_a_container_may_not_ask_is_not_known(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(nvmlDeviceGetHandleByUUID=lambda uuid: uuid))
    monitor = CudaMonitor(_GPU)
    assert not monitor.disturbed()
    assert (monitor.reading(), monitor.energy_j()) == (Reading(), None)
    # In some containers not even this process is listed.
    module = _nvml(nvmlDeviceGetHandleByUUID=str, nvmlDeviceGetComputeRunningProcesses=lambda handle: [])
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert CudaMonitor(_GPU).reading().other_processes == 0


def test_a_device_that_nvml_does_not_know_is_named(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml())
    with pytest.raises(InputError, match=r"NVML does not know cuda:1 \(GPU-0f-1: Insufficient Permissions\)"):
        environment(_GPU)
