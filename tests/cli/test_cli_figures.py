"""Commands that print figures: their JSON keys against docs/json.md, acceptance figures, wrong input."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from hwsearch.surrogate.mixture import propose_mixture, read_runs
from tests.cli.conftest import Call

DOCS = Path(__file__).parents[2] / "docs" / "json.md"
MOST_ROWS = 500
DECODE = "decode:batch=128,context=65536"


def _documented(section: str) -> set[str]:
    """The keys in the first column of a section's table."""
    text = DOCS.read_text(encoding="utf-8")
    body = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in body.splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def _assert_documented(content: Mapping[str, Any], section: str) -> None:
    assert set(content) == _documented(section)


def test_predict_prints_the_documented_keys(hwsearch: Call) -> None:
    found = hwsearch(
        "predict", "--arch", "jet-nemotron-2b", "--device", "h100-sxm", "--workload", DECODE, "--json"
    ).json
    _assert_documented(found, "predict")
    assert len(found["layers"]) == 28
    for layer in found["layers"]:
        _assert_documented(layer, "predict: each of layers")
    assert found["cache_bytes_per_sequence"] == 157.25 * 2**20
    assert found["conv_state_bytes_per_sequence"] == 24 * 24 * 1024
    assert found["latency_ms_low"] < found["latency_ms"] < found["latency_ms_high"]


def test_search_and_export_print_the_documented_keys(hwsearch: Call, tmp_path: Path) -> None:
    found = hwsearch(
        "search", "--base", "Qwen3-1.7B", "--device", "h100-sxm", "--quality", "qwen3-1.7b-sweep",
        "--workload", "decode:batch=1,context=4k", "-o", tmp_path / "run", "--generations", 3, "--json",
    ).json  # fmt: skip
    _assert_documented(found, "search")
    assert set(found["best"]) == _documented("search: best and exact") - {"proven"}
    assert set(found["exact"]) == _documented("search: best and exact") - {"prediction"}
    _assert_documented(found["best"]["prediction"], "predict")
    _assert_documented(
        hwsearch("export", tmp_path / "run", "-o", tmp_path / "arch.json", "--json").json, "export"
    )


def test_devices_and_bases_print_the_documented_keys(hwsearch: Call) -> None:
    devices = hwsearch("devices", "--json").json["devices"]
    for device in devices:
        _assert_documented(device, "devices: each of devices")
    assert next(d for d in devices if d["name"] == "h100-sxm")["cost_model"]["runtime"] == "vLLM 0.24.0"
    for base in hwsearch("bases", "--json").json["bases"]:
        _assert_documented(base, "bases: each of bases")


def test_the_mixture_command_prints_what_the_library_finds(hwsearch: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), size=40)
    scores = 2 + ((weights - [0.6, 0.3, 0.1]) ** 2).sum(axis=1)
    path = tmp_path / "runs.csv"
    lines = ["web,books,code,loss"]
    lines += [
        ",".join(map(repr, [*(10 * w).tolist(), float(s)])) for w, s in zip(weights, scores, strict=True)
    ]
    path.write_text("\n".join(lines))
    printed = hwsearch("mixture", path, "--json").json
    found = propose_mixture(read_runs(path, score="loss"), maximise=False, seed=0)
    assert printed["weights"] == found.weights
    assert printed["runs"] == 40
    _assert_documented(printed, "mixture")
    assert "predicted" in hwsearch("mixture", path).out


def test_schema_is_json_and_names_its_version(hwsearch: Call) -> None:
    schema = hwsearch("schema").json
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["properties"]["schema_version"]["const"] == 1


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("Qwen2.5-1.5B", 1792),
        ("Qwen3-1.7B", 7168),
        ("Llama-3.2-3B", 7168),
        ("jet-nemotron-4b", 258),
        ("jet-nemotron-2b", 157.25),
    ],
)
def test_predict_gives_the_published_cache(hwsearch: Call, name: str, mib: float) -> None:
    workload = "decode:batch=1,context=65536"
    found = hwsearch("predict", "--arch", name, "--device", "h100-sxm", "--workload", workload, "--json").json
    assert found["cache_bytes_per_sequence"] == mib * 2**20


def test_tables_for_people_are_whole_and_without_colour_in_a_pipe(hwsearch: Call) -> None:
    for arguments in (
        ("predict", "--arch", "jet-nemotron-4b", "--device", "h100-sxm", "--workload", DECODE),
        ("devices",),
        ("bases",),
    ):
        out = hwsearch(*arguments).out
        assert "\x1b" not in out
        assert "…" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("predict", "--arch", "jet-nemotron-3b", "--device", "h100-sxm", "--workload", DECODE),
            "did you mean",
        ),
        (("predict", "--arch", "Qwen3-1.7B", "--device", "b200", "--workload", DECODE), "unknown cost model"),
        (
            ("predict", "--arch", "Qwen3-1.7B", "--device", "h100-sxm", "--workload", "decode"),
            "write for example",
        ),
        (("evaluate", "h100-sxm", "nowhere"), "nowhere does not exist"),
        (("fit", "nowhere.db", "-o", "model"), "nowhere.db does not exist"),
        (("import", "aiconfigurator", "nowhere", "-o", "x.db"), "nowhere"),
        (("profile", "--device", "tpu", "-o", "x.db"), "tpu"),
        (("profile", "--device", "cuda:99", "-o", "x.db"), "cuda:99"),
        (("profile", "--base", "Qwen3-1.7B", "-o", "x.db"), "add --space postnas"),
        (("profile", "--space", "postnas", "-o", "x.db"), "--space needs --base"),
    ],
)
def test_wrong_input_is_one_line(
    hwsearch: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in hwsearch(*arguments).complaint
    assert not any(tmp_path.iterdir())


def test_unknown_commands_and_options_are_clicks_own_errors(hwsearch: Call) -> None:
    for arguments in (("predikt",), ("predict", "--arhc", "x"), ("predict",)):
        outcome = hwsearch(*arguments)
        assert outcome.status == 2
        assert "Traceback" not in outcome.err


def test_a_malformed_architecture_names_file_and_path(hwsearch: Call, tmp_path: Path) -> None:
    path = tmp_path / "arch.json"
    path.write_text(json.dumps({"schema_version": 1, "name": "x", "layers": []}))
    outcome = hwsearch("predict", "--arch", path, "--device", "h100-sxm", "--workload", DECODE)
    assert "arch.json" in outcome.complaint
    assert "base: is missing" in outcome.complaint


@pytest.mark.shared
def test_evaluate_on_real_tables(hwsearch: Call, shared_data: Path, tmp_path: Path) -> None:
    """The first bars: percent, on rows that the evaluation did not fit on.

    A few hundred rows of every table, which is harder than all of them; benchmarks/costmodel_vs_peers.py takes all.
    """
    rng = np.random.default_rng(0)
    for path in sorted((shared_data / "data" / "h100_sxm").glob("*.parquet")):
        table = parquet.read_table(path)
        parquet.write_table(table.take(rng.permutation(table.num_rows)[:MOST_ROWS]), tmp_path / path.name)
    found = hwsearch("evaluate", "h100-sxm", tmp_path, "--json").json
    _assert_documented(found, "evaluate")
    assert "refitted" in found["how"]
    bars = {
        "gemm": 7,
        "generation_attention": 8,
        "context_attention": 8,
        "delta_rule_prefill": 3,
        "delta_rule_decode": 3,
    }
    for kind, bar in bars.items():
        errors = found["operators"][kind]
        _assert_documented(errors, "evaluate: each of operators")
        assert errors["mape"] <= bar, kind
        assert errors["median_ape"] <= errors["mape"] <= errors["p95_ape"]
        assert errors["coverage_90"] >= 80, kind
