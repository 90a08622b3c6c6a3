"""Executors: workers that die, runs that are killed, and results that no number of workers changes."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsearch.errors import InputError
from hwsearch.search.database import JOURNAL
from hwsearch.search.evaluation import Evaluator, Measured, evaluation_seed
from hwsearch.search.executors import Executor, InlineExecutor, ProcessExecutor, RayExecutor, WorkerLostError
from hwsearch.search.study import RESULT, Study, read_result
from tests.search.slow_objective import SlowLoss, fragile_loss, loss, problem_with, run

ROOT = Path(__file__).parents[2]
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'hwsearch[ray]'"
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        die()
    return "alive"


def fail(text: str) -> None:
    raise KeyError(text)


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with ProcessExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A local cluster that outlives the runs that are killed."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def cluster(ray_address: str) -> Iterator[Executor]:
    with RayExecutor(2) as executor:  # joins the cluster of this process
        yield executor


@pytest.fixture(params=["processes", pytest.param("cluster", marks=NEEDS_RAY)])
def executor(request: pytest.FixtureRequest) -> Executor:
    chosen: Executor = request.getfixturevalue(request.param)
    return chosen


def test_a_dead_worker_costs_a_second_try_and_nothing_else(executor: Executor, tmp_path: Path) -> None:
    lost = executor.submit(die)
    saved = executor.submit(die_once, str(tmp_path / "marker"))
    raised = executor.submit(fail, "x")
    others = [executor.submit(pow, 2, i) for i in range(8)]
    assert [future.result(timeout=60) for future in others] == [2**i for i in range(8)]
    assert saved.result(timeout=60) == "alive"
    assert isinstance(raised.exception(timeout=60), KeyError)
    assert isinstance(lost.exception(timeout=60), WorkerLostError)
    assert executor.submit(pow, 3, 2).result(timeout=60) == 9


def test_what_cannot_be_sent_is_an_error_of_its_task_alone(processes: Executor) -> None:
    assert "pickle" in str(processes.submit(lambda: 1).exception(timeout=60)).lower()
    assert processes.submit(pow, 2, 2).result(timeout=60) == 4


def test_each_worker_sees_its_own_device() -> None:
    with ProcessExecutor(devices=("4", "7")) as executor:
        seen = {executor.submit(_device_after, 0.2).result(timeout=60) for _ in range(1)}
        seen |= {f.result(timeout=60) for f in [executor.submit(_device_after, 0.2) for _ in range(2)]}
    assert seen == {"4", "7"}
    with pytest.raises(InputError, match="at least 1 worker"):
        ProcessExecutor(0)


def _device_after(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_closing_ends_workers_and_cancels_the_rest() -> None:
    executor = ProcessExecutor(1)
    pid = executor.submit(os.getpid).result(timeout=60)
    futures = [executor.submit(time.sleep, 60) for _ in range(3)]
    executor.close()
    assert all(future.cancelled() for future in futures[1:])
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the worker still runs")


def rows(directory: Path) -> list[Any]:
    """Everything but the time, in an order that does not depend on who was first."""
    with sqlite3.connect(directory / JOURNAL) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'evaluation'").fetchone():
            return []  # killed between the file and its first table
        return connection.execute(
            "SELECT generation, position, genome, fidelity, seed, status, costs, violation, error "
            "FROM evaluation ORDER BY generation, position"
        ).fetchall()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("reference") / "run"
    with InlineExecutor() as executor:
        run(directory, executor, measured=Measured(loss))
    return directory


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_leaves_no_trace(reference: Path, tmp_path: Path, workers: int) -> None:
    with ProcessExecutor(workers) as executor:
        run(tmp_path / "run", executor, measured=Measured(SlowLoss(tmp_path / "log")))
    assert (tmp_path / "run" / RESULT).read_bytes() == (reference / RESULT).read_bytes()
    assert rows(tmp_path / "run") == rows(reference)


def test_failed_candidates_are_recorded_once_and_the_search_goes_on(tmp_path: Path) -> None:
    with ProcessExecutor(2) as executor:
        result = run(tmp_path / "run", executor, measured=Measured(fragile_loss), generations=2)
    assert len(result.genomes)
    found = rows(tmp_path / "run")
    reasons = {row[8] for row in found if row[5] == "failed"}
    assert any("died twice" in reason for reason in reasons)
    assert "ValueError: this one cannot be trained" in reasons
    assert any("must be finite" in reason for reason in reasons)
    assert all((row[6] is None) == (row[5] == "failed") for row in found)
    assert len({row[2] for row in found}) == len(found)
    assert not any(sum(genome) % 15 < 3 for genome in result.genomes.tolist())
    # A resumed run asks none of them again, whatever it would take now.
    with InlineExecutor() as inline:
        again = run(tmp_path / "run", inline, measured=Measured(loss), generations=2)
    np.testing.assert_array_equal(again.genomes, result.genomes)


def test_an_objective_that_never_works_is_an_error(tmp_path: Path) -> None:
    with (
        InlineExecutor() as inline,
        pytest.raises(InputError, match="evaluations failed; the first said: KeyError"),
    ):
        run(tmp_path / "run", inline, measured=Measured(_broken))


def _broken(genome: tuple[int, ...], *, fidelity: float, seed: int) -> float:
    raise KeyError("weights")


def test_equal_genomes_are_measured_once_and_seeds_differ(tmp_path: Path) -> None:
    problem = problem_with(Measured(loss, fidelities=(0.5, 1.0)))
    genome = problem.space.sample(1, rng=np.random.default_rng(0))
    with Study.open(tmp_path / "run", settings={}) as study:
        study.bind_problem(problem)
        with InlineExecutor() as inline:
            for fidelity, expected in ((1.0, 1), (0.5, 1)):
                evaluator = Evaluator(problem, seed=1, executor=inline, study=study, fidelity=fidelity)
                costs = evaluator(np.repeat(genome, 3, axis=0))
                assert evaluator.measured == expected
                np.testing.assert_array_equal(costs, np.repeat(costs[:1], 3, axis=0))
            again = Evaluator(problem, seed=1, executor=inline, study=study)
            again(genome)
            assert again.measured == 0
    assert (
        len({evaluation_seed(s, g, f) for s in (0, 1) for g in (genome[0], genome[0] + 1) for f in (0.5, 1)})
        == 8
    )


def test_fidelities_rise_to_one() -> None:
    for wrong in ((), (0.5,), (1.0, 0.5), (0.0, 1.0)):
        with pytest.raises(InputError, match="rise from above 0 to 1"):
            Measured(loss, fidelities=wrong)


def _kill_and_resume(directory: Path, log: Path, executor: str, *, kills: int) -> None:
    """Kills at random moments, each followed by a resumption; then a run to the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.search.slow_objective", str(directory), str(log), executor]
    chance = random.Random(0)
    in_journal: set[str] = set()

    def told() -> list[str]:
        return log.read_text().splitlines() if log.exists() else []

    for kill in range(kills):
        asked = len(told())
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        # One in four falls into the start itself; the others count from its first evaluation, to get somewhere.
        early = kill % 4 == 0
        deadline = time.monotonic() + 60
        while not early and process.poll() is None and time.monotonic() < deadline and len(told()) == asked:
            time.sleep(0.005)
        time.sleep(chance.random() * (1.0 if early else 0.08))
        process.send_signal(signal.SIGKILL)
        process.wait()
        repeated = in_journal & set(told()[asked:])
        assert not repeated, f"measured again although the journal had it: {repeated}"
        if (directory / JOURNAL).exists():
            in_journal = {",".join(map(str, np.frombuffer(row[2], "<i2"))) for row in rows(directory)}
    assert not (directory / RESULT).exists(), "it ended before the last kill: raise its generations"
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("kind", ["2", pytest.param("ray", marks=NEEDS_RAY)])
def test_killed_and_resumed_is_identical(
    reference: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    kills = 10
    name = kind if kind == "2" else f"ray={request.getfixturevalue('ray_address')}"
    directory, log = tmp_path / "run", tmp_path / "log"
    _kill_and_resume(directory, log, name, kills=kills)
    assert read_result(directory)["front"] == read_result(reference)["front"]
    assert rows(directory) == rows(reference)
    # Each kill costs at most what the two workers held.
    measured = log.read_text().splitlines()
    assert len(measured) - len(set(measured)) <= 2 * kills
    assert len(set(measured)) == len(rows(reference))
