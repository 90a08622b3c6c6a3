"""What measures: a bench in this process, or one in a process of its own (worker.py) behind the same interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from hwsearch.errors import InputError
from hwsearch.kernels import require_torch
from hwsearch.operators import dtype_bytes
from hwsearch.profilers.rows import Row, Subject
from hwsearch.profilers.timing import TimingRule
from hwsearch.records import DeviceSpec, Environment, Execution

if TYPE_CHECKING:
    from hwsearch.profilers.workbench import Workbench

__all__ = ["Bench", "BenchSetup", "LocalBench"]


@dataclass(frozen=True, kw_only=True)
class BenchSetup:
    """How to measure. dtype None: float32 on a CPU, bfloat16 on CUDA. energy: of a call, where there is a counter."""

    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0
    rule: TimingRule = field(default_factory=TimingRule)
    backend: str = "torch"
    execution: Execution = "eager"
    energy: bool = False


class Bench(Protocol):
    """Measures subjects one by one."""

    @property
    def environment(self) -> Environment: ...

    @property
    def dtype(self) -> str: ...

    @property
    def threads(self) -> int:
        """Threads that compute; 0 on a GPU."""
        ...

    @property
    def child_seconds(self) -> float:
        """CPU time of the bench's own process, where it has one."""
        ...

    def probe(self) -> DeviceSpec:
        """The device's ceilings, measured now."""
        ...

    def pending(self, subject: Subject) -> Row:
        """The row of a subject without its outcome: its key is already the one it will have."""
        ...

    def measure(self, subject: Subject, *, visit: int = 0) -> Row:
        """One visit to a subject; what cannot run is a row whose status and reason say so."""
        ...

    def release(self) -> None:
        """Give memory back between subjects; DataError where the device is unusable in this process."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalBench:
    """Measures in this process. Raises InputError for a device, dtype or execution that cannot be used."""

    def __init__(self, setup: BenchSetup) -> None:
        self._setup = setup
        self._made: Workbench | None = None

    @property
    def workbench(self) -> Workbench:
        """The workbench, made when it is first needed."""
        if self._made is None:
            self._made = _workbench(self._setup)
        return self._made

    @property
    def environment(self) -> Environment:
        return self.workbench.environment

    @property
    def dtype(self) -> str:
        return self.workbench.dtype

    @property
    def threads(self) -> int:
        import torch

        return torch.get_num_threads() if self.workbench.device.type == "cpu" else 0

    @property
    def child_seconds(self) -> float:
        return 0.0

    def probe(self) -> DeviceSpec:
        from hwsearch.profilers.probe import probe_device

        return probe_device(self.workbench.device, dtype=self.dtype)

    def pending(self, subject: Subject) -> Row:
        return self.workbench.pending(subject)

    def measure(self, subject: Subject, *, visit: int = 0) -> Row:
        return self.workbench.measure(subject, visit=visit)

    def release(self) -> None:
        self.workbench.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made = None


def _workbench(setup: BenchSetup) -> Workbench:
    require_torch(purpose="profiling")
    from hwsearch.profilers.environment import default_dtype, environment, torch_device
    from hwsearch.profilers.monitor import monitor_of
    from hwsearch.profilers.probe import timer_for
    from hwsearch.profilers.sampling import Reference
    from hwsearch.profilers.workbench import Workbench

    device = torch_device(setup.device)
    if setup.execution == "cuda-graph" and device.type != "cuda":
        raise InputError(
            f"execution cuda-graph needs a CUDA device, not {setup.device}: leave --execution out"
        )
    dtype = setup.dtype or default_dtype(device.type)
    dtype_bytes(dtype)  # refuses an unknown one before anything is measured
    timer = timer_for(device)
    return Workbench(
        device=device,
        dtype=dtype,
        environment=environment(device),
        timer=timer,
        rule=setup.rule,
        seed=setup.seed,
        backend=setup.backend,
        execution=setup.execution,
        monitor=monitor_of(device),
        reference=Reference(device, timer=timer),
        energy=setup.energy,
    )
