"""hwsearch search and export: the issue's own example, resuming after a kill, wrong input."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwsearch.searchspace.architecture import Architecture
from tests.cli.conftest import Call

WORKLOAD = "decode:batch=16,context=32768"
EXAMPLE = (
    "search", "--base", "Qwen3-1.7B", "--device", "h100-sxm", "--quality", "qwen3-1.7b-sweep",
    "--workload", WORKLOAD, "--budget", "latency<=6ms",
)  # fmt: skip
SHORT = ("--population", "40", "--generations", "30")


def test_the_best_is_within_half_a_percent_of_the_exact_optimum(hwsearch: Call, tmp_path: Path) -> None:
    found = hwsearch(*EXAMPLE, "-o", tmp_path / "run", "--json").json
    assert found["exact"]["proven"]
    assert 0 <= found["gap"] <= 0.005
    assert found["best"]["latency_ms"] <= 6
    assert found["best"]["prediction"]["latency_ms"] == pytest.approx(found["best"]["latency_ms"])
    assert found["front"][0]["latency_ms"] == pytest.approx(found["best"]["latency_ms"], rel=1e-9)
    assert found["front"][0]["quality_loss"] == pytest.approx(found["best"]["quality_loss"])
    losses = [row["quality_loss"] for row in found["front"]]
    latencies = [row["latency_ms"] for row in found["front"]]
    assert losses == sorted(losses)
    assert latencies == sorted(latencies, reverse=True)
    assert len({round(latency, 6) for latency in latencies}) == len(latencies)


def test_exports_load_back_equal_and_predict_as_searched(hwsearch: Call, tmp_path: Path) -> None:
    found = hwsearch(*EXAMPLE, *SHORT, "-o", tmp_path / "run", "--json").json
    picks = ["best", "knee", "exact", str(len(found["front"]) - 1)]
    for pick in picks:
        path = tmp_path / f"{pick}.json"
        written = hwsearch("export", tmp_path / "run", "--pick", pick, "-o", path, "--json").json
        architecture = Architecture.load(path)
        assert architecture.to_json() == path.read_text()
        assert written["mixers"] == dict(architecture.count())
    predicted = hwsearch(
        "predict", "--arch", tmp_path / "best.json", "--device", "h100-sxm", "--workload", WORKLOAD, "--json"
    ).json
    assert predicted["latency_ms"] == pytest.approx(found["best"]["latency_ms"])
    assert predicted["memory_bytes"] == found["best"]["memory_bytes"]


def test_budgets_of_every_kind_are_met(hwsearch: Call, tmp_path: Path) -> None:
    found = hwsearch(
        *EXAMPLE[:-1], "latency<=9ms", "--budget", "memory<=14GiB", "--budget", "throughput>=2000",
        "--budget", "full_attention<=4", "--budget", "full_attention>=2", *SHORT, "-o", tmp_path / "run", "--json",
    ).json  # fmt: skip
    best = found["best"]
    assert best["latency_ms"] <= 8 + 1e-9
    assert best["memory_bytes"] <= 14 * 2**30
    assert 2 <= best["mixers"]["full_attention"] <= 4
    for row in found["front"]:
        assert 2 <= row["mixers"]["full_attention"] <= 4


def test_kinds_without_data_are_left_out_with_a_line_unless_assumed(hwsearch: Call, tmp_path: Path) -> None:
    plain = hwsearch(*EXAMPLE, *SHORT, "-o", tmp_path / "a", "--json")
    assert "sliding_window_attention is left out of the space" in plain.err
    assert any("--assume none=" in note for note in plain.json["notes"])
    kinds = {kind for row in plain.json["front"] for kind in row["mixers"]}
    assert kinds <= {"full_attention", "gated_delta_net", "jet_block"}
    assumed = hwsearch(
        *EXAMPLE, *SHORT, "--assume", "sliding_window_attention=0.1", "-o", tmp_path / "b", "--json"
    )
    assert "sliding_window_attention is left out" not in assumed.err
    assert "sliding_window_attention" in assumed.json["best"]["mixers"]
    assert assumed.json["best"]["quality_loss"] < plain.json["best"]["quality_loss"]


def _start(run: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hwsearch", *EXAMPLE, "--generations", "60", "-o", str(run), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _generations(run: Path) -> int:
    journal = run / "journal.sqlite"
    if not journal.exists():
        return 0
    try:
        with sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM generation").fetchone()[0])
    except sqlite3.OperationalError:  # its tables are not there yet
        return 0


def test_a_killed_search_resumes_to_the_identical_result(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _start(whole).wait() == 0
    process = _start(killed)
    deadline = time.monotonic() + 60
    while _generations(killed) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert 5 <= _generations(killed) < 60
    assert not (killed / "result.json").exists()
    resumed = _start(killed, "--resume")
    _, complaint = resumed.communicate()
    assert resumed.returncode == 0, complaint
    assert (whole / "result.json").read_bytes() == (killed / "result.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--base": "Qwen3-1.8B"}, "did you mean Qwen3-1.7B"),
        ({"--device": "h100"}, "did you mean h100-sxm"),
        ({"--quality": "qwen3"}, "known: qwen3-1.7b-sweep"),
        ({"--workload": "decode:batch=0,context=1"}, "batch"),
        ({"--budget": "latency<=-6ms"}, "must be above 0"),
        ({"--budget": "latency<=6"}, "unit"),
        ({"--budget": "latency<=1ms"}, "latency<=1ms: the best of this space is"),
        ({"--budget": "throughput>=1e9"}, "tokens/s"),
        ({"--budget": "none>=2"}, "include it by --assume none=SHARE"),
        ({"--budget": "full_attention>=29"}, "at least 29 and at most 28 of 28 layers"),
        ({"--workload": "decode:batch=99999999999999999999,context=1k"}, "less than or equal"),
        ({"--budget": "memory<=1GiB"}, "memory<=1GiB: the best of this space is"),
        ({"--base": "Qwen3-4B"}, "28 layers; Qwen3-4B has 36"),
        ({"--space": "postnass"}, "did you mean postnas"),
        ({"--task": "mmlu"}, "unknown task 'mmlu'"),
        ({"--assume": "none"}, "write KIND=SHARE"),
        ({"--assume": "jet_block=0.5"}, "has measured importance"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    hwsearch: Call, tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    options = dict(zip(EXAMPLE[1::2], EXAMPLE[2::2], strict=True)) | changes
    arguments = [part for pair in options.items() for part in pair]
    outcome = hwsearch("search", *arguments, *SHORT, "-o", tmp_path / "run")
    assert told in outcome.complaint
    assert not (tmp_path / "run").exists()


def test_impossible_budgets_together_say_what_each_could_reach(hwsearch: Call, tmp_path: Path) -> None:
    outcome = hwsearch(*EXAMPLE, "--budget", "full_attention>=20", "-o", tmp_path / "run")
    assert "latency<=6ms: the best of this space is" in outcome.complaint


def test_a_directory_in_use_is_not_overwritten(hwsearch: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert hwsearch(*EXAMPLE, *SHORT, "-o", run).status == 0
    before = (run / "result.json").read_bytes()
    assert "--resume" in hwsearch(*EXAMPLE, *SHORT, "-o", run).complaint
    changed = hwsearch(*EXAMPLE[:-1], "latency<=7ms", *SHORT, "-o", run, "--resume").complaint
    assert "budgets" in changed
    again = hwsearch(*EXAMPLE, *SHORT, "-o", run, "--resume")
    assert again.status == 0
    assert (run / "result.json").read_bytes() == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    assert "not empty" in hwsearch(*EXAMPLE, *SHORT, "-o", foreign).complaint


def test_an_unwritable_place_is_one_line(hwsearch: Call, tmp_path: Path) -> None:
    """Below a file nothing can be created, not even by root."""
    (tmp_path / "file").write_text("x")
    assert "cannot create" in hwsearch(*EXAMPLE, *SHORT, "-o", tmp_path / "file" / "run").complaint


def test_exports_that_cannot_be_written_or_picked(hwsearch: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert hwsearch(*EXAMPLE, *SHORT, "-o", run).status == 0
    nowhere = tmp_path / "no" / "such" / "arch.json"
    assert "cannot write" in hwsearch("export", run, "-o", nowhere).complaint
    assert "it is a folder" in hwsearch("export", run, "-o", tmp_path).complaint
    for pick in ("9999", "-1", "bestest"):
        assert (
            "write best, knee, exact"
            in hwsearch("export", run, f"--pick={pick}", "-o", tmp_path / "a").complaint
        )
    assert "no-run" in hwsearch("export", tmp_path / "no-run", "-o", tmp_path / "a").complaint
    (run / "result.json").write_text(json.dumps({"front": []}))
    assert str(run) in hwsearch("export", run, "-o", tmp_path / "a").complaint
    (run / "result.json").write_text("{")
    assert str(run) in hwsearch("export", run, "-o", tmp_path / "a").complaint
    assert not (tmp_path / "a").exists()
