"""A batch of operators measured on several devices of one model, each with a worker of its own.

The executors of the search run the workers: local processes, one for each device of this machine, or tasks on a Ray
cluster, each of which is given one GPU. Workers hand rows back and write to no store of the run's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from hwsearch.errors import DataError
from hwsearch.operators import Operator
from hwsearch.profilers.bench import Bench, BenchSetup
from hwsearch.profilers.run import measure_all, open_bench
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec, Measurement
from hwsearch.search.executors import Executor, ProcessExecutor, WorkerLostError, visible_devices

__all__ = ["Piecework", "local_workers", "share_out"]

_PIECE = 4  # operators that a worker is handed at a time, and loses where it dies


@dataclass(frozen=True, kw_only=True)
class Piecework:
    """What a worker needs to know beside its operators: how to measure, how often, and the ceilings of its device."""

    setup: BenchSetup
    visits: int
    timeout_s: float | None
    spec: DeviceSpec

    def __call__(self, operators: Sequence[Operator]) -> list[Measurement]:
        """In a worker: measure a few operators and hand the rows back."""
        with (
            tempfile.TemporaryDirectory() as folder,
            Store.open(Path(folder) / "piece.db", create=True) as store,
        ):
            bench = _bench(self.setup, self.timeout_s)
            if bench.environment.device_name == self.spec.device_name:
                store.add_device(self.spec)
                measure_all(store, bench, operators, seed=self.setup.seed, visits=self.visits)
            else:
                raise DataError(
                    f"a worker has a {bench.environment.device_name}, the profile is of a {self.spec.device_name}: "
                    "give it workers of one model"
                )
            return store.measurements()


def local_workers(devices: Sequence[str]) -> Executor:
    """A process of this machine for each device: cpu, or cuda:INDEX."""
    return ProcessExecutor(len(devices), devices=() if devices[0] == "cpu" else visible_devices(devices))


def share_out(
    operators: Sequence[Operator],
    work: Piecework,
    executor: Executor,
    *,
    on_row: Callable[[Measurement], None],
) -> None:
    """Measure operators in pieces that go to whichever worker is free; `on_row` gets every row when it is there.

    DataError where a worker dies twice over a piece, or has another model of device.
    """
    first = "cpu" if work.setup.device == "cpu" else "cuda:0"  # a worker sees one device
    own = replace(work, setup=replace(work.setup, device=first))
    pieces = [operators[at : at + _PIECE] for at in range(0, len(operators), _PIECE)]
    running = [executor.submit(own, piece) for piece in pieces]
    try:
        for future in as_completed(running):
            for row in future.result():
                on_row(row)
    except WorkerLostError as error:
        raise DataError(f"{error}; what was measured is stored: run the same command again") from error


@cache
def _bench(setup: BenchSetup, timeout_s: float | None) -> Bench:
    """A worker's bench: opened once, and gone with the worker."""
    return open_bench(setup, timeout_s=timeout_s).__enter__()
