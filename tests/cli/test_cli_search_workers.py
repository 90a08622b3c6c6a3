"""hwsearch search over a quality that is measured: workers, executors, resumption, and wrong input."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.cli.conftest import Call

MEASURED = (
    "search", "--base", "Qwen3-1.7B", "--device", "h100-sxm",
    "--quality", "tests.search.slow_objective:architecture_loss",
    "--workload", "decode:batch=16,context=32k", "--budget", "latency<=6ms",
)  # fmt: skip
SUMMED = (*MEASURED[:6], "qwen3-1.7b-sweep", *MEASURED[7:])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one worker, undisturbed."""
    from hwsearch.cli.main import run

    directory = tmp_path_factory.mktemp("alone") / "run"
    assert run([*MEASURED, "--evaluations", "60", "-o", str(directory)]) == 0
    return directory


def test_workers_and_a_resumption_leave_no_trace(hwsearch: Call, tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    first = hwsearch(*MEASURED, "--evaluations", 40, "--workers", 3, "-o", run, "--json").json
    assert first["evaluations"] == 40
    assert first["exact"] is None
    assert first["gap"] is None
    assert first["best"]["quality_loss_low"] is None
    shown = hwsearch(*MEASURED, "--evaluations", 60, "--workers", 2, "-o", run, "--resume")
    assert "measured by tests.search.slow_objective:architecture_loss" in shown.out
    assert (run / "result.json").read_bytes() == (alone / "result.json").read_bytes()
    state = hwsearch("study", "show", run, "--json").json
    assert state["evaluations"] == 60
    assert state["failed"] > 0
    assert hwsearch("export", run, "--pick", "knee", "-o", tmp_path / "arch.json").status == 0


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'hwsearch[ray]'"
)
def test_ray_gives_the_same(
    hwsearch: Call, tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    run = tmp_path / "run"
    outcome = hwsearch(*MEASURED, "--evaluations", 60, "--workers", 2, "--executor", "ray", "-o", run)
    assert outcome.status == 0, outcome.err
    assert (run / "result.json").read_bytes() == (alone / "result.json").read_bytes()


def test_each_named_gpu_has_a_worker_of_its_own(
    hwsearch: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is touched: what counts is what each worker is allowed to see."""
    log = tmp_path / "log"
    monkeypatch.setenv("DEVICE_LOG", str(log))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    given = (*MEASURED, "--quality", "tests.search.slow_objective:on_a_device", "--evaluations", 24)
    devices = ("--worker-device", "cuda:2", "--worker-device", "cuda:0")
    assert hwsearch(*given, *devices, "-o", tmp_path / "run").status == 0
    seen = {tuple(line.split()) for line in log.read_text().splitlines()}
    assert {device for device, _ in seen} == {"GPU-c", "GPU-a"}
    assert len(seen) == 2, "one process for each device"


def test_sums_of_a_sweep_start_no_worker_and_say_so(hwsearch: Call, tmp_path: Path) -> None:
    outcome = hwsearch(*SUMMED, "--evaluations", 400, "--workers", 2, "-o", tmp_path / "run", "--json")
    assert "workers are not started" in outcome.err
    assert outcome.json["evaluations"] == 400
    assert outcome.json["exact"]["proven"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--quality", "no.such.module:loss"), "cannot import no.such.module"),
        (("--quality", "tests.search.slow_objective:LAYERS"), "has no function LAYERS"),
        (("--task", "mmlu"), "picks tasks of a sweep"),
        (("--assume", "none=1"), "--assume states what a sweep does not know"),
        (("--solver", "exact"), "search by evolution"),
        (("--generations", "3", "--evaluations", "60"), "give one of the two"),
        (("--worker-device", "cuda:0", "--workers", "2"), "each device has one worker"),
        (("--worker-device", "cuda:0", "--worker-device", "cuda"), "name each once"),
        (("--worker-device", "gpu0"), "unknown device 'gpu0'"),
        (("--worker-device", "cuda:0", "--executor", "ray"), "write --worker-device cuda"),
        (("--quality", "tests.search.slow_objective:fail"), "evaluations failed; the first said"),
    ],
)
def test_wrong_input_is_one_line(hwsearch: Call, tmp_path: Path, more: tuple[str, ...], told: str) -> None:
    assert told in hwsearch(*MEASURED, *more, "-o", tmp_path / "run").complaint
    assert not (tmp_path / "run").exists() or "fail" in more[1]
