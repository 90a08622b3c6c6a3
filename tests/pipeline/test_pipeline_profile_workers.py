"""A batch of operators measured by workers: rows come back, and a worker with another device is refused by name."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from hwsearch.errors import DataError
from hwsearch.operators import operator
from hwsearch.pipeline.active import Stop
from hwsearch.pipeline.profile_workers import Piecework, share_out
from hwsearch.pipeline.profiling import Profile
from hwsearch.profilers.bench import BenchSetup
from hwsearch.profilers.environment import environment, torch_device
from hwsearch.profilers.store import Store
from hwsearch.profilers.timing import TimingRule
from hwsearch.records import Measurement
from hwsearch.search.executors import InlineExecutor, RayExecutor
from tests.profilers.made_up import made_up_device

pytest.importorskip("torch")

_SETUP = BenchSetup(dtype="float32", rule=TimingRule(max_samples=3, min_seconds=0, warmup_seconds=0))
_GEMMS = [operator("gemm", m=m, n=8, k=8) for m in range(1, 8)]


def test_workers_share_a_batch() -> None:
    here = made_up_device(environment(torch_device("cpu")).device_name)
    work = Piecework(setup=_SETUP, visits=1, timeout_s=None, spec=here)
    rows: list[Measurement] = []
    with InlineExecutor() as executor:
        share_out(_GEMMS, work, executor, on_row=rows.append)
    assert {row.operator for row in rows} == set(_GEMMS)
    other = dataclasses.replace(work, spec=made_up_device("another GPU"))
    with InlineExecutor() as executor, pytest.raises(DataError, match="the profile is of another GPU"):
        share_out(_GEMMS, other, executor, on_row=rows.append)


def test_a_profile_hands_its_operators_to_the_workers_given(tmp_path: Path) -> None:
    opened: list[InlineExecutor] = []

    def workers() -> InlineExecutor:
        opened.append(InlineExecutor())
        return opened[-1]

    task = Profile(
        devices=("cpu",), setup=_SETUP, plan="random", stop=Stop(points=8), visits=1, workers=workers
    )
    with Store.open(tmp_path / "a.db", create=True) as store:
        store.add_device(made_up_device(environment(torch_device("cpu")).device_name))
        found = task.run(store)
        assert len(store.measurements()) == 8
    assert (found.measured, found.not_ok) == (8, 0)
    assert opened


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'hwsearch[ray]'"
)
def test_ray_workers_share_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    task = Profile(
        devices=("cpu",),
        setup=_SETUP,
        plan="random",
        stop=Stop(points=9),
        visits=1,
        workers=lambda: RayExecutor(2),
    )
    with Store.open(tmp_path / "a.db", create=True) as store:
        store.add_device(made_up_device(environment(torch_device("cpu")).device_name))
        found = task.run(store)
        rows = store.measurements()
    assert (found.measured, found.not_ok) == (9, 0)
    assert len({row.operator for row in rows}) == 9
    assert all(row.median_ms > 0 for row in rows)
