"""The scripts in benchmarks/gpu on a CPU at toy sizes: each must work the first time that there is a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from hwsearch.cli.main import cli
from hwsearch.profilers import run
from hwsearch.profilers.bench import BenchSetup
from hwsearch.profilers.timing import TimingRule
from hwsearch.profilers.whole import WholeBench
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import FullAttention

_FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
_BASE = Base(
    name="tiny",
    family="qwen3",
    num_layers=3,
    hidden_size=64,
    vocab_size=32,
    mixer=FullAttention(num_heads=2, num_kv_heads=1, head_dim=32, qk_norm=True),
    ffn=SwiGLU(intermediate_size=24),
    tie_word_embeddings=True,
    max_position_embeddings=512,
)
_QUICK = TimingRule(max_samples=3, min_seconds=0, warmup_seconds=0)


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_end_to_end_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = _script("end_to_end")
    monkeypatch.setattr(script, "base_named", lambda name: _BASE)
    monkeypatch.setattr(script, "BenchSetup", lambda **given: BenchSetup(rule=_QUICK, **given))
    monkeypatch.setattr(run, "LocalBench", None)  # layers in a process of their own, the ceilings too
    visits: Counter[str] = Counter()
    visit = WholeBench.visit

    def counted(self: WholeBench, *given: Any, **named: Any) -> Any:
        visits["mix"] += 1
        return visit(self, *given, **named)

    monkeypatch.setattr(WholeBench, "visit", counted)

    def call(minutes: str) -> dict[str, Any]:
        command = ["--device", "cpu", "--execution", "eager", "--backend", "torch", "--visits", "1"]
        command += ["--workload", "decode:batch=1,context=16", "--architectures", "6", "--minutes", minutes]
        out = tmp_path / "new" / "result.json"
        monkeypatch.setattr(
            sys, "argv", ["end_to_end.py", *command, "--work", str(tmp_path / "work"), "-o", str(out)]
        )
        script.main()
        said: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert ("left" in said) != out.exists()
        return said

    assert "visits to layers" in call("0")["left"]
    found = call("5")
    assert [len(rows) for rows in found["rows"].values()] == [6]
    (agreement,) = found["workloads"].values()
    assert (agreement["architectures"], agreement["not_predicted"]) == (6, 0)
    assert visits["mix"] == 2  # of six models five are measured together, around one mix
    assert call("5") == found
    assert visits["mix"] == 2
    (tmp_path / "work" / "Qwen3-1.7B-eager-3.json").unlink()
    (tmp_path / "new" / "result.json").unlink()
    assert "1 of 6 whole models" in call("0")["left"]


_CASES = """
import torch
from types import SimpleNamespace
import kernel_cases, kernel_timing
def captured(run):
    run()
    return SimpleNamespace(replay=run)
kernel_timing.captured = kernel_cases.captured = captured
kernel_timing.time_ms = kernel_cases.time_ms = lambda run, repeats=0: run() is None or 1.0
torch.cuda.synchronize = lambda: None
kernel_cases.FLA, kernel_cases.HEADS = False, 2
cpu = torch.device("cpu")
with torch.no_grad():
    step = kernel_cases._step_case(1, cpu, 1e12)
    assert "unfused_triton_ms" in step and "unfused_fla_ms" not in step, step
    delta = kernel_cases._delta_case(1, cpu, 1e12)
    assert set(delta["relative_errors"]) == {"triton"}, delta
    kernel_cases._tile_case(1, 4096, 2, cpu, 1e12)
    kernel_cases._conv_case(1, 20, cpu, 1e12)
    kernel_cases._prefill_case(1, 24, cpu)
    for spec in kernel_cases.DECODED.values():
        kernel_cases._graph_case(spec, cpu)
print("all cases ran")
"""


def test_kernels_are_checked_and_timed_without_fla() -> None:
    """In Triton's interpreter, with nothing captured: what a GPU adds is the times."""
    pytest.importorskip("triton", reason="triton is not installed: its kernels are not tested")
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(_FOLDER), *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", _CASES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all cases ran" in done.stdout


def test_the_sections_together_end_within_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(_FOLDER)
    script = _script("kernels")
    assert set(script.SECONDS) == set(script.SECTIONS)
    assert sum(script.SECONDS.values()) < 590


def test_the_constants_of_a_host_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = _script("host_constants")
    monkeypatch.setattr(script, "TimingRule", lambda **given: _QUICK)
    monkeypatch.setattr(sys, "argv", ["host_constants.py", "--device", "cpu", "--gib", "0.01"])
    script.main()
    said = json.loads(capsys.readouterr().out)
    assert min(said[name] for name in ("copy_bytes_per_s", "cat_bytes_per_s", "eager_module_call_us")) > 0


def test_half_an_hour_on_a_gpu_is_spent_as_it_should(tmp_path: Path) -> None:
    """Every command line of the script parses, names files that are there, and stages end within their ten minutes."""
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/asked\nexit 1\n')
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    seconds = []
    for stage in ("1", "2", "3", "4"):
        done = subprocess.run(
            ["bash", str(_FOLDER / "loan.sh"), stage, str(tmp_path / "kept")],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert f"stage {stage} is over" in done.stdout, done.stderr  # though every step failed
        seconds.append(sum(map(int, re.findall(r"at most (\d+) s", done.stdout))))
    assert max(seconds[0], seconds[1], seconds[2] + seconds[3]) <= 570
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines() if line[:2] != "-c"]
    assert len(asked) == 12
    for program, *rest in asked:
        if program == "-m" and rest[0] == "hwsearch":
            command = cli.get_command(click.Context(cli), rest[1])
            assert command is not None
            command.make_context(rest[1], rest[2:])  # refuses an option that is not there
        else:
            file = Path(program if program != "-m" else rest[-1])
            script = (_FOLDER.parents[1] / file).read_text()
            options = {each for each in rest if each.startswith("--")} if program != "-m" else set()
            assert all(f'"{option}"' in script for option in options), (file, options)
